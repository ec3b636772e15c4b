from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sat_interp._util.errors import UserError
from sat_interp.training import loop, state
from sat_interp.training.config import TrainConfig
from sat_interp.training.directory import RunDirectory
from sat_interp.training.facts import check_facts
from sat_interp.training.train import train

from .children import crash_child, start, train_child

Tiny = Callable[..., TrainConfig]
TIMES = ("seconds", "tokens_per_second")


def outcome(out: str | Path) -> dict[str, Any]:
    """All a run leaves that does not tell the time."""
    out = Path(out)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    summary = json.loads((out / "summary.json").read_text())
    for line in [*log, summary]:
        for name in TIMES:
            line.pop(name, None)
    for name in ("out", "resume"):
        summary["config"].pop(name)
    names = (
        "model/model.safetensors",
        "best/model.safetensors",
        "checkpoints/step-00000040/tensors.safetensors",
    )
    files = {name: (out / name).read_bytes() for name in names}
    return {"log": log, "summary": summary, **files}


def resumed(config: TrainConfig) -> TrainConfig:
    return dataclasses.replace(config, resume=True)


@pytest.fixture
def forty(tiny: Tiny) -> Tiny:
    # random gates: the generator's state matters too; 7 and 5 never fall on the same step till 35
    ramp = {"ablated_weight": "0.1@0.3:1.0@0.8"}
    return lambda **changes: tiny(
        **{
            "variant": "local",
            "gates": "dropout",
            "steps": 40,
            "learning_rate": 1e-2,
            **ramp,
            **changes,
        }
    )


def test_killed_at_random_moments_it_ends_in_the_same_bits(
    forty: Tiny, tmp_path: Path, text_files: dict[str, str]
) -> None:
    environment = {"SAT_INTERP_CACHE": text_files["cache"]}
    alone, killed = forty(out=str(tmp_path / "alone")), forty(out=str(tmp_path / "killed"))
    child = start(train_child, alone.to_dict(), environment)
    child.join(120)
    assert child.exitcode == 0
    rng = random.Random(0)
    log = Path(killed.out) / "log.jsonl"
    kills = 0
    for lines in (1, 3, 5, 7, 9):  # past these many lines of the log, and a little later
        child = start(train_child, resumed(killed).to_dict(), environment)
        while child.is_alive() and not (
            log.exists() and len(log.read_bytes().splitlines()) > lines
        ):
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        if child.is_alive():
            os.kill(child.pid or 0, signal.SIGKILL)
            kills += 1
        child.join(120)
    child = start(train_child, resumed(killed).to_dict(), environment)
    child.join(120)
    assert child.exitcode == 0
    assert kills >= 3
    assert outcome(killed.out) == outcome(alone.out)


def test_killed_between_any_two_renames_it_ends_in_the_same_bits(
    forty: Tiny, tmp_path: Path, text_files: dict[str, str]
) -> None:
    environment = {"SAT_INTERP_CACHE": text_files["cache"]}
    alone = forty(out=str(tmp_path / "alone"))
    train(alone)
    expected = outcome(alone.out)
    for at in (1, 2, 4, 5, 8, 12):  # config, tokenizer, best, checkpoints, best replaced, ...
        config = forty(out=str(tmp_path / f"crash-{at}"), resume=True)
        child = start(crash_child, config.to_dict(), environment, at)
        child.join(120)
        assert child.exitcode == 9, at
        train(config)
        assert outcome(config.out) == expected, at
        assert not list(Path(config.out).rglob(".*.tmp"))
        assert not list(Path(config.out).rglob(".*.old"))


def interrupted(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, step: int = 30) -> None:
    """Train until just before ``step`` and stop as if the power went."""
    from sat_interp.training.trainer import Trainer

    real = Trainer.advance

    def advance(self: Trainer) -> None:
        if self.step == step:
            raise KeyboardInterrupt
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", advance)
        with pytest.raises(KeyboardInterrupt):
            train(config)


