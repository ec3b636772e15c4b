"""Decoders that TransformerLens reads by its TransformerBridge, where HookedTransformer cannot.

The bridge runs transformers' own modules and lets their activations be read and replaced. Here it
stands where evaluations expect a HookedTransformer: hook points by TransformerLens' names, logits,
the state before the unembedding, and the weights by transformers' names.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.factories.architecture_adapter_factory import (
    SUPPORTED_ARCHITECTURES,
    ArchitectureAdapterFactory,
)
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule
from transformer_lens.model_bridge.sources._bridge_builder import (
    build_bridge_config_from_hf,
    build_bridge_from_module,
)
from transformers import AutoModelForCausalLM, PreTrainedModel

from evaluations.core.families import covered_activation
from evaluations.core.weights import EMBEDDING, UNEMBEDDING
from sat_interp._util.errors import UserError
from sat_interp.model.positions import POSITIONS

_POINTS = re.compile(
    r"hook_embed|ln_final\.hook_(scale|normalized)|blocks\.\d+\.("
    r"hook_(resid_(pre|mid|post)|attn_out|mlp_out)|ln[12]\.hook_(scale|normalized)|"
    r"attn\.hook_(q|k|v|z|attn_scores|pattern)|mlp\.hook_(pre|pre_linear|post))"
)
"""Hook points of a HookedTransformer that fire without an option."""


class _StoppedError(Exception):
    """Ends a forward pass at a module, with what the module would have read."""

    def __init__(self, state: Tensor) -> None:
        super().__init__("the forward pass ends here")
        self.state = state


def is_supported(architecture: str) -> bool:
    """Return whether the bridge reads a class of transformers, and the class is a decoder's."""
    is_decoder = architecture.endswith(("ForCausalLM", "LMHeadModel"))
    return is_decoder and architecture in SUPPORTED_ARCHITECTURES


def bridged_fields(config: Any) -> dict[str, Any]:
    """Return the fields of TransformerLens' configuration as the bridge derives them.

    Args:
        config: transformers' configuration, its architecture named.

    Raises:
        UserError: an activation that TransformerLens has no name for.
    """
    architecture, kind = config.architectures[0], config.model_type
    mapped = build_bridge_config_from_hf(config, architecture, kind, torch.float32)
    derived = ArchitectureAdapterFactory.select_architecture_adapter(mapped).cfg
    known = HookedTransformerConfig.__dataclass_fields__
    fields = {name: value for name, value in vars(derived).items() if name in known}
    if (activation := covered_activation(config)) is not None:
        fields["act_fn"] = activation
    return {**fields, "original_architecture": architecture, "device": "cpu"}


def outline(config: Any, cfg: HookedTransformerConfig) -> BridgedTransformer:
    """Return a model on the meta device: its shape and hook points, no weights.

    Args:
        config: transformers' configuration.
        cfg: TransformerLens' configuration.
    """
    make: Any = AutoModelForCausalLM.from_config
    try:
        with torch.device("meta"):
            return BridgedTransformer(make(copy.deepcopy(config)), cfg)
    except NotImplementedError:  # the bridge splits fused weights, which needs their numbers
        with torch.random.fork_rng(devices=[]):
            model = BridgedTransformer(make(copy.deepcopy(config)), cfg)
        return model.to("meta")


