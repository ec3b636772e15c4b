"""The oracle is exact: rational arithmetic on the very numbers the activations are."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from evaluations.suite.sae.measure import ActivationVariance

LENGTHS = (1, 5, 3, 4)


def activations(offset, dtype, seed=0):
    draws = torch.Generator().manual_seed(seed)
    rows = [torch.randn(1, length, 3, generator=draws, dtype=torch.float64) for length in LENGTHS]
    direction = torch.tensor([offset, 0.0, -3 * offset], dtype=torch.float64)
    return [(row + direction).to(dtype) for row in rows]


def exact(stories):
    rows = [[[Fraction(float(one)) for one in token] for token in story[0]] for story in stories]
    tokens = [token for story in rows for token in story]
    mean = [sum(column) / len(tokens) for column in zip(*tokens, strict=True)]
    return [
        float(sum((a - b) ** 2 for token in story for a, b in zip(token, mean, strict=True)))
        for story in rows
    ]


def found(stories, order=(0, 1, 2, 3)):
    spread = ActivationVariance.empty(len(stories), 3)
    for place in order:
        spread.add(np.array([place]), stories[place])
    return spread.per_story(np.array(LENGTHS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 30.0, 1e3, 1e4, 1e6, -1e7])
def test_it_is_exact_however_large_the_mean(offset, dtype):
    stories = activations(offset, dtype)
    assert found(stories) == pytest.approx(exact(stories), rel=1e-8)
    assert found(stories, (2, 0, 3, 1)) == pytest.approx(exact(stories), rel=1e-8)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e5, 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_activations_have_no_variance(value, dtype):
    stories = [torch.full((1, length, 3), value, dtype=dtype) for length in LENGTHS]
    assert found(stories).tolist() == [0.0] * len(LENGTHS)


def test_a_tiny_variance_is_no_rounding():
    stories = activations(0.0, torch.float64)
    small = [1.0 + 1e-9 * story for story in stories]
    assert found(small) == pytest.approx(exact(small), rel=1e-6)
    assert found(small).sum() > 0


def test_what_is_not_finite_shows_in_the_size():
    for bad in (np.nan, np.inf, -np.inf):
        spread = ActivationVariance.empty(1, 3)
        spread.add(np.array([0]), torch.tensor([[[bad, 1.0, 1.0]]]))
        assert not np.isfinite(spread.size)
