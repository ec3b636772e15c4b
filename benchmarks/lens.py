"""``sat-eval lens``: fitting all OCA layers against the official recipes, to one KL.

    python -m benchmarks.lens                              # the built-in baseline
    python -m benchmarks.lens --fit-windows 74             # on fewer positions
    python -m benchmarks.lens --batches 1024,262144        # positions of a step of the tuned lens

Three fits on the same positions, measured on the same held-out ones, in one run on one thread;
times are of the process (CPU seconds):

- OCA, as this project fits it;
- OCA by its authors' recipe (arXiv 2409.09951): constants from random normal numbers, AdamW at
  2e-3, 64 positions a step, 30,000 steps. The streams before the blocks are given to it, which the
  authors' code computes anew from a window of 25 tokens for each position;
- the tuned lens by its official recipe, whose step reads 2^18 positions: where the text has fewer,
  passes over it are put together.

A recipe runs until it has the mean KL over layers of the first fit, or for ``--limit`` seconds:
then its time is a lower bound, and marked so.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field

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

CHECKS = {"OCA": 250, "tuned lens": 5}
"""Steps of a recipe between two looks at the held-out KL, which are not timed."""
OCA_STEPS, OCA_BATCH, OCA_RATE = 30_000, 64, 2e-3


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
        return seconds, self.constants_kl(tensors["c"])

    def constants_kl(self, constants: Tensor) -> list[float]:
        """The held-out KL of OCA constants (layer l, block j, d_model)."""
        ending, streams = self.fitting.ending, self.held.streams
        with torch.no_grad():
            ends = [
                run_blocks(ending, layer, streams[layer], constants[layer, layer:])
                for layer in range(ending.n_layers)
            ]
        return self.kl(ends)

    def official_oca(self, wanted: float, limit: float) -> Race:
        """Run the recipe of OCA's authors."""
        ending, fitting = self.fitting.ending, self.fitting
        n_layers, d_model = ending.n_layers, fitting.streams[0].shape[1]
        generator = torch.Generator().manual_seed(0)
        constants = torch.randn(n_layers, n_layers, d_model, generator=generator).requires_grad_()
        optimiser = torch.optim.AdamW([constants], lr=OCA_RATE)
        race = Race("OCA", OCA_BATCH, wanted, limit)
        while race.steps < OCA_STEPS and not race.is_over:
            rows = torch.randint(len(fitting.target), (OCA_BATCH,), generator=generator)
            target = fitting.target.take(rows)
            lost = torch.zeros(())
            for layer, stream in enumerate(fitting.streams):
                end = run_blocks(ending, layer, stream[rows], constants[layer, layer:])
                lost = lost + ending.kl(target, end).mean()
            optimiser.zero_grad()
            lost.backward()
            optimiser.step()
            race.step(lambda: self.constants_kl(constants))
        return race

    def official_tuned(self, batch: int, wanted: float, limit: float) -> Race:
        """Run the recipe of the tuned lens."""
        fitting, ending = self.fitting, self.fitting.ending
        n, passes = len(fitting.positions), max(1, batch // len(fitting.positions))
        streams, target = fitting.streams, fitting.target
        if batch > n:
            streams = [stream.repeat(passes, 1) for stream in streams]
            target = ending.targets(fitting.positions.streams[-1].repeat(passes, 1))
        race = Race("tuned lens", batch, wanted, limit)

        def after(_: int, maps: Maps) -> bool:
            race.step(lambda: self.maps_kl(maps))
            return race.is_over

        fit_official(ending, target, streams, Recipe(batch=batch), after)
        return race

    def maps_kl(self, maps: Maps) -> list[float]:
        """The held-out KL of tuned lenses."""
        return self.kl(
            [
                stream + stream @ maps.matrices[layer].T + maps.biases[layer]
                for layer, stream in enumerate(self.held.streams[:-1])
            ]
        )


@dataclass
class Race:
    """How far a recipe has come, and in how many seconds.

    Attributes:
        batch: positions of a step.
        wanted: the held-out KL at which it is over, as mean over layers.
        limit: seconds after which it is over.
    """

    recipe: str
    batch: int
    wanted: float
    limit: float
    steps: int = 0
    seconds: float = 0.0
    kl: float = float("inf")
    since: float = field(default_factory=time.process_time)

    @property
    def is_there(self) -> bool:
        """Whether it has the wanted KL."""
        return self.kl <= self.wanted

    @property
    def is_over(self) -> bool:
        """Whether it need not go on."""
        return self.is_there or self.seconds > self.limit

    def step(self, look: Callable[[], list[float]]) -> None:
        """Count a step; now and then look at the KL, which is not timed."""
        now = time.process_time()
        self.steps, self.seconds = self.steps + 1, self.seconds + now - self.since
        if self.steps == 1 or self.steps % CHECKS[self.recipe] == 0:
            layers = look()
            self.kl = sum(layers) / len(layers)
        self.since = time.process_time()

    def line(self, ours: float) -> str:
        """Return the outcome in words, beside the seconds of our fit."""
        more = "" if self.is_there else "more than "
        end = "that KL" if self.is_there else f"KL {self.kl:.4f}"
        return (
            f"official {self.recipe}, {self.batch:,} positions a step: {end} after {self.steps:,} "
            f"steps, {self.seconds:.1f} s; {more}{self.seconds / ours:.1f} times ours"
        )


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
    parser.add_argument("--batches", default="1024,262144")
    parser.add_argument("--fit-windows", type=int, default=LensConfig().fit_windows)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for each recipe")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = prepared(options.model, options.data, LensConfig(fit_windows=options.fit_windows))
    seconds, layers = bench.oca()
    wanted = sum(layers) / len(layers)
    console = Console()
    shown = ", ".join(f"{one:.3f}" for one in layers)
    console.print(
        f"OCA, {len(layers)} layers, {len(bench.fitting.positions):,} positions: "
        f"{seconds:.1f} s, held-out KL {wanted:.4f} ({shown})"
    )
    console.print(bench.official_oca(wanted, options.limit).line(seconds))
    for batch in map(int, options.batches.split(",")):
        console.print(bench.official_tuned(batch, wanted, options.limit).line(seconds))


if __name__ == "__main__":
    main()
