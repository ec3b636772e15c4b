"""The page of a study on an accelerator: README.md and a figure of what its steps left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from evaluations.tables import Cell, Heading, Table, draw, markdown
from sat_interp._util.files import write_atomically

POS = 256
"""Tokens of a window of the benchmark."""
PENDING = "not done yet"


def write(found: Mapping[str, Any], out: Path) -> list[Path]:
    """Write README.md, and ioi.png and ioi.svg where a model is trained."""
    machine = found["machine"]
    lines = [
        "# The study on an accelerator",
        "",
        f"{machine['hardware']} ({machine['device_type']}), {machine['when'][:10]}, commit "
        f"{machine['commit']}, {found['seconds'] / 60:.1f} minutes in all. Records: `steps/`.",
        "",
        "## Tests marked `gpu`",
        "",
        *test_lines(found["tests"]),
        "",
        "## Training speed",
        "",
        markdown(speed_table(found["speed"])),
        "",
        "## IOI over training",
        "",
        *study_lines(found),
        "",
    ]
    written = [write_atomically(out / "README.md", "\n".join(lines))]
    trained = {group: one for group, one in found["trained"].items() if one and "curve" in one}
    return [*written, *(draw.save({"": [figure(trained)]}, out, "ioi") if trained else [])]


def test_lines(tests: Mapping[str, Any] | None) -> list[str]:
    """Counts, then each failure and each reason of a skip."""
    if tests is None:
        return [PENDING]
    if "unfinished" in tests:
        return [f"No result: {tests['unfinished']}."]
    skipped = sum(tests["skipped"].values())
    counts = f"{tests['passed']} passed, {len(tests['failures'])} failed, {skipped} skipped."
    reasons = [f"- skipped: {reason} ({n})" for reason, n in tests["skipped"].items()]
    failed = [f"- failed: {line}" for line in tests["failures"]]
    return [counts, *(["", *failed, *reasons] if failed or reasons else [])]


def speed_table(cells: Mapping[str, Mapping[str, Any] | None]) -> Table:
    """A row for each shape of batch: tokens per second, memory, and the floors."""
    known = [cell for cell in cells.values() if cell]
    keys = dict.fromkeys((cell["variant"], cell["batch"], cell["precision"]) for cell in known)
    rows = []
    for variant, batch, precision in keys:
        both = {c["what"]: c for c in known if (c["variant"], c["batch"]) == (variant, batch)}
        labels = [("variant", variant), ("batch", batch), ("precision", precision)]
        rows.append([*(Cell.label(*label) for label in labels), *_speeds(both, batch * POS)])
    headings = (
        Heading("Variant"),
        Heading("Batch"),
        Heading("Precision"),
        Heading("Tokens/s", "higher"),
        Heading("Peak MiB", "lower"),
        Heading("Plain: tokens/s", "higher"),
        Heading("Plain: peak MiB", "lower"),
        Heading("Share of the floor", "higher", "time of the step's products with weights, of it"),
    )
    failed = [
        f"{cell['variant']}, batch {cell['batch']}, {cell['what']}: {cell[why]}"
        for cell in known
        for why in ("failed", "unfinished")
        if why in cell
    ]
    caption = "Windows of 256 tokens. Plain: benchmarks/plain.py, compiled where ours is."
    return Table("speed", "Training steps", headings, rows, caption, failed, n_labels=3)


def _speeds(both: Mapping[str, Mapping[str, Any]], tokens: int) -> list[Cell]:
    cells = []
    for what in ("ours", "plain"):
        seconds, memory = (both.get(what, {}).get(name) for name in (what, "peak_mib"))
        speed = tokens / seconds if seconds else None
        cells += [
            _number(f"{what}_tokens_per_second", speed, "{:,.0f}"),
            _number(f"{what}_peak_mib", memory, "{:,.0f}"),
        ]
    ours = both.get("ours", {})
    share = ours["floor"] / ours["ours"] if {"floor", "ours"} <= ours.keys() else None
    return [*cells, _number("floor_share", share, "{:.0%}")]


def _number(name: str, value: float | None, form: str) -> Cell:
    return Cell.none(name) if value is None else Cell(form.format(value), exact={name: value})


def study_lines(found: Mapping[str, Any]) -> list[str]:
    """The recipe and a row for each group, or what is missing."""
    plan, trained, rates = found["plan"], found["trained"], list(found["rates"].items())
    if plan is None:
        found_none = [f"- {group}: {_why(one)}" for group, one in rates]
        return ["No model is trained: rates are missing, or too few steps fit.", "", *found_none]
    headings = (
        Heading("Group"),
        Heading("Tokens"),
        Heading("IOI accuracy", "higher", "of held-out prompts, Wilson interval"),
        Heading("Perplexity", "lower"),
        Heading("Ablated stream", "lower"),
        Heading("First accuracy of .95"),
    )
    rows = [[Cell.label("group", group), *_outcome(one)] for group, one in trained.items()]
    notes = [
        f"{group}: {_why(one)}" for group, one in trained.items() if not one or "unfinished" in one
    ]
    caption = f"{plan['steps']:,} steps each, one seed, loss weights 1 and 1."
    return [markdown(Table("study", "Core groups", headings, rows, caption, notes))]


def _why(one: Mapping[str, Any] | None) -> str:
    return PENDING if one is None else str(one.get("unfinished", "done"))


def _outcome(one: Mapping[str, Any] | None) -> list[Cell]:
    names = ("tokens", "ioi_accuracy", "perplexity", "ablated_perplexity", "mastered_at")
    if not one or "curve" not in one:
        return [Cell.none(name) for name in names]
    last, final = one["curve"][-1], one["final"]
    mastered = next((p["tokens"] for p in one["curve"] if p["ioi_accuracy"] >= 0.95), None)
    accuracy = last["ioi_accuracy"]
    interval = f"[{last['ioi_low']:.2f}, {last['ioi_high']:.2f}] (n={last['ioi_n']})"
    return [
        Cell(f"{one['tokens']:,}", exact={"tokens": one["tokens"]}),
        Cell(f"{accuracy:.2f}", details=(interval,), exact={"ioi_accuracy": accuracy}),
        _number("perplexity", final["clean_perplexity"], "{:.3f}"),
        _number("ablated_perplexity", final.get("ablated_perplexity"), "{:.3f}"),
        _number("mastered_at", mastered, "{:,} tokens"),
    ]


def figure(trained: Mapping[str, Mapping[str, Any]]) -> Figure:
    """IOI accuracy with its interval, by tokens seen."""
    made = Figure(figsize=(7, 4), layout="constrained")
    axes = made.subplots()
    for place, (group, one) in enumerate(trained.items()):
        tokens = [point["tokens"] for point in one["curve"]]
        values, low, high = (
            [point[f"ioi_{name}"] for point in one["curve"]] for name in ("accuracy", "low", "high")
        )
        color = draw.PALETTE[place]
        axes.plot(tokens, values, draw.MARKERS[place] + "-", color=color, label=group, ms=4)
        axes.fill_between(tokens, low, high, color=color, alpha=0.12, linewidth=0)
    axes.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set_xlabel("training tokens")
    axes.set_ylabel("IOI accuracy (chance 0.5)")
    axes.set_ylim(-0.02, 1.02)
    made.legend(loc="outside right upper", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return made
