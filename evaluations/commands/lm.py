"""``sat-eval lm``."""

from __future__ import annotations

from typing import Any, Literal

from evaluations.commands.inputs import Dtype


def lm(
    models: list[str],
    data: str | None = None,
    validation: str | None = None,
    tokenizer: str | None = None,
    stories: int | None = None,
    out: str = "results",
    force: bool = False,
    device: str | None = None,
    dtype: Dtype = "float32",
    seed: int = 0,
    activation_stories: int = 200,
    resamples: int = 2000,
    perplexity: Literal["sliding", "per-story"] | None = None,
) -> list[Any]:
    """Language modelling: perplexity, bits per byte, L1 of weights, sparsity of activations.

    Every story of the validation split is read on its own from position 0: the token that begins
    stories, the story, the closing end-of-text token. Every token but the first is scored once, the
    closing one included; what does not fit into the model's context is cut, and counted. Clean
    stream and, for models with gates, the ablated one. Other tools' perplexity differs: see
    --perplexity. A table is printed; a record for each model is written. What is already there is
    not run again, whatever the model is called by now.

    Examples::

        sat-eval lm demo:baseline demo:local-k4 demo:global-k4
        sat-eval lm runs/mine --data stories.jsonl.gz
        sat-eval lm ./gpt2-directory --data train.txt --validation held-out.txt --stories 500
        sat-eval lm runs/mine --data stories.jsonl.gz --perplexity sliding
        sat-eval lm runs/mine --config lm.yaml ; sat-eval lm runs/mine --print_config

    Args:
        models: demo:baseline, demo:local-k4 or demo:global-k4; a directory of ours or of
            Hugging Face; a training run; a hub id.
        data: demo, tinystories, a Hugging Face dataset (name:column), or .txt, .jsonl[.gz],
            .parquet files. Its validation split is scored, or all of files that have none.
            Where one of the models was trained on it, all are scored on what was held out then.
            Needed for models whose training text is not known; by default the stories held out
            from what each model was trained on.
        validation: data with the validation text, where DATA has none of its own.
        tokenizer: gpt2, a directory or a hub id, in place of the model's own.
        stories: only the first so many stories.
        out: directory of the records.
        force: run again what is done.
        device: such as cpu; by default an accelerator where there is one.
        dtype: precision of the computation.
        seed: of the bootstrap, the sample of stories, and gates that are random.
        activation_stories: stories whose activations are measured; 0 for none.
        resamples: bootstrap resamples.
        perplexity: also by another convention: sliding (stories joined into one text, read by a
            window of the context that moves by half of it), per-story (mean of the stories' own
            perplexities, the closing token not scored).

    Returns:
        A ``Record`` for each model, the written ones and those that were there.
    """
    from evaluations.commands.inputs import model_loader
    from evaluations.commands.show import finish
    from evaluations.core.model_source import sources
    from evaluations.core.runner import run
    from evaluations.core.text_source import text_finder
    from evaluations.suite.lm import report
    from evaluations.suite.lm.evaluation import EVALUATION, LanguageConfig

    chosen = sources(models, tokenizer)
    text = text_finder(chosen, data, validation, stories)
    config = LanguageConfig(seed, resamples, activation_stories, perplexity=perplexity)
    load = model_loader(device, dtype, EVALUATION, config, not (data or validation))
    outcome = run(EVALUATION, chosen, text, config, out, force, load=load)
    finish(outcome, report, out)
    return outcome.records
