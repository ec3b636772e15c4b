"""sae: how concentrated the features of a sparse autoencoder are, trained by SAELens."""

from __future__ import annotations

from evaluations.core.options import ControlOptions, TextOptions
from evaluations.core.spec import Cost, Spec
from evaluations.suite.sae.options import SaeOptions

SPEC = Spec(
    package=__name__,
    name="sae",
    summary="Sparse autoencoders: L0, CE loss score, explained variance, dead features.",
    description="""\
SAELens trains an autoencoder on the activations at a hook point, then it is measured over the whole
validation split. Several coefficients give the L0-CE front of each model, and the L0 of each at the
same CE score. A coefficient suits one model and text and kills the features of another: where the
default leaves more than half of them dead, or explains less than half of the variance, a second
autoencoder follows, with a coefficient found by a short search (--target-l0). A preset's budget is
cut to 20 passes over a small text; the table says so where a text is read more than once. Figures
not to be relied on are marked. Autoencoders are written beside the records as SAELens directories
(SAE.load_from_disk opens them); an interrupted training is resumed. Stories that are measured on
are never trained on.""",
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
    budgets={"quick": {"stories": 300}, "paper": {"preset": "paper"}},
)
