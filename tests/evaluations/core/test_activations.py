"""One pass against a plain one: every excerpt, every statistic, in whatever pieces it is read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

import evaluations.core.activations as activations
from evaluations.core.activations import gather
from evaluations.core.excerpts import HALVES, SPARE, Excerpt, GatherConfig, Gathered, story_words
from evaluations.core.text import Text, evaluation_text
from evaluations.core.units import find_units
from sat_interp._util.errors import UserError

CONFIG = GatherConfig(top=3, sample=2, random=2, width=6)


def plain_activations(model, text: Text, story: int, hook: str) -> np.ndarray:
    """(tokens, units) of one story by itself, through TransformerLens' hooks."""
    tokens = [text.corpus.end_of_text, *text.corpus.story(story).tolist()][: model.cfg.n_ctx]
    with torch.inference_mode():
        _, cache = model.run_with_cache(torch.tensor([tokens]), names_filter=[hook])
    return cache[hook][0, 1:].flatten(1).numpy()


@pytest.fixture
def found(make_model, text, tmp_path) -> Gathered:
    model = make_model()
    return gather(model, text, find_units(model), CONFIG, "tiny", tmp_path)


def test_statistics_are_those_of_all_tokens(found, make_model, text):
    model = make_model()
    for layer in (0, 1):
        hook = f"blocks.{layer}.mlp.hook_post"
        every = np.concatenate([plain_activations(model, text, s, hook) for s in range(len(text))])
        told = found.statistics[layer]
        assert found.tokens == len(every)
        np.testing.assert_allclose(told.maximum, every.max(0), rtol=1e-5)
        np.testing.assert_allclose(told.mean, every.mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(told.density, (every > 0).mean(0), rtol=1e-6)
        np.testing.assert_array_equal(told.dead, (every > 0).sum(0) == 0)


def test_the_top_excerpts_are_the_best_of_each_story(found, make_model, text):
    model, words = make_model(), story_words(text, 0)
    hook = "blocks.1.mlp.hook_post"
    stories = [plain_activations(model, text, s, hook) for s in range(len(text))]
    checked = 0
    for number, half in enumerate(HALVES):
        members = [s for s in range(len(text)) if words[s] % 2 == number]
        assert found.stories[half] == len(members)
        for unit in range(stories[0].shape[1]):
            fire = [s for s in members if stories[s][:, unit].max() > 0]
            excerpts = found.excerpts(1, unit, half, "top")
            assert [one.story for one in excerpts] == _best(text, stories, fire, words, unit)
            for one in excerpts:
                values = stories[one.story][:, unit]
                assert one.maximum == pytest.approx(values.max(), rel=1e-6)
                assert one.start % CONFIG.width == 0
                end = one.start + CONFIG.width
                np.testing.assert_allclose(one.activations, values[one.start : end], rtol=1e-5)
                story = text.corpus.story(one.story)[: model.cfg.n_ctx - 1]
                np.testing.assert_array_equal(one.tokens, story[one.start : end])
                checked += 1
    assert checked > 100


def _best(text, stories, fire, words, unit) -> list[int]:
    """The stories of the highest peaks, one by one, near-duplicates left out."""
    order = sorted(
        fire, key=lambda s: (-float(np.float32(stories[s][:, unit].max())), -int(words[s]))
    )
    kept: list[Excerpt] = []
    for story in order[: int(SPARE * CONFIG.top)]:
        values = stories[story][:, unit]
        one = Excerpt(story, 0, text.corpus.story(story)[: len(values)].astype(np.int64), values)
        if all(_differing(text, one, other) > 1 for other in kept):
            kept.append(one)
    return [one.story for one in kept[: CONFIG.top]]


def test_samples_fire_and_random_excerpts_are_the_same_for_all(found):
    for half in HALVES:
        chosen = set()
        for unit in range(64):
            assert all(one.maximum > 0 for one in found.excerpts(0, unit, half, "sample"))
            excerpts = found.excerpts(0, unit, half, "random")
            chosen.add(tuple(sorted((one.story, one.start) for one in excerpts)))
        assert len(chosen) == 1


def test_halves_share_no_story_and_copies_lie_on_one_side(tokenizer, tmp_path, make_model):
    path = tmp_path / "twice.txt"
    lines = [f"Tom saw {word} in the park." for word in ("a cat", "a ball", "Anna", "a café")] * 2
    path.write_text("<|endoftext|>".join(lines), encoding="utf-8")
    text = evaluation_text(tokenizer, str(path))
    words = story_words(text, 3)
    assert len(text) == 8
    np.testing.assert_array_equal(words[:4], words[4:])
    assert len(set(words.tolist())) == 4


def test_pieces_do_not_matter(found, make_model, text, tmp_path, monkeypatch):
    monkeypatch.setattr(activations, "BATCH_TOKENS", 1)
    monkeypatch.setattr(activations, "BUFFER_BYTES", 1)
    model = make_model()
    again = gather(model, text, find_units(model), CONFIG, "tiny", tmp_path / "other")
    _same(found, again)


def test_an_interrupted_pass_goes_on_where_it_was(
    found, make_model, text, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(activations, "BATCH_TOKENS", 1)
    monkeypatch.setattr(activations, "BUFFER_BYTES", 1)
    monkeypatch.setattr(activations, "SAVE_EVERY", -1.0)
    model, cache = make_model(), tmp_path / "killed"
    units, read = find_units(model), activations._read
    calls = []

    def dying(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return read(*arguments)

    monkeypatch.setattr(activations, "_read", dying)
    with pytest.raises(KeyboardInterrupt):
        gather(model, text, units, CONFIG, "tiny", cache)
    _same(found, gather(model, text, units, CONFIG, "tiny", cache))
    assert len(calls) == 4 + len(text) - 3
    _same(found, gather(model, text, units, CONFIG, "tiny", cache))  # from the cache
    assert len(calls) == 4 + len(text) - 3
    (file,) = cache.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:5000])
    _same(found, gather(model, text, units, CONFIG, "tiny", cache))
    assert len(calls) == 4 + 2 * len(text) - 3
    assert "gathered again" in caplog.text


def test_of_copies_one_is_sampled(tokenizer, tmp_path, make_model):
    path = tmp_path / "copies.txt"
    stories = [
        "The cat sat in the park.",
        "Tom was sad.",
        "Anna gave a ball to Tom.",
        "A warm day.",
    ]
    path.write_text("<|endoftext|>".join([*stories, *stories, *stories]), encoding="utf-8")
    text, model = evaluation_text(tokenizer, str(path)), make_model()
    config = GatherConfig(top=9, sample=9, random=9, width=6)
    found = gather(model, text, find_units(model), config, "copies", tmp_path)
    seen = 0
    for half in HALVES:
        for kind in ("sample", "random"):
            for unit in range(64):
                excerpts = found.excerpts(0, unit, half, kind)
                texts = {one.story % len(stories) for one in excerpts}
                assert len(texts) == len(excerpts)
                seen += len(excerpts)
    assert seen > 64


def test_random_masks_are_the_same_in_every_reading(make_model, text, tmp_path):
    model = make_model("local", gates="random")
    units = find_units(model, stream="ablated")
    _same(*(gather(model, text, units, CONFIG, "random", tmp_path / name) for name in "ab"))


def test_near_duplicates_are_left_out(tokenizer, make_model, tmp_path):
    path = tmp_path / "alike.txt"
    alike = [f"Tom was sad. One day Tom and Anna went to the park. {end}" for end in "ABCDEFGH"]
    path.write_text("<|endoftext|>".join([*alike, "The cat."]), encoding="utf-8")
    text, model = evaluation_text(tokenizer, str(path)), make_model(n_ctx=48)
    config = GatherConfig(top=5, width=64)
    found = gather(model, text, find_units(model), config, "alike", tmp_path)
    clear = 0
    for unit in range(64):
        for half in HALVES:
            excerpts = found.excerpts(0, unit, half, "top")
            for place, one in enumerate(excerpts):
                for other in excerpts[:place]:
                    assert _differing(text, one, other) > 1
                    clear += 1
    assert clear
    kept = found.kept[0]["explain"]["top"]
    assert (kept.stories >= 0).sum(0).float().mean() < 4  # of eight stories and their like


def _differing(text: Text, one: Excerpt, other: Excerpt) -> int:
    def around(excerpt: Excerpt) -> list[int]:
        story, peak = text.corpus.story(excerpt.story), excerpt.start + excerpt.peak
        places = range(peak - 8, peak + 9)
        return [int(story[p]) if 0 <= p < len(story) else -1 for p in places]

    return sum(a != b for a, b in zip(around(one), around(other), strict=True))


def test_any_hooked_transformer_and_z(text, tmp_path, tokenizer):
    cfg = HookedTransformerConfig(
        n_layers=2,
        d_model=16,
        n_ctx=24,
        d_head=8,
        n_heads=2,
        d_vocab=len(tokenizer),
        act_fn="relu",
        seed=0,
        dtype=torch.float64,
    )
    model = HookedTransformer(cfg).eval()
    units = find_units(model, "blocks.*.attn.hook_z")
    assert units.sizes == (16, 16)
    found = gather(model, text, units, CONFIG, "plain", tmp_path)
    every = np.concatenate(
        [plain_activations(model, text, s, "blocks.1.attn.hook_z") for s in range(len(text))]
    )
    np.testing.assert_allclose(found.statistics[1].maximum, every.max(0), rtol=1e-5)


def test_not_finite_is_an_error(make_model, text, tmp_path):
    model = make_model()
    model.blocks[1].mlp.W_in.data[0, 0] = torch.nan
    with pytest.raises(UserError, match="layer 1 are not finite"):
        gather(model, text, find_units(model), CONFIG, "nan", tmp_path)


def test_configurations_that_mean_nothing():
    for wrong in ({"top": 0}, {"width": 0}, {"sample": -1}, {"random": -1}, {"seed": -1}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            GatherConfig(**wrong)


def _same(one: Gathered, other: Gathered) -> None:
    assert (one.tokens, one.stories) == (other.tokens, other.stories)
    for layer, halves in one.kept.items():
        for name in ("maximum", "mean", "density"):
            mine, theirs = (getattr(g.statistics[layer], name) for g in (one, other))
            torch.testing.assert_close(mine, theirs)
        for half, kinds in halves.items():
            for kind, kept in kinds.items():
                theirs = other.kept[layer][half][kind]
                assert torch.equal(kept.stories, theirs.stories)
                assert torch.equal(kept.starts, theirs.starts)
                torch.testing.assert_close(kept.activations, theirs.activations, equal_nan=True)
