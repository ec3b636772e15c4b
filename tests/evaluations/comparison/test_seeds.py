from __future__ import annotations

import math

import pytest

from evaluations.comparison.measures import Comparison, Measure
from evaluations.comparison.seeds import groups, references, seed_mean
from evaluations.comparison.selection import models
from sat_interp.training.study import Study
from tests.evaluations.comparison.study_records import gates, lm

L4 = {"ablation": gates("local", 4)}


def named(records, study=None):
    return {group.name: group for group in groups(models(records), study)}


def test_the_interval_is_students_by_hand():
    # mean 5, s = 1, n = 4; t(0.975, 3) = 3.182446 (any table)
    found = seed_mean([4.0, 4.5, 5.0, 6.5])
    s = math.sqrt((1 + 0.25 + 0 + 2.25) / 3)
    assert found.mean == 5.0
    assert found.high - found.mean == pytest.approx(3.182446 * s / 2, rel=1e-6)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    assert found.n == 4


def test_the_interval_is_scipys():
    from scipy import stats

    values = [7.1, 7.9, 6.5]
    low, high = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
    found = seed_mean(values)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize("values", [[3.0], [6.0, 7.0]])
def test_one_or_two_seeds_have_no_interval_and_none_no_mean(values):
    found = seed_mean(values)
    assert (found.low, found.high, found.n) == (None, None, len(values))
    assert seed_mean([]) is None


def test_differences_are_paired_by_seed():
    records = [lm(f"baseline-s{seed}", seed, 10.0 * seed) for seed in (1, 2, 3, 4)]
    records += [lm(f"local-k4-s{seed}", seed, 10.0 * seed + 1, **L4) for seed in (2, 3, 4, 5)]
    found = named(records)
    # seeds 2, 3 and 4 have both: the seeds differ by 10, the pairs by exactly 1
    compared = Comparison(list(found.values()))
    measure = Measure("lm", "perplexity", "Perplexity", 3, "lower")
    mean = compared.difference(measure, found["local-k4"], found["baseline"])
    assert (mean.mean, mean.low, mean.high, mean.n) == (1.0, 1.0, 1.0, 3)
    other = Measure("lm", "absent", "Absent", 3, None)
    assert compared.difference(other, found["local-k4"], found["baseline"]) is None


def test_models_that_differ_only_in_their_seed_are_one_group():
    records = [lm(f"baseline-s{seed}", seed, 1.0) for seed in (0, 1)]
    records += [lm("local-k4-s0", 0, 1.0, **L4)]
    records += [lm("local-k1-s0", 0, 1.0, ablation=gates("local", 1))]
    records += [lm(f"r{seed}", seed, 1.0, ablation=gates("local", 4, "random")) for seed in (0, 1)]
    records += [lm("long", 0, 1.0, training={"steps": 900})]
    records += [
        lm(
            f"m-s{seed}",
            seed,
            1.0,
            training={"match_perplexity": 3.0 + seed, "steps": seed, "planned_steps": 500},
        )
        for seed in (0, 1)
    ]
    records += [lm("gpt2", None, 1.0), lm("pythia", None, 1.0)]
    found = groups(models(records))
    told = [(group.name, group.kind, len(group.members)) for group in found]
    assert told == [
        ("baseline", "baseline", 2),
        ("gpt2", "baseline", 1),
        ("long", "baseline", 1),
        ("pythia", "baseline", 1),
        ("local-k1-s0", "learned", 1),
        ("local-k4-s0", "learned", 1),
        ("local-k4-random", "control", 2),
        ("m", "matched", 2),
    ]
    by_name = {group.name: group for group in found}
    assert [other.name for other in references(by_name["local-k4-s0"], found)] == [
        "baseline",
        "local-k4-random",
    ]
    # which of two groups a baseline matches, only a study would tell
    one = [group for group in found if group.name != "local-k1-s0"]
    assert "m" in [other.name for other in references(by_name["local-k4-s0"], one)]
    assert [other.name for other in references(by_name["m"], found)] == ["baseline"]
    assert references(by_name["long"], found) == []


def test_models_with_sparse_weights_are_no_baselines():
    sparse = {"training": {"weight_density": 0.25}}
    records = [lm(f"baseline-s{seed}", seed, 1.0) for seed in (0, 1)]
    records += [lm(f"sparse-s{seed}", seed, 1.0, **sparse) for seed in (0, 1)]
    records += [lm("local-k4-s0", 0, 1.0, **L4)]
    found = groups(models(records))
    told = [(group.name, group.kind, len(group.members)) for group in found]
    assert told == [
        ("baseline", "baseline", 2),
        ("local-k4-s0", "learned", 1),
        ("sparse", "extra", 2),
    ]
    assert [other.name for other in references(found[2], found)] == ["baseline"]
    assert [other.name for other in references(found[1], found)] == ["baseline"]


