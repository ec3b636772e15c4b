"""EAP and EAP-IG against finite differences, exact patching and the axiom of completeness."""

from __future__ import annotations

import pytest
import torch

from evaluations.suite.circuits import forward, patched
from evaluations.suite.circuits.case import Case
from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.methods.eap import (
    attribution,
    attribution_of_prompts,
    check_attribution,
    first,
    interpolation,
    ranking,
)
from evaluations.suite.circuits.patched import kl_divergence
from sat_interp._util.errors import UserError
from tests.evaluations.suite.circuits.cases import tiny_case

SMALL = {"n_layers": 2, "n_heads": 2, "d_head": 8}


def _moved(model, graph, embedding, destination: int, by: torch.Tensor) -> torch.Tensor:
    """The logits where something is added to the input of one destination."""

    class Reader(forward._Whole):
        def read(self, first, count, norm):
            inputs = (self.stream + self.bias).expand(count, *by.shape).clone()
            if first <= destination < first + count:
                inputs[destination - first] += by
            return norm(inputs)

    return forward._logits(model, graph, Reader(graph, embedding))


def _nudged(case, steps: int, by_kl: bool) -> torch.Tensor:
    """The scores by central differences: each destination's input moved along a lost output."""
    graph, scores, eps = case.graph, [], 1e-5
    for edge in range(graph.n_edges):
        source, destination = int(graph.edge_source[edge]), int(graph.edge_destination[edge])
        total = 0.0
        for bucket, batch in case.parts():
            lost = (bucket.clean - bucket.replacement)[source]
            rows = torch.arange(len(batch))
            for step in range(1, steps + 1):
                start = bucket.replacement[0]
                embedding = start + step / steps * (bucket.clean[0] - start)
                ends = []
                for sign in (1, -1):
                    logits = _moved(case.model, graph, embedding, destination, sign * eps * lost)
                    if by_kl:
                        ends.append(-kl_divergence(bucket.logits, logits).sum())
                    else:
                        ends.append((logits[rows, batch.right] - logits[rows, batch.wrong]).sum())
                total += float(ends[0] - ends[1]) / (2 * eps * steps)
        scores.append(total / case.prompts.n)
    return torch.tensor(scores, dtype=torch.float64)


@pytest.mark.parametrize(
    ("shape", "steps", "score_by", "ablation"),
    [
        ("gpt-2", 1, "logit-difference", "resample"),
        ("gpt-2", 3, "kl", "resample"),
        ("rotary, parallel", 2, "logit-difference", "mean"),
    ],
)
def test_scores_are_finite_differences(shape, steps, score_by, ablation):
    settings = {**SMALL, **({"rotary_dim": 8} if "rotary" in shape else {})}
    case = tiny_case(shape, ablation=ablation, **settings)
    found = attribution(case, score_by, steps)
    torch.testing.assert_close(found, _nudged(case, steps, score_by == "kl"), rtol=1e-5, atol=1e-7)


def test_where_the_model_is_linear_scores_are_exact_patching():
    case = tiny_case("no norms")  # from the final residual to the logits
    graph, scores = case.graph, attribution(case, steps=1)
    for source in range(graph.n_sources):
        edge = graph.edge(source, graph.n_destinations - 1)
        kept = torch.ones(graph.n_edges, dtype=torch.bool)
        kept[edge] = False
        fall = (case.full.difference - case.outcome(kept).difference).mean()
        assert float(scores[edge]) == pytest.approx(float(fall), abs=1e-9)


def test_scores_of_the_embedding_add_up_to_what_corruption_costs():
    case = tiny_case()
    scores = attribution(case, steps=200)
    total = scores[case.graph.edge_source == 0].sum()
    cost = (case.full.difference - case.empty.difference).mean()
    assert float(total) == pytest.approx(float(cost), rel=0.02)


def test_the_scores_of_prompts_are_those_of_each_alone():
    case = tiny_case(n=3)
    each = attribution_of_prompts(case, "kl", 3)
    torch.testing.assert_close(each.mean(0), attribution(case, "kl", 3))
    assert len(each) == case.prompts.n == 6
    alone = Case.of(case.model, case.prompts.subset([4]))
    torch.testing.assert_close(each[4], attribution(alone, "kl", 3))


