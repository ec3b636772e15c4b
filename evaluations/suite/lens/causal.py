"""Causal faithfulness: the stream before a block is edited, and lens and model are compared.

At the last position of each prompt the stream h is

- *projected*: h - ((h - mu) . v) v, mu the mean over fitted positions;
- *steered*: h + s v, one s ~ N(0, 1) for each direction, |v| the same for all directions of a
  layer and such that the model's prediction moves by about .2 nats;
- *resampled*: h + V V' (h' - h), h' the stream of another prompt, V the top n directions.

The model goes on from the edited stream, attention included. ``magnitude`` is the Pearson
correlation, over directions and prompts, of the logarithms of both KLs; ``direction`` the mean of
the correlation, weighted by the model's own p, of the changes of both log-probabilities (Li and
Janson 2024, section 5; Belrose et al. 2023, section 4).

Directions are the first right singular vectors of a matrix times the Cholesky factor of the
stream's covariance: of the tuned lens (``tuned``), of the linear map that fits best what the OCA
lens makes of the stream (``linear``), or random orthonormal ones (``random``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluations.core.ablation_pass import RESIDUAL_IN, passes
from evaluations.suite.lens.ending import Ending
from evaluations.suite.lens.lenses import Lenses
from evaluations.suite.lens.positions import Positions

EDITS = ("project", "steer", "resample")
KINDS = ("logit", "tuned", "tuned-paper", "oca", "shared", "mean")
"""Lenses that edits are measured of: resampling would add noise of its own."""
RIDGE = 3e-4
STEER_KL = 0.2
SMALLEST = 1e-8
"""KLs below are left out of the logarithms, and counted."""
LENGTH = 32
"""Tokens of an edited prompt, at most."""
CELLS = 1 << 22
"""Entries of edited streams that are run at once."""

LogProbs = Float[Tensor, "edits prompts d_vocab"]
Basis = Float[Tensor, "d_model directions"]


@dataclass(frozen=True)
class Effects:
    """What edits do to the model and to one lens.

    Attributes:
        model, lens: KL of the unedited from the edited prediction, in nats.
        cosine: correlation of the changes, weighted by p.
    """

    model: Float[np.ndarray, "edits prompts"]
    lens: Float[np.ndarray, "edits prompts"]
    cosine: Float[np.ndarray, "edits prompts"]


class Prompts:
    """Prompts whose stream before a block is edited at the last position.

    Attributes:
        streams: before each block, and after the last.
    """

    def __init__(self, ending: Ending, tokens: Int[Tensor, "prompts pos"]) -> None:
        self.ending = ending
        self.passes = passes(ending.model)
        with torch.no_grad():
            self.streams = self.passes.streams(tokens.to(ending.model.W_E.device))

    def __len__(self) -> int:
        return len(self.streams[0])

    def last(self, layer: int) -> Float[Tensor, "prompts d_model"]:
        """Return the stream before a block, at the last position."""
        return self.streams[layer][:, -1]

    def model(self, layer: int, edited: Float[Tensor, "edits prompts d_model"]) -> LogProbs:
        """Return the model's log-probabilities from the edited stream on."""
        stream = self.streams[layer]
        n_edits = max(1, CELLS // stream.numel())
        parts = []
        with torch.no_grad():
            state = self.passes.state(layer, stream)
            for some in edited.split(n_edits):
                value = stream.expand(len(some), *stream.shape).clone()
                value[:, :, -1] = some
                end = self.passes.tail((layer, RESIDUAL_IN), state, value, {}, last=True)
                parts.append(self.log_probs(end[:, :, 0]))
        return torch.cat(parts)

    def lens(
        self, lenses: Lenses, kind: str, layer: int, edited: Float[Tensor, "edits prompts d_model"]
    ) -> LogProbs:
        """Return a lens's log-probabilities of the edited stream."""
        with torch.no_grad():
            end = lenses.end(self.ending, kind, layer, edited.flatten(0, 1))
        return self.log_probs(end.unflatten(0, edited.shape[:2]))

    def log_probs(self, end: Float[Tensor, "edits prompts d_model"]) -> LogProbs:
        """Return the log-probabilities of streams after the last block."""
        with torch.no_grad():
            flat = self.ending.log_probs(end.flatten(0, 1))
        found: Tensor = flat.unflatten(0, end.shape[:2])
        return found


# Edits -------------------------------------------------------------------------------------------


def project(
    stream: Float[Tensor, "prompts d_model"], basis: Basis, mean: Float[Tensor, " d_model"]
) -> Float[Tensor, "directions prompts d_model"]:
    """Remove the component of each prompt's h - mean along each direction of unit length."""
    along = (stream - mean) @ basis
    removed: Tensor = stream - along.T[:, :, None] * basis.T[:, None]
    return removed


def steer(
    stream: Float[Tensor, "prompts d_model"], basis: Basis, steps: Float[Tensor, " directions"]
) -> Float[Tensor, "directions prompts d_model"]:
    """Add to every prompt's stream a step along each direction."""
    return stream + (steps * basis).T[:, None]


def resample(
    stream: Float[Tensor, "prompts d_model"],
    basis: Basis,
    partners: Int[Tensor, " prompts"],
    sizes: Sequence[int],
) -> Float[Tensor, "sizes prompts d_model"]:
    """Replace the part of h in the span of the first n directions by another prompt's."""
    change = stream[partners] - stream
    tops = (basis[:, :size] for size in sizes)
    return torch.stack([stream + change @ top @ top.T for top in tops])


def calibrated(
    move: Callable[[float], LogProbs], before: Float[Tensor, "prompts d_vocab"], rounds: int = 4
) -> float:
    """Return the length at which the model's prediction moves by about ``STEER_KL`` nats.

    The KL grows about as the square of the length.
    """
    length = 1.0
    for _ in range(rounds):
        found = float(kl(before, move(length)).mean())
        length *= min(8.0, max(0.125, (STEER_KL / max(found, 1e-12)) ** 0.5))
    return length


# Comparison --------------------------------------------------------------------------------------


def kl(before: Float[Tensor, "prompts d_vocab"], after: LogProbs) -> Float[Tensor, "edits prompts"]:
    """KL(before || after), in nats."""
    return (before.exp() * (before - after)).sum(-1)


def weighted_correlation(
    x: LogProbs, y: LogProbs, weights: Float[Tensor, "prompts d_vocab"]
) -> Float[Tensor, "edits prompts"]:
    """Correlation over the vocabulary of x and y, each token weighted."""
    x = x - (weights * x).sum(-1, keepdim=True)
    y = y - (weights * y).sum(-1, keepdim=True)
    product = (weights * x * y).sum(-1)
    sizes = (weights * x * x).sum(-1) * (weights * y * y).sum(-1)
    return product / sizes.sqrt()


def compare(
    prompts: Prompts,
    lenses: Lenses,
    kinds: Sequence[str],
    layer: int,
    edited: Float[Tensor, "edits prompts d_model"],
) -> dict[str, Effects]:
    """Compare what edits do to the model and to each lens."""
    unedited = prompts.last(layer)[None]
    before = prompts.log_probs(prompts.last(-1)[None])[0]
    after = prompts.model(layer, edited)
    own, found = kl(before, after), {}
    for kind in kinds:
        lens_before = prompts.lens(lenses, kind, layer, unedited)[0]
        lens_after = prompts.lens(lenses, kind, layer, edited)
        cosine = weighted_correlation(lens_after - lens_before, after - before, before.exp())
        effects = (own, kl(lens_before, lens_after), cosine)
        found[kind] = Effects(*(one.cpu().numpy() for one in effects))
    return found


# Directions --------------------------------------------------------------------------------------


def bases(
    ending: Ending, lenses: Lenses, layer: int, fitted: Positions, n: int, seed: int
) -> dict[str, Basis]:
    """Return the first n directions of each basis, orthonormal columns.

    ``linear`` needs an OCA lens, ``tuned`` a tuned lens.
    """
    stream = fitted.streams[layer].double().cpu()
    centred = stream - stream.mean(0)
    covariance = centred.T @ centred / len(stream)
    d_model = len(covariance)
    identity = torch.eye(d_model, dtype=torch.float64)
    factor = torch.linalg.cholesky(covariance + RIDGE * identity)
    matrices = {}
    if "tuned" in lenses.kinds:
        matrices["tuned"] = identity + lenses.tensors["tuned/W"][layer].double().cpu()
    if "oca" in lenses.kinds:
        matrices["linear"] = _linear_fit(ending, lenses, layer, fitted.streams[layer], centred)
    found = {}
    for name, matrix in matrices.items():
        if bool(matrix.isfinite().all()):
            found[name] = torch.linalg.svd(matrix @ factor).Vh[:n].T
    generator = torch.Generator().manual_seed(seed * 1009 + layer)
    drawn = torch.randn(d_model, d_model, generator=generator, dtype=torch.float64)
    found["random"] = torch.linalg.qr(drawn).Q[:, :n]
    return {name: basis.to(ending.model.W_E) for name, basis in found.items()}


def _linear_fit(
    ending: Ending, lenses: Lenses, layer: int, stream: Tensor, centred: Tensor
) -> Float[Tensor, "d_model d_model"]:
    """The matrix B that minimises |end - B h|^2, end being what the OCA lens makes of h."""
    with torch.no_grad():
        ends = [
            lenses.end(ending, "oca", layer, stream[rows]) for rows in ending.chunks(len(stream))
        ]
    end = torch.cat(ends).double().cpu()
    found: Tensor = torch.linalg.lstsq(centred, end - end.mean(0)).solution.T
    return found


def subspace_sizes(n: int, d_model: int) -> list[int]:
    """Return how many directions are resampled together."""
    sizes = (2, 4, 8, 16) if d_model < 400 else (5, 10, 20, 50, 100)
    kept = [size for size in sizes if size <= n]
    return kept or [n]


def edit_layer(
    prompts: Prompts, layer: int, basis: Basis, mean: Float[Tensor, " d_model"], seed: int
) -> dict[str, Float[Tensor, "edits prompts d_model"]]:
    """Return the edited streams of a layer by the kind of edit."""
    stream = prompts.last(layer)
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(basis.shape[1], generator=generator, dtype=torch.float64).to(stream)
    before = prompts.log_probs(prompts.last(-1)[None])[0]
    length = calibrated(
        lambda length: prompts.model(layer, steer(stream, basis, length * steps)), before
    )
    order = torch.randperm(len(stream), generator=generator)
    partners = torch.empty_like(order)
    partners[order] = order.roll(1)
    sizes = subspace_sizes(basis.shape[1], stream.shape[1])
    return {
        "project": project(stream, basis, mean),
        "steer": steer(stream, basis, length * steps),
        "resample": resample(stream, basis, partners.to(stream.device), sizes),
    }


def measure_edits(
    ending: Ending,
    lenses: Lenses,
    kinds: Sequence[str],
    fitted: Positions,
    prompts: Prompts,
    n: int,
    seed: int,
) -> dict[tuple[str, int, str, str], Effects]:
    """Measure all edits; by basis, layer, edit and lens."""
    found = {}
    for layer in range(ending.n_layers):
        mean = fitted.streams[layer].double().mean(0).to(ending.model.W_E)
        for name, basis in bases(ending, lenses, layer, fitted, n, seed).items():
            for edit, edited in edit_layer(prompts, layer, basis, mean, seed).items():
                for kind, effects in compare(prompts, lenses, kinds, layer, edited).items():
                    found[name, layer, edit, kind] = effects
    return found
