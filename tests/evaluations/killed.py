"""``sat-eval all``, killed at random moments and resumed, against the same left in peace.

By hand, with the built-in models, text and all parts (ten minutes of a free core or two)::

    python -m tests.evaluations.killed --kills 10 --jobs 1
    python -m tests.evaluations.killed --kills 10 --jobs 2 --directory /tmp/killed
    python -m tests.evaluations.killed --kills 9 --engine ray   on two nodes (see killed_ray.py)

Budgets are tiny, the command is the real one, in a process group of its own; it gets SIGKILL, and
so does its group, or, every other time, it alone, whose children must then end by themselves. Each
side has a cache of its own, so that neither profits by what the other left in it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluations.comparison.collection import report
from evaluations.core.record import read_records
from evaluations.tables import csv_text, markdown

TINY: dict[str, dict[str, Any]] = {
    "lm": {"stories": 60, "activation_stories": 20, "resamples": 100},
    "gates": {
        "stories": 40,
        "resamples": 100,
        "probe_stories": 20,
        "probe_classes": 32,
        "intervention_stories": 5,
    },
    "acdc": {"prompts": 10, "random_circuits": 2, "bootstrap": 1},
    "circuits": {
        "prompts": 10,
        "methods": "eap-ig",
        "ablations": "cf",
        "points": 3,
        "random_circuits": 1,
        "restorations": 2,
        "ceiling_prompts": 50,
        "resamples": 100,
    },
    "sae": {"tokens": 20_000, "stories": 40, "resamples": 100},
    "neurons": {"stories": 60, "sample": 10, "resamples": 100},
    "n2g": {"stories": 60, "neurons_per_layer": 3},
    "trace": {"n_facts": 30, "windows": "1", "draws": 1, "evaluations": 4, "resamples": 100},
    "lens": {
        "fit_windows": 20,
        "held_windows": 10,
        "tuned_steps": 5,
        "evaluations": 10,
        "edit_prompts": 5,
        "directions": 2,
        "resamples": 100,
    },
}
"""Budgets of seconds."""
POLL = 0.02
GONE = 20.0
"""Seconds within which a process whose parent was killed must end."""


@dataclass(frozen=True)
class Moment:
    """When to kill: so long after a part began, or as soon as it has ended, if that is sooner."""

    part: str
    after: float


@dataclass
class Side:
    """A directory of results with a cache of its own, and how long each part took."""

    directory: Path
    arguments: Sequence[str]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.directory / "results"

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        """The command, started in a session of its own."""
        command = [sys.executable, "-m", "evaluations.cli", "all", *self.arguments, *more]
        command += [*tiny_options(), "--out", str(self.out)]
        self.directory.mkdir(parents=True, exist_ok=True)
        with open(self.directory / "printed.txt", "ab") as printed:
            return subprocess.Popen(
                command,
                stdout=printed,
                stderr=printed,
                env={**os.environ, **self.own_environment()},
                start_new_session=True,
            )

    def run(self, *more: str, kill: Moment | None = None, alone: bool = False) -> int:
        """The command, to its end or to its killing; returns its exit code.

        Args:
            kill: when to kill it; never by default.
            alone: kill the process itself, not its group.
        """
        started, seen = time.time(), dict[str, float]()
        child = self.start(*more)
        try:
            while child.poll() is None:
                seen |= {part: time.time() for part in self._begun(started) - seen.keys()}
                if kill is not None and _is_due(kill, seen):
                    os.kill(child.pid, signal.SIGKILL) if alone else _kill_group(child.pid)
                    break
                time.sleep(POLL)
            code = child.wait()
            if alone:
                _wait_for_end(child.pid)
        finally:
            _kill_group(child.pid)
        begins = [*sorted(seen.items(), key=lambda one: one[1]), ("", time.time())]
        pairs = zip(begins, begins[1:], strict=False)
        self.seconds = {part: end - begin for (part, begin), (_, end) in pairs}
        return code

    def leftovers(self) -> list[str]:
        """Temporary files and directories, in the results and in the cache.

        Of a cluster's jobs in the cache, the whole directory is removed a day later.
        """
        return [
            str(path.relative_to(self.directory))
            for path in sorted(self.directory.rglob(".*"))
            if re.search(r"\.(tmp|old)$|^\.training-", path.name)
            and path.relative_to(self.directory).parts[:2] != ("cache", "jobs")
        ]

    def figures(self) -> dict[str, Any]:
        """All that the records say, but for when, how long and from which tree."""
        records, problems = read_records(self.out)
        assert not [path for path in problems if path.parent.parent == self.out], problems
        found = {}
        for record in records:
            key = f"{record.model['name']} {record.evaluation} {record.config_hash}"
            assert key not in found, f"{key} is there twice"
            metrics = [one for one in record.metrics if not one.name.endswith("seconds")]
            told = dataclasses.replace(record, started="", commit=None, metrics=metrics)
            found[key] = _timeless(json.loads(told.to_json()))
        return found

    def tables(self) -> dict[str, str]:
        """The tables that ``sat-eval report`` prints and writes, by name."""
        made = report(out=self.out)
        return {
            table.name: f"{markdown(table)}\n{csv_text(table)}"
            for table in (*made.tables, *made.details)
        }

    def _begun(self, since: float) -> set[str]:
        """The parts of this run that have begun: their logs are made anew."""
        logs = (self.out / "logs").glob("*.log")
        return {path.stem for path in logs if _modified(path) >= since}

    def own_environment(self) -> dict[str, str]:
        """The variables in which the command's environment differs from ours."""
        return {
            "SAT_INTERP_CACHE": str(self.directory / "cache"),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }


