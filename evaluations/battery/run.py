"""Run a battery with an engine.

On this machine a job is an evaluation of all models, on a cluster an evaluation of one model. Each
job is a command of ``sat-eval``. It skips existing records, so a battery that was killed is resumed
by the same command.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evaluations.battery.plan import EvaluationJob, per_model
from sat_interp._util.errors import UserError
from sat_interp.engine.choose import EngineOptions, make_engine
from sat_interp.engine.overview import overview
from sat_interp.engine.run import Claims, run


def run_parts(parts: Sequence[EvaluationJob], options: EngineOptions, out: str | Path) -> None:
    """Run the parts of a battery; their states are updated.

    On a cluster each model of a part is a job; the tables are those of ``sat-eval report``.

    Raises:
        UserError: the engine cannot be used.
    """
    logs, is_local = Path(out) / "logs", options.engine == "local"
    jobs = list(parts) if is_local else [job for part in parts for job in per_model(part)]
    engine = make_engine(options, logs, all(not job.resources.gpus for job in jobs))
    with overview(jobs, options.n_local if is_local else options.jobs) as update:
        run(jobs, engine, Claims(out), update)
    if not is_local:
        for part in parts:
            _conclude(part, [job for job in jobs if job.title == part.title])


def raise_failures(jobs: Sequence[EvaluationJob]) -> None:
    """Raise an error if a job failed.

    Raises:
        UserError: one line with each job that failed, and the reason.
    """
    failed = [f"{job.title}: {job.reason}" for job in jobs if job.state == "failed"]
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} parts failed: {'; '.join(failed)}")


def _conclude(part: EvaluationJob, jobs: Sequence[EvaluationJob]) -> None:
    """Set the state of a part whose models were jobs."""
    if part.state == "nothing to do":
        return
    failures = [f"{job.subject}: {job.reason}" for job in jobs if job.reason]
    part.seconds = sum(job.seconds for job in jobs)
    part.reason = "; ".join(failures)
    part.state = "failed" if failures else "done"
