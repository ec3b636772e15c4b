"""acdc: which edges of a model's computational graph a task needs."""

from __future__ import annotations

from evaluations.core.options import ControlOptions, TaskOptions
from evaluations.core.spec import Cost, Spec
from evaluations.suite.circuits.config import CircuitConfig
from sat_interp.engine.job import Resources

SPEC = Spec(
    package=__name__,
    name="acdc",
    summary="Circuits: the edges a task needs, with controls for their number.",
    description="""\
ACDC (or EAP, EAP-IG, UGS, HCGS, Edge Pruning) on the edge-factorised graph with separate queries,
keys and values, edges replaced by corrupted outputs, zero, means or optimal constants. Reported
with the number of edges: task accuracy, the circuit's KL and faithfulness on the discovery prompts
and on held-out prompts, CPR and CMD of the method, random circuits, the null task, the spread over
prompts and visiting orders, the margin to tau. The circuits are written as a figure, JSON and
GraphML.""",
    examples=(
        "sat-eval acdc demo:baseline demo:local-k4",
        "sat-eval acdc demo:baseline --task agreement --tau 0.003,0.01,0.03,0.1",
        "sat-eval acdc runs/a runs/b --task prompts.json --prompts 200 --bootstrap 10",
        "sat-eval acdc ./gpt2-directory --method eap-ig --edges 200",
        "sat-eval acdc runs/a --method ugs --ablation oa --penalty 0.01",
    ),
    version=2,
    options=CircuitConfig,
    shared=(TaskOptions, ControlOptions),
    # 50 times the edges took 1.6 times as long: on a larger graph the search is not repeated
    cost=Cost({"quick": 25, "demo": 50, "paper": 20}, grows="edges", power=0.2, guessed=("paper",)),
    resources=Resources(gpus=0.5, memory=4),
    budgets={"quick": {"prompts": 60, "random_circuits": 10}, "paper": {"no_sweep": True}},
)
