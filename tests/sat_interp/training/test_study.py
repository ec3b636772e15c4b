from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from sat_interp._util.errors import UserError
from sat_interp.cli import main
from sat_interp.training.config import TrainConfig
from sat_interp.training.study import Study, read_study
from sat_interp.training.study_training import raise_failures, train_study
from tests.sat_interp.training.conftest import TINY
from tests.sat_interp.training.test_resume import interrupted

STUDIES = Path(__file__).parents[3] / "studies"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def written(**content: Any) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return written


@pytest.fixture
def tiny_file(write: Callable[..., Path], text_files: dict[str, str], tmp_path: Path) -> Path:
    """Two gated groups' worth of a second's training each."""
    settings = {name: value for name, value in TINY.items() if not name.startswith("k_")}
    data = {"data": text_files["train"], "validation": text_files["validation"]}
    return write(
        name="tiny",
        settings={**settings, **data, "learning_rate": 1e-2},
        k=3,
        variants=["none", "local"],
        controls=["random"],
        out=str(tmp_path / "runs"),
    )


def fake(ppl: Callable[[TrainConfig], float], seen: list[TrainConfig]) -> Callable[..., Any]:
    """A training that leaves nothing but a summary."""

    def train(config: TrainConfig) -> SimpleNamespace:
        seen.append(config)
        summary = {"best": {"clean_perplexity": ppl(config)}, "steps": config.steps}
        out = Path(str(config.out))
        out.mkdir(parents=True, exist_ok=True)
        (out / "summary.json").write_text(json.dumps(summary))
        return SimpleNamespace(summary=summary)

    return train


def test_a_study_is_the_product_of_its_parts() -> None:
    study = Study(
        "s",
        variants={"none": {}, "local": {"ablated_weight": 0.1}, "global": {}},
        k=(1, 4),
        seeds=(0, 7),
        controls=("random", "dropout"),
        controls_for=("local-k4",),
        match_perplexity=("global-k1",),
    )
    runs = study.runs()
    first = [run.name for run in runs if run.seed == 0]
    assert first == [
        "baseline-s0",
        "local-k1-s0",
        "local-k4-s0",
        "global-k1-s0",
        "global-k4-s0",
        "local-k4-random-s0",
        "local-k4-dropout-s0",
        "matched-global-k1-s0",
    ]
    assert [run.group for run in runs[8:]] == [run.group for run in runs[:8]]  # seed by seed
    random = next(run for run in runs if run.name == "local-k4-random-s7")
    assert (random.config.gates, random.config.k_attention, random.config.k_neurons) == (
        "random",
        4,
        4,
    )
    assert (random.config.seed, random.config.ablated_weight) == (7, 0.1)
    assert (random.kind, random.like) == ("control", "local-k4")
    assert random.config.out == "runs/s/local-k4-random-s7"
    assert {run.kind for run in runs} == {"baseline", "learned", "control", "matched"}
    lengths = {run.kind: run.config.steps for run in runs}
    assert lengths["matched"] == 2 * lengths["learned"] == 2 * lengths["baseline"]
    assert all(run.config.resume for run in runs)


def test_every_group_has_the_controls_where_none_is_named() -> None:
    study = Study("s", variants={"local": {}}, k=(1, 2), controls=("frozen",))
    assert [run.group for run in study.runs()] == [
        "local-k1",
        "local-k2",
        "local-k1-frozen",
        "local-k2-frozen",
    ]


