"""BOS, context, vocabulary and padding of each family are the model's own."""

from __future__ import annotations

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from benchmarks import families
from evaluations.core.families import LONGEST_CONTEXT
from evaluations.core.model_source import load_model
from evaluations.core.text import evaluation_text
from evaluations.suite.lm.config import LanguageConfig
from evaluations.suite.lm.evaluation import evaluate as language_model
from tests.evaluations.core.test_bridged import KINDS
from tests.evaluations.core.test_families import CASES

CONTEXT, ROWS = 24, 300
PAD, BOS, EOS = 0, 1, 2
STORIES = ("Tom saw a dog.", "A bird sat on the mat and sang to the cat all day long. The end.")
"""One is padded to the other's length, which is cut at the context."""
SMALL = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
OWN_SIZES = {
    "gpt2": ("GPT2", SMALL),
    "gpt-neo": (
        "GPTNeo",
        {
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": CONTEXT,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
        },
    ),
    "gptj": ("GPTJ", {**SMALL, "rotary_dim": 2}),
    "opt": (
        "OPT",
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 24,
            "word_embed_proj_dim": 16,
            "max_position_embeddings": CONTEXT,
        },
    ),
    "bloom": ("Bloom", {"hidden_size": 16, "n_layer": 2, "n_head": 4}),
}
KNOWN = {**OWN_SIZES, **CASES, **KINDS}
REFUSED = ("Falcon (ALiBi)", "Cohere", "Persimmon")
OTHERS = {
    name: (
        kind,
        {key: CONTEXT if value == families.CONTEXT else value for key, value in settings.items()},
    )
    for name, (kind, settings) in families.FAMILIES.items()
    if kind not in {known for known, _ in KNOWN.values()} and name not in REFUSED
}
"""The families of docs/families.md that no other test makes."""
FAMILIES = {**KNOWN, **OTHERS}
WITHOUT_LIMIT = {"bloom": None, "bloom-uneven": None, "falcon": 2048, "Mamba": None}
"""Families that declare no positions, or whose configuration fills some in."""


@pytest.fixture(autouse=True)
def _no_progress_bars():
    transformers_logging.disable_progress_bar()


@pytest.fixture(scope="module")
def three_marks():
    """A byte-level tokenizer with <pad>, <s> and </s>; it declares no longest input."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<pad>", "<s>", "</s>"],
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator(STORIES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def saved(name, tokenizer, directory):
    """A random model with more rows than its tokenizer has tokens, saved with the tokenizer."""
    kind, settings = FAMILIES[name]
    torch.manual_seed(0)
    numbers = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    config = "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config"
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, config)(**{**settings, **numbers, "vocab_size": ROWS})
    ).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.15)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("name", FAMILIES)
def test_stories_are_read_as_the_model_reads_them(name, three_marks, tmp_path):
    original = saved(name, three_marks, tmp_path)
    loaded = load_model(str(tmp_path), device="cpu")
    n_ctx = WITHOUT_LIMIT.get(name, CONTEXT) or LONGEST_CONTEXT
    assert (loaded.model.cfg.n_ctx, loaded.model.cfg.d_vocab) == (n_ctx, ROWS)
    assert (loaded.tokenizer.bos_token_id, loaded.tokenizer.pad_token_id) == (BOS, PAD)
    assert loaded.tokenizer_note is None

    data = tmp_path / "stories.txt"
    data.write_text("\n\n".join(STORIES), encoding="utf-8")
    text = evaluation_text(loaded.tokenizer, str(data))
    nats, n = 0.0, 0
    for story in STORIES:  # by itself, without padding
        ids = [BOS, *three_marks.encode(story, add_special_tokens=False), EOS]
        row = torch.tensor(ids[: n_ctx + 1])
        log_p = original(row[None, :-1]).logits[0].log_softmax(-1)
        assert log_p.shape[-1] == ROWS
        nats -= float(log_p.gather(1, row[1:, None]).double().sum())
        n += len(row) - 1
    result = language_model(loaded.model, text, LanguageConfig(resamples=0, activation_stories=0))
    found = next(one for one in result.metrics if one.name == "loss")
    assert (found.value, found.n) == (pytest.approx(nats / n, rel=1e-5), n)


def test_the_page_has_a_row_for_every_family():
    """``benchmarks.families --write`` has written all of them, and what is refused of which."""
    begin, end = families.MARKS
    written = families.PAGE.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0]
    table, refused = (
        [line.strip("| ").split(" | ") for line in part.splitlines()]
        for part in written.strip().split("\n\n")
    )
    assert tuple(table[0]) == families.COLUMNS
    assert [row[0] for row in table[2:]] == list(families.FAMILIES)
    dashed = {row[0] for row in table[2:] if families.NONE in row}
    words = " ".join(row[-1] for row in refused[2:])
    assert dashed == {row[0] for row in table[2:] if row[0] in words and families.NONE in row}
