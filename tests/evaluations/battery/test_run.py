from __future__ import annotations

import dataclasses
import inspect
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from evaluations.battery.progress import duration, overview, summary
from evaluations.battery.run import (
    PARTS,
    Part,
    estimated_seconds,
    plan,
    raise_failures,
    run_beside,
    run_here,
    size_of,
)
from evaluations.commands import COMMANDS
from sat_interp._util.errors import UserError
from sat_interp.io.pretrained import save_pretrained

TWO = (
    Part("one", {"quick": {"stories": 3}}, {"quick": 10}),
    Part("two", {"quick": {}}, {"quick": 100}, after="one", needs_gates=True),
)


def test_every_part_is_a_command_that_knows_its_settings():
    for part in PARTS:
        known = inspect.signature(COMMANDS[part.name]).parameters
        for preset in ("quick", "demo", "paper"):
            assert set(part.settings[preset]) <= set(known), part.name
            assert part.seconds[preset] > 0
        assert part.after in {None, *(other.name for other in PARTS)}
    assert [part.name for part in PARTS] == ["lm", "gates", "acdc", "sae", "neurons", "n2g"]


def test_each_part_gets_the_options_it_knows_and_the_models_it_is_for(make_model, tmp_path):
    plain = str(save_pretrained(make_model(), tmp_path / "plain"))
    gated = str(save_pretrained(make_model("local"), tmp_path / "gated"))
    random = str(save_pretrained(make_model("local", gates="random"), tmp_path / "random"))
    commands = {"one": lambda models, stories, out: None, "two": lambda models, data: None}
    common = {"data": None, "out": "res", "tokenizer": "gpt2"}
    first, second = plan([plain, gated, random], "quick", common, commands, TWO)
    assert (first.models, first.settings) == ([plain, gated, random], {"stories": 3, "out": "res"})
    assert (second.models, second.settings) == ([gated], {})
    (alone,) = plan([plain], "quick", common, {"two": commands["two"]}, TWO)
    assert alone.state == "nothing to do"  # and the part without a command is left out


def test_the_first_model_is_also_measured_untrained_where_a_part_has_a_control():
    part = dataclasses.replace(TWO[0], controlled=("quick",))
    commands = {"one": lambda models: None}
    (job,) = plan(["demo:baseline", "demo:local-k4"], "quick", {}, commands, (part,))
    assert job.models == ["demo:baseline", "demo:local-k4", "demo:baseline [untrained]"]
    assert job.estimate == 30
    (job,) = plan([], "quick", {}, commands, (part,))
    assert job.state == "nothing to do"


def test_time_grows_with_the_model_and_is_shared_between_processes(tmp_path):
    size, builtin = size_of("demo:local-k4"), size_of("demo:baseline")
    assert (size.has_gates, builtin.has_gates) == (True, False)
    # 4 blocks of 12 d^2 multiplications and an unembedding of 1,730 x 64
    assert size.operations == 4 * 12 * 64**2 + 1730 * 64
    # 4 heads, one MLP a layer: sum of 12 (1 + 5l) + 5l + 5, and 21 into the output
    assert size.edges == sum(12 * (1 + 5 * l) + 5 * l + 5 for l in range(4)) + 21  # noqa: E741
    commands = {"one": lambda models: None, "two": lambda models: None}
    jobs = plan(["demo:baseline", "demo:local-k4"], "quick", {}, commands, TWO)
    assert [job.estimate for job in jobs] == [20, 100]
    assert estimated_seconds(jobs, 1) == 120
    assert estimated_seconds(jobs, 2) == 100  # the longest cannot be split
    assert not any(job.is_rough for job in jobs)
    (unknown, _) = plan(["somebody/gpt"], "quick", {}, commands, TWO)
    assert unknown.estimate is None
    assert estimated_seconds([unknown], 1) is None


