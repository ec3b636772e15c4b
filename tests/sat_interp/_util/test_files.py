from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sat_interp._util.errors import UserError
from sat_interp._util.files import atomic_directory, put_back_directories, write_atomically


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


def full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def rust(*_: Any) -> None:
    raise Exception("No space left on device (os error 28)")


def short(*_: Any) -> None:
    raise OSError("33 requested and 0 written")


@pytest.mark.parametrize("failure", [full, rust, short])
def test_a_disk_that_fills_up_is_named_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Any
) -> None:
    monkeypatch.setattr(os, "fsync", failure)
    with pytest.raises(OSError, match="No space left|33 requested") as caught:
        write_atomically(tmp_path / "record.json", "{}")
    assert caught.value.filename == str(tmp_path / "record.json")
    monkeypatch.undo()
    with (
        pytest.raises(OSError, match="No space left|33 requested") as caught,
        atomic_directory(tmp_path / "model"),
    ):
        failure()
    assert caught.value.filename == str(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_left_as_they_are(tmp_path: Path) -> None:
    known = tmp_path / "known"
    for error in (
        UserError("the disk says (os error 28)"),
        RuntimeError("a bug"),
        FileNotFoundError(2, "No such file", str(known)),
    ):
        with pytest.raises(type(error)) as caught, atomic_directory(tmp_path / "x"):
            raise error
        assert caught.value is error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_is_named_by_the_file(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError) as caught:
        write_atomically(tmp_path / "record.json", "{}")
    assert caught.value.filename == str(tmp_path / "record.json")
