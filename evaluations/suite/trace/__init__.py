"""trace: where a model reads what it knows of a subject, by noise and by optimal constants."""

from __future__ import annotations

from evaluations.core.spec import Cost, Spec
from evaluations.suite.trace.config import TraceConfig
from sat_interp.engine.job import Resources

SPEC = Spec(
    package=__name__,
    name="trace",
    summary="Causal tracing: which outputs bring a fact back once its subject is corrupted.",
    description="""\
The tokens of a fact's subject are corrupted: by Gaussian noise (ROME, arXiv 2202.05262) or by the
constants that cost the answer least (optimal ablation, arXiv 2409.09951). Then the clean outputs of
attention or of MLPs are restored in a window of layers at some tokens, and the share of the loss
that this brings back is measured (average indirect effect), on facts about subjects that no
constant was fitted on. Beside it: other spans, random layers, one shared constant, the tokens of
another subject, and knock-outs of the clean run. Where the facts were planted, it is known which
token of the subject decides, and methods are judged by whether they find it.""",
    examples=(
        "sat-eval trace demo:facts",
        "sat-eval trace ./gpt2-directory --facts known_1000.json --windows 1,5,9",
        "sat-eval trace demo:baseline demo:local-k4 --facts ioi",
        "sat-eval trace runs/mine --facts facts.json --answer own",
    ),
    version=3,
    options=TraceConfig,
    shared=(),
    cost=Cost({"quick": 7, "demo": 240, "paper": 240}, guessed=("paper",)),
    resources=Resources(gpus=0.5, memory=4),
    budgets={
        "quick": {
            "n_facts": 60,
            "methods": ("oat", "gnt"),
            "windows": (1,),
            "draws": 3,
            "random_sets": 1,
            "evaluations": 12,
            "resamples": 500,
            "memory": 64,
        },
        "paper": {"polish": 200},
    },
)
