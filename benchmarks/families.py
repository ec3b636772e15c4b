"""Tiny random models of many families: which are read, and whether their figures are right.

    python -m benchmarks.families [FAMILY ...] > families.md

For each family a random model is saved as a Hugging Face directory and loaded like any other. Its
log-probabilities are compared with transformers' own, the perplexity of ``lm`` with a loop over
transformers' logits, and the graph that ``acdc`` searches, every edge kept, with the model. The
other evaluations are run with the least budgets. What is refused is quoted, once for all families.
The two tables are those in docs/families.md.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import evaluations
from evaluations.core.bridged import BridgedTransformer
from evaluations.core.model_source import load_model
from evaluations.core.models import LoadedModel
from evaluations.core.text import evaluation_text
from evaluations.suite.circuits.forward import embed, forward
from evaluations.suite.circuits.graph import Graph
from evaluations.suite.sae.config import PRESETS
from evaluations.suite.sae.evaluation import SaeData
from evaluations.suite.sae.evaluation import evaluate as evaluate_autoencoder
from sat_interp._util.errors import UserError
from sat_interp._util.files import file_name
from sat_interp._util.progress import quiet_transformers
from sat_interp.data.corpus import load_corpus
from sat_interp.data.sources import parse_data

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
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FALCON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
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
    "OLMo 3": ("Olmo3", {**GROUPED, "sliding_window": 16}),
    "GPT-OSS": (
        "GptOss",
        {**GROUPED, **EXPERTS, "num_local_experts": 4, "head_dim": 8, "sliding_window": 16},
    ),
    "Apertus": ("Apertus", GROUPED),
    "Llama with biases": ("Llama", {**GROUPED, "attention_bias": True, "mlp_bias": True}),
    "StableLM": ("StableLm", GROUPED),
    "StableLM (parallel, norms of queries and keys)": (
        "StableLm",
        {**GROUPED, "use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True},
    ),
    "Falcon": ("Falcon", FALCON),
    "Falcon (ALiBi)": ("Falcon", {**FALCON, "alibi": True, "multi_query": False}),
    "CodeGen": ("CodeGen", {**SMALL, "rotary_dim": 4}),
    "Granite": (
        "Granite",
        {**GROUPED, "logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    ),
    "GLM": ("Glm", {**GROUPED, "head_dim": 8, "pad_token_id": 0}),
    "GLM 4": ("Glm4", {**GROUPED, "head_dim": 8, "pad_token_id": 0}),
    "Starcoder 2": ("Starcoder2", GROUPED),
    "SmolLM 3": ("SmolLM3", {**GROUPED, "pad_token_id": 0}),
    "EXAONE 4": ("Exaone4", {**GROUPED, "sliding_window": 16}),
    "Nemotron": ("Nemotron", {**GROUPED, "head_dim": 8}),
    "MPT": (
        "Mpt",
        {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": CONTEXT, "expansion_ratio": 2},
    ),
    "GPT-BigCode": ("GPTBigCode", {**SMALL, "multi_query": True}),
    "XGLM": (
        "XGLM",
        {
            "d_model": 32,
            "num_layers": 2,
            "attention_heads": 4,
            "ffn_dim": 48,
            "max_position_embeddings": CONTEXT,
        },
    ),
    "Qwen 2 MoE": ("Qwen2Moe", {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 16}),
    "Qwen 3 MoE": ("Qwen3Moe", {**GROUPED, **EXPERTS, "head_dim": 8}),
    "Mamba": ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "Seed-OSS": ("SeedOss", {**GROUPED, "head_dim": 8}),
    "ERNIE 4.5": ("Ernie4_5", {**GROUPED, "head_dim": 8}),
    "Arcee": ("Arcee", GROUPED),
    "Cohere": ("Cohere", GROUPED),
    "Persimmon": ("Persimmon", BASE),
}
BUDGETS: dict[str, dict[str, Any]] = {
    "neurons": {"data": "demo", "stories": 20, "sample": 3, "resamples": 5},
    "n2g": {"data": "demo", "stories": 20, "neurons_per_layer": 1},
    "ablate": {
        "task": "ioi-tinystories",
        "components": "mlps",
        "methods": "zero,mean",
        "fit_prompts": 8,
        "fit_prompts_large": 8,
        "held_prompts": 8,
        "no_bridge": True,
    },
    "lens": {
        "data": "demo",
        "lenses": "logit,mean",
        "fit_windows": 8,
        "held_windows": 8,
        "no_edits": True,
        "resamples": 5,
    },
}
SAE = dataclasses.replace(
    PRESETS["demo"],
    tokens=1280,
    batch_tokens=32,
    buffer_prompts=8,
    norm_batches=4,
    context=16,
    expansion=4,
    resamples=5,
)
COLUMNS = ("Family", "Read by", "Log-probabilities", "Perplexity", "Circuit graph", "sae", *BUDGETS)
NONE = "-"


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
def perplexity_differs(family: Family) -> float:
    """The relative difference of ``lm``'s perplexity from a loop over transformers' logits."""
    start, end = family.tokenizer.bos_token_id, family.tokenizer.eos_token_id
    nats, n = 0.0, 0
    for story in STORIES:
        ids = family.tokenizer.encode(story, add_special_tokens=False)
        tokens = torch.tensor([start, *ids, end])[: int(family.loaded.model.cfg.n_ctx) + 1]
        log_p = family.original(tokens[None, :-1]).logits[0].log_softmax(-1)
        nats -= float(log_p.gather(1, tokens[1:, None]).double().sum())
        n += len(tokens) - 1
    data = family.directory / "stories.txt"
    data.write_text("\n\n".join(STORIES), encoding="utf-8")
    result = evaluations.lm(family.loaded, data=str(data), resamples=5, activation_stories=0)
    found = float(result.record.metric("perplexity").value)
    return abs(found / math.exp(nats / n) - 1)


@torch.inference_mode()
def graph_differs(family: Family) -> float:
    """The largest difference of log-probabilities where every edge of the graph is kept."""
    tokens: Tensor = torch.arange(20)[None] + 5
    model = family.loaded.model
    found = forward(model, Graph.of(model), embed(model, tokens)).log_softmax(-1)
    return float((found - family.original(tokens).logits[:, -1].log_softmax(-1)).abs().max())


def train_autoencoder(family: Family) -> None:
    """Train and measure a tiny autoencoder."""
    corpus = load_corpus(parse_data("demo"), "train", family.tokenizer)
    text = evaluation_text(family.tokenizer, "demo").sample(5, 0)
    data = SaeData(corpus, text, family.directory / "sae", {"name": family.name})
    evaluate_autoencoder(family.loaded.model, data, SAE)


@dataclass
class Family:
    """A random model of a family, and what evaluations made of it.

    Attributes:
        refusals: messages, each with what was refused.
    """

    name: str
    original: Any
    tokenizer: Any
    directory: Path
    refusals: list[tuple[str, str]] = field(default_factory=list)
    loaded: Any = None

    @classmethod
    def saved(cls, name: str, tokenizer: Any, work: Path) -> Family:
        """Make a model and save it as a Hugging Face directory."""
        kind, settings = FAMILIES[name]
        family = cls(name, make(kind, settings, len(tokenizer)), tokenizer, work / file_name(name))
        family.original.save_pretrained(family.directory)
        tokenizer.save_pretrained(family.directory)
        return family

    def row(self) -> list[str]:
        """Return the cells of the table."""
        if self.tried("every evaluation", self.load) == NONE:
            return [self.name, *[NONE] * (len(COLUMNS) - 1)]
        is_bridged = isinstance(self.loaded.model, BridgedTransformer)
        return [
            self.name,
            "bridge" if is_bridged else "HookedTransformer",
            self.tried("lm", lambda: logits_differ(self.original, self.loaded)),
            self.tried("lm", lambda: perplexity_differs(self)),
            self.tried("acdc", lambda: graph_differs(self)),
            self.tried("sae", lambda: train_autoencoder(self)),
            *(self.tried(name, self.evaluation(name)) for name in BUDGETS),
        ]

    def load(self) -> None:
        """Load the directory as evaluations do."""
        self.loaded = load_model(str(self.directory))

    def evaluation(self, name: str) -> Callable[[], object]:
        """Return what runs an evaluation with the least budget."""
        return lambda: getattr(evaluations, name)(self.loaded, **BUDGETS[name])

    def tried(self, what: str, run: Callable[[], object]) -> str:
        """Return the cell of something: a difference, ``yes``, or a dash where it is refused."""
        try:
            found = run()
        except UserError as error:
            architecture = type(self.original).__name__
            message = str(error).partition(" choices: ")[0]
            message = message.replace(str(self.directory), "DIRECTORY")
            self.refusals.append((what, message.replace(architecture, "CLASS")))
            return NONE
        return shown(found) if isinstance(found, float) else "yes"


def shown(difference: float) -> str:
    """A difference, marked where it is too large."""
    return f"{difference:.0e}" + ("" if difference <= TOLERANCE else " WRONG")


def refusals(families: Sequence[Family]) -> Iterator[str]:
    """Yield the rows of the second table: what is refused, with which words, of which families."""
    found: dict[tuple[str, str], list[str]] = {}
    for family in families:
        for refusal in dict.fromkeys(family.refusals):
            found.setdefault(refusal, []).append(family.name)
    for (what, message), names in found.items():
        yield f"| {what} | {message} | {', '.join(names)} |"


def main(names: list[str]) -> None:
    """Print the tables."""
    logging.disable(logging.WARNING)
    tokenizer, families = load_model("demo:baseline").tokenizer, []
    print(f"| {' | '.join(COLUMNS)} |\n| {' | '.join(':--' for _ in COLUMNS)} |")
    with tempfile.TemporaryDirectory() as temporary, quiet_transformers():
        for name in names or FAMILIES:
            families.append(Family.saved(name, tokenizer, Path(temporary)))
            print(f"| {' | '.join(families[-1].row())} |", flush=True)
    print("\n| Refused | Words | Families |\n| :-- | :-- | :-- |")
    print("\n".join(refusals(families)))


if __name__ == "__main__":
    main(sys.argv[1:])
