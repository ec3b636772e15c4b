"""What replaces an activation: constants and other prompts' activations, by method.

With A(x)_t the activation of prompt x at position t, the methods replace it by

- ``zero``: 0 (a head's z; the attention layer's bias b_O is part of ``attn2`` and goes too).
- ``mean``: the mean over prompts of A(x)_t, a vector for each position.
- ``mean_all``: the mean over prompts and ablated positions, one vector.
- ``resample``: A(x')_t of another prompt of the same length, drawn at random.
- ``resample_all``: as resample, the mean cost over all cyclic shifts of the prompts, 0 included.
- ``cf``: A of the counterfactual (corrupted) prompt of x.
- ``cf_mean``: the mean over counterfactual prompts, a vector for each position.
- ``noise``: A(x)_t + 3 s e, s the standard deviation of each dimension over prompts and positions,
  e standard normal; the mean cost over five draws.
- ``oa``: the one vector that minimises the cost (optimal ablation).
- ``oa_stopped``: the iterate of that minimisation that is best on a quarter of the prompts, which
  it is not fitted on.
- ``oa_pos``: as oa, with a vector for each position.

Positions that the shortest prompt does not have share one vector. Zero, means and the optimal ones
are *constants*: fitted on one set of prompts, they can be used on another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evaluations.core.ablation import Group, Part
from evaluations.core.ablation_run import CleanRun

Method = Literal[
    "zero",
    "mean",
    "mean_all",
    "resample",
    "resample_all",
    "cf",
    "cf_mean",
    "noise",
    "oa",
    "oa_stopped",
    "oa_pos",
]
CONSTANT: tuple[Method, ...] = ("zero", "mean", "mean_all", "cf_mean")
"""Methods whose constants need no optimisation."""
OPTIMAL: tuple[Method, ...] = ("oa", "oa_stopped", "oa_pos")
NOISE = 3.0
NOISE_DRAWS = 5

Constants = list[Float[Tensor, "problem _ _"]]
"""For each part of a group, a vector for each slot of positions."""
Activations = list[list[Float[Tensor, "problem _ _ _"]]]
"""For each part and bucket, what a model computes."""


@dataclass(frozen=True)
class Slots:
    """Which positions share a constant.

    Attributes:
        first: the first ablated position.
        n: how many vectors there are; position t has number min(t - first, n - 1).
    """

    first: int
    n: int

    @classmethod
    def one(cls, run: CleanRun) -> Slots:
        """One vector for all positions."""
        return cls(run.first, 1)

    @classmethod
    def each(cls, run: CleanRun) -> Slots:
        """A vector for each position of the shortest prompt, and one for all later ones."""
        shortest, longest = min(run.lengths), max(run.lengths)
        return cls(run.first, shortest - run.first + (longest > shortest))

    def numbers(self, n_pos: int) -> Int[Tensor, " pos"]:
        """Return the number of each position's vector; 0 for those that are not ablated."""
        return (torch.arange(n_pos) - self.first).clamp(0, self.n - 1)


def at_positions(
    constants: Constants, run: CleanRun, bucket: int
) -> list[Float[Tensor, "problem 1 pos size"]]:
    """Return constants as replacements on one bucket; ``Slots`` follow from their shape."""
    replacements = []
    for constant in constants:
        numbers = Slots(run.first, constant.shape[1]).numbers(run.lengths[bucket])
        replacements.append(constant[:, numbers.to(constant.device)][:, None].to(run.model.W_E))
    return replacements


def activations(run: CleanRun, group: Group) -> Activations:
    """Return the clean activations of every part of a group, for each bucket."""
    return [run.read(part) for part in group.parts]


def mean_constants(run: CleanRun, group: Group, slots: Slots) -> Constants:
    """Return the mean activation for each slot of positions, as float64."""
    return [_mean(run, part, slots) for part in group.parts]


def _mean(run: CleanRun, part: Part, slots: Slots) -> Float[Tensor, "problem slot size"]:
    n, size = part.index.shape
    total = torch.zeros(n, slots.n, size, dtype=torch.float64)
    count = torch.zeros(slots.n, dtype=torch.float64)
    for value in run.read(part):
        sums = value[:, :, slots.first :].sum(1, dtype=torch.float64).cpu()
        numbers = slots.numbers(value.shape[2])[slots.first :]
        total.index_add_(1, numbers, sums)
        count.index_add_(0, numbers, torch.full((len(numbers),), float(value.shape[1])).double())
    return total / count[:, None]


def zero_constants(group: Group) -> Constants:
    """Return a zero vector for every problem."""
    return [torch.zeros(*part.index.shape, dtype=torch.float64)[:, None] for part in group.parts]


