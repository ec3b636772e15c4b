"""Tokens of a vocabulary as text, and their grouping into words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

from sat_interp.data.tokenizer import id_count


@dataclass(frozen=True)
class Vocabulary:
    """The text of every token id, including spaces."""

    texts: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
        """Return the vocabulary of a byte-level, SentencePiece, WordPiece or other tokenizer.

        Tokens that are only part of a character keep their internal name, so that all texts
        differ. Unused ids below the largest are written as ``<17>``.
        """
        pieces = tokenizer.convert_ids_to_tokens(list(range(id_count(tokenizer))))
        # not recognisable by its pieces: GPT-2 also has "##"
        wordpiece = isinstance(tokenizer.backend_tokenizer.model, WordPiece)
        texts = []
        for token, piece in enumerate(pieces):
            name = piece or f"<{token}>"
            text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
            if wordpiece:
                text = name.removeprefix("##") if name.startswith("##") else f" {name}"
            elif name.startswith("▁"):
                text = name.replace("▁", " ")
            texts.append(name if "\ufffd" in text or not text else text)
        return cls(tuple(texts))

    @cached_property
    def has_words(self) -> bool:
        """Whether spaces separate words; if not, every token is a word."""
        return any(len(text) > 1 and text[0].isspace() for text in self.texts)

    @cached_property
    def begins(self) -> Bool[np.ndarray, " vocabulary"]:
        """Tokens that begin a word whatever precedes them."""
        return np.array([not (self.has_words and text[0].isalnum()) for text in self.texts])

    @cached_property
    def spaced(self) -> Bool[np.ndarray, " vocabulary"]:
        """Tokens with a space before them."""
        return np.array([text[0].isspace() for text in self.texts])

    @cached_property
    def open(self) -> Bool[np.ndarray, " vocabulary"]:
        """Tokens whose word can be continued: they end in a letter or digit, or are a space."""
        return np.array([text[-1].isalnum() or text == " " for text in self.texts])

    def continues(self, before: int, token: int) -> bool:
        """Whether a token continues the word of the token before it."""
        return not self.begins[token] and bool(self.open[before])

    def words(self, tokens: Sequence[int]) -> list[tuple[int, int]]:
        """Return the ranges of words among tokens; a word cut off at the start counts as a word."""
        starts = [
            place
            for place, token in enumerate(tokens)
            if place == 0 or not self.continues(int(tokens[place - 1]), int(token))
        ]
        return list(zip(starts, [*starts[1:], len(tokens)], strict=True)) if starts else []