def test_a_truncated_checkpoint_is_named_and_the_one_before_is_used(
    forty: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    config = forty()
    interrupted(config, monkeypatch)
    newest = Path(config.out) / "checkpoints" / "step-00000028"
    damage_checkpoint(newest, "truncated")
    train(resumed(config))
    assert f"checkpoint {newest} is damaged" in caplog.text
    alone = forty(out=str(tmp_path / "alone"))
    train(alone)
    assert outcome(config.out) == outcome(alone.out)


@pytest.mark.parametrize("damage", ["truncated", "altered", "no state", "torn state", "empty"])
def test_every_damage_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    for step in (1, 2, 3):
        state.save_state(tmp_path, step, {"w": torch.full((40,), float(step))}, {"fact": step})
    assert [path.name for path in state.checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    damage_checkpoint(tmp_path / "step-00000003", damage)
    tensors, facts = state.load_latest(tmp_path) or ({}, {})
    assert (facts["step"], facts["fact"]) == (2, 2)
    assert tensors["w"].tolist() == [2.0] * 40
    assert "step-00000003 is damaged" in caplog.text
    damage_checkpoint(tmp_path / "step-00000002", damage)
    with pytest.raises(UserError, match="no checkpoint in .* is valid"):
        state.load_latest(tmp_path)


def damage_checkpoint(path: Path, damage: str) -> None:
    tensors, facts = path / "tensors.safetensors", path / "state.json"
    if damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif damage == "altered":
        content = bytearray(tensors.read_bytes())
        content[-50] ^= 1
        tensors.write_bytes(content)
    elif damage == "no state":
        facts.unlink()
    elif damage == "torn state":
        facts.write_text(facts.read_text()[:40])
    else:
        tensors.unlink()
        facts.unlink()


def test_resume_on_an_empty_directory_starts_and_on_a_finished_run_returns(
    tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny(steps=5, resume=True)
    Path(config.out).mkdir()
    first = train(config)
    before = {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("*.*")}
    with caplog.at_level("INFO", "sat_interp"):
        again = train(config)
    assert "has already finished" in caplog.text
    assert again.summary == first.summary
    assert all(
        (a == b).all()
        for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True)
    )
    after = {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("*.*")}
    assert {p: t for p, t in after.items() if p.name != ".lock"} == {
        p: t for p, t in before.items() if p.name != ".lock"
    }


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed (0 there, 1 here)"),
        ({"learning_rate": 0.1}, "learning_rate"),
        ({"variant": "none"}, "variant"),
        ({"batch_size": 8, "seed": 1}, "batch_size"),
    ],
)
def test_other_settings_are_refused_by_the_first_that_differs(
    forty: Tiny, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], named: str
) -> None:
    config = forty()
    interrupted(config, monkeypatch, step=8)
    with pytest.raises(UserError, match="other settings, first") as caught:
        train(dataclasses.replace(config, resume=True, **change))
    assert named in str(caught.value)


