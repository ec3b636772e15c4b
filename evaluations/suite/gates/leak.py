"""How much of the next token a linear probe reads from the masks.

For each layer a probe (``probe.py``) predicts the next token of the text from the masks of that
layer, attention units and neurons together, at the same position. Beside it, on the same tokens
and by the same rule of fitting:

- ``shuffled``: the same masks, the positions of each story in random order. What is left is what
  the masks tell of the story as a whole, and what the probe makes up.
- ``token``: the current token alone, i.e. a table of bigrams. Tokens that no training story has
  share one row that stays empty.
- ``token+mask``: both. What it reads beyond ``token`` is no measure of what masks tell beyond the
  token: masks that are a pure function of the token help too, for tokens that get like masks learn
  from each other, and they help the more, the less text there is.
- ``token+exchanged``: the fair control: the token, with the mask of another occurrence of the same
  token (``masks.exchanged_occurrences``, over all stories of the probes, in
  training, tuning and testing alike; both sites and their layer move together). It keeps all that
  the token says of the mask and nothing else. The EXCESS, ``token+mask`` minus
  ``token+exchanged``, is what masks tell beyond the current token. A token that occurs once keeps
  its mask, which makes the excess a little too small; the share of such tokens is in the record.
- ``residual``: the clean residual stream at the block's input, and ``final``: the clean state
  after the final LN. Local gates read the former, global gates the latter. No mask can tell more
  than the state its gates read, but a linear probe may read more of it there: masks are no linear
  function of the state.

Classes are the most frequent next tokens of the training stories, and one more for all others; how
many tokens are such others is in the record. Figures are cross-entropy on the test stories (nats a
token), the bits gained over the unigram baseline (the probe with no features) and accuracy.
Intervals are bootstrapped over test stories; differences are paired.

Hard masks are read as the set of their winners, soft ones with their weights.
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
class Tokens:
    """Every token of the probes' stories, and what is read there.

    Attributes:
        current, following: the token and the next one.
        story: which story it is of.
        masks, shuffled: per layer, what the masks hold.
        exchanged: for each token the place of another occurrence of it, whose mask it is lent.
        residual: per layer, the clean stream at the block's input.
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
class Reading:
    """What one probe reads on the test stories, summed story by story."""

    probe: Probe
    nats: Float[np.ndarray, " test_stories"]
    hits: Float[np.ndarray, " test_stories"]


@dataclass(frozen=True)
class Leak:
    """All probes of one model.

    Attributes:
        readings: by name (``token``, ``mask``, ...), one for each layer, or a single one.
        tokens: test tokens of each test story.
        facts: classes, how many tokens are in none, stories and tokens of each role.
    """

    readings: dict[str, list[Reading]]
    unigram: Reading
    tokens: Float[np.ndarray, " test_stories"]
    facts: dict[str, Any]

    def bits(self, name: str) -> list[Float[np.ndarray, " test_stories"]]:
        """Bits gained over the unigram baseline, summed over each test story, by layer."""
        return [(self.unigram.nats - one.nats) / math.log(2) for one in self.readings[name]]


@torch.inference_mode()
def collect(model: SelfAblatingTransformer, text: Text, seed: int) -> Tokens:
    """Run the model over the text once and keep what the probes read."""
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
    device = model.W_E.device
    tokens = torch.cat(current)
    return Tokens(
        tokens, torch.cat(following), torch.cat(story).to(device),
        [_concatenated(parts) for parts in masks],
        [_concatenated(parts) for parts in shuffled],
        exchanged_occurrences(tokens, generator),
        [torch.cat(parts) for parts in residual],
        torch.cat(final),
    )  # fmt: skip


def _features(model: SelfAblatingTransformer, sites: list[tuple[Tensor, int]]) -> Features:
    """The masks of both sites as a probe reads them: winners where they are hard."""
    found = Features()
    for mask, k in sites:
        if model.ablation.forward_mask == "soft":
            one = Features(dense=mask.flatten(0, 1).float())
        else:
            one = Features(winners(mask, k).flatten(0, 1), mask.shape[-1])
        found = found.together_with(one)
    return found


def _concatenated(parts: list[Features]) -> Features:
    on = [part.on for part in parts if part.on is not None]
    dense = [part.dense for part in parts if part.dense is not None]
    return Features(
        torch.cat(on) if on else None, parts[0].n_on, torch.cat(dense) if dense else None
    )


