"""What is ablated in a model, and what that costs: the one home of ablations.

A *component* is one or several activations of a model (a head, an MLP, a neuron, ...). Ablating it
replaces its activation A(x) at all positions from the first ablated one on, and its cost is

    Delta = mean over prompts of KL(p_x || q_x), in nats,

p_x being the model's prediction for the prompt x and q_x that of the ablated model (Li and Janson
2024, Optimal ablation for interpretability, arXiv 2409.09951, equation 2). Predictions are those at
the last position, or the mean of the KL over all positions from the first ablated one on.

The first position is not ablated where prompts begin with BOS: attention rests on it, and replacing
it would inflate every Delta. What replaces an activation is in ``ablation_values``, how constants
are fitted in ``ablation_fit``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.core.ablation_pass import (
    ATTENTION_OUT,
    MLP_OUT,
    POST,
    RESIDUAL_IN,
    SITES,
    Z,
)
from sat_interp._util.errors import UserError, suggest

Kind = Literal["embedding", "head", "attention", "mlp", "neuron", "z", "feature", "heads"]
Place = tuple[int, str]
"""A layer and a site of it."""


@dataclass(frozen=True)
class Feature:
    """A feature of a sparse autoencoder: x becomes x + (a - f(x)) d, reconstruction error kept.

    Attributes:
        encode: from the site's value (..., width) to all features (..., d_sae).
        decoder: d of all features.
    """

    encode: Callable[[Tensor], Tensor]
    decoder: Float[Tensor, "d_sae width"]


@dataclass(frozen=True)
class Component:
    """Something that can be ablated: coordinates of one site, or features there.

    Attributes:
        name: ``embed``, ``a2.h3`` (head), ``attn2`` (attention layer, its bias b_O included),
            ``m2`` (MLP), ``m2.n17`` (neuron), ``a2.z5`` (coordinate of z), ``a2.heads`` (all
            heads of a layer, each with a constant) or ``f17`` (feature).
        index: which coordinates of the site (or features) it consists of.
    """

    name: str
    kind: Kind
    layer: int
    site: str
    index: tuple[int, ...]
    feature: Feature | None = None

    @property
    def place(self) -> Place:
        """Layer and hook point of the component."""
        return self.layer, self.site

    @property
    def size(self) -> int:
        """Numbers of one constant."""
        return len(self.index)


ComponentSet = tuple[Component, ...]
"""Components that are ablated together, a constant each; most sets have one member."""


def name_of(members: ComponentSet) -> str:
    """Return the name of a set: its members' with + between them."""
    return "+".join(member.name for member in members)


KINDS: dict[str, Kind] = {
    "embedding": "embedding",
    "heads": "head",
    "attention": "attention",
    "mlps": "mlp",
    "neurons": "neuron",
    "coordinates": "z",
    "head-sets": "heads",
    "features": "feature",
}
"""What ``find_components`` takes for all components of a kind."""

_NAME = re.compile(r"embed|attn(\d{1,6})|[am](\d{1,6})(?:\.(heads|[hnz])(\d{1,9})?)?|f(\d{1,9})")


def find_components(
    model: HookedTransformer, names: Sequence[str], features: tuple[Place, Feature] | None = None
) -> list[ComponentSet]:
    """Return the components that names stand for, each once, in order of computation.

    Args:
        names: kinds (``KINDS``), single components, and sets such as ``a0.h1+m2``.
        features: place and weights of an autoencoder, for names such as ``f17``.

    Raises:
        UserError: an unknown name, one the model does not have, or a set that names a unit twice.
    """
    found: dict[str, ComponentSet] = {}
    for name in names:
        for members in _named(model, name.strip(), features):
            found.setdefault(name_of(members), members)
    if not found:
        raise UserError("name at least one component, such as heads, m2 or a2.h3")
    return sorted(found.values(), key=_begin)


def _begin(members: ComponentSet) -> tuple[int, int, int, tuple[int, ...]]:
    first = min(members, key=lambda one: (one.layer, SITES.index(one.site)))
    return first.layer, SITES.index(first.site), len(members), first.index


