"""From what a pass has gathered to what an examiner is shown.

Of each unit some excerpts are shown to explain from, all of one half of the stories, and others,
of the other half, are what the explanation is scored on. Activations are shown as whole numbers,
min(10, floor(10 relu(a) / max)), max being the highest activation the unit is shown with (Bills et
al. 2023). A unit is said to fire on a token shown at 5 or above: half its highest activation, as in
N2G. (Above 0 would not do: many a GELU neuron is, somewhere in nearly every excerpt.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from evaluations.core.excerpts import Gathered, Half
from evaluations.core.text import Text
from evaluations.suite.neurons.examiners.base import HIGHEST, Question, Shown

FIRES = 5
"""The level from which on a unit is said to fire."""

KINDS = ("top", "sample", "random")


@dataclass(frozen=True)
class Mix:
    """How many excerpts of each kind; the sample and the random ones repeat no story."""

    top: int
    sample: int
    random: int

    @property
    def total(self) -> int:
        return self.top + self.sample + self.random


@dataclass(frozen=True)
class Sheaf:
    """Excerpts of some units of one layer, from one half of the stories, by falling peak.

    Attributes:
        stories, starts: which excerpt; -1 where a unit has fewer.
        kinds: which of ``KINDS``.
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
        """Highest activation of each excerpt; -inf where there is none."""
        return np.where(np.isnan(self.activations), -np.inf, self.activations).max(2)

    @cached_property
    def counts(self) -> Int[np.ndarray, " units"]:
        return (self.stories >= 0).sum(1)

    @cached_property
    def lengths(self) -> Int[np.ndarray, "units excerpts"]:
        return (self.tokens >= 0).sum(2)


@dataclass(frozen=True)
class Sight:
    """Some units of one layer, as an examiner is to see them.

    Attributes:
        units: their numbers in the layer.
        highest: of each, the highest activation it is shown with; -inf where it has no excerpt.
        levels: of the excerpts to explain from and of those to score on, 0 to 10; -1 beyond an
            excerpt's end.
    """

    layer: int
    units: Int[np.ndarray, " units"]
    explain: Sheaf
    held_out: Sheaf
    highest: Float[np.ndarray, " units"]
    levels: dict[Half, Int[np.ndarray, "units _ width"]]

    def name(self, place: int) -> str:
        """``3.117``."""
        return f"{self.layer}.{self.units[place]}"

    def sheaf(self, half: Half) -> Sheaf:
        return self.explain if half == "explain" else self.held_out

    def question(self, place: int, names: Sequence[str]) -> Question:
        """What is shown of a unit to explain it."""
        sheaf, levels = self.explain, self.levels["explain"]
        shown = [
            Shown(
                strings(names, sheaf.tokens[place, rank], length),
                tuple(levels[place, rank, :length].tolist()),
                int(sheaf.starts[place, rank]),
            )
            for rank, length in enumerate(sheaf.lengths[place, : sheaf.counts[place]].tolist())
        ]
        return Question(self.name(place), tuple(shown))

    def held_out_of(self, place: int, names: Sequence[str], draws: np.random.Generator) -> HeldOut:
        """What an explanation of a unit is scored on."""
        sheaf = self.held_out
        ranks = draws.permutation(int(sheaf.counts[place]))
        ends = [(rank, int(sheaf.lengths[place, rank])) for rank in ranks.tolist()]
        return HeldOut(
            tuple(ranks.tolist()),
            tuple(strings(names, sheaf.tokens[place, rank], end) for rank, end in ends),
            tuple(sheaf.starts[place, ranks].tolist()),
            tuple(sheaf.activations[place, rank, :end] for rank, end in ends),
            tuple(self.levels["held_out"][place, rank, :end] >= FIRES for rank, end in ends),
        )


