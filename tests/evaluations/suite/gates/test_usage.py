"""Win frequencies, entropy and overlaps: by hand, by brute force, and their errors by jackknife."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from evaluations.suite.gates import usage as use
from evaluations.suite.gates.usage import Usage, count

# Two stories of one layer, four units, k = 1: winners 0 0 1 and 0 2. Unit 3 never wins.
HAND = Usage(
    k=1,
    tokens=np.array([3, 2]),
    wins=np.array([[[2, 1, 0, 0]], [[1, 0, 1, 0]]]),
    neighbours=np.array([[1.0], [0.0]]),
    pairs=np.array([3.0, 2.0]),
    shared=np.array([[1.0], [0.0]]),
    products=np.array([[[1.0]], [[0.0]]]),
)


def forced(model, units: dict[str, list[int]]):
    """Gates whose scores are biases alone, so that these units win everywhere."""
    for block in model.blocks:
        for site, bias in {"attention": "b_attention", "neuron": "b_neurons"}.items():
            getattr(block.gates.scores, bias.replace("b_", "W_")).data.zero_()
            getattr(block.gates.scores, bias).data.zero_()
            getattr(block.gates.scores, bias).data[units[site]] = 1.0
    return model


@torch.no_grad()
def by_brute_force(model, text):
    """Winners of every token as sets: story -> layer -> position -> set of units, by site."""
    found = {"attention": [], "neuron": []}
    for story in range(len(text)):
        ids = [text.corpus.end_of_text, *text.corpus.story(story).tolist()]
        out = model.dual(torch.tensor([ids[: model.cfg.n_ctx]]))
        for site, masks in {"attention": out.attention_masks, "neuron": out.neuron_masks}.items():
            found[site].append(
                [
                    [{int(u) for u in np.flatnonzero(row)} for row in masks[0, :, layer].numpy()]
                    for layer in range(model.cfg.n_layers)
                ]
            )
    return found


def test_figures_by_hand():
    frequency, _ = use.frequencies(HAND)
    assert frequency.tolist() == [[0.6, 0.2, 0.2, 0.0]]
    bits = -(0.6 * math.log2(0.6) + 2 * 0.2 * math.log2(0.2))
    assert use.entropy(HAND).value == pytest.approx([bits])
    assert use.maximum_entropy(HAND) == 2.0
    assert use.dead(HAND).value == [0.25]
    assert use.neighbour_overlap(HAND).value == pytest.approx([1 / 3])  # 3 pairs of neighbours
    assert use.random_pair_overlap(HAND).value == pytest.approx([1 / 5])
    assert use.chance_overlap(HAND).value == pytest.approx([3 * 2 / (5 * 4)])
    assert use.excess_overlap(HAND).value == pytest.approx([1 / 3 - 0.3])


def test_gates_that_always_choose_the_same_units(make_model, text):
    model = forced(make_model("local"), {"attention": [1, 4, 9], "neuron": [0, 7, 8, 20, 63]})
    for site, (k, n) in {"attention": (3, 16), "neuron": (5, 64)}.items():
        found = count(model, text, 0)[site]
        frequency, error = use.frequencies(found)
        assert (found.k, found.n_units) == (k, n)
        assert sorted(np.unique(frequency)) == [0.0, 1.0]
        assert error.max() == 0
        assert use.entropy(found).value == pytest.approx(2 * [math.log2(k)])
        assert use.dead(found).value == pytest.approx(2 * [1 - k / n])
        assert use.neighbour_overlap(found).value.tolist() == [1.0, 1.0]
        assert use.chance_overlap(found).value == pytest.approx([1.0, 1.0])
        assert np.isnan(use.layer_similarity(found).value).all()  # nothing varies


@pytest.mark.parametrize("variant", ["local", "global"])
def test_streamed_counts_are_those_of_sets(make_model, text, variant):
    model = make_model(variant)
    counted = count(model, text, 0)
    for site, stories in by_brute_force(model, text).items():
        found = counted[site]
        tokens = [position for story in stories for position in story[0]]
        assert found.tokens.sum() == len(tokens)
        for layer in range(2):
            wins = np.zeros(found.n_units)
            shared, neighbours = 0, 0
            for story in stories:
                for winners in story[layer]:
                    wins[list(winners)] += 1
                for one, two in zip(story[layer], story[layer][1:], strict=False):
                    shared, neighbours = shared + len(one & two), neighbours + 1
            assert found.wins[:, layer].sum(0).tolist() == wins.tolist()
            overlap = use.neighbour_overlap(found).value[layer]
            assert overlap == pytest.approx(shared / found.k / neighbours)
            q = wins[wins > 0] / wins.sum()
            assert use.entropy(found).value[layer] == pytest.approx(-(q * np.log2(q)).sum())
            assert use.dead(found).value[layer] == (wins == 0).mean()


def test_chance_is_the_mean_over_all_pairs_of_tokens(make_model, text):
    model = make_model("local")
    found = count(model, text, 0)["neuron"]
    for layer in range(2):
        tokens = [one for story in by_brute_force(model, text)["neuron"] for one in story[layer]]
        pairs = [len(a & b) / 5 for i, a in enumerate(tokens) for b in tokens[:i]]
        assert use.chance_overlap(found).value[layer] == pytest.approx(np.mean(pairs))


def test_masks_drawn_anew_at_every_token_overlap_by_chance():
    usage, _ = synthetic(300, 4, "independent")
    excess = use.excess_overlap(usage)
    assert abs(excess.value[1]) < 3 * excess.standard_error[1]  # layer 1 is uniform, and no other
    assert use.neighbour_overlap(usage).value[1] == pytest.approx(2 / 12, abs=0.02)


def test_soft_masks_are_counted_by_their_k_highest_scores(make_model, text):
    hard, soft = make_model("global"), make_model("global", forward_mask="soft")
    for site, found in count(soft, text, 0).items():
        assert found.wins.tolist() == count(hard, text, 0)[site].wins.tolist()


def synthetic(stories: int, seed: int, alike: str) -> tuple[Usage, np.ndarray]:
    """Stories of random length that drift in which units they like; and the pairs' overlaps."""
    draws = np.random.default_rng(seed)
    units, k = 12, 2
    usage = use._empty(stories, 2, units, k)
    overlaps = []
    for story in range(stories):
        length = int(draws.integers(5, 30))
        liking = draws.gamma(1.0, size=units)
        first = np.zeros((length, units))
        for row in first:
            row[draws.choice(units, k, replace=False, p=liking / liking.sum())] = 1
        second = first[:, ::-1]
        if alike == "independent":
            second = np.stack([draws.permutation(row) for row in first])
        order = torch.from_numpy(draws.permutation(length))[None]
        layers = [torch.tensor(one[None].copy()).topk(k).indices for one in (first, second)]
        use._add(usage, layers, np.array([story]), order)
        moved = order[0].numpy() != np.arange(length)
        pairs = [(one[moved] * one[order[0].numpy()][moved]).sum(1) for one in (first, second)]
        overlaps.append(np.stack(pairs))
    return usage, np.concatenate(overlaps, 1)


