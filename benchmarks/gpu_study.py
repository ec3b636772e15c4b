"""One command for a machine with an accelerator that is lent for minutes: ``make gpu-study``.

    python -m benchmarks.gpu_study --minutes 25 --out runs/gpu-study

In this order, each step under ten minutes and all of them within the budget:

1. the tests marked ``gpu``;
2. ``benchmarks.training`` at the paper's shape: ours, plain, and the floor of its own products;
3. the rate of a few training steps of each kind, from which the number of steps follows that fits
   into what is left, the same for all groups;
4. the core groups of the study (baseline, local k = 4, global k = 4, random k = 4), trained with
   the paper's weights of 1 and 1 on the built-in corpus, with IOI accuracy at every validation;
5. a page, README.md, and a figure.

Each step leaves a JSON file in OUT/steps. The same command goes on where it was interrupted: done
steps are skipped, and a model continues from its checkpoint. The seconds used are in OUT/used.json
and count against the budget; --minutes 50 gives 25 more. Where a command may take some minutes
only, --stop-after 9 ends this one and leaves the rest to the next. Without an accelerator the same
is done on the CPU, at a smaller scale.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

from benchmarks import gpu_study_page
from benchmarks.training import in_a_process, machine
from sat_interp._util.devices import resolve_device
from sat_interp._util.errors import UserError
from sat_interp._util.files import write_atomically

GROUPS: dict[str, dict[str, Any]] = {
    "baseline": {"variant": "none"},
    "local-k4": {"variant": "local", "k": 4},
    "global-k4": {"variant": "global", "k": 4},
    "random-k4": {"variant": "local", "k": 4, "gates": "random"},
}
RATED = ("baseline", "local-k4", "global-k4")
"""Groups whose rate is measured; random masks cost what learned ones do."""
LONGEST = 570.0
"""Seconds of a step."""
SHARES = {"tests": 0.15, "speed": 0.3, "rate": 0.2, "train": 1.0}
"""Largest shares of the budget by kind of step; training has what is left."""
MARGIN = 0.75
"""Share of the time for training that the number of steps is chosen for."""
LEAST = 5.0
"""Seconds below which no step is begun."""
FEWEST = 10
"""Steps between two validations below which nothing is trained."""
SHORT = 10.0
"""Minutes below which the CPU does everything at the tiny scale."""
HEARTBEAT = 5.0
"""Seconds between two notes of the time used, so that a command that is killed counts, too."""


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        vocabulary: of the benchmark, one of ``benchmarks.training.VOCABULARIES``.
        batches: of the benchmark.
        model: settings of sat-train over the paper's preset.
        rate_steps: steps of a rate.
        checks: validations of a training.
        stories: validation stories.
        prompts: of IOI.
        tests: files with tests marked ``gpu``, a step each.
    """

    vocabulary: str
    batches: tuple[int, ...]
    precision: str
    compile: bool
    seconds: float
    model: dict[str, Any]
    rate_steps: int
    checks: int
    stories: int
    prompts: int
    tests: tuple[str, ...] = (
        "tests/sat_interp/training/test_gpu.py",
        "tests/evaluations/test_gpu.py",
    )
    variants: tuple[str, ...] = ("none", "local", "global")


# With the preset's small initial weights attention takes long to distinguish names.
_INITIAL = {"initializer_range": 0.07, "embedding_range": 0.15}
_SMALL = {"n_layers": 2, "d_model": 32, "n_heads": 4, "d_mlp": 64, "n_ctx": 64}
SCALES = {
    "accelerator": Scale(
        "paper",
        (24, 256),
        "bf16",
        True,
        5.0,
        {**_INITIAL, "data": "demo:200000", "batch_size": 64, "learning_rate": 2e-3},
        rate_steps=40,
        checks=20,
        stories=200,
        prompts=200,
    ),
    "cpu": Scale(
        "paper",
        (1, 4),
        "float32",
        False,
        1.0,
        {**_INITIAL, "data": "demo:1000", "batch_size": 2, "learning_rate": 2e-3},
        rate_steps=3,
        checks=2,
        stories=4,
        prompts=20,
    ),
    "tiny": Scale(
        "compact",
        (1,),
        "float32",
        False,
        0.1,
        {**_INITIAL, **_SMALL, "data": "demo:600", "tokenizer": "bpe:1200", "batch_size": 4},
        rate_steps=4,
        checks=2,
        stories=3,
        prompts=10,
        tests=("tests/sat_interp/training/test_gpu.py",),
        variants=("none", "local"),
    ),
}


