"""The verdict: known effects are found, none where there is none; Holm and the t test by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from evaluations.cli import main
from evaluations.comparison.outcomes import (
    EDGES,
    OUTCOMES,
    l0_at_score,
    outcome_values,
    spoof_share_of_the_rest,
)
from evaluations.comparison.verdict import holm, overall, plan, sensitivity, verdicts
from evaluations.comparison.verdict_page import (
    draw_verdict,
    open_comparisons,
    values_table,
    verdict_tables,
)
from evaluations.core.frame import results_frame
from evaluations.core.record import UPPER_BOUND
from sat_interp._util.errors import UserError
from sat_interp.training.study import Study
from tests.evaluations.comparison.study_records import acdc, made

SEEDS = (0, 1, 2, 3, 4)
STUDY = Study(
    "s",
    variants={"none": {}, "local": {}, "global": {}},
    seeds=SEEDS,
    controls=("random",),
    controls_for=("local-k4",),
    match_perplexity=("local-k4",),
)
GROUPS = ["baseline", "local-k4", "global-k4", "local-k4-random", "matched-local-k4"]
NAMES = ["circuit_edges", "sae_l0", "simulation", "spoof_share"]
SAE = {"architecture": "standard", "hook": None, "given": None}


def records(effects, noise=0.01, seeds=SEEDS, groups=GROUPS):
    """All primary outcomes of every run; ``effects`` by group: simulation, R, ratio of L0 and E."""
    draws = np.random.default_rng(0)
    found = []
    for seed in seeds:
        shared = draws.normal(0, 0.1)  # what the models of a seed have in common
        for group in groups:
            simulation, share, ratio = effects.get(group, (0.0, 0.0, 1.0))
            name, own = f"{group}-s{seed}", draws.normal(0, noise, 4)
            found.append(circuits(name, seed, 40 * ratio * math.exp(shared + own[3])))
            found.append(
                made("neurons", name, seed, {"simulation": 0.5 + shared + simulation + own[0]})
            )
            found.append(
                made(
                    "ablate",
                    name,
                    seed,
                    {"spoof_share": 0.6 + shared + share + own[1]},
                    config={"text": True},
                )
            )
            for coefficient, score in ((2.0, 0.9), (5.0, 0.8), (10.0, 0.6)):
                l0 = 10 * score * ratio * math.exp(shared + own[2])
                found.append(
                    made(
                        "sae",
                        name,
                        seed,
                        {"l0": l0, "ce_score": score},
                        config={**SAE, "sparsity": coefficient},
                    )
                )
    return found


def circuits(name, seed, edges, **changes):
    """A frontier's record: E(.2) of all methods together, of one, and of the null task."""
    metrics = {"e20_oa": edges, "e20_oa_acdc": edges + 9, "e20_oa_null": 2 * edges, "e20_cf": 7.0}
    own = {"config": {"ablations": ["cf", "oa"]}, "data": {"spec": "ioi"}, **changes}
    return made("circuits", name, seed, metrics, **own)


def judged(found, study=STUDY):
    return verdicts(outcome_values(found, study), study)


def of(table, outcome, reference="baseline", group="local-k4"):
    chosen = table[
        (table["outcome"] == outcome)
        & (table["reference"] == reference)
        & (table["group"] == group)
    ]
    return chosen.iloc[0]


def test_holm_by_hand():
    # four tests: .01 * 4, .02 * 3, .03 * 2 (below .06: .06), .5
    assert holm([0.02, 0.5, 0.01, 0.03], 4) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    # a test that cannot be done counts all the same
    corrected = holm([0.02, math.nan, 0.01], 3)
    assert corrected[0] == pytest.approx(0.04)
    assert corrected[2] == pytest.approx(0.03)
    assert math.isnan(corrected[1])
    assert holm([0.4, 0.9], 12) == [1.0, 1.0]


def test_the_planned_comparisons():
    assert plan(STUDY) == [
        ("primary", "local-k4", "baseline"),
        ("primary", "local-k4", "local-k4-random"),
        ("primary", "local-k4", "matched-local-k4"),
        ("secondary", "global-k4", "baseline"),
        ("secondary", "local-k4-random", "baseline"),
        ("secondary", "matched-local-k4", "baseline"),
    ]
    controls = Study(
        "s",
        variants={"none": {}, "local": {}},
        k=(4,),
        controls=("random", "frozen"),
        controls_for=("local-k4",),
    )
    assert plan(controls)[-1] == ("further", "local-k4", "local-k4-frozen")
    with pytest.raises(UserError, match="needs a baseline"):
        plan(Study("s", variants={"local": {}}))


