from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from evaluations.core.statistics import bootstrap
from evaluations.suite.gates.leak import (
    ProbeTokens,
    collect,
    described,
    measure_leak,
    next_token_classes,
    story_roles,
)
from evaluations.suite.gates.masks import exchanged_occurrences
from evaluations.suite.gates.metrics import leak_metrics
from evaluations.suite.gates.probe import Features
from sat_interp._util.errors import UserError


def made_tokens(
    tells: str, stories: int = 60, length: int = 60, vocabulary: int = 6
) -> ProbeTokens:
    """Tokens drawn at random, so that the current one says nothing of the next."""
    draws = torch.Generator().manual_seed(0)
    n = stories * length
    stream = torch.randint(0, vocabulary, (stories, length + 1), generator=draws)
    current, following = stream[:, :-1].flatten(), stream[:, 1:].flatten()
    told = following if tells == "next" else torch.randint(0, vocabulary, (n,), generator=draws)
    mask = Features(torch.stack([told, vocabulary + told], 1), 2 * vocabulary)
    order = torch.rand(stories, length, generator=draws).argsort(-1)
    order = (order + length * torch.arange(stories)[:, None]).flatten()
    shuffled = Features(mask.on[order], mask.n_on)
    state = torch.nn.functional.one_hot(current, vocabulary).float()
    story = torch.arange(stories).repeat_interleave(length)
    exchanged = exchanged_occurrences(current, draws)
    return ProbeTokens(current, following, story, [mask], [shuffled], exchanged, [state], state)


def bits(leak, name):
    sums = leak.bits(name)[0]
    interval = bootstrap(sums, leak.tokens, resamples=500, seed=0)
    return sums.sum() / leak.tokens.sum(), interval


def test_masks_that_hold_the_next_token_are_read_and_shuffled_ones_are_not():
    leak = measure_leak(made_tokens("next"), 100, seed=0)
    found, _ = bits(leak, "mask")
    assert found == pytest.approx(math.log2(6), abs=0.05)
    adds = (leak.bits("token+mask")[0] - leak.bits("token")[0]).sum() / leak.tokens.sum()
    assert adds == pytest.approx(math.log2(6), abs=0.05)
    for control in ("shuffled", "token", "residual", "final"):
        assert bits(leak, control)[0] == pytest.approx(0, abs=0.02)
    told = described(leak, 100, 0)["probes"]
    assert told["mask"][0]["accuracy"] == 1.0
    assert told["mask"][0]["cross_entropy"] < 0.04
    assert told["mask"][0]["converged"]
    assert told["unigram"][0]["bits"] == 0


def test_masks_that_say_nothing_read_as_much_as_shuffled_ones():
    leak = measure_leak(made_tokens("nothing"), 100, seed=0)
    gap = leak.bits("mask")[0] - leak.bits("shuffled")[0]
    interval = bootstrap(gap, leak.tokens, resamples=500, seed=0)
    # a hundredth of a bit for the luck of the tuning stories, which the interval does not know of
    assert interval.low - 0.01 <= 0 <= interval.high + 0.01


