"""A language model behind an OpenAI-compatible endpoint explains units and predicts them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from evaluations.suite.neurons.examiners import answers, prompts
from evaluations.suite.neurons.examiners.base import (
    Explanation,
    Marked,
    Question,
    Simulation,
    Trial,
    Unscored,
)  # fmt: skip
from evaluations.suite.neurons.examiners.bounds import make_client
from evaluations.suite.neurons.examiners.endpoint import NO_PROBABILITIES, Endpoint
from evaluations.suite.neurons.examiners.pace import Clock, Pace
from evaluations.suite.neurons.examiners.replies import Replies
from evaluations.suite.neurons.examiners.spending import Budget, Estimate, estimate, find_price
from sat_interp._util.errors import UserError
from sat_interp._util.progress import bar

Job = TypeVar("Job", bound=Hashable)
Answer = TypeVar("Answer")
Verdicts = tuple[bool, ...]

SIMULATED_WORDS = "words that name an action, after the name of a person"
"""As long as explanations are, for the estimate."""


@dataclass(frozen=True)
class OpenAIConfig:
    """How an endpoint is asked."""

    concurrency: int = 8
    """Requests under way at once."""

    requests_per_minute: float | None = None
    """Sent evenly; None is as fast as they are answered."""

    timeout: float = 60.0
    """Seconds to wait for an answer, from the request to its end."""

    retries: int = 6
    """How often a request is sent again."""

    max_spend: float | None = None
    """Dollars this run may cost at most; what was answered before costs nothing."""

    price_in: float | None = None
    """Dollars per million tokens read; known for OpenAI's usual models."""

    price_out: float | None = None
    """Dollars per million tokens written."""

    judged: int = 5
    """Excerpts in a request for detection or fuzzing."""

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("judged", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not self.timeout > 0:
            raise UserError(f"timeout must be above 0, not {self.timeout}")


def make(
    model: str = "gpt-4o-mini",
    config: OpenAIConfig | None = None,
    replies: Path | None = None,
    clock: Clock | None = None,
) -> OpenAIExaminer:
    """An examiner behind the endpoint that OPENAI_BASE_URL names, or OpenAI's own.

    Args:
        replies: database of what was answered before. Default: in the user's cache directory.
        clock: where it waits.

    Raises:
        UserError: no OPENAI_API_KEY, no ``openai`` client, a cap without a price.
    """
    config = config or OpenAIConfig()
    if importlib.util.find_spec("openai") is None:
        raise UserError("the examiner openai needs its client: pip install 'sat-interp[examiner]'")
    if not os.environ.get("OPENAI_API_KEY"):
        raise UserError(
            "set OPENAI_API_KEY to the endpoint's key (any word, where OPENAI_BASE_URL needs none)"
        )
    budget = Budget(find_price(model, config.price_in, config.price_out), config.max_spend)
    clock = clock or Clock()
    pace = Pace(config.requests_per_minute, clock)
    import openai

    try:
        client = openai.OpenAI(
            timeout=config.timeout, max_retries=0, http_client=make_client(config.timeout)
        )
    except Exception as error:  # a base URL that is none, a proxy it cannot use
        raise UserError(f"OPENAI_BASE_URL: {type(error).__name__}") from None
    endpoint = Endpoint(client, model, Replies(replies), budget, pace, clock, config.retries)
    return OpenAIExaminer(endpoint, config)


class OpenAIExaminer:
    """An :class:`evaluations.suite.neurons.examiners.base.Examiner` that asks an endpoint.

    A level is the expected value over the digits' probabilities where the endpoint gives them,
    else as written; where it refuses the very question, levels are asked for as JSON. A unit of
    which one request fails is ``Unscored``, and the rest of its requests are not sent.
    """

    def __init__(self, endpoint: Endpoint, config: OpenAIConfig) -> None:
        self._endpoint, self._config = endpoint, config

    @property
    def name(self) -> str:
        return self._endpoint.model

    def describe(self) -> dict[str, Any]:
        """What decides the answers; the same from the start of a run to its end."""
        return {
            "examiner": "openai",
            "model": self.name,
            "endpoint": self._endpoint.address,
            "prompts": prompts.fingerprint(),
            "judged": self._config.judged,
            "temperature": 0,
        }

    def usage(self) -> dict[str, Any]:
        """What it took so far: requests, tokens, dollars, how levels were read."""
        counts = self._endpoint.counts
        names = ("sent", "from_disk", "tokens_in", "tokens_out")
        return {
            **{name: counts[name] for name in names},
            "dollars": self._endpoint.budget.spent if self._endpoint.budget.price else None,
            "simulated": {
                way: counts[way] for way in ("probabilities", "as_written", "json") if counts[way]
            },
        }

    def estimate(
        self, questions: Sequence[Question], simulated: int, detected: int = 0, fuzzed: int = 0
    ) -> Estimate:
        """What a run will take, before anything is sent.

        Args:
            questions: all units that are to be explained.
            simulated, detected, fuzzed: excerpts of each unit, its controls included.
        """
        if not questions:
            return Estimate(0, 0, 0, 0.0)
        sample = questions[:: max(1, len(questions) // 20)]
        many, judged = len(questions) / len(sample), self._config.judged
        typical = []
        for question in sample:
            shown = question.excerpts[0] if question.excerpts else prompts.EXAMPLES[0].excerpt
            simulation = prompts.simulation(SIMULATED_WORDS, shown.tokens)
            lines = prompts.level_lines(shown.tokens, shown.levels)
            detection = prompts.detection(SIMULATED_WORDS, [shown.tokens] * judged)
            marked = [Marked(shown.tokens, frozenset({0}))] * judged
            fuzzing = prompts.fuzzing(SIMULATED_WORDS, marked)
            typical += [
                (prompts.explanation(question.excerpts), SIMULATED_WORDS, many),
                (simulation, lines, many * simulated),
                (detection, str([0] * judged), many * -(-detected // judged)),
                (fuzzing, str([0] * judged), many * -(-fuzzed // judged)),
            ]
        return estimate(typical, self._endpoint.budget.price)

    def explain(self, questions: Sequence[Question]) -> list[Explanation | Unscored]:
        def one(question: Question) -> Explanation | Unscored:
            reply = self._endpoint.ask(prompts.explanation(question.excerpts))
            if isinstance(reply, Unscored):
                return reply
            return reply.failure or answers.read_explanation(reply.text)

        return self._each(questions, one, "explain")

    def simulate(
        self, simulations: Sequence[Simulation]
    ) -> list[tuple[tuple[float, ...], ...] | Unscored]:
        def one(asked: tuple[str, tuple[tuple[str, ...], ...]]) -> Any:
            said, excerpts = asked
            return _all(self._levels(said, tokens) for tokens in excerpts)

        jobs = [(asked.explanation.text, asked.excerpts) for asked in simulations]
        return self._each(jobs, one, "simulate")

    def _levels(self, said: str, tokens: tuple[str, ...]) -> answers.Levels | Unscored:
        reply = self._endpoint.ask(prompts.simulation(said, tokens))
        if isinstance(reply, Unscored) and reply is not NO_PROBABILITIES:
            return reply
        if not isinstance(reply, Unscored):
            way = "probabilities" if reply.levels else "as_written"
            levels = reply.failure or answers.read_lines(reply.text, tokens, reply.levels)
        else:
            reply, way = self._endpoint.ask(prompts.simulation(said, tokens, "json")), "json"
            if isinstance(reply, Unscored):
                return reply
            levels = reply.failure or answers.read_json(reply.text, tokens)
        if not isinstance(levels, Unscored):
            self._endpoint.count(**{way: 1})
        return levels

    def detect(self, simulations: Sequence[Simulation]) -> list[Verdicts | Unscored]:
        jobs = [(asked.explanation.text, asked.excerpts) for asked in simulations]
        return self._each(jobs, self._judge(prompts.detection), "detect")

    def fuzz(self, trials: Sequence[Trial]) -> list[Verdicts | Unscored]:
        jobs = [(asked.explanation.text, asked.excerpts) for asked in trials]
        return self._each(jobs, self._judge(prompts.fuzzing), "fuzz")

    def _judge(
        self, ask: Callable[[str, Any], prompts.Prompt]
    ) -> Callable[[tuple[str, tuple[Any, ...]]], Verdicts | Unscored]:
        def some(said: str, excerpts: tuple[Any, ...]) -> Verdicts | Unscored:
            reply = self._endpoint.ask(ask(said, excerpts))
            if isinstance(reply, Unscored):
                return reply
            return reply.failure or answers.read_verdicts(reply.text, len(excerpts))

        def one(asked: tuple[str, tuple[Any, ...]]) -> Verdicts | Unscored:
            said, excerpts = asked
            step = self._config.judged
            parts = (some(said, excerpts[at : at + step]) for at in range(0, len(excerpts), step))
            found = _all(parts)
            return found if isinstance(found, Unscored) else tuple(sum(found, ()))

        return one

    def _each(self, jobs: Sequence[Job], work: Callable[[Job], Answer], what: str) -> list[Answer]:
        """``work`` on every job, several at once; an error ends it and keeps what was answered."""
        self._endpoint.stop(False)
        found: dict[Job, Answer] = {}
        with (
            ThreadPoolExecutor(self._config.concurrency) as pool,
            bar(total=len(set(jobs)), desc=what, unit="unit") as shown,
        ):
            try:
                futures = {pool.submit(work, job): job for job in dict.fromkeys(jobs)}
                for future in as_completed(futures):
                    found[futures[future]] = future.result()
                    shown.update()
            except BaseException:
                self._endpoint.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [found[job] for job in jobs]


def _all(parts: Any) -> Any:
    """All of them, or the first that is ``Unscored``: those after it are not even asked."""
    found = []
    for part in parts:
        if isinstance(part, Unscored):
            return part
        found.append(part)
    return tuple(found)
