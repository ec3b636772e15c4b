"""Text as evaluations read it: whole stories, from position 0, without padding."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int
from transformer_lens import HookedTransformer
from transformers import PreTrainedTokenizerFast

from evaluations.core.token_bytes import TokenBytes
from sat_interp._util.errors import UserError, shown
from sat_interp.data.base import Split
from sat_interp.data.batches import cut_tokens
from sat_interp.data.corpus import TokenCorpus, load_corpus
from sat_interp.data.memory import TokenSource, text_in_memory
from sat_interp.data.sources import DataSource, file_names, parse_data
from sat_interp.data.tokenizer import fingerprint

HASH_CHUNK = 1 << 24
COUNTED = ("n_empty", "n_unknown", "n_checked", "n_lossy")
"""Counts made while the whole text was tokenised."""

TextArgument: TypeAlias = Any
"""A DATA argument (``str`` or ``Path``), a ``DataSource``, or text in memory: see
``sat_interp.data.memory.text_in_memory``."""


@dataclass(frozen=True)
class Text:
    """One split of a text, in tokens.

    Attributes:
        spec: the DATA argument, or ``in memory``.
        note: what a record states besides.
    """

    corpus: TokenCorpus
    tokenizer: PreTrainedTokenizerFast
    spec: str
    split: str = "validation"
    note: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of stories."""
        return len(self.corpus)

    @cached_property
    def lengths(self) -> Int[np.ndarray, " stories"]:
        """Tokens of each story, its closing end-of-text token included."""
        return np.diff(np.asarray(self.corpus.offsets, dtype=np.int64))

    @cached_property
    def content(self) -> str:
        """A hash of what is read, under any name: bytes, tokens, where stories begin and end.

        The bytes are those of the whole text a sample was drawn from.
        """
        known = [self.corpus.meta.get("text"), self.start, self.corpus.end_of_text]
        digest = hashlib.sha256(json.dumps(known).encode())
        for lengths in (self.corpus.offsets, self.corpus.story_bytes):
            digest.update(np.ascontiguousarray(lengths, dtype="<i8").tobytes())
        tokens = self.corpus.tokens
        for first in range(0, len(tokens), HASH_CHUNK):
            # one dtype, so that the hash does not depend on how the cache is stored
            digest.update(np.asarray(tokens[first : first + HASH_CHUNK], dtype="<u4").tobytes())
        return digest.hexdigest()[:16]

    @property
    def start(self) -> int:
        """Id of the token before every story (see ``story_start``)."""
        return self.corpus.start

    def describe(self) -> dict[str, Any]:
        """Return the facts a record states; ``content`` alone decides whether texts are the same.

        ``n_unknown`` counts tokens for text the tokenizer does not know (``<unk>``). Of
        ``n_checked`` stories, ``n_lossy`` do not decode to their text: the tokenizer loses or
        changes some of it.
        """
        meta = self.corpus.meta
        return {
            "spec": file_names(self.spec),
            "split": self.split,
            "content": self.content,
            "tokenizer": fingerprint(self.tokenizer),
            "story_start": self.tokenizer.convert_ids_to_tokens(self.start),
            "story_start_id": self.start,
            "n_stories": len(self),
            "n_tokens": int(self.lengths.sum()),
            "n_bytes": int(np.sum(self.corpus.story_bytes)),
            **{name: int(meta.get(name, 0)) for name in COUNTED},
            **self.note,
        }

    def scored(self, context: int) -> Int[np.ndarray, " stories"]:
        """Return how many tokens of each story fit into the context (the rest is cut)."""
        scored: np.ndarray = self.lengths - cut_tokens(self.corpus, context)
        return scored

    def scored_bytes(self, context: int) -> Int[np.ndarray, " stories"]:
        """Return the UTF-8 bytes scored of each story: all of it, or the part that was not cut.

        End-of-text stands for no bytes; a character that is cut in two counts as the bytes kept
        (see ``TokenBytes``). Sequences of token ids have 0.
        """
        sizes = np.array(self.corpus.story_bytes, dtype=np.int64)
        cut = np.flatnonzero((self.lengths > context) & (sizes > 0))
        if not len(cut):
            return sizes
        known = TokenBytes(self.tokenizer)
        for story in cut:
            tokens = self.corpus.story(int(story)).tolist()
            sizes[story] = known.kept(tokens, context, int(sizes[story]))
        return sizes

    def lossiness(self) -> str:
        """Return what the tokenizer loses of the text, as part of a sentence; '' for nothing."""
        unknown, checked, lossy = (
            int(self.corpus.meta.get(name, 0)) for name in ("n_unknown", "n_checked", "n_lossy")
        )
        losses = [f"{unknown:,} unknown (<unk>) tokens"] if unknown else []
        if lossy:
            losses.append(f"{lossy:,} of {checked:,} stories do not decode to their text")
        return ", ".join(losses)

    def sample(self, n_stories: int, seed: int) -> Text:
        """Return ``n_stories`` stories, drawn without replacement; all where there are fewer."""
        draws = np.random.default_rng(seed)
        size = min(n_stories, len(self))
        chosen = np.sort(draws.choice(len(self), size=size, replace=False))
        note = {"sample": size, "seed": seed}
        return Text(self.corpus.take(chosen), self.tokenizer, self.spec, self.split, note)


