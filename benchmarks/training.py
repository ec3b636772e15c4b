"""Training speed: ours, a plain implementation, and the floor of the step's own matrix products.

    python -m benchmarks.training                       # everything: about half an hour
    python -m benchmarks.training --shapes compact --batches 4 --precisions float32
    python -m benchmarks.training --shapes paper --batches 24 256 --precisions bf16 --compile

It runs on the accelerator where there is one, unless --device cpu is given. Times are taken when
all work of the device is done.

Ours and the plain step (benchmarks/plain.py), both compiled with --compile, run in a process each,
so that peak memory is their own; ours and the floor take turns in one. The best round counts: what
else the machine does only ever adds time. The floor is the time of the step's products alone, in
their own shapes, each into memory that is there already: forward, and both gradients. It counts the
ablated stream's products whole, of which the step visits the winners only. Attention's products are
a second, larger floor: no implementation that holds patterns can be below it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformer_lens import HookedTransformer

from benchmarks.plain import plain_loss
from sat_interp import SelfAblatingTransformer, SelfAblationConfig, gpt_neo_config
from sat_interp._util.devices import resolve_device
from sat_interp._util.provenance import commit, versions
from sat_interp.model.unembedding import BLOCK, rows_of_a_chunk
from sat_interp.training.loss import LossWeights, training_loss

VOCABULARIES = {"paper": 50_257, "compact": 10_000}
VARIANTS = ("none", "local", "global")
SHAPE = {"n_layers": 8, "d_model": 128, "n_heads": 16}
"""The paper's (Table 3)."""
POS = 256
CPU = torch.device("cpu")


def build(vocabulary: str, variant: str, device: torch.device = CPU) -> SelfAblatingTransformer:
    """The paper's shape: 8 layers, d 128, 16 heads."""
    torch.manual_seed(0)
    shape = gpt_neo_config(**SHAPE, d_vocab=VOCABULARIES[vocabulary], n_ctx=POS)
    gates = SelfAblationConfig(variant=variant)  # type: ignore[arg-type]
    return SelfAblatingTransformer(shape, gates).to(device)


def products(model: SelfAblatingTransformer, batch: int) -> list[tuple[int, int, int, int]]:
    """The forward products of one step as (times, rows, inner, columns)."""
    cfg, tokens = model.cfg, batch * POS
    gated = model.ablation.is_gated
    streams = 2 if gated else 1
    d, m, layers = cfg.d_model, cfg.d_mlp, cfg.n_layers
    found = [(streams, tokens, d, cfg.d_vocab)]
    # The global variant's streams cannot share a product: its masks wait for the clean stream.
    times, rows = (
        (layers, streams * tokens)
        if model.ablation.variant == "local"
        else (layers * streams, tokens)
    )
    found += [
        (times, rows, d, 3 * d),
        (times, rows, d, d),
        (times, rows, d, m),
        (times, rows, m, d),
    ]
    if gated:
        found += [(layers, tokens, d, d), (layers, tokens, d, m)]
    return found


def floor(model: SelfAblatingTransformer, batch: int, dtype: torch.dtype) -> Callable[[], None]:
    """The step's products with weights: forward, gradient of the input, gradient of the weight."""
    work: list[Callable[[], None]] = []
    made = {"dtype": dtype, "device": model.W_E.device}
    for times, rows, inner, columns in products(model, batch):
        w, dw = torch.randn(columns, inner, **made), torch.empty(columns, inner, **made)
        # Logits are made a chunk of rows and, on a CPU, a block of columns at a time.
        are_logits = columns == model.cfg.d_vocab
        chunk = rows_of_a_chunk(model.W_U) if are_logits else rows
        block = BLOCK if are_logits and made["device"].type == "cpu" else columns
        x, dx = torch.randn(rows, inner, **made), torch.empty(rows, inner, **made)
        room = torch.randn(chunk * block, **made)
        for top, left in product(range(0, rows, chunk), range(0, columns, block)):
            own_x, own_dx = x[top : top + chunk], dx[top : top + chunk]
            own_w, own_dw = w[left : left + block], dw[left : left + block]
            y = room[: len(own_x) * len(own_w)].view(len(own_x), len(own_w))
            work += times * [partial(_three_products, own_x, own_w, y, own_dx, own_dw)]

    def run() -> None:
        for one in work:
            one()

    return run


def _three_products(x: Tensor, w: Tensor, y: Tensor, dx: Tensor, dw: Tensor) -> None:
    torch.mm(x, w.T, out=y)
    torch.mm(y, w, out=dx)
    torch.mm(y.T, x, out=dw)


