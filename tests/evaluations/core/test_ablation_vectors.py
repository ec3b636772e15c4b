"""Ablations against values computed once in plain torch, where those lie beside the repository."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.core import ablation_values as values
from evaluations.core.ablation import Group, find_components, group
from evaluations.core.ablation_fit import FitConfig, fit
from evaluations.core.ablation_run import CleanRun
from evaluations.core.ablation_values import Slots
from tests.evaluations.vectors import VECTORS, needed, vectors_model

pytestmark = needed


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return vectors_model()


@pytest.fixture(scope="module")
def prompts() -> dict[str, Tensor]:
    return load_file(VECTORS / "prompts.safetensors")


@pytest.fixture(scope="module")
def stated() -> dict[str, dict[str, Any]]:
    return json.loads((VECTORS / "components.json").read_text())


def sets(model: HookedTransformer, stated: dict[str, Any]) -> dict[str, Group]:
    return {name: group(find_components(model, [name])) for name in stated}


def test_every_method_without_a_fit(model, prompts, stated):
    run, counterfactual = (CleanRun(model, [prompts[name]]) for name in ("fit", "fit_cf"))
    held, held_cf = (CleanRun(model, [prompts[name]]) for name in ("held", "held_cf"))
    for name, batch in sets(model, stated).items():
        for method in ("zero", "mean", "mean_all", "cf_mean"):
            constants = values.constants_of(method, run, batch, counterfactual)
            for side, on in (("fit", run), ("held", held)):
                found = float(values.constant_kl(on, batch, constants).mean())
                assert found == pytest.approx(stated[name][side][method], abs=1e-9)
        for method, found in (
            ("resample", values.resample_kl(run, batch, [prompts["permutation"]])),
            ("resample_all", values.resample_all_kl(run, batch)),
            ("cf", values.counterfactual_kl(run, batch, counterfactual)),
        ):
            assert float(found.mean()) == pytest.approx(stated[name]["fit"][method], abs=1e-9)
        found = float(values.counterfactual_kl(held, batch, held_cf).mean())
        assert found == pytest.approx(stated[name]["held"]["cf"], abs=1e-9)


def test_costs_of_the_stated_constants(model, prompts, stated):
    run = CleanRun(model, [prompts["fit"]])
    tensors = load_file(VECTORS / "components.safetensors")
    for name, batch in sets(model, stated).items():
        for method in ("oa", "oa_pos"):
            constant = tensors[f"{name}/{method}"].double()
            constant = constant.reshape(1, -1, batch.parts[0].index.shape[1])
            found = values.constant_kl(run, batch, [constant])[0]
            assert (found - tensors[f"{name}/kl/{method}"]).abs().max() < 1e-9


CONFIG = FitConfig(starts=4, rounds=2)
"""What ``sat-eval ablate`` fits with."""


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fitted_constants_are_as_good_as_the_best_known(model, prompts, stated, dtype):
    of_dtype = copy.deepcopy(model)
    of_dtype.to(dtype, print_details=False)
    chosen, held = CleanRun(of_dtype, [prompts["fit"]]), CleanRun(model, [prompts["held"]])
    for name, batch in sets(model, stated).items():
        if dtype == torch.float32 and name not in ("a0.h1", "attn1", "m0", "m0.n0"):
            continue
        best = fit(chosen, batch, Slots.one(chosen), CONFIG)
        known = stated[name]["fit"]["oa"]
        more = 1e-6 if dtype == torch.float64 else 1e-4 * max(known, 0.01)
        assert float(best.delta[0]) <= known + more, name
        measured = float(values.constant_kl(held, batch, best.constants).mean())
        if abs(float(best.delta[0]) - known) < 1e-6:  # else another minimum, a lower one
            assert measured == pytest.approx(stated[name]["held"]["oa"], rel=0.2)
        if dtype == torch.float64 and name in ("a0.h0", "attn1", "m0"):
            slots = Slots.each(chosen)
            each = fit(chosen, batch, slots, CONFIG, extra=[best.constants])
            assert float(each.delta[0]) <= stated[name]["fit"]["oa_pos"] + 1e-6, name
