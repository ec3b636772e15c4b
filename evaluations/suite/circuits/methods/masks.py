"""Distributions of masks: what searches by gradient differ in.

A mask alpha in [0, 1] says how much of its source's output an edge carries; the rest is the
replacement. A search draws masks, runs them and follows the gradient of the loss in the parameters
theta of their distribution. u is uniform in (0, 1) throughout, and p = sigmoid(theta).

- ``Ugs``: uniform gradient sampling (Li and Janson 2024, arXiv 2409.09951, section 3.3 and
  appendix F). alpha = 1 - clip((u - p) / w + 1/2, 0, 1) with the window w = m p (1 - p): 1 with
  probability p - w/2, 0 with 1 - p - w/2, else uniform.
- ``HardConcrete``: c = sigmoid((ln u - ln(1 - u) + theta) / beta), alpha = clip(1.2 c - 0.1, 0, 1)
  (Louizos, Welling and Kingma 2018, arXiv 1712.01312); with a learned beta and a price for each
  edge it is HCGS, the paper's own baseline.
- ``TargetedConcrete``: the same with a fixed beta and a share of edges to remove, enforced by
  Lagrange multipliers: Edge Pruning (Bhaskar et al. 2024, arXiv 2406.16778).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Parameter

from evaluations.suite.circuits.graph import Graph

Masks = Float[Tensor, "row edge"]

START = 1.0
"""Initial theta of UGS: p = 0.73."""
BETA = 2 / 3
"""Temperature of the hard concrete distribution."""
LOW, HIGH = -0.1, 1.1
"""Interval that the concrete variable is stretched to."""
LEAST_BETA = 0.05
NODE_PRICE = 2e-4
"""Most that a node may cost: nu = min(lambda / 2, 2e-4)."""


@runtime_checkable
class Distribution(Protocol):
    """A distribution of masks with parameters."""

    theta: Parameter
    warm_up: float
    """Share of the search over which learning rates rise to their own."""

    def parameters(self) -> list[dict[str, Any]]:
        """Return the groups of parameters, for an optimiser; those of multipliers are ascended."""
        ...

    def sample(self, u: Masks) -> Masks:
        """Return masks, differentiable by the distribution's own estimator."""
        ...

    def price(self, progress: float) -> Float[Tensor, ""]:
        """Return what is added to the loss, given the share of the search that is done."""
        ...

    def stepped(self, optimiser: torch.optim.Optimizer) -> None:
        """Follow up a step of the optimiser."""
        ...


# Uniform gradient sampling -------------------------------------------------------------------


class _UniformGradient(torch.autograd.Function):
    """The masks of UGS and its estimator of the gradient.

    dalpha/dtheta := p (1 - p) where 0 < alpha < 1, times rows / n with n the number of such rows of
    an edge: the mean over the rows in which the edge is undecided, 0 where there is none.
    """

    @staticmethod
    def forward(ctx: Any, theta: Float[Tensor, "edge"], u: Masks, scale: Tensor) -> Masks:
        p = theta.sigmoid()
        slope = p * (1 - p)
        window = (scale * slope).clamp(min=torch.finfo(p.dtype).tiny)
        masks = 1 - ((u - p) / window + 0.5).clamp(0, 1)
        ctx.save_for_backward(masks, slope)
        return masks

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        masks, slope = ctx.saved_tensors
        inside = ((masks > 0) & (masks < 1)).to(masks)
        weight = len(masks) / inside.sum(0).clamp(min=1)
        return slope * weight * (inside * gradients[0]).sum(0), None, None


def uniform_gradient_masks(
    theta: Float[Tensor, "edge"], u: Masks, scale: Float[Tensor, "edge"] | float = 1.0
) -> Masks:
    """Return UGS's masks; their gradient in theta is UGS's estimate for a mean over the rows.

    With L the mean over rows, the estimate of edge k is p (1 - p) times the mean of dL_row/dalpha_k
    over the rows in which the edge is undecided. It is unbiased for the loss under independent
    coins of probability p for that edge, the others being drawn by UGS.

    Args:
        theta: logits of p.
        u: uniform draws.
        scale: m, the window in units of p (1 - p), between 0.5 and 2.
    """
    found: Tensor = _UniformGradient.apply(  # type: ignore[no-untyped-call]
        theta, u, torch.as_tensor(scale).to(theta)
    )
    return found


