"""Whether a model is of a study: by its recipe, not by its name."""

from __future__ import annotations

import pytest

from sat_interp.training.recipe import differences
from sat_interp.training.study import Study

STUDY = Study(
    "s",
    settings={"steps": 50, "n_ctx": 32, "data": "demo"},
    variants={"none": {}, "local": {}},
    k=(4,),
    match_perplexity=("local-k4",),
)
RUNS = {run.name: run for run in STUDY.runs()}


@pytest.mark.parametrize(
    ("training", "found"),
    [
        ({}, []),
        ({"steps": 50, "n_ctx": 32, "seed": 0, "unknown": 1}, []),
        ({"steps": 20, "planned_steps": 50}, []),  # measured while it was trained
        ({"steps": 60}, ["steps"]),
        ({"n_ctx": 64, "data": "/elsewhere/demo", "seed": 1}, ["n_ctx", "seed"]),
        ({"data": "facts", "weight_density": 0.5}, ["weight_density", "data"]),
    ],
)
def test_settings_that_differ_are_named(training, found):
    assert differences(RUNS["baseline-s0"], training) == found


def test_a_matched_baseline_takes_the_steps_it_needs():
    assert differences(RUNS["matched-local-k4-s0"], {"steps": 7, "n_ctx": 32}) == []
    assert differences(RUNS["local-k4-s0"], {"k_neurons": 16, "gates": "random"}) == [
        "gates",
        "k_neurons",
    ]
