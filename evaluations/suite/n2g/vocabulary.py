"""What tokens are in text, and which of them make one word."""

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
    """The tokens of a tokenizer as text, spaces included; one text for each id."""

    texts: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
        """Of a byte-level, SentencePiece or WordPiece tokenizer, or any other.

        A token that is no whole character has its piece's name, so that two are never one. Ids
        that no token has are there too, as ``<17>``: the largest id decides how many there are.
        """
        pieces = tokenizer.convert_ids_to_tokens(list(range(id_count(tokenizer))))
        # not by its pieces: GPT-2's has "##", too
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
        """Whether spaces part words; where they do not, every token is a word of its own."""
        return any(len(text) > 1 and text[0].isspace() for text in self.texts)

    @cached_property
    def begins(self) -> Bool[np.ndarray, " vocabulary"]:
        """Tokens that begin a word whatever comes before them."""
        return np.array([not (self.has_words and text[0].isalnum()) for text in self.texts])

    @cached_property
    def spaced(self) -> Bool[np.ndarray, " vocabulary"]:
        """Tokens with a space before them."""
        return np.array([text[0].isspace() for text in self.texts])

    @cached_property
    def open(self) -> Bool[np.ndarray, " vocabulary"]:
        """Tokens whose word may go on: they end in a letter or digit, or are a mere space."""
        return np.array([text[-1].isalnum() or text == " " for text in self.texts])

    def continues(self, before: int, token: int) -> bool:
        """Whether a token goes on with the word of the one before it."""
        return not self.begins[token] and bool(self.open[before])

    def words(self, tokens: Sequence[int]) -> list[tuple[int, int]]:
        """Where words begin and end among tokens; a word cut off at the start is one too."""
        starts = [
            place
            for place, token in enumerate(tokens)
            if place == 0 or not self.continues(int(tokens[place - 1]), int(token))
        ]
        return list(zip(starts, [*starts[1:], len(tokens)], strict=True)) if starts else []
