from __future__ import annotations

import json

import numpy as np
import pytest

from evaluations.text import check_vocabulary, evaluation_text
from sat_interp.errors import UserError
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
