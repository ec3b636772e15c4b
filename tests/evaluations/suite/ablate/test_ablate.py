"""The evaluation as a whole on tiny models: both modes, splits, resuming, comparisons, report."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from transformer_lens.hook_points import HookPoint
from transformers import PreTrainedTokenizerFast

from evaluations.core.ablation import find_components
from evaluations.core.ablation_pass import POST, Z
from evaluations.core.ablation_run import CleanRun
from evaluations.core.record import Record, plain
from evaluations.core.spec import Measurement
from evaluations.core.text import Text, evaluation_text
from evaluations.suite.ablate import compare, measure, metrics, report
from evaluations.suite.ablate.config import METHODS, AblateConfig
from evaluations.suite.ablate.data import assert_apart, split_prompts, split_text
from evaluations.suite.ablate.evaluation import check, evaluate, prior_kl
from evaluations.suite.ablate.measure import Bench
from evaluations.suite.ablate.switched_off import (
    _ablated_losses,
    _pieces,
    measure_ablated_stream,
    measure_switched_off,
)
from evaluations.tasks.pairs import Pair, PairBatch, TaskPrompts
from sat_interp import SelfAblatingTransformer, SelfAblationConfig, gpt_neo_config
from sat_interp._util.errors import UserError
from tests.evaluations.conftest import ModelMaker

FAST = AblateConfig(
    components=("heads", "mlps", "embedding"),
    methods=("zero", "mean_all", "cf", "oa"),
    fit_prompts=20,
    fit_prompts_large=24,
    held_prompts=12,
    fit_windows=16,
    held_windows=12,
    window=8,
    starts=2,
    evaluations=40,
    resamples=50,
)


def task(n: int, seed: int = 0, names: int = 20) -> TaskPrompts:
    """Prompts of two lengths about pairs of names, which are tokens 20 to 20 + names."""
    draws = np.random.default_rng(seed)
    batches = []
    for length, count in ((6, n // 2), (7, n - n // 2)):
        clean = draws.integers(50, 200, size=(count, length))
        pairs = np.array([draws.choice(names, 2, replace=False) + 20 for _ in range(count)])
        clean[:, 0], clean[:, 2:4] = 0, pairs
        corrupted = clean.copy()
        corrupted[:, 2:4] = draws.integers(200, 250, size=(count, 2))
        batches.append(
            PairBatch(*(torch.tensor(x) for x in (clean, corrupted, pairs[:, 0], pairs[:, 1])))
        )
    texts = tuple(Pair(str(i), str(i), "a", "b") for i in range(n))
    return TaskPrompts("toy", tuple(batches), texts, note={"story_start": "<|endoftext|>"})


def stories(tokenizer: PreTrainedTokenizerFast, path: Path, n: int = 40) -> Text:
    words = ["Tom", "Anna", "park", "ball", "cat", "happy", "sad", "day", "gave", "went", "The"]
    draws = np.random.default_rng(0)
    lines = [json.dumps({"text": " ".join(draws.choice(words, 14)) + "."}) for _ in range(n)]
    (path / "stories.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return evaluation_text(tokenizer, str(path / "stories.jsonl"))


def names(prompts: TaskPrompts) -> set[frozenset[int]]:
    return {
        frozenset(pair)
        for batch in prompts.batches
        for pair in zip(batch.right.tolist(), batch.wrong.tolist(), strict=True)
    }


# Splits ------------------------------------------------------------------------------------------


def test_no_pair_of_names_is_on_both_sides() -> None:
    split = split_prompts(task(80), 50, 20, seed=1)
    assert len(split.fit) <= 50
    assert 8 <= len(split.held) <= 20
    assert split.first == 1
    pairs = [
        {frozenset(row[2:4].tolist()) for batch in side.clean for row in batch}
        for side in (split.fit, split.held)
    ]
    assert not pairs[0] & pairs[1]
    assert split.fit.counterfactual is not None


def test_prompts_of_one_pair_cannot_be_split() -> None:
    with pytest.raises(UserError, match="no text and no pair of names in both"):
        split_prompts(task(60, names=2), 40, 20, seed=0)
    with pytest.raises(UserError, match=r"9 prompts that can be used; it takes 16, 8 to fit"):
        split_prompts(task(9), 40, 20, seed=0)


def test_names_that_begin_a_prompt_are_names_too() -> None:
    """There a name is another token: " Tom" inside a sentence, "Tom" at its beginning."""
    prompts = task(40)
    texts = [
        Pair(f"Tom and Anna saw {n}. Anna gave it to", "", " Tom", " Anna") for n in range(20)
    ] + [Pair(f"Tommy and Anna saw {n}. Anna ran to", "", " Tom", " Anna") for n in range(20)]
    batches = []
    for batch in prompts.batches:
        clean = batch.clean.clone()
        clean[:, 2:4] += 100  # not the tokens of the answers
        ones = torch.ones(len(batch), dtype=torch.long)
        batches.append(PairBatch(clean, batch.corrupted, 20 * ones, 21 * ones))
    mixed = replace(prompts, batches=tuple(batches), texts=tuple(texts))
    with pytest.raises(AssertionError, match="share 1 texts or pairs of names"):
        assert_apart(mixed.subset(range(10)), mixed.subset(range(10, 20)))
    assert_apart(mixed.subset(range(10)), mixed.subset(range(20, 30)))
    split = split_prompts(mixed, 25, 15, seed=0)
    about_the_pair = [batch for batch in split.fit.clean if batch.shape[1] == 6]
    assert sum(map(len, about_the_pair)) == 20  # none of them is held out


def test_sides_that_share_something_are_refused() -> None:
    prompts = task(20)
    with pytest.raises(AssertionError, match="share"):
        assert_apart(prompts, prompts.subset([3]))


def test_given_held_out_prompts_are_used_where_they_share_nothing() -> None:
    prompts = replace(task(40), held_out=task(40, seed=5))
    split = split_prompts(prompts, 40, 40, seed=0)
    assert len(split.fit) == 40
    assert 8 <= len(split.held) < 40
    assert prompts.held_out is not None
    assert names(prompts) & names(prompts.held_out)


def test_windows_are_of_different_stories(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    text = stories(tokenizer, tmp_path)
    split = split_text(text, 20, 10, 8, seed=0)
    rows = [{tuple(row.tolist()) for row in side.clean[0]} for side in (split.fit, split.held)]
    assert not rows[0] & rows[1]
    assert all(row[0] == text.start for row in rows[0])
    with pytest.raises(UserError, match="try --window"):
        split_text(text, 20, 10, 500, seed=0)


# The evaluation ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ablation")


def deltas(result: Measurement) -> dict[str, dict[str, float]]:
    return {
        one["name"]: {m: v["delta"] for m, v in one["held"].items()}
        for one in result.extra["components"]
    }


def test_a_task(make_model: ModelMaker) -> None:
    result = evaluate(make_model(), task(60), FAST)
    known = {metric.name: metric for metric in result.metrics}
    found = deltas(result)
    assert set(found) == {
        "embed",
        *(f"a{n}.h{h}" for n in (0, 1) for h in range(4)),
        "m0",
        "m1",
        "a0.heads",
        "a1.heads",
    }
    assert set(found["m0"]) == set(FAST.methods)
    units = [one for one in result.extra["components"] if one["kind"] in ("head", "mlp")]
    total = {m: sum(one["held"][m]["delta"] for one in units) for m in ("zero", "oa")}
    assert known["delta_zero"].value == pytest.approx(total["zero"])
    assert known["spoof_share"].value == pytest.approx(1 - total["oa"] / total["zero"])
    assert known["spoof_share"].interval is not None
    assert known["task_accuracy"].n == 60
    for name, rule in result.extra["checks"].items():
        assert not rule["broken"], name
    assert set(result.extra["checks"]) == {"C1", "C3", "C4"}
    assert {row["choice"] for row in result.extra["losers"]} == {"top", "random"}
    json.dumps(plain(result.extra), allow_nan=False)


@pytest.mark.parametrize("variant", ["local", "global"])
def test_text_and_gates(
    make_model: ModelMaker, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, variant: str
) -> None:
    config = replace(FAST, components=("heads", "mlps"))
    result = evaluate(make_model(variant), stories(tokenizer, tmp_path), config)
    assert set(deltas(result)["a0.h0"]) == {"zero", "mean_all", "oa"}
    losers = {row["choice"]: row for row in result.extra["losers"]}
    assert set(losers) == {"own", "top", "random"}
    for row in losers.values():
        assert row["fit_constants"] <= row["fit_zero"] + 1e-9
    known = {metric.name: metric.value for metric in result.metrics}
    assert known["ablated_ce_gain"] == pytest.approx(
        known["ablated_ce_zero"] - known["ablated_ce_constants"]
    )


def test_constants_of_switched_off_units_are_descended(make_model: ModelMaker) -> None:
    model = make_model("local")
    batches = [batch.clean for batch in task(24).batches]
    fit, held = CleanRun(model, batches), CleanRun(model, [batches[0][:4]])
    for choice in ("own", "top"):
        begin, end = (
            measure_switched_off(fit, held, choice, None, evaluations, 0).fit_constants
            for evaluations in (1, 12)
        )
        assert end < 0.9 * begin


def test_zeros_of_the_ablated_stream_are_its_own_loss(
    make_model: ModelMaker, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = make_model("local")
    split = split_text(stories(tokenizer, tmp_path), 16, 12, 8, seed=0)
    found = measure_ablated_stream(model, split.fit.clean, split.held.clean, 5, 2**26)
    batch = split.held.clean[0]
    logits = model.dual(batch).ablated_logits[:, :-1].log_softmax(-1)
    own = -logits.gather(-1, batch[:, 1:, None])[..., 0].mean(1)
    torch.testing.assert_close(found.zero, own.detach())


@pytest.mark.parametrize("gates", ["learned", "random"])
def test_the_ablated_stream_in_pieces_is_the_whole(
    make_model: ModelMaker, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, gates: str
) -> None:
    """Windows one at a time, with the masks that all of them together have."""
    model = make_model("local", gates=gates)
    split = split_text(stories(tokenizer, tmp_path), 16, 12, 8, seed=0)
    real, sizes = model.dual, []
    model.dual = lambda tokens, path: sizes.append(len(tokens)) or real(tokens, path)  # type: ignore
    whole, pieces = (
        measure_ablated_stream(model, split.fit.clean, split.held.clean, 5, memory)
        for memory in (2**30, 1)
    )
    assert {16, 12, 1} == set(sizes)
    torch.testing.assert_close(whole.zero, pieces.zero)
    torch.testing.assert_close(whole.constants, pieces.constants, rtol=1e-6, atol=1e-9)
    assert whole.constants.mean() < whole.zero.mean()


def test_constants_replace_what_the_masks_switch_off_and_nothing_else(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Half of the neurons that the masks keep are 0 with ReLU: they stay 0."""
    torch.manual_seed(0)
    shape = {"n_layers": 2, "d_model": 16, "n_heads": 4, "d_vocab": len(tokenizer), "n_ctx": 12}
    cfg = gpt_neo_config(**shape, initializer_range=0.3, dtype=torch.float64)
    cfg.act_fn = "relu"
    ablation = SelfAblationConfig(variant="local", k_attention=3, k_neurons=20)
    model = SelfAblatingTransformer(cfg, ablation, tokenizer=tokenizer).eval()
    tokens = split_text(stories(tokenizer, tmp_path), 16, 12, 8, seed=0).held.clean[0]
    generator = torch.Generator().manual_seed(1)
    constants = {
        (layer, site): torch.randn(16 if site == Z else 64, generator=generator).double()
        for layer in range(2)
        for site in (Z, POST)
    }
    masks, kept = {}, []

    def remember(value: torch.Tensor, hook: HookPoint) -> None:
        masks[hook.name] = value

    def twin(value: torch.Tensor, hook: HookPoint) -> torch.Tensor:
        _, layer, _, site, _ = str(hook.name).split(".")
        unit, place = ("attention", Z) if site == "attn" else ("neuron", POST)
        mask = masks[f"blocks.{layer}.gates.hook_{unit}_mask"].view(value.shape)
        constant = constants[int(layer), place].view(value.shape[2:])
        kept.append(((mask == 1) & (value == 0)).double().mean().item())
        return value + (1 - mask) * constant

    hooks = [(lambda name: name.endswith("_mask"), remember)]
    hooks.append((lambda name: ".ablated." in name and name.endswith("_masked"), twin))
    with model.hooks(fwd_hooks=hooks):
        logits = model.dual(tokens, path="hooked").ablated_logits[:, :-1].log_softmax(-1)
    wanted = -logits.gather(-1, tokens[:, 1:, None])[..., 0].mean(1)
    assert max(kept) > 0.1
    (piece,) = _pieces(model, tokens, 2**30)
    torch.testing.assert_close(_ablated_losses(model, piece, constants), wanted)


