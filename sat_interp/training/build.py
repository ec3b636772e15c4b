"""The model a configuration asks for, with fresh weights."""

from __future__ import annotations

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import PreTrainedTokenizerFast

from sat_interp._util.errors import UserError
from sat_interp.data.tokenizer import id_count
from sat_interp.io.initial import InitialModel
from sat_interp.model.shape import gpt_neo_config, validate
from sat_interp.model.transformer import SelfAblatingTransformer
from sat_interp.training.config import TrainConfig
from sat_interp.training.initial import begin


def build_model(
    config: TrainConfig, tokenizer: PreTrainedTokenizerFast, device: torch.device
) -> SelfAblatingTransformer:
    """A model with fresh weights, decided by ``config.seed``; with ``init``, that one's weights.

    Raises:
        UserError: a shape that is not possible, or a vocabulary too small for the tokenizer.
    """
    if config.init is not None:
        return begin(config, tokenizer, device)
    needed = id_count(tokenizer)
    d_vocab = config.d_vocab or needed
    if d_vocab < needed:
        raise UserError(
            f"d_vocab {d_vocab} is too small: the tokenizer has tokens up to {needed - 1}; leave "
            f"d_vocab out, or set at least {needed}"
        )
    shape = shape_of(config, d_vocab)
    shape.device = str(device)  # weights are drawn on the CPU first: a seed means the same anywhere
    torch.manual_seed(config.seed)
    model = SelfAblatingTransformer(shape, config.ablation, tokenizer)
    if config.embedding_range is not None:
        draw_embeddings(model, config.embedding_range)
    return model


def draw_embeddings(model: HookedTransformer, embedding_range: float) -> None:
    """Draw new token and position embeddings from N(0, embedding_range^2).

    Drawn on the CPU, by torch's global generator: a seed means the same on any device.
    """
    with torch.no_grad():
        for table in (model.W_E, model.W_pos):
            fresh = torch.empty(table.shape, dtype=table.dtype)
            table.copy_(fresh.normal_(std=embedding_range))


def shape_of(config: TrainConfig, d_vocab: int = 1) -> HookedTransformerConfig:
    """The model's shape over a vocabulary, on the CPU in float32.

    Raises:
        UserError: d_model not divisible by n_heads, or k above the number of units.
    """
    if config.init is not None:
        return InitialModel.find(config.init).shape(SelfAblatingTransformer)
    shape = gpt_neo_config(
        n_layers=config.n_layers or 0,  # FRESH has filled them in
        d_model=config.d_model or 0,
        n_heads=config.n_heads or 0,
        d_mlp=config.d_mlp,
        n_ctx=config.n_ctx,
        d_vocab=d_vocab,
        initializer_range=config.initializer_range,
    )
    validate(config.ablation, shape)
    return shape
