"""``sat-eval lens``: fitting all OCA layers against the tuned lens's official recipe, to one KL.

    python -m benchmarks.lens                              # the built-in baseline
    python -m benchmarks.lens --batches 1024,4096,262144   # positions of a step of the recipe

Both are fitted on the same positions and measured on the same held-out ones, in one run on one
thread; times are of the process (CPU seconds). A step of the official recipe reads 2^18 positions:
where the text has fewer, passes over it are put together. Its steps are timed until it has the mean
KL over layers of OCA, or for ``--limit`` seconds: then its time is a lower bound, and marked so.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import torch
from rich.console import Console
from torch import Tensor

from evaluations.core.model_source import load_model
from evaluations.core.text import evaluation_text
from evaluations.core.windows import split_windows
from evaluations.suite.lens.config import LensConfig
from evaluations.suite.lens.ending import Ending, Target
from evaluations.suite.lens.fit import Fitting, fit_oca
from evaluations.suite.lens.fit_maps import Maps, Recipe, fit_official
from evaluations.suite.lens.lenses import run_blocks
from evaluations.suite.lens.positions import Positions, read_positions

CHECK = 5
"""Steps of the recipe between two looks at the held-out KL, which are not timed."""


@dataclass(frozen=True)
class Bench:
    """A model, the positions that lenses are fitted on, and others."""

    fitting: Fitting
    held: Positions
    target: Target

    def kl(self, ends: list[Tensor]) -> list[float]:
        """The held-out KL of each layer."""
        ending = self.fitting.ending
        with torch.no_grad():
            return [
                float(
                    sum(
                        ending.kl(self.target.take(rows), end[rows]).sum()
                        for rows in ending.chunks(len(end))
                    )
                )
                / len(end)
                for end in ends
            ]

    def oca(self) -> tuple[float, list[float]]:
        """Seconds that all OCA layers take, and their held-out KL."""
        begin = time.process_time()
        tensors, _, _ = fit_oca(self.fitting)
        seconds = time.process_time() - begin
        ending, streams = self.fitting.ending, self.held.streams
        with torch.no_grad():
            ends = [
                run_blocks(ending, layer, streams[layer], tensors["c"][layer, layer:])
                for layer in range(ending.n_layers)
            ]
        return seconds, self.kl(ends)

    def official(self, batch: int, wanted: float, limit: float) -> Race:
        """Run the recipe until its mean KL is the wanted one, or its time is over."""
        fitting, ending = self.fitting, self.fitting.ending
        n, passes = len(fitting.positions), max(1, batch // len(fitting.positions))
        streams = [stream.repeat(passes, 1) for stream in fitting.streams] if batch > n else None
        target = (
            ending.targets(fitting.positions.streams[-1].repeat(passes, 1)) if streams else None
        )
        looks, begin = [0.0], time.process_time()
        reached: list[tuple[int, float]] = []

        def after(step: int, maps: Maps) -> bool:
            if step % CHECK and step != 1:
                return False
            now = time.process_time()
            ends = [
                stream + stream @ maps.matrices[layer].T + maps.biases[layer]
                for layer, stream in enumerate(self.held.streams[:-1])
            ]
            found = sum(self.kl(ends)) / ending.n_layers
            looks[0] += time.process_time() - now
            reached.append((step, found))
            return found <= wanted or time.process_time() - begin - looks[0] > limit

        fit_official(
            ending,
            target or fitting.target,
            streams or fitting.streams,
            Recipe(batch=batch),
            after,
        )
        seconds = time.process_time() - begin - looks[0]
        step, found = reached[-1]
        return Race(batch, step, seconds, found, found <= wanted)


@dataclass(frozen=True)
class Race:
    """How far the recipe came, and in how many seconds."""

    batch: int
    steps: int
    seconds: float
    kl: float
    is_there: bool


def prepared(model: str, data: str, config: LensConfig) -> Bench:
    """Read fitted and held-out positions."""
    loaded = load_model(model, device="cpu")
    text = evaluation_text(loaded.tokenizer, data)
    fit, held = split_windows(
        text, config.fit_windows, config.held_windows, config.window, f"lens/{config.seed}"
    )
    ending = Ending(loaded.model)
    own, other = (
        read_positions(loaded.model, one.tokens, config.first, 1, 0) for one in (fit, held)
    )
    fitting = Fitting(ending, own, ending.targets(own.streams[-1]), config)
    return Bench(fitting, other, ending.targets(other.streams[-1]))


def main() -> None:
    """Print the times of both, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="demo:baseline")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--batches", default="1024,4096,262144")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for each batch size")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = prepared(options.model, options.data, LensConfig())
    seconds, layers = bench.oca()
    wanted = sum(layers) / len(layers)
    console = Console()
    shown = ", ".join(f"{one:.3f}" for one in layers)
    console.print(
        f"OCA, {len(layers)} layers, {len(bench.fitting.positions):,} positions: "
        f"{seconds:.1f} s, held-out KL {wanted:.4f} ({shown})"
    )
    for batch in map(int, options.batches.split(",")):
        race = bench.official(batch, wanted, options.limit)
        ratio = f"{'' if race.is_there else 'more than '}{race.seconds / seconds:.2f}"
        end = "that KL" if race.is_there else f"KL {race.kl:.4f}"
        console.print(
            f"the official recipe, {batch:,} positions a step: {end} after {race.steps} steps, "
            f"{race.seconds:.1f} s; {ratio} times OCA's"
        )


if __name__ == "__main__":
    main()
