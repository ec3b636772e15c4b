"""Hugging Face decoders as HookedTransformers: unprocessed, without a network, and checked."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

from evaluations.core import families
from sat_interp._util.errors import UserError
from sat_interp.io.foreign import check_directory

# Tokens over which a conversion is compared: GPT-Neo's local layers see 256 of them, so that a
# wrong window shows only beyond.
COMPARED = 512


def hugging_face_model(directory: str | Path) -> HookedTransformer:
    """Load a decoder that TransformerLens knows from a Hugging Face directory, without a network.

    TransformerLens reads configurations from a directory but loads models by known names only, so
    the three steps of its ``from_pretrained`` are taken here one by one. The result is compared
    with Hugging Face's own logits, which catches what its conversion does not cover.

    Raises:
        UserError: no model there, an architecture TransformerLens does not know, or logits that
            differ.
    """
    from transformer_lens import loading_from_pretrained as loading
    from transformers import AutoModelForCausalLM

    directory = Path(directory)
    config = _read_configuration(directory)
    cfg = _hooked_configuration(config, directory)  # refused before the weights are read
    try:
        with quiet_transformers():
            original = AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32, trust_remote_code=False
            ).eval()
    except Exception as error:  # transformers raises whatever its reading of the files meets
        raise UserError(f"cannot load a model from {directory}: {first_line(error)}") from None
    try:
        with _readable_configuration(config) as path:
            state = loading.get_pretrained_state_dict(path, cfg, original, dtype=torch.float32)
        _true_sizes(cfg, state)
        model = HookedTransformer(cfg, move_to_device=False)
        model.load_and_process_state_dict(
            state, fold_ln=False, center_writing_weights=False, center_unembed=False,
            fold_value_biases=False,
        )  # fmt: skip
    except Exception as error:  # the conversion raises whatever its reading of the weights meets
        raise _not_converted(config, directory, error) from None
    _compare(model, original, directory)
    return model


def hugging_face_outline(directory: str | Path) -> HookedTransformer:
    """Build the model in a Hugging Face directory on the meta device, by its configuration alone.

    Returns:
        A model with the shape and the hook points of :func:`hugging_face_model`'s, no weights.

    Raises:
        UserError: no configuration there, or an architecture TransformerLens does not know.
    """
    directory = Path(directory)
    cfg = _hooked_configuration(_read_configuration(directory), directory)
    cfg.device, cfg.init_weights = "meta", False
    with torch.device("meta"):
        return HookedTransformer(cfg, move_to_device=False)


def _read_configuration(directory: Path) -> Any:
    """Return transformers' configuration of the model in ``directory``, its architecture named.

    Raises:
        UserError: there is none, or transformers does not know it.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    check_directory(directory)
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its reading of the file meets
        raise UserError(f"cannot load a model from {directory}: {first_line(error)}") from None
    if not config.architectures:
        name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, config.model_type)
        config.architectures = [name]
    return config


def _hooked_configuration(config: Any, directory: Path) -> HookedTransformerConfig:
    """Return TransformerLens' configuration of a model.

    Raises:
        UserError: an architecture TransformerLens does not know.
    """
    try:
        with _readable_configuration(config) as path:
            cfg = families.configuration(config, path, families.tokenizer_limit(directory))
    except Exception as error:  # an unknown architecture meets NotImplementedError, KeyError, ...
        raise _not_converted(config, directory, error) from None
    cfg.tokenizer_name = None  # the tokenizer is loaded apart; by name it would need a network
    cfg.model_name = directory.resolve().name
    _own_initialisation(cfg, config)
    return cfg


def _not_converted(config: Any, directory: Path, error: Exception) -> UserError:
    return UserError(
        f"TransformerLens cannot convert {config.architectures[0]} from {directory}: "
        f"{first_line(error)}"
    )


def first_line(error: BaseException) -> str:
    """Return another library's complaint as the end of one line of ours.

    A first line that only announces what follows (it ends in a colon) is joined with the next.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    announced = len(lines) > 1 and lines[0].endswith(":")
    return (f"{lines[0]} {lines[1]}" if announced else lines[0])[:300]


@contextmanager
def _readable_configuration(configuration: Any) -> Iterator[str]:
    """A directory with the model's configuration as TransformerLens wants to find it.

    Its name says nothing: TransformerLens takes a path that contains 'llama' or 'gemma' for that
    architecture. And GPT-2's n_ctx, which transformers 5 no longer writes, is put back.
    """
    config = configuration.to_dict()
    if "n_positions" in config:
        config.setdefault("n_ctx", config["n_positions"])
    with tempfile.TemporaryDirectory(prefix="shape") as temporary:
        text = json.dumps(config, default=str)
        Path(temporary, "config.json").write_text(text, encoding="utf-8")
        yield temporary


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bar of transformers' own while it loads."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _own_initialisation(cfg: Any, config: Any) -> None:
    """Keep the standard deviation the model was initialised with, which TransformerLens drops."""
    found = getattr(config, "initializer_range", None)
    if isinstance(found, int | float) and found > 0:
        cfg.init_mode, cfg.initializer_range = "gpt2", float(found)


def _true_sizes(cfg: Any, state: dict[str, torch.Tensor]) -> None:
    """TransformerLens takes some sizes for granted (d_mlp = 4 d_model); the weights know better."""
    width = state.get("blocks.0.mlp.W_in")
    if width is not None:
        cfg.d_mlp = width.shape[1]
    cfg.d_vocab = cfg.d_vocab_out = state["embed.W_E"].shape[0]


@torch.inference_mode()
def _compare(model: HookedTransformer, original: torch.nn.Module, directory: Path) -> None:
    """Refuse a conversion whose logits are not the original's."""
    generator = torch.Generator().manual_seed(0)
    length = min(COMPARED, int(model.cfg.n_ctx))
    tokens = torch.randint(int(model.cfg.d_vocab), (1, length), generator=generator)
    wanted = original(tokens).logits
    # a constant added to all logits changes no probability
    difference = model(tokens).log_softmax(-1) - wanted.log_softmax(-1)
    worst = float(difference.abs().max())
    if not worst <= 1e-2:
        raise UserError(
            f"{directory}: TransformerLens' conversion does not compute what the model does "
            f"(log-probabilities differ by up to {worst:.3g}); it has a feature it does not cover"
        )
