"""Tables and figures of ``lens``: curves over layers, what lenses cost, edits, and the prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from evaluations.core.record import Record
from evaluations.suite.lens.config import KINDS
from evaluations.suite.lens.picture import curves, edits, layers_by_tokens
from evaluations.suite.lens.words import CAVEAT, WORDS
from evaluations.tables import Cell, Column, Heading, Layout, Row, Table, make_tables, rows
from evaluations.tables.headline import Headline
from evaluations.tables.table import UNSCORED
from sat_interp._util.files import file_name

HEADLINE = Headline(
    "How far is its prediction from one without attention of later layers?",
    "share_oca",
    "area under the OCA curve / floor",
    3,
    "lower",
)
DRAWN_FROM = "layers"
"""Entry of ``record.extra`` that figures are drawn from."""
EDITS = ("project", "steer", "resample")


def _column(metric: str, heading: str, digits: int, definition: str) -> Column:
    return Column("lens", metric, heading, digits, True, definition=definition)


AREAS = Layout(
    "lens-areas",
    "Lenses: KL of the model's prediction from the lens's, mean over layers (nats)",
    (
        *(
            _column(
                f"area_{kind}",
                WORDS[kind].capitalize() if kind != "oca" else "OCA",
                3,
                f"{WORDS[kind]}: mean over layers of KL(model || lens), held-out stories",
            )
            for kind in KINDS
        ),
        _column(
            "area_oca_minus_tuned",
            "OCA - tuned",
            3,
            "Difference of the areas, story by story: below 0 where constants in place of "
            "attention say more than a linear map of the stream",
        ),
        _column(
            "area_oca_minus_mean",
            "OCA - mean",
            3,
            "Difference of the areas: what fitting the constants adds to running the later MLPs",
        ),
        _column("share_oca", "OCA / floor", 3, "Area under the OCA curve divided by the floor"),
        _column("share_tuned", "Tuned / floor", 3, "Area of the tuned lens divided by the floor"),
        _column("floor_kl", "Floor", 2, "KL of the mean prediction: knowing nothing of the text"),
    ),
    "Lower: the prediction is nearer to the model's. All lenses of a model: same text, same "
    "positions.",
)

AGREEMENT = Layout(
    "lens-agreement",
    "Lenses: share of positions with the model's top token, mean over layers",
    tuple(
        _column(
            f"agreement_{kind}",
            WORDS[kind].capitalize() if kind != "oca" else "OCA",
            3,
            f"{WORDS[kind]}: top-1 agreement with the model",
        )
        for kind in KINDS
    ),
)
LAYOUTS = (AREAS, AGREEMENT)


def tables(records: Sequence[Record]) -> list[Table]:
    """Areas and agreement; then each model's lenses by layer, what they took, and edits."""
    models = [row for row in rows(records, "lens") if _layers(row.records["lens"])]
    return [
        *make_tables(LAYOUTS, records),
        *map(_layers_table, models),
        *map(_spent_table, models),
        *(_edits_table(row) for row in models if row.records["lens"].extra.get("edits")),
    ]


def _layers(record: Record) -> list[dict[str, Any]]:
    """Return the rows by lens and layer; nothing of a record without its large parts."""
    found = record.extra.get("layers")
    return found if isinstance(found, list) else []


def _layers_table(row: Row) -> Table:
    """KL by layer: a row for each lens."""
    layers = _layers(row.records["lens"])
    numbers = sorted({one["layer"] for one in layers})
    body = [
        [
            Cell.label("lens", kind),
            *(_value(one, "kl", 3) for one in layers if one["lens"] == kind),
        ]
        for kind in dict.fromkeys(one["lens"] for one in layers)
    ]
    headings = (
        Heading("Lens"),
        *(
            Heading(f"Layer {n}", "lower", "KL(model || lens) of the stream before this block")
            for n in numbers
        ),
    )
    return Table(
        f"lens-layers-{file_name(row.model)}",
        f"Lenses of {row.model} by layer: KL of the model's prediction, nats",
        headings,
        body,
    )