def evaluation_text(
    tokenizer: PreTrainedTokenizerFast,
    data: TextArgument,
    validation: TextArgument | None = None,
    limit: int | None = None,
    trained_on: bool = False,
) -> Text:
    """Return the text a model is evaluated on, in the model's own tokens.

    It is the validation split of DATA, where there is one (``demo``, most datasets, a directory
    with a file named after validation, ``validation``). Files and texts in memory without one are
    read whole, unless the model was trained on them: then the stories that training held out are
    read.

    Args:
        tokenizer: of the model; one without an end-of-text token reads token ids only.
        data: ``demo``, a dataset's name, or files (see ``sat_interp.data.sources.parse_data``); or
            text in memory (see ``sat_interp.data.memory``).
        validation: data that holds the validation text, where DATA does not.
        limit: only the first so many stories.
        trained_on: whether this is what the model was trained on.

    Raises:
        UserError: unknown or missing data, no text in it, or a limit below 1 or of 2^63 and more.
    """
    if limit is not None and not 1 <= limit < 2**63:
        raise UserError(f"--stories must be at least 1 and below 2^63, not {shown(limit)}")
    source, split = text_source(data, validation), "validation"
    held = source.validation
    if not trained_on and held is None and source.validation_part() is None:
        source, split = dataclasses.replace(source, validation=source), "all"
    corpus = tokenised(source, "validation", tokenizer, limit)
    note: dict[str, Any] = {"validation": file_names(held.spec)} if held is not None else {}
    if limit is not None:
        note["limit"] = limit
    return Text(corpus, tokenizer, source.spec, split, note)


def text_source(data: TextArgument, validation: TextArgument | None = None) -> DataSource:
    """Return the source of a text: of a DATA argument, or of text in memory.

    Raises:
        UserError: unknown or missing data, or something that is no text.
    """
    if isinstance(data, str | Path) and isinstance(validation, str | Path | None):
        return parse_data(str(data), None if validation is None else str(validation))
    source = _source(data)
    if validation is None:
        return source
    held = _source(validation)
    if isinstance(source, TokenSource) != isinstance(held, TokenSource):
        raise UserError("text and its validation text are both strings or both token ids")
    return dataclasses.replace(source, validation=held)


def _source(data: TextArgument) -> DataSource:
    if isinstance(data, DataSource):
        return data
    return parse_data(str(data)) if isinstance(data, str | Path) else text_in_memory(data)


def tokenised(
    source: DataSource,
    split: Split,
    tokenizer: PreTrainedTokenizerFast,
    limit: int | None = None,
) -> TokenCorpus:
    """Return a split in tokens; sequences of token ids are read as they stand.

    Raises:
        UserError: the data cannot be read, holds no text, or needs a tokenizer.
    """
    if isinstance(source, TokenSource):
        return source.corpus(split, limit)
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the model has no tokenizer: give one (tokenizer=...), or give the text as lists of "
            "token ids"
        )
    return load_corpus(source, split, tokenizer, limit=limit)


def check_vocabulary(model: HookedTransformer, text: Text) -> None:
    """Do nothing if the model has an embedding for each token of a text.

    Raises:
        UserError: the tokenizer and the model do not belong together.
    """
    tokens = text.corpus.tokens
    highest = max(
        int(np.max(tokens[first : first + HASH_CHUNK]))
        for first in range(0, len(tokens), HASH_CHUNK)
    )
    highest = max(highest, text.corpus.end_of_text, text.start)
    if highest >= model.cfg.d_vocab:
        raise UserError(
            f"the tokenizer has {len(text.tokenizer):,} tokens and the text uses number {highest:,}"
            f", but the model knows only {model.cfg.d_vocab:,}; they do not belong together"
        )
