"""What a run reads: a tokenizer, tokens to train on, stories to validate on."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from sat_interp.data.corpus import TokenCorpus, load_corpus
from sat_interp.data.sources import parse_data
from sat_interp.data.tokenizer import fingerprint, load_tokenizer, resolve_tokenizer
from sat_interp.errors import UserError
from sat_interp.files import atomic_directory
from sat_interp.training.config import TrainConfig
from sat_interp.training.directory import RunDirectory
from sat_interp.training.distributed import Processes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """The tokenizer and both splits as tokens."""

    tokenizer: PreTrainedTokenizerFast
    train: TokenCorpus
    validation: TokenCorpus

    def identity(self) -> dict[str, str]:
        """Hashes of what was read: what a resumed run must find again."""
        return {
            "tokenizer": fingerprint(self.tokenizer),
            "training data": self.train.directory.name.rpartition("-")[2],
            "validation data": self.validation.directory.name.rpartition("-")[2],
        }


def load_inputs(config: TrainConfig, directory: RunDirectory, ranks: Processes) -> Inputs:
    """Tokenizer and tokens for a run; a tokenizer trained for it is kept in its directory.

    Raises:
        UserError: the data cannot be read, holds no text, or fewer tokens than one window.
    """
    source = parse_data(config.data, config.validation)
    if config.tokenizer.startswith("bpe"):
        if ranks.is_first and not directory.tokenizer.is_dir():
            logger.info("training the tokenizer %s", config.tokenizer)
            trained = resolve_tokenizer(config.tokenizer, lambda: source.texts("train"))
            with atomic_directory(directory.tokenizer) as temporary:
                trained.save_pretrained(temporary)
        ranks.wait()
        tokenizer = load_tokenizer(str(directory.tokenizer))
    else:
        tokenizer = load_tokenizer(config.tokenizer)
    train = load_corpus(source, "train", tokenizer)
    if len(train.tokens) <= config.n_ctx:
        raise UserError(
            f"data {config.data!r} holds {len(train.tokens):,} tokens, fewer than one window of "
            f"n_ctx + 1 = {config.n_ctx + 1:,}: use more text or a smaller n_ctx"
        )
    return Inputs(tokenizer, train, load_corpus(source, "validation", tokenizer))
