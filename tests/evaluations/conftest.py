"""A few stories, a tokenizer of their own, and tiny models with weights far from zero."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, PreTrainedTokenizerFast

from evaluations.core.record import Metric, Record
from evaluations.core.text import Text, evaluation_text
from sat_interp import SelfAblatingTransformer, SelfAblationConfig
from sat_interp.data.tokenizer import train_bpe
from sat_interp.io.pretrained import save_pretrained
from sat_interp.model.shape import gpt_neo_config

STORIES = [
    "Tom gave the ball to Anna.",
    "Anna said “thank you” to Tom in the park.",  # quotes of three bytes each
    "The café was warm.",
    "One day Tom and Anna went to the park. Tom gave a ball to Anna and Anna was happy.",
    "A cat.",
    "Tom was sad. Anna gave the cat to Tom. They were happy in the park all day long.",
    "The cat sat in the café and Anna said “hello” to the cat. “Hello”, said Tom. “Hello”.",
    "Anna went to the park.",
]
CONTEXT = 24

ModelMaker = Callable[..., SelfAblatingTransformer]


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAT_INTERP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_bpe(STORIES, 300)


@pytest.fixture(scope="session")
def stories_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "stories.jsonl"
    lines = [json.dumps({"text": story}) for story in STORIES]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def text(tokenizer: PreTrainedTokenizerFast, stories_file: Path) -> Text:
    return evaluation_text(tokenizer, str(stories_file))


@pytest.fixture
def make_model(tokenizer: PreTrainedTokenizerFast) -> ModelMaker:
    def make(
        variant: str = "none", seed: int = 0, n_ctx: int = CONTEXT, **ablation: object
    ) -> SelfAblatingTransformer:
        torch.manual_seed(seed)
        cfg = gpt_neo_config(
            n_layers=2,
            d_model=16,
            n_heads=4,
            d_vocab=len(tokenizer),
            n_ctx=n_ctx,
            initializer_range=0.3,
            dtype=torch.float64,
        )
        settings: dict[str, object] = {"k_attention": 3, "k_neurons": 5, **ablation}
        config = SelfAblationConfig(variant=variant, **settings)
        return SelfAblatingTransformer(cfg, config, tokenizer=tokenizer).eval()

    return make


@pytest.fixture
def model_directory(make_model: ModelMaker, tmp_path: Path) -> Path:
    return save_pretrained(make_model(), tmp_path / "tiny")


@pytest.fixture
def make_record() -> Callable[..., Record]:
    def make(name: str = "tiny", weights: str = "ab" * 32, **fields: object) -> Record:
        metric = Metric("perplexity", "Perplexity", 12.5, "", "lower", 0.25, n=100)
        known: dict[str, object] = {
            "evaluation": "lm",
            "model": {"name": name, "spec": name, "weights_hash": weights, "ablation": None},
            "data": {"spec": "demo", "split": "validation", "content": "c0ffee"},
            "config": {"seed": 1},
            "config_hash": "0123456789ab",
            "seed": 1,
            "metrics": [metric],
            "started": "2026-01-01T00:00:00+00:00",
        }
        return Record(**{**known, **fields})

    return make


@pytest.fixture
def foreign(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A Hugging Face directory without weights: whoever reads them fails."""
    directory = tmp_path / "foreign"
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=4, n_positions=32)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
