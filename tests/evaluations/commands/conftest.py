from __future__ import annotations

from pathlib import Path

import pytest
from transformers import GPT2Config, PreTrainedTokenizerFast


@pytest.fixture
def foreign(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A Hugging Face directory without weights: whoever reads them fails."""
    directory = tmp_path / "foreign"
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=4, n_positions=32)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
