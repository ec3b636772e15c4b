"""Which evaluations a model can go through, with what budget and in what time, before any is run.

A model's weights are not read: its configuration, its tokenizer and its text decide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evaluations.battery.run import PARTS, plan
from evaluations.core.models import LoadedModel
from evaluations.core.runner import Evaluation
from evaluations.core.text import Text, check_vocabulary
from evaluations.core.units import find_units
from evaluations.suite.circuits.evaluation import EVALUATION as ACDC
from evaluations.suite.circuits.evaluation import CircuitConfig
from evaluations.suite.circuits.graph import Graph
from evaluations.suite.gates.evaluation import EVALUATION as GATES
from evaluations.suite.gates.evaluation import GatesConfig
from evaluations.suite.lm.evaluation import EVALUATION as LM
from evaluations.suite.lm.evaluation import LanguageConfig
from evaluations.suite.n2g.config import N2gConfig
from evaluations.suite.n2g.evaluation import EVALUATION as N2G
from evaluations.suite.neurons.config import NeuronsConfig
from evaluations.suite.neurons.evaluation import EVALUATION as NEURONS
from evaluations.suite.sae.budget import enough_text, fitted
from evaluations.suite.sae.config import PRESETS
from evaluations.suite.sae.evaluation import EVALUATION as SAE
from evaluations.tasks.registry import make_task
from sat_interp._util.errors import UserError

PROMPTS = 100
"""Prompts of ``sat-eval acdc`` by default."""


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


def answers(model: Subject) -> list[Answer]:
    """Return, for every evaluation, whether it can measure the model."""
    spec = model.known.spec
    jobs = {job.name: job for job in plan([spec], "demo", {}, {part.name: print for part in PARTS})}
    found = []
    for name, (evaluation, config, budget, reads_text) in _QUESTIONS.items():
        try:
            if evaluation.check is not None:
                evaluation.check(model.known.model, config)
            if reads_text:
                _check_text(model)
            job = jobs[name]
            found.append(Answer(name, "", budget(model), job.estimate, job.is_rough))
        except UserError as error:
            found.append(Answer(name, reason=str(error)))
    return found


def _check_text(model: Subject) -> None:
    if model.text is None:
        raise UserError("no text")
    check_vocabulary(model.known.model, model.text)


def _stories(model: Subject) -> str:
    assert model.text is not None
    scored = int(model.text.scored(int(model.known.model.cfg.n_ctx)).sum())
    return f"{len(model.text):,} stories, {scored:,} tokens"


def _masks(model: Subject) -> str:
    return f"{_stories(model)}; {GatesConfig().probe_stories} stories probed"


def _circuit(model: Subject) -> str:
    made = make_task(model.task, model.known.tokenizer, PROMPTS)
    return f"{model.task}: {made.n} prompts, {Graph.of(model.known.model).n_edges:,} edges"


def _autoencoder(model: Subject) -> str:
    model_of, preset = model.known.model, PRESETS["demo"]
    held = model.train_tokens(enough_text(preset))
    config = fitted(preset, preset.context_in(model_of), held)
    passes = f" ({config.tokens / held:.1f} passes over the text)" if config != preset else ""
    return f"{config.tokens:,} tokens{passes} at {config.hook_in(model_of)}"


def _neurons(model: Subject) -> str:
    return f"{sum(find_units(model.known.model).sizes):,} neurons"


def _graphs(model: Subject) -> str:
    wanted, sizes = N2gConfig().neurons_per_layer, find_units(model.known.model).sizes
    total = sum(sizes if wanted is None else (min(wanted, size) for size in sizes))
    return f"{total:,} of {sum(sizes):,} neurons"


_Question = tuple[Evaluation[Any, Any], Any, Callable[[Subject], str], bool]
_QUESTIONS: dict[str, _Question] = {
    "lm": (LM, LanguageConfig(), _stories, True),
    "gates": (GATES, GatesConfig(), _masks, True),
    "acdc": (ACDC, CircuitConfig(), _circuit, False),
    "sae": (SAE, PRESETS["demo"], _autoencoder, True),
    "neurons": (NEURONS, NeuronsConfig(examiner={"name": "lookup"}), _neurons, True),
    "n2g": (N2G, N2gConfig(), _graphs, True),
}
