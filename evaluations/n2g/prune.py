"""The shortest context in which a unit still fires where it fired in the story.

Foote et al. 2023, section 3.1: from the token of highest activation the left context grows, token
by token, until the unit's highest activation lies on that same token and is more than half of what
it was in the story. The published code lets it grow by five tokens at a time, keeps five tokens
after the peak and reads patterns from them too; here the window ends at the peak. Where no context
will do it takes the longest; here such an excerpt is left out and counted, for its activation hangs
on what the window does not hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from evaluations.excerpts import Excerpt
from evaluations.n2g.windows import Reader

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
        after: the token after it in the story; -1 at the story's end.
    """

    unit: int
    activation: float
    tokens: Int64[np.ndarray, " length"]
    after: int = -1


@dataclass(frozen=True)
class Window:
    """A pruned excerpt; the unit fires most on its last token.

    Attributes:
        activations: of the unit in the window read alone.
        scale: activation of the last token in the story, over that in the window; by it the
            published code scales a window's activations, so that a short window is no weak one.
        before, after: the tokens on either side of it in the story; -1 where unknown.
    """

    unit: int
    tokens: Int64[np.ndarray, " length"]
    activations: Float[np.ndarray, " length"]
    scale: float = 1.0
    before: int = -1
    after: int = -1


def peak_of(
    unit: int, excerpt: Excerpt, story: Int64[np.ndarray, " story"], context: int
) -> Peak | None:
    """An excerpt's peak with up to ``context`` tokens of the story before it; None of no firing."""
    place = excerpt.start + excerpt.peak
    if excerpt.maximum <= 0:
        return None
    after = int(story[place + 1]) if place + 1 < len(story) else -1
    tokens = story[max(0, place - context) : place + 1]
    return Peak(unit, excerpt.maximum, tokens, after)


def prune(
    reader: Reader, peaks: Sequence[Peak], kept: float = KEPT, context: int = CONTEXT
) -> list[Window | None]:
    """Each peak in the shortest context that will do; None where ``context`` tokens will not.

    The contexts of one length of all peaks that are still open are one batch.
    """
    found: list[Window | None] = [None] * len(peaks)
    for size in range(context + 1):
        asked = [i for i, peak in enumerate(peaks) if not found[i] and len(peak.tokens) > size]
        if not asked:
            break
        tokens = np.stack([peaks[i].tokens[-size - 1 :] for i in asked])
        values = reader.read(tokens, np.array([peaks[i].unit for i in asked]), "prune")
        for i, window, value in zip(asked, tokens, values, strict=True):
            peak = peaks[i]
            if _fires(value, peak.activation, kept):
                scale = peak.activation / float(value[-1])
                before = int(peak.tokens[-size - 2]) if size + 1 < len(peak.tokens) else -1
                found[i] = Window(peak.unit, window, value, scale, before, peak.after)
    return found


def _fires(value: Float[np.ndarray, " length"], activation: float, kept: float) -> bool:
    return bool(value[-1] >= value.max() and value[-1] > kept * activation)
