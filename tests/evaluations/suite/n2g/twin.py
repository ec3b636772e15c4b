"""Neuron to Graph once more, slowly: one unit, one window, one token at a time.

It shares no code with ``evaluations.suite.n2g`` but the words of its vocabulary. A window is read
as the whole story up to its end, by TransformerLens' own forward pass, with the keys of all tokens
before the window masked but the first. Patterns are matched by trying each against each token.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

Pattern = tuple[int | None, ...]


class Twin:
    """One unit explained, as ``Explainer.neuron`` does it."""

    def __init__(self, model: Any, hook: str, unit: int, start_token: int, config: Any) -> None:
        self.model, self.hook, self.unit = model, hook, unit
        self.start_token, self.config = start_token, config
        self.readings = 0

    @torch.no_grad()
    def read(self, story: list[int], start: int, end: int) -> list[float]:
        """The unit on tokens ``start`` to ``end`` of a story, nothing else of it seen."""

        def hide(scores: Tensor, hook: Any) -> Tensor:
            seen = scores.clone()
            seen[:, :, start + 1 :, 1 : start + 1] = -torch.inf
            return seen

        layers = range(self.model.cfg.n_layers)
        hooks = [(f"blocks.{layer}.attn.hook_attn_scores", hide) for layer in layers]
        tokens = torch.tensor([[self.start_token, *story[:end]]])
        with self.model.hooks(fwd_hooks=hooks):
            _, cache = self.model.run_with_cache(tokens, names_filter=[self.hook])
        self.readings += 1
        return cache[self.hook][0, start + 1 :, self.unit].float().tolist()

    def explain(self, excerpts: list[Any], stories: Any, propose: Any) -> dict[str, Any]:
        """The unit's patterns and which tokens it fires on in its windows.

        Args:
            excerpts: the unit's best, best first.
            stories: tokens of a story, by its number.
            propose: for a place (before, word, after) the words to try.
        """
        thresholds, kept = self.config.thresholds, self.config.kept
        maximum = max(one.maximum for one in excerpts)
        told: dict[Pattern, list[float]] = defaultdict(list)
        evidence: list[tuple[int, bool]] = []
        unfaithful = 0
        for excerpt in excerpts:
            story = stories(excerpt.story)
            place = excerpt.start + int(np.argmax(excerpt.activations))
            peak = excerpt.maximum
            for start in range(place, max(0, place - self.config.context) - 1, -1):
                values = self.read(story, start, place + 1)
                faithful = values[-1] == max(values) and values[-1] > kept * peak
                if faithful:
                    break
            unfaithful += not faithful
            last = place - start
            importance = np.zeros((last + 1, last + 1))
            for s in range(last):
                changed = [*story[: start + s], self.start_token, *story[start + s + 1 :]]
                masked = self.read(changed, start, place + 1)
                for t in range(s + 1, last + 1):
                    if values[t] > 0:
                        importance[s, t] = 1 - masked[t] / values[t]
            scale = peak / values[-1] if values[-1] > 0 else 1.0
            normal = [value * scale / maximum for value in values]
            normal[-1] = peak / maximum
            tokens = story[start : place + 1]
            for t in range(0 if faithful else last, last + 1):
                evidence.append((tokens[t], normal[t] > thresholds.activation))
                if normal[t] > thresholds.activation:
                    told[_path(tokens, importance, t, thresholds.importance)].append(normal[t])
            if values[-1] <= 0:
                continue
            for s in range(last + 1):  # every token is a word of its own here
                if s < last and importance[s, last] < thresholds.importance:
                    continue
                before = tokens[:s] or story[max(0, start - 1) : start]
                after = tokens[s + 1 :] or story[place + 1 : place + 2]
                for word in propose(before, tokens[s], after):
                    changed = [*story[: start + s], word, *story[start + s + 1 :]]
                    others = self.read(changed, start, place + 1)
                    normals = [value * scale / maximum for value in others]
                    new = [*tokens[:s], word, *tokens[s + 1 :]]
                    read = {last} if others[last] <= kept * values[last] else set[int]()
                    read |= {
                        t
                        for t in range(s if faithful else last, last + 1)
                        if normals[t] > thresholds.activation
                    }
                    for t in read:
                        path = _path(new, importance, t, thresholds.importance)
                        told[path].append(normals[t])
        patterns = {path: sum(values) / len(values) for path, values in told.items()}
        return {
            "patterns": patterns,
            "evidence": evidence,
            "unfaithful": unfaithful,
            "maximum": maximum,
        }

    def predict(self, patterns: dict[Pattern, float], tokens: list[int], t: int) -> float:
        """Of the pattern that names most of what stands before token t, then the longest."""
        best = (0, 0, 0.0)
        for path, activation in patterns.items():
            if len(path) > t + 1:
                continue
            if all(name is None or name == tokens[t - d] for d, name in enumerate(path)):
                named = sum(name is not None for name in path)
                best = max(best, (named, len(path), activation))
        return best[2]


def _path(tokens: list[int], importance: np.ndarray, t: int, threshold: float) -> Pattern:
    """Backwards from token t to the first that matters for it; None where any token will do."""
    path: list[int | None] = [tokens[t]]
    for s in range(t - 1, -1, -1):
        path.append(tokens[s] if importance[s, t] >= threshold else None)
    while path[-1] is None:
        path.pop()
    return tuple(path)
