"""The token stream: equal to what the tokenizer says, found again by content, drawn by counter."""

from __future__ import annotations

import json
import logging
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sat_interp._util.errors import UserError
from sat_interp._util.files import default_cache
from sat_interp.data import corpus as module
from sat_interp.data import readers
from sat_interp.data.base import DataSource
from sat_interp.data.batches import cut_tokens, story_batches
from sat_interp.data.corpus import TokenCorpus, load_corpus
from sat_interp.data.sources import parse_data
from sat_interp.data.tokenizer import END_OF_TEXT, load_tokenizer, train_bpe

SLICE = Path(__file__).parents[4] / "shared" / "data" / "tinystories"


@pytest.fixture(scope="module")
def bpe() -> PreTrainedTokenizerFast:
    """One token per byte: the letter c is token ``bpe.convert_tokens_to_ids("c")``."""
    return train_bpe(["a"], 257)


@dataclass(frozen=True)
class ListSource(DataSource):
    """Stories given in the test; counts how often they are read."""

    stories: tuple[str, ...] = ()
    read: Callable[[], None] = lambda: None

    @property
    def name(self) -> str:
        return "a list/of stories"

    def validation_part(self) -> str:
        return "held"

    def read_part(self, part: str) -> Iterator[str]:
        self.read()
        yield from self.stories

    def hash_part(self, part: str) -> str:
        return repr(self.stories)


def source(*stories: str, read: Callable[[], None] = lambda: None) -> ListSource:
    return ListSource("test", stories=stories, read=read)


def tiny(tmp_path: Path, bpe: PreTrainedTokenizerFast, *stories: str) -> TokenCorpus:
    return load_corpus(source(*stories), "train", bpe, tmp_path)


# -- the stream


def words(ids: dict[str, int], **roles: str) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, with ids of one's own."""
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **roles)


def test_ids_above_65535_are_kept_however_few_tokens_there_are(tmp_path: Path) -> None:
    holes = words({"<unk>": 0, "</s>": 70_000, "cat": 65_536, "the": 65_535}, eos_token="</s>")
    assert len(holes) == 4
    corpus = load_corpus(source("the cat"), "train", holes, tmp_path)
    assert corpus.tokens.tolist() == [65_535, 65_536, 70_000]
    assert corpus.meta["vocab_size"] == 70_001


def test_what_the_tokens_do_not_keep_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = words({"<unk>": 0, "</s>": 1, "cat": 2, "the": 3}, eos_token="</s>")
    stories = ["the cat", "The cat", "the dog dog", "the"]
    meta = load_corpus(source(*stories), "train", tokenizer, tmp_path).meta
    assert (meta["n_unknown"], meta["n_checked"], meta["n_lossy"]) == (2, 4, 2)
    monkeypatch.setattr(module, "_CHECKED_STORIES", 2)
    meta = load_corpus(source(*stories, "the"), "train", tokenizer, tmp_path).meta
    assert (meta["n_unknown"], meta["n_checked"], meta["n_lossy"]) == (2, 2, 1)


