"""Hugging Face decoders as HookedTransformers: unprocessed, without a network, and checked.

A class that HookedTransformer cannot hold goes behind TransformerLens' bridge, where that reads it.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import PreTrainedModel

from evaluations.core import families
from evaluations.core.ablation_pass import unembed
from evaluations.core.bridged import BridgedTransformer, bridged_fields, is_supported, outline
from sat_interp._util.errors import UserError, first_line
from sat_interp.io.foreign import check_directory
from sat_interp.io.hugging_face import read_weights

COMPARED = 512
"""Tokens over which a conversion is compared: more than the 256 that GPT-Neo's local layers see, so
that a wrong window shows."""

ModuleT = TypeVar("ModuleT", bound=torch.nn.Module)


@dataclass(frozen=True)
class Decoder:
    """A Hugging Face decoder whose weights have not been converted: its configuration, read once.

    Attributes:
        config: transformers' configuration, its architecture named.
        cfg: TransformerLens' configuration.
        source: the directory with the weights, or the model itself.
        name: of the source in messages.
        is_bridged: whether it goes behind TransformerLens' bridge.
    """

    config: Any
    cfg: HookedTransformerConfig
    source: Path | PreTrainedModel
    name: str
    is_bridged: bool = False

    @classmethod
    def of(cls, source: Path | PreTrainedModel, name: str = "") -> Decoder:
        """Read the configuration of a directory or a model.

        Raises:
            UserError: there is none, or an architecture that transformers or TransformerLens does
                not know.
        """
        if isinstance(source, Path):
            config, name = _read_configuration(source), str(source)
            limit, label = families.tokenizer_limit(source), source.resolve().name
        else:
            config, limit, label = copy.deepcopy(source.config), None, name
            config.architectures = [type(source).__name__]
        try:
            cfg, is_bridged = _configuration(config, limit)
        except Exception as error:  # an unknown architecture meets NotImplementedError, ...
            raise _not_converted(config, name, error) from None
        cfg.tokenizer_name = None  # the tokenizer is loaded apart; by name it would need a network
        cfg.model_name = label
        _own_initialisation(cfg, config)
        return cls(config, cfg, source, name, is_bridged)

    def outline(self) -> HookedTransformer:
        """Build the model on the meta device: its shape and hook points, no weights.

        Raises:
            UserError: a model of this configuration cannot be built.
        """
        cfg = copy.deepcopy(self.cfg)
        cfg.device, cfg.init_weights = "meta", False
        with self._naming_failures():
            if self.is_bridged:
                return outline(self.config, cfg)
            with torch.device("meta"):
                return HookedTransformer(cfg, move_to_device=False)

    def load(self) -> HookedTransformer:
        """Convert the weights, unprocessed, in float32 on the CPU.

        TransformerLens reads configurations from a directory but loads models by known names only,
        so the three steps of its ``from_pretrained`` are taken here one by one. The result is
        compared with Hugging Face's own logits, which catches what its conversion leaves out.

        Raises:
            UserError: weights that cannot be read or converted, or logits that differ.
        """
        original, tokens = self._original(), _tokens(self.cfg)
        with self._naming_failures(), torch.inference_mode():
            wanted = original(tokens, use_cache=False).logits
        with self._naming_failures():
            model = self._bridged(original) if self.is_bridged else self._converted(original)
            worst = _difference(model, tokens, wanted)
        if not worst <= 1e-2:
            raise UserError(
                f"{self.name}: TransformerLens' conversion does not compute what the model does "
                f"(log-probabilities differ by up to {worst:.3g}); it has a feature it does not "
                "cover"
            )
        return model

    @contextmanager
    def _naming_failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the conversion raises whatever its reading meets
            raise _not_converted(self.config, self.name, error) from None

    def _bridged(self, original: PreTrainedModel) -> HookedTransformer:
        return BridgedTransformer(original, copy.deepcopy(self.cfg))

    def _converted(self, original: PreTrainedModel) -> HookedTransformer:
        from transformer_lens import loading_from_pretrained as loading

        cfg = copy.deepcopy(self.cfg)
        with _readable_configuration(self.config) as path:
            state = loading.get_pretrained_state_dict(path, cfg, original, dtype=torch.float32)
        _true_sizes(cfg, state)
        model = HookedTransformer(cfg, move_to_device=False)
        model.load_and_process_state_dict(
            state,
            fold_ln=False,
            center_writing_weights=False,
            center_unembed=False,
            fold_value_biases=False,
        )
        return model

    def _original(self) -> Any:
        """Return transformers' model in float32 on the CPU; one in memory stays as it is."""
        original: Any
        if isinstance(self.source, Path):
            check_directory(self.source)
            where = {"pretrained_model_name_or_path": self.source}
            original = read_weights(where, self.name, torch.float32)
        else:
            original = shared_copy(self.source)
        return original.cpu().float().eval()


