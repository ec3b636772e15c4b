"""Language modelling (``lm``): perplexity, bits per byte, sparsity of weights and activations."""

from __future__ import annotations

from evaluations.core.options import TextOptions
from evaluations.core.spec import Cost, Spec
from evaluations.suite.lm.config import LanguageConfig
from sat_interp.engine.job import Resources

SPEC = Spec(
    package=__name__,
    name="lm",
    summary="Language modelling: perplexity, bits per byte, sparsity of weights and activations.",
    description="""\
Every story of the validation split is read on its own from position 0: the token that begins
stories, the story, the closing end-of-text token. Every token but the first is scored once, the
closing one included; tokens beyond the model's context are cut and counted. The clean stream is
measured and, for models with gates, the ablated stream. Other tools define perplexity differently:
see --perplexity.""",
    examples=(
        "sat-eval lm demo:baseline demo:local-k4 demo:global-k4",
        "sat-eval lm runs/mine --data stories.jsonl.gz",
        "sat-eval lm ./gpt2-directory --data train.txt --validation held-out.txt --stories 500",
        "sat-eval lm runs/mine --data stories.jsonl.gz --perplexity sliding",
        "sat-eval lm runs/mine --config lm.yaml",
    ),
    version=2,
    options=LanguageConfig,
    shared=(TextOptions,),
    cost=Cost({"quick": 4, "demo": 8, "paper": 8}),
    resources=Resources(gpus=0.25, memory=2),
    budgets={"quick": {"stories": 300, "activation_stories": 100, "resamples": 1000}},
)
