"""A study on a real Ray cluster of two nodes on this machine, one of which is killed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
import yaml

from evaluations.comparison.collection import report
from evaluations.core.record import read_records
from evaluations.tables import csv_text, markdown
from sat_interp.data.stories import stories
from tests.cluster import ray_cluster

TINY = {
    "n_layers": 1,
    "d_model": 8,
    "n_heads": 2,
    "d_mlp": 8,
    "n_ctx": 16,
    "tokenizer": "bpe:300",
    "steps": 12,
    "batch_size": 2,
    "validate_every": 0,
    "checkpoint_every": 4,
    "log_every": 4,
    "device": "cpu",
}
EVALUATION = ["--parts", "lm", "--preset", "quick", "--dtype", "float64", "--device", "cpu"]
BUDGET = ["--lm.activation-stories", "3", "--lm.resamples", "20"]


@pytest.fixture
def study(tmp_path):
    """A study of 12 models that lies, with its text, in a directory."""

    def make(name: str) -> dict[str, str]:
        home = tmp_path / name
        home.mkdir()
        for split, n in (("train", 60), ("validation", 6)):
            lines = [json.dumps({"text": text}) for text in islice(stories(split), n)]
            (home / f"{split}.jsonl").write_text("\n".join(lines))
        data = {split: str(home / f"{split}.jsonl") for split in ("train", "validation")}
        content = {
            "name": "tiny",
            "settings": {**TINY, "data": data["train"], "validation": data["validation"]},
            "variants": ["none", "local"],
            "k": [2],
            "seeds": [0, 1, 2],
            "controls": ["random", "frozen"],
            "out": str(home / "runs"),
        }
        (home / "study.yaml").write_text(yaml.safe_dump(content))
        return {"study": str(home / "study.yaml"), "out": str(home / "res"), "home": str(home)}

    return make


def environment(home: str) -> dict[str, str]:
    own = {"SAT_INTERP_CACHE": f"{home}/cache", "OMP_NUM_THREADS": "1", "SAT_INTERP_NATIVE": "0"}
    return {**os.environ, **own, "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture
def start():
    """Starts a command; it is killed at the end of the test if it still runs."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(module: str, home: str, *arguments: str) -> subprocess.Popen[bytes]:
        with open(f"{home}/printed.txt", "ab") as printed:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", module, *arguments],
                    stdout=printed,
                    stderr=printed,
                    env=environment(home),
                )
            )
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def battery(study: dict[str, str]) -> list[str]:
    """The module, the directory and the arguments that measure a study."""
    given = ["all", "--study", study["study"], *EVALUATION, *BUDGET, "--out", study["out"]]
    return ["evaluations.cli", study["home"], *given]


def wait(process: subprocess.Popen[bytes], home: str) -> None:
    with open(f"{home}/printed.txt", encoding="utf-8") as printed:
        assert process.wait(900) == 0, printed.read()[-3000:]


def wait_for(count, n: int) -> None:
    until = time.monotonic() + 900
    while count() < n:
        assert time.monotonic() < until, "nothing was finished in time"
        time.sleep(0.1)


def tables(out: str) -> dict[str, str]:
    made = report(out=out)
    return {
        table.name: f"{markdown(table)}\n{csv_text(table)}"
        for table in (*made.tables, *made.details)
    }


def figures(out: str) -> dict[str, dict[str, float | None]]:
    return {
        record.model["name"]: {one.name: one.value for one in record.metrics}
        for record in read_records(out)[0]
    }


@pytest.mark.slow
def test_a_study_on_two_nodes_of_which_one_is_killed_gives_the_tables_of_the_local_engine(
    study, start
):
    local, remote = study("local"), study("remote")
    train_here = start("sat_interp.cli", local["home"], "--study", local["study"])
    os.environ.update(SAT_INTERP_CACHE=f"{remote['home']}/nodes", SAT_INTERP_NATIVE="0")
    with ray_cluster(2) as nodes:
        engine = ["--engine", "ray", "--address", nodes.address]
        home = remote["home"]
        runs = os.path.join(home, "runs")
        train = ["sat_interp.cli", home, "--study", remote["study"], *engine]
        training = start(*train)
        wait_for(lambda: len(summaries(runs)), 2)
        nodes.kill(0)
        nodes.add()
        wait_for(lambda: len(summaries(runs)), 5)
        training.kill()  # the driver; it is started again
        training.wait()
        wait(start(*train), home)
        assert len(summaries(runs)) == 12
        wait(train_here, local["home"])
        measure_here = start(*battery(local))
        drivers = [start(*battery(remote), *engine) for _ in range(2)]
        wait_for(lambda: len(read_records(remote["out"])[0]), 2)
        wait_for(lambda: nodes.kill_a_worker() is not None, 1)
        for driver in drivers:
            wait(driver, home)
        wait(measure_here, local["home"])
    assert len(figures(local["out"])) == 12
    assert figures(remote["out"]) == figures(local["out"])
    assert tables(remote["out"]) == tables(local["out"])
    printed = Path(home, "printed.txt").read_text(encoding="utf-8")
    assert "to be repeated: lost: " in printed
    assert printed.count("12 of 12 done, 0 running") == 2
    assert len(re.findall(r"^lm .*: done in ", printed, re.MULTILINE)) == 12  # each by one driver


def summaries(runs: str) -> list[str]:
    if not os.path.isdir(runs):
        return []
    return [name for name in os.listdir(runs) if os.path.exists(f"{runs}/{name}/summary.json")]
