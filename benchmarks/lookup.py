"""How much ``lookup`` shrinks its effects: chosen on models and stories that no table reports.

    sat-train --preset demo --seed 101 --steps 600 --warmup_steps 60 --learning_rate 6e-3 \\
        --out runs/tune-demo
    sat-train --preset demo --seed 102 --steps 800 --warmup_steps 60 --learning_rate 6e-3 \\
        --data train.jsonl.gz --validation validation.jsonl.gz --out runs/tune-stories
    python -m benchmarks.lookup runs/tune-demo runs/tune-stories

Two small models are trained for this alone. Each is explained on the first stories of its own
training split: the tables score other models, on validation stories. One shrinkage after the other
is set to the value of the grid with the highest mean simulation score (of both models, each
counting alike), until no change improves it by more than 0.0005. The score of the values in use
stands beside.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console

from evaluations.core.activations import gather
from evaluations.core.excerpts import Gathered
from evaluations.core.model_source import load_model
from evaluations.core.text import Text
from evaluations.core.units import find_units
from evaluations.suite.neurons.config import NeuronsConfig, NeuronsData
from evaluations.suite.neurons.evaluation import drawn
from evaluations.suite.neurons.examiners import lookup
from evaluations.suite.neurons.examiners.lookup import LookupExaminer
from evaluations.suite.neurons.excerpts import token_names
from evaluations.suite.neurons.run import ExplanationRun
from sat_interp.data.corpus import load_corpus
from sat_interp.data.sources import parse_data

GRID = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
GAIN = 5e-4


class Bench:
    """The units of one model, gathered once, scored under any shrinkage."""

    def __init__(self, spec: str, stories: int, sample: int, place: Path) -> None:
        loaded = load_model(spec, "cpu")
        name = loaded.data or "demo"
        corpus = load_corpus(parse_data(name), "train", loaded.tokenizer, limit=stories)
        self.text = Text(corpus, loaded.tokenizer, name, "train")
        self.config = NeuronsConfig(
            LookupExaminer(), sample=sample, scores=("simulation",), resamples=0
        )
        units = find_units(loaded.model, self.config.hook, "clean", None)
        self.data = NeuronsData(self.text, spec, loaded.name, place, cache=place)
        self.gathered: Gathered = gather(
            loaded.model, self.text, units, self.config.gather, loaded.weights_hash, place
        )
        self.names, self.chosen = token_names(self.text), drawn(units, self.config)

    def score(self) -> float:
        """The mean simulation score with ``lookup.SHRINKAGE`` as it is."""
        run = ExplanationRun(self.data, self.config, self.gathered, self.names)
        for layer, numbers in self.chosen:
            run.examine(layer, numbers)
        values = [unit.values.get("simulation", np.nan) for unit in run.units]
        return float(np.nanmean(values))


def total(benches: list[Bench], **changed: float) -> float:
    """The mean over the models, with some shrinkages changed for good."""
    lookup.SHRINKAGE.update(changed)
    return float(np.mean([bench.score() for bench in benches]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--stories", type=int, default=500)
    parser.add_argument("--sample", type=int, default=64, help="neurons of a layer")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as place:
        benches = [
            Bench(spec, options.stories, options.sample, Path(place) / str(number))
            for number, spec in enumerate(options.models)
        ]
        best, in_use = total(benches), dict(lookup.SHRINKAGE)
        console.print(f"in use: {best:.4f} {in_use}", soft_wrap=True)
        improved = True
        while improved:
            improved = False
            for kind in in_use:
                own = lookup.SHRINKAGE[kind]
                scores = {value: total(benches, **{kind: value}) for value in GRID if value != own}
                value = max(scores, key=scores.__getitem__)
                if scores[value] > best + GAIN:
                    own, best, improved = value, scores[value], True
                lookup.SHRINKAGE[kind] = own
                console.print(f"{kind}: {own} {best:.4f}", highlight=False)
        console.print(f"chosen: {best:.4f} {dict(lookup.SHRINKAGE)}", soft_wrap=True)


if __name__ == "__main__":
    main()
