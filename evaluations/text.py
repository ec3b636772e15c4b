"""Text as the evaluations read it: whole stories, from position 0, without padding."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int
from transformer_lens import HookedTransformer
from transformers import PreTrainedTokenizerFast

from sat_interp.data.batches import cut_tokens
from sat_interp.data.corpus import TokenCorpus, load_corpus
from sat_interp.data.sources import file_names, parse_data
from sat_interp.data.tokenizer import fingerprint
from sat_interp.errors import UserError

HASH_CHUNK = 1 << 24


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
        """A hash of the tokens and of where stories end: what was read, whatever it is called."""
        digest = hashlib.sha256(np.ascontiguousarray(self.corpus.offsets).tobytes())
        tokens = self.corpus.tokens
        for first in range(0, len(tokens), HASH_CHUNK):
            # one dtype, so that the hash does not depend on how the cache is stored
            digest.update(np.asarray(tokens[first : first + HASH_CHUNK], dtype="<u4").tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """What a record says of the text; ``content`` alone decides whether it is the same."""
        return {
            "spec": file_names(self.spec),
            "split": self.split,
            "content": self.content,
            "tokenizer": fingerprint(self.tokenizer),
            "n_stories": len(self),
            "n_tokens": int(self.lengths.sum()),
            "n_bytes": int(np.sum(self.corpus.story_bytes)),
            "n_empty": int(self.corpus.meta.get("n_empty", 0)),
            **self.note,
        }

    def scored(self, context: int) -> Int[np.ndarray, " stories"]:
        """How many tokens of each story fit into the context (the rest is cut)."""
        return self.lengths - cut_tokens(self.corpus, context)

    def scored_bytes(self, context: int) -> Int[np.ndarray, " stories"]:
        """UTF-8 bytes of the text that is scored: all of a whole story, the kept part of a cut one.

        End-of-text stands for no bytes. A token of a byte-level tokenizer is as many bytes as it
        has characters, which is exact even where a cut parts a character; for other tokenizers the
        kept tokens are decoded.
        """
        sizes = np.array(self.corpus.story_bytes, dtype=np.int64)
        for story in np.flatnonzero(self.lengths > context):
            tokens = self.corpus.story(int(story)).tolist()
            pieces = [len(piece) for piece in self.tokenizer.convert_ids_to_tokens(tokens)]
            if sum(pieces) == sizes[story]:
                sizes[story] = sum(pieces[:context])
            else:
                sizes[story] = len(str(self.tokenizer.decode(tokens[:context])).encode())
        return sizes

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
        UserError: unknown or missing data, no text in it, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise UserError(f"--stories must be at least 1, not {limit}")
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
    highest = max(highest, text.corpus.end_of_text)
    if highest >= model.cfg.d_vocab:
        raise UserError(
            f"the tokenizer has {len(text.tokenizer):,} tokens and the text uses number {highest:,}"
            f", but the model knows only {model.cfg.d_vocab:,}; they do not belong together"
        )
