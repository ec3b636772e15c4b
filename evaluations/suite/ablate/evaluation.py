"""ablate: what a model's components cost by each kind of ablation, and what of it is spoofing.

Optimal ablation: Li and Janson 2024, arXiv 2409.09951. The bridge to self-ablation (spoof share,
nearness of the optimal constant to zero, switched-off units, concentration, redundancy) is this
project's own; ``docs/evaluations/ablate.md`` defines every figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.core.ablation import (
    KINDS,
    ComponentSet,
    Feature,
    Place,
    find_components,
    has_neurons,
)
from evaluations.core.ablation_pass import SITES
from evaluations.core.ablation_run import CleanRun
from evaluations.core.ablation_values import without_partner
from evaluations.core.blocks import check_parts
from evaluations.core.inputs import default_task, text_data
from evaluations.core.models import LoadedModel, at_least_float32, evaluation_mode
from evaluations.core.options import Request
from evaluations.core.record import Metric
from evaluations.core.spec import Measurement
from evaluations.core.text import Text, check_vocabulary
from evaluations.suite.ablate import metrics
from evaluations.suite.ablate.config import AblateConfig
from evaluations.suite.ablate.data import Split, split_prompts, split_text
from evaluations.suite.ablate.measure import LARGE, Bench
from evaluations.suite.ablate.switched_off import (
    AblatedStream,
    SwitchedOff,
    has_gates,
    measure_ablated_stream,
    measure_switched_off,
)
from evaluations.tasks.pairs import TaskPrompts, competence
from evaluations.tasks.registry import make_task
from sat_interp._util.errors import UserError
from sat_interp._util.files import expanded
from sat_interp.model.transformer import SelfAblatingTransformer

JOINT_EVALUATIONS = 40
"""Evaluations of the joint fit of all switched-off units: over a thousand numbers."""


def evaluate(
    model: HookedTransformer, data: TaskPrompts | Text, config: AblateConfig
) -> Measurement:
    """Measure a model's components on a task's prompts, or on windows of text.

    Raises:
        UserError: unknown components, too few prompts or stories, prompts that cannot be split, or
            activations that are not finite.
    """
    with evaluation_mode(model):
        return _ablate(at_least_float32(model), data, config)


def prepare(
    request: Request, configs: Sequence[AblateConfig]
) -> Callable[[LoadedModel], TaskPrompts | Text]:
    """Return what makes each model's prompts, or its text."""
    (config,) = configs
    if config.text:
        return text_data(request, configs)
    n = _n_fit(config) + config.held_prompts

    def prompts_of(loaded: LoadedModel) -> TaskPrompts:
        task = config.task or default_task(loaded)
        return make_task(task, loaded.tokenizer, n, config.seed, not config.no_bos)

    return prompts_of


def preview(subject: Any) -> str:
    """Return what the defaults measure of a model."""
    return f"{subject.task}: {len(_components(subject.known.model, AblateConfig()))} components"


def check(model: HookedTransformer, config: AblateConfig) -> None:
    """Refuse components that the model does not have, and blocks that are only run as a whole.

    Raises:
        UserError: as above.
    """
    check_parts(model, "ablate")
    if config.sae is None:
        find_components(model, config.components)


def _ablate(
    model: HookedTransformer, data: TaskPrompts | Text, config: AblateConfig
) -> Measurement:
    skill, split = None, _split(model, data, config)
    if isinstance(data, TaskPrompts):
        skill = competence(model, data)
    bench = Bench(model, split, config, "all" if isinstance(data, Text) else "last")
    measured = bench.measure(_components(model, config))
    found: list[Metric] = metrics.task_metrics(skill) if skill else []
    prior = prior_kl([bench.large, bench.held])
    alone = without_partner(bench.held).numpy()
    found += metrics.component_metrics(measured, prior, config, alone)
    switched_off = _switched_off(bench, config) if not config.no_bridge else []
    stream = _stream(model, split, bench, config) if not config.no_bridge else None
    found += metrics.bridge_metrics(measured, switched_off, stream, config)
    extra: dict[str, Any] = {
        "mode": "text" if isinstance(data, Text) else "task",
        "n_fit": len(bench.fit),
        "n_fit_large": len(bench.large),
        "n_held": len(bench.held),
        "window": config.window if isinstance(data, Text) else None,
        "first_ablated": split.first,
        "left_out": split.left_out,
        "marked": None if skill is None else metrics.mark(skill),
        "prior": prior,
        "methods": bench.methods,
        "components": [metrics.row(one, config) for one in measured],
        "correlations": metrics.correlations(measured, config),
        "shares": metrics.shares(measured, config),
        "checks": metrics.checks(measured, prior_by_length(bench.fit)),
        "losers": [_switched_off_row(one) for one in switched_off],
    }
    return Measurement(found, extra)


