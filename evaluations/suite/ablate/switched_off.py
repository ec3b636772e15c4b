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
from jaxtyping import Bool, Float, Int
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
    pairs = _drawn_masks(model, run.buckets[number].tokens, seed)
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
    model: SelfAblatingTransformer,
    fit: Sequence[Tensor],
    held: Sequence[Tensor],
    evaluations: int,
    memory: int,
) -> AblatedStream:
    """Measure what of the ablated stream's loss is due to zeros being no ordinary activations.

    Args:
        memory: bytes of activations that one pass may hold.
    """
    places = [
        (layer, site, width)
        for layer in range(model.cfg.n_layers)
        for site, width in (
            (Z, model.cfg.n_heads * model.cfg.d_head),
            (POST, int(model.cfg.d_mlp or 0)),
        )
    ]
    sizes = [width for *_, width in places]
    fitted, measured = (
        [piece for batch in side for piece in _pieces(model, batch, memory)] for side in (fit, held)
    )
    n = sum(map(len, fitted))

    def losses(point: Tensor, piece: _MaskedWindows) -> Tensor:
        parts = zip([one[:2] for one in places], point.split(sizes), strict=True)
        return _ablated_losses(model, piece, dict(parts))

    def evaluate(points: Tensor, problems: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = torch.zeros(1, dtype=torch.float64), torch.zeros_like(points).double()
        for piece in fitted:
            leaf = points[0].detach().requires_grad_()
            with torch.enable_grad():
                share = losses(leaf, piece).sum() / n
                (found,) = torch.autograd.grad(share, leaf)
            value += share.detach().double().cpu()
            gradient[0] += found.double().cpu()
        return value, gradient

    begin = torch.zeros(1, sum(sizes), dtype=torch.float64)
    found = minimise(evaluate, begin, Tolerance(1e-4, 1e-3, evaluations))
    with torch.no_grad():
        zero, best = (
            torch.cat([losses(point, piece) for piece in measured]).double().cpu()
            for point in (begin[0], found.point[0])
        )
    return AblatedStream(zero, best)


@dataclass(frozen=True)
class _MaskedWindows:
    """Windows of one pass, with each layer's masks of attention units and of neurons."""

    tokens: Int[Tensor, "window pos"]
    masks: Sequence[tuple[Tensor, Tensor]]

    def __len__(self) -> int:
        return len(self.tokens)


def _pieces(
    model: SelfAblatingTransformer, tokens: Int[Tensor, "window pos"], memory: int
) -> list[_MaskedWindows]:
    """Windows in pieces of one pass each; random masks are drawn for all windows at once."""
    tokens = tokens.to(model.W_E.device)
    masks = _drawn_masks(model, tokens, seed=0)
    size = _windows_of_a_pass(model, tokens.shape[1], memory)
    return [
        _MaskedWindows(
            tokens[start : start + size],
            [(one[start : start + size], two[start : start + size]) for one, two in masks],
        )
        for start in range(0, len(tokens), size)
    ]


def _windows_of_a_pass(model: HookedTransformer, n_pos: int, memory: int) -> int:
    """How many windows one pass of both streams may hold, with what its gradient needs."""
    cfg = model.cfg
    attention = 4 * cfg.n_heads * cfg.d_head + cfg.n_heads * n_pos
    per_position = 2 * cfg.n_layers * (8 * cfg.d_model + attention + 4 * (cfg.d_mlp or 0))
    row = n_pos * (per_position + 6 * cfg.d_vocab_out)
    return max(1, memory // (row * model.W_E.element_size()))


def _drawn_masks(
    model: SelfAblatingTransformer, tokens: Int[Tensor, "window pos"], seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Each layer's masks of attention units and of neurons."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # random gates draw from the global generator
        return model.clean_and_masks(tokens)[1]


def _ablated_losses(
    model: SelfAblatingTransformer,
    windows: _MaskedWindows,
    constants: dict[tuple[int, str], Tensor],
) -> Float[Tensor, " window"]:
    """Mean cross-entropy of each window's tokens after the first."""

    def given(mask: Tensor) -> Callable[..., Tensor]:
        return lambda value, hook: mask

    def filled(mask: Tensor, constant: Tensor) -> Callable[..., Tensor]:
        def hook(value: Tensor, hook: object) -> Tensor:
            flat = value.flatten(2)
            return torch.where(mask == 0, constant.to(flat), flat).view(value.shape)

        return hook

    hooks: list[Any] = []
    for layer, (attention, neurons) in enumerate(windows.masks):
        block = model.blocks[layer]
        name, ablated = f"blocks.{layer}.gates", f"blocks.{layer}.ablated"
        coordinates = spread_over_coordinates(attention, block.attn.W_Q)
        hooks += [
            (f"{name}.hook_attention_mask", given(attention)),
            (f"{name}.hook_neuron_mask", given(neurons)),
            (f"{ablated}.attn.hook_z_masked", filled(coordinates, constants[layer, Z])),
            (f"{ablated}.mlp.hook_post_masked", filled(neurons, constants[layer, POST])),
        ]
    tokens = windows.tokens
    with model.hooks(fwd_hooks=hooks):
        logits = model.dual(tokens, path="hooked").ablated_logits
    flat = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return flat.view(len(tokens), -1).mean(1)