def test_a_group_of_another_kind_is_no_reference_whatever_its_name():
    named = Study(
        "s",
        variants={"none": {}, "local": {}},
        k=(4,),
        extra={"matched-x": {}, "local-k4-random": {}},
    )
    assert plan(named) == [
        ("primary", "local-k4", "baseline"),
        ("secondary", "matched-x", "baseline"),
        ("secondary", "local-k4-random", "baseline"),
        ("further", "local-k4", "local-k4-random"),
    ]


def test_known_effects_are_found_and_no_others():
    found = judged(records({"local-k4": (0.08, -0.2, 0.5)}))
    assert overall(found) == dict.fromkeys(NAMES, "yes")
    row = of(found, "sae_l0")
    assert row["estimate"] == pytest.approx(0.5, rel=0.05)
    assert row["low"] < row["estimate"] < row["high"]
    assert row["n"] == 5
    rest = found[found["family"] == "secondary"]
    assert set(rest["verdict"]) == {"no gain of that size"}


def test_what_random_masks_give_too_is_no_gain_of_what_was_learned():
    effect = (0.08, -0.2, 0.5)
    found = judged(records({"local-k4": effect, "local-k4-random": effect}))
    assert of(found, "simulation")["verdict"] == "better"
    assert set(overall(found).values()) == {"no"}


def test_yes_takes_all_references_of_the_plan():
    """Better than the baseline alone, in a study without controls, is no answer."""
    alone = Study("s", variants={"none": {}, "local": {}}, k=(4,), seeds=SEEDS)
    found = judged(records({"local-k4": (0.08, -0.2, 0.5)}, groups=["baseline", "local-k4"]), alone)
    primary = found[found["family"] == "primary"]
    assert set(primary["verdict"]) == {"better"}
    assert set(overall(found).values()) == {"undecided"}


def test_models_of_another_study_with_the_same_names_are_not_taken(tmp_path, capsys):
    """Their recipe is another one: a verdict of them would be of no study."""
    other = [
        dataclasses.replace(one, model={**one.model, "training": {"steps": 7, "n_ctx": 9}})
        for one in records({"local-k4": (0.08, -0.2, 0.5)})
    ]
    with pytest.raises(UserError, match=r"study s: .* was trained with another n_ctx"):
        outcome_values(other, STUDY)
    own = [one for one in records({}) if one.model["name"].startswith("local-k4-s")]
    mixed = [*other, *own]
    values = outcome_values(mixed, STUDY)
    assert set(values.loc[values["reason"] != "not measured", "group"]) == {"local-k4"}
    with pytest.raises(UserError, match="run sat-eval all with the study first"):
        outcome_values([], STUDY)


def test_equal_differences_are_certain():
    values = outcome_values(records({}), STUDY)
    rows = values["outcome"] == "simulation"
    values.loc[rows, "value"] = [
        0.5 + 0.1 * (group == "local-k4") for group in values["group"][rows]
    ]
    row = of(verdicts(values, STUDY), "simulation")
    assert (row["p"], row["verdict"]) == (0.0, "better")
    shown = verdict_tables(verdicts(values, STUDY))[0].rows
    assert "<0.001" in {cell.text for line in shown for cell in line}
    values.loc[rows, "value"] = 0.5
    row = of(verdicts(values, STUDY), "simulation")
    assert math.isnan(row["p"])
    assert row["verdict"] == "no gain of that size"


def test_too_few_pairs_are_told_from_wide_intervals():
    values = outcome_values(records({}), STUDY)
    rows = (values["outcome"] == "circuit_edges") & (values["seed"] > 1)
    rows &= values["group"] == "local-k4"
    values.loc[rows, ["value", "reason"]] = (math.nan, "accuracy below 0.9")
    table = verdicts(values, STUDY)
    row = of(table, "circuit_edges")
    assert (row["n"], row["verdict"]) == (2, "too few pairs")
    assert overall(table)["circuit_edges"] == "undecided"


