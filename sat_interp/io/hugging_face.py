"""To and from transformers' models: GPT-2, GPT-Neo, GPT-NeoX, Llama and its relatives.

A model that was read keeps the configuration it came with, so that it is written back as the same
class. One trained here from the beginning is written as a GPT-Neo.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPTNeoConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sat_interp._util.errors import UserError, first_line
from sat_interp._util.files import expanded, naming
from sat_interp._util.progress import quiet_transformers
from sat_interp._util.reading import read_object
from sat_interp.data.tokenizer import bos_is_filled_in, load_tokenizer, read_by_transformer_lens
from sat_interp.io.architectures import is_tied, shape_of, weight_rows
from sat_interp.io.foreign import check_directory, refuse_own_code
from sat_interp.io.gguf import is_gguf, unpack
from sat_interp.io.locate import CONFIG, TOKENIZER
from sat_interp.io.protocol import (
    Build,
    GatedTransformer,
    Model,
    refuse_processed,
    working_dtype,
)
from sat_interp.io.released import gpt_neo_weights
from sat_interp.io.rows import collect, fill
from sat_interp.io.whole import read_whole, unembedding_name
from sat_interp.model.config import SelfAblationConfig

_NOT_KEPT = ("_name_or_path", "dtype", "torch_dtype", "transformers_version", "quantization_config")


def to_hf(model: GatedTransformer, directory: str | Path | None = None) -> PreTrainedModel:
    """The clean stream as a model of transformers in evaluation mode, without gates.

    It has the class and configuration that the model came with; any other model becomes a
    GPTNeoForCausalLM with global attention. A scale of the attention scores, which GPT-Neo has
    none of, goes into the queries' weights.

    Args:
        directory: where to save it, with the tokenizer, for ``AutoModelForCausalLM``.

    Raises:
        UserError: the class cannot represent the model: processed weights; for GPT-Neo another
            shape, biases of Q, K, V or of the unembedding, heads that do not fill d_model. Or
            ``directory`` holds a saved model.
    """
    if directory is not None and Path(directory, CONFIG).exists():
        raise UserError(
            f"{directory} holds a model of sat_interp, whose weights would be "
            "overwritten; name another directory"
        )
    config = _configuration(model)
    neo = gpt_neo_weights(model, "none") if model.hugging_face is None else None
    with torch.random.fork_rng(devices=[]):  # its random initialisation is not the caller's
        exported: Any = AutoModelForCausalLM.from_config(config)
    weights = _weights_for(model, exported) if neo is None else neo
    torch.nn.Module.to(exported, device=model.W_E.device, dtype=model.W_E.dtype)
    exported.load_state_dict(weights)
    exported.config.dtype = model.W_E.dtype
    exported.eval()
    if directory is not None:
        with naming(directory), quiet_transformers():
            exported.save_pretrained(directory)
            if model.tokenizer is not None:
                model.tokenizer.save_pretrained(directory)
    return exported  # type: ignore[no-any-return]


def _configuration(model: GatedTransformer) -> Any:
    """Configuration of the model of transformers."""
    refuse_processed(model)
    if model.hugging_face is None:
        return _gpt_neo_config(model)
    kept = dict(model.hugging_face)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if kept.get(name) is None:
            kept[name] = getattr(model.tokenizer, name, None)
    return AutoConfig.for_model(kept.pop("model_type"), **kept)


def _weights_for(model: GatedTransformer, theirs: PreTrainedModel) -> dict[str, Tensor]:
    """The clean stream's weights under the names of a model of the class it came with."""
    unembedding = unembedding_name(theirs)
    weights = collect(model, weight_rows(theirs.config, model.cfg, unembedding))
    if is_tied(theirs.config):
        weights[unembedding] = model.W_E.detach().clone()
    return weights


def _gpt_neo_config(model: GatedTransformer) -> GPTNeoConfig:
    cfg, tokenizer = model.cfg, model.tokenizer
    return GPTNeoConfig(
        vocab_size=cfg.d_vocab,
        max_position_embeddings=cfg.n_ctx,
        hidden_size=cfg.d_model,
        num_layers=cfg.n_layers,
        attention_types=[[["global"], cfg.n_layers]],
        num_heads=cfg.n_heads,
        intermediate_size=cfg.d_mlp,
        activation_function=cfg.act_fn,
        resid_dropout=0.0,
        embed_dropout=0.0,
        attention_dropout=0.0,
        layer_norm_epsilon=cfg.eps,
        initializer_range=cfg.initializer_range,
        bos_token_id=getattr(tokenizer, "bos_token_id", None),
        eos_token_id=getattr(tokenizer, "eos_token_id", None),
        pad_token_id=getattr(tokenizer, "pad_token_id", None),
        tie_word_embeddings=True,
    )


