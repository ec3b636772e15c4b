"""Units of a model, one number for each token: neurons, coordinates of z, SAE features."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.core.autoencoder import content_hash, hook_point, open_sae
from evaluations.core.hook_points import NEURONS, Stream
from sat_interp._util.errors import UserError, suggest
from sat_interp.model.fast import fast_activations, layer_of
from sat_interp.model.positions import position_hooks
from sat_interp.model.transformer import SelfAblatingTransformer

Values = Float[Tensor, "batch pos units"]


@dataclass(frozen=True)
class Units:
    """The units of some layers; unit 117 of layer 3 is called ``3.117``.

    Attributes:
        hooks: the hook point of each layer, in order of the layers.
        layers: their blocks.
        sizes: number of units of each.
        stream: of a model with gates, which of its two streams is read.
        sae: hash of the autoencoder whose features the units are.
    """

    hooks: tuple[str, ...]
    layers: tuple[int, ...]
    sizes: tuple[int, ...]
    stream: Stream = "clean"
    sae: str | None = None
    _encode: Callable[[Tensor], Tensor] | None = None

    def describe(self) -> dict[str, Any]:
        """Return what determines the numbers, for a record and for the name of a cache."""
        facts: dict[str, Any] = {"hooks": self.hooks, "sizes": self.sizes, "stream": self.stream}
        return {**facts, "sae": self.sae} if self.sae else facts

    def read(
        self,
        model: HookedTransformer,
        tokens: Int[Tensor, "batch pos"],
        layers: Sequence[int] | None = None,
        positions: Int[Tensor, "batch pos"] | None = None,
    ) -> dict[int, Values]:
        """Return the units' activations by layer; no later layer of the clean stream is run.

        Args:
            model: to read.
            tokens: its input.
            layers: some of the layers; all of them by default.
            positions: of the tokens, where they are not 0, 1, 2, ... (see
                ``sat_interp.model.positions``).
        """
        chosen = self.layers if layers is None else tuple(layers)
        hooks = {layer: self.hooks[self.layers.index(layer)] for layer in chosen}
        if self.stream == "ablated":
            cache = _ablated(model, tokens, list(hooks.values()), positions)
        else:
            cache = fast_activations(model, tokens, list(hooks.values()), positions)
        values = {layer: cache[hook].flatten(2) for layer, hook in hooks.items()}
        if self._encode is not None:
            values = {layer: self._encode(value) for layer, value in values.items()}
        return values

    def parse(self, name: str) -> tuple[int, int]:
        """Return layer and index of a unit's name, ``3.117``.

        Raises:
            UserError: no such unit.
        """
        match = re.fullmatch(r"([0-9]{1,9})\.([0-9]{1,9})", name.strip())
        if match is None:
            raise UserError(f"a neuron is named LAYER.NUMBER, such as 3.117, not {name!r}")
        layer, index = int(match[1]), int(match[2])
        if layer not in self.layers:
            known = ", ".join(map(str, self.layers))
            raise UserError(f"no neuron {name}: the layers read are {known}")
        size = self.sizes[self.layers.index(layer)]
        if index >= size:
            raise UserError(f"no neuron {name}: layer {layer} has 0 to {size - 1}")
        return layer, index


def find_units(
    model: HookedTransformer,
    hook: str = NEURONS,
    stream: Stream = "clean",
    sae: str | Path | None = None,
) -> Units:
    """Return the units at a hook point.

    Args:
        model: whose units they are.
        hook: a hook point, several with commas, or one with ``*`` for every block
            (``blocks.*.attn.hook_z``); at most one for each block.
        stream: ``ablated`` reads the point of the same name in the ablated stream; the MLP's
            post-activations are read after the mask.
        sae: a directory of a SAELens autoencoder, whose features are the units; its own hook point
            replaces ``hook``.

    Raises:
        UserError: no such hook point, no MLP, two of one block, a model without the ablated
            stream, no autoencoder, or one of another width.
    """
    encode, label = None, None
    if sae is not None:
        opened = open_sae(Path(sae), str(model.W_E.device))
        opened.turn_off_forward_pass_hook_z_reshaping()  # heads are put side by side here
        encode, label = opened.encode, content_hash(Path(sae))
        hook = hook_point(Path(sae))
    if model.cfg.attn_only and ".mlp." in hook:
        raise UserError(
            f"the model has attention only, and no MLP neurons ({hook}): name another hook point, "
            "such as blocks.*.attn.hook_z"
        )
    hooks = _expand(model, hook)
    layers = [layer_of(model, name) for name in hooks]
    if len(set(layers)) < len(layers):
        raise UserError(f"{hook} names two hook points of one block: a neuron is LAYER.NUMBER")
    if stream == "ablated":
        hooks = [_in_ablated(model, name) for name in hooks]
    order = sorted(range(len(hooks)), key=layers.__getitem__)
    hooks, layers = [hooks[i] for i in order], [layers[i] for i in order]
    bare = Units(tuple(hooks), tuple(layers), (0,) * len(hooks), stream)
    one_token = torch.zeros((1, 1), dtype=torch.long, device=model.W_E.device)
    with torch.inference_mode():
        widths = [int(value.shape[-1]) for value in bare.read(model, one_token).values()]
    if encode is None:
        return Units(tuple(hooks), tuple(layers), tuple(widths), stream)
    if any(width != opened.cfg.d_in for width in widths):
        raise UserError(f"the autoencoder reads {opened.cfg.d_in} numbers, {hook} has {widths[0]}")
    sizes = (int(opened.cfg.d_sae),) * len(hooks)
    return Units(tuple(hooks), tuple(layers), sizes, stream, label, encode)


def _expand(model: HookedTransformer, hook: str) -> list[str]:
    names = [part.strip() for part in hook.split(",") if part.strip()]
    hooks: list[str] = []
    for name in names:
        every = [name.replace("*", str(layer), 1) for layer in range(model.cfg.n_layers)]
        hooks += every if "*" in name else [name]
    if not hooks:
        raise UserError(f"name a hook point, such as {NEURONS}")
    return hooks


def _in_ablated(model: HookedTransformer, hook: str) -> str:
    if not isinstance(model, SelfAblatingTransformer) or model.ablation.variant == "none":
        raise UserError("the model has no ablated stream")
    inside = re.sub(r"^(blocks\.\d+)\.", r"\1.ablated.", hook)
    name = inside + "_masked" if inside.endswith("mlp.hook_post") else inside
    known = [point for point in model.hook_dict if ".ablated." in point]
    if name not in known:
        raise UserError(suggest("hook point", name, known))
    return name


def _ablated(
    model: HookedTransformer, tokens: Tensor, hooks: list[str], positions: Tensor | None
) -> dict[str, Float[Tensor, "..."]]:
    assert isinstance(model, SelfAblatingTransformer)
    moved = [] if positions is None else position_hooks(model, positions, model.cfg.n_layers)
    with torch.random.fork_rng(), model.hooks(fwd_hooks=moved):
        # random masks are drawn anew in every pass: seeded by the tokens, so that a pass repeats
        torch.manual_seed(int((tokens * torch.arange(1, tokens.shape[1] + 1).to(tokens)).sum()))
        _, cache = model.run_with_cache_dual(tokens, names_filter=hooks)
    return {hook: cache[hook] for hook in hooks}
