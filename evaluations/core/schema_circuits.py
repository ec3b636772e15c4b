"""The types of the fields of ``acdc`` and ``circuits`` (see ``schema``)."""

from __future__ import annotations

import re
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from evaluations.core.schema_types import Count, Layer, Number, Numbers


class GraphFields(TypedDict):
    """The shape of a circuit's graph."""

    n_layers: Layer
    n_heads: Annotated[int, Field(ge=0, le=1000)]
    mlps: bool
    parallel: NotRequired[bool]
    groups: NotRequired[Annotated[int, Field(ge=1, le=1000)]]
    n_edges: Count


class EdgeFields(TypedDict):
    """An edge of a circuit."""

    source: str
    destination: str
    score: NotRequired[Number | None]


class CircuitFields(TypedDict):
    """A circuit."""

    graph: GraphFields
    edges: Annotated[list[EdgeFields], Field(max_length=10**6)]


def _within_graph(circuit: dict[str, Any]) -> dict[str, Any]:
    """Check that edges name nodes of the graph."""
    layers, heads = circuit["graph"]["n_layers"], circuit["graph"]["n_heads"]
    for edge in circuit["edges"]:
        source = re.fullmatch(r"embed|m(\d+)|a(\d+)\.h(\d+)", edge["source"])
        end = re.fullmatch(r"resid_final|m(\d+)|a(\d+)\.[hg](\d+)\.[qkv]", edge["destination"])
        for match, name in ((source, edge["source"]), (end, edge["destination"])):
            if match is None:
                raise ValueError(f"{name[:40]!r} is not the name of a node of a circuit")
            layer, head = match[1] or match[2], match[3]
            if int(layer or 0) >= layers or int(head or 0) >= heads:
                raise ValueError(f"the graph has no node {name[:40]!r}")
    return circuit


Circuit = Annotated[CircuitFields, AfterValidator(_within_graph)]


class WithValue(TypedDict):
    """A value with its uncertainty."""

    value: Number | None


class PointFields(TypedDict):
    """A circuit on the curve of a method."""

    edges: Count
    faithfulness: Number | WithValue | None
    kl: Number | WithValue | None


class SweptFields(PointFields):
    """The circuit of a threshold."""

    held_out_faithfulness: NotRequired[Number | WithValue | None]
    held_out_kl: NotRequired[Number | WithValue | None]


class CircuitExtra(TypedDict):
    """``extra`` of acdc."""

    circuit: NotRequired[Circuit]
    tau: NotRequired[Number | None]
    marked: NotRequired[str | None]
    curve: NotRequired[list[PointFields]]
    sweep: NotRequired[list[SweptFields]]


class FrontierPointFields(TypedDict):
    """A circuit of a frontier."""

    edges: Count
    held: Number
    low: Number
    high: Number


class FrontierFields(TypedDict):
    """A frontier."""

    ablation: str
    method: str
    null: bool
    points: Annotated[list[FrontierPointFields], Field(max_length=10**4)]


class FrontierCircuitFields(TypedDict):
    """A method's circuit at a fixed share of the ceiling."""

    ablation: str
    method: str
    null: bool
    setting: str
    held: Number
    circuit: Circuit


class OverlapFields(TypedDict):
    """How much circuits have in common."""

    names: list[str]
    edges: list[Count]
    jaccard: list[Numbers]
    random: Numbers


def _square(overlap: dict[str, Any]) -> dict[str, Any]:
    n = len(overlap["names"])
    rows = [overlap["edges"], overlap["random"], overlap["jaccard"], *overlap["jaccard"]]
    if any(len(row) != n for row in rows):
        raise ValueError("its lists have different lengths")
    return overlap


class FrontierExtra(TypedDict):
    """``extra`` of circuits."""

    marked: NotRequired[str | None]
    ceiling: NotRequired[Number]
    null_ceiling: NotRequired[Number | None]
    no_null: NotRequired[str]
    curves: NotRequired[list[FrontierFields]]
    circuits: NotRequired[list[FrontierCircuitFields]]
    overlap: NotRequired[Annotated[OverlapFields, AfterValidator(_square)]]
