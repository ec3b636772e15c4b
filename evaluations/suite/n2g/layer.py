"""All chosen units of one layer, from their excerpts to graphs, measured and scored."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evaluations.core.excerpts import Excerpt, Gathered
from evaluations.suite.n2g.augment import Substitution, augment
from evaluations.suite.n2g.config import N2gConfig, Thresholds
from evaluations.suite.n2g.graph import merged_trie, pattern_graph
from evaluations.suite.n2g.metrics import structure, words
from evaluations.suite.n2g.prune import Peak, Window, peak_of, prune
from evaluations.suite.n2g.saliency import importances
from evaluations.suite.n2g.scores import Counts, Seen, Tally, score
from evaluations.suite.n2g.substitutes import Substitutes
from evaluations.suite.n2g.trie import Example, Trie, patterns, token_texts
from evaluations.suite.n2g.vocabulary import Vocabulary
from evaluations.suite.n2g.windows import Reader
from evaluations.suite.n2g.words import word_classes

NO_EXAMPLE = "no activating example"


@dataclass
class Evidence:
    """What one unit's graph is made of.

    Attributes:
        maximum: highest activation in the excerpts it is explained from.
        examples: pruned excerpts and substitutions.
        words: of each pruned excerpt, itself, its tokens' word classes, and the classes of the
            words that may take the place of its last and keep the unit firing.
        excerpts, unfaithful: how many there were, and of how many the longest window was taken
            though it does not keep the peak.
        substituted, positive: how many words were tried, and how many of them kept the unit firing.
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
    """What the units of a layer are explained with."""

    reader: Reader
    gathered: Gathered
    substitutes: Substitutes
    vocabulary: Vocabulary
    config: N2gConfig

    def layer(self, units: Sequence[int]) -> dict[str, Any]:
        """The layer as it is kept in a file: each unit, the thresholds' effect, and the cost."""
        started, masked_before = time.perf_counter(), self.substitutes.seconds
        found = self.evidence(units)
        neurons = [self.neuron(one) for one in found]
        sensitivity = [self._under(found, other) for other in self.config.thresholds.others()]
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

    def evidence(self, units: Sequence[int]) -> list[Evidence]:
        """Prune, saliency and augment for all units and their excerpts together."""
        found = {unit: Evidence(unit) for unit in units}
        peaks: list[Peak] = []
        for unit, one in found.items():
            own = self.peaks(unit)
            one.excerpts = len(own)
            one.maximum = max((peak.activation for peak in own), default=0.0)
            peaks += own
        config = self.config
        windows = prune(self.reader, peaks, config.kept, config.context)
        matrices = importances(self.reader, windows, self.reader.start_token)
        exchanged = augment(
            self.reader, windows, matrices, self.substitutes, self.vocabulary,
            config.thresholds.importance, kept=config.kept, most=config.proposals,
            least_probability=config.least_probability,
        )  # fmt: skip
        accepted: list[list[str]] = [[] for _ in windows]
        for window, matrix, others in zip(windows, matrices, accepted, strict=True):
            one = found[window.unit]
            one.unfaithful += not window.faithful
            one.examples.append(Example.of_window(window, matrix, one.maximum))
            one.words.append((one.examples[-1], self._classes(window), others))
        for change in exchanged:
            window, matrix = windows[change.window], matrices[change.window]
            one = found[window.unit]
            one.examples.append(Example.of_substitution(change, window, matrix, one.maximum))
            one.substituted += 1
            one.positive += change.positive
            if change.positive and change.end == len(change.tokens):
                accepted[change.window].append(self._classes(change)[change.place])
        return list(found.values())

    def neuron(self, evidence: Evidence) -> dict[str, Any]:
        """A unit's patterns, graph, metrics and scores, as JSON has them."""
        thresholds, texts = self.config.thresholds, self.vocabulary.texts
        known = patterns(evidence.examples, thresholds.importance, thresholds.activation)
        told = {
            "unit": f"{self.reader.layer}.{evidence.unit}",
            "reason": None if evidence.excerpts else NO_EXAMPLE,
            "maximum": round(evidence.maximum, 5),
            "excerpts": evidence.excerpts,
            "unfaithful": evidence.unfaithful,
            "substituted": evidence.substituted,
            "positive": evidence.positive,
            "graph": merged_trie((), (), 1.0),
        }
        if not evidence.excerpts:
            return told
        counts = self._scores(evidence, Trie(known))
        return {
            **told,
            "metrics": self._metrics(evidence, thresholds),
            "classes": dict(_classes_fired(evidence, thresholds.activation)),
            "scores": {name: _scored(one) for name, one in counts.items()},
            "patterns": token_texts(known, texts),
            "graph": merged_trie(known, texts, thresholds.activation),
        }

    def _metrics(self, evidence: Evidence, thresholds: Thresholds) -> dict[str, float]:
        known = patterns(evidence.examples, thresholds.importance, thresholds.activation)
        graph = pattern_graph(known, self.vocabulary.texts, thresholds.activation)
        return {
            **structure(graph),
            **words(_classes_fired(evidence, thresholds.activation)),
            "nodes": float(len(graph)),
            "edges": float(graph.number_of_edges()),
            "self_loops": float(graph.graph["self_loops"]),
        }

    def _under(self, found: Sequence[Evidence], thresholds: Thresholds) -> dict[str, Any]:
        """Mean metrics under other thresholds of the patterns; the examples stay as they are."""
        alive = [self._metrics(one, thresholds) for one in found if one.excerpts]
        means = {name: float(np.mean([one[name] for one in alive])) for name in alive[0]} if (
            alive) else {}  # fmt: skip
        return {
            "importance": thresholds.importance, "activation": thresholds.activation,
            "n": len(alive), "metrics": means,
        }  # fmt: skip

    def peaks(self, unit: int) -> list[Peak]:
        """The peaks of a unit's top excerpts, each with the story before it."""
        excerpts = self._excerpts(unit, "explain", ("top",))[: self.config.examples]
        context = min(self.config.context, int(self.reader.model.cfg.n_ctx) - 2)
        found = [peak_of(unit, one, self._story(one), context) for one in excerpts]
        return [peak for peak in found if peak is not None]

    def _excerpts(self, unit: int, half: Any, kinds: Sequence[str]) -> list[Excerpt]:
        """A unit's distinct excerpts of some kinds."""
        found: dict[tuple[int, int], Excerpt] = {}
        for kind in kinds:
            for one in self.gathered.excerpts(self.reader.layer, unit, half, kind):
                found.setdefault((one.story, one.start), one)
        return list(found.values())

    def _story(self, excerpt: Excerpt) -> np.ndarray:
        return np.asarray(self.gathered.text.corpus.story(excerpt.story), dtype=np.int64)

    def _classes(self, window: Window | Substitution) -> list[str]:
        """The class of the word of each token."""
        tokens = window.tokens.tolist()
        texts = self.vocabulary.texts
        spans = self.vocabulary.words(tokens)
        found = word_classes(["".join(texts[t] for t in tokens[b:e]) for b, e in spans])
        return [name for name, (b, e) in zip(found, spans, strict=True) for _ in range(b, e)]

    def _scores(self, evidence: Evidence, trie: Trie) -> dict[str, Counts]:
        least = self.config.thresholds.activation * evidence.maximum
        whole, windows = Tally(), Tally()
        for one in self._excerpts(evidence.unit, "explain", ("top",))[: self.config.examples]:
            whole.count(one.tokens, one.activations > least)
        for example, _, _ in evidence.words:
            told = slice(example.first, None)
            windows.count(
                example.tokens[told],
                example.activations[told] > self.config.thresholds.activation,
            )
        lookups = {
            "lookup": whole.mostly,
            "lookup_windows": windows.mostly,
            "lookup_published": whole.ever,
        }
        held_out = []
        for one in self._excerpts(evidence.unit, "held_out", ("top", "sample", "random")):
            first = max(0, one.start - self.config.context)
            tokens = self._story(one)[first : one.start + len(one.tokens)]
            held_out.append(Seen(tokens, one.activations > least))
        return score(trie, lookups, held_out, self.config.thresholds.activation)


def _classes_fired(evidence: Evidence, threshold: float) -> Counter[str]:
    """How often each class occurs among activating tokens and their accepted substitutions."""
    found: Counter[str] = Counter()
    for example, classes, accepted in evidence.words:
        places = example.activating(threshold)
        found.update(classes[place] for place in places)
        if len(classes) - 1 in places:
            found.update(accepted)
    return found


def _scored(counts: Counts) -> dict[str, float | int | None]:
    return {
        "precision": counts.precision, "recall": counts.recall, "f1": counts.f1,
        "hits": counts.hits, "false": counts.false, "missed": counts.missed,
    }  # fmt: skip
