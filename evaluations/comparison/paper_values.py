"""The published figures: Self-Ablating Transformers (arXiv 2505.00509), Tables 1 and 2."""

from __future__ import annotations

SOURCE = "Self-Ablating Transformers (arXiv 2505.00509)"

TABLE_1: dict[tuple[str, int | None], tuple[float, ...]] = {
    ("none", None): (79, 7.22, 0.63, 5.73, 0.44),
    ("global", 8): (70, 5.22, 0.65, 6.97, 0.74),
    ("local", 8): (36, 5.0, 0.72, 6.47, 0.67),
    ("global", 4): (41, 4.9, 0.67, 6.73, 0.72),
    ("local", 4): (30, 4.01, 0.65, 6.58, 0.76),
    ("global", 2): (30, 4.57, 0.71, 6.66, 0.73),
    ("local", 2): (54, 4.9, 0.7, 6.55, 0.71),
    ("global", 1): (38, 5.48, 0.66, 6.49, 0.62),
    ("local", 1): (36, 5.33, 0.69, 6.58, 0.7),
}
"""By variant and k: IOI edges, L0, CE score, perplexity, L1. One model each, no uncertainty."""

TABLE_2: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "density": (
        (0.235, 0.409, 0.407, 0.443, 0.446, 0.420, 0.400, 0.395),
        (0.191, 0.057, 0.081, 0.070, 0.095, 0.046, 0.056, 0.083),
    ),
    "transitivity": (
        (0.000, 0.001, 0.001, 0.001, 0.001, 0.001, 0.003, 0.006),
        (0.000, 0.001, 0.000, 0.001, 0.000, 0.000, 0.000, 0.001),
    ),
    "edges_to_activation": (
        (0.71, 1.45, 1.57, 1.56, 1.40, 1.38, 1.30, 1.32),
        (0.45, 0.23, 0.17, 0.10, 0.08, 0.06, 0.04, 0.07),
    ),
    "out_degree": (
        (0.88, 0.91, 0.86, 0.86, 0.86, 0.86, 0.86, 0.89),
        (0.78, 0.74, 0.92, 0.98, 0.98, 0.98, 1.01, 1.00),
    ),
    "entropy": (
        (2.08, 2.45, 2.57, 2.10, 2.59, 2.53, 2.65, 2.45),
        (2.38, 2.48, 2.48, 2.44, 1.14, 2.40, 2.16, 2.10),
    ),
    "diversity": ((8, 8, 7, 6, 8, 8, 7, 8), (8, 8, 7, 7, 3, 6, 5, 5)),
}
"""By metric: layers 0 to 7 of the baseline and of the ablated model (which one is not said)."""

TABLE_2_NOTE = (
    f"Paper: {SOURCE}, Table 2: other data and tokens than here, and the thresholds and streams of "
    "its two models differed; entropy and diversity may be of a layer's tokens together, not means "
    "over neurons."
)
