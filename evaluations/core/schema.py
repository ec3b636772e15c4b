"""The types of a record's fields, checked by `record.read_record`.

The types of ``extra`` and ``config`` depend on the evaluation. Fields that no table or figure reads
may have any type. A field of ``extra`` may be missing (its figure is then not drawn for the
record); if present, it must have its type. Numbers are finite and small enough for arithmetic.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from evaluations.core.schema_circuits import CircuitExtra, FrontierExtra
from evaluations.core.schema_types import Count, FileName, Layer, Number, Numbers, Whole
from sat_interp.model.config import Variant


class IntervalFields(TypedDict):
    """A confidence interval."""

    low: Number
    high: Number
    level: Annotated[float, Field(gt=0, lt=1)]
    method: str


class MetricFields(TypedDict):
    """A metric."""

    name: str
    title: str
    value: Number | None
    unit: NotRequired[str]
    direction: NotRequired[Literal["lower", "higher"] | None]
    standard_error: NotRequired[Number | None]  # below 0 in old records of acdc
    interval: NotRequired[IntervalFields | None]
    n: NotRequired[Count | None]
    n_failed: NotRequired[Count]
    reasons: NotRequired[dict[str, Count]]
    description: NotRequired[str]


class AblationFields(TypedDict):
    """The gates of a model."""

    variant: NotRequired[Variant]
    k_attention: NotRequired[Count | None]
    k_neurons: NotRequired[Count | None]
    gates: NotRequired[str]


class TrainingFields(TypedDict):
    """The training of a model."""

    seed: NotRequired[Whole | None]
    steps: NotRequired[Count | None]
    planned_steps: NotRequired[Count | None]
    match_of: NotRequired[str | None]
    match_perplexity: NotRequired[Number | None]
    clean_perplexity: NotRequired[Number | None]


class ControlFields(TypedDict):
    """The kind of a control, and the model it is a control of."""

    kind: Annotated[str, Field(min_length=1)]
    seed: NotRequired[Whole]
    of: NotRequired[str]


class ModelFields(TypedDict):
    """The model of a record."""

    weights_hash: Annotated[str, Field(min_length=1)]
    name: NotRequired[str]
    spec: NotRequired[str]
    n_parameters: NotRequired[Count | None]
    shape: NotRequired[dict[str, Any] | None]
    control: NotRequired[ControlFields | None]
    configuration: NotRequired[dict[str, Any]]
    ablation: NotRequired[AblationFields | None]
    training: NotRequired[TrainingFields | None]


class DataFields(TypedDict):
    """The data of a record."""

    spec: NotRequired[str | None]
    content: NotRequired[str | None]
    split: NotRequired[str | None]
    validation: NotRequired[str | None]
    tokenizer: NotRequired[str | None]
    substitutes: NotRequired[str]
    n: NotRequired[Count | None]
    n_stories: NotRequired[Count]
    n_tokens: NotRequired[Count]


def _dated(text: str) -> str:
    try:
        if text:
            datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("is no date and time, such as 2025-06-01T12:00:00+00:00") from None
    return text


Moment = Annotated[str, AfterValidator(_dated)]


class RecordFields(TypedDict):
    """The fields of all records."""

    schema: int
    evaluation: str
    model: ModelFields
    data: DataFields
    config: dict[str, Any]
    config_hash: str
    seed: Whole
    metrics: list[MetricFields]
    extra: NotRequired[dict[str, Any]]
    versions: NotRequired[dict[str, str]]
    commit: NotRequired[str | None]
    started: NotRequired[Moment]
    seconds: NotRequired[Number]
    device: NotRequired[str]
    version: NotRequired[Count]


def _paired(fields: dict[str, Any]) -> dict[str, Any]:
    lengths = {len(value) for value in fields.values() if isinstance(value, list)}
    if len(lengths) > 1:
        raise ValueError("its lists have different lengths")
    return fields


class CurveFields(TypedDict):
    """A value with its standard error for each layer."""

    value: Numbers
    standard_error: list[Annotated[Number, Field(ge=0)] | None]


Curve = Annotated[CurveFields, AfterValidator(_paired)]


class ActivationFields(TypedDict):
    """Sparsity of activations by layer."""

    z_hoyer: NotRequired[Curve]
    post_hoyer: NotRequired[Curve]


class LanguageExtra(TypedDict):
    """``extra`` of lm."""

    activations: NotRequired[ActivationFields | None]


class AutoencoderFields(TypedDict):
    """The hook of an autoencoder."""

    hook: str
    label: str


class DensityFields(TypedDict):
    """A histogram of feature densities."""

    log10_edges: list[Number]
    features: list[Count]
    dead: Count


def _check_histogram(density: dict[str, Any]) -> dict[str, Any]:
    if len(density["log10_edges"]) != len(density["features"]) + 1:
        raise ValueError("a histogram has one more edge than bins")
    return density


class ReplicateFields(TypedDict):
    """Metrics of autoencoders with other seeds."""

    l0: Numbers
    ce_score: Numbers


class AutoencoderExtra(TypedDict):
    """``extra`` of sae."""

    sae: NotRequired[AutoencoderFields]
    density: NotRequired[Annotated[DensityFields, AfterValidator(_check_histogram)]]
    replicates: NotRequired[Annotated[ReplicateFields, AfterValidator(_paired)]]


class MatrixFields(TypedDict):
    """Values for pairs of layers."""

    value: list[Numbers]


class SiteFields(TypedDict):
    """Usage of units of a site."""

    k: Count
    units: Annotated[int, Field(gt=0, le=10**9)]
    frequency: list[str]
    dead: Curve
    overlap: Curve
    overlap_same_story: Curve
    overlap_chance: Curve
    similarity: MatrixFields


class UsageFields(TypedDict):
    """Usage of units by site."""

    attention: SiteFields
    neuron: SiteFields


class PictureFields(TypedDict):
    """The units selected by each token of a story."""

    tokens: list[str]
    attention: list[list[str]]
    neuron: list[list[str]]


class LeakFields(TypedDict):
    """Results of the probes."""

    probes: dict[str, list[dict[str, Any]]]


class GatesExtra(TypedDict):
    """``extra`` of gates."""

    picture: NotRequired[PictureFields]
    usage: NotRequired[UsageFields]
    leak: NotRequired[LeakFields]


class UnitsFields(TypedDict):
    """Scores of each unit."""

    layer: list[Layer]
    simulation: Numbers
    detection: NotRequired[Numbers]
    fuzzing: NotRequired[Numbers]
    control: NotRequired[Numbers]
    reason: NotRequired[list[str | None]]


class NeuronsExtra(TypedDict):
    """``extra`` of neurons."""

    units: NotRequired[Annotated[UnitsFields, AfterValidator(_paired)]]
    details: NotRequired[FileName | None]
    unscored: NotRequired[dict[str, dict[str, list[Count]]]]


class SettingFields(TypedDict):
    """Metrics at one pair of thresholds."""

    importance: Number
    activation: Number
    metrics: dict[str, Number | None]


class GraphsExtra(TypedDict):
    """``extra`` of n2g."""

    layers: NotRequired[list[Layer]]
    reasons: NotRequired[dict[str, Count]]
    sensitivity: NotRequired[list[SettingFields]]


class CircuitConfig(TypedDict):
    """``config`` of acdc."""

    method: NotRequired[str]
    ablation: NotRequired[str]


class FrontierConfig(TypedDict):
    """``config`` of circuits."""

    methods: NotRequired[list[str]]
    ablations: NotRequired[list[str]]


class AutoencoderConfig(TypedDict):
    """``config`` of sae."""

    architecture: NotRequired[str]
    sparsity: NotRequired[Number | None]
    hook: NotRequired[str | None]
    given: NotRequired[str | None]
    tokens: NotRequired[Count]


class ExaminerFields(TypedDict):
    """The examiner of explanations."""

    name: NotRequired[str]


class NeuronsConfig(TypedDict):
    """``config`` of neurons."""

    examiner: NotRequired[ExaminerFields]
    hook: NotRequired[str]
    stream: NotRequired[str]
    sae: NotRequired[str | None]


class ThresholdFields(TypedDict):
    """Thresholds of a graph."""

    activation: Number
    importance: Number


class GraphsConfig(TypedDict):
    """``config`` of n2g."""

    thresholds: NotRequired[ThresholdFields]
    neurons_per_layer: NotRequired[Count | None]
    hook: NotRequired[str]
    stream: NotRequired[str]
    sae: NotRequired[str | None]


_RECORD = TypeAdapter(RecordFields)
_EXTRA: dict[str, Any] = {
    "lm": TypeAdapter(LanguageExtra),
    "acdc": TypeAdapter(CircuitExtra),
    "circuits": TypeAdapter(FrontierExtra),
    "sae": TypeAdapter(AutoencoderExtra),
    "gates": TypeAdapter(GatesExtra),
    "neurons": TypeAdapter(NeuronsExtra),
    "n2g": TypeAdapter(GraphsExtra),
}
_CONFIG: dict[str, Any] = {
    "acdc": TypeAdapter(CircuitConfig),
    "circuits": TypeAdapter(FrontierConfig),
    "sae": TypeAdapter(AutoencoderConfig),
    "neurons": TypeAdapter(NeuronsConfig),
    "n2g": TypeAdapter(GraphsConfig),
}


def problem(content: dict[str, Any]) -> str | None:
    """Return the first field of a record's JSON with a wrong type, and why; None if there is none.

    The result is one line, such as ``model.ablation.variant: Input should be 'none', 'local' or
    'global', not 'spiral'``.
    """
    if reason := _problem(_RECORD, content, ""):
        return reason
    name = content["evaluation"]
    for field, adapters in (("extra", _EXTRA), ("config", _CONFIG)):
        adapter = adapters.get(name)
        if adapter and (reason := _problem(adapter, content.get(field, {}), f"{field}.")):
            return reason
    return None


def _problem(adapter: Any, content: Any, within: str) -> str | None:
    try:
        adapter.validate_python(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = within + ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            return f"{place}: missing"
        given = repr(first["input"])
        given = given if len(given) <= 40 else f"{given[:37]}..."
        return f"{place}: {first['msg']}, not {given}"
    return None
