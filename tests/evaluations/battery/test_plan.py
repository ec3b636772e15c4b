from __future__ import annotations

import dataclasses
import io
import json

import pytest
from rich.console import Console

from evaluations.battery.plan import (
    Budgets,
    chosen_specs,
    estimated_seconds,
    plan,
    size_of,
)
from evaluations.battery.progress import summary
from evaluations.core.options import TextOptions
from evaluations.core.spec import PRESETS, Cost, Spec
from evaluations.registry import SPECS
from evaluations.suite.lm.config import LanguageConfig
from sat_interp._util.errors import UserError
from sat_interp.io.pretrained import save_pretrained


def spec(name: str, seconds: float = 10, **settings) -> Spec:
    """A specification of a name; nothing of it is imported."""
    cost = settings.pop("cost", Cost(dict.fromkeys(PRESETS, seconds)))
    known = {"options": LanguageConfig, "shared": (TextOptions,), "version": 1, **settings}
    return Spec("nowhere", name, "", "", (), cost=cost, **known)


TWO = (
    spec("one", budgets={"quick": {"stories": 3}}),
    spec("two", 100, shared=(), after="one", needs=frozenset({"gates"})),
)


def test_every_evaluation_has_budgets_of_options_that_it_knows():
    for one in SPECS:
        for preset in PRESETS:
            assert set(one.budgets.get(preset, {})) <= set(one.option_names), one.name
            assert one.cost.seconds[preset] > 0
        assert one.after in {None, *(other.name for other in SPECS)}
    assert [one.name for one in SPECS][:6] == ["lm", "gates", "acdc", "sae", "neurons", "n2g"]


def test_each_evaluation_gets_the_options_it_knows_and_the_models_it_is_for(make_model, tmp_path):
    plain = str(save_pretrained(make_model(), tmp_path / "plain"))
    gated = str(save_pretrained(make_model("local"), tmp_path / "gated"))
    random = str(save_pretrained(make_model("local", gates="random"), tmp_path / "random"))
    common = {"data": "demo", "out": "res", "tokenizer": None}
    first, second = plan([plain, gated, random], Budgets("quick", common), TWO)
    assert first.models == [plain, gated, random]
    assert first.settings == {"stories": 3, "data": "demo", "out": "res"}
    assert (second.models, second.settings) == ([gated], {"out": "res"})
    (alone,) = plan([plain], Budgets("quick", common), TWO[1:])
    assert alone.state == "nothing to do"


def test_options_of_one_evaluation_go_before_the_preset_and_the_shared_ones():
    budgets = Budgets("quick", {"data": "demo"}, {"lm": {"stories": 7, "data": "own.txt"}})
    job, *others = plan(["demo:baseline"], budgets)
    assert (job.settings["stories"], job.settings["data"]) == (7, "own.txt")
    assert all(other.settings.get("data", "demo") == "demo" for other in others)
    known = "unknown evaluation 'ln': did you mean 'lens'. choices: ablate, acdc"
    with pytest.raises(UserError, match=known):
        plan(["demo:baseline"], Budgets("quick", {}, {"ln": {"stories": 7}}))


def test_a_job_is_a_command_line():
    budgets = Budgets("quick", {"force": True}, {"acdc": {"tau": (0.01, 0.03), "no_bos": True}})
    (job,) = plan(["demo:baseline"], budgets, chosen_specs(["acdc"]))
    assert job.arguments == [
        "acdc",
        "demo:baseline",
        "--prompts=60",
        "--random-circuits=10",
        "--force",
        "--tau=0.01,0.03",
        "--no-bos",
    ]


def test_the_first_model_is_also_measured_untrained_where_an_evaluation_has_a_control():
    one = dataclasses.replace(TWO[0], controlled=("quick",))
    (job,) = plan(["demo:baseline", "demo:local-k4"], Budgets("quick"), (one,))
    assert job.models == ["demo:baseline", "demo:local-k4", "demo:baseline [untrained]"]
    assert job.estimate == 30
    (job,) = plan([], Budgets("quick"), (one,))
    assert job.state == "nothing to do"


def test_time_grows_with_the_model_and_is_shared_between_processes():
    size, builtin = size_of("demo:local-k4"), size_of("demo:baseline")
    assert (size.has_gates, builtin.has_gates) == (True, False)
    # 4 blocks of 12 d^2 multiplications and an unembedding of 1,730 x 64
    assert size.operations == 4 * 12 * 64**2 + 1730 * 64
    # 4 heads, one MLP a layer: sum of 12 (1 + 5l) + 5l + 5, and 21 into the output
    assert size.edges == sum(12 * (1 + 5 * l) + 5 * l + 5 for l in range(4)) + 21  # noqa: E741
    jobs = plan(["demo:baseline", "demo:local-k4"], Budgets("quick"), TWO)
    assert [job.estimate for job in jobs] == [20, 100]
    assert estimated_seconds(jobs, 1) == 120
    assert estimated_seconds(jobs, 2) == 100  # the longest cannot be split
    assert not any(job.is_rough for job in jobs)
    (unknown, _) = plan(["somebody/gpt"], Budgets("quick"), TWO)
    assert unknown.estimate is None
    assert estimated_seconds([unknown], 1) is None


def test_an_estimate_for_a_model_of_another_size_is_called_rough(tmp_path):
    config = {"model_type": "gpt2", "n_layer": 8, "n_embd": 128, "n_head": 16}
    config["vocab_size"] = 10_000
    (tmp_path / "config.json").write_text(json.dumps(config))
    one = spec("one", cost=Cost({"quick": 10, "paper": 10}, power=0.5, guessed=("paper",)))
    (job,) = plan(["demo:baseline", str(tmp_path)], Budgets("quick"), [one])
    factor = (12 * 8 * 128**2 + 10_000 * 128) / (4 * 12 * 64**2 + 1730 * 64)
    assert (job.estimate, job.is_rough) == (pytest.approx(10 + 10 * factor**0.5), True)
    (job,) = plan(["demo:baseline"], Budgets("paper"), [one])
    assert (job.estimate, job.is_rough) == (10, True)  # nobody has measured it
    console = Console(width=100, file=io.StringIO())
    console.print(summary([job]))
    assert "10 s, rough" in console.file.getvalue()


def test_estimates_are_within_thrice_of_what_was_measured(tmp_path):
    """On real text: 8 layers of width 128; two models, the second with gates; busy cores."""
    config = {"model_type": "gpt2", "n_layer": 8, "n_embd": 128, "n_head": 16}
    config["vocab_size"] = 10_000
    (tmp_path / "config.json").write_text(json.dumps(config))
    measured = {"lm": (34, 195), "acdc": (78, 86), "neurons": (140, 176), "n2g": (1047, 1100)}
    for job in plan([str(tmp_path)], Budgets("demo")):
        if job.name in measured:
            # neurons is estimated with its untrained control; n2g's demo preset explains half of
            # the neurons that were measured
            factor = {"n2g": 2, "neurons": 0.5}.get(job.name, 1)
            low, high = measured[job.name]
            assert high / 3 < (job.estimate or 0) * factor < low * 3, job.name


def test_the_graph_of_the_papers_shape_has_as_many_edges_as_counted_there(tmp_path):
    config = {"model_type": "gpt2", "n_layer": 8, "n_embd": 128, "n_head": 16, "vocab_size": 9}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert size_of(str(tmp_path)).edges == 23_981


@pytest.mark.parametrize("content", ["[]", "{", '{"n_layer": "x"}', "{}"])
def test_a_size_that_cannot_be_read_is_unknown(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    assert size_of(str(tmp_path)).operations is None
