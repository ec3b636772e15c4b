"""``sat-eval ablate``: optimal constants by our fit against a plain form of the official recipe.

    python -m benchmarks.ablate                           # the built-in baseline, 25 components
    python -m benchmarks.ablate --prompts 100 --components a1.h0,m2 --official-steps 2000
    python -m benchmarks.ablate --growth                  # components, prompts, layers

The official recipe (maxtli/optimalablation) is AdamW, step 2e-3, on 3 prompts, 10,000 times, all
components in a batch (its 156-in-a-batch scheme) or one at a time, through the whole model. Its
time is extrapolated from a slice of the steps; its cost on the same prompts is that of the
constants after the slice. Times are of the process (CPU seconds) on one thread.

A row-evaluation is one prompt forward and backward for one component. Where several gradients are
drawn from one forward pass, half of it is for that pass and half for each gradient. ``rows to
theirs`` are ours until the cost is at most 1e-3 above theirs.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections import defaultdict
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.core.ablation import ComponentSet, find_components, group, name_of, signature
from evaluations.core.ablation_fit import Fit, FitConfig, fit
from evaluations.core.ablation_run import CleanRun
from evaluations.core.ablation_values import Slots, constant_kl, mean_constants
from evaluations.core.model_source import load_model
from evaluations.tasks.registry import make_task

OFFICIAL_STEPS, OFFICIAL_PROMPTS, OFFICIAL_RATE = 10_000, 3, 2e-3
CONFIG = FitConfig(starts=2, rounds=1, watch=False)
WITHIN = 1e-3


def ours(run: CleanRun, sets: list[ComponentSet], config: FitConfig) -> dict[str, tuple[Fit, int]]:
    """Fit all components, those of one place in a batch; each fit with the component's number."""
    groups: dict[object, list[ComponentSet]] = defaultdict(list)
    for one in sets:
        groups[signature(one)].append(one)
    found = {}
    for members in groups.values():
        best = fit(run, group(members), Slots.one(run), config)
        found |= {name_of(one): (best, number) for number, one in enumerate(members)}
    return found


def official(
    model: HookedTransformer, run: CleanRun, sets: list[ComponentSet], steps: int, seed: int = 0
) -> list[Tensor]:
    """The constants after so many steps of the official recipe, all components in a batch."""
    constants = [
        mean_constants(run, group([one]), Slots.one(run))[0][0, 0].float().requires_grad_()
        for one in sets
    ]
    optimiser = torch.optim.AdamW(constants, lr=OFFICIAL_RATE, weight_decay=0)
    draws = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([float(len(bucket)) for bucket in run.buckets])
    index = [torch.tensor(one.index) for (one,) in sets]
    places: dict[str, list[int]] = defaultdict(list)
    for number, (one,) in enumerate(sets):
        places[f"blocks.{one.layer}.{one.site}"].append(number)

    def put_in(numbers: list[int]) -> Any:
        def put(value: Tensor, hook: Any) -> Tensor:
            flat = value.flatten(2).unflatten(0, (len(sets), -1)).clone()
            for number in numbers:
                flat[number, :, run.first :, index[number]] = constants[number]
            return flat.flatten(0, 1).view(value.shape)

        return put

    hooks = [(name, put_in(numbers)) for name, numbers in places.items()]
    for _ in range(steps):
        bucket = run.buckets[int(torch.multinomial(sizes, 1, generator=draws))]
        tokens = bucket.tokens[torch.randint(len(bucket), (OFFICIAL_PROMPTS,), generator=draws)]
        with torch.no_grad():
            p = model(tokens)[:, -1].log_softmax(-1)
        rows = tokens.repeat(len(sets), 1)
        q = model.run_with_hooks(rows, fwd_hooks=hooks)[:, -1].log_softmax(-1)
        kl = (p.exp() * (p - q.unflatten(0, (len(sets), -1)))).sum(-1)
        optimiser.zero_grad()
        kl.mean(1).sum().backward()
        optimiser.step()
    return [one.detach().double() for one in constants]


def rows_to(best: Fit, number: int, target: float, n: int) -> float | None:
    """Our row-evaluations until a component's cost is at most ``target``."""
    reached = (best.course[:, number] <= target).nonzero().flatten()
    return float((best.begun[number] + 1 + int(reached[0])) * n) if len(reached) else None