@dataclass(frozen=True)
class HeldOut:
    """The excerpts one unit's explanation is scored on, in a random order, which tells nothing.

    Attributes:
        ranks: which of the sheaf's excerpts each is.
        tokens, starts: as an examiner gets them.
        activations: of the unit on each token.
        fires: on which tokens it fires.
    """

    ranks: tuple[int, ...]
    tokens: tuple[tuple[str, ...], ...]
    starts: tuple[int, ...]
    activations: tuple[Float[np.ndarray, " _"], ...]
    fires: tuple[Bool[np.ndarray, " _"], ...]


def see(
    gathered: Gathered, layer: int, units: Int[np.ndarray, " units"], shown: Mix, scored: Mix
) -> Sight:
    """What is shown of some units of a layer."""
    explain = _sheaf(gathered, layer, units, "explain", shown)
    held_out = _sheaf(gathered, layer, units, "held_out", scored)
    highest = explain.peaks.max(1, initial=-np.inf)
    levels: dict[Half, np.ndarray] = {
        "explain": to_levels(explain.activations, highest),
        "held_out": to_levels(held_out.activations, highest),
    }
    return Sight(layer, units, explain, held_out, highest, levels)


def to_levels(
    activations: Float[np.ndarray, "units excerpts width"], highest: Float[np.ndarray, " units"]
) -> Int[np.ndarray, "units excerpts width"]:
    """min(10, floor(10 relu(a) / max)); -1 where there is no activation.

    All 0 for units whose highest activation is not above 0.
    """
    scale = np.where(highest > 0, highest, np.inf)[:, None, None]
    known = np.nan_to_num(activations.astype(np.float64), nan=-1.0)
    levels = np.minimum(np.floor(HIGHEST * np.maximum(known, 0) / scale), HIGHEST)
    return np.where(np.isnan(activations), -1, levels).astype(np.int8)


def token_names(text: Text) -> list[str]:
    """The string of every token of the text by its id; those that do not occur are empty.

    A token that is no whole character alone is shown as the decoder shows it (a replacement mark).
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
    """The first tokens of an excerpt as strings."""
    return tuple(names[token] for token in tokens[:length].tolist())


def _sheaf(gathered: Gathered, layer: int, units: np.ndarray, half: Half, mix: Mix) -> Sheaf:
    """Top excerpts first; then of the sample, then random ones, each of a story not yet there."""
    kept = gathered.kept[layer][half]
    stories = np.concatenate([kept[kind].stories.numpy()[:, units] for kind in KINDS]).T
    starts = np.concatenate([kept[kind].starts.numpy()[:, units] for kind in KINDS]).T
    values = np.concatenate([kept[kind].activations.numpy()[:, units] for kind in KINDS])
    values = values.transpose(1, 0, 2)
    sizes = [len(kept[kind].stories) for kind in KINDS]
    chosen = _choose(stories, sizes, (mix.top, mix.sample, mix.random))
    peaks = np.where(np.isnan(values), -np.inf, values).max(2)
    # those chosen come first, by falling peak
    order = np.argsort(np.where(chosen, -peaks, np.inf), axis=1, kind="stable")[:, : mix.total]
    there = np.take_along_axis(chosen, order, 1)
    values = np.where(there[..., None], np.take_along_axis(values, order[..., None], 1), np.nan)
    stories = np.where(there, np.take_along_axis(stories, order, 1), -1)
    starts = np.where(there, np.take_along_axis(starts, order, 1), -1)
    kinds = np.repeat(np.arange(len(KINDS)), sizes)[order]
    return Sheaf(stories, starts, kinds, _tokens(gathered.text, stories, starts, values), values)


def _choose(stories: np.ndarray, sizes: list[int], wanted: tuple[int, ...]) -> np.ndarray:
    """Which candidates are shown: of each kind the first so many whose story is not yet there."""
    chosen = np.zeros(stories.shape, dtype=bool)
    first = 0
    for size, count in zip(sizes, wanted, strict=True):
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
    found = np.asarray(tokens)[np.minimum(places, len(tokens) - 1)].astype(np.int64)
    return np.where(np.isnan(values), -1, found)
