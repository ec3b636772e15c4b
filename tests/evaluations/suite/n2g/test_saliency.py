"""Importance by masked batches, and by hand."""

from __future__ import annotations

import numpy as np

from evaluations.suite.n2g.prune import Window
from evaluations.suite.n2g.saliency import importances
from tests.evaluations.suite.n2g.conftest import A, B, D, X, Y


def test_planted_importances(planted):
    ab = Window(0, np.array([A, B]), np.array([0.0, 1.0]), 1.0)
    ayd = Window(3, np.array([A, Y, D]), np.array([0.0, 0.0, 1.0]), 1.0)
    one = Window(0, np.array([X]), np.array([0.0]), 1.0)
    first, second, third = importances(planted, [ab, ayd, one], filler=0)
    assert first.tolist() == [[0, 1], [0, 0]]
    assert second.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert third.tolist() == [[0]]


def test_all_masked_windows_together_are_each_one_alone(real, alone):
    draws = np.random.default_rng(2)
    windows = []
    for size in (1, 2, 5, 5, 9):
        tokens, unit = draws.integers(1, 60, size=size), int(draws.integers(0, 64))
        start = 14 - size
        values = alone(real, tokens, unit, start)
        windows.append(Window(unit, tokens, values, float(values[-1]), start))
    checked = 0
    for window, matrix in zip(windows, importances(real, windows, filler=0), strict=True):
        for s in range(len(window.tokens)):
            masked = window.tokens.copy()
            masked[s] = 0
            values = alone(real, masked, window.unit, window.start)
            for t, plain in enumerate(window.activations):
                expected = 1 - values[t] / plain if s < t and plain > 0 else 0.0
                np.testing.assert_allclose(matrix[s, t], expected, atol=2e-5)
                checked += expected != 0
    assert checked > 5
