"""trace: where a model reads what it knows of a subject.

Causal tracing: Meng et al. 2022, arXiv 2202.05262; with optimal constants: Li and Janson 2024,
arXiv 2409.09951, section 4. ``docs/evaluations/trace.md`` defines every figure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from transformer_lens import HookedTransformer

from evaluations.core.blocks import check_sequential
from evaluations.core.models import LoadedModel, at_least_float32, evaluation_mode
from evaluations.core.options import Request
from evaluations.core.spec import Measurement
from evaluations.suite.trace import metrics
from evaluations.suite.trace.config import TraceConfig
from evaluations.suite.trace.measure import LEAST, Bench, split_by_subject
from evaluations.suite.trace.run import TraceRun
from evaluations.tasks.facts import FactPrompt, FactPrompts, make_facts
from sat_interp._util.errors import UserError

UNKNOWN = "the model does not know it"
TOO_LONG = "the prompt is longer than the context"
TOO_FEW = f"fewer than {LEAST} facts on a side of the split by subject"


def evaluate(model: HookedTransformer, data: FactPrompts, config: TraceConfig) -> Measurement:
    """Trace a model's facts.

    Raises:
        UserError: parallel blocks, tokens that the model does not have, or predictions that are not
            finite.
    """
    check(model, config)
    with evaluation_mode(model):
        return _trace(at_least_float32(model), data, config)


def prepare(
    request: Request, configs: Sequence[TraceConfig]
) -> Callable[[LoadedModel], FactPrompts]:
    """Return what makes each model's facts."""
    (config,) = configs

    def facts_of(loaded: LoadedModel) -> FactPrompts:
        facts = config.facts if config.facts is not None else default_facts(loaded.data)
        return make_facts(facts, loaded.tokenizer, config.n_facts, config.seed, not config.no_bos)

    return facts_of


def default_facts(data: str | None) -> str:
    """Return the planted facts for models trained on them, names to be copied for all others."""
    return "facts" if str(data).partition(":")[0] == "facts" else "ioi"


def check(model: HookedTransformer, config: TraceConfig) -> None:
    """Refuse blocks whose attention and MLP read the same stream.

    Raises:
        UserError: as above.
    """
    check_sequential(model, "trace")
    if model.cfg.attn_only and "attn" not in config.kinds:
        raise UserError("trace: the model has no MLPs: add attn to --kinds")


def preview(subject: Any) -> str:
    """Return what the defaults trace of a model."""
    return f"{default_facts(subject.known.data)}: {TraceConfig().n_facts} facts"


def _trace(model: HookedTransformer, data: FactPrompts, config: TraceConfig) -> Measurement:
    fitting, reasons = _fitting(model, data)
    reasons.update(data.left_out)
    first = _first_choices(model, fitting, config) if fitting else []
    is_known = [one.answer == token for one, token in zip(fitting, first, strict=True)]
    known, answers = fitting, first
    if config.answer == "attribute":
        known = [one for one, is_own in zip(fitting, is_known, strict=True) if is_own]
        answers = [one.answer for one in known]
    if unknown := len(fitting) - len(known):
        reasons[UNKNOWN] = unknown
    found = metrics.knowledge(sum(is_known), len(data), len(known), reasons)
    extra: dict[str, Any] = {"facts": data.name, "left_out": data.left_out, **_by_relation(known)}
    sides = split_by_subject(known, config.seed)
    if min(map(len, sides)) < LEAST:
        reason = f"{len(known):,} of {len(data):,} facts can be traced: {TOO_FEW}"
        return Measurement([*found, *metrics.undefined(config, len(known), reason)], extra)
    traced = Bench(model, known, answers, data.first, config).measure()
    own, curves = metrics.all_metrics(traced, config)
    return Measurement([*found, *own], {**extra, **curves})


def _fitting(model: HookedTransformer, data: FactPrompts) -> tuple[list[FactPrompt], Counter[str]]:
    """The facts whose prompts fit the model, and how many do not.

    Raises:
        UserError: a token that the model does not have.
    """
    highest = max(max((*one.tokens, one.answer)) for one in data.prompts)
    if highest >= model.cfg.d_vocab:
        raise UserError(
            f"{data.name}: the facts use token number {highest:,}, but the model knows only "
            f"{model.cfg.d_vocab:,}; tokenizer and model do not belong together"
        )
    fitting = [one for one in data.prompts if len(one.tokens) <= model.cfg.n_ctx]
    reasons: Counter[str] = Counter()
    if len(fitting) < len(data):
        reasons[TOO_LONG] = len(data) - len(fitting)
    return fitting, reasons


def _first_choices(
    model: HookedTransformer, facts: Sequence[FactPrompt], config: TraceConfig
) -> list[int]:
    """The model's most probable next token of each fact.

    Raises:
        UserError: predictions that are not finite.
    """
    attributes = [one.answer for one in facts]
    run = TraceRun(model, facts, attributes, [()] * len(facts), config.memory * 2**20)
    return run.first_choices().tolist()


def _by_relation(known: Sequence[FactPrompt]) -> dict[str, Any]:
    counts = Counter(one.fact.relation for one in known)
    return {"known_by_relation": dict(sorted(counts.items()))}
