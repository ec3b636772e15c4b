"""Probes on data where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from evaluations.suite.gates import probe as probes
from evaluations.suite.gates.probe import (
    Features,
    Probe,
    Split,
    fit_probe,
    gradient,
    mean_loss,
    scaled,
    token_scores,
)

N = 3000
SPLIT = Split(torch.arange(2000), torch.arange(2000, 2400), torch.arange(2400, N))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_the_gradient_is_autograds(generator):
    on = torch.stack([torch.randperm(9, generator=generator)[:3] for _ in range(50)])
    features = Features(on, 9, torch.randn(50, 4, generator=generator))
    classes = torch.randint(0, 6, (50,), generator=generator)
    weights = torch.randn(13, 6, generator=generator, requires_grad=True)
    bias = torch.randn(6, generator=generator, requires_grad=True)
    tokens = torch.arange(5, 40)
    hot = torch.zeros(50, 9).scatter_(1, on, 1.0)
    log_odds = torch.cat([hot, features.dense], 1) @ weights + bias
    F.cross_entropy(log_odds[tokens], classes[tokens], reduction="sum").backward()
    slope, bias_slope = gradient(weights.detach(), bias.detach(), features, classes, tokens)
    torch.testing.assert_close(slope, weights.grad)
    torch.testing.assert_close(bias_slope, bias.grad)


def test_a_probe_without_weights_is_the_unigram_baseline(generator):
    classes = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), N, True, generator=generator)
    probe = Probe.unigram(classes[SPLIT.train], 3, 0)
    nothing = Features(dense=torch.zeros(N, 0))
    share = (torch.bincount(classes[SPLIT.train]) + 0.5) / (len(SPLIT.train) + 1.5)
    expected = -share.log()[classes[SPLIT.test]].mean()
    assert mean_loss(probe, nothing, classes, SPLIT.test) == pytest.approx(float(expected))


def test_features_that_decide_the_class_leave_no_loss(generator):
    classes = torch.randint(0, 8, (N,), generator=generator)
    # class c: units c and 8 + c are on, and one that has nothing to do with it
    noise = 16 + torch.randint(0, 5, (N,), generator=generator)
    features = Features(torch.stack([classes, 8 + classes, noise], 1), 21)
    probe = fit_probe(features, classes, 8, SPLIT, seed=0)
    losses, hits = token_scores(probe, features, classes, SPLIT.test)
    assert losses.mean() < 0.02
    assert hits.mean() == 1.0
    assert probe.converged


def test_a_table_of_bigrams_reaches_the_conditional_entropy(generator):
    table = torch.softmax(2 * torch.randn(6, 6, generator=generator), -1)
    current = torch.randint(0, 6, (N,), generator=generator)
    classes = torch.multinomial(table[current], 1, generator=generator)[:, 0]
    features = Features(current[:, None], 6)
    probe = fit_probe(features, classes, 6, SPLIT, seed=0)
    truth = -table[current, classes].log()[SPLIT.test].mean()
    assert mean_loss(probe, features, classes, SPLIT.test) == pytest.approx(float(truth), abs=0.02)


def test_dense_features_reach_the_truth_whatever_their_scale(generator):
    state = torch.randn(N, 5, generator=generator) @ torch.randn(5, 5, generator=generator)
    weights = torch.randn(5, 4, generator=generator)
    classes = torch.multinomial((state @ weights).softmax(-1), 1, generator=generator)[:, 0]
    truth = float(F.cross_entropy((state @ weights)[SPLIT.test], classes[SPLIT.test]))
    features = Features(dense=scaled(1e3 * state + 7.0, SPLIT.train))
    probe = fit_probe(features, classes, 4, SPLIT, seed=0)
    assert mean_loss(probe, features, classes, SPLIT.test) == pytest.approx(truth, abs=0.02)


@pytest.mark.parametrize("seed", [0, 1])
def test_features_that_say_nothing_read_nothing(seed):
    generator = torch.Generator().manual_seed(seed)
    classes = torch.multinomial(torch.tensor([0.4, 0.3, 0.2, 0.1]), N, True, generator=generator)
    features = Features(torch.randint(0, 200, (N, 1), generator=generator), 200)
    probe = fit_probe(features, classes, 4, SPLIT, seed=seed)
    unigram = Probe.unigram(classes[SPLIT.train], 4, 200)
    found = mean_loss(probe, features, classes, SPLIT.test)
    # a fit to the training tokens alone would lose 0.1 and more here
    assert found == pytest.approx(mean_loss(unigram, features, classes, SPLIT.test), abs=0.01)


def test_a_baseline_that_nothing_beats_is_kept_and_said(generator):
    classes = torch.zeros(N, dtype=torch.int64)
    classes[::2] = 1
    features = Features(torch.randint(0, 300, (N, 2), generator=generator), 300)
    probe = fit_probe(features, classes, 2, SPLIT, seed=0)
    assert probe.penalty is None
    assert not probe.weights.any()


def test_scaled_features_have_one_size_and_keep_their_directions(generator):
    state = torch.randn(N, 4, generator=generator) * torch.tensor([1.0, 2.0, 3.0, 4.0]) * 50 + 7
    found = scaled(state, SPLIT.train)
    torch.testing.assert_close(found[SPLIT.train].mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    assert float(found[SPLIT.train].square().mean()) == pytest.approx(1.0)
    factors = found.std(0) / state.std(0)
    assert factors.max() == pytest.approx(float(factors.min()), rel=1e-4)


def test_features_that_never_vary_do_no_harm():
    assert not scaled(torch.ones(N, 2), SPLIT.train).any()


def test_a_fit_that_is_cut_short_says_so(monkeypatch, generator):
    monkeypatch.setattr(probes, "MAX_EPOCHS", 1)
    classes = torch.randint(0, 4, (N,), generator=generator)
    probe = fit_probe(Features(classes[:, None], 4), classes, 4, SPLIT, seed=0)
    assert not probe.converged


def test_the_same_seed_gives_the_same_probe(generator):
    classes = torch.randint(0, 4, (N,), generator=generator)
    features = Features(
        ((classes + torch.randint(0, 2, (N,), generator=generator)) % 4)[:, None], 4
    )
    first, again, other = (fit_probe(features, classes, 4, SPLIT, seed) for seed in (0, 0, 1))
    assert torch.equal(first.weights, again.weights)
    assert not torch.equal(first.weights, other.weights)


def test_features_together_stand_side_by_side():
    token = Features(torch.tensor([[1], [0]]), 2)
    both = token.together_with(Features(torch.tensor([[0, 2], [1, 2]]), 3))
    assert both.on.tolist() == [[1, 2, 4], [0, 3, 4]]
    assert (both.n_on, both.width, len(both)) == (5, 5, 2)
    mixed = token.together_with(Features(dense=torch.ones(2, 4)))
    assert mixed.width == 6
    assert math.isclose(float(mixed.dense.sum()), 8.0)
