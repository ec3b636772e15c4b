"""A run that takes a second: a tiny model on a hundred stories."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from sat_interp.data.stories import stories
from sat_interp.training.config import TrainConfig

TINY = {
    "n_layers": 2,
    "d_model": 16,
    "n_heads": 4,
    "d_mlp": 24,
    "n_ctx": 24,
    "tokenizer": "bpe:300",
    "steps": 24,
    "batch_size": 4,
    "k_attention": 3,
    "k_neurons": 3,
    "validate_every": 10,
    "checkpoint_every": 7,
    "log_every": 5,
    "device": "cpu",
}


@pytest.fixture(scope="session")
def text_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Training and validation text, and a cache of their own."""
    directory = tmp_path_factory.mktemp("text")
    files = {}
    for split, n in (("train", 100), ("validation", 6)):
        path = directory / f"{split}.jsonl"
        lines = (json.dumps({"text": text}) for text in islice(stories(split), n))
        path.write_text("\n".join(lines), encoding="utf-8")
        files[split] = str(path)
    files["cache"] = str(directory / "cache")
    return files


@pytest.fixture(autouse=True)
def _own_cache(text_files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SAT_INTERP_CACHE", text_files["cache"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(text_files: dict[str, str], tmp_path: Path) -> Callable[..., TrainConfig]:
    """A configuration of a second's training, with some settings changed."""

    def make(**changes: Any) -> TrainConfig:
        settings = {
            "out": str(tmp_path / "run"),
            "data": text_files["train"],
            "validation": text_files["validation"],
            **TINY,
            **changes,
        }
        return TrainConfig(**settings)

    return make
