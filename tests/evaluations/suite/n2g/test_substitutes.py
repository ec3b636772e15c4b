"""Neighbours by hand; a masked language model of random weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sparse
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import BertProcessing
from transformers import DistilBertConfig, DistilBertForMaskedLM, PreTrainedTokenizerFast

from evaluations.suite.n2g.masked import load_masked
from evaluations.suite.n2g.substitutes import Neighbours, Slot
from evaluations.suite.n2g.vocabulary import Vocabulary
from sat_interp._util.errors import UserError

TEXTS = ("<e>", " the", " cat", " dog", " sat", " ran", "ning", ".")
THE, CAT, DOG, SAT, RAN, NING, STOP = range(1, 8)
STREAM = [
    THE,
    CAT,
    SAT,
    STOP,
    0,
    THE,
    DOG,
    SAT,
    STOP,
    0,
    THE,
    CAT,
    RAN,
    STOP,
    0,
    THE,
    DOG,
    RAN,
    NING,
    0,
    CAT,
    RAN,
    NING,
    STOP,
]


@pytest.fixture
def neighbours():
    pairs = np.array([STREAM[:-1], STREAM[1:]])
    counts = sparse.csr_array((np.ones(pairs.shape[1]), pairs), shape=(8, 8))
    return Neighbours(Vocabulary(TEXTS), counts)


def _told(neighbours, left, right):
    tokens, p = neighbours.distribution(left, right)
    return dict(zip(tokens.tolist(), p.tolist(), strict=True))


def test_the_distribution_between_two_tokens(neighbours):
    found = _told(neighbours, THE, SAT)
    # between: cat 2 * 1 / 3, dog 2 * 1 / 2; after the: cat 2, dog 2; before sat: cat 1, dog 1
    both = np.array([2 / 3, 1]) / (2 / 3 + 1)
    expected = 0.9 * both + 0.1 * np.array([0.5, 0.5])
    np.testing.assert_allclose([found[CAT], found[DOG]], expected)
    assert sum(found.values()) == pytest.approx(1)


def test_one_side_and_none(neighbours):
    assert _told(neighbours, THE, -1) == pytest.approx({CAT: 0.5, DOG: 0.5})
    assert _told(neighbours, -1, SAT) == pytest.approx({CAT: 0.5, DOG: 0.5})
    assert _told(neighbours, -1, -1) == {}


def test_pieces_of_words_are_not_proposed(neighbours):
    # ran is followed by the rest of its word two times of three
    assert RAN not in _told(neighbours, CAT, -1)
    assert NING not in _told(neighbours, RAN, -1)


def test_proposals_leave_the_word_out_and_are_the_likeliest(neighbours):
    place = Slot((THE,), (CAT,), (SAT,))
    ((dog,),) = neighbours.propose([place], 5, 1e-5)
    assert dog.word == (DOG,)
    assert dog.probability == pytest.approx(0.9 * 0.6 + 0.05)
    assert neighbours.propose([place], 5, 0.6) == [[]]
    assert neighbours.propose([Slot((), (CAT,), ())], 5, 1e-5) == [[]]
    # a word without a space gets words without one
    assert [p.word for p in neighbours.propose([Slot((SAT,), (0,), ())], 5, 0.0)[0]] == [(STOP,)]


def test_counts_do_not_hang_on_chunks(text, monkeypatch):
    vocabulary = Vocabulary.of(text.tokenizer)
    whole = Neighbours.of(text, vocabulary).counts
    monkeypatch.setattr("evaluations.suite.n2g.substitutes.CHUNK", 7)
    parts = Neighbours.of(text, vocabulary).counts
    assert (whole != parts).nnz == 0
    assert whole.sum() == len(text.corpus.tokens) - 1


@pytest.fixture
def distilbert(tmp_path):
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "tom",
        "anna",
        "gave",
        "the",
        "##s",
        "ball",
        "park",
        ".",
    ]
    model = WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        mask_token="[MASK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
    )
    config = DistilBertConfig(
        vocab_size=len(words),
        dim=8,
        n_layers=1,
        n_heads=2,
        hidden_dim=16,
        max_position_embeddings=32,
        initializer_range=1.0,
    )
    fast.save_pretrained(tmp_path / "mlm")
    DistilBertForMaskedLM(config).save_pretrained(tmp_path / "mlm")
    return tmp_path / "mlm"


def test_a_masked_language_model_proposes_words_in_the_models_tokens(distilbert, tokenizer):
    source = load_masked(str(distilbert), tokenizer, "cpu")
    assert source.name == "mlm"
    tokens = {word: tuple(tokenizer.encode(word)) for word in ("Tom gave the", " Ball", " to Anna")}
    place = Slot(*tokens.values())
    asked = []
    forward = source.model.forward
    source.model.forward = lambda **given: asked.append(len(given["input_ids"])) or forward(**given)
    first, second = source.propose([place, dataclasses.replace(place, before=())], 3, 0.0)
    assert 1 <= len(first) <= 3
    assert [p.probability for p in first] == sorted((p.probability for p in first), reverse=True)
    for proposal in first + second:
        word = tokenizer.decode(list(proposal.word))
        assert word[0] == " "
        # capitals as the word's own; no special tokens, no pieces, not the word itself
        assert word.strip() in {"Tom", "Anna", "Gave", "The", "Park", "."}
    assert source.propose([place], 3, 0.0) == [first]
    assert asked == [2]  # once for each context
    assert source.seconds > 0
    assert source.describe()["weights"] == load_masked(str(distilbert), tokenizer, "cpu").weights
    assert source.propose([place], 3, 1.0) == [[]]


def test_a_missing_masked_language_model_is_one_line(tokenizer, tmp_path):
    with pytest.raises(UserError, match="no masked language model can be loaded from") as error:
        load_masked(str(tmp_path / "none"), tokenizer, "cpu")
    assert "\n" not in str(error.value)
