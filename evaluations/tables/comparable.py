"""In what the records of a table differ, beside the model: said under every table."""

from __future__ import annotations

from collections.abc import Sequence

from evaluations.core.record import Record


def differing(records: Sequence[Record]) -> list[str]:
    """What the settings and texts of records differ in, with the first few values of each."""
    found: dict[str, list[str]] = {}
    for record in records:
        told = {**record.config, "version": record.version, "text": _text(record)}
        if record.data.get("content"):
            told["content of the text"] = record.data["content"]
        for name, value in told.items():
            values = found.setdefault(str(name), [])
            values += [str(value)[:40]] * (str(value)[:40] not in values)
    lines = []
    for name, values in found.items():
        if len(values) > 1:
            more = ", ..." if len(values) > 3 else ""
            lines.append(f"{name}: {', '.join(values[:3])}{more}")
    return lines


def mixture(records: Sequence[Record]) -> list[str]:
    """A sentence for each of architecture, tokenizer and text that records differ in.

    Scores of models that differ in these do not stand in one table without it.
    """
    kinds = {
        "architectures": [_architecture(record) for record in records],
        "tokenizers": [str(record.data.get("tokenizer") or "") for record in records],
        "texts": [_text(record) for record in records],
    }
    told = []
    for name, values in kinds.items():
        known = list(dict.fromkeys(value for value in values if value))
        if len(known) > 1:
            more = ", ..." if len(known) > 4 else ""
            told.append(
                f"these are models of different {name} ({', '.join(known[:4])}{more}): a difference"
                " between them is not one of training alone"
                if name != "texts"
                else f"scored on different texts ({', '.join(known[:4])}{more}): figures of one "
                "text are no comparison with those of another"
            )
    return told


def _architecture(record: Record) -> str:
    shape = record.model.get("configuration") or record.model.get("shape") or {}
    return str(shape.get("original_architecture") or "")


def _text(record: Record) -> str:
    return str(record.data.get("validation") or record.data.get("spec") or "")