def constants_of(
    method: Method, run: CleanRun, group: Group, counterfactual: CleanRun | None = None
) -> Constants:
    """Return the constants of a method that needs no optimisation, fitted on the prompts of a run.

    Raises:
        ValueError: another method, or ``cf_mean`` without counterfactual prompts.
    """
    if method == "zero":
        return zero_constants(group)
    if method == "mean_all":
        return mean_constants(run, group, Slots.one(run))
    if method == "mean":
        return mean_constants(run, group, Slots.each(run))
    if method == "cf_mean" and counterfactual is not None:
        return mean_constants(counterfactual, group, Slots.each(run))
    raise ValueError(f"{method} has no constants that are known without optimisation")


def constant_kl(
    run: CleanRun, group: Group, constants: Constants
) -> Float[Tensor, "problem prompt"]:
    """Return what constants cost on each prompt of a run."""
    buckets = range(len(run.buckets))
    return run.kl(group, [at_positions(constants, run, number) for number in buckets])


def counterfactual_kl(
    run: CleanRun, group: Group, counterfactual: CleanRun
) -> Float[Tensor, "problem prompt"]:
    """Return the cost of the activations of each prompt's counterfactual."""
    return _kl_of(run, group, activations(counterfactual, group))


def _kl_of(run: CleanRun, group: Group, new: Activations) -> Float[Tensor, "problem prompt"]:
    return run.kl(group, [list(bucket) for bucket in zip(*new, strict=True)])


def resample_kl(
    run: CleanRun, group: Group, partners: Sequence[Int[Tensor, " _"]]
) -> Float[Tensor, "problem prompt"]:
    """Return the cost of other prompts' activations.

    Args:
        partners: for each bucket, whose activations each prompt receives. A bucket of one prompt
            has no other; its cost is NaN.
    """
    own = activations(run, group)
    kl = _kl_of(
        run, group, [[one[:, p] for one, p in zip(part, partners, strict=True)] for part in own]
    )
    kl[:, without_partner(run)] = torch.nan
    return kl


def without_partner(run: CleanRun) -> Bool[Tensor, " prompt"]:
    """Return which prompts have no other of their length, whose activations they could receive."""
    return torch.cat([torch.full((len(bucket),), len(bucket) == 1) for bucket in run.buckets])


def draw_partners(run: CleanRun, seed: int) -> list[Int[Tensor, " _"]]:
    """Draw for each prompt another one of the same length; no prompt receives its own."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for bucket in run.buckets:
        order = torch.randperm(len(bucket), generator=generator)
        partner = torch.empty_like(order)
        partner[order] = order.roll(1)
        found.append(partner)
    return found


def resample_all_kl(run: CleanRun, group: Group) -> Float[Tensor, "problem prompt"]:
    """Return the mean cost over all cyclic shifts of the prompts of a bucket, 0 included.

    The cost grows with the square of the number of prompts.
    """
    own, parts = activations(run, group), []
    for number, bucket in enumerate(run.buckets):
        chosen = run.bucket_run(number)
        total = torch.zeros(len(group), len(bucket), dtype=torch.float64)
        for shift in range(len(bucket)):
            total += _kl_of(chosen, group, [[part[number].roll(shift, 1)] for part in own])
        parts.append(total / len(bucket))
    return torch.cat(parts, 1)


def noise_kl(
    run: CleanRun, group: Group, fitted: CleanRun, seed: int, draws: int = NOISE_DRAWS
) -> Float[Tensor, "problem prompt"]:
    """Return the mean cost of Gaussian noise added to the activations.

    Args:
        fitted: the prompts that the standard deviations are taken over.
    """
    own = activations(run, group)
    deviations = [_deviation(part, fitted.first) for part in activations(fitted, group)]
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(group), len(run), dtype=torch.float64)
    for _ in range(draws):
        noisy = [
            [
                one
                + NOISE
                * deviation[:, None, None].to(one)
                * torch.randn(one.shape, generator=generator, dtype=one.dtype).to(one.device)
                for one in part
            ]
            for part, deviation in zip(own, deviations, strict=True)
        ]
        total += _kl_of(run, group, noisy)
    return total / draws


def _deviation(values: list[Tensor], first: int) -> Float[Tensor, "problem size"]:
    """Standard deviation of each dimension over prompts and ablated positions."""
    flat = torch.cat([one[:, :, first:].flatten(1, 2) for one in values], 1)
    return flat.double().std(1, correction=0)


def rms(run: CleanRun, group: Group) -> Float[Tensor, " problem"]:
    """Return the root of the mean of |A|^2 over prompts and ablated positions, parts together."""
    total = torch.zeros(len(group), dtype=torch.float64)
    for part in group.parts:
        for value in run.read(part):
            total += value[:, :, run.first :].double().square().sum((1, 2, 3)).cpu()
    count = sum(len(bucket) * (bucket.tokens.shape[1] - run.first) for bucket in run.buckets)
    return (total / count).sqrt()
