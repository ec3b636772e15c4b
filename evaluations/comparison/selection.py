"""Which records the paper's tables are made from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evaluations.core.hook_points import NEURONS
from evaluations.core.record import Record, hash_of, model_ids

TAU = 0.03
L1 = 5.0
TASKS = ("ioi", "ioi-tinystories")


@dataclass(frozen=True)
class Model:
    """One model, and the record of each evaluation that counts.

    Attributes:
        key: identifies the model by weights, gates and configuration.
    """

    name: str
    spec: str
    weights: str
    records: dict[str, Record]
    key: str = ""

    @property
    def any(self) -> Record:
        """The newest record, for what all of them have in common."""
        return max(self.records.values(), key=lambda record: record.started)


def models(records: Sequence[Record], names: Iterable[str] = ()) -> list[Model]:
    """A model for each set of weights, gates and configuration, with one record of each evaluation.

    Of several records of one evaluation, among those that the paper's tables use (`counts`), the
    newest version of its code is preferred; then the settings and text that most models share; then
    the newest record.

    Args:
        names: of a study's runs; they are preferred to other names of the same weights.
    """
    preferred = set(names)
    by_key: dict[str, Model] = {}
    ordered = sorted(records, key=lambda record: (_name(record) in preferred, record.started))
    ids = {id(record): known for record, known in zip(ordered, model_ids(ordered), strict=True)}
    for record in ordered:
        weights, key = str(record.model["weights_hash"]), ids[id(record)]
        spec = str(record.model.get("spec", _name(record)))
        known = by_key.get(key)
        by_key[key] = Model(_name(record), spec, weights, known.records if known else {}, key)
    for name in {record.evaluation for record in records}:
        eligible = [record for record in records if record.evaluation == name and counts(record)]
        rank = _by_share(eligible)
        for record in sorted(eligible, key=lambda one: (one.version, rank[settings(one)])):
            by_key[ids[id(record)]].records[name] = record
    return [model for model in by_key.values() if model.records]


def counts(record: Record) -> bool:
    """Whether the paper's tables use such a record.

    Of ``acdc``: ACDC with resampled edges at tau 0.03 on IOI. Of ``circuits``: those of IOI. Of
    ``sae``: a standard autoencoder trained here on the default hook point with the L1 coefficient
    of the presets, 5. Of ``neurons`` and ``n2g``: MLP neurons of the clean stream. Of all other
    evaluations: any. Never one of a control model (``evaluations.core.controls``).
    """
    config = record.config
    if record.model.get("control"):
        return False  # a control model is not a training seed of a group
    if record.evaluation == "acdc":
        return (
            record.data.get("spec") in TASKS
            and config.get("method") == "acdc"
            and config.get("ablation") == "resample"
            and record.extra.get("tau") == TAU
        )
    if record.evaluation == "circuits":
        return record.data.get("spec") in TASKS
    if record.evaluation == "sae":
        return (
            config.get("architecture") == "standard"
            and config.get("sparsity") == L1
            and config.get("hook") is None
            and config.get("given") is None
        )
    if record.evaluation in ("neurons", "n2g"):
        own = {"hook": NEURONS, "stream": "clean", "sae": None}
        return all(config.get(name, value) == value for name, value in own.items())
    return True


def settings(record: Record) -> str:
    """A hash of what has to be equal for two models' figures to be compared."""
    return hash_of(_compared(record))


def is_comparable(records: Sequence[Record]) -> bool:
    """Whether the records have one configuration and one text."""
    return all(_compared(record) == _compared(records[0]) for record in records[1:])


def _compared(record: Record) -> tuple[object, ...]:
    return record.evaluation, record.version, record.config, record.data.get("content")


def _by_share(records: Sequence[Record]) -> dict[str, tuple[int, str]]:
    """For each kind of settings how many models have a record of it, and its newest record."""
    models: dict[str, set[str]] = defaultdict(set)
    newest: dict[str, str] = defaultdict(str)
    for record in records:
        key = settings(record)
        models[key].add(str(record.model["weights_hash"]))
        newest[key] = max(newest[key], record.started)
    return {key: (len(models[key]), newest[key]) for key in models}


def _name(record: Record) -> str:
    return str(record.model.get("name", "?"))