def _split(model: HookedTransformer, data: TaskPrompts | Text, config: AblateConfig) -> Split:
    if isinstance(data, Text):
        check_vocabulary(model, data)
        window = min(config.window, int(model.cfg.n_ctx))
        return split_text(data, config.fit_windows, config.held_windows, window, config.seed)
    return split_prompts(data, _n_fit(config), config.held_prompts, config.seed)


def _n_fit(config: AblateConfig) -> int:
    """How many prompts are fitted on: the larger number where anything needs it."""
    needs_many = (
        not config.no_bridge
        or "oa_pos" in config.methods
        or any(KINDS.get(name, "set") in LARGE for name in config.components)
    )
    return max(config.fit_prompts, config.fit_prompts_large if needs_many else 0)


def _components(model: HookedTransformer, config: AblateConfig) -> list[ComponentSet]:
    names = list(config.components)
    if not config.no_bridge and "heads" in names and "head-sets" not in names:
        names.append("head-sets")
    if model.cfg.attn_only and "mlps" in names and len(names) > 1:
        names.remove("mlps")
    features = _features(model, config.sae) if config.sae else None
    return find_components(model, names, features)


def _features(model: HookedTransformer, directory: str) -> tuple[Place, Feature]:
    """An autoencoder's place and features.

    Raises:
        UserError: it cannot be opened, or reads a hook point whose features cannot be ablated.
    """
    from evaluations.core.autoencoder import hook_point, open_sae

    path = expanded(directory)
    name = hook_point(path)
    for layer in range(model.cfg.n_layers):
        for site in SITES:
            if name == f"blocks.{layer}.{site}":
                sae = open_sae(path, str(model.W_E.device))
                sae.turn_off_forward_pass_hook_z_reshaping()  # heads are side by side here
                sae.to(model.W_E.dtype)
                return (layer, site), Feature(sae.encode, sae.W_dec.detach())
    raise UserError(f"features at {name} cannot be ablated: the model has no such site")


def prior_kl(runs: Sequence[CleanRun]) -> float:
    """Return I, the mean KL of the predictions from their mean: what knowing nothing costs.

    I = H(mean of p) - mean of H(p), in nats; on text the mean over the window's positions of each
    one's own. From n prompts it is at most ln n and biased low.
    """
    total, entropy, n = _sums(runs)
    mean = total / n
    return float((-(mean * mean.clamp(min=1e-300).log()).sum(-1)).mean()) - entropy / n


def prior_by_length(run: CleanRun) -> float:
    """Return I with a mean for each length of prompt: the bound of any constant embedding."""
    buckets = [run.bucket_run(number) for number in range(len(run.buckets))]
    return sum(prior_kl([one]) * len(one) for one in buckets) / len(run)


def _sums(runs: Sequence[CleanRun]) -> tuple[Float[Tensor, "pos d_vocab"], float, int]:
    total, entropy, n = None, 0.0, 0
    for run in runs:
        for number, bucket in enumerate(run.buckets):
            for start in range(0, len(bucket), 16):
                p = run.log_probs(number, slice(start, start + 16))
                entropy -= float((p.exp() * p).sum(-1).mean(-1).sum())
                own = p.exp().sum(0).cpu()
                total, n = own if total is None else total + own, n + len(p)
    assert total is not None
    return total, entropy, n


def _switched_off(bench: Bench, config: AblateConfig) -> list[SwitchedOff]:
    """The switched-off units by the model's own gates, by size and at random."""
    model = bench.large.model
    if not has_neurons(model):
        return []
    choices = [*(["own"] if has_gates(model) else []), "top", "random"]
    evaluations = min(config.evaluations, JOINT_EVALUATIONS)
    return [
        measure_switched_off(
            bench.fit, bench.held, choice, config.losers_k, evaluations, config.seed
        )
        for choice in choices
    ]


def _stream(
    model: HookedTransformer, split: Split, bench: Bench, config: AblateConfig
) -> AblatedStream | None:
    """The ablated stream's loss on text, of models that have one."""
    if bench.scored != "all" or not has_gates(model):
        return None
    assert isinstance(model, SelfAblatingTransformer)
    evaluations = min(config.evaluations, JOINT_EVALUATIONS)
    sides = split.fit.clean, split.held.clean
    return measure_ablated_stream(model, *sides, evaluations, config.memory * 2**20)


def _switched_off_row(switched_off: SwitchedOff) -> dict[str, Any]:
    row = asdict(switched_off)
    return {
        **row,
        "zero": float(switched_off.zero.mean()),
        "constants": float(switched_off.constants.mean()),
    }
