"""The evaluation as a whole: every figure there, right, and told when it cannot be had."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from evaluations.circuits.acdc import acdc
from evaluations.circuits.case import Case
from evaluations.circuits.controls import on_paths
from evaluations.circuits.evaluation import CircuitConfig, circuits
from evaluations.circuits.find import by_attribution
from evaluations.circuits.metrics import mark
from evaluations.record import Record
from evaluations.tasks.pairs import Competence, PairBatch, TaskPrompts, competence
from sat_interp.errors import UserError
from tests.evaluations.circuits.cases import doable, task
from tests.evaluations.circuits.tiny import tiny_model

QUICK = {"taus": (0.05, 0.3), "random_circuits": 4, "bootstrap": 2}
ALWAYS = {
    "accuracy", "logit_difference", "kl_corrupted", "edges", "circuit_kl", "faithfulness", "cpr",
    "cmd", "random_faithfulness", "null_edges", "bootstrap_edges", "bootstrap_jaccard",
    "orders_edges", "orders_jaccard", "margin",
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def prompts(model):
    return doable(model, task(n=10))


@pytest.fixture(scope="module")
def result(model, prompts):
    return circuits(model, prompts, CircuitConfig(**QUICK))


def _figures(result):
    return {metric.name: metric for metric in result.metrics}


def test_everything_the_count_must_not_be_without_is_there(result, prompts):
    found = _figures(result)
    assert found.keys() >= ALWAYS
    assert len(found) == len(result.metrics)
    for name in ALWAYS:
        assert found[name].value is not None, name
        assert found[name].n, name
    for name in ("accuracy", "kl_corrupted", "circuit_kl", "faithfulness", "random_faithfulness"):
        assert found[name].interval is not None, name
    assert found["circuit_kl"].n == prompts.n
    assert found["random_faithfulness"].n == 4
    assert found["bootstrap_edges"].n == found["orders_jaccard"].n == 2


def test_the_circuit_is_acdcs_at_the_first_tau_unless_the_papers_is_among_them(
    result, model, prompts
):
    case = Case.of(model, prompts)
    direct = acdc(model, case.graph, case.buckets, 0.05)
    found = _figures(result)
    assert found["edges"].value == direct.n_kept
    assert found["edges_on_paths"].value == on_paths(case.graph, direct.kept).sum()
    assert found["circuit_kl"].value == pytest.approx(direct.kl)
    assert found["margin"].value == pytest.approx(direct.margin)
    edges = result.extra["circuit"]["edges"]
    names = {(edge["source"], edge["destination"]): edge["score"] for edge in edges}
    kept = direct.kept.nonzero().flatten().tolist()
    assert names == {case.graph.edge_name(e): pytest.approx(float(direct.steps[e])) for e in kept}
    assert CircuitConfig(taus=(0.1, 0.03, 0.01)).tau == 0.03
    assert CircuitConfig(taus=(0.1, 0.01)).tau == 0.1


def test_a_sweep_gives_a_circuit_for_each_tau_and_one_tau_a_sweep_of_its_own(result):
    assert [row["tau"] for row in result.extra["sweep"]] == [0.05, 0.3]
    few, many = (row["edges"] for row in reversed(result.extra["sweep"]))
    assert few < many
    assert len(result.extra["curve"]) == 10
    assert CircuitConfig(taus=(0.02,)).swept() == [0.01, 0.02, 0.03, 0.1, 0.3, 1.0]
    assert CircuitConfig(sweep=False).swept() == [0.03]


def test_the_record_survives_its_file_and_the_model_its_evaluation(result, model):
    record = Record("acdc", {"weights_hash": "x"}, {}, {}, "h", 0, result.metrics, result.extra)
    back = Record.from_json(record.to_json())
    assert back.metrics == result.metrics
    assert back.extra["sweep"][0]["edges"] == result.extra["sweep"][0]["edges"]
    assert not model.training


def test_seeds_reproduce(result, model, prompts):
    again = circuits(model, prompts, CircuitConfig(**QUICK))
    assert again.metrics == result.metrics


def test_attribution_has_a_circuit_of_the_size_asked_for_and_no_order(model, prompts):
    config = CircuitConfig(method="eap-ig", edges=30, random_circuits=3, bootstrap=2)
    result = circuits(model, prompts, config)
    found = _figures(result)
    direct = by_attribution(Case.of(model, prompts), "eap-ig", "logit-difference", "greedy", 30)
    assert found["edges"].value == 30 == direct.n
    assert found["cpr"].value is not None
    assert found["bootstrap_jaccard"].value is not None
    for name, reason in {
        "orders_edges": "no order",
        "null_edges": "size is given",
        "margin": "none tested",
    }.items():
        assert found[name].value is None
        assert reason in found[name].reasons
    assert result.extra["tau"] is None
    by_default = circuits(model, prompts, CircuitConfig(method="eap", bootstrap=0))
    assert _figures(by_default)["edges"].value == int(0.05 * direct.kept.numel())


def test_what_was_not_asked_for_or_cannot_be_had_says_so(model):
    lone = doable(model, task(n=1))  # no two prompts of one length
    config = CircuitConfig(taus=(50.0,), random_circuits=3, bootstrap=0, sweep=False)
    result = circuits(model, lone, config)
    found = _figures(result)
    assert found["edges"].value == 0
    for name, reason in {
        "cpr": "one tau ranks no edges",
        "null_edges": "no two prompts of one length",
        "random_faithfulness": "no edge of the circuit lies on a path",
        "bootstrap_edges": "--bootstrap N",
    }.items():
        assert found[name].value is None, name
        assert found[name].n_failed > 0
        assert any(reason in one for one in found[name].reasons), (name, found[name].reasons)
    assert not any(math.isnan(m.value) for m in result.metrics if m.value is not None)


def test_a_task_without_difference_has_no_faithfulness(model, prompts):
    batches = tuple(PairBatch(b.clean, b.clean, b.right, b.wrong) for b in prompts.batches)
    same = dataclasses.replace(prompts, batches=batches)
    found = _figures(circuits(model, same, CircuitConfig(**{**QUICK, "bootstrap": 0})))
    assert found["faithfulness"].value is None
    assert found["faithfulness"].n_failed == prompts.n
    assert found["cmd"].value is None
    assert found["kl_corrupted"].value == pytest.approx(0.0, abs=1e-12)


def test_a_model_that_cannot_do_the_task_is_marked(model, prompts):
    swapped = tuple(PairBatch(b.clean, b.corrupted, b.wrong, b.right) for b in prompts.batches)
    wrong = TaskPrompts("wrong", swapped, prompts.texts)
    result = circuits(model, wrong, CircuitConfig(taus=(1.0,), sweep=False, bootstrap=0))
    assert "does not do the task" in result.extra["marked"]
    assert mark(competence(model, prompts)) is None
    poor = Competence(0.8, 0.7, 0.87, 0.5, 1.0, 0.1, 100, 0, 0)
    assert "poorly" in mark(poor)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"taus": (0.0,)}, "positive number"),
        ({"taus": (float("nan"),)}, "positive number"),
        ({"taus": ()}, "there is no tau"),
        ({"method": "acd"}, "did you mean 'acdc'"),
        ({"engine": "slow"}, "unknown engine"),
        ({"ablation": "noise"}, "unknown ablation"),
        ({"edges": -1}, "no -1 edges"),
        ({"bootstrap": -1}, "cannot be negative"),
        ({"method": "eap", "score_by": "kl"}, "zero for every edge"),
        ({"engine": "auto-circuit", "ablation": "zero"}, "resample ablation only"),
        ({"engine": "auto-circuit", "method": "eap"}, "resample ablation only"),
    ],
)
def test_what_cannot_be_asked_is_one_line(settings, message):
    config = CircuitConfig()
    for name, value in settings.items():  # past the check of types, which only tests have
        object.__setattr__(config, name, value)
    with pytest.raises(UserError, match=message) as caught:
        config.__post_init__()
    assert "\n" not in str(caught.value)


def test_more_edges_than_there_are_is_one_line(model, prompts):
    with pytest.raises(UserError, match="not 5,000"):
        circuits(model, prompts, CircuitConfig(method="eap", edges=5000))


def test_ours_with_gates_has_a_circuit(make_model):
    model = make_model("local")
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(200, (4, 6), generator=generator)
    corrupted = torch.randint(200, (4, 6), generator=generator)
    batch = PairBatch(clean, corrupted, clean[:, 0], corrupted[:, 0])
    prompts = doable(model, TaskPrompts("any", (batch,), ()))
    config = CircuitConfig(taus=(1e-4,), sweep=False, bootstrap=0, random_circuits=0)
    prompts = dataclasses.replace(prompts, texts=task(n=4, lengths=(6,)).texts)
    assert _figures(circuits(model, prompts, config))["edges"].value > 0
