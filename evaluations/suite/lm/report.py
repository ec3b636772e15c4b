"""What ``lm`` found: its tables."""

from __future__ import annotations

from evaluations.tables.tables import Column, Layout

LANGUAGE = (
    Layout(
        "Language modelling",
        (
            Column("lm", "perplexity", "Perplexity", 2, interval=True),
            Column("lm", "ablated_perplexity", "ablated", 2, interval=True),
            Column("lm", "bits_per_byte", "Bits/byte", 3, interval=True),
            Column("lm", "ablated_bits_per_byte", "ablated", 3),
        ),
        "Each story is read on its own, from the token that begins stories; its closing "
        "end-of-text token is scored, what does not fit into the context is cut.",
    ),
    Layout(
        "Sparsity of weights and activations",
        (
            Column("lm", "l1_exported", "L1 (paper)", 4),
            Column("lm", "l1_tied", "L1 tied", 4),
            Column("lm", "z_l0", "z L0", 3),
            Column("lm", "z_hoyer", "z Hoyer", 3),
            Column("lm", "z_gini", "z Gini", 3),
            Column("lm", "post_l0", "MLP L0", 3),
            Column("lm", "post_hoyer", "MLP Hoyer", 3),
            Column("lm", "post_gini", "MLP Gini", 3),
        ),
    ),
)


OTHER_PERPLEXITIES = {
    convention: Layout(
        f"Perplexity, {convention}",
        (
            Column("lm", name, "Perplexity", 2, interval=True),
            Column("lm", f"ablated_{name}", "ablated", 2, interval=True),
        ),
        note,
    )
    for convention, name, note in (
        ("sliding", "perplexity_sliding",
         "Stories joined into one text, read by a window of the context that moves by half of it."),
        ("per-story", "perplexity_per_story",
         "Mean of the stories' own perplexities; the closing end-of-text token is not scored."),
    )
}  # fmt: skip
