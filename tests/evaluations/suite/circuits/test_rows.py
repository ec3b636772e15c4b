"""Rows with masks of their own against the reference, which runs one mask at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.suite.circuits.forward import forward
from evaluations.suite.circuits.graph import Graph, on_paths
from evaluations.suite.circuits.patched import PromptBatch, kl_divergence, prepare
from evaluations.suite.circuits.rows import RowPass, live_edges, row_matrix
from tests.evaluations.suite.circuits.tiny import SHAPES, prompts, tiny_model

INDEX = torch.tensor([[0, 1], [2, 0], [1, 1], [2, 2]])


def _masks(graph: Graph, rows: int = 4) -> Tensor:
    """Random masks, about a third of which are exactly 0 and a fifth exactly 1."""
    torch.manual_seed(1)
    drawn = torch.rand(rows, graph.n_edges, dtype=torch.float64)
    return drawn.mul(1.8).sub(0.6).clamp(0, 1).requires_grad_()


def _reference(
    model: HookedTransformer, graph: Graph, bucket: PromptBatch, index: Tensor, masks: Tensor
) -> Tensor:
    rows = []
    for mask, numbers in zip(masks, index, strict=True):
        for number in numbers.tolist():
            one = bucket[number : number + 1]
            rows.append(forward(model, graph, one.clean[0], mask, one.replacement)[0])
    return torch.stack(rows).view(*index.shape, -1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_rows_are_the_reference(shape: str, ablation: str) -> None:
    model = tiny_model(shape)
    graph = Graph.of(model)
    for bucket in prepare(model, graph, prompts(), ablation):
        rows = RowPass(model, graph)
        masks = _masks(graph)
        copy = masks.detach().clone().requires_grad_()
        found = rows.logits(rows.prompts([bucket])[0], INDEX, masks)
        wanted = _reference(model, graph, bucket, INDEX, copy)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
        weight = torch.randn_like(wanted)
        (found * weight).sum().backward()
        (wanted * weight).sum().backward()
        assert masks.grad is not None
        assert copy.grad is not None
        torch.testing.assert_close(masks.grad, copy.grad, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("shape", ["grouped", "multi-query, serial bias"])
def test_rows_of_a_graph_with_groups(shape: str) -> None:
    model = tiny_model(shape)
    graph = Graph.of(model, grouped=True)
    (bucket,) = prepare(model, graph, prompts((6,)))
    rows, masks = RowPass(model, graph), _masks(graph)
    found = rows.logits(rows.prompts([bucket])[0], INDEX, masks)
    wanted = _reference(model, graph, bucket, INDEX, masks)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_heads_that_nothing_reads_are_left_out_without_a_change() -> None:
    model = tiny_model("grouped")
    for grouped in (False, True):
        graph = Graph.of(model, grouped)
        (bucket,) = prepare(model, graph, prompts((6,)))
        masks = _masks(graph).detach()
        masks[:, graph.edge_source == graph.head(0, 1)] = 0
        masks[:, graph.edge_source == graph.head(1, 2)] = 0
        masks[:, graph.edge_source == graph.mlp(0)] = 0
        rows = RowPass(model, graph)
        found = rows.logits(rows.prompts([bucket])[0], INDEX, masks)
        wanted = _reference(model, graph, bucket, INDEX, masks)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("length", "first"), [(1, 0), (6, 0), (6, 1)])
def test_the_gradient_of_constants_comes_from_edges_that_are_off(length: int, first: int) -> None:
    """At masks of 0 and 1 it is the whole gradient, which autograd gives through the reference."""
    model = tiny_model()
    graph = Graph.of(model)
    clean = torch.randint(30, (3, length))
    (batch,) = prompts((6,))
    batch.clean, batch.corrupted = clean, clean
    (bucket,) = prepare(model, graph, [batch], "zero", first=first)
    masks = torch.randint(
        2, (2, graph.n_edges), generator=torch.Generator().manual_seed(0)
    ).double()
    index = torch.arange(3).expand(2, -1)
    constants = torch.randn(1, graph.n_sources, 16, dtype=torch.float64).requires_grad_()
    rows = RowPass(model, graph)
    rows.divergence(rows.prompts([bucket])[0], index, masks, constants).sum().backward()
    copy = constants.detach()[0].clone().requires_grad_()
    replaced = bucket.with_constants(copy)
    total = torch.zeros((), dtype=torch.float64)
    for mask in masks:
        logits = forward(model, graph, bucket.clean[0], mask, replaced.replacement)
        total = total + kl_divergence(bucket.logits, logits).sum()
    total.backward()
    assert constants.grad is not None
    assert copy.grad is not None
    # a constant that norms take out has no gradient in the reference but for rounding
    torch.testing.assert_close(constants.grad[0], copy.grad, rtol=1e-6, atol=1e-9)


def test_prompts_of_bos_alone_have_nothing_to_ablate() -> None:
    model = tiny_model()
    graph = Graph.of(model)
    (batch,) = prompts((6,))
    batch.clean, batch.corrupted = batch.clean[:, :1], batch.corrupted[:, :1]
    (bucket,) = prepare(model, graph, [batch], "mean")
    rows = RowPass(model, graph)
    constants = torch.randn(1, graph.n_sources, 16, dtype=torch.float64)
    found = rows.divergence(rows.prompts([bucket])[0], INDEX, _masks(graph), constants)
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)


def test_masks_between_pass_no_gradient_to_constants() -> None:
    """The spec's rule: constants learn from edges whose mask is exactly 0."""
    model = tiny_model()
    graph = Graph.of(model)
    (bucket,) = prepare(model, graph, prompts((6,)), "mean")
    rows = RowPass(model, graph)
    constants = torch.randn(1, graph.n_sources, 16, dtype=torch.float64).requires_grad_()
    masks = torch.full((1, graph.n_edges), 0.5, dtype=torch.float64)
    into_mlp = graph.edge(graph.head(0, 2), graph.destination(1, "mlp"))
    masks[0, into_mlp] = 0
    rows.divergence(rows.prompts([bucket])[0], INDEX[:1], masks, constants).sum().backward()
    assert constants.grad is not None
    touched = constants.grad[0].abs().sum(1) > 0
    assert touched.nonzero().flatten().tolist() == [graph.head(0, 2)]


def test_chunks_are_kept_only_where_the_prompts_are() -> None:
    model = tiny_model()
    graph = Graph.of(model)
    kept = prepare(model, graph, prompts())
    chunks = RowPass(model, graph).prompts(kept)
    assert chunks[0] is chunks[0]
    assert len(chunks) == 2
    kept.is_kept = False
    again = RowPass(model, graph).prompts(kept)
    assert again[0] is not again[0]
    torch.testing.assert_close(again[:][1].clean, chunks[-1].clean)


@pytest.mark.parametrize("shape", ["gpt-2", "rotary, parallel", "attention only", "grouped"])
def test_live_edges_are_those_on_paths(shape: str) -> None:
    model = tiny_model(shape)
    for grouped in (False, True):
        graph = Graph.of(model, grouped)
        torch.manual_seed(0)
        present = torch.rand(40, graph.n_edges) < torch.rand(40, 1)
        present[0] = False
        live = live_edges(graph, present)
        for row, kept in zip(live, present, strict=True):
            assert torch.equal(row, on_paths(graph, kept))


def test_a_row_matrix_is_the_graphs() -> None:
    graph = Graph.of(tiny_model())
    masks = torch.rand(2, graph.n_edges)
    torch.testing.assert_close(row_matrix(graph, masks)[1], graph.matrix(masks[1]))