def race(options: argparse.Namespace) -> None:
    """Print our fits, the official recipe, and the ratios."""
    loaded = load_model(options.model)
    run = ioi_run(loaded.model, loaded.tokenizer, options.prompts)
    sets = find_components(loaded.model, options.components.split(","))
    begin = time.process_time()
    fits = ours(run, sets, CONFIG)
    seconds = time.process_time() - begin
    begin = time.process_time()
    constants = official(loaded.model, run, sets, options.official_steps)
    whole = (time.process_time() - begin) * OFFICIAL_STEPS / options.official_steps
    alone = 0.0
    if options.alone:
        begin = time.process_time()
        for one in sets:
            official(loaded.model, run, [one], options.alone)
        alone = (time.process_time() - begin) * OFFICIAL_STEPS / options.alone
    table = Table(title=f"{options.model}, n = {len(run)}: Delta_oa, nats")
    for heading in ("component", "ours", "converged", "rows", "official", "rows to theirs"):
        table.add_column(heading)
    rows, same_rows = 0.0, []
    for one, constant in zip(sets, constants, strict=True):
        best, number = fits[name_of(one)]
        theirs = float(constant_kl(run, group([one]), [constant[None, None]]).mean())
        own_rows = float(best.evaluations[number]) * len(run)
        rows += own_rows
        same = rows_to(best, number, theirs + WITHIN, len(run))
        same_rows += [same] if same is not None else []
        table.add_row(
            name_of(one),
            f"{best.delta[number]:.5f}",
            str(bool(best.converged[number])),
            f"{own_rows:,.0f}",
            f"{theirs:.5f}",
            "not reached" if same is None else f"{same:,.0f}",
        )
    official_rows = OFFICIAL_STEPS * OFFICIAL_PROMPTS * len(sets)
    own_steps = options.official_steps * OFFICIAL_PROMPTS * len(same_rows)
    console = Console()
    console.print(table)
    console.print(
        f"{len(sets)} components: ours {seconds:.0f} s; official, extrapolated from "
        f"{options.official_steps} steps: in a batch {whole:.0f} s, {whole / seconds:.1f} times, "
        f"one at a time {alone:.0f} s; rows to convergence {rows:,.0f}, official {official_rows:,}"
    )
    console.print(
        f"rows to theirs, {len(same_rows)} of {len(sets)} components: {sum(same_rows):,.0f}; "
        f"official, {options.official_steps:,} steps: {own_steps:,}, "
        f"{own_steps / max(1.0, sum(same_rows)):.1f} times"
    )


def ioi_run(model: HookedTransformer, tokenizer: Any, n: int) -> CleanRun:
    """A model on IOI prompts."""
    prompts = make_task("ioi", tokenizer, n, 0)
    return CleanRun(model, [batch.clean for batch in prompts.batches])


def growth(options: argparse.Namespace) -> None:
    """Print time and rows by the number of components, prompts and layers."""
    loaded = load_model(options.model)
    table = Table(title="growth: heads")
    for heading in ("layers", "components", "prompts", "CPU s", "rows", "converged"):
        table.add_column(heading)

    def add(model: HookedTransformer, names: list[str], n: int) -> None:
        run = ioi_run(model, loaded.tokenizer, n)
        sets = find_components(model, names)
        begin = time.process_time()
        fits = ours(run, sets, CONFIG)
        seconds = time.process_time() - begin
        found = [fits[name_of(one)] for one in sets]
        rows = sum(float(best.evaluations[number]) * n for best, number in found)
        n_done = sum(bool(best.converged[number]) for best, number in found)
        cells = (model.cfg.n_layers, len(sets), n, f"{seconds:.1f}", f"{rows:,.0f}", n_done)
        table.add_row(*map(str, cells))

    heads = [f"a{layer}.h{head}" for layer in (2, 3) for head in range(4)]
    for count in (1, 4, 8):
        add(loaded.model, heads[:count], 200)
    for n in (100, 400, 800):
        add(loaded.model, heads[:4], n)
    for n_layers in (2, 4, 8):
        cfg = copy.deepcopy(loaded.model.cfg)
        cfg.n_layers, cfg.attn_types = n_layers, (cfg.attn_types or ["global"])[:1] * n_layers
        torch.manual_seed(0)
        add(HookedTransformer(cfg).eval(), ["heads"], 200)
    Console().print(table)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="demo:baseline")
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--components", default="embedding,heads,mlps,attention")
    parser.add_argument("--official-steps", type=int, default=100)
    parser.add_argument("--alone", type=int, default=0, help="steps of one component at a time")
    parser.add_argument("--growth", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    (growth if options.growth else race)(options)


if __name__ == "__main__":
    main()
