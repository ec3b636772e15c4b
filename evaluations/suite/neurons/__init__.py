"""neurons: what each neuron responds to, in words, and how well the words predict it."""

from __future__ import annotations

from evaluations.core.options import ControlOptions, TextOptions
from evaluations.core.spec import Cost, Spec
from evaluations.suite.neurons.options import NeuronsOptions

SPEC = Spec(
    package=__name__,
    name="neurons",
    summary="Neuron explanations: what each neuron responds to, and how well the words predict it.",
    description="""\
One pass over the text gathers, for all neurons at once, excerpts that fire each most and others
drawn at random, half of the stories being held out. An examiner explains each neuron from the one
half and predicts it on the other from its explanation alone. The score is the correlation of the
two; beside it detection, fuzzing, and the same score with another neuron's explanation. The
examiner lookup needs no model: explanations of a language model should score higher. An endpoint is
named by OPENAI_BASE_URL and OPENAI_API_KEY; its replies are kept, so that an interrupted run pays
for nothing twice.""",
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
    # nine times the operations took 140 to 175 s
    cost=Cost({"quick": 30, "demo": 60, "paper": 60}, power=0.5),
    budgets={"quick": {"stories": 500}},
    controlled=("quick", "demo", "paper"),
)
