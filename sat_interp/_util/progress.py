"""Progress bars: shown on a terminal, silent anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def bar(
    iterable: Iterable[Any] | None = None,
    total: int | None = None,
    desc: str = "",
    unit: str = "it",
    initial: int = 0,
) -> tqdm[Any]:
    """A tqdm bar on stderr that writes nothing where stderr is not a terminal."""
    return tqdm(
        iterable,
        total=total,
        desc=desc,
        unit=unit,
        initial=initial,
        unit_scale=True,
        dynamic_ncols=True,
        leave=False,
        disable=not sys.stderr.isatty(),
    )
