"""``sat-eval check``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from evaluations.battery.feasibility import Answer, Subject
    from evaluations.core.model_source import ModelSource
    from evaluations.core.models import LoadedModel
    from evaluations.core.text import Text
    from evaluations.core.text_source import TrainingText


def check(
    models: list[str],
    data: str | None = None,
    validation: str | None = None,
    tokenizer: str | None = None,
    stories: int | None = None,
) -> list[Any]:
    """Which evaluations will work on a model, with what budget and time; no weights are read.

    For each model: what it is, the text it would be measured on, and for every evaluation whether
    it can be run, what its defaults read and make, and about how long that takes on one core.

    Examples::

        sat-eval check ./gpt2-directory --data stories.jsonl.gz
        sat-eval check demo:baseline runs/mine

    Args:
        models: demo:baseline, demo:local-k4 or demo:global-k4; a directory of ours or of
            Hugging Face; a training run; a hub id.
        data: the text, as in sat-eval lm. Needed for models whose training text is not known.
        validation: data with the validation text, where DATA has none of its own.
        tokenizer: gpt2, a directory or a hub id, in place of the model's own.
        stories: only the first so many stories.

    Returns:
        For each model that can be read, an ``Answer`` for every evaluation.
    """
    from evaluations.battery.feasibility import answers
    from evaluations.commands.show import console, say
    from evaluations.core.model_source import sources
    from evaluations.core.runner import Outcome
    from evaluations.core.text_source import text_finder, training_text_finder
    from sat_interp._util.errors import UserError

    chosen = sources(models, tokenizer)
    text_of = text_finder(chosen, data, validation, stories)
    trained_on = training_text_finder(chosen, data, validation)
    shown, outcome, found = console(), Outcome(), []
    for source in chosen:
        try:
            subject = _subject(source, text_of, trained_on)
        except UserError as error:
            outcome.failures[source.label] = str(error)
            continue
        found.append(answers(subject))
        for line in _described(subject):
            say(shown, line)
        shown.print(_table(found[-1]))
    outcome.raise_failures()
    return found


def _subject(
    source: ModelSource,
    text_of: Callable[[LoadedModel], Text],
    trained_on: Callable[[LoadedModel], TrainingText],
) -> Subject:
    """Return what can be known of a model, its control or the model itself.

    Raises:
        UserError: the model cannot be read.
    """
    from evaluations.battery.feasibility import Subject
    from evaluations.commands.acdc import default_task
    from sat_interp._util.errors import UserError

    known = source.outline

    def train_tokens(enough: int) -> int:
        return trained_on(known).n_tokens(enough)

    try:
        return Subject(known, default_task(known), train_tokens, text_of(known))
    except UserError as error:
        return Subject(known, default_task(known), train_tokens, no_text=str(error))


def _described(subject: Subject) -> list[str]:
    """Return what the model is and what it would be measured on, in two lines."""
    known, cfg = subject.known, subject.known.model.cfg
    size = sum(value.numel() for value in known.model.parameters())
    architecture = cfg.original_architecture or type(known.model).__name__
    lines = [
        f"{known.name}: {architecture}, {cfg.n_layers} layers of {cfg.n_heads} heads, d_model "
        f"{cfg.d_model:,}, {size:,} parameters, context {cfg.n_ctx:,}"
    ]
    if known.tokenizer_note:
        lines.append(known.tokenizer_note)
    if subject.text is None:
        lines.append(f"no text: {subject.no_text}")
    else:
        read = subject.text.describe()
        cut = int((subject.text.lengths - subject.text.scored(int(cfg.n_ctx))).sum())
        lines.append(
            f"text: {read['spec']}, {read['n_stories']:,} stories, {read['n_tokens']:,} tokens, of "
            f"them {cut:,} beyond the context"
        )
    return lines


def _table(answers: Sequence[Answer]) -> Table:
    from rich.table import Table

    from evaluations.battery.progress import duration
    from sat_interp._util import escape

    table = Table()
    for name in ("Evaluation", "Can run", "Budget, or what is missing", "Time on one core"):
        table.add_column(name)
    for one in answers:
        seconds = "unknown" if one.seconds is None else f"about {duration(one.seconds)}"
        rough = " (extrapolated)" if one.is_rough and one.seconds is not None else ""
        table.add_row(
            one.evaluation, "no" if one.reason else "yes",
            escape.terminal(one.reason or one.budget),
            "" if one.reason else seconds + rough,
        )  # fmt: skip
    return table
