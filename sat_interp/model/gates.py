"""Relevance scores, and k-winners-take-all with a straight-through gradient.

Self-Ablating Transformers (arXiv 2505.00509), section 3.1, equations 1 to 3.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens.hook_points import HookPoint

from sat_interp.model.config import NearTies, SelfAblationConfig, Soft
from sat_interp.model.kernels import kernel

# T = x_k - x_{k+1} vanishes where the k-th and (k+1)-th scores tie, and 1/T is in the gradient:
# T is kept above this share of the scores' spread (maximum minus minimum), itself kept above
# MIN_SPREAD. Where that floor holds, no gradient passes (see SelfAblationConfig.near_ties).
TEMPERATURE_FLOOR = 1e-4
MIN_SPREAD = 1e-2


def soft_weights(
    scores: Float[Tensor, "*batch units"],
    k: int,
    soft: Soft = "softmax",
    temperature: float = 1.0,
    near_ties: NearTies = "no_gradient",
) -> tuple[Float[Tensor, "*batch units"], Float[Tensor, "*batch units"]]:
    """Soft weights w and the hard mask of the k winners.

    With x sorted from the largest: gamma = (x_k + x_{k+1}) / 2 and
    T = temperature * (x_k - x_{k+1}), floored (see TEMPERATURE_FLOOR).

    - softmax: w = softmax((x - gamma) / T), sum 1 (equation 3; gamma cancels).
    - sigmoid: w = sigmoid((x - gamma) / T), rescaled to sum k (the released code).

    Gradients flow through x, gamma and T. At k = 1 they vanish as the gap closes, because
    (x_2 - x_1) / T is then constant. In rows where the floor holds T the equations no longer apply
    and the gradient is 0; with ``near_ties="detached_floor"`` it is that of a constant T, which
    grows to 1 / floor. Either way the Jacobian dw/dx is bounded for all scores, exact ties
    included: see :func:`jacobian_bound`.

    Args:
        scores: relevance of each unit, k < units.

    Returns:
        (w, mask); the mask holds exactly k ones, ties going to whichever ``topk`` returns first.
    """
    top, winners = scores.topk(k + 1, dim=-1)
    kth, next_best = top[..., k - 1 : k], top[..., k : k + 1]
    mask = torch.zeros_like(scores).scatter_(-1, winners[..., :k], 1.0)
    spread = top[..., :1].detach() - scores.detach().amin(-1, keepdim=True)
    floor = TEMPERATURE_FLOOR * spread.clamp(min=MIN_SPREAD)
    gap = temperature * (kth - next_best)
    is_held = gap < floor
    sharpness = torch.where(is_held, floor, gap)
    if soft == "softmax":
        # Subtracting gamma would change nothing but the rounding.
        weights = F.softmax((scores - top[..., :1].detach()) / sharpness, dim=-1)
    else:
        # 2 (x - gamma), written so that float32 keeps the digits of a small gap.
        twice = (scores - kth) + (scores - next_best)
        weights = torch.sigmoid(twice / (2 * sharpness))
        weights = k * weights / weights.sum(-1, keepdim=True)
    if near_ties == "no_gradient":
        weights = torch.where(is_held, weights.detach(), weights)
    return weights, mask


def jacobian_bound(units: int, temperature: float, soft: Soft, floor: float) -> float:
    """An upper bound on the spectral norm of dw/dx where T >= ``floor``.

    ``floor`` is TEMPERATURE_FLOOR * max(spread, MIN_SPREAD) or any larger value of T. Rows whose T
    is held there have norm 0 unless near_ties is detached_floor, for which the bound holds too.

    softmax: the Jacobian in (x / T) has norm <= 1/2; the path through T adds
    sqrt(2) * temperature * sd_w(log w), and the variance of log w is at most log(n)^2 / 4 + 1.
    sigmoid: |s'| <= 1/4 and |u s'(u)| <= 0.224 bound the path through x, gamma and T; rescaling to
    sum k (the k winners have s >= 1/2) multiplies by at most 2 (1 + sqrt(n)).
    """
    root = math.sqrt(units)
    if soft == "softmax":
        spread_of_log = math.sqrt(math.log(units) ** 2 / 4 + 1)
        return (0.5 + math.sqrt(2) * temperature * spread_of_log) / floor
    through_scores = (1 + root / math.sqrt(2)) / 4 + 0.224 * math.sqrt(2) * temperature * root
    return 2 * (1 + root) * through_scores / floor


def k_winners(
    scores: Float[Tensor, "*batch units"], k: int, ablation: SelfAblationConfig
) -> Float[Tensor, "*batch units"]:
    """The mask that multiplies the units: hard with a straight-through gradient, or soft.

    With k = units nothing is ablated: ones, and no gradient. On the CPU a kernel computes what
    :func:`soft_weights` describes (softmax; sigmoid stays with PyTorch); there, of winners that tie
    the first wins, and units that tie for the k-th place share the gradient through T.
    """
    if k == scores.shape[-1]:
        return torch.ones_like(scores)
    is_soft = ablation.forward_mask == "soft"
    fused = kernel("k_winners", scores) if ablation.soft == "softmax" else None
    if fused is not None:
        is_floored = ablation.near_ties == "detached_floor"
        settings = (ablation.temperature, TEMPERATURE_FLOOR, MIN_SPREAD, is_soft, is_floored)
        mask: Tensor = fused(scores.float(), k, *settings)[0].to(scores.dtype)
        return mask
    weights, mask = soft_weights(scores, k, ablation.soft, ablation.temperature, ablation.near_ties)
    if is_soft:
        return weights
    if not weights.requires_grad:
        return mask
    # (w - w) is exactly 0, so the forward value stays exactly the mask; mask + w - w would round.
    return mask + (weights - weights.detach())


def random_winners(like: Float[Tensor, "*batch units"], k: int) -> Float[Tensor, "*batch units"]:
    """A uniformly random k-subset at every position, drawn from torch's global generator."""
    winners = torch.rand_like(like).topk(k, dim=-1).indices
    return torch.zeros_like(like).scatter_(-1, winners, 1.0)


