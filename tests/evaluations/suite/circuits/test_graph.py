"""The graph: counted by the paper's formula, named, ordered, written and read."""

from __future__ import annotations

import json

import pytest
import torch

from evaluations.suite.circuits.forward import embed, run
from evaluations.suite.circuits.graph import Graph, circuit_to_dict, read_circuit, write_circuit
from sat_interp._util.errors import UserError
from tests.evaluations.suite.circuits.tiny import RMS, prompts, tiny_model


def test_the_papers_shape_has_23_981_edges():
    assert Graph(8, 16).n_edges == 23_981
    formula = sum(48 * (1 + 17 * layer) + 17 * (layer + 1) for layer in range(8)) + 137
    assert Graph(8, 16).n_edges == formula


def test_every_edge_of_a_small_graph():
    graph = Graph(1, 2)
    edges = [graph.edge_name(edge) for edge in range(graph.n_edges)]
    heads = [("embed", f"a0.h{head}.{part}") for head in range(2) for part in "qkv"]
    mlp = [(source, "m0") for source in ("embed", "a0.h0", "a0.h1")]
    final = [(source, "resid_final") for source in ("embed", "a0.h0", "a0.h1", "m0")]
    assert edges == heads + mlp + final


def test_blocks_in_parallel_and_without_an_mlp():
    parallel = Graph(1, 2, parallel=True)
    assert ("a0.h0", "m0") not in {parallel.edge_name(e) for e in range(parallel.n_edges)}
    assert parallel.n_edges == 6 + 1 + 4
    assert Graph(2, 2, mlps=False).n_edges == 6 + 6 * 3 + 5


@pytest.mark.parametrize(
    "graph", [Graph(3, 2), Graph(2, 3, parallel=True), Graph(2, 2, False), Graph(2, 4, groups=2)]
)
def test_numbers_and_names_agree(graph):
    for edge in range(graph.n_edges):
        source, destination = int(graph.edge_source[edge]), int(graph.edge_destination[edge])
        assert graph.edge(source, destination) == edge
        assert graph.edge_named(*graph.edge_name(edge)) == edge
    assert len(graph.sources) == graph.n_sources
    assert len(graph.destinations) == graph.n_destinations
    for index, node in enumerate(graph.destinations):
        head = node.head or 2 * (node.group or 0)
        assert graph.destination(node.layer, node.part, head) == index
        owners = [graph.sources[owner].name for owner in graph.feeds(index)]
        if node.group is not None:
            heads = [f"a{node.layer}.h{2 * node.group + member}" for member in range(2)]
            assert (owners, node.name) == (heads, f"a{node.layer}.g{node.group}.{node.part}")
        else:
            name = node.name.removesuffix(f".{node.part}")
            assert owners == ([] if node.part == "resid_final" else [name])
        assert all(index in graph.fed_by[owner] for owner in graph.feeds(index))


def test_an_edge_against_the_order_of_computation_is_refused():
    with pytest.raises(ValueError, match=r"a1\.h0 does not come before a0\.h0\.q"):
        Graph(2, 2).edge(Graph(2, 2).head(1, 0), 0)


def test_the_order_is_the_documented_one():
    graph = Graph(2, 2)
    names = [graph.edge_name(int(edge)) for edge in graph.order()]
    destinations = list(dict.fromkeys(name for _, name in names))
    assert destinations == [
        "resid_final",
        "m1",
        "a1.h1.v",
        "a1.h1.k",
        "a1.h1.q",
        "a1.h0.v",
        "a1.h0.k",
        "a1.h0.q",
        "m0",
        "a0.h1.v",
        "a0.h1.k",
        "a0.h1.q",
        "a0.h0.v",
        "a0.h0.k",
        "a0.h0.q",
    ]
    to_the_end = [source for source, destination in names if destination == "resid_final"]
    assert to_the_end == ["m1", "a1.h1", "a1.h0", "m0", "a0.h1", "a0.h0", "embed"]