def _named(
    model: HookedTransformer, name: str, features: tuple[Place, Feature] | None
) -> Iterator[ComponentSet]:
    if name in KINDS:
        yield from ((one,) for one in _all_of(model, name, features))
        return
    members = tuple(_component(model, part.strip(), features) for part in name.split("+"))
    members = tuple(sorted(members, key=lambda one: (one.layer, SITES.index(one.site), one.index)))
    covered = [(one.place, one.feature is None, i) for one in members for i in one.index]
    if len(set(covered)) < len(covered):
        raise UserError(f"{name} names a unit twice")
    yield members


def _all_of(
    model: HookedTransformer, kind: str, features: tuple[Place, Feature] | None
) -> Iterator[Component]:
    cfg = model.cfg
    if kind == "embedding":
        yield _component(model, "embed", features)
    if kind == "features":
        if features is None:
            raise UserError("features are those of an autoencoder: name its directory with --sae")
        for number in range(len(features[1].decoder)):
            yield _component(model, f"f{number}", features)
    forms = {
        "heads": ("a{}.h{}", cfg.n_heads),
        "attention": ("attn{}", 1),
        "head-sets": ("a{}.heads", 1),
        "coordinates": ("a{}.z{}", cfg.n_heads * cfg.d_head),
    }
    if not cfg.attn_only:
        forms |= {"mlps": ("m{}", 1), "neurons": ("m{}.n{}", cfg.d_mlp or 0)}
    form, count = forms.get(kind, ("", 0))
    for layer in range(cfg.n_layers):
        for number in range(count):
            yield _component(model, form.format(layer, number), features)


def _component(
    model: HookedTransformer, name: str, features: tuple[Place, Feature] | None
) -> Component:
    """The component of a name.

    Raises:
        UserError: no component has this name, or the model does not have it.
    """
    found, cfg = _NAME.fullmatch(name), model.cfg
    if name == "embed":
        return Component(name, "embedding", 0, RESIDUAL_IN, tuple(range(cfg.d_model)))
    if found is None:
        known = [*KINDS, "embed", "attn0", "m0", "m0.n0", "a0.h0", "a0.z0", "a0.heads"]
        raise UserError(suggest("component", name, known))
    if found[5] is not None:
        return _feature(name, int(found[5]), features)
    layer, part, number = int(found[1] or found[2]), found[3], found[4]
    if layer >= cfg.n_layers:
        raise UserError(f"no component {name}: the model has layers 0 to {cfg.n_layers - 1}")
    if found[1] is not None:
        return Component(name, "attention", layer, ATTENTION_OUT, tuple(range(cfg.d_model)))
    _check_part(model, name, part, number)
    at = int(number or 0)
    kinds: dict[str | None, tuple[Kind, str, range]] = {
        "h": ("head", Z, range(at * cfg.d_head, (at + 1) * cfg.d_head)),
        "heads": ("heads", Z, range(cfg.n_heads * cfg.d_head)),
        "z": ("z", Z, range(at, at + 1)),
        "n": ("neuron", POST, range(at, at + 1)),
        None: ("mlp", MLP_OUT, range(cfg.d_model)),
    }
    kind, site, index = kinds[part]
    return Component(name, kind, layer, site, tuple(index))


def _check_part(model: HookedTransformer, name: str, part: str | None, number: str | None) -> None:
    """Refuse a part of a layer that the model does not have.

    Raises:
        UserError: attention has no such part, the model has no MLPs, or fewer heads or neurons.
    """
    cfg, prefix = model.cfg, name[0]
    sizes = {"h": cfg.n_heads, "z": cfg.n_heads * cfg.d_head, "n": cfg.d_mlp or 0}
    parts = {"a": ("h", "z", "heads"), "m": ("n", None)}[prefix]
    if part not in parts or (part in sizes) != (number is not None):
        raise UserError(f"no component {name}: heads are named a0.h1, neurons m0.n1")
    if prefix == "m" and cfg.attn_only:
        raise UserError(f"no component {name}: the model has no MLPs")
    if part == "n" and not has_neurons(model):
        raise UserError(f"no component {name}: the model's MLPs are experts; ablate m0, m1, ...")
    if part in sizes and number is not None and int(number) >= sizes[part]:
        last = name.removesuffix(number) + str(sizes[part] - 1)
        raise UserError(f"no component {name}: the last is {last}")


