"""lens: what a model would predict at each layer, by logit, tuned and optimal-constant lenses."""

from __future__ import annotations

from evaluations.core.options import ControlOptions, TextOptions
from evaluations.core.spec import Cost, Spec
from evaluations.suite.lens.config import LensConfig
from sat_interp.engine.job import Resources

SPEC = Spec(
    package=__name__,
    name="lens",
    summary="Lenses: what the model would predict at each layer, and how well lenses follow it.",
    description="""\
A lens turns the stream before a block into a prediction: logit lens, tuned lens, optimal constants
in place of attention (OCA, arXiv 2409.09951), and the mean, shared-constant and resample lenses.
All are fitted on the same stories and measured on others: KL of the model's prediction from the
lens's at each layer, top-1 agreement, parameters and positions spent. Then the stream is edited,
and the change of the lens is compared with that of the model. The lenses are saved, and applied to
a prompt: a picture of layers by tokens. Models of parallel blocks are refused.""",
    examples=(
        "sat-eval lens demo:baseline demo:local-k4 demo:global-k4",
        "sat-eval lens demo:baseline --lenses logit,oca --prompt 'Lily went to the'",
        "sat-eval lens runs/mine --data stories.jsonl.gz --tuned-batch 4096",
        "sat-eval lens runs/mine --load results/mine-1a2b3c4d/lenses-0123456789ab.safetensors",
    ),
    version=2,
    options=LensConfig,
    shared=(TextOptions, ControlOptions),
    cost=Cost({"quick": 7, "demo": 180, "paper": 400}, guessed=("paper",)),
    resources=Resources(gpus=0.5, memory=4),
    budgets={
        "quick": {
            "lenses": ("logit", "tuned", "oca", "mean"),
            "fit_windows": 48,
            "held_windows": 48,
            "tuned_batch": 384,
            "sample": 384,
            "evaluations": 16,
            "no_edits": True,
            "resamples": 500,
        },
        "demo": {"tuned_batch": 4096},
    },
)
