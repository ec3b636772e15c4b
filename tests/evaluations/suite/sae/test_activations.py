from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from sae_lens.training.activation_scaler import ActivationScaler

from evaluations.suite.sae import activations
from evaluations.suite.sae.activations import ActivationStream, scaling_factors
from sat_interp._util.errors import UserError

HOOK = "blocks.0.hook_mlp_out"
Z = "blocks.1.attn.hook_z"


@pytest.fixture
def make_stream(make_model, corpus, tiny):
    def make(hooks=(HOOK,), variant="none", model=None, **changes):
        config = dataclasses.replace(tiny, **changes)
        return ActivationStream(model or make_model(variant), corpus, hooks, config, torch.float64)

    return make


def test_a_buffer_holds_the_hooks_activations_once_each_in_another_order(make_stream):
    stream = make_stream((HOOK, Z), "local")
    windows = stream.windows(0)
    assert windows.shape == (8, 16)
    assert (windows[:, 0] == stream.corpus.end_of_text).all()
    _, cache = stream.model.run_with_cache(windows)
    served = [stream.batch(step) for step in range(stream.batches)]
    for name in (HOOK, Z):
        rows = torch.cat([batch[name] for batch in served])
        wanted = cache[name].flatten(2).flatten(0, 1)
        assert rows.shape == wanted.shape
        order = torch.cdist(rows, wanted).argmin(1)
        torch.testing.assert_close(rows, wanted[order], rtol=0, atol=1e-10)
        assert (order != torch.arange(len(order))).float().mean() > 0.8
        if name == HOOK:
            shared = order
    assert torch.equal(shared, order)  # one order for all hook points


def test_a_batch_is_a_pure_function_of_seed_and_step(make_stream):
    one, two, other = make_stream(), make_stream(), make_stream(seed=1)
    ahead = one.batch(9)[HOOK]
    for step in (0, 3, 4, 9):
        last = two.batch(step)[HOOK]
    assert torch.equal(ahead, last)
    assert not torch.equal(other.batch(9)[HOOK], ahead)
    assert not torch.equal(one.batch(8)[HOOK], ahead)


def test_forward_batches_change_nothing_but_rounding(make_stream, monkeypatch):
    whole = make_stream().batch(0)[HOOK]
    monkeypatch.setattr(activations, "FORWARD_TOKENS", 40)
    torch.testing.assert_close(make_stream().batch(0)[HOOK], whole, rtol=0, atol=1e-12)


def test_only_one_buffer_is_held(make_stream):
    stream = make_stream()
    for step in range(3 * stream.batches):
        stream.batch(step)
        number, held, _ = stream._current
        assert number == step // stream.batches
        assert held[HOOK].shape == (8 * 16, 16)


def test_the_scale_is_saelens_own(make_stream):
    stream = make_stream((HOOK, Z))
    for name in (HOOK, Z):
        scaler = ActivationScaler()
        scaler.estimate_scaling_factor(16, (stream.batch(step)[name] for step in range(6)), 6)
        assert scaling_factors(stream, 6)[name] == pytest.approx(scaler.scaling_factor, rel=1e-6)


def test_what_cannot_be_streamed_is_refused_in_one_line(make_stream, make_model):
    with pytest.raises(UserError, match="fewer than one window"):
        make_stream(model=make_model(n_ctx=4000), context=4000)
    with pytest.raises(UserError, match="less than a batch"):
        make_stream(batch_tokens=1000)
    with pytest.raises(UserError, match="hook point"):
        make_stream(("blocks.7.hook_mlp_out",)).batch(0)
    silent = make_model()
    silent.blocks[0].mlp.W_out.data.zero_()
    silent.blocks[0].mlp.b_out.data.zero_()
    with pytest.raises(UserError, match="all zero"):
        scaling_factors(make_stream(model=silent), 2)
    broken = make_model()
    broken.W_E.data[:] = math.nan
    with pytest.raises(UserError, match="not finite"):
        make_stream(model=broken).batch(0)
