"""Augmentation: replace important words of pruned excerpts and measure the activation.

Foote et al. 2023, section 3.3: each important word of a pruned excerpt, and the activating word, is
masked and replaced by the most probable words at its place. Replacements that keep more than half
of the activation are positive examples, the others negative. The new window starts at the position
of the old one; a longer word shifts the tokens after it. Windows in which the unit does not fire
are not augmented.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from evaluations.suite.n2g.prune import KEPT, Window
from evaluations.suite.n2g.substitutes import Slot, Substitutes
from evaluations.suite.n2g.vocabulary import Vocabulary
from evaluations.suite.n2g.windows import Reader


@dataclass(frozen=True)
class Limits:
    """Limits on the words proposed at a place."""

    most: int = 5
    """Maximum number of words."""

    least_probability: float = 1e-5
    """Minimum probability of a word."""


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Substitution:
    """A pruned excerpt with one word replaced.

    Attributes:
        window: index of the excerpt.
        tokens: tokens of the new window.
        activations: measured activations of the unit on them.
        old: for each token, the index of the corresponding token of the excerpt.
        begin, end: range of the new word in the new window.
        place: index of the token whose activation is compared: the excerpt's last token if a word
            before it was replaced, else the token of the new word with the highest activation.
        positive: whether more than half of the excerpt's activation remains there.
    """

    window: int
    tokens: Int64[np.ndarray, " length"]
    activations: Float[np.ndarray, " length"]
    old: Int64[np.ndarray, " length"]
    begin: int
    end: int
    place: int
    positive: bool


def augment(
    reader: Reader,
    windows: Sequence[Window],
    importances: Sequence[Float[np.ndarray, "_ _"]],
    substitutes: Substitutes,
    vocabulary: Vocabulary,
    threshold: float,
    *,
    kept: float = KEPT,
    limits: Limits = DEFAULT_LIMITS,
) -> list[Substitution]:
    """Replace the important words of all windows; new windows of equal length form one batch.

    Args:
        threshold: a word is important if a token's importance for the last token reaches this.
        kept: share of the activation that a positive example exceeds.
        limits: limits on the words proposed at each place.
    """
    masked: list[tuple[int, int, int]] = []
    for index, (window, matrix) in enumerate(zip(windows, importances, strict=True)):
        if not window.fires:
            continue
        words = vocabulary.words(window.tokens.tolist())
        for begin, end in words:
            if end == len(window.tokens) or (matrix[begin:end, -1] >= threshold).any():
                masked.append((index, begin, end))
    slots = [_slot(windows[index], begin, end, vocabulary) for index, begin, end in masked]
    proposed = substitutes.propose(slots, limits.most, limits.least_probability)
    context = int(reader.model.cfg.n_ctx)
    origins, tokens = [], []
    for (index, begin, end), proposals in zip(masked, proposed, strict=True):
        old = windows[index].tokens
        for proposal in proposals:
            if max(proposal.word) >= reader.model.cfg.d_vocab:
                continue  # a token of the tokenizer that the model does not have
            word = np.array(proposal.word)
            new = np.concatenate([old[:begin], word, old[end:]])
            if windows[index].start + len(new) < context:
                origins.append((index, begin, end, len(word)))
                tokens.append(new)
    units = [windows[index].unit for index, *_ in origins]
    starts = [windows[index].start for index, *_ in origins]
    values = reader.read_all(tokens, starts, units, "augment")
    return [
        _measured(windows[origin[0]], importances[origin[0]], origin, new, value, kept)
        for origin, new, value in zip(origins, tokens, values, strict=True)
    ]


def _slot(window: Window, begin: int, end: int, vocabulary: Vocabulary) -> Slot:
    """Return a word of a window with its context."""
    tokens = window.tokens.tolist()
    after = tokens[end:]
    if not after and window.after >= 0 and not vocabulary.continues(tokens[-1], window.after):
        after = [window.after]
    before = tokens[:begin] or ([window.before] if window.before >= 0 else [])
    return Slot(tuple(before), tuple(tokens[begin:end]), tuple(after))


def _measured(
    window: Window,
    importance: Float[np.ndarray, "old old"],
    origin: tuple[int, int, int, int],
    tokens: Int64[np.ndarray, " length"],
    activations: Float[np.ndarray, " length"],
    kept: float,
) -> Substitution:
    index, begin, end, size = origin
    last = len(window.tokens) - 1
    if end > last:  # the activating word
        stands_for, place = last, begin + int(activations[begin:].argmax())
    else:
        stands_for, place = begin + int(importance[begin:end, -1].argmax()), len(tokens) - 1
    old = np.concatenate([np.arange(begin), np.full(size, stands_for), np.arange(end, last + 1)])
    positive = bool(activations[place] > kept * window.activations[-1])
    return Substitution(index, tokens, activations, old, begin, begin + size, place, positive)