def test_layers_that_are_each_others_under_other_numbers_are_alike():
    usage, _ = synthetic(30, 0, "relabelled")
    assert use.layer_similarity(usage).value[0, 1] == pytest.approx(1.0)
    assert use.layer_similarity(usage).standard_error[0, 1] == pytest.approx(0.0, abs=1e-6)


def test_independent_layers_are_not_alike_and_the_figure_is_the_pairs_correlation():
    usage, pairs = synthetic(200, 1, "independent")
    found = use.layer_similarity(usage)
    assert found.value == pytest.approx(np.corrcoef(pairs), abs=1e-9)
    assert abs(found.value[0, 1]) < 3 * found.standard_error[0, 1]


@pytest.mark.parametrize(
    "figure",
    [
        use.entropy,
        use.neighbour_overlap,
        use.chance_overlap,
        use.excess_overlap,
        use.random_pair_overlap,
        use.layer_similarity,
    ],
)
def test_errors_are_those_of_the_jackknife_over_stories(figure):
    usage, _ = synthetic(80, 2, "independent")
    n = len(usage.tokens)
    without = []
    for story in range(n):
        kept = np.arange(n) != story
        parts = [
            getattr(usage, name)[kept]
            for name in ("tokens", "wins", "neighbours", "pairs", "shared", "products")
        ]
        without.append(figure(Usage(usage.k, *parts)).value)
    spread = np.stack(without) - np.mean(without, axis=0)
    jackknife = np.sqrt((n - 1) / n * (spread**2).sum(0))
    found = figure(usage)
    assert found.standard_error == pytest.approx(jackknife, rel=0.1, abs=1e-9)
    if found.value.ndim == 1:
        mean = np.sqrt((n - 1) / n * (spread.mean(1) ** 2).sum())
        assert found.mean().standard_error == pytest.approx(mean, rel=0.1)


def test_the_error_of_dead_units_is_the_jackknife_exactly():
    ever = np.zeros((4, 1, 6), dtype=int)
    ever[0, 0, [0, 1]] = 3  # unit 0: this story alone
    ever[1, 0, [1, 2, 3]] = 1  # units 2 and 3: this story alone
    ever[2, 0, 1] = 1
    usage = use._empty(4, 1, 6, 1)
    usage.wins[:] = ever
    share = [np.mean((np.delete(ever, story, 0) == 0).all(0)) for story in range(4)]
    jackknife = math.sqrt(3 / 4 * np.sum((np.array(share) - np.mean(share)) ** 2))
    assert use.dead(usage).value == pytest.approx([2 / 6])
    assert use.dead(usage).standard_error == pytest.approx([jackknife])


def test_the_error_of_a_frequency_is_that_of_a_ratio():
    from evaluations.core.statistics import ratio

    usage, _ = synthetic(20, 3, "independent")
    frequency, error = use.frequencies(usage)
    for unit in range(usage.n_units):
        found = ratio(usage.wins[:, 0, unit], usage.tokens)
        assert frequency[0, unit] == pytest.approx(found.value)
        assert error[0, unit] == pytest.approx(found.standard_error)


def test_one_story_has_figures_but_no_errors():
    one = use._empty(1, 1, 4, 1)
    one.wins[0, 0, 0], one.tokens[0] = 5, 5
    assert use.entropy(one).value == [0.0]
    assert np.isnan(use.entropy(one).standard_error).all()
    assert np.isnan(use.dead(one).standard_error).all()
    assert np.isnan(use.random_pair_overlap(one).value).all()