def test_the_rest_of_r_is_without_what_zeros_cost_most():
    """By hand: 1 - (.1 + .1) / (.2 + .3), the MLP of 2.0 and the embedding left out."""
    costs = {"a0.h0": (0.2, 0.1), "m0": (2.0, 0.5), "a0.h1": (0.3, 0.1), "embed": (9.0, 1.0)}
    kinds = {"a": "head", "m": "mlp", "e": "embedding"}
    components = [
        {
            "name": name,
            "kind": kinds[name[0]],
            "held": {"zero": {"delta": zero}, "oa": {"delta": best}},
        }
        for name, (zero, best) in costs.items()
    ]
    record = made("ablate", "baseline-s0", 0, {"spoof_share": 0.5})
    record.extra["components"] = components
    assert spoof_share_of_the_rest([record]) == pytest.approx(0.6)
    record.extra["components"] = components[:1]
    assert spoof_share_of_the_rest([record]) == "not measured"
    components[0]["held"]["zero"]["delta"] = 0.0
    record.extra["components"] = components[:2]
    assert spoof_share_of_the_rest([record]) == "zeros cost nothing there"


def test_a_value_that_is_an_upper_bound_is_noted():
    found = [circuits("baseline-s0", 0, 30.0), circuits("local-k4-s0", 0, 11.0)]
    metrics = [
        dataclasses.replace(one, description=f"fewest edges; {UPPER_BOUND}; 3 % never")
        for one in found[1].metrics
    ]
    found[1] = dataclasses.replace(found[1], metrics=metrics)
    values = outcome_values(found, STUDY, OUTCOMES[:1]).set_index("model")
    assert values.loc["baseline-s0", "note"] == ""
    assert values.loc["local-k4-s0", "note"] == "an upper bound"
    (shown,) = (one for one in values_table(values.reset_index()).notes if "bound" in one)
    assert shown.endswith("an upper bound of 1 models: local-k4-s0")


def test_answers_are_given_again_without_each_seed():
    """The effect is that of seed 0 alone: without it nothing is better."""
    values = outcome_values(records({"local-k4": (0.08, -0.2, 0.5)}), STUDY)
    found = sensitivity(values, STUDY).set_index("left_out")
    assert list(found.index) == [
        "nothing",
        *(f"seed {n}" for n in range(5)),
        "models without a circuit",
    ]
    assert set(found["simulation"]) == {"yes"}
    failing = values["model"].isin(("local-k4-s0", "local-k4-s1", "local-k4-s2"))
    rows = failing & (values["outcome"] == "circuit_edges")
    values.loc[rows, ["value", "reason"]] = (math.nan, "accuracy below 0.9")
    found = sensitivity(values, STUDY).set_index("left_out")
    assert found.loc["nothing", "simulation"] == "yes"
    assert found.loc["models without a circuit", "simulation"] == "undecided"


def test_means_of_ratios_are_geometric():
    values = outcome_values(records({}), STUDY)
    rows = (values["outcome"] == "circuit_edges") & (values["group"] == "local-k4")
    values.loc[rows, "value"] = [10.0, 20.0, 40.0, 20.0, 20.0]
    row = next(one for one in values_table(values).rows if one[0].text == "local-k4")
    assert row[1].text == "20.00"
    assert row[1].exact["circuit_edges_low"] > 0


def test_the_other_direction_is_worse():
    found = judged(records({"local-k4": (-0.08, 0.2, 2.0)}))
    assert {of(found, outcome.name)["verdict"] for outcome in OUTCOMES} == {"worse"}


def test_e_is_that_of_all_methods_under_optimal_constants_on_ioi():
    some = [circuits("baseline-s0", 0, 30.0), circuits("local-k4-s0", 0, 11.0)]
    some += [circuits("baseline-s1", 1, 5.0, data={"spec": "quotes"})]
    some += [circuits("local-k4-s1", 1, 5.0, config={"ablations": ["cf"]})]
    failed = made(
        "circuits", "global-k4-s0", 0, {"e20_oa": None}, config={"ablations": ["cf", "oa"]}
    )
    failed.data["spec"] = "ioi"
    values = outcome_values([*some, failed], STUDY, OUTCOMES[:1]).set_index("model")
    assert values.loc["baseline-s0", "value"] == 30.0
    assert values.loc["local-k4-s0", "value"] == 11.0
    assert values.loc["baseline-s1", "reason"] == "not measured"
    assert values.loc["local-k4-s1", "reason"] == "not measured"
    assert values.loc["global-k4-s0", "reason"] == "no prompt"
    ratio = judged(records({"local-k4": (0, 0, 0.4)}))
    assert of(ratio, "circuit_edges")["estimate"] == pytest.approx(0.4, rel=0.05)


