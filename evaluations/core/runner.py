"""Load, skip what is done, run, write: the same for every evaluation, here once."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from transformer_lens import HookedTransformer

from evaluations.core import weights
from evaluations.core.canonical import canonical
from evaluations.core.model_source import ModelArgument, ModelSource
from evaluations.core.models import LoadedModel
from evaluations.core.outcome import Outcome
from evaluations.core.record import (
    SCHEMA,
    Metric,
    Record,
    hash_of,
    plain,
    read_record,
)
from sat_interp._util import progress
from sat_interp._util.errors import UserError
from sat_interp._util.files import file_name
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


DataT = TypeVar("DataT", bound=Data)
ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class Result:
    """What an evaluation's function returns."""

    metrics: list[Metric]
    extra: dict[str, Any] = field(default_factory=dict)
    """Small curves and histograms; large things go to files of their own."""


@dataclass(frozen=True)
class Evaluation(Generic[DataT, ConfigT]):
    """A question asked of a model: a pure function of model, data and configuration.

    Attributes:
        name: as in ``sat-eval <name>`` and in the record's file name.
        config_type: a dataclass whose fields decide the result; ``seed`` among them.
        function: (model, data, config) -> Result; asks nothing of the model but to be a
            HookedTransformer.
        version: part of a record's identity; raised by one whenever a change of the code changes
            a figure, so that records of the old code are measured again.
        check: raises ``UserError`` where a model of that shape cannot be measured with that
            configuration; it is given the model on the meta device, before weights are read.
        fit: (model, data, config) -> the configuration that is used on that data, which is the one
            of the record and of its identity; the configuration as it is where None.
    """

    name: str
    config_type: type[ConfigT]
    function: Callable[[HookedTransformer, DataT, ConfigT], Result]
    version: int = 1
    check: Callable[[HookedTransformer, ConfigT], object] | None = None
    fit: Callable[[HookedTransformer, DataT, ConfigT], ConfigT] | None = None


def run(
    evaluation: Evaluation[DataT, ConfigT],
    models: Sequence[ModelArgument],
    data: Callable[[LoadedModel], DataT],
    config: ConfigT,
    out: str | Path,
    force: bool = False,
    *,
    load: Callable[[ModelSource], LoadedModel] = ModelSource.load,
) -> Outcome:
    """Run one evaluation on several models, one in memory at a time, and write a record for each.

    A record that is already there is read instead, whatever the model is called by now: it is known
    by the hash of the weights and the hash of everything else that decides the result. One that
    cannot be read is redone. A model that fails does not stop the others.

    Args:
        models: what ``ModelSource.of`` takes.
        data: gives a model its data (in its own tokens).
        out: records go to ``out/<model>-<weights>/<evaluation>-<config>.json``.
        force: run even what is done.
        load: how a source is loaded, where device or dtype matter.

    Raises:
        UserError: ``out`` cannot be a directory; told before anything has run.
    """
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"records cannot be written to {out}: {error.strerror}") from None
    outcome = Outcome()
    for spec in progress.bar(models, desc=evaluation.name, unit="model"):
        source = ModelSource.of(spec)
        with outcome.noting(source.label, evaluation.name):
            loaded = load(source)
            record, was_done = run_one(evaluation, loaded, data(loaded), config, out, force)
            outcome.records.append(record)
            outcome.skipped += was_done
            outcome.renewed += not was_done and had_older(record, out)
    return outcome


def run_one(
    evaluation: Evaluation[DataT, ConfigT],
    loaded: LoadedModel,
    data: DataT,
    config: ConfigT,
    out: str | Path,
    force: bool = False,
) -> tuple[Record, bool]:
    """The record of one model, and whether it was there already."""
    if evaluation.fit is not None:
        config = evaluation.fit(loaded.model, data, config)
    config_hash = hash_of(identity(evaluation, loaded, data, config))
    if not force and (done := find_record(out, evaluation.name, config_hash, loaded)):
        return done, True
    started, clock, tree = datetime.now(UTC), time.perf_counter(), commit()
    result = evaluation.function(loaded.model, data, config)
    record = Record(
        evaluation=evaluation.name,
        model=describe_model(loaded),
        data={**data.describe(), **_tokenizer_note(loaded)},
        config=plain(config),
        config_hash=config_hash,
        seed=int(getattr(config, "seed", 0)),
        metrics=result.metrics,
        extra=plain(result.extra),
        versions=versions(),
        commit=tree,
        started=started.isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - clock, 3),
        device=loaded.device,
        version=evaluation.version,
    )
    record.write(record_path(out, evaluation.name, config_hash, loaded))
    return record, False


def identity(
    evaluation: Evaluation[DataT, ConfigT], loaded: LoadedModel, data: DataT, config: ConfigT
) -> dict[str, Any]:
    """Everything but the weights that decides a result: equal identities, equal records."""
    return {
        "schema": SCHEMA,
        "evaluation": evaluation.name,
        "version": evaluation.version,
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
