"""Which evaluations a model can go through, with what budget and in what time, before any is run.

A model's weights are not read: its configuration, its tokenizer and its text decide.
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
    """A model whose weights have not been read, and what it would be measured on.

    Attributes:
        known: as ``evaluations.core.models.outline`` returns it.
        task: of ``acdc``.
        train_tokens: counts the tokens of the text that ``sae`` would train on, no further than
            past the number given; raises ``UserError`` where there is none.
        text: None where there is none; ``no_text`` then says why.
    """

    known: LoadedModel
    task: str
    train_tokens: Callable[[int], int]
    text: Text | None = None
    no_text: str = ""

    def described(self) -> list[str]:
        """Return what the model is and what it would be measured on, in lines."""
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
            f"text: {read['spec']}, {read['n_stories']:,} stories, {read['n_tokens']:,} tokens, of "
            f"them {cut:,} beyond the context",
        ]


@dataclass(frozen=True)
class Answer:
    """Whether one evaluation can measure one model.

    Attributes:
        reason: why it cannot; empty where it can.
        budget: what the command reads and makes by default.
        seconds: what that takes on one core, estimated from the built-in models' times; None where
            no file tells the model's size.
        is_rough: whether the model is of a size nobody has timed.
    """

    evaluation: str
    reason: str = ""
    budget: str = ""
    seconds: float | None = None
    is_rough: bool = False


def answers(subject: Subject) -> list[Answer]:
    """Return, for every evaluation, whether it can measure the model."""
    found = []
    for job in plan([subject.known.spec], Budgets("demo")):
        try:
            budget = _budget(subject, job.spec)
            found.append(Answer(job.name, "", budget, job.estimate, job.is_rough))
        except UserError as error:
            found.append(Answer(job.name, reason=str(error)))
    return found


def _budget(subject: Subject, spec: Spec) -> str:
    """Return what an evaluation's defaults read and make of a model.

    Raises:
        UserError: it cannot measure the model.
    """
    (config,) = spec.configs(make_request([], spec.options, spec.shared, {}))
    spec.check(subject.known.model, config)
    if TextOptions in spec.shared:
        if subject.text is None:
            raise UserError("no text")
        check_vocabulary(subject.known.model, subject.text)
    return spec.preview(subject)