class Ugs:
    """Uniform gradient sampling with a price for each edge and node.

    Args:
        price: what edges and nodes cost.
        rate: learning rate.
        dynamic: widen the window of edges whose gradients are large (:func:`window_scale`).
    """

    warm_up = 0.0

    def __init__(self, price: Price, rate: float, dynamic: bool = False) -> None:
        self.prices, self.rate, self.dynamic = price, rate, dynamic
        self.theta = Parameter(torch.full((price.n_edges,), START, dtype=price.dtype))
        self.scale = torch.ones_like(self.theta.data)

    def parameters(self) -> list[dict[str, Any]]:
        """See ``Distribution``."""
        return [{"params": [self.theta], "lr": self.rate}]

    def sample(self, u: Masks) -> Masks:
        """See ``Distribution``."""
        return uniform_gradient_masks(self.theta, u, self.scale)

    def price(self, progress: float) -> Float[Tensor, ""]:
        """See ``Distribution``; the expected mask is p."""
        return self.prices.of(self.theta.sigmoid())

    def stepped(self, optimiser: torch.optim.Optimizer) -> None:
        """See ``Distribution``."""
        if self.dynamic:
            state = optimiser.state[self.theta]
            _, second = optimiser.param_groups[0]["betas"]
            self.scale = window_scale(state["exp_avg_sq"] / (1 - second ** float(state["step"])))


def window_scale(second: Float[Tensor, "edge"]) -> Float[Tensor, "edge"]:
    """Return the dynamic window's scale m: sqrt(v) over its mean, within [0.5, 2].

    Args:
        second: Adam's second moment v of each theta, corrected for its start. Values above the
            99 % quantile count as that quantile in the mean.
    """
    root = second.sqrt()
    mean = root.clamp(max=torch.quantile(root, 0.99)).mean()
    return (root / mean.clamp(min=torch.finfo(root.dtype).tiny)).clamp(0.5, 2)


# Hard concrete ---------------------------------------------------------------------------------


def hard_concrete_masks(
    theta: Float[Tensor, "edge"],
    beta: Float[Tensor, "edge"] | float,
    u: Masks,
    released: bool = False,
) -> Masks:
    """Return masks of the hard concrete distribution, differentiable in theta and beta.

    Args:
        theta: logits.
        beta: temperature.
        u: uniform draws.
        released: as the released code samples: 1.2 (c - 0.1) in place of 1.2 c - 0.1, and 1e-3
            added to u and beta.
    """
    if released:
        logit = (u + 1e-3).log() - (1 - u).log()
        concrete = ((logit + theta) / (beta + 1e-3)).sigmoid()
        return ((HIGH - LOW) * (concrete + LOW)).clamp(0, 1)
    concrete = ((u.log() - (-u).log1p() + theta) / beta).sigmoid()
    return ((HIGH - LOW) * concrete + LOW).clamp(0, 1)


def probability_above_zero(
    theta: Float[Tensor, "edge"], beta: Float[Tensor, "edge"] | float
) -> Float[Tensor, "edge"]:
    """Return P(alpha > 0) of the hard concrete distribution."""
    return (theta - beta * math.log(-LOW / HIGH)).sigmoid()


class HardConcrete:
    """Hard concrete masks with learned temperatures and a price for each edge and node: HCGS."""

    warm_up = 0.0

    def __init__(self, price: Price, rate: float, released: bool = False) -> None:
        self.prices, self.rate, self.released = price, rate, released
        self.theta = Parameter(torch.zeros(price.n_edges, dtype=price.dtype))
        self.beta = Parameter(torch.full_like(self.theta.data, BETA))

    def parameters(self) -> list[dict[str, Any]]:
        """See ``Distribution``."""
        return [{"params": [self.theta, self.beta], "lr": self.rate}]

    def sample(self, u: Masks) -> Masks:
        """See ``Distribution``."""
        return hard_concrete_masks(self.theta, self.beta, u, self.released)

    def price(self, progress: float) -> Float[Tensor, ""]:
        """See ``Distribution``; edges are counted by P(alpha > 0)."""
        return self.prices.of(probability_above_zero(self.theta, self.beta))

    def stepped(self, optimiser: torch.optim.Optimizer) -> None:
        """Keep temperatures positive."""
        self.beta.data.clamp_(min=LEAST_BETA)


