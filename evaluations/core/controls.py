"""Control models: the score of a model of the same shape that has learned nothing.

Interpretability scores can be high on random weights (Heap, Lawson, Farnik and Aitchison, Sparse
Autoencoders Can Interpret Randomly Initialized Transformers, arXiv 2501.17727), so a score of a
trained model is read beside that of a control of the same shape, text and tokenizer:

- ``untrained``: freshly initialised as the model's configuration says.
- ``shuffled``: the trained weights, the entries of each weight matrix permuted.

A control is a model of its own, with its own weights hash. As a MODEL argument, and in tables, it
is called ``runs/mine [untrained]``, with another seed than 0 ``runs/mine [untrained:1]``.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.core.bridged import BridgedTransformer
from evaluations.core.models import LoadedModel, prepared
from sat_interp._util.errors import UserError, suggest
from sat_interp._util.files import expanded
from sat_interp.model.transformer import SelfAblatingTransformer
from sat_interp.training.build import draw_embeddings

Kind = Literal["untrained", "shuffled"]
KINDS: tuple[Kind, ...] = get_args(Kind)
NONE = "none"

_MARKED = re.compile(rf"(?s)(.+) \[({'|'.join(KINDS)})(?::(\d+))?\]")


@dataclass(frozen=True)
class Control:
    """A kind of control.

    Attributes:
        kind: ``untrained`` or ``shuffled``.
        seed: of the initialisation or of the permutations.
    """

    kind: Kind
    seed: int = 0

    def __str__(self) -> str:
        """Return the control as it stands in a MODEL argument."""
        return self.kind if self.seed == 0 else f"{self.kind}:{self.seed}"


def make_control(loaded: LoadedModel, kind: Kind, seed: int = 0) -> LoadedModel:
    """Return a control of a loaded model; the model itself is not changed.

    ``untrained``: every weight matrix is drawn anew by TransformerLens' ``init_weights``, with the
    ``init_mode`` and ``initializer_range`` of the configuration; biases are 0, gains of norms 1. A
    model trained by ``sat-train`` gets the very weights it would have begun with under that seed
    (its ``embedding_range`` is followed, and gates are initialised too).

    ``shuffled``: the entries of each weight matrix (of all heads of a layer together) are permuted;
    biases and norms stay.

    A model behind TransformerLens' bridge is drawn anew as transformers initialises its class.

    A tied unembedding stays tied. Weights are drawn on the CPU in float32, so that a control has
    one weights hash on every device and in every precision. The global random state is kept.

    Raises:
        UserError: a seed out of range, or a parameter that the initialisation does not cover.
    """
    if not 0 <= seed < 2**63:
        raise UserError(f"the seed of a control must be from 0 to 2^63 - 1, not {seed}")
    device, dtype = loaded.device, loaded.dtype
    if isinstance(loaded.model, BridgedTransformer):
        model = _bridged_control(loaded.model, kind, seed)
    else:
        model = _hooked_control(loaded, kind, seed)
    name = f"{loaded.name} [{Control(kind, seed)}]"
    control = prepared(model, name, loaded.tokenizer, device, dtype)
    control.data, control.validation = loaded.data, loaded.validation
    control.tokenizer_note = loaded.tokenizer_note
    control.control = {"kind": kind, "seed": seed, "of": loaded.weights_hash}
    return control


def _hooked_control(loaded: LoadedModel, kind: Kind, seed: int) -> HookedTransformer:
    model = copy.deepcopy(loaded.model)
    model.to("cpu", print_details=False)
    model.to(torch.float32, print_details=False)
    ratio = _tie(model)
    with torch.no_grad():
        if kind == "shuffled":
            _shuffle(dict(_matrices(model)), seed)
        else:
            training = loaded.training or getattr(model, "card", {})
            _initialise(model, seed, training.get("embedding_range"))
        if ratio is not None:
            model.unembed.W_U.copy_(model.W_E.T / ratio)
    if isinstance(model, SelfAblatingTransformer):
        model.card = {}
    return model


def _bridged_control(model: BridgedTransformer, kind: Kind, seed: int) -> HookedTransformer:
    """Return a control behind the bridge, for which the weights are changed before it is built."""
    if kind == "untrained":
        return model.with_weights_of(model.drawn(seed))
    original = model.unwrapped()
    named = original.named_parameters()
    with torch.no_grad():
        _shuffle({name: value for name, value in named if value.ndim > 1}, seed)
    return model.with_weights_of(original)


def parse_controls(text: str | None) -> list[Control]:
    """Return the controls that an option names, each once.

    Args:
        text: ``untrained``, ``shuffled``, several with commas between them, each with a seed after
            a colon if not 0 (``untrained:1``); ``none`` or None for no control.

    Raises:
        UserError: an unknown control, or a seed that is no whole number.
    """
    parts = [part.strip() for part in (text or NONE).split(",")]
    return list(dict.fromkeys(_control(part) for part in parts if part and part != NONE))


def split(spec: str) -> tuple[str, Control | None]:
    """Split a MODEL argument into that of the original and the control, if one is named.

    The name of an existing directory names no control.
    """
    match = _MARKED.fullmatch(spec)
    if match is None or expanded(spec).is_dir():
        return spec, None
    return match[1], _control(f"{match[2]}:{match[3] or 0}")


def _control(text: str) -> Control:
    kind, _, seed = text.partition(":")
    if kind not in KINDS:
        raise UserError(suggest("control", kind, (*KINDS, NONE)))
    if seed and not (seed.isascii() and seed.isdigit() and len(seed) < 19):
        raise UserError(f"the seed of a control is a whole number below 10^18, not {seed!r}")
    return Control(kind, int(seed or 0))


def _is_matrix(name: str) -> bool:
    """Whether a parameter is a weight matrix, by TransformerLens' naming rule."""
    return "W_" in name and name.split(".")[-1] != "bias"


