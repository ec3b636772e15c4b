"""Linear probes: multinomial logistic regression with a common fitting procedure.

The logits are a bias plus the weights of the binary features that are on (an embedding bag) plus a
linear map of the dense features. Weights are initialised to zero and the bias to the logarithm of
the class frequencies, so an untrained probe is the unigram baseline.

The fitting procedure is the same for every probe:

1. The mean cross-entropy over the training tokens plus penalty / (2 tokens) * |W|^2 is minimised by
   Adam on batches of 512 to 1,024 tokens. After each epoch the loss on the tuning stories is
   measured and the best weights are kept.
2. After an epoch that does not lower the tuning loss by TOLERANCE nats, the best weights are
   restored and the learning rate is divided by 4. The fit has converged at the third such epoch. It
   has not converged if it reaches MAX_EPOCHS first.
3. Penalties are tried from strong to weak, each starting from the best weights so far, as long as
   the tuning loss falls by TOLERANCE. The best probe is kept, or the unigram baseline if none is
   better.

Training, tuning and test stories are disjoint. The results are lower bounds on the information that
a linear map could read with more data.
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
STEPS = 16  # minimum number of batches of an epoch, unless batches have the smallest size
TOLERANCE = 2e-3
MAX_EPOCHS = 60
CUTS = 2
CHUNK = 1 << 19  # number of logits computed at once for losses, so that they fit the cache


@dataclass(frozen=True)
class Features:
    """The features of each token.

    Attributes:
        on: indices of the binary features that are on, equally many for each token.
        n_on: number of binary features.
        dense: real-valued features, scaled by :func:`scaled`.
    """

    on: Int[Tensor, "tokens active"] | None = None
    n_on: int = 0
    dense: Float[Tensor, "tokens columns"] | None = None

    def __len__(self) -> int:
        known = self.on if self.on is not None else self.dense
        return 0 if known is None else len(known)

    @property
    def width(self) -> int:
        """Number of features."""
        return self.n_on + (0 if self.dense is None else self.dense.shape[1])

    def together_with(self, other: Features) -> Features:
        """Return both sets of features, concatenated."""
        other_on = None if other.on is None else other.on + self.n_on
        on = [indices for indices in (self.on, other_on) if indices is not None]
        dense = [values for values in (self.dense, other.dense) if values is not None]
        return Features(
            torch.cat(on, 1) if on else None,
            self.n_on + other.n_on,
            torch.cat(dense, 1) if dense else None,
        )

    def at(self, places: Int[Tensor, " some"]) -> Features:
        """Return the features of the tokens at these indices."""
        return Features(
            None if self.on is None else self.on[places],
            self.n_on,
            None if self.dense is None else self.dense[places],
        )


class Split(NamedTuple):
    """Indices of the tokens for training, tuning and testing a probe."""

    train: Int[Tensor, " n_train"]
    tune: Int[Tensor, " n_tune"]
    test: Int[Tensor, " n_test"]


@dataclass
class Probe:
    """A fitted probe.

    Attributes:
        weights: weights of the features.
        bias: biases of the classes.
        penalty: the penalty chosen; None if the probe is the unigram baseline, because no fit was
            better on the tuning stories.
        epochs: number of epochs of all penalties tried.
        converged: whether every fit converged before MAX_EPOCHS.
        train_loss: cross-entropy (nats) on the training tokens.
    """

    weights: Float[Tensor, "width classes"]
    bias: Float[Tensor, " classes"]
    penalty: float | None = None
    epochs: int = 0
    converged: bool = True
    train_loss: float = float("nan")

    @property
    def is_baseline(self) -> bool:
        """Whether the probe is the unigram baseline."""
        return self.penalty is None

    @classmethod
    def unigram(cls, classes: Int[Tensor, " n_train"], n_classes: int, width: int) -> Probe:
        """Return the unigram baseline: class frequencies with half a count added to each."""
        counts = torch.bincount(classes, minlength=n_classes).float() + 0.5
        bias = (counts / counts.sum()).log()
        return cls(bias.new_zeros(width, n_classes), bias)


def scaled(
    dense: Float[Tensor, "tokens columns"], train: Int[Tensor, " n_train"]
) -> Float[Tensor, "tokens columns"]:
    """Centre dense features and divide them by their root mean square on the training tokens.

    One factor for all columns preserves the relative size of directions. (With whitening, probes
    read less of the same states: directions that are mostly noise become as large as the others.)
    """
    centred = (dense - dense[train].mean(0)).float()
    size = centred[train].square().mean().sqrt()
    return centred / size.clamp(min=1e-12)


def fit_probe(
    features: Features, classes: Int[Tensor, " tokens"], n_classes: int, split: Split, seed: int
) -> Probe:
    """Fit a probe by the procedure above."""
    generator = torch.Generator().manual_seed(seed)
    best = Probe.unigram(classes[split.train], n_classes, features.width)
    best_loss = mean_loss(best, features, classes, split.tune)
    epochs, converged = 0, True
    for penalty in PENALTIES:
        start = (best, best_loss)
        probe, loss, used, done = _fit(start, penalty, features, classes, split, generator)
        epochs, converged = epochs + used, converged and done
        if not loss < best_loss - TOLERANCE:
            break
        best, best_loss = probe, loss
    best.epochs, best.converged = epochs, converged
    best.train_loss = mean_loss(best, features, classes, split.train)
    return best


def _fit(
    start: tuple[Probe, float],
    penalty: float,
    features: Features,
    classes: Tensor,
    split: Split,
    generator: torch.Generator,
) -> tuple[Probe, float, int, bool]:
    """Fit with one penalty, from a probe and its tuning loss.

    Returns:
        The probe, its tuning loss, the number of epochs and whether it converged.
    """
    best, best_loss = start
    weights, bias = best.weights.clone(), best.bias.clone()
    optimiser = torch.optim.Adam(
        [{"params": [weights]}, {"params": [bias]}], lr=LEARNING_RATE, betas=(0.9, 0.99), fused=True
    )
    batch = min(max(BATCH[0], len(split.train) // STEPS), BATCH[1])
    cuts = 0
    for epoch in range(1, MAX_EPOCHS + 1):
        order = torch.randperm(len(split.train), generator=generator).to(split.train.device)
        for tokens in split.train[order].split(batch):
            weights.grad, bias.grad = gradient(weights, bias, features, classes, tokens)
            # the gradient of the penalty, which Adam adds
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
    """Compute the gradient of the cross-entropy summed over ``tokens``.

    It is (softmax - one-hot target) times features. Autograd through an embedding bag takes five
    times as long.
    """
    error = _logits(weights, bias, features, tokens).softmax(-1)
    target = classes[tokens][:, None]
    error.scatter_add_(1, target, error.new_full((1, 1), -1.0).expand(target.shape))
    slopes = []
    if features.on is not None:
        on = features.on[tokens]
        # a transposed embedding bag: for each feature, the tokens at which it is on
        where = _sorting(on.flatten(), features.n_on) // on.shape[1]
        ends = torch.bincount(on.flatten(), minlength=features.n_on).cumsum(0)
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        slopes.append(F.embedding_bag(where, error, starts, mode="sum"))
    if features.dense is not None:
        slopes.append(features.dense[tokens].T @ error)
    return slopes[0] if len(slopes) == 1 else torch.cat(slopes), error.sum(0)


def _sorting(on: Int[Tensor, " n"], n_on: int) -> Int[Tensor, " n"]:
    """Return ``on.argsort(stable=True)``; numpy sorts 16-bit integers ten times as fast."""
    if on.device.type != "cpu" or n_on > 2**16:
        return on.argsort(stable=True)
    return torch.from_numpy(on.numpy().astype(np.uint16).argsort(kind="stable"))


def token_scores(
    probe: Probe, features: Features, classes: Int[Tensor, " tokens"], tokens: Int[Tensor, " some"]
) -> tuple[Float[Tensor, " some"], Float[Tensor, " some"]]:
    """Return each token's cross-entropy (nats), and 1 if the most likely class is right, else 0."""
    losses, hits = [], []
    for chunk, logits in _chunks(probe, features, tokens):
        losses.append(F.cross_entropy(logits, classes[chunk], reduction="none"))
        hits.append((logits.argmax(-1) == classes[chunk]).float())
    return torch.cat(losses), torch.cat(hits)


def mean_loss(
    probe: Probe, features: Features, classes: Int[Tensor, " tokens"], tokens: Int[Tensor, " some"]
) -> float:
    """Return the mean cross-entropy in nats."""
    losses = [
        F.cross_entropy(logits, classes[chunk], reduction="none").double().sum()
        for chunk, logits in _chunks(probe, features, tokens)
    ]
    return float(torch.stack(losses).sum() / len(tokens))


def _chunks(probe: Probe, features: Features, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over parts of the tokens, each with its logits."""
    for chunk in tokens.split(max(1, CHUNK // len(probe.bias))):
        yield chunk, _logits(probe.weights, probe.bias, features, chunk)


def _logits(weights: Tensor, bias: Tensor, features: Features, tokens: Tensor) -> Tensor:
    logits: Tensor | None = None
    if features.on is not None:
        logits = F.embedding_bag(features.on[tokens], weights[: features.n_on], mode="sum")
        logits += bias
    if features.dense is not None:
        base = bias if logits is None else logits
        logits = torch.addmm(base, features.dense[tokens], weights[features.n_on :])
    return bias.expand(len(tokens), -1).contiguous() if logits is None else logits
