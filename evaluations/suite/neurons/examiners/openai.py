"""Examiner that uses a language model behind an OpenAI-compatible endpoint."""

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
)
from evaluations.suite.neurons.examiners.bounds import make_client
from evaluations.suite.neurons.examiners.endpoint import NO_PROBABILITIES, Endpoint
from evaluations.suite.neurons.examiners.pace import Clock, Pace
from evaluations.suite.neurons.examiners.replies import Replies
from evaluations.suite.neurons.examiners.spending import (
    Budget,
    SpendingEstimate,
    estimate_spending,
    find_price,
)
from sat_interp._util.errors import UserError
from sat_interp._util.progress import bar
from sat_interp._util.settings import check_at_least

Job = TypeVar("Job", bound=Hashable)
Answer = TypeVar("Answer")
Verdicts = tuple[bool, ...]

SIMULATED_WORDS = "words that name an action, after the name of a person"
"""Explanation of typical length, for the estimate."""


@dataclass(frozen=True)
class OpenAIConfig:
    """Settings of an endpoint."""

    concurrency: int = 8
    """Number of concurrent requests."""

    requests_per_minute: float | None = None
    """Maximum rate of requests, evenly spaced; None for no limit."""

    timeout: float = 60.0
    """Maximum seconds from a request to the end of its reply."""

    retries: int = 6
    """Maximum number of retries of a request."""

    max_spend: float | None = None
    """Maximum cost of the run in dollars; stored replies cost nothing."""

    price_in: float | None = None
    """Dollars per million input tokens; known for common OpenAI models."""

    price_out: float | None = None
    """Dollars per million output tokens."""

    judged: int = 5
    """Number of excerpts per request for detection or fuzzing."""

    def __post_init__(self) -> None:
        check_at_least(self, {"concurrency": 1, "judged": 1, "retries": 0})
        if not self.timeout > 0:
            raise UserError(f"timeout must be above 0, not {self.timeout}")


def make(
    model: str = "gpt-4o-mini",
    config: OpenAIConfig | None = None,
    replies: Path | None = None,
    clock: Clock | None = None,
) -> OpenAIExaminer:
    """Make an examiner for the endpoint at OPENAI_BASE_URL, by default OpenAI's.

    Args:
        replies: database of stored replies, by default in the user's cache directory.
        clock: clock used for waiting.

    Raises:
        UserError: OPENAI_API_KEY or the ``openai`` client is missing, or a cap has no price.
    """
    config = config or OpenAIConfig()
    if importlib.util.find_spec("openai") is None:
        raise UserError("the examiner openai needs its client: pip install 'sat-interp[examiner]'")
    if not os.environ.get("OPENAI_API_KEY"):
        raise UserError(
            "set OPENAI_API_KEY to the endpoint's key (any word if OPENAI_BASE_URL needs no key)"
        )
    budget = Budget(find_price(model, config.price_in, config.price_out), config.max_spend)
    clock = clock or Clock()
    pace = Pace(config.requests_per_minute, clock)
    import openai

    try:
        client = openai.OpenAI(
            timeout=config.timeout, max_retries=0, http_client=make_client(config.timeout)
        )
    except Exception as error:  # an invalid base URL or proxy
        raise UserError(f"OPENAI_BASE_URL: {type(error).__name__}") from None
    endpoint = Endpoint(client, model, Replies(replies), budget, pace, clock, config.retries)
    return OpenAIExaminer(endpoint, config)


