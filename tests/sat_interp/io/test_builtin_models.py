"""The models that ship with the package: small, loadable, and able to do the task."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evaluations.tasks.pairs import competence
from evaluations.tasks.registry import make_task
from sat_interp import SelfAblatingTransformer
from sat_interp.training.config import TrainConfig

MODELS = Path(__file__).parents[3] / "sat_interp" / "models"
NAMES = ["baseline", "local-k4", "global-k4"]


@pytest.mark.parametrize("name", NAMES)
def test_the_clean_stream_does_ioi_on_pairs_it_never_saw_in_that_role(name):
    model = SelfAblatingTransformer.from_pretrained(f"demo:{name}")
    found = competence(model, make_task("ioi", model.tokenizer, n=700, seed=11))
    assert found.n_left_out == 0
    assert found.low > 0.95  # not the share alone: its whole 95 % interval
    assert found.logit_difference > 0


@pytest.mark.parametrize("name", NAMES)
def test_each_is_under_four_megabytes(name):
    size = sum(file.stat().st_size for file in (MODELS / name).iterdir())
    assert size < 4e6


def test_the_gates_are_what_the_names_say():
    for name, variant in (("baseline", "none"), ("local-k4", "local"), ("global-k4", "global")):
        ablation = SelfAblatingTransformer.from_pretrained(f"demo:{name}").ablation
        assert ablation.variant == variant
        assert ablation.k_attention == ablation.k_neurons == 4
        assert ablation.gates == "learned"


@pytest.mark.parametrize("name", NAMES)
def test_each_is_what_its_preset_trains(name):
    facts = SelfAblatingTransformer.from_pretrained(f"demo:{name}").card
    config = TrainConfig.from_preset(f"builtin-{name}")
    assert facts["config_hash"] == config.hash()
    assert facts["preset"] == config.preset
    assert facts["steps"] == config.steps


def test_a_story_comes_out():
    model = SelfAblatingTransformer.from_pretrained("demo:baseline")
    torch.manual_seed(0)
    text = model.generate(
        "Once upon a time, there was", max_new_tokens=40, temperature=0.7, verbose=False
    )
    assert isinstance(text, str)
    assert len(text.split()) > 20