def attention_floor(
    model: SelfAblatingTransformer, batch: int, dtype: torch.dtype
) -> Callable[[], None]:
    """Attention's own products, batched over heads: two forward and four backward."""
    heads, d_head = model.cfg.n_heads, model.cfg.d_head
    made = {"dtype": dtype, "device": model.W_E.device}
    q = torch.randn(batch * heads, POS, d_head, **made)
    pattern = torch.randn(batch * heads, POS, POS, **made)
    out = torch.empty_like(q)
    times = model.cfg.n_layers * (2 if model.ablation.is_gated else 1)

    def run() -> None:
        for _ in range(times):
            for _ in range(2):  # scores; gradient of the pattern
                torch.bmm(q, q.transpose(1, 2), out=pattern)
            for _ in range(2):  # z, gradient of the queries
                torch.bmm(pattern, q, out=out)
            for _ in range(2):  # gradients of keys and values
                torch.bmm(pattern.transpose(1, 2), q, out=out)

    return run


def training_step(
    model: SelfAblatingTransformer, loss: Callable[[Tensor], Tensor], precision: str, batch: int
) -> Callable[[], None]:
    """One whole optimiser step on a batch of random windows, as the trainer takes it."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(0)
    device = model.W_E.device

    def run(windows: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        is_bf16 = precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16) if is_bf16 else nullcontext():
            total = loss(windows)
        total.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    vocabulary = int(model.cfg.d_vocab)
    shape = (batch, POS + 1)
    return lambda: run(torch.randint(vocabulary, shape, generator=generator).to(device))


def best_times(
    contestants: dict[str, Callable[[], Any]],
    seconds: float,
    least: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Each contestant's best round by ``clock``, taking turns until the time is up."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()  # compiles, allocates
    started = time.perf_counter()
    while len(next(iter(times.values()))) < least or time.perf_counter() - started < seconds:
        for name, run in contestants.items():
            before = clock()
            run()
            times[name].append(clock() - before)
    return {name: min(taken) for name, taken in times.items()}


def cell(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure one cell; runs in a process of its own."""
    torch.set_num_threads(settings["threads"] or 1)
    device = resolve_device(settings.get("device"))
    model = build(settings["shape"], settings["variant"], device)
    batch, precision = settings["batch"], settings["precision"]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    weights = LossWeights()
    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "ours": lambda windows: training_loss(model, windows, weights).total,
        "plain": lambda windows: plain_loss(model, windows),
    }
    loss = losses[settings["what"]]
    if settings.get("compile"):
        loss = torch.compile(loss, dynamic=False)
    step = training_step(model, loss, precision, batch)
    clock, before = _clock(settings), _peak_mib(device)
    started = clock()
    step()
    found: dict[str, Any] = {"first_seconds": clock() - started}
    step()
    found["peak_mib"] = _peak_mib(device) - before
    contestants: dict[str, Callable[[], Any]] = {settings["what"]: step}
    if settings["what"] == "ours":
        contestants |= {
            "floor": floor(model, batch, dtype),
            "attention": attention_floor(model, batch, dtype),
        }
    return found | best_times(contestants, settings["seconds"], clock=clock)


def _peak_mib(device: torch.device) -> float:
    """The most memory in use so far, in MiB: the accelerator's, or this process's."""
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return float(torch.accelerator.max_memory_allocated(device)) / 2**20


def forward_cell(settings: dict[str, Any]) -> dict[str, float]:
    """Forward passes without gradients: ours with hooks off, fused, and TransformerLens' own."""
    torch.set_num_threads(settings["threads"] or 1)
    device = resolve_device(settings.get("device"))
    gated = build(settings["shape"], "local", device).eval()
    plain = HookedTransformer(gated.cfg).to(device).eval()
    tokens = torch.randint(int(gated.cfg.d_vocab), (settings["batch"], POS)).to(device)
    with torch.inference_mode():
        return best_times(
            {
                "fast": lambda: gated.fast(tokens),
                "clean": lambda: gated(tokens),
                "transformer_lens": lambda: plain(tokens),
                "fast_loss": lambda: gated.fast(tokens, return_type="loss"),
                "transformer_lens_loss": lambda: plain(tokens, return_type="loss"),
            },
            settings["seconds"],
            clock=_clock(settings),
        )


def _clock(settings: dict[str, Any]) -> Callable[[], float]:
    """Wall time; or, where the machine is busy, the processor's time, on one thread.

    Of an accelerator it is read when all that was asked of it is done.
    """
    device = resolve_device(settings.get("device"))
    if device.type != "cpu":
        return partial(_idle_time, device)
    return time.process_time if settings["threads"] == 0 else time.perf_counter


def _idle_time(device: torch.device) -> float:
    torch.accelerator.synchronize(device)
    return time.perf_counter()


