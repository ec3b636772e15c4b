"""The models that ship with the package: small, loadable, and able to do the task."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from evaluations.core.statistics import mean_interval
from evaluations.tasks.facts import make_facts
from evaluations.tasks.pairs import competence
from evaluations.tasks.registry import make_task
from sat_interp import SelfAblatingTransformer
from sat_interp.data.planted.facts import known_facts, unknown_facts
from sat_interp.data.planted.numbers import is_held_out
from sat_interp.training.config import TrainConfig

MODELS = Path(__file__).parents[3] / "sat_interp" / "models"
NAMES = ["baseline", "local-k4", "global-k4"]
PLANTED = ["facts", "numbers"]


@pytest.mark.parametrize("name", [*NAMES, "numbers"])
def test_the_clean_stream_does_ioi_on_pairs_it_never_saw_in_that_role(name):
    model = SelfAblatingTransformer.from_pretrained(f"demo:{name}")
    found = competence(model, make_task("ioi", model.tokenizer, n=700, seed=11))
    assert found.n_left_out == 0
    assert found.low > 0.95  # not the share alone: its whole 95 % interval
    assert found.logit_difference > 0


@pytest.mark.parametrize("name", [*NAMES, *PLANTED])
def test_each_is_under_four_megabytes(name):
    size = sum(file.stat().st_size for file in (MODELS / name).iterdir())
    assert size < 4e6


def test_greater_than_at_95_percent_by_the_papers_probability_difference():
    model = SelfAblatingTransformer.from_pretrained("demo:numbers")
    prompts = make_task("greater-than", model.tokenizer, n=500, seed=11)
    found = competence(model, prompts)
    interval = mean_interval(found.probability_differences)
    assert interval.low > 0.95
    begun = [re.findall(r"(\d\d)(\d\d)", pair.clean)[0] for pair in prompts.texts]
    held = [
        own
        for (century, year), own in zip(begun, found.probability_differences, strict=True)
        if is_held_out(int(century), int(year))
    ]
    assert len(held) > 30
    assert sum(held) / len(held) > 0.94


def first_choices(model, facts):
    """Whether each fact's object is the model's first choice."""
    made = make_facts(
        [
            {
                "subject": str(one.person),
                "prompt": one.prompt,
                "attribute": one.object,
                "relation_id": one.relation.name,
            }
            for one in facts
        ],
        model.tokenizer,
        len(facts),
    )
    assert not made.left_out
    by_length = {}
    for one in made.prompts:
        by_length.setdefault(len(one.tokens), []).append(one)
    hits = 0
    with torch.inference_mode():
        for some in by_length.values():
            logits = model(torch.tensor([one.tokens for one in some]))[:, -1]
            hits += int((logits.argmax(-1) == torch.tensor([one.answer for one in some])).sum())
    return hits / len(made)


def test_planted_facts_are_known_in_sentences_never_trained_and_strangers_are_not():
    model = SelfAblatingTransformer.from_pretrained("demo:facts")
    assert first_choices(model, known_facts()) > 0.95
    assert first_choices(model, unknown_facts()) < 0.10


def test_the_gates_are_what_the_names_say():
    for name, variant in (("baseline", "none"), ("local-k4", "local"), ("global-k4", "global")):
        ablation = SelfAblatingTransformer.from_pretrained(f"demo:{name}").ablation
        assert ablation.variant == variant
        assert ablation.k_attention == ablation.k_neurons == 4
        assert ablation.gates == "learned"


@pytest.mark.parametrize("name", [*NAMES, *PLANTED])
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
