"""Somebody's autoencoder directory, with a lie in every field: one line, or the right thing."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer, HookedTransformerConfig

from evaluations.core.autoencoder import content_hash, hook_point, open_sae, write_l0
from evaluations.core.units import find_units
from sat_interp._util.errors import UserError

HOOK = "blocks.0.hook_mlp_out"
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
NAN, INF = float("nan"), float("inf")
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def place(tmp_path):
    torch.manual_seed(0)
    config = StandardSAEConfig(d_in=6, d_sae=10, metadata=SAEMetadata(hook_name=HOOK))
    StandardSAE(config).save_model(tmp_path / "sae")
    return tmp_path / "sae"


def model():
    return HookedTransformer(
        HookedTransformerConfig(
            n_layers=1,
            d_model=6,
            n_heads=2,
            d_head=3,
            n_ctx=8,
            d_vocab=9,
            act_fn="relu",
            device="cpu",
            seed=0,
        )
    )


def change(place, **changes):
    config = json.loads((place / CONFIG).read_text())
    (place / CONFIG).write_text(json.dumps({**config, **changes}))


def refused(place):
    with pytest.raises(UserError) as told:
        open_sae(place, "cpu")
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 500
    return str(told.value)


def test_a_sound_one_opens(place):
    assert open_sae(place, "cpu").cfg.d_sae == 10
    assert hook_point(place) == HOOK


ODD = [None, True, -1, 0, 7, 2**31, 2**70, 1e300, 6.5, "six", "", [], [6], {}, {"a": 1}]


@pytest.mark.parametrize("name", ["d_in", "d_sae"])
@pytest.mark.parametrize("value", ODD)
def test_sizes(place, name, value):
    change(place, **{name: value})
    assert name in refused(place)


@pytest.mark.parametrize("name", ["architecture", "dtype", "metadata", "normalize_activations"])
@pytest.mark.parametrize("value", [7, "nonsense", "\x1b[2J", ["standard"], {"a": []}, 1e300])
def test_names(place, name, value):
    if name == "metadata" and value == {"a": []}:
        value = {"hook_name": ["a"]}
    change(place, **{name: value})
    told = refused(place)
    assert "\x1b" not in told


@pytest.mark.parametrize(
    "kind", ["transcoder", "skip_transcoder", "temporal", "batchtopk", "standard_5.1"]
)
def test_architectures_that_do_not_reconstruct_one_activation(place, kind):
    change(place, architecture=kind)
    assert f'architecture is "{kind}", not one of' in refused(place)


@pytest.mark.parametrize("k", [0, -1, 11, 1e9, 3.0, 3.5, "3", True, [3], NAN, INF, 10**400])
def test_k(place, k):
    change(place, architecture="topk", k=k)
    assert "k is" in refused(place)


@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_an_architecture_that_needs_k(place, architecture):
    change(place, architecture=architecture)
    assert f"{architecture} needs k" in refused(place)
    change(place, k=3)
    assert open_sae(place, "cpu").cfg.k == 3


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("apply_b_dec_to_input", ["yes", 1, None, []]),
        ("rescale_acts_by_decoder_norm", ["yes", 1, None, []]),
        ("reshape_activations", ["", "six", "\x1b[2J", None, True, 3, NAN, [], ["none"], {}]),
        ("max_iterations", [0, -1, True, 3.5, 1e300, NAN, INF, 2**70, "six", [6], {}]),
        ("residual_threshold", [None, True, -1, NAN, INF, 1e300, 10**400, "six", [6], {}]),
    ],
)
def test_other_fields(place, name, values):
    for value in values:
        change(place, **{name: value})
        told = refused(place)
        assert f"{name} is" in told, value
        assert "\x1b" not in told


@pytest.mark.parametrize("dtype", ["int8", "int64", "bool", "float8_e4m3fn", "complex64", "uint8"])
def test_numbers_that_are_no_weights(place, dtype):
    change(place, dtype=dtype)
    assert "dtype" in refused(place)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '"text"', DEEP, '{"a":' * 50_000, "\ufeff{}", "{} {}"]
)
def test_the_configuration_is_none(place, text):
    (place / CONFIG).write_text(text)
    assert CONFIG in refused(place)


def test_bytes_that_are_no_text_and_a_file_too_large(place):
    (place / CONFIG).write_bytes(b"\xff\xfe\x00")
    assert CONFIG in refused(place)
    (place / CONFIG).write_text(" " * (1 << 21))
    assert "more than 1,048,576" in refused(place)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_what_is_no_file(place, name):
    (place / name).unlink()
    assert f"has no {name}" in refused(place)
    (place / name).mkdir()
    assert f"has no {name}" in refused(place)
    (place / name).rmdir()
    os.mkfifo(place / name)  # reading one would wait for ever
    assert f"has no {name}" in refused(place)
    (place / name).unlink()
    (place / name).symlink_to(place / name)
    assert f"has no {name}" in refused(place)


def test_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "nowhere", tmp_path):
        assert "is not a SAELens directory" in refused(path)


class Bomb:
    def __reduce__(self):
        return os.abort, ()


@pytest.mark.parametrize("content", [b"", b"nothing", b"\xff" * 64, pickle.dumps(Bomb())])
def test_weights_that_are_no_safetensors(place, content):
    (place / WEIGHTS).write_bytes(content)
    assert "SAELens cannot open" in refused(place)


def test_truncated_weights(place):
    whole = (place / WEIGHTS).read_bytes()
    for size in (8, 100, len(whole) - 1):
        (place / WEIGHTS).write_bytes(whole[:size])
        assert "SAELens cannot open" in refused(place)


def weights(place, **changes):
    tensors = {**load_file(place / WEIGHTS), **changes}
    save_file({name: one for name, one in tensors.items() if one is not None}, place / WEIGHTS)


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
def test_each_weight(place, name):
    sound = load_file(place / WEIGHTS)[name]
    for bad in (float("nan"), float("inf"), -float("inf")):
        broken = sound.clone()
        broken.view(-1)[-1] = bad
        weights(place, **{name: broken})
        assert f"{name} of the autoencoder is not finite" in refused(place)
    weights(place, **{name: sound[:-1].clone()})
    assert f"{name} has the shape" in refused(place)
    weights(place, **{name: sound.long()})
    assert f"{name} holds numbers of the type I64" in refused(place)
    weights(place, **{name: None})
    assert name in refused(place)


def test_weights_beyond_those_of_the_architecture(place):
    weights(place, extra=torch.zeros(3))
    assert "extra" in refused(place)


def test_numbers_that_a_smaller_type_cannot_hold(place):
    weights(place, b_dec=torch.full((6,), 1e30))
    change(place, dtype="float16")
    assert "b_dec of the autoencoder is not finite" in refused(place)


def test_one_that_names_no_hook_point(place):
    for metadata in ({}, {"hook_name": ""}):
        change(place, metadata={"sae_lens_version": "6.54.0", **metadata})
        with pytest.raises(UserError, match="names no hook point: name it with --hook"):
            hook_point(place, "name it with --hook")
        with pytest.raises(UserError, match=r"names no hook point: write hook_name into its cfg"):
            find_units(model(), sae=place)


def test_the_hash_is_of_weights_and_configuration_not_of_figures(place):
    before = content_hash(place)
    write_l0(place, 3.5, {"n_stories": 2})
    assert json.loads((place / CONFIG).read_text())["metadata"]["l0"] == 3.5
    assert content_hash(place) == before
    change(place, apply_b_dec_to_input=False)
    changed = content_hash(place)
    assert changed != before
    weights(place, b_dec=torch.ones(6))
    assert content_hash(place) not in (before, changed)
    assert open_sae(place, "cpu").cfg.metadata.l0 == 3.5
