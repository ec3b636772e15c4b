"""Runs that begin from a pretrained model (``--init``): its shape, its tokenizer, its weights."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from sat_interp._util.errors import UserError
from sat_interp.data.tokenizer import id_count, load_tokenizer, vocabulary_hash
from sat_interp.io.hugging_face import has_own_bos
from sat_interp.io.initial import InitialModel
from sat_interp.model.shape import validate
from sat_interp.model.transformer import SelfAblatingTransformer
from sat_interp.training.config import TrainConfig

logger = logging.getLogger(__name__)

SPARE_ROWS = 1024
"""Rows of an embedding that may be more than the tokenizer needs: models are padded to round
sizes."""
_SIZES = ("n_layers", "d_model", "n_heads", "d_mlp", "d_vocab")


def adopted(config: TrainConfig) -> TrainConfig:
    """The configuration of a run with ``init``, completed by the sizes of that model.

    Raises:
        UserError: there is no such model, gates do not cover it, a setting contradicts it, or its
            tokenizer is missing or of another size.
    """
    initial = InitialModel.find(str(config.init))
    shape = initial.shape(SelfAblatingTransformer)
    own: dict[str, Any] = {name: getattr(shape, name) for name in _SIZES}
    for name, value in own.items():
        given = getattr(config, name)
        if given not in (None, value):
            raise UserError(
                f"{name} {given} contradicts init {config.init}, which has {value}: leave {name} "
                "out"
            )
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    if config.embedding_range not in (None, defaults["embedding_range"]):
        raise UserError(
            f"embedding_range {config.embedding_range} contradicts init {config.init}, whose "
            "embeddings are kept: leave embedding_range out"
        )
    own["embedding_range"] = None
    if config.initializer_range == defaults["initializer_range"]:
        own["initializer_range"] = float(shape.initializer_range)
    validate(config.ablation, shape)
    initial_tokenizer(config)
    return dataclasses.replace(config, **own, n_ctx=_context(config, shape.n_ctx))


def _context(config: TrainConfig, longest: int) -> int:
    """Length of the windows: the model's context at most."""
    if config.n_ctx <= longest:
        return config.n_ctx
    if config.n_ctx != TrainConfig.from_preset(config.preset, init=config.init).n_ctx:
        raise UserError(
            f"n_ctx {config.n_ctx} contradicts init {config.init}, whose context is {longest}: "
            f"choose n_ctx <= {longest}"
        )
    logger.info("windows of %d tokens, the context of %s", longest, config.init)
    return longest


def initial_tokenizer(config: TrainConfig) -> PreTrainedTokenizerFast:
    """The tokenizer of the model that a run begins from, or the one given for it.

    Raises:
        UserError: it has none and none is given; or it is another one than the model's own, or of
            another size than its embedding.
    """
    initial = InitialModel.find(str(config.init))
    own, given = initial.tokenizer(SelfAblatingTransformer), config.tokenizer
    if given is not None and given.startswith("bpe"):
        raise UserError(
            f"tokenizer {given!r} contradicts init {config.init}, whose embedding belongs to its "
            "own tokenizer: leave tokenizer out"
        )
    chosen = own if given is None else load_tokenizer(given)
    if not isinstance(chosen, PreTrainedTokenizerFast):
        raise UserError(f"{config.init} has no tokenizer: name the one it was trained with")
    rows, needed = initial.shape(SelfAblatingTransformer).d_vocab, id_count(chosen)
    if not needed <= rows <= needed + SPARE_ROWS:
        raise UserError(
            f"the tokenizer has {needed:,} tokens and {config.init} an embedding of {rows:,}: it "
            "is not the one the model was trained with"
        )
    if isinstance(own, PreTrainedTokenizerFast) and vocabulary_hash(own) != vocabulary_hash(chosen):
        raise UserError(
            f"tokenizer {given!r} numbers its tokens otherwise than that of {config.init}: leave "
            "tokenizer out"
        )
    return chosen


def initial_fingerprint(config: TrainConfig) -> str:
    """Hash of the weights that a run begins from."""
    return InitialModel.find(str(config.init)).fingerprint


def begin(
    config: TrainConfig, tokenizer: PreTrainedTokenizerFast, device: torch.device
) -> SelfAblatingTransformer:
    """The model to train: the initial one's weights, and gates drawn as ``config.seed`` decides.

    With ``freeze`` base only the gates are trained.

    Raises:
        UserError: the weights cannot be read.
    """
    initial = InitialModel.find(str(config.init))
    model = initial.load(SelfAblatingTransformer, config.ablation, tokenizer)
    model.cfg.initializer_range = config.initializer_range
    model.has_own_bos = has_own_bos(tokenizer)
    torch.manual_seed(config.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_gate(name):
                is_weight = name.rpartition(".")[2].startswith("W_")
                parameter.normal_(std=config.initializer_range) if is_weight else parameter.zero_()
            elif config.freeze == "base":
                parameter.requires_grad_(False)
    torch.nn.Module.to(model, device)
    model.cfg.device = str(device)
    return model.train()


def copy_of(model: SelfAblatingTransformer) -> SelfAblatingTransformer:
    """The clean stream as it is now, fixed, for the divergence from it."""
    original = SelfAblatingTransformer.from_hooked_transformer(model)
    original.requires_grad_(False)
    return original.eval()


def is_gate(name: str) -> bool:
    """Whether a parameter is one of the gates'."""
    return "gates" in name.split(".")
