"""``sat-eval ablate``: optimal constants by our fit against a plain form of the official recipe.

    python -m benchmarks.ablate                           # the built-in baseline, 25 components
    python -m benchmarks.ablate --prompts 100 --components a1.h0,m2 --official-steps 2000

The official recipe (maxtli/optimalablation) is AdamW, step 2e-3, on 3 prompts, 10,000 times,
one component at a time through the whole model. Its time is extrapolated from a slice of the steps;
its cost on the same prompts is that of the constants after the slice. Times are of the process (CPU
seconds) on one thread. A row-evaluation is one prompt forward and backward for one component.
"""

from __future__ import annotations

import argparse
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
    model: HookedTransformer, run: CleanRun, members: ComponentSet, steps: int, seed: int = 0
) -> Tensor:
    """The constants of one component after so many steps of the official recipe."""
    (component,), batch = members, group([members])
    constant = mean_constants(run, batch, Slots.one(run))[0][0, 0].float().requires_grad_()
    optimiser = torch.optim.AdamW([constant], lr=OFFICIAL_RATE, weight_decay=0)
    draws = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([float(len(bucket)) for bucket in run.buckets])
    index = torch.tensor(component.index)

    def put(value: Tensor, hook: Any) -> Tensor:
        flat = value.flatten(2).clone()
        flat[:, run.first :, index] = constant
        return flat.view(value.shape)

    name = f"blocks.{component.layer}.{component.site}"
    for _ in range(steps):
        bucket = run.buckets[int(torch.multinomial(sizes, 1, generator=draws))]
        rows = torch.randint(len(bucket), (OFFICIAL_PROMPTS,), generator=draws)
        tokens = bucket.tokens[rows]
        with torch.no_grad():
            p = model(tokens)[:, -1].log_softmax(-1)
        q = model.run_with_hooks(tokens, fwd_hooks=[(name, put)])[:, -1].log_softmax(-1)
        loss = (p.exp() * (p - q)).sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return constant.detach().double()


def main() -> None:
    """Print one table: our fits, the official recipe, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="demo:baseline")
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--components", default="embedding,heads,mlps,attention")
    parser.add_argument("--official-steps", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model(options.model)
    prompts = make_task("ioi", loaded.tokenizer, options.prompts, 0)
    run = CleanRun(loaded.model, [batch.clean for batch in prompts.batches])
    sets = find_components(loaded.model, options.components.split(","))
    begin = time.process_time()
    fits = ours(run, sets, FitConfig(starts=2, rounds=1, watch=False))
    seconds = time.process_time() - begin
    table = Table(title=f"{options.model}, n = {len(run)}: Delta_oa, nats")
    for heading in ("component", "ours", "converged", "rows", "official", "steps"):
        table.add_column(heading)
    official_seconds, rows = 0.0, 0.0
    for one in sets:
        best, number = fits[name_of(one)]
        begin = time.process_time()
        constant = official(loaded.model, run, one, options.official_steps)
        official_seconds += time.process_time() - begin
        theirs = float(constant_kl(run, group([one]), [constant[None, None]]).mean())
        own_rows = float(best.evaluations[number]) * len(run)
        rows += own_rows
        table.add_row(
            name_of(one),
            f"{best.delta[number]:.5f}",
            str(bool(best.converged[number])),
            f"{own_rows:,.0f}",
            f"{theirs:.5f}",
            f"{options.official_steps:,}",
        )
    whole = official_seconds * OFFICIAL_STEPS / options.official_steps
    official_rows = OFFICIAL_STEPS * OFFICIAL_PROMPTS * len(sets)
    console = Console()
    console.print(table)
    console.print(
        f"{len(sets)} components: ours {seconds:.0f} s, official {whole:.0f} s (extrapolated), "
        f"{whole / seconds:.1f} times; rows {rows:,.0f} and {official_rows:,}, "
        f"{official_rows / rows:.1f} times"
    )


if __name__ == "__main__":
    main()
