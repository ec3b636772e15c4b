"""Information on the next token that a linear probe reads from the masks.

For each layer a probe (``probe.py``) predicts the next token of the text from the masks of that
layer, attention units and neurons together, at the same position. It is compared with probes of
other features, fitted in the same way on the same tokens:

- ``shuffled``: the same masks, with the positions of each story in random order. This leaves
  information on the story as a whole, and the probe's overfitting.
- ``token``: the current token only, i.e. a table of bigrams. Tokens that occur in no training story
  share a row without counts.
- ``token+mask``: both. Its gain over ``token`` does not measure what masks encode beyond the token:
  even masks that are a function of the token help, since tokens with similar masks share training
  data, and they help more with less text.
- ``token+exchanged``: the control for that gain: the token, with the mask of another occurrence of
  the same token (``masks.exchanged_occurrences``, over all stories of the probes, in training,
  tuning and testing; both sites and all layers move together). It preserves the dependence of the
  mask on the token and destroys all other information. The EXCESS, ``token+mask`` minus
  ``token+exchanged``, is the information in masks beyond the current token. A token that occurs
  once keeps its mask, which biases the excess slightly downwards; the share of such tokens is in
  the record.
- ``residual``: the clean residual stream at the block's input, and ``final``: the clean state
  after the final LN. Local gates read the former, global gates the latter. A mask cannot contain
  more information than the state its gates read, but a linear probe may read more of it from the
  mask, which is a nonlinear function of the state.

Classes are the most frequent next tokens of the training stories, and a last class for all other
tokens; the share of other tokens is in the record. Metrics are cross-entropy on the test stories
(nats per token), bits gained over the unigram baseline (the probe without features) and accuracy.
Intervals are bootstrapped over test stories; differences are paired.

The features of a hard mask are its winners, those of a soft mask its weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluations.core.statistics import bootstrap, ratio
from evaluations.core.text import Text
from evaluations.suite.gates.masks import (
    SITES,
    at_positions,
    batches,
    exchanged_occurrences,
    kept_units,
    shuffled_positions,
    winners,
)
from evaluations.suite.gates.probe import Features, Probe, Split, fit_probe, scaled, token_scores
from sat_interp._util import progress
from sat_interp._util.errors import UserError
from sat_interp.model.transformer import SelfAblatingTransformer

ROLES = {"train": 0.6, "tune": 0.15, "test": 0.25}
MIN_STORIES = 8


@dataclass
class ProbeTokens:
    """All tokens of the probes' stories, and the features at each token.

    Attributes:
        current: the token.
        following: the next token.
        story: number of its story.
        masks: features of the masks, by layer.
        shuffled: features of the shuffled masks, by layer.
        exchanged: index of another occurrence of each token.
        residual: the clean stream at the block's input, by layer.
        final: the clean state after the final LN.
    """

    current: Int[Tensor, " tokens"]
    following: Int[Tensor, " tokens"]
    story: Int[Tensor, " tokens"]
    masks: list[Features]
    shuffled: list[Features]
    exchanged: Int[Tensor, " tokens"]
    residual: list[Float[Tensor, "tokens d_model"]]
    final: Float[Tensor, "tokens d_model"]


@dataclass(frozen=True)
class ProbeReading:
    """A probe's cross-entropy and number of correct predictions, summed over each test story."""

    probe: Probe
    nats: Float[np.ndarray, " test_stories"]
    hits: Float[np.ndarray, " test_stories"]


@dataclass(frozen=True)
class Leak:
    """All probes of one model.

    Attributes:
        readings: by name (``token``, ``mask``, ...), for each layer, or a single one.
        unigram: the unigram baseline.
        tokens: number of tokens of each test story.
        facts: number of classes, share of other tokens, stories and tokens of each split.
    """

    readings: dict[str, list[ProbeReading]]
    unigram: ProbeReading
    tokens: Float[np.ndarray, " test_stories"]
    facts: dict[str, Any]

    def bits(self, name: str) -> list[Float[np.ndarray, " test_stories"]]:
        """Return bits gained over the unigram baseline, summed over each test story, by layer."""
        return [(self.unigram.nats - reading.nats) / math.log(2) for reading in self.readings[name]]


