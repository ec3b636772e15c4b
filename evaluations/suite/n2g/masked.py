"""Word proposals of a masked language model, such as DistilBERT."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from evaluations.core.weights import tensor_bytes
from evaluations.suite.n2g.substitutes import Proposal, Slot
from sat_interp._util.errors import UserError, shown

DISTILBERT = "distilbert-base-uncased"
BATCH = 64


@dataclass
class MaskedModel:
    """A source of words: the predictions of a masked language model.

    Attributes:
        name: hub id, or name of the directory.
        target: tokenizer of the evaluated model, which encodes the proposed words.
        weights: hash of the model's parameters.
        seconds: time spent in the model so far.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    target: PreTrainedTokenizerFast
    weights: str
    seconds: float = 0.0
    _known: dict[tuple[str, str, int], list[tuple[str, float]]] = field(
        default_factory=dict, repr=False
    )

    def describe(self) -> dict[str, Any]:
        """Describe the source for a record."""
        return {"substitutes": self.name, "weights": self.weights}

    def propose(
        self, slots: Sequence[Slot], most: int, least_probability: float
    ) -> list[list[Proposal]]:
        """Return the most probable words of each slot."""
        contexts = [(self._text(slot.before), self._text(slot.after), most + 1) for slot in slots]
        started = time.perf_counter()
        self._predict(list(dict.fromkeys(c for c in contexts if c not in self._known)))
        self.seconds += time.perf_counter() - started
        return [
            self._proposals(slot, self._known[context], most, least_probability)
            for slot, context in zip(slots, contexts, strict=True)
        ]

    def _proposals(
        self, slot: Slot, words: list[tuple[str, float]], most: int, least_probability: float
    ) -> list[Proposal]:
        own = self._text(slot.word)
        space = own[: len(own) - len(own.lstrip())]
        proposals = []
        for word, p in words:
            # uncased models have no capitals: copy those of the replaced word
            shaped = word.capitalize() if own.strip().istitle() else word
            if p <= least_probability or shaped == own.strip():
                continue
            tokens = self.target.encode(space + shaped, add_special_tokens=False)
            if tokens:
                proposals.append(Proposal(tuple(tokens), p))
        return proposals[:most]

    @torch.inference_mode()
    def _predict(self, contexts: list[tuple[str, str, int]]) -> None:
        """Predict the words of new contexts."""
        mask = str(self.tokenizer.mask_token)
        longest = int(getattr(self.model.config, "max_position_embeddings", 512))
        for first in range(0, len(contexts), BATCH):
            part = contexts[first : first + BATCH]
            encoded = self.tokenizer(
                [f"{before} {mask} {after}" for before, after, _ in part],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=longest,
            ).to(self.model.device)
            logits = self.model(**encoded).logits
            masked = encoded["input_ids"] == self.tokenizer.mask_token_id
            for row, context in enumerate(part):
                at = masked[row].nonzero()[:, 0]
                p = logits[row, at[0]].softmax(-1) if len(at) else logits.new_zeros(1)
                best = p.topk(min(4 * context[2], len(p)))  # some are only pieces of words
                pieces = self.tokenizer.convert_ids_to_tokens(best.indices.tolist())
                words = [
                    (piece.lstrip("Ġ▁"), value)
                    for piece, value in zip(pieces, best.values.tolist(), strict=True)
                    if not piece.startswith("##") and piece not in self.tokenizer.all_special_tokens
                ]
                self._known[context] = [word for word in words if word[0]][: context[2]]

    def _text(self, tokens: tuple[int, ...]) -> str:
        return str(self.target.decode(list(tokens), clean_up_tokenization_spaces=False))


def load_masked(
    spec: str, target: PreTrainedTokenizerFast, device: str, local_only: bool = False
) -> MaskedModel:
    """Load a masked language model from the hub or a directory.

    Args:
        local_only: whether only models in the local cache are used.

    Raises:
        UserError: there is no such model, or it is not a masked language model.
    """
    try:
        safe = {"local_files_only": local_only, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(spec, **safe)
        model = AutoModelForMaskedLM.from_pretrained(spec, **safe, use_safetensors=True)
    except Exception as error:  # transformers, tokenizers and safetensors raise many types
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else "no reason"
        raise UserError(
            f"no masked language model can be loaded from {shown(spec)}: {reason}"
        ) from None
    if tokenizer.mask_token is None:
        raise UserError(
            f"{shown(spec)} is not a masked language model: its tokenizer has no mask token"
        )
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor_bytes(tensor))
    name = Path(spec).name if Path(spec).is_dir() else spec
    return MaskedModel(name, model.eval().to(device), tokenizer, target, digest.hexdigest()[:16])
