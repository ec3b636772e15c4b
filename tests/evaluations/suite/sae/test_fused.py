from __future__ import annotations

import pytest
import torch
from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput

from evaluations.suite.sae import fused
from evaluations.suite.sae.fused import relu_training_pass

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")


def autoencoder(centred):
    torch.manual_seed(0)
    sae = StandardTrainingSAE(
        StandardTrainingSAEConfig(
            d_in=6, d_sae=20, dtype="float64", apply_b_dec_to_input=centred, decoder_init_norm=0.7
        )
    )
    for name in PARAMETERS:
        getattr(sae, name).data += 0.2 * torch.randn_like(getattr(sae, name))
    return sae


def step_input(rows=23):
    torch.manual_seed(1)
    return TrainStepInput(torch.randn(rows, 6, dtype=torch.float64), {"l1": 0.8}, None, 0, False)


def gradients(sae, loss):
    sae.zero_grad()
    loss.backward()
    return {name: getattr(sae, name).grad.clone() for name in PARAMETERS}


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("piece", [1, 100, 1 << 20])
def test_losses_and_gradients_are_saelens_own(centred, piece, monkeypatch):
    monkeypatch.setattr(fused, "PIECE", piece)
    sae, given = autoencoder(centred), step_input()
    wanted = StandardTrainingSAE.training_forward_pass(sae, given)
    found = relu_training_pass(sae, given, weighted=True)
    for one, other in (
        (found.loss, wanted.loss),
        (found.sae_out, wanted.sae_out),
        (found.feature_acts, wanted.feature_acts),
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    for name in ("mse_loss", "l1_loss"):
        torch.testing.assert_close(found.losses[name], wanted.losses[name], rtol=0, atol=1e-12)
    expected = gradients(sae, wanted.loss)
    for name, value in gradients(sae, 1.0 * found.loss).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-12)


def test_the_unweighted_l1_is_that_of_autograd_on_the_formula():
    sae, given = autoencoder(False), step_input()
    found = relu_training_pass(sae, given, weighted=False)
    acts = torch.relu(given.sae_in @ sae.W_enc + sae.b_enc)
    error = acts @ sae.W_dec + sae.b_dec - given.sae_in
    loss = (error**2).sum(-1).mean() + 0.8 * acts.sum(-1).mean()
    torch.testing.assert_close(found.loss, loss, rtol=0, atol=1e-12)
    expected = gradients(sae, loss)
    for name, value in gradients(sae, found.loss).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-12)