@torch.inference_mode()
def collect(model: SelfAblatingTransformer, text: Text, seed: int) -> ProbeTokens:
    """Run the model over the text once and collect the features of the probes."""
    generator = torch.Generator().manual_seed(seed)
    current, following, story, final = [], [], [], []
    layers = model.cfg.n_layers
    masks: list[list[Features]] = [[] for _ in range(layers)]
    shuffled: list[list[Features]] = [[] for _ in range(layers)]
    residual: list[list[Tensor]] = [[] for _ in range(layers)]
    for batch in batches(model, text, "gates: states"):
        order = shuffled_positions(batch.inputs, generator)
        current.append(batch.inputs.flatten())
        following.append(batch.targets.flatten())
        story.append(batch.stories[:, None].expand(batch.inputs.shape).flatten())
        final.append(batch.clean.final.flatten(0, 1).float())
        for layer, state in enumerate(batch.clean.states[:-1]):
            residual[layer].append(state.flatten(0, 1).float())
            sites = [(batch.masks[site][layer], kept_units(model, site)) for site in SITES]
            masks[layer].append(_features(model, sites))
            moved = [(at_positions(mask, order), k) for mask, k in sites]
            shuffled[layer].append(_features(model, moved))
    tokens = torch.cat(current)
    return ProbeTokens(
        current=tokens,
        following=torch.cat(following),
        story=torch.cat(story).to(model.W_E.device),
        masks=[_concatenated(parts) for parts in masks],
        shuffled=[_concatenated(parts) for parts in shuffled],
        exchanged=exchanged_occurrences(tokens, generator),
        residual=[torch.cat(parts) for parts in residual],
        final=torch.cat(final),
    )


def _features(model: SelfAblatingTransformer, sites: list[tuple[Tensor, int]]) -> Features:
    """Return the masks of both sites as features: weights of soft masks, winners of hard ones."""
    features = Features()
    for mask, k in sites:
        if model.ablation.forward_mask == "soft":
            site = Features(dense=mask.flatten(0, 1).float())
        else:
            site = Features(winners(mask, k).flatten(0, 1), mask.shape[-1])
        features = features.together_with(site)
    return features


def _concatenated(parts: list[Features]) -> Features:
    on = [part.on for part in parts if part.on is not None]
    dense = [part.dense for part in parts if part.dense is not None]
    return Features(
        torch.cat(on) if on else None, parts[0].n_on, torch.cat(dense) if dense else None
    )


@torch.inference_mode()
def measure_leak(tokens: ProbeTokens, n_classes: int, seed: int) -> Leak:
    """Fit every probe and evaluate it on the test stories.

    Raises:
        UserError: there are too few stories to train, tune and test on different ones.
    """
    roles = story_roles(tokens.story, seed)
    split = Split(*(torch.nonzero(roles == role)[:, 0] for role in range(len(ROLES))))
    classes, n_classes = next_token_classes(tokens.following, split.train, n_classes)
    fitting = _Fitting(classes, n_classes, split, tokens.story[split.test], seed)
    token = _current_token(tokens.current, split.train)
    readings: dict[str, list[ProbeReading]] = {"token": [], "final": []}
    with progress.bar(total=2 + 5 * len(tokens.masks), desc="gates: probes", unit="probe") as bar:

        def read(name: str, features: Features) -> None:
            readings.setdefault(name, []).append(fitting.read(features))
            bar.update()

        read("token", token)
        read("final", Features(dense=tokens.final))
        for mask, shuffled, residual in zip(
            tokens.masks, tokens.shuffled, tokens.residual, strict=True
        ):
            read("mask", mask)
            read("shuffled", shuffled)
            read("token+mask", token.together_with(mask))
            read("token+exchanged", token.together_with(mask.at(tokens.exchanged)))
            read("residual", Features(dense=residual))
    unigram = fitting.unigram()
    counts = fitting.per_story(torch.ones(len(split.test)))
    rows_of = dict(zip(ROLES, split, strict=True))
    facts = {
        "classes": n_classes,
        "classes_are": "the most frequent next tokens of the training stories, and one for others",
        "other_share": float((classes[split.test] == n_classes - 1).double().mean()),
        "kept_own_mask_share": float((tokens.exchanged[split.test] == split.test).double().mean()),
        "stories": {role: len(tokens.story[rows].unique()) for role, rows in rows_of.items()},
        "tokens": {role: len(rows) for role, rows in rows_of.items()},
    }
    return Leak(readings, unigram, counts, facts)


def check_stories(n_stories: int) -> None:
    """Check that there are enough stories to train, tune and test probes.

    Raises:
        UserError: fewer than MIN_STORIES stories.
    """
    if n_stories < MIN_STORIES:
        raise UserError(
            f"{n_stories} stories are too few to train, tune and test probes on different ones; "
            f"give at least {MIN_STORIES}, or 0 --probe-stories"
        )


