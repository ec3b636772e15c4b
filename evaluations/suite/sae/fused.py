"""Fused training pass of a ReLU autoencoder: loss and gradients in cache-sized pieces.

SAELens' pass writes about fifteen matrices of (tokens, features), which exceed any CPU cache and
cost more than its five matrix products. Here rows are processed in pieces, with gradients derived
by hand. With x the input, s = x - b_dec or x, f = relu(s W_enc + b_enc), r = f W_dec +
b_dec - x, w the weight of each feature in the L1 term (1, or the norm of its decoder row), B rows:

    loss = (sum r^2 + l1 * sum_j w_j sum_b f_bj) / B
    dr = 2 r / B                            dW_dec = f^T dr      (+ l1 / B sum_b f * W_dec / w)
    dp = (dr W_dec^T + l1 w / B) * [f > 0]  dW_enc = s^T dp,  db_enc = sum_b dp
    db_dec = sum_b dr                       (- db_enc W_enc^T, where s = x - b_dec)

A test compares losses and gradients with those of SAELens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import StandardTrainingSAE
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor

# Entries of (rows, features) per piece: 4 MiB of float32.
PIECE = 1 << 20


def relu_training_pass(
    sae: StandardTrainingSAE, step_input: TrainStepInput, weighted: bool
) -> TrainStepOutput:
    """Run ``StandardTrainingSAE.training_forward_pass`` with precomputed gradients.

    Only ``loss`` can be differentiated; the autoencoder's hook points are not called.

    Args:
        weighted: whether a feature's L1 is weighted by the norm of its decoder row, as SAELens does
            since version 6.
    """
    loss, squares, l1, acts, out = _ReluPass.apply(  # type: ignore[no-untyped-call]
        step_input.sae_in.to(sae.dtype),
        sae.W_enc,
        sae.b_enc,
        sae.W_dec,
        sae.b_dec,
        _L1(step_input.coefficients["l1"], weighted),
        sae.cfg.apply_b_dec_to_input,
    )
    return TrainStepOutput(
        sae_in=step_input.sae_in,
        sae_out=out,
        feature_acts=acts,
        hidden_pre=acts,  # the values below zero are not used by a ReLU autoencoder
        loss=loss,
        losses={"mse_loss": squares, "l1_loss": l1},
    )


@dataclass(frozen=True)
class _L1:
    """Coefficient of the L1 term, and whether decoder norms weight it."""

    coefficient: float
    weighted: bool


class _ReluPass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "rows d_in"],
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        b_dec: Float[Tensor, " d_in"],
        l1_term: _L1,
        centred: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        rows, d_sae = len(x), W_enc.shape[1]
        coefficient, weighted = l1_term.coefficient, l1_term.weighted
        acts, out = x.new_empty(rows, d_sae), torch.empty_like(x)
        d_enc, d_dec = torch.zeros_like(W_enc), torch.zeros_like(W_dec)
        d_b_enc, d_b_dec = torch.zeros_like(b_enc), torch.zeros_like(b_dec)
        weight = W_dec.norm(dim=1) if weighted else torch.ones_like(b_enc)
        penalty, squares, active = weight * (coefficient / rows), x.new_zeros(()), d_b_enc.clone()
        sae_in = x - b_dec if centred else x
        piece = max(1, PIECE // d_sae)
        scratch = x.new_empty(min(piece, rows), d_sae)
        for first in range(0, rows, piece):
            part = slice(first, first + piece)
            act = torch.addmm(b_enc, sae_in[part], W_enc, out=acts[part]).relu_()
            error = torch.addmm(b_dec, act, W_dec, out=out[part]) - x[part]
            squares += error.square().sum()
            error *= 2 / rows
            d_dec.addmm_(act.T, error)
            d_b_dec += error.sum(0)
            active += act.sum(0)
            d_pre = torch.mm(error, W_dec.T, out=scratch[: len(act)])
            d_pre += penalty
            d_pre *= act > 0
            d_enc.addmm_(sae_in[part].T, d_pre)
            d_b_enc += d_pre.sum(0)
        if centred:
            d_b_dec -= W_enc @ d_b_enc
        if weighted:
            d_dec += (coefficient / rows * active / weight).unsqueeze(1) * W_dec
        mse, l1 = squares / rows, penalty @ active
        ctx.save_for_backward(d_enc, d_b_enc, d_dec, d_b_dec)
        ctx.mark_non_differentiable(mse, l1, acts, out)
        return mse + l1, mse, l1, acts, out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_loss = gradients[0]
        return (None, *(d_loss * gradient for gradient in ctx.saved_tensors), None, None)
