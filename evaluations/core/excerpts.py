"""Excerpts of a text that show what each unit responds to.

``activations.py`` gathers them in one pass. A story is cut into excerpts of ``width`` tokens. Each
unit has

- *top* excerpts: the stories with its highest activations, each by its best excerpt, without
  near-duplicates;
- a *sample*: the best excerpts of stories in which it fires at all, drawn uniformly from such
  stories, so that their peaks lie over the quantiles of its activation;
- *random* excerpts, the same for all units, whether they fire or not.

There is a set of each for either half of the stories: one half to explain from, the other held out
to score on. A story's half depends on its tokens alone, so copies of a story are in the same half.
A unit *fires* on a token where its activation is above 0. The token before a story is read by the
model and not counted. Memory is that of the excerpts kept, however long the text is.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from evaluations.core.text import Text
from sat_interp._util.errors import UserError
from sat_interp._util.settings import check_at_least

Half = Literal["explain", "held_out"]
HALVES: tuple[Half, Half] = ("explain", "held_out")

SPARE = 1.5
"""A unit's best excerpts are chosen from this many times as many: the rest may be duplicates."""
AROUND, DIFFERENT = 8, 1
"""Tokens on either side of a peak that are compared, and how many may differ in a duplicate."""


def check_seed(seed: int) -> None:
    """Do nothing if every random generator takes the seed.

    Raises:
        UserError: it is below 0, or needs more than 63 bits.
    """
    if not 0 <= seed < 2**63:
        raise UserError(f"the seed is a whole number from 0 to 2^63 - 1, not {seed}")