class TargetedConcrete:
    """Hard concrete masks and a share of edges to remove: Edge Pruning.

    The price is l1 (t - s) + l2 (t - s)^2 with s the expected share of removed edges, t the target,
    which rises linearly to its end over the first five sixths of the search, and multipliers l1, l2
    that are ascended.

    Args:
        target: share of edges to remove, below or above 1.
        rate: learning rate of theta and of the multipliers.
        start: initial theta.
    """

    RAMP = 5 / 6
    warm_up = 1 / 15

    def __init__(self, target: float, rate: float, start: Float[Tensor, "edge"]) -> None:
        self.target, self.rate = target, rate
        self.theta = Parameter(start.clone())
        self.multipliers = Parameter(torch.zeros(2, dtype=start.dtype))

    def parameters(self) -> list[dict[str, Any]]:
        """See ``Distribution``."""
        return [
            {"params": [self.theta], "lr": self.rate},
            {"params": [self.multipliers], "lr": self.rate, "maximize": True},
        ]

    def sample(self, u: Masks) -> Masks:
        """See ``Distribution``."""
        return hard_concrete_masks(self.theta, BETA, u)

    def price(self, progress: float) -> Float[Tensor, ""]:
        """See ``Distribution``."""
        removed = 1 - probability_above_zero(self.theta, BETA).mean()
        missing = self.target * min(1.0, progress / self.RAMP) - removed
        first, second = self.multipliers
        found: Tensor = first * missing + second * missing.square()
        return found

    def stepped(self, optimiser: torch.optim.Optimizer) -> None:
        """See ``Distribution``."""


# Prices -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Price:
    """What kept edges, and nodes with kept edges, add to the loss.

    lambda sum_e p_e + nu sum_h (N/2) tanh(2 s_h / N), N the number of heads, s_h the sum of p over
    the edges into and out of a head, nu = min(lambda / 2, 2e-4). MLPs and the embedding are free.

    Attributes:
        per_edge: lambda.
        ends: the heads at the ends of each edge: at its source, and at its destination (several
            where they share a key or a value); -1 for none.
        n_heads: N.
        dtype: of the parameters.
    """

    per_edge: float
    ends: Int[Tensor, "edge end"]
    n_heads: int
    dtype: torch.dtype = torch.float32

    @classmethod
    def of_graph(cls, graph: Graph, per_edge: float, dtype: torch.dtype) -> Price:
        """Return the prices of a graph's edges and heads."""
        return cls(per_edge, head_ends(graph), graph.n_layers * graph.n_heads, dtype)

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return len(self.ends)

    def of(self, p: Float[Tensor, "edge"]) -> Float[Tensor, ""]:
        """Return the price of edges that are kept with these probabilities."""
        nodes = min(self.per_edge / 2, NODE_PRICE) * node_penalty(p, self.ends, self.n_heads)
        return self.per_edge * p.sum() + nodes


def node_penalty(
    p: Float[Tensor, "edge"], ends: Int[Tensor, "edge end"], n_heads: int
) -> Float[Tensor, ""]:
    """Return sum_h (N/2) tanh(2 s_h / N), s_h the sum of p over the edges at head h."""
    total = p.new_zeros(n_heads + 1)
    for side in ends.T:
        total = total.index_add(0, side.where(side >= 0, torch.tensor(n_heads)), p)
    return (n_heads / 2 * torch.tanh(2 * total[:n_heads] / n_heads)).sum()


def head_ends(graph: Graph) -> Int[Tensor, "edge end"]:
    """Return the numbers of the heads at the source and at the destination of each edge.

    A shared key or value is a destination of all heads of its group: each has an end. -1 where
    there is no head, or no further one.
    """

    def numbers(sources: Iterable[int]) -> list[int]:
        nodes = [graph.sources[source] for source in sources]
        return [one.layer * graph.n_heads + one.head for one in nodes if one.head is not None]

    tails = [numbers([source]) for source in range(graph.n_sources)]
    heads = [numbers(graph.feeds(destination)) for destination in range(graph.n_destinations)]
    ends = [_padded(tails)[graph.edge_source], _padded(heads)[graph.edge_destination]]
    return torch.cat(ends, 1)


def _padded(rows: Sequence[Sequence[int]]) -> Int[Tensor, "row place"]:
    """Rows of different lengths as one tensor, filled with -1."""
    width = max(1, *map(len, rows))
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows])
