"""What ``n2g`` found: Table 2 in four formats, the graphs' scores, the effect of the thresholds."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table as RichTable
from rich.text import Text

from evaluations.core.record import Interval, Metric, Record
from evaluations.core.statistics import ENOUGH, interval_of_mean
from evaluations.suite.n2g.draw import draw_graph, write_graphml
from evaluations.suite.n2g.table import CONVENTIONS, ROWS
from evaluations.tables.figures import MARKERS, PALETTE, save, unframed
from evaluations.tables.grid import SCALED
from evaluations.tables.tables import (
    ABSENT,
    ARROWS,
    Column,
    Layout,
    Row,
    caption,
    framed,
    markdown,
    markdown_lines,
    number,
    rows,
)
from sat_interp._util import escape
from sat_interp._util.files import write_atomically

SHORT = {
    "density": "G.Den E/(N(N-1))",
    "density_undirected": "G.Den 2E/(N(N-1))",
    "transitivity": "Tran",
    "edges_to_activation": "E/A",
    "out_degree": "O.D",
    "entropy": "N.Ent",
    "diversity": "T.Div",
    "empty": "Empty graphs",
    "unfaithful": "No faithful window",
}
"""The paper's abbreviations."""
DIGITS = 3


def _columns(*told: tuple[str, str, int]) -> tuple[Column, ...]:
    return tuple(
        Column("n2g", metric, heading, digits, interval=True) for metric, heading, digits in told
    )


TABLES = (
    Layout(
        "Do the graphs describe their neurons? Firing on held-out excerpts",
        _columns(
            ("f1_trie", "F1 graph", 3),
            ("f1_lookup_published", "F1 lookup, ever", 3),
            ("f1_lookup_windows", "F1 lookup, same evidence", 3),
            ("f1_lookup", "F1 lookup, whole excerpts", 3),
            ("f1_always", "F1 always", 3),
            ("predicts", "Graph predicts", 3),
            ("empty", "Empty", 3),
            ("tokens_per_unit", "Tokens/neuron", 0),
        ),
    ),
    Layout(
        "The same, of the neurons whose graph and lookups predict firing somewhere",
        _columns(
            ("f1_trie_predicting", "F1 graph", 3),
            ("precision_trie_predicting", "Precision", 3),
            ("recall_trie_predicting", "Recall", 3),
            ("f1_lookup_published_predicting", "F1 lookup, ever", 3),
            ("f1_lookup_windows_predicting", "F1 lookup, same evidence", 3),
            ("f1_lookup_predicting", "F1 lookup, whole excerpts", 3),
            ("f1_gain_published_predicting", "graph - ever", 3),
            ("f1_gain_windows_predicting", "graph - same evidence", 3),
            ("f1_gain_predicting", "graph - whole excerpts", 3),
        ),
    ),
)


def write_report(records: Sequence[Record], out: Path, stem: str = "n2g") -> list[Path]:
    """`write_text`, then `draw_thresholds`."""
    return [*write_text(records, out, stem), *draw_thresholds(records, out, stem)]


def draw_thresholds(records: Sequence[Record], out: Path, stem: str = "n2g") -> list[Path]:
    """``<stem>-thresholds``: the rows of Table 2 over the patterns' thresholds.

    Raises:
        OSError: the figure cannot be written.
    """
    found = [
        row
        for row in rows([record for record in records if record.evaluation == "n2g"])
        if row.records["n2g"].extra.get("sensitivity") and "thresholds" in row.records["n2g"].config
    ]
    return save(draw_sensitivity(found), out / f"{stem}-thresholds") if found else []


def write_text(records: Sequence[Record], out: Path, stem: str = "n2g") -> list[Path]:
    """Table 2 and the scores as ``<stem>.md``, ``.tex`` and ``.csv``.

    Args:
        records: of the evaluation ``n2g``; others are passed over.

    Raises:
        OSError: they cannot be written.
    """
    found = rows([record for record in records if record.evaluation == "n2g"])
    if not found:
        return []
    own = [row.records["n2g"] for row in found]
    parts = [markdown(layout, own) for layout in TABLES]
    parts += [markdown_table(found, convention) for convention in CONVENTIONS]
    return [
        write_atomically(out / f"{stem}.md", "\n".join(parts)),
        write_atomically(out / f"{stem}.tex", latex(found)),
        write_atomically(out / f"{stem}.csv", csv_text(found)),
    ]


