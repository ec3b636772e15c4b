"""Graphs and scores of the chosen units of one layer, from their excerpts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evaluations.core.excerpts import Excerpt, Gathered
from evaluations.suite.n2g.augment import Limits, Substitution, augment
from evaluations.suite.n2g.config import N2gConfig, Thresholds
from evaluations.suite.n2g.graph import merged_trie, pattern_graph
from evaluations.suite.n2g.metrics import structure_metrics, word_metrics
from evaluations.suite.n2g.prune import Peak, Window, peak_of, prune
from evaluations.suite.n2g.saliency import importances
from evaluations.suite.n2g.scores import Counts, FiringCounts, HeldOutExcerpt, score
from evaluations.suite.n2g.substitutes import Substitutes
from evaluations.suite.n2g.trie import Example, Trie, patterns, token_texts
from evaluations.suite.n2g.vocabulary import Vocabulary
from evaluations.suite.n2g.windows import Reader
from evaluations.suite.n2g.words import word_classes

NO_EXAMPLE = "no activating example"


@dataclass
class UnitExamples:
    """The examples from which the graph of one unit is built.

    Attributes:
        maximum: highest activation in the excerpts that explain the unit.
        examples: pruned excerpts and substitutions.
        words: for each pruned excerpt: the example, the word class of each token, and the word
            classes of accepted substitutions of its last word.
        excerpts: number of excerpts.
        unfaithful: number of excerpts whose longest window does not keep the peak.
        substituted: number of words tried.
        positive: number of words tried that keep the unit firing.
    """

    unit: int
    maximum: float = 0.0
    examples: list[Example] = field(default_factory=list)
    words: list[tuple[Example, list[str], list[str]]] = field(default_factory=list)
    excerpts: int = 0
    unfaithful: int = 0
    substituted: int = 0
    positive: int = 0


@dataclass
class Explainer:
    """Builder of the graphs of a layer's units."""

    reader: Reader
    gathered: Gathered
    substitutes: Substitutes
    vocabulary: Vocabulary
    config: N2gConfig

    def layer(self, units: Sequence[int]) -> dict[str, Any]:
        """Return the content of a layer's file: units, sensitivity to thresholds, and cost."""
        started, masked_before = time.perf_counter(), self.substitutes.seconds
        collected = self.collect(units)
        neurons = [self.neuron(unit) for unit in collected]
        variations = self.config.thresholds.variations()
        sensitivity = [self._means(collected, thresholds) for thresholds in variations]
        return {
            "layer": self.reader.layer,
            "neurons": neurons,
            "sensitivity": sensitivity,
            "cost": {
                "windows": dict(self.reader.windows),
                "tokens": dict(self.reader.tokens),
                "seconds": round(time.perf_counter() - started, 3),
                "masked_model_seconds": round(self.substitutes.seconds - masked_before, 3),
            },
        }

    def collect(self, units: Sequence[int]) -> list[UnitExamples]:
        """Prune, measure saliency and augment for all units and excerpts together."""
        collected = {unit: UnitExamples(unit) for unit in units}
        peaks: list[Peak] = []
        for unit, examples in collected.items():
            own = self.peaks(unit)
            examples.excerpts = len(own)
            examples.maximum = max((peak.activation for peak in own), default=0.0)
            peaks += own
        config = self.config
        windows = prune(self.reader, peaks, config.kept, config.context)
        matrices = importances(self.reader, windows, self.reader.start_token)
        substitutions = augment(
            self.reader,
            windows,
            matrices,
            self.substitutes,
            self.vocabulary,
            config.thresholds.importance,
            kept=config.kept,
            limits=Limits(config.proposals, config.least_probability),
        )
        accepted: list[list[str]] = [[] for _ in windows]
        for window, matrix, substitutes in zip(windows, matrices, accepted, strict=True):
            unit_examples = collected[window.unit]
            example = Example.of_window(window, matrix, unit_examples.maximum)
            unit_examples.unfaithful += not window.faithful
            unit_examples.examples.append(example)
            unit_examples.words.append((example, self._classes(window), substitutes))
        for change in substitutions:
            window, matrix = windows[change.window], matrices[change.window]
            unit_examples = collected[window.unit]
            example = Example.of_substitution(change, window, matrix, unit_examples.maximum)
            unit_examples.examples.append(example)
            unit_examples.substituted += 1
            unit_examples.positive += change.positive
            if change.positive and change.end == len(change.tokens):
                accepted[change.window].append(self._classes(change)[change.place])
        return list(collected.values())

    def neuron(self, unit: UnitExamples) -> dict[str, Any]:
        """Return a unit's patterns, graph, metrics and scores as JSON values."""
        thresholds, texts = self.config.thresholds, self.vocabulary.texts
        found = patterns(unit.examples, thresholds.importance, thresholds.activation)
        summary = {
            "unit": f"{self.reader.layer}.{unit.unit}",
            "reason": None if unit.excerpts else NO_EXAMPLE,
            "maximum": round(unit.maximum, 5),
            "excerpts": unit.excerpts,
            "unfaithful": unit.unfaithful,
            "substituted": unit.substituted,
            "positive": unit.positive,
            "graph": merged_trie((), (), 1.0),
        }
        if not unit.excerpts:
            return summary
        scores = self._scores(unit, Trie(found))
        return {
            **summary,
            "metrics": self._metrics(unit, thresholds),
            "classes": dict(_activating_classes(unit, thresholds.activation)),
            "scores": {name: _score_dict(counts) for name, counts in scores.items()},
            "patterns": token_texts(found, texts),
            "graph": merged_trie(found, texts, thresholds.activation),
        }

    def _metrics(self, unit: UnitExamples, thresholds: Thresholds) -> dict[str, float]:
        found = patterns(unit.examples, thresholds.importance, thresholds.activation)
        graph = pattern_graph(found, self.vocabulary.texts, thresholds.activation)
        return {
            **structure_metrics(graph),
            **word_metrics(_activating_classes(unit, thresholds.activation)),
            "nodes": float(len(graph)),
            "edges": float(graph.number_of_edges()),
            "self_loops": float(graph.graph["self_loops"]),
        }

    def _means(self, units: Sequence[UnitExamples], thresholds: Thresholds) -> dict[str, Any]:
        """Return mean metrics with other thresholds of patterns and the same examples."""
        metrics = [self._metrics(unit, thresholds) for unit in units if unit.excerpts]
        names = metrics[0] if metrics else ()
        return {
            "importance": thresholds.importance,
            "activation": thresholds.activation,
            "n": len(metrics),
            "metrics": {name: float(np.mean([unit[name] for unit in metrics])) for name in names},
        }

    def peaks(self, unit: int) -> list[Peak]:
        """Return the peaks of a unit's top excerpts with their left context."""
        excerpts = self._excerpts(unit, "explain", ("top",))[: self.config.examples]
        context = min(self.config.context, int(self.reader.model.cfg.n_ctx) - 2)
        peaks = [peak_of(unit, excerpt, self._story(excerpt), context) for excerpt in excerpts]
        return [peak for peak in peaks if peak is not None]

    def _excerpts(self, unit: int, half: Any, kinds: Sequence[str]) -> list[Excerpt]:
        """Return a unit's distinct excerpts of some kinds."""
        distinct: dict[tuple[int, int], Excerpt] = {}
        for kind in kinds:
            for excerpt in self.gathered.excerpts(self.reader.layer, unit, half, kind):
                distinct.setdefault((excerpt.story, excerpt.start), excerpt)
        return list(distinct.values())

    def _story(self, excerpt: Excerpt) -> np.ndarray:
        return np.asarray(self.gathered.text.corpus.story(excerpt.story), dtype=np.int64)

    def _classes(self, window: Window | Substitution) -> list[str]:
        """Return the word class of each token."""
        tokens = window.tokens.tolist()
        texts = self.vocabulary.texts
        spans = self.vocabulary.words(tokens)
        classes = word_classes(["".join(texts[t] for t in tokens[b:e]) for b, e in spans])
        return [name for name, (b, e) in zip(classes, spans, strict=True) for _ in range(b, e)]

    def _scores(self, unit: UnitExamples, trie: Trie) -> dict[str, Counts]:
        activation = self.config.thresholds.activation
        minimum = activation * unit.maximum
        whole, windows = FiringCounts(), FiringCounts()
        for excerpt in self._excerpts(unit.unit, "explain", ("top",))[: self.config.examples]:
            whole.add(excerpt.tokens, excerpt.activations > minimum)
        for example, _, _ in unit.words:
            tokens, activations = example.tokens[example.first :], example.activations
            windows.add(tokens, activations[example.first :] > activation)
        lookups = {
            "lookup": whole.usual,
            "lookup_windows": windows.usual,
            "lookup_published": whole.any,
        }
        held_out = []
        for excerpt in self._excerpts(unit.unit, "held_out", ("top", "sample", "random")):
            first = max(0, excerpt.start - self.config.context)
            tokens = self._story(excerpt)[first : excerpt.start + len(excerpt.tokens)]
            held_out.append(HeldOutExcerpt(tokens, excerpt.activations > minimum))
        return score(trie, lookups, held_out, activation)


def _activating_classes(unit: UnitExamples, threshold: float) -> Counter[str]:
    """Count the word classes of activating tokens and of their accepted substitutions."""
    counts: Counter[str] = Counter()
    for example, classes, accepted in unit.words:
        places = example.activating(threshold)
        counts.update(classes[place] for place in places)
        if len(classes) - 1 in places:
            counts.update(accepted)
    return counts


def _score_dict(counts: Counts) -> dict[str, float | int | None]:
    names = ("precision", "recall", "f1", "hits", "false", "missed")
    return {name: getattr(counts, name) for name in names}
