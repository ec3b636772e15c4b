"""The loop of all evaluations: load models, skip finished records, evaluate, write records."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from evaluations.core import weights
from evaluations.core.canonical import canonical
from evaluations.core.inputs import load, resolved
from evaluations.core.model_source import ModelSource
from evaluations.core.models import LoadedModel
from evaluations.core.options import Request
from evaluations.core.outcome import Measured, Outcome
from evaluations.core.record import (
    SCHEMA,
    Record,
    hash_of,
    plain,
    read_record,
)
from evaluations.core.spec import Spec
from sat_interp._util import progress
from sat_interp._util.errors import UserError
from sat_interp._util.files import directory, expanded, file_name
from sat_interp._util.provenance import commit, versions

log = logging.getLogger(__name__)

SAME_DATA = ("spec", "split", "validation", "limit", "tokenizer", "n_stories", "n", "n_asked_for")
"""Fields of a record's data, in records of all versions, that distinguish texts and tasks."""


@runtime_checkable
class Data(Protocol):
    """The data of an evaluation: text, prompts, a cache of activations."""

    @property
    def content(self) -> str:
        """Hash of the content, independent of its name and location."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return the description of the data in records."""
        ...


def run(spec: Spec, request: Request) -> Outcome:
    """Run one evaluation on several models, one in memory at a time, and write their records.

    An existing record is read instead, even if the model has been renamed: records are identified
    by the hash of the weights and the hash of everything else that determines the result. A record
    that cannot be read is measured again. A model that fails does not stop the others.

    Records are written to ``out/<model>-<weights>/<evaluation>-<config>.json``.

    Raises:
        UserError: the options are invalid, or ``out`` cannot be a directory; raised before any
            model is run.
    """
    request = resolved(request)
    configs = spec.configs(request)
    jobs = [(model, config) for config in configs for model in request.models]
    outcome = _measure_all(spec, request, configs, jobs)
    for model, config in spec.follow_up(request, outcome.measured):
        chosen = dataclasses.replace(request, models=[model])
        further = _measure_all(spec, chosen, [config], [(model, config)])
        outcome.add(further)
        for name, reason in further.failures.items():
            log.warning("%s: the follow-up measurement failed: %s", name, reason)
    return outcome


def _measure_all(
    spec: Spec, request: Request, configs: Sequence[Any], jobs: Sequence[tuple[ModelSource, Any]]
) -> Outcome:
    return measure(
        spec,
        jobs,
        spec.prepare(request, configs),
        request.out,
        request.run.force,
        load=lambda model, config: load(model, spec, request, config),
    )


def measure(
    spec: Spec,
    jobs: Sequence[tuple[ModelSource, Any]],
    prepare: Callable[[LoadedModel], Data],
    out: str | Path,
    force: bool = False,
    *,
    load: Callable[[ModelSource, Any], LoadedModel],
) -> Outcome:
    """Measure each model with its configuration, and collect records and failures.

    Args:
        spec: the evaluation.
        jobs: models and configurations.
        prepare: returns the data of a model (in its own tokens).
        out: directory of the records.
        force: whether to measure again if there is a record.
        load: (model, configuration) -> the loaded model.

    Raises:
        UserError: ``out`` cannot be a directory; raised before any model is run.
    """
    outcome = Outcome()
    with ExitStack() as stack:
        try:
            stack.enter_context(directory(out))
        except OSError as error:
            raise UserError(f"records cannot be written to {out}: {error.strerror}") from None
        for source, config in progress.bar(jobs, desc=spec.name, unit="model"):
            with outcome.noting(source.label, spec.name):
                loaded = load(source, config)
                record, was_done = run_one(spec, loaded, prepare(loaded), config, out, force)
                outcome.measured.append(Measured(source, config, record))
                outcome.skipped += was_done
                outcome.renewed += not was_done and had_older(record, out)
    return outcome


def run_one(
    spec: Spec,
    loaded: LoadedModel,
    data: Data,
    config: Any,
    out: str | Path,
    force: bool = False,
) -> tuple[Record, bool]:
    """Return the record of one model, and whether it existed already."""
    config = spec.fit(loaded.model, data, config)
    recorded = config.recorded() if hasattr(config, "recorded") else config
    config_hash = hash_of(identity(spec, loaded, data, recorded))
    if not force and (existing := find_record(out, spec.name, config_hash, loaded)):
        return existing, True
    started, clock, tree = datetime.now(UTC), time.perf_counter(), commit()
    measurement = spec.evaluate(loaded.model, data, config)
    record = Record(
        evaluation=spec.name,
        model=describe_model(loaded),
        data={**data.describe(), **_tokenizer_note(loaded)},
        config=plain(recorded),
        config_hash=config_hash,
        seed=int(getattr(config, "seed", 0)),
        metrics=measurement.metrics,
        extra=plain(measurement.extra),
        versions=versions(),
        commit=tree,
        started=started.isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - clock, 3),
        device=loaded.device,
        version=spec.version,
    )
    record.write(record_path(out, spec.name, config_hash, loaded))
    return record, False


