"""gates: usage of units by the masks, information in the masks, and interventions on them."""

from __future__ import annotations

from evaluations.core.options import TextOptions
from evaluations.core.spec import Cost, Spec
from evaluations.suite.gates.config import GatesConfig
from sat_interp.engine.job import Resources

SPEC = Spec(
    package=__name__,
    name="gates",
    summary="Gates: which units the masks select, what they encode, the cost of other masks.",
    description="""\
On the validation split: win frequency of each unit, dead units, entropy of the masks, overlap
between neighbouring tokens and similarity between layers. On samples of stories: information on the
next token that a linear probe reads from the masks of each layer, compared with shuffled masks, the
current token and the clean stream; and the ablated loss with masks that are shuffled, random, or
taken from another story. A picture of the masks over a story is written. Models without gates fail;
the other models are still measured.""",
    examples=(
        "sat-eval gates demo:local-k4 demo:global-k4",
        "sat-eval gates runs/mine --data stories.jsonl.gz --probe-stories 400",
        "sat-eval gates runs/mine --picture-story 7 --picture-tokens 60",
        "sat-eval gates runs/mine --config gates.yaml",
    ),
    version=2,
    options=GatesConfig,
    shared=(TextOptions,),
    cost=Cost({"quick": 12, "demo": 35, "paper": 35}),
    resources=Resources(gpus=0.25, memory=2),
    budgets={"quick": {"stories": 200, "probe_stories": 50, "intervention_stories": 20}},
    needs=frozenset({"gates"}),
)
