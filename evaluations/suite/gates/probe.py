"""A linear probe: multinomial logistic regression, one rule of fitting for all of them.

Log odds of each class are a bias plus, for features that are on or off, the weights of those that
are on (an embedding bag), plus, for dense features, a linear map. Weights begin at zero and the
bias at the logarithm of the classes' frequencies, so that a probe begins as the unigram baseline.

Fitting, the same for every probe:

1. Minimised is the mean cross-entropy over the training tokens plus penalty / (2 tokens) * |W|^2,
   by Adam on batches of 512 to 1,024 tokens. After each epoch the loss on the tuning stories is
   taken and the best weights are kept.
2. An epoch that does not lower the tuning loss by TOLERANCE nats returns to the best weights and
   divides the learning rate by 4; with the third such epoch a fit has converged. One that reaches
   MAX_EPOCHS first has not.
3. Penalties are tried from strong to weak, each from the last one's best weights, as long as the
   tuning loss falls by TOLERANCE; the best probe is kept, the unigram baseline where none beats it.

Training, tuning and test stories are different ones. What is said of a probe is a lower bound on
what a linear map could read with more data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

PENALTIES = (10.0, 1.0, 0.1)
LEARNING_RATE = 0.03
BATCH = (512, 1024)  # smallest and largest
STEPS = 16  # batches an epoch at least, before the largest batch is taken
TOLERANCE = 2e-3
MAX_EPOCHS = 60
CUTS = 2
CHUNK = 1 << 19  # log odds held at once while losses are taken: they stay in the cache


@dataclass(frozen=True)
class Features:
    """What a probe reads of each token.

    Attributes:
        on: numbers of the features that are on, below ``n_on``; the same many for each token.
        n_on: how many features can be on or off.
        dense: real-valued features, made alike in scale by :func:`scaled`.
    """

    on: Int[Tensor, "tokens active"] | None = None
    n_on: int = 0
    dense: Float[Tensor, "tokens columns"] | None = None

    def __len__(self) -> int:
        known = self.on if self.on is not None else self.dense
        return 0 if known is None else len(known)

    @property
    def width(self) -> int:
        return self.n_on + (0 if self.dense is None else self.dense.shape[1])

    def together_with(self, other: Features) -> Features:
        """Both sets of features side by side."""
        on = [one for one in (self.on, None if other.on is None else other.on + self.n_on)
              if one is not None]  # fmt: skip
        dense = [one for one in (self.dense, other.dense) if one is not None]
        return Features(
            torch.cat(on, 1) if on else None,
            self.n_on + other.n_on,
            torch.cat(dense, 1) if dense else None,
        )

    def at(self, places: Int[Tensor, " some"]) -> Features:
        """The features of the tokens at these places, in this order."""
        return Features(
            None if self.on is None else self.on[places],
            self.n_on,
            None if self.dense is None else self.dense[places],
        )


class Split(NamedTuple):
    """Which tokens a probe is trained on, tuned on and tested on."""

    train: Int[Tensor, " n_train"]
    tune: Int[Tensor, " n_tune"]
    test: Int[Tensor, " n_test"]


@dataclass
class Probe:
    """A fitted probe.

    Attributes:
        weights, bias: log odds of the classes.
        penalty: the one that was chosen; None where none beat the unigram baseline on the tuning
            stories, so that the probe is that baseline.
        epochs: of all penalties tried.
        converged: whether every fit ended by the rule and not by MAX_EPOCHS.
        train_loss: cross-entropy (nats) on the training tokens, to set beside the test's.
    """

    weights: Float[Tensor, "width classes"]
    bias: Float[Tensor, " classes"]
    penalty: float | None = None
    epochs: int = 0
    converged: bool = True
    train_loss: float = float("nan")

    @property
    def is_baseline(self) -> bool:
        """Whether no fit beat the unigram baseline, which the probe then is."""
        return self.penalty is None

    @classmethod
    def unigram(cls, classes: Int[Tensor, " n_train"], n_classes: int, width: int) -> Probe:
        """The classes' frequencies, half a count added to each, and no weights."""
        counts = torch.bincount(classes, minlength=n_classes).float() + 0.5
        bias = (counts / counts.sum()).log()
        return cls(bias.new_zeros(width, n_classes), bias)


def scaled(
    dense: Float[Tensor, "tokens columns"], train: Int[Tensor, " n_train"]
) -> Float[Tensor, "tokens columns"]:
    """Dense features about their mean, in units of their root mean square on the training tokens.

    One factor for all columns: Adam and the penalty then meet states of one size, and directions
    keep their share. (Whitening them read less of the same states: it hands the probe directions
    that are mostly noise as if they were as large as the others.)
    """
    centred = (dense - dense[train].mean(0)).float()
    size = centred[train].square().mean().sqrt()
    return centred / size.clamp(min=1e-12)


def fit_probe(
    features: Features, classes: Int[Tensor, " tokens"], n_classes: int, split: Split, seed: int
) -> Probe:
    """Fit by the rule above."""
    generator = torch.Generator().manual_seed(seed)
    best = Probe.unigram(classes[split.train], n_classes, features.width)
    best_loss = mean_loss(best, features, classes, split.tune)
    epochs, converged = 0, True
    for penalty in PENALTIES:
        probe, loss, used, done = _fit(
            best, best_loss, penalty, features, classes, split, generator
        )
        epochs, converged = epochs + used, converged and done
        if not loss < best_loss - TOLERANCE:
            break
        best, best_loss = probe, loss
    best.epochs, best.converged = epochs, converged
    best.train_loss = mean_loss(best, features, classes, split.train)
    return best


