"""A TransformerBlock with its gates and its ablated stream, on hook points of their own."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens import HookedTransformerConfig
from transformer_lens.components import LayerNorm, RMSNorm, TransformerBlock
from transformer_lens.hook_points import HookPoint

from sat_interp.model.attention import mixed_scores, mixed_values
from sat_interp.model.config import SelfAblationConfig
from sat_interp.model.gates import BlockGates, GateScores
from sat_interp.model.shape import absent_biases, attention_units

Stream = Float[Tensor, "batch pos d_model"]
PerHead = Float[Tensor, "batch pos heads d_head"]
PerGroup = Float[Tensor, "batch pos groups d_head"]


class AblatedAttentionHooks(nn.Module):
    """Hook points of the ablated stream's attention, named as TransformerLens names the clean.

    With grouped queries ``hook_k`` and ``hook_v`` hold a head for each group, as in the clean.
    """

    def __init__(self, is_rotary: bool) -> None:
        super().__init__()
        self.hook_q = HookPoint()  # [batch, pos, head, d_head]
        self.hook_k = HookPoint()  # [batch, pos, head, d_head]: own keys, read at j = i only
        self.hook_v = HookPoint()  # [batch, pos, head, d_head]: own values, read at j = i only
        if is_rotary:
            self.hook_rot_q = HookPoint()  # [batch, pos, head, d_head]
            self.hook_rot_k = HookPoint()  # [batch, pos, head, d_head]
        self.hook_attn_scores = HookPoint()  # [batch, head, query, key]
        self.hook_pattern = HookPoint()  # [batch, head, query, key]
        self.hook_z = HookPoint()  # [batch, pos, head, d_head], before the mask
        self.hook_z_masked = HookPoint()  # [batch, pos, head, d_head], what W_O reads


class AblatedMLPHooks(nn.Module):
    """Hook points of the ablated stream's MLP."""

    def __init__(self, is_gated: bool) -> None:
        super().__init__()
        self.hook_pre = HookPoint()  # [batch, pos, d_mlp]
        if is_gated:
            self.hook_pre_linear = HookPoint()  # [batch, pos, d_mlp]
        self.hook_post = HookPoint()  # [batch, pos, d_mlp], before the mask
        self.hook_post_masked = HookPoint()  # [batch, pos, d_mlp], what W_out reads


class AblatedStreamHooks(nn.Module):
    """Hook points of one block's ablated stream: ``blocks.{l}.ablated.*``."""

    def __init__(self, cfg: HookedTransformerConfig) -> None:
        super().__init__()
        self.hook_resid_pre = HookPoint()  # [batch, pos, d_model]
        self.attn = AblatedAttentionHooks(cfg.positional_embedding_type == "rotary")
        self.hook_attn_out = HookPoint()  # [batch, pos, d_model]
        if not cfg.parallel_attn_mlp:
            self.hook_resid_mid = HookPoint()  # [batch, pos, d_model]
        self.mlp = AblatedMLPHooks(bool(cfg.gated_mlp))
        self.hook_mlp_out = HookPoint()  # [batch, pos, d_model]
        self.hook_resid_post = HookPoint()  # [batch, pos, d_model]