@dataclass
class Place:
    """The directory of a study on an accelerator, its budget and what is done.

    Attributes:
        budget: seconds in all.
        before: seconds used by earlier commands.
        steps: of every group; by default as many as fit.
        stop_after: seconds after which this command ends.
    """

    out: Path
    scale: Scale
    device: str
    budget: float
    before: float = 0.0
    steps: int | None = None
    stop_after: float = math.inf
    started: float = field(default_factory=time.perf_counter)

    def used(self) -> float:
        """Seconds used so far, by this command and earlier ones."""
        return self.before + time.perf_counter() - self.started

    def left(self) -> float:
        """Seconds left of the budget."""
        return self.budget - self.used()

    def left_here(self) -> float:
        """Seconds left for this command."""
        return min(self.left(), self.stop_after - (time.perf_counter() - self.started))

    def note(self) -> None:
        """Write down the seconds used."""
        used = {"seconds": round(self.used(), 1), "scale": self.scale_name}
        write_json(self.out / "used.json", used)

    @property
    def scale_name(self) -> str:
        """Name of the scale in ``SCALES``."""
        return next(name for name, one in SCALES.items() if one == self.scale)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Write down the seconds used every few seconds."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT):
                self.note()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.note()

    def done(self, name: str) -> dict[str, Any] | None:
        """What a step left, if it is done."""
        path = self.out / "steps" / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def phase(
        self, kind: str, steps: Mapping[str, Callable[[float], dict[str, Any]]]
    ) -> dict[str, dict[str, Any] | None]:
        """Do steps that share the time of their kind; each may take twice its part of the rest."""
        waiting = [name for name in steps if self.done(name) is None]
        end = time.perf_counter() + min(self.left_here(), SHARES[kind] * self.budget)
        found = {}
        for name, run in steps.items():
            rest = end - time.perf_counter()
            found[name] = self.step(name, min(rest, 2 * rest / max(1, len(waiting))), run)
            waiting = [one for one in waiting if one != name]
        return found

    def step(
        self, name: str, limit: float, run: Callable[[float], dict[str, Any]]
    ) -> dict[str, Any] | None:
        """Do a step within ``limit`` seconds and keep what it leaves; None if there is no time.

        What is ``unfinished`` is not kept: the next command tries it again.
        """
        if (before := self.done(name)) is not None:
            return before
        limit = min(limit, self.left_here(), LONGEST)
        if limit < LEAST:
            say(f"{name}: no time left")
            return None
        say(f"{name}: at most {limit:.0f} s")
        begun = time.perf_counter()
        found = run(limit)
        if "unfinished" in found:
            say(f"{name}: {found['unfinished']}; the same command goes on")
            return found
        found["step_seconds"] = round(time.perf_counter() - begun, 1)
        write_json(self.out / "steps" / f"{name}.json", found)
        return found


def study(place: Place) -> dict[str, Any]:
    """Do all steps that fit; return what is known, which is also in README.md."""
    scale = place.scale
    tests = place.phase(
        "tests", {f"tests-{Path(file).parts[1]}": partial(run_tests, file) for file in scale.tests}
    )
    cells = product(scale.batches, scale.variants, ("ours", "plain"))
    speed = place.phase(
        "speed",
        {
            f"speed-{variant}-{batch}-{what}": partial(
                one_cell, cell_settings(place, batch, variant, what)
            )
            for batch, variant, what in cells
        },
    )
    rates = place.phase(
        "rate", {f"rate-{group}": partial(measure_rate, place, group) for group in RATED}
    )
    trained: dict[str, Any] = {f"train-{group}": None for group in GROUPS}
    if (plan := planned(place, rates)) is not None:
        steps = {
            f"train-{group}": partial(train_group, place, group, plan["steps"]) for group in GROUPS
        }
        trained = place.phase("train", steps)
    return {
        "tests": all_tests(tests),
        "speed": speed,
        "rates": rates,
        "plan": plan,
        "trained": {name.removeprefix("train-"): one for name, one in trained.items()},
        "machine": machine(resolve_device(place.device)),
        "seconds": place.used(),
    }


