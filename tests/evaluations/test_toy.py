"""A new evaluation is one folder and one line: it is then in every command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

INIT = '''
"""toy: how many parameters a model has."""
from __future__ import annotations
from dataclasses import dataclass
from evaluations.core.options import TextOptions
from evaluations.core.spec import Cost, Spec

@dataclass(frozen=True)
class ToyConfig:
    """What decides the count."""
    scale: float = 1.0
    """Factor of the count."""
    seed: int = 0
    """Seed of nothing."""

SPEC = Spec(
    package=__name__, name="toy", summary="Toy: how many parameters a model has.",
    description="They are counted.", examples=("sat-eval toy demo:baseline",), version=1,
    options=ToyConfig, shared=(TextOptions,), cost=Cost({"quick": 1, "demo": 1, "paper": 1}),
    budgets={"quick": {"scale": 2.0}},
)
'''
EVALUATION = """
from evaluations.core.inputs import text_data as prepare
from evaluations.core.record import Metric
from evaluations.core.spec import Measurement

def evaluate(model, text, config):
    count = config.scale * sum(one.numel() for one in model.parameters())
    return Measurement([Metric("count", "Toy count", count, "parameters", n=len(text))])
"""
REPORT = """
from matplotlib.figure import Figure
from evaluations.tables.view import Column, Layout, make_tables

LAYOUTS = (Layout("toy", "Toy table", (Column("toy", "count", "Toy count", 0),)),)

def tables(records):
    return make_tables(LAYOUTS, records)

def figure(records):
    drawn = Figure()
    drawn.subplots().bar(range(len(records)), [one.metric("count").value for one in records])
    return [drawn]

FIGURES = {"": figure}

def files(records, out, stem):
    return []
"""


@pytest.fixture
def with_toy(tmp_path):
    """Run Python with a copy of the package that has one folder and one line more."""
    copy = tmp_path / "tree"
    shutil.copytree(ROOT / "evaluations", copy / "evaluations")
    toy = copy / "evaluations" / "suite" / "toy"
    toy.mkdir()
    for name, text in (("__init__", INIT), ("evaluation", EVALUATION), ("report", REPORT)):
        (toy / f"{name}.py").write_text(text.lstrip())
    registry = copy / "evaluations" / "registry.py"
    text = registry.read_text()
    text = text.replace("from evaluations.suite import ", "from evaluations.suite import toy, ", 1)
    registry.write_text(text + "\nSPECS.append(toy.SPEC)\n")
    environment = {**os.environ, "PYTHONPATH": f"{copy}{os.pathsep}{ROOT}"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_a_new_evaluation_is_one_folder_and_one_line(with_toy, tmp_path):
    sat_eval = ("-m", "evaluations.cli")
    assert "Toy: how many parameters" in with_toy(*sat_eval, "--help")
    assert "--scale X" in with_toy(*sat_eval, "toy", "--help")
    battery = ("all", "demo:baseline", "--preset", "quick", "--parts", "toy", "--out", "res")
    assert "toy" in with_toy(*sat_eval, *battery, "--toy.stories", "3")
    (record,) = Path(tmp_path / "res").glob("*/toy-*.json")
    assert '"scale": 2.0' in record.read_text()
    assert list((tmp_path / "res").glob("toy-*.png"))
    with_toy(*sat_eval, "report", "--out", "res")
    page = (tmp_path / "res" / "report" / "report.html").read_text()
    assert "Toy table" in page
    assert "Toy table" in (tmp_path / "res" / "report" / "report.md").read_text()
    code = (
        "import evaluations as ev; r = ev.toy('demo:baseline', stories=3); print(r.frame.value[0])"
    )
    assert float(with_toy("-c", code)) == record_value(record) / 2
    assert "scale" in with_toy("-c", "import evaluations as ev; help(ev.toy)")


def record_value(path: Path) -> float:
    """The value of a record's only metric."""
    import json

    value: float = json.loads(path.read_text())["metrics"][0]["value"]
    return value
