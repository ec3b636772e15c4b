"""Weight sparsity: only the largest entries of every matrix are kept after each optimiser step.

Gao et al. 2025, "Weight-sparse transformers have interpretable circuits" (arXiv 2511.13653), as a
rival to self-ablation: each component has few connections, because most weights are exactly 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

ANNEALED = 0.5
"""Share of the steps over which the density falls from 1 to its target (Gao et al., appendix A)."""


def density_at(target: float, step: int, steps: int) -> float:
    """Share of the entries kept after step 0, 1, ..., steps - 1.

    It falls linearly from 1 before the first step to ``target`` when half of the steps are done.
    """
    done = min(1.0, (step + 1) / (ANNEALED * steps))
    return target if done == 1.0 else 1.0 + (target - 1.0) * done


def kept_entries(entries: int, density: float) -> int:
    """Number of entries kept of a matrix: ``density * entries``, rounded half up, at least 1."""
    return max(1, int(density * entries + 0.5))


def sparse_parameters(named: Mapping[str, nn.Parameter]) -> list[nn.Parameter]:
    """The parameters that are made sparse, each with the same density.

    As in the paper: every weight matrix, every bias, and the token (here also the position)
    embedding; the unembedding is the token embedding. Not the gains and biases of the layer norms,
    which the paper folds into the matrices, and not the gates, which the paper does not have.
    """
    return [
        parameter
        for name, parameter in named.items()
        if not any(part.startswith(("ln", "gates")) for part in name.split("."))
    ]


@torch.no_grad()
def keep_largest(parameters: Iterable[Tensor], density: float) -> None:
    """Set all but the largest entries by magnitude of each tensor to 0, in place.

    Each tensor keeps :func:`kept_entries` of its own entries; of equal ones those that come first
    (after AdamW's first step all entries of a bias that began at 0 have one magnitude). AdamW's
    moments are left as they are, so an entry at 0 can return.
    """
    for parameter in parameters:
        kept = kept_entries(parameter.numel(), density)
        if kept == parameter.numel():
            continue
        size = parameter.abs().flatten()
        smallest = size.kthvalue(parameter.numel() - kept + 1).values  # of those that stay
        larger, equal = size > smallest, size == smallest
        stays = larger | (equal & (equal.cumsum(0) <= kept - larger.sum()))
        parameter.masked_fill_(~stays.view_as(parameter), 0.0)
