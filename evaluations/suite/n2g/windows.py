"""Many short windows through the model at once, of each only the unit that is asked about.

A window is some consecutive tokens of a story, read where they stand in it: each token at its own
position, before them the token that begins the story, at position 0, and nothing else in attention
(``sat_interp.model.positions`` says how, for each way models tell positions). A window that
holds the whole story up to its last token is that part of the story. Windows of one length make one
batch, wherever they stand; equal windows at equal places that several units ask about are read
once; the model stops at the layer of the units. Every figure of this evaluation is such a reading.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64
from transformer_lens import HookedTransformer

from evaluations.core.units import Units
from sat_interp._util.errors import UserError

BATCH_TOKENS = 4096


@dataclass
class Reader:
    """The units of one layer, read on windows.

    Attributes:
        start_token: the token that begins a story, before every window.
        windows: how many were asked for, by whatever step is counted under ``step``.
        tokens: how many the model has read for them, the story's first token included.
    """

    model: HookedTransformer
    units: Units
    layer: int
    start_token: int
    windows: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    tokens: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @torch.inference_mode()
    def read(
        self,
        windows: Int[np.ndarray, "rows length"],
        starts: Int[np.ndarray, " rows"],
        unit: Int[np.ndarray, " rows"],
        step: str,
    ) -> Float32[np.ndarray, "rows length"]:
        """The activation of a unit, one for each row, on the tokens of windows of one length.

        Args:
            starts: the place of each window's first token in its story, counted from 0; a story's
                token 0 is at position 1, after the token that begins the story.

        Raises:
            UserError: activations that are not finite.
        """
        rows, length = windows.shape
        self.windows[step] += rows
        if not rows:
            return np.zeros((0, length), dtype=np.float32)
        placed = np.column_stack([starts, windows])
        distinct, which = np.unique(placed, axis=0, return_inverse=True)
        which = which.reshape(-1)  # NumPy 2.0 gives it a second axis
        self.tokens[step] += len(distinct) * (length + 1)
        found = np.empty((rows, length), dtype=np.float32)
        order = np.argsort(which, kind="stable")
        per_batch = max(1, BATCH_TOKENS // (length + 1))
        for first in range(0, len(distinct), per_batch):
            part = distinct[first : first + per_batch]
            values = self._values(part[:, 1:], part[:, 0])  # (windows, length, units)
            asked = order[slice(*np.searchsorted(which[order], [first, first + len(part)]))]
            found[asked] = values[which[asked] - first, :, unit[asked]]
        return found

    def _values(
        self, windows: Int64[np.ndarray, "rows length"], starts: Int64[np.ndarray, " rows"]
    ) -> Float32[np.ndarray, "rows length units"]:
        """All units of the layer on some windows, as one batch."""
        rows, length = windows.shape
        device = self.model.W_E.device
        tokens = torch.from_numpy(np.column_stack([np.full(rows, self.start_token), windows]))
        positions = None
        if starts.any():
            after = starts[:, None] + np.arange(1, length + 1)
            positions = torch.from_numpy(np.column_stack([np.zeros(rows, dtype=np.int64), after]))
            positions = positions.to(device)
        read = self.units.read(self.model, tokens.to(device), [self.layer], positions)
        found = read[self.layer][:, 1:].float().cpu()
        if not found.isfinite().all():
            raise UserError(f"the model's activations in layer {self.layer} are not finite (NaN)")
        return found.numpy()

    def read_all(
        self,
        windows: Sequence[Int64[np.ndarray, "_"]],
        starts: Sequence[int],
        unit: Sequence[int],
        step: str,
    ) -> list[Float[np.ndarray, "_"]]:
        """The same for windows of any lengths, in their order."""
        found: list[np.ndarray] = [np.empty(0, dtype=np.float32)] * len(windows)
        asked = np.asarray(unit, dtype=np.int64)
        begin = np.asarray(starts, dtype=np.int64)
        for places in by_length(windows):
            stacked = np.stack([windows[i] for i in places])
            values = self.read(stacked, begin[places], asked[places], step)
            for place, value in zip(places, values, strict=True):
                found[place] = value
        return found


def by_length(windows: Sequence[Int64[np.ndarray, "_"]]) -> list[list[int]]:
    """The places of windows of each length."""
    groups: dict[int, list[int]] = defaultdict(list)
    for place, window in enumerate(windows):
        groups[len(window)].append(place)
    return list(groups.values())
