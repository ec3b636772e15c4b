from __future__ import annotations

import pytest
import torch

from sat_interp import SelfAblatingTransformer, SelfAblationConfig
from sat_interp._util.errors import UserError
from sat_interp.model.fast import fast_activations
from sat_interp.model.shape import gpt_neo_config
from sat_interp.model.splice import splice
from tests.unlike_ours import unlike_ours

SITES = [
    "hook_resid_pre",
    "attn.hook_z",
    "hook_attn_out",
    "hook_resid_mid",
    "mlp.hook_post",
    "hook_mlp_out",
    "hook_resid_post",
]
TOKENS = torch.arange(22).view(2, 11) % 17


def ours(variant="local", dtype=torch.float64):
    torch.manual_seed(0)
    cfg = gpt_neo_config(
        n_layers=3, d_model=16, n_heads=4, d_vocab=17, n_ctx=12, initializer_range=0.3, dtype=dtype
    )
    model = SelfAblatingTransformer(cfg, SelfAblationConfig(variant=variant, k_attention=3)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # biases and LN away from 0 and 1
    return model


def other():
    return unlike_ours(n_layers=3, n_ctx=12, d_vocab=17)


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("site", SITES)
def test_an_activation_is_what_run_with_cache_holds(layer, site):
    name = f"blocks.{layer}.{site}"
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model = ours(dtype=dtype)
        wanted = model.run_with_cache(TOKENS)[1][name]
        found = fast_activations(model, TOKENS, [name])[name]
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() < tolerance * max(1.0, float(wanted.abs().max()))


@torch.no_grad()
def test_several_hook_points_come_from_one_pass():
    model = ours("global")
    names = ["blocks.2.hook_mlp_out", "blocks.0.attn.hook_z", "blocks.1.hook_resid_post"]
    cache = model.run_with_cache(TOKENS)[1]
    found = fast_activations(model, TOKENS, names)
    assert set(found) == set(names)
    for name in names:
        torch.testing.assert_close(found[name], cache[name], rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("make", [ours, other])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_what_follows_a_replaced_activation_is_what_hooks_compute(make, site, layer):
    model, name = make(), f"blocks.{layer}.{site}"
    stopped = splice(model, TOKENS, name)
    torch.testing.assert_close(
        stopped.activation, model.run_with_cache(TOKENS)[1][name], rtol=0, atol=1e-10
    )
    for replacement in (
        stopped.activation,
        torch.zeros_like(stopped.activation),
        torch.randn_like(stopped.activation),
    ):
        wanted = model.run_with_hooks(
            TOKENS, fwd_hooks=[(name, lambda value, hook, new=replacement: new)]
        )
        found = model.unembed(stopped.finish(replacement))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


@torch.no_grad()
def test_other_models_other_hook_points_and_processed_weights_go_through_hooks():
    for model, name in ((other(), "blocks.1.mlp.hook_pre"), (ours(), "blocks.1.attn.hook_q")):
        wanted = model.run_with_cache(TOKENS)[1][name]
        torch.testing.assert_close(fast_activations(model, TOKENS, [name])[name], wanted)
    model = ours()
    model.process_weights_()
    name = "blocks.1.hook_mlp_out"
    wanted = model.run_with_cache(TOKENS)[1][name]
    torch.testing.assert_close(fast_activations(model, TOKENS, [name])[name], wanted)


def test_nothing_after_the_last_hook_point_is_computed(monkeypatch):
    model = ours()
    monkeypatch.setattr(model.blocks[2], "attn", None)  # would fail if it were asked
    monkeypatch.setattr(model.blocks[1].mlp, "W_out", None)
    assert fast_activations(model, TOKENS, ["blocks.1.mlp.hook_post"])


@pytest.mark.parametrize(
    "name",
    [
        "blocks.9.hook_mlp_out",
        "blocks.1.hook_mlp_uot",
        "nonsense",
        "hook_embed",
        "blocks.0.attn.hook_pattern",
        "blocks.0.ablated.hook_mlp_out",
    ],
)
def test_an_unknown_hook_point_is_named_in_one_line(name):
    with pytest.raises(UserError, match=r"hook point.*blocks 0 to 2") as told:
        fast_activations(ours(), TOKENS, [name])
    assert "\n" not in str(told.value)
