from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from evaluations.core.losses import token_losses
from evaluations.suite.gates.interventions import (
    measure_interventions,
    other_stories,
    randomised,
    shuffled,
)
from evaluations.suite.lm.evaluation import story_losses
from sat_interp.model.fast import ablated_pass
from tests.sat_interp.model import plain


def own_masks(model, tokens):
    """The masks of every layer, by site, from the pass that fires every hook."""
    states = model.dual_states(tokens, path="hooked")
    return {"attention": states.attention_masks, "neuron": states.neuron_masks}


def ablated_under(model, tokens, masks):
    clean, _ = model.clean_and_masks(tokens)
    return ablated_pass(model, clean, list(zip(masks["attention"], masks["neuron"], strict=True)))


TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


def by_brute_force(model, row, masks):
    """The ablated stream's logits of one sequence under given masks, a position at a time."""
    W = dict(model.named_parameters())
    embedding = W["embed.W_E"][row] + W["pos_embed.W_pos"][: len(row)]
    clean, ablated = embedding, embedding
    for layer in range(model.cfg.n_layers):
        clean, keys, values = plain._clean_block(model, W, layer, clean)
        ablated = plain._ablated_block(
            model,
            W,
            layer,
            ablated,
            keys,
            values,
            masks["attention"][layer],
            masks["neuron"][layer],
        )
    return plain._norm(W, "ln_final", ablated) @ W["embed.W_E"].T


@pytest.mark.parametrize("variant", ["local", "global"])
def test_the_models_own_masks_put_back_change_nothing(make_model, variant):
    model = make_model(variant)
    own = own_masks(model, TOKENS)
    found = ablated_under(model, TOKENS, own)
    for path in ("hooked", "fast"):
        expected = model.dual_states(TOKENS, path=path).ablated
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("variant", ["local", "global"])
@pytest.mark.parametrize("unit", ["coordinate", "head"])
def test_random_masks_are_those_of_brute_force(make_model, variant, unit):
    model = make_model(variant, unit=unit)
    masks = randomised(own_masks(model, TOKENS), torch.Generator().manual_seed(0))
    states = ablated_under(model, TOKENS, masks)
    for row, tokens in enumerate(TOKENS):
        own = {site: [mask[row] for mask in layers] for site, layers in masks.items()}
        logits = by_brute_force(model, tokens, own)
        expected = F.cross_entropy(logits[:-1], tokens[1:], reduction="none")
        found = token_losses(model, states[row : row + 1, :-1], TOKENS[row : row + 1, 1:])
        torch.testing.assert_close(found[0], expected.detach(), atol=1e-9, rtol=1e-9)


def test_random_masks_keep_k_units_and_no_unit_is_preferred(make_model):
    model = make_model("local")
    own = own_masks(model, torch.arange(20).repeat(40, 1))
    found = randomised(own, torch.Generator().manual_seed(0))
    for site, k in {"attention": 3, "neuron": 5}.items():
        for mask in found[site]:
            assert (mask.sum(-1) == k).all()
            often = mask.mean((0, 1))
            error = (often * (1 - often) / 800).sqrt().mean()
            assert (often - k / mask.shape[-1]).abs().max() < 5 * error
    again = randomised(own, torch.Generator().manual_seed(0))
    assert torch.equal(again["neuron"][1], found["neuron"][1])


def test_soft_masks_keep_their_weights_on_random_units(make_model):
    own = own_masks(make_model("local", forward_mask="soft"), TOKENS)
    found = randomised(own, torch.Generator().manual_seed(0))
    before, after = own["neuron"][0], found["neuron"][0]
    assert not torch.equal(before, after)
    assert torch.equal(before.sort(-1).values, after.sort(-1).values)


def test_shuffled_masks_move_together(make_model):
    own = own_masks(make_model("local"), TOKENS)
    order = torch.tensor([[1, 2, 3, 4, 5, 0], [0, 5, 4, 3, 2, 1]])
    found = shuffled(own, order)
    for site, layers in found.items():
        for layer, mask in enumerate(layers):
            for row in range(2):
                assert torch.equal(mask[row], own[site][layer][row, order[row]])


def test_a_position_of_the_ablated_stream_reads_its_own_masks_alone(make_model):
    """What the module's docstring says of interventions: they act token by token."""
    model = make_model("global")
    own = own_masks(model, TOKENS)
    changed = {site: [mask.clone() for mask in layers] for site, layers in own.items()}
    for layers in changed.values():
        for mask in layers:
            mask[:, 2] = mask[:, 2].flip(-1)
    before, after = (ablated_under(model, TOKENS, masks) for masks in (own, changed))
    moved = (before - after).abs().amax(-1) > 1e-9
    assert moved[:, 2].all()
    assert not moved[:, [0, 1, 3, 4, 5]].any()


def test_own_and_clean_losses_are_those_of_lm(make_model, text):
    model = make_model("local")
    found, known = measure_interventions(model, text, 0), story_losses(model, text)
    np.testing.assert_allclose(found.nats["own"], known.nats["ablated"], rtol=1e-12)
    np.testing.assert_allclose(found.nats["clean"], known.nats["clean"], rtol=1e-12)
    assert found.tokens.tolist() == known.tokens.tolist()


def test_gates_that_choose_the_same_everywhere_lose_nothing_to_a_shuffle(make_model, text):
    model = make_model("local")
    for block in model.blocks:
        block.gates.scores.W_attention.data.zero_()
        block.gates.scores.W_neurons.data.zero_()
        block.gates.scores.b_attention.data.normal_()
        block.gates.scores.b_neurons.data.normal_()
    found = measure_interventions(model, text, 0)
    known = np.isfinite(found.nats["other_story"])
    np.testing.assert_allclose(found.nats["shuffled"], found.nats["own"], rtol=1e-10)
    np.testing.assert_allclose(found.nats["other_story"][known], found.nats["own"][known], 1e-10)
    assert not np.allclose(found.nats["random"], found.nats["own"])


def test_another_story_is_another_one_and_long_enough():
    lengths = np.array([3, 9, 5, 5, 9, 4])
    for seed in range(20):
        found = other_stories(lengths, seed)
        assert (found != np.arange(6)).all()
        assert (lengths[found] >= lengths).all()
    assert other_stories(np.array([2, 7]), 0).tolist() == [1, -1]


def test_masks_of_another_story_are_its_own_at_the_same_position(make_model, text):
    model = make_model("local", n_ctx=60)
    found = measure_interventions(model, text, seed=3)
    partners = other_stories(text.scored(60), 3)
    end = text.corpus.end_of_text
    assert (partners < 0).sum() == np.isnan(found.nats["other_story"]).sum() == 1  # the longest
    for story, other in enumerate(partners):
        if other < 0:
            continue
        ids = torch.tensor([[end, *text.corpus.story(story).tolist(), end]])
        length = ids.shape[1] - 1
        lent = torch.tensor([[end, *text.corpus.story(int(other)).tolist()]])[:, :length]
        masks = own_masks(model, lent)
        states = ablated_under(model, ids[:, :-1], masks)
        expected = token_losses(model, states, ids[:, 1:]).sum().item()
        assert found.nats["other_story"][story] == pytest.approx(expected, rel=1e-9)