def test_the_bytes_are_hashed_wherever_stories_end(
    tmp_path: Path, bpe: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    def text(*stories: str) -> str:
        return str(tiny(tmp_path, bpe, *stories).meta["text"])

    known = text("ab", "c")
    assert len({known, text("a", "bc"), text("abc"), text("Ab", "c"), text("ab", "c", "c")}) == 5
    assert text("ab", " ", "c") == known
    monkeypatch.setattr(module, "_BATCH_STORIES", 1)
    assert text("ab", "", "c") == known


def test_a_map_of_an_older_version_is_made_anew(
    tmp_path: Path, bpe: PreTrainedTokenizerFast
) -> None:
    corpus = tiny(tmp_path, bpe, "ab")
    path = corpus.directory / "meta.json"
    old = {name: value for name, value in corpus.meta.items() if name != "text"}
    path.write_text(json.dumps(old), encoding="utf-8")
    assert tiny(tmp_path, bpe, "ab").meta == corpus.meta


def test_the_stream_is_the_stories_and_their_ends(
    tmp_path: Path, bpe: PreTrainedTokenizerFast
) -> None:
    a, b, eot = (bpe.convert_tokens_to_ids(token) for token in ("a", "b", END_OF_TEXT))
    corpus = tiny(tmp_path, bpe, "ab", "", "b", " \n", "é")
    e_acute = bpe("é")["input_ids"]
    assert len(e_acute) == 2
    assert corpus.tokens.tolist() == [a, b, eot, b, eot, *e_acute, eot]
    assert corpus.tokens.dtype == np.uint16
    assert corpus.offsets.tolist() == [0, 3, 5, 8]
    assert corpus.story_bytes.tolist() == [2, 1, 2]
    assert len(corpus) == 3
    assert corpus.story(0).tolist() == [a, b]
    assert corpus.story(-1).tolist() == e_acute
    assert corpus.end_of_text == eot
    counts = {key: corpus.meta[key] for key in ("n_tokens", "n_stories", "n_empty", "vocab_size")}
    assert counts == {"n_tokens": 8, "n_stories": 3, "n_empty": 2, "vocab_size": 257}
    with pytest.raises(IndexError):
        corpus.story(3)
    with pytest.raises(ValueError, match="read-only"):
        corpus.tokens[0] = 1


def test_the_map_holds_what_the_tokenizer_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH_STORIES", 7)
    gpt2 = load_tokenizer("gpt2")
    gpt2(["a", "b c d"], padding=True, truncation=True, max_length=2)  # leaves its mark on it
    stories = [f"Lily had {n} {'very ' * (n % 5)}red balls.\n" for n in range(40)]
    corpus = load_corpus(source(*stories), "train", gpt2, tmp_path)
    for i, story in enumerate(stories):
        assert corpus.story(i).tolist() == gpt2(story)["input_ids"]
        assert corpus.story_bytes[i] == len(story.encode())
    ends = corpus.tokens[corpus.offsets[1:] - 1]
    assert (ends == 50_256).all()
    assert (corpus.tokens == 50_256).sum() == len(stories)


def test_a_quoted_mark_does_not_end_a_story(tmp_path: Path) -> None:
    gpt2 = load_tokenizer("gpt2")
    story = f"He wrote {END_OF_TEXT} on the wall."
    corpus = load_corpus(source(story, "Next."), "train", gpt2, tmp_path)
    assert (corpus.tokens == 50_256).sum() == len(corpus) == 2
    assert gpt2.decode(corpus.story(0)) == story
    assert gpt2("<|endoftext|>")["input_ids"] == [50_256]  # the tokenizer itself is as it was


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path, bpe: PreTrainedTokenizerFast) -> None:
    large = train_bpe(["a"], 257)
    large.add_tokens([f"<extra {number}>" for number in range(2**16)])
    last = len(large) - 1
    corpus = load_corpus(source("x<extra 65535>"), "train", large, tmp_path)
    assert corpus.tokens.dtype == np.uint32
    assert corpus.tokens.tolist()[-2:] == [last, 0]


@pytest.mark.skipif(not SLICE.exists(), reason="the TinyStories slice is not here")
def test_real_stories_come_back_by_decoding(tmp_path: Path) -> None:
    gpt2 = load_tokenizer("gpt2")
    data = parse_data(str(SLICE / "validation.jsonl.gz"), validation="demo")
    corpus = load_corpus(data, "train", gpt2, tmp_path)
    stories = list(data.texts("train"))
    assert len(corpus) == len(stories) == 1_000
    for i in range(0, 1_000, 50):
        assert gpt2.decode(corpus.story(i)) == stories[i]


# -- made once, found again


def test_it_is_tokenised_once(tmp_path: Path, bpe: PreTrainedTokenizerFast) -> None:
    reads: list[int] = []
    data = source("one", "two", read=lambda: reads.append(1))
    first = load_corpus(data, "train", bpe, tmp_path)
    second = load_corpus(data, "train", bpe, tmp_path)
    assert len(reads) == 1
    assert second.directory == first.directory
    assert second.tokens.tolist() == first.tokens.tolist()
    assert second.meta == first.meta


def test_the_name_tells_text_tokenizer_split_and_limit_apart(
    tmp_path: Path, bpe: PreTrainedTokenizerFast
) -> None:
    other = train_bpe(["ababab"], 258)
    held = load_corpus(source("ab", "c"), "validation", bpe, tmp_path)
    corpora = [
        tiny(tmp_path, bpe, "ab", "c"),
        tiny(tmp_path, bpe, "ab", "d"),
        held,
        load_corpus(source("ab", "c"), "train", other, tmp_path),
        load_corpus(source("ab", "c"), "train", bpe, tmp_path, limit=1),
        load_corpus(source("ab", "c"), "train", bpe, tmp_path, limit=2),
    ]
    names = [corpus.directory.name for corpus in corpora]
    assert len(set(names)) == len(corpora)
    assert names[0].startswith("a-list-of-stories-train-")
    assert names[2].startswith("a-list-of-stories-validation-")
    assert len(names[0].rpartition("-")[2]) == 16
    assert [len(corpus) for corpus in corpora] == [2, 2, 2, 2, 1, 2]


