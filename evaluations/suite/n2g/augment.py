"""Which other words keep a unit firing: important words exchanged, the reaction measured.

Foote et al. 2023, section 3.3: each important word of a pruned excerpt, and the word the unit fires
on, is masked; the likeliest words at its place are put there; those that leave more than half of
the activation are positive examples, the others negative ones. The new window begins where the old
one does; a word of more tokens moves what follows it on. Of a window in which the unit does not
fire nothing can be left, so no word of it is exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from evaluations.suite.n2g.prune import KEPT, Window
from evaluations.suite.n2g.substitutes import Place, Substitutes
from evaluations.suite.n2g.vocabulary import Vocabulary
from evaluations.suite.n2g.windows import Reader

PROPOSALS = 5
LEAST_PROBABILITY = 1e-5


@dataclass(frozen=True)
class Substitution:
    """A pruned excerpt with one word exchanged.

    Attributes:
        window: which of the excerpts.
        tokens: of the new window.
        activations: of the unit on them, measured.
        old: for each token, the token of the excerpt in whose place it stands.
        begin, end: the exchanged word's place in the new window.
        place: the token on which the unit's reaction is read: the excerpt's last where a word
            before it was exchanged, else the token of the new word on which it fires most.
        positive: whether more than half of the excerpt's activation is left there.
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
    most: int = PROPOSALS,
    least_probability: float = LEAST_PROBABILITY,
) -> list[Substitution]:
    """Exchange the important words of all windows; all new windows of one length are one batch.

    Args:
        threshold: importance for the last token from which on a token's word is important.
        most, least_probability: how many words are proposed at a place, and how likely at least.
    """
    asked: list[tuple[int, int, int]] = []
    for index, (window, matrix) in enumerate(zip(windows, importances, strict=True)):
        if not window.fires:
            continue
        words = vocabulary.words(window.tokens.tolist())
        for begin, end in words:
            if end == len(window.tokens) or (matrix[begin:end, -1] >= threshold).any():
                asked.append((index, begin, end))
    places = [_place(windows[index], begin, end, vocabulary) for index, begin, end in asked]
    proposed = substitutes.propose(places, most, least_probability)
    context = int(reader.model.cfg.n_ctx)
    origins, tokens = [], []
    for (index, begin, end), proposals in zip(asked, proposed, strict=True):
        old = windows[index].tokens
        for proposal in proposals:
            if max(proposal.word) >= reader.model.cfg.d_vocab:
                continue  # the tokenizer has a token that the model does not know
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


def _place(window: Window, begin: int, end: int, vocabulary: Vocabulary) -> Place:
    tokens = window.tokens.tolist()
    after = tokens[end:]
    if not after and window.after >= 0 and not vocabulary.continues(tokens[-1], window.after):
        after = [window.after]
    before = tokens[:begin] or ([window.before] if window.before >= 0 else [])
    return Place(tuple(before), tuple(tokens[begin:end]), tuple(after))


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
    if end > last:  # the word the unit fires on
        stands_for, place = last, begin + int(activations[begin:].argmax())
    else:
        stands_for, place = begin + int(importance[begin:end, -1].argmax()), len(tokens) - 1
    old = np.concatenate([np.arange(begin), np.full(size, stands_for), np.arange(end, last + 1)])
    positive = bool(activations[place] > kept * window.activations[-1])
    return Substitution(index, tokens, activations, old, begin, begin + size, place, positive)
