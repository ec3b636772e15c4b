"""File of details beside the record: the explanation and all excerpts of each neuron.

The file is gzipped JSON; ``evaluations.suite.neurons.reading`` reads it and
``evaluations.suite.neurons.page`` shows it.
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
from evaluations.suite.neurons.excerpts import KINDS, ExcerptBatch
from evaluations.suite.neurons.scores import UnitScores
from sat_interp._util.files import write_atomically

WIDTH = 48
"""Tokens per excerpt on the page, about a third of them after its peak."""

Simulated = dict[int, tuple[float, ...]]
"""Simulated levels of a unit's held-out excerpts, by rank of the excerpt."""


@dataclass
class Details:
    """Details of units, with a vocabulary of the tokens that occur in them."""

    names: Sequence[str]
    units: list[dict[str, Any]] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict)

    def add(
        self,
        batch: ExcerptBatch,
        place: int,
        scores: UnitScores,
        explanation: str,
        simulated: Simulated,
        density: float,
        maximum: float,
    ) -> None:
        """Add a unit and all of its excerpts, by decreasing peak.

        Args:
            place: index of the unit in the batch.
        """
        chosen: list[tuple[Half, int]] = [
            (half, rank)
            for half in HALVES
            for rank in range(int(batch.excerpts(half).counts[place]))
        ]
        values = {name: round(value, 4) for name, value in scores.values.items()}
        self.units.append(
            {
                "unit": batch.name(place),
                "layer": batch.layer,
                "index": int(batch.units[place]),
                "score": values.get("simulation"),
                **{name: values.get(name) for name in ("detection", "fuzzing", "control")},
                "reason": scores.reasons.get("simulation"),
                "explanation": explanation,
                "density": float(f"{density:.4g}"),
                "maximum": float(f"{maximum:.4g}"),
                "excerpts": [
                    self._excerpt(batch, place, half, rank, simulated) for half, rank in chosen
                ],
            }
        )

    def _excerpt(
        self, batch: ExcerptBatch, place: int, half: Half, rank: int, simulated: Simulated
    ) -> dict[str, Any]:
        excerpts = batch.excerpts(half)
        length = int(excerpts.lengths[place, rank])
        peak = int(np.nanargmax(excerpts.activations[place, rank]))
        first = max(0, min(peak - 2 * WIDTH // 3, length - WIDTH))
        window = slice(first, min(first + WIDTH, length))
        levels = simulated.get(rank) if half == "held_out" else None
        return {
            "half": half,
            "kind": KINDS[excerpts.kinds[place, rank]],
            "story": int(excerpts.stories[place, rank]),
            "start": int(excerpts.starts[place, rank]) + first,
            "tokens": self._tokens(excerpts.tokens[place, rank, window]),
            "levels": batch.levels[half][place, rank, window].tolist(),
            "simulated": None if levels is None else _rounded(levels[window]),
        }

    def _tokens(self, tokens: Int[np.ndarray, " length"]) -> list[int]:
        strings = (self.names[token] for token in tokens.tolist())
        return [self._numbers.setdefault(text, len(self._numbers)) for text in strings]

    def write(self, path: Path, header: dict[str, Any], metrics: Sequence[Metric]) -> Path:
        """Write the file.

        Args:
            header: fields that describe the run.
        """
        reasons = next((metric.reasons for metric in metrics if metric.name == "unscored"), {})
        content = {
            **header,
            "figures": [_figure(metric) for metric in metrics if "_layer_" not in metric.name],
            "reasons": reasons,
            "vocabulary": list(self._numbers),
            "layers": sorted({unit["layer"] for unit in self.units}),
            "units": self.units,
        }
        text = json.dumps(plain(content), separators=(",", ":"), ensure_ascii=False)
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


def _rounded(levels: Sequence[float]) -> list[int]:
    return [min(HIGHEST, max(0, round(level))) for level in levels]
