"""Activations of single units on many short windows.

A window consists of consecutive tokens of a story. Each token is read at its own position in the
story; the only other token is the one that begins the story, at position 0 (see
``sat_interp.model.positions`` for the types of position embeddings). A window that starts at the
beginning of the story is thus the story itself. Windows of equal length form one batch; equal
windows at equal positions are read once for all units; the model stops at the units' layer.
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
    """Reader of the units of one layer on windows.

    Attributes:
        start_token: the token that begins a story and precedes every window.
        windows: number of requested windows by ``step``.
        tokens: number of tokens read by the model, by ``step``.
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
        """Return the activations of one unit per row on windows of equal length.

        Args:
            starts: index of each window's first token in its story; token 0 is at position 1,
                after the token that begins the story.
            unit: number of the unit of each row.
            step: name under which windows and tokens are counted.

        Raises:
            UserError: activations that are not finite.
        """
        rows, length = windows.shape
        self.windows[step] += rows
        if not rows:
            return np.zeros((0, length), dtype=np.float32)
        placed = np.column_stack([starts, windows])
        distinct, which = np.unique(placed, axis=0, return_inverse=True)
        which = which.reshape(-1)  # NumPy 2.0 returns a second axis
        self.tokens[step] += len(distinct) * (length + 1)
        activations = np.empty((rows, length), dtype=np.float32)
        order = np.argsort(which, kind="stable")
        per_batch = max(1, BATCH_TOKENS // (length + 1))
        for first in range(0, len(distinct), per_batch):
            part = distinct[first : first + per_batch]
            values = self._values(part[:, 1:], part[:, 0])  # (windows, length, units)
            in_part = order[slice(*np.searchsorted(which[order], [first, first + len(part)]))]
            activations[in_part] = values[which[in_part] - first, :, unit[in_part]]
        return activations

    def _values(
        self, windows: Int64[np.ndarray, "rows length"], starts: Int64[np.ndarray, " rows"]
    ) -> Float32[np.ndarray, "rows length units"]:
        """Return the activations of all units of the layer on one batch of windows."""
        rows, length = windows.shape
        device = self.model.W_E.device
        tokens = torch.from_numpy(np.column_stack([np.full(rows, self.start_token), windows]))
        positions = None
        if starts.any():
            after = starts[:, None] + np.arange(1, length + 1)
            positions = torch.from_numpy(np.column_stack([np.zeros(rows, dtype=np.int64), after]))
            positions = positions.to(device)
        read = self.units.read(self.model, tokens.to(device), [self.layer], positions)
        activations = read[self.layer][:, 1:].float().cpu()
        if not activations.isfinite().all():
            raise UserError(f"the model's activations in layer {self.layer} are not finite (NaN)")
        return activations.numpy()

    def read_all(
        self,
        windows: Sequence[Int64[np.ndarray, "_"]],
        starts: Sequence[int],
        unit: Sequence[int],
        step: str,
    ) -> list[Float[np.ndarray, "_"]]:
        """Return the activations of one unit per window, for windows of any length, in order."""
        activations: list[np.ndarray] = [np.empty(0, dtype=np.float32)] * len(windows)
        units = np.asarray(unit, dtype=np.int64)
        begin = np.asarray(starts, dtype=np.int64)
        for places in by_length(windows):
            stacked = np.stack([windows[i] for i in places])
            values = self.read(stacked, begin[places], units[places], step)
            for place, value in zip(places, values, strict=True):
                activations[place] = value
        return activations


def by_length(windows: Sequence[Int64[np.ndarray, "_"]]) -> list[list[int]]:
    """Group the indices of windows by length."""
    groups: dict[int, list[int]] = defaultdict(list)
    for place, window in enumerate(windows):
        groups[len(window)].append(place)
    return list(groups.values())
