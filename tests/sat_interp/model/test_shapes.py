"""Blocks of other shapes than the paper's: against TransformerLens' own forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformer_lens import HookedTransformerConfig

from sat_interp.model.config import SelfAblationConfig
from sat_interp.model.fast import fast_activations
from sat_interp.model.positions import position_hooks
from sat_interp.model.transformer import SelfAblatingTransformer

LLAMA: dict[str, Any] = {
    "n_layers": 3,
    "d_model": 16,
    "n_heads": 4,
    "d_head": 6,
    "d_mlp": 40,
    "d_vocab": 61,
    "n_ctx": 40,
    "act_fn": "silu",
    "normalization_type": "RMS",
    "positional_embedding_type": "rotary",
    "rotary_dim": 6,
    "gated_mlp": True,
    "n_key_value_heads": 2,
    "init_mode": "gpt2",
    "initializer_range": 0.4,
    "dtype": torch.float64,
    "device": "cpu",
}
NEOX = {
    "normalization_type": "LN",
    "gated_mlp": False,
    "n_key_value_heads": None,
    "rotary_dim": 2,
    "parallel_attn_mlp": True,
    "act_fn": "gelu",
}
WINDOWS = {"use_local_attn": True, "attn_types": ["local", "global", "local"], "window_size": 3}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "one group": {"n_key_value_heads": 1},
    "norms of queries and keys": {"use_qk_norm": True},
    "windows": WINDOWS,
    "parallel": NEOX,
    "adjacent pairs": {**NEOX, "rotary_adjacent_pairs": True},
    "learned positions, windows, gated": {
        **WINDOWS,
        "positional_embedding_type": "standard",
        "rotary_dim": None,
    },
}


def make(shape: str, variant: Any = "local", **settings: Any) -> SelfAblatingTransformer:
    """A float64 model of random weights."""
    torch.manual_seed(0)
    tied = settings.pop("tied", True)
    kept: dict[str, Any] = {"k_attention": 3, "k_neurons": 4, **settings}
    cfg = HookedTransformerConfig(**{**LLAMA, **SHAPES[shape]})
    model = SelfAblatingTransformer(cfg, SelfAblationConfig(variant, **kept), tied=tied)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "W_" not in name:
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.3)
    return model


def _alone(model: SelfAblatingTransformer, tokens: torch.Tensor, masks: Any) -> torch.Tensor:
    """The ablated stream by TransformerLens: one position at a time is masked in a plain model.

    Attention is causal, so earlier positions stay clean, and a position reads its own masked past
    and the clean keys and values of the others: what the ablated stream is defined as.
    """
    plain, rows = model.to_hooked_transformer(), []
    for position in range(tokens.shape[1]):

        def at(mask: torch.Tensor, position: int = position) -> Any:
            def hook(value: torch.Tensor, hook: Any) -> torch.Tensor:
                changed = value.clone()
                own = mask[:, position].view(changed[:, position].shape)
                changed[:, position] *= own
                return changed

            return hook

        hooks = []
        for layer in range(model.cfg.n_layers):
            hooks.append((f"blocks.{layer}.attn.hook_z", at(masks.attention_masks[:, :, layer])))
            hooks.append((f"blocks.{layer}.mlp.hook_post", at(masks.neuron_masks[:, :, layer])))
        rows.append(plain.run_with_hooks(tokens, fwd_hooks=hooks)[:, position])
    return torch.stack(rows, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["local", "global"])
@pytest.mark.parametrize("shape", SHAPES)
def test_both_streams_are_what_transformer_lens_computes(shape, variant, tokens):
    model = make(shape, variant)
    for path in ("fast", "hooked"):
        out = model.dual(tokens, path)
        assert torch.allclose(out.clean_logits, model(tokens), atol=1e-10)
        assert torch.allclose(out.ablated_logits, _alone(model, tokens, out), atol=1e-10)
        assert (out.attention_masks.sum(-1) == 3).all()
        assert (out.neuron_masks.sum(-1) == 4).all()


@pytest.mark.parametrize("variant", ["local", "global"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_both_paths_and_of_recomputed_blocks_agree(shape, variant, tokens):
    model = make(shape, variant, tied=False)

    def gradients(path: Any, recomputes: bool) -> dict[str, torch.Tensor]:
        model.zero_grad()
        model.recomputes_blocks = recomputes
        out = model.dual(tokens, path)
        (out.clean_logits[..., 0].sin() + out.ablated_logits[..., 1].cos()).sum().backward()
        named = model.named_parameters()
        return {name: one.grad.clone() for name, one in named if one.grad is not None}

    fast, hooked = gradients("fast", False), gradients("hooked", False)
    assert fast.keys() == hooked.keys()
    for name, gradient in fast.items():
        assert torch.allclose(gradient, hooked[name], atol=1e-8), name
    again = gradients("fast", True)
    assert all(torch.equal(fast[name], again[name]) for name in fast)


def test_random_gates_are_drawn_once_where_blocks_are_recomputed(tokens):
    model = make("llama", gates="random")
    found = []
    for recomputes in (False, True):
        model.zero_grad()
        model.recomputes_blocks = recomputes
        torch.manual_seed(3)
        model.dual(tokens).ablated_logits.sin().sum().backward()
        found.append(model.blocks[0].mlp.W_in.grad.clone())
    assert torch.equal(*found)


@torch.no_grad()
@pytest.mark.parametrize("shape", ["llama", "windows", "learned positions, windows, gated"])
def test_both_streams_are_read_at_given_positions(shape):
    """A window in the middle of a text, its distances as in the text."""
    model = make(shape)
    tokens = torch.randint(61, (1, 6))
    positions = torch.tensor([[0, 9, 10, 11, 12, 13]])
    with model.hooks(fwd_hooks=position_hooks(model, positions, 3)):
        moved, cache = model.run_with_cache_dual(tokens)
    plain = model.to_hooked_transformer()
    with plain.hooks(fwd_hooks=position_hooks(plain, positions, 3)):
        assert torch.allclose(moved.clean_logits, plain(tokens), atol=1e-10)
        expected = _alone_at(plain, tokens, moved)
    assert torch.allclose(moved.ablated_logits[:, -1], expected, atol=1e-10)
    name = "blocks.1.mlp.hook_post"
    fast = fast_activations(model, tokens, [name], positions)[name]
    assert torch.allclose(fast, cache[name], atol=1e-10)


def _alone_at(plain: Any, tokens: torch.Tensor, masks: Any) -> torch.Tensor:
    """The ablated logits of the last position, inside hooks that move the positions."""

    def at(mask: torch.Tensor) -> Any:
        def hook(value: torch.Tensor, hook: Any) -> torch.Tensor:
            changed = value.clone()
            changed[:, -1] *= mask[:, -1].view(changed[:, -1].shape)
            return changed

        return hook

    hooks = []
    for layer in range(plain.cfg.n_layers):
        hooks.append((f"blocks.{layer}.attn.hook_z", at(masks.attention_masks[:, :, layer])))
        hooks.append((f"blocks.{layer}.mlp.hook_post", at(masks.neuron_masks[:, :, layer])))
    with plain.hooks(fwd_hooks=hooks):
        return plain(tokens)[:, -1]
