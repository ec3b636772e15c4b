"""``measures`` of a study file: what cannot be measured is refused before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evaluations.battery.measures import check_measures
from evaluations.cli import main as sat_eval
from evaluations.registry import SPECS
from sat_interp._util.errors import UserError
from sat_interp.cli import main as sat_train
from sat_interp.training import study_training
from sat_interp.training.study import read_study

STUDIES = Path(__file__).parents[3] / "studies"


@pytest.mark.parametrize(
    ("measures", "told"),
    [
        ([{"acdcc": {}}], "measures: acdcc: unknown evaluation 'acdcc': did you mean 'acdc'?"),
        ([{"acdc": {"promts": 6}}], "measures: acdc: unknown option 'promts': did you mean"),
        ([{"acdc": {"prompts": "many"}}], "measures: acdc: --prompts"),
        ([{"acdc": {"prompts": None}}], "measures: acdc: prompts has no value"),
        ([{"acdc": {"tau": [0.03, -1]}}], "measures: acdc: tau is -1.0"),
        ([{"acdc": {"out": "x"}}], "measures: acdc: out is an option of sat-eval all"),
        ([{"lm": {}}, {"acdc": {}}, {"lm": {}}], "measures: lm is there twice"),
        ([{"sae": {"l1": [2, 5]}}, {"sae": {"l1": "2,5"}}], "measures: sae is there twice"),
        ([{"acdc": {"no_sweep": False}}, {"acdc": {}}], "measures: acdc is there twice"),
    ],
)
def test_what_cannot_be_measured_is_refused(measures: list[Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        check_measures(measures)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_one_evaluation_may_be_there_with_several_options() -> None:
    check_measures([{"acdc": {"task": "ioi"}}, {"acdc": {"task": "quotes"}}, {"lm": {}}])


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_what_our_studies_measure_is_possible(path: Path) -> None:
    check_measures(read_study(path).measures)


def test_flags_are_off_by_default() -> None:
    """A flag that is false in a study file is left out of the command line."""
    flags = {
        (spec.name, name): value
        for spec in SPECS
        for kind in spec.option_classes
        for name, value in vars(kind).items()
        if isinstance(value, bool) and not name.startswith("_")
    }
    assert len(flags) > 5
    assert not any(flags.values())


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Path]:
    def write(*measures: Any) -> Path:
        path = tmp_path / "study.yaml"
        content = {"variants": ["none"], "measures": measures, "out": str(tmp_path / "runs")}
        path.write_text(yaml.safe_dump({**content, "measures": list(measures)}))
        return path

    return write


@pytest.mark.parametrize("command", ["train", "all", "status"])
def test_commands_refuse_it_before_they_do_anything(
    study: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    monkeypatch.setattr(study_training, "train_study", None)  # not reached
    arguments = ["--study", str(study("lm", {"acdc": {"promts": 6}})), "--out", str(tmp_path / "o")]
    run = sat_train if command == "train" else lambda given: sat_eval([command, *given])
    assert run(arguments) == 2
    assert "measures: acdc: unknown option 'promts'" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.yaml"]
