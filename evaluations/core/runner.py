"""Load, skip what is done, run, write: the same for every evaluation, here once."""

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
from sat_interp._util.files import directory, file_name
from sat_interp._util.provenance import commit, versions

log = logging.getLogger(__name__)

SAME_DATA = ("spec", "split", "validation", "limit", "tokenizer", "n_stories", "n", "n_asked_for")
"""Of what records of all versions say of their data: what tells texts and tasks apart."""


@runtime_checkable
class Data(Protocol):
    """What an evaluation reads: text, prompts, a cache of activations."""

    @property
    def content(self) -> str:
        """A hash of what is read, whatever it is called or wherever it lies."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the record says of it."""
        ...


def run(spec: Spec, request: Request) -> Outcome:
    """Run one evaluation on several models, one in memory at a time, and write their records.

    A record that is already there is read instead, whatever the model is called by now: it is known
    by the hash of the weights and the hash of everything else that decides the result. One that
    cannot be read is measured again. A model that fails does not stop the others.

    Records go to ``out/<model>-<weights>/<evaluation>-<config>.json``.

    Raises:
        UserError: the options make no sense, or ``out`` cannot be a directory; before anything has
            run.
    """
    request = resolved(request)
    configs = spec.configs(request)
    jobs = [(model, config) for config in configs for model in request.models]
    outcome = _measure_all(spec, request, configs, jobs)
    for model, config in spec.follow_up(request, outcome.measured):
        chosen = dataclasses.replace(request, models=[model])
        beside = _measure_all(spec, chosen, [config], [(model, config)])
        outcome.add(beside)
        for name, reason in beside.failures.items():
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
    """Measure each model with its configuration, and note what became of it.

    Args:
        jobs: models and configurations.
        prepare: gives a model its data (in its own tokens).
        out: directory of the records.
        force: measure again what has a record already.
        load: (model, configuration) -> the loaded model.

    Raises:
        UserError: ``out`` cannot be a directory; before anything has run.
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
    """Return the record of one model, and whether it was there already."""
    config = spec.fit(loaded.model, data, config)
    recorded = config.recorded() if hasattr(config, "recorded") else config
    config_hash = hash_of(identity(spec, loaded, data, recorded))
    if not force and (done := find_record(out, spec.name, config_hash, loaded)):
        return done, True
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
    """Everything but the weights that decides a result: equal identities, equal records."""
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
    """``out/<model>-<first 8 digits of its weights' hash>/<evaluation>-<config_hash>.json``."""
    return model_directory(out, loaded) / f"{evaluation}-{config_hash}.json"


def model_directory(out: str | Path, loaded: LoadedModel) -> Path:
    """``out/<model>-<first 8 digits of its weights' hash>``: whatever is made of one model."""
    return Path(out) / f"{file_name(loaded.name)}-{loaded.weights_hash[:8]}"


def model_key(loaded: LoadedModel) -> str:
    """Hash of what decides a model's activations: weights, gates and the whole configuration.

    Cached activations, graphs and autoencoders are found again by it.
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
    """The finished record of these weights and this configuration, under any model name."""
    own = record_path(out, evaluation, config_hash, loaded)
    others = sorted(Path(out).glob(f"*-{loaded.weights_hash[:8]}/{own.name}"))
    for path in [own, *others]:
        if not path.exists():
            continue
        try:
            record = read_record(path)
        except UserError as error:
            log.warning("%s; it is done again", error)
            continue
        found = (record.config_hash, record.model["weights_hash"])
        if found == (config_hash, loaded.weights_hash):
            named: dict[str, Any] = {"name": loaded.name, "spec": _spec(loaded)}
            named |= _control_note(loaded)
            if loaded.training:  # a run may have finished since
                named["training"] = loaded.training
            kept = {key: told for key, told in record.data.items() if key != "tokenizer_note"}
            return dataclasses.replace(
                record, model={**record.model, **named}, data={**kept, **_tokenizer_note(loaded)}
            )
    return None


def had_older(record: Record, out: str | Path) -> bool:
    """Whether ``out`` holds the same measurement by older code.

    That is a record of the same weights, gates, text or task and settings, as far as both tell
    (older records tell less), with a lower version.
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


def _is_same_measurement(one: Record, other: Record) -> bool:
    if one.evaluation != other.evaluation:
        return False
    names = ("weights_hash", "ablation", "configuration")
    parts = [({name: record.model[name] for name in names if name in record.model},
              {name: record.data[name] for name in SAME_DATA if name in record.data},
              record.config) for record in (one, other)]  # fmt: skip
    return all(
        canonical(first[name]) == canonical(second[name])
        for first, second in zip(*parts, strict=True)
        for name in first.keys() & second.keys()
    )


def describe_model(loaded: LoadedModel) -> dict[str, Any]:
    """What a record says of a model."""
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
    """The MODEL argument, but of a directory only its name: where it lay is nobody's business."""
    return loaded.name if Path(loaded.spec).expanduser().is_dir() else loaded.spec


def _control_note(loaded: LoadedModel) -> dict[str, Any]:
    """For a record's model: that it is a control, and of which model."""
    return {"control": loaded.control} if loaded.control else {}


def _tokenizer_note(loaded: LoadedModel) -> dict[str, Any]:
    """For a record's data: why the tokens may not be those the model was trained on."""
    return {"tokenizer_note": loaded.tokenizer_note} if loaded.tokenizer_note else {}
