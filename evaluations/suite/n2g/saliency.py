"""Saliency: the importance of each context token for each activation.

Foote et al. 2023, section 3.2: importance = 1 - a_masked / a, where a is the unit's activation and
a_masked that with the context token replaced. The replacement is the token that begins stories: it
has no meaning of its own, and every model was trained on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from evaluations.suite.n2g.prune import Window
from evaluations.suite.n2g.windows import Reader, by_length


def importances(
    reader: Reader, windows: Sequence[Window], filler: int
) -> list[Float[np.ndarray, "_ _"]]:
    """Return for each window a matrix whose entry [s, t] is the importance of token s for token t.

    Entries are 0 unless s precedes t and the unit fires on t. Masked windows of equal length form
    one batch; since the model is causal, each gives a row of the matrix. Importance is at most 1,
    except with activations below 0 (GELU), and negative where the token inhibits the unit.

    Args:
        filler: the replacement token.
    """
    matrices: list[np.ndarray] = [np.zeros((0, 0))] * len(windows)
    for places in by_length([window.tokens for window in windows]):
        tokens = np.stack([windows[i].tokens for i in places])
        unit = np.array([windows[i].unit for i in places])
        plain = np.stack([windows[i].activations for i in places])
        rows, length = tokens.shape
        matrix = np.zeros((rows, length, length), dtype=np.float32)
        if length > 1:  # the last token precedes no other
            masked = np.repeat(tokens[:, None], length - 1, axis=1)
            index = np.arange(length - 1)
            masked[:, index, index] = filler
            flat = masked.reshape(-1, length)
            starts = np.repeat([windows[i].start for i in places], length - 1)
            values = reader.read(flat, starts, np.repeat(unit, length - 1), "saliency")
            values = values.reshape(rows, length - 1, length)
            fires = (plain > 0)[:, None]
            ratio = np.divide(values, plain[:, None], out=np.ones_like(values), where=fires)
            matrix[:, :-1] = np.triu(np.ones((length - 1, length)), k=1) * (1 - ratio)
        for place, importance in zip(places, matrix, strict=True):
            matrices[place] = importance
    return matrices
