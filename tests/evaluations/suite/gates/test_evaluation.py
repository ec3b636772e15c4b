from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from transformer_lens import HookedTransformer

from evaluations.core import statistics
from evaluations.core.models import prepared
from evaluations.core.record import Record
from evaluations.suite.gates import SPEC
from evaluations.suite.gates.config import GatesConfig
from evaluations.suite.gates.evaluation import evaluate as gates
from evaluations.suite.gates.picture import picture
from sat_interp._util.errors import UserError
from tests.evaluations.toy import run_on

CONFIG = GatesConfig(resamples=50, probe_classes=20, picture_tokens=6)


def figures(model, text, config=CONFIG):
    return {metric.name: metric for metric in gates(model, text, config).metrics}


@pytest.mark.parametrize("variant", ["local", "global"])
def test_every_figure_has_a_value_an_error_and_what_it_counted(
    make_model, text, variant, monkeypatch
):
    monkeypatch.setattr(statistics, "ENOUGH", 2)  # the probe is tested on few stories here
    found = figures(make_model(variant), text)
    for name, metric in found.items():
        assert metric.value is not None, name
        assert metric.n is not None, name
        if "no probe is better" in metric.description:
            assert (metric.value, metric.interval, metric.standard_error) == (0.0, None, None), name
        elif name not in ("cut_tokens", "leak_unconverged"):
            assert metric.standard_error is not None, name
            assert metric.interval is not None, name
            assert metric.interval.low - 1e-9 <= metric.value <= metric.interval.high + 1e-9, name
    assert found["neuron_entropy"].value == pytest.approx(6 * found["neuron_entropy_share"].value)
    for name in ("shuffled", "random", "other_story"):
        gap = found[f"masks_{name}_loss"].value - found["masks_own_loss"].value
        if not found[f"masks_{name}_cost"].n_failed:
            assert found[f"masks_{name}_cost"].value == pytest.approx(gap)


def test_a_story_without_a_partner_is_counted_and_left_out_of_both_sides(make_model, text):
    found = figures(make_model("local", n_ctx=60), text)
    for name in ("masks_other_story_loss", "masks_other_story_cost"):
        assert found[name].n_failed == 1
        assert found[name].reasons == {"no other story is as long": 1}
        assert found[name].n < found["masks_own_loss"].n


def test_models_without_masks_are_refused_in_one_line(make_model, text):
    plain = HookedTransformer(make_model().cfg)
    for model in (plain, make_model("none")):
        with pytest.raises(UserError, match="^this model has no gates"):
            gates(model, text, CONFIG)
    with pytest.raises(UserError, match="dropout instead of gates"):
        gates(make_model("local", gates="dropout"), text, CONFIG)


def test_too_few_stories_for_probes_are_refused_before_anything_runs(make_model, text):
    with pytest.raises(UserError, match="3 stories are too few"):
        gates(make_model("local"), text.sample(3, 0), CONFIG)
    quick = replace(CONFIG, probe_stories=0)
    assert "leak_mask" not in figures(make_model("local"), text.sample(3, 0), quick)


def test_the_runner_goes_on_after_a_model_without_gates(make_model, text, tokenizer, tmp_path):
    models = [
        prepared(make_model(variant), variant, tokenizer, "cpu") for variant in ("none", "local")
    ]
    outcome = run_on(SPEC, models, lambda loaded: text, CONFIG, tmp_path)
    assert list(outcome.failures) == ["none"]
    (record,) = outcome.records
    again = Record.from_json(record.to_json())
    assert again.extra["picture"] == record.extra["picture"]
    assert len(again.extra["usage"]["neuron"]["frequency"]) == 2
    told = again.extra["usage"]["neuron"]["frequency"][0].split()
    assert sum(map(float, told)) == pytest.approx(5, abs=0.01)  # k of them win at each token
    assert {
        "mask",
        "shuffled",
        "token",
        "token+mask",
        "token+exchanged",
        "residual",
        "final",
        "unigram",
    } == set(again.extra["leak"]["probes"])


def test_the_state_that_gates_read_is_named(make_model, text):
    quick = replace(CONFIG, probe_stories=0, intervention_stories=0)
    told = {
        "local": gates(make_model("local"), text, quick),
        "global": gates(make_model("global"), text, quick),
        "random": gates(make_model("local", gates="random"), text, quick),
    }
    assert "block's input" in told["local"].extra["gates_read"]
    assert "final LN" in told["global"].extra["gates_read"]
    assert "random" in told["random"].extra["gates_read"]
    assert "leak" not in told["local"].extra
    assert not [metric for metric in told["local"].metrics if metric.name.startswith("masks_")]


def test_seeds_reproduce_and_leave_generator_and_mode_alone(make_model, text):
    def values(config):
        return {name: metric.value for name, metric in figures(model, text, config).items()}

    model = make_model("local", gates="random").train()
    before = torch.get_rng_state()
    quick = replace(CONFIG, probe_classes=4)
    first = values(quick)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    torch.rand(3)
    assert values(quick) == first
    other = values(replace(quick, seed=1, probe_stories=0))
    assert other["masks_random_loss"] != first["masks_random_loss"]


def test_random_gates_use_all_units_alike(make_model, text):
    quick = replace(CONFIG, probe_stories=0, intervention_stories=0)
    found = figures(make_model("local", gates="random"), text, quick)
    for site, share in {"attention": 3 / 16, "neuron": 5 / 64}.items():
        assert found[f"{site}_entropy_share"].value > 0.95
        assert found[f"{site}_dead"].value == 0.0
        assert found[f"{site}_overlap_chance"].value == pytest.approx(share, abs=0.02)


def test_where_all_units_win_there_is_nothing_to_compare(make_model, text):
    quick = replace(CONFIG, probe_stories=0, intervention_stories=0)
    found = figures(make_model("local", k_attention=16, k_neurons=64), text, quick)
    assert found["attention_overlap"].value == 1.0
    assert found["neuron_entropy"].value == pytest.approx(math.log2(64))
    assert found["neuron_similarity"].value is None
    assert found["neuron_similarity"].reasons == {"overlap of masks is constant": 1}


def test_the_picture_shows_the_models_own_winners(make_model, text):
    model = make_model("global")
    shown = picture(model, text, 3, 7)
    assert len(shown["tokens"]) == 7
    assert shown["tokens"][0] == "<|endoftext|>"
    assert "".join(shown["tokens"][1:]) == text.tokenizer.decode(text.corpus.story(3)[:6].tolist())
    ids = torch.tensor([[text.corpus.end_of_text, *text.corpus.story(3)[:6].tolist()]])
    out = model.dual(ids)
    for site, masks in {"attention": out.attention_masks, "neuron": out.neuron_masks}.items():
        for layer in range(2):
            for position, told in enumerate(shown[site][layer]):
                units = torch.nonzero(masks[0, position, layer])[:, 0].tolist()
                assert [int(unit) for unit in told.split()] == units
    with pytest.raises(UserError, match="no story 99"):
        picture(model, text, 99, 7)


@pytest.mark.parametrize(
    "settings",
    [
        {"resamples": -1},
        {"probe_stories": -1},
        {"probe_classes": 1},
        {"picture_tokens": 0},
        {"picture_story": -1},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(UserError):
        GatesConfig(**settings)
