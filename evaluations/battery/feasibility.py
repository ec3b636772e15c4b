"""Feasibility of evaluations for a model, with budget and estimated time.

Only the model's configuration, tokenizer and text are used; its weights are not read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from evaluations.battery.plan import Budgets, plan
from evaluations.core.models import LoadedModel
from evaluations.core.options import TextOptions, make_request
from evaluations.core.spec import Spec
from evaluations.core.text import Text, check_vocabulary
from sat_interp._util.errors import UserError


@dataclass(frozen=True)
class Subject:
    """A model without weights, and the data of its evaluations.

    Attributes:
        known: the model's outline, from ``evaluations.core.models.outline``.
        task: the task of ``acdc``.
        train_tokens: counts the tokens of the training text of ``sae``, stopping past the number
            given; raises ``UserError`` if there is no text.
        text: the validation text; None if there is none.
        no_text: the reason why there is no text.
    """

    known: LoadedModel
    task: str
    train_tokens: Callable[[int], int]
    text: Text | None = None
    no_text: str = ""

    def described(self) -> list[str]:
        """Describe the model and its text, in lines."""
        known, cfg = self.known, self.known.model.cfg
        size = sum(value.numel() for value in known.model.parameters())
        architecture = cfg.original_architecture or type(known.model).__name__
        lines = [
            f"{known.name}: {architecture}, {cfg.n_layers} layers of {cfg.n_heads} heads, d_model "
            f"{cfg.d_model:,}, {size:,} parameters, context {cfg.n_ctx:,}"
        ]
        if known.tokenizer_note:
            lines.append(known.tokenizer_note)
        if self.text is None:
            return [*lines, f"no text: {self.no_text}"]
        read = self.text.describe()
        cut = int((self.text.lengths - self.text.scored(int(cfg.n_ctx))).sum())
        return [
            *lines,
            f"text: {read['spec']}, {read['n_stories']:,} stories, {read['n_tokens']:,} tokens, "
            f"{cut:,} of them beyond the context",
        ]


@dataclass(frozen=True)
class Answer:
    """Whether an evaluation can measure a model.

    Attributes:
        evaluation: name of the evaluation.
        reason: why it cannot; empty if it can.
        budget: description of the default budget.
        seconds: estimated time on one core; None if the model's size is unknown.
        is_rough: whether the estimate is extrapolated to another size of model.
    """

    evaluation: str
    reason: str = ""
    budget: str = ""
    seconds: float | None = None
    is_rough: bool = False


def answers(subject: Subject) -> list[Answer]:
    """Return for every evaluation whether it can measure the model."""
    result = []
    for job in plan([subject.known.spec], Budgets("demo")):
        try:
            budget = _budget(subject, job.spec)
            result.append(Answer(job.name, "", budget, job.estimate, job.is_rough))
        except UserError as error:
            result.append(Answer(job.name, reason=str(error)))
    return result


def _budget(subject: Subject, spec: Spec) -> str:
    """Describe the default budget of an evaluation for a model.

    Raises:
        UserError: the evaluation cannot measure the model.
    """
    (config,) = spec.configs(make_request([], spec.options, spec.shared, {}))
    spec.check(subject.known.model, config)
    if TextOptions in spec.shared:
        if subject.text is None:
            raise UserError("no text")
        check_vocabulary(subject.known.model, subject.text)
    return spec.preview(subject)