def identity(spec: Spec, loaded: LoadedModel, data: Data, config: Any) -> dict[str, Any]:
    """Return everything that determines a result, except the weights."""
    return {
        "schema": SCHEMA,
        "evaluation": spec.name,
        "version": spec.version,
        "config": config,
        "data": data.content,
        "configuration": loaded.configuration,
        "ablation": loaded.ablation,
    }


def record_path(out: str | Path, evaluation: str, config_hash: str, loaded: LoadedModel) -> Path:
    """Return ``out/<model>-<first 8 digits of its weights' hash>/<evaluation>-<config_hash>.json``.

    The directory is :func:`model_directory`.
    """
    return model_directory(out, loaded) / f"{evaluation}-{config_hash}.json"


def model_directory(out: str | Path, loaded: LoadedModel) -> Path:
    """Return the directory of a model's results: ``out/<model>-<first 8 digits of its hash>``."""
    return Path(out) / f"{file_name(loaded.name)}-{loaded.weights_hash[:8]}"


def model_key(loaded: LoadedModel) -> str:
    """Return the hash of a model's weights, gates and configuration.

    It identifies cached activations, graphs and autoencoders.
    """
    return hash_of(
        {
            "weights": loaded.weights_hash,
            "ablation": loaded.ablation,
            "configuration": loaded.configuration,
        }
    )


def find_record(
    out: str | Path, evaluation: str, config_hash: str, loaded: LoadedModel
) -> Record | None:
    """Return the existing record of these weights and this configuration, under any model name."""
    own = record_path(out, evaluation, config_hash, loaded)
    others = sorted(Path(out).glob(f"*-{loaded.weights_hash[:8]}/{own.name}"))
    for path in [own, *others]:
        if not path.exists():
            continue
        try:
            record = read_record(path)
        except UserError as error:
            log.warning("%s; it is measured again", error)
            continue
        hashes = (record.config_hash, record.model["weights_hash"])
        if hashes == (config_hash, loaded.weights_hash):
            return _updated(record, loaded)
    return None


def _updated(record: Record, loaded: LoadedModel) -> Record:
    """Return an existing record with the model's present name and training."""
    named: dict[str, Any] = {"name": loaded.name, "spec": _spec(loaded), **_control_note(loaded)}
    if loaded.training:  # the training run may have finished since
        named["training"] = loaded.training
    data = {key: value for key, value in record.data.items() if key != "tokenizer_note"}
    return dataclasses.replace(
        record, model={**record.model, **named}, data={**data, **_tokenizer_note(loaded)}
    )


def had_older(record: Record, out: str | Path) -> bool:
    """Return whether ``out`` has a record of the same measurement with a lower version.

    Weights, gates, data and settings are compared by the fields that both records have, since older
    records have fewer fields.
    """
    pattern = f"*-{str(record.model['weights_hash'])[:8]}/{record.evaluation}-*.json"
    for path in Path(out).glob(pattern):
        try:
            other = read_record(path)
        except UserError:
            continue
        if other.version < record.version and _is_same_measurement(other, record):
            return True
    return False


def _is_same_measurement(old: Record, new: Record) -> bool:
    return old.evaluation == new.evaluation and all(
        canonical(first[name]) == canonical(second[name])
        for first, second, names in (
            (old.model, new.model, ("weights_hash", "ablation", "configuration")),
            (old.data, new.data, SAME_DATA),
            (old.config, new.config, old.config),
        )
        for name in names
        if name in first and name in second
    )


def describe_model(loaded: LoadedModel) -> dict[str, Any]:
    """Return the description of a model in records."""
    return {
        "name": loaded.name,
        "spec": _spec(loaded),
        "weights_hash": loaded.weights_hash,
        "n_parameters": weights.count(weights.tied_parameters(loaded.model)),
        "n_gate_parameters": weights.count(weights.gate_parameters(loaded.model)),
        "shape": loaded.shape,
        "configuration": loaded.configuration,
        "ablation": loaded.ablation,
        "training": loaded.training,
        **_control_note(loaded),
    }


def _spec(loaded: LoadedModel) -> str:
    """Return the MODEL argument, or the name of a directory: local paths are not recorded."""
    return loaded.name if expanded(loaded.spec).is_dir() else loaded.spec


def _control_note(loaded: LoadedModel) -> dict[str, Any]:
    """Return the control field of a record's model, if it is a control."""
    return {"control": loaded.control} if loaded.control else {}


def _tokenizer_note(loaded: LoadedModel) -> dict[str, Any]:
    """Return the note on a tokenizer that may differ from that of training, if there is one."""
    return {"tokenizer_note": loaded.tokenizer_note} if loaded.tokenizer_note else {}
