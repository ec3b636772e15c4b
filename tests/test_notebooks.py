"""The notebooks run from top to bottom, offline, and say what their text says they do."""

from __future__ import annotations

import json
import re
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
    tried = {"first_look", "reading_a_circuit", "own_model", "pretrained_model"}
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == tried


def test_the_outputs_that_are_committed_are_whole():
    """Each cell that draws has a picture; no error and no path of a machine is left."""
    for path in NOTEBOOKS.glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        assert "Traceback" not in text
        assert "/tmp/" not in text
        for cell in json.loads(text)["cells"]:
            if ".plot()" in "".join(cell["source"]):
                assert any("image/png" in output.get("data", {}) for output in cell["outputs"])


def test_notebooks_use_the_public_face_alone():
    for path in NOTEBOOKS.glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"(?:from|import) (?:evaluations|sat_interp)\.", text), path


def test_first_look(capsys):
    names = execute("first_look")
    assert "clean    predicts ' Anna'" in capsys.readouterr().out
    # the hook changes both streams
    for stream in ("clean_logits", "ablated_logits"):
        before, after = (getattr(names[name], stream) for name in ("out", "hooked"))
        assert not before.equal(after)
    assert names["result"].record.metric("leak_mask").value > 0


def test_reading_a_circuit(capsys):
    names = execute("reading_a_circuit")
    record = names["result"].record
    assert record.metric("accuracy").value > 0.9
    assert names["graph"].number_of_edges() == record.metric("edges").value
    assert names["without_head"](3, 0) < 0 < names["without_head"](3, 1)
    assert "without head of layer 3" in capsys.readouterr().out


def test_pretrained_model(capsys, monkeypatch):
    monkeypatch.chdir(NOTEBOOKS.parent)  # it reads the records there
    names = execute("pretrained_model")
    figures, edges = names["figures"].loc["acdc"]["value"], names["edges"]
    assert len(edges) == figures["edges"]
    assert figures["held_out_faithfulness"] > 0.5 > figures["random_faithfulness"]
    assert names["sums"].sum() == pytest.approx(edges["score"].abs().sum())
    assert f"of {len(edges):,} edges" in capsys.readouterr().out


@pytest.mark.slow
def test_own_model():
    names = execute("own_model")
    assert {"sae", "neurons", "n2g"} == set(names["frame"]["evaluation"])
    assert set(names["frame"]["model"]) == {"none", "local-k4"}
    assert len([*Path(names["out"]).glob("*/n2g-*.json")]) == 2