def moments(seconds: Mapping[str, float], kills: int, seed: int) -> list[Moment]:
    """Random moments of a run, by when its parts began; one in each of ``kills`` equal stretches.

    Args:
        seconds: what each part took in a run that was left in peace, in its order.
    """
    draws, total, found = random.Random(seed), sum(seconds.values()), []
    for number in range(kills):
        at = (number + draws.random()) * total / kills
        for part, length in seconds.items():
            if at < length or part == list(seconds)[-1]:
                found.append(Moment(part, at))
                break
            at -= length
    return found


def compare(calm: Side, killed: Side) -> list[str]:
    """What differs between two sides, and what the killed one has left over; nothing, if all well.

    Figures must be equal to the last digit: it is one machine and one thread.
    """
    found = []
    for what, one, other in (
        ("record", calm.figures(), killed.figures()),
        ("table", calm.tables(), killed.tables()),
    ):
        for name in sorted(one.keys() | other.keys()):
            if one.get(name) != other.get(name):
                found.append(f"{what} {name}: {_first_difference(one.get(name), other.get(name))}")
    return found + [f"left over: {name}" for name in killed.leftovers()]


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if not key.endswith("seconds")}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def _first_difference(one: Any, other: Any, where: str = "") -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys(), key=str):
            if one.get(key) != other.get(key):
                return _first_difference(one.get(key), other.get(key), f"{where}/{key}")
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        place = next(place for place in range(len(one)) if one[place] != other[place])
        return _first_difference(one[place], other[place], f"{where}/{place}")
    if isinstance(one, str) and isinstance(other, str):
        pairs = zip(one.splitlines(), other.splitlines(), strict=False)
        one, other = next(((a, b) for a, b in pairs if a != b), (one[-80:], other[-80:]))
    return f"{where}: {str(one)[:200]} / {str(other)[:200]}"


def _is_due(kill: Moment, seen: Mapping[str, float]) -> bool:
    if kill.part not in seen:
        return False
    later = [begin for begin in seen.values() if begin > seen[kill.part]]
    return bool(later) or time.time() - seen[kill.part] >= kill.after


def _modified(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _wait_for_end(group: int) -> None:
    """Wait until no process of the group is left.

    Raises:
        AssertionError: they outlive their parent.
    """
    until = time.monotonic() + GONE
    while _is_at_work(group):
        if time.monotonic() >= until:
            raise AssertionError(f"processes of a killed battery are at work {GONE:.0f} s later")
        time.sleep(0.1)


def _is_at_work(group: int) -> bool:
    """Whether a process of the group runs; one that ended, but nobody asked after, does not."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    states = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            told = path.read_text().rpartition(")")[2].split()  # state, parent, group, ...
            states += [told[0]] if int(told[2]) == group else []
    return any(state != "Z" for state in states) if states else True


@contextlib.contextmanager
def _directory(named: str | None) -> Iterator[Path]:
    if named is not None:
        yield Path(named)
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def tiny_options() -> list[str]:
    """The tiny budgets as options of ``sat-eval all``."""
    return [
        f"--{name}.{option.replace('_', '-')}={value}"
        for name, options in TINY.items()
        for option, value in options.items()
    ]


def _kill_processes(given: argparse.Namespace, calm: Side, killed: Side) -> int:
    """Kill the battery of the local engine at random moments; returns the last exit code."""
    hit = 0
    for number, moment in enumerate(moments(calm.seconds, given.kills, given.seed)):
        alone = bool(number % 2)
        code = killed.run("--jobs", str(given.jobs), kill=moment, alone=alone)
        hit += code == -signal.SIGKILL
        print(
            f"{moment.part} + {moment.after:.1f} s, {'alone' if alone else 'group'}: exit "
            f"{code}, left: {killed.leftovers()}",
            flush=True,
        )
    print(f"killed {hit} times")
    return killed.run("--jobs", str(given.jobs))


def _kill_nodes(given: argparse.Namespace, calm: Side, killed: Side) -> int:
    """Kill drivers, workers and nodes of a Ray cluster; returns the last exit code."""
    from tests.cluster import ray_cluster
    from tests.evaluations.killed_ray import run_killed

    os.environ.update(killed.own_environment())  # the nodes have it of this process
    between = 2 * sum(calm.seconds.values()) / given.kills
    with ray_cluster(2) as nodes:
        code, done = run_killed(
            lambda address: killed.start("--engine", "ray", "--address", address),
            nodes,
            given.kills,
            between,
            given.seed,
        )
    print(f"killed {len(done)} times: {', '.join(done)}")
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", help="kept; by default one that is removed")
    parser.add_argument("--models", default="demo:baseline,demo:local-k4")
    parser.add_argument("--parts", help="evaluations with commas between them; all by default")
    given = parser.parse_args()
    if given.engine == "ray" and importlib.util.find_spec("ray") is None:
        parser.error("--engine ray needs Ray: make install-test")
    with _directory(given.directory) as where:
        arguments = [*given.models.split(","), "--preset", "quick", "--data", "demo"]
        arguments += ["--parts", given.parts] if given.parts else []
        calm, killed = Side(where / "calm", arguments), Side(where / "killed", arguments)
        code = calm.run()
        print(f"in peace: exit {code}", {part: round(s) for part, s in calm.seconds.items()})
        code = (_kill_nodes if given.engine == "ray" else _kill_processes)(given, calm, killed)
        found = compare(calm, killed)
        print(f"then exit {code}: {len(found)} differences", *found, sep="\n")
        return int(bool(found) or code != 0)


if __name__ == "__main__":
    sys.exit(main())
