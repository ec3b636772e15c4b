"""Differences between the records of a table, other than the model: notes under every table."""

from __future__ import annotations

from collections.abc import Sequence

from evaluations.core.record import Record


def differing(records: Sequence[Record]) -> list[str]:
    """The settings and texts that differ between records, with the first few values of each."""
    by_name: dict[str, list[str]] = {}
    for record in records:
        settings = {**record.config, "version": record.version, "text": _text(record)}
        if record.data.get("content"):
            settings["content of the text"] = record.data["content"]
        for name, value in settings.items():
            values = by_name.setdefault(str(name), [])
            values += [str(value)[:40]] * (str(value)[:40] not in values)
    lines = []
    for name, values in by_name.items():
        if len(values) > 1:
            more = ", ..." if len(values) > 3 else ""
            lines.append(f"{name}: {', '.join(values[:3])}{more}")
    return lines


def mixture(records: Sequence[Record]) -> list[str]:
    """A warning for each of architecture, tokenizer and text that differs between records."""
    kinds = {
        "architectures": [_architecture(record) for record in records],
        "tokenizers": [str(record.data.get("tokenizer") or "") for record in records],
        "texts": [_text(record) for record in records],
    }
    lines = []
    for name, values in kinds.items():
        known = list(dict.fromkeys(value for value in values if value))
        if len(known) > 1:
            more = ", ..." if len(known) > 4 else ""
            lines.append(
                f"models of different {name} ({', '.join(known[:4])}{more}): a difference between "
                "them is not due to training alone"
                if name != "texts"
                else f"scored on different texts ({', '.join(known[:4])}{more}): values on "
                "different texts cannot be compared"
            )
    return lines


def _architecture(record: Record) -> str:
    shape = record.model.get("configuration") or record.model.get("shape") or {}
    return str(shape.get("original_architecture") or "")


def _text(record: Record) -> str:
    return str(record.data.get("validation") or record.data.get("spec") or "")