def test_an_estimate_for_a_model_of_another_size_is_called_rough(tmp_path):
    config = {"n_layer": 8, "n_embd": 128, "n_head": 16, "vocab_size": 10_000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    part = Part("one", {"quick": {}, "paper": {}}, {"quick": 10, "paper": 10}, power=0.5,
                guessed=("paper",))  # fmt: skip
    commands = {"one": lambda models: None}
    (job,) = plan(["demo:baseline", str(tmp_path)], "quick", {}, commands, [part])
    factor = (12 * 8 * 128**2 + 10_000 * 128) / (4 * 12 * 64**2 + 1730 * 64)
    assert (job.estimate, job.is_rough) == (pytest.approx(10 + 10 * factor**0.5), True)
    (job,) = plan(["demo:baseline"], "paper", {}, commands, [part])
    assert (job.estimate, job.is_rough) == (10, True)  # nobody has measured it
    console = Console(width=100, file=io.StringIO())
    console.print(summary([job]))
    assert "10 s, rough" in console.file.getvalue()


def test_estimates_are_within_thrice_of_what_was_measured(tmp_path):
    """On real text: 8 layers of width 128; two models, the second with gates; busy cores."""
    config = {"n_layer": 8, "n_embd": 128, "n_head": 16, "vocab_size": 10_000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    measured = {"lm": (34, 195), "acdc": (78, 86), "neurons": (140, 176), "n2g": (1047, 1100)}
    for job in plan([str(tmp_path)], "demo", {}, COMMANDS):
        if job.name in measured:
            # n2g's demo preset explains half of the neurons that were measured
            estimate = (job.estimate or 0) * (2 if job.name == "n2g" else 1)
            low, high = measured[job.name]
            assert high / 3 < estimate < low * 3, job.name


def test_the_graph_of_the_papers_shape_has_as_many_edges_as_counted_there(tmp_path):
    config = {"model_type": "gpt2", "n_layer": 8, "n_embd": 128, "n_head": 16, "vocab_size": 9}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert size_of(str(tmp_path)).edges == 23_981


@pytest.mark.parametrize("content", ["[]", "{", '{"n_layer": "x"}', "{}"])
def test_a_size_that_cannot_be_read_is_unknown(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    assert size_of(str(tmp_path)).operations is None


def test_a_part_that_fails_stops_no_other(tmp_path):
    def fails(models):
        print("working")
        raise UserError("no text")

    def breaks(models):
        raise KeyError("a bug")

    def full(models):
        raise OSError(28, "No space left on device", "/x")

    ran = []
    parts = [Part(name, {"quick": {}}, {"quick": 1}) for name in ("a", "b", "c", "d")]
    commands = {"a": fails, "b": breaks, "c": full, "d": lambda models: ran.append(models)}
    jobs = plan(["demo:baseline"], "quick", {}, commands, parts)
    run_here(jobs, commands, tmp_path / "logs")
    assert [job.state for job in jobs] == ["failed", "failed", "failed", "done"]
    assert ran == [["demo:baseline"]]
    assert (tmp_path / "logs" / "a.log").read_text() == "working\n"
    with pytest.raises(UserError) as error:
        raise_failures(jobs)
    assert str(error.value) == (
        "3 of 4 parts failed: a: no text; b: internal error: KeyError: 'a bug'; "
        "c: No space left on device: /x"
    )


def test_a_battery_that_is_killed_goes_on_where_it_was(tmp_path):
    """Ten kills at every point there is: each model of each part is done once."""
    kills = iter([0, 1, 1, 2, 0, 3, 1, 0, 2, 4])
    left = [next(kills)]
    done: list[Path] = []

    def command(name):
        def run(models):
            for model in models:  # as the runner: a file a model, there or not
                record = tmp_path / f"{name}-{model[5:]}"
                if record.exists():
                    continue
                if left[0] == 0:
                    left[0] = next(kills, 99)
                    raise KeyboardInterrupt
                left[0] -= 1
                record.write_text("figures")
                done.append(record)

        return run

    parts = [Part(name, {"quick": {}}, {"quick": 1}) for name in ("a", "b", "c", "d", "e")]
    commands = {part.name: command(part.name) for part in parts}
    models = ["demo:baseline", "demo:local-k4", "demo:global-k4"]
    interrupted = 0
    while True:
        jobs = plan(models, "quick", {}, commands, parts)
        try:
            run_here(jobs, commands, tmp_path / "logs")
            break
        except KeyboardInterrupt:
            interrupted += 1
    assert interrupted == 10
    assert len(done) == len(set(done)) == 15
    assert all(job.state == "done" for job in jobs)


def test_parts_run_side_by_side_on_their_share_of_the_cores(tmp_path, monkeypatch):
    """Stubs in place of Python: they write what they were asked and which threads they may have."""
    stub = tmp_path / "stub"
    stub.write_text(
        "#!/bin/sh\n"
        f'echo "$OMP_NUM_THREADS $3" >> {tmp_path}/asked\n'
        'case "$3" in *bad*) echo "error: no text" >&2; exit 2;; *gone*) kill -9 $$;; esac\n'
    )
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    monkeypatch.setattr("evaluations.battery.run._cores", lambda: 4)
    names = ("bad", "gone", "well", "last")
    parts = [Part(name, {"quick": {"n": 1}}, {"quick": 1}) for name in names[:3]]
    parts.append(Part("last", {"quick": {}}, {"quick": 99}, after="well"))
    commands = {name: lambda models: None for name in names}
    jobs = plan(["demo:baseline"], "quick", {}, commands, parts)
    states = []
    run_beside(jobs, 2, tmp_path / "logs", lambda job: states.append((job.name, job.state)))
    assert {job.name: job.state for job in jobs} == {
        "bad": "failed", "gone": "failed", "well": "done", "last": "done",
    }  # fmt: skip
    assert jobs[0].reason == "no text"
    assert "signal 9" in jobs[1].reason
    lines = [line.split(" ", 1) for line in (tmp_path / "asked").read_text().splitlines()]
    assert {threads for threads, _ in lines} == {"2"}
    orders = [json.loads(order) for _, order in lines]
    assert sorted(order[0] for order in orders) == sorted(names)
    assert ["well", ["demo:baseline"], {"n": 1}, os.getpid()] in orders
    assert states.index(("well", "done")) < states.index(("last", "running"))


def test_no_process_of_the_battery_imports_from_the_working_directory(tmp_path, monkeypatch):
    for name in ("torch", "json", "evaluations"):
        (tmp_path / f"{name}.py").write_text(f"open('ran-{name}', 'w')\nraise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path)
    jobs = plan(["./nothing-here"], "quick", {}, {"lm": COMMANDS["lm"]})
    run_beside(jobs, 1, tmp_path / "logs")
    assert not list(tmp_path.glob("ran-*"))
    assert "no such directory" in jobs[0].reason


def test_a_process_of_the_battery_is_the_command(tmp_path):
    order = json.dumps(["curves", [str(tmp_path / "absent")], {"out": str(tmp_path)}, os.getpid()])
    code = "from evaluations.battery.run import child; child()"
    done = subprocess.run([sys.executable, "-c", code, order], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "log.jsonl" in done.stderr


def test_a_process_whose_parent_is_gone_before_it_began_ends(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    order = json.dumps(["lm", ["demo:baseline"], {"out": str(tmp_path)}, ended.pid])
    code = "from evaluations.battery.run import child; child()"
    done = subprocess.run([sys.executable, "-c", code, order], capture_output=True, text=True)
    assert done.returncode == 1
    assert not list(tmp_path.rglob("lm-*.json"))


def test_the_overview_is_quiet_where_there_is_no_terminal(capsys):
    jobs = plan(["demo:baseline"], "quick", {}, {"one": lambda models: None}, TWO)
    with overview(jobs) as update:
        jobs[0].state = "running"
        update(jobs[0])
        jobs[0].state = "done"
        update(jobs[0])
    assert capsys.readouterr().err.strip() == ""
    console = Console(width=100, file=io.StringIO())
    jobs[0].state, jobs[0].reason = "failed", "no text"
    console.print(summary(jobs))
    assert "failed: no text" in console.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.2, "3 s"), (125, "2 min"), (3 * 3600 + 1800, "3.5 h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
