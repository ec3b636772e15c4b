"""Tokens at positions of their own are what the whole text gives with all other keys masked."""

from __future__ import annotations

import copy

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

from evaluations.core.units import find_units
from sat_interp import SelfAblatingTransformer, SelfAblationConfig
from sat_interp._util.errors import UserError
from sat_interp.model.fast import fast_activations
from sat_interp.model.positions import position_hooks
from sat_interp.model.shape import gpt_neo_config

N_CTX, STARTS, SIZE = 24, (0, 3, 17), 6
STORY = torch.arange(N_CTX) * 7 % 17
HOOKS = ["blocks.0.mlp.hook_post", "blocks.1.hook_resid_post"]
LOCAL = {"use_local_attn": True, "attn_types": ["local", "global"], "window_size": 4}
ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 4}
YARN = {
    "use_yarn_rope": True,
    "yarn_factor": 4.0,
    "yarn_attention_factor": 1.3,
    "yarn_beta_fast": 32.0,
    "yarn_beta_slow": 1.0,
    "yarn_original_max_position_embeddings": 8,
}


def other(**settings):
    known = {"positional_embedding_type": "standard", **settings}
    cfg = HookedTransformerConfig(
        n_layers=2,
        d_model=16,
        n_heads=2,
        d_head=8,
        d_mlp=12,
        n_ctx=N_CTX,
        d_vocab=17,
        seed=0,
        act_fn="gelu",
        normalization_type="LN",
        dtype=torch.float64,
        device="cpu",
        initializer_range=0.4,
        **known,
    )
    return HookedTransformer(cfg).eval()


def ours(variant="none", **ablation):
    torch.manual_seed(0)
    cfg = gpt_neo_config(
        n_layers=2,
        d_model=16,
        n_heads=2,
        d_vocab=17,
        n_ctx=N_CTX,
        initializer_range=0.4,
        dtype=torch.float64,
    )
    return SelfAblatingTransformer(cfg, SelfAblationConfig(variant=variant, **ablation)).eval()


def windows():
    """The story's first token and a window of it, for each start, and their positions."""
    places = [[0, *range(start + 1, start + 1 + SIZE)] for start in STARTS]
    positions = torch.tensor(places)
    return STORY[positions], positions


def masked(model, start):
    """The whole story up to the window's end, nothing but its first token and the window seen."""
    end = start + 1 + SIZE

    def hide(scores, hook):
        seen = scores.clone()
        for query in range(start + 1, end):
            seen[:, :, query, 1 : start + 1] = -torch.inf
        return seen

    hooks = [(f"blocks.{layer}.attn.hook_attn_scores", hide) for layer in range(2)]
    with model.hooks(fwd_hooks=hooks):
        _, cache = model.run_with_cache(STORY[None, :end])
    return {name: cache[name][0, [0, *range(start + 1, end)]] for name in HOOKS}


@torch.no_grad()
@pytest.mark.parametrize(
    "make",
    [
        lambda: other(),
        lambda: other(**LOCAL),
        lambda: other(positional_embedding_type="shortformer"),
        lambda: other(positional_embedding_type="alibi"),
        lambda: other(positional_embedding_type="alibi", **LOCAL),
        lambda: other(**ROTARY),
        lambda: other(**ROTARY, **LOCAL),
        lambda: other(**ROTARY, rotary_adjacent_pairs=True),
        lambda: other(**ROTARY, **YARN),
        lambda: other(**ROTARY, n_key_value_heads=1),
        lambda: ours(),
    ],
    ids=[
        "learned",
        "learned-local",
        "shortformer",
        "alibi",
        "alibi-local",
        "rotary",
        "rotary-local",
        "rotary-pairs",
        "yarn",
        "grouped",
        "ours",
    ],
)
def test_a_window_is_the_story_with_all_else_masked(make):
    model = make()
    tokens, positions = windows()
    found = fast_activations(model, tokens, HOOKS, positions)
    plain = fast_activations(model, tokens, HOOKS)
    moved = 0.0
    for row, start in enumerate(STARTS):
        for name, wanted in masked(model, start).items():
            torch.testing.assert_close(found[name][row], wanted, rtol=0, atol=1e-9)
            moved = max(moved, float((plain[name][row] - wanted).abs().max()))
    assert moved > 1e-3  # from position 0 it is another reading


@torch.no_grad()
def test_a_rotary_table_that_is_too_short_grows():
    model = other(**ROTARY)
    for block in model.blocks:
        block.attn.rotary_cos = block.attn.rotary_cos[:8]
        block.attn.rotary_sin = block.attn.rotary_sin[:8]
    tokens, positions = windows()
    found = fast_activations(model, tokens, HOOKS, positions)
    wanted = masked(other(**ROTARY), STARTS[-1])
    torch.testing.assert_close(found[HOOKS[1]][-1], wanted[HOOKS[1]], rtol=0, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["local", "global"])
def test_the_ablated_stream_is_at_the_same_positions(variant):
    model = ours(variant, k_attention=3, k_neurons=3)
    units = find_units(model, stream="ablated")
    tokens, positions = windows()
    found = units.read(model, tokens, positions=positions)
    for row in range(len(STARTS)):
        other_place = copy.deepcopy(model)  # the embeddings of the window's positions come first
        other_place.pos_embed.W_pos.data[: SIZE + 1] = model.pos_embed.W_pos[positions[row]]
        wanted = units.read(other_place, tokens[row : row + 1])
        for layer, value in wanted.items():
            torch.testing.assert_close(found[layer][row], value[0], rtol=0, atol=1e-9)
    assert not model.hook_dict["hook_pos_embed"].fwd_hooks


def test_positions_of_an_unknown_kind_are_refused():
    model = other()
    model.cfg.positional_embedding_type = "relative_positional_bias"
    with pytest.raises(UserError, match="relative_positional_bias"):
        position_hooks(model, windows()[1], 2)
