"""The number of bytes that tokens stand for, where a cut may divide a character."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class TokenBytes:
    """The UTF-8 bytes of a tokenizer's tokens.

    A token of a byte-level tokenizer (GPT-2's kind) is one byte for each of its characters. A
    tokenizer with byte fallback (Llama's kind) writes rare characters as tokens such as ``<0xE2>``,
    a byte each. So a character that is cut in two counts as the bytes that were kept of it. The
    tokens of other tokenizers are decoded.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Read the tokenizer's rules."""
        self.tokenizer = tokenizer
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        parts = [rules.get("pre_tokenizer"), rules.get("decoder")]
        self.is_byte_level = all(_has(part, "ByteLevel") for part in parts)
        self.has_byte_tokens = bool(rules["model"].get("byte_fallback"))
        self.added = {entry["id"] for entry in rules.get("added_tokens", ())}

    def count(self, tokens: Sequence[int]) -> int:
        """Return the bytes of the text that the tokens decode to."""
        if self.is_byte_level:
            pieces = self._pieces(tokens)
            return sum(
                len(piece.encode()) if token in self.added else len(piece)
                for token, piece in zip(tokens, pieces, strict=True)
            )
        end = len(tokens)
        if self.has_byte_tokens:  # those at the end may be part of a character
            pieces = self._pieces(tokens)
            while end and _BYTE.fullmatch(pieces[end - 1]):
                end -= 1
        text = self.tokenizer.backend_tokenizer.decode(list(tokens[:end]), False)
        return len(text.encode()) + len(tokens) - end

    def kept(self, tokens: Sequence[int], keep: int, size: int) -> int:
        """Return the bytes of a story that its first ``keep`` tokens stand for.

        Args:
            tokens: of the whole story.
            keep: number of tokens kept.
            size: bytes of the story. Where its tokens decode to another number of them (the
                tokenizer loses or changes text), the kept ones have their share of ``size``.
        """
        whole, kept = self.count(tokens), self.count(tokens[:keep])
        return kept if whole in (0, size) else round(size * kept / whole)

    def _pieces(self, tokens: Sequence[int]) -> list[str]:
        return [piece or "" for piece in self.tokenizer.convert_ids_to_tokens(list(tokens))]


def _has(part: object, kind: str) -> bool:
    """Whether a component of a tokenizer is of a kind, or a sequence that holds one."""
    if isinstance(part, dict):
        return part.get("type") == kind or any(_has(value, kind) for value in part.values())
    return isinstance(part, list) and any(_has(value, kind) for value in part)
