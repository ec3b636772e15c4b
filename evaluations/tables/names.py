"""Names of files of tables and figures, and of models of one name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from evaluations.core.record import Record, hash_of
from evaluations.core.records import identity
from sat_interp._util.files import file_name

LONGEST = 40
"""Letters of the models' names; of longer ones, their number is given."""
USUAL = {"method": "acdc", "architecture": "standard", "stream": "clean"}
"""Settings that are part of a name where they differ from these."""


def stem(evaluation: str, records: Sequence[Record]) -> str:
    """The name of an evaluation's files: ``acdc-ioi-eap-baseline+local-k4-1f0c2a``.

    It holds the task, a method or stream other than the usual one, the models, and a hash of
    weights, settings and text: commands that ask for different things write different files, and
    one that is repeated writes the same files again.
    """
    words = [evaluation]
    if evaluation in ("acdc", "circuits"):
        words += dict.fromkeys(Path(str(record.data.get("spec", ""))).stem for record in records)
    for name, usual in USUAL.items():
        values = dict.fromkeys(str(record.config.get(name, usual)) for record in records)
        words += [value for value in values if value != usual]
    models = sorted({str(record.model.get("name", "?")) for record in records})
    named = "+".join(models)
    words.append(named if len(named) <= LONGEST else f"{len(models)}-models")
    words.append(hash_of(sorted(map(identity, records)))[:6])
    return file_name(re.sub(r"[^\w+.-]+", "-", "-".join(filter(None, words))))


def distinguished(names: Sequence[str], *marks: Sequence[str]) -> list[str]:
    """Names of models: those that several share have a mark behind them.

    Args:
        marks: of each name; the second ones are for names that are still alike with the first.
    """
    made = list(names)
    for marked in marks:
        made = [
            name if made.count(name) == 1 else f"{name} {mark}"
            for name, mark in zip(made, marked, strict=True)
        ]
    return made
