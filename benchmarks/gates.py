"""``sat-eval gates``: the time of its stages, and of its inner work against a plain way to do it.

    python -m benchmarks.gates                      # the built-in local-k4
    python -m benchmarks.gates MODEL --data FILE    # another model and its text

Times are of the process (CPU seconds) on one thread, each taken once. The stages run with the
settings of ``sat-eval gates``. The inner work is done on the stories of the probes, in both ways:

- masks: the clean stream and the gates alone, against the pass through both streams.
- exchanged masks: the ablated stream from the clean pass that is there, against a pass through both
  streams whose masks hooks replace (which takes it off the fused path).
- gradients of a probe of a layer's masks, ten epochs: written out, against autograd.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from evaluations.core.model_source import load_model
from evaluations.core.text import Text, evaluation_text
from evaluations.suite.gates.config import GatesConfig
from evaluations.suite.gates.interventions import measure_interventions
from evaluations.suite.gates.leak import ProbeTokens, collect, measure_leak, next_token_classes
from evaluations.suite.gates.masks import BATCH_TOKENS, SITES, Masks, batches, gated
from evaluations.suite.gates.probe import BATCH, Features, Probe, gradient
from evaluations.suite.gates.usage import count
from sat_interp.data.batches import story_batches
from sat_interp.model.fast import ablated_pass
from sat_interp.model.streams import DualStates
from sat_interp.model.transformer import SelfAblatingTransformer

EPOCHS = 10


def plain_states(model: SelfAblatingTransformer, text: Text) -> Iterator[DualStates]:
    """Both streams and the masks of every story, in the batches of ``gates``."""
    for stories in story_batches(text.corpus, int(model.cfg.n_ctx), BATCH_TOKENS):
        yield model.dual_states(stories.tokens[:, :-1])


def plain_ablated(
    model: SelfAblatingTransformer, tokens: Int[Tensor, "batch pos"], masks: Masks
) -> Float[Tensor, "batch pos d_model"]:
    """The ablated stream's final state where hooks replace the masks in a pass of both streams."""

    def put(mask: Tensor, hook: Any, *, given: Tensor) -> Tensor:
        del mask, hook
        return given

    hooks: list[tuple[str | Callable[..., Any], Callable[..., Any]]] = [
        (f"blocks.{layer}.gates.hook_{site}_mask", partial(put, given=mask))
        for site in SITES
        for layer, mask in enumerate(masks[site])
    ]
    with model.hooks(fwd_hooks=hooks):
        return model.dual_states(tokens).ablated


def plain_gradient(
    probe: Probe, features: Features, classes: Int[Tensor, " tokens"], tokens: Int[Tensor, " some"]
) -> tuple[Float[Tensor, "width classes"], Float[Tensor, " classes"]]:
    """What ``probe.gradient`` returns, by autograd; of features that are on or off."""
    assert features.on is not None
    weights, bias = (part.clone().requires_grad_() for part in (probe.weights, probe.bias))
    odds = F.embedding_bag(features.on[tokens], weights, mode="sum") + bias
    F.cross_entropy(odds, classes[tokens], reduction="sum").backward()
    assert weights.grad is not None
    assert bias.grad is not None
    return weights.grad, bias.grad


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process, all its threads."""
    started = time.process_time()
    work()
    return time.process_time() - started


def exhaust(steps: Iterator[object]) -> None:
    for _ in steps:
        pass


def stages(
    model: SelfAblatingTransformer, text: Text, config: GatesConfig
) -> tuple[dict[str, float], ProbeTokens]:
    """CPU seconds of each stage, and what the probes read."""
    probed = text.sample(config.probe_stories, config.seed)
    changed = text.sample(config.intervention_stories, config.seed)
    kept: list[ProbeTokens] = []
    works: dict[str, Callable[[], object]] = {
        "usage": lambda: count(model, text, config.seed),
        "leak: states": lambda: kept.append(collect(model, probed, config.seed)),
        "leak: probes": lambda: measure_leak(kept[0], config.probe_classes, config.seed),
        "interventions": lambda: measure_interventions(model, changed, config.seed),
    }
    return {name: cpu_seconds(work) for name, work in works.items()}, kept[0]


@torch.inference_mode()
def against_plain(
    model: SelfAblatingTransformer, text: Text, tokens: ProbeTokens, n_classes: int
) -> dict[str, tuple[float, float]]:
    """CPU seconds of ours and of the plain way."""
    found = {
        "masks": (
            cpu_seconds(lambda: exhaust(batches(model, text, "ours"))),
            cpu_seconds(lambda: exhaust(plain_states(model, text))),
        )
    }
    ours = plain = 0.0
    for batch in batches(model, text, "exchanged"):
        moved = {site: [mask.flip(1) for mask in batch.masks[site]] for site in SITES}
        pairs = list(zip(*(moved[site] for site in SITES), strict=True))
        ours += cpu_seconds(partial(ablated_pass, model, batch.clean, pairs))
        plain += cpu_seconds(partial(plain_ablated, model, batch.inputs, moved))
    found["exchanged masks"] = ours, plain
    masks = tokens.masks[0]
    if masks.on is not None:  # they are hard
        found["gradients of a probe"] = gradients(masks.on, masks.n_on, tokens.following, n_classes)
    return found


@torch.inference_mode(False)
def gradients(
    on: Int[Tensor, "tokens active"], n_on: int, following: Int[Tensor, " tokens"], n_classes: int
) -> tuple[float, float]:
    """CPU seconds of the gradients over all tokens, EPOCHS times, ours and autograd's."""
    features = Features(on.clone(), n_on)  # autograd takes no tensor of inference mode
    every = torch.arange(len(on))
    classes, n_classes = next_token_classes(following.clone(), every, n_classes)
    probe = Probe.unigram(classes, n_classes, features.width)
    parts = EPOCHS * every.split(BATCH[1])
    ways: list[Callable[[Tensor], object]] = [
        lambda part: gradient(probe.weights, probe.bias, features, classes, part),
        lambda part: plain_gradient(probe, features, classes, part),
    ]
    ours, plain = (cpu_seconds(partial(exhaust, map(way, parts))) for way in ways)
    return ours, plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("model", nargs="?", default="demo:local-k4", help="with gates")
    parser.add_argument("--data", default="demo", help="text whose validation split is read")
    parser.add_argument("--stories", type=int, help="only the first so many")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    loaded = load_model(chosen.model, device="cpu")
    text = evaluation_text(loaded.tokenizer, chosen.data, limit=chosen.stories)
    model, config = gated(loaded.model).requires_grad_(False), GatesConfig()
    seconds, tokens = stages(model, text, config)
    probed = text.sample(config.probe_stories, config.seed)
    compared = against_plain(model, probed, tokens, config.probe_classes)
    title = f"{loaded.name}: {len(text):,} stories; load {os.getloadavg()[0]:.1f}"
    table = Table(title=title)
    for heading in ("", "CPU seconds", "plain", "plain / ours"):
        table.add_column(heading, justify="right")
    for name, taken in seconds.items():
        table.add_row(name, f"{taken:.1f}")
    table.add_row("all stages", f"{sum(seconds.values()):.1f}", end_section=True)
    for name, (ours, plain) in compared.items():
        table.add_row(name, f"{ours:.2f}", f"{plain:.2f}", f"{plain / ours:.1f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
