"""The model card: a README.md for the Hugging Face hub, filled from the run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerFast

from sat_interp._util import escape
from sat_interp.data.tokenizer import vocabulary_hash
from sat_interp.io.protocol import GatedTransformer

PAPER = "https://arxiv.org/abs/2505.00509"
CARD_SIGN = "library_name: sat-interp"
"""Line that distinguishes a model card of this package from any other README.md."""

# Facts the card knows by name, in its order; any other fact is shown under its own name.
_LABELS = {
    "data": "data",
    "tokenizer": "tokenizer",
    "preset": "preset",
    "seed": "seed",
    "steps": "optimiser steps",
    "tokens": "training tokens",
    "seconds": "training time (s)",
    "tokens_per_second": "tokens per second",
    "hardware": "hardware",
    "clean_loss": "validation loss, clean stream (nats per token)",
    "ablated_loss": "validation loss, ablated stream (nats per token)",
    "clean_perplexity": "validation perplexity, clean stream",
    "ablated_perplexity": "validation perplexity, ablated stream",
}
_OUTSIDE_TABLE = ("name", "repository", "command", "commit")

_HEADER = """\
---
library_name: sat-interp
pipeline_tag: text-generation
tags:
- interpretability
- transformer-lens
- {kind}
{tags}# license: choose one, the weights are yours
---

# {name}

{what}

## Load it

```python
from sat_interp import SelfAblatingTransformer

model = SelfAblatingTransformer.from_pretrained({repository})  # or this directory
logits = model(model.to_tokens("Once upon a time"))
```
"""

_LIMITS = """\
## Limits

- A small model for research on interpretability. It is not an assistant, knows only its training
  text, and repeats that text's mistakes and biases.
- Perplexities are comparable between models with the same tokenizer and validation text only.
- {limit}
"""


def model_card(model: GatedTransformer, facts: Mapping[str, Any]) -> str:
    """A README.md with the hub's front matter; the licence is left to the publisher.

    Args:
        facts: about the run. Known names: name, repository, command, commit, data, tokenizer,
            preset, seed, steps, tokens, seconds, tokens_per_second, hardware, clean_loss,
            ablated_loss, clean_perplexity, ablated_perplexity. Others are listed under their own.
    """
    ablation = model.ablation
    name = _text(facts.get("name") or f"Self-ablating transformer ({ablation.variant})")
    sections = [
        _HEADER.format(
            name=name,
            repository=_literal(facts.get("repository") or "owner/name"),
            tags="- self-ablation\n" if ablation.is_gated else "",
            kind=_kind(model),
            what=_what(model),
        ),
        _table("## Shape", _shape(model)),
        _table("## Gates", ablation.to_dict()) if ablation.is_gated else "",
        _training(facts),
        _LIMITS.format(
            limit="The ablated stream and its gates exist for training and for study: use the "
            "clean stream's logits."
            if ablation.is_gated
            else "It has no gates: it is the baseline for comparison."
        ),
    ]
    return "\n".join(section for section in sections if section)


def _kind(model: GatedTransformer) -> str:
    """Hugging Face's model_type: that of the model it began as, else of the paper's."""
    return escape.markdown(str((model.hugging_face or {}).get("model_type", "gpt_neo")))


def _what(model: GatedTransformer) -> str:
    ablation = model.ablation
    if model.hugging_face is not None:
        gates = f"with {ablation.variant} self-ablation gates" if ablation.is_gated else ""
        return (
            f"A {_kind(model)} model of Hugging Face's, trained further {gates or 'without gates'} "
            f"([Self-Ablating Transformers]({PAPER})). Outside `model.dual` it is an ordinary "
            "transformer, and `model.to_hf(directory)` writes it as the class it came from."
        )
    if not ablation.is_gated:
        return (
            "An ordinary GPT-Neo shaped transformer, trained as the baseline of self-ablating "
            f"ones ([Self-Ablating Transformers]({PAPER}))."
        )
    return (
        f"A GPT-Neo shaped transformer trained with {ablation.variant} self-ablation gates "
        f"([Self-Ablating Transformers]({PAPER})): beside the ordinary ('clean') stream, a second "
        f"one in which each layer keeps {ablation.k_attention} attention units and "
        f"{ablation.k_neurons} neurons per token. Outside `model.dual` it is an ordinary "
        "transformer."
    )


def _shape(model: GatedTransformer) -> dict[str, object]:
    cfg = model.cfg
    gates = sum(p.numel() for name, p in model.named_parameters() if "gates." in name)
    # Parameters that are not trained (TransformerLens' zero biases) do not exist in GPT-Neo.
    trained = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if "gates." not in name and parameter.requires_grad
    }
    return {
        "layers": cfg.n_layers,
        "d_model": cfg.d_model,
        "heads": f"{cfg.n_heads} of {cfg.d_head}",
        "neurons per layer": cfg.d_mlp or 0,
        "vocabulary": cfg.d_vocab,
        "tokenizer (hash)": tokenizer_hash(model) or "unknown",
        "context (tokens)": cfg.n_ctx,
        "parameters": f"{sum(trained.values()):,}",
        "gate parameters": f"{gates:,}",
    }


def tokenizer_hash(model: GatedTransformer) -> str | None:
    """The hash of the tokenizer a model was trained with; None where it is not known."""
    if model.tokenizer_hash is None and isinstance(model.tokenizer, PreTrainedTokenizerFast):
        return vocabulary_hash(model.tokenizer)
    return model.tokenizer_hash


def _training(facts: Mapping[str, Any]) -> str:
    known = {label: facts[name] for name, label in _LABELS.items() if facts.get(name) is not None}
    others = {
        name.replace("_", " "): value
        for name, value in facts.items()
        if name not in _LABELS and name not in _OUTSIDE_TABLE and value is not None
    }
    section = _table("## Training", known | others)
    if command := facts.get("command"):
        section = section or "## Training\n"
        lines = "\n".join(map(escape.printable, str(command).split("\n")))
        fence = _fence(lines, 3)
        section += f"\n{fence}\n{lines}\n{fence}\n"
    if commit := facts.get("commit"):
        section += f"\nCode: commit {_code(commit)}.\n"
    return section


def _table(title: str, rows: Mapping[str, Any]) -> str:
    if not rows:
        return ""
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join([title, "", "| | |", "|---|---|", *lines, ""])


def _cell(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    return _text(value)


def _text(value: object) -> str:
    """A value as one line of Markdown, escaped."""
    return escape.markdown(_one_line(value))


def _literal(value: object) -> str:
    """A value as a text of Python, in double quotes where nothing has to be escaped."""
    text, quoted = str(value), repr(str(value))
    return f'"{text}"' if quoted == f"'{text}'" and '"' not in text else quoted


def _code(value: object) -> str:
    """A value as code within a line."""
    text = escape.printable(_one_line(value))
    fence = _fence(text, 1)
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"


def _fence(text: str, least: int) -> str:
    """A fence of more backticks than anywhere in the text."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))


def _one_line(value: object) -> str:
    return " ".join(str(value).split())
