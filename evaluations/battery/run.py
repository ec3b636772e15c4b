"""The whole battery: which evaluations, with what budget, in what order, and what became of each.

Each part is a command of ``sat-eval`` over all models; what it has done it skips, so that a battery
that was killed goes on where it was. Parts run one after the other in this process, or side by side
in processes of their own, which share the cores.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from sat_interp._util.commandline import run_command
from sat_interp._util.errors import UserError

Preset = Literal["quick", "demo", "paper"]
State = Literal["waiting", "running", "done", "failed", "nothing to do"]
Command = Callable[..., object]
POLL = 0.2
NEAR = 2.0
"""Up to this many times larger or smaller than a built-in model an estimate is no extrapolation."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """One command of the battery.

    Attributes:
        name: of the command.
        settings: by preset, what differs from the command's defaults.
        seconds: by preset, what a built-in model takes on one free core, roughly; ``paper`` for
            the same little model too.
        grows: with a model's operations per token, or with the edges of its graph.
        power: of that size, with which its time grows.
        guessed: presets whose ``seconds`` nobody has measured.
        after: the part that leaves something in the cache that this one would make again.
        needs_gates: only for models whose gates have weights.
        controlled: presets in which the first model is measured untrained, too (see
            ``evaluations.core.controls``): the floor its figures are read against.
    """

    name: str
    settings: Mapping[Preset, Mapping[str, Any]]
    seconds: Mapping[Preset, float]
    grows: Literal["operations", "edges"] = "operations"
    power: float = 1.0
    guessed: tuple[Preset, ...] = ()
    after: str | None = None
    needs_gates: bool = False
    controlled: tuple[Preset, ...] = ()


PARTS = (
    Part(
        "lm",
        {"quick": {"stories": 300, "activation_stories": 100, "resamples": 1000},
         "demo": {}, "paper": {}},
        {"quick": 4, "demo": 8, "paper": 8},
    ),
    Part(
        "gates",
        {"quick": {"stories": 200, "probe_stories": 50, "intervention_stories": 20},
         "demo": {}, "paper": {}},
        {"quick": 12, "demo": 35, "paper": 35},
        needs_gates=True,
    ),
    Part(
        "acdc",
        {"quick": {"prompts": 60, "random_circuits": 10}, "demo": {},
         "paper": {"no_sweep": True}},
        {"quick": 25, "demo": 50, "paper": 20},
        # 50 times the edges took 1.6 times as long: a larger graph is found once, not six times
        grows="edges", power=0.2, guessed=("paper",),
    ),
    Part(
        "sae",
        {"quick": {"stories": 300}, "demo": {}, "paper": {"preset": "paper"}},
        {"quick": 25, "demo": 30, "paper": 9000}, guessed=("paper",),
    ),
    Part(
        "neurons",
        {"quick": {"stories": 500}, "demo": {}, "paper": {}},
        # nine times the operations took 140 to 175 s
        {"quick": 30, "demo": 60, "paper": 60}, power=0.5,
        controlled=("quick", "demo", "paper"),
    ),
    # after neurons: both read the same excerpts, which the first of them gathers
    Part(
        "n2g",
        {"quick": {"neurons_per_layer": 60, "stories": 500}, "demo": {"neurons_per_layer": 100},
         "paper": {"neurons_per_layer": 200}},
        {"quick": 20, "demo": 40, "paper": 80},
        after="neurons",
    ),
)  # fmt: skip


@dataclass
class Job:
    """A part with the models it is for; what becomes of it."""

    part: Part
    models: list[str]
    settings: dict[str, Any]
    estimate: float | None
    state: State = "waiting"
    seconds: float = 0.0
    reason: str = ""
    is_rough: bool = False
    """Whether the estimate is for a size of model that was not measured, or guessed."""

    @property
    def name(self) -> str:
        return self.part.name


@dataclass(frozen=True)
class Size:
    """What decides a part's time; None where no file tells it without loading the model."""

    operations: float | None = None
    edges: float | None = None
    has_gates: bool = False