def from_hf(
    build: Build[Model],
    model: PreTrainedModel | str | Path,
    ablation: SelfAblationConfig | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Model:
    """A model of transformers, its weights copied, with fresh gates. Dropout is not copied.

    Args:
        build: makes the model that is filled, such as its class.
        model: the model, a directory, a GGUF file, or a name on the hub.
        tokenizer: by default the one beside the model.

    Raises:
        UserError: no such model, an architecture or a feature that gates do not cover, weights
            that are missing, damaged or not safetensors, or code of the model's own.
    """
    if isinstance(model, str | Path):
        name = str(expanded(model)) if expanded(model).exists() else str(model)
        model = _load(name)
        tokenizer = tokenizer or tokenizer_beside(name)
    config = model.config
    cfg = shape_of(config)
    cfg.dtype, cfg.device = working_dtype(model.dtype), str(model.device)
    ours = build(cfg, ablation, tokenizer, tied=is_tied(config))
    fill(ours, _named_weights(model), weight_rows(config, cfg, unembedding_name(model)))
    kept = config.to_dict().items()
    ours.hugging_face = {key: value for key, value in kept if key not in _NOT_KEPT}
    ours.has_own_bos = has_own_bos(tokenizer)
    return ours.train(model.training)


def _named_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Weights by name, a tied unembedding left out."""
    weights, name = dict(model.state_dict()), unembedding_name(model)
    if is_tied(model.config):
        del weights[name]
    elif model.config.model_type in ("gpt2", "gpt_neo"):
        raise UserError(
            f"{name} differs from the embedding: a {model.config.model_type} with an unembedding "
            "of its own is not covered"
        )
    return weights


def _load(name: str) -> PreTrainedModel:
    where = place(name)
    try:
        shape_of(AutoConfig.from_pretrained(**where, trust_remote_code=False))
    except Exception as error:  # transformers' and the hub's failures have no common base class
        raise UserError(f"cannot load a model from {name}: {first_line(error)}") from error
    return read_weights(where, name)


def read_weights(
    where: dict[str, Any], name: str, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """A decoder of transformers with all of its weights, on the CPU; no code of its own is run.

    Args:
        where: arguments of ``from_pretrained`` (:func:`place`); a directory has been checked.
        name: of the model in messages.
        dtype: by default the one the weights are stored in.

    Raises:
        UserError: weights that cannot be read, are missing, or of another size than the
            configuration says; by name.
    """
    settings = {} if dtype is None else {"dtype": dtype}
    try:
        with quiet_transformers():
            return read_whole(
                **where,
                **settings,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # refused by name
            )
    except Exception as error:  # transformers raises whatever its reading of the files meets
        raise UserError(f"cannot load a model from {name}: {first_line(error)}") from error


def place(name: str) -> dict[str, Any]:
    """Arguments of transformers' ``from_pretrained`` for a directory, a file or a hub name.

    Raises:
        UserError: a directory that is not whole, or that names code of its own.
    """
    path = Path(name)
    if path.is_file():
        return {"pretrained_model_name_or_path": str(_unpacked(path))}
    if path.is_dir():
        check_directory(path)
        refuse_own_code(path)
    return {"pretrained_model_name_or_path": name}


def _unpacked(file: Path) -> Path:
    """The directory of a GGUF file."""
    if not is_gguf(file):
        raise UserError(f"{file} is a file: name the directory of the model, or a .gguf file")
    return unpack(file)


def tokenizer_beside(name: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a model of transformers; None where a directory has none.

    One that states no BOS token is given the one that the model's configuration states.

    Raises:
        UserError: it cannot be read.
    """
    path = Path(name)
    if path.is_file():
        path = _unpacked(path)
        name = str(path)
    if path.is_dir() and not any((path / file).is_file() for file in TOKENIZER):
        return None
    tokenizer = load_tokenizer(name)
    stated = read_object(path / "config.json").get("bos_token_id")
    if type(stated) is int and stated >= 0 and bos_is_filled_in(tokenizer):
        token = tokenizer.convert_ids_to_tokens(stated)
        if isinstance(token, str):
            tokenizer.bos_token = token
    return read_by_transformer_lens(tokenizer)


def has_own_bos(tokenizer: PreTrainedTokenizerBase | None) -> bool:
    """Whether a tokenizer has a BOS token besides its end-of-text token."""
    return tokenizer is not None and tokenizer.bos_token_id not in (None, tokenizer.eos_token_id)
