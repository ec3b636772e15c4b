"""To and from a plain HookedTransformer, Hugging Face's GPT-Neo, and the authors' weights.

The last two share their parameter names: see ``released.py``. The clean stream's logits
are the same on either side of every conversion.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import (
    AutoConfig,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sat_interp._util.errors import UserError, first_line
from sat_interp._util.files import naming
from sat_interp.data.tokenizer import load_tokenizer
from sat_interp.io.foreign import check_directory
from sat_interp.io.locate import CONFIG, TOKENIZER
from sat_interp.io.protocol import (
    Build,
    GatedTransformer,
    Model,
    refuse_processed,
    working_dtype,
)
from sat_interp.io.released import fill, gpt_neo_weights, normalised
from sat_interp.model.config import SelfAblationConfig
from sat_interp.model.shape import gpt_neo_config, validate

# Hugging Face's name of an activation to TransformerLens'.
_ACTIVATIONS = {
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu": "gelu",
    "gelu_fast": "gelu_fast",
    "relu": "relu",
    "silu": "silu",
}


# Plain HookedTransformer ----------------------------------------------------------------------


def to_hooked_transformer(model: GatedTransformer) -> HookedTransformer:
    """The clean stream as a plain HookedTransformer with its own weights and without the gates.

    Its W_U is a parameter beside W_E, as everywhere in TransformerLens.

    Raises:
        UserError: processed weights.
    """
    refuse_processed(model)
    cfg = _copied_config(model, init_weights=False)
    plain = HookedTransformer(cfg, tokenizer=model.tokenizer)
    plain.load_state_dict(model.full_state_dict())
    cfg.init_weights = True
    return plain.train(model.training)


def from_hooked_transformer(
    build: Build[Model], model: HookedTransformer, ablation: SelfAblationConfig | None = None
) -> Model:
    """``model``'s weights, copied, with fresh gates (drawn from torch's global generator).

    Biases of Q, K, V and of the unembedding are kept, and stay frozen.

    Raises:
        UserError: processed weights, an unembedding that is not the embedding, an architecture
            the gates do not cover, or k above the number of units.
    """
    cfg = _copied_config(model, init_weights=True)
    if cfg.normalization_type == "LNPre" or getattr(model, "weights_processed", False):
        raise UserError(
            "the weights were processed (folded or centred), which changes what gates would read; "
            "load them with HookedTransformer.from_pretrained_no_processing"
        )
    validate(ablation or SelfAblationConfig(), cfg)
    if not torch.equal(model.W_U, model.W_E.T):
        raise UserError(
            "W_U is not the transpose of W_E: self-ablating transformers tie the two; if centring "
            "parted them, load with HookedTransformer.from_pretrained_no_processing"
        )
    ours = build(cfg, ablation, model.tokenizer)
    theirs = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name in theirs and "gates." not in name:
                parameter.copy_(theirs[name])
    return ours.train(model.training)


# Hugging Face ---------------------------------------------------------------------------------


def to_hf(model: GatedTransformer, directory: str | Path | None = None) -> GPTNeoForCausalLM:
    """The clean stream as a GPTNeoForCausalLM in evaluation mode: global attention, tied, no gates.

    A scale of the attention scores, which GPT-Neo has none of, goes into the queries' weights.

    Args:
        directory: where to save it, with the tokenizer, for ``AutoModelForCausalLM``.

    Raises:
        UserError: GPT-Neo cannot represent the model: processed weights, biases of Q, K, V or of
            the unembedding, heads that do not fill d_model. Or ``directory`` holds a saved model.
    """
    if directory is not None and Path(directory, CONFIG).exists():
        raise UserError(
            f"{directory} holds a model of sat_interp, whose weights would be "
            "overwritten; name another directory"
        )
    weights = gpt_neo_weights(model, "none")
    with torch.random.fork_rng(devices=[]):  # its random initialisation is not the caller's
        exported = GPTNeoForCausalLM(_hf_config(model))
    torch.nn.Module.to(exported, device=model.W_E.device, dtype=model.W_E.dtype)
    exported.load_state_dict(weights)
    exported.config.dtype = model.W_E.dtype
    exported.eval()
    if directory is not None:
        with naming(directory):
            exported.save_pretrained(directory)
            if model.tokenizer is not None:
                model.tokenizer.save_pretrained(directory)
    return exported


def _hf_config(model: GatedTransformer) -> GPTNeoConfig:
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
    """A GPT-Neo of Hugging Face's, its weights copied, with fresh gates. Dropout is not copied.

    Args:
        build: makes the model that is filled, such as its class.
        model: the model, a directory, or a name on the hub.
        tokenizer: by default the one beside the model.

    Raises:
        UserError: no such model, another architecture, local attention, or untied embeddings.
    """
    if isinstance(model, str | Path):
        name = str(Path(model).expanduser()) if Path(model).expanduser().is_dir() else str(model)
        model = _load_hf(name)
        tokenizer = tokenizer or _tokenizer_beside(name)
    config = model.config
    if getattr(config, "model_type", None) != "gpt_neo":
        raise UserError(_not_gpt_neo(config))
    cfg = _config_of_hf(config)
    cfg.dtype, cfg.device = working_dtype(model.dtype), str(model.device)
    weights = normalised(model.state_dict())
    ours = build(cfg, ablation, tokenizer)
    fill(ours, weights, "none")
    return ours.train(model.training)


def _load_hf(name: str) -> GPTNeoForCausalLM:
    if Path(name).is_dir():
        check_directory(name)
    try:
        config = AutoConfig.from_pretrained(name)
        if config.model_type != "gpt_neo":
            raise UserError(_not_gpt_neo(config))
        return GPTNeoForCausalLM.from_pretrained(name)
    except UserError:
        raise
    except Exception as error:  # transformers' and the hub's failures have no common base class
        raise UserError(f"no GPT-Neo can be loaded from {name!r}: {first_line(error)}") from error


def _not_gpt_neo(config: Any) -> str:
    return (
        f"this is a {getattr(config, 'model_type', type(config).__name__)!r} model, from_hf reads "
        "gpt_neo; for others: from_hooked_transformer(HookedTransformer."
        "from_pretrained_no_processing(name), ablation)"
    )


def _config_of_hf(config: Any) -> HookedTransformerConfig:
    is_windowed = config.window_size < config.max_position_embeddings
    if is_windowed and "local" in config.attention_layers:
        raise UserError(
            f"this GPT-Neo has layers of local attention (window {config.window_size}), which "
            "self-ablation does not cover; only global attention is"
        )
    if config.activation_function not in _ACTIVATIONS:
        raise UserError(
            f"activation {config.activation_function!r} is not covered; supported: "
            + ", ".join(_ACTIVATIONS)
        )
    cfg = gpt_neo_config(
        n_layers=config.num_layers,
        d_model=config.hidden_size,
        n_heads=config.num_heads,
        d_vocab=config.vocab_size,
        n_ctx=config.max_position_embeddings,
        d_mlp=config.intermediate_size,
        initializer_range=config.initializer_range,
    )
    cfg.act_fn = _ACTIVATIONS[config.activation_function]
    cfg.eps = config.layer_norm_epsilon
    return cfg


def _tokenizer_beside(name: str) -> PreTrainedTokenizerBase | None:
    if Path(name).is_dir() and not any(Path(name, file).is_file() for file in TOKENIZER):
        return None
    return load_tokenizer(name)


def _copied_config(
    model: HookedTransformer | GatedTransformer, init_weights: bool
) -> HookedTransformerConfig:
    """Shape of ``model``, with the device and type that its weights have now.

    ``.double()`` and the like do not change the config. The seed is left out: TransformerLens
    reseeds every generator of the process with it.
    """
    cfg = copy.deepcopy(model.cfg)
    cfg.seed, cfg.init_weights = None, init_weights
    cfg.device, cfg.dtype = str(model.W_E.device), model.W_E.dtype
    return cfg