def _matrices(model: HookedTransformer) -> Iterator[tuple[str, Tensor]]:
    named = model.named_parameters()
    return ((name, parameter) for name, parameter in named if _is_matrix(name))


def _initialise(model: HookedTransformer, seed: int, embedding_range: object) -> None:
    for name, parameter in model.named_parameters():
        last = name.split(".")[-1].lstrip("_")
        if _is_matrix(name):
            parameter.fill_(torch.nan)  # so that a matrix that is not drawn below is noticed
        elif last.startswith("b"):
            parameter.zero_()
        elif last in ("w", "weight"):
            parameter.fill_(1.0)
        else:
            raise UserError(f"no untrained control: it is not known how {name} is initialised")
    biases = [bias for name, bias in model.named_parameters() if name.endswith(".bias")]
    initialise: Any = model.init_weights
    own, model.cfg.seed = model.cfg.seed, None  # init_weights would seed all generators with it
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            initialise()
            if isinstance(embedding_range, int | float) and embedding_range > 0:
                draw_embeddings(model, float(embedding_range))
    finally:
        model.cfg.seed = own
    for bias in biases:
        bias.zero_()  # TransformerLens takes an expert's W_in.bias for a matrix
    for name, matrix in _matrices(model):
        if matrix.isnan().any():
            raise UserError(
                f"no untrained control: init_mode {model.cfg.init_mode!r} does not initialise "
                f"{name}"
            )


def _shuffle(matrices: Mapping[str, Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in matrices.values():
        order = torch.randperm(parameter.numel(), generator=generator)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))


def _tie(model: HookedTransformer) -> float | None:
    """Return c where W_E = c W_U^T (c = 1, or Gemma's scaled embedding), None where untied.

    None, too, where the unembedding reads the embedding's own parameter and follows it by itself.
    """
    if not any(name == "unembed.W_U" for name, _ in model.named_parameters()):
        return None
    embedding, unembedding = model.W_E, model.unembed.W_U.T
    if embedding.shape != unembedding.shape:
        return None
    if torch.equal(embedding, unembedding):
        return 1.0
    size = float(unembedding.norm())
    ratio = float(embedding.norm()) / size if size else 0.0
    is_tied = ratio > 0 and torch.allclose(embedding, ratio * unembedding, rtol=1e-4, atol=0)
    return ratio if is_tied else None
