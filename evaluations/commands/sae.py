"""``sat-eval sae``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evaluations.commands.inputs import Dtype

if TYPE_CHECKING:
    from evaluations.models import LoadedModel
    from evaluations.sae.config import SaeConfig
    from evaluations.sae.evaluation import SaeData

Preset = Literal["paper", "modern", "demo"]
Architecture = Literal["standard", "topk", "batchtopk", "jumprelu", "gated"]


def sae(
    models: list[str],
    preset: Preset = "demo",
    l1: str | None = None,
    architecture: Architecture = "standard",
    k: str | None = None,
    hook: str | None = None,
    tokens: int | None = None,
    sae: str | None = None,
    data: str | None = None,
    validation: str | None = None,
    tokenizer: str | None = None,
    stories: int | None = None,
    out: str = "results",
    force: bool = False,
    device: str | None = None,
    dtype: Dtype = "float32",
    seed: int = 42,
    resamples: int = 1000,
) -> list[Any]:
    """Sparse autoencoders: L0, CE loss score, explained variance, dead features.

    SAELens trains an autoencoder on the activations at a hook point, then it is measured over the
    whole validation split. Several coefficients give the L0-CE front of each model, and the L0 of
    each at the same CE score. What was trained lies beside the records as SAELens directories
    (SAE.load_from_disk opens them); a training that was cut off goes on where it was.

    Examples::

        sat-eval sae demo:baseline demo:local-k4 demo:global-k4
        sat-eval sae demo:baseline demo:local-k4 --l1 1,2,5,10
        sat-eval sae runs/mine --preset paper
        sat-eval sae runs/mine --architecture topk --k 16,32 --hook blocks.3.hook_resid_post
        sat-eval sae runs/mine --sae ./somebodys-sae --hook blocks.3.hook_resid_post

    Args:
        models: demo:baseline, demo:local-k4 or demo:global-k4; a directory of ours or of
            Hugging Face; a training run; a hub id.
        preset: paper (Table 5, 409.6 M tokens), modern (today's sae-lens), demo (the paper's, in
            about half a minute).
        l1: L1 coefficients (JumpReLU: L0 coefficients), with commas between them. Default: 5
            (JumpReLU: 1).
        architecture: standard (ReLU), topk, batchtopk, jumprelu or gated, by SAELens.
        k: active features of topk and batchtopk, with commas between them. Default: 32.
        hook: hook points, with commas between them. Default: the last block but one's MLP output;
            with --sae, the one it names.
        tokens: the budget, in place of the preset's; its schedule is scaled to it.
        sae: a SAELens directory to measure, in place of training one.
        data: demo, tinystories, a Hugging Face dataset (name:column), or .txt, .jsonl[.gz],
            .parquet files. Needed for models whose training text is not known; by default what
            each model was trained on. Stories that are measured on are never trained on.
        validation: data with the validation text, where DATA has none of its own.
        tokenizer: gpt2, a directory or a hub id, in place of the model's own.
        stories: measure on only the first so many held-out stories.
        out: directory of the records and the autoencoders.
        force: train and measure again what is done.
        device: such as cpu; by default an accelerator where there is one.
        dtype: precision of the model; the autoencoder is float32, or float64 with it.
        seed: of the initial weights, the windows of text, and the bootstrap.
        resamples: bootstrap resamples.

    Returns:
        A ``Record`` for each model, hook point and coefficient.
    """
    from evaluations.commands.inputs import model_loader
    from evaluations.commands.show import finish
    from evaluations.report.sae import LAYOUTS, draw, labelled, write_text
    from evaluations.runner import Outcome, run
    from evaluations.sae.evaluation import EVALUATION

    configs = _configs(
        preset, architecture, l1, k, hook, tokens, seed, resamples, Path(sae) if sae else None
    )
    find = _data_finder(models, data, validation, stories, out, configs, sae, force)
    whole = Outcome()
    for config in configs:
        load = model_loader(device, dtype, tokenizer, EVALUATION, config, not (data or validation))
        outcome = run(EVALUATION, models, find, config, out, force, load=load)
        whole.records += outcome.records
        whole.failures |= outcome.failures
        whole.skipped += outcome.skipped
        whole.renewed += outcome.renewed
    finish(
        whole, LAYOUTS, out, write=lambda found: write_text(found, Path(out)),
        figures={"sae": lambda found: draw(found, Path(out) / "sae")}, label=labelled,
    )  # fmt: skip
    return whole.records


def _configs(
    preset_name: Preset,
    architecture: Architecture,
    l1: str | None,
    k: str | None,
    hook: str | None,
    tokens: int | None,
    seed: int,
    resamples: int,
    given: Path | None,
) -> list[SaeConfig]:
    """One configuration for each hook point and coefficient that is asked for."""
    from evaluations.autoencoder import content_hash, open_sae
    from evaluations.sae.config import WITH_K, preset
    from sat_interp.errors import UserError

    if (k if architecture not in WITH_K else l1) is not None:
        wrong, right = ("--k", "--l1") if k is not None else ("--l1", "--k")
        raise UserError(f"{wrong} means nothing to {architecture}: it takes {right}")
    base = dataclasses.replace(preset(preset_name, architecture), seed=seed, resamples=resamples)
    if tokens is not None:
        base = dataclasses.replace(base, tokens=tokens)
    if given is not None:
        if l1 or k:
            raise UserError("--sae is measured as it is: --l1 and --k mean nothing to it")
        hook = hook or open_sae(given, "cpu").cfg.metadata.hook_name
        base = dataclasses.replace(base, given=content_hash(given))
    wanted = _numbers("--k" if architecture in WITH_K else "--l1", k or l1) or [base.sparsity]
    hooks: list[str | None] = [*_listed(hook)] if hook else [None]
    return [
        dataclasses.replace(base, hook=name, sparsity=value) for name in hooks for value in wanted
    ]


def _numbers(option: str, text: str | None) -> list[float]:
    from sat_interp.errors import UserError

    try:
        return list(dict.fromkeys(float(part) for part in _listed(text or "")))
    except ValueError:
        raise UserError(f"{option} takes numbers with commas between them, not {text!r}") from None


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _data_finder(
    models: Sequence[str],
    data: str | None,
    validation: str | None,
    stories: int | None,
    out: str,
    configs: Sequence[SaeConfig],
    given: str | None,
    again: bool,
) -> Callable[[LoadedModel], SaeData]:
    """The texts of each model: the same held-out stories for all, never trained on here."""
    from evaluations.commands.inputs import origins
    from evaluations.models import origin
    from evaluations.origin import Origin, origin_of_text, text_to_score
    from evaluations.runner import model_directory, model_key
    from evaluations.sae.evaluation import SaeData
    from evaluations.text import evaluation_text
    from sat_interp.data.corpus import load_corpus
    from sat_interp.data.sources import parse_data
    from sat_interp.errors import UserError

    if data is not None:
        parse_data(data, validation)
    named = validation or data
    shared = origin_of_text(origins(models, origin), named) if named is not None else None
    trained: set[Path] = set()

    def find(loaded: LoadedModel) -> SaeData:
        own = Origin(data=loaded.data, validation=loaded.validation)
        if data is None and own.data is None:
            raise UserError("name text to train the autoencoder on with --data")
        name, held, _ = text_to_score(own, shared, data, validation)
        # held-out stories even of text no model was trained on: the autoencoder is, here
        text = evaluation_text(loaded.tokenizer, name, held, stories, trained_on=True)
        return SaeData(
            corpus=load_corpus(parse_data(name, held), "train", loaded.tokenizer),
            text=text,
            directory=model_directory(out, loaded) / "sae",
            model={"name": loaded.name, "key": model_key(loaded)},
            together=configs,
            given=Path(given) if given else None,
            again=again,
            trained=trained,
        )

    return find
