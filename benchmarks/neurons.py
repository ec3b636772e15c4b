"""Neurons: the gathering pass against the bare forward pass, and ``lookup`` on 4,096 neurons.

    python -m benchmarks.neurons                    # the paper's shape: some minutes on two cores
    python -m benchmarks.neurons --cpu-time         # where other work shares the cores

The model has the paper's shape (8 layers, d 128, 16 heads, 50,257 tokens) and random weights; the
text is the built-in corpus, or --data. Both passes read all neurons of all layers and stop at the
last of them; they take turns, and the best of the rounds counts, for what else the machine does
only ever adds time. ``lookup`` then explains each of the 4,096 neurons from 20 excerpts and is
scored on 20 others, by simulation, detection, fuzzing and the control.
"""

from __future__ import annotations

import argparse
import logging
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from evaluations.core.activations import BATCH_TOKENS, gather
from evaluations.core.text import Text, evaluation_text
from evaluations.core.units import Units, find_units
from evaluations.suite.neurons.config import NeuronsConfig, NeuronsData
from evaluations.suite.neurons.evaluation import evaluate
from evaluations.suite.neurons.examiners.lookup import LookupExaminer
from sat_interp import SelfAblatingTransformer, SelfAblationConfig, gpt_neo_config
from sat_interp.data.batches import story_batches
from sat_interp.data.tokenizer import load_tokenizer

CONTEXT = 256


def build(vocabulary: int) -> SelfAblatingTransformer:
    """The paper's shape, random weights."""
    torch.manual_seed(0)
    shape = gpt_neo_config(n_layers=8, d_model=128, n_heads=16, d_vocab=vocabulary, n_ctx=CONTEXT)
    model = SelfAblatingTransformer(shape, SelfAblationConfig(variant="none")).eval()
    return model.requires_grad_(False)


@torch.inference_mode()
def bare(model: SelfAblatingTransformer, text: Text, units: Units) -> None:
    """All units' activations, and nothing done with them."""
    for batch in story_batches(text.corpus, CONTEXT, BATCH_TOKENS):
        units.read(model, batch.tokens[:, :-1])


def cpu_seconds() -> float:
    """Of this process and all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def timed(work: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("--data", default="demo", help="text whose validation split is read")
    parser.add_argument("--stories", type=int, default=1000)
    parser.add_argument("--tokenizer", default="gpt2")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="of the processor, all threads")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    clock = cpu_seconds if chosen.cpu_time else time.perf_counter
    tokenizer = load_tokenizer(chosen.tokenizer)
    text = evaluation_text(tokenizer, chosen.data, limit=chosen.stories)
    model = build(len(tokenizer))
    units, config = find_units(model), NeuronsConfig(LookupExaminer())
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)

        def gathered(key: str) -> Callable[[], object]:
            return lambda: gather(model, text, units, config.gather, key, out)

        best = {"bare forward pass": float("inf"), "gathering pass": float("inf")}
        for number in range(chosen.rounds):
            works = (lambda: bare(model, text, units), gathered(str(number)))
            for name, work in zip(best, works, strict=True):
                best[name] = min(best[name], timed(work, clock))
        data = NeuronsData(text, "0", "random", out / "details", cache=out)
        best["lookup, all scores"] = timed(lambda: evaluate(model, data, config), clock)
    tokens = int(text.scored(CONTEXT).sum())
    table = Table(title=f"{tokens:,} tokens, {sum(units.sizes):,} neurons")
    for heading in ("", "seconds, CPU" if chosen.cpu_time else "seconds", "tokens/s", "of bare"):
        table.add_column(heading, justify="right")
    for name, seconds in best.items():
        is_pass = "pass" in name
        speed = f"{tokens / seconds:,.0f}" if is_pass else ""
        share = f"{best['bare forward pass'] / seconds:.0%}" if is_pass else ""
        table.add_row(name, f"{seconds:.1f}", speed, share)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