def test_a_studys_groups_of_another_kind_are_compared_with_the_baseline():
    study = Study(
        "s",
        variants={"none": {}, "local": {}},
        extra={"constant": {"variant": "local", "ablated_weight": 0.5}},
    )
    records = [lm("baseline-s0", 0, 1.0), lm("constant-s0", 0, 1.0, **L4)]
    found = named(records, study)
    assert list(found) == ["baseline", "local-k4", "constant"]
    assert (found["constant"].kind, found["constant"].k) == ("extra", 4)
    others = references(found["constant"], list(found.values()))
    assert [one.name for one in others] == ["baseline"]
    assert "constant" not in [o.name for o in references(found["local-k4"], list(found.values()))]


def test_two_models_of_one_seed_are_no_two_seeds():
    found = groups(models([lm("a", 0, 1.0), lm("b", 0, 2.0)]))
    assert [(group.name, len(group.members)) for group in found] == [("a", 1), ("b", 1)]


def test_a_study_says_who_belongs_where_and_who_does_not():
    study = Study(
        "s",
        variants={"none": {}, "local": {}},
        seeds=(0, 1),
        controls=("random",),
        match_perplexity=("local-k4",),
        out="runs/s",
    )
    records = [lm("baseline-s0", 0, 1.0), lm("local-k4-s1", 1, 1.0), lm("stranger", 0, 1.0)]
    found = named(records, study)
    assert list(found) == ["baseline", "local-k4", "local-k4-random", "matched-local-k4"]
    assert list(found["local-k4"].members) == [1]
    assert found["baseline"].models[0].spec == "runs/s/baseline-s0"
    assert found["matched-local-k4"].like == "local-k4"
    assert [one.name for one in references(found["local-k4"], list(found.values()))] == [
        "baseline",
        "local-k4-random",
        "matched-local-k4",
    ]


def matched(name, seed, perplexity, **told):
    """A baseline as ``sat-train --match-perplexity`` leaves it, allowed twice the usual steps."""
    training = {"match_perplexity": perplexity, "steps": 300 + seed, "planned_steps": 1000, **told}
    return lm(name, seed, perplexity, training=training)


def two_targets():
    """Two seeds of a baseline and of two models with gates, and what perplexities those reach."""
    records = []
    for seed in (0, 1):
        records.append(lm(f"baseline-s{seed}", seed, 2.0))
        for k in (1, 4):
            training = {"clean_perplexity": 3.0 + k + 0.1 * seed}
            records.append(
                lm(f"local-k{k}-s{seed}", seed, 3.0, training=training, ablation=gates("local", k))
            )
    return records


@pytest.mark.parametrize("tells", ["by name", "by perplexity"])
def test_baselines_matched_to_different_models_are_kept_apart(tells):
    records = two_targets()
    for k in (1, 4):
        for seed in (0, 1):
            told = {"match_of": f"local-k{k}"} if tells == "by name" else {}
            # of the same stem where the run says whose perplexity it has
            name = f"m{'' if told else k}-{k}{seed}" if told else f"matched-local-k{k}-s{seed}"
            records.append(matched(name, seed, 3.0 + k + 0.1 * seed, **told))
    found = groups(models(records))
    like = {group.like: list(group.members) for group in found if group.kind == "matched"}
    assert like == {"local-k1": [0, 1], "local-k4": [0, 1]}
    by_name = {group.name: group for group in found}
    for k in (1, 4):
        others = references(by_name[f"local-k{k}"], found)
        assert [other.kind for other in others] == ["baseline", "matched"]
        assert others[1].like == f"local-k{k}"
        assert [one.name for one in references(others[1], found)] == ["baseline"]


def test_a_matched_baseline_of_nobody_here_has_the_length_of_half_its_longest():
    records = [*two_targets(), matched("m-s0", 0, 9.0)]
    found = groups(models(records))
    (one,) = [group for group in found if group.kind == "matched"]
    assert (one.like, [other.name for other in references(one, found)]) == (None, ["baseline"])
    # of two learned groups either may be meant: neither is compared with it
    learned = [group for group in found if group.kind == "learned"]
    assert not any(one in references(group, found) for group in learned)
