"""Tiny random models of many families: which are read, and whether their figures are right.

    python -m benchmarks.families                  # every family; the tables are printed
    python -m benchmarks.families --write          # and put into docs/families.md
    python -m benchmarks.families GPT-2 Bloom --width 24 --heads 3 --groups 1 --layers 5 \\
        --neurons 40 --context 40 --vocabulary 331

For each family a random model is saved as a Hugging Face directory and loaded like any other. Its
log-probabilities are compared with transformers' own, the perplexity of ``lm`` with a loop over
transformers' logits, and the graph that ``acdc`` searches, every edge kept, with the model. The
other evaluations are run with small budgets. What is refused is quoted, once for all families
and evaluations that are refused with the same words.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from sat_interp.data.tokenizer import train_bpe

STORIES = (
    "Once upon a time there was a little dog. He ran far away, and came back home at night.",
    "Tom and Anna went to the park. Tom gave the ball to Anna, and she was happy.",
    "The cat sat on the mat. It saw a bird, and the bird saw the cat.",
)
TEXT = "demo:1000"
"""What autoencoders and tokenizers are trained on."""
TOLERANCE = 1e-4
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@dataclass(frozen=True)
class Shape:
    """Sizes of the random models.

    Attributes:
        groups: heads of keys and values, where a family has fewer of them than of queries.
        vocabulary: tokens of a tokenizer trained on the built-in stories; None for that of the
            built-in models.
    """

    width: int = 32
    layers: int = 2
    heads: int = 4
    groups: int = 2
    neurons: int = 48
    context: int = 96
    vocabulary: int | None = None


def families_of(shape: Shape) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return transformers' class and the settings of each family."""
    width, layers, heads = shape.width, shape.layers, shape.heads
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    base = {
        **sizes,
        "intermediate_size": shape.neurons,
        "max_position_embeddings": shape.context,
    }
    grouped = {**base, "num_key_value_heads": shape.groups}
    equal = {**base, "num_key_value_heads": heads}
    gpt2 = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": shape.context}
    gemma = {**grouped, "head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}
    neo = {
        "hidden_size": width,
        "num_layers": layers,
        "num_heads": heads,
        "max_position_embeddings": shape.context,
        "attention_types": [[[kind], 1] for kind in (["global", "local"] * layers)[:layers]],
        "window_size": 4,
    }
    opt = {
        **sizes,
        "ffn_dim": shape.neurons,
        "word_embed_proj_dim": width,
        "max_position_embeddings": shape.context,
    }
    mpt = {
        "d_model": width,
        "n_heads": heads,
        "n_layers": layers,
        "max_seq_len": shape.context,
        "expansion_ratio": 2,
    }
    xglm = {
        "d_model": width,
        "num_layers": layers,
        "attention_heads": heads,
        "ffn_dim": shape.neurons,
        "max_position_embeddings": shape.context,
    }
    granite = {"logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0}
    parallel = {"use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True}
    return {
        "GPT-2": ("GPT2", gpt2),
        "GPT-Neo": ("GPTNeo", neo),
        "GPT-J": ("GPTJ", {**gpt2, "rotary_dim": 4}),
        "GPT-NeoX, Pythia": ("GPTNeoX", base),
        "OPT": ("OPT", opt),
        "Llama": ("Llama", equal),
        "SmolLM (grouped queries)": ("Llama", {**grouped, "tie_word_embeddings": True}),
        "Llama 3 (scaled positions)": ("Llama", {**grouped, "rope_parameters": LLAMA3}),
        "Llama (YaRN)": ("Llama", {**grouped, "rope_parameters": YARN}),
        "Mistral": ("Mistral", {**grouped, "sliding_window": 8}),
        "Mixtral": ("Mixtral", {**grouped, "num_local_experts": 4, "num_experts_per_tok": 2}),
        "Qwen 2": ("Qwen2", grouped),
        "Qwen 3": ("Qwen3", {**grouped, "head_dim": 8}),
        "Gemma 1": ("Gemma", {**grouped, "head_dim": 8}),
        "Gemma 2": (
            "Gemma2",
            {**gemma, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        ),
        "Gemma 3": ("Gemma3", gemma),
        "Phi 1, 2": ("Phi", {**equal, "partial_rotary_factor": 0.5}),
        "Phi 3": ("Phi3", {**equal, "pad_token_id": 0}),
        "OLMo 1": ("Olmo", equal),
        "OLMo 1 (grouped queries)": ("Olmo", grouped),
        "OLMo 2": ("Olmo2", equal),
        "Bloom": ("Bloom", {"hidden_size": width, "n_layer": layers, "n_head": heads}),
        "OLMo 3": ("Olmo3", {**grouped, "sliding_window": 16}),
        "GPT-OSS": (
            "GptOss",
            {**grouped, **EXPERTS, "num_local_experts": 4, "head_dim": 8, "sliding_window": 16},
        ),
        "Apertus": ("Apertus", grouped),
        "Llama with biases": ("Llama", {**grouped, "attention_bias": True, "mlp_bias": True}),
        "StableLM": ("StableLm", grouped),
        "StableLM (parallel, norms of queries and keys)": ("StableLm", {**grouped, **parallel}),
        "Falcon": ("Falcon", sizes),
        "Falcon (ALiBi)": ("Falcon", {**sizes, "alibi": True, "multi_query": False}),
        "CodeGen": ("CodeGen", {**gpt2, "rotary_dim": 4}),
        "Granite": ("Granite", {**grouped, **granite}),
        "GLM": ("Glm", {**grouped, "head_dim": 8, "pad_token_id": 0}),
        "GLM 4": ("Glm4", {**grouped, "head_dim": 8, "pad_token_id": 0}),
        "Starcoder 2": ("Starcoder2", grouped),
        "SmolLM 3": ("SmolLM3", {**grouped, "pad_token_id": 0}),
        "EXAONE 4": ("Exaone4", {**grouped, "sliding_window": 16}),
        "Nemotron": ("Nemotron", {**grouped, "head_dim": 8}),
        "MPT": ("Mpt", mpt),
        "GPT-BigCode": ("GPTBigCode", {**gpt2, "multi_query": True}),
        "XGLM": ("XGLM", xglm),
        "Qwen 2 MoE": ("Qwen2Moe", {**grouped, **EXPERTS, "shared_expert_intermediate_size": 16}),
        "Qwen 3 MoE": ("Qwen3Moe", {**grouped, **EXPERTS, "head_dim": 8}),
        "Mamba": ("Mamba", {"hidden_size": width, "num_hidden_layers": layers, "state_size": 4}),
        "Seed-OSS": ("SeedOss", {**grouped, "head_dim": 8}),
        "ERNIE 4.5": ("Ernie4_5", {**grouped, "head_dim": 8}),
        "Arcee": ("Arcee", grouped),
        "Cohere": ("Cohere", grouped),
        "Persimmon": ("Persimmon", base),
    }


CONTEXT = Shape().context
FAMILIES = families_of(Shape())
BUDGETS: dict[str, dict[str, Any]] = {
    "neurons": {"data": "demo", "stories": 20, "sample": 3, "resamples": 5},
    "n2g": {"data": "demo", "stories": 20, "neurons_per_layer": 1},
    "ablate": {
        "text": True,
        "data": "demo",
        "components": "heads,mlps",
        "methods": "zero,oa",
        "fit_windows": 8,
        "held_windows": 8,
        "window": 24,
        "sample_windows": 4,
        "starts": 2,
        "evaluations": 4,
        "no_bridge": True,
        "resamples": 5,
    },
    "lens": {
        "data": "demo",
        "lenses": "logit,mean,oca,tuned",
        "fit_windows": 8,
        "held_windows": 8,
        "window": 24,
        "tuned_steps": 2,
        "evaluations": 4,
        "sample": 32,
        "no_edits": True,
        "resamples": 5,
    },
    "trace": {
        "facts": "ioi",
        "answer": "own",
        "n_facts": 40,
        "methods": "oat,gnt",
        "windows": (1,),
        "draws": 1,
        "random_sets": 0,
        "evaluations": 4,
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
PAGE = Path(__file__).parents[1] / "docs" / "families.md"
MARKS = "<!-- written by benchmarks.families -->", "<!-- end of what it writes -->"
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
    cfg, generator = loaded.model.cfg, torch.Generator().manual_seed(3)
    tokens = torch.randint(cfg.d_vocab, (3, min(90, int(cfg.n_ctx) - 6)), generator=generator)
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
    corpus = load_corpus(parse_data(TEXT), "train", family.tokenizer)
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
    def saved(cls, name: str, shape: Shape, tokenizer: Any, work: Path) -> Family:
        """Make a model and save it as a Hugging Face directory."""
        kind, settings = families_of(shape)[name]
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
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for family in families:
        for what, message in family.refusals:
            words = re.sub(rf"\b{what}\b", "EVALUATION", message)
            whats, names = found.setdefault(words, ({}, {}))
            whats[what], names[family.name] = None, None
    for words, (whats, names) in found.items():
        yield f"| {', '.join(whats)} | {words} | {', '.join(names)} |"


def table(heading: Sequence[str], rows: Iterable[str]) -> str:
    """A Markdown table, whose rows are printed as they are made."""
    lines = [f"| {' | '.join(heading)} |", f"| {' | '.join(':--' for _ in heading)} |"]
    print("\n".join(lines))
    for row in rows:
        lines.append(row)
        print(row, flush=True)
    print()
    return "\n".join(lines)


def write(tables: Sequence[str]) -> None:
    """Put the tables between the marks of the page."""
    begin, end = MARKS
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    PAGE.write_text("\n\n".join([before + begin, *tables, end + after]), encoding="utf-8")


def tokenizer_of(shape: Shape) -> Any:
    """The tokenizer of the built-in models, or one of as many tokens as the shape has."""
    if shape.vocabulary is None:
        return load_model("demo:baseline").tokenizer
    return train_bpe(parse_data(TEXT).read_part("train"), shape.vocabulary)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/families.md")
    for one in dataclasses.fields(Shape):
        parser.add_argument(f"--{one.name}", type=int, default=one.default)
    options = vars(parser.parse_args())
    names, is_written = options.pop("families") or list(FAMILIES), options.pop("write")
    shape = Shape(**options)
    logging.disable(logging.WARNING)
    tokenizer, made = tokenizer_of(shape), list[Family]()
    with tempfile.TemporaryDirectory() as temporary, quiet_transformers():

        def rows() -> Iterator[str]:
            for name in names:
                made.append(Family.saved(name, shape, tokenizer, Path(temporary)))
                yield f"| {' | '.join(made[-1].row())} |"

        tables = [table(COLUMNS, rows())]
    tables.append(table(("Refused", "Words", "Families"), refusals(made)))
    if is_written:
        write(tables)


if __name__ == "__main__":
    main()
