"""n2g: a neuron as a graph of the token patterns that fire it (Foote et al. 2023)."""

from __future__ import annotations

from evaluations.core.options import ControlOptions, TextOptions
from evaluations.core.spec import Cost, Spec
from evaluations.suite.n2g.options import N2gOptions

SPEC = Spec(
    package=__name__,
    name="n2g",
    summary="Neuron to Graph: the token patterns that fire each neuron, and Table 2 of the graphs.",
    description="""\
From the top-activating excerpts of each neuron the shortest context that fires it, the tokens in it
that matter, and the words that can stand in their place, all measured by the model. The trie of
these patterns predicts firing on held-out excerpts, beside three token lookups and always firing;
Table 2 describes the graphs. All models get the same text, thresholds, neurons and words. Finished
layers are kept, so that an interrupted run is resumed.""",
    examples=(
        "sat-eval n2g demo:baseline demo:local-k4",
        "sat-eval n2g demo:baseline --neuron 3.117",
        "sat-eval n2g runs/a runs/b --data stories.jsonl.gz --neurons-per-layer all",
        "sat-eval n2g runs/a --substitutes distilbert-base-uncased",
        "sat-eval n2g demo:local-k4 --stream ablated",
        "sat-eval n2g runs/a --sae results/a-0123abcd/sae/blocks.2.hook_mlp_out-standard",
    ),
    version=2,
    options=N2gOptions,
    shared=(TextOptions, ControlOptions),
    cost=Cost({"quick": 20, "demo": 40, "paper": 80}),
    budgets={
        "quick": {"neurons_per_layer": 60, "stories": 500},
        "demo": {"neurons_per_layer": 100},
        "paper": {"neurons_per_layer": 200},
    },
    after="neurons",  # both read the same excerpts, which the first of them gathers
)
