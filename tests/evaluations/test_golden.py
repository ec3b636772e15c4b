"""Figures that change without their evaluation's version would be served from old records."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from tests.evaluations import golden

VERSIONS = golden.all_versions()


@pytest.mark.parametrize("name", sorted(VERSIONS))
def test_figures_change_only_with_the_version(name: str, tmp_path: Path) -> None:
    known = golden.read(name)
    command = f"python -m tests.evaluations.golden {name}"
    assert known is not None, f"no golden values: {command}"
    assert VERSIONS[name] == known["version"], f"versions differ: {command}"
    changed = golden.differences(known["cases"], golden.compute(name, tmp_path))
    assert not changed, f"raise the version of {name}, then {command}: {changed[:20]}"


def test_each_evaluation_has_golden_values_and_no_file_is_left_over() -> None:
    assert {path.stem for path in golden.PLACE.glob("*.json")} == set(VERSIONS)
    assert set(VERSIONS) >= {"lm", "gates", "acdc", "sae", "neurons", "n2g", "activations"}


def test_changed_values_are_not_written_under_the_same_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = golden.read("lm")
    assert known is not None
    monkeypatch.setattr(golden, "PLACE", tmp_path)
    cases, version = known["cases"], known["version"]
    assert "written" in golden.update("lm", version, cases)
    assert "unchanged" in golden.update("lm", version, cases)
    for part, change in (("value", 1.001), ("standard_error", 1.001), ("n", 2)):
        other = copy.deepcopy(cases)
        other["none"]["loss"][part] *= change
        with pytest.raises(ValueError, match=rf"loss.{part}"):
            golden.update("lm", version, other)
    missing = copy.deepcopy(cases)
    del missing["none"]["loss"]
    with pytest.raises(ValueError, match="loss is gone"):
        golden.update("lm", version, missing)
    with pytest.raises(ValueError, match="below"):
        golden.update("lm", version - 1, cases)
    assert golden.read("lm") == known
    assert "written" in golden.update("lm", version + 1, missing)
    assert golden.read("lm") == {"version": version + 1, "cases": missing}
