"""A model from one of its sites on: what follows a replaced activation, for many replacements.

The clean stream before the site is computed once and shared. Values carry an axis of problems in
front, (problem, prompt, pos, width); a clean value has one problem and is broadcast. Models of the
plain GPT-Neo shape go through fused operations, all others through TransformerLens' hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformer_lens import HookedTransformer
from transformer_lens.components import LayerNorm, TransformerBlock

from sat_interp.model import fast
from sat_interp.model.attention import causal_attention
from sat_interp.model.block import attention_scale, attention_window, normalise

RESIDUAL_IN, Z, ATTENTION_OUT, MIDDLE, POST, MLP_OUT, RESIDUAL_OUT = SITES = fast.SITES
"""Where an activation can be replaced in a block, in the order of computation. The heads of z lie
side by side."""

Values = Float[Tensor, "problem prompt pos width"]
Ends = Float[Tensor, "problem prompt end d_model"]
State = dict[str, Tensor]
"""Clean values of a block's sites, (1, prompt, pos, width) each."""
Edit = Callable[[Tensor, bool], Tensor]
"""Changes the value at a site; the flag says that only the last position is there."""
Edits = Mapping[tuple[int, str], Edit]


@runtime_checkable
class Passes(Protocol):
    """A model in pieces: its clean stream, one block's sites, and the rest after a site."""

    def streams(self, tokens: Int[Tensor, "prompt pos"]) -> list[Tensor]:
        """Return the residual stream before every block and after the last one."""
        ...

    def state(self, layer: int, stream: Float[Tensor, "prompt pos d_model"]) -> State:
        """Return the clean values of all sites of a block."""
        ...

    def tail(
        self, start: tuple[int, str], state: State, value: Values, edits: Edits, last: bool
    ) -> Ends:
        """Return the stream after the last block, the value at the start site being given.

        Args:
            start: layer and site.
            state: of the start's block.
            edits: changes at later sites.
            last: compute the last position only, where the rest is not needed.
        """
        ...


def passes(model: HookedTransformer) -> Passes:
    """Return the fused pass of a model where its shape is covered, else the hooked one."""
    return FusedPasses(model) if is_fused(model) else HookedPasses(model)


def is_fused(model: HookedTransformer) -> bool:
    """Whether the fused operations compute this model: GPT-2's and GPT-Neo's shapes."""
    cfg = model.cfg
    wanted: dict[str, tuple[Any, ...]] = {
        "normalization_type": ("LN",),
        "positional_embedding_type": ("standard",),
        "attention_dir": ("causal",),
        "act_fn": tuple(fast.ACTIVATIONS),
        "attn_only": (False,),
        "parallel_attn_mlp": (False,),
        "gated_mlp": (False,),
        "n_key_value_heads": (None,),
        "num_experts": (None,),
        "post_embedding_ln": (False, None),
        "use_normalization_before_and_after": (False, None),
        "use_qk_norm": (False, None),
        "use_attention_sinks": (False, None),
        "use_logn_attn": (False, None),
        "clip_qkv": (None,),
        "load_in_4bit": (False, None),
        "scale_attn_by_inverse_layer_idx": (False, None),
    }
    if any(getattr(cfg, name, None) not in values for name, values in wanted.items()):
        return False
    cap = getattr(cfg, "attn_scores_soft_cap", None)
    norms = [model.ln_final, *(norm for block in model.blocks for norm in (block.ln1, block.ln2))]
    return (cap is None or cap <= 0) and all(isinstance(norm, LayerNorm) for norm in norms)


def unembed(model: HookedTransformer, stream: Tensor) -> Float[Tensor, "*rows d_vocab"]:
    """Return the logits of a stream after the last block: final norm, unembedding, soft cap."""
    norm = getattr(model, "ln_final", None)
    if norm is not None:
        stream = normalise(norm, stream) if isinstance(norm, LayerNorm) else norm(stream)
    logits = F.linear(stream, model.W_U.T, model.unembed.b_U)
    cap = getattr(model.cfg, "output_logits_soft_cap", None)
    if cap is not None and cap > 0:
        logits = cap * torch.tanh(logits / cap)
    return logits


