"""Lenses against values computed once in plain torch, where those lie beside the repository."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.suite.lens.causal import Prompts, compare, project, resample, steer
from evaluations.suite.lens.config import LensConfig
from evaluations.suite.lens.ending import Ending
from evaluations.suite.lens.fit_constants import FitConfig, Problem, fit_constants
from evaluations.suite.lens.lenses import Lenses, Spent
from evaluations.suite.lens.metrics import correlate
from evaluations.suite.lens.positions import read_positions
from tests.evaluations.vectors import VECTORS, needed, vectors_model

pytestmark = needed


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return vectors_model()


@pytest.fixture(scope="module")
def vectors() -> dict[str, Tensor]:
    return load_file(VECTORS / "lens.safetensors")


@pytest.fixture(scope="module")
def lenses(vectors, model) -> Lenses:
    prompts = load_file(VECTORS / "prompts.safetensors")
    found = read_positions(model, prompts["fit"], prompts["fit"].shape[1] - 1, 24, 0)
    tensors = {name: vectors[name] for name in ("tuned/W", "tuned/b", "oca/c", "mean/c")}
    tensors["resample/bank"] = found.attention
    kinds = ("logit", "tuned", "oca", "mean", "resample")
    return Lenses(tensors, {kind: Spent(0, 0, 0, 0.0) for kind in kinds})


def test_every_lens_predicts_what_it_must(model, vectors, lenses):
    prompts, ending = load_file(VECTORS / "prompts.safetensors"), Ending(model)
    found = read_positions(model, prompts["fit"], prompts["fit"].shape[1] - 1, 24, 0)
    own = ending.log_probs(found.streams[-1])
    assert (own - vectors["model/log_probs"]).abs().max() < 1e-10
    assert (found.attention_mean - vectors["mean/c"]).abs().max() < 1e-10
    target = ending.targets(found.streams[-1])
    for kind in lenses.kinds:
        for layer in range(2):
            end = lenses.end(ending, kind, layer, found.streams[layer], prompts["permutation"])
            log_q = ending.log_probs(end)
            assert (log_q - vectors[f"{kind}/log_probs"][layer]).abs().max() < 1e-9
            assert (ending.kl(target, end) - vectors[f"{kind}/kl"][layer]).abs().max() < 1e-9


def test_fitted_constants_are_as_good_as_the_best_known(model, vectors):
    prompts, ending = load_file(VECTORS / "prompts.safetensors"), Ending(model)
    found = read_positions(model, prompts["fit"], prompts["fit"].shape[1] - 1, 24, 0)
    target = ending.targets(found.streams[-1])
    for layer in range(2):
        problem = Problem(ending, target, [found.streams[layer]], [layer])
        config = FitConfig(starts=5, evaluations=500, gap=1e-9)
        fit = fit_constants(problem, [found.attention_mean[layer:]], config)
        assert fit.kl <= float(vectors["oca_best/kl"][layer]) + 1e-6
        best, _ = problem.evaluate(vectors["oca_best/c"][layer, layer:])
        assert float(best) == pytest.approx(float(vectors["oca_best/kl"][layer]), abs=1e-9)


@pytest.mark.parametrize("edit", ["project", "steer", "resample"])
def test_edits_move_model_and_lenses_as_they_must(model, vectors, lenses, edit):
    prompts = load_file(VECTORS / "prompts.safetensors")
    read = Prompts(Ending(model), prompts["fit"])
    for layer in range(2):
        stream, v = read.last(layer), vectors["edit/v"][layer].T
        basis = vectors["edit/basis"][layer]
        if edit == "project":
            edited = project(stream, v, vectors["edit/mean"][layer])
        elif edit == "steer":
            edited = steer(stream, v, vectors["edit/step"][layer])
        else:
            edited = resample(stream, basis, prompts["permutation"], [basis.shape[1]])
        for kind, effects in compare(read, lenses, ("tuned", "oca"), layer, edited).items():
            for name, values in (
                ("model/kl", effects.model),
                (f"{kind}/kl", effects.lens),
                (f"{kind}/cosine", effects.cosine),
            ):
                wanted = vectors[f"edit/{edit}/{name}"][layer].numpy()
                assert abs(values - wanted).max() < 1e-8, (name, layer)
            wanted = float(vectors[f"edit/{edit}/{kind}/correlation"][layer])
            assert correlate([effects], LensConfig()).value == pytest.approx(wanted, abs=1e-7)
