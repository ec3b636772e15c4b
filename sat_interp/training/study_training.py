"""Training the runs of a study that are not finished, here or elsewhere."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sat_interp._util.errors import UserError
from sat_interp.engine.choose import EngineOptions, make_engine
from sat_interp.engine.job import Job
from sat_interp.engine.local import HereEngine
from sat_interp.engine.overview import overview
from sat_interp.engine.run import Claims
from sat_interp.engine.run import run as run_jobs
from sat_interp.training.config import TrainConfig
from sat_interp.training.study import Study, StudyRun
from sat_interp.training.study_job import TrainingJob

if TYPE_CHECKING:
    from sat_interp.training.directory import RunDirectory

logger = logging.getLogger(__name__)

HERE = EngineOptions()


@dataclass(frozen=True)
class RunOutcome:
    """Outcome of a run: its summary, or the reason why there is none."""

    run: StudyRun
    summary: dict[str, Any] | None
    was_finished: bool = False
    reason: str = ""


def train_study(
    study: Study,
    train: Callable[[TrainConfig], Any] | None = None,
    options: EngineOptions = HERE,
) -> list[RunOutcome]:
    """Train the missing runs: interrupted runs continue, a failed run stops no other.

    Runs are trained in this process, in their order, unless the options ask for several at a time
    or for a cluster. A run that another driver is training is waited for.

    Args:
        study: the runs.
        train: how a run is trained in this process; ``sat_interp.training.train.train`` by default.
        options: the engine.

    Raises:
        UserError: the engine cannot be used, or a shape or number of units is not possible; raised
            before anything is trained.
    """
    runs = study.runs()
    _check_shapes(runs)
    jobs = [_job(run, runs) for run in runs]
    claims = Claims(study.directory)
    if options.engine == "local" and options.n_local == 1:
        run_jobs(jobs, HereEngine(_trainer(study, jobs, train)), claims)
    else:
        _train_elsewhere(study, jobs, options, claims)
    return [RunOutcome(job.run, job.summary, job.was_finished, job.reason) for job in jobs]


def _check_shapes(runs: Sequence[StudyRun]) -> None:
    """Raise UserError where the shape of a new model, or its number of units, is not possible.

    A model to begin from is read when its run begins.
    """
    from sat_interp.training.build import shape_of  # imports torch

    one_of_each = {run.group: run for run in reversed(runs) if run.config.init is None}
    for group, run in one_of_each.items():
        try:
            shape_of(run.config)
        except UserError as error:
            raise UserError(f"{group}: {error}") from None


def _job(run: StudyRun, runs: Sequence[StudyRun]) -> TrainingJob:
    target = None if run.kind != "matched" else f"{run.like}-s{run.seed}"
    return TrainingJob(run, target, lambda: _with_target(run, runs))


def _trainer(
    study: Study, jobs: Sequence[TrainingJob], train: Callable[[TrainConfig], Any] | None
) -> Callable[[Job], str]:
    """Return what trains a run in this process, and returns the reason if it fails."""
    from sat_interp.training.directory import RunDirectory  # imports torch

    if train is None:
        from sat_interp.training.train import train as train_one

        train = train_one
    places = {job.name: place for place, job in enumerate(jobs)}

    def perform(started: Job) -> str:
        place = places[started.name]
        job = jobs[place]
        logger.info("%s: run %d of %d, %s", study.name, place + 1, len(jobs), job.name)
        try:
            job.was_finished = RunDirectory(job.run.directory).finished() is not None
            job.summary = train(job.make_config()).summary
        except (UserError, OSError) as error:
            logger.warning("%s failed: %s", job.name, error)
            return str(error)
        except Exception as error:  # a bug that one run meets must not cost the others
            logger.exception("%s failed", job.name)
            return f"{type(error).__name__}: {' '.join(str(error).split())}"
        return ""

    return perform


def _train_elsewhere(
    study: Study, jobs: Sequence[TrainingJob], options: EngineOptions, claims: Claims
) -> None:
    """Train the runs that are not finished in other processes, or on a cluster."""
    from sat_interp.training.directory import RunDirectory

    for job in jobs:
        job.was_finished = _holds(RunDirectory(job.run.directory), job)
    missing = [job for job in jobs if not job.was_finished]
    on_cpu = all(not job.resources.gpus for job in jobs)
    engine = make_engine(options, study.directory / "logs", on_cpu)
    with overview(missing, options.n_local if options.engine == "local" else options.jobs) as note:
        run_jobs(missing, engine, claims, note)
    for job in jobs:
        job.summary = None if job.reason else RunDirectory(job.run.directory).finished()


def _holds(directory: RunDirectory, job: TrainingJob) -> bool:
    """Whether a directory holds the finished run of a job; another run is refused by the job."""
    if directory.finished() is None:
        return False
    try:
        directory.check(job.config)
    except UserError:
        return False
    return True


def raise_failures(done: Sequence[RunOutcome]) -> None:
    """Do nothing if all runs went well.

    Raises:
        UserError: one line that names each run that failed, and why.
    """
    failed = [f"{item.run.name}: {item.reason}" for item in done if item.summary is None]
    if failed:
        raise UserError(f"{len(failed)} of {len(done)} runs failed: {'; '.join(failed)}")


def _with_target(run: StudyRun, runs: Iterable[StudyRun]) -> TrainConfig:
    """A run's configuration; a matched one's with the perplexity of the run it is to match.

    That is the best validation's: it is the best model of a run that is evaluated.
    """
    from sat_interp.training.directory import RunDirectory

    if run.kind != "matched":
        return run.config
    target = next(item for item in runs if (item.group, item.seed) == (run.like, run.seed))
    summary = RunDirectory(target.directory).finished()
    if summary is None:
        raise UserError(f"{target.name}, whose perplexity it is to match, has not been trained")
    return dataclasses.replace(
        run.config, match_perplexity=float(summary["best"]["clean_perplexity"]), match_of=run.like
    )