class SelfAblatingBlock(TransformerBlock):
    """An ordinary block on the clean stream, and the same weights under masks on the ablated one.

    ``forward`` is TransformerLens' own and knows nothing of gates; :meth:`ablated` is called by
    ``SelfAblatingTransformer.dual`` alone.
    """

    attn: Any
    mlp: Any

    def __init__(
        self, cfg: HookedTransformerConfig, block_index: int, ablation: SelfAblationConfig
    ) -> None:
        super().__init__(cfg, block_index)
        # TransformerLens adds biases to architectures without them; these zeros stay zero.
        absent = absent_biases(cfg)
        for name, parameter in self.named_parameters():
            if name.rpartition(".")[2] in absent:
                parameter.requires_grad_(False)
        self.ablation = ablation
        if not ablation.is_gated:
            return
        n_attention, d_mlp = attention_units(ablation, cfg), int(self.mlp.W_in.shape[1])
        scores = None
        if ablation.variant == "local" and ablation.has_gate_weights:
            scores = GateScores(cfg.d_model, n_attention, d_mlp, ablation, cfg.dtype)
        self.gates = BlockGates(ablation, scores, n_attention, d_mlp)
        self.ablated = AblatedStreamHooks(cfg)

    def ablated_forward(
        self,
        ablated: Stream,
        clean_keys: PerGroup,
        clean_values: PerGroup,
        attention_mask: Float[Tensor, "batch pos attention_units"],
        neuron_mask: Float[Tensor, "batch pos neurons"],
    ) -> Stream:
        """One step of the ablated stream, every intermediate on a hook point.

        The plain form of what ``fast.py`` computes fused; a test holds the two together.

        Args:
            ablated: the ablated stream as it enters the block.
            clean_keys: keys of the clean stream at this block, read for positions j < i; rotated
                where positions are rotary. With grouped queries a head for each group.
            clean_values: values of the clean stream.
            attention_mask: multiplies z, before W_O.
            neuron_mask: multiplies the post-activations, before W_out.
        """
        hooks = self.ablated
        ablated = hooks.hook_resid_pre(ablated)
        attn_out = hooks.hook_attn_out(
            self._ablated_attention(ablated, clean_keys, clean_values, attention_mask)
        )
        middle = ablated + attn_out
        if not is_parallel(self):
            middle = hooks.hook_resid_mid(middle)
        read = ablated if is_parallel(self) else middle
        mlp_out = hooks.hook_mlp_out(self._ablated_mlp(read, neuron_mask))
        output: Tensor = hooks.hook_resid_post(middle + mlp_out)
        return output

    def _ablated_attention(
        self, ablated: Tensor, clean_keys: Tensor, clean_values: Tensor, mask: Tensor
    ) -> Tensor:
        attn, hooks = self.attn, self.ablated.attn
        normed = normalise(self.ln1, ablated)

        def project(weight: Tensor, bias: Tensor) -> Tensor:
            return torch.einsum("bpd,hdk->bphk", normed, weight) + bias

        weights, biases = projection_weights(self)
        queries = hooks.hook_q(project(weights[0], biases[0]))
        own_keys = hooks.hook_k(project(weights[1], biases[1]))
        own_values = hooks.hook_v(project(weights[2], biases[2]))
        queries, own_keys = normed_heads(self, queries, own_keys)
        if is_rotary(self):
            queries = hooks.hook_rot_q(attn.apply_rotary(queries))
            own_keys = hooks.hook_rot_k(attn.apply_rotary(own_keys))
        clean_k, clean_v, own_k, own_v = (
            for_each_query_head(self, heads).transpose(1, 2)
            for heads in (clean_keys, clean_values, own_keys, own_values)
        )
        scores = mixed_scores(
            queries.transpose(1, 2), clean_k, own_k, attention_scale(self), attention_window(self)
        )
        pattern = hooks.hook_pattern(hooks.hook_attn_scores(scores).softmax(-1))
        z = hooks.hook_z(mixed_values(pattern, clean_v, own_v).transpose(1, 2))
        masked = hooks.hook_z_masked(z * spread_over_coordinates(mask, attn.W_Q).view(z.shape))
        output: Tensor = torch.einsum("bphk,hkd->bpd", masked, attn.W_O) + attn.b_O
        return output

    def _ablated_mlp(self, middle: Tensor, mask: Tensor) -> Tensor:
        mlp, hooks = self.mlp, self.ablated.mlp
        normed = normalise(self.ln2, middle)
        if self.cfg.gated_mlp:
            pre = hooks.hook_pre(F.linear(normed, mlp.W_gate.T))
            linear = hooks.hook_pre_linear(F.linear(normed, mlp.W_in.T))
            post = hooks.hook_post(mlp.act_fn(pre) * linear + mlp.b_in)
        else:
            pre = hooks.hook_pre(F.linear(normed, mlp.W_in.T, mlp.b_in))
            post = hooks.hook_post(mlp.act_fn(pre))
        return F.linear(hooks.hook_post_masked(post * mask), mlp.W_out.T, mlp.b_out)


# Steps that the hooked and the fast path share; no hook point fires in them.


def normalise(
    norm: nn.Module, stream: Float[Tensor, "*rows width"]
) -> Float[Tensor, "*rows width"]:
    """TransformerLens' LayerNorm or RMSNorm as one fused call."""
    if isinstance(norm, RMSNorm):
        return F.rms_norm(stream, (norm.length,), norm.w, norm.eps)
    assert isinstance(norm, LayerNorm)  # folded ones are refused before they come here
    return F.layer_norm(stream, (norm.length,), norm.w, norm.b, norm.eps)


def attention_scale(block: TransformerBlock) -> float:
    """Factor on attention scores: 1 in GPT-Neo, 1/sqrt(d_head) elsewhere."""
    return 1.0 / block.attn.attn_scale


def attention_window(block: TransformerBlock) -> int | None:
    """Positions that a query sees in a layer of local attention; None in any other."""
    return block.cfg.window_size if block.attn.attn_type == "local" else None


def is_parallel(block: TransformerBlock) -> bool:
    """Whether the MLP reads the block's input, beside attention and not after it."""
    return bool(block.cfg.parallel_attn_mlp)


def is_rotary(block: TransformerBlock) -> bool:
    """Whether queries and keys are rotated by their positions."""
    return block.cfg.positional_embedding_type == "rotary"


def projection_weights(block: TransformerBlock) -> tuple[list[Tensor], list[Tensor]]:
    """Weights, (heads, d_model, d_head), and biases of Q, K and V; K and V by group."""
    attn, own = block.attn, "" if block.cfg.n_key_value_heads is None else "_"
    weights = [attn.W_Q, getattr(attn, f"{own}W_K"), getattr(attn, f"{own}W_V")]
    return weights, [attn.b_Q, getattr(attn, f"{own}b_K"), getattr(attn, f"{own}b_V")]


def normed_heads(
    block: TransformerBlock, queries: PerHead, keys: PerGroup
) -> tuple[PerHead, PerGroup]:
    """Queries and keys after their norms, where a model has such norms."""
    if not block.cfg.use_qk_norm:
        return queries, keys
    norms: Any = block.attn
    return normalise(norms.q_norm, queries), normalise(norms.k_norm, keys)


def for_each_query_head(block: TransformerBlock, groups: PerGroup) -> PerHead:
    """Keys or values of the groups, repeated for each query head; of the query heads, as is."""
    copies = block.cfg.n_heads // groups.shape[2]
    return groups if copies == 1 else groups.repeat_interleave(copies, dim=2)


def spread_over_coordinates(
    mask: Float[Tensor, "batch pos units"], head_weights: Float[Tensor, "heads d_model d_head"]
) -> Float[Tensor, "batch pos coordinates"]:
    """A mask over heads, repeated for each coordinate of z; one over coordinates, as it is."""
    heads, _, d_head = head_weights.shape
    return mask if mask.shape[-1] == heads * d_head else mask.repeat_interleave(d_head, dim=-1)
