"""The tuned lens: a linear map of the stream for each layer, by the recipes of its authors.

- ``tuned``: the official package's recipe (Belrose et al. 2023): the map begins at the identity;
  SGD with Nesterov momentum .9, rate 1 (1 - .9) falling linearly to 0, weight decay 1e-3, gradients
  of all layers together clipped to norm 1; 250 steps.
- ``tuned-paper``: the baseline of Li and Janson 2024: the map begins at random normal numbers; Adam
  with a constant rate of 1e-2; 30,000 steps of 64 positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluations.suite.lens.ending import Ending, Target, pick

MOMENTUM, RATE, DECAY, CLIP = 0.9, 1.0, 1e-3, 1.0
PAPER_RATE = 1e-2


@dataclass(frozen=True)
class Recipe:
    """How long a tuned lens is trained.

    Attributes:
        steps: of the optimiser.
        batch: positions of a step, at most those there are.
    """

    steps: int = 250
    batch: int = 1 << 18
    seed: int = 0


@dataclass(frozen=True)
class Maps:
    """A tuned lens: h becomes h + W h + b.

    Attributes:
        read: positions evaluated, those of each layer counted.
    """

    matrices: Float[Tensor, "layers d_model d_model"]
    biases: Float[Tensor, "layers d_model"]
    read: int


After = Callable[[int, Maps], bool]
"""Is shown the lens after each step, and may end the training."""


def fit_official(
    ending: Ending,
    target: Target,
    streams: list[Float[Tensor, "rows d_model"]],
    recipe: Recipe,
    after: After = lambda step, maps: False,
) -> Maps:
    """Train a tuned lens by the official recipe.

    Args:
        streams: before each block, in order.
    """
    like = target.direction
    d_model = like.shape[1]
    matrices = like.new_zeros(len(streams), d_model, d_model).requires_grad_()
    biases = like.new_zeros(len(streams), d_model).requires_grad_()
    optimiser = torch.optim.SGD(
        [matrices, biases],
        lr=RATE * (1 - MOMENTUM),
        momentum=MOMENTUM,
        nesterov=True,
        weight_decay=DECAY,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / recipe.steps)
    read = 0
    for step, rows in enumerate(_batches(len(target), recipe)):
        _backward(ending, target, streams, rows, matrices, biases)
        torch.nn.utils.clip_grad_norm_([matrices, biases], CLIP)
        optimiser.step()
        schedule.step()
        read += len(rows) * len(streams)
        if after(step + 1, Maps(matrices.detach(), biases.detach(), read)):
            break
    return Maps(matrices.detach(), biases.detach(), read)


def fit_paper(
    ending: Ending, target: Target, streams: list[Float[Tensor, "rows d_model"]], recipe: Recipe
) -> Maps:
    """Train the tuned lens that Li and Janson compare with.

    Args:
        streams: before each block, in order.
    """
    like = target.direction
    shape = len(streams), like.shape[1], like.shape[1]
    generator = torch.Generator().manual_seed(recipe.seed)
    drawn = torch.randn(shape, generator=generator) - torch.eye(shape[1])
    matrices = drawn.to(like).requires_grad_()
    biases = torch.randn(shape[:2], generator=generator).to(like).requires_grad_()
    optimiser = torch.optim.Adam([matrices, biases], lr=PAPER_RATE)
    read = 0
    for rows in _batches(len(target), recipe):
        _backward(ending, target, streams, rows, matrices, biases)
        optimiser.step()
        read += len(rows) * len(streams)
    return Maps(matrices.detach(), biases.detach(), read)


def _backward(
    ending: Ending,
    target: Target,
    streams: list[Tensor],
    rows: Int[Tensor, " batch"],
    matrices: Tensor,
    biases: Tensor,
) -> None:
    """Put the gradient of the mean KL of each layer into the maps."""
    matrices.grad, biases.grad = torch.zeros_like(matrices), torch.zeros_like(biases)
    for some in ending.chunks(len(rows)):
        own = rows[some]
        targets = target.take(own)
        for layer, stream in enumerate(streams):
            h = pick(stream, own).to(matrices)
            with torch.enable_grad():
                end = h + h @ matrices[layer].T + biases[layer]
                mean = ending.kl(targets, end).sum() / len(rows)
                found = torch.autograd.grad(mean, (matrices, biases))
            matrices.grad += found[0]
            biases.grad += found[1]


def _batches(n_rows: int, recipe: Recipe) -> Iterator[Int[Tensor, " batch"]]:
    """Rows of each step: pass after pass over all of them, each in another order."""
    generator = torch.Generator().manual_seed(recipe.seed)
    size = min(recipe.batch, n_rows)
    order = torch.zeros(0, dtype=torch.long)
    for _ in range(recipe.steps):
        if len(order) < size:
            order = torch.randperm(n_rows, generator=generator)
        batch, order = order[:size], order[size:]
        yield batch
