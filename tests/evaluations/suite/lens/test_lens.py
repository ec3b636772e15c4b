"""Lenses against TransformerLens' hooks, plain autograd and the ablation of attention layers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from torch import Tensor, nn
from transformer_lens import HookedTransformer

from evaluations.core.ablation import find_components, group
from evaluations.core.ablation_fit import FitConfig as AblationFit
from evaluations.core.ablation_fit import fit as fit_ablation
from evaluations.core.ablation_run import CleanRun
from evaluations.core.ablation_values import Slots, constant_kl
from evaluations.core.model_source import load_model
from evaluations.core.record import Record, plain
from evaluations.core.text import Text, evaluation_text
from evaluations.core.windows import split_windows
from evaluations.suite.lens import evaluation, metrics, report
from evaluations.suite.lens.causal import (
    Effects,
    Prompts,
    bases,
    calibrated,
    kl,
    steer,
    weighted_correlation,
)
from evaluations.suite.lens.config import LensConfig
from evaluations.suite.lens.ending import Ending
from evaluations.suite.lens.evaluation import LensData, evaluate
from evaluations.suite.lens.fit_constants import FitConfig, Problem, fit_constants
from evaluations.suite.lens.fit_maps import Recipe, fit_official, fit_paper
from evaluations.suite.lens.lenses import Lenses, Spent, parameters
from evaluations.suite.lens.measure import measure_curves
from evaluations.suite.lens.positions import Positions, read_positions
from evaluations.suite.lens.store import Owner, Stories, load_lenses, save_lenses
from sat_interp._util.errors import UserError
from tests.evaluations.conftest import STORIES
from tests.unlike_ours import unlike_ours

OWNER = Owner("tiny", "ab" * 32, "key")
FITTED_ON = Stories("cd" * 8, 16, 12, 24, 0)
FAST = LensConfig(
    fit_windows=16,
    held_windows=12,
    window=10,
    first=2,
    tuned_steps=20,
    paper_steps=20,
    evaluations=30,
    sample=32,
    edit_prompts=8,
    directions=4,
    resamples=50,
)
SHAPES: dict[str, dict[str, object]] = {
    "rotary, RMS norms, gated MLP": {},
    "LN, standard positions": {
        "normalization_type": "LN",
        "positional_embedding_type": "standard",
        "gated_mlp": False,
        "act_fn": "gelu_new",
    },
    "attention only": {"attn_only": True, "gated_mlp": False, "act_fn": None},
    "norms after the layers (OLMo 2)": {"original_architecture": "Olmo2ForCausalLM"},
    "norms before and after (Gemma 2)": {"use_normalization_before_and_after": True},
    "soft cap": {"output_logits_soft_cap": 3.0},
    "no norms": {"normalization_type": None},
}


def shaped(**settings: object) -> HookedTransformer:
    model = unlike_ours(**{"n_layers": 2, "n_ctx": 9, "d_vocab": 31, **settings})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.3 * noise)
    return model.eval().requires_grad_(False)


def windows(n: int, length: int = 9, seed: int = 0) -> Tensor:
    drawn = torch.randint(1, 31, (n, length), generator=torch.Generator().manual_seed(seed))
    drawn[:, 0] = 0
    return drawn


@pytest.fixture(scope="module")
def read() -> tuple[Ending, Positions]:
    model = shaped(**SHAPES["LN, standard positions"])
    return Ending(model), read_positions(model, windows(12), 2, 6, 0)


@pytest.fixture
def long_text(tokenizer, text) -> Text:
    stories = [f"{first} {second}" for first in STORIES for second in STORIES]
    return evaluation_text(tokenizer, stories)


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPES)
def test_constants_in_place_of_attention_are_what_hooks_make_of_them(shape):
    model = shaped(**SHAPES[shape])
    ending, tokens = Ending(model), windows(5)
    found = read_positions(model, tokens, 8, 5, 0)
    constants = torch.randn(2, 2, 8, dtype=torch.float64, generator=torch.manual_seed(3))
    lenses = Lenses({"oca/c": constants}, {"oca": Spent(0, 0, 0, 0.0)})
    target = ending.targets(found.streams[-1])
    clean = model(tokens)[:, -1].log_softmax(-1)
    for layer in range(2):
        hooks = [
            (f"blocks.{j}.hook_attn_out", lambda value, hook, c=constants[layer, j]: 0 * value + c)
            for j in range(layer, 2)
        ]
        wanted = model.run_with_hooks(tokens, fwd_hooks=hooks)[:, -1].log_softmax(-1)
        stream = found.streams[layer].requires_grad_()
        end = lenses.end(ending, "oca", layer, stream)
        assert torch.allclose(ending.log_probs(end), wanted, atol=1e-9)
        own, plain_kl = ending.kl(target, end), (clean.exp() * (clean - wanted)).sum(-1)
        assert torch.allclose(own, plain_kl, atol=1e-9)
        (gradient,) = torch.autograd.grad(own.sum(), stream)
        end = lenses.end(ending, "oca", layer, stream)
        by_autograd = (clean.exp() * (clean - ending.log_probs(end))).sum()
        assert torch.allclose(gradient, torch.autograd.grad(by_autograd, stream)[0], atol=1e-9)


def test_what_is_kept_of_the_positions(read):
    ending, found = read
    _, cache = ending.model.run_with_cache(windows(12))
    for layer in range(2):
        wanted = cache[f"blocks.{layer}.hook_resid_pre"][:, 2:].flatten(0, 1)
        assert torch.allclose(found.streams[layer], wanted)
        attended = cache[f"blocks.{layer}.hook_attn_out"][:, 2:].flatten(0, 1)
        assert torch.allclose(found.attention_mean[layer], attended.mean(0))
        assert torch.allclose(found.attention[layer], attended[found.attention_rows])


def test_a_tuned_lens_is_trained_as_torch_modules_are(read):
    ending, found = read
    streams, target = found.streams[:-1], ending.targets(found.streams[-1])
    ours = fit_official(ending, target, streams, Recipe(steps=6))
    modules = [nn.Linear(8, 8, dtype=torch.float64) for _ in streams]
    for module in modules:
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    parameters_ = [p for module in modules for p in module.parameters()]
    optimiser = torch.optim.SGD(parameters_, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    log_p = ending.log_probs(found.streams[-1])
    for step in range(6):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 - step / 6)
        optimiser.zero_grad()
        for module, stream in zip(modules, streams, strict=True):
            log_q = ending.log_probs(stream + module(stream))
            (log_p.exp() * (log_p - log_q)).sum(-1).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters_, 1.0)
        optimiser.step()
    for layer, module in enumerate(modules):
        assert torch.allclose(ours.matrices[layer], module.weight, atol=1e-9)
        assert torch.allclose(ours.biases[layer], module.bias, atol=1e-9)
    assert ours.read == 6 * 2 * len(target)


def test_the_papers_recipe_begins_at_random_maps_and_learns(read):
    ending, found = read
    streams, target = found.streams[:-1], ending.targets(found.streams[-1])

    def cost(steps: int) -> float:
        maps = fit_paper(ending, target, streams, Recipe(steps, 64))
        end = streams[0] + streams[0] @ maps.matrices[0].T + maps.biases[0]
        return float(ending.kl(target, end).mean())

    assert cost(150) < 0.7 * cost(1)


def test_oca_is_the_ablation_of_all_later_attention(read):
    """Its constants cost the same as an ablated set of layers, and its fit is no worse."""
    ending, found = read
    model, target = ending.model, ending.targets(found.streams[-1])
    run = CleanRun(model, [windows(12)], first=2, scored="all")
    for layer, name in ((0, "attn0+attn1"), (1, "attn1")):
        (members,) = find_components(model, [name])
        problem = Problem(ending, target, [found.streams[layer]], [layer])
        config = FitConfig(starts=4, evaluations=400, gap=1e-7)
        ours = fit_constants(problem, [found.attention_mean[layer:]], config)
        constants = [one[None, None] for one in ours.constants]
        cost = constant_kl(run, group([members]), constants).mean()
        assert float(cost) == pytest.approx(ours.kl, abs=1e-9)
        settings = AblationFit(starts=4, rounds=2, evaluations=200)
        theirs = fit_ablation(run, group([members]), Slots.one(run), settings)
        assert ours.kl <= float(theirs.delta) * 1.002 + 1e-6
        value, gradient = problem.evaluate(ours.constants)
        assert float(value) == pytest.approx(ours.kl)
        assert float(gradient.abs().max()) == pytest.approx(ours.gradient)
        assert ours.converged
        assert ours.decrement <= 1e-7 * ours.kl


def test_shared_constants_cost_the_sum_over_layers(read):
    ending, found = read
    target, means = ending.targets(found.streams[-1]), found.attention_mean
    together = Problem(ending, target, found.streams[:-1], [0, 1])
    alone = [Problem(ending, target, [found.streams[n]], [n]) for n in (0, 1)]
    total, gradient = together.evaluate(means)
    parts = [one.evaluate(means[n:]) for n, one in enumerate(alone)]
    assert float(total) == pytest.approx(sum(float(value) for value, _ in parts))
    assert torch.allclose(gradient[0], parts[0][1][0])
    assert torch.allclose(gradient[1], parts[0][1][1] + parts[1][1][0])
    fit = fit_constants(together, [means], FitConfig(evaluations=60))
    assert fit.kl < float(total)


def test_the_fisher_information_is_the_curvature_where_the_lens_is_right(read):
    """With targets that the lens itself predicts, it is the Hessian of the KL."""
    ending, found = read
    means = found.attention_mean[1:]
    end = ending.block(1, found.streams[1], means[0])
    problem = Problem(ending, ending.targets(end), [found.streams[1]], [1])
    step = 1e-4 * torch.eye(8, dtype=torch.float64)
    hessian = torch.stack(
        [
            (problem.evaluate(means + one)[1] - problem.evaluate(means - one)[1])[0] / 2e-4
            for one in step
        ]
    )
    draws = torch.Generator().manual_seed(0)
    fisher = torch.stack([problem.fisher(means, draws)[0] for _ in range(40)]).mean(0)
    assert (fisher - hessian).norm() < 0.1 * hessian.norm()


@pytest.mark.parametrize("name", ["demo:baseline", "demo:local-k4", "demo:global-k4"])
def test_in_trained_models_the_last_layers_oca_is_the_ablated_attention_layer(name):
    """C6: at the last position, optimal constants of both cost the same."""
    loaded = load_model(name, device="cpu")
    text = evaluation_text(loaded.tokenizer, "demo", limit=120)
    fit, _ = split_windows(text, 60, 8, 24, "test")
    model, last = loaded.model, int(loaded.model.cfg.n_layers) - 1
    ending, found = Ending(model), read_positions(model, fit.tokens, 23, 8, 0)
    target = ending.targets(found.streams[-1])
    problem = Problem(ending, target, [found.streams[last]], [last])
    config = FitConfig(starts=3, evaluations=200, gap=1e-6)
    ours = fit_constants(problem, [found.attention_mean[last:]], config)
    run = CleanRun(model, [fit.tokens], first=1, scored="last")
    (members,) = find_components(model, [f"attn{last}"])
    theirs = fit_ablation(run, group([members]), Slots.one(run), AblationFit(starts=3, rounds=1))
    assert ours.kl == pytest.approx(float(theirs.delta), rel=2e-3, abs=1e-5)


def test_curves_are_means_of_kl_and_agreement_over_each_windows_positions(read):
    ending, found = read
    lenses = Lenses({}, {"logit": Spent(0, 0, 0, 0.0)})
    curve = measure_curves(ending, lenses, ["logit"], found, 0)["logit"]
    log_p, log_q = (ending.log_probs(found.streams[n]) for n in (2, 1))
    rows = (log_p.exp() * (log_p - log_q)).sum(-1)
    assert curve.kl[1] == pytest.approx(rows.view(12, 7).mean(1).numpy())
    same = (log_p.argmax(-1) == log_q.argmax(-1)).double().view(12, 7).mean(1)
    assert curve.agreement[1] == pytest.approx(same.numpy())
    (area,) = [
        m
        for m in metrics.curve_metrics({"logit": curve}, curve.kl[0], FAST)
        if m.name == "area_logit"
    ]
    assert area.value == pytest.approx(curve.kl.mean())


def test_a_lens_that_diverged_is_counted(read):
    ending, found = read
    maps = {"tuned/W": torch.full((2, 8, 8), torch.nan), "tuned/b": torch.zeros(2, 8)}
    lenses = Lenses(maps, {"tuned": Spent(0, 0, 0, 0.0)})
    curve = measure_curves(ending, lenses, ["tuned"], found, 0)
    area = metrics.curve_metrics(curve, np.ones(12), FAST)[1]
    assert (area.value, area.n_failed, area.reasons) == (None, 12, {metrics.DIVERGED: 12})


# Edits -------------------------------------------------------------------------------------------


def test_magnitude_is_a_correlation_of_logs_and_leaves_out_nothing_changed():
    draws = np.random.default_rng(0)
    model, lens = np.exp(draws.normal(size=(2, 3, 8)))
    lens[0, 0] = 1e-12
    kept = lens > 1e-8
    found = metrics.correlate([Effects(model, lens, lens)], FAST)
    assert found.value == pytest.approx(pearsonr(np.log(model[kept]), np.log(lens[kept]))[0])
    assert (found.n, found.n_failed) == (23, 1)
    assert found.interval is not None


def test_no_change_at_all_has_no_magnitude():
    nothing = np.zeros((3, 8))
    found = metrics.correlate([Effects(nothing, nothing, nothing)], FAST)
    assert (found.value, found.interval, found.n, found.n_failed) == (None, None, 0, 24)


def test_direction_is_a_weighted_correlation():
    draws = np.random.default_rng(1)
    x, y = draws.normal(size=(2, 9))
    p = draws.dirichlet(np.ones(9))
    wanted = np.cov(x, y, aweights=p)
    found = weighted_correlation(
        *(torch.tensor(one)[None, None] for one in (x, y)), torch.tensor(p)[None]
    )
    assert float(found) == pytest.approx(wanted[0, 1] / np.sqrt(wanted[0, 0] * wanted[1, 1]))


def test_an_edited_stream_goes_on_as_hooks_let_it(read):
    ending, _ = read
    prompts = Prompts(ending, windows(4, 7, 5))
    edited = torch.randn(3, 4, 8, dtype=torch.float64, generator=torch.manual_seed(0))
    for layer in range(2):
        found = prompts.model(layer, edited)
        for number, one in enumerate(edited):

            def put(value: Tensor, hook: object, one: Tensor = one) -> Tensor:
                value = value.clone()
                value[:, -1] = one
                return value

            hooks = [(f"blocks.{layer}.hook_resid_pre", put)]
            wanted = ending.model.run_with_hooks(windows(4, 7, 5), fwd_hooks=hooks)[:, -1]
            assert torch.allclose(found[number], wanted.log_softmax(-1), atol=1e-9)


def test_directions_are_orthonormal_and_steps_have_the_wanted_effect(read):
    ending, found = read
    prompts = Prompts(ending, windows(10))
    lenses = Lenses(
        {
            "tuned/W": torch.eye(8, dtype=torch.float64).repeat(2, 1, 1),
            "oca/c": torch.zeros(2, 2, 8),
        },
        {kind: Spent(0, 0, 0, 0.0) for kind in ("tuned", "oca")},
    )
    known = bases(ending, lenses, 1, found, 5, 0)
    assert set(known) == {"tuned", "linear", "random"}
    for basis in known.values():
        assert torch.allclose(basis.T @ basis, torch.eye(5, dtype=torch.float64), atol=1e-9)
    before = ending.log_probs(prompts.last(-1))
    stream, steps = prompts.last(1), torch.linspace(-1, 1, 5, dtype=torch.float64)

    def move(length: float) -> Tensor:
        return prompts.model(1, steer(stream, known["random"], length * steps))

    length = calibrated(move, before)
    assert 0.1 < float(kl(before, move(length)).mean()) < 0.4


# Files -------------------------------------------------------------------------------------------


def test_saved_lenses_are_read_again(read, tmp_path):
    ending, _ = read
    tensors = {"mean/c": torch.randn(2, 8, dtype=torch.float64)}
    lenses = Lenses(tensors, {"mean": Spent(16, 84, 84, 0.1)}, {})
    path = save_lenses(lenses, OWNER, FITTED_ON, tmp_path / "lenses.safetensors")
    again = load_lenses(path, OWNER, FITTED_ON, ending.model)
    assert again.spent == lenses.spent
    assert torch.equal(again.tensors["mean/c"], tensors["mean/c"])


@pytest.mark.parametrize("what", ["other", "cut", "text", "missing", "shape", "directory"])
def test_a_file_that_is_not_this_models_is_refused_in_one_line(read, tmp_path, what):
    ending, _ = read
    size = 5 if what == "shape" else 8
    lenses = Lenses({"mean/c": torch.zeros(2, size)}, {"mean": Spent(16, 84, 84, 0.1)})
    path = save_lenses(lenses, OWNER, FITTED_ON, tmp_path / "lenses.safetensors")
    owner = dataclasses.replace(OWNER, key="other", name="mine") if what == "other" else OWNER
    if what == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    if what == "text":
        path.write_text("no tensors")
    if what == "missing":
        path = tmp_path / "nowhere"
    if what == "directory":
        path = tmp_path
    with pytest.raises(UserError) as caught:
        load_lenses(path, owner, FITTED_ON, ending.model)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    if what == "other":
        assert str(caught.value).startswith(f"{path} has lenses of tiny")
        assert "has lenses of tiny (weights abababab), not of mine" in str(caught.value)


# The whole ---------------------------------------------------------------------------------------


def measured(model: HookedTransformer, text: Text, out: Path, **changes: object) -> Record:
    config = dataclasses.replace(FAST, **changes)
    found = evaluate(model, LensData(text, OWNER, out), config)
    return Record(
        "lens",
        {"name": "tiny", "weights_hash": "ab" * 32, "configuration": {}},
        {},
        plain(config.recorded()),
        "h",
        0,
        found.metrics,
        plain(found.extra),
        started="2026",
    )


def test_all_lenses_of_a_model_with_gates(make_model, long_text, tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_INTERP_CACHE", str(tmp_path / "cache"))
    kinds = ("logit", "tuned", "tuned-paper", "oca", "shared", "mean", "resample")
    model = make_model("local")
    record = measured(model, long_text, tmp_path, lenses=kinds, prompt="Tom gave the cat")
    value = {one.name: one.value for one in record.metrics}
    assert value["area_oca"] < value["area_mean"] < value["floor_kl"] * 10
    assert value["parameters_tuned"] == parameters("tuned", *_shape(model))
    assert value["area_oca_minus_tuned"] == pytest.approx(value["area_oca"] - value["area_tuned"])
    made = report.tables([record])
    assert [table.name for table in made] == [
        "lens-areas",
        "lens-agreement",
        "lens-layers-tiny",
        "lens-spent-tiny",
        "lens-edits-tiny",
    ]
    assert "mean lens" in made[-1].notes[0]
    drawn = {name: draw([record]) for name, draw in report.FIGURES.items()}
    assert all(len(figures) == 1 for figures in drawn.values())
    prompt = record.extra["prompt"]
    assert "".join(prompt["tokens"][1:]) == "Tom gave the cat"
    again = measured(model, long_text, tmp_path, load=str(tmp_path / record.extra["file"]))
    same = {one.name: one.value for one in again.metrics}
    assert all(same[name] == pytest.approx(value[name]) for name in value)
    frame = report.details(record, tmp_path)
    assert len(frame) == len(kinds) * _shape(model)[0]
    assert frame.groupby("lens")["kl"].mean()["oca"] == pytest.approx(value["area_oca"])


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"held_windows": 14}, {"fit_windows": 15}, {"window": 20}]
)
def test_lenses_are_not_measured_on_stories_that_may_have_fitted_them(
    make_model, long_text, tmp_path, changes
):
    """Under another seed, or with more windows held out, some of those would be of the fit."""
    model, settings = make_model(), {"lenses": ("mean",), "no_edits": True}
    record = measured(model, long_text, tmp_path, **settings)
    file = str(tmp_path / record.extra["file"])
    with pytest.raises(UserError, match="has lenses fitted on text .*, not on text") as caught:
        measured(model, long_text, tmp_path, **settings, load=file, **changes)
    assert "\n" not in str(caught.value)
    again = measured(model, long_text, tmp_path, **settings, load=file, resamples=7)
    assert again.metrics[0].value == record.metrics[0].value


def _shape(model: HookedTransformer) -> tuple[int, int]:
    return int(model.cfg.n_layers), int(model.cfg.d_model)


def test_lenses_in_the_cache_are_not_fitted_again(make_model, long_text, tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_INTERP_CACHE", str(tmp_path / "cache"))
    settings = {"lenses": ("oca", "mean"), "no_edits": True}
    first = measured(make_model(), long_text, tmp_path, **settings)
    monkeypatch.setattr("evaluations.suite.lens.fit._fit", None)
    second = measured(make_model(), long_text, tmp_path, **settings)
    assert first.extra["layers"] == second.extra["layers"]
    (kept,) = (tmp_path / "cache" / "lenses" / "key").glob("oca-*")
    kept.write_bytes(b"damaged")
    with pytest.raises(TypeError):  # it would be fitted
        measured(make_model(), long_text, tmp_path, **settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ""}, "has no tokens"),
        ({"prompt": "Tom gave the cat " * 30}, "the model reads"),
        ({"window": 400, "first": 300}, "first must be below the model's context"),
        ({"load": "/nowhere/x"}, "no lenses"),
    ],
)
def test_what_cannot_be_done_is_one_line(make_model, long_text, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        measured(make_model(), long_text, tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_parallel_blocks_are_refused_by_name():
    model = unlike_ours(
        n_layers=1,
        n_ctx=9,
        d_vocab=31,
        parallel_attn_mlp=True,
        original_architecture="GPTNeoXForCausalLM",
    )
    with pytest.raises(UserError, match="GPTNeoXForCausalLM has parallel blocks"):
        evaluation.check(model, LensConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lenses": ("tund",)}, "unknown lens 'tund': did you mean 'tuned'"),
        ({"lenses": ()}, "name at least one lens"),
        ({"fit_windows": 2}, "fit_windows must be at least 8, not 2"),
        ({"first": 64}, "first must be below window"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        LensConfig(**settings)