def shared_copy(module: ModuleT) -> ModuleT:
    """Return a copy of a module that shares its numbers: what is set on the copy stays there.

    Moving or casting the copy, its mode and its ``requires_grad`` leave the original as it is.
    """
    shared: dict[int, object] = {
        id(one): torch.nn.Parameter(one.data, requires_grad=False) for one in module.parameters()
    }
    shared |= {id(one): one for one in module.buffers()}
    if (tokenizer := getattr(module, "tokenizer", None)) is not None:
        shared[id(tokenizer)] = tokenizer
    return copy.deepcopy(module, shared)


def _read_configuration(directory: Path) -> Any:
    """Return transformers' configuration of the model in ``directory``, its architecture named.

    Raises:
        UserError: there is none, or transformers does not know it.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    check_directory(directory, needs_weights=False)
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its reading of the file meets
        raise UserError(f"cannot load a model from {directory}: {first_line(error)}") from None
    if not config.architectures:
        name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, config.model_type)
        config.architectures = [name]
    return config


def _configuration(
    config: Any, tokenizer_limit: int | None
) -> tuple[HookedTransformerConfig, bool]:
    """Return TransformerLens' configuration, and whether it is that of its bridge.

    Raises:
        NotImplementedError, UserError: what HookedTransformer lacks, where the bridge does not
            read the class either.
    """
    try:
        with _readable_configuration(config) as path:
            return families.configuration(config, path, tokenizer_limit), False
    except (NotImplementedError, UserError):
        if not is_supported(config.architectures[0]):
            raise
    fields = bridged_fields(config)
    fields |= families.own_sizes(config, fields)
    fields["n_ctx"] = families.context(config, fields, tokenizer_limit)
    return HookedTransformerConfig.from_dict(fields), True


def _not_converted(config: Any, name: str, error: Exception) -> UserError:
    return UserError(
        f"TransformerLens cannot convert {config.architectures[0]} from {name}: {first_line(error)}"
    )


@contextmanager
def _readable_configuration(configuration: Any) -> Iterator[str]:
    """Yield a directory with the model's configuration as TransformerLens reads it.

    Its name is neutral: TransformerLens takes a path that contains 'llama' or 'gemma' for that
    architecture. GPT-2's n_ctx, which transformers 5 no longer writes, is put back.
    """
    config = configuration.to_dict()
    if "n_positions" in config:
        config.setdefault("n_ctx", config["n_positions"])
    with tempfile.TemporaryDirectory(prefix="shape") as temporary:
        text = json.dumps(config, default=str)
        Path(temporary, "config.json").write_text(text, encoding="utf-8")
        yield temporary


def _own_initialisation(cfg: Any, config: Any) -> None:
    """Keep the standard deviation the model was initialised with, which TransformerLens drops."""
    deviation = getattr(config, "initializer_range", None)
    if isinstance(deviation, int | float) and deviation > 0:
        cfg.init_mode, cfg.initializer_range = "gpt2", float(deviation)


def _true_sizes(cfg: Any, state: dict[str, torch.Tensor]) -> None:
    """Correct sizes that TransformerLens assumes (d_mlp = 4 d_model) by those of the weights."""
    width = state.get("blocks.0.mlp.W_in")
    if width is not None:
        cfg.d_mlp = width.shape[1]
    cfg.d_vocab = cfg.d_vocab_out = state["embed.W_E"].shape[0]


def _tokens(cfg: HookedTransformerConfig) -> Tensor:
    """Return random tokens over which a conversion is compared."""
    generator = torch.Generator().manual_seed(0)
    length = min(COMPARED, int(cfg.n_ctx))
    return torch.randint(int(cfg.d_vocab), (1, length), generator=generator)


@torch.inference_mode()
def _difference(model: HookedTransformer, tokens: Tensor, wanted: Tensor) -> float:
    """Return the largest difference of log-probabilities from the original's.

    They are taken as evaluations take them, from the state that the final norm reads. A constant
    added to all logits changes no probability.
    """
    states = model(tokens, stop_at_layer=model.cfg.n_layers)
    difference = unembed(model, states).log_softmax(-1) - wanted.log_softmax(-1)
    return float(difference.abs().max())
