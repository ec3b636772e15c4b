"""Known patterns of planted units; the vectorised walk against plain matching."""

from __future__ import annotations

import numpy as np
import pytest

from evaluations.suite.n2g.augment import augment
from evaluations.suite.n2g.prune import Window
from evaluations.suite.n2g.saliency import importances
from evaluations.suite.n2g.trie import IGNORE, Example, Pattern, Trie, patterns, token_texts
from tests.evaluations.suite.n2g.conftest import TEXTS, A, B, D, Listed, X, Y


def _examples(reader, vocabulary, window):
    matrices = importances(reader, [window], filler=0)
    changes = augment(reader, [window], matrices, Listed(), vocabulary, 0.75)
    changed = [Example.of_substitution(one, window, matrices[0], 1.0) for one in changes]
    return [Example.of_window(window, matrices[0], 1.0), *changed]


def test_a_planted_unit_gives_the_known_trie(planted, vocabulary):
    window = Window(3, np.array([A, Y, D]), np.array([0.0, 0.0, 1.0]), 1.0)
    found = patterns(_examples(planted, vocabulary, window), 0.75, 0.5)
    firing = {pattern.path: pattern.activation for pattern in found if pattern.activation > 0.5}
    assert firing == {(D, IGNORE, A): 1.0, (D, IGNORE, X): pytest.approx(0.8)}
    silent = {pattern.path for pattern in found if pattern.activation <= 0.5}
    assert (D, IGNORE, B) in silent  # another word in a's place
    assert (B, IGNORE, A) in silent  # another word in d's
    trie = Trie(found)
    tokens = np.array([D, A, B, D, X, X, D, D, A, A, B])
    assert trie.predict(tokens).tolist() == pytest.approx([0, 0, 0, 1, 0, 0, 0.8, 0.8, 0, 0, 0])
    assert token_texts(found, TEXTS)[0] == {
        "path": [" d", None, " a"],
        "activation": 1.0,
        "count": 1,
    }


def test_every_token_over_the_threshold_is_read_backwards():
    importance = np.array([[0, 0.9, 0.2], [0, 0, 0.8], [0, 0, 0]])
    example = Example(np.array([A, B, D]), np.array([0.1, 0.6, 1.0]), importance)
    found = {one.path: one.count for one in patterns([example, example], 0.75, 0.5)}
    assert found == {(D, B): 2, (B, A): 2}
    assert [one.path for one in patterns([example], 0.1, 0.7)] == [(D, B, A)]
    assert [one.path for one in patterns([example], 0.95, 0.05)] == [(D,), (B,), (A,)]


def test_equal_paths_are_one_pattern_of_their_mean():
    one = Example(np.array([B]), np.array([1.0]), np.zeros((1, 1)))
    other = Example(np.array([B]), np.array([0.2]), np.zeros((1, 1)), negative=0)
    assert patterns([one, other], 0.5, 0.5) == [Pattern((B,), 0.6, 2)]


def test_the_best_match_names_most_then_is_longest_then_most_activating():
    found = [
        Pattern((B,), 0.9, 1),
        Pattern((B, A), 0.1, 1),
        Pattern((B, IGNORE, X), 0.7, 1),
        Pattern((B, A, IGNORE, IGNORE, Y), 0.4, 1),
        Pattern((B, IGNORE, X, IGNORE, Y), 0.8, 1),
    ]
    trie = Trie(found)
    predict = lambda *tokens: trie.predict(np.array(tokens))[-1]  # noqa: E731
    assert predict(B) == 0.9
    assert predict(A, B) == pytest.approx(0.1)  # says more
    assert predict(X, A, B) == pytest.approx(0.7)  # as much, but longer
    assert predict(Y, X, X, A, B) == pytest.approx(0.8)  # as much and as long
    assert predict(D) == 0.0


def test_the_walk_matches_as_plain_comparison_does():
    draws = np.random.default_rng(0)
    for _ in range(20):
        found = {}
        for _ in range(15):
            path = tuple(draws.choice([IGNORE, 0, 1, 2], size=draws.integers(0, 5)).tolist())
            while path and path[-1] == IGNORE:
                path = path[:-1]
            found[(int(draws.integers(0, 3)), *path)] = float(draws.random())
        given = [Pattern(path, value, 1) for path, value in found.items()]
        parts = [draws.integers(0, 4, size=size) for size in (12, 1, 6)]
        expected = []
        for part in parts:
            for place in range(len(part)):
                claims = [
                    (len(one.named), len(one.path), one.activation)
                    for one in given
                    if len(one.path) <= place + 1
                    and all(
                        token in (IGNORE, part[place - back]) for back, token in enumerate(one.path)
                    )
                ]
                expected.append(max(claims)[2] if claims else 0.0)
        before = np.concatenate([np.arange(len(part)) for part in parts])
        np.testing.assert_allclose(Trie(given).predict(np.concatenate(parts), before), expected)


def test_an_empty_trie_predicts_nothing():
    assert Trie([]).predict(np.array([A, B])).tolist() == [0, 0]


def test_a_window_without_its_peak_tells_about_the_peak_alone():
    importance = np.array([[0, 0.2, 0.9], [0, 0, 0.1], [0, 0, 0]])
    window = Window(0, np.array([A, B, D]), np.array([0.4, 0.9, 0.2]), 1.6, faithful=False)
    example = Example.of_window(window, importance, 2.0)
    assert example.activations.tolist() == pytest.approx([1.6, 3.6, 0.8])
    assert example.activating(0.5) == [2]
    silent = Window(0, np.array([A, D]), np.array([0.4, -0.1]), 1.6, faithful=False)
    example = Example.of_window(silent, np.zeros((2, 2)), 2.0)
    assert example.activations.tolist() == pytest.approx([0.2, 0.8])
    assert [one.path for one in patterns([example], 0.75, 0.5)] == [(D,)]