class FusedPasses:
    """The pieces by fused operations; no hook fires."""

    def __init__(self, model: HookedTransformer) -> None:
        self.model = model

    def streams(self, tokens: Int[Tensor, "prompt pos"]) -> list[Tensor]:
        """See ``Passes``."""
        found = [fast.embed(self.model, tokens)]
        for layer in range(self.model.cfg.n_layers):
            found.append(self.state(layer, found[-1])[RESIDUAL_OUT][0])
        return found

    def state(self, layer: int, stream: Float[Tensor, "prompt pos d_model"]) -> State:
        """See ``Passes``."""
        state = {RESIDUAL_IN: stream[None]}
        for site in SITES[1:]:
            state[site] = _step(self.model.blocks[layer], site, state)
        return state

    def tail(
        self, start: tuple[int, str], state: State, value: Values, edits: Edits, last: bool
    ) -> Ends:
        """See ``Passes``."""
        first, begin = start
        now = {site: state[site] for site in SITES[: SITES.index(begin)]} | {begin: value}
        stream, narrowed = value, False
        for layer in range(first, self.model.cfg.n_layers):
            for site in SITES:
                if site not in now:
                    made = (
                        stream
                        if site == RESIDUAL_IN
                        else _step(self.model.blocks[layer], site, now)
                    )
                    edit = edits.get((layer, site))
                    now[site] = made if edit is None else edit(made, narrowed)
                if site == Z and last and layer == self.model.cfg.n_layers - 1:
                    now, narrowed = _last_position(now), True
            stream, now = now[RESIDUAL_OUT], {}
        return stream[:, :, -1:] if last else stream


def _last_position(state: State) -> State:
    return {site: value[:, :, -1:] for site, value in state.items()}


def _step(block: TransformerBlock, site: str, state: State) -> Tensor:
    """The value at a site, from those before it; z by problem and within its window."""
    if site != Z:
        return fast.STEPS[site](block, state)
    stream = state[RESIDUAL_IN]
    projected = fast.project(block, stream.flatten(0, 1))
    z = causal_attention(projected, attention_scale(block), attention_window(block))
    attended: Tensor = z.unflatten(0, stream.shape[:2])
    return attended


class HookedPasses:
    """The pieces by TransformerLens' own forward pass and hooks, for any architecture."""

    def __init__(self, model: HookedTransformer) -> None:
        self.model = model

    def streams(self, tokens: Int[Tensor, "prompt pos"]) -> list[Tensor]:
        """See ``Passes``."""
        names = [f"blocks.{layer}.{RESIDUAL_IN}" for layer in range(self.model.cfg.n_layers)]
        names.append(f"blocks.{self.model.cfg.n_layers - 1}.{RESIDUAL_OUT}")
        with torch.no_grad():
            _, cache = self.model.run_with_cache(tokens, names_filter=names, return_type=None)
        return [cache[name] for name in names]

    def state(self, layer: int, stream: Float[Tensor, "prompt pos d_model"]) -> State:
        """See ``Passes``."""
        names = {site: f"blocks.{layer}.{site}" for site in SITES}
        known = {site: name for site, name in names.items() if name in self.model.hook_dict}
        with torch.no_grad():
            _, cache = self.model.run_with_cache(
                stream,
                names_filter=list(known.values()),
                start_at_layer=layer,
                stop_at_layer=layer + 1,
            )
        found = cache.cache_dict  # a model without MLPs has their hooks, and they do not fire
        return {site: found[name].flatten(2)[None] for site, name in known.items() if name in found}

    def tail(
        self, start: tuple[int, str], state: State, value: Values, edits: Edits, last: bool
    ) -> Ends:
        """See ``Passes``."""
        layer, rows = start[0], value.shape[:2]

        def hook_of(edit: Edit) -> Callable[..., Tensor]:
            def hook(activation: Tensor, hook: object) -> Tensor:
                flat = activation.flatten(2)
                edited = edit(flat.unflatten(0, rows), False).flatten(0, 1)
                return edited.view(activation.shape)

            return hook

        every = {start: lambda _, narrowed: value, **edits}
        hooks: list[Any] = [
            (f"blocks.{at}.{site}", hook_of(edit)) for (at, site), edit in every.items()
        ]
        stream = state[RESIDUAL_IN].expand(*rows, -1, -1).flatten(0, 1)
        final = self.model.run_with_hooks(
            stream, start_at_layer=layer, stop_at_layer=self.model.cfg.n_layers, fwd_hooks=hooks
        )
        assert isinstance(final, torch.Tensor)
        states: Tensor = final.unflatten(0, rows)
        return states[:, :, -1:] if last else states
