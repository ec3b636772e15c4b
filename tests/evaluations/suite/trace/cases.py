"""A tiny model, facts of two prompt lengths about subjects of one to three tokens."""

from __future__ import annotations

import random

import torch
from transformer_lens import HookedTransformer

from evaluations.tasks.facts import Fact, FactPrompt, FactPrompts
from sat_interp import SelfAblatingTransformer, SelfAblationConfig
from sat_interp.model.shape import gpt_neo_config

VOCABULARY = 60


def tiny(n_layers: int = 3, **changes: object) -> SelfAblatingTransformer:
    torch.manual_seed(0)
    settings: dict = {
        "n_layers": n_layers,
        "d_model": 16,
        "n_heads": 2,
        "d_vocab": VOCABULARY,
        "n_ctx": 12,
        "initializer_range": 0.35,
        "dtype": torch.float64,
        **changes,
    }
    cfg = gpt_neo_config(**settings)
    model = SelfAblatingTransformer(cfg, SelfAblationConfig(variant="none"))
    return model.eval().requires_grad_(False)


def some_facts(
    model: HookedTransformer, n: int = 30, seed: int = 0, decides: str | None = None
) -> FactPrompts:
    """Random prompts whose attribute is the model's own first choice."""
    rng = random.Random(seed)
    prompts = []
    for number in range(n):
        length = 6 + number % 2
        tokens = (0, *(rng.randrange(1, VOCABULARY) for _ in range(length - 1)))
        size = 2 if decides else 1 + number % 3
        subject = tuple(range(2, 2 + size))
        fact = Fact("", f"subject {number % (n * 2 // 3)}", "", f"r{number % 2}", decides)
        answer = int(model(torch.tensor([tokens]))[0, -1].argmax())
        prompts.append(FactPrompt(fact, tokens, subject, answer))
    return FactPrompts("random", tuple(prompts))