def test_eap_by_kl_is_refused_since_it_is_zero():
    case = tiny_case()
    with pytest.raises(UserError, match="zero for every edge"):
        attribution(case, "kl", steps=1)
    with pytest.raises(UserError, match="at least one step"):
        check_attribution("kl", 0)
    # One of two steps is at the clean point; the other one says something.
    assert attribution(case, "kl", steps=2).abs().max() > 1e-3


def test_the_points_are_the_papers_or_the_released_codes():
    assert interpolation(5) == [0.2, 0.4, 0.6, 0.8, 1.0]
    # hannamw/EAP-IG, get_scores_eap_ig: for step in range(0, steps), share step / steps
    assert interpolation(5, "released") == [0.0, 0.2, 0.4, 0.6, 0.8]
    case = tiny_case(**SMALL)
    five = {points: attribution(case, steps=5, points=points) for points in ("paper", "released")}
    once = attribution(case, steps=1)  # at the clean prompt, the one point they do not share
    start = five["released"] * 5 - (five["paper"] * 5 - once)  # at the corrupted prompt
    torch.testing.assert_close(
        attribution(case, steps=2, points="released"),
        attribution(case, steps=2) + (start - once) / 2,
    )
    assert (start - once).abs().max() > 1e-3
    with pytest.raises(UserError, match="corrupted prompt alone"):
        attribution(case, steps=1, points="released")


def test_pieces_of_prompts_change_nothing(monkeypatch):
    case = tiny_case()
    whole = attribution(case)
    monkeypatch.setattr(patched, "CHUNK_SHARE", 0)
    torch.testing.assert_close(attribution(case), whole)


def test_top_takes_the_largest_of_either_sign_and_greedy_what_leads_on():
    graph = Graph(1, 1)
    scores = torch.zeros(graph.n_edges)
    named = {
        ("embed", "a0.h0.q"): 9.0,
        ("a0.h0", "resid_final"): -2.0,
        ("embed", "resid_final"): 1.0,
        ("m0", "resid_final"): 0.5,
        ("a0.h0", "m0"): -8.0,
    }
    for (source, destination), score in named.items():
        scores[graph.edge_named(source, destination)] = score

    def names(selection):
        return [graph.edge_name(e) for e in ranking(graph, scores, selection)[:5].tolist()]

    by_size = sorted(named, key=lambda edge: -abs(named[edge]))
    assert names("top") == by_size
    assert names("greedy") == [
        ("a0.h0", "resid_final"),
        ("embed", "a0.h0.q"),
        ("embed", "resid_final"),
        ("m0", "resid_final"),
        ("a0.h0", "m0"),
    ]


def test_a_signed_ranking_puts_what_harms_last():
    graph = Graph(1, 1)
    scores = torch.randn(graph.n_edges, generator=torch.Generator().manual_seed(1))
    order = ranking(graph, scores, "top", signed=True)
    assert torch.equal(scores[order], scores.sort(descending=True).values)
    assert not torch.equal(order, ranking(graph, scores, "top"))
    greedy = ranking(graph, scores, "greedy", signed=True)
    into_output = graph.edge_destination == graph.n_destinations - 1
    best = int(torch.where(into_output, scores, -torch.inf).argmax())
    assert int(greedy[0]) == best


@pytest.mark.parametrize(
    "graph",
    [Graph(3, 2), Graph(2, 2, parallel=True), Graph(2, 3, mlps=False), Graph(2, 4, groups=2)],
)
def test_rankings_name_every_edge_once_and_greedy_always_reaches_the_output(graph):
    scores = torch.randn(graph.n_edges, generator=torch.Generator().manual_seed(0))
    for selection in ("top", "greedy"):
        order = ranking(graph, scores, selection)
        assert sorted(order.tolist()) == list(range(graph.n_edges))
    leading = set()
    for edge in order.tolist():
        fed = graph.feeds(int(graph.edge_destination[edge]))
        assert not fed or not leading.isdisjoint(fed)
        leading.add(int(graph.edge_source[edge]))
    assert first(order, 4).nonzero().flatten().tolist() == sorted(order[:4].tolist())
