"""Requests to a chat endpoint, with retries, rate limits, a budget and stored replies."""

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

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

from evaluations.suite.neurons.examiners import bounds
from evaluations.suite.neurons.examiners.answers import Alternatives
from evaluations.suite.neurons.examiners.base import SPENDING_CAP, Unscored
from evaluations.suite.neurons.examiners.bounds import BadReplyError
from evaluations.suite.neurons.examiners.completion import (
    OPTIONAL,
    StoredReply,
    is_stored_reply,
    read_reply,
)
from evaluations.suite.neurons.examiners.pace import Clock, Pace, retry_after
from evaluations.suite.neurons.examiners.prompts import Prompt
from evaluations.suite.neurons.examiners.replies import Replies, request_key
from evaluations.suite.neurons.examiners.spending import Budget, most_tokens
from sat_interp._util.errors import UserError

ALTERNATIVES = 20
"""Number of alternatives requested for each token: the maximum of chat endpoints."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before a retry
LONGEST_HOLD = 600.0  # longest accepted Retry-After in seconds
PATIENCE = 20
"""Number of consecutive requests that fail after all retries before the run is stopped."""

NO_PROBABILITIES = Unscored("no log-probabilities")
UNKNOWN = re.compile(r"support|unrecogni|unknown|unexpected|permitted|allowed|extra|logprobs", re.I)
"""Wording of errors about an unsupported parameter that is not named."""

FEW_BYTES, BYTES_PER_TOKEN = 1 << 18, 1 << 14
"""Maximum size of a reply: a constant, and an amount per token with its 20 alternatives."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """Reply of an endpoint.

    Attributes:
        finish: finish reason: ``stop``, ``length``, ``content_filter``, ...
        levels: alternatives to the levels in the text, by position in it.
    """

    text: str
    finish: str = "stop"
    levels: dict[int, Alternatives] = field(default_factory=dict)

    @property
    def failure(self) -> Unscored | None:
        """Why the reply is not an answer; None if it is one."""
        if self.finish == "length":
            return Unscored("truncated answer")
        if self.finish == "content_filter":
            return Unscored("refused")
        return None if self.text.strip() else Unscored("empty answer")


class _RetryableError(Exception):
    """A failure after which the request is sent again; its text is the reason."""

    def __init__(self, reason: str, *, may_be_charged: bool) -> None:
        super().__init__(reason)
        self.may_be_charged = may_be_charged


def _backoff(state: RetryCallState) -> float:
    """Return the seconds before a retry: twice as long each time, with jitter."""
    seconds: float = FIRST_WAIT * 2 ** (state.attempt_number - 1)
    return min(LONGEST_WAIT, seconds) * random.uniform(0.5, 1)


class Endpoint:
    """Thread-safe access to one model, whose replies are stored before they are used.

    Time-outs, connection errors, replies that are not JSON, and the statuses 408, 409, 429 and 5xx
    are retried with exponential backoff and jitter, or after the time that the endpoint gives
    (Retry-After). Unsupported parameters are omitted in later requests. Replies that are too slow,
    too large or invalid are ``Unscored``, charged at their maximum cost, and stored.

    Args:
        client: an ``openai.OpenAI`` without retries.
        retries: maximum number of retries of a request.
    """

    def __init__(
        self,
        client: Any,
        model: str,
        replies: Replies,
        budget: Budget,
        pace: Pace,
        clock: Clock,
        retries: int,
    ) -> None:
        self.model, self.budget = model, budget
        self._client, self._replies, self._pace = client, replies, pace
        self._retrying = Retrying(
            sleep=clock.sleep,
            stop=stop_after_attempt(retries + 1),
            wait=_backoff,
            retry=retry_if_exception_type(_RetryableError),
            reraise=True,
        )
        weakref.finalize(self, client.close)  # closes the connections with the endpoint
        address = urlsplit(str(client.base_url))
        # without user name, password and query, which may be secrets
        self.address = f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"
        self.counts: Counter[str] = Counter()
        self._refused: set[str] = set()
        self._consecutive_failures = 0
        self._lock, self._locks = threading.Lock(), defaultdict[str, threading.Lock](threading.Lock)
        self._stopped, self._stop_reason = threading.Event(), ""

    @property
    def gives_probabilities(self) -> bool:
        """False once the endpoint has rejected log-probabilities."""
        return not {"logprobs", "top_logprobs"} & self._refused

    def stop(self, stopped: bool = True, reason: str = "stopped") -> None:
        """Stop sending: further attempts raise an error with the reason."""
        self._stop_reason = reason
        (self._stopped.set if stopped else self._stopped.clear)()

    def count(self, **counts: int) -> None:
        """Add to the counts of events."""
        with self._lock:
            self.counts.update(counts)

    def ask(self, prompt: Prompt) -> Reply | Unscored:
        """Return the reply, from disk if it is stored; ``Unscored`` if there is none.

        Raises:
            UserError: further requests are useless: key, model or credit rejected, or no answers.
        """
        while True:
            if prompt.levels and not self.gives_probabilities:
                return NO_PROBABILITIES
            request = self._request(prompt)
            key = request_key({"endpoint": self.address, **request})
            with self._lock:
                lock = self._locks[key]
            with lock:  # threads with the same question send one request
                stored = self._stored_or_sent(key, prompt, request)
            if isinstance(stored, Unscored):
                return stored
            if "failed" in stored:
                return Unscored(stored["failed"])
            if "refused" not in stored:
                levels = {place: (text, others) for place, text, others in stored["levels"]}
                return Reply(stored["text"], stored["finish"], levels)
            with self._lock:
                self._refused.add(stored["refused"])

    def _stored_or_sent(
        self, key: str, prompt: Prompt, request: dict[str, Any]
    ) -> StoredReply | Unscored:
        """Return the stored reply, after sending the request if there is none."""
        stored: StoredReply | None = self._replies.get(key, is_stored_reply)
        if stored is not None:
            self.count(from_disk=1)
            return stored
        reply = self._send(prompt, request)
        if isinstance(reply, Unscored):
            return reply
        try:
            self._replies.put(key, reply)
        except UserError as error:  # later replies would be paid for and lost, too
            self.stop(reason=str(error))
            raise
        self._note(reply.get("failed"))
        return reply

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
            if name == "max_tokens":  # the name for reasoning models
                request["max_completion_tokens"] = value
        return request

    def _note(self, failure: str | None) -> None:
        """Record the outcome of a request.

        Raises:
            UserError: too many consecutive requests failed.
        """
        with self._lock:
            self._consecutive_failures = self._consecutive_failures + 1 if failure else 0
            hopeless = self._consecutive_failures >= PATIENCE
        if hopeless:
            raise UserError(
                f"{self.address} does not answer ({failure}, {PATIENCE} requests running); "
                "replies so far are stored: run again to continue"
            )

    def _send(self, prompt: Prompt, request: dict[str, Any]) -> StoredReply | Unscored:
        """Send a request with retries; return the reply to store, or why there is none."""
        try:
            return self._retrying(self._attempt, prompt, request)
        except _RetryableError as error:
            self._note(str(error))
            return Unscored(f"no answer: {error}")

    def _attempt(self, prompt: Prompt, request: dict[str, Any]) -> StoredReply | Unscored:
        """Send a request once, within the rate limit and the budget."""
        self._pace.wait()
        if self._stopped.is_set():
            raise UserError(self._stop_reason)
        reserved = self.budget.reserve(prompt)
        if reserved is None:
            return Unscored(SPENDING_CAP)
        spent = reserved  # unless it is known to be less
        try:
            self.count(sent=1)
            reply, spent = self._once(prompt, request, reserved)
        except _RetryableError as error:
            spent = reserved if error.may_be_charged else 0.0
            raise
        finally:
            self.budget.settle(reserved, spent)
        return reply

    def _once(
        self, prompt: Prompt, request: dict[str, Any], most: float
    ) -> tuple[StoredReply | Unscored, float]:
        """Return the reply to store, or why there is none, and its cost in dollars."""
        import openai

        room = prompt.max_tokens
        largest = bounds.LARGEST.set(FEW_BYTES + BYTES_PER_TOKEN * room)
        try:
            answer = self._client.chat.completions.with_raw_response.create(**request)
            reply, tokens = read_reply(answer.http_response.content, (most_tokens(prompt), room))
        except BadReplyError as error:
            return {"failed": str(error)}, most
        except openai.APITimeoutError:
            raise _RetryableError("time-out", may_be_charged=True) from None
        except openai.APIConnectionError as error:
            arrived = type(error.__cause__).__name__ != "ConnectError"
            raise _RetryableError("connection", may_be_charged=arrived) from None
        except openai.APIStatusError as error:
            self._check_status(error)
            return self._rejected(error, request), 0.0
        except (openai.APIError, ValueError):
            raise _RetryableError("malformed reply", may_be_charged=True) from None
        finally:
            bounds.LARGEST.reset(largest)
        if tokens is None:
            return reply, most
        self.count(tokens_in=tokens[0], tokens_out=tokens[1])
        return reply, self.budget.price(*tokens) if self.budget.price else 0.0

    def _check_status(self, error: Any) -> None:
        """Raise an error for statuses that end the run or are worth a retry."""
        status = error.status_code
        reason = ""
        if status in (401, 403):
            reason = f"refuses the key ({status}): check OPENAI_API_KEY"
        elif status == 404:
            reason = (
                f"knows no model {self.model!r} (404): check the model's name and OPENAI_BASE_URL"
            )
        elif error.code == "insufficient_quota":
            reason = "has no credit left; replies so far are stored"
        elif 300 <= status < 400:
            reason = f"sends requests elsewhere ({status}): set OPENAI_BASE_URL to the new address"
        if reason:
            raise UserError(f"{self.address} {reason}") from None
        if status in (408, 409, 429) or status >= 500:
            hold = retry_after(error.response.headers)
            if hold > LONGEST_HOLD:
                raise UserError(
                    f"{self.address} asks to wait {hold:,.0f} seconds ({status}); replies so far "
                    "are stored: run again then"
                ) from None
            self._pace.hold(hold)
            raise _RetryableError(str(status), may_be_charged=False) from None

    def _rejected(self, error: Any, request: dict[str, Any]) -> StoredReply | Unscored:
        """Return the unsupported parameter of a rejected request, if any."""
        status, text = error.status_code, f"{error.param or ''} {error.message}"
        for name in OPTIONAL:
            if name in request and name in text and (error.param == name or UNKNOWN.search(text)):
                return {"refused": name}
        if not self.counts[f"status_{status}"]:
            text = text[:10_000].replace(self._client.api_key, "***").strip()[:200]
            text = "".join(c if c.isprintable() else " " for c in text)
            log.warning("%s: %s %s", self.address, status, text)
        self.count(**{f"status_{status}": 1})
        return Unscored(f"no answer: {status}")
