"""Planted units, whose patterns are known, and whatever else is needed to explain them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluations.core.units import Units, find_units
from evaluations.suite.n2g.substitutes import Proposal, Slot
from evaluations.suite.n2g.vocabulary import Vocabulary
from evaluations.suite.n2g.windows import Reader

A, B, C, D, X, Y = 1, 2, 3, 4, 5, 6
TEXTS = ("<|endoftext|>", " a", " b", " c", " d", " x", " y", " z")


@dataclass(frozen=True)
class Planted(Units):
    """0: fires on b right after a. 1: on c. 2: never. 3: on d where a or x is two before it."""

    def read(
        self,
        model: Any,
        tokens: Tensor,
        layers: Sequence[int] | None = None,
        positions: Tensor | None = None,
    ) -> Any:
        one = torch.roll(tokens, 1, 1)
        two = torch.roll(tokens, 2, 1)
        one[:, :1], two[:, :2] = 0, 0
        values = torch.zeros((*tokens.shape, 4))
        values[..., 0] = ((tokens == B) & (one == A)).float()
        values[..., 1] = 2.0 * (tokens == C)
        values[..., 3] = (tokens == D) * (1.0 * (two == A) + 0.8 * (two == X))
        return dict.fromkeys(layers or self.layers, values)


@dataclass
class Listed:
    """Proposes the same words everywhere."""

    words: tuple[int, ...] = (A, B, C, D, X, Y)
    seconds: float = 0.0
    name = "listed"

    def describe(self) -> dict[str, Any]:
        return {"substitutes": self.name}

    def propose(
        self, places: Sequence[Slot], most: int, least_probability: float
    ) -> list[list[Proposal]]:
        return [
            [Proposal((word,), 0.1) for word in self.words if (word,) != place.word]
            for place in places
        ]


@pytest.fixture
def planted(make_model):
    units = Planted(("blocks.0.mlp.hook_post",), (0,), (4,))
    return Reader(make_model(), units, 0, start_token=0)


@pytest.fixture
def real(make_model):
    """A layer of a tiny model with random weights."""
    model = make_model()
    return Reader(model, find_units(model), 1, start_token=0)


@pytest.fixture
def vocabulary():
    return Vocabulary(TEXTS)


@pytest.fixture
def alone():
    """One window by itself, by hooks: a story of its length, nothing of it seen but the window."""

    def read(reader: Reader, tokens: Any, unit: int, start: int = 0) -> np.ndarray:
        filled = [3] * start  # any tokens: they are not seen
        story = torch.tensor([[reader.start_token, *filled, *map(int, tokens)]])

        def hide(scores: Tensor, hook: Any) -> Tensor:
            seen = scores.clone()
            seen[:, :, start + 1 :, 1 : start + 1] = -torch.inf
            return seen

        model = reader.model
        name = reader.units.hooks[reader.units.layers.index(reader.layer)]
        layers = range(model.cfg.n_layers)
        hooks = [(f"blocks.{layer}.attn.hook_attn_scores", hide) for layer in layers]
        with torch.inference_mode(), model.hooks(fwd_hooks=hooks):
            _, cache = model.run_with_cache(story, names_filter=[name])
        return cache[name][0, start + 1 :, unit].float().numpy()

    return read
