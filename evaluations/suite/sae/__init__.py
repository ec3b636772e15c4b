"""Sparse autoencoders (``sae``): L0, CE loss score, explained variance and dead features."""

from __future__ import annotations

from evaluations.core.options import ControlOptions, TextOptions
from evaluations.core.spec import Cost, Spec
from evaluations.suite.sae.config import SaeOptions
from sat_interp.engine.job import Resources

SPEC = Spec(
    package=__name__,
    name="sae",
    summary="Sparse autoencoders: L0, CE loss score, explained variance, dead features.",
    description="""\
SAELens trains an autoencoder on the activations at a hook point, which is then evaluated on the
whole validation split. Several coefficients give the L0-CE front of each model and the L0 of each
model at the same CE score. The best coefficient depends on the model and the text: if the default
leaves more than half of the features dead, or explains less than half of the variance, a second
autoencoder is trained with a coefficient found by a short search (--target-l0). On a small text, a
preset's budget is limited to 20 passes; the table reports texts that are read more than once.
Unreliable results are marked. Autoencoders are written beside the records as SAELens directories
(open them with SAE.load_from_disk); interrupted trainings are resumed. Training and evaluation use
different stories.""",
    examples=(
        "sat-eval sae demo:baseline demo:local-k4 demo:global-k4",
        "sat-eval sae demo:baseline demo:local-k4 --l1 1,2,5,10",
        "sat-eval sae runs/mine --data my.txt --target-l0 16 --control untrained",
        "sat-eval sae runs/mine --preset paper",
        "sat-eval sae runs/mine --architecture topk --k 16,32 --hook blocks.3.hook_resid_post",
        "sat-eval sae runs/mine --sae ./somebodys-sae --hook blocks.3.hook_resid_post",
    ),
    version=3,
    options=SaeOptions,
    shared=(TextOptions, ControlOptions),
    cost=Cost({"quick": 25, "demo": 30, "paper": 9000}, guessed=("paper",)),
    resources=Resources(gpus=0.5, memory=4),
    budgets={"quick": {"stories": 300}, "paper": {"preset": "paper"}},
)
