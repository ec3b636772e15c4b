from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sat_interp.files import atomic_directory, put_back_directories


def replace_x(parent: Path) -> None:
    with atomic_directory(parent / "x") as temporary:
        (temporary / "content").write_text("new")


def old_x(parent: Path) -> None:
    (parent / "x").mkdir()
    (parent / "x" / "content").write_text("old")


def test_a_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    replace_x(tmp_path)
    (tmp_path / "x" / "more").write_text("old")
    replace_x(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "content"]


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("error", [OSError(5, "I/O error"), KeyboardInterrupt()])
def test_a_rename_that_fails_leaves_the_old_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, error: BaseException
) -> None:
    old_x(tmp_path)
    real, count = os.replace, iter(range(1, 100))

    def replace(*arguments: Any) -> None:
        if next(count) == failing:
            raise error
        real(*arguments)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(type(error)):
        replace_x(tmp_path)
    assert (tmp_path / "x" / "content").read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_what_stepped_aside_last_is_put_back_where_nothing_came(tmp_path: Path) -> None:
    for at, (name, content) in enumerate({"a": "older", "b": "newer"}.items()):
        aside = tmp_path / f".x.{name}.old"
        (aside / "x").mkdir(parents=True)
        (aside / "x" / "content").write_text(content)
        os.utime(aside, (at, at))
    put_back_directories(tmp_path)
    assert (tmp_path / "x" / "content").read_text() == "newer"


def test_what_came_stays(tmp_path: Path) -> None:
    old_x(tmp_path)
    aside = tmp_path / ".x.abc.old"
    os.replace(tmp_path / "x", tmp_path / "aside")
    aside.mkdir()
    os.replace(tmp_path / "aside", aside / "x")
    replace_x(tmp_path)
    put_back_directories(tmp_path)
    assert (tmp_path / "x" / "content").read_text() == "new"
