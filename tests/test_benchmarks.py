"""The plain ways that ours are timed against compute the same things."""

from __future__ import annotations

import importlib
import json
import pkgutil
from functools import partial

import pytest
import torch

import benchmarks
from benchmarks import training
from benchmarks.gates import against_plain, plain_ablated, plain_gradient, plain_states, stages
from benchmarks.plain import plain_loss
from benchmarks.training import best_times, products
from evaluations.core.text import evaluation_text
from evaluations.suite.gates.config import GatesConfig
from evaluations.suite.gates.masks import SITES, batches
from evaluations.suite.gates.probe import Features, Probe, gradient
from sat_interp import SelfAblatingTransformer, SelfAblationConfig, gpt_neo_config
from sat_interp.data.tokenizer import train_bpe
from sat_interp.model.fast import ablated_pass
from sat_interp.training.loss import LossWeights, training_loss
from tests.stand_in import DEVICE, accelerator


@pytest.mark.parametrize(
    "name", [module.name for module in pkgutil.iter_modules(benchmarks.__path__)]
)
def test_every_benchmark_can_start(name):
    importlib.import_module(f"benchmarks.{name}")


@pytest.fixture(params=["none", "local", "global"])
def model(request):
    torch.manual_seed(1)
    shape = gpt_neo_config(
        n_layers=2, d_model=16, n_heads=4, d_vocab=23, n_ctx=9, initializer_range=0.5
    )
    shape.dtype = torch.float64
    return SelfAblatingTransformer(
        shape, SelfAblationConfig(variant=request.param, k_attention=3, k_neurons=5)
    )


def test_the_plain_step_has_our_loss_and_our_gradients(model):
    windows = torch.randint(23, (3, 10))
    found = []
    for loss in (plain_loss, lambda m, w: training_loss(m, w, LossWeights()).total):
        model.zero_grad()
        total = loss(model, windows)
        total.backward()
        trained = [p.grad.clone() for p in model.parameters() if p.requires_grad]
        found.append([total.detach(), *trained])
    for plain, ours in zip(*found, strict=True):
        assert torch.allclose(plain, ours, rtol=1e-8, atol=1e-10)


def test_the_floor_counts_every_product_with_a_weight(model):
    # 2 FLOP a weight and token and stream, but for the gates, which one stream reads
    weights = {n: p.numel() for n, p in model.named_parameters() if "W_" in n and "pos" not in n}
    gates = sum(size for name, size in weights.items() if "gates" in name)
    streams = 2 if model.ablation.is_gated else 1
    tokens = 3 * 256
    counted = sum(2 * n * rows * a * b for n, rows, a, b in products(model, 3))
    assert counted == 2 * tokens * (streams * (sum(weights.values()) - gates) + gates)


@pytest.mark.parametrize("variant", ["none", "local", "global"])
def test_the_benchmark_of_training_runs_where_the_model_is(variant, monkeypatch):
    monkeypatch.setattr("benchmarks.training.SHAPE", {"n_layers": 1, "d_model": 16, "n_heads": 2})
    monkeypatch.setattr("benchmarks.training.VOCABULARIES", {"tiny": 40})
    monkeypatch.setattr("benchmarks.training.POS", 8)
    with accelerator():
        model = training.build("tiny", variant, DEVICE)
        assert model.W_E.device == DEVICE
        for loss in (plain_loss, lambda m, w: training_loss(m, w, LossWeights()).total):
            before = model.W_E.detach().cpu().clone()
            training.training_step(model, partial(loss, model), "float32", 2)()
            assert not torch.equal(before, model.W_E.detach().cpu())
        training.floor(model, 2, torch.float32)()
        training.attention_floor(model, 2, torch.float32)()


