"""Each thing sae-lens 5.1 did otherwise than today's, shown beside today's."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from sae_lens import SAE, StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.sae_trainer import SAETrainer

from evaluations.suite.sae.build import build_trainer
from evaluations.suite.sae.config import PRESETS, SaeConfig
from evaluations.suite.sae.paper import PaperTrainingSAE, PaperTrainingSAEConfig, register

SHAPE = {"d_in": 6, "d_sae": 20, "apply_b_dec_to_input": False, "l1_coefficient": 0.5}
CPU = torch.device("cpu")


def paper(**options):
    register()
    torch.manual_seed(0)
    return PaperTrainingSAE(PaperTrainingSAEConfig(**SHAPE, **options))


def today():
    torch.manual_seed(0)
    return StandardTrainingSAE(StandardTrainingSAEConfig(**SHAPE, decoder_init_norm=1.0))


def trainer(sae, steps=50):
    config = SAETrainerConfig(
        total_training_samples=32 * steps,
        train_batch_size_samples=32,
        lr=1e-2,
        lr_end=1e-3,
        adam_beta1=0.0,
    )
    return SAETrainer(config, sae, iter(()))


def batch(seed=0):
    return torch.randn(32, 6, generator=torch.Generator().manual_seed(seed))


def norms(sae):
    return sae.W_dec.detach().norm(dim=1)


def test_the_decoder_is_on_the_unit_sphere_at_every_step_and_at_the_end_and_todays_is_not():
    for sae, unit in ((paper(), True), (today(), False)):
        own = trainer(sae)
        for step in range(5):
            own.step(batch(step))
            sae.training_forward_pass(TrainStepInput(batch(), {"l1": 0.5}, None, 0, False))
            assert torch.allclose(norms(sae), torch.ones(20), atol=1e-6) == unit
        sae.fold_activation_norm_scaling_factor(1.0)
        assert torch.allclose(norms(sae), torch.ones(20), atol=1e-6) == unit


def gradient(sae):
    sae.zero_grad()
    sae.training_forward_pass(TrainStepInput(batch(), {"l1": 0.5}, None, 0, False)).loss.backward()
    return sae.W_dec.grad, sae.W_dec.detach()


def test_the_gradient_along_the_rows_is_removed_and_todays_is_not():
    for sae, removed in ((paper(), True), (paper(parallel_gradient=True), False), (today(), False)):
        slope, rows = gradient(sae)
        along = (slope * rows).sum(1).abs().max()
        assert (along < 1e-5) == removed
    slope, rows = gradient(paper())
    whole, _ = gradient(paper(parallel_gradient=True))
    across = whole - (whole * rows).sum(1, keepdim=True) * rows
    torch.testing.assert_close(slope, across, rtol=0, atol=1e-6)


def test_the_l1_is_not_weighted_by_the_decoders_norms_and_todays_is():
    x = batch()
    for make, weighted in ((paper, False), (today, True)):
        sae = make()
        if weighted:
            sae.W_dec.data *= 3  # ours would be set back to norm 1
        output = sae.training_forward_pass(TrainStepInput(x, {"l1": 0.5}, None, 0, False))
        plain = 0.5 * output.feature_acts.sum(-1).mean()
        factor = 3.0 if weighted else 1.0
        assert output.losses["l1_loss"].item() == pytest.approx((factor * plain).item(), rel=1e-5)


def test_the_encoder_starts_as_the_transpose_of_the_decoder_as_drawn_and_todays_of_the_unit_one():
    sae = paper()
    assert norms(sae) == pytest.approx(torch.ones(20), abs=1e-6)
    drawn = sae.W_enc.detach().T
    torch.testing.assert_close(drawn / drawn.norm(dim=1, keepdim=True), sae.W_dec.detach())
    assert drawn.norm(dim=1).mean() > 1.2
    torch.testing.assert_close(today().W_enc.detach().T, today().W_dec.detach())


def test_a_buffer_is_batches_of_prompts_and_todays_is_prompts(monkeypatch):
    """The paper's 64 batches of 16 prompts are 1,024 prompts; today's 64 are 64."""
    asked = {}
    monkeypatch.setattr(
        "sae_lens.training.activations_store.mixing_buffer", lambda **told: asked.update(told)
    )
    store = SimpleNamespace(
        n_batches_in_buffer=64,
        training_context_size=128,
        train_batch_size_tokens=4096,
        activations_mixing_fraction=0.5,
        _iterate_filtered_activations=list,
    )
    ActivationsStore.get_data_loader(store)
    assert asked["buffer_size"] == 64 * 128
    found = PRESETS["paper"]
    assert found.buffer_prompts * found.context == 64 * 16 * 128


def test_table_5():
    found = PRESETS["paper"]
    assert (found.expansion, found.lr, found.sparsity, found.seed) == (16, 1e-5, 5, 42)
    assert (found.batch_tokens, found.tokens, found.steps) == (4096, 409_600_000, 100_000)
    assert round(found.lr_decay * found.steps) == 20_000
    assert round(found.warm_up * found.steps) == 5_000
    assert (found.apply_b_dec_to_input, found.adam_beta1) == (False, 0.0)
    built = build_trainer(found, 8, CPU, torch.float32, {})
    assert built.sae.cfg.l1_warm_up_steps == 5_000
    assert built.sae.cfg.normalize_activations == "expected_average_only_in"
    assert built.cfg.total_training_steps == 100_000
    assert float(built.sae.b_dec.detach().abs().max()) == 0
    group = built.optimizer.param_groups[0]
    assert (group["lr"], group["betas"]) == (1e-5, (0.0, 0.999))


def test_the_schedule_is_scaled_to_another_budget():
    small = dataclasses.replace(PRESETS["paper"], tokens=4_096_000)
    built = build_trainer(small, 8, CPU, torch.float32, {})
    assert built.sae.cfg.l1_warm_up_steps == 50
    lrs = []
    for _ in range(1000):
        lrs.append(built.optimizer.param_groups[0]["lr"])
        built.optimizer.step()
        built.lr_scheduler.step()
    assert lrs[0] == lrs[800] == pytest.approx(1e-5)
    assert lrs[900] == pytest.approx(0.5e-5, rel=0.02)
    assert lrs[999] < 1e-7


def test_it_trains_under_saelens_own_trainer_and_is_saved_as_an_ordinary_one(tmp_path):
    sae = paper()
    own = trainer(sae)
    first = own.step(batch()).loss.item()
    for step in range(1, 50):
        last = own.step(batch(step)).loss.item()
    assert last < first
    sae.fold_activation_norm_scaling_factor(2.0)
    sae.save_inference_model(tmp_path)
    opened = SAE.load_from_disk(tmp_path)
    assert opened.cfg.architecture() == "standard"
    torch.testing.assert_close(opened(batch()), sae(batch()))


def test_two_of_one_seed_are_one():
    config = SaeConfig(expansion=2, tokens=4096)
    one, two = (build_trainer(config, 8, CPU, torch.float32, {}).sae for _ in range(2))
    other = build_trainer(dataclasses.replace(config, seed=1), 8, CPU, torch.float32, {}).sae
    assert torch.equal(one.W_dec, two.W_dec)
    assert not torch.equal(one.W_dec, other.W_dec)
    assert copy.deepcopy(one).W_dec.shape == (16, 8)


@pytest.mark.parametrize("name", ["paper", "modern", "demo"])
@pytest.mark.parametrize("kind", ["standard", "gated", "jumprelu", "topk", "batchtopk"])
def test_every_architecture_takes_a_step_under_every_preset(name, kind):
    from evaluations.suite.sae.config import preset

    config = dataclasses.replace(preset(name, kind), expansion=8, tokens=40_960)
    own = build_trainer(config, 6, CPU, torch.float32, {})
    assert torch.isfinite(own.step(batch()).loss)
