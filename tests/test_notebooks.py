"""The notebooks run from top to bottom, offline, and say what their text says they do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def execute(name: str) -> dict[str, Any]:
    """Run a notebook's cells in order; what they have left."""
    notebook = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), names)
    plt.close("all")
    return names


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAT_INTERP_CACHE", str(tmp_path / "cache"))


def test_every_notebook_is_tried_here():
    tried = {"first_look", "reading_a_circuit", "own_model"}
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == tried


def test_first_look(capsys):
    names = execute("first_look")
    assert "clean    says ' Anna'" in capsys.readouterr().out
    # the hook changes both streams
    for stream in ("clean_logits", "ablated_logits"):
        before, after = (getattr(names[one], stream) for one in ("out", "hooked"))
        assert not before.equal(after)


def test_reading_a_circuit(capsys):
    names = execute("reading_a_circuit")
    told = capsys.readouterr().out
    assert names["done"].accuracy > 0.9
    assert 5 < names["found"].n < 100
    assert names["faithfulness"](names["case"], names["case"].full).value == pytest.approx(1)
    assert "without head of layer 3" in told


@pytest.mark.slow
def test_own_model():
    names = execute("own_model")
    written = {path.name.partition("-")[0] for path in Path(names["out"]).glob("*.md")}
    assert {"lm", "sae", "neurons", "n2g"} <= written