def test_a_layer_of_which_some_heads_were_left_out_has_no_redundancy(
    make_model: ModelMaker,
) -> None:
    """All heads of layer 0 are measured, one of layer 1: the mean is that of layer 0."""
    parts = ("a0.heads", "a0.h0", "a0.h1", "a0.h2", "a0.h3", "a1.heads", "a1.h0")
    config = replace(FAST, methods=("zero", "oa"), no_bridge=True)
    results = [
        evaluate(make_model(), task(60), replace(config, components=some))
        for some in (parts, parts[:5], parts[5:])
    ]
    both, first, second = ({one.name: one for one in result.metrics} for result in results)
    assert both["redundancy"].value == first["redundancy"].value
    assert both["redundancy"].n == first["redundancy"].n == 1
    assert "redundancy" not in second
    cost = deltas(results[1])
    singles = sum(cost[f"a0.h{head}"]["oa"] for head in range(4))
    assert first["redundancy"].value == pytest.approx(cost["a0.heads"]["oa"] - singles)


def test_every_method(make_model: ModelMaker) -> None:
    config = replace(FAST, components=("a1.h0",), methods=METHODS, no_bridge=True)
    result = evaluate(make_model(), task(60), config)
    found = deltas(result)["a1.h0"]
    assert set(found) == set(METHODS)
    assert all(value > 0 for value in found.values())
    assert result.extra["checks"]["C2"] == {"n": 5, "not_converged": 0, "broken": []}


