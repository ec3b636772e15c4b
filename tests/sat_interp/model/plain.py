"""The plain, obvious self-ablating transformer: loops over positions and heads, nothing fused.

Written from the specification (section 3 of arXiv 2505.00509), not from the package: it reads a
model's weights and computes both streams one position at a time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def plain_dual(model, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(clean logits, ablated logits, attention masks, neuron masks), a token at a time."""
    ablation, W = model.ablation, dict(model.named_parameters())
    rows = [_one_sequence(model, W, row, ablation) for row in tokens]
    return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))


def _one_sequence(model, W, row, ablation):
    n_layers, n = model.cfg.n_layers, len(row)
    embedding = W["embed.W_E"][row] + W["pos_embed.W_pos"][:n]
    clean = embedding
    inputs, keys, values = [], [], []
    for layer in range(n_layers):
        inputs.append(clean)
        clean, key, value = _clean_block(model, W, layer, clean)
        keys.append(key)
        values.append(value)
    final = _norm(W, "ln_final", clean)
    ablated, attention_masks, neuron_masks = embedding, [], []
    for layer in range(n_layers):
        attention_mask, neuron_mask = _masks(model, W, layer, inputs[layer], final, ablation)
        attention_masks.append(attention_mask)
        neuron_masks.append(neuron_mask)
        ablated = _ablated_block(
            model, W, layer, ablated, keys[layer], values[layer], attention_mask, neuron_mask
        )
    logits = [state @ W["embed.W_E"].T for state in (final, _norm(W, "ln_final", ablated))]
    return (*logits, torch.stack(attention_masks, 1), torch.stack(neuron_masks, 1))


def _norm(W, name, x):
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * W[f"{name}.w"]
        + W[f"{name}.b"]
    )


def _heads(W, layer, normed, letter):
    weight = W[f"blocks.{layer}.attn.W_{letter}"]  # head, d_model, d_head
    return torch.stack([normed @ weight[head] for head in range(len(weight))])


def _gelu_new(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _mlp(W, layer, x, mask):
    p = f"blocks.{layer}.mlp."
    post = _gelu_new(_norm(W, f"blocks.{layer}.ln2", x) @ W[p + "W_in"] + W[p + "b_in"])
    return (post * mask) @ W[p + "W_out"] + W[p + "b_out"]


def _clean_block(model, W, layer, x):
    normed = _norm(W, f"blocks.{layer}.ln1", x)
    q, k, v = (_heads(W, layer, normed, letter) for letter in "QKV")
    out = W[f"blocks.{layer}.attn.b_O"].expand_as(x).clone()
    for head in range(len(q)):
        for i in range(len(x)):
            pattern = F.softmax(k[head, : i + 1] @ q[head, i], dim=0)
            z = pattern @ v[head, : i + 1]
            step = z @ W[f"blocks.{layer}.attn.W_O"][head]
            out = out.index_add(0, torch.tensor([i]), step[None])
    x = x + out
    return x + _mlp(W, layer, x, 1.0), k, v


def _ablated_block(model, W, layer, x, clean_k, clean_v, attention_mask, neuron_mask):
    normed = _norm(W, f"blocks.{layer}.ln1", x)
    q, k, v = (_heads(W, layer, normed, letter) for letter in "QKV")
    heads, _, d_head = q.shape
    rows = []
    for i in range(len(x)):
        z = []
        for head in range(heads):
            keys = torch.cat([clean_k[head, :i], k[head, i : i + 1]])
            values = torch.cat([clean_v[head, :i], v[head, i : i + 1]])
            z.append(F.softmax(keys @ q[head, i], dim=0) @ values)
        mask = attention_mask[i]
        if len(mask) == heads:
            mask = mask.repeat_interleave(d_head)
        masked = (torch.cat(z) * mask).view(heads, d_head)
        W_O = W[f"blocks.{layer}.attn.W_O"]
        rows.append(sum(masked[head] @ W_O[head] for head in range(heads)))
    x = x + torch.stack(rows) + W[f"blocks.{layer}.attn.b_O"]
    return x + _mlp(W, layer, x, neuron_mask)


def _masks(model, W, layer, block_input, final, ablation):
    result = []
    for name, k in (("attention", ablation.k_attention), ("neurons", ablation.k_neurons)):
        if ablation.variant == "local":
            p = f"blocks.{layer}.gates.scores."
            scores = block_input @ W[f"{p}W_{name}"] + W[f"{p}b_{name}"]
        else:
            scores = final @ W[f"gates.W_{name}"] + W[f"gates.b_{name}"]
            width = scores.shape[-1] // model.cfg.n_layers
            scores = scores[:, layer * width : (layer + 1) * width]
        result.append(torch.stack([plain_mask(row, k, ablation) for row in scores]))
    return result


def plain_mask(x: Tensor, k: int, ablation) -> Tensor:
    """One position's mask by a full sort; straight-through as hard.detach() + w - w.detach()."""
    n = len(x)
    if k == n:
        return torch.ones_like(x)
    ordered = x.sort(descending=True).values
    gamma = (ordered[k - 1] + ordered[k]) / 2
    T = ablation.temperature * (ordered[k - 1] - ordered[k])
    floor = 1e-4 * (ordered[0] - ordered[-1]).detach().clamp(min=1e-2)
    is_held = bool(floor > T)
    T = floor if is_held else T
    if ablation.soft == "softmax":
        w = F.softmax((x - gamma) / T, dim=0)
    else:
        s = torch.sigmoid((x - gamma) / T)
        w = k * s / s.sum()
    if is_held and ablation.near_ties == "no_gradient":
        w = w.detach()
    if ablation.forward_mask == "soft":
        return w
    return (x >= ordered[k - 1]).to(x.dtype).detach() + w - w.detach()


def plain_loss(model, tokens: Tensor, targets: Tensor, weights) -> Tensor:
    """a CE(clean) + b CE(ablated), through full logits."""
    clean, ablated, _, _ = plain_dual(model, tokens)
    flat = targets.reshape(-1)
    return weights.clean * F.cross_entropy(clean.flatten(0, 1), flat) + (
        weights.ablated * F.cross_entropy(ablated.flatten(0, 1), flat)
    )