@dataclass(frozen=True)
class GatherConfig:
    """What is kept of each unit, in each half of the stories."""

    seed: int = 0
    """Seed of the halves, the sample and the random excerpts."""

    top: int = 20
    """Number of excerpts of highest activation."""

    sample: int = 20
    """Number of excerpts of stories in which the unit fires."""

    random: int = 10
    """Number of excerpts of any story."""

    width: int = 64
    """Tokens of an excerpt; fewer at a story's end."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_seed(self.seed)
        check_at_least(self, {"top": 1, "width": 1, "sample": 0, "random": 0})


@dataclass(frozen=True)
class Excerpt:
    """Consecutive tokens of a story, and one unit's activation on each.

    Attributes:
        story: its number in the text.
        start: position of the first token in the story, counted from 0.
        tokens, activations: (length,); activations given all of the story before them.
    """

    story: int
    start: int
    tokens: Int64[np.ndarray, " length"]
    activations: Float[np.ndarray, " length"]

    @property
    def peak(self) -> int:
        """Position in the excerpt of the highest activation, the first of equals."""
        return int(self.activations.argmax())

    @property
    def maximum(self) -> float:
        """The highest activation."""
        return float(self.activations.max())


@dataclass(frozen=True)
class Stories:
    """Whole stories and the activations of one layer's units on them.

    Attributes:
        numbers: of the stories in the text.
        offsets, lengths: where each story begins in ``values``, and its number of tokens.
        values: the activations, one story after the other.
    """

    numbers: Int[Tensor, " batch"]
    offsets: Int[Tensor, " batch"]
    lengths: Int[Tensor, " batch"]
    values: Float[Tensor, "tokens units"]

    def __len__(self) -> int:
        """The number of stories."""
        return len(self.numbers)

    def of(self, rows: Bool[Tensor, " batch"]) -> Stories:
        """Return some of the stories."""
        return Stories(self.numbers[rows], self.offsets[rows], self.lengths[rows], self.values)

    def window(
        self,
        row: Int[Tensor, " excerpts"],
        unit: Int[Tensor, " excerpts"],
        start: Int[Tensor, " excerpts"],
        width: int,
    ) -> Float[Tensor, "excerpts width"]:
        """Return one unit's activations on each excerpt, nan beyond its story's end."""
        ends = self.lengths[row, None]
        places = start[:, None] + torch.arange(width)
        tokens = self.offsets[row, None] + torch.minimum(places, ends - 1)
        # one flat index: several times faster than a pair of them
        flat = tokens * self.values.shape[1] + unit[:, None]
        values = self.values.view(-1).index_select(0, flat.view(-1)).view(-1, width).float()
        short = (start + width > ends[:, 0]).nonzero()[:, 0]
        values[short] = values[short].masked_fill(places[short] >= ends[short], torch.nan)
        return values


@dataclass
class ExcerptTable:
    """Excerpts of every unit of one layer; where a unit has fewer, ``stories`` is -1.

    Attributes:
        scores: by which they were chosen, -inf where there is none.
        stories, starts: story of each excerpt and its first position there.
        activations: nan beyond an excerpt's end.
    """

    scores: Float[Tensor, "keep units"]
    stories: Int[Tensor, "keep units"]
    starts: Int[Tensor, "keep units"]
    activations: Float[Tensor, "keep units width"]

    @classmethod
    def empty(cls, keep: int, units: int, width: int) -> ExcerptTable:
        """Return a table without excerpts."""
        return cls(
            torch.full((keep, units), -torch.inf, dtype=torch.float64),
            torch.full((keep, units), -1),
            torch.zeros((keep, units), dtype=torch.long),
            torch.full((keep, units, width), torch.nan),
        )

    def offer(
        self,
        scores: Float[Tensor, "batch units"],
        stories: Stories,
        starts: Int[Tensor, "batch units"],
    ) -> None:
        """Keep the highest scores of each unit among the excerpts here and those offered.

        Args:
            scores: -inf for an excerpt that is not to be kept.
            stories: to which the excerpts belong, with their activations.
            starts: where in its story each excerpt begins.
        """
        keep, _, width = self.activations.shape
        if not keep:
            return
        units = (scores > self.scores.amin(0)).any(0).nonzero()[:, 0]
        if not len(units):
            return
        both = torch.cat([self.scores[:, units], scores[:, units].double()])
        best, index = both.topk(keep, dim=0)
        # Each new excerpt takes the place of one that is dropped. In each column there are as many
        # new ones as dropped ones, so that the two lists match.
        stays = torch.zeros_like(both, dtype=torch.bool).scatter_(0, index, best.isfinite())
        column, row = stays[keep:].T.nonzero(as_tuple=True)
        place, unit = _lowest(self.scores[:, units], stays[keep:].sum(0)), units[column]
        begin = starts[row, unit]
        self.scores[place, unit] = scores[row, unit].double()
        self.stories[place, unit], self.starts[place, unit] = stories.numbers[row], begin
        self.activations[place, unit] = stories.window(row, unit, begin, width)

    def ordered(self) -> ExcerptTable:
        """Return the excerpts, highest scores first."""
        return self._taken(self.scores.argsort(dim=0, descending=True, stable=True))

    def keep_only(self, chosen: Bool[Tensor, "keep units"], keep: int) -> ExcerptTable:
        """Return the first ``keep`` chosen excerpts of each unit, in their order."""
        kept = self._taken((~chosen).to(torch.uint8).argsort(dim=0, stable=True)[:keep])
        empty = ~chosen.sort(dim=0, descending=True).values[:keep]
        kept.scores[empty] = -torch.inf
        kept.stories[empty], kept.starts[empty] = -1, 0
        kept.activations[empty] = torch.nan
        return kept

    def _taken(self, order: Int[Tensor, "chosen units"]) -> ExcerptTable:
        width = self.activations.shape[-1]
        return ExcerptTable(
            self.scores.gather(0, order),
            self.stories.gather(0, order),
            self.starts.gather(0, order),
            self.activations.gather(0, order[..., None].expand(-1, -1, width)),
        )


def _lowest(
    scores: Float[Tensor, "keep units"], counts: Int[Tensor, " units"]
) -> Int[Tensor, " places"]:
    """Return the rows of the ``counts`` lowest scores of each unit, unit after unit."""
    order = scores.argsort(dim=0, stable=True)
    wanted = torch.arange(len(scores))[:, None] < counts
    return order.T[wanted.T]


@dataclass(frozen=True)
class Statistics:
    """Statistics of each unit of a layer over all tokens of all stories.

    Attributes:
        maximum: highest activation.
        mean: mean activation.
        density: share of tokens on which the unit fires.
    """

    maximum: Float[Tensor, " units"]
    mean: Float[Tensor, " units"]
    density: Float[Tensor, " units"]

    @property
    def dead(self) -> Bool[Tensor, " units"]:
        """Units that never fire on this text."""
        return self.density == 0


@dataclass(frozen=True)
class Gathered:
    """The excerpts and statistics of one pass, by layer and half.

    Attributes:
        kept: ``kept[layer][half][kind]``, kind being ``top`` (highest first), ``sample`` or
            ``random``.
        tokens: number of tokens read.
        stories: number of stories in each half.
    """

    text: Text
    config: GatherConfig
    kept: dict[int, dict[Half, dict[str, ExcerptTable]]]
    statistics: dict[int, Statistics]
    tokens: int
    stories: dict[Half, int]

    def excerpts(self, layer: int, unit: int, half: Half, kind: str) -> list[Excerpt]:
        """Return a unit's excerpts of one kind, in descending order of their peak activation."""
        kept = self.kept[layer][half][kind]
        excerpts = []
        for rank in (kept.stories[:, unit] >= 0).nonzero()[:, 0].tolist():
            values = kept.activations[rank, unit].numpy()
            story, start = int(kept.stories[rank, unit]), int(kept.starts[rank, unit])
            tokens = np.asarray(self.text.corpus.story(story), dtype=np.int64)
            tokens = tokens[start : start + int(np.isfinite(values).sum())]
            excerpts.append(Excerpt(story, start, tokens, values[: len(tokens)]))
        return sorted(excerpts, key=lambda excerpt: -excerpt.maximum)


