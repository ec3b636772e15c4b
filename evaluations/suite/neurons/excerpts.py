"""Selection of the gathered excerpts that an examiner reads.

A unit is explained from excerpts of one half of the stories; the explanation is scored on excerpts
of the other half. Activations are shown as integer levels, min(10, floor(10 relu(a) / max)), where
max is the unit's highest activation in the excerpts to explain from (Bills et al. 2023). A unit
fires on a token if its level is at least 5: half of its highest activation, as in N2G. (Many GELU
neurons are above 0 somewhere in almost every excerpt.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from evaluations.core.excerpts import Gathered, Half
from evaluations.core.text import Text
from evaluations.suite.neurons.examiners.base import HIGHEST, Question, ShownExcerpt

FIRES = 5
"""Minimum level at which a unit fires."""

KINDS = ("top", "sample", "random")


@dataclass(frozen=True)
class ExcerptMix:
    """Number of excerpts of each kind; sampled and random ones are from distinct stories."""

    top: int
    sample: int
    random: int

    @property
    def total(self) -> int:
        """Number of excerpts of all kinds."""
        return self.top + self.sample + self.random


@dataclass(frozen=True)
class Excerpts:
    """Excerpts of some units of one layer, from one half of the stories, by decreasing peak.

    Attributes:
        stories, starts: story and first token of each excerpt; -1 if a unit has fewer excerpts.
        kinds: indices in ``KINDS``.
        tokens: -1 beyond an excerpt's end.
        activations: nan beyond an excerpt's end.
    """

    stories: Int[np.ndarray, "units excerpts"]
    starts: Int[np.ndarray, "units excerpts"]
    kinds: Int[np.ndarray, "units excerpts"]
    tokens: Int[np.ndarray, "units excerpts width"]
    activations: Float[np.ndarray, "units excerpts width"]

    @cached_property
    def peaks(self) -> Float[np.ndarray, "units excerpts"]:
        """Highest activation of each excerpt; -inf if there is no excerpt."""
        finite = np.where(np.isnan(self.activations), -np.inf, self.activations)
        return np.asarray(finite.max(2))

    @cached_property
    def counts(self) -> Int[np.ndarray, " units"]:
        """Number of excerpts of each unit."""
        return np.asarray((self.stories >= 0).sum(1))

    @cached_property
    def lengths(self) -> Int[np.ndarray, "units excerpts"]:
        """Number of tokens of each excerpt."""
        return np.asarray((self.tokens >= 0).sum(2))


@dataclass(frozen=True)
class ExcerptBatch:
    """Excerpts of some units of one layer.

    Attributes:
        units: numbers of the units in the layer.
        highest: highest activation in the excerpts to explain from; -inf without excerpts.
        levels: levels from 0 to 10 by half; -1 beyond an excerpt's end.
    """

    layer: int
    units: Int[np.ndarray, " units"]
    explain: Excerpts
    held_out: Excerpts
    highest: Float[np.ndarray, " units"]
    levels: dict[Half, Int[np.ndarray, "units _ width"]]

    def name(self, place: int) -> str:
        """Return the name of a unit, such as ``3.117``."""
        return f"{self.layer}.{self.units[place]}"

    def excerpts(self, half: Half) -> Excerpts:
        """Return the excerpts of a half of the stories."""
        return self.explain if half == "explain" else self.held_out

    def question(self, place: int, names: Sequence[str]) -> Question:
        """Return the excerpts from which a unit is explained."""
        excerpts, levels = self.explain, self.levels["explain"]
        shown = [
            ShownExcerpt(
                strings(names, excerpts.tokens[place, rank], length),
                tuple(levels[place, rank, :length].tolist()),
                int(excerpts.starts[place, rank]),
            )
            for rank, length in enumerate(
                excerpts.lengths[place, : excerpts.counts[place]].tolist()
            )
        ]
        return Question(self.name(place), tuple(shown))

    def held_out_excerpts(
        self, place: int, names: Sequence[str], draws: np.random.Generator
    ) -> HeldOut:
        """Return the excerpts on which the explanation of a unit is scored, in random order."""
        excerpts = self.held_out
        ranks = draws.permutation(int(excerpts.counts[place]))
        ends = [(rank, int(excerpts.lengths[place, rank])) for rank in ranks.tolist()]
        return HeldOut(
            tuple(ranks.tolist()),
            tuple(strings(names, excerpts.tokens[place, rank], end) for rank, end in ends),
            tuple(excerpts.starts[place, ranks].tolist()),
            tuple(excerpts.activations[place, rank, :end] for rank, end in ends),
            tuple(self.levels["held_out"][place, rank, :end] >= FIRES for rank, end in ends),
        )


@dataclass(frozen=True)
class HeldOut:
    """Held-out excerpts of one unit in random order, which reveals nothing about activations.

    Attributes:
        ranks: index of each excerpt in ``Excerpts``.
        tokens, starts: as shown to an examiner.
        activations: activation of the unit on each token.
        fires: whether the unit fires on each token.
    """

    ranks: tuple[int, ...]
    tokens: tuple[tuple[str, ...], ...]
    starts: tuple[int, ...]
    activations: tuple[Float[np.ndarray, " _"], ...]
    fires: tuple[Bool[np.ndarray, " _"], ...]


def excerpt_batch(
    gathered: Gathered,
    layer: int,
    units: Int[np.ndarray, " units"],
    shown: ExcerptMix,
    scored: ExcerptMix,
) -> ExcerptBatch:
    """Return the excerpts of some units of a layer."""
    explain = _excerpts(gathered, layer, units, "explain", shown)
    held_out = _excerpts(gathered, layer, units, "held_out", scored)
    highest = explain.peaks.max(1, initial=-np.inf)
    levels: dict[Half, np.ndarray] = {
        "explain": to_levels(explain.activations, highest),
        "held_out": to_levels(held_out.activations, highest),
    }
    return ExcerptBatch(layer, units, explain, held_out, highest, levels)


def to_levels(
    activations: Float[np.ndarray, "units excerpts width"], highest: Float[np.ndarray, " units"]
) -> Int[np.ndarray, "units excerpts width"]:
    """Return min(10, floor(10 relu(a) / max)); -1 where there is no activation.

    Levels are 0 for units whose highest activation is not above 0.
    """
    scale = np.where(highest > 0, highest, np.inf)[:, None, None]
    finite = np.nan_to_num(activations.astype(np.float64), nan=-1.0)
    levels = np.minimum(np.floor(HIGHEST * np.maximum(finite, 0) / scale), HIGHEST)
    return np.where(np.isnan(activations), -1, levels).astype(np.int8)


def token_names(text: Text) -> list[str]:
    """Return the string of every token of the text by id; empty if it does not occur.

    A token that is only part of a character is decoded to a replacement character.
    """
    present = np.unique(np.asarray(text.corpus.tokens))
    names = [""] * (int(present[-1]) + 1 if len(present) else 0)
    for token in present.tolist():
        decoded = text.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        names[token] = str(decoded)
    return names


def strings(
    names: Sequence[str], tokens: Int[np.ndarray, " width"], length: int
) -> tuple[str, ...]:
    """Return the first tokens of an excerpt as strings."""
    return tuple(names[token] for token in tokens[:length].tolist())


def _excerpts(
    gathered: Gathered, layer: int, units: np.ndarray, half: Half, mix: ExcerptMix
) -> Excerpts:
    """Choose top, then sampled, then random excerpts; the latter two from new stories only."""
    kept = gathered.kept[layer][half]
    stories = np.concatenate([kept[kind].stories.numpy()[:, units] for kind in KINDS]).T
    starts = np.concatenate([kept[kind].starts.numpy()[:, units] for kind in KINDS]).T
    values = np.concatenate([kept[kind].activations.numpy()[:, units] for kind in KINDS])
    values = values.transpose(1, 0, 2)
    sizes = [len(kept[kind].stories) for kind in KINDS]
    chosen = _choose(stories, sizes, (mix.top, mix.sample, mix.random))
    peaks = np.where(np.isnan(values), -np.inf, values).max(2)
    # chosen excerpts first, by decreasing peak
    order = np.argsort(np.where(chosen, -peaks, np.inf), axis=1, kind="stable")[:, : mix.total]
    is_chosen = np.take_along_axis(chosen, order, 1)
    values = np.where(is_chosen[..., None], np.take_along_axis(values, order[..., None], 1), np.nan)
    stories = np.where(is_chosen, np.take_along_axis(stories, order, 1), -1)
    starts = np.where(is_chosen, np.take_along_axis(starts, order, 1), -1)
    kinds = np.repeat(np.arange(len(KINDS)), sizes)[order]
    tokens = _tokens(gathered.text, stories, starts, values)
    return Excerpts(stories, starts, kinds, tokens, values)


def _choose(stories: np.ndarray, sizes: list[int], counts: tuple[int, ...]) -> np.ndarray:
    """Choose from each kind the first candidates whose story is not chosen yet."""
    chosen = np.zeros(stories.shape, dtype=bool)
    first = 0
    for size, count in zip(sizes, counts, strict=True):
        own = slice(first, first + size)
        taken = np.where(chosen[:, :first], stories[:, :first], -1)
        fresh = ~(stories[:, own, None] == taken[:, None, :]).any(2) & (stories[:, own] >= 0)
        chosen[:, own] = fresh & (fresh.cumsum(1) <= count)
        first += size
    return chosen


def _tokens(
    text: Text, stories: np.ndarray, starts: np.ndarray, values: np.ndarray
) -> Int[np.ndarray, "units excerpts width"]:
    begins = np.asarray(text.corpus.offsets)[stories] + starts
    places = np.maximum(begins, 0)[..., None] + np.arange(values.shape[2])
    tokens = text.corpus.tokens
    selected = np.asarray(tokens)[np.minimum(places, len(tokens) - 1)].astype(np.int64)
    return np.where(np.isnan(values), -1, selected)