def write_neuron(neuron: dict[str, Any], directory: Path) -> list[Path]:
    """One neuron's graph as PNG, SVG, GraphML and JSON, ``<directory>/<3.117>.*``."""
    stem = directory / neuron["unit"]
    # no .json: what ends so below the directory of the records is a record
    text = json.dumps(neuron, indent=1, ensure_ascii=False) + "\n"
    graph = {**neuron, "graph": neuron.get("graph") or {"nodes": [], "edges": []}}
    return [
        write_atomically(stem.with_name(f"{stem.name}.graph"), text),
        write_graphml(stem.with_name(f"{stem.name}.graphml"), graph),
        *save(draw_graph(graph), stem),
    ]


def title(convention: str) -> str:
    return f"Table 2: graphs of neurons, mean [95 % interval]; {CONVENTIONS[convention]}"


def headings(found: Sequence[Row]) -> list[str]:
    return ["Metric", "Model", *(f"L{layer}" for layer in _layers(found)), "all", "n"]


def lines(found: Sequence[Row], convention: str, gap: str = " ") -> list[list[str]]:
    """Table 2: metric x model x layer, each cell a mean or a share with its 95 % interval.

    ``n`` is how many neurons of all layers the last mean is of.

    Args:
        gap: between a value and its interval.
    """
    told = []
    for name, direction in _rows(convention):
        for index, row in enumerate(found):
            heading = f"{SHORT[name]} {ARROWS[direction]}".strip() if not index else ""
            metrics = [_metric(row, f"{name}{convention}{suffix}") for suffix in _suffixes(found)]
            whole = metrics[-1]
            n = f"{whole.n:,}" if whole is not None and whole.n is not None else ABSENT
            told.append([heading, row.model, *(_cell(metric, gap) for metric in metrics), n])
    return told


def rich_table(records: Sequence[Record], convention: str = "") -> RichTable:
    """Table 2 for a terminal."""
    found = rows([record for record in records if record.evaluation == "n2g"])
    table = framed(title(convention), note(found))
    for place, heading in enumerate(headings(found)):
        table.add_column(
            escape.terminal(heading), justify="left" if place < 2 else "right", no_wrap=place < 2
        )
    for line in lines(found, convention, gap="\n"):
        table.add_row(*(Text("\n").join(map(escape.terminal, cell.split("\n"))) for cell in line))
    return table


def markdown_table(found: Sequence[Row], convention: str) -> str:
    """Table 2 as GitHub's Markdown."""
    told = headings(found)
    table = [told, [":--", ":--", *("--:" for _ in told[2:])], *lines(found, convention)]
    return markdown_lines(title(convention), table, [note(found)])


def latex(found: Sequence[Row]) -> str:
    """Table 2 under both conventions, for LaTeX with booktabs."""
    told, parts = headings(found), []
    for convention in CONVENTIONS:
        body: list[str] = []
        for line in lines(found, convention):
            if line[0] and body:
                body.append(r"\midrule")
            body.append(" & ".join(escape.latex(cell) for cell in line) + r" \\")
        parts += [
            r"\begin{table}", r"\centering\small",
            rf"\caption{{{escape.latex(title(convention))}. {escape.latex(note(found))}}}",
            SCALED, rf"\begin{{tabular}}{{ll{'r' * (len(told) - 2)}}}", r"\toprule",
            " & ".join(escape.latex(one) for one in told) + r" \\", r"\midrule", *body,
            r"\bottomrule", r"\end{tabular}}", r"\end{table}", "",
        ]  # fmt: skip
    return "\n".join(["% needs \\usepackage{booktabs,graphicx}", *parts])