def test_the_whole_table_is_a_few_lines_of_pandas():
    """Every primary comparison again from the values, with scipy and Holm written out."""
    found = records({"local-k4": (0.03, -0.05, 0.8)}, noise=0.03)
    values = outcome_values(found, STUDY, OUTCOMES)
    wide = values.pivot_table(index="seed", columns=["outcome", "group"], values="value")
    for outcome in ("circuit_edges", "sae_l0"):
        wide[outcome] = np.log(wide[outcome])
    p = {
        (outcome, reference): stats.ttest_rel(wide[outcome]["local-k4"], wide[outcome][reference])
        for outcome in NAMES
        for reference in ("baseline", "local-k4-random", "matched-local-k4")
    }
    p = pd.Series({key: test.pvalue for key, test in p.items()}).sort_values()
    corrected = (p * np.arange(len(p), 0, -1)).clip(upper=1).cummax()
    table = judged(found).query("family == 'primary'").set_index(["outcome", "reference"])
    assert len(p) == len(table) == 12
    for key in p.index:
        assert table.loc[key, "p"] == pytest.approx(p[key])
        assert table.loc[key, "p_holm"] == pytest.approx(corrected[key])


def test_wide_intervals_decide_nothing():
    found = judged(records({}, noise=5.0))
    assert set(overall(found).values()) == {"undecided"}


def test_two_seeds_give_no_test_and_missing_ones_are_counted():
    some = records({"local-k4": (0.08, -0.2, 0.5)})
    kept = [one for one in some if one.model["name"] not in ("baseline-s0", "local-k4-s1")]
    row = of(judged(kept), "simulation")
    assert (row["n"], row["left_out"]) == (3, {"not measured": 2})
    assert row["verdict"] == "open"  # nothing is shown before all seeds are measured
    assert math.isnan(row["estimate"])
    assert math.isnan(row["p"])
    kept = [one for one in kept if one.model["name"] != "baseline-s2"]
    row = of(judged(kept), "simulation")
    assert (row["n"], row["verdict"], row["planned"]) == (2, "open", 5)
    assert math.isnan(row["p"])
    table = judged(kept)
    assert overall(table)["simulation"] == "open"
    assert overall(table)["sae_l0"] == "open"
    lines = open_comparisons(table)
    assert lines[0].startswith("local-k4 against baseline: ")
    assert "Simulation score (2 of 5 seeds)" in lines[0]
    primary, secondary, further = verdict_tables(table)
    row = next(one for one in primary.rows if one[2].text == "baseline")
    assert [cell.text for cell in row[3:6]] == ["2 of 5", "–", "–"]
    assert {one[2].text for one in secondary.rows} == {"baseline"}
    assert sum(len(one.rows) for one in (primary, secondary, further)) == len(table)
    assert {one[-1].text for one in further.rows} == {"open"}


def test_the_figure_has_no_line_for_a_secondary_comparison_without_an_estimate():
    table = judged(records({}, groups=["baseline", "local-k4", "local-k4-random"]))
    secondary = table[table["family"] == "secondary"]
    assert {"global-k4", "local-k4-random"} <= set(secondary["group"])
    labels = [label.get_text() for label in draw_verdict(table).axes[0].get_yticklabels()]
    primary = table[(table["family"] == "primary") & (table["outcome"] == "simulation")]
    assert labels[: len(primary)] == [f"local-k4 v {one}" for one in primary["reference"]]
    assert labels[len(primary) :] == ["local-k4-random v baseline"]


def test_it_is_a_few_lines_of_pandas(tmp_path):
    """The same from ``results_frame``, with scipy alone."""
    found = records({"local-k4": (0.03, -0.05, 0.8)}, noise=0.03)
    frame = results_frame(found).query("metric == 'simulation'")
    frame["group"] = frame["model"].str.replace(r"-s\d$", "", regex=True)
    wide = frame.pivot_table(index="seed", columns="group", values="value")
    pairs = wide["local-k4"] - wide["baseline"]
    test = stats.ttest_rel(wide["local-k4"], wide["baseline"])
    row = of(judged(found), "simulation")
    assert row["p"] == pytest.approx(test.pvalue)
    assert row["estimate"] == pytest.approx(pairs.mean())
    interval = test.confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))


