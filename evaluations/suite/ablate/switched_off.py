"""The units that are switched off: what they cost as zeros, and as constants.

At every position of the clean stream the units outside a chosen few are replaced: those that the
model's own gates switch off (``own``), those outside the top k by absolute activation (``top``), or
all but k random ones (``random``). Zero is what self-ablation trains for; the constants, one for
each unit, are fitted together. Of what zeros cost, the share that constants save is spoofing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from transformer_lens import HookedTransformer

from evaluations.core.ablation import Group, Part
from evaluations.core.ablation_fit import Objective
from evaluations.core.ablation_lbfgs import Tolerance, minimise
from evaluations.core.ablation_pass import POST, Z
from evaluations.core.ablation_run import CleanRun
from evaluations.core.ablation_values import Slots, constant_kl, mean_constants, zero_constants
from sat_interp.model.block import spread_over_coordinates
from sat_interp.model.transformer import SelfAblatingTransformer

DEFAULT_K = 4
"""Units that stay in models without gates."""


@dataclass(frozen=True)
class SwitchedOff:
    """Costs of one choice of units, on held-out prompts.

    Attributes:
        choice: ``own``, ``top`` or ``random``.
        zero, constants: cost on each held-out prompt, in nats.
        fit_zero, fit_constants: mean costs on the prompts fitted on.
        converged: whether the fit met its tolerance.
    """

    choice: str
    zero: Float[Tensor, " prompt"]
    constants: Float[Tensor, " prompt"]
    fit_zero: float
    fit_constants: float
    converged: bool


def has_gates(model: HookedTransformer) -> bool:
    """Whether the model has gates that switch units off outside training."""
    return (
        isinstance(model, SelfAblatingTransformer)
        and model.ablation.is_gated
        and model.ablation.gates != "dropout"
    )


def kept_units(model: HookedTransformer, k: int | None) -> tuple[int, int]:
    """Return how many coordinates of z and how many neurons stay on in each layer."""
    width, d_mlp = model.cfg.n_heads * model.cfg.d_head, model.cfg.d_mlp or 0
    if k is None and isinstance(model, SelfAblatingTransformer) and model.ablation.is_gated:
        per_unit = model.cfg.d_head if model.ablation.unit == "head" else 1
        return min(width, model.ablation.k_attention * per_unit), model.ablation.k_neurons
    return min(width, k or DEFAULT_K), min(d_mlp, k or DEFAULT_K)


def measure_switched_off(
    fit: CleanRun, held: CleanRun, choice: str, k: int | None, evaluations: int, seed: int
) -> SwitchedOff:
    """Measure one choice of units.

    Args:
        evaluations: of value and gradient, at most.
    """
    fitted, measured = (_group(run, choice, k, seed) for run in (fit, held))
    slots = Slots.one(fit)
    two = fitted.take(torch.tensor([0, 0]))
    caps = torch.full((len(two.parts), 2), torch.inf)
    objective = Objective(fit, two, slots, caps)
    starts = torch.cat(
        [objective.flat(zero_constants(fitted)), objective.flat(mean_constants(fit, fitted, slots))]
    )
    values, _ = objective(starts, torch.arange(2))
    best = int(values.argmin())
    one = Objective(fit, fitted, slots, caps[:, :1])
    found = minimise(one, starts[best : best + 1], Tolerance(1e-4, 1e-3, evaluations))
    constants = one.constants(found.point, torch.arange(1))
    return SwitchedOff(
        choice,
        constant_kl(held, measured, zero_constants(measured))[0],
        constant_kl(held, measured, constants)[0],
        float(values[0]),
        float(found.value[0]),
        bool(found.converged[0]),
    )


def _group(run: CleanRun, choice: str, k: int | None, seed: int) -> Group:
    """One problem that replaces the switched-off units of all layers."""
    buckets = range(len(run.buckets))
    kept = dict(zip((Z, POST), kept_units(run.model, k), strict=True))
    own = [_own_masks(run, number, seed) for number in buckets] if choice == "own" else []
    generator = torch.Generator().manual_seed(seed)

    def mask(number: int, layer: int, site: str) -> Tensor:
        if choice == "own":
            return own[number][layer, site]
        value = run.state(number, layer)[site][0]
        if choice == "top":
            return _outside(value.abs(), kept[site])
        score = torch.rand(value.shape, generator=generator)
        return _outside(score.to(value.device), kept[site])

    parts = []
    for layer in range(run.model.cfg.n_layers):
        for site in (Z, POST):
            masks = tuple(mask(number, layer, site) for number in buckets)
            index = torch.arange(masks[0].shape[-1])[None]
            parts.append(Part((layer, site), index, mask=masks))
    return Group(tuple(parts))


def _outside(score: Tensor, k: int) -> Bool[Tensor, "prompt pos width"]:
    """True for all but the k highest."""
    return torch.ones_like(score, dtype=torch.bool).scatter(-1, score.topk(k, -1).indices, False)


def _own_masks(run: CleanRun, number: int, seed: int) -> dict[tuple[int, str], Tensor]:
    """Which units the model's gates switch off, by layer and site."""
    model = run.model
    assert isinstance(model, SelfAblatingTransformer)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # random gates draw from the global generator
        _, pairs = model.clean_and_masks(run.buckets[number].tokens)
    found: dict[tuple[int, str], Tensor] = {}
    for layer, (attention, neurons) in enumerate(pairs):
        block = model.blocks[layer]
        masks = {
            Z: _hard(attention, model.ablation.k_attention),
            POST: _hard(neurons, model.ablation.k_neurons),
        }
        masks[Z] = spread_over_coordinates(masks[Z], block.attn.W_Q)
        found |= {(layer, site): mask == 0 for site, mask in masks.items()}
    return found


