"""One chat endpoint: patient with its failures, in step with its limits, never asked twice."""

from __future__ import annotations

import logging
import random
import re
import threading
import weakref
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from evaluations.suite.neurons.examiners import bounds
from evaluations.suite.neurons.examiners.answers import Alternatives
from evaluations.suite.neurons.examiners.base import SPENDING_CAP, Unscored
from evaluations.suite.neurons.examiners.bounds import UnfitReply
from evaluations.suite.neurons.examiners.completion import OPTIONAL, Kept, is_kept, read_reply
from evaluations.suite.neurons.examiners.pace import Clock, Pace, retry_after
from evaluations.suite.neurons.examiners.prompts import Prompt
from evaluations.suite.neurons.examiners.replies import Replies, request_key
from evaluations.suite.neurons.examiners.spending import Budget, most_tokens
from sat_interp._util.errors import UserError

ALTERNATIVES = 20
"""Asked for beside each token of an answer; chat endpoints give no more."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before a request is sent again
LONGEST_HOLD = 600.0  # seconds an endpoint may ask to be left alone
PATIENCE = 20
"""Requests that fail one after the other, each after all its retries, before all is given up."""

NO_PROBABILITIES = Unscored("no log-probabilities")
UNKNOWN = re.compile(r"support|unrecogni|unknown|unexpected|permitted|allowed|extra|logprobs", re.I)
"""What endpoints that do not name the parameter say of one they refuse."""

FEW_BYTES, BYTES_PER_TOKEN = 1 << 18, 1 << 14
"""A reply may have so many bytes, and so many for each token with its 20 alternatives."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """What an endpoint answered.

    Attributes:
        finish: ``stop``, ``length``, ``content_filter``, ...
        levels: alternatives to the levels in the text, by their place in it.
    """

    text: str
    finish: str = "stop"
    levels: dict[int, Alternatives] = field(default_factory=dict)

    @property
    def failure(self) -> Unscored | None:
        """Why this is no answer, where it is none."""
        if self.finish == "length":
            return Unscored("truncated answer")
        if self.finish == "content_filter":
            return Unscored("refused")
        return None if self.text.strip() else Unscored("empty answer")


class Endpoint:
    """Asks one model, and keeps every reply before it is used; safe for threads.

    A time-out, a cut connection, a reply that is no JSON, and the statuses 408, 409, 429 and 5xx
    are tried again, each time after twice as long (with jitter), or after as long as the endpoint
    asks (Retry-After). A parameter the endpoint refuses is left out from then on. A reply that
    does not end in time, is too large, or cannot be believed is ``Unscored``, charged at the most
    it can have cost, and kept like any other.

    Args:
        client: an ``openai.OpenAI`` with no retries of its own.
        retries: how often a request is sent again.
    """

    def __init__(
        self, client: Any, model: str, replies: Replies, budget: Budget, pace: Pace,
        clock: Clock, retries: int,
    ) -> None:  # fmt: skip
        self.model, self.budget = model, budget
        self._client, self._replies, self._pace, self._clock = client, replies, pace, clock
        self._retries = retries
        weakref.finalize(self, client.close)  # its connections go when the endpoint goes
        address = urlsplit(str(client.base_url))
        # without a name, password or query: they may be secrets
        self.address = f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"
        self.counts: Counter[str] = Counter()
        self._refused: set[str] = set()
        self._failed_running = 0
        self._lock, self._locks = threading.Lock(), defaultdict[str, threading.Lock](threading.Lock)
        self._stopped, self._stop_reason = threading.Event(), ""

    @property
    def gives_probabilities(self) -> bool:
        """False once the endpoint has refused to give log-probabilities."""
        return not {"logprobs", "top_logprobs"} & self._refused

    def stop(self, stopped: bool = True, reason: str = "stopped") -> None:
        """Send nothing more: whoever is asking gets an error with the reason at the next try."""
        self._stop_reason = reason
        (self._stopped.set if stopped else self._stopped.clear)()

    def count(self, **counts: int) -> None:
        with self._lock:
            self.counts.update(counts)

    def ask(self, prompt: Prompt) -> Reply | Unscored:
        """The reply, from disk where it is known; ``Unscored`` where there is none.

        Raises:
            UserError: asking on is of no use: key, model or credit refused, or nothing answers.
        """
        while True:
            if prompt.levels and not self.gives_probabilities:
                return NO_PROBABILITIES
            request = self._request(prompt)
            key = request_key({"endpoint": self.address, **request})
            with self._lock:
                lock = self._locks[key]
            with lock:  # the same question from two threads is one question
                kept = self._replies.get(key, is_kept)
                if kept is not None:
                    self.count(from_disk=1)
                else:
                    answered = self._send(prompt, request)
                    if isinstance(answered, Unscored):
                        return answered
                    kept = answered
                    try:
                        self._replies.put(key, kept)
                    except UserError as error:  # later replies would be paid for and lost, too
                        self.stop(reason=str(error))
                        raise
                    self._note(kept.get("failed"))
            if "failed" in kept:
                return Unscored(kept["failed"])
            if "refused" not in kept:
                levels = {place: (text, found) for place, text, found in kept["levels"]}
                return Reply(kept["text"], kept["finish"], levels)
            with self._lock:
                self._refused.add(kept["refused"])

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": role, "content": text} for role, text in prompt.messages],
            "temperature": 0,
            "max_tokens": prompt.max_tokens,
        }
        if prompt.levels:
            request |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
        for name in self._refused & set(request):
            value = request.pop(name)
            if name == "max_tokens":  # its name for models that think before they answer
                request["max_completion_tokens"] = value
        return request

    def _note(self, failure: str | None) -> None:
        """Remember whether the last request was answered.

        Raises:
            UserError: too many were not, one after the other.
        """
        with self._lock:
            self._failed_running = self._failed_running + 1 if failure else 0
            hopeless = self._failed_running >= PATIENCE
        if hopeless:
            raise UserError(
                f"{self.address} does not answer ({failure}, {PATIENCE} requests running); "
                "replies so far are kept: run again to go on"
            )

    def _send(self, prompt: Prompt, request: dict[str, Any]) -> Kept | Unscored:
        """Send it until it is answered; what is to be kept, or why there is nothing."""
        reason = ""
        for attempt in range(self._retries + 1):
            if attempt:
                self._clock.sleep(
                    min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
                )
            self._pace.wait()
            if self._stopped.is_set():
                raise UserError(self._stop_reason)
            aside = self.budget.set_aside(prompt)
            if aside is None:
                return Unscored(SPENDING_CAP)
            spent = aside  # until it is known to be less
            try:
                self.count(sent=1)
                kept, reason, spent = self._once(prompt, request, aside)
            finally:
                self.budget.settle(aside, spent)
            if kept is not None:
                return kept
            if not reason.startswith("again: "):
                return Unscored(f"no answer: {reason}")
        reason = reason.removeprefix("again: ")
        self._note(reason)
        return Unscored(f"no answer: {reason}")

    def _once(
        self, prompt: Prompt, request: dict[str, Any], most: float
    ) -> tuple[Kept | None, str, float]:
        """What is to be kept, if anything; else why not; and what it cost."""
        import openai

        room = prompt.max_tokens
        largest = bounds.LARGEST.set(FEW_BYTES + BYTES_PER_TOKEN * room)
        try:
            answer = self._client.chat.completions.with_raw_response.create(**request)
            kept, tokens = read_reply(answer.http_response.content, (most_tokens(prompt), room))
        except UnfitReply as error:
            return {"failed": str(error)}, "", most
        except openai.APITimeoutError:
            return None, "again: time-out", most  # it may have been charged
        except openai.APIConnectionError as error:
            arrived = type(error.__cause__).__name__ != "ConnectError"
            return None, "again: connection", most if arrived else 0.0
        except openai.APIStatusError as error:
            return (*self._refusal(error, request), 0.0)
        except (openai.APIError, ValueError):
            return None, "again: malformed reply", most
        finally:
            bounds.LARGEST.reset(largest)
        if tokens is None:
            return kept, "", most
        self.count(tokens_in=tokens[0], tokens_out=tokens[1])
        return kept, "", self.budget.price(*tokens) if self.budget.price else 0.0

    def _refusal(self, error: Any, request: dict[str, Any]) -> tuple[Kept | None, str]:
        """Whether a status is worth another try, is final, or tells of a parameter too many."""
        status, code = error.status_code, str(error.code or "")
        if status in (401, 403):
            raise UserError(
                f"{self.address} refuses the key ({status}): check OPENAI_API_KEY"
            ) from None
        if status == 404:
            raise UserError(
                f"{self.address} knows no model {self.model!r} (404): check the model's name and "
                "OPENAI_BASE_URL"
            ) from None
        if code == "insufficient_quota":
            raise UserError(f"{self.address}: no credit left; replies so far are kept") from None
        if 300 <= status < 400:
            raise UserError(
                f"{self.address} sends requests elsewhere ({status}): set OPENAI_BASE_URL to where "
                "it leads"
            ) from None
        if status in (408, 409, 429) or status >= 500:
            hold = retry_after(error.response.headers)
            if hold > LONGEST_HOLD:
                raise UserError(
                    f"{self.address} asks to wait {hold:,.0f} seconds ({status}); replies so far "
                    "are kept: run again then"
                ) from None
            self._pace.hold(hold)
            return None, f"again: {status}"
        said = f"{error.param or ''} {error.message}"
        for name in OPTIONAL:
            if name in request and name in said and (error.param == name or UNKNOWN.search(said)):
                return {"refused": name}, ""
        if not self.counts[f"status_{status}"]:
            said = said[:10_000].replace(self._client.api_key, "***").strip()[:200]
            said = "".join(one if one.isprintable() else " " for one in said)
            log.warning("%s: %s %s", self.address, status, said)
        self.count(**{f"status_{status}": 1})
        return None, str(status)
