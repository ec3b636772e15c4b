"""What corrupts a subject: constants, Gaussian noise, or the tokens of another subject.

All of them are changes of the token embeddings at some positions (``run.Change``).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluations.suite.trace.run import Bucket, Change, TraceRun, positions

NOISE = 3.0
"""Standard deviations of the noise (Meng et al. 2022; Li and Janson 2024)."""
TRIES = 50
"""Facts drawn in search of an unrelated subject."""


def constants(vectors: Float[Tensor, "problem d_model"], where: str = "all_subject") -> Change:
    """One vector for all tokens, for each problem: optimal ablation (arXiv 2409.09951, sec. 4)."""

    def change(
        bucket: Bucket, rows: slice, numbers: Int[Tensor, " problem"]
    ) -> Float[Tensor, "_ fact pos d_model"]:
        own = vectors[numbers if len(vectors) > 1 else [0]]
        own = own.to(bucket.embedded)[:, None, None]
        mask = bucket.sets[where][rows][..., None]
        return torch.where(mask, own - bucket.embedded[rows], torch.zeros_like(own))

    return change


def noise(
    run: TraceRun,
    sizes: Float[Tensor, " _"],
    seed: int,
    where: str = "all_subject",
) -> Change:
    """One draw of Gaussian noise: 3 s e, e standard normal, the same for all problems.

    Args:
        sizes: s: one number, or one for each dimension.
    """
    generator = torch.Generator().manual_seed(seed)
    most = max(int(bucket.sets[where].sum(1).max()) for bucket in run.buckets)
    drawn = torch.randn(len(run), most, run.model.cfg.d_model, generator=generator)
    return added(NOISE * drawn * sizes.cpu().to(drawn), where)


def added(vectors: Float[Tensor, "fact token d_model"], where: str = "all_subject") -> Change:
    """A vector added to each token, the same for all problems."""

    def change(
        bucket: Bucket, rows: slice, numbers: Int[Tensor, " problem"]
    ) -> Float[Tensor, "_ fact pos d_model"]:
        mask = bucket.sets[where][rows]
        place = (mask.cumsum(1) - 1).clamp(min=0, max=vectors.shape[1] - 1)
        own = vectors[bucket.numbers[rows]].to(bucket.embedded)
        own = own.gather(1, place[..., None].expand(-1, -1, own.shape[-1]))
        return torch.where(mask[..., None], own, torch.zeros_like(own))[None]

    return change


def noise_size(run: TraceRun, by_dimension: bool) -> Float[Tensor, " _"]:
    """The standard deviation of the noise, before the factor 3.

    One number: of all entries of the subjects' token embeddings (ROME). By dimension: of the first
    block's input over all positions but the first (the paper's is over text).
    """
    if not by_dimension:
        return run.embeddings().double().std().reshape(1)
    streams = [bucket.stream[:, 1:].flatten(0, 1) for bucket in run.buckets]
    return torch.cat(streams).double().std(0)


def swap(run: TraceRun, partners: Sequence[int | None], where: str = "all_subject") -> Change:
    """The token embeddings of another fact's subject (Zhang and Nanda 2023, arXiv 2309.16042).

    Args:
        partners: for each fact, the other one; a fact with None keeps its subject.
    """
    offsets = [[fact.subject.index(at) for at in positions(fact)[where]] for fact in run.facts]
    most = max(1, *map(len, offsets))
    old, new = torch.zeros(2, len(run), most, dtype=torch.long)
    for number, (partner, some) in enumerate(zip(partners, offsets, strict=True)):
        for place, offset in enumerate(some):
            own = run.facts[number]
            other = own if partner is None else run.facts[partner]
            old[number, place] = own.tokens[own.subject[offset]]
            new[number, place] = other.tokens[other.subject[offset]]
    with torch.no_grad():
        device = run.model.W_E.device
        difference = run.model.embed(new.to(device)) - run.model.embed(old.to(device))
    return added(difference.cpu(), where)


def draw_partners(run: TraceRun, seed: int) -> list[int | None]:
    """Another fact for each, whose subject has as many tokens, none of them the same in its place.

    None where there is no such fact among 50 drawn.
    """
    rng = random.Random(f"partners/{seed}")
    subjects = [[fact.tokens[at] for at in fact.subject] for fact in run.facts]
    by_size: dict[int, list[int]] = defaultdict(list)
    for number, subject in enumerate(subjects):
        by_size[len(subject)].append(number)

    def partner(own: list[int]) -> int | None:
        for _ in range(TRIES):
            other = rng.choice(by_size[len(own)])
            if all(one != two for one, two in zip(own, subjects[other], strict=True)):
                return other
        return None

    return [partner(own) for own in subjects]