class BridgedTransformer(HookedTransformer):
    """A decoder of transformers behind TransformerLens' bridge, its weights unprocessed.

    Its blocks are run as a whole: a pass begins with tokens, and no part of a block can be called
    by itself.

    Attributes:
        bridge: TransformerLens' bridge, in compatibility mode.
        config: transformers' configuration.
        begins_with_tokens: a pass cannot begin at a later block.
    """

    begins_with_tokens = True

    def __init__(self, original: PreTrainedModel, cfg: HookedTransformerConfig) -> None:
        """Put a model behind the bridge; its modules are wrapped where they are."""
        HookedRootModule.__init__(self)
        self.cfg, self.config, self.tokenizer = cfg, original.config, None
        self._scale = _scale_of_logits(original.config)
        names = _names(original)
        self.bridge: Any = build_bridge_from_module(
            original, str(cfg.original_architecture), hf_config=original.config
        )
        self.bridge.enable_compatibility_mode(no_processing=True, disable_warnings=True)
        wrapped = self._wrapped()
        self._paths = {
            names[id(value)]: path for path, value in wrapped.items() if id(value) in names
        }
        self.hook_positions = HookPoint()
        self.hook_positions.name = POSITIONS
        self.hook_dict = {**_hook_points(self.bridge), POSITIONS: self.hook_positions}
        self.mod_dict = dict(self.hook_dict)

    def forward(  # type: ignore[override]
        self,
        input: Int[Tensor, "batch pos"],
        return_type: str | None = "logits",
        *,
        stop_at_layer: int | None = None,
    ) -> Tensor | None:
        """Run the model.

        Args:
            input: token ids.
            return_type: ``logits``, or None for nothing.
            stop_at_layer: return the residual stream before this block; with the number of blocks,
                what the final norm reads.
        """
        placed = self._placed(input)
        if stop_at_layer is not None:
            return self._state(input, placed, stop_at_layer)
        logits: Tensor = self.bridge(input, **placed)
        return None if return_type is None else logits

    def run_with_cache(
        self, *model_args: Any, names_filter: Any = None, **settings: Any
    ) -> tuple[Any, Any]:
        """See ``HookedTransformer``.

        Raises:
            UserError: a hook point that was asked for by name does not fire in this class.
        """
        found, cache = super().run_with_cache(*model_args, names_filter=names_filter, **settings)
        wanted = names_filter if isinstance(names_filter, list) else []
        if silent := [name for name in wanted if name not in cache]:
            raise UserError(
                f"{silent[0]} does not fire in {self.cfg.original_architecture} behind "
                "TransformerLens' bridge: choose another hook point"
            )
        return found, cache

    def _placed(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return the positions of tokens as transformers takes them, where a hook has moved them.

        Raises:
            UserError: attention goes by the order of tokens, and not by positions alone.
        """
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        positions = self.hook_positions(places)
        if positions is places:
            return {}
        takes = "position_ids" in inspect.signature(self.bridge.original_model.forward).parameters
        if not takes or _has_windows(self.config) or self.cfg.positional_embedding_type == "alibi":
            raise UserError(
                f"windows cannot be read at their own positions in {self.cfg.original_architecture}"
                ", whose attention goes by the order of tokens"
            )
        # without a mask transformers takes a gap between positions for the end of a text
        return {"position_ids": positions, "attention_mask": torch.ones_like(tokens)}

    def _state(
        self, tokens: Tensor, placed: dict[str, Tensor], layer: int
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return what a block reads, or the final norm; it and what follows are not run."""
        last = layer == len(self.blocks)
        module = self.ln_final if last else self.blocks[layer]

        def stop(module: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            del module
            raise _StoppedError(positional[0] if positional else named["hidden_states"])

        handle = module.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.bridge(tokens, **placed)
        except _StoppedError as stopped:
            return stopped.state
        finally:
            handle.remove()
        raise RuntimeError(f"the model ran without its block {layer}")

    # HookedTransformer has its parts as modules; a property of the class comes before those.

    @property
    def embed(self) -> Any:  # type: ignore[override]
        """The embedding of tokens."""
        return self.bridge.embed

    @property
    def blocks(self) -> Any:  # type: ignore[override]
        """The blocks."""
        return self.bridge.blocks

    @property
    def ln_final(self) -> Any:  # type: ignore[override]
        """The final norm."""
        return self.bridge.ln_final

    @property
    def unembed(self) -> Any:  # type: ignore[override]
        """The unembedding, without a scale that the model multiplies logits by."""
        return self.bridge.unembed

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:  # noqa: N802
        """The unembedding's weights, times the scale of the logits (Cohere, Granite)."""
        weights: Tensor = self.bridge.W_U
        return weights if self._scale == 1 else weights * self._scale

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the model's own parameters, a tied one once, by transformers' names.

        Two have those of TransformerLens: the embedding ``embed.W_E`` and, where it has numbers of
        its own, the unembedding ``unembed.W_U``, which is transposed here.
        """
        del recurse, remove_duplicate
        wrapped = self._wrapped()
        yield from ((prefix + name, wrapped[path]) for name, path in self._paths.items())

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Yield all parameters, those that the bridge has made of fused ones included."""
        del recurse
        yield from self._wrapped().values()

    def _wrapped(self) -> dict[str, nn.Parameter]:
        """All parameters by their path in the bridge, each once."""
        return dict(nn.Module.named_parameters(self.bridge))

    def to(self, device_or_dtype: Any, print_details: bool = True) -> BridgedTransformer:  # type: ignore[override]
        """Move or cast the model, and say so in its configuration."""
        del print_details
        self.bridge.to(device_or_dtype, print_details=False)
        self.cfg.device, self.cfg.dtype = str(self.W_E.device), self.W_E.dtype
        return self

    def drawn(self, seed: int) -> PreTrainedModel:
        """Return a model of transformers' class and configuration as it is initialised."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            original = AutoModelForCausalLM.from_config(copy.deepcopy(self.config))
        drawn: PreTrainedModel = original.float().eval()
        return drawn

    def unwrapped(self) -> PreTrainedModel:
        """Return a model of transformers with the same weights, on the CPU in float32."""
        original, own = self.drawn(0), dict(self.named_parameters())
        names = _names(original)
        with torch.no_grad():
            for value in original.parameters():
                value.copy_(own[names[id(value)]])
        return original

    def with_weights_of(self, original: PreTrainedModel) -> BridgedTransformer:
        """Return another model of the same configuration behind the bridge."""
        return BridgedTransformer(original, copy.deepcopy(self.cfg))


def _names(original: PreTrainedModel) -> dict[int, str]:
    """Names of a model's parameters by their identity."""
    names = {id(value): name for name, value in original.named_parameters()}
    unembedding: Any = original.get_output_embeddings()
    embedding: Any = original.get_input_embeddings()
    names[id(unembedding.weight)] = UNEMBEDDING
    names[id(embedding.weight)] = EMBEDDING  # of a tied model the same
    return names


def _scale_of_logits(config: Any) -> float:
    """What a model multiplies its logits by: Cohere's factor, or one over Granite's divisor."""
    factor, divisor = (getattr(config, name, None) for name in ("logit_scale", "logits_scaling"))
    return float(1 if factor is None else factor) / float(divisor or 1)


def _has_windows(config: Any) -> bool:
    """Whether layers of a model attend to the last tokens only."""
    kinds = getattr(config, "layer_types", None) or []
    return bool(getattr(config, "sliding_window", None)) or any(
        "full" not in kind for kind in kinds
    )


def _hook_points(bridge: Any) -> dict[str, HookPoint]:
    """Hook points that a HookedTransformer has, under its names."""
    points = {name: point for name, point in bridge.hook_dict.items() if _POINTS.fullmatch(name)}
    for name, point in points.items():
        point.name = name
    return points