def test_groups_of_another_kind_have_settings_of_their_own() -> None:
    study = Study(
        "s",
        settings={"ablated_weight": 0.5, "steps": 7},
        variants={"none": {}, "local": {"temperature": 2.0}},
        seeds=(0, 1),
        extra={
            "constant": {"variant": "local", "k": 2, "gates": "random", "ablated_weight": 1.0},
            "sparse": {"weight_density": 0.5},
        },
    )
    runs = [run for run in study.runs() if run.kind == "extra"]
    assert [run.name for run in runs] == ["constant-s0", "sparse-s0", "constant-s1", "sparse-s1"]
    constant, sparse = (run.config for run in runs[:2])
    assert (constant.variant, constant.k_neurons, constant.k_attention) == ("local", 2, 2)
    assert (constant.gates, constant.ablated_weight, constant.temperature) == ("random", 1.0, 2.0)
    assert (sparse.variant, sparse.weight_density, sparse.steps) == ("none", 0.5, 7)
    assert all(run.config.weight_density == 1 for run in study.runs() if run.kind != "extra")


def test_what_comes_first_comes_first_with_every_seed() -> None:
    study = Study("s", k=(1, 4), seeds=(3, 5), first=("global-k4", "baseline"))
    assert [run.name for run in study.runs()] == [
        *("baseline-s3", "global-k4-s3", "baseline-s5", "global-k4-s5"),
        *("local-k1-s3", "local-k4-s3", "global-k1-s3"),
        *("local-k1-s5", "local-k4-s5", "global-k1-s5"),
    ]


def test_the_answer_is_a_whole_comparison_seed_by_seed() -> None:
    study = read_study(STUDIES / "answer.yaml")
    runs = study.runs()
    core = [
        "baseline",
        "local-k4",
        "local-k16",
        "global-k4",
        "local-k4-random",
        "matched-local-k16",
    ]
    assert [run.group for run in runs[:30]] == core * 5
    assert [run.seed for run in runs[:30:6]] == [0, 1, 2, 3, 4]
    groups = {f"{variant}-k{k}" for variant in ("local", "global") for k in (1, 4, 16)}
    groups |= {f"local-k4-{gates}" for gates in ("random", "frozen", "detached", "dropout")}
    groups |= {
        "baseline",
        "matched-local-k16",
        "local-k4-constant",
        "weight-sparse",
        "weight-sparse-half",
    }
    assert {run.group for run in runs} == groups
    assert len(runs) == 5 * len(groups)
    for run in runs:
        config = run.config
        schedule = 1.0 if run.group == "local-k4-constant" else "0.03@0.65:1.0@0.95"
        assert config.ablated_weight == schedule
        assert config.steps == (9000 if run.kind == "matched" else 4500)
        assert (config.weight_density < 1) == run.group.startswith("weight-sparse")
        assert config.stored_precision == "float16"


