"""How near each lens comes to the model's own prediction, on held-out stories."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluations.suite.lens.ending import Ending
from evaluations.suite.lens.lenses import Lenses, draw_partners
from evaluations.suite.lens.positions import Positions


@dataclass(frozen=True)
class Curve:
    """One lens on the held-out windows.

    Attributes:
        kl: KL(model || lens), mean over each window's positions, in nats; nan where the lens's
            prediction is not finite.
        agreement: share of each window's positions with the model's top token.
    """

    kl: Float[np.ndarray, "layers windows"]
    agreement: Float[np.ndarray, "layers windows"]


def measure_curves(
    ending: Ending, lenses: Lenses, kinds: Sequence[str], held: Positions, seed: int
) -> dict[str, Curve]:
    """Measure each lens at each layer; the KL is computed in float64."""
    shape = len(kinds), ending.n_layers, len(held)
    kl, agreement = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape)
    partners = bank_rows(lenses, len(held), seed)
    with torch.no_grad():
        for rows in ending.chunks(len(held)):
            target = ending.log_probs(held.streams[-1][rows])
            p, top = target.exp(), target.argmax(-1)
            some = None if partners is None else partners[rows]
            for number, kind in enumerate(kinds):
                for layer in range(ending.n_layers):
                    stream = held.streams[layer][rows]
                    log_q = ending.log_probs(lenses.end(ending, kind, layer, stream, some))
                    kl[number, layer, rows] = (p * (target - log_q)).sum(-1).cpu()
                    agreement[number, layer, rows] = (log_q.argmax(-1) == top).float().cpu()
    agreement = agreement.double().where(kl.isfinite(), torch.nan)
    kl = kl.where(kl.isfinite(), torch.nan)
    return {
        kind: Curve(_by_window(kl[number], held), _by_window(agreement[number], held))
        for number, kind in enumerate(kinds)
    }


def bank_rows(lenses: Lenses, n_rows: int, seed: int) -> Int[Tensor, " rows"] | None:
    """Return which attention outputs each row is resampled from; None without a resample lens."""
    bank = lenses.tensors.get("resample/bank")
    if bank is None:
        return None
    return draw_partners(n_rows, bank.shape[1], seed).to(bank.device)


def _by_window(
    values: Float[Tensor, "layers rows"], held: Positions
) -> Float[np.ndarray, "layers windows"]:
    found = values.unflatten(1, (held.n_windows, held.per_window)).mean(2)
    return np.asarray(found.numpy())


def mean_prediction(
    ending: Ending, streams: Iterable[Float[Tensor, "rows d_model"]]
) -> Float[Tensor, " d_vocab"]:
    """Return the mean of the model's predictions, as float64."""
    total, n = torch.zeros(0), 0
    with torch.no_grad():
        for stream in streams:
            for rows in ending.chunks(len(stream)):
                p = ending.log_probs(stream[rows]).exp().sum(0)
                total, n = (p if n == 0 else total + p), n + len(stream[rows])
    return total / n


def floor_kl(
    ending: Ending, held: Positions, prediction: Float[Tensor, " d_vocab"]
) -> Float[np.ndarray, " windows"]:
    """Return KL(model || one prediction for all positions) of each window, in nats.

    With the mean of the model's own predictions it is what knowing nothing of the text costs.
    """
    log_q = prediction.clamp(min=1e-300).log()
    parts = [(log_p.exp() * (log_p - log_q)).sum(-1) for log_p in _model(ending, held)]
    found: np.ndarray = _by_window(torch.cat(parts).cpu()[None], held)[0]
    return found


def _model(ending: Ending, held: Positions) -> Iterator[Float[Tensor, "rows d_vocab"]]:
    with torch.no_grad():
        for rows in ending.chunks(len(held)):
            yield ending.log_probs(held.streams[-1][rows])
