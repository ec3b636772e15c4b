"""The shortest context, as by trying one after the other, at its place in the story."""

from __future__ import annotations

import numpy as np
import pytest

from evaluations.core.excerpts import Excerpt
from evaluations.suite.n2g.prune import Peak, Window, peak_of, prune
from tests.evaluations.suite.n2g.conftest import A, B, C, D, X, Y


def test_a_planted_unit_is_pruned_to_what_it_needs(planted):
    peaks = [
        Peak(0, 1.0, np.array([Y, Y, X, A, B])),
        Peak(1, 2.0, np.array([Y, A, C])),
        Peak(3, 1.0, np.array([Y, A, Y, D])),
    ]
    found = prune(planted, peaks)
    assert [window.tokens.tolist() for window in found] == [[A, B], [C], [A, Y, D]]
    assert [window.before for window in found] == [X, A, Y]
    assert found[0].scale == 1.0
    assert all(window.faithful for window in found)


def test_where_no_context_will_do_the_longest_is_taken(planted):
    peak = Peak(3, 1.0, np.array([X, A, Y, D]), start=7)  # a comes out of reach
    (window,) = prune(planted, [peak], context=1)
    assert window.tokens.tolist() == [Y, D]
    assert (window.start, window.before, window.peak) == (9, A, 1.0)
    assert not window.faithful
    assert not window.fires
    assert window.scale == 1.0
    # the whole left context is the longest, too
    (window,) = prune(planted, [Peak(3, 1.0, np.array([Y, D]), start=0)], context=30)
    assert window.tokens.tolist() == [Y, D]
    assert window.before == -1


def test_a_longest_window_is_scaled_as_in_the_published_code():
    window = Window(0, np.array([A, B]), np.array([0.5, 0.1]), 0.8, faithful=False)
    assert window.fires
    assert window.scale == pytest.approx(8.0)


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.9])
def test_all_peaks_together_are_each_one_alone(real, alone, kept):
    draws = np.random.default_rng(1)
    peaks = []
    for _ in range(40):
        tokens = draws.integers(1, 60, size=int(draws.integers(1, 20)))
        unit, start = int(draws.integers(0, 64)), int(draws.integers(0, 23 - len(tokens)))
        values = alone(real, tokens, unit, start)
        if values[-1] > 0:
            peaks.append(Peak(unit, float(values[-1]), tokens, start))
    found = prune(real, peaks, kept, context=12)
    sizes, longest = set(), 0
    for peak, window in zip(peaks, found, strict=True):
        faithful = False
        for size in range(min(12, len(peak.tokens) - 1) + 1):
            start = peak.start + len(peak.tokens) - 1 - size
            value = alone(real, peak.tokens[-size - 1 :], peak.unit, start)
            if value[-1] >= value.max() and value[-1] > kept * peak.activation:
                faithful = True
                break
        assert len(window.tokens) - 1 == size
        assert (window.start, window.faithful) == (start, faithful)
        np.testing.assert_allclose(window.activations, value, atol=1e-6)
        sizes.add(size)
        longest += not faithful
    assert len(sizes) > 3  # contexts of several lengths
    assert longest


def test_the_peak_of_an_excerpt_has_the_story_before_it():
    story = np.arange(10, 30)
    excerpt = Excerpt(0, 4, story[4:9], np.array([0.0, 0.1, 0.9, 0.9, 0.2]))
    peak = peak_of(7, excerpt, story, context=3)
    assert peak.tokens.tolist() == [13, 14, 15, 16]
    assert (peak.unit, peak.activation, peak.start, peak.after) == (7, 0.9, 3, 17)
    assert peak_of(7, excerpt, story[:7], context=30).after == -1
    assert peak_of(7, Excerpt(0, 4, story[4:5], np.zeros(1)), story, 3) is None
