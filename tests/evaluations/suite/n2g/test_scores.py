"""Precision, recall and F1 by hand, and the baselines."""

from __future__ import annotations

import numpy as np
import pytest

from evaluations.suite.n2g.scores import LOOKUPS, Counts, FiringCounts, HeldOutExcerpt, score
from evaluations.suite.n2g.trie import Pattern, Trie
from tests.evaluations.suite.n2g.conftest import A, B, C, X


def test_counts():
    counts = Counts.of(np.array([1, 1, 0, 0], dtype=bool), np.array([1, 0, 1, 0], dtype=bool))
    assert counts == Counts(1, 1, 1)
    assert (counts.precision, counts.recall, counts.f1) == (0.5, 0.5, 0.5)
    assert Counts(0, 0, 2).precision is None
    assert Counts(0, 0, 2).f1 == 0.0
    assert Counts(0, 3, 0).f1 is None
    assert Counts(0, 3, 0).recall is None


def test_lookups_know_tokens_that_fire_every_other_time_or_once():
    tally = FiringCounts()
    assert tally.usual == tally.any == frozenset()
    tally.add(np.array([A, B, B]), np.array([False, True, False]))
    tally.add(np.array([C, C, C]), np.array([True, False, False]))
    assert tally.usual == {B}
    assert tally.any == {B, C}


def test_a_graph_that_knows_the_context_beats_the_baselines():
    trie = Trie([Pattern((B, A), 1.0, 4)])
    held_out = [
        HeldOutExcerpt(np.array([A, B, X, B]), np.array([True, False, False])),  # a is context only
        HeldOutExcerpt(np.array([B, A]), np.array([False, False])),  # not a of the excerpt before
    ]
    lookups = {"lookup": {B}, "lookup_windows": set(), "lookup_published": {A, B}}
    found = score(trie, {name: frozenset(one) for name, one in lookups.items()}, held_out, 0.5)
    assert found["trie"] == Counts(1, 0, 0)
    assert found["lookup"] == Counts(1, 2, 0)
    assert found["lookup_windows"] == Counts(0, 0, 1)
    assert found["lookup_published"] == Counts(1, 3, 0)
    assert found["always"] == Counts(1, 4, 0)
    assert found["always"].f1 == pytest.approx(2 / 6)
    assert found["trie"].f1 == 1.0


def test_without_excerpts_nothing_is_scored():
    none = dict.fromkeys(LOOKUPS, frozenset[int]())
    assert score(Trie([]), none, [], 0.5)["trie"].f1 is None
