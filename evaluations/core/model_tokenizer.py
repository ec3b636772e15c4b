"""Which tokenizer a model is read with, and why it may not be the one it was trained with."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from transformer_lens import HookedTransformer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sat_interp._util.errors import UserError
from sat_interp._util.reading import read_object
from sat_interp.data.tokenizer import (
    GPT2_VOCABULARY,
    bos_is_filled_in,
    fingerprint,
    id_count,
    load_tokenizer,
    prepare_tokenizer,
    start_with_end_of_text,
    story_start,
)
from sat_interp.io.pretrained import tokenizer_mismatch
from sat_interp.model.transformer import SelfAblatingTransformer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")

log = logging.getLogger(__name__)

Chosen = tuple[PreTrainedTokenizerFast, str | None]
"""A tokenizer and, where it may not be what the model was trained with, a line that says why."""


def choose_tokenizer(
    model: HookedTransformer,
    directory: Path | None,
    given: str | PreTrainedTokenizerBase | None,
    stated_bos: int | None = None,
) -> Chosen:
    """Return the tokenizer to read a model with: the given one, else its own.

    A model without one whose vocabulary has the size of GPT-2's is read with GPT-2's; any other
    model in memory with the stand-in of :func:`numbered_tokenizer`.

    Args:
        model: its weights need not be there.
        directory: where the model's own tokenizer may lie; None for a model in memory.
        given: replaces the model's own.
        stated_bos: ``bos_token_id`` of the model's configuration, for a tokenizer that names none.

    Raises:
        UserError: the directory has no tokenizer, or one that cannot be read.
    """
    if given is None:
        own = _own_tokenizer(directory, model)
        tokenizer, note = (own, _doubt(model, own)) if own is not None else _none(model, directory)
    else:
        tokenizer = _loaded(given)
        note = _note_on_given(model, directory, tokenizer)
    return as_trained(model, _with_stated_bos(model, tokenizer, stated_bos)), note


def numbered_tokenizer(d_vocab: int) -> PreTrainedTokenizerFast:
    """Return a stand-in for the tokenizer of a model without one: tokens are shown as numbers.

    Each has a space before it, so that several tokens can be told apart. There is no end-of-text
    token: text is not made into tokens by it.
    """
    words = {f" {token}": token for token in range(d_vocab)}
    backend = Tokenizer(WordLevel(words, unk_token=" 0"))
    backend.decoder = decoders.Fuse()
    make: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = make(tokenizer_object=backend)
    return tokenizer


def as_trained(
    model: HookedTransformer, tokenizer: PreTrainedTokenizerFast
) -> PreTrainedTokenizerFast:
    """Return the tokenizer with the BOS token of training: end-of-text for models trained here.

    A model that began as another one keeps the BOS token of that one.
    """
    is_ours = isinstance(model, SelfAblatingTransformer) and not model.has_own_bos
    if not is_ours or story_start(tokenizer) == tokenizer.eos_token_id:
        return tokenizer
    return start_with_end_of_text(copy.deepcopy(tokenizer))


def stated_bos(directory: Path) -> int | None:
    """Return the ``bos_token_id`` written in ``config.json``; None where none is.

    Only what is written in the file counts: transformers fills in a default.
    """
    stated = read_object(directory / "config.json").get("bos_token_id")
    return stated if type(stated) is int and stated >= 0 else None


def _loaded(given: str | PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """Return a tokenizer by its name, or a copy of a tokenizer object, ready for stories."""
    if isinstance(given, str | Path):
        return load_tokenizer(str(given))
    if not isinstance(given, PreTrainedTokenizerFast):
        kind = type(given).__name__
        raise UserError(f"a tokenizer is a name or a fast tokenizer of transformers, not {kind}")
    return prepare_tokenizer(copy.deepcopy(given), given.name_or_path)


def _own_tokenizer(
    directory: Path | None, model: HookedTransformer
) -> PreTrainedTokenizerFast | None:
    if directory is not None and any((directory / name).exists() for name in TOKENIZER_FILES):
        if isinstance(model.tokenizer, PreTrainedTokenizerFast):
            return model.tokenizer  # a model of ours reads it with its configuration
        return load_tokenizer(str(directory.resolve()))  # a directory may be called gpt2
    own = model.tokenizer
    return _loaded(own) if isinstance(own, PreTrainedTokenizerFast) else None


def _none(model: HookedTransformer, directory: Path | None) -> Chosen:
    """Return what a model without a tokenizer is read with."""
    if model.cfg.d_vocab == GPT2_VOCABULARY:
        note = "it has no tokenizer but a vocabulary of GPT-2's size: using GPT-2's"
        return load_tokenizer("gpt2"), note
    if directory is None:
        note = "it has no tokenizer: its tokens are shown as numbers"
        return numbered_tokenizer(int(model.cfg.d_vocab)), note
    raise UserError(f"{directory} has no tokenizer: name one with --tokenizer gpt2 or a directory")


def _note_on_given(
    model: HookedTransformer, directory: Path | None, tokenizer: PreTrainedTokenizerFast
) -> str | None:
    """Return why a tokenizer that was named may not be the model's; None where it may be."""
    if isinstance(model, SelfAblatingTransformer) and model.tokenizer_hash is not None:
        mismatch = tokenizer_mismatch(model, tokenizer)
        if mismatch is None:
            return _doubt(model, tokenizer)
        return f"{mismatch}; the given one is {fingerprint(tokenizer)}"
    try:
        own = _own_tokenizer(directory, model)
    except UserError:
        own = None  # a damaged one is a reason to name another
    if own is not None and (known := fingerprint(own)) != (used := fingerprint(tokenizer)):
        return f"the given tokenizer ({used}) is not the model's own ({known})"
    return _doubt(model, tokenizer)


def _with_stated_bos(
    model: HookedTransformer, tokenizer: PreTrainedTokenizerFast, stated: int | None
) -> PreTrainedTokenizerFast:
    """Give a tokenizer without a BOS token of its own the one that a configuration states.

    A loaded tokenizer without one has end-of-text in its place; one that names end-of-text as its
    BOS keeps it.
    """
    is_ours = isinstance(model, SelfAblatingTransformer)
    if is_ours or stated is None or not bos_is_filled_in(tokenizer):
        return tokenizer
    token = tokenizer.convert_ids_to_tokens(stated) if stated < model.cfg.d_vocab else None
    if not isinstance(token, str):
        return tokenizer
    chosen = copy.deepcopy(tokenizer)
    chosen.bos_token = token
    return chosen


def _doubt(model: HookedTransformer, tokenizer: PreTrainedTokenizerFast) -> str | None:
    """Return why a tokenizer may not be the one a model was trained with: its size, or its hash.

    A model trained here has a row for each token; others often have rows to spare.
    """
    needed = id_count(tokenizer)
    if not isinstance(model, SelfAblatingTransformer):
        fits = needed <= model.cfg.d_vocab
    elif fits := needed == model.cfg.d_vocab:
        return tokenizer_mismatch(model, tokenizer)
    if fits:
        return None
    return (
        f"the tokenizer has {needed:,} tokens and the model {model.cfg.d_vocab:,} rows: "
        "it may not be the one the model was trained with"
    )
