"""A linear probe: multinomial logistic regression, one rule of fitting for all of them.

Log odds of each class are a bias plus, for features that are on or off, the weights of those that
are on (an embedding bag), plus, for dense features, a linear map. Weights begin at zero and the
bias at the logarithm of the classes' frequencies, so that a probe begins as the unigram baseline.

Fitting, the same for every probe:

1. Minimised is the mean cross-entropy over the training tokens plus penalty / (2 tokens) * |W|^2,
   by Adam on batches of tokens. After each epoch the loss on the tuning stories is taken and the
   best weights are kept.
2. An epoch that does not lower the tuning loss by TOLERANCE nats returns to the best weights and
   divides the learning rate by 4; with the third such epoch a fit has converged. One that reaches
   MAX_EPOCHS first has not.
3. Penalties are tried from strong to weak, each from the last one's best weights, as long as the
   tuning loss falls by TOLERANCE; the best probe is kept, the unigram baseline where none beats it.

Training, tuning and test stories are different ones. What is said of a probe is a lower bound on
what a linear map could read with more data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

PENALTIES = (10.0, 1.0, 0.1)
LEARNING_RATE = 0.03
BATCH = 512
TOLERANCE = 2e-3
MAX_EPOCHS = 60
CUTS = 2
CHUNK = 1 << 22  # log odds held at once while losses are taken


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
        if loss >= best_loss - TOLERANCE:
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
    optimiser = torch.optim.Adam([weights, bias], lr=LEARNING_RATE, betas=(0.9, 0.99), fused=True)
    cuts = 0
    for epoch in range(1, MAX_EPOCHS + 1):
        order = torch.randperm(len(split.train), generator=generator).to(split.train.device)
        for tokens in split.train[order].split(BATCH):
            slope, bias.grad = gradient(weights, bias, features, classes, tokens)
            weights.grad = slope.add_(weights, alpha=penalty / len(split.train))
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
    """Gradient of the mean cross-entropy over ``tokens``: softmax minus truth, times features.

    Written out because autograd's way through an embedding bag takes five times as long.
    """
    error = _log_odds(weights, bias, features, tokens).softmax(-1)
    error[torch.arange(len(tokens), device=error.device), classes[tokens]] -= 1
    error /= len(tokens)
    slope = torch.zeros_like(weights)
    if features.on is not None:
        on = features.on[tokens]
        # an embedding bag the other way round: for each feature, the tokens at which it is on
        where = on.flatten().argsort(stable=True) // on.shape[1]
        ends = torch.bincount(on.flatten(), minlength=features.n_on).cumsum(0)
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        slope[: features.n_on] = F.embedding_bag(where, error, starts, mode="sum")
    if features.dense is not None:
        slope[features.n_on :] = features.dense[tokens].T @ error
    return slope, error.sum(0)


def token_scores(
    probe: Probe, features: Features, classes: Int[Tensor, " tokens"], tokens: Int[Tensor, " some"]
) -> tuple[Float[Tensor, " some"], Float[Tensor, " some"]]:
    """Cross-entropy (nats) of each token's class, and 1 where the likeliest class is right."""
    losses, hits = [], []
    for chunk in tokens.split(max(1, CHUNK // len(probe.bias))):
        log_odds = _log_odds(probe.weights, probe.bias, features, chunk)
        losses.append(F.cross_entropy(log_odds, classes[chunk], reduction="none"))
        hits.append((log_odds.argmax(-1) == classes[chunk]).float())
    return torch.cat(losses), torch.cat(hits)


def mean_loss(
    probe: Probe, features: Features, classes: Int[Tensor, " tokens"], tokens: Int[Tensor, " some"]
) -> float:
    """Mean cross-entropy in nats."""
    return float(token_scores(probe, features, classes, tokens)[0].double().mean())


def _log_odds(weights: Tensor, bias: Tensor, features: Features, tokens: Tensor) -> Tensor:
    odds = bias.expand(len(tokens), -1)
    if features.on is not None:
        odds = odds + F.embedding_bag(features.on[tokens], weights[: features.n_on], mode="sum")
    if features.dense is not None:
        odds = odds + features.dense[tokens] @ weights[features.n_on :]
    return odds if odds.is_contiguous() else odds.contiguous()