def story_words(text: Text, seed: int) -> np.ndarray:
    """Return 64 random bits for each story, (stories,), which its tokens and the seed determine.

    The lowest bit is the story's half; the others are its key in the sample.
    """
    salt = seed.to_bytes(8, "little", signed=True)
    words = [
        hashlib.blake2b(
            np.asarray(text.corpus.story(story), dtype="<u4").tobytes(), digest_size=8, salt=salt
        ).digest()
        for story in range(len(text))
    ]
    return np.frombuffer(b"".join(words), dtype="<u8")


def near_duplicates(text: Text, kept: ExcerptTable) -> Bool[Tensor, "keep units"]:
    """Return which excerpts are near-duplicates of a better one of the same unit.

    Two excerpts are near-duplicates where at most one of the 17 tokens around their peaks (eight
    before, the peak, eight after; all positions outside a story are equal) differs. Excerpts are
    taken in their order, and compared with those that are no duplicates themselves.
    """
    around = torch.from_numpy(_around_peaks(text, kept))
    keep, units, span = around.shape
    repeats = torch.zeros((keep, units), dtype=torch.bool)
    exists = kept.stories >= 0
    for rank in range(1, keep):
        differ = (around[:rank] != around[rank]).sum(-1) <= DIFFERENT
        first = differ & ~repeats[:rank] & exists[:rank]
        repeats[rank] = first.any(0) & exists[rank]
    return repeats


def _around_peaks(text: Text, kept: ExcerptTable) -> Int[np.ndarray, "keep units span"]:
    """Return the tokens around each excerpt's peak; -1 outside its story or where there is none."""
    stories = kept.stories.numpy()
    peaks = kept.starts + kept.activations.nan_to_num(nan=-torch.inf).argmax(-1)
    places = peaks.numpy()[..., None] + np.arange(-AROUND, AROUND + 1)
    inside = (places >= 0) & (places < (text.lengths[stories] - 1)[..., None])
    offsets = text.corpus.offsets[stories][..., None] + places
    tokens = text.corpus.tokens
    around = tokens[np.clip(offsets, 0, len(tokens) - 1)].astype(np.int32)
    return np.where(inside & (stories >= 0)[..., None], around, -1)
