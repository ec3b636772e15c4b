"""What is compared over seeds in the paper's tables, and in that of lenses."""

from __future__ import annotations

from evaluations.comparison.measures import Measure
from evaluations.suite.n2g.report import DEFINITIONS, TITLES

TABLE_1 = (
    Measure(
        "acdc",
        "edges",
        "IOI edges",
        1,
        "lower",
        definition="Edges of the circuit that ACDC finds for indirect-object identification (IOI)",
    ),
    Measure(
        "acdc",
        "null_edges",
        "Null task: edges",
        1,
        None,
        definition="The same where as many words change as in IOI and none bears on the answer",
    ),
    Measure(
        "circuits",
        "e20",
        "E(.2)",
        1,
        "lower",
        definition="Fewest edges whose circuit costs at most a fifth of what knowing nothing costs",
    ),
    Measure(
        "circuits",
        "e20_null",
        "E(.2), null task",
        1,
        None,
        definition="E(.2) of the null task",
    ),
    Measure(
        "sae",
        "l0",
        "SAE L0",
        2,
        "lower",
        definition="Active features of a token in a sparse autoencoder (SAE), mean over tokens",
    ),
    Measure(
        "sae",
        "ce_score",
        "CE score",
        3,
        "higher",
        definition="Share of the loss that zeroing "
        "the activation costs and the reconstruction recovers",
    ),
    Measure(
        "lm",
        "perplexity",
        "Perplexity",
        3,
        "lower",
        definition="exp(mean cross-entropy per token) over the whole text, clean stream",
    ),
    Measure(
        "lm",
        "l1_exported",
        "L1",
        4,
        None,
        definition="Mean absolute value of the parameters the paper counts",
    ),
)
PAPER = ("edges", "l0", "ce_score", "perplexity", "l1_exported")
"""The metrics of the paper's own Table 1, in its order."""
SCORES = (
    Measure(
        "neurons",
        "simulation",
        "Simulation score",
        3,
        "higher",
        definition="Correlation "
        "between activations and those predicted from the explanation, mean over neurons",
    ),
    Measure(
        "neurons",
        "control",
        "Control: shuffled explanation",
        3,
        None,
        definition="The simulation score with the explanation of another neuron",
    ),
    Measure(
        "neurons",
        "detection",
        "Detection",
        3,
        "higher",
        definition="How well explanations "
        "separate excerpts that activate a neuron from random ones",
    ),
    Measure(
        "neurons",
        "detection",
        "Detection: share scored",
        3,
        None,
        "scored",
        "Share of neurons that have a detection score",
    ),
    Measure(
        "neurons",
        "fuzzing",
        "Fuzzing",
        3,
        "higher",
        definition="How well explanations "
        "separate marked tokens that activate a neuron from marked ones that do not",
    ),
)
LENSES = (
    *(
        Measure("lens", f"area_{kind}", title, 3, "lower", definition=definition)
        for kind, title, definition in (
            (
                "oca",
                "OCA",
                "Mean over layers of KL(model || OCA lens)",
            ),
            ("tuned", "Tuned", "The same of the tuned lens"),
            ("mean", "Mean", "The same of the mean lens"),
        )
    ),
    Measure(
        "lens",
        "area_oca_minus_tuned",
        "OCA - tuned",
        3,
        None,
        definition="Area under the OCA curve minus that of the tuned lens, in nats",
    ),
    Measure(
        "lens",
        "share_oca",
        "OCA / floor",
        3,
        "lower",
        definition="Area under the OCA curve divided by the KL of the mean prediction, so that a "
        "model's own entropy does not decide",
    ),
)
_SHAPE = ("density", "density_undirected", "transitivity", "edges_to_activation", "out_degree")
_DIGITS = {"edges_to_activation": 2, "out_degree": 2, "entropy": 2, "diversity": 2}


def _graph_measure(name: str, is_nonempty: bool, is_lower: bool) -> Measure:
    return Measure(
        "n2g",
        f"{name}_nonempty" if is_nonempty else name,
        f"{TITLES[name]}, not empty" if is_nonempty else TITLES[name],
        _DIGITS.get(name, 3),
        "lower" if is_lower else None,
        definition=f"{DEFINITIONS[name]}{'; graphs with edges' if is_nonempty else ''}",
        is_fixed=True,
        is_counted=True,
    )


# Where empty graphs count 0 as in the paper, a model with more of them looks simpler: no value is
# best there, and differences are those of graphs with edges.
_PAPER = tuple(_graph_measure(name, False, False) for name in _SHAPE)
_NONEMPTY = tuple(_graph_measure(name, True, name != "out_degree") for name in _SHAPE)
_OTHERS = tuple(
    _graph_measure(name, False, name != "empty") for name in ("entropy", "diversity", "empty")
)
TABLE_2 = (*_PAPER, *_NONEMPTY, *_OTHERS)
TABLE_2_DIFFERENCES = (*_NONEMPTY, *_OTHERS)
