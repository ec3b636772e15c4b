"""A TransformerBlock with its gates and its ablated stream, on hook points of their own."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens import HookedTransformerConfig
from transformer_lens.components import MLP, Attention, LayerNorm, TransformerBlock
from transformer_lens.hook_points import HookPoint

from sat_interp.model.attention import mixed_scores, mixed_values
from sat_interp.model.config import SelfAblationConfig
from sat_interp.model.gates import BlockGates, GateScores
from sat_interp.model.shape import attention_units

Stream = Float[Tensor, "batch pos d_model"]
PerHead = Float[Tensor, "batch pos heads d_head"]


class AblatedAttentionHooks(nn.Module):
    """Hook points of the ablated stream's attention, named as TransformerLens names the clean."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_q = HookPoint()  # [batch, pos, head, d_head]
        self.hook_k = HookPoint()  # [batch, pos, head, d_head]: own keys, read at j = i only
        self.hook_v = HookPoint()  # [batch, pos, head, d_head]: own values, read at j = i only
        self.hook_attn_scores = HookPoint()  # [batch, head, query, key]
        self.hook_pattern = HookPoint()  # [batch, head, query, key]
        self.hook_z = HookPoint()  # [batch, pos, head, d_head], before the mask
        self.hook_z_masked = HookPoint()  # [batch, pos, head, d_head], what W_O reads


class AblatedMLPHooks(nn.Module):
    """Hook points of the ablated stream's MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_pre = HookPoint()  # [batch, pos, d_mlp]
        self.hook_post = HookPoint()  # [batch, pos, d_mlp], before the mask
        self.hook_post_masked = HookPoint()  # [batch, pos, d_mlp], what W_out reads


class AblatedStreamHooks(nn.Module):
    """Hook points of one block's ablated stream: ``blocks.{l}.ablated.*``."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_resid_pre = HookPoint()  # [batch, pos, d_model]
        self.attn = AblatedAttentionHooks()
        self.hook_attn_out = HookPoint()  # [batch, pos, d_model]
        self.hook_resid_mid = HookPoint()  # [batch, pos, d_model]
        self.mlp = AblatedMLPHooks()
        self.hook_mlp_out = HookPoint()  # [batch, pos, d_model]
        self.hook_resid_post = HookPoint()  # [batch, pos, d_model]


class SelfAblatingBlock(TransformerBlock):
    """An ordinary block on the clean stream, and the same weights under masks on the ablated one.

    ``forward`` is TransformerLens' own and knows nothing of gates; :meth:`ablated` is called by
    ``SelfAblatingTransformer.dual`` alone.
    """

    attn: Attention
    mlp: MLP
    ln1: LayerNorm
    ln2: LayerNorm

    def __init__(
        self, cfg: HookedTransformerConfig, block_index: int, ablation: SelfAblationConfig
    ) -> None:
        super().__init__(cfg, block_index)
        # GPT-Neo's Q, K and V carry no bias; TransformerLens' zeros stay zero (and are exported).
        for bias in (self.attn.b_Q, self.attn.b_K, self.attn.b_V):
            bias.requires_grad_(False)
        self.ablation = ablation
        if not ablation.is_gated:
            return
        n_attention, d_mlp = attention_units(ablation, cfg), self.mlp.W_in.shape[1]
        scores = None
        if ablation.variant == "local" and ablation.has_gate_weights:
            scores = GateScores(cfg.d_model, n_attention, d_mlp, ablation, cfg.dtype)
        self.gates = BlockGates(ablation, scores, n_attention, d_mlp)
        self.ablated = AblatedStreamHooks()

    def ablated_forward(
        self,
        ablated: Stream,
        clean_keys: PerHead,
        clean_values: PerHead,
        attention_mask: Float[Tensor, "batch pos attention_units"],
        neuron_mask: Float[Tensor, "batch pos neurons"],
    ) -> Stream:
        """One step of the ablated stream, every intermediate on a hook point.

        The plain form of what ``fast.py`` computes fused; a test holds the two together.

        Args:
            ablated: the ablated stream as it enters the block.
            clean_keys: keys of the clean stream at this block, read for positions j < i.
            clean_values: values of the clean stream.
            attention_mask: multiplies z, before W_O.
            neuron_mask: multiplies the post-activations, before W_out.
        """
        hooks = self.ablated
        ablated = hooks.hook_resid_pre(ablated)
        attn_out = hooks.hook_attn_out(
            self._ablated_attention(ablated, clean_keys, clean_values, attention_mask)
        )
        middle = hooks.hook_resid_mid(ablated + attn_out)
        mlp_out = hooks.hook_mlp_out(self._ablated_mlp(middle, neuron_mask))
        output: Tensor = hooks.hook_resid_post(middle + mlp_out)
        return output

    def _ablated_attention(
        self, ablated: Tensor, clean_keys: Tensor, clean_values: Tensor, mask: Tensor
    ) -> Tensor:
        attn, hooks = self.attn, self.ablated.attn
        normed = layer_norm(self.ln1, ablated)

        def project(weight: Tensor, bias: Tensor) -> Tensor:
            return torch.einsum("bpd,hdk->bphk", normed, weight) + bias

        queries = hooks.hook_q(project(attn.W_Q, attn.b_Q)).transpose(1, 2)
        own_keys = hooks.hook_k(project(attn.W_K, attn.b_K)).transpose(1, 2)
        own_values = hooks.hook_v(project(attn.W_V, attn.b_V)).transpose(1, 2)
        scores = hooks.hook_attn_scores(
            mixed_scores(queries, clean_keys.transpose(1, 2), own_keys, attention_scale(self))
        )
        pattern = hooks.hook_pattern(scores.softmax(-1))
        z = mixed_values(pattern, clean_values.transpose(1, 2), own_values).transpose(1, 2)
        z = hooks.hook_z(z)
        masked = hooks.hook_z_masked(z * spread_over_coordinates(mask, attn.W_Q).view(z.shape))
        return torch.einsum("bphk,hkd->bpd", masked, attn.W_O) + attn.b_O

    def _ablated_mlp(self, middle: Tensor, mask: Tensor) -> Tensor:
        mlp, hooks = self.mlp, self.ablated.mlp
        normed = layer_norm(self.ln2, middle)
        pre = hooks.hook_pre(F.linear(normed, mlp.W_in.T, mlp.b_in))
        post = hooks.hook_post(mlp.act_fn(pre))
        return F.linear(hooks.hook_post_masked(post * mask), mlp.W_out.T, mlp.b_out)


def layer_norm(
    norm: nn.Module, stream: Float[Tensor, "*rows d_model"]
) -> Float[Tensor, "*rows d_model"]:
    """TransformerLens' LayerNorm as one fused call, firing none of its hook points."""
    assert isinstance(norm, LayerNorm)  # folded ones are refused before they come here
    return F.layer_norm(stream, (norm.length,), norm.w, norm.b, norm.eps)


def attention_scale(block: TransformerBlock) -> float:
    """Factor on attention scores: 1 in GPT-Neo, 1/sqrt(d_head) elsewhere."""
    return 1.0 / block.attn.attn_scale


def spread_over_coordinates(
    mask: Float[Tensor, "batch pos units"], head_weights: Float[Tensor, "heads d_model d_head"]
) -> Float[Tensor, "batch pos coordinates"]:
    """A mask over heads, repeated for each coordinate of z; one over coordinates, as it is."""
    heads, _, d_head = head_weights.shape
    return mask if mask.shape[-1] == heads * d_head else mask.repeat_interleave(d_head, dim=-1)