@pytest.mark.parametrize("name", ["paper", "demo"])
def test_the_studies_that_ship_are_whole(name: str) -> None:
    study = read_study(STUDIES / f"{name}.yaml")
    groups = {run.group for run in study.runs()}
    assert {"baseline", "local-k1", "local-k4", "global-k1", "global-k4"} <= groups
    assert {"local-k4-random", "local-k4-frozen", "local-k4-dropout"} <= groups
    assert "matched-local-k4" in groups
    if name == "paper":
        assert {f"{v}-k{k}" for v in ("local", "global") for k in (1, 2, 4, 8)} <= groups
        assert study.runs()[0].config.steps == 400_000
    else:
        assert study.seeds == (0, 1, 2)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"variant": ["local"]}, "unknown key 'variant': did you mean 'variants'?"),
        ({"variants": ["lokal"]}, "unknown variant 'lokal': did you mean 'local'?"),
        ({"controls": ["ramdom"]}, "unknown control 'ramdom': did you mean 'random'?"),
        ({"preset": "dmo"}, "unknown preset 'dmo': did you mean 'demo'?"),
        ({"settings": {"step": 5}}, "unknown setting 'step': did you mean 'steps'?"),
        ({"variants": {"local": {"stpes": 5}}}, "unknown setting 'stpes'"),
        ({"settings": {"seed": 5}}, "seed cannot be a setting of a study: use its key seeds"),
        ({"settings": {"k": 9}}, "k cannot be a setting of a study: use its key k"),
        ({"variants": {"local": {"k": 2}}}, "k cannot be a setting of a study: use its key k"),
        ({"k": "four"}, "k must be a list of whole numbers, not 'four'"),
        ({"k": [0]}, "k_attention must be at least 1"),
        ({"seeds": []}, "a study needs seeds"),
        ({"match_perplexity": ["local-k5"]}, "unknown group with learned gates 'local-k5'"),
        ({"settings": 3}, "settings must be a mapping"),
        ({"extra": ["a"]}, "extra must be a mapping of settings, not ['a']"),
        ({"extra": {"a": 3}}, "extra: a must be a mapping of settings, not 3"),
        ({"extra": {"a/b": {}}}, "a group's name consists of letters, digits, - and _, not 'a/b'"),
        ({"extra": {"a": {"seed": 3}}}, "seed cannot be a setting of a study: use its key seeds"),
        ({"extra": {"a": {"variant": "lokal"}}}, "lokal"),
        ({"extra": {"a": {"group": "b"}}}, "unknown setting 'group'"),
        ({"extra": {"a": {"like": "b"}}}, "unknown setting 'like'"),
        ({"extra": {"a": {"self": "b"}}}, "unknown setting 'self'"),
        ({"settings": {"kind": "learned"}}, "unknown setting 'kind'"),
        ({"seeds": [0, -1]}, "seed must be"),
        ({"extra": {"baseline": {}}}, "there is a group baseline already: choose another name"),
        ({"first": "lokal-k4"}, "unknown group 'lokal-k4': did you mean 'local-k4'?"),
        (
            {"match_perplexity": ["local-k4"], "first": ["matched-local-k4"]},
            "first: matched-local-k4 needs local-k4: name it, too",
        ),
        ({"name": 3}, "name must be text"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(
    write: Callable[..., Path], content: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError) as error:
        read_study(write(**content))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["- a\n", "a: [", "\x00"])
def test_what_is_no_study_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="is not a valid study file"):
        read_study(path)
    with pytest.raises(UserError, match="is not a valid study file"):
        read_study(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"variants": ["none", "local"], "k": [4, 1000]}, "local-k1000: k_attention is 1000"),
        ({"extra": {"odd": {"n_heads": 5}}}, "odd: d_model 64 is not divisible by n_heads 5"),
    ],
)
def test_an_impossible_shape_is_told_before_anything_is_trained(
    write: Callable[..., Path], content: dict[str, Any], told: str
) -> None:
    seen: list[TrainConfig] = []
    with pytest.raises(UserError) as error:
        train_study(read_study(write(**content)), fake(lambda _: 5.0, seen))
    assert told in str(error.value)
    assert not seen


def test_true_matches_all_learned_groups(write: Callable[..., Path]) -> None:
    study = read_study(write(variants=["none", "local"], k=[1, 4], match_perplexity=True))
    assert study.matched_groups == ["local-k1", "local-k4"]
    assert read_study(write(match_perplexity=False)).match_perplexity == ()
    assert study.name == "study"  # the file's, where it names none


def test_a_matched_baseline_has_the_perplexity_of_its_seeds_gated_run(tmp_path: Path) -> None:
    study = Study(
        "s",
        variants={"none": {}, "local": {}},
        seeds=(0, 1),
        match_perplexity=("local-k4",),
        out=str(tmp_path),
    )
    seen: list[TrainConfig] = []
    done = train_study(study, fake(lambda config: 5.0 + config.seed, seen))
    matched = [config for config in seen if Path(str(config.out)).name.startswith("matched")]
    assert [(one.seed, one.match_perplexity, one.variant) for one in matched] == [
        (0, 5.0, "none"),
        (1, 6.0, "none"),
    ]
    assert not any(one.was_finished for one in done)
    assert all(one.was_finished for one in train_study(study, fake(lambda _: 5.0, [])))