def _hard(mask: Tensor, k: int) -> Tensor:
    """The mask itself where it is 0 and 1, else its k largest entries."""
    if bool(((mask == 0) | (mask == 1)).all()):
        return mask
    return torch.zeros_like(mask).scatter(-1, mask.topk(k, -1).indices, 1.0)


# The ablated stream ------------------------------------------------------------------------------


@dataclass(frozen=True)
class AblatedStream:
    """Next-token cross-entropy of the ablated stream on each held-out window, in nats a token.

    Attributes:
        zero: with zeros where the masks are 0, as it was trained.
        constants: with the best constant for each unit there, fitted on other windows.
    """

    zero: Float[Tensor, " prompt"]
    constants: Float[Tensor, " prompt"]


def measure_ablated_stream(
    model: SelfAblatingTransformer, fit: Sequence[Tensor], held: Sequence[Tensor], evaluations: int
) -> AblatedStream:
    """Measure what of the ablated stream's loss is due to zeros being no ordinary activations."""
    sizes = [
        (layer, site, width)
        for layer in range(model.cfg.n_layers)
        for site, width in _widths(model)
    ]
    total = sum(width for _, _, width in sizes)

    def losses(point: Tensor, batches: Sequence[Tensor]) -> Tensor:
        parts = dict(
            zip([one[:2] for one in sizes], point.split([w for *_, w in sizes]), strict=True)
        )
        return torch.cat([_ablated_losses(model, batch, parts) for batch in batches])

    def evaluate(points: Tensor, problems: Tensor) -> tuple[Tensor, Tensor]:
        leaf = points[0].detach().requires_grad_()
        with torch.enable_grad():
            value = losses(leaf, fit).mean()
            (gradient,) = torch.autograd.grad(value, leaf)
        return value.detach().double().cpu()[None], gradient.double()[None]

    begin = torch.zeros(1, total, dtype=torch.float64)
    found = minimise(evaluate, begin, Tolerance(1e-4, 1e-3, evaluations))
    with torch.no_grad():
        zero, best = (losses(point, held).double().cpu() for point in (begin[0], found.point[0]))
    return AblatedStream(zero, best)


def _widths(model: SelfAblatingTransformer) -> list[tuple[str, int]]:
    return [
        ("attn.hook_z_masked", model.cfg.n_heads * model.cfg.d_head),
        ("mlp.hook_post_masked", int(model.cfg.d_mlp or 0)),
    ]


def _ablated_losses(
    model: SelfAblatingTransformer, tokens: Tensor, constants: dict[tuple[int, str], Tensor]
) -> Float[Tensor, " prompt"]:
    """Mean cross-entropy of each window's tokens after the first."""

    def fill(constant: Tensor) -> Callable[..., Tensor]:
        def hook(value: Tensor, hook: object) -> Tensor:
            flat = value.flatten(2)
            filled = torch.where(flat == 0, constant.to(flat), flat)
            return filled.view(value.shape)

        return hook

    hooks: list[Any] = [
        (f"blocks.{layer}.ablated.{site}", fill(one)) for (layer, site), one in constants.items()
    ]
    with model.hooks(fwd_hooks=hooks), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        logits = model.dual(tokens.to(model.W_E.device), path="hooked").ablated_logits
    flat = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten().to(logits.device), reduction="none"
    )
    return flat.view(len(tokens), -1).mean(1)