@pytest.mark.parametrize("damage", ["cut", "flip", "meta", "offsets", "gone"])
def test_a_damaged_map_is_made_anew(
    damage: str, tmp_path: Path, bpe: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    whole = tiny(tmp_path, bpe, "abc", "de").tokens.tolist()
    directory = tiny(tmp_path, bpe, "abc", "de").directory
    data = (directory / "tokens.bin").read_bytes()
    if damage == "cut":
        (directory / "tokens.bin").write_bytes(data[:-2])
    elif damage == "flip":
        (directory / "tokens.bin").write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elif damage == "meta":
        (directory / "meta.json").write_text("{")
    elif damage == "offsets":
        (directory / "offsets.npy").write_bytes(b"")
    else:
        (directory / "story_bytes.npy").unlink()
    with caplog.at_level(logging.WARNING):
        assert tiny(tmp_path, bpe, "abc", "de").tokens.tolist() == whole
    assert "damaged" in caplog.text
    caplog.clear()
    assert tiny(tmp_path, bpe, "abc", "de").tokens.tolist() == whole
    assert not caplog.records


def test_a_failure_leaves_nothing_and_a_killed_build_is_swept(
    tmp_path: Path, bpe: PreTrainedTokenizerFast
) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        load_corpus(source("a", read=fail), "train", bpe, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    corpus = tiny(tmp_path, bpe, "a")
    left = tmp_path / f".{corpus.directory.name}.xyz.tmp"
    left.mkdir()
    (left / "tokens.bin").write_bytes(b"half")
    (corpus.directory / "meta.json").unlink()
    tiny(tmp_path, bpe, "a")
    assert not left.exists()


def test_two_at_once_build_one(tmp_path: Path, bpe: PreTrainedTokenizerFast) -> None:
    reads: list[int] = []
    started = threading.Event()

    def read() -> None:
        reads.append(1)
        started.set()
        release.wait(10)

    release = threading.Event()
    results: list[list[int]] = []
    data = source("abc", "d", read=read)

    def load() -> None:
        results.append(load_corpus(data, "train", bpe, tmp_path).tokens.tolist())

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert started.wait(10)
    release.set()
    for thread in threads:
        thread.join(20)
    assert len(reads) == 1
    assert len(results) == 3
    assert results[0] == results[1] == results[2]


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, bpe: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SAT_INTERP_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache() == tmp_path / "home" / ".cache" / "sat_interp"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg" / "sat_interp"
    monkeypatch.setenv("SAT_INTERP_CACHE", str(tmp_path / "own"))
    assert load_corpus(source("a"), "train", bpe).directory.parent == tmp_path / "own"


def test_memory_stays_flat(
    tmp_path: Path, bpe: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight times the text takes no more memory: neither its strings nor its tokens pile up."""
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 20_000)
    monkeypatch.setattr(readers, "_CHUNK", 20_000)
    story = "the cat sat on the mat " * 40 + END_OF_TEXT
    peaks = []
    for repeats in (250, 2_000):
        path = tmp_path / f"{repeats}.txt"
        path.write_text(story * repeats)
        data = parse_data(str(path), validation="demo")
        tracemalloc.start()
        try:
            corpus = load_corpus(data, "train", bpe, tmp_path)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert len(corpus) == repeats
    # 1.6 MB more of text would show; what remains is 16 bytes for each story, a few times over.
    assert peaks[1] - peaks[0] < 400_000


# -- what is refused


def test_an_empty_corpus_is_refused(tmp_path: Path, bpe: PreTrainedTokenizerFast) -> None:
    for stories in ((), ("", "\n ")):
        with pytest.raises(UserError, match="'test' has no text for train"):
            tiny(tmp_path, bpe, *stories)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_leaves_something(limit: int, tmp_path: Path, bpe: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="1 or more"):
        load_corpus(source("a"), "train", bpe, tmp_path, limit=limit)


def test_too_short_a_stream_is_refused(tmp_path: Path, bpe: PreTrainedTokenizerFast) -> None:
    corpus = tiny(tmp_path, bpe, "abc")
    assert (
        corpus.windows(seed=0, step=0, batch=2, length=4).tolist() == [corpus.tokens.tolist()] * 2
    )
    with pytest.raises(UserError, match="holds 4 tokens, fewer than one window of 5"):
        corpus.windows(seed=0, step=0, batch=2, length=5)


# -- windows


def test_windows_are_pieces_of_the_stream(tmp_path: Path, bpe: PreTrainedTokenizerFast) -> None:
    corpus = tiny(tmp_path, bpe, "".join(chr(33 + n) for n in range(90)))  # no token twice
    windows = corpus.windows(seed=1, step=2, batch=50, length=7)
    assert windows.shape == (50, 7)
    assert windows.dtype == torch.int64
    stream = corpus.tokens.tolist()
    for row in windows.tolist():
        start = stream.index(row[0])
        assert row == stream[start : start + 7]


def test_windows_depend_on_seed_step_and_row_alone(
    tmp_path: Path, bpe: PreTrainedTokenizerFast
) -> None:
    corpus = tiny(tmp_path, bpe, "".join(chr(33 + n) for n in range(90)))

    def draw(seed: int, step: int, batch: int = 8) -> list[list[int]]:
        return corpus.windows(seed=seed, step=step, batch=batch, length=3).tolist()

    unbroken = [draw(5, step) for step in range(6)]
    assert [draw(5, step) for step in (3, 4, 5)] == unbroken[3:]  # resumed at step 3
    assert draw(5, 2, batch=32)[:8] == unbroken[2]
    for other in (draw(6, 2), draw(5, 3), draw(2, 5), draw(-5, 2)):
        assert other != unbroken[2]


def test_windows_stay_the_same_between_versions(
    tmp_path: Path, bpe: PreTrainedTokenizerFast
) -> None:
    """Worked by hand from Philox's published stream: start = floor(word / 2^64 * places)."""
    corpus = tiny(tmp_path, bpe, "".join(chr(33 + n) for n in range(90)))
    words = np.random.Philox(key=[7, 11]).random_raw(4).tolist()
    starts = [(word >> 11) * (91 - 5 + 1) // 2**53 for word in words]
    windows = corpus.windows(seed=7, step=11, batch=4, length=5)
    assert windows[:, 0].tolist() == [corpus.tokens[start] for start in starts]


def test_every_place_is_drawn_equally_often(tmp_path: Path, bpe: PreTrainedTokenizerFast) -> None:
    corpus = tiny(tmp_path, bpe, "abcdefghi")  # 10 tokens: 8 places for a window of 3
    draws = corpus.windows(seed=0, step=0, batch=8_000, length=3)[:, 0]
    counts = torch.bincount(draws)
    counts = counts[counts > 0]
    assert len(counts) == 8
    assert ((counts - 1_000).abs() < 5 * 1_000**0.5).all()


# -- whole stories


def test_story_batches_by_hand(tmp_path: Path, bpe: PreTrainedTokenizerFast) -> None:
    a, b, c, d = (bpe.convert_tokens_to_ids(letter) for letter in "abcd")
    corpus = tiny(tmp_path, bpe, "abcd", "b", "cd", "d", "dcba")
    batches = list(story_batches(corpus, n_ctx=3))
    assert [batch.tokens.tolist() for batch in batches] == [
        [[0, b, 0], [0, d, 0]],
        [[0, a, b, c], [0, c, d, 0], [0, d, c, b]],
    ]
    assert [batch.index.tolist() for batch in batches] == [[1, 3], [0, 2, 4]]
    assert cut_tokens(corpus, 3).tolist() == [2, 0, 0, 0, 2]
    scored = sum(batch.tokens[:, 1:].numel() for batch in batches)
    assert scored + cut_tokens(corpus, 3).sum() == len(corpus.tokens)
    assert next(story_batches(corpus, 3, bos=9)).tokens.tolist() == [[9, b, 0], [9, d, 0]]


def test_story_batches_hold_every_story_once_within_the_budget(
    tmp_path: Path, bpe: PreTrainedTokenizerFast
) -> None:
    rng = np.random.default_rng(0)
    stories = ["x" * int(n) for n in rng.integers(1, 60, size=200)]
    corpus = tiny(tmp_path, bpe, *stories)
    seen: list[int] = []
    for batch in story_batches(corpus, n_ctx=40, tokens_per_batch=100):
        assert batch.tokens.numel() <= 100
        assert batch.tokens.shape[1] == min(len(stories[int(batch.index[0])]) + 2, 41)
        seen += batch.index.tolist()
    assert sorted(seen) == list(range(200))
    longest = list(story_batches(corpus, n_ctx=40, tokens_per_batch=1))
    assert all(len(batch.index) == 1 for batch in longest)
    with pytest.raises(UserError, match="at least one token"):
        next(story_batches(corpus, n_ctx=0))


def test_meta_says_what_it_was_made_of(tmp_path: Path, bpe: PreTrainedTokenizerFast) -> None:
    corpus = tiny(tmp_path, bpe, "abc")
    meta = json.loads((corpus.directory / "meta.json").read_text())
    assert meta == corpus.meta
    assert (meta["data"], meta["split"], meta["limit"]) == ("test", "train", None)
