"""Batched readings are those of single windows, and nothing is read twice."""

from __future__ import annotations

import numpy as np
import torch


def test_windows_in_batches_are_windows_one_by_one(real, alone, monkeypatch):
    monkeypatch.setattr("evaluations.suite.n2g.windows.BATCH_TOKENS", 30)  # several batches
    draws = np.random.default_rng(0)
    windows = [draws.integers(1, 40, size=size) for size in (1, 4, 4, 7, 2, 4, 4, 7)]
    units = draws.integers(0, 64, size=len(windows)).tolist()
    starts = [0, 0, 9, 3, 20, 1, 0, 5]
    found = real.read_all(windows, starts, units, "here")
    for value, window, start, unit in zip(found, windows, starts, units, strict=True):
        np.testing.assert_allclose(value, alone(real, window, unit, start), atol=1e-6)
    assert real.windows["here"] == 8
    assert real.tokens["here"] == sum(len(window) + 1 for window in windows)


def test_a_window_that_several_units_ask_for_is_read_once(real, alone):
    window = np.array([5, 9, 2])
    found = real.read(np.stack([window] * 3), np.array([4, 4, 4]), np.array([0, 7, 7]), "here")
    assert real.tokens["here"] == 4
    np.testing.assert_allclose(found[0], alone(real, window, 0, 4), atol=1e-6)
    np.testing.assert_array_equal(found[1], found[2])


def test_a_window_at_two_places_is_two_readings(real, alone):
    window = np.array([5, 9, 2])
    here, there = real.read(np.stack([window] * 2), np.array([0, 11]), np.array([7, 7]), "here")
    assert real.tokens["here"] == 8
    assert np.abs(here - there).max() > 1e-3
    np.testing.assert_allclose(there, alone(real, window, 7, 11), atol=1e-6)


def test_a_window_that_is_the_whole_story_is_the_story(real):
    story = np.array([5, 9, 2, 30, 8])
    whole, rest = real.read_all([story, story[2:]], [0, 2], [7, 7], "here")
    tokens = torch.tensor([[0, *story.tolist()]])
    with torch.no_grad():
        plain = real.units.read(real.model, tokens)[real.layer][0, 1:, 7]
    np.testing.assert_allclose(whole, plain.float().numpy(), atol=1e-6)
    assert np.abs(rest - whole[2:]).max() > 1e-3  # its context is missing


def test_no_window_is_no_reading(real):
    none = np.zeros(0, dtype=np.int64)
    assert real.read(np.zeros((0, 3), dtype=np.int64), none, none, "x").size == 0
    assert real.tokens["x"] == 0
