"""A line without an end is refused before it fills the memory."""

from __future__ import annotations

import gzip
import json
import tracemalloc

import pytest

from sat_interp._util.errors import UserError
from sat_interp.data import readers
from sat_interp.data.readers import read_stories


def bomb(path, size, before=b""):
    """A file of zeros: a thousandth of its size when compressed."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(before)
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
    return path


def test_a_gzip_bomb_is_refused_at_the_longest_line(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_LONGEST_LINE", 1 << 20)
    path = bomb(tmp_path / "bomb.jsonl.gz", 32 << 20, b'{"text": "Once."}\n')
    tracemalloc.start()
    stories = read_stories(path, "text")
    assert next(stories) == "Once."
    with pytest.raises(
        UserError, match=r"bomb\.jsonl\.gz:2 is longer than 1,048,576 bytes"
    ) as told:
        next(stories)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 << 20
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["bomb.jsonl", "bomb.jsonl.gz"])
def test_the_longest_line_is_read_and_no_longer_one(tmp_path, monkeypatch, name):
    monkeypatch.setattr(readers, "_LONGEST_LINE", 100)
    path = tmp_path / name
    opened = gzip.open if name.endswith("gz") else open
    for extra in (0, 1):
        line = json.dumps({"text": "a" * (100 - len('{"text": ""}\n') + extra)}) + "\n"
        with opened(path, "wb") as file:
            file.write(line.encode())
        if extra:
            with pytest.raises(UserError, match="longer than 100 bytes"):
                list(read_stories(path, "text"))
        else:
            assert len(list(read_stories(path, "text"))) == 1


def test_many_lines_are_streamed(tmp_path):
    path = tmp_path / "long.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write((json.dumps({"text": "a " * 60_000}) + "\n").encode() * 4)
    tracemalloc.start()
    assert sum(1 for _ in read_stories(path, "text")) == 256  # 31 MB
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
