"""ACDC: the whole of ours against auto-circuit's time per edge, extrapolated to all edges.

    python -m benchmarks.acdc                           # random weights; with auto-circuit
    python -m benchmarks.acdc --models runs/slice/baseline --prompts 16 100
    python -m benchmarks.acdc --growth                  # ours alone: prompts, kept edges, layers

The random models have the paper's shape and weights of N(0, 0.2); the gain multiplies their
unembedding, and with it KL, until circuits are dense at tau 0.03. auto-circuit tests each edge by a
forward pass from the destination's layer on, so that its time per edge depends on the layer alone:
it is timed over a few edges of each layer, what a run costs once being taken off. Every cell is a
process of its own, so that its peak memory is its own; seconds are of the clock, and of the
processor in brackets, which other work on the machine inflates less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformer_lens import HookedTransformer, HookedTransformerConfig

from evaluations.core.model_source import load_model
from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.methods.acdc.autocircuit import autocircuit, available
from evaluations.suite.circuits.methods.acdc.search import MAX_BYTES, acdc
from evaluations.suite.circuits.patched import Prompts, prepare
from evaluations.tasks.pairs import PairBatch
from evaluations.tasks.registry import make_task
from sat_interp._util.provenance import commit, versions

SAMPLED = 16  # edges of each layer that auto-circuit is timed on


@dataclass(frozen=True)
class Cell:
    """One run. ``model`` is ``random:<vocabulary>``, or a MODEL argument with its ``task``."""

    model: str
    prompts: int
    gain: float = 1.0
    layers: int = 8
    pos: int = 17
    tau: float = 0.03
    task: str = "ioi-tinystories"
    max_mb: int = MAX_BYTES // 2**20
    auto_circuit: bool = True


def build(cell: Cell) -> tuple[HookedTransformer, Prompts]:
    """The model and its prompts, all of one length."""
    if not cell.model.startswith("random:"):
        loaded = load_model(cell.model)
        task = make_task(cell.task, loaded.tokenizer, n=16 * cell.prompts)
        batch = max(task.batches, key=len)
        return loaded.model, batch[range(min(len(batch), cell.prompts))]
    torch.manual_seed(0)
    vocabulary = int(cell.model.split(":")[1])
    model = HookedTransformer(
        HookedTransformerConfig(
            n_layers=cell.layers,
            d_model=128,
            n_heads=16,
            d_head=8,
            d_mlp=512,
            n_ctx=64,
            d_vocab=vocabulary,
            act_fn="gelu_new",
            initializer_range=0.2,
            use_attn_scale=False,
            device="cpu",
        )
    )
    model.requires_grad_(False)
    model.unembed.W_U *= cell.gain
    clean = torch.randint(vocabulary, (cell.prompts, cell.pos))
    corrupted = clean.clone()
    names = [4, 6, cell.pos - 5]  # where IOI has them
    corrupted[:, names] = torch.randint(vocabulary, (cell.prompts, 3))
    none = torch.zeros(cell.prompts, dtype=torch.long)
    return model, PairBatch(clean, corrupted, none, none)


@contextmanager
def timed(into: dict[str, Any], name: str) -> Iterator[None]:
    clock, processor = time.perf_counter(), time.process_time()
    yield
    into[name] = time.perf_counter() - clock
    into[f"{name}_cpu"] = time.process_time() - processor


def run(cell: Cell) -> dict[str, Any]:
    """Ours, then auto-circuit where it is asked for and installed."""
    model, batch = build(cell)
    graph = Graph.of(model)
    found: dict[str, Any] = {**asdict(cell), "n": len(batch.clean), "pos": batch.clean.shape[1]}
    with timed(found, "prepare"):
        buckets = prepare(model, graph, [batch])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with timed(found, "ours"):
        result = acdc(model, graph, buckets, cell.tau, max_bytes=cell.max_mb * 2**20)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found |= {
        "edges": graph.n_edges,
        "kept": result.n_kept,
        "tested": result.n_tested,
        "states": result.n_states,
        "kl": result.kl,
        "margin": result.margin,
        "threads": torch.get_num_threads(),
        "peak_mb": peak / 1024,
        "search_mb": (peak - before) / 1024,
    }
    if cell.auto_circuit and available():
        for clock, name in ((time.perf_counter, ""), (time.process_time, "_cpu")):
            total, per_layer = auto_circuit_seconds(model, graph, batch, clock)
            found |= {f"auto_circuit{name}": total, f"auto_circuit_per_edge{name}": per_layer}
            ours = found[f"prepare{name}"] + found[f"ours{name}"]
            found[f"times_faster{name}"] = total / ours
    return found


def auto_circuit_seconds(
    model: HookedTransformer, graph: Graph, batch: Prompts, clock: Callable[[], float]
) -> tuple[float, list[float]]:
    """Seconds for all edges, and per edge of each layer, the final residual last."""
    layers = torch.tensor([node.layer for node in graph.destinations])[graph.edge_destination]
    per_layer = []
    for layer in range(graph.n_layers + 1):
        edges = (layers == layer).nonzero().flatten()
        chosen = edges[torch.linspace(0, len(edges) - 1, SAMPLED).long()]
        times = []
        for some in (chosen[:1], chosen):
            start = clock()
            autocircuit(model, graph, [batch], 0.03, some)
            times.append(clock() - start)
        per_layer.append((times[1] - times[0]) / (SAMPLED - 1))
    counts = torch.bincount(layers, minlength=graph.n_layers + 1).tolist()
    return sum(n * one for n, one in zip(counts, per_layer, strict=True)), per_layer


def in_a_process(cell: Cell) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.acdc", "--cell", json.dumps(asdict(cell))]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore::DeprecationWarning"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def cells(arguments: argparse.Namespace) -> list[Cell]:
    if arguments.growth:
        base = {"model": arguments.models[0], "auto_circuit": False}
        return [
            *(Cell(prompts=n, gain=2.0, **base) for n in (4, 16, 64)),
            *(Cell(prompts=16, gain=gain, **base) for gain in (1.0, 4.0, 8.0)),
            *(Cell(prompts=16, gain=2.0, layers=layers, **base) for layers in (2, 4)),
            *(Cell(prompts=16, gain=2.0, max_mb=mb, **base) for mb in (8, 256)),
        ]
    return [
        Cell(
            model,
            n,
            gain if model.startswith("random:") else 1.0,
            pos=arguments.pos,
            task=arguments.task,
            auto_circuit=not arguments.ours_alone,
        )
        for model in arguments.models
        for n in arguments.prompts
        for gain in (arguments.gains if model.startswith("random:") else [1.0])
    ]


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(title="ACDC at tau 0.03")
    names = (
        "model",
        "layers",
        "gain",
        "prompts",
        "tokens",
        "bound",
        "kept",
        "tested",
        "states",
        "ours, s",
        "peak",
        "auto-circuit, s",
        "times faster",
    )
    for name in names:
        shown.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    for row in rows:
        ours, ours_cpu = (row[f"prepare{c}"] + row[f"ours{c}"] for c in ("", "_cpu"))
        theirs, faster = "", ""
        if "times_faster" in row:
            theirs = f"{row['auto_circuit']:,.0f} ({row['auto_circuit_cpu']:,.0f})"
            faster = f"{row['times_faster']:,.0f} ({row['times_faster_cpu']:,.0f})"
        shown.add_row(
            row["model"],
            str(row["layers"]),
            f"{row['gain']:g}",
            str(row["n"]),
            str(row["pos"]),
            f"{row['max_mb']} MB",
            f"{row['kept']:,}",
            f"{row['tested']:,}",
            f"{row['states']:,}",
            f"{ours:.1f} ({ours_cpu:.1f})",
            f"{row['peak_mb']:.0f} MB",
            theirs,
            faster,
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["random:10000", "random:50257"])
    parser.add_argument("--task", default="ioi-tinystories")
    parser.add_argument("--prompts", nargs="+", type=int, default=[16, 100])
    parser.add_argument("--pos", type=int, default=17, help="tokens of a random prompt")
    parser.add_argument("--gains", nargs="+", type=float, default=[1.0, 2.0])
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--ours-alone", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/acdc.json"))
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        print(json.dumps(run(Cell(**json.loads(arguments.cell)))))
        return
    console = Console(width=max(150, Console().width))
    rows = []
    for cell in cells(arguments):
        rows.append(in_a_process(cell))
        console.print(rows[-1])
    console.print(table(rows))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"versions": versions(), "commit": commit(), "when": datetime.now(UTC).isoformat()}
    arguments.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
