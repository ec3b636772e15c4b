"""How near the searches come to the best circuit: every circuit of a tiny model is measured.

    python -m benchmarks.regret                             # 8 edges, 88 circuits
    python -m benchmarks.regret --layers 2 --attention-only # 12 edges, 1,696 circuits: minutes
    python -m benchmarks.regret --model-seed 1 --methods ugs,hcgs
    python -m benchmarks.regret --methods ugs --exchanges 0 # circuits as their rankings have them

A model of random weights is so small that optimal constants are fitted to all of its circuits. At
every size, the regret of a method is what its best circuit costs above the best there is, as a
share of what the median circuit costs above it: 0 for the best, about 1 for a random one. Searches
by gradients run at six prices with three seeds; the median over seeds is given. Circuits of a size
are the first edges of a ranking that leave so many on paths; those of searches by gradients are
then pruned and exchanged as ``sat-eval circuits`` does. ACDC runs at 60 thresholds, and has
circuits of some sizes only. Sizes with fewer than ten circuits are left out.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator, Sequence

import torch
from rich.console import Console
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

from evaluations.suite.circuits.case import Case
from evaluations.suite.circuits.config import CircuitConfig
from evaluations.suite.circuits.graph import Graph, on_paths
from evaluations.suite.circuits.methods.find import (
    attributed,
    by_acdc,
    by_logit,
    of_size,
    searched,
)
from evaluations.suite.circuits.methods.search import Searched
from evaluations.suite.circuits.methods.selection import live_circuit
from evaluations.suite.circuits.refit import Budget
from evaluations.tasks.pairs import Pair, PairBatch, TaskPrompts

PRICES = (0.003, 0.01, 0.03, 0.06, 0.1, 0.2)
SEEDS = range(3)
LEAST = 10
"""Circuits of a size, below which it is left out."""
BUDGET = Budget(starts=8, sample=1000, first=60, evaluations=150)
METHODS = ("ugs", "hcgs", "edge-pruning", "acdc", "eap-ig")


def tiny_case(layers: int, attention_only: bool, seed: int) -> Case:
    """Return random prompts of a model with random weights and biases, under optimal ablation."""
    torch.manual_seed(seed)
    cfg = HookedTransformerConfig(
        n_layers=layers,
        n_heads=1,
        d_model=8,
        d_head=8,
        d_mlp=16,
        d_vocab=20,
        n_ctx=6,
        act_fn="gelu_new",
        attn_only=attention_only,
        initializer_range=0.5,
        dtype=torch.float64,
        device="cpu",
    )
    model = HookedTransformer(cfg).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    tokens = torch.randint(1, 20, (12, 6))
    tokens[:, 0] = 0
    batch = PairBatch(tokens, tokens.roll(1, 0), tokens[:, 1], tokens[:, 2])
    texts = (Pair("", "", "", ""),) * len(tokens)
    prompts = TaskPrompts("random", (batch,), texts, note={"story_start": "<bos>"})
    return Case.of(model, prompts, "oa", budget=BUDGET)


def every_circuit(graph: Graph) -> Tensor:
    """Return all sets of edges that all lie on paths from the embedding to the output."""
    number = torch.arange(2**graph.n_edges)[:, None]
    every = (number >> torch.arange(graph.n_edges) & 1).bool()
    return torch.stack([kept for kept in every if torch.equal(on_paths(graph, kept), kept)])


def found(method: str, case: Case, seed: int, exchanges: int) -> Iterator[Tensor]:
    """Yield a method's circuits."""
    graph = case.graph
    if method == "acdc":
        for tau in torch.logspace(-4, 0.3, 60).tolist():
            yield by_acdc(case, tau).kept
        return
    searches: list[Searched] = []
    if method == "eap-ig":
        scores = attributed(case, CircuitConfig(method="eap-ig", score_by="kl", selection="top"))
        orders = [scores.signed, scores.absolute]
    else:
        settings = CircuitConfig(method=method, ablation="oa", seed=seed)  # type: ignore[arg-type]
        shares = [1 - size / graph.n_edges for size in range(1, graph.n_edges)]
        prices = shares if method == "edge-pruning" else PRICES
        searches = [searched(case, settings, price) for price in prices]
        orders = [by_logit(one.theta) for one in searches]
    for order in orders:
        for size in range(1, graph.n_edges + 1):
            yield live_circuit(graph, order, size)
    larger: list[Tensor] = []
    for size in range(graph.n_edges - 1, 0, -1) if searches and exchanges else ():
        larger = [of_size(case, searches, size, exchanges, larger)]
        yield larger[0]


def regrets(
    method: str, case: Case, costs: dict[bytes, float], seed: int, exchanges: int
) -> dict[int, float]:
    """Return the regret of a method's best circuit of each size."""
    best: dict[int, float] = {}
    for kept in found(method, case, seed, exchanges):
        size = int(kept.sum())
        best[size] = min(best.get(size, math.inf), costs[kept.numpy().tobytes()])
    shares = {}
    for size, cost in best.items():
        own = [costs[key] for key in costs if sum(key) == size]
        if len(own) >= LEAST:
            least = min(own)
            shares[size] = (cost - least) / (statistics.median(own) - least)
    return shares


def compare(case: Case, methods: Sequence[str], exchanges: int) -> None:
    """Print the regret of each method by size."""
    assert case.refitter is not None
    circuits = every_circuit(case.graph)
    fits = case.refitter.fits(list(circuits))
    costs = {kept.numpy().tobytes(): fit.delta for kept, fit in zip(circuits, fits, strict=True)}
    counts = [int((circuits.sum(1) == size).sum()) for size in range(case.graph.n_edges + 1)]
    sizes = [size for size, count in enumerate(counts) if count >= LEAST]
    console = Console()
    console.print(f"{case.graph.n_edges} edges, {len(circuits):,} circuits; sizes {sizes}")
    for method in methods:
        seeds = SEEDS if method in ("ugs", "hcgs", "edge-pruning") else range(1)
        each = [regrets(method, case, costs, seed, exchanges) for seed in seeds]
        shown = []
        for size in sizes:
            middle = statistics.median(one.get(size, math.inf) for one in each)
            shown.append("none" if math.isinf(middle) else f"{middle:.2f}")
        console.print(f"{method:13}" + " ".join(f"{text:>5}" for text in shown))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--attention-only", action="store_true")
    parser.add_argument("--model-seed", type=int, default=0)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--exchanges", type=int, default=CircuitConfig.exchanges)
    options = parser.parse_args()
    torch.set_num_threads(1)
    case = tiny_case(options.layers, options.attention_only, options.model_seed)
    compare(case, options.methods.split(","), options.exchanges)


if __name__ == "__main__":
    main()
