"""``sat-eval gates``."""

from __future__ import annotations

from typing import Any

from evaluations.commands.inputs import Dtype


def gates(
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
    resamples: int = 2000,
    probe_stories: int = 160,
    probe_classes: int = 512,
    intervention_stories: int = 40,
    picture_story: int = 0,
    picture_tokens: int = 24,
) -> list[Any]:
    """Gates: which units the masks choose, what the masks tell, what it costs to exchange them.

    Over the validation split: how often each unit wins, dead units, entropy of the masks, overlap
    between neighbouring tokens and between layers. On samples of stories: how much of the next
    token a linear probe reads from the masks of each layer, beside shuffled masks, the current
    token and the clean stream; and the ablated loss with masks shuffled, random, or of another
    story. Tables are printed; a record for each model, figures and a picture of the masks over a
    story are written. Models without gates fail; the others go on.

    Examples::

        sat-eval gates demo:local-k4 demo:global-k4
        sat-eval gates runs/mine --data stories.jsonl.gz --probe-stories 400
        sat-eval gates runs/mine --picture-story 7 --picture-tokens 60
        sat-eval gates runs/mine --config gates.yaml

    Args:
        models: demo:local-k4 or demo:global-k4; a directory of ours; a training run; a hub id.
        data: demo, tinystories, a Hugging Face dataset (name:column), or .txt, .jsonl[.gz],
            .parquet files; as for sat-eval lm.
        validation: data with the validation text, where DATA has none of its own.
        tokenizer: gpt2, a directory or a hub id, in place of the model's own.
        stories: only the first so many stories.
        out: directory of the records.
        force: run again what is done.
        device: such as cpu; by default an accelerator where there is one.
        dtype: precision of the computation.
        seed: of samples of stories, shuffles, probes and the bootstrap.
        resamples: bootstrap resamples.
        probe_stories: stories the probes are trained, tuned and tested on; 0 for none.
        probe_classes: next tokens the probes tell apart, the last class being all the others.
        intervention_stories: stories on which masks are exchanged; 0 for none.
        picture_story: which story of the text the picture of masks shows, counted from 0.
        picture_tokens: how many of its tokens.

    Returns:
        A ``Record`` for each model, the written ones and those that were there.
    """
    from evaluations.commands.inputs import model_loader
    from evaluations.commands.show import finish
    from evaluations.core.model_source import sources
    from evaluations.core.runner import run
    from evaluations.core.text_source import text_finder
    from evaluations.suite.gates import report
    from evaluations.suite.gates.evaluation import EVALUATION, GatesConfig

    chosen = sources(models, tokenizer)
    text = text_finder(chosen, data, validation, stories)
    config = GatesConfig(
        seed, resamples, probe_stories, probe_classes, intervention_stories, picture_story,
        picture_tokens,
    )  # fmt: skip
    load = model_loader(device, dtype, EVALUATION, config, not (data or validation))
    outcome = run(EVALUATION, chosen, text, config, out, force, load=load)
    finish(outcome, report, out)
    return outcome.records
