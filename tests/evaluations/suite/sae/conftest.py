"""Tiny autoencoders on tiny models: seconds, not minutes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from evaluations.core.text import Text
from evaluations.suite.sae.config import PRESETS, SaeConfig
from evaluations.suite.sae.evaluation import SaeData
from sat_interp.data.corpus import TokenCorpus, load_corpus
from sat_interp.data.sources import parse_data

DataMaker = Callable[..., SaeData]

TINY = dataclasses.replace(
    PRESETS["demo"],
    tokens=1280,
    batch_tokens=32,
    buffer_prompts=8,
    norm_batches=4,
    context=16,
    expansion=4,
    sparsity=0.1,
    resamples=50,
)


@pytest.fixture
def tiny() -> SaeConfig:
    return TINY


@pytest.fixture
def corpus(tokenizer: PreTrainedTokenizerFast, stories_file: Path) -> TokenCorpus:
    return load_corpus(parse_data(str(stories_file)), "train", tokenizer)


@pytest.fixture
def make_data(corpus: TokenCorpus, text: Text, tmp_path: Path) -> DataMaker:
    def make(**changes: object) -> SaeData:
        known: dict[str, object] = {
            "corpus": corpus,
            "text": text,
            "directory": tmp_path / "sae",
            "model": {"name": "tiny", "weights": "ab"},
        }
        return SaeData(**{**known, **changes})

    return make
