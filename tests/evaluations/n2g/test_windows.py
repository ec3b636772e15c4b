"""Batched readings are those of single windows, and nothing is read twice."""

from __future__ import annotations

import numpy as np


def test_windows_in_batches_are_windows_one_by_one(real, alone, monkeypatch):
    monkeypatch.setattr("evaluations.n2g.windows.BATCH_TOKENS", 30)  # several batches
    draws = np.random.default_rng(0)
    windows = [draws.integers(1, 40, size=size) for size in (1, 4, 4, 7, 2, 4, 4, 7)]
    units = draws.integers(0, 64, size=len(windows)).tolist()
    found = real.read_all(windows, units, "here")
    for value, window, unit in zip(found, windows, units, strict=True):
        np.testing.assert_allclose(value, alone(real, window, unit), atol=1e-6)
    assert real.windows["here"] == 8
    assert real.tokens["here"] == sum(len(window) + 1 for window in windows)


def test_a_window_that_several_units_ask_for_is_read_once(real, alone):
    window = np.array([5, 9, 2])
    found = real.read(np.stack([window] * 3), np.array([0, 7, 7]), "here")
    assert real.tokens["here"] == 4
    np.testing.assert_allclose(found[0], alone(real, window, 0), atol=1e-6)
    np.testing.assert_array_equal(found[1], found[2])


def test_no_window_is_no_reading(real):
    assert real.read(np.zeros((0, 3), dtype=np.int64), np.zeros(0, dtype=np.int64), "x").size == 0
    assert real.tokens["x"] == 0
