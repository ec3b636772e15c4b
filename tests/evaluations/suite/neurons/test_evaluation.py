from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest

from evaluations.core.excerpts import GatherConfig
from evaluations.core.models import prepared
from evaluations.core.runner import run_one
from evaluations.core.units import find_units
from evaluations.suite.neurons import SPEC, evaluation
from evaluations.suite.neurons.config import NeuronsConfig, NeuronsData
from evaluations.suite.neurons.details import WIDTH
from evaluations.suite.neurons.evaluation import drawn, evaluate
from evaluations.suite.neurons.examiners.base import Explanation, Unscored
from evaluations.suite.neurons.examiners.lookup import LookupExaminer
from evaluations.suite.neurons.reading import read_details
from sat_interp._util.errors import UserError
from tests.evaluations.suite.neurons.planted import (
    AFTER,
    CONSTANT,
    DEAD,
    NOISE,
    PLACE,
    WORD,
    model_for,
    planted_units,
)


def config_for(**fields: object) -> NeuronsConfig:
    known: dict[str, object] = {
        "examiner": LookupExaminer(),
        "gather": GatherConfig(width=24),
        "resamples": 100,
        **fields,
    }
    return NeuronsConfig(**known)


@pytest.fixture
def make_data(planted, tmp_path):
    def make(text=planted, key="planted"):
        return NeuronsData(text, key, "tiny", tmp_path / "out", cache=tmp_path / "cache")

    return make


@pytest.fixture
def examine(planted, make_data, monkeypatch):
    """The evaluation of the planted units."""
    monkeypatch.setattr(evaluation, "find_units", lambda *_: planted_units(planted))

    def run(examiner=None, **fields):
        data, config = make_data(), config_for(examiner=examiner or LookupExaminer(), **fields)
        result = evaluate(model_for(planted), data, config)
        details = read_details(data.directory / result.extra["details"])
        return result, {unit["index"]: unit for unit in details["units"]}, details

    return run


def test_planted_units_are_explained_and_predicted(examine):
    result, units, details = examine()
    assert units[WORD]["explanation"] == 'fires on " cat"'
    assert units[AFTER]["explanation"] == 'fires on " sat" after " dog"'
    assert units[PLACE]["explanation"] == "fires at the story's token 3"
    for planted in (WORD, AFTER, PLACE):
        assert units[planted]["score"] > 0.93
        assert units[planted]["detection"] in (None, 1.0)
        assert units[planted]["fuzzing"] > 0.9
        assert units[planted]["control"] is None or units[planted]["control"] < 0.3
    assert abs(units[NOISE]["score"]) < 0.15
    assert (units[DEAD]["score"], units[DEAD]["reason"]) == (None, "dead")
    assert units[CONSTANT]["reason"] == "constant activation"
    found = {one.name: one for one in result.metrics}
    assert (found["simulation"].n, found["simulation"].n_failed) == (4, 2)
    assert found["unscored"].reasons == {"dead": 1, "constant activation": 1}
    assert details["reasons"] == found["unscored"].reasons
    scores = [units[index]["score"] for index in (WORD, AFTER, PLACE, NOISE)]
    assert found["simulation"].value == pytest.approx(np.mean(scores), abs=1e-3)
    assert result.extra["units"]["index"] == list(range(6))


def test_the_excerpts_left_for_people_are_right(examine):
    _, units, details = examine()
    word = units[WORD]
    halves = [one["half"] for one in word["excerpts"]]
    assert halves == ["explain"] * halves.count("explain") + ["held_out"] * halves.count("held_out")
    assert min(halves.count("explain"), halves.count("held_out")) > 5
    assert {one["kind"] for one in word["excerpts"]} == {"top", "sample", "random"}
    for excerpt in word["excerpts"]:
        tokens = [details["vocabulary"][token] for token in excerpt["tokens"]]
        assert len(tokens) == len(excerpt["levels"]) <= WIDTH
        assert excerpt["levels"] == [10 * (token == " cat") for token in tokens]
        if excerpt["half"] == "held_out":
            assert len(excerpt["simulated"]) == len(tokens)
        if excerpt["simulated"] and max(excerpt["levels"]):
            assert np.corrcoef(excerpt["simulated"], excerpt["levels"])[0, 1] > 0.9
        assert (excerpt["simulated"] is None) == (excerpt["half"] == "explain")


def test_the_same_seed_gives_the_same_and_another_does_not(examine):
    one, again, other = (
        examine(seed=seed, gather=GatherConfig(seed=seed, width=24))[0] for seed in (0, 0, 1)
    )
    assert one.metrics == again.metrics
    assert one.extra == again.extra
    assert one.extra["units"]["simulation"] != other.extra["units"]["simulation"]


