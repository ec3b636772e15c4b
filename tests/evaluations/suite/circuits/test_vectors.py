"""Circuits of two exhaustive graphs against values computed once in plain torch."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.methods.masks import (
    hard_concrete_masks,
    node_penalty,
    probability_above_zero,
    uniform_gradient_masks,
)
from evaluations.suite.circuits.patched import prepare
from evaluations.suite.circuits.refit import Budget, Refitter
from evaluations.suite.circuits.rows import RowPass
from tests.evaluations.vectors import VECTORS, needed

pytestmark = needed
GRAPHS = ("graph_mlp", "graph_attention")


class Exhaustive:
    """A tiny model, its prompts, and every circuit with its cost."""

    def __init__(self, name: str) -> None:
        self.tensors = load_file(VECTORS / f"{name}.safetensors")
        self.stated: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text())
        shape = dict(self.stated["shape"])
        mlps, scaled = shape.pop("mlps"), shape.pop("scaled")
        cfg = HookedTransformerConfig(
            **shape,
            act_fn="gelu_new",
            attn_only=not mlps,
            normalization_type="LN",
            use_attn_scale=scaled,
            dtype=torch.float64,
        )
        self.model = HookedTransformer(cfg)
        weights = {k[2:]: v for k, v in self.tensors.items() if k.startswith("w/")}
        self.model.load_state_dict(weights, strict=False)
        self.model.eval().requires_grad_(False)
        self.graph = Graph.of(self.model)
        self.circuits = self.tensors["circuits"].bool()
        tokens, other = self.tensors["tokens"], self.tensors["counterfactual"]
        self.batches = [SimpleNamespace(clean=tokens, corrupted=other)]

    def costs(self, ablation: str, constants: Tensor | None = None) -> Tensor:
        """The mean KL of every circuit."""
        rows = RowPass(self.model, self.graph)
        (bucket,) = rows.prompts(prepare(self.model, self.graph, self.batches, ablation))
        index = torch.arange(len(bucket)).expand(len(self.circuits), -1)
        with torch.no_grad():
            return rows.divergence(bucket, index, self.circuits.double(), constants).mean(1)


@pytest.fixture(scope="module", params=GRAPHS)
def case(request: pytest.FixtureRequest) -> Exhaustive:
    return Exhaustive(request.param)


def test_every_circuit_costs_what_it_should(case: Exhaustive) -> None:
    names = [list(case.graph.edge_name(edge)) for edge in range(case.graph.n_edges)]
    assert names == case.stated["edges"]
    for ablation, name in (("zero", "zero"), ("mean", "mean"), ("resample", "cf")):
        torch.testing.assert_close(case.costs(ablation), case.tensors[name], rtol=0, atol=1e-9)


def test_optimal_constants(case: Exhaustive) -> None:
    """At the stored constants, which are float32, the stored value; fitted, hardly ever more."""
    mean = prepare(case.model, case.graph, case.batches, "mean")
    refitter = Refitter(case.model, case.graph, mean, Budget(8, 1000, 60, 150))
    space = refitter.space
    assert space.sizes == case.stated["constant_sizes"]
    written = space.written(case.tensors["oa_constants"].double())
    stored = case.tensors["oa"]
    torch.testing.assert_close(case.costs("mean", written), stored, rtol=0, atol=3e-6)
    means = space.written(case.tensors["constants/mean"][None])
    torch.testing.assert_close(space.written(refitter.mean[None]), means, rtol=0, atol=1e-9)
    some = list(range(0, len(case.circuits), max(1, len(case.circuits) // 44)))
    fits = refitter.fits([case.circuits[number] for number in some])
    over = torch.tensor([fit.delta for fit in fits]) - stored[some]
    assert (over > 1e-4).double().mean() < 0.2  # local minima are many


def _gates() -> dict[str, Tensor]:
    return load_file(VECTORS / "gates.safetensors")


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_uniform_gradient_sampling(scale: float) -> None:
    """Masks and estimate for given draws; on average that of fresh ones, not the true gradient."""
    gates = _gates()

    def loss(masks: Tensor) -> Tensor:
        away = masks - gates["c"]
        return torch.einsum("ri,ij,rj->r", away, gates["Q"], away) / 2 + masks @ gates["b"]

    def estimate(u: Tensor) -> tuple[Tensor, Tensor]:
        theta = gates["theta"].clone().requires_grad_()
        masks = uniform_gradient_masks(theta, u, scale)
        loss(masks).mean().backward()
        assert theta.grad is not None
        return masks.detach(), theta.grad

    masks, slope = estimate(gates["u"])
    torch.testing.assert_close(masks, gates[f"ugs/{scale}/alpha"], rtol=0, atol=1e-10)
    torch.testing.assert_close(slope, gates[f"ugs/{scale}/estimate"], rtol=0, atol=1e-10)
    # the official code counts a row as undecided within a margin of 1e-3, and weights by that count
    counted = ((masks > 1e-3) & (masks < 1 - 1e-3)).sum(0)
    undecided = ((masks > 0) & (masks < 1)).sum(0)
    official = torch.where(counted > 0, slope * undecided / counted.clamp(min=1), 0.0)
    torch.testing.assert_close(
        official, gates[f"ugs/{scale}/estimate_official"], rtol=0, atol=1e-10
    )
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.rand(60, 9, generator=generator, dtype=torch.float64) for _ in range(2000)]
    slopes = torch.stack([estimate(u)[1] for u in drawn])
    error = slopes.std(0) / len(slopes) ** 0.5 + 1e-7  # one logit is all but never undecided
    assert ((slopes.mean(0) - gates[f"ugs/{scale}/expected_estimate"]) / error).abs().max() < 4
    if scale == 1:
        assert ((slopes.mean(0) - gates["ugs/true_gradient"]) / error).abs().max() > 4


def test_hard_concrete_masks_and_prices() -> None:
    gates = _gates()
    theta, beta, u = gates["theta"].clone().requires_grad_(), gates["hc/beta"], gates["u"]
    found = {
        "hc/alpha": hard_concrete_masks(theta, beta, u),
        "hc/alpha_official": hard_concrete_masks(theta, beta, u, released=True),
        "hc/p_not_zero": probability_above_zero(theta, beta),
        "node/penalty": node_penalty(theta.sigmoid(), gates["node/ends"], 4)[None],
    }
    for name, value in found.items():
        torch.testing.assert_close(value.detach(), gates[name], rtol=0, atol=1e-9)
    (slope,) = torch.autograd.grad(found["node/penalty"], theta)
    torch.testing.assert_close(slope, gates["node/gradient"], rtol=0, atol=1e-10)
