"""One process, or several under ``torchrun``: their ranks and what they exchange."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from sat_interp._util.devices import resolve_device
from sat_interp._util.errors import UserError


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        rank: 0 for the process that writes files.
        world: number of processes.
        device: device of this process.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the processes: one exchange of one flat buffer."""
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.world
        pieces = flat.split([tensor.numel() for tensor in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.copy_(piece.view_as(tensor))

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.world > 1:
            dist.barrier()


def _number(name: str, otherwise: int) -> int:
    value = os.environ.get(name, str(otherwise))
    if not value.isdecimal():
        raise UserError(f"the environment variable {name} must be a whole number, not {value!r}")
    return int(value)


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the processes ``torchrun`` started, or be the only one.

    Raises:
        UserError: an unknown device, or one this machine does not have; variables of the
            environment that are no numbers.
    """
    world = _number("WORLD_SIZE", 1)
    rank = _number("RANK", 0) if world > 1 else 0
    place = own_device(device, _number("LOCAL_RANK", 0) if world > 1 else None)
    if world == 1 or dist.is_initialized():
        yield Processes(rank, world, place)
        return
    if place.type != "cpu":
        torch.accelerator.set_device_index(place)
    dist.init_process_group(dist.get_default_backend_for_device(place))
    try:
        yield Processes(rank, world, place)
    finally:
        dist.destroy_process_group()


def own_device(name: str, local_rank: int | None = None) -> torch.device:
    """The device called ``name``; each local process takes an accelerator of its own.

    Raises:
        UserError: an unknown device, or one this machine does not have.
    """
    device = resolve_device(name)
    if local_rank is not None and device.type != "cpu" and device.index is None:
        return torch.device(device.type, local_rank)
    return device
