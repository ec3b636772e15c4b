"""The patched forward pass against the model itself and against patching by hooks."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.suite.circuits.forward import embed, forward, run
from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.methods.acdc.search import acdc
from evaluations.suite.circuits.patched import (
    circuit_kl,
    circuit_logits,
    kl_divergence,
    prepare,
)
from sat_interp._util.errors import UserError
from tests.evaluations.suite.circuits.tiny import SHAPES, prompts, tiny_model


def _random_circuit(graph: Graph, seed: int = 0, share: float = 0.5) -> Tensor:
    return torch.rand(graph.n_edges, generator=torch.Generator().manual_seed(seed)) < share


def _patched_by_hooks(
    model: HookedTransformer, graph: Graph, tokens: Tensor, kept: Tensor, replacement: Tensor
) -> Tensor:
    """What every removed edge carries is exchanged in the destination's own hook."""
    model.cfg.use_split_qkv_input = model.cfg.use_attn_result = True
    model.cfg.ungroup_grouped_query_attention = not graph.groups
    model.cfg.use_hook_mlp_in = not model.cfg.attn_only
    matrix = graph.matrix(kept)
    written: dict[int, Tensor] = {}

    def write(x: Tensor, hook: object, source: int) -> None:
        written[source] = x

    def write_heads(x: Tensor, hook: object, layer: int) -> None:
        written.update({graph.head(layer, h): x[:, :, h] for h in range(graph.n_heads)})

    def exchanged(x: Tensor, destination: int) -> Tensor:
        for source in range(graph.n_read[destination]):
            if not matrix[destination, source]:
                x = x + replacement[source] - written[source]
        return x

    def read(x: Tensor, hook: object, destination: int) -> Tensor:
        return exchanged(x, destination)

    def read_heads(x: Tensor, hook: object, layer: int, part: str) -> Tensor:
        size = graph.n_heads // x.shape[2]
        indices = [graph.destination(layer, part, size * h) for h in range(x.shape[2])]
        read = [exchanged(x[:, :, h], index) for h, index in enumerate(indices)]
        return torch.stack(read, 2)

    hooks = [("blocks.0.hook_resid_pre", partial(write, source=0))]
    for layer in range(graph.n_layers):
        block = f"blocks.{layer}."
        for part in "qkv":
            reader = partial(read_heads, layer=layer, part=part)
            hooks.append((f"{block}hook_{part}_input", reader))
        hooks.append((f"{block}attn.hook_result", partial(write_heads, layer=layer)))
        if graph.mlps:
            index = graph.destination(layer, "mlp")
            hooks.append((f"{block}hook_mlp_in", partial(read, destination=index)))
            hooks.append((f"{block}hook_mlp_out", partial(write, source=graph.mlp(layer))))
    end = partial(read, destination=graph.n_destinations - 1)
    hooks.append((f"blocks.{graph.n_layers - 1}.hook_resid_post", end))
    return model.run_with_hooks(tokens, fwd_hooks=hooks)[:, -1]


@pytest.mark.parametrize(
    ("shape", "grouped"),
    [*((shape, False) for shape in SHAPES), ("grouped", True), ("multi-query, serial bias", True)],
)
def test_all_edges_are_the_model_and_any_are_patching_by_hooks(shape, grouped):
    model = tiny_model(shape)
    graph = Graph.of(model, grouped)
    batch = prompts((9,))[0]
    outputs = run(model, graph, embed(model, batch.clean))
    assert len(outputs.sources) == graph.n_sources
    torch.testing.assert_close(outputs.logits, model(batch.clean)[:, -1])
    bucket = prepare(model, graph, [batch])[0]
    for seed in range(3):
        kept = _random_circuit(graph, seed)
        ours = circuit_logits(model, graph, [bucket], kept)[0]
        theirs = _patched_by_hooks(model, graph, batch.clean, kept, bucket.replacement)
        torch.testing.assert_close(ours, theirs)
        assert (ours - outputs.logits).abs().max() > 1e-3


def test_a_model_of_ours_is_patched_on_its_clean_stream(make_model):
    model = make_model("local", k_attention=3)
    graph = Graph.of(model)
    tokens = torch.randint(model.cfg.d_vocab, (2, 7))
    outputs = run(model, graph, embed(model, tokens))
    torch.testing.assert_close(outputs.logits, model(tokens)[:, -1])


def test_without_any_edge_the_output_is_that_of_the_corrupted_prompt():
    model = tiny_model()
    graph = Graph.of(model)
    batches = prompts()
    buckets = prepare(model, graph, batches)
    none = torch.zeros(graph.n_edges, dtype=torch.bool)
    total = 0.0
    for batch, bucket in zip(batches, buckets, strict=True):
        corrupted = model(batch.corrupted)[:, -1]
        torch.testing.assert_close(
            forward(model, graph, bucket.clean[0], none, bucket.replacement), corrupted
        )
        total += kl_divergence(model(batch.clean)[:, -1], corrupted).sum().item()
    assert circuit_kl(model, graph, buckets, none) == pytest.approx(total / 6)
    assert circuit_kl(model, graph, buckets, ~none) == pytest.approx(0, abs=1e-12)


def test_kl_by_hand():
    clean = torch.tensor([0.5, 0.25, 0.25]).log() + 3
    patched = torch.tensor([0.25, 0.25, 0.5]).log() - 1
    wanted = 0.5 * torch.log(torch.tensor(2.0)) + 0.25 * torch.log(torch.tensor(0.5))
    torch.testing.assert_close(kl_divergence(clean, patched), wanted)


