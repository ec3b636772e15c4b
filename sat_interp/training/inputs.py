"""Inputs of a run: tokenizer, training tokens, validation stories."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from sat_interp._util.errors import UserError
from sat_interp._util.files import atomic_directory
from sat_interp.data.corpus import TokenCorpus, corpus_key, load_corpus
from sat_interp.data.sources import parse_data
from sat_interp.data.tokenizer import (
    fingerprint,
    load_tokenizer,
    resolve_tokenizer,
    start_with_end_of_text,
)
from sat_interp.io.hugging_face import has_own_bos
from sat_interp.training.config import TrainConfig
from sat_interp.training.directory import RunDirectory
from sat_interp.training.distributed import Processes
from sat_interp.training.initial import initial_fingerprint, initial_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """The tokenizer and both splits as tokens."""

    tokenizer: PreTrainedTokenizerFast
    train: TokenCorpus
    validation: TokenCorpus
    initial: str | None = None
    """Hash of the weights that the run begins from, if any."""

    def identity(self) -> dict[str, str]:
        """Hashes of the inputs, which must be the same when the run is resumed."""
        return _identity(
            self.tokenizer,
            self.train.directory.name.rpartition("-")[2],
            self.validation.directory.name.rpartition("-")[2],
            self.initial,
        )


def _identity(
    tokenizer: PreTrainedTokenizerFast, train: str, validation: str, initial: str | None
) -> dict[str, str]:
    hashes = {"training data": train, "validation data": validation}
    begun = {} if initial is None else {"initial model": initial}
    return {"tokenizer": fingerprint(tokenizer), **hashes, **begun}


def current_identity(config: TrainConfig, directory: RunDirectory) -> dict[str, str]:
    """:meth:`Inputs.identity` of a finished run's inputs as they are now; nothing is tokenised.

    Raises:
        UserError: the data or the tokenizer cannot be read.
    """
    source = parse_data(config.data, config.validation)
    initial = None if config.init is None else initial_fingerprint(config)
    if config.init is None and str(config.tokenizer).startswith("bpe"):
        kept = directory.tokenizer if directory.tokenizer.is_dir() else directory.model
        tokenizer = start_with_end_of_text(load_tokenizer(str(kept)))
    else:
        tokenizer = _named_tokenizer(config)
    train, validation = (corpus_key(source, split, tokenizer) for split in ("train", "validation"))
    return _identity(tokenizer, train, validation, initial)


def _named_tokenizer(config: TrainConfig) -> PreTrainedTokenizerFast:
    """A tokenizer that is not trained for the run, with the BOS token that stories follow."""
    if config.init is None:
        return start_with_end_of_text(load_tokenizer(str(config.tokenizer)))
    tokenizer = initial_tokenizer(config)
    return tokenizer if has_own_bos(tokenizer) else start_with_end_of_text(tokenizer)


def refuse_changed(before: dict[str, str], now: dict[str, str], directory: RunDirectory) -> None:
    """Do nothing if a run's inputs have not changed.

    Raises:
        UserError: the data or the tokenizer changed.
    """
    for name, current in now.items():
        if before.get(name) != current:
            raise UserError(
                f"the {name} changed since {directory.path} was started: restore it, or name "
                "another directory"
            )


def load_inputs(config: TrainConfig, directory: RunDirectory, ranks: Processes) -> Inputs:
    """Tokenizer and tokens for a run; a tokenizer trained for it is kept in its directory.

    In the training stream a story follows the end-of-text token of the one before, so that token
    is also the BOS token of the model's tokenizer, whatever the tokenizer came with. A run that
    begins from a model with a BOS token of its own keeps that one, and stories follow it.

    Raises:
        UserError: the data cannot be read, holds no text, or fewer tokens than one window.
    """
    source = parse_data(config.data, config.validation)
    if config.init is None and str(config.tokenizer).startswith("bpe"):
        if ranks.is_first and not directory.tokenizer.is_dir():
            logger.info("training the tokenizer %s", config.tokenizer)
            trained = resolve_tokenizer(str(config.tokenizer), lambda: source.texts("train"))
            with atomic_directory(directory.tokenizer) as temporary:
                trained.save_pretrained(temporary)
        ranks.wait()
        tokenizer = start_with_end_of_text(load_tokenizer(str(directory.tokenizer)))
    else:
        tokenizer = _named_tokenizer(config)
    train = load_corpus(source, "train", tokenizer)
    if len(train.tokens) <= config.n_ctx:
        raise UserError(
            f"data {config.data!r} holds {len(train.tokens):,} tokens, fewer than one window of "
            f"n_ctx + 1 = {config.n_ctx + 1:,}: use more text or a smaller n_ctx"
        )
    initial = None if config.init is None else initial_fingerprint(config)
    return Inputs(tokenizer, train, load_corpus(source, "validation", tokenizer), initial)
