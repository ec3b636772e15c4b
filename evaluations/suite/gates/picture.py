"""The units that each token of a story selects, layer by layer."""

from __future__ import annotations

from typing import Any

import torch

from evaluations.core.text import Text
from evaluations.suite.gates.masks import SITES, kept_units, read_gates, winners
from sat_interp._util.errors import UserError
from sat_interp.model.transformer import SelfAblatingTransformer


@torch.inference_mode()
def picture(
    model: SelfAblatingTransformer, text: Text, story: int, n_tokens: int
) -> dict[str, Any]:
    """Return the winners at the first ``n_tokens`` positions of a story, start token included.

    Returns:
        ``story``; ``tokens``, as text; and for ``attention`` and ``neuron`` a list by layer of a
        list by position of the k winners' numbers, joined by spaces.

    Raises:
        UserError: the text has no such story.
    """
    if not 0 <= story < len(text):
        raise UserError(f"there is no story {story}: the text has {len(text)}, counted from 0")
    ids = [text.start, *text.corpus.story(story).tolist()]
    ids = ids[: min(n_tokens, int(model.cfg.n_ctx))]
    rankings = read_gates(model, torch.tensor([ids], device=model.W_E.device)).rankings
    shown: dict[str, Any] = {"story": story}
    shown["tokens"] = [str(text.tokenizer.decode([token])) for token in ids]
    for site in SITES:
        k = kept_units(model, site)
        layers = [winners(ranking, k)[0].sort(-1).values for ranking in rankings[site]]
        shown[site] = [
            [" ".join(map(str, position)) for position in layer.tolist()] for layer in layers
        ]
    return shown