def test_a_cell_of_the_benchmark_by_itself(monkeypatch):
    monkeypatch.setattr("benchmarks.training.SHAPE", {"n_layers": 1, "d_model": 16, "n_heads": 2})
    monkeypatch.setattr("benchmarks.training.VOCABULARIES", {"tiny": 40})
    settings = {
        "shape": "tiny",
        "variant": "local",
        "batch": 2,
        "precision": "bf16",
        "threads": 1,
        "seconds": 0.0,
        "device": "cpu",
    }
    found = training.cell({**settings, "what": "ours"})
    assert found.keys() == {"first_seconds", "peak_mib", "ours", "floor", "attention"}
    assert all(found[name] > 0 for name in ("first_seconds", "ours", "floor", "attention"))
    assert training.cell({**settings, "what": "plain"})["plain"] > 0


def test_a_cell_that_takes_too_long_or_fails_says_so():
    settings = {"shape": "paper", "variant": "none", "batch": 1, "precision": "float32"}
    settings |= {"threads": 1, "seconds": 0.0, "device": "cpu", "what": "ours"}
    assert training.in_a_process(settings, timeout=0.05) == {"unfinished": "not done in 0 s"}
    failed = training.in_a_process({**settings, "device": "nowhere"})["failed"]
    assert "device 'nowhere' cannot be used here" in failed


def test_contestants_take_turns():
    order = []
    best_times({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 0.0, least=3)
    assert order == ["a", "b"] * 4


@pytest.fixture
def gated_and_text(tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_INTERP_CACHE", str(tmp_path / "cache"))
    stories = [f"Tom has {number} cats and Anna has a dog." for number in range(12)]
    path = tmp_path / "stories.jsonl"
    path.write_text("\n".join(json.dumps({"text": story}) for story in stories))
    tokenizer = train_bpe(stories, 280)
    torch.manual_seed(0)
    shape = gpt_neo_config(
        n_layers=2, d_model=16, n_heads=4, d_vocab=len(tokenizer), n_ctx=16, initializer_range=0.5
    )
    ablation = SelfAblationConfig(variant="local", k_attention=3, k_neurons=5)
    model = SelfAblatingTransformer(shape, ablation).eval().requires_grad_(False)
    return model, evaluation_text(tokenizer, str(path))


def test_the_plain_ways_of_gates_find_the_same(gated_and_text):
    model, text = gated_and_text
    ours = batches(model, text, "")
    for batch, plain in zip(ours, plain_states(model, text), strict=True):
        assert torch.allclose(batch.clean.final, plain.clean, atol=1e-5)
        for layer in range(2):
            assert torch.equal(batch.masks["attention"][layer], plain.attention_masks[layer])
            assert torch.equal(batch.masks["neuron"][layer], plain.neuron_masks[layer])
        moved = {site: [mask.flip(1) for mask in batch.masks[site]] for site in SITES}
        pairs = list(zip(*(moved[site] for site in SITES), strict=True))
        found = ablated_pass(model, batch.clean, pairs)
        assert torch.allclose(found, plain_ablated(model, batch.inputs, moved), atol=1e-4)
        assert not torch.allclose(found, plain.ablated, atol=1e-2)


def test_the_plain_gradient_of_a_probe_is_ours():
    torch.manual_seed(0)
    features = Features(torch.randint(7, (20, 3)), 7)
    probe, classes = Probe(torch.randn(7, 4), torch.randn(4)), torch.randint(4, (20,))
    ours = gradient(probe.weights, probe.bias, features, classes, torch.arange(20))
    plain = plain_gradient(probe, features, classes, torch.arange(20))
    for one, other in zip(ours, plain, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_every_stage_of_gates_is_timed(gated_and_text):
    model, text = gated_and_text
    seconds, tokens = stages(model, text, GatesConfig(probe_classes=8))
    assert list(seconds) == ["usage", "leak: states", "leak: probes", "interventions"]
    compared = against_plain(model, text, tokens, 8)
    assert list(compared) == ["masks", "exchanged masks", "gradients of a probe"]
    assert all(time > 0 for times in compared.values() for time in times)
