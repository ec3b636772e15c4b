from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from evaluations.core.text import check_vocabulary, evaluation_text
from sat_interp._util.errors import UserError
from sat_interp.data.tokenizer import load_tokenizer, start_with_end_of_text, train_bpe
from tests.evaluations.conftest import STORIES


def test_files_without_a_validation_split_are_read_whole(text):
    assert len(text) == len(STORIES)
    assert text.split == "all"
    assert text.describe()["n_bytes"] == sum(len(story.encode()) for story in STORIES)


def test_what_a_model_was_trained_on_is_read_where_it_was_held_out(tokenizer, stories_file):
    held = evaluation_text(tokenizer, str(stories_file), trained_on=True)
    assert held.split == "validation"
    assert 0 < len(held) < len(STORIES)


def test_validation_files_are_read_whole_and_limited(tokenizer, stories_file, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("Anna was sad in the park.", encoding="utf-8")
    text = evaluation_text(tokenizer, str(other), str(stories_file), limit=3)
    assert len(text) == 3
    assert text.describe()["validation"] == stories_file.name
    assert text.describe()["spec"] == "other.txt"


def test_content_is_of_the_tokens_not_of_the_files_name(tokenizer, text, tmp_path):
    lines = [json.dumps({"text": story}) for story in STORIES]
    (tmp_path / "renamed.jsonl").write_text("\n".join(lines), encoding="utf-8")
    again = evaluation_text(tokenizer, str(tmp_path / "renamed.jsonl"))
    assert again.content == text.content
    (tmp_path / "fewer.jsonl").write_text("\n".join(lines[:-1]), encoding="utf-8")
    assert evaluation_text(tokenizer, str(tmp_path / "fewer.jsonl")).content != text.content


@pytest.mark.parametrize("context", [3, 9, 17, 1000])
def test_scored_bytes_are_the_bytes_of_the_kept_tokens(text, tokenizer, context):
    for story, size in enumerate(text.scored_bytes(context)):
        pieces = tokenizer.convert_ids_to_tokens(text.corpus.story(story).tolist())[:context]
        prefix = bytes(_BYTE_OF[character] for piece in pieces for character in piece)
        assert size == len(prefix)
        assert STORIES[story].encode().startswith(prefix)


@pytest.fixture
def byte_fallback(tmp_path):
    """Llama's kind: letters are tokens, anything else its bytes."""
    letters = {letter: 260 + place for place, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 259, **letters}
    vocabulary |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return wrapped(backend, tmp_path / "byte-fallback")


@pytest.fixture
def lower_casing(tmp_path):
    """Words in lower case without accents, and <unk>."""
    words = {"<unk>": 0, "</s>": 1, "the": 2, "cat": 3, "cafe": 4}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return wrapped(backend, tmp_path / "lower")


def wrapped(backend, directory):
    known = backend.get_vocab()
    roles = {"unk_token": "<unk>", "eos_token": "</s>"}
    roles |= {"bos_token": "<s>"} if "<s>" in known else {}
    PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(directory)
    return load_tokenizer(str(directory))


def read(tokenizer, stories, directory, name="stories.jsonl"):
    lines = [json.dumps({"text": story}) for story in stories]
    (directory / name).write_text("\n".join(lines), encoding="utf-8")
    return evaluation_text(tokenizer, str(directory / name))


@pytest.mark.parametrize(
    "story", ["ab \U0001f600\U0001f600 é", "\U0001f600" * 3, "aaaa bb", "é b é", "\n é\t"]
)
def test_a_character_cut_in_two_is_the_bytes_kept_of_it(byte_fallback, tmp_path, story):
    text = read(byte_fallback, [story], tmp_path)
    pieces = byte_fallback.convert_ids_to_tokens(text.corpus.story(0).tolist())
    # "▁" in front is of the tokenizer, all other tokens are a byte each
    assert [len(piece.encode()) in (1, 3, 6) for piece in pieces]
    for context in range(1, len(pieces) + 2):
        want = min(context, len(pieces)) - 1
        assert text.scored_bytes(context)[0] == want
    assert text.describe()["n_unknown"] == text.describe()["n_lossy"] == 0
    assert text.lossiness() == ""


def test_a_cut_story_of_a_byte_level_tokenizer_that_normalises_has_its_share(tmp_path):
    backend = train_bpe(STORIES, 300).backend_tokenizer
    backend.normalizer = normalizers.NFC()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    story = "cafe\u0301 " * 20  # five letters and a space, 7 bytes; 6 in NFC
    text = read(tokenizer, [story], tmp_path)
    tokens = len(text.corpus.story(0))
    for context in range(1, tokens):
        pieces = tokenizer.convert_ids_to_tokens(text.corpus.story(0).tolist()[:context])
        share = sum(map(len, pieces)) / 120
        assert text.scored_bytes(context)[0] == round(140 * share)
    assert text.describe()["n_lossy"] == 1


def test_texts_of_equal_tokens_and_other_bytes_are_other_texts(lower_casing, tmp_path):
    texts = [
        read(lower_casing, [story, "the cat"], tmp_path, f"{number}.jsonl")
        for number, story in enumerate(
            ["the café xx", "the cafe xx", "The cafe yy", "the cafe \U0001f600"]
        )
    ]
    assert len({one.corpus.tokens.tobytes() for one in texts}) == 1
    assert len({one.content for one in texts}) == 4
    again = read(lower_casing, ["the café xx", "the cat"], tmp_path, "again.jsonl")
    assert again.content == texts[0].content


def test_what_a_tokenizer_loses_is_counted_and_told(lower_casing, tmp_path):
    stories = ["the cat", "The cat", "the café xx zz", "the"]
    told = read(lower_casing, stories, tmp_path).describe()
    assert (told["n_unknown"], told["n_lossy"], told["n_checked"]) == (2, 2, 4)
    text = read(lower_casing, stories, tmp_path)
    assert (
        text.lossiness() == "2 unknown (<unk>) tokens, 2 of 4 stories do not decode to their text"
    )


def test_what_precedes_a_story_is_told_and_part_of_the_text(byte_fallback, tmp_path):
    text = read(byte_fallback, ["ab"], tmp_path)
    assert (text.start, text.corpus.end_of_text) == (1, 2)
    told = text.describe()
    assert (told["story_start"], told["story_start_id"]) == ("<s>", 1)
    before = text.content
    other = read(start_with_end_of_text(byte_fallback), ["ab"], tmp_path)
    assert other.start == 2
    assert other.content != before
    assert np.array_equal(other.corpus.tokens, text.corpus.tokens)


def test_a_sample_holds_whole_stories_and_nothing_twice(text):
    sample = text.sample(5, seed=2)
    drawn = [tuple(sample.corpus.story(i).tolist()) for i in range(5)]
    known = [tuple(text.corpus.story(i).tolist()) for i in range(len(text))]
    assert len(set(drawn)) == 5
    assert set(drawn) <= set(known)
    assert np.all(sample.corpus.tokens[sample.corpus.offsets[1:] - 1] == text.corpus.end_of_text)
    assert len(text.sample(1000, seed=0)) == len(text)


def test_a_vocabulary_too_small_is_refused(make_model, text):
    model = make_model()
    check_vocabulary(model, text)
    model.cfg.d_vocab = 200
    with pytest.raises(UserError, match="do not belong together"):
        check_vocabulary(model, text)


def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's table from printable characters back to bytes, as its paper's code builds it."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in kept]
    table = {chr(byte): byte for byte in kept}
    return {**table, **{chr(256 + place): byte for place, byte in enumerate(others)}}


_BYTE_OF = _bytes_of_characters()
