"""Positions that lenses are fitted and measured on: the stream before every block at each.

A lens reads the stream at one position and nothing of the others, so positions are rows: a window
of text gives one for each position from ``first`` on.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.core.ablation_pass import ATTENTION_OUT, Passes, passes
from sat_interp._util.errors import UserError
from sat_interp._util.files import default_cache, naming

BATCH_TOKENS = 4096
"""Tokens of one pass through the model."""
MEMORY = 1 << 30
"""Bytes of streams that are kept on the model's device."""


@dataclass(frozen=True)
class Positions:
    """Rows of a text: position by position of window by window.

    Attributes:
        streams: the stream before each block, and after the last; on the model's device, or in a
            file that is mapped into memory.
        attention: each block's attention output, of the rows ``attention_rows``.
        attention_mean: its mean over all rows, as float64 on the CPU.
        attention_rows: rows whose attention outputs are kept.
        n_windows, per_window: rows = n_windows * per_window, window by window.
    """

    streams: list[Float[Tensor, "rows d_model"]]
    attention: Float[Tensor, "layers some d_model"]
    attention_mean: Float[Tensor, "layers d_model"]
    attention_rows: Int[Tensor, " some"]
    n_windows: int
    per_window: int

    def __len__(self) -> int:
        return len(self.streams[0])

    def take(self, rows: Int[Tensor, " some"]) -> list[Tensor]:
        """Return the streams of some rows."""
        return [stream[rows] for stream in self.streams]


@torch.no_grad()
def read_positions(
    model: HookedTransformer,
    windows: Int[Tensor, "windows pos"],
    first: int,
    n_kept: int,
    seed: int,
    memory: int = MEMORY,
) -> Positions:
    """Run the model on windows of text and keep its streams from position ``first`` on.

    Args:
        n_kept: of so many random rows the attention outputs are kept (the bank of the resample
            lens); their mean is over all rows.
        memory: bytes of streams beyond which they are kept in a file, not on the model's device.

    Raises:
        UserError: activations that are not finite.
        OSError: no room on the disk for the file.
    """
    pieces = passes(model)
    n_layers, per_window = int(model.cfg.n_layers), windows.shape[1] - first
    n_rows = len(windows) * per_window
    chosen = torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed))
    chosen = chosen[:n_kept].sort().values
    streams = _room(n_layers + 1, n_rows, model.W_E, memory)
    kept: list[list[Tensor]] = [[] for _ in range(n_layers)]
    sums = torch.zeros(n_layers, model.cfg.d_model, dtype=torch.float64)
    size = max(1, BATCH_TOKENS // windows.shape[1])
    begin = 0
    for batch in windows.split(size):
        found = pieces.streams(batch.to(model.W_E.device))
        end = begin + len(batch) * per_window
        own = chosen[(chosen >= begin) & (chosen < end)] - begin
        for layer, stream in enumerate(found):
            streams[layer][begin:end] = stream[:, first:].flatten(0, 1)
        for layer, attended in enumerate(_attention(pieces, found)):
            flat = attended[:, first:].flatten(0, 1)
            sums[layer] += flat.sum(0, dtype=torch.float64).cpu()
            kept[layer].append(flat[own.to(flat.device)])
        begin = end
    if not bool(streams[-1].isfinite().all()):
        raise UserError("the model's activations are not finite (NaN) on this text")
    bank = torch.stack([torch.cat(parts) for parts in kept])
    return Positions(streams, bank, sums / n_rows, chosen, len(windows), per_window)


def _room(n: int, n_rows: int, like: Tensor, memory: int) -> list[Float[Tensor, "rows d_model"]]:
    """Return streams that are to be filled: of the model's type and, if there is room, device.

    Raises:
        OSError: no room on the disk.
    """
    shape = (n, n_rows, like.shape[1])
    if math.prod(shape) * like.element_size() <= memory:
        return [like.new_empty(shape[1:]) for _ in range(n)]
    return list(_mapped(math.prod(shape), like.dtype).view(shape))


def _mapped(size: int, dtype: torch.dtype) -> Float[Tensor, " size"]:
    """Return numbers in a file of the cache, which is gone as soon as nobody holds them.

    Raises:
        OSError: no room on the disk.
    """
    directory = default_cache()
    directory.mkdir(parents=True, exist_ok=True)
    handle, path = tempfile.mkstemp(dir=directory, suffix=".streams")
    try:
        with naming(path):
            os.posix_fallocate(handle, 0, size * dtype.itemsize)
        return torch.from_file(path, shared=True, size=size, dtype=dtype)
    finally:
        os.close(handle)
        os.unlink(path)


def _attention(
    pieces: Passes, streams: list[Tensor]
) -> Iterator[Float[Tensor, "batch pos d_model"]]:
    for layer, stream in enumerate(streams[:-1]):
        yield pieces.state(layer, stream)[ATTENTION_OUT][0]