def test_l0_is_interpolated_between_two_autoencoders_by_hand():
    pair = [
        made("sae", "m", 0, {"l0": l0, "ce_score": score}) for l0, score in ((8.0, 0.8), (4.0, 0.6))
    ]
    assert l0_at_score(pair, 0.75) == pytest.approx(7.0)
    assert l0_at_score(pair, 0.9) == "CE score 0.9 outside the front"
    assert l0_at_score(pair[:1], 0.8) == "fewer than two autoencoders"
    unscored = made("sae", "m", 0, {"l0": 3.0, "ce_score": None})
    assert l0_at_score([*pair, unscored], 0.75) == pytest.approx(7.0)


def test_a_model_that_fails_the_task_has_no_circuit_and_settings_are_not_mixed():
    some = [acdc("baseline-s0", 0, 30.0), acdc("local-k4-s0", 0, 5.0, accuracy=0.6)]
    other = {"config": {"method": "acdc", "ablation": "resample", "prompts": 7}}
    some += [acdc("global-k4-s0", 0, 40.0, **other)]
    values = outcome_values(some, STUDY, [EDGES]).set_index("model")
    assert values.loc["baseline-s0", "value"] == 30.0
    assert values.loc["local-k4-s0", "reason"] == "accuracy on IOI below 0.9"
    assert values.loc["global-k4-s0", "reason"] == "not measured"
    assert isinstance(values, pd.DataFrame)
    assert len(values) == len(STUDY.runs())


def test_of_a_model_that_was_trained_again_only_the_newest_weights_count():
    some = []
    for weights, score in (("old", 0.6), ("new", 0.7), ("new", 0.8)):
        values = {"ce_score": score, "l0": 100 * score}
        one = made("sae", "baseline-s0", 0, values, config={**SAE, "sparsity": score})
        some.append(dataclasses.replace(one, model={**one.model, "weights_hash": weights}))
    (outcome,) = (one for one in OUTCOMES if one.name == "sae_l0")
    value = outcome_values(some, STUDY, [outcome]).set_index("model").loc["baseline-s0", "value"]
    assert value == pytest.approx(75.0)
    alone = outcome_values(some[:2], STUDY, [outcome]).set_index("model")
    assert alone.loc["baseline-s0", "reason"] == "fewer than two autoencoders"


def test_the_command_writes_tables_a_figure_and_a_page(tmp_path, capsys):
    for place, record in enumerate(records({"local-k4": (0.08, -0.2, 0.5)})):
        record.write(tmp_path / "out" / f"{record.evaluation}-{place}.json")
    file = tmp_path / "s.yaml"
    file.write_text(
        "name: s\nvariants: [none, local, global]\nseeds: [0, 1, 2, 3, 4]\n"
        "controls: random\ncontrols_for: local-k4\nmatch_perplexity: local-k4\n"
    )
    arguments = ["verdict", "--study", str(file), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    page = (tmp_path / "out" / "verdict" / "README.md").read_text()
    assert "Simulation score: yes" in page
    assert "Comparisons that stand open" not in page
    assert "## What it does not show" in page
    for name in ("verdict.png", "verdict.csv", "secondary.csv", "values.csv", "verdict.tex"):
        assert (tmp_path / "out" / "verdict" / name).is_file()
    models = pd.read_csv(tmp_path / "out" / "verdict" / "models.csv")
    scores = models[models["outcome"] == "simulation"].pivot(index="seed", columns="group")["value"]
    difference = scores["local-k4"] - scores["baseline"]
    written = pd.read_csv(tmp_path / "out" / "verdict" / "verdict.csv")
    is_row = (written["outcome"] == "Simulation score") & (written["reference"] == "baseline")
    (row,) = written[is_row].to_dict("records")
    assert row["estimate"] == pytest.approx(difference.mean())
    assert row["p"] == pytest.approx(stats.ttest_1samp(difference, 0.0).pvalue)
    capsys.readouterr()
    assert main([*arguments, "demo:baseline"]) == 2
    assert "verdict takes a study, no MODEL" in capsys.readouterr().err
