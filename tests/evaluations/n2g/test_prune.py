"""The shortest context, as by trying one after the other."""

from __future__ import annotations

import numpy as np
import pytest

from evaluations.excerpts import Excerpt
from evaluations.n2g.prune import Peak, peak_of, prune
from tests.evaluations.n2g.conftest import A, B, C, D, X, Y


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


def test_where_no_context_will_do_there_is_no_window(planted):
    # a comes out of reach
    assert prune(planted, [Peak(3, 1.0, np.array([A, Y, D]))], context=1) == [None]


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.9])
def test_all_peaks_together_are_each_one_alone(real, alone, kept):
    draws = np.random.default_rng(1)
    peaks = []
    for _ in range(40):
        tokens = draws.integers(1, 60, size=int(draws.integers(1, 20)))
        unit = int(draws.integers(0, 64))
        values = alone(real, tokens, unit)
        if values[-1] > 0:
            peaks.append(Peak(unit, float(values[-1]), tokens))
    found = prune(real, peaks, kept, context=12)
    sizes = set()
    for peak, window in zip(peaks, found, strict=True):
        expected = None
        for size in range(min(12, len(peak.tokens) - 1) + 1):
            value = alone(real, peak.tokens[-size - 1 :], peak.unit)
            if value[-1] >= value.max() and value[-1] > kept * peak.activation:
                expected = size
                break
        assert (None if window is None else len(window.tokens) - 1) == expected
        sizes.add(expected)
    assert len(sizes) > 3  # contexts of several lengths, and none among them


def test_the_peak_of_an_excerpt_has_the_story_before_it():
    story = np.arange(10, 30)
    excerpt = Excerpt(0, 4, story[4:9], np.array([0.0, 0.1, 0.9, 0.9, 0.2]))
    peak = peak_of(7, excerpt, story, context=3)
    assert peak.tokens.tolist() == [13, 14, 15, 16]
    assert (peak.unit, peak.activation, peak.after) == (7, 0.9, 17)
    assert peak_of(7, excerpt, story[:7], context=30).after == -1
    assert peak_of(7, Excerpt(0, 4, story[4:5], np.zeros(1)), story, 3) is None