def has_neurons(model: HookedTransformer) -> bool:
    """Whether a layer has one set of neurons: no experts, and MLPs at all."""
    return not model.cfg.attn_only and not model.cfg.num_experts


def _feature(name: str, number: int, features: tuple[Place, Feature] | None) -> Component:
    if features is None:
        raise UserError(f"no component {name}: features need an autoencoder (--sae)")
    (layer, site), feature = features
    if number >= len(feature.decoder):
        raise UserError(f"no component {name}: the last is f{len(feature.decoder) - 1}")
    return Component(name, "feature", layer, site, (number,), feature)


# Groups: problems that are run in one batch ------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One place of a group: which coordinates each problem replaces there.

    Attributes:
        mask: where given, only positions and coordinates that are True are replaced, for each
            bucket of prompts.
    """

    place: Place
    index: Int[Tensor, "problem size"]
    feature: Feature | None = None
    mask: tuple[Bool[Tensor, "_ _ _"], ...] | None = None

    def read(
        self, value: Float[Tensor, "prompt pos width"]
    ) -> Float[Tensor, "problem prompt pos size"]:
        """Return the activations that are replaced, from the value at the site."""
        if self.feature is not None:
            value = self.feature.encode(value)
        return value[..., self.index].permute(2, 0, 1, 3)

    def edit(
        self,
        value: Tensor,
        new: Tensor,
        ablated: Bool[Tensor, " pos"],
        mask: Bool[Tensor, "prompt pos width"] | None,
    ) -> Float[Tensor, "problem prompt pos width"]:
        """Return the value at the site with ``new`` (problem, prompt, pos, size) in its place."""
        index = self.index.to(value.device)
        if self.feature is not None:
            own = self.feature.encode(value)
            own = own.expand(len(index), *own.shape[1:]) if len(own) == 1 else own
            own = own.gather(-1, index[:, None, None].expand(*own.shape[:-1], -1))
            change = (new - own) @ self.feature.decoder[index][:, None]
            return torch.where(ablated[:, None], value + change, value)
        width = value.shape[-1]
        where = ablated[:, None]
        if mask is not None:
            where = where & mask
        if index.shape[1] == width:
            return torch.where(where, new, value)
        own = torch.zeros(len(index), width, dtype=torch.bool, device=value.device)
        own = own.scatter(1, index, True)[:, None, None]
        full = new.new_zeros(*new.shape[:-1], width)
        full = full.scatter(-1, index[:, None, None].expand(new.shape), new)
        return torch.where(where & own, full, value)


@dataclass(frozen=True)
class Group:
    """Problems that begin at one place and are run in one batch, each with its own constants."""

    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return len(self.parts[0].index)

    @property
    def start(self) -> Place:
        """The first place at which anything is replaced."""
        return self.parts[0].place

    def take(self, problems: Int[Tensor, " taken"]) -> Group:
        """Return some of the problems; one may come more than once."""
        return Group(tuple(replace(part, index=part.index[problems]) for part in self.parts))


def group(members: Sequence[ComponentSet]) -> Group:
    """Return the group of sets that have the same places and sizes.

    Components of one place are one part: their coordinates, one after another.

    Raises:
        ValueError: they do not.
    """
    first = members[0]
    if any(signature(one) != signature(first) for one in members):
        raise ValueError("the members of a group have different places")
    together: dict[tuple[Place, int], list[int]] = defaultdict(list)
    for number, component in enumerate(first):
        together[component.place, id(component.feature)].append(number)
    parts = []
    for numbers in together.values():
        index = torch.tensor([[i for n in numbers for i in one[n].index] for one in members])
        parts.append(Part(first[numbers[0]].place, index, first[numbers[0]].feature))
    return Group(tuple(parts))


def signature(members: ComponentSet) -> tuple[tuple[Place, int, int], ...]:
    """Return what members of one group share: places and sizes."""
    return tuple((one.place, one.size, id(one.feature)) for one in members)
