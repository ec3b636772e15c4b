"""A plain, obvious training step of both streams: what the fused one is compared with.

Written as one writes it down first, batched but with nothing fused or kept: patterns and logits
held whole, the mixed attention as scores with their diagonal replaced, k-winners by a full sort,
the global variant's preliminary pass run apart. A test holds it to the same loss and gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sat_interp import SelfAblatingTransformer


def plain_loss(model: SelfAblatingTransformer, windows: Tensor) -> Tensor:
    """Cross-entropy of the clean stream plus, with gates, that of the ablated one."""
    tokens, targets = windows[:, :-1], windows[:, 1:].flatten()
    ablation = model.ablation
    clean = ablated = model.W_E[tokens] + model.W_pos[: tokens.shape[1]]
    scores = None
    if ablation.variant == "global":
        scores = model.gates(_final(model, _clean_stream(model, clean)))
    for layer, block in enumerate(model.blocks):
        if ablation.is_gated:
            own = block.gates.scores(clean) if scores is None else _of(scores, layer, model)
            masks = _masks(model, own)
            ablated = _block(block, ablated, clean, masks)
        clean = _block(block, clean, clean, None)
    streams = (clean, ablated) if ablation.is_gated else (clean,)
    logits = [_final(model, stream) @ model.W_E.T for stream in streams]
    losses = [F.cross_entropy(_wide(one.flatten(0, 1)), targets) for one in logits]
    return torch.stack(losses).sum()


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _clean_stream(model: SelfAblatingTransformer, stream: Tensor) -> Tensor:
    for block in model.blocks:
        stream = _block(block, stream, stream, None)
    return stream


def _final(model: SelfAblatingTransformer, stream: Tensor) -> Tensor:
    return F.layer_norm(stream, stream.shape[-1:], model.ln_final.w, model.ln_final.b)


def _of(scores: tuple[Tensor, Tensor], layer: int, model: SelfAblatingTransformer) -> list[Tensor]:
    return [one.chunk(model.cfg.n_layers, dim=-1)[layer] for one in scores]


def _masks(model, scores):  # type: ignore[no-untyped-def]
    """k-winners-take-all by a full sort, straight through (equation 3)."""
    masks = []
    for x, k in zip(scores, (model.ablation.k_attention, model.ablation.k_neurons), strict=True):
        ordered = _wide(x).sort(dim=-1, descending=True).values
        sharpness = ordered[..., k - 1 : k] - ordered[..., k : k + 1]
        soft = ((x - ordered[..., :1].detach()) / sharpness.clamp(min=1e-6)).softmax(-1)
        masks.append((x >= ordered[..., k - 1 : k]).to(soft.dtype) + soft - soft.detach())
    return masks


def _block(block, stream, past, masks):  # type: ignore[no-untyped-def]
    """One block; with masks, the ablated stream reading the clean one's past."""
    attn, mlp = block.attn, block.mlp

    def heads(of: Tensor, weight: Tensor) -> Tensor:
        return torch.einsum("bpd,hdk->bhpk", of, weight)

    own = F.layer_norm(stream, stream.shape[-1:], block.ln1.w, block.ln1.b)
    read = own if masks is None else F.layer_norm(past, past.shape[-1:], block.ln1.w, block.ln1.b)
    q, k, v = heads(own, attn.W_Q), heads(read, attn.W_K), heads(read, attn.W_V)
    scores = q @ k.transpose(-1, -2)
    n = scores.shape[-1]
    own_position = torch.eye(n, dtype=torch.bool, device=scores.device)
    future = torch.ones(n, n, dtype=torch.bool, device=scores.device).triu(1)
    if masks is not None:
        own_k, own_v = heads(own, attn.W_K), heads(own, attn.W_V)
        scores = torch.where(own_position, (q * own_k).sum(-1, keepdim=True), scores)
    scores = scores.masked_fill(future, -torch.inf)
    pattern = scores.softmax(-1)
    if masks is None:
        z = pattern @ v
    else:
        z = pattern.masked_fill(own_position, 0) @ v
        z = z + pattern.diagonal(dim1=-2, dim2=-1)[..., None] * own_v
    z = z.transpose(1, 2).flatten(2)
    z = z if masks is None else z * masks[0]
    stream = stream + z @ attn.W_O.flatten(0, 1) + attn.b_O
    normed = F.layer_norm(stream, stream.shape[-1:], block.ln2.w, block.ln2.b)
    post = F.gelu(normed @ mlp.W_in + mlp.b_in, approximate="tanh")
    post = post if masks is None else post * masks[1]
    return stream + post @ mlp.W_out + mlp.b_out