def test_what_stopped_before_a_result_does_not_block_the_directory(
    forty: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no such file"):
        train(forty(data=str(tmp_path / "nope.jsonl")))
    interrupted(forty(seed=1, tokenizer="bpe:280"), monkeypatch, step=1)
    train(forty())
    alone = forty(out=str(tmp_path / "alone"))
    train(alone)
    assert outcome(forty().out) == outcome(alone.out)
    config = json.loads((Path(forty().out) / "config.json").read_text())["config"]
    assert (config["seed"], config["tokenizer"]) == (0, "bpe:300")


def test_a_run_is_resumed_from_any_directory(
    tiny: Tiny, text_files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(text_files["train"]).parent)
    train(tiny(data="train.jsonl", validation="validation.jsonl", steps=2))
    file = Path(tiny().out) / "config.json"
    written = json.loads(file.read_text())
    assert written["config"]["data"] == written["settings"]["data"] == text_files["train"]
    assert written["config"]["validation"] == text_files["validation"]
    assert json.loads((Path(tiny().out) / "model" / "cfg.json").read_text())["training"][
        "data"
    ] == ("train.jsonl")
    written["settings"]["data"] = "train.jsonl"  # as runs had it before
    file.write_text(json.dumps(written))
    train(tiny(data="train.jsonl", validation="validation.jsonl", steps=2, resume=True))
    monkeypatch.chdir(tmp_path)
    written["settings"]["data"] = text_files["train"]
    file.write_text(json.dumps(written))
    train(tiny(steps=2, resume=True))


def test_a_search_with_a_trial_that_got_somewhere_is_a_run(forty: Tiny) -> None:
    config = forty(match_perplexity=50.0)
    trial = Path(config.out) / "trials" / "steps-2"
    with RunDirectory(config.out).claim(config, 1):
        trial.mkdir(parents=True)
    with RunDirectory(config.out).claim(config, 1):  # nothing came of it yet
        (trial / "summary.json").write_text("{}")
    with (
        pytest.raises(UserError, match="already holds this run"),
        RunDirectory(config.out).claim(config, 1),
    ):
        pass


def test_a_config_json_of_somebody_else_is_not_written_over(tiny: Tiny) -> None:
    config = tiny()
    Path(config.out).mkdir()
    file = Path(config.out) / "config.json"
    file.write_text('{"model_type": "gpt_neo"}')
    with (
        pytest.raises(UserError, match="not empty and does not hold a run"),
        RunDirectory(config.out).claim(config, 1),
    ):
        pass
    assert file.read_text() == '{"model_type": "gpt_neo"}'


def test_a_checkpoint_that_stepped_aside_comes_back(
    forty: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = forty()
    interrupted(config, monkeypatch)
    path = Path(config.out) / "checkpoints"
    for name in ("step-00000021", "step-00000028"):
        aside = path / f".{name}.abc.old"
        aside.mkdir()
        os.replace(path / name, aside / name)
    with RunDirectory(config.out).claim(resumed(config), 1):
        names = sorted(found.name for found in path.iterdir())
    assert names == ["step-00000021", "step-00000028"]


def test_a_run_is_not_overwritten_without_resume(forty: Tiny) -> None:
    config = forty(steps=5)
    train(config)
    with pytest.raises(UserError, match="already holds this run: pass --resume"):
        train(config)


def test_changed_data_is_refused(
    forty: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text_files: dict[str, str]
) -> None:
    data = tmp_path / "data.jsonl"
    lines = Path(text_files["train"]).read_text().splitlines()
    data.write_text("\n".join(lines))
    config = forty(data=str(data))
    interrupted(config, monkeypatch)
    data.write_text("\n".join(lines[:-5]))
    with pytest.raises(UserError, match="the training data changed since"):
        train(resumed(config))


def test_changed_data_of_a_finished_run_is_refused(
    tiny: Tiny, tmp_path: Path, text_files: dict[str, str]
) -> None:
    data = tmp_path / "data.jsonl"
    lines = Path(text_files["train"]).read_text().splitlines()
    data.write_text("\n".join(lines))
    config = tiny(data=str(data), steps=3)
    finished = train(config)
    assert train(resumed(config)).summary == finished.summary
    data.write_text("\n".join(lines[5:]))
    with pytest.raises(UserError, match="the training data changed since"):
        train(resumed(config))
    summary = Path(str(config.out)) / "summary.json"
    content = json.loads(summary.read_text())
    del content["inputs"]  # as of a run that finished before summaries held them
    summary.write_text(json.dumps(content))
    with pytest.raises(UserError, match="the training data changed since"):
        train(resumed(config))
    data.unlink()
    with pytest.raises(UserError, match="no such file"):
        train(resumed(config))


def test_a_checkpoint_of_another_model_is_refused(
    forty: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wide, narrow = forty(out=str(tmp_path / "a")), forty(out=str(tmp_path / "b"), d_mlp=20)
    interrupted(wide, monkeypatch)
    interrupted(narrow, monkeypatch)
    other = Path(narrow.out) / "checkpoints"
    other.rename(other.with_name("mine"))
    (Path(wide.out) / "checkpoints").rename(other)
    with pytest.raises(UserError, match="the checkpoint is another model's: .*W_in is"):
        train(resumed(narrow))


def test_two_processes_cannot_train_in_one_directory(forty: Tiny) -> None:
    from filelock import FileLock

    config = forty()
    Path(config.out).mkdir()
    with (
        FileLock(Path(config.out) / ".lock"),
        pytest.raises(UserError, match="another process is training"),
    ):
        train(config)


def test_a_full_disk_keeps_what_was_checkpointed(
    forty: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = state.save_file
    count = iter(range(100))

    def full(tensors: Any, file: Path) -> None:
        real(tensors, file)
        if next(count) == 2:
            raise state.SafetensorError(
                "Error while serializing: I/O error: Os { code: 28, kind: StorageFull }"
            )

    config = forty()
    with monkeypatch.context() as patch:
        patch.setattr(state, "save_file", full)
        with pytest.raises(UserError, match="No space left on device; the last checkpoint is .*14"):
            train(config)
    names = sorted(path.name for path in (Path(config.out) / "checkpoints").iterdir())
    assert names == ["step-00000007", "step-00000014"]  # and no temporary beside them
    train(resumed(config))
    alone = forty(out=str(tmp_path / "alone"))
    train(alone)
    assert outcome(config.out) == outcome(alone.out)


def test_a_file_size_limit_is_met_like_a_full_disk(
    forty: Tiny, text_files: dict[str, str], tmp_path: Path
) -> None:
    config = forty()
    said = tmp_path / "said"
    environment = {"SAT_INTERP_CACHE": text_files["cache"]}
    child = start(limited_child, config.to_dict(), environment, str(said))
    child.join(120)
    assert child.exitcode == 2
    line = said.read_text()
    assert "File too large" in line
    assert "no checkpoint has been written yet" in line
    assert not list((Path(config.out) / "checkpoints").glob("*"))


def limited_child(settings: dict[str, Any], environment: dict[str, str], said: str) -> None:
    import resource
    import sys

    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        train_child(settings, environment)
    except UserError as error:
        Path(said).write_text(str(error))
        sys.exit(2)


DEEP = "[" * 20_000 + "]" * 20_000
FACTS = {
    "step": 3,
    "seconds": 1.0,
    "log_bytes": 10,
    "last": {"step": 2, "validation_clean": 1.0},
    "best": {"step": 2, "validation_clean": 1.0, "validation_ablated": 2},
    "inputs": {"data": "ab"},
}
NEVER: list[Any] = [None, True, "x", [1], math.nan, math.inf]  # neither a number nor a count
WRONG: dict[str, list[Any]] = {
    "seconds": [*NEVER, {}, -1],
    "log_bytes": [*NEVER, {}, -1, 1.5, 2**70],
    "last": [*NEVER, 1],
    "best": [*NEVER, 1],
    "inputs": [*NEVER, 1, {"data": 1}, {"data": None}],
    "best.step": [*NEVER, {}, -1, 1.5],
    "best.validation_clean": [*NEVER, {}, 10**400],
    "last.validation_ablated": [*NEVER, {}],
}


@pytest.mark.parametrize("field", WRONG)
def test_facts_of_every_wrong_kind_are_named(field: str) -> None:
    check_facts(FACTS)
    name, _, part = field.partition(".")
    for value in WRONG[field]:
        whole = {**FACTS[name], part: value} if part else value
        with pytest.raises(ValueError, match=rf"^{part or name} is ") as caught:
            check_facts({**FACTS, name: whole})
        assert "\n" not in str(caught.value)
    if not part:
        with pytest.raises(ValueError, match=f"^{name} is missing$"):
            check_facts({key: value for key, value in FACTS.items() if key != name})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"3",
        b"null",
        b"{}",
        b"\xff\xfe{",
        DEEP.encode(),
        b'{"step": "2"}',
        b'{"step": 2}',
        b'{"step": true, "tensors_sha256": "a"}',
        b'{"step": 3}',
        b'{"step": 1e400}',
        b'{"step": 2, "tensors_sha256": ["a"]}',
        json.dumps("x").encode("utf-16"),
    ],
)
def test_a_state_file_of_any_content_is_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    for step in (1, 2):
        state.save_state(tmp_path, step, {"w": torch.full((4,), float(step))}, {})
    (tmp_path / "step-00000002" / "state.json").write_bytes(content)
    tensors, facts = state.load_latest(tmp_path) or ({}, {})
    assert facts["step"] == 1
    assert "step-00000002 is damaged" in caplog.text
    assert all("\n" not in record.message for record in caplog.records)


@pytest.mark.parametrize("file", ["state.json", "tensors.safetensors"])
def test_a_pipe_in_a_checkpoint_is_damage(tmp_path: Path, file: str) -> None:
    for step in (1, 2):
        state.save_state(tmp_path, step, {"w": torch.full((4,), float(step))}, {})
    (tmp_path / "step-00000002" / file).unlink()
    os.mkfifo(tmp_path / "step-00000002" / file)
    assert (state.load_latest(tmp_path) or ({}, {}))[1]["step"] == 1


def rewrite(checkpoint: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change a checkpoint's tensors and facts, with a hash that fits."""
    tensors = load_file(checkpoint / "tensors.safetensors")
    facts = json.loads((checkpoint / "state.json").read_text())
    change(tensors, facts)
    save_file(tensors, checkpoint / "tensors.safetensors")
    facts["tensors_sha256"] = state._sha256(checkpoint / "tensors.safetensors")
    (checkpoint / "state.json").write_text(json.dumps(facts))


def taken_up(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> int:
    """The step a resumed run goes on from; it goes no further."""
    steps = []

    def finish(run: loop._TrainingRun) -> None:
        steps.append(run.trainer.step)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._TrainingRun, "finish", finish)
        with pytest.raises(KeyboardInterrupt):
            train(resumed(config))
    return steps[0]


ALTERATIONS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "a weight of another shape": lambda t, f: t.update({"model.embed.W_E": torch.zeros(3, 3)}),
    "a weight of integers": lambda t, f: t.update(
        {"model.embed.W_E": t["model.embed.W_E"].to(torch.int64)}
    ),
    "no weight": lambda t, f: t.pop("model.embed.W_E"),
    "a tensor nobody knows": lambda t, f: t.update({"optimizer.exp_avg.nobody": torch.zeros(2)}),
    "moments of another shape": lambda t, f: t.update(
        {"optimizer.exp_avg.embed.W_E": torch.zeros(2, 2)}
    ),
    "half the moments": lambda t, f: t.pop("optimizer.exp_avg_sq.embed.W_E"),
    "a step that is a vector": lambda t, f: t.update({"optimizer.step.embed.W_E": torch.zeros(2)}),
    "complex moments": lambda t, f: t.update(
        {"optimizer.exp_avg.embed.W_E": t["optimizer.exp_avg.embed.W_E"].to(torch.complex64)}
    ),
    "no history": lambda t, f: t.pop("history"),
    "a history of another shape": lambda t, f: t.update({"history": torch.zeros(1, 1)}),
    "a step that is text": lambda t, f: f.update({"step": "28"}),
    "no inputs": lambda t, f: f.pop("inputs"),
    "a best that is a list": lambda t, f: f.update({"best": []}),
    "negative bytes": lambda t, f: f.update({"log_bytes": -1}),
}


def test_a_checkpoint_altered_in_any_way_is_named_and_the_one_before_is_used(
    forty: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    config, copy = forty(), tmp_path / "whole"
    interrupted(config, monkeypatch)
    alone = forty(out=str(tmp_path / "alone"))
    train(alone)
    shutil.copytree(config.out, copy)
    for name, change in ALTERATIONS.items():
        shutil.rmtree(config.out)
        shutil.copytree(copy, config.out)
        rewrite(Path(config.out) / "checkpoints" / "step-00000028", change)
        caplog.clear()
        assert taken_up(config, monkeypatch) == 21, name
        assert "step-00000028 is damaged" in caplog.text, name
    train(resumed(config))
    assert outcome(config.out) == outcome(alone.out)


def test_a_damaged_log_costs_a_checkpoint_or_its_lines_and_never_the_run(
    forty: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    config = forty()
    interrupted(config, monkeypatch)
    alone, log = forty(out=str(tmp_path / "alone")), Path(config.out) / "log.jsonl"
    train(alone)
    sound = log.read_bytes().splitlines(keepends=True)
    (at,) = (n for n, line in enumerate(sound) if b'"step": 25,' in line)  # after the step 21
    log.write_bytes(b"".join(sound).replace(sound[at], b"\xff\xfe" + sound[at][2:]))
    assert taken_up(config, monkeypatch) == 21
    assert "log.jsonl has 1 damaged lines" in caplog.text
    log.write_bytes(b"\xff\xfe" + b"".join(sound)[2:])  # damaged from its beginning
    train(resumed(config))
    assert "1 damaged lines are left out" in caplog.text
    assert (Path(config.out) / "model" / "model.safetensors").read_bytes() == (
        Path(alone.out) / "model" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("content", ["[]", "{}", "{", "null", '{"final": 3}', DEEP])
def test_a_damaged_summary_is_written_anew(
    tiny: Tiny, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    config = tiny(steps=5)
    first = train(config).summary
    (Path(config.out) / "summary.json").write_text(content)
    again = train(resumed(config)).summary
    assert "summary.json is damaged" in caplog.text
    assert (again["final"], again["inputs"]) == (first["final"], first["inputs"])
    assert json.loads((Path(config.out) / "summary.json").read_text()) == again


@pytest.mark.parametrize("name", ["config.json", "log.jsonl", "summary.json"])
def test_a_pipe_in_a_runs_directory_is_refused(tiny: Tiny, name: str) -> None:
    config = tiny(steps=5)
    train(config)
    (Path(config.out) / name).unlink()
    os.mkfifo(Path(config.out) / name)
    with pytest.raises(UserError, match=f"{name} is not a file"):
        train(resumed(config))