def test_zero_mean_and_given_constants():
    model = tiny_model()
    graph = Graph.of(model)
    batches = prompts()
    zero = prepare(model, graph, batches, "zero", first=0)[0].replacement
    assert zero.shape == (graph.n_sources, 1, 1, 16)
    assert not zero.any()
    cf_mean = prepare(model, graph, batches, "cf_mean", first=0)[1].replacement
    outputs = [run(model, graph, embed(model, batch.corrupted)).sources for batch in batches]
    wanted = torch.cat([output.flatten(1, 2) for output in outputs], 1).mean(1)
    torch.testing.assert_close(cf_mean[:, 0, 0], wanted)
    assert cf_mean.shape[1:3] == (1, 1)
    given = torch.randn(graph.n_sources, 16, dtype=torch.float64)
    own = prepare(model, graph, batches, given, first=0)
    assert torch.equal(own[0].replacement[:, 0, 0], given)
    assert own[0].first == 0
    with pytest.raises(UserError, match=r"shape \(3, 16\), not \(11, 16\)"):
        prepare(model, graph, batches, given[:3])
    kept = _random_circuit(graph)
    bucket = own[1]
    full = given[:, None, None].expand_as(bucket.clean)
    torch.testing.assert_close(
        circuit_logits(model, graph, [bucket], kept)[0],
        _patched_by_hooks(model, graph, batches[1].clean, kept, full),
    )


@pytest.mark.parametrize("ablation", ["zero", "mean", "cf_mean"])
def test_constants_leave_the_first_position(ablation: str):
    model = tiny_model()
    graph = Graph.of(model)
    batches = prompts()
    batches[1].corrupted = batches[1].corrupted.roll(1, 1)  # the clean mean does not depend on it
    buckets = prepare(model, graph, batches, ablation)
    outputs = [run(model, graph, embed(model, batch.clean)).sources for batch in batches]
    averaged = outputs
    if ablation == "cf_mean":
        averaged = [run(model, graph, embed(model, batch.corrupted)).sources for batch in batches]
    wanted = torch.cat([output[:, :, 1:].flatten(1, 2) for output in averaged], 1).mean(1)
    wanted = wanted * (ablation != "zero")
    for bucket, output in zip(buckets, outputs, strict=True):
        rest = bucket.replacement[:, :, 1:]
        torch.testing.assert_close(rest, wanted[:, None, None].expand_as(rest))
        assert torch.equal(bucket.replacement[:, :, 0], output[:, :, 0])
        assert bucket.first == 1
    none = torch.zeros(graph.n_edges, dtype=torch.bool)
    assert circuit_kl(model, graph, buckets, none) > 1e-3


def test_prompts_of_one_token_have_nothing_to_replace_by_a_clean_mean():
    model = tiny_model()
    graph = Graph.of(model)
    tokens = torch.arange(4)[:, None]
    batch = SimpleNamespace(clean=tokens, corrupted=tokens + 1)
    (bucket,) = buckets = prepare(model, graph, [batch], "mean")
    assert torch.equal(bucket.replacement, bucket.clean)
    none = torch.zeros(graph.n_edges, dtype=torch.bool)
    assert circuit_kl(model, graph, buckets, none) == pytest.approx(0, abs=1e-12)
    assert acdc(model, graph, buckets, 0.01).n_kept == 0


def test_gradients_reach_edges_and_inputs():
    """The gradient of an edge is what the change of its input does, summed over it."""
    model = tiny_model()
    graph = Graph.of(model)
    bucket = prepare(model, graph, prompts((7,)))[0]
    kept = torch.ones(graph.n_edges, dtype=torch.float64, requires_grad=True)
    forward(model, graph, bucket.clean[0], kept, bucket.replacement)[:, 3].sum().backward()
    gradients = {}
    forward(model, graph, bucket.clean[0], watch=gradients.__setitem__)[:, 3].sum().backward()
    by_destination = torch.cat([gradients[first] for first in sorted(gradients)])
    difference = bucket.clean - bucket.replacement
    scores = torch.einsum("sbpd,tbpd->ts", difference, by_destination)
    wanted = scores[graph.edge_destination, graph.edge_source]
    torch.testing.assert_close(kept.grad, wanted)
    edge = graph.edge_named("a0.h1", "m1")
    moved = kept.detach().clone()
    moved[edge] -= 1e-6
    after = forward(model, graph, bucket.clean[0], moved, bucket.replacement)
    slope = (bucket.logits - after)[:, 3].sum().item() / 1e-6
    assert slope == pytest.approx(kept.grad[edge].item(), rel=1e-3)


def test_nothing_is_replaced_before_the_first_difference():
    model = tiny_model()
    graph = Graph.of(model)
    bucket = prepare(model, graph, prompts((9,)))[0]
    assert bucket.first == 2
    assert torch.equal(bucket.clean[:, :, :2], bucket.replacement[:, :, :2])
    assert not torch.equal(bucket.clean[:, :, 2], bucket.replacement[:, :, 2])


@pytest.mark.parametrize(
    ("batches", "ablation", "message"),
    [
        ([], "resample", "no prompts"),
        (
            [SimpleNamespace(clean=torch.zeros(0, 3), corrupted=torch.zeros(0, 3))],
            "zero",
            "no prompts",
        ),
        (
            [SimpleNamespace(clean=torch.zeros(2, 3), corrupted=torch.zeros(2, 4))],
            "resample",
            "equally many tokens",
        ),
    ],
)
def test_prompts_that_cannot_be_used_are_one_line(batches, ablation, message):
    model = tiny_model()
    with pytest.raises(UserError, match=message):
        prepare(model, Graph.of(model), batches, ablation)


def test_a_model_in_less_than_float32_is_refused():
    model = tiny_model()
    model.to(torch.bfloat16, print_details=False)
    with pytest.raises(UserError, match="not searched in bfloat16"):
        prepare(model, Graph.of(model), prompts())