def _fit(
    start: Probe, start_loss: float, penalty: float, features: Features, classes: Tensor,
    split: Split, generator: torch.Generator,
) -> tuple[Probe, float, int, bool]:  # fmt: skip
    """The fit under one penalty: (probe, tuning loss, epochs, whether it converged)."""
    weights, bias = start.weights.clone(), start.bias.clone()
    best, best_loss = start, start_loss
    optimiser = torch.optim.Adam(
        [{"params": [weights]}, {"params": [bias]}], lr=LEARNING_RATE, betas=(0.9, 0.99), fused=True
    )
    batch = min(max(BATCH[0], len(split.train) // STEPS), BATCH[1])
    cuts = 0
    for epoch in range(1, MAX_EPOCHS + 1):
        order = torch.randperm(len(split.train), generator=generator).to(split.train.device)
        for tokens in split.train[order].split(batch):
            weights.grad, bias.grad = gradient(weights, bias, features, classes, tokens)
            # Adam adds this share of the weights to their gradient: the penalty's
            optimiser.param_groups[0]["weight_decay"] = penalty * len(tokens) / len(split.train)
            optimiser.step()
        loss = mean_loss(Probe(weights, bias), features, classes, split.tune)
        improved = loss < best_loss - TOLERANCE
        if loss < best_loss:
            best, best_loss = Probe(weights.clone(), bias.clone(), penalty), loss
        if improved:
            continue
        cuts += 1
        if cuts > CUTS:
            return best, best_loss, epoch, True
        weights.copy_(best.weights)
        bias.copy_(best.bias)
        for group in optimiser.param_groups:
            group["lr"] /= 4
    return best, best_loss, MAX_EPOCHS, False


def gradient(
    weights: Float[Tensor, "width classes"],
    bias: Float[Tensor, " classes"],
    features: Features,
    classes: Int[Tensor, " tokens"],
    tokens: Int[Tensor, " some"],
) -> tuple[Float[Tensor, "width classes"], Float[Tensor, " classes"]]:
    """Gradient of the cross-entropy summed over ``tokens``: softmax minus truth, times features.

    Written out because autograd's way through an embedding bag takes five times as long.
    """
    error = _log_odds(weights, bias, features, tokens).softmax(-1)
    truth = classes[tokens][:, None]
    error.scatter_add_(1, truth, error.new_full((1, 1), -1.0).expand(truth.shape))
    slopes = []
    if features.on is not None:
        on = features.on[tokens]
        # an embedding bag the other way round: for each feature, the tokens at which it is on
        where = _sorting(on.flatten(), features.n_on) // on.shape[1]
        ends = torch.bincount(on.flatten(), minlength=features.n_on).cumsum(0)
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        slopes.append(F.embedding_bag(where, error, starts, mode="sum"))
    if features.dense is not None:
        slopes.append(features.dense[tokens].T @ error)
    return slopes[0] if len(slopes) == 1 else torch.cat(slopes), error.sum(0)


def _sorting(on: Int[Tensor, " n"], n_on: int) -> Int[Tensor, " n"]:
    """``on.argsort(stable=True)``; numpy sorts numbers of 16 bits in a tenth of the time."""
    if on.device.type != "cpu" or n_on > 2**16:
        return on.argsort(stable=True)
    return torch.from_numpy(on.numpy().astype(np.uint16).argsort(kind="stable"))


def token_scores(
    probe: Probe, features: Features, classes: Int[Tensor, " tokens"], tokens: Int[Tensor, " some"]
) -> tuple[Float[Tensor, " some"], Float[Tensor, " some"]]:
    """Cross-entropy (nats) of each token's class, and 1 where the likeliest class is right."""
    losses, hits = [], []
    for chunk, log_odds in _chunks(probe, features, tokens):
        losses.append(F.cross_entropy(log_odds, classes[chunk], reduction="none"))
        hits.append((log_odds.argmax(-1) == classes[chunk]).float())
    return torch.cat(losses), torch.cat(hits)


def mean_loss(
    probe: Probe, features: Features, classes: Int[Tensor, " tokens"], tokens: Int[Tensor, " some"]
) -> float:
    """Mean cross-entropy in nats."""
    losses = [
        F.cross_entropy(log_odds, classes[chunk], reduction="none").double().sum()
        for chunk, log_odds in _chunks(probe, features, tokens)
    ]
    return float(torch.stack(losses).sum() / len(tokens))


def _chunks(probe: Probe, features: Features, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The tokens in parts, and the log odds of each part."""
    for chunk in tokens.split(max(1, CHUNK // len(probe.bias))):
        yield chunk, _log_odds(probe.weights, probe.bias, features, chunk)


def _log_odds(weights: Tensor, bias: Tensor, features: Features, tokens: Tensor) -> Tensor:
    odds: Tensor | None = None
    if features.on is not None:
        odds = F.embedding_bag(features.on[tokens], weights[: features.n_on], mode="sum")
        odds += bias
    if features.dense is not None:
        before = bias if odds is None else odds
        odds = torch.addmm(before, features.dense[tokens], weights[features.n_on :])
    return bias.expand(len(tokens), -1).contiguous() if odds is None else odds
