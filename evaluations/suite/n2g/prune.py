"""The shortest context in which a unit still fires where it fired in the story.

Foote et al. 2023, section 3.1: from the token of highest activation the left context grows, token
by token, until the unit's highest activation lies on that same token and is more than half of what
it was in the story. The published code lets it grow by five tokens at a time, keeps five tokens
after the peak and reads patterns from them too; here the window ends at the peak. Where no context
will do, the longest is taken all the same, as in the published code. Such a window is not
``faithful``: it does not show what the unit does elsewhere in it, so it tells about the peak alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from evaluations.core.excerpts import Excerpt
from evaluations.suite.n2g.windows import Reader

CONTEXT = 30
"""Tokens of left context at most, as in the published code."""
KEPT = 0.5
"""Share of the activation that has to be left."""


@dataclass(frozen=True)
class Peak:
    """Where a unit fires most in an excerpt.

    Attributes:
        unit: of the reader's layer.
        activation: in the story.
        tokens: the left context, all that may be needed, and the token itself.
        start: place of the first of them in the story, counted from 0.
        after: the token after it in the story; -1 at the story's end.
    """

    unit: int
    activation: float
    tokens: Int64[np.ndarray, " length"]
    start: int = 0
    after: int = -1


@dataclass(frozen=True)
class Window:
    """A pruned excerpt; it ends with the token on which the unit fires most in the story.

    Attributes:
        activations: of the unit in the window read at its place in the story.
        peak: activation of the last token in the story.
        start: place of the first token in the story, counted from 0.
        before, after: the tokens on either side of it in the story; -1 where unknown.
        faithful: whether the unit fires most on its last token in the window, too, and keeps
            enough of its activation there.
    """

    unit: int
    tokens: Int64[np.ndarray, " length"]
    activations: Float[np.ndarray, " length"]
    peak: float
    start: int = 0
    before: int = -1
    after: int = -1
    faithful: bool = True

    @property
    def fires(self) -> bool:
        """Whether the unit fires on the last token in the window, too."""
        return bool(self.activations[-1] > 0)

    @property
    def scale(self) -> float:
        """Activation of the last token in the story, over that in the window.

        By it the published code scales a window's activations, so that a short window is not a
        weak one. 1 where the unit does not fire in the window.
        """
        return self.peak / float(self.activations[-1]) if self.fires else 1.0


def peak_of(
    unit: int, excerpt: Excerpt, story: Int64[np.ndarray, " story"], context: int
) -> Peak | None:
    """An excerpt's peak with up to ``context`` tokens of the story before it; None of no firing."""
    place = excerpt.start + excerpt.peak
    if excerpt.maximum <= 0:
        return None
    after = int(story[place + 1]) if place + 1 < len(story) else -1
    start = max(0, place - context)
    return Peak(unit, excerpt.maximum, story[start : place + 1], start, after)


def prune(
    reader: Reader, peaks: Sequence[Peak], kept: float = KEPT, context: int = CONTEXT
) -> list[Window]:
    """Each peak in the shortest context that will do, else in the longest.

    The contexts of one length of all peaks that are still open are one batch.
    """
    found: dict[int, Window] = {}
    for size in range(context + 1):
        asked = [i for i, peak in enumerate(peaks) if i not in found and len(peak.tokens) > size]
        if not asked:
            break
        tokens = np.stack([peaks[i].tokens[-size - 1 :] for i in asked])
        starts = np.array([peaks[i].start + len(peaks[i].tokens) - size - 1 for i in asked])
        units = np.array([peaks[i].unit for i in asked])
        values = reader.read(tokens, starts, units, "prune")
        for i, window, start, value in zip(asked, tokens, starts.tolist(), values, strict=True):
            peak = peaks[i]
            faithful = _fires(value, peak.activation, kept)
            is_longest = size == context or size + 1 == len(peak.tokens)
            if faithful or is_longest:
                before = int(peak.tokens[-size - 2]) if size + 1 < len(peak.tokens) else -1
                found[i] = Window(
                    peak.unit, window, value, peak.activation, start, before, peak.after, faithful
                )
    return [found[i] for i in range(len(peaks))]


def _fires(value: Float[np.ndarray, " length"], activation: float, kept: float) -> bool:
    return bool(value[-1] >= value.max() and value[-1] > kept * activation)