def _value(one: Mapping[str, Any], name: str, digits: int, prefix: str = "") -> Cell:
    """A figure with its interval."""
    exact = {f"{prefix}{name}{end}": one.get(f"{name}{end}") for end in ("", "_low", "_high")}
    if "layer" in one and not prefix:
        exact = {f"layer{one['layer']}_{key}": value for key, value in exact.items()}
    value, low, high = (one.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return Cell(UNSCORED, "none", (), exact)
    details = () if low is None else (f"[{low:.{digits}f}, {high:.{digits}f}]",)
    return Cell(f"{value:.{digits}f}", "value", details, exact)


def _spent_table(row: Row) -> Table:
    """What each lens took: numbers estimated, positions, processor time."""
    spent: Mapping[str, Mapping[str, Any]] = row.records["lens"].extra["spent"]
    body = [
        [
            Cell.label("lens", kind),
            *(
                Cell(f"{one[name]:,}", "value", (), {name: one[name]})
                for name in ("parameters", "tokens", "read")
            ),
        ]
        for kind, one in spent.items()
    ]
    headings = (
        Heading("Lens"),
        Heading("Parameters", None, "Numbers estimated from text"),
        Heading(
            "Positions", None, "Different positions of text that they are estimated, or drawn, from"
        ),
        Heading("Positions read", None, "Positions evaluated, each as often as it was"),
    )
    return Table(
        f"lens-spent-{file_name(row.model)}", f"What the lenses of {row.model} took", headings, body
    )


def _edits_table(row: Row) -> Table:
    """Causal faithfulness: a row for each lens and basis."""
    record = row.records["lens"]
    found: list[dict[str, Any]] = record.extra["edits"]
    pairs = dict.fromkeys((one["lens"], one["basis"]) for one in found)
    body = []
    for kind, basis in pairs:
        cells = [Cell.label("lens", kind), Cell.label("basis", basis)]
        for figure in ("magnitude", "direction"):
            for edit in EDITS:
                name = f"{figure}_{edit}_{basis}_{kind}"
                cells.append(_value(_of_metric(record, name), "value", 2, f"{figure}_{edit}_"))
        body.append(cells)
    headings = (
        Heading("Lens"),
        Heading("Directions"),
        *(
            Heading(f"{figure.capitalize()}, {edit}", "higher", definition)
            for figure, definition in (
                ("magnitude", "Correlation of ln KL of the model's and of the lens's change"),
                ("direction", "Correlation of the changes of log-probabilities, weighted by p"),
            )
            for edit in EDITS
        ),
    )
    return Table(
        f"lens-edits-{file_name(row.model)}",
        f"Edits of the stream of {row.model}: whether lenses follow the model",
        headings,
        body,
        "Means over layers.",
        [CAVEAT],
        n_labels=2,
    )


def _of_metric(record: Record, name: str) -> dict[str, Any]:
    metric = record.metric(name)
    if metric is None:
        return {}
    interval = metric.interval
    return {
        "value": metric.value,
        "value_low": interval and interval.low,
        "value_high": interval and interval.high,
    }


# Figures -----------------------------------------------------------------------------------------


def _curves(records: Sequence[Record]) -> list[Figure]:
    return curves([row for row in rows(records, "lens") if _layers(row.records["lens"])])


def _edits(records: Sequence[Record]) -> list[Figure]:
    return edits([row for row in rows(records, "lens") if row.records["lens"].extra.get("edits")])


def _picture(records: Sequence[Record], kind: str) -> list[Figure]:
    """The prompt through one lens, of each model that has it."""
    found = []
    for row in rows(records, "lens"):
        prompt = row.records["lens"].extra.get("prompt") or {}
        if kind in prompt.get("lenses", {}):
            found.append(layers_by_tokens(row, prompt, kind))
    return found


FIGURES: Mapping[str, Callable[[Sequence[Record]], list[Figure]]] = {
    "": _curves,
    "edits": _edits,
    **{kind: partial(_picture, kind=kind) for kind in KINDS},
}


def details(record: Record, out: Path) -> pd.DataFrame:
    """A row for each lens and layer: KL and agreement with intervals, and the fit's certificate."""
    return pd.DataFrame(
        {
            "model": record.model.get("name"),
            **{key: value for key, value in one.items() if key != "fit"},
            **{f"fit_{key}": value for key, value in (one["fit"] or {}).items()},
        }
        for one in _layers(record)
    )


def files(records: Sequence[Record], out: Path, stem: str) -> list[Path]:
    """Nothing besides tables and figures; the lenses are written where they are fitted."""
    return []