def plan(
    models: Sequence[str],
    preset: Preset,
    common: Mapping[str, Any],
    commands: Mapping[str, Command],
    parts: Sequence[Part] = PARTS,
) -> list[Job]:
    """The jobs of a battery; a part whose command is not there is left out.

    Args:
        common: options for all parts (data, out, device, ...); each gets those it knows and that
            are not None.
    """
    sizes = {model: size_of(model) for model in models}
    reference = size_of("demo:baseline")
    jobs = []
    for part in parts:
        if part.name not in commands:
            log.info("sat-eval has no command %s: left out", part.name)
            continue
        known = inspect.signature(commands[part.name]).parameters
        shared = {key: value for key, value in common.items() if key in known and value is not None}
        chosen = [one for one in models if not part.needs_gates or sizes[one].has_gates]
        if preset in part.controlled:
            for one in chosen[:1]:
                chosen.append(f"{one} [untrained]")
                sizes[chosen[-1]] = sizes[one]
        factors = [_factor(getattr(sizes[one], part.grows), getattr(reference, part.grows))
                   for one in chosen]  # fmt: skip
        known_factors = [one for one in factors if one is not None]
        estimate = sum(one**part.power for one in known_factors) * part.seconds[preset]
        jobs.append(
            Job(part, list(chosen), {**part.settings[preset], **shared},
                estimate if len(known_factors) == len(factors) else None,
                "waiting" if chosen else "nothing to do",
                is_rough=preset in part.guessed or not all(map(_is_near, known_factors)))
        )  # fmt: skip
    return jobs


def estimated_seconds(jobs: Sequence[Job], n_processes: int) -> float | None:
    """Time of all jobs, none being done yet; None where a model's size is not known."""
    waiting = [job.estimate for job in jobs if job.state == "waiting"]
    known = [one for one in waiting if one is not None]
    if len(known) < len(waiting):
        return None
    return max([sum(known) / n_processes, *known]) if known else 0.0


def run_here(jobs: Sequence[Job], commands: Mapping[str, Command], logs: Path,
             told: Callable[[Job], None] = lambda job: None) -> None:  # fmt: skip
    """Run jobs one after the other; one that fails stops no other.

    Args:
        logs: what the commands print goes to ``logs/<part>.log``.
        told: called when a job begins and when it ends.
    """
    for job in jobs:
        if job.state != "waiting":
            continue
        job.state, started = "running", time.perf_counter()
        told(job)
        with _log(logs, job) as file, contextlib.redirect_stdout(file), \
                contextlib.redirect_stderr(file):  # fmt: skip
            job.reason = _run(commands[job.name], job)
        job.seconds = time.perf_counter() - started
        job.state = "failed" if job.reason else "done"
        told(job)


