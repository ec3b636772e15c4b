"""Units: which activations are read, under which names."""

from __future__ import annotations

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata

from evaluations.core.autoencoder import content_hash
from evaluations.core.units import find_units
from sat_interp._util.errors import UserError


@pytest.fixture
def tokens(tokenizer):
    return torch.randint(len(tokenizer), (3, 7), generator=torch.Generator().manual_seed(0))


def test_neurons_are_post_activations_of_every_block(make_model, tokens):
    model = make_model()
    units = find_units(model)
    assert (units.layers, units.sizes) == ((0, 1), (64, 64))
    _, cache = model.run_with_cache(tokens)
    for layer, values in units.read(model, tokens).items():
        torch.testing.assert_close(values, cache[f"blocks.{layer}.mlp.hook_post"])
    assert list(units.read(model, tokens, [1])) == [1]


def test_the_ablated_stream_reads_what_the_mask_left(make_model, tokens):
    model = make_model("local")
    units = find_units(model, stream="ablated")
    _, cache = model.run_with_cache_dual(tokens)
    for layer, values in units.read(model, tokens).items():
        torch.testing.assert_close(values, cache[f"blocks.{layer}.ablated.mlp.hook_post_masked"])
        assert int((values != 0).sum(-1).max()) == 5
    z = find_units(model, "blocks.*.attn.hook_z", "ablated").read(model, tokens)
    torch.testing.assert_close(z[1], cache["blocks.1.ablated.attn.hook_z"].flatten(2))


def test_features_of_an_autoencoder(make_model, tokens, tmp_path):
    model = make_model()
    sae = StandardSAE(
        StandardSAEConfig(
            d_in=16,
            d_sae=40,
            dtype="float64",
            metadata=SAEMetadata(hook_name="blocks.1.hook_mlp_out"),
        )
    )
    with torch.no_grad():
        sae.W_enc.normal_(generator=torch.Generator().manual_seed(0))
    sae.save_model(tmp_path / "sae")
    units = find_units(model, sae=tmp_path / "sae")
    assert (units.layers, units.sizes) == ((1,), (40,))
    _, cache = model.run_with_cache(tokens)
    wanted = sae.encode(cache["blocks.1.hook_mlp_out"])
    torch.testing.assert_close(units.read(model, tokens)[1], wanted)
    assert units.describe()["sae"] == content_hash(tmp_path / "sae")


def test_an_autoencoder_of_another_width_is_refused(make_model, tmp_path):
    sae = StandardSAE(
        StandardSAEConfig(
            d_in=12, d_sae=20, metadata=SAEMetadata(hook_name="blocks.1.hook_mlp_out")
        )
    )
    sae.save_model(tmp_path / "sae")
    with pytest.raises(UserError, match="reads 12 numbers"):
        find_units(make_model(), sae=tmp_path / "sae")
    with pytest.raises(UserError, match="not a SAELens directory"):
        find_units(make_model(), sae=tmp_path)


def test_names(make_model):
    units = find_units(make_model())
    assert units.parse("1.63") == (1, 63)
    for wrong, told in (
        ("1", "LAYER.NUMBER"),
        ("2.0", "layers read are 0, 1"),
        ("1.64", "0 to 63"),
    ):
        with pytest.raises(UserError, match=told):
            units.parse(wrong)


def test_what_is_not_there_is_said(make_model):
    model = make_model()
    with pytest.raises(UserError, match="ablated stream"):
        find_units(model, stream="ablated")
    with pytest.raises(UserError, match="hook_post"):
        find_units(model, "blocks.*.mlp.hook_past")
    with pytest.raises(UserError, match="two hook points"):
        find_units(model, "blocks.0.hook_mlp_out,blocks.0.mlp.hook_post")
    with pytest.raises(UserError, match="name a hook point"):
        find_units(model, " ")
    with pytest.raises(UserError, match="hook point"):
        find_units(make_model("local"), "blocks.*.hook_nothing", "ablated")
