"""Costs of language models: prices, a budget with a strict cap, and estimates."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from evaluations.suite.neurons.examiners.prompts import Prompt
from sat_interp._util.errors import UserError

# Dollars per million input and output tokens, as listed by OpenAI in 2025.
PRICES = {
    "gpt-4o-mini": (0.15, 0.60),
    "gpt-4o": (2.50, 10.00),
    "gpt-4o-2024-05-13": (5.00, 15.00),
    "gpt-4.1-nano": (0.10, 0.40),
    "gpt-4.1-mini": (0.40, 1.60),
    "gpt-4.1": (2.00, 8.00),
}

# Upper bound of the tokens that a chat endpoint adds to each message.
AROUND_MESSAGE = 8


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens."""

    read: float
    written: float

    def __call__(self, tokens_in: float, tokens_out: float) -> float:
        """Return the cost of some tokens in dollars."""
        return (tokens_in * self.read + tokens_out * self.written) / 1e6


def find_price(model: str, read: float | None, written: float | None) -> Price | None:
    """Return the given price, else the known price of a model (or dated version), else None.

    Raises:
        UserError: only one price is given, or one is negative.
    """
    if read is not None and written is not None:
        if min(read, written) < 0:
            raise UserError("price_in and price_out cannot be negative")
        return Price(read, written)
    if read is not None or written is not None:
        raise UserError("give both price_in and price_out, or neither")
    known = PRICES.get(model) or PRICES.get(re.sub(r"-\d{4}-\d{2}-\d{2}$", "", model))
    return Price(*known) if known else None


def most_tokens(prompt: Prompt) -> int:
    """Return an upper bound of a prompt's tokens: one per byte."""
    return sum(len(text.encode()) + AROUND_MESSAGE for _, text in prompt.messages)


def likely_tokens(text: str) -> int:
    """Return the approximate number of tokens of a text."""
    return len(re.findall(r" ?\w{1,8}|[^\w\s]|\s", text))


class Budget:
    """Thread-safe account of money spent and reserved for requests in progress.

    Each request reserves its maximum cost before it is sent, and is sent only within the cap, which
    thus holds whatever the answers cost. A request that fails without a reply (a time-out or a
    closed connection) may have been charged and counts as spent.
    """

    def __init__(self, price: Price | None, cap: float | None) -> None:
        if cap is not None and price is None:
            raise UserError("max_spend needs the model's price: give price_in and price_out")
        if cap is not None and not cap >= 0:
            raise UserError(f"max_spend cannot be {cap}")
        self.price, self.cap = price, cap
        self.spent = self._reserved = 0.0
        self._pending = 0
        self._changed = threading.Condition()

    def reserve(self, prompt: Prompt) -> float | None:
        """Reserve and return the maximum cost of a request; None if it exceeds the cap.

        Waits if reservations of other requests may be released.
        """
        if self.price is None:
            return 0.0  # no cap without a price
        most = self.price(most_tokens(prompt), prompt.max_tokens)
        with self._changed:
            while self.cap is not None and self.spent + self._reserved + most > self.cap:
                if not self._pending or self.spent + most > self.cap:
                    return None
                self._changed.wait()
            self._reserved += most
            self._pending += 1
        return most

    def settle(self, reserved: float, spent: float) -> None:
        """Release a reservation and add what was spent.

        Raises:
            ValueError: the amount spent is not valid.
        """
        if not 0 <= spent < math.inf:
            raise ValueError(f"a request cannot cost {spent}")
        if self.price is None:
            return
        with self._changed:
            self._pending -= 1
            self._reserved = self._reserved - reserved if self._pending else 0.0
            self.spent += spent
            self._changed.notify_all()


@dataclass(frozen=True)
class SpendingEstimate:
    """Approximate cost of a run without stored replies and retries.

    Attributes:
        dollars: cost in dollars; None if the price is unknown.
    """

    requests: int
    tokens_in: int
    tokens_out: int
    dollars: float | None

    def __str__(self) -> str:
        cost = "price unknown" if self.dollars is None else f"about ${self.dollars:.2f}"
        return (
            f"{self.requests:,} requests, {self.tokens_in:,} tokens read, "
            f"{self.tokens_out:,} written: {cost}"
        )


def estimate_spending(
    prompts: Sequence[tuple[Prompt, str, float]], price: Price | None
) -> SpendingEstimate:
    """Estimate the cost from typical prompts, each with a typical answer and a count."""
    requests = tokens_in = tokens_out = 0.0
    for prompt, answer, count in prompts:
        read = sum(likely_tokens(text) + AROUND_MESSAGE for _, text in prompt.messages)
        requests += count
        tokens_in += count * read
        tokens_out += count * likely_tokens(answer)
    dollars = None if price is None else price(tokens_in, tokens_out)
    return SpendingEstimate(round(requests), round(tokens_in), round(tokens_out), dollars)
