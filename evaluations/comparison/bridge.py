"""The measures of Table 3: ablation by zero against optimal constants (arXiv 2409.09951)."""

from __future__ import annotations

from evaluations.comparison.measures import Measure
from evaluations.core.record import Direction

_BRIDGE: tuple[tuple[str, str, int, Direction | None, str], ...] = (
    (
        "spoof_share",
        "Spoof share R",
        3,
        "lower",
        "(Sum of Delta_zero - sum of Delta_oa) / sum of Delta_zero over heads and MLPs: what "
        "of the cost of zero is not lost information",
    ),
    ("spoof_share_heads", "R, heads", 3, "lower", "R over heads"),
    ("spoof_share_mlps", "R, MLPs", 3, "lower", "R over MLPs"),
    (
        "beyond_oa_mean_all",
        "Mean beyond optimal",
        3,
        None,
        "R with the mean over prompts and positions in place of zero",
    ),
    (
        "constant_size",
        "|a*| / rms",
        2,
        None,
        "Median norm of the optimal constant over the root mean square of the activation: 0 "
        "where zero is optimal",
    ),
    (
        "losers_own_share",
        "R, units off by gates",
        3,
        None,
        "R of the units that the model's own gates switch off, constants fitted together",
    ),
    (
        "losers_top_share",
        "R, units outside top k",
        3,
        "lower",
        "R of the units outside the top k by absolute activation",
    ),
    (
        "effective_components",
        "Effective components",
        1,
        None,
        "exp of the entropy of Delta_oa over heads and MLPs",
    ),
    (
        "redundancy",
        "Redundancy of heads",
        3,
        None,
        "Delta_oa of all heads of a layer minus the sum over its heads, mean over layers",
    ),
)
TABLE_3 = tuple(
    Measure("ablate", metric, title, digits, direction, definition=definition)
    for metric, title, digits, direction, definition in _BRIDGE
)
