"""Which text each model is measured on: named, or in memory."""

from __future__ import annotations

import datasets
import pytest
import torch

from evaluations.core.model_source import sources
from evaluations.core.text import evaluation_text, text_source
from evaluations.core.text_source import text_finder, training_text_finder
from sat_interp._util.errors import UserError
from sat_interp.io.pretrained import save_pretrained
from tests.evaluations.conftest import STORIES
from tests.evaluations.core.test_model_source import attention_only


def test_strings_and_a_file_of_them_are_one_text(tokenizer, text):
    held = evaluation_text(tokenizer, STORIES)
    assert held.content == text.content
    facts = held.describe()
    assert (facts["spec"], facts["split"], facts["n_stories"]) == ("in memory", "all", len(STORIES))
    assert len(evaluation_text(tokenizer, STORIES, limit=3)) == 3


def test_text_in_memory_may_have_validation_text(tokenizer, stories_file):
    text = evaluation_text(tokenizer, STORIES[:5], STORIES[5:8])
    assert (len(text), text.describe()["validation"]) == (3, "in memory")
    split = datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict({"text": part})
            for name, part in (("train", STORIES[:4]), ("validation", STORIES[4:6]))
        }
    )
    assert len(evaluation_text(tokenizer, split)) == 2
    assert len(evaluation_text(tokenizer, split, stories_file)) == len(STORIES)
    with pytest.raises(UserError, match="both strings or both token ids"):
        text_source(STORIES, [[1, 2]])


def test_every_model_gets_the_text_that_was_given(make_model, tokenizer, tmp_path):
    directory = save_pretrained(make_model(), tmp_path / "mine", {"data": "demo"})
    chosen = sources([directory, make_model("local", seed=1)])
    texts = [text_finder(chosen, STORIES, None, 6)(source.outline) for source in chosen]
    assert [len(text) for text in texts] == [6, 6]
    assert texts[0].content == texts[1].content
    own = text_finder(chosen, None, None, 6)
    assert own(chosen[0].outline).describe()["spec"] == "demo"
    with pytest.raises(UserError, match="name text to measure it on with --data"):
        own(chosen[1].outline)


def test_text_in_memory_is_divided_for_an_autoencoder(make_model, tokenizer):
    (chosen,) = sources(make_model())
    text = training_text_finder([chosen], STORIES, None, None)(chosen.outline)
    corpus, held = text.corpus(), text.held_out()
    assert len(corpus) + len(held) == len(STORIES)
    assert held.split == "validation"
    assert text.n_tokens(10**9) == len(corpus.tokens)
    assert text.n_tokens(1) <= len(corpus.tokens)
    with pytest.raises(UserError, match="name text to train the autoencoder on"):
        training_text_finder([chosen], None, None)(chosen.outline)


def test_a_model_without_a_tokenizer_reads_token_ids_only():
    (chosen,) = sources(attention_only())
    rows = torch.randint(40, (120, 12), generator=torch.Generator().manual_seed(0))
    text = text_finder([chosen], rows, None, None)(chosen.outline)
    facts = text.describe()
    assert (len(text), facts["n_tokens"], facts["n_bytes"]) == (120, 120 * 11, 0)
    assert facts["story_start"] == f" {text.start}"
    assert text.scored(8).tolist() == [8] * 120
    assert not text.scored_bytes(8).any()
    assert len(text.sample(7, 0)) == 7
    training = training_text_finder([chosen], rows, None)(chosen.outline)
    assert len(training.corpus()) + len(training.held_out()) == 120
    assert training.n_tokens(1) == len(training.corpus().tokens)
    with pytest.raises(UserError, match="give the text as lists of token ids"):
        text_finder([chosen], STORIES, None, None)(chosen.outline)


def test_missing_data_is_named_before_a_model_is_looked_for():
    with pytest.raises(UserError, match="no such file"):
        text_finder(sources("no/such/model"), "missing.txt", None, None)
