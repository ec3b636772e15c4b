"""Progress: a bar on a terminal; under a command without one, a line now and then."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 15.0
"""Seconds between two lines, and before the first."""

_writes_lines = False


@contextmanager
def lines() -> Iterator[None]:
    """Report progress as lines on stderr inside the block, where that is no terminal."""
    global _writes_lines
    before, _writes_lines = _writes_lines, True
    try:
        yield
    finally:
        _writes_lines = before


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide the progress bars of transformers; that over a GGUF file goes to standard error."""
    from transformers.utils import logging

    bars: Any = logging
    was_shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        if was_shown:
            bars.enable_progress_bar()


def bar(
    iterable: Iterable[Any] | None = None,
    total: int | None = None,
    desc: str = "",
    unit: str = "it",
    initial: int = 0,
) -> tqdm[Any]:
    """A tqdm bar on stderr; elsewhere lines inside :func:`lines`, or nothing."""
    is_terminal = sys.stderr.isatty()
    kind = tqdm if is_terminal or not _writes_lines else _Lines
    return kind(
        iterable,
        total=total,
        desc=desc,
        unit=unit,
        initial=initial,
        unit_scale=True,
        dynamic_ncols=is_terminal,
        leave=False,
        mininterval=0.1 if is_terminal else LINE_SECONDS,
        disable=not (is_terminal or _writes_lines),
    )


class _Lines(tqdm):  # type: ignore[type-arg]  # the class itself takes no type
    """A bar that writes a line where another one would be drawn again."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write a line, unless the bar has just begun or ends."""
        state = self.format_dict
        if msg is None and state["elapsed"] >= LINE_SECONDS:
            self.fp.write(_line(state) + "\n")
            self.fp.flush()

    def close(self) -> None:
        """End without the carriage return that clears a bar."""
        self.fp = io.StringIO()
        super().close()


def _line(state: Mapping[str, Any]) -> str:
    """Return a bar's state as ``lm: losses: 45 %, 30 s left``."""
    done, total, seconds = state["n"], state["total"], state["elapsed"]
    name = f"{state['prefix'].removesuffix(': ')}: "
    if not total:
        time = tqdm.format_interval(seconds)
        return f"{name}{tqdm.format_sizeof(done)} {state['unit']} in {time}"
    made = done - state["initial"]
    left = f", {tqdm.format_interval(seconds * (total - done) / made)} left" if made else ""
    return f"{name}{done / total:.0%} of {tqdm.format_sizeof(total)} {state['unit']}{left}"
