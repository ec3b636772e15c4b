"""Tiny random models of many families: which are read, and whether their figures are right.

    python -m benchmarks.families [FAMILY ...] > families.md

For each family a random model is saved as a Hugging Face directory and loaded like any other. Its
log-probabilities are compared with transformers' own, the perplexity of ``lm`` with a loop over
transformers' logits, and the graph that ``acdc`` searches, every edge kept, with the model. What
is refused is quoted. The table is the one in docs/families.md.
"""

from __future__ import annotations

import logging
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import evaluations
from evaluations.core.model_source import load_model
from evaluations.core.models import LoadedModel
from evaluations.suite.circuits.forward import embed, forward
from evaluations.suite.circuits.graph import Graph
from sat_interp._util.errors import UserError
from sat_interp._util.files import file_name
from sat_interp._util.progress import quiet_transformers
from sat_interp.data.tokenizer import train_bpe

STORIES = (
    "Once upon a time there was a little dog. He ran far away, and came back home at night.",
    "Tom and Anna went to the park. Tom gave the ball to Anna, and she was happy.",
    "The cat sat on the mat. It saw a bird, and the bird saw the cat.",
)
CONTEXT, TOLERANCE = 96, 1e-4
BASE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
}
GROUPED = {**BASE, "num_key_value_heads": 2}
EQUAL = {**BASE, "num_key_value_heads": 4}
SMALL = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
GEMMA = {**GROUPED, "head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}
NEO = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": CONTEXT}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("GPT2", SMALL),
    "GPT-Neo": ("GPTNeo", {**NEO, "attention_types": [[["global", "local"], 1]], "window_size": 4}),
    "GPT-J": ("GPTJ", {**SMALL, "rotary_dim": 4}),
    "GPT-NeoX, Pythia": ("GPTNeoX", BASE),
    "OPT": (
        "OPT",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 48,
            "word_embed_proj_dim": 32,
            "max_position_embeddings": CONTEXT,
        },
    ),
    "Llama": ("Llama", EQUAL),
    "SmolLM, Llama 3 (grouped queries)": ("Llama", {**GROUPED, "tie_word_embeddings": True}),
    "Mistral": ("Mistral", {**GROUPED, "sliding_window": 8}),
    "Mixtral": ("Mixtral", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "Qwen 2": ("Qwen2", GROUPED),
    "Qwen 3": ("Qwen3", {**GROUPED, "head_dim": 8}),
    "Gemma 1": ("Gemma", {**GROUPED, "head_dim": 8}),
    "Gemma 2": (
        "Gemma2",
        {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "Gemma 3": ("Gemma3", GEMMA),
    "Phi 1, 2": ("Phi", {**EQUAL, "partial_rotary_factor": 0.5}),
    "Phi 3": ("Phi3", {**EQUAL, "pad_token_id": 0}),
    "OLMo 1": ("Olmo", EQUAL),
    "OLMo 1 (grouped queries)": ("Olmo", GROUPED),
    "OLMo 2": ("Olmo2", EQUAL),
    "Bloom": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "StableLM": ("StableLm", EQUAL),
    "Falcon": (
        "Falcon",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
}
COLUMNS = ("Family", "Log-probabilities", "Perplexity", "Circuit graph", "Refused with")


def make(kind: str, settings: dict[str, Any], vocabulary: int) -> Any:
    """A random model of transformers' class, its norms and biases away from one and zero."""
    torch.manual_seed(1)
    name = "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config"
    config = getattr(transformers, name)(vocab_size=vocabulary, **settings)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


@torch.inference_mode()
def logits_differ(model: Any, loaded: LoadedModel) -> float:
    """The largest difference of log-probabilities from transformers', over random tokens."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(loaded.model.cfg.d_vocab, (3, CONTEXT - 6), generator=generator)
    difference = loaded.model(tokens).log_softmax(-1) - model(tokens).logits.log_softmax(-1)
    return float(difference.abs().max())


@torch.inference_mode()
def perplexity_differs(model: Any, loaded: LoadedModel, directory: Path, data: Path) -> float:
    """The relative difference of ``lm``'s perplexity from a loop over transformers' logits."""
    start, end = loaded.tokenizer.bos_token_id, loaded.tokenizer.eos_token_id
    nats, n = 0.0, 0
    for story in STORIES:
        ids = loaded.tokenizer.encode(story, add_special_tokens=False)
        tokens = torch.tensor([start, *ids, end])[: int(loaded.model.cfg.n_ctx) + 1]
        log_p = model(tokens[None, :-1]).logits[0].log_softmax(-1)
        nats -= float(log_p.gather(1, tokens[1:, None]).double().sum())
        n += len(tokens) - 1
    result = evaluations.lm(str(directory), data=str(data), resamples=5, activation_stories=0)
    found = float(result.record.metric("perplexity").value)
    return abs(found / math.exp(nats / n) - 1)


@torch.inference_mode()
def graph_differs(model: Any, loaded: LoadedModel, directory: Path, data: Path) -> float:
    """The largest difference of log-probabilities where every edge of the graph is kept."""
    tokens: Tensor = torch.arange(20)[None] + 5
    graph = Graph.of(loaded.model)
    found = forward(loaded.model, graph, embed(loaded.model, tokens)).log_softmax(-1)
    return float((found - model(tokens).logits[:, -1].log_softmax(-1)).abs().max())


def row(name: str, tokenizer: Any, work: Path, data: Path) -> list[str]:
    """The cells of a family."""
    kind, settings = FAMILIES[name]
    model, directory = make(kind, settings, len(tokenizer)), work / file_name(name)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    try:
        loaded = load_model(str(directory))
    except UserError as error:
        reason = str(error).replace(str(directory), "DIRECTORY")
        return [name, "-", "-", "-", reason]
    cells, refused = [name, shown(logits_differ(model, loaded))], ""
    measures: tuple[Callable[..., float], ...] = (perplexity_differs, graph_differs)
    for measure in measures:
        try:
            cells.append(shown(measure(model, loaded, directory, data)))
        except UserError as error:
            cells.append("-")
            refused = str(error)
    return [*cells, refused]


def shown(difference: float) -> str:
    """A difference, marked where it is too large."""
    return f"{difference:.0e}" + ("" if difference <= TOLERANCE else " WRONG")


def main(names: list[str]) -> None:
    """Print the table."""
    logging.disable(logging.WARNING)
    tokenizer = train_bpe([" ".join(STORIES)] * 3, 400)
    print(f"| {' | '.join(COLUMNS)} |\n| {' | '.join(':--' for _ in COLUMNS)} |")
    with tempfile.TemporaryDirectory() as temporary, quiet_transformers():
        work = Path(temporary)
        data = work / "stories.txt"
        data.write_text("\n\n".join(STORIES), encoding="utf-8")
        for name in names or FAMILIES:
            print(f"| {' | '.join(row(name, tokenizer, work, data))} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
