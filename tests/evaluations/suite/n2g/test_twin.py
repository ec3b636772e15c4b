"""All units at once are each one alone, by another program: prune, saliency, augment, trie, scores.

Among the models one whose units depend on their position in the story, and one with rotary
positions.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

from evaluations.core.activations import gather
from evaluations.core.excerpts import GatherConfig
from evaluations.core.units import find_units
from evaluations.suite.n2g.config import N2gConfig
from evaluations.suite.n2g.layer import Explainer
from evaluations.suite.n2g.vocabulary import Vocabulary
from evaluations.suite.n2g.windows import Reader
from tests.evaluations.suite.n2g.conftest import Listed
from tests.evaluations.suite.n2g.twin import Twin

WORDS = (3, 9, 12)
CONFIG = N2gConfig(examples=3, context=5, gather=GatherConfig(top=3, sample=3, random=3))


@pytest.fixture
def models(make_model, tokenizer):
    plain, placed = make_model(), make_model(seed=1)
    draws = torch.Generator().manual_seed(0)
    shape = placed.pos_embed.W_pos.shape
    placed.pos_embed.W_pos.data = 3 * torch.randn(shape, generator=draws, dtype=torch.float64)
    rotary = HookedTransformer(
        HookedTransformerConfig(
            n_layers=2,
            d_model=16,
            n_heads=4,
            d_head=4,
            d_mlp=32,
            n_ctx=24,
            seed=0,
            d_vocab=len(tokenizer),
            act_fn="gelu",
            normalization_type="LN",
            device="cpu",
            positional_embedding_type="rotary",
            rotary_dim=4,
            dtype=torch.float64,
            initializer_range=0.4,
        )
    ).eval()
    return {"plain": plain, "placed": placed, "rotary": rotary}


@pytest.mark.parametrize("name", ["plain", "placed", "rotary"])
def test_a_layer_is_each_unit_one_window_at_a_time(models, text, name, tmp_path):
    model = models[name]
    units, start_token = find_units(model), text.start
    gathered = gather(model, text, units, CONFIG.gather, name, tmp_path)
    texts = tuple(f"t{token}" for token in range(model.cfg.d_vocab))
    reader = Reader(model, units, 1, start_token)
    explainer = Explainer(reader, gathered, Listed(WORDS), Vocabulary(texts), CONFIG)
    members = [2, 7, 11, 30]
    found = explainer.layer(members)["neurons"]
    assert any(one["excerpts"] for one in found)
    for unit, neuron in zip(members, found, strict=True):
        twin = Twin(model, units.hooks[1], unit, start_token, CONFIG)
        _compare(twin, neuron, gathered, texts)


def _compare(twin, neuron, gathered, texts):
    """A unit as it is kept in its layer's file, beside the twin's."""
    text = gathered.text

    def story(number):
        return np.asarray(text.corpus.story(number)).tolist()

    best = gathered.excerpts(1, twin.unit, "explain", "top")[: CONFIG.examples]
    best = [one for one in best if one.maximum > 0]
    assert neuron["excerpts"] == len(best)
    if not best:
        return
    told = twin.explain(best, story, lambda before, word, after: [w for w in WORDS if w != word])
    assert neuron["unfaithful"] == told["unfaithful"]
    known = {tuple(one["path"]): one["activation"] for one in neuron["patterns"]}
    wanted = {
        tuple(None if token is None else texts[token] for token in path): activation
        for path, activation in told["patterns"].items()
    }
    assert known == {path: pytest.approx(value, abs=2e-4) for path, value in wanted.items()}
    counts = _counts(twin, told, best, gathered, story)
    for name, (hits, false, missed) in counts.items():
        scored = neuron["scores"][name]
        assert (scored["hits"], scored["false"], scored["missed"]) == (hits, false, missed), name


def _counts(twin, told, best, gathered, story):
    """Hits, false alarms and misses of each predictor, token by token."""
    threshold = CONFIG.thresholds.activation
    least = threshold * told["maximum"]
    whole = [
        (int(token), bool(value > least))
        for one in best
        for token, value in zip(one.tokens, one.activations, strict=True)
    ]
    fires = {
        "lookup": lambda token: _share(whole, token) >= 0.5,
        "lookup_windows": lambda token: _share(told["evidence"], token) >= 0.5,
        "lookup_published": lambda token: _share(whole, token) > 0,
        "always": lambda token: True,
    }
    counts = {name: [0, 0, 0] for name in ("trie", *fires)}
    seen = set()
    for kind in ("top", "sample", "random"):
        for one in gathered.excerpts(1, twin.unit, "held_out", kind):
            if (one.story, one.start) in seen:
                continue
            seen.add((one.story, one.start))
            first = max(0, one.start - CONFIG.context)
            tokens = story(one.story)[first : one.start + len(one.tokens)]
            for place, value in enumerate(one.activations):
                t = one.start - first + place
                guesses = {name: rule(tokens[t]) for name, rule in fires.items()}
                guesses["trie"] = twin.predict(told["patterns"], tokens, t) > threshold
                for name, guess in guesses.items():
                    real = value > least
                    counts[name][0] += guess and real
                    counts[name][1] += guess and not real
                    counts[name][2] += real and not guess
    return counts


def _share(evidence, token):
    """Of a token's occurrences those that fire."""
    met = [fired for other, fired in evidence if other == token]
    return sum(met) / len(met) if met else 0.0