def planted(tells: str, stories: int, length: int, vocabulary: int) -> ProbeTokens:
    """Tokens in groups of three, whose group decides which two groups the next token is of.

    Which of the two it is, is one bit; which of the group's three tokens, nothing tells. ``token``
    masks are the token's group, a pure function of the token; ``bit`` masks hold the bit, too.
    """
    draws = torch.Generator().manual_seed(0)
    groups = vocabulary // 3
    bits = torch.randint(0, 2, (stories, length), generator=draws)
    stream = torch.randint(0, vocabulary, (stories, length + 1), generator=draws)
    for place in range(length):
        group = (2 * (stream[:, place] // 3) + 1 + bits[:, place]) % groups
        stream[:, place + 1] = 3 * group + stream[:, place + 1] % 3
    current, following, bit = stream[:, :-1].flatten(), stream[:, 1:].flatten(), bits.flatten()
    on = current[:, None] // 3
    if tells == "bit":
        on = torch.cat([on, groups + 2 * on + bit[:, None]], 1)
    mask = Features(on, 3 * groups)
    order = torch.rand(stories, length, generator=draws).argsort(-1)
    order = (order + length * torch.arange(stories)[:, None]).flatten()
    state = torch.nn.functional.one_hot(current, vocabulary).float()
    story = torch.arange(stories).repeat_interleave(length)
    exchanged = exchanged_occurrences(current, draws)
    return ProbeTokens(
        current, following, story, [mask], [mask.at(order)], exchanged, [state], state
    )


def test_masks_that_are_a_function_of_the_token_have_no_excess():
    """Beside a probe of the token alone they seem to add something: tokens learn from others."""
    leak = measure_leak(planted("token", 60, 20, 90), 100, seed=0)
    found = {metric.name: metric for metric in leak_metrics(leak, 500, 0)}
    assert found["leak_mask_adds"].interval.low > 0.1
    assert found["leak_exchanged_adds"].value == found["leak_mask_adds"].value
    excess = found["leak_mask_excess"]
    assert excess.interval.low <= 0 <= excess.interval.high
    assert excess.value == 0.0


def test_a_planted_bit_beyond_the_token_is_the_excess():
    leak = measure_leak(planted("bit", 60, 60, 12), 100, seed=0)
    found = {metric.name: metric for metric in leak_metrics(leak, 500, 0)}
    excess = found["leak_mask_excess"]
    assert excess.value == pytest.approx(1.0, abs=0.05)
    assert excess.interval.low > 0.9
    assert found["leak_exchanged_adds"].value == pytest.approx(0, abs=0.02)


def test_a_figure_of_baselines_alone_has_no_interval():
    leak = measure_leak(made_tokens("nothing", vocabulary=2, stories=20, length=20), 100, seed=0)
    found = {metric.name: metric for metric in leak_metrics(leak, 500, 0)}
    shuffled = leak.readings["shuffled"][0].probe
    assert shuffled.is_baseline
    assert found["leak_shuffled"].value == 0.0
    assert found["leak_shuffled"].interval is None
    assert found["leak_shuffled"].standard_error is None
    assert described(leak, 100, 0)["probes"]["shuffled"][0]["bits_interval"] is None


def test_exchanged_places_hold_the_same_token_and_are_all_used():
    tokens = torch.tensor([3, 1, 3, 7, 1, 3, 2])
    for seed in range(5):
        found = exchanged_occurrences(tokens, torch.Generator().manual_seed(seed))
        assert torch.equal(tokens[found], tokens)
        assert found.sort().values.tolist() == list(range(7))
        kept = found == torch.arange(7)
        assert kept.tolist() == [False, False, False, True, False, False, True]
    drawn = {
        tuple(
            exchanged_occurrences(
                torch.zeros(4, dtype=torch.int64), torch.Generator().manual_seed(seed)
            ).tolist()
        )
        for seed in range(60)
    }
    assert len(drawn) == 6  # every cycle through four places


def test_stories_have_one_role_each_and_the_shares_that_are_told():
    story = torch.arange(40).repeat_interleave(3)
    roles = story_roles(story, seed=0)
    per_story = roles.view(40, 3)
    assert (per_story == per_story[:, :1]).all()
    assert torch.bincount(per_story[:, 0]).tolist() == [24, 6, 10]
    assert not torch.equal(roles, story_roles(story, seed=1))
    with pytest.raises(UserError, match="7 stories are too few"):
        story_roles(torch.arange(7), seed=0)


def test_roles_do_not_need_stories_to_be_numbered_without_gaps():
    few = torch.tensor([2, 2, 5, 9, 11, 12, 20, 21, 30])
    assert (
        story_roles(few, 0).tolist()
        == story_roles(torch.tensor([0, 0, 1, 2, 3, 4, 5, 6, 7]), 0).tolist()
    )


def test_classes_are_the_frequent_next_tokens_and_one_for_the_rest():
    following = torch.tensor([7, 7, 7, 4, 4, 9, 2, 4])
    train = torch.arange(6)  # 2 is not in it
    classes, n = next_token_classes(following, train, 3)
    assert n == 3
    assert classes.tolist() == [0, 0, 0, 1, 1, 2, 2, 1]
    classes, n = next_token_classes(following, train, 100)
    assert n == 4
    assert classes.tolist() == [0, 0, 0, 1, 1, 2, 3, 1]


@pytest.mark.parametrize("variant", ["local", "global"])
def test_what_is_collected_is_what_the_model_has(make_model, text, variant):
    model = make_model(variant)
    found = collect(model, text, seed=0)
    for story in range(len(text)):
        rows = torch.nonzero(found.story == story)[:, 0]
        ids = [text.corpus.end_of_text, *text.corpus.story(story).tolist()]
        ids = torch.tensor([ids[: model.cfg.n_ctx]])
        assert found.current[rows].tolist() == ids[0].tolist()
        assert found.following[rows][:-1].tolist() == ids[0, 1:].tolist()
        out = model.dual(ids)
        _, cache = model.run_with_cache(ids)
        final = model.dual_states(ids, path="hooked").clean[0]
        torch.testing.assert_close(found.final[rows].double(), final, atol=1e-5, rtol=1e-5)
        for layer in range(2):
            state = cache[f"blocks.{layer}.hook_resid_pre"][0]
            torch.testing.assert_close(
                found.residual[layer][rows].double(), state, atol=1e-5, rtol=1e-5
            )
            both = torch.cat([out.attention_masks, out.neuron_masks], -1)[0, :, layer]
            hot = torch.zeros_like(both).scatter_(1, found.masks[layer].on[rows], 1.0)
            assert torch.equal(hot, both)
            moved = found.shuffled[layer].on[rows].sort(-1).values.tolist()
            own = found.masks[layer].on[rows].sort(-1).values.tolist()
            assert sorted(moved) == sorted(own)
    shuffled = found.shuffled[0].on.sort(-1).values
    assert not torch.equal(shuffled, found.masks[0].on.sort(-1).values)


def test_soft_masks_are_read_with_their_weights(make_model, text):
    found = collect(make_model("local", forward_mask="soft"), text, seed=0)
    assert found.masks[0].on is None
    assert found.masks[0].dense.shape[1] == 16 + 64
    assert measure_leak(found, 20, seed=0).readings["mask"][0].probe.converged


def test_test_tokens_are_counted_story_by_story(make_model, text):
    leak = measure_leak(collect(make_model("local"), text, seed=0), 20, seed=0)
    assert leak.tokens.sum() == leak.facts["tokens"]["test"]
    assert len(leak.tokens) == leak.facts["stories"]["test"] == 2
    assert sum(leak.facts["stories"].values()) == len(text)
    assert np.all(leak.readings["token"][0].hits <= leak.tokens)