def test_constants_by_position_alone(make_model: ModelMaker) -> None:
    config = replace(FAST, components=("a1.h0",), methods=("zero", "oa_pos"), no_bridge=True)
    result = evaluate(make_model(), task(60), config)
    assert set(deltas(result)["a1.h0"]) == {"zero", "oa_pos"}


def test_an_interrupted_run_goes_on(
    make_model: ModelMaker, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = make_model(), replace(FAST, components=("heads", "mlps"))
    split = split_prompts(task(60), 24, 12, seed=0)
    sets = find_components(model, config.components)
    bench, done = Bench(model, split, config, "last"), []
    real = measure.fit

    def failing(*arguments: object, **named: object) -> object:
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(measure, "fit", failing)
    with pytest.raises(KeyboardInterrupt):
        bench.measure(sets, cache)
    kept = sorted(path.stem for path in cache.rglob("*.json"))
    assert kept == ["a0.h0", "a0.h1", "a0.h2", "a0.h3", "m0"]
    (whole,) = (bench.measure(sets, cache),)
    assert [one.name for one in whole] == [one.name for one in bench.measure(sets, cache)]
    again = Bench(model, split, config, "last").measure(sets)
    assert [one.fit for one in again] == [one.fit for one in whole]
    damaged = next(cache.rglob("m1.json"))
    damaged.write_text("{")
    assert [one.kl for one in bench.measure(sets, cache)] == [one.kl for one in whole]


def test_the_cache_tells_models_of_the_same_stream_apart(
    make_model: ModelMaker, tmp_path: Path
) -> None:
    """Another unembedding changes no stream, and all costs."""
    model, config = make_model(), replace(FAST, components=("m1",), methods=("zero",))
    split = split_prompts(task(60), 24, 12, seed=0)
    sets = find_components(model, config.components)
    (before,) = Bench(model, split, config, "last").measure(sets, tmp_path)
    with torch.no_grad():
        model.unembed.W_U.mul_(2.0)
    (after,) = Bench(model, split, config, "last").measure(sets, tmp_path)
    assert after.fit["zero"] > 1.1 * before.fit["zero"]


def test_unknown_components_and_settings_are_refused(make_model: ModelMaker) -> None:
    with pytest.raises(UserError, match="component"):
        check(make_model(), replace(FAST, components=("haeds",)))
    with pytest.raises(UserError, match="method"):
        replace(FAST, methods=("zerro",))
    with pytest.raises(UserError, match=r"--text has no cf, oa_pos: name a method of text, zero"):
        replace(FAST, text=True, methods=("cf", "oa_pos"))
    with pytest.raises(UserError, match="starts"):
        replace(FAST, starts=1)
    with pytest.raises(UserError, match="losers_k"):
        replace(FAST, losers_k=0)


def test_models_in_half_precision_are_measured_in_float32(make_model: ModelMaker) -> None:
    model = make_model()
    model.to(torch.bfloat16)
    result = evaluate(model, task(40), replace(FAST, methods=("zero",), no_bridge=True))
    assert deltas(result)["m0"]["zero"] > 0
    assert model.W_E.dtype == torch.bfloat16


# Figures of the model ----------------------------------------------------------------------------


def test_the_ceiling_is_the_kl_from_the_mean_prediction(make_model: ModelMaker) -> None:
    model = make_model()
    run = CleanRun(model, [batch.clean for batch in task(12).batches])
    p = torch.cat([run.log_probs(number)[:, 0] for number in range(2)])
    expected = (p.exp() * (p - p.exp().mean(0).log())).sum(-1).mean()
    assert prior_kl([run]) == pytest.approx(float(expected))


def test_correlations_are_scipys() -> None:
    draws = np.random.default_rng(0)
    first, second = draws.random((3, 9)), draws.random((3, 9))
    first[:, 2] = first[:, 4]
    for row in range(3):
        rank = stats.spearmanr(first[row], second[row]).statistic
        log = stats.pearsonr(np.log(first[row]), np.log(second[row])).statistic
        assert compare.spearman(first, second)[row] == pytest.approx(rank)
        assert compare.log_pearson(first, second)[row] == pytest.approx(log)


def test_overfitted_components_take_part_in_no_comparison() -> None:
    def one(name: str, fitted: float, held: float) -> measure.Measured:
        costs = {"oa": fitted, "zero": 1.0}
        return measure.Measured(name, "head", 0, 0, 4, costs, {"oa": [held] * 8, "zero": [1.0] * 8})

    measured = [one("a", 1.0, 1.1), one("b", 1.0, 1.3)]
    assert [x.is_overfit("oa") for x in measured] == [False, True]
    assert not measured[1].is_overfit("zero")
    found = compare.compare(measured, ("oa", "zero"), compare.spearman, replace(FAST, resamples=10))
    assert found.value is None
    assert found.n == 2


def test_tables_and_figures(make_model: ModelMaker, make_record: object) -> None:
    result = evaluate(make_model(), task(40), replace(FAST, convergence=True))
    record: Record = make_record(  # type: ignore[operator]
        evaluation="ablate", metrics=result.metrics, extra=plain(result.extra)
    )
    tables = {table.name: table for table in report.tables([record])}
    assert {"ablate-bridge", "ablate-components", "ablate-methods"} <= set(tables)
    assert report.tables([make_record()]) == []  # type: ignore[operator]
    for draw in report.FIGURES.values():
        (figure,) = draw([record])
        figure.canvas.draw()


def test_a_table_without_figures_is_left_out(make_model: ModelMaker, make_record: object) -> None:
    """Two components are too few for a correlation."""
    few = evaluate(make_model(), task(40), replace(FAST, components=("m0", "m1"), no_bridge=True))
    record: Record = make_record(  # type: ignore[operator]
        evaluation="ablate", metrics=few.metrics, extra=plain(few.extra)
    )
    names = {table.name for table in report.tables([record])}
    assert "ablate-bridge" in names
    assert "ablate-methods" not in names


def test_costs_that_are_not_finite_have_a_reason_and_no_place_in_figures(
    make_record: object,
) -> None:
    kl: dict[str, list[float | None]] = {
        method: [None] * 8 for method in ("zero", "resample", "oa")
    }
    one = measure.Measured("m1", "mlp", 1, None, 4, dict.fromkeys(kl, math.nan), kl)
    alone = np.arange(8) < 3
    made = metrics.component_metrics([one], 1.0, FAST, alone)
    found = {metric.name: metric for metric in made}
    assert found["delta_oa"].value is None
    assert found["delta_oa"].reasons == {"cost not finite": 8}
    wanted = {"no other prompt of this length": 3, "cost not finite": 5}
    assert found["delta_resample"].reasons == wanted
    record: Record = make_record(  # type: ignore[operator]
        evaluation="ablate", extra=plain({"components": [metrics.row(one, FAST)]})
    )
    assert report.scatters([record]) == []
    assert report.heat_maps([record]) == []


def test_a_failed_task_and_capped_constants_are_marked(
    make_model: ModelMaker, make_record: object
) -> None:
    config = replace(FAST, components=("m0", "m1"), no_bridge=True)
    result = evaluate(make_model(), task(40), config)
    assert result.extra["marked"].startswith("does the task poorly: accuracy 0.")
    fit = result.extra["components"][1]["certificates"]["oa"]
    record: Record = make_record(  # type: ignore[operator]
        evaluation="ablate", metrics=result.metrics, extra=plain(result.extra)
    )
    (line,) = report.warnings([record])
    assert line.endswith("below 0.9; costs say little of how the task is done")
    assert "does the task poorly" in report.tables([record])[-1].notes[-1]
    fit["capped"] = True
    record = make_record(evaluation="ablate", extra=plain(result.extra))  # type: ignore[operator]
    assert report.warnings([record])[-1].endswith("may lie at infinity: m1")


def test_figures_of_some_components(make_model: ModelMaker, make_record: object) -> None:
    """Only MLPs, and a set: the map has no heads, and says what is grey."""
    config = replace(FAST, components=("m1", "a0.h1+m0"), no_bridge=True, convergence=True)
    result = evaluate(make_model(), task(40), config)
    record: Record = make_record(  # type: ignore[operator]
        evaluation="ablate", metrics=result.metrics, extra=plain(result.extra)
    )
    (figure,) = report.heat_maps([record])
    assert figure.get_supxlabel() == "(grey: not measured)"
    (figure,) = report.scatters([record])
    labels = {text.get_text() for text in figure.axes[0].texts}
    assert labels == {"m1", "a0.h1+m0"}
    entries = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert entries == ["MLP", "other", "equal"]


def test_convergence_and_refits_on_demand(make_model: ModelMaker, make_record: object) -> None:
    config = replace(FAST, components=("m0", "a1.h0", "a1.h1", "m1"), no_bridge=True)
    plain_result = evaluate(make_model(), task(60), config)
    assert all(not one["course"] for one in plain_result.extra["components"])
    assert plain_result.extra["components"][0]["refit_sd"] is None

    result = evaluate(make_model(), task(60), replace(config, refits=3, convergence=True))
    for one, before in zip(
        result.extra["components"], plain_result.extra["components"], strict=True
    ):
        course = np.array(one["course"])
        assert course[-1] == pytest.approx(one["fit"]["oa"], abs=1e-9)
        assert (np.diff(course) <= 1e-12).all()
        assert one["fit"]["oa"] == before["fit"]["oa"]  # they leave the other figures alone
        assert one["refit_sd"] == pytest.approx(np.std(one["refits"], ddof=1))
        assert one["refit_sd"] > 0
    record: Record = make_record(  # type: ignore[operator]
        evaluation="ablate", metrics=result.metrics, extra=plain(result.extra)
    )
    (figure,) = report.convergence([record])
    figure.canvas.draw()
    table = report.tables([record])[-1]
    assert table.columns[-1].title == "SD of refits"
    assert report.details(record, Path())["oa_refit_sd"].notna().all()


def test_settings_that_only_add_leave_the_records_name_alone() -> None:
    assert replace(FAST, refits=0, convergence=False).recorded() == FAST.recorded()
    assert "refits" in replace(FAST, refits=2).recorded()
    with pytest.raises(UserError, match="refits"):
        replace(FAST, refits=-1)


def test_a_notebook_gets_a_table_and_figures(
    make_model: ModelMaker, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    import evaluations as ev

    stories(tokenizer, tmp_path)
    settings = {**vars(FAST), "components": ("heads", "mlps"), "no_bridge": True, "text": True}
    result = ev.ablate(make_model("local"), data=str(tmp_path / "stories.jsonl"), **settings)
    table = result.details.pivot(index="component", columns="method", values="delta")
    assert set(table.columns) == {"zero", "mean_all", "oa"}
    assert set(table.index) == {"m0", "m1", *(f"a{n}.h{h}" for n in (0, 1) for h in range(4))}
    assert "spoof_share" in set(result.frame["metric"])
    for name in ("", "maps"):
        figure = result.plot(name)
        figure.canvas.draw()
