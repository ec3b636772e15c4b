"""Pruning: the shortest context in which a unit still fires on the same token.

Foote et al. 2023, section 3.1: the left context of the most activating token is extended, token by
token, until the unit's highest activation is on that token and more than half of that in the story.
The published code extends it by five tokens at a time, keeps five tokens after the peak and also
reads patterns from them; here the window ends at the peak. If no context suffices, the longest is
used, as in the published code. Such a window is not ``faithful``; patterns are read only from its
last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from evaluations.core.excerpts import Excerpt
from evaluations.suite.n2g.windows import Reader

CONTEXT = 30
"""Maximum number of tokens of left context, as in the published code."""
KEPT = 0.5
"""Share of the activation that must be exceeded."""


@dataclass(frozen=True)
class Peak:
    """The most activating token of an excerpt.

    Attributes:
        unit: number of the unit in the reader's layer.
        activation: activation in the story.
        tokens: the longest left context and the token itself.
        start: position of the first of these tokens in the story, counted from 0.
        after: the next token of the story; -1 at its end.
    """

    unit: int
    activation: float
    tokens: Int64[np.ndarray, " length"]
    start: int = 0
    after: int = -1


@dataclass(frozen=True)
class Window:
    """A pruned excerpt, which ends with the most activating token.

    Attributes:
        activations: activations in the window, read at its position in the story.
        peak: activation of the last token in the story.
        start: position of the first token in the story, counted from 0.
        before, after: the tokens before and after the window in the story; -1 where unknown.
        faithful: whether the last token is also the most activating one in the window, and keeps
            enough of its activation.
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
        """Whether the unit fires on the last token in the window."""
        return bool(self.activations[-1] > 0)

    @property
    def scale(self) -> float:
        """Ratio of the last token's activation in the story to that in the window.

        The published code scales activations of the window by this ratio. 1 if the unit does not
        fire in the window.
        """
        return self.peak / float(self.activations[-1]) if self.fires else 1.0


def peak_of(
    unit: int, excerpt: Excerpt, story: Int64[np.ndarray, " story"], context: int
) -> Peak | None:
    """Return an excerpt's peak with up to ``context`` tokens before it; None if it never fires."""
    place = excerpt.start + excerpt.peak
    if excerpt.maximum <= 0:
        return None
    after = int(story[place + 1]) if place + 1 < len(story) else -1
    start = max(0, place - context)
    return Peak(unit, excerpt.maximum, story[start : place + 1], start, after)


def prune(
    reader: Reader, peaks: Sequence[Peak], kept: float = KEPT, context: int = CONTEXT
) -> list[Window]:
    """Return each peak in the shortest sufficient context, else in the longest.

    Contexts of equal length of all remaining peaks form one batch.
    """
    pruned: dict[int, Window] = {}
    for size in range(context + 1):
        left = [i for i, peak in enumerate(peaks) if i not in pruned and len(peak.tokens) > size]
        if not left:
            break
        tokens = np.stack([peaks[i].tokens[-size - 1 :] for i in left])
        starts = np.array([peaks[i].start + len(peaks[i].tokens) - size - 1 for i in left])
        units = np.array([peaks[i].unit for i in left])
        values = reader.read(tokens, starts, units, "prune")
        for i, window, start, value in zip(left, tokens, starts.tolist(), values, strict=True):
            peak = peaks[i]
            faithful = _fires(value, peak.activation, kept)
            is_longest = size == context or size + 1 == len(peak.tokens)
            if faithful or is_longest:
                before = int(peak.tokens[-size - 2]) if size + 1 < len(peak.tokens) else -1
                pruned[i] = Window(
                    peak.unit, window, value, peak.activation, start, before, peak.after, faithful
                )
    return [pruned[i] for i in range(len(peaks))]


def _fires(value: Float[np.ndarray, " length"], activation: float, kept: float) -> bool:
    return bool(value[-1] >= value.max() and value[-1] > kept * activation)
