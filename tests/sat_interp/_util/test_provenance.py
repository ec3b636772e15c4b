"""Versions and commit: what a record says made it."""

from __future__ import annotations

import subprocess

import torch

from sat_interp._util import provenance as module
from sat_interp._util.provenance import commit, versions


def test_versions_name_what_decides_a_result():
    assert set(versions()) == {"python", *module.LIBRARIES}
    assert versions()["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_commit_is_of_the_tree_the_package_lies_in(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "provenance.py"))
    (tmp_path / "provenance.py").write_text("one")
    assert commit() is None  # outside git

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    git("init", "-q")
    (tmp_path / "other").write_text("x")
    git("add", "other")
    git("commit", "-qm", "one")
    assert commit() is None  # in someone else's repository, as in a virtual environment
    git("add", "provenance.py")
    git("commit", "-qm", "two")
    clean = commit()
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "provenance.py").write_text("two")
    assert commit() == clean + "-dirty"
