from __future__ import annotations

import json
import re
import shutil

import pytest

from evaluations.battery import shipping
from evaluations.battery.plan import Budgets, chosen_specs, per_model, plan
from evaluations.battery.shipping import model_files
from evaluations.core.options import RunOptions
from evaluations.registry import SPECS
from sat_interp._util.commandline import field_docstrings
from sat_interp.engine.parcel import pack, place, translate
from sat_interp.io.pretrained import save_pretrained


@pytest.fixture
def trained(make_model, tmp_path, stories_file):
    """A model in the directory of a run, by name, trained on its own text."""

    def make(name: str, data: str | None, validation: str | None = None) -> str:
        run = tmp_path / name
        save_pretrained(make_model("local"), run / "best")
        config = {"data": data or str(stories_file), "validation": validation, "seed": 0}
        (run / "config.json").write_text(json.dumps({"config": config, "settings": {}}))
        (run / "summary.json").write_text("{}")
        (run / "checkpoints" / "step-00000001").mkdir(parents=True)
        (run / "checkpoints" / "step-00000001" / "state.json").write_text("{}")
        return str(run)

    return make


def test_a_runs_model_is_sent_with_how_and_on_what_it_was_trained(trained, stories_file, tmp_path):
    files = model_files(trained("mine", None))
    assert set(files) == {stories_file, tmp_path / "mine"}
    names = set(files[tmp_path / "mine"])
    assert {"config.json", "summary.json", "best/cfg.json", "best/model.safetensors"} <= names
    assert not any(name.startswith("checkpoints") for name in names)
    assert model_files("demo:baseline") == {}


def test_each_model_is_a_job_with_a_short_name(trained):
    models = [trained("one", None), trained("two", None), "demo:baseline"]
    (part,) = plan(models, Budgets("quick"), chosen_specs(["lm"]))
    jobs = per_model(part)
    assert [job.name for job in jobs] == ["lm one", "lm two", "lm demo:baseline"]
    assert [job.models for job in jobs] == [[model] for model in models]
    assert len({job.log_name for job in jobs}) == 3
    after = plan(models, Budgets("quick"), chosen_specs(["n2g"]))[0]
    assert per_model(after)[0].after == ("neurons one",)


def test_the_worker_finds_the_model_and_its_text_where_they_were_put(
    trained, stories_file, tmp_path, monkeypatch
):
    """The run's configuration names the text as it lies on the worker."""
    (part,) = plan([trained("mine", None)], Budgets("quick"), chosen_specs(["lm"]))
    (job,) = per_model(part)
    parcel, files = pack(job.shipment(), 1, {})
    contents = {digest: path.read_bytes() for digest, path in files.items()}
    paths = place(parcel.trees, tmp_path / "cache", lambda digest: [contents[digest]])
    shutil.rmtree(tmp_path / "mine")
    model = translate(parcel.arguments[1], paths)
    config = json.loads((tmp_path / "cache").joinpath(model, "config.json").read_text())["config"]
    assert config["data"] == paths[str(stories_file)] != str(stories_file)

    from evaluations.core.model_source import ModelSource

    source = ModelSource.of(model)
    assert (source.name, source.origin.data) == ("mine", config["data"])


def test_records_and_details_that_are_there_are_sent_but_not_with_force(trained, tmp_path):
    model, out = trained("mine", None), tmp_path / "res"
    for name in (
        "mine-01234567/lm-1.json",
        "mine-01234567/sae-1.json",
        "mine-2-01234567/lm-1.json",
    ):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("{}")
    common = {"out": str(out)}
    (part,) = plan([model], Budgets("quick", common), chosen_specs(["lm"]))
    assert per_model(part)[0].shipment().present == ["mine-01234567/lm-1.json"]
    (part,) = plan([model], Budgets("quick", {**common, "force": True}), chosen_specs(["lm"]))
    shipment = per_model(part)[0].shipment()
    assert (shipment.present, shipment.overwrite) == ([], True)


def test_a_model_that_would_hold_out_less_is_measured_beside_the_one_that_decides(
    trained, stories_file, tmp_path
):
    """Of one text all models are measured on what is held out from any of them."""
    other = tmp_path / "other.txt"
    other.write_text("Once upon a time.\n")
    decides, own, alien = trained("a", None), trained("b", None), trained("c", str(other))
    budgets = Budgets("quick", {"data": str(stories_file)})
    (part,) = plan([alien, decides, own], budgets, chosen_specs(["lm"]))
    assert [job.beside for job in per_model(part)] == [decides, None, None]
    (part,) = plan([alien, own], Budgets("quick"), chosen_specs(["lm"]))
    assert [job.beside for job in per_model(part)] == [None, None]


def test_files_and_directories_that_options_name_are_sent(trained, tmp_path, monkeypatch):
    """Every option whose help text speaks of a file or a directory that it names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sae").mkdir()
    for name in ("sae/cfg.json", "task.json", "facts.json", "lens.safetensors"):
        (tmp_path / name).write_text("{}")
    named = {"acdc": "task", "trace": "facts", "lens": "load", "sae": "sae", "neurons": "sae"}
    values = {"task": "task.json", "facts": "facts.json", "load": "lens.safetensors", "sae": "sae"}
    for evaluation, option in named.items():
        own = {evaluation: {option: values[option]}}
        (part,) = plan(["demo:baseline"], Budgets("quick", {}, own), chosen_specs([evaluation]))
        shipment = per_model(part)[0].shipment()
        path = tmp_path / values[option]
        assert set(shipment.inputs) == {path}
        name = f"--{option}={path}"
        assert name in shipment.command.arguments
    naming = {
        name
        for spec in SPECS
        for options in (spec.options, *spec.shared, RunOptions)
        for name, text in field_docstrings(options).items()
        if re.search(r"\bFile|[Dd]irectory|\.json file", text)
    }
    assert naming - {"data", "validation", "out"} == set(shipping.PATHS) - {"model"}


def test_a_gguf_file_is_sent_as_it_is(tmp_path, monkeypatch):
    file = tmp_path / "mine.gguf"
    file.write_bytes(b"GGUF and more")
    monkeypatch.setattr("evaluations.core.location.unpack", lambda path: tmp_path / "unpacked")
    monkeypatch.chdir(tmp_path)
    model = shipping.absolute_model("mine.gguf")
    assert model_files(model) == {file: {"": file}}
    assert model_files(f"{model} [untrained]") == {file: {"": file}}


def test_no_gpu_is_asked_for_on_the_cpu():
    (part,) = plan(["demo:baseline"], Budgets("quick"), chosen_specs(["lm"]))
    assert part.resources.gpus > 0
    (part,) = plan(["demo:baseline"], Budgets("quick", {"device": "cpu"}), chosen_specs(["lm"]))
    assert part.resources.gpus == 0
