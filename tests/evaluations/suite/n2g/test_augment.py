"""Words are exchanged where they matter, and the unit's reaction is measured."""

from __future__ import annotations

import numpy as np

from evaluations.suite.n2g.augment import augment
from evaluations.suite.n2g.prune import Window
from evaluations.suite.n2g.saliency import importances
from evaluations.suite.n2g.substitutes import Proposal, Slot
from evaluations.suite.n2g.vocabulary import Vocabulary
from tests.evaluations.suite.n2g.conftest import TEXTS, A, B, C, D, Listed, X, Y


def _augmented(planted, vocabulary, window, source=None):
    windows = [window]
    matrices = importances(planted, windows, filler=0)
    return augment(planted, windows, matrices, source or Listed(), vocabulary, 0.75)


def test_planted_reactions(planted, vocabulary):
    window = Window(3, np.array([A, Y, D]), np.array([0.0, 0.0, 1.0]), 1.0)
    found = _augmented(planted, vocabulary, window)
    # y does not matter, so only a and d are exchanged
    assert {(one.begin, one.end) for one in found} == {(0, 1), (2, 3)}
    positive = {tuple(one.tokens.tolist()) for one in found if one.positive}
    assert positive == {(X, Y, D)}
    assert len(found) == 10
    assert all(one.place == 2 for one in found)


def test_a_word_of_several_tokens_may_take_the_place_of_one(planted, vocabulary):
    class Long(Listed):
        def propose(self, places, most, least_probability):
            return [[Proposal((Y, A), 0.5)] for _ in places]

    window = Window(0, np.array([A, B]), np.array([0.0, 1.0]), 1.0)
    first, last = _augmented(planted, vocabulary, window, Long())
    assert first.tokens.tolist() == [Y, A, B]
    assert first.positive
    assert first.place == 2
    assert first.old.tolist() == [0, 0, 1]
    assert last.tokens.tolist() == [A, Y, A]
    assert not last.positive
    assert last.old.tolist() == [0, 1, 1]


def test_the_word_the_unit_fires_on_is_read_on_its_best_token(planted, vocabulary):
    class Long(Listed):
        def propose(self, places, most, least_probability):
            return [[Proposal((C, Y), 0.5)] for _ in places]

    window = Window(1, np.array([C]), np.array([2.0]), 2.0)
    (only,) = _augmented(planted, vocabulary, window, Long())
    assert only.place == 0
    assert only.positive


def test_what_does_not_fit_into_the_context_is_not_tried(planted, vocabulary):
    class TooLong(Listed):
        def propose(self, places, most, least_probability):
            return [[Proposal((C,) * 40, 0.5)] for _ in places]

    window = Window(1, np.array([C]), np.array([2.0]), 2.0)
    assert _augmented(planted, vocabulary, window, TooLong()) == []


def test_a_window_near_the_end_of_the_context_has_room_for_fewer_tokens(planted, vocabulary):
    class Long(Listed):
        def propose(self, places, most, least_probability):
            return [[Proposal((Y, C), 0.5)] for _ in places]

    last = planted.model.cfg.n_ctx - 2  # the place of a story's last token; the first one is at 1
    for start, count in ((last, 0), (last - 1, 1)):
        window = Window(1, np.array([C]), np.array([2.0]), 2.0, start)
        assert len(_augmented(planted, vocabulary, window, Long())) == count


def test_of_a_window_without_firing_no_word_is_exchanged(planted, vocabulary):
    window = Window(1, np.array([A]), np.array([0.0]), 2.0, faithful=False)
    assert _augmented(planted, vocabulary, window) == []


def test_a_proposal_that_the_model_does_not_know_is_passed_over(planted, vocabulary):
    class Unknown(Listed):
        def propose(self, places, most, least_probability):
            return [[Proposal((planted.model.cfg.d_vocab,), 0.5)] for _ in places]

    window = Window(1, np.array([C]), np.array([2.0]), 2.0)
    assert _augmented(planted, vocabulary, window, Unknown()) == []


def test_places_know_the_story_around_the_window(planted):
    asked: list[Slot] = []

    class Asked(Listed):
        def propose(self, places, most, least_probability):
            asked.extend(places)
            return [[] for _ in places]

    vocabulary = Vocabulary((*TEXTS, "ing"))
    ending = len(TEXTS)
    for after in (X, ending, -1):
        window = Window(1, np.array([C]), np.array([2.0]), 2.0, before=B, after=after)
        _augmented(planted, vocabulary, window, Asked())
    assert [place.after for place in asked] == [(X,), (), ()]  # not the rest of the same word
    assert [place.before for place in asked] == [(B,)] * 3
    window = Window(3, np.array([A, Y, D]), np.array([0.0, 0.0, 1.0]), 1.0)
    _augmented(planted, vocabulary, window, Asked())
    assert [(p.before, p.word, p.after) for p in asked[3:]] == [
        ((), (A,), (Y, D)),
        ((A, Y), (D,), ()),
    ]
