"""What a run reads: the token that begins a story is the same in training and afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sat_interp import SelfAblatingTransformer
from sat_interp.data.tokenizer import load_tokenizer, story_start
from sat_interp.training.config import TrainConfig
from sat_interp.training.train import train

Tiny = Callable[..., TrainConfig]


def two_marks(directory: Path) -> Path:
    """A tokenizer of words whose BOS, <s>, differs from its EOS, </s>, and that puts <s> first."""
    words = ["Lily", "Tom", "went", "home", "and"]
    marks = ["<unk>", "<s>", "</s>"]
    known = {token: index for index, token in enumerate([*marks, *words])}
    backend = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    made.save_pretrained(directory)
    return directory


def test_a_tokenizer_with_two_marks_begins_stories_with_the_one_trained(
    tiny: Tiny, tmp_path: Path
) -> None:
    config = tiny(tokenizer=str(two_marks(tmp_path / "tokenizer")), steps=3)
    model = train(config).model
    loaded = SelfAblatingTransformer.from_pretrained(str(config.out))
    saved = load_tokenizer(str(Path(str(config.out)) / "model"))
    for tokenizer in (model.tokenizer, loaded.tokenizer, saved):
        assert story_start(tokenizer) == 2
        assert tokenizer("Lily and", add_special_tokens=True)["input_ids"] == [3, 7]
    for one in (model, loaded):
        assert torch.equal(one.to_tokens("Lily and"), torch.tensor([[2, 3, 7]]))
