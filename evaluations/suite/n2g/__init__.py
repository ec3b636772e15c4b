"""Neuron to Graph (``n2g``): token patterns that activate each neuron (Foote et al. 2023)."""

from __future__ import annotations

from evaluations.core.options import ControlOptions, TextOptions
from evaluations.core.spec import Cost, Spec
from evaluations.suite.n2g.options import N2gOptions
from sat_interp.engine.job import Resources

SPEC = Spec(
    package=__name__,
    name="n2g",
    summary="Neuron to Graph: token patterns that activate each neuron; metrics of the graphs.",
    description="""\
For the top-activating excerpts of each neuron, the model is used to find the shortest context in
which the neuron still fires, the tokens that matter in it, and words that can replace them. The
trie of these patterns predicts firing on held-out excerpts and is compared with three token lookups
and a constant prediction; Table 2 describes the graphs. Text, thresholds, neurons and candidate
words are the same for all models. Finished layers are kept, so that interrupted runs are
resumed.""",
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
    resources=Resources(gpus=0.5, memory=4),
    budgets={
        "quick": {"neurons_per_layer": 60, "stories": 500},
        "demo": {"neurons_per_layer": 100},
        "paper": {"neurons_per_layer": 200},
    },
    after="neurons",  # both use the same gathered excerpts
)
