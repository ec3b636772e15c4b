"""``sat-eval acdc --method ugs``: a step against a plain form of the official one, and one search.

    python -m benchmarks.circuits                  # steps at the built-in and the paper's shape
    python -m benchmarks.circuits --search         # one lambda on demo:baseline, 400 steps
    python -m benchmarks.circuits --rows 8         # a smaller step

The plain step follows the official code (maxtli/optimalablation): every destination of a layer
mixes outputs and constants of its sources in one product [rows, pos, destination, source, width],
heads in z, which each destination maps by W_O; all of them are kept for the backward pass. Ours
reads the destinations of a layer by one matrix product. Loss and gradients of both are compared
first. A step is sampling, forward, backward and AdamW, and runs in a process of its own, one
thread: seconds of the processor, and the peak memory beyond what was there before.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F
from transformer_lens import HookedTransformer, HookedTransformerConfig

from evaluations.core.model_source import load_model
from evaluations.suite.circuits.case import Case
from evaluations.suite.circuits.config import CircuitConfig
from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.methods.find import searched
from evaluations.suite.circuits.methods.masks import Price, Ugs, uniform_gradient_masks
from evaluations.suite.circuits.methods.search import Schedule, _Loop
from evaluations.suite.circuits.refit import Budget
from evaluations.tasks.pairs import Pair, PairBatch, TaskPrompts
from evaluations.tasks.registry import make_task

SHAPES: dict[str, dict[str, Any]] = {
    "built-in (4 layers, 4 heads, d 64)": {
        "n_layers": 4, "n_heads": 4, "d_model": 64, "d_head": 16, "d_mlp": 256, "d_vocab": 2000,
    },
    "paper's (8 layers, 16 heads, d 128)": {
        "n_layers": 8, "n_heads": 16, "d_model": 128, "d_head": 8, "d_mlp": 512, "d_vocab": 10_000,
    },
}  # fmt: skip
POSITIONS, PROMPTS, MASKS = 17, 8, 6
PRICE, RATE = 1e-3, 0.05


def case_of(shape: dict[str, Any]) -> Case:
    """Return random prompts of a model with random weights, under optimal ablation, unfitted."""
    torch.manual_seed(0)
    cfg = HookedTransformerConfig(
        n_ctx=POSITIONS, act_fn="gelu_new", initializer_range=0.1, device="cpu", **shape
    )
    model = HookedTransformer(cfg).eval().requires_grad_(False)
    tokens = torch.randint(shape["d_vocab"], (PROMPTS, POSITIONS))
    tokens[:, 0] = 0
    batch = PairBatch(tokens, tokens, tokens[:, 1], tokens[:, 2])
    texts = (Pair("", "", "", ""),) * PROMPTS
    prompts = TaskPrompts("random", (batch,), texts, note={"story_start": "<bos>"})
    return Case.of(model, prompts, "oa", budget=Budget(1, first=1, evaluations=1))


class Plain:
    """The official step: elementwise products of masks and outputs, and autograd through them."""

    def __init__(self, case: Case) -> None:
        assert case.refitter is not None
        self.case, self.graph, self.model = case, case.graph, case.model
        self.sizes = case.refitter.space.sizes

    def loss(self, tokens: Tensor, clean: Tensor, masks: Tensor, flat: Tensor) -> Tensor:
        """Return the mean KL of rows: prompts of one length, each with a mask of its own."""
        graph, model = self.graph, self.model
        matrix = masks.new_zeros(len(masks), graph.n_destinations, graph.n_sources)
        matrix[:, graph.edge_destination, graph.edge_source] = masks
        constants = flat.split(self.sizes)
        stream = model.embed(tokens) + model.pos_embed(tokens)
        vectors, heads = [(0, stream, constants[0])], []
        for layer, block in enumerate(model.blocks):
            n, attn = graph.before(layer), block.attn
            first = graph.destination(layer, "q")
            read = block.ln1(
                self._mixed(matrix[:, first : first + graph.n_reads, :n], vectors, heads, layer)
            )
            q, k, v = (
                torch.einsum("rpdm,dmh->rdph", read[:, :, part::3], weight) + bias[:, None]
                for part, (weight, bias) in enumerate(
                    ((attn.W_Q, attn.b_Q), (attn.W_K, attn.b_K), (attn.W_V, attn.b_V))
                )
            )
            scores = q @ k.mT / attn.attn_scale
            future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            z = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
            for head in range(graph.n_heads):
                at = n + head
                heads.append((at, z[:, head], constants[at], attn.W_O[head]))
            mlp = graph.destination(layer, "mlp")
            mixed = self._mixed(
                matrix[:, mlp : mlp + 1, : n + graph.n_heads], vectors, heads, layer + 1
            )
            at = graph.mlp(layer)
            vectors.append((at, block.mlp(block.ln2(mixed))[:, :, 0], constants[at]))
        final = self._mixed(matrix[:, -1:], vectors, heads, graph.n_layers)[:, -1]
        logits = model.unembed(model.ln_final(final))[:, 0]
        return F.kl_div(logits.log_softmax(-1), clean, reduction="batchmean")

    def _mixed(self, masks: Tensor, vectors: list[Any], heads: list[Any], n_biases: int) -> Tensor:
        """Return inputs [row, pos, destination, d_model]: clean at the first position."""
        total = sum(block.attn.b_O for block in self.model.blocks[:n_biases])
        at = [one[0] for one in vectors]
        outputs = torch.stack([one[1] for one in vectors], 2)
        total = total + self._products(masks[:, :, at], outputs, [one[2] for one in vectors]).sum(3)
        if heads:
            at = [one[0] for one in heads]
            outputs = torch.stack([one[1] for one in heads], 2)
            mixed = self._products(masks[:, :, at], outputs, [one[2] for one in heads])
            weights = torch.stack([one[3] for one in heads])
            total = total + torch.einsum("rpdsh,shm->rpdm", mixed, weights)
        return total

    def _products(self, masks: Tensor, outputs: Tensor, constants: list[Tensor]) -> Tensor:
        """Return masks * outputs + (1 - masks) * constants, [row, pos, destination, source, width].

        Constants have a gradient where the mask is all but 0.
        """
        own = masks[:, None, :, :, None]
        stacked = torch.stack(constants)
        replaced = torch.where(own < 1e-3, stacked, stacked.detach())
        mixed = own * outputs[:, :, None] + (1 - own) * replaced
        clean = outputs[:, :1, None].expand(-1, -1, masks.shape[1], -1, -1)
        return torch.cat([clean, mixed[:, 1:]], 1)


def measured(shape: str, kind: str, rows: int, steps: int) -> dict[str, float]:
    """Return seconds of a step, peak MiB beyond what was there, and the first step's gradients."""
    torch.set_num_threads(1)
    case = case_of(SHAPES[shape])
    ugs = Ugs(Price.of_graph(case.graph, PRICE, torch.float32), RATE)
    loop = _Loop(case, ugs, Schedule(steps, PROMPTS, rows // PROMPTS))
    plain = Plain(case)
    (batch,), (bucket,) = case.prompts.batches, case.buckets
    assert loop.constants is not None
    optimisers = [torch.optim.AdamW([ugs.theta], RATE), torch.optim.AdamW([loop.constants], 2e-3)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, found = [], {}
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        index = torch.arange(PROMPTS).repeat_interleave(rows // PROMPTS)
        u = torch.rand(len(index), case.graph.n_edges, generator=generator)
        begin = time.process_time()
        masks = uniform_gradient_masks(ugs.theta, u)
        if kind == "ours":
            loss = loop._loss(0, index[:, None], masks).mean()
        else:
            clean = bucket.logits.softmax(-1)[index]
            loss = plain.loss(batch.clean[index], clean, masks, loop.constants[0])
        for optimiser in optimisers:
            optimiser.zero_grad()
        (loss + ugs.price(0)).backward()
        assert ugs.theta.grad is not None
        assert loop.constants.grad is not None
        if not step:
            found = {
                "loss": loss.item(),
                "theta": ugs.theta.grad.norm().item(),
                "constants": loop.constants.grad.norm().item(),
            }
        for optimiser in optimisers:
            optimiser.step()
        seconds.append(time.process_time() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**found, "seconds": min(seconds[1:] or seconds), "mib": (peak - before) / 1024}


def compared(shape: str, rows: int, steps: int) -> None:
    """Print both steps of a shape, each from a process of its own."""
    console, graph = Console(), Graph.of(case_of(SHAPES[shape]).model)
    console.print(
        f"[bold]{shape}[/], {graph.n_edges:,} edges, {rows} rows of {POSITIONS} positions"
    )
    results = {}
    for kind in ("ours", "plain"):
        call = [sys.executable, "-m", "benchmarks.circuits", "--measure", shape, "--kind", kind]
        call += ["--rows", str(rows), "--steps", str(steps)]
        done = subprocess.run(call, capture_output=True, text=True, check=True)
        results[kind] = json.loads(done.stdout.splitlines()[-1])
        console.print(f"  {kind:6}" + "".join(f" {k} {v:.4g} " for k, v in results[kind].items()))
    ours, plain = results["ours"], results["plain"]
    apart = max(abs(ours[k] / plain[k] - 1) for k in ("loss", "theta", "constants"))
    console.print(
        f"  {plain['seconds'] / ours['seconds']:.1f} times the time, "
        f"{plain['mib'] / ours['mib']:.1f} times the memory; apart by {apart:.0e}"
    )


def one_search(model: str, ablation: str) -> None:
    """Print the seconds of one search of the default schedule."""
    torch.set_num_threads(1)
    loaded = load_model(model)
    prompts = make_task("ioi", loaded.tokenizer, 100)
    case = Case.of(loaded.model.requires_grad_(False), prompts, ablation)
    begin = time.process_time()
    found = searched(case, CircuitConfig(method="ugs", ablation=ablation), PRICE)
    seconds = time.process_time() - begin
    kept = int((found.theta > 0.5).sum())
    Console().print(f"{model}, {ablation}: {found.steps} steps in {seconds:.0f} s, {kept} edges")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=PROMPTS * MASKS)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--shapes", type=int, nargs="*", default=[*range(len(SHAPES))])
    parser.add_argument("--search", metavar="ABLATION", nargs="?", const="oa")
    parser.add_argument("--model", default="demo:baseline")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(options.measure, options.kind, options.rows, options.steps)))
    elif options.search:
        one_search(options.model, options.search)
    else:
        for number in options.shapes:
            compared([*SHAPES][number], options.rows, options.steps)


if __name__ == "__main__":
    main()
