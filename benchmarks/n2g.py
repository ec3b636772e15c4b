"""Neuron to Graph at the paper's shape: seconds, model tokens, and against one window at a time.

    python -m benchmarks.n2g                                # random weights, 200 neurons a layer
    python -m benchmarks.n2g --neurons 20 --layers 0 7      # a part of it
    python -m benchmarks.n2g --model runs/baseline --data stories.jsonl.gz
    python -m benchmarks.n2g --growth                       # tokens against context length

The random model has 8 layers, d 128, 16 heads, 50,257 tokens and weights of N(0, 0.1); its text is
the built-in corpus in GPT-2's tokens. Gathering the excerpts is timed apart: ``neurons`` needs them
too. *One by one* is a sample of the same masked windows, each run through the model by itself: by
the same fast path, and as the published notebook does it, by TransformerLens' ``run_with_cache``.
Seconds are of the clock, and of the processor beside it, which other work inflates less.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformer_lens import HookedTransformer

from evaluations.core.activations import gather
from evaluations.core.model_source import load_model
from evaluations.core.text import Text, evaluation_text
from evaluations.core.units import find_units
from evaluations.suite.n2g.config import N2gConfig
from evaluations.suite.n2g.evaluation import choose
from evaluations.suite.n2g.layer import Explainer
from evaluations.suite.n2g.prune import prune
from evaluations.suite.n2g.saliency import importances
from evaluations.suite.n2g.substitutes import Neighbours
from evaluations.suite.n2g.vocabulary import Vocabulary
from evaluations.suite.n2g.windows import Reader
from sat_interp import SelfAblatingTransformer, SelfAblationConfig, gpt_neo_config
from sat_interp._util.provenance import commit, versions
from sat_interp.data.tokenizer import load_tokenizer

SAMPLE = 60
"""Windows that are also run one by one."""
CONTEXTS = (5, 10, 20, 30)


def random_model() -> tuple[HookedTransformer, Any]:
    """The paper's shape, weights far from zero, so that neurons hang on their context."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer("gpt2")
    shape = gpt_neo_config(
        n_layers=8, d_model=128, n_heads=16, d_vocab=50_257, n_ctx=256, initializer_range=0.1
    )
    model = SelfAblatingTransformer(shape, SelfAblationConfig(variant="none"), tokenizer=tokenizer)
    return model.eval().requires_grad_(False), tokenizer


def timed(step: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    clock, processor = time.perf_counter(), time.process_time()
    found = step()
    told = {
        "seconds": time.perf_counter() - clock,
        "cpu": time.process_time() - processor,
    }
    return found, {name: round(value, 2) for name, value in told.items()}


def one_by_one(reader: Reader, windows: Sequence[np.ndarray], unit: int) -> dict[str, float]:
    """CPU seconds a window: each alone by the fast path, each alone by hooks, all together."""
    hook = reader.units.hooks[reader.units.layers.index(reader.layer)]
    rows = [torch.tensor([[reader.start_token, *window.tolist()]]) for window in windows]

    def fast() -> None:
        for row in rows:
            reader.units.read(reader.model, row, [reader.layer])

    def hooked() -> None:
        for row in rows:
            reader.model.run_with_cache(row)[1][hook]  # what the notebook asks for: all of it

    def together() -> None:
        # as many copies as a layer has, so that batches are full; each a window of its own
        reader.read_all(many, [0] * len(many), [unit] * len(many), "benchmark")

    many = [np.roll(window, shift) for window in windows for shift in range(len(window))] * 8
    draws = np.random.default_rng(0)
    many = [
        np.where(draws.random(len(one)) < 0.3, draws.integers(1, 999, len(one)), one)
        for one in many
    ]
    found = {}
    with torch.inference_mode():
        for name, step, count in (
            ("fast", fast, len(rows)),
            ("hooked", hooked, len(rows)),
            ("together", together, len(many)),
        ):
            step()
            found[name] = min(timed(step)[1]["cpu"] for _ in range(2)) / count
    return found


def layer_costs(explainer: Explainer, members: Sequence[int]) -> dict[str, Any]:
    """One layer, timed, and a sample of its masked windows one by one."""
    found, told = timed(lambda: explainer.layer(members))
    reader = explainer.reader
    tokens = found["cost"]["tokens"]
    peaks = [peak for unit in members[:10] for peak in explainer.peaks(unit)]
    windows = prune(reader, peaks, context=explainer.config.context)
    sample = [window.tokens for window in windows][:SAMPLE]
    alone = one_by_one(reader, sample, members[0]) if sample else {}
    lengths = [len(window.tokens) for window in windows]
    return {
        "layer": reader.layer,
        **told,
        "tokens": tokens,
        "windows": found["cost"]["windows"],
        "masked_model_seconds": found["cost"]["masked_model_seconds"],
        "tokens_per_neuron": round(sum(tokens.values()) / len(members)),
        "mean_window": round(float(np.mean(lengths)), 2) if lengths else None,
        "cpu_per_window": alone,
    }


def growth(explainer: Explainer, members: Sequence[int]) -> list[dict[str, Any]]:
    """Model tokens a neuron in each step, the context being cut at several lengths."""
    found = []
    for context in CONTEXTS:
        old = explainer.reader
        fresh = Reader(old.model, old.units, old.layer, old.start_token)
        config = dataclasses.replace(explainer.config, context=context)
        own = dataclasses.replace(explainer, reader=fresh, config=config)
        peaks = [peak for unit in members for peak in own.peaks(unit)]
        windows = prune(fresh, peaks, context=context)
        importances(fresh, windows, fresh.start_token)
        tokens = {step: round(count / len(members)) for step, count in fresh.tokens.items()}
        found.append({"context": context, "tokens_per_neuron": tokens})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a MODEL argument; by default random weights")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--stories", type=int, default=2000)
    parser.add_argument("--neurons", type=int, default=200)
    parser.add_argument("--layers", type=int, nargs="*")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--cache", type=Path, help="directory of gathered excerpts")
    parser.add_argument("--out", type=Path, help="JSON of all figures")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.model:
        loaded = load_model(asked.model)
        model, tokenizer = loaded.model, loaded.tokenizer
    else:
        model, tokenizer = random_model()
    text: Text = evaluation_text(tokenizer, asked.data, limit=asked.stories)
    units, vocabulary = find_units(model), Vocabulary.of(tokenizer)
    config = N2gConfig(neurons_per_layer=asked.neurons)
    key = f"benchmark-{asked.model or 'random'}"
    gathered, passed = timed(lambda: gather(model, text, units, config.gather, key, asked.cache))
    source, counted = timed(lambda: Neighbours.of(text, vocabulary))
    print(f"gathering {passed}, neighbours {counted}", flush=True)
    found: dict[str, Any] = {
        "arguments": {name: str(value) for name, value in vars(asked).items()},
        "gathering": passed,
        "commit": commit(),
        "versions": versions(),
        "layers": [],
    }
    for layer, members in choose(units, config).items():
        if asked.layers is not None and layer not in asked.layers:
            continue
        reader = Reader(model, units, layer, text.start)
        explainer = Explainer(reader, gathered, source, vocabulary, config)
        told = growth(explainer, members) if asked.growth else layer_costs(explainer, members)
        found["layers"].append(told)
        print(json.dumps(told), flush=True)
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
