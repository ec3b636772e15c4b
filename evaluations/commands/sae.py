"""``sat-eval sae``."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from evaluations.commands.inputs import Dtype

if TYPE_CHECKING:
    from evaluations.core.model_source import ModelSource
    from evaluations.core.models import LoadedModel
    from evaluations.core.runner import Outcome
    from evaluations.suite.sae.config import SaeConfig
    from evaluations.suite.sae.evaluation import SaeData

log = logging.getLogger(__name__)

Evaluated: TypeAlias = "tuple[Outcome, list[tuple[ModelSource, SaeConfig]]]"

Preset = Literal["paper", "modern", "demo"]
Architecture = Literal["standard", "topk", "batchtopk", "jumprelu", "gated"]


def sae(
    models: list[str],
    preset: Preset = "demo",
    l1: str | None = None,
    target_l0: str | None = None,
    architecture: Architecture = "standard",
    k: str | None = None,
    hook: str | None = None,
    tokens: int | None = None,
    sae: str | None = None,
    control: str | None = None,
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
    each at the same CE score. A coefficient suits one model and text and kills the features of
    another: where the default leaves more than half of them dead, or explains less than half of
    the variance, a second autoencoder follows, with a coefficient found by a short search
    (--target-l0). A preset's budget is cut to 20 passes over a small text; the table says so where
    a text is read more than once. Figures not to be relied on are marked. What was trained lies
    beside the records as SAELens directories (SAE.load_from_disk opens them); a training that was
    cut off goes on where it was.

    Examples::

        sat-eval sae demo:baseline demo:local-k4 demo:global-k4
        sat-eval sae demo:baseline demo:local-k4 --l1 1,2,5,10
        sat-eval sae runs/mine --data my.txt --target-l0 16 --control untrained
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
        target_l0: active features of a token wanted, with commas between them, in place of --l1:
            short trainings find the coefficient that gives so many.
        architecture: standard (ReLU), topk, batchtopk, jumprelu or gated, by SAELens.
        k: active features of topk and batchtopk, with commas between them. Default: 32.
        hook: hook points, with commas between them. Default: the last block but one's MLP output;
            with --sae, the one it names.
        tokens: the budget: activations trained on. Default: the preset's, but no more than 20
            passes over the training text. The schedule is scaled to it.
        sae: a SAELens directory to measure, in place of training one.
        control: also measure each model untrained (same shape, freshly initialised), shuffled
            (each weight matrix's entries permuted), or none; several with commas between them.
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
    from evaluations.commands.show import finish
    from evaluations.core.model_source import sources, with_controls
    from evaluations.suite.sae import report

    chosen = with_controls(sources(models, tokenizer), control)
    configs = _configs(
        preset, architecture, l1, target_l0, k, hook, tokens, seed, resamples,
        Path(sae) if sae else None,
    )  # fmt: skip

    def evaluate(specs: Sequence[ModelSource], wanted: Sequence[SaeConfig]) -> Evaluated:
        find = _data_finder(
            specs, data, validation, stories, out, wanted, sae, force, tokens is None
        )
        return _run(specs, wanted, find, out, force, device, dtype, data or validation)

    whole, asked = evaluate(chosen, configs)
    if not (l1 or target_l0 or k or sae):
        for spec, config in _to_search(asked, whole):
            found, _ = evaluate([spec], [config])
            whole.records += found.records
            whole.skipped += found.skipped
            whole.renewed += found.renewed
            for reason in found.failures.values():
                log.warning("%s: no better coefficient was found: %s", spec.label, reason)
    finish(whole, report, out)
    return whole.records


def _run(
    models: Sequence[ModelSource], configs: Sequence[SaeConfig],
    find: Callable[[LoadedModel], SaeData],
    out: str, force: bool, device: str | None, dtype: Dtype,
    named: str | None,
) -> Evaluated:  # fmt: skip
    """Every model with every configuration; and which of them each record is of."""
    from evaluations.commands.inputs import model_loader
    from evaluations.core.runner import Outcome, run
    from evaluations.suite.sae.evaluation import EVALUATION

    whole, asked = Outcome(), []
    for config in configs:
        load = model_loader(device, dtype, EVALUATION, config, not named)
        outcome = run(EVALUATION, models, find, config, out, force, load=load)
        whole.records += outcome.records
        whole.failures |= outcome.failures
        whole.skipped += outcome.skipped
        whole.renewed += outcome.renewed
        asked += [(spec, config) for spec in models if spec.label not in outcome.failures]
    return whole, asked


def _to_search(
    asked: Sequence[tuple[ModelSource, SaeConfig]], outcome: Outcome
) -> list[tuple[ModelSource, SaeConfig]]:
    """For which models, and with what, an autoencoder of the default coefficient is no use.

    Args:
        asked: model and configuration of each record of the outcome.
    """
    from evaluations.suite.sae.config import WITH_K, default_target
    from evaluations.suite.sae.front import is_converged
    from evaluations.suite.sae.health import is_mostly_dead

    wanted = []
    for (spec, config), record in zip(asked, outcome.records, strict=True):
        is_sound = is_converged(record) and not is_mostly_dead(record.metrics)
        if not is_sound and config.architecture not in WITH_K:
            target = default_target(int(record.extra["sae"]["d_in"]))
            wanted.append((spec, dataclasses.replace(config, sparsity=None, target_l0=target)))
    return wanted


def _configs(
    preset_name: Preset,
    architecture: Architecture,
    l1: str | None,
    target_l0: str | None,
    k: str | None,
    hook: str | None,
    tokens: int | None,
    seed: int,
    resamples: int,
    given: Path | None,
) -> list[SaeConfig]:
    """One configuration for each hook point and coefficient that is asked for."""
    from evaluations.core.autoencoder import content_hash, hook_point, open_sae
    from evaluations.suite.sae.config import WITH_K, preset
    from sat_interp._util.errors import UserError

    if (k if architecture not in WITH_K else l1) is not None:
        wrong, right = ("--k", "--l1") if k is not None else ("--l1", "--k")
        raise UserError(f"{wrong} means nothing to {architecture}: it takes {right}")
    base = dataclasses.replace(preset(preset_name, architecture), seed=seed, resamples=resamples)
    if tokens is not None:
        base = dataclasses.replace(base, tokens=tokens)
    if given is not None:
        if l1 or k or target_l0:
            raise UserError(
                "--sae is measured as it is: --l1, --target-l0 and --k mean nothing to it"
            )
        open_sae(given, "cpu")
        hook = hook or hook_point(given, "name it with --hook")
        base = dataclasses.replace(base, given=content_hash(given))
    named = _numbers("--k" if architecture in WITH_K else "--l1", k or l1)
    targets = _numbers("--target-l0", target_l0)
    sparsities: list[dict[str, float | None]] = [{"sparsity": value} for value in named]
    sparsities += [{"sparsity": None, "target_l0": value} for value in targets]
    hooks: list[str | None] = [*_listed(hook)] if hook else [None]
    return [
        dataclasses.replace(base, hook=name, **changes)  # type: ignore[arg-type]
        for name in hooks
        for changes in sparsities or [{}]
    ]


def _numbers(option: str, text: str | None) -> list[float]:
    from sat_interp._util.errors import UserError

    try:
        return list(dict.fromkeys(float(part) for part in _listed(text or "")))
    except ValueError:
        raise UserError(f"{option} takes numbers with commas between them, not {text!r}") from None


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _data_finder(
    models: Sequence[ModelSource],
    data: str | None,
    validation: str | None,
    stories: int | None,
    out: str,
    configs: Sequence[SaeConfig],
    given: str | None,
    again: bool,
    is_fitted: bool,
) -> Callable[[LoadedModel], SaeData]:
    """The texts of each model: the same held-out stories for all, never trained on here."""
    from evaluations.core.runner import model_directory, model_key
    from evaluations.core.text_source import training_text_finder
    from evaluations.suite.sae.evaluation import SaeData

    texts = training_text_finder(models, data, validation, stories)
    trained: set[Path] = set()

    def find(loaded: LoadedModel) -> SaeData:
        read = texts(loaded)
        return SaeData(
            corpus=read.corpus(),
            text=read.held_out(),
            directory=model_directory(out, loaded) / "sae",
            model={"name": loaded.name, "key": model_key(loaded)},
            together=configs,
            given=Path(given) if given else None,
            again=again,
            is_fitted=is_fitted,
            trained=trained,
        )

    return find