def test_only_what_is_asked_for_is_scored(examine):
    result, units, _ = examine(scores=("simulation",))
    names = {one.name for one in result.metrics}
    assert names == {"simulation", "simulation_layer_0", "simulation_scored", "dead", "unscored"}
    assert units[WORD]["fuzzing"] is None


class Failing(LookupExaminer):
    """Does not know some units, and cannot predict others."""

    def explain(self, questions):
        found = super().explain(questions)
        return [
            Unscored("no answer: 429") if one.unit == "0.0" else answer
            for one, answer in zip(questions, found, strict=True)
        ]

    def simulate(self, simulations):
        return [
            Unscored("unparsable answer") if '" sat" after' in one.explanation.text else levels
            for one, levels in zip(simulations, super().simulate(simulations), strict=True)
        ]

    def estimate(self, questions, simulated, detected=0, fuzzed=0):
        return f"{len(questions)} questions, {simulated}, {detected}, {fuzzed}"

    sent = 5  # for other models, before

    def usage(self):
        self.sent += 7
        return {"sent": self.sent}


def test_what_an_examiner_cannot_answer_is_counted_by_reason(examine, caplog):
    with caplog.at_level(logging.WARNING):
        result, units, _ = examine(Failing(), scores=("simulation", "detection"))
    found = {one.name: one for one in result.metrics}
    assert found["simulation"].reasons == {
        "no answer: 429": 1,
        "unparsable answer": 1,
        "dead": 1,
        "constant activation": 1,
    }
    assert units[WORD]["reason"] == "no answer: 429"
    assert (units[AFTER]["reason"], units[AFTER]["score"]) == ("unparsable answer", None)
    assert "4 questions, 20, 20, 0" in caplog.text  # told before anything is asked
    assert result.extra["usage"] == {"sent": 7}


class Wordless(LookupExaminer):
    """Predicts the same everywhere."""

    def simulate(self, simulations):
        return [tuple((1.0,) * len(tokens) for tokens in one.excerpts) for one in simulations]

    def explain(self, questions):
        return [Explanation("anything") for _ in questions]


def test_a_constant_prediction_is_no_score_of_zero(examine):
    result, _, _ = examine(Wordless())
    found = {one.name: one for one in result.metrics}
    assert found["simulation"].value is None
    assert found["simulation"].reasons["constant prediction"] == 4
    assert found["fuzzing"].value == 0.5


@pytest.mark.parametrize("stream", ["clean", "ablated"])
def test_a_real_model_gets_a_record(make_model, text, tokenizer, make_data, stream, tmp_path):
    model = make_model("local")
    loaded = prepared(model, "tiny", tokenizer, "cpu", "float64", "tiny")
    data = make_data(text, key="real")
    config = config_for(stream=stream)
    record, was_done = run_one(SPEC, loaded, data, config, tmp_path / "res")
    assert not was_done
    units = record.extra["units"]
    sizes = find_units(model).sizes
    assert len(units["index"]) == sum(sizes)
    scored = [score for score in units["simulation"] if score is not None]
    assert record.metric("simulation").n == len(scored) > 10
    assert record.metric("simulation").value == pytest.approx(np.mean(scored), abs=1e-5)
    assert record.metric("simulation").n + record.metric("unscored").value == sum(sizes)
    for layer in (0, 1):
        own = [
            score
            for score, at in zip(units["simulation"], units["layer"], strict=True)
            if at == layer and score is not None
        ]
        assert record.metric(f"simulation_layer_{layer}").value == pytest.approx(
            np.mean(own), abs=1e-5
        )
    assert run_one(SPEC, loaded, data, config, tmp_path / "res")[1]


def test_a_sample_is_drawn_in_each_layer(make_model):
    units = find_units(make_model())
    parts = drawn(units, config_for(sample=7))
    assert [layer for layer, _ in parts] == [0, 1]
    for _, numbers in parts:
        assert len(set(numbers.tolist())) == 7
    again = drawn(units, config_for(sample=7))
    assert all((one[1] == other[1]).all() for one, other in zip(parts, again, strict=True))
    every = drawn(dataclasses.replace(units, sizes=(600, 64)), config_for())
    assert [len(numbers) for _, numbers in every] == [200, 200, 200, 64]
    assert np.concatenate([n for layer, n in every if layer == 0]).tolist() == list(range(600))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"sample": 0}, "sample must be at least 1"),
        ({"resamples": -1}, "resamples"),
        ({"scores": ("simulation", "detecton")}, "did you mean 'detection'"),
        ({"scores": ("detection",)}, "must include simulation"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(fields, told):
    with pytest.raises(UserError, match=told):
        config_for(**fields)


def test_details_that_are_gone_ask_for_another_run(tmp_path):
    with pytest.raises(UserError, match="--force"):
        read_details(tmp_path / "none.units.json.gz")
    (tmp_path / "half.units.json.gz").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(UserError, match="--force"):
        read_details(tmp_path / "half.units.json.gz")
