"""Neuron explanations (``neurons``): descriptions in words, scored by what they predict."""

from __future__ import annotations

from evaluations.core.options import ControlOptions, TextOptions
from evaluations.core.spec import Cost, Spec
from evaluations.suite.neurons.options import NeuronsOptions
from sat_interp.engine.job import Resources

SPEC = Spec(
    package=__name__,
    name="neurons",
    summary="Neuron explanations: what each neuron responds to, and how well that predicts it.",
    description="""\
One pass over the text gathers, for all neurons, the excerpts that activate each neuron most and
random excerpts; half of the stories are held out. An examiner explains each neuron from the first
half and predicts its activations on the held-out half from the explanation alone. The simulation
score is the correlation of predicted and actual activations; detection, fuzzing and a control with
shuffled explanations are also reported. The examiner lookup needs no model; explanations of a
language model should score higher. OPENAI_BASE_URL and OPENAI_API_KEY select an endpoint; its
replies are stored, so that an interrupted run pays for no reply twice.""",
    examples=(
        "sat-eval neurons demo:baseline demo:local-k4 --html",
        "sat-eval neurons runs/a runs/b --data stories.jsonl.gz --sample 100",
        "sat-eval neurons runs/a --examiner openai --model gpt-4o-mini --sample 20 --max-spend 2",
        "sat-eval neurons runs/a --examiner local --sample 5 --scores simulation",
        "sat-eval neurons runs/a --stream ablated --hook 'blocks.*.attn.hook_z'",
        "sat-eval neurons runs/a --sae results/a-0123abcd/sae/blocks.2.hook_mlp_out-standard",
    ),
    version=2,
    options=NeuronsOptions,
    shared=(TextOptions, ControlOptions),
    # 140 to 175 s with nine times the operations
    cost=Cost({"quick": 30, "demo": 60, "paper": 60}, power=0.5),
    resources=Resources(gpus=0.5, memory=4),
    budgets={"quick": {"stories": 500}},
    controlled=("quick", "demo", "paper"),
)
