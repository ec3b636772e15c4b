"""circuits: what a task costs against the number of edges, by method and ablation."""

from __future__ import annotations

from evaluations.core.options import ControlOptions
from evaluations.core.spec import Cost, Spec
from evaluations.suite.circuits.frontier.config import FrontierConfig, FrontierTask

SPEC = Spec(
    package=__name__,
    name="circuits",
    summary="Frontiers: what a task costs against the number of edges, by method and ablation.",
    description="""\
Every method finds circuits of many sizes, under every ablation. They are chosen by their cost on
the prompts they were found on and measured on held-out ones: the KL of the whole model's
predictions from the circuit's. Reported are the fewest edges at fixed shares of the cost of knowing
nothing, E(s), the fewest edges at faithfulness 0.8, and the area below the curve, each for the
task, for the null task and for random circuits; whether circuits live on harms that cancel out
(edges restored at random); and how much the circuits of different methods have in common.""",
    examples=(
        "sat-eval circuits demo:baseline demo:local-k4",
        "sat-eval circuits demo:baseline --methods acdc,eap-ig --ablations cf,zero,mean",
        "sat-eval circuits runs/mine --task greater-than --prompts 200 --points 10",
        "sat-eval circuits demo:baseline --methods acdc --control untrained",
    ),
    version=2,
    options=FrontierConfig,
    shared=(FrontierTask, ControlOptions),
    cost=Cost({"quick": 8, "demo": 35, "paper": 1900}, grows="edges", guessed=("quick", "paper")),
    budgets={
        "quick": {
            "prompts": 20,
            "methods": ("eap-ig",),
            "ablations": ("cf",),
            "points": 5,
            "random_circuits": 1,
            "restorations": 2,
            "ceiling_prompts": 200,
            "resamples": 500,
        },
        "demo": {
            "prompts": 60,
            "methods": ("acdc", "eap-ig"),
            "ablations": ("cf",),
            "points": 5,
            "random_circuits": 1,
            "restorations": 10,
        },
    },
)