def test_a_failed_run_stops_only_those_that_need_it(tmp_path: Path) -> None:
    study = Study(
        "s",
        variants={"none": {}, "local": {}, "global": {}},
        match_perplexity=("local-k4",),
        out=str(tmp_path),
    )
    real = fake(lambda _: 5.0, [])

    def train(config: TrainConfig) -> Any:
        if config.variant == "local":
            raise UserError("the loss became NaN")
        if config.variant == "global":
            raise ZeroDivisionError("a bug")
        return real(config)

    done = train_study(study, train)
    assert [one.summary is None for one in done] == [False, True, True, True]
    with pytest.raises(UserError) as error:
        raise_failures(done)
    assert "3 of 4 runs failed: local-k4-s0: the loss became NaN" in str(error.value)
    assert "global-k4-s0: ZeroDivisionError: a bug" in str(error.value)
    assert "local-k4-s0, whose perplexity it is to match, has not been trained" in str(error.value)


def test_the_command_trains_what_is_missing_and_skips_the_rest(
    tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "elsewhere"
    arguments = ["--study", str(tiny_file), "--out", str(out)]
    assert main(arguments) == 0
    names = {path.parent.name for path in out.glob("*/summary.json")}
    assert names == {"baseline-s0", "local-k3-s0", "local-k3-random-s0"}
    table = capsys.readouterr().out
    assert table.count("trained") == 3
    config = json.loads((out / "local-k3-random-s0" / "config.json").read_text())["config"]
    assert (config["gates"], config["k_neurons"]) == ("random", 3)
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/summary.json")}
    (out / "local-k3-s0" / "summary.json").unlink()  # as after a kill before the end
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("already done") == 2
    for path, stamp in stamps.items():
        assert (path.stat().st_mtime_ns == stamp) == (path.parent.name != "local-k3-s0")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--study", "{}", "--seed", "3"], "--seed cannot be combined with --study"),
        (["--study"], "--study needs a value"),
        (["--study", "absent.yaml"], "absent.yaml is not a valid study file"),
    ],
)
def test_the_command_says_what_is_wrong(
    tiny_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert main([one.format(tiny_file) for one in arguments]) == 2
    assert told in capsys.readouterr().err


def test_the_answer_measures_every_planned_outcome_the_primary_ones_first() -> None:
    measures = read_study(STUDIES / "answer.yaml").measures
    names = [name for entry in measures for name in entry]
    assert names[:3] == ["neurons", "sae", "ablate"]
    assert {"acdc", "lm", "gates", "n2g", "lens"} <= set(names)
    tasks = [own["task"] for entry in measures for name, own in entry.items() if name == "acdc"]
    assert tasks == ["ioi", "quotes", "reply"]


def test_a_study_goes_on_from_a_partial_copy(
    tmp_path: Path, text_files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole runs are kept, a half one continues: the same bits as all at once."""
    settings = {name: one for name, one in TINY.items() if not name.startswith("k_")}
    settings |= {"data": text_files["train"], "validation": text_files["validation"]}

    def study(out: str) -> Study:
        kinds = {"none": {}, "local": {}}
        first = ("local-k3",)
        return Study("s", settings=settings, variants=kinds, k=(3,), first=first, out=out)

    whole, part = study(str(tmp_path / "whole")), study(str(tmp_path / "part"))
    raise_failures(train_study(whole))
    interrupted(part.runs()[0].config, monkeypatch, step=10)
    copied = part.directory / "baseline-s0"
    shutil.copytree(whole.directory / "baseline-s0", copied)
    done = train_study(part)
    raise_failures(done)
    assert [(one.run.name, one.was_finished) for one in done] == [
        ("local-k3-s0", False),
        ("baseline-s0", True),
    ]
    for one, other in zip(whole.runs(), part.runs(), strict=True):
        paths = [run.directory / "model" / "model.safetensors" for run in (one, other)]
        assert paths[0].read_bytes() == paths[1].read_bytes()
