"""ablate: what a model's components cost by each kind of ablation, and what of it is spoofing."""

from __future__ import annotations

from evaluations.core.options import TextOptions
from evaluations.core.spec import Cost, Spec
from evaluations.suite.ablate.config import AblateConfig
from sat_interp.engine.job import Resources

SPEC = Spec(
    package=__name__,
    name="ablate",
    summary="Ablation: what each component costs, by zero, means, resampling, optimal constants.",
    description="""\
Every head, MLP, attention layer and the embedding is replaced by zero, by means, by activations of
other prompts, and by the constant that costs least (optimal ablation, arXiv 2409.09951). The cost
is the KL of the predictions, on prompts that no constant was fitted on. Beside it: certificates of
the fits, rank correlations between methods, the share of the cost of zero that optimal constants
save (spoofing), and the same for the units that the model's own gates switch off. On a task, or
with --text on stories, for models that cannot do any task.""",
    examples=(
        "sat-eval ablate demo:baseline demo:local-k4 demo:global-k4",
        "sat-eval ablate demo:baseline --components heads,mlps --methods zero,mean,oa",
        "sat-eval ablate runs/mine --task greater-than --components a2.h3,m2.n17,a0.h0+m1",
        "sat-eval ablate runs/mine --text --data stories.jsonl.gz",
    ),
    version=3,
    options=AblateConfig,
    shared=(TextOptions,),
    cost=Cost({"quick": 25, "demo": 150, "paper": 300}, guessed=("paper",)),
    resources=Resources(gpus=0.5, memory=4),
    budgets={
        "quick": {
            "text": True,
            "components": ("heads", "mlps"),
            "methods": ("zero", "mean_all", "resample", "oa"),
            "fit_windows": 24,
            "held_windows": 40,
            "starts": 2,
            "sample_windows": 8,
            "evaluations": 32,
            "no_bridge": True,
        },
        "demo": {"text": True, "components": ("heads", "mlps", "attention")},
        "paper": {"text": True, "components": ("heads", "mlps", "attention"), "refits": 5},
    },
)
