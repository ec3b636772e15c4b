"""Text as the evaluations read it: whole stories, from position 0, without padding."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int
from transformer_lens import HookedTransformer
from transformers import PreTrainedTokenizerFast

from evaluations.core.token_bytes import TokenBytes
from sat_interp._util.errors import UserError, shown
from sat_interp.data.batches import cut_tokens
from sat_interp.data.corpus import TokenCorpus, load_corpus
from sat_interp.data.sources import file_names, parse_data
from sat_interp.data.tokenizer import fingerprint

HASH_CHUNK = 1 << 24
COUNTED = ("n_empty", "n_unknown", "n_checked", "n_lossy")
"""What tokenising counted, of the whole text."""


@dataclass(frozen=True)
class Text:
    """One split of a text, in tokens."""

    corpus: TokenCorpus
    tokenizer: PreTrainedTokenizerFast
    spec: str
    split: str = "validation"
    note: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.corpus)

    @cached_property
    def lengths(self) -> Int[np.ndarray, " stories"]:
        """Tokens of each story, its closing end-of-text included."""
        return np.diff(np.asarray(self.corpus.offsets, dtype=np.int64))

    @cached_property
    def content(self) -> str:
        """Hash of what is read, whatever it is called: bytes, tokens, where stories begin and end.

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
        """Id of the token that stands before every story (see ``story_start``)."""
        return self.corpus.start

    def describe(self) -> dict[str, Any]:
        """What a record says of the text; ``content`` alone decides whether it is the same.

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
        """How many tokens of each story fit into the context (the rest is cut)."""
        return self.lengths - cut_tokens(self.corpus, context)

    def scored_bytes(self, context: int) -> Int[np.ndarray, " stories"]:
        """UTF-8 bytes of the text that is scored: all of a whole story, the kept part of a cut one.

        End-of-text stands for no bytes; a character that is cut in two counts as the bytes kept
        (see ``TokenBytes``).
        """
        sizes = np.array(self.corpus.story_bytes, dtype=np.int64)
        cut = np.flatnonzero(self.lengths > context)
        if not len(cut):
            return sizes
        known = TokenBytes(self.tokenizer)
        for story in cut:
            tokens = self.corpus.story(int(story)).tolist()
            sizes[story] = known.kept(tokens, context, int(sizes[story]))
        return sizes

    def losses_told(self) -> str:
        """Return what the tokenizer loses of the text, as part of a sentence; '' for nothing."""
        unknown, checked, lossy = (
            int(self.corpus.meta.get(name, 0)) for name in ("n_unknown", "n_checked", "n_lossy")
        )
        told = [f"{unknown:,} unknown (<unk>) tokens"] if unknown else []
        if lossy:
            told.append(f"{lossy:,} of {checked:,} stories do not decode to their text")
        return ", ".join(told)

    def sample(self, n_stories: int, seed: int) -> Text:
        """``n_stories`` of the stories, drawn without replacement; all where there are fewer."""
        draws = np.random.default_rng(seed)
        size = min(n_stories, len(self))
        chosen = np.sort(draws.choice(len(self), size=size, replace=False))
        offsets = self.corpus.offsets
        parts = [self.corpus.tokens[offsets[story] : offsets[story + 1]] for story in chosen]
        corpus = dataclasses.replace(
            self.corpus,
            tokens=np.concatenate([*parts, self.corpus.tokens[:0]]),
            offsets=np.concatenate([[0], np.cumsum(self.lengths[chosen])]).astype(np.int64),
            story_bytes=np.asarray(self.corpus.story_bytes)[chosen],
        )
        return Text(corpus, self.tokenizer, self.spec, self.split, {"sample": size, "seed": seed})


def evaluation_text(
    tokenizer: PreTrainedTokenizerFast,
    data: str,
    validation: str | None = None,
    limit: int | None = None,
    trained_on: bool = False,
) -> Text:
    """The text a model is evaluated on, in the model's own tokens.

    The validation split of DATA, where there is one (``demo``, most datasets, a directory with a
    file named after validation, ``validation``). Files without one are read whole, for whoever
    names a file to evaluate on means all of it; unless the model was trained on them, in which
    case the stories that training held out are read.

    Args:
        data: ``demo``, a dataset's name, or files (see ``sat_interp.data.sources.parse_data``).
        validation: data that holds the validation text, where DATA does not.
        limit: only the first so many stories.
        trained_on: whether this is what the model was trained on.

    Raises:
        UserError: unknown or missing data, no text in it, or a limit below 1 or of 2^63 and more.
    """
    if limit is not None and not 1 <= limit < 2**63:
        raise UserError(f"--stories must be at least 1 and below 2^63, not {shown(limit)}")
    source, split = parse_data(data, validation), "validation"
    if not trained_on and validation is None and source.validation_part() is None:
        source, split = dataclasses.replace(source, validation=source), "all"
    corpus = load_corpus(source, "validation", tokenizer, limit=limit)
    note: dict[str, Any] = {"validation": file_names(validation)} if validation else {}
    if limit is not None:
        note["limit"] = limit
    return Text(corpus, tokenizer, data, split, note)


def check_vocabulary(model: HookedTransformer, text: Text) -> None:
    """Refuse text whose tokens the model has no embedding for.

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
