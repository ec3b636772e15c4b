"""auto-circuit keeps what ours keeps, given the same order."""

from __future__ import annotations

import sys

import pytest
import torch
import transformer_lens

from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.methods.acdc.autocircuit import autocircuit, available
from evaluations.suite.circuits.methods.acdc.search import acdc
from evaluations.suite.circuits.patched import prepare
from sat_interp._util.errors import UserError
from tests.evaluations.suite.circuits.tiny import prompts, tiny_model

needs_it = pytest.mark.skipif(not available(), reason="auto-circuit: run make auto-circuit")


@needs_it
@pytest.mark.parametrize("shape", ["gpt-2", "folded norms", "rotary, parallel", "attention only"])
@pytest.mark.parametrize("tau", [0.01, 0.001])
def test_it_keeps_what_ours_keeps(shape, tau):
    model = tiny_model(shape, seed=1)
    graph = Graph.of(model)
    batches = prompts((9,), n=4)
    ours = acdc(model, graph, prepare(model, graph, batches), tau)
    assert torch.equal(autocircuit(model, graph, batches, tau), ours.kept)
    assert 0 < ours.n_kept < graph.n_edges


@needs_it
def test_it_does_on_ours_and_in_another_order(make_model):
    model = make_model("local", k_attention=3)
    graph = Graph.of(model)
    batches = prompts((7,), n=4)
    order = graph.order(seed=2)
    ours = acdc(model, graph, prepare(model, graph, batches), 0.005, order)
    assert torch.equal(autocircuit(model, graph, batches, 0.005, order), ours.kept)
    assert 0 < ours.n_kept < graph.n_edges


@needs_it
def test_it_leaves_the_model_and_transformer_lens_as_they_were():
    model = tiny_model()
    graph = Graph.of(model)
    batches = prompts((7,), n=2)
    before = model(batches[0].clean)
    kept = autocircuit(model, graph, batches, 0.1, graph.order()[:3])
    assert kept[graph.order()[3:]].all()  # those not visited
    assert torch.equal(model(batches[0].clean), before)
    assert not model.cfg.use_split_qkv_input
    assert not hasattr(transformer_lens, "HookedTransformerKeyValueCache")
    assert "transformer_lens.past_key_value_caching" not in sys.modules


def test_what_it_cannot_do_is_one_line(monkeypatch):
    model = tiny_model()
    graph = Graph.of(model)
    with pytest.raises(UserError, match="one length: use --engine fast"):
        autocircuit(model, graph, prompts((6, 9)), 0.1)
    with pytest.raises(UserError, match="positive number"):
        autocircuit(model, graph, prompts((6,)), -1.0)
    monkeypatch.setattr(
        "evaluations.suite.circuits.methods.acdc.autocircuit.available", lambda: False
    )
    with pytest.raises(UserError, match="run make auto-circuit, or use --engine fast"):
        autocircuit(model, graph, prompts((6,)), 0.1)