def planned(place: Place, rates: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """The number of steps, decided until a group begins; None where rates are missing or few fit.

    Raises:
        UserError: groups have begun with another number of steps.
    """
    before = place.done("plan")
    has_begun = any((place.out / "runs" / f"{group}-s0").exists() for group in GROUPS)
    if before is not None and has_begun:
        if place.steps not in (None, before["steps"]):
            raise UserError(
                f"--steps {place.steps}: the models in {place.out} are trained for "
                f"{before['steps']} steps; name another --out"
            )
        return before
    known = {
        name.removeprefix("rate-"): rate
        for name, rate in rates.items()
        if rate and "unfinished" not in rate
    }
    if len(known) < len(RATED):
        return None
    left = place.left()
    plan = {"steps": place.steps or steps_that_fit(known, MARGIN * left), "seconds_left": left}
    if place.steps is None and plan["steps"] < FEWEST * place.scale.checks:
        say(f"only {plan['steps']} steps would fit: give more --minutes, or --steps")
        return None
    write_json(place.out / "steps" / "plan.json", plan)
    return plan


def run_tests(file: str, limit: float) -> dict[str, Any]:
    """The tests marked ``gpu`` of a file: how many passed, failed and were skipped, and why."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", f"--junit-xml={report}"]
        done = bounded([*command, file], limit)
        if report.is_file():
            return read_report(report)
        return {"unfinished": reason(done, limit)}


def all_tests(parts: Mapping[str, dict[str, Any] | None]) -> dict[str, Any] | None:
    """Counts of all files together; None while one is to be run, and why one did not end."""
    known = [part for part in parts.values() if part is not None]
    if len(known) < len(parts):
        return None
    if unfinished := [part for part in known if "unfinished" in part]:
        return unfinished[0]
    skipped = sum((Counter(part["skipped"]) for part in known), Counter[str]())
    return {
        "passed": sum(part["passed"] for part in known),
        "failures": [line for part in known for line in part["failures"]],
        "skipped": dict(skipped),
    }


def read_report(path: Path) -> dict[str, Any]:
    """Counts of a JUnit report, the names of failures, and the reasons of skips."""
    failures, reasons, passed = [], Counter[str](), 0
    for case in ElementTree.parse(path).iter("testcase"):
        outcome = {child.tag: child.get("message", "") for child in case}
        bad = [outcome[tag] for tag in ("failure", "error") if tag in outcome]
        if bad:
            failures.append(f"{case.get('name')}: {bad[0][:300]}")
        elif "skipped" in outcome:
            reasons[outcome["skipped"]] += 1
        else:
            passed += 1
    return {"passed": passed, "failures": failures, "skipped": dict(reasons)}


def cell_settings(place: Place, batch: int, variant: str, what: str) -> dict[str, Any]:
    """Settings of one cell of ``benchmarks.training``."""
    scale = place.scale
    return {
        "shape": scale.vocabulary,
        "precision": scale.precision,
        "batch": batch,
        "variant": variant,
        "threads": 0 if place.device == "cpu" else 1,
        "seconds": scale.seconds,
        "device": place.device,
        "compile": scale.compile,
        "what": what,
    }


def one_cell(settings: dict[str, Any], limit: float) -> dict[str, Any]:
    """A cell's figures beside its settings."""
    return {**settings, **in_a_process(settings, limit)}


def config_of(place: Place, group: str, steps: int, name: str) -> Any:
    """The training of a group: the paper's shape and loss weights."""
    from sat_interp import TrainConfig

    scale, every = place.scale, max(1, steps // place.scale.checks)
    settings = {
        "validation": str(validation_file(place)),
        "steps": steps,
        "warmup_steps": steps // 20,
        "precision": scale.precision,
        "compile": scale.compile,
        "validate_every": every,
        "checkpoint_every": every,
        "log_every": max(1, every // 5),
        "stored_precision": "float16",
        "device": place.device,
        "resume": True,
        **scale.model,
        **GROUPS[group],
        "out": str(place.out / "runs" / name),
    }
    return TrainConfig.from_preset("tinystories-3m", **settings)


def validation_file(place: Place) -> Path:
    """Some validation stories of the built-in corpus, in a file."""
    from sat_interp.data.stories import stories

    path = place.out / "validation.jsonl"
    if not path.is_file():
        some = islice(stories("validation"), place.scale.stories)
        write_atomically(path, "".join(json.dumps({"text": text}) + "\n" for text in some))
    return path


def train_here(place: Place, group: str, steps: int, name: str) -> None:
    """Train a group in this process, with IOI accuracy at every validation."""
    from evaluations.tasks.pairs import competence
    from evaluations.tasks.registry import make_task
    from sat_interp import train

    config = config_of(place, group, steps, name)
    prompts = None

    def watch(model: Any) -> dict[str, float]:
        nonlocal prompts
        if prompts is None:
            prompts = make_task("ioi", model.tokenizer, place.scale.prompts, 0)
        found = competence(model, prompts)
        return {
            "ioi_accuracy": found.accuracy,
            "ioi_low": found.low,
            "ioi_high": found.high,
            "ioi_n": found.n,
        }

    train(config, watch)


def in_a_training_process(
    place: Place, group: str, steps: int, name: str, limit: float
) -> subprocess.CompletedProcess[str] | None:
    """:func:`train_here` in a process of its own; None where it was stopped by ``limit``."""
    own = ["--train", json.dumps([group, steps, name]), "--out", str(place.out)]
    command = [sys.executable, "-m", "benchmarks.gpu_study", *own, "--device", place.device]
    of_this = ["--scale", place.scale_name, "--parent", str(os.getpid())]
    return bounded([*command, *of_this], limit)


def end_with(parent: int) -> None:
    """End this process when its parent has ended: left behind, it would hold the run's lock."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def measure_rate(place: Place, group: str, limit: float) -> dict[str, Any]:
    """Seconds of a step, and of all else: start, data, compilation, all validations.

    There are as many validations as in a whole training. A rate is measured in one piece: what an
    earlier command left unfinished is removed.
    """
    steps, name = place.scale.rate_steps, f"rate-{group}"
    shutil.rmtree(place.out / "runs" / name, ignore_errors=True)
    begun = time.perf_counter()
    done = in_a_training_process(place, group, steps, name, limit)
    whole = time.perf_counter() - begun
    if done is None or done.returncode:
        return {"unfinished": reason(done, limit)}
    lines = log_lines(place.out / "runs" / name)
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    tokens = next(line["tokens"] / line["step"] for line in lines if "tokens" in line)
    seconds = tokens / sorted(speeds)[len(speeds) // 2]
    return {
        "seconds_per_step": seconds,
        "tokens_per_step": tokens,
        "other_seconds": max(0.0, whole - steps * seconds),
    }


def steps_that_fit(rates: Mapping[str, Mapping[str, Any]], seconds: float) -> int:
    """Steps of every group such that all of them together take ``seconds``; 0 where none fit."""
    own = [rates.get(group, rates["local-k4"]) for group in GROUPS]
    fixed = sum(rate["other_seconds"] for rate in own)
    each = sum(rate["seconds_per_step"] for rate in own)
    return max(0, math.floor((seconds - fixed) / each))


def train_group(place: Place, group: str, steps: int, limit: float) -> dict[str, Any]:
    """Train a group to the planned number of steps; its curve and what it reached."""
    name = f"{group}-s0"
    done = in_a_training_process(place, group, steps, name, limit)
    if done is None or done.returncode:
        return {"unfinished": reason(done, limit)}
    run = place.out / "runs" / name
    summary = json.loads((run / "summary.json").read_text())
    lines = log_lines(run)
    tokens = summary["tokens"] / summary["steps"]
    curve = [
        {**line, "tokens": int(line["step"] * tokens)} for line in lines if "ioi_accuracy" in line
    ]
    kept = ("steps", "tokens", "seconds", "final", "config")
    return {**{name: summary[name] for name in kept}, "curve": curve}


def log_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def bounded(command: Sequence[str], limit: float) -> subprocess.CompletedProcess[str] | None:
    """A command's end; None where it took longer than ``limit`` seconds and was stopped."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return None


def reason(done: subprocess.CompletedProcess[str] | None, limit: float) -> str:
    """Why a command gave no result."""
    if done is None:
        return f"not finished in {limit:.0f} s"
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return (lines or [f"ended with code {done.returncode}"])[-1][:300]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def say(line: str) -> None:
    print(line, flush=True)


def scale_for(device: str, minutes: float) -> str:
    """The name of the scale for a device: on the CPU the tiny one where there are few minutes."""
    if device != "cpu":
        return "accelerator"
    return "cpu" if minutes >= SHORT else "tiny"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=25.0, help="budget, over all commands")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-study"))
    parser.add_argument("--device", default="auto", help="cpu, or auto: the accelerator")
    parser.add_argument("--scale", choices=SCALES, help="by default that of the device")
    parser.add_argument("--steps", type=int, help="of every group; by default as many as fit")
    parser.add_argument("--stop-after", type=float, default=math.inf, help="minutes, this command")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, default=os.getppid(), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    try:
        device = resolve_device(options.device)
        used = options.out / "used.json"
        before = json.loads(used.read_text()) if used.is_file() else {"seconds": 0.0}
        scale = options.scale or before.get("scale") or scale_for(device.type, options.minutes)
        if before.get("scale", scale) != scale:
            raise UserError(f"--scale {scale}: {options.out} is of scale {before['scale']}")
        place = Place(
            options.out,
            SCALES[scale],
            str(device),
            60 * options.minutes,
            before["seconds"],
            options.steps,
            60 * options.stop_after,
        )
        if options.train:
            threading.Thread(target=end_with, args=[options.parent], daemon=True).start()
            train_here(place, *json.loads(options.train))
            return 0
        say(f"{device}, {place.left() / 60:.1f} of {options.minutes:g} minutes left")
        with place.noting():
            found = study(place)
        for path in gpu_study_page.write(found, options.out):
            say(str(path))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