def story_roles(story: Int[Tensor, " tokens"], seed: int) -> Int[Tensor, " tokens"]:
    """Assign stories to training (0), tuning (1) or testing (2), and return that of each token.

    Raises:
        UserError: fewer than MIN_STORIES stories.
    """
    known = story.unique()
    check_stories(len(known))
    order = np.random.default_rng(seed).permutation(len(known))
    ends = np.cumsum(list(ROLES.values()))[:-1] * len(known)
    role_of = np.searchsorted(np.round(ends), order, side="right")
    return torch.as_tensor(role_of, device=story.device)[torch.searchsorted(known, story)]


def next_token_classes(
    following: Int[Tensor, " tokens"], train: Int[Tensor, " n_train"], n_classes: int
) -> tuple[Int[Tensor, " tokens"], int]:
    """Return the class of each next token, most frequent first, and the number of classes."""
    counts = torch.bincount(following[train], minlength=int(following.max()) + 1)
    frequent = counts.argsort(descending=True, stable=True)[: n_classes - 1]
    frequent = frequent[counts[frequent] > 0]
    table = torch.full_like(counts, len(frequent))
    table[frequent] = torch.arange(len(frequent), device=table.device)
    return table[following], len(frequent) + 1


def _current_token(current: Tensor, train: Tensor) -> Features:
    """Return a feature for each token of the training stories, feature 0 for all others."""
    known = current[train].unique()
    table = current.new_zeros(int(current.max()) + 1)
    table[known] = torch.arange(1, len(known) + 1, device=current.device)
    return Features(table[current][:, None], len(known) + 1)


@dataclass(frozen=True)
class _Fitting:
    """Fits and evaluates probes of one model on the same tokens and classes."""

    classes: Tensor
    n_classes: int
    split: Split
    story: Tensor
    seed: int

    def read(self, features: Features) -> ProbeReading:
        """Fit a probe of the features and evaluate it."""
        if features.dense is not None:
            dense = scaled(features.dense, self.split.train)
            features = Features(features.on, features.n_on, dense)
        probe = fit_probe(features, self.classes, self.n_classes, self.split, self.seed)
        return self._reading(probe, features)

    def unigram(self) -> ProbeReading:
        """Evaluate the probe without features: class frequencies in the training stories."""
        empty = Features(dense=torch.zeros(len(self.classes), 0, device=self.classes.device))
        probe = Probe.unigram(self.classes[self.split.train], self.n_classes, 0)
        return self._reading(probe, empty)

    def _reading(self, probe: Probe, features: Features) -> ProbeReading:
        losses, hits = token_scores(probe, features, self.classes, self.split.test)
        return ProbeReading(probe, self.per_story(losses), self.per_story(hits))

    def per_story(self, values: Tensor) -> Float[np.ndarray, " test_stories"]:
        """Return the sum of the values of each test story's tokens."""
        _, place = self.story.cpu().unique(return_inverse=True)
        return np.bincount(place.numpy(), values.double().cpu().numpy())


def described(leak: Leak, resamples: int, seed: int) -> dict[str, Any]:
    """Return the results of every probe, layer by layer, for the record."""
    probes = {}
    for name, readings in {"unigram": [leak.unigram], **leak.readings}.items():
        probes[name] = [_probe_details(leak, reading, resamples, seed) for reading in readings]
    return {**leak.facts, "probes": probes}


def _probe_details(leak: Leak, reading: ProbeReading, resamples: int, seed: int) -> dict[str, Any]:
    bits = (leak.unigram.nats - reading.nats) / math.log(2)
    figures = {"cross_entropy": reading.nats, "bits": bits, "accuracy": reading.hits}
    details: dict[str, Any] = {}
    for name, sums in figures.items():
        mean = ratio(sums, leak.tokens)
        interval = bootstrap(sums, leak.tokens, resamples=resamples, seed=seed)
        details[name] = mean.value
        if name == "bits" and reading.probe.is_baseline:
            interval = None  # 0 for every story
        details[f"{name}_standard_error"] = mean.standard_error
        details[f"{name}_interval"] = [interval.low, interval.high] if interval else None
    probe = reading.probe
    return {
        **details,
        "train_cross_entropy": probe.train_loss,
        "penalty": probe.penalty,
        "epochs": probe.epochs,
        "converged": probe.converged,
    }
