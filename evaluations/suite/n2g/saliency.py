"""How much of each token's activation hangs on each token before it.

Foote et al. 2023, section 3.2: importance of a context token = 1 - a_masked / a, a being the unit's
activation and a_masked the one with the context token replaced. It is replaced by the token that
begins a story: the only token of every model that stands for nothing, and that every model has
seen.
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
    """For each window, a matrix whose entry [s, t] is the importance of token s for token t.

    0 where s does not come before t, and where the unit does not fire on t (nothing can be lost).
    All masked windows of one length are one batch; a single one gives a row of the matrix, since
    the model is causal. Importance is at most 1, save for activations below 0 (GELU), and negative
    where the token keeps the unit down.

    Args:
        filler: the token that replaces.
    """
    found: list[np.ndarray] = [np.zeros((0, 0))] * len(windows)
    for places in by_length([window.tokens for window in windows]):
        tokens = np.stack([windows[i].tokens for i in places])
        unit = np.array([windows[i].unit for i in places])
        plain = np.stack([windows[i].activations for i in places])
        rows, length = tokens.shape
        matrix = np.zeros((rows, length, length), dtype=np.float32)
        if length > 1:  # the last token comes before none
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
        for place, one in zip(places, matrix, strict=True):
            found[place] = one
    return found
