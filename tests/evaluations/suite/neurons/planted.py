"""Stories, and units that are made to fire on known things in them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from evaluations.core.text import Text, evaluation_text
from evaluations.core.units import Units
from sat_interp import SelfAblatingTransformer, SelfAblationConfig, gpt_neo_config
from sat_interp.data.tokenizer import train_bpe

WORD, AFTER, PLACE, NOISE, DEAD, CONSTANT = range(6)


def stories(n: int = 240) -> list[str]:
    """Short stories whose first words differ, so that a place is no word."""
    draws = np.random.default_rng(0)

    def one(*words: str) -> str:
        return str(draws.choice(words))

    def sentence() -> str:
        who, does = one("cat", "dog", "girl", "boy", "bird"), one("sat", "ran", "slept", "sang")
        how, where = one("big", "small", "red", "old"), one("mat", "hill", "house", "river")
        shape = one(
            "The {how} {who} {does} by the {where}.",
            "A {who} {does} on a {how} {where}.",
            "By the {where} the {who} {does}.",
            "Today a {who} {does}.",
        )
        return shape.format(who=who, does=does, how=how, where=where)

    return [" ".join(sentence() for _ in range(draws.integers(2, 6))) for _ in range(n)]


def planted_text(directory: Path) -> Text:
    told = stories()
    path = directory / "planted.jsonl"
    path.write_text("\n".join(json.dumps({"text": one}) for one in told))
    return evaluation_text(train_bpe(told, 400), str(path))


def model_for(text: Text) -> SelfAblatingTransformer:
    """Any model that knows the tokens: what its units do is planted."""
    torch.manual_seed(0)
    cfg = gpt_neo_config(
        n_layers=1,
        d_model=8,
        n_heads=2,
        d_vocab=len(text.tokenizer),
        n_ctx=64,
        initializer_range=0.3,
    )
    return SelfAblatingTransformer(cfg, SelfAblationConfig(variant="none")).eval()


@dataclass(frozen=True)
class Planted(Units):
    """Units that fire on " cat"; on " sat" after " dog"; on the third token; at random; never."""

    words: tuple[int, ...] = ()

    def read(self, model, tokens, layers=None):
        cat, dog, sat = self.words
        before = torch.nn.functional.pad(tokens[:, :-1], (1, 0), value=-1)
        place = torch.arange(tokens.shape[1]).expand_as(tokens)  # the end-of-text token is 0
        draws = np.random.default_rng(int(tokens.sum()))
        values = [
            2.0 * (tokens == cat),
            3.0 * ((tokens == sat) & (before == dog)),
            1.0 * (place == 3),
            torch.from_numpy(draws.random(tokens.shape)) ** 4,
            torch.full(tokens.shape, -0.1),
            torch.full(tokens.shape, 0.7),
        ]
        return {0: torch.stack([value.float() for value in values], -1)}


def planted_units(text: Text) -> Planted:
    words = []
    for word in (" cat", " dog", " sat"):
        (token,) = text.tokenizer.encode(word)
        words.append(token)
    return Planted(("blocks.0.mlp.hook_post",), (0,), (6,), words=tuple(words))
