"""The KL of every lens at every layer against a loop of plain hooks, in a Llama-shaped model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import evaluations
from evaluations.core.model_source import load_model
from evaluations.core.text import evaluation_text
from evaluations.core.windows import split_windows
from sat_interp._util.errors import UserError
from tests.evaluations.conftest import STORIES

LAYERS, FIRST, WINDOW = 5, 3, 11
BUDGET = {
    "fit_windows": 16,
    "held_windows": 12,
    "window": WINDOW,
    "first": FIRST,
    "tuned_steps": 5,
    "evaluations": 8,
    "sample": 32,
    "no_edits": True,
    "resamples": 20,
    "seed": 4,
}


def saved(directory: Path, tokenizer, seed: int) -> Path:
    """A Llama of 5 layers, 3 heads and 1 head of keys and values."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=3,
        num_key_value_heads=1,
        intermediate_size=40,
        max_position_embeddings=40,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def by_loop(model, tokens: Tensor, lenses: dict[str, Tensor]) -> dict[tuple[str, int], float]:
    """Mean KL over windows and positions, of each lens and layer."""
    logits, cache = model.run_with_cache(tokens)
    clean, found = logits[:, FIRST:].double().log_softmax(-1), {}

    def kl(prediction: Tensor) -> float:
        log_q = prediction[:, FIRST:].double().log_softmax(-1)
        return float((clean.exp() * (clean - log_q)).sum(-1).mean())

    for layer in range(LAYERS):
        stream = cache["resid_pre", layer]
        matrix, bias = lenses["tuned/W"][layer].float(), lenses["tuned/b"][layer].float()
        for name, mapped in (("logit", stream), ("tuned", stream + stream @ matrix.T + bias)):
            found[name, layer] = kl(model.unembed(model.ln_final(mapped)))
        for name in ("oca", "shared", "mean"):
            constants = lenses[f"{name}/c"].float()
            own = constants[layer] if name == "oca" else constants
            hooks = [
                (f"blocks.{j}.hook_attn_out", lambda value, hook, c=own[j]: c.expand_as(value))
                for j in range(layer, LAYERS)
            ]
            found[name, layer] = kl(model.run_with_hooks(tokens, fwd_hooks=hooks))
    return found


@torch.no_grad()
def test_every_lens_is_what_a_loop_of_hooks_makes_of_it(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAT_INTERP_CACHE", str(tmp_path / "cache"))
    stories = [f"{first} {second}" for first in STORIES for second in STORIES]
    directory = saved(tmp_path / "llama", tokenizer, 0)
    kinds = ("logit", "tuned", "oca", "shared", "mean")
    record = evaluations.lens(
        str(directory), data=stories, lenses=kinds, out="results", **BUDGET
    ).record
    (file,) = Path("results").rglob("lenses-*.safetensors")
    loaded = load_model(str(directory))
    text = evaluation_text(loaded.tokenizer, stories)
    _, held = split_windows(text, 16, 12, WINDOW, f"lens/{BUDGET['seed']}")
    wanted = by_loop(loaded.model, held.tokens, load_file(file))
    rows = {(row["lens"], row["layer"]): row["kl"] for row in record.extra["layers"]}
    assert rows.keys() == wanted.keys()
    assert rows == pytest.approx(wanted, abs=1e-5)
    assert len(set(rows.values())) == len(rows)

    again = evaluations.lens(str(directory), data=stories, load=str(file), **BUDGET).record
    same = {(row["lens"], row["layer"]): row["kl"] for row in again.extra["layers"]}
    assert same == pytest.approx(rows, abs=1e-7)
    other = saved(tmp_path / "other", tokenizer, 1)
    with pytest.raises(UserError, match="has lenses of llama .*, not of other .*: fit its own"):
        evaluations.lens(str(other), data=stories, load=str(file), **BUDGET)
