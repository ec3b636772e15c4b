"""``sat-train`` as a user meets it: through ``main``, judged by its exit code and its one line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml

from sat_interp._util.errors import UserError
from sat_interp.cli import main, parse
from sat_interp.data.stories import stories
from sat_interp.training.config import PRESETS, TrainConfig

SMALL = {
    "n_layers": 1,
    "d_model": 8,
    "n_heads": 2,
    "d_mlp": 12,
    "n_ctx": 16,
    "steps": 4,
    "batch_size": 2,
    "tokenizer": "bpe:280",
    "log_every": 2,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a few files of text, good and bad."""
    directory = tmp_path_factory.mktemp("text")
    lines = [json.dumps({"text": story, "other": 3}) for story in islice(stories("train"), 40)]
    (directory / "train.jsonl").write_text("\n".join(lines))
    (directory / "validation.jsonl").write_text("\n".join(lines[:3]))
    (directory / "empty.txt").write_text("")
    (directory / "blank.jsonl").write_text('{"text": "  "}\n{"text": ""}\n')
    (directory / "short.txt").write_text("A cat.\n")
    (directory / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (directory / "table.csv").write_text("text\nhello\n")
    (directory / "unknown.yaml").write_text("batchsize: 3\n")
    (directory / "torn.yaml").write_text("steps: [3\n")
    (directory / "list.yaml").write_text("- 3\n")
    (directory / "bad.yaml").write_text("learning_rate: fast\n")
    os.mkfifo(directory / "pipe.jsonl")
    (directory / "foreign").mkdir()
    (directory / "foreign" / "thesis.tex").write_text("years of work")
    (directory / "not-a-model").mkdir()
    return directory


@pytest.fixture
def sat_train(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run the command; returns its exit code and what it wrote on stderr by itself (not logged)."""
    monkeypatch.setenv("SAT_INTERP_CACHE", str(text / "cache"))
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str, **changes: Any) -> tuple[int, str]:
        settings = {
            "out": str(tmp_path / "run"),
            "data": str(text / "train.jsonl"),
            "validation": str(text / "validation.jsonl"),
            **SMALL,
            **changes,
        }
        given = {argument.partition("=")[0].lstrip("-") for argument in arguments}
        options = [
            f"--{name}={value}"
            for name, value in settings.items()
            if value is not None and name not in given
        ]
        code = main([*options, *(argument.format(text=text) for argument in arguments)])
        return code, capsys.readouterr().err

    return command


CASES = {
    "unknown preset": (["--preset=dmo"], "unknown preset 'dmo': did you mean 'demo'?"),
    "unknown option": (["--stps=3"], "unknown option --stps: did you mean --steps?"),
    "unlike any option": (
        ["--zzzz=3"],
        "unknown option --zzzz: sat-train --help lists the options",
    ),
    "stray word": (["stray"], "stray"),
    "option without value": (["--steps"], "--steps needs a value"),
    "unknown variant": (["--variant=lokal"], "unknown variant 'lokal': did you mean 'local'?"),
    "unknown soft": (["--soft=softmx"], "did you mean 'softmax'?"),
    "unknown gates": (["--gates=randm"], "did you mean 'random'?"),
    "unknown precision": (["--precision=fp8"], "unknown precision 'fp8'"),
    "unknown device": (["--device=quantum"], "device 'quantum' cannot be used here"),
    "unknown tokenizer": (["--tokenizer=./nowhere"], "no tokenizer directory './nowhere'"),
    "tokenizer without size": (["--tokenizer=bpe:many"], "write bpe:10000"),
    "tokenizer directory without one": (["--tokenizer={text}/not-a-model"], "no tokenizer can be"),
    "bpe too small": (["--tokenizer=bpe:100"], "at least 257 tokens"),
    "vocabulary too small": (
        ["--d_vocab=50"],
        "--d-vocab 50 is too small: the tokenizer has tokens",
    ),
    "k above n": (["--variant=local", "--k=20"], "choose --k-attention <= 8"),
    "k above neurons": (["--variant=global", "--k_neurons=13"], "choose --k-neurons <= 12"),
    "k above heads": (["--variant=local", "--unit=head", "--k=3"], "choose --k-attention <= 2"),
    "k of zero": (["--variant=local", "--k=0"], "--k-attention must be at least 1, not 0"),
    "k no number": (["--k=four"], "must be a whole number, not 'four'"),
    "k without gates": (["--k=4"], "--k needs gates: add --variant local or --variant global"),
    "unit without gates": (["--unit", "head"], "--unit needs gates: add --variant local or"),
    "k on a baseline": (["--preset=builtin-baseline", "--k-neurons=4"], "--k-neurons needs gates"),
    "heads do not divide": (["--n_heads=3"], "--d-model 8 is not divisible by --n-heads 3"),
    "no layers": (["--n_layers=0"], "--n-layers must be at least 1, not 0"),
    "no neurons": (["--d_mlp=0"], "--d-mlp must be at least 1, not 0"),
    "negative context": (["--n_ctx=-5"], "--n-ctx must be at least 1, not -5"),
    "no steps": (["--steps=0"], "--steps must be at least 1, not 0"),
    "half a step": (["--steps=3.5"], "--steps must be a whole number, not '3.5'"),
    "empty batch": (["--batch_size=0"], "--batch-size must be at least 1, not 0"),
    "no accumulation": (["--accumulate=0"], "--accumulate must be at least 1, not 0"),
    "learning rate zero": (["--learning_rate=0"], "--learning-rate must be > 0 and finite, not 0"),
    "learning rate nan": (
        ["--learning_rate=.nan"],
        "--learning-rate must be > 0 and finite, not n",
    ),
    "learning rate text": (
        ["--learning_rate=fast"],
        "--learning-rate must be a number, not 'fast'",
    ),
    "negative clipping": (["--clip_norm=-1"], "--clip-norm must be >= 0 and finite, not -1"),
    "beta of one": (["--beta2=1"], "--beta2 must be in [0, 1), not 1"),
    "negative weight": (
        ["--ablated_weight=-1"],
        "--ablated-weight must be >= 0 and finite, not -1",
    ),
    "no loss at all": (["--clean_weight=0", "--ablated_weight=0"], "not all be 0"),
    "warmup too long": (["--warmup_steps=4"], "--warmup-steps 4 must be below steps 4"),
    "temperature": (["--variant=local", "--temperature=0"], "must be positive and finite, not 0"),
    "negative seed": (["--seed=-1"], "--seed must be >= 0 and finite, not -1"),
    "huge seed": ([f"--seed={2**63}"], "--seed must be below 2^63"),
    "perplexity below one": (["--match-perplexity=0.5"], "--match-perplexity must be > 1"),
    "perplexity no number": (["--match-perplexity=low"], "must be a number"),
    "missing data": (["--data={text}/nowhere.jsonl"], "no such file"),
    "data of another format": (["--data={text}/table.csv"], ".jsonl"),
    "empty data": (["--data={text}/empty.txt"], "no text"),
    "blank data": (["--data={text}/blank.jsonl"], "no text"),
    "broken data": (["--data={text}/broken.jsonl"], "broken.jsonl"),
    "missing column": (["--data={text}/train.jsonl:story"], "story"),
    "column without text": (["--data={text}/train.jsonl:other"], "other"),
    "data shorter than a window": (["--data={text}/short.txt", "--n_ctx=200"], "smaller --n-ctx"),
    "data that is validation": (["--data={text}/validation.jsonl"], "both training and valid"),
    "no story count": (["--data=demo:few"], "a number of stories"),
    "more stories than there are": (
        [f"--data=demo:{'9' * 5000}"],
        "not a possible number of stories",
    ),
    "data that is a pipe": (["--data={text}/pipe.jsonl"], "pipe.jsonl is not a regular file"),
    "a vocabulary without end": ([f"--tokenizer=bpe:{'9' * 5000}"], "no vocabulary is so large"),
    "a million layers": (["--n_layers=1000000"], "--n-layers must be at most 1,000, not 1000000"),
    "out is a file": (["--out={text}/short.txt"], "is a file: name a directory"),
    "out under a file": (["--out={text}/short.txt/run"], "cannot make directory"),
    "out cannot be written": (["--out=/proc/run"], "cannot make directory /proc/run"),
    "out holds something else": (["--out={text}/foreign"], "not empty and does not hold a run"),
    "missing config": (["--config={text}/nowhere.yaml"], "nowhere.yaml: no such file"),
    "config with unknown key": (
        ["--config={text}/unknown.yaml"],
        "unknown setting batchsize: did you mean batch_size?",
    ),
    "config that is torn": (["--config={text}/torn.yaml"], "torn.yaml is not a YAML mapping"),
    "config that is a list": (["--config={text}/list.yaml"], "list.yaml is not a YAML mapping"),
    "config with a bad value": (["--config={text}/bad.yaml"], "--learning-rate must be a number"),
    "wandb missing": (["--wandb=project"], "pip install 'sat-interp[wandb]'"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_user_can_get_wrong_is_one_clear_line(
    sat_train: Callable[..., tuple[int, str]],
    case: str,
    monkeypatch: pytest.MonkeyPatch,
    text: Path,
) -> None:
    arguments, said = CASES[case]
    changes: dict[str, Any] = {}
    if "config" in case:
        changes = {"learning_rate": None, "batch_size": None}
    if case.endswith("missing"):
        monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    if case in ("empty data", "blank data", "broken data"):
        changes["validation"] = None
    code, error = sat_train(*arguments, **changes)
    lines = [line for line in error.splitlines() if line]
    assert code == 2
    assert len(lines) == 1, error
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    assert "Traceback" not in error
    assert (text / "foreign" / "thesis.tex").read_text() == "years of work"


def test_no_directory_is_one_clear_line(sat_train: Callable[..., tuple[int, str]]) -> None:
    assert sat_train(out=None) == (2, "error: a run needs a directory: pass --out DIR\n")


def test_a_run_and_what_a_second_one_meets_there(
    sat_train: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    assert sat_train("--variant=local", "--k=3")[0] == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (config["k_attention"], config["k_neurons"], config["variant"]) == (3, 3, "local")
    code, error = sat_train("--variant=local", "--k=3")
    assert (code, error.count("\n")) == (2, 1)
    assert "pass --resume" in error
    assert sat_train("--variant=local", "--k=3", "--resume")[0] == 0
    code, error = sat_train("--variant=global", "--k=3", "--resume")
    assert (code, error.count("\n")) == (2, 1)
    assert "variant ('local' there, 'global' here)" in error


def test_a_loss_that_is_nan_is_one_line(
    sat_train: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sat_interp.training import trainer

    real = trainer.training_loss

    def poisoned(*arguments: Any) -> Any:
        losses = real(*arguments)
        return losses._replace(total=losses.total * math.nan, clean=losses.clean * math.nan)

    monkeypatch.setattr(trainer, "training_loss", poisoned)
    code, error = sat_train()
    assert (code, error.count("\n")) == (2, 1)
    assert "not finite at step 1: lower --learning-rate" in error


def test_a_full_disk_is_one_line(
    sat_train: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    from sat_interp.training import state

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "tensors")

    monkeypatch.setattr(state, "save_file", full)
    code, error = sat_train()
    assert (code, error.count("\n")) == (2, 1)
    assert "cannot write tensors: No space left on device; no checkpoint has been written" in error


def test_help_has_examples_and_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "sat-train --variant local --k 4 --out runs/local" in shown
    assert "Peak learning rate of AdamW" in shown
    assert "Continue the run in out" in shown
    assert all(f"--{name.replace('_', '-')} " in shown for name in TrainConfig().to_dict())


def test_the_printed_configuration_is_read_back(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = ["--preset=tinystories-3m", "--k=8", "--variant=local", "--compile", "--steps=1000"]
    with pytest.raises(SystemExit):
        main([*line, "--print_config"])
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["d_model"] == 128
    (tmp_path / "run.yaml").write_text(printed)
    settings = parse(["--config", str(tmp_path / "run.yaml")])
    assert settings == parse(line)
    assert TrainConfig(**settings) == TrainConfig.from_preset(
        "tinystories-3m", k=8, variant="local", compile=True, steps=1000
    )


def test_presets_are_defaults_and_options_go_before_them() -> None:
    settings = parse(["--preset", "tinystories-3m", "--n_layers", "2"])
    assert settings["n_layers"] == 2
    assert settings["d_model"] == PRESETS["tinystories-3m"]["d_model"]
    assert TrainConfig(**parse([])) == TrainConfig()


def test_a_file_can_name_the_preset_and_k(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("preset: tinystories-3m\nk: 2\nk_neurons: 3\nresume: true\n")
    settings = parse(["--config", str(file), "--seed", "5"])
    assert (settings["d_model"], settings["seed"], settings["resume"]) == (128, 5, True)
    assert (settings["k_attention"], settings["k_neurons"]) == (2, 3)


def test_k_on_the_command_line_goes_before_a_file_and_after_its_own_parts(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("k_attention: 7\nk_neurons: 7\n")
    given = ["--k", "2", "--k-neurons", "5", "--variant", "local"]
    settings = parse([*given, "--config", str(file)])
    assert settings["k_attention"] == 2
    assert parse(["--variant=local", "--k=2"])["k_neurons"] == 2
    assert parse(["--variant=local", "--k_neurons=5", "--k=2"])["k_neurons"] == 5


def test_a_loop_over_variants_may_have_none_among_them() -> None:
    assert parse(["--variant=none", "--k=4"])["variant"] == "none"
    assert parse(["--variant", "none", "--soft", "sigmoid"])["soft"] == "sigmoid"
    assert parse(["--preset=builtin-local-k4", "--k=2"])["k_neurons"] == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"sat-train {metadata.version('sat-interp')}\n"


def test_dashes_and_underscores_are_the_same() -> None:
    assert parse(["--match-perplexity", "6.5"])["match_perplexity"] == 6.5
    assert parse(["--match_perplexity=6.5"])["match_perplexity"] == 6.5
    with pytest.raises(UserError):
        parse(["--match-perplexty=6.5"])
