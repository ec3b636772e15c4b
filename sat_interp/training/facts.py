"""Checks of a run's state.json, summary.json and log when they are read again.

Each check raises a ValueError whose text names the field and its value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from sat_interp._util.errors import shown


def check_facts(facts: dict[str, Any]) -> None:
    """Do nothing if a checkpoint's facts are what ``sat-train`` writes.

    Raises:
        ValueError: a field is missing or of another type.
    """
    _need(facts, "seconds", _is_amount)
    _need(facts, "log_bytes", _is_count)
    for name in ("last", "best", *(["initial"] if "initial" in facts else [])):
        _need(facts, name, lambda value: isinstance(value, dict))
        if facts[name]:  # empty before the first validation
            _need(facts[name], "step", _is_count)
            _need(facts[name], "validation_clean", is_number)
            if "validation_ablated" in facts[name]:
                _need(facts[name], "validation_ablated", is_number)
    _need(facts, "inputs", _is_of_texts)


def check_summary(summary: Any, whole: bool = True) -> dict[str, Any]:
    """A finished run's summary, if it is what ``sat-train`` writes.

    Args:
        whole: every field must be there; else the best perplexity is enough.

    Raises:
        ValueError: it is not a mapping, or a field is missing or of another type.
    """
    if not isinstance(summary, dict):
        raise ValueError(f"it must be a mapping, not {shown(summary)}")
    checks = {
        "final": lambda value: isinstance(value, dict),
        "steps": _is_count,
        "tokens": _is_count,
        "seconds": _is_amount,
        "config": lambda value: isinstance(value, dict),
    }
    for name, check in checks.items():
        if whole or name in summary:
            _need(summary, name, check)
    _need(summary, "best", lambda value: isinstance(value, dict))
    for losses in (summary["best"], summary.get("final", {})):
        for name in ("clean_loss", "clean_perplexity", "ablated_loss", "ablated_perplexity"):
            if name in losses or (whole and name.startswith("clean")):
                _need(losses, name, is_number)
    _need(summary["best"], "clean_perplexity", is_number)
    if "inputs" in summary:  # runs of before this was written have none
        _need(summary, "inputs", _is_of_texts)
    return summary


def check_log(content: bytes) -> None:
    """Do nothing if these are whole lines of a log.

    Raises:
        ValueError: they are not.
    """
    if damaged := read_lines(content)[1]:
        raise ValueError(f"log.jsonl has {damaged} damaged lines")


def read_lines(content: bytes) -> tuple[list[dict[str, Any]], int]:
    """A log's lines, and the number of damaged ones."""
    lines, damaged = [], 0
    for line in content.splitlines():
        try:
            value = json.loads(line.decode())
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict) and _is_count(value.get("step")):
            lines.append(value)
        else:
            damaged += 1
    return lines, damaged


def _need(facts: dict[str, Any], name: str, is_right: Callable[[Any], bool]) -> None:
    if name not in facts:
        raise ValueError(f"{name} is missing")
    if not is_right(facts[name]):
        raise ValueError(f"{name} is {shown(facts[name])}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def is_number(value: Any) -> bool:
    """Whether a value of a log is a finite number; True and False are none."""
    if type(value) not in (int, float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _is_amount(value: Any) -> bool:
    return is_number(value) and value >= 0


def _is_of_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
