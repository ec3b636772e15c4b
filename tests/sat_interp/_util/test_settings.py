"""Every field of a configuration with values of every wrong type, size and encoding."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from sat_interp._util.commandline import run_command
from sat_interp._util.errors import UserError
from sat_interp._util.reading import UnreadableError, read_json, read_object, read_yaml
from sat_interp._util.settings import LARGEST, check_settings, check_sizes
from sat_interp.io.stored import Shape
from sat_interp.model.config import SelfAblationConfig
from sat_interp.model.transformer import SelfAblatingTransformer
from sat_interp.training.config import TrainConfig

load = SelfAblatingTransformer.from_pretrained
DEEP = "[" * 20_000 + "]" * 20_000
ODD: list[Any] = [
    None,
    True,
    False,
    4.0,
    1.5,
    math.nan,
    math.inf,
    -1,
    0,
    2**31,
    2**64,
    10**400,
    "",
    "x",
    "4",
    "\ud800",
    "a\0b",
    "\x1b[31m",
    "x" * 100_000,
    [],
    [4],
    ["x"],
    {},
    {"a": 1},
    1j,
    b"x",
]


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert len(text) < 600
    assert text.isascii() or text.isprintable()
    return text


@pytest.mark.parametrize("kind", [SelfAblationConfig, TrainConfig, Shape])
def test_values_of_another_type_are_named(kind: type) -> None:
    for field, hint in typing.get_type_hints(kind).items():
        allowed = set(typing.get_args(hint)) or {hint}
        for value in ODD:
            is_text = isinstance(value, str)
            fits = type(value) in allowed or (type(value) is int and float in allowed)
            if fits and is_text:
                fits = "\0" not in value and value != "\ud800"
            if fits and type(value) is int:
                fits = abs(value) < 2**63
            if fits:
                check_settings(kind, {field: value})
                continue
            with pytest.raises(UserError, match=field) as caught:
                check_settings(kind, {field: value})
            one_line(caught.value)
    with pytest.raises(UserError, match="unknown setting"):
        check_settings(kind, {"x" * 1000: 1})


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(TrainConfig)])
def test_a_training_configuration_is_made_or_refused_in_one_line(field: str) -> None:
    for value in ODD:
        try:
            TrainConfig.from_dict({field: value})
        except UserError as error:
            one_line(error)


@pytest.mark.parametrize("field", LARGEST)
def test_sizes_out_of_bounds_are_named_before_anything_is_built(field: str) -> None:
    for value in (0, -1, LARGEST[field] + 1, 10**9, 10**400):
        with pytest.raises(UserError, match=f"{field} must be at (least|most)") as caught:
            check_sizes({field: value})
        one_line(caught.value)


def test_a_model_beyond_the_memory_of_the_machine_is_refused() -> None:
    with pytest.raises(UserError, match=r"n_ctx 900,000 needs 3,\d\d\d GiB"):
        TrainConfig(n_ctx=900_000)
    check_sizes(
        {
            "n_layers": 8,
            "d_model": 128,
            "n_heads": 16,
            "d_head": 8,
            "d_mlp": 512,
            "n_ctx": 256,
            "d_vocab": 50_257,
        }
    )


@pytest.fixture
def saved(make_model: Any, tmp_path: Path) -> Path:
    return Path(make_model("local").save_pretrained(tmp_path / "model"))


SHAPE = [field.name for field in dataclasses.fields(Shape)]
GATES = [field.name for field in dataclasses.fields(SelfAblationConfig)]


@pytest.mark.parametrize(
    "field",
    [
        *SHAPE,
        *GATES,
        "shape",
        "ablation",
        "weights",
        "training",
        "format_version",
        "eps",
        "n_layers",
    ],
)
def test_cfg_json_with_odd_values_is_read_or_refused_by_name(saved: Path, field: str) -> None:
    path = saved / "cfg.json"
    content = json.loads(path.read_text())
    section = "shape" if field in SHAPE else "ablation" if field in GATES else None
    for value in [*ODD, 10**6, 10**9, 1e308, -0.5]:
        try:
            changed = {**content[section], field: value} if section else value
            text = json.dumps({**content, section or field: changed})
        except TypeError:
            continue  # complex numbers and bytes are no JSON
        path.write_text(text)
        try:
            load(saved)
        except UserError as error:
            said = one_line(error)
            assert "cfg.json" in said
            if section and field != "n_layers":
                assert field in said or "needs" in said
        else:
            assert not isinstance(value, list | dict) or not section


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"3",
        b"null",
        b"{}",
        b"{",
        b"\xff\xfe",
        DEEP.encode(),
        b'{"format_version": NaN}',
        b'{"format_version": 1e999}',
        b'{"format_version": 0}',
        '{"format_version": 1}'.encode("utf-16"),
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b"[" + b"1," * 9_000_000 + b"1]",
    ],
)
def test_cfg_json_of_any_content_is_refused(saved: Path, content: bytes) -> None:
    (saved / "cfg.json").write_bytes(content)
    with pytest.raises(UserError, match="cfg.json") as caught:
        load(saved)
    one_line(caught.value)


@pytest.mark.parametrize("kind", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_weights_of_another_kind_are_named(saved: Path, kind: torch.dtype) -> None:
    tensors = load_file(saved / "model.safetensors")
    tensors["ln_final.w"] = tensors["ln_final.w"].to(kind)
    save_file(tensors, saved / "model.safetensors")
    forget_hash(saved)
    with pytest.raises(UserError, match=f"ln_final.w' has type {kind}".replace("torch.", "")):
        load(saved)


def forget_hash(directory: Path) -> None:
    content = json.loads((directory / "cfg.json").read_text())
    del content["weights"]
    (directory / "cfg.json").write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["cfg.json", "model.safetensors", "config.json"])
def test_a_pipe_ends_in_one_line(saved: Path, name: str) -> None:
    (saved / name).unlink(missing_ok=True)
    os.mkfifo(saved / name)
    if name == "config.json":  # of Hugging Face's; ours is read
        load(saved)
        return
    with pytest.raises(UserError) as caught:
        load(saved)
    one_line(caught.value)


# YAML ------------------------------------------------------------------------------------------

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)
BAD_YAML = {
    "aliases that grow": BOMB,
    "an alias that holds itself": "a: &a [*a]\n",
    "deep": "a: " + DEEP,
    "deep by braces": "{a: " * 5_000 + "1" + "}" * 5_000,
    "torn": "a: [1, 2",
    "a tag that runs code": "a: !!python/object/apply:os.system [ls]\n",
    "a date that is none": "a: 2024-99-99\n",
    "large": "a: " + "x" * (2 << 20),
}


@pytest.mark.parametrize("case", BAD_YAML)
def test_yaml_beyond_bounds_is_refused_by_every_reader(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from evaluations.cli import main as sat_eval
    from sat_interp.cli import main as sat_train

    path = tmp_path / "file.yaml"
    path.write_text(BAD_YAML[case])
    with pytest.raises(UnreadableError) as caught:
        read_yaml(path)
    one_line(caught.value)
    for main, arguments in (
        (sat_train, ["--config", str(path), "--out", str(tmp_path / "run")]),
        (sat_train, [f"--config={path}", "--out", str(tmp_path / "run")]),
        (sat_train, ["--study", str(path)]),
        (sat_eval, ["lm", "demo:baseline", "--config", str(path)]),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert "file.yaml" in error


@pytest.mark.parametrize("content", [b"a: \xff", b"\x00\x01", b"- 1", b"3"])
def test_config_files_of_any_content_are_one_line(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    from evaluations.cli import main as sat_eval
    from sat_interp.cli import main as sat_train

    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    for main, rest in ((sat_train, []), (sat_eval, ["lm", "demo:baseline"])):
        assert main([*rest, "--config", str(path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_anchors_that_stay_small_are_read(tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text("a: &a {b: 1}\nc: *a\nd: {<<: *a, e: 2}\n")
    content = read_yaml(tmp_path / "file.yaml")
    assert content == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}
    (tmp_path / "file.json").write_text('{"a": [1, 2.5, null, "x"]}')
    assert read_json(tmp_path / "file.json") == {"a": [1, 2.5, None, "x"]}


def test_an_object_that_cannot_be_read_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    assert read_object(path) == {}
    for content in ("[1]", "{", "\ufeff{}", "[" * 100_000):
        path.write_text(content)
        assert read_object(path) == {}
    path.write_text('{"a": 1}')
    assert read_object(path) == {"a": 1}
    os.mkfifo(tmp_path / "pipe.json")
    assert read_object(tmp_path / "pipe.json") == {}


def test_a_pipe_as_config_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sat_interp.cli import main

    os.mkfifo(tmp_path / "pipe.yaml")
    for option in ("--config", "--study"):
        assert main([option, str(tmp_path / "pipe.yaml")]) == 2
        assert "not a regular file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "not enough memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:1] can't allocate memory: you tried"),
            "memory",
        ),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (OverflowError("int too large to convert to float"), "too large"),
    ],
)
def test_what_the_machine_cannot_do_is_one_line(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise error

    assert run_command(command) == 2
    found = capsys.readouterr().err
    assert found.startswith("error: ")
    assert said in found
    assert found.count("\n") == 1


def test_a_fault_of_ours_stays_a_traceback() -> None:
    def command() -> None:
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        run_command(command)


# Hugging Face ----------------------------------------------------------------------------------

HF = {
    "hidden_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "vocab_size": 19,
    "intermediate_size": 12,
    "max_position_embeddings": 6,
    "attention_types": [[["global"], 2]],
}


@pytest.fixture(scope="module")
def neo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("neo")
    GPTNeoForCausalLM(GPTNeoConfig(**HF)).save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    "field",
    [
        "num_layers",
        "hidden_size",
        "num_heads",
        "vocab_size",
        "intermediate_size",
        "model_type",
        "architectures",
    ],
)
def test_a_hugging_face_configuration_of_odd_values_is_refused(neo: Path, field: str) -> None:
    path = neo / "config.json"
    content = path.read_text()
    try:
        for value in (10**7, 10**9, 10**400, 3, -1, 0, 2.0, True, "2", [2], {"a": 1}):
            path.write_text(json.dumps({**json.loads(content), field: value}))
            with pytest.raises(UserError) as caught:
                SelfAblatingTransformer.from_hf(neo)
            one_line(caught.value)
    finally:
        path.write_text(content)
    assert SelfAblatingTransformer.from_hf(neo).cfg.n_layers == 2


def test_weights_of_another_number_of_layers_or_kind_are_refused(neo: Path) -> None:
    path, weights = neo / "config.json", neo / "model.safetensors"
    content, tensors, kept = path.read_text(), load_file(weights), weights.read_bytes()
    try:
        for layers in (1, 3, 900):
            changed = {
                "num_layers": layers,
                "attention_layers": ["global"] * layers,
                "attention_types": [[["global"], layers]],
            }
            path.write_text(json.dumps({**json.loads(content), **changed}))
            with pytest.raises(UserError, match=f"num_layers is {layers}, but the weights hold 2"):
                SelfAblatingTransformer.from_hf(neo)
        path.write_text(content)
        name = "transformer.ln_f.weight"
        save_file({**tensors, name: tensors[name].to(torch.int32)}, weights, {"format": "pt"})
        with pytest.raises(UserError, match=r"ln_f.weight' has type I32"):
            SelfAblatingTransformer.from_hf(neo)
        weights.unlink()
        os.mkfifo(weights)
        with pytest.raises(UserError, match="is not a regular file"):
            SelfAblatingTransformer.from_hf(neo)
    finally:
        path.write_text(content)
        weights.unlink()
        weights.write_bytes(kept)


def test_released_weights_of_another_kind_are_named() -> None:
    for value in (torch.ones(3, dtype=torch.int64), torch.ones(3) * 1j, torch.ones(3) > 0):
        with pytest.raises(UserError, match="floating-point"):
            SelfAblatingTransformer.from_released({"transformer.wte.weight": value}, n_heads=2)


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, -(2**70)])
def test_a_seed_no_generator_takes_is_one_line(
    seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    from evaluations.cli import main

    for command in ("lm", "acdc", "neurons"):
        assert main([command, "demo:baseline", f"--seed={seed}"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: seed must be from 0 to 2^63 - 1, not ")
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seeds: [0]\nseeds: [1, 2]\n", "seeds is there twice, in lines 1 and 2"),
        ("a:\n  steps: 5\n  tau: 1\n  steps: 50\n", "steps is there twice, in lines 2 and 4"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(tmp_path: Path, text: str, told: str) -> None:
    """YAML would take the last one without a word."""
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UnreadableError, match=told):
        read_yaml(tmp_path / "x.yaml")


def test_keys_of_different_mappings_and_merged_ones_may_be_equal(tmp_path: Path) -> None:
    text = "base: &b {steps: 5}\none: {<<: *b, steps: 6}\ntwo: {steps: 7, '7': a, 7: b}\n"
    (tmp_path / "x.yaml").write_text(text)
    assert read_yaml(tmp_path / "x.yaml")["one"] == {"steps": 6}
