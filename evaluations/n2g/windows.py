"""Many short windows through the model at once, of each only the unit that is asked about.

A window is a few tokens read as a story of their own: the end-of-text token first, position 0, no
padding. Windows of one length make one batch; equal windows asked about by several units are read
once; the model stops at the layer of the units. Every figure of this room is such a reading.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64
from transformer_lens import HookedTransformer

from evaluations.units import Units

BATCH_TOKENS = 4096


@dataclass
class Reader:
    """The units of one layer, read on windows.

    Attributes:
        end_of_text: the token before every window.
        windows: how many were asked for, by whatever step is counted under ``step``.
        tokens: how many the model has read for them, end-of-text included.
    """

    model: HookedTransformer
    units: Units
    layer: int
    end_of_text: int
    windows: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    tokens: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @torch.inference_mode()
    def read(
        self, windows: Int[np.ndarray, "rows length"], unit: Int[np.ndarray, " rows"], step: str
    ) -> Float32[np.ndarray, "rows length"]:
        """The activation of a unit, one for each row, on the tokens of windows of one length."""
        rows, length = windows.shape
        self.windows[step] += rows
        if not rows:
            return np.zeros((0, length), dtype=np.float32)
        distinct, which = np.unique(windows, axis=0, return_inverse=True)
        which = which.reshape(-1)  # NumPy 2.0 gives it a second axis
        self.tokens[step] += len(distinct) * (length + 1)
        found = np.empty((rows, length), dtype=np.float32)
        order = np.argsort(which, kind="stable")
        per_batch = max(1, BATCH_TOKENS // (length + 1))
        begin = np.full((per_batch, 1), self.end_of_text)
        for first in range(0, len(distinct), per_batch):
            part = distinct[first : first + per_batch]
            tokens = torch.from_numpy(np.hstack([begin[: len(part)], part]).astype(np.int64))
            read = self.units.read(self.model, tokens.to(self.model.W_E.device), [self.layer])
            values = read[self.layer][:, 1:].float().cpu().numpy()  # (windows, length, units)
            asked = order[slice(*np.searchsorted(which[order], [first, first + len(part)]))]
            found[asked] = values[which[asked] - first, :, unit[asked]]
        return found

    def read_all(
        self, windows: Sequence[Int64[np.ndarray, "_"]], unit: Sequence[int], step: str
    ) -> list[Float[np.ndarray, "_"]]:
        """The same for windows of any lengths, in their order."""
        found: list[np.ndarray] = [np.empty(0, dtype=np.float32)] * len(windows)
        asked = np.asarray(unit, dtype=np.int64)
        for places in by_length(windows):
            values = self.read(np.stack([windows[i] for i in places]), asked[places], step)
            for place, value in zip(places, values, strict=True):
                found[place] = value
        return found


def by_length(windows: Sequence[Int64[np.ndarray, "_"]]) -> list[list[int]]:
    """The places of windows of each length."""
    groups: dict[int, list[int]] = defaultdict(list)
    for place, window in enumerate(windows):
        groups[len(window)].append(place)
    return list(groups.values())
