"""gates: which units the masks choose, what the masks tell, what it costs to exchange them."""

from __future__ import annotations

from evaluations.core.options import TextOptions
from evaluations.core.spec import Cost, Spec
from evaluations.suite.gates.config import GatesConfig

SPEC = Spec(
    package=__name__,
    name="gates",
    summary="Gates: which units the masks choose, what the masks tell, what exchanging them costs.",
    description="""\
Over the validation split: how often each unit wins, dead units, entropy of the masks, overlap
between neighbouring tokens and between layers. On samples of stories: how much of the next token a
linear probe reads from the masks of each layer, beside shuffled masks, the current token and the
clean stream; and the ablated loss with masks shuffled, random, or of another story. A picture of
the masks over a story is written. Models without gates fail; the others go on.""",
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
    budgets={"quick": {"stories": 200, "probe_stories": 50, "intervention_stories": 20}},
    needs=frozenset({"gates"}),
)
