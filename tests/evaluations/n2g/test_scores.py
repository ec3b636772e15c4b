"""Precision, recall and F1 by hand, and the baselines."""

from __future__ import annotations

import numpy as np
import pytest

from evaluations.excerpts import Excerpt
from evaluations.n2g.scores import Counts, Seen, lookup, score
from evaluations.n2g.trie import Pattern, Trie
from tests.evaluations.n2g.conftest import A, B, C, X


def test_counts():
    counts = Counts.of(np.array([1, 1, 0, 0], dtype=bool), np.array([1, 0, 1, 0], dtype=bool))
    assert counts == Counts(1, 1, 1)
    assert (counts.precision, counts.recall, counts.f1) == (0.5, 0.5, 0.5)
    assert Counts(0, 0, 2).precision is None
    assert Counts(0, 0, 2).f1 == 0.0
    assert Counts(0, 3, 0).f1 is None
    assert Counts(0, 3, 0).recall is None


def test_the_lookup_knows_tokens_that_fire_every_other_time():
    excerpts = [
        Excerpt(0, 0, np.array([A, B, B, C, C, C]), np.array([0.0, 0.9, 0.1, 0.9, 0.2, 0.1]))
    ]
    assert lookup(excerpts, 0.5) == {B}
    assert lookup([], 0.5) == frozenset()


def test_a_graph_that_knows_the_context_beats_the_baselines():
    trie = Trie([Pattern((B, A), 1.0, 4)])
    held_out = [
        Seen(np.array([A, B, X, B]), np.array([True, False, False])),  # a is context only
        Seen(np.array([B, A]), np.array([False, False])),  # not a of the excerpt before
    ]
    found = score(trie, frozenset({B}), held_out, 0.5)
    assert found["trie"] == Counts(1, 0, 0)
    assert found["lookup"] == Counts(1, 2, 0)
    assert found["always"] == Counts(1, 4, 0)
    assert found["always"].f1 == pytest.approx(2 / 6)
    assert found["trie"].f1 == 1.0


def test_without_excerpts_nothing_is_scored():
    assert score(Trie([]), frozenset(), [], 0.5)["trie"].f1 is None