def test_another_order_visits_the_same_edges_layer_by_layer():
    graph = Graph(3, 3)
    order = graph.order(seed=5)
    assert not torch.equal(order, graph.order())
    assert torch.equal(order, graph.order(seed=5))
    assert sorted(order.tolist()) == list(range(graph.n_edges))
    layers = [graph.destinations[d].layer for d in graph.edge_destination[order].tolist()]
    assert layers == sorted(layers, reverse=True)


def test_matrix_puts_every_edge_in_its_place_and_passes_gradients():
    graph = Graph(2, 2)
    values = torch.arange(1.0, graph.n_edges + 1, requires_grad=True)
    matrix = graph.matrix(values)
    assert (matrix != 0).sum() == graph.n_edges
    assert torch.equal(matrix[graph.edge_destination, graph.edge_source], values)
    matrix.sum().backward()
    assert torch.equal(values.grad, torch.ones(graph.n_edges))


def test_a_circuit_survives_its_file(tmp_path):
    graph = Graph(2, 3)
    kept = torch.rand(graph.n_edges, generator=torch.Generator().manual_seed(0)) < 0.3
    path = write_circuit(tmp_path / "circuit.json", graph, kept, torch.rand(graph.n_edges))
    assert torch.equal(read_circuit(path, graph), kept)
    written = json.loads(path.read_text())
    assert written["graph"]["n_edges"] == graph.n_edges
    assert written["edges"][0]["destination"] == "resid_final"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a circuit's JSON file"),
        ('{"edges": []}', "not a circuit's JSON file"),
        (
            json.dumps(circuit_to_dict(Graph(2, 3), torch.zeros(Graph(2, 3).n_edges).bool())),
            "2 layers of 3 heads .* this model's is a graph of 2 layers of 2 heads",
        ),
    ],
)
def test_a_file_of_another_model_is_one_line(tmp_path, content, message):
    path = tmp_path / "circuit.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_circuit(path, Graph(2, 2))


def test_an_edge_that_is_not_there_and_a_file_that_is_not(tmp_path):
    path = write_circuit(tmp_path / "c.json", Graph(2, 2), torch.ones(Graph(2, 2).n_edges).bool())
    path.write_text(path.read_text().replace('"a0.h1.q"', '"a0.h7.q"'))
    with pytest.raises(UserError, match=r"has no edge embed -> a0\.h7\.q"):
        read_circuit(path, Graph(2, 2))
    with pytest.raises(UserError, match="No such file"):
        read_circuit(tmp_path / "none.json", Graph(2, 2))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"positional_embedding_type": "shortformer"}, "positional_embedding_type='shortformer'"),
        ({"attention_dir": "bidirectional"}, "attention_dir"),
        ({"attn_scores_soft_cap": float("nan")}, "attn_scores_soft_cap=nan"),
        ({"use_normalization_before_and_after": True, **RMS}, "it is not a sum over heads"),
        ({"original_architecture": "Olmo2ForCausalLM"}, "queries and keys of all heads"),
        ({"output_logits_soft_cap": float("nan")}, "output_logits_soft_cap=nan"),
    ],
)
def test_what_is_not_covered_is_named(settings, name):
    with pytest.raises(UserError, match=name):
        Graph.of(tiny_model(**settings))


@pytest.mark.parametrize("cap", [0.0, 0, -1.0, -30.0])
def test_a_soft_cap_that_is_not_positive_is_none(cap):
    model = tiny_model(attn_scores_soft_cap=cap, output_logits_soft_cap=cap)
    graph, batch = Graph.of(model), prompts((7,))[0]
    outputs = run(model, graph, embed(model, batch.clean))
    torch.testing.assert_close(outputs.logits, model(batch.clean)[:, -1])


def test_ours_and_others_have_a_graph(make_model):
    assert Graph.of(make_model()) == Graph(2, 4)
    assert Graph.of(tiny_model("rotary, parallel")) == Graph(2, 4, parallel=True)
    assert Graph.of(tiny_model("attention only")) == Graph(2, 4, mlps=False)
