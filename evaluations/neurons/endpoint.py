"""One chat endpoint: patient with its failures, in step with its limits, never asked twice."""

from __future__ import annotations

import json
import logging
import math
import random
import re
import threading
import weakref
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from evaluations.neurons.answers import Alternatives, is_level
from evaluations.neurons.examiner import SPENDING_CAP, Unscored
from evaluations.neurons.pace import Clock, Pace, retry_after
from evaluations.neurons.prompts import Prompt
from evaluations.neurons.replies import Replies, request_key
from evaluations.neurons.spending import Budget
from sat_interp.errors import UserError

ALTERNATIVES = 20
"""Asked for beside each token of an answer; chat endpoints give no more."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before a request is sent again
LONGEST_HOLD = 600.0  # seconds an endpoint may ask to be left alone
PATIENCE = 20
"""Requests that fail one after the other, each after all its retries, before all is given up."""

NO_PROBABILITIES = Unscored("no log-probabilities")
OPTIONAL = ("top_logprobs", "logprobs", "temperature", "max_tokens")
UNKNOWN = re.compile(r"support|unrecogni|unknown|unexpected|permitted|allowed|extra|logprobs", re.I)
"""What endpoints that do not name the parameter say of one they refuse."""

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
    asks (Retry-After). A parameter the endpoint refuses is left out from then on.

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
        self._stopped = threading.Event()

    @property
    def gives_probabilities(self) -> bool:
        """False once the endpoint has refused to give log-probabilities."""
        return not {"logprobs", "top_logprobs"} & self._refused

    def stop(self, stopped: bool = True) -> None:
        """Send nothing more: whoever is asking gets an error at the next try."""
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
                kept = self._replies.get(key)
                if kept is not None:
                    self.count(from_disk=1)
                else:
                    answered = self._send(prompt, request)
                    if isinstance(answered, Unscored):
                        return answered
                    kept = answered
                    self._replies.put(key, kept)
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

    def _send(self, prompt: Prompt, request: dict[str, Any]) -> dict[str, Any] | Unscored:
        """Send it until it is answered; what is to be kept, or why there is nothing."""
        reason = ""
        for attempt in range(self._retries + 1):
            if attempt:
                self._clock.sleep(
                    min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
                )
            self._pace.wait()
            if self._stopped.is_set():
                raise UserError("stopped")
            aside = self.budget.set_aside(prompt)
            if aside is None:
                return Unscored(SPENDING_CAP)
            spent = aside  # until it is known to be less
            try:
                self.count(sent=1)
                kept, reason, spent = self._once(request, aside)
            finally:
                self.budget.settle(aside, spent)
            if kept is not None:
                with self._lock:
                    self._failed_running = 0
                return kept
            if not reason.startswith("again: "):
                return Unscored(f"no answer: {reason}")
        with self._lock:
            self._failed_running += 1
            hopeless = self._failed_running >= PATIENCE
        reason = reason.removeprefix("again: ")
        if hopeless:
            raise UserError(
                f"{self.address} does not answer ({reason}, {PATIENCE} requests running); "
                "replies so far are kept: run again to go on"
            )
        return Unscored(f"no answer: {reason}")

    def _once(
        self, request: dict[str, Any], most: float
    ) -> tuple[dict[str, Any] | None, str, float]:
        """What is to be kept, if anything; else why not; and what it cost."""
        import openai

        try:
            answer = self._client.chat.completions.with_raw_response.create(**request)
            kept, tokens = read_reply(answer.http_response.text)
        except openai.APITimeoutError:
            return None, "again: time-out", most  # it may have been charged
        except openai.APIConnectionError as error:
            arrived = type(error.__cause__).__name__ != "ConnectError"
            return None, "again: connection", most if arrived else 0.0
        except openai.APIStatusError as error:
            return (*self._refusal(error, request), 0.0)
        except (openai.APIError, ValueError):
            return None, "again: malformed reply", most
        if tokens is None:
            return kept, "", most
        self.count(tokens_in=tokens[0], tokens_out=tokens[1])
        return kept, "", self.budget.price(*tokens) if self.budget.price else 0.0

    def _refusal(self, error: Any, request: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
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
            said = said.replace(self._client.api_key, "***")
            log.warning("%s: %s %s", self.address, status, said.strip()[:200])
        self.count(**{f"status_{status}": 1})
        return None, str(status)


def read_reply(body: str) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """What is kept of a chat completion, and the tokens it read and wrote, where it says so.

    Raises:
        ValueError: it is none.
    """
    try:
        completion = json.loads(body)
        choice = completion["choices"][0]
        message, usage = choice["message"], completion.get("usage") or {}
        text = message.get("content") or ""
        if not isinstance(text, str):  # in parts
            text = "".join(part.get("text") or "" for part in text)
        finish = "content_filter" if message.get("refusal") else choice.get("finish_reason")
        pieces = (choice.get("logprobs") or {}).get("content") or []
        kept = {"text": text, "finish": str(finish or "stop"), "levels": _levels(text, pieces)}
        if usage.get("prompt_tokens") is None or usage.get("completion_tokens") is None:
            return kept, None
        return kept, (int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"no chat completion: {error!r}") from None


def _levels(text: str, pieces: list[dict[str, Any]]) -> list[tuple[int, str, dict[str, float]]]:
    """Where the answer has levels: the place, what was written, the levels among alternatives."""
    found = []
    before = b""
    for piece in pieces:
        written = piece["token"]
        if is_level(written.strip()):
            logprobs: dict[str, float] = {}
            alternatives = piece.get("top_logprobs") or []
            if written not in [other["token"] for other in alternatives]:
                alternatives = [piece, *alternatives]
            for other in alternatives:
                level, logprob = other["token"].strip(), float(other["logprob"])
                if is_level(level):  # '3' and ' 3' are the same level
                    p = math.exp(logprobs.get(level, -math.inf)) + math.exp(logprob)
                    logprobs[level] = math.log(p) if p > 0 else -math.inf
            place = len(before.decode(errors="ignore"))
            place += len(written) - len(written.lstrip())
            found.append((place, written.strip(), logprobs))
        # a token may be part of a character: only its bytes add up
        own = piece.get("bytes")
        before += written.encode() if own is None else bytes(own)
    return found if before.decode(errors="ignore") == text else []
