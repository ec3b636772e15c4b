"""The streams of a text: the same in memory and in a file, which does not outlive them."""

from __future__ import annotations

import dataclasses
import errno
import os

import pytest
import torch

from evaluations.suite.lens import positions
from evaluations.suite.lens.evaluation import LensData, evaluate
from evaluations.suite.lens.positions import read_positions
from tests.evaluations.suite.lens.test_lens import FAST, OWNER, long_text, shaped, windows

__all__ = ["long_text"]


def test_streams_beyond_the_memory_are_in_a_file(monkeypatch, tmp_path):
    monkeypatch.setattr(positions, "default_cache", lambda: tmp_path / "cache")
    model = shaped()
    size = 3 * 12 * 7 * 8 * 8  # two blocks, 12 windows of 7 positions, d_model 8, float64
    made = []
    monkeypatch.setattr(
        positions, "_mapped", lambda *shape: made.append(shape) or torch.empty(shape[0]).double()
    )
    read_positions(model, windows(12), 2, 6, 0, memory=size)
    assert not made
    read_positions(model, windows(12), 2, 6, 0, memory=size - 1)
    assert made == [(size // 8, torch.float64)]


def test_a_file_holds_the_same_streams_and_is_gone(monkeypatch, tmp_path):
    monkeypatch.setattr(positions, "default_cache", lambda: tmp_path / "cache")
    model = shaped()
    inside, outside = (
        read_positions(model, windows(12), 2, 6, 0, memory) for memory in (1 << 20, 0)
    )
    assert not list((tmp_path / "cache").iterdir())
    for one, other in zip(inside.streams, outside.streams, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(inside.attention, outside.attention)


def test_a_full_disk_is_an_error_that_names_the_file(monkeypatch, tmp_path):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(positions, "default_cache", lambda: tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device: .*\.streams"):
        read_positions(shaped(), windows(12), 2, 6, 0, 0)
    assert not list(tmp_path.iterdir())


def test_memory_decides_no_figure(make_model, long_text, monkeypatch, tmp_path):
    config = dataclasses.replace(FAST, lenses=("tuned", "oca", "shared", "resample"))
    found = []
    for memory in (1, 0):
        monkeypatch.setenv("SAT_INTERP_CACHE", str(tmp_path / str(memory)))
        own = dataclasses.replace(config, memory=memory)
        assert own.recorded() == config.recorded()
        found.append(evaluate(make_model("none"), LensData(long_text, OWNER), own).metrics)
    inside, outside = ({one.name: one.value for one in metrics} for metrics in found)
    assert outside == pytest.approx(inside, rel=1e-6)