def csv_text(found: Sequence[Row]) -> str:
    """Every figure of Table 2 and of the scores, a line each, at full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["model", "weights", "metric", "layer", "value", "standard_error", "low",
                     "high", "n", "n_failed", "reasons"])  # fmt: skip
    for row in found:
        record = row.records["n2g"]
        for metric in record.metrics:
            name, _, layer = metric.name.partition(".layer")
            reasons = "; ".join(f"{reason}: {n}" for reason, n in metric.reasons.items())
            line: list[object] = [
                row.model,
                str(record.model["weights_hash"])[:8],
                name,
                layer or "all",
            ]
            line += [metric.value, metric.standard_error, *_ends(_interval(metric))]
            line += [metric.n, metric.n_failed, reasons]
            writer.writerow(map(escape.csv, line))
    return buffer.getvalue()


def note(found: Sequence[Row]) -> str:
    """What the figures were measured on, and what could not be measured."""
    told = [
        caption(Layout("", (Column("n2g", "density", ""),)), found),
        "In brackets: 95 % intervals over neurons, Student's t, of shares Wilson's; none of fewer "
        f"than {ENOUGH} neurons.",
    ]
    for row in found:
        record = row.records["n2g"]
        metric = record.metric("density")
        count = f"{row.model}: {metric.n if metric else 0:,} neurons"
        reasons = [f"{n} {reason}" for reason, n in record.extra.get("reasons", {}).items()]
        told.append("; ".join([count, *reasons]) + ".")
    sources = sorted({str(row.records["n2g"].data.get("substitutes", "?")) for row in found})
    used = [row.records["n2g"].config.get("thresholds") for row in found]
    for one in [one for place, one in enumerate(used) if one and one not in used[:place]]:
        told.append(
            f"Thresholds: activation {one['activation']:g}, importance {one['importance']:g}."
        )
    told.append(f"Substitutions: {', '.join(sources)}.")
    return " ".join(one for one in told if one)


def draw_sensitivity(found: Sequence[Row]) -> Figure:
    """Each row of Table 2 (empty graphs counted 0, all layers) over the patterns' thresholds."""
    figure = Figure(figsize=(1.9 * len(ROWS), 4.3), layout="constrained")
    grid = figure.subplots(2, len(ROWS), squeeze=False)
    for line, (moved, fixed) in zip(grid, (("importance", "activation"),
                                           ("activation", "importance")), strict=True):  # fmt: skip
        for axes, row in zip(line, ROWS, strict=True):
            for index, one in enumerate(found):
                _curve(axes, one, row.name, moved, fixed, index)
            axes.set_xlabel(f"{moved} threshold", fontsize=8)
            axes.set_ylim(0, 1.08 * max(axes.get_ylim()[1], 1e-9))
            unframed(axes, "y")
            axes.tick_params(labelsize=7)
    for axes, row in zip(grid[0], ROWS, strict=True):
        axes.set_title(SHORT[row.name], fontsize=9, loc="left")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _curve(axes: Axes, row: Row, name: str, moved: str, fixed: str, index: int) -> None:
    record = row.records["n2g"]
    own = record.config["thresholds"][fixed]
    points = sorted(
        (one[moved], one["metrics"].get(name))
        for one in record.extra["sensitivity"]
        if one[fixed] == own and one["metrics"].get(name) is not None
    )
    if points:
        axes.plot(
            *zip(*points, strict=True), label=row.label, linewidth=1.2, markersize=4,
            color=PALETTE[index % len(PALETTE)], marker=MARKERS[index % len(MARKERS)],
        )  # fmt: skip


def _rows(convention: str) -> list[tuple[str, Any]]:
    told: list[tuple[str, Any]] = [(row.name, row.direction) for row in ROWS]
    return [*told, ("empty", None), ("unfaithful", None)] if not convention else told


def _layers(found: Sequence[Row]) -> list[int]:
    return sorted({layer for row in found for layer in row.records["n2g"].extra.get("layers", [])})


def _suffixes(found: Sequence[Row]) -> list[str]:
    return [*(f".layer{layer}" for layer in _layers(found)), ""]


def _metric(row: Row, name: str) -> Metric | None:
    return row.records["n2g"].metric(name)


def _cell(metric: Metric | None, gap: str) -> str:
    if metric is None:
        return ABSENT
    if metric.value is None:
        return "n/a"
    interval = _interval(metric)
    if interval is None:
        return _plain(metric.value)
    low, high = _plain(interval.low), _plain(interval.high)
    return f"{_plain(metric.value)}{gap}[{low}, {high}]"


def _interval(metric: Metric) -> Interval | None:
    """The metric's own interval, or that of a mean; None of fewer than ``ENOUGH`` neurons."""
    if metric.interval is not None or metric.value is None:
        return metric.interval
    return interval_of_mean(metric.value, metric.standard_error, metric.n, "neurons")


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (interval.low, interval.high) if interval else (None, None)


def _plain(value: float) -> str:
    return number(value, DIGITS) if value >= 10.0**-DIGITS else f"{value:.{DIGITS}f}"