class OpenAIExaminer:
    """An :class:`evaluations.suite.neurons.examiners.base.Examiner` with an endpoint.

    Levels are expected values if the endpoint returns probabilities of digits, else as written. If
    it rejects requests for probabilities, levels are requested as JSON. If a request for a unit
    fails, the unit is ``Unscored`` and its other requests are not sent.
    """

    def __init__(self, endpoint: Endpoint, config: OpenAIConfig) -> None:
        self._endpoint, self._config = endpoint, config

    @property
    def name(self) -> str:
        """Name of the model."""
        return self._endpoint.model

    def describe(self) -> dict[str, Any]:
        """Describe everything that determines the answers; constant during a run."""
        return {
            "examiner": "openai",
            "model": self.name,
            "endpoint": self._endpoint.address,
            "prompts": prompts.fingerprint(),
            "judged": self._config.judged,
            "temperature": 0,
        }

    def usage(self) -> dict[str, Any]:
        """Return requests, tokens and dollars so far, and how levels were read."""
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
    ) -> SpendingEstimate:
        """Estimate the cost of a run.

        Args:
            questions: all units to explain.
            simulated, detected, fuzzed: number of excerpts per unit, including controls.
        """
        if not questions:
            return SpendingEstimate(0, 0, 0, 0.0)
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
        return estimate_spending(typical, self._endpoint.budget.price)

    def explain(self, questions: Sequence[Question]) -> list[Explanation | Unscored]:
        """Explain each unit."""

        def explain_unit(question: Question) -> Explanation | Unscored:
            reply = self._endpoint.ask(prompts.explanation(question.excerpts))
            if isinstance(reply, Unscored):
                return reply
            return reply.failure or answers.read_explanation(reply.text)

        return self._each(questions, explain_unit, "explain")

    def simulate(
        self, simulations: Sequence[Simulation]
    ) -> list[tuple[tuple[float, ...], ...] | Unscored]:
        """Predict a level for every token of every excerpt."""

        def simulate_unit(job: tuple[str, tuple[tuple[str, ...], ...]]) -> Any:
            explanation, excerpts = job
            return _all(self._levels(explanation, tokens) for tokens in excerpts)

        jobs = [(task.explanation.text, task.excerpts) for task in simulations]
        return self._each(jobs, simulate_unit, "simulate")

    def _levels(self, explanation: str, tokens: tuple[str, ...]) -> answers.Levels | Unscored:
        reply = self._endpoint.ask(prompts.simulation(explanation, tokens))
        if isinstance(reply, Unscored) and reply is not NO_PROBABILITIES:
            return reply
        if not isinstance(reply, Unscored):
            way = "probabilities" if reply.levels else "as_written"
            levels = reply.failure or answers.read_lines(reply.text, tokens, reply.levels)
        else:
            reply = self._endpoint.ask(prompts.simulation(explanation, tokens, "json"))
            way = "json"
            if isinstance(reply, Unscored):
                return reply
            levels = reply.failure or answers.read_json(reply.text, tokens)
        if not isinstance(levels, Unscored):
            self._endpoint.count(**{way: 1})
        return levels

    def detect(self, simulations: Sequence[Simulation]) -> list[Verdicts | Unscored]:
        """Judge whether the unit fires in each excerpt."""
        jobs = [(task.explanation.text, task.excerpts) for task in simulations]
        return self._each(jobs, self._judge(prompts.detection), "detect")

    def fuzz(self, trials: Sequence[Trial]) -> list[Verdicts | Unscored]:
        """Judge whether the marked tokens of each excerpt are correct."""
        jobs = [(task.explanation.text, task.excerpts) for task in trials]
        return self._each(jobs, self._judge(prompts.fuzzing), "fuzz")

    def _judge(
        self, make_prompt: Callable[[str, Any], prompts.Prompt]
    ) -> Callable[[tuple[str, tuple[Any, ...]]], Verdicts | Unscored]:
        def judge_some(explanation: str, excerpts: tuple[Any, ...]) -> Verdicts | Unscored:
            reply = self._endpoint.ask(make_prompt(explanation, excerpts))
            if isinstance(reply, Unscored):
                return reply
            return reply.failure or answers.read_verdicts(reply.text, len(excerpts))

        def judge_unit(job: tuple[str, tuple[Any, ...]]) -> Verdicts | Unscored:
            explanation, excerpts = job
            step = self._config.judged
            verdicts = _all(
                judge_some(explanation, excerpts[at : at + step])
                for at in range(0, len(excerpts), step)
            )
            return verdicts if isinstance(verdicts, Unscored) else tuple(sum(verdicts, ()))

        return judge_unit

    def _each(self, jobs: Sequence[Job], work: Callable[[Job], Answer], what: str) -> list[Answer]:
        """Run ``work`` on every job concurrently; an error stops all jobs."""
        self._endpoint.stop(False)
        results: dict[Job, Answer] = {}
        with (
            ThreadPoolExecutor(self._config.concurrency) as pool,
            bar(total=len(set(jobs)), desc=what, unit="unit") as shown,
        ):
            try:
                futures = {pool.submit(work, job): job for job in dict.fromkeys(jobs)}
                for future in as_completed(futures):
                    results[futures[future]] = future.result()
                    shown.update()
            except BaseException:
                self._endpoint.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [results[job] for job in jobs]


def _all(parts: Any) -> Any:
    """Return all parts, or the first ``Unscored`` without evaluating later parts."""
    results = []
    for part in parts:
        if isinstance(part, Unscored):
            return part
        results.append(part)
    return tuple(results)
