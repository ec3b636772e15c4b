from __future__ import annotations

import dataclasses
import math

import pytest

from evaluations.core.record import Metric
from evaluations.suite.sae.front import OUTSIDE, common_score, fronts, l0_at


@pytest.fixture
def make_point(make_record):
    def make(sparsity, l0, score, name="tiny", spread=0.0, **config):
        noise = [spread * (place - 50) / 50 for place in range(101)]
        return make_record(
            name,
            ("ab" if name == "tiny" else "cd") * 32,
            evaluation="sae",
            config={"sparsity": sparsity, "seed": 1, "given": None, **config},
            metrics=[Metric("l0", "L0", l0), Metric("ce_score", "CE", score)],
            extra={
                "sae": {"hook": "blocks.2.hook_mlp_out", "label": f"L1 {sparsity:g}"},
                "replicates": {"l0": [l0 + one for one in noise], "ce_score": [score] * 101},
            },
        )

    return make


def test_l0_at_a_score_is_linear_between_neighbours(make_point):
    points = [make_point(5, 8, 0.6), make_point(1, 40, 0.9), make_point(2, 20, 0.8)]
    (front,) = fronts(points)
    assert [record.config["sparsity"] for record in front.records] == [1, 2, 5]
    assert l0_at(front, 0.85).value == pytest.approx(30)
    assert l0_at(front, 0.65).value == pytest.approx(11)
    assert l0_at(front, 0.9).value == pytest.approx(40)
    found = l0_at(front, 0.95)
    assert found.value is None
    assert found.reasons == {OUTSIDE: 1}


def test_its_interval_is_that_of_the_resampled_fronts(make_point):
    (front,) = fronts([make_point(1, 40, 0.9, spread=4.0), make_point(2, 20, 0.8, spread=4.0)])
    found = l0_at(front, 0.85)
    assert found.interval.low == pytest.approx(30 - 0.95 * 4)
    assert found.interval.high == pytest.approx(30 + 0.95 * 4)
    at_the_edge = [make_point(1, 40, 0.9), make_point(2, 20, 0.8)]
    at_the_edge[0].extra["replicates"]["ce_score"] = [0.8 + place / 1000 for place in range(101)]
    (front,) = fronts(at_the_edge)
    assert l0_at(front, 0.89).interval is None  # most resamples do not reach it


def test_fronts_are_of_one_model_and_one_training(make_point):
    points = [
        make_point(1, 40, 0.9),
        make_point(2, 20, 0.8),
        make_point(1, 30, 0.7, "other"),
        make_point(3, 9, 0.5, "other"),
        make_point(1, 5, 0.5, lr=0.1),
    ]
    found = fronts(points)
    assert [(front.model, len(front.records)) for front in found] == [("tiny", 2), ("other", 2)]


def test_what_did_not_converge_is_no_point_of_a_front(make_point):
    points = [make_point(1, 40, 0.9), make_point(2, 20, 0.8), make_point(9, 1, 0.2)]
    mark = Metric("l0", "L0", 1, reasons={"not converged": 1})
    points[2] = dataclasses.replace(points[2], metrics=[mark, *points[2].metrics[1:]])
    (front,) = fronts(points)
    assert [record.config["sparsity"] for record in front.records] == [1, 2]
    assert fronts(points[1:]) == []


def test_the_common_score_is_in_the_middle_of_what_all_cover(make_point):
    points = [
        make_point(1, 40, 0.9),
        make_point(2, 20, 0.6),
        make_point(1, 30, 0.8, "other"),
        make_point(3, 9, 0.5, "other"),
    ]
    assert common_score(fronts(points)) == pytest.approx(0.7)
    apart = [*points[:2], make_point(1, 30, 0.5, "other"), make_point(3, 9, 0.4, "other")]
    assert common_score(fronts(apart)) is None
    assert common_score([]) is None
    without = [*points[:3], make_point(3, 9, math.nan, "other")]
    assert common_score(fronts(without)) is None


def test_records_of_an_unknown_text_are_a_front_of_their_own(make_point):
    known = [make_point(1, 40, 0.9), make_point(2, 20, 0.8)]
    without = {name: value for name, value in known[0].data.items() if name != "content"}
    unknown = [dataclasses.replace(record, data=without) for record in known]
    assert len(fronts([*known, *unknown])) == 2