class GateScores(nn.Module):
    """Two biased linear maps from a residual state to relevance scores (section 3.1).

    Parameters: ``W_attention`` (d_model, n_attention), ``b_attention``, ``W_neurons``
    (d_model, n_neurons), ``b_neurons``. Under autocast the scores are float32 (float64 in a model
    of float64): products in half precision would tie them. ``W_`` names are
    initialised by TransformerLens' own rule.
    """

    def __init__(
        self,
        d_model: int,
        n_attention: int,
        n_neurons: int,
        ablation: SelfAblationConfig,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.W_attention = nn.Parameter(torch.empty(d_model, n_attention, dtype=dtype))
        self.b_attention = nn.Parameter(torch.zeros(n_attention, dtype=dtype))
        self.W_neurons = nn.Parameter(torch.empty(d_model, n_neurons, dtype=dtype))
        self.b_neurons = nn.Parameter(torch.zeros(n_neurons, dtype=dtype))
        self.requires_grad_(ablation.gates != "frozen")
        self.is_detached = ablation.gates == "detached"

    def forward(
        self, state: Float[Tensor, "batch pos d_model"]
    ) -> tuple[Float[Tensor, "batch pos n_attention"], Float[Tensor, "batch pos n_neurons"]]:
        """Scores of the attention units and of the neurons."""
        if self.is_detached:
            state = state.detach()
        weights = (self.W_attention, self.b_attention, self.W_neurons, self.b_neurons)
        if not torch.is_autocast_enabled(state.device.type):
            return _two_linear(state, *weights)
        # In bfloat16 the k-th and (k+1)-th scores tie often, and 1/T is in the gradient.
        dtype = torch.promote_types(self.W_attention.dtype, torch.float32)
        with torch.autocast(state.device.type, enabled=False):
            return _two_linear(state.to(dtype), *(weight.to(dtype) for weight in weights))


def _two_linear(
    state: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor
) -> tuple[Tensor, Tensor]:
    return F.linear(state, first.T, first_bias), F.linear(state, second.T, second_bias)


class BlockGates(nn.Module):
    """The gates of one block: scores (its own, or those of the global gates) to masks.

    Hook points, all (batch, pos, units): ``hook_attention_scores``, ``hook_attention_mask``,
    ``hook_neuron_scores``, ``hook_neuron_mask``. Random masks and dropout have no scores, so the
    hook points for scores do not fire.
    """

    def __init__(
        self, ablation: SelfAblationConfig, scores: GateScores | None, n_attention: int, d_mlp: int
    ) -> None:
        super().__init__()
        self.ablation = ablation
        self.n_attention, self.n_neurons = n_attention, d_mlp
        self.scores = scores
        self.hook_attention_scores = HookPoint()
        self.hook_attention_mask = HookPoint()
        self.hook_neuron_scores = HookPoint()
        self.hook_neuron_mask = HookPoint()

    def forward(
        self,
        block_input: Float[Tensor, "batch pos d_model"],
        scores: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Float[Tensor, "batch pos n_attention"], Float[Tensor, "batch pos n_neurons"]]:
        """Masks of the attention units and of the neurons.

        Args:
            block_input: the clean stream as it enters the block.
            scores: this block's slice of the global scores (attention, neurons).
        """
        if scores is None and self.scores is not None:
            scores = self.scores(block_input)
        attention_scores, neuron_scores = scores if scores is not None else (None, None)
        ablation = self.ablation
        attention = self._mask(
            attention_scores,
            self.hook_attention_scores,
            ablation.k_attention,
            self.n_attention,
            block_input,
        )
        neurons = self._mask(
            neuron_scores, self.hook_neuron_scores, ablation.k_neurons, self.n_neurons, block_input
        )
        return self.hook_attention_mask(attention), self.hook_neuron_mask(neurons)

    def _mask(
        self, scores: Tensor | None, hook: HookPoint, k: int, units: int, block_input: Tensor
    ) -> Tensor:
        if scores is not None:
            return k_winners(hook(scores), k, self.ablation)
        ones = block_input.new_ones(*block_input.shape[:2], units)
        if self.ablation.gates == "random":
            return random_winners(ones, k)
        # Ordinary dropout: survivors rescaled by n/k in training, identity otherwise.
        return F.dropout(ones, 1 - k / units, self.training)
