"""The file a run writes beside its record: for each unit its explanation and all its excerpts.

One JSON value, gzipped; its parts are what ``evaluations.suite.neurons.page`` shows;
``evaluations.suite.neurons.reading`` reads it.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from evaluations.core.excerpts import HALVES, Half
from evaluations.core.record import Metric, plain
from evaluations.suite.neurons.examiners.base import HIGHEST
from evaluations.suite.neurons.scores import UnitScores
from evaluations.suite.neurons.shown import KINDS, Sight
from sat_interp._util.files import write_atomically

WIDTH = 48
"""Tokens of an excerpt on the page, about a third of them after its peak."""

Simulated = dict[int, tuple[float, ...]]
"""Of a unit, the simulated levels of each held-out excerpt by its rank."""


@dataclass
class Details:
    """Units, as they come; the tokens that occur in them are numbered anew."""

    names: Sequence[str]
    units: list[dict[str, Any]] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict)

    def add(
        self,
        sight: Sight,
        place: int,
        scores: UnitScores,
        explanation: str,
        simulated: Simulated,
        density: float,
        maximum: float,
    ) -> None:
        """Add a unit and all of its excerpts, by falling peak.

        Args:
            place: the unit's index in ``sight``.
        """
        chosen: list[tuple[Half, int]] = [
            (half, rank) for half in HALVES for rank in range(int(sight.sheaf(half).counts[place]))
        ]
        values = {name: round(value, 4) for name, value in scores.values.items()}
        self.units.append(
            {
                "unit": sight.name(place),
                "layer": sight.layer,
                "index": int(sight.units[place]),
                "score": values.get("simulation"),
                **{name: values.get(name) for name in ("detection", "fuzzing", "control")},
                "reason": scores.reasons.get("simulation"),
                "explanation": explanation,
                "density": float(f"{density:.4g}"),
                "maximum": float(f"{maximum:.4g}"),
                "excerpts": [
                    self._excerpt(sight, place, half, rank, simulated) for half, rank in chosen
                ],
            }
        )

    def _excerpt(
        self, sight: Sight, place: int, half: Half, rank: int, simulated: Simulated
    ) -> dict[str, Any]:
        sheaf = sight.sheaf(half)
        length = int(sheaf.lengths[place, rank])
        peak = int(np.nanargmax(sheaf.activations[place, rank]))
        first = max(0, min(peak - 2 * WIDTH // 3, length - WIDTH))
        window = slice(first, min(first + WIDTH, length))
        levels = simulated.get(rank) if half == "held_out" else None
        return {
            "half": half,
            "kind": KINDS[sheaf.kinds[place, rank]],
            "story": int(sheaf.stories[place, rank]),
            "start": int(sheaf.starts[place, rank]) + first,
            "tokens": self._tokens(sheaf.tokens[place, rank, window]),
            "levels": sight.levels[half][place, rank, window].tolist(),
            "simulated": None if levels is None else _whole(levels[window]),
        }

    def _tokens(self, tokens: Int[np.ndarray, " length"]) -> list[int]:
        strings = (self.names[token] for token in tokens.tolist())
        return [self._numbers.setdefault(text, len(self._numbers)) for text in strings]

    def write(self, path: Path, told: dict[str, Any], metrics: Sequence[Metric]) -> Path:
        """All of it.

        Args:
            told: what is said of the whole run.
        """
        lost = next((one.reasons for one in metrics if one.name == "unscored"), {})
        whole = {
            **told,
            "figures": [_figure(one) for one in metrics if "_layer_" not in one.name],
            "reasons": lost,
            "vocabulary": list(self._numbers),
            "layers": sorted({unit["layer"] for unit in self.units}),
            "units": self.units,
        }
        text = json.dumps(plain(whole), separators=(",", ":"), ensure_ascii=False)
        return write_atomically(path, gzip.compress(text.encode(), mtime=0))


def _figure(metric: Metric) -> dict[str, Any]:
    interval = metric.interval
    return {
        "title": metric.title,
        "value": metric.value,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "n": metric.n,
    }


def _whole(levels: Sequence[float]) -> list[int]:
    return [min(HIGHEST, max(0, round(level))) for level in levels]