def in_a_process(settings: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
    """One cell's figures, or why there are none; at most ``timeout`` seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(settings["threads"] or 1)}
    command = [sys.executable, "-m", "benchmarks.training", "--cell", json.dumps(settings)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return {"unfinished": f"not done in {timeout:.0f} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["killed"])[-1][:200]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=list(VOCABULARIES), choices=VOCABULARIES)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--precisions", nargs="+", default=["float32", "bf16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[4, 24])
    parser.add_argument(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="0: one thread, timed by the processor's clock, for a machine that is not idle",
    )
    parser.add_argument("--device", default="auto", help="cpu, or auto: the accelerator")
    parser.add_argument("--compile", action="store_true", help="torch.compile, of both steps")
    parser.add_argument("--seconds", type=float, default=15.0, help="per cell, at least")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        settings = json.loads(options.cell)
        measure = forward_cell if settings.get("forward") else cell
        print(json.dumps(measure(settings)))
        return
    console = Console(width=150)
    rows = []
    names = ("threads", "seconds", "device", "compile")
    settings = {name: getattr(options, name) for name in names}
    grid = product(options.shapes, options.precisions, options.batches, options.variants)
    for shape, precision, batch, variant in grid:
        row: dict[str, Any] = {
            "shape": shape,
            "precision": precision,
            "batch": batch,
            "variant": variant,
        }
        common = {**row, **settings}
        row["ours"] = in_a_process({**common, "what": "ours"})
        row["plain"] = in_a_process({**common, "what": "plain"})
        rows.append(row)
        console.print(".", end="")
    forward = {
        shape: in_a_process(
            {
                "forward": True,
                "shape": shape,
                "batch": 4,
                **settings,
            }
        )
        for shape in options.shapes
    }
    show(console, rows, forward)
    if options.out:
        facts = {
            "rows": rows,
            "forward": forward,
            **settings,
            **machine(resolve_device(options.device)),
        }
        options.out.write_text(json.dumps(facts, indent=1) + "\n")


def machine(device: torch.device) -> dict[str, Any]:
    """What figures were measured on, with what, and when."""
    is_cpu = device.type == "cpu"
    return {
        "hardware": platform.machine()
        if is_cpu
        else torch.get_device_module(device).get_device_name(),
        "device_type": device.type,
        "versions": versions(),
        "commit": commit(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def show(console: Console, rows: list[dict[str, Any]], forward: dict[str, dict[str, Any]]) -> None:
    """The tables."""
    table = Table(title="Training: tokens per second, MiB above the model's own")
    for heading in (
        "shape",
        "precision",
        "batch",
        "variant",
        "tok/s",
        "MiB",
        "plain tok/s",
        "plain MiB",
        "x plain",
        "of floor",
        "of floor with attention",
        "time / baseline",
    ):
        table.add_column(heading, justify="right")
    baseline: dict[tuple[Any, ...], float] = {}
    for row in rows:
        ours, plain = row["ours"], row["plain"]
        key = (row["shape"], row["precision"], row["batch"])
        name = [row["shape"], row["precision"], str(row["batch"]), row["variant"]]
        if "failed" in ours:
            table.add_row(*name, ours["failed"])
            continue
        tokens = row["batch"] * POS
        if row["variant"] == "none":
            baseline[key] = ours["ours"]
        of_plain = (
            ["failed", "", ""]
            if "failed" in plain
            else [
                f"{tokens / plain['plain']:,.0f}",
                f"{plain['peak_mib']:,.0f}",
                f"{plain['plain'] / ours['ours']:.2f}",
            ]
        )
        ratio = f"{ours['ours'] / baseline[key]:.2f}" if key in baseline else ""
        table.add_row(
            *name,
            f"{tokens / ours['ours']:,.0f}",
            f"{ours['peak_mib']:,.0f}",
            *of_plain,
            f"{ours['floor'] / ours['ours']:.0%}",
            f"{(ours['floor'] + ours['attention']) / ours['ours']:.0%}",
            ratio,
        )
    console.print(table)
    if not forward:
        return
    table = Table(title="Forward, batch 4, milliseconds: no gradient, no hooks set")
    for heading in ("shape", "returns", "model.fast", "model(...)", "HookedTransformer", "fast is"):
        table.add_column(heading, justify="right")
    for shape, times in forward.items():
        if "failed" in times:
            table.add_row(shape, times["failed"])
            continue
        for returns, ending in (("logits", ""), ("loss", "_loss")):
            names = [f"fast{ending}", f"clean{ending}", f"transformer_lens{ending}"]
            milliseconds = [f"{1e3 * times[one]:.1f}" if one in times else "" for one in names]
            ratio = times[names[2]] / times[names[0]]
            table.add_row(shape, returns, *milliseconds, f"{ratio:.1f} times faster")
    console.print(table)


if __name__ == "__main__":
    main()