def run_beside(jobs: Sequence[Job], n_processes: int, logs: Path,
               told: Callable[[Job], None] = lambda job: None) -> None:  # fmt: skip
    """Run jobs in processes of their own, ``n_processes`` at a time, the longest first.

    Each process computes on its share of the cores. They end with this one, however it ends.
    """
    threads = str(max(1, _cores() // n_processes))
    environment = {
        **os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads,
        "PYTHONSAFEPATH": "1",  # a torch.py in the working directory is not imported
    }  # fmt: skip
    running: dict[subprocess.Popen[bytes], tuple[Job, TextIO, float]] = {}
    try:
        while running or _next(jobs) is not None:
            while len(running) < n_processes and (job := _next(jobs)) is not None:
                file = _log(logs, job)
                order = json.dumps([job.name, job.models, job.settings, os.getpid()])
                begin = "from evaluations.battery.run import child; child()"
                child = subprocess.Popen(
                    [sys.executable, "-c", begin, order],
                    stdout=file, stderr=file, env=environment,
                )  # fmt: skip
                running[child] = (job, file, time.perf_counter())
                job.state = "running"
                told(job)
            for child in [one for one in running if one.poll() is not None]:
                job, file, started = running.pop(child)
                file.close()
                job.seconds = time.perf_counter() - started
                job.reason = _why(child.returncode, logs / f"{job.name}.log")
                job.state = "failed" if job.reason else "done"
                told(job)
            time.sleep(POLL)
    finally:
        for child, (_, file, _) in running.items():
            child.terminate()
            child.wait()
            file.close()


def child() -> None:
    """A process of :func:`run_beside`: its argument is the command, models, settings, its parent.

    The parent says who it is: one killed while this process began is no longer there to be asked.
    """
    from evaluations.commands import COMMANDS

    name, models, settings, parent = json.loads(sys.argv[1])
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    sys.exit(run_command(lambda: COMMANDS[name](models, **settings)))


def raise_failures(jobs: Sequence[Job]) -> None:
    """Do nothing if all went well.

    Raises:
        UserError: one line that names each part that failed, and why.
    """
    failed = [f"{job.name}: {job.reason}" for job in jobs if job.state == "failed"]
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} parts failed: {'; '.join(failed)}")


def size_of(spec: str) -> Size:
    """A model's size and gates, by its configuration file alone; nothing is downloaded."""
    from sat_interp.io.locate import CONFIG, find_model
    from sat_interp.model.config import SelfAblationConfig

    path = Path(spec).expanduser()
    try:
        directory = path if (path / "config.json").is_file() else None
        with contextlib.suppress(UserError):
            directory = find_model(spec) or directory
        if directory is None:
            return Size()
        if not (directory / CONFIG).is_file():
            told = json.loads((directory / "config.json").read_text(encoding="utf-8"))
            shape = [told.get(one) or told.get(other) for one, other in (
                ("n_layer", "num_layers"), ("n_embd", "hidden_size"), ("n_head", "num_heads"),
                ("vocab_size", "vocab_size"))]  # fmt: skip
            return _size(*shape) if all(shape) else Size()
        told = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        shape = [told["shape"][key] for key in ("n_layers", "d_model", "n_heads", "d_vocab")]
        gates = SelfAblationConfig.from_dict(told["ablation"])
        return dataclasses.replace(_size(*shape), has_gates=gates.has_gate_weights)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Size()  # what is wrong with it, the evaluations will say


def _size(layers: int, width: int, heads: int, vocabulary: int) -> Size:
    """Operations of a token, and edges of the graph with queries, keys and values apart."""
    sources = [1 + layer * (heads + 1) for layer in range(layers + 1)]
    edges = sum(3 * heads * n + (n + heads) for n in sources[:-1]) + sources[-1]
    return Size(12.0 * layers * width**2 + vocabulary * width, float(edges))


def _factor(size: float | None, reference: float | None) -> float | None:
    return size / reference if size and reference else None


def _is_near(factor: float) -> bool:
    """Whether a model is so like the built-in ones that their times are its own."""
    return 1 / NEAR <= factor <= NEAR


def _next(jobs: Sequence[Job]) -> Job | None:
    """The longest of the jobs that may begin."""
    open_parts = {job.name for job in jobs if job.state in ("waiting", "running")}
    ready = [job for job in jobs if job.state == "waiting" and job.part.after not in open_parts]
    return max(ready, key=lambda job: job.estimate or 0.0, default=None)


def _run(command: Command, job: Job) -> str:
    """Why the command failed; empty where it did not."""
    try:
        command(job.models, **job.settings)
    except UserError as error:
        return str(error)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{where}"
    except Exception as error:  # a bug in one part must not cost the others
        log.exception("%s failed", job.name)
        return f"internal error: {type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def _why(code: int, file: Path) -> str:
    """Why a process failed: its last error, as its log has it."""
    if code == 0:
        return ""
    if code < 0:
        return f"ended by signal {-code}; its log is {file}"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if code == 2 and errors else f"ended with code {code}; its log is {file}"


def _log(logs: Path, job: Job) -> TextIO:
    logs.mkdir(parents=True, exist_ok=True)
    return open(logs / f"{job.name}.log", "w", encoding="utf-8")  # noqa: SIM115


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, be it killed."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