@torch.inference_mode()
def measure_leak(tokens: Tokens, n_classes: int, seed: int) -> Leak:
    """Fit every probe and read the test stories.

    Raises:
        UserError: too few stories to train, tune and test on different ones.
    """
    roles = story_roles(tokens.story, seed)
    split = Split(*(torch.nonzero(roles == role)[:, 0] for role in range(len(ROLES))))
    classes, n_classes = next_token_classes(tokens.following, split.train, n_classes)
    fitting = _Fitting(classes, n_classes, split, tokens.story[split.test], seed)
    token = _current_token(tokens.current, split.train)
    readings: dict[str, list[Reading]] = {"token": [], "final": []}
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
    facts = {
        "classes": n_classes,
        "classes_are": "the most frequent next tokens of the training stories, and one for others",
        "other_share": float((classes[split.test] == n_classes - 1).double().mean()),
        "kept_own_mask_share": float((tokens.exchanged[split.test] == split.test).double().mean()),
        "stories": {role: int(len(tokens.story[rows].unique()))
                    for role, rows in zip(ROLES, split, strict=True)},
        "tokens": {role: len(rows) for role, rows in zip(ROLES, split, strict=True)},
    }  # fmt: skip
    return Leak(readings, unigram, counts, facts)


def check_stories(n_stories: int) -> None:
    """Refuse a sample that cannot be parted.

    Raises:
        UserError: fewer than MIN_STORIES stories.
    """
    if n_stories < MIN_STORIES:
        raise UserError(
            f"{n_stories} stories are too few to train, tune and test probes on different ones; "
            f"give at least {MIN_STORIES}, or 0 --probe-stories"
        )


def story_roles(story: Int[Tensor, " tokens"], seed: int) -> Int[Tensor, " tokens"]:
    """0, 1 or 2 for each token: whether its story is for training, tuning or testing.

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
    """Classes of the next tokens, frequent ones first, the last class for all others."""
    counts = torch.bincount(following[train], minlength=int(following.max()) + 1)
    frequent = counts.argsort(descending=True, stable=True)[: n_classes - 1]
    frequent = frequent[counts[frequent] > 0]
    table = torch.full_like(counts, len(frequent))
    table[frequent] = torch.arange(len(frequent), device=table.device)
    return table[following], len(frequent) + 1


def _current_token(current: Tensor, train: Tensor) -> Features:
    """One feature for each token of the training stories, feature 0 for those they lack."""
    known = current[train].unique()
    table = current.new_zeros(int(current.max()) + 1)
    table[known] = torch.arange(1, len(known) + 1, device=current.device)
    return Features(table[current][:, None], len(known) + 1)


@dataclass(frozen=True)
class _Fitting:
    """What all probes of a model have in common."""

    classes: Tensor
    n_classes: int
    split: Split
    story: Tensor
    seed: int

    def read(self, features: Features) -> Reading:
        if features.dense is not None:
            dense = scaled(features.dense, self.split.train)
            features = Features(features.on, features.n_on, dense)
        probe = fit_probe(features, self.classes, self.n_classes, self.split, self.seed)
        return self._reading(probe, features)

    def unigram(self) -> Reading:
        """The probe without features: the classes' frequencies in the training stories."""
        nothing = Features(dense=torch.zeros(len(self.classes), 0, device=self.classes.device))
        probe = Probe.unigram(self.classes[self.split.train], self.n_classes, 0)
        return self._reading(probe, nothing)

    def _reading(self, probe: Probe, features: Features) -> Reading:
        losses, hits = token_scores(probe, features, self.classes, self.split.test)
        return Reading(probe, self.per_story(losses), self.per_story(hits))

    def per_story(self, values: Tensor) -> Float[np.ndarray, " test_stories"]:
        _, place = self.story.cpu().unique(return_inverse=True)
        return np.bincount(place.numpy(), values.double().cpu().numpy())


def described(leak: Leak, resamples: int, seed: int) -> dict[str, Any]:
    """Every probe's figures, layer by layer, as the record keeps them."""
    probes = {}
    for name, readings in {"unigram": [leak.unigram], **leak.readings}.items():
        probes[name] = [_told(leak, one, resamples, seed) for one in readings]
    return {**leak.facts, "probes": probes}


def _told(leak: Leak, reading: Reading, resamples: int, seed: int) -> dict[str, Any]:
    bits = (leak.unigram.nats - reading.nats) / math.log(2)
    figures = {"cross_entropy": reading.nats, "bits": bits, "accuracy": reading.hits}
    told: dict[str, Any] = {}
    for name, sums in figures.items():
        found = ratio(sums, leak.tokens)
        interval = bootstrap(sums, leak.tokens, resamples=resamples, seed=seed)
        told[name] = found.value
        if name == "bits" and reading.probe.is_baseline:
            interval = None  # 0 in every story, whatever the story
        told[f"{name}_standard_error"] = found.standard_error
        told[f"{name}_interval"] = [interval.low, interval.high] if interval else None
    probe = reading.probe
    return {
        **told, "train_cross_entropy": probe.train_loss, "penalty": probe.penalty,
        "epochs": probe.epochs, "converged": probe.converged,
    }  # fmt: skip
