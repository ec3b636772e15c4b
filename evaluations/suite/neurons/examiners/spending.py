"""What a language model costs: prices, a cap that is never exceeded, an estimate beforehand."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from evaluations.suite.neurons.examiners.prompts import Prompt
from sat_interp._util.errors import UserError

# Dollars per million tokens, read and written, as OpenAI listed them in 2025.
PRICES = {
    "gpt-4o-mini": (0.15, 0.60),
    "gpt-4o": (2.50, 10.00),
    "gpt-4o-2024-05-13": (5.00, 15.00),
    "gpt-4.1-nano": (0.10, 0.40),
    "gpt-4.1-mini": (0.40, 1.60),
    "gpt-4.1": (2.00, 8.00),
}

# Tokens a chat endpoint adds around each message, generously.
AROUND_MESSAGE = 8


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens."""

    read: float
    written: float

    def __call__(self, tokens_in: float, tokens_out: float) -> float:
        """Dollars for so many tokens."""
        return (tokens_in * self.read + tokens_out * self.written) / 1e6


def find_price(model: str, read: float | None, written: float | None) -> Price | None:
    """The price as given, else as known, else None. ``gpt-4o-mini-2024-07-18`` is gpt-4o-mini.

    Raises:
        UserError: only one of the two is given, or one is negative.
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
    """An upper bound of a prompt's tokens: no token is shorter than a byte."""
    return sum(len(text.encode()) + AROUND_MESSAGE for _, text in prompt.messages)


def likely_tokens(text: str) -> int:
    """About how many tokens a text has: words, marks, and blanks that are no spaces."""
    return len(re.findall(r" ?\w{1,8}|[^\w\s]|\s", text))


class Budget:
    """Money spent and money set aside for requests under way, safe for threads.

    A request sets aside the most it can cost before it is sent, and may be sent only if that fits;
    so the cap holds whatever the answers cost. One that fails without a word (a time-out, a cut
    connection) may have been charged, and counts as spent.
    """

    def __init__(self, price: Price | None, cap: float | None) -> None:
        if cap is not None and price is None:
            raise UserError("max_spend needs the model's price: give price_in and price_out")
        if cap is not None and not cap >= 0:
            raise UserError(f"max_spend cannot be {cap}")
        self.price, self.cap = price, cap
        self.spent = self._aside = 0.0
        self._flying = 0
        self._changed = threading.Condition()

    def set_aside(self, prompt: Prompt) -> float | None:
        """The most a request can cost, set aside; None if the cap does not allow it.

        Waits where what others have set aside may come back.
        """
        if self.price is None:
            return 0.0  # no cap without a price
        most = self.price(most_tokens(prompt), prompt.max_tokens)
        with self._changed:
            while self.cap is not None and self.spent + self._aside + most > self.cap:
                if not self._flying or self.spent + most > self.cap:
                    return None
                self._changed.wait()
            self._aside += most
            self._flying += 1
        return most

    def settle(self, aside: float, spent: float) -> None:
        """What was set aside is spent or free again.

        Raises:
            ValueError: no amount of money was spent.
        """
        if not 0 <= spent < math.inf:
            raise ValueError(f"a request cannot cost {spent}")
        if self.price is None:
            return
        with self._changed:
            self._flying -= 1
            self._aside = self._aside - aside if self._flying else 0.0
            self.spent += spent
            self._changed.notify_all()


@dataclass(frozen=True)
class Estimate:
    """About what a run will take, if nothing of it was answered before and nothing goes wrong.

    Attributes:
        dollars: None where the price is not known.
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


def estimate(prompts: Sequence[tuple[Prompt, str, float]], price: Price | None) -> Estimate:
    """From typical prompts: each with a typical answer, and how many like it there will be."""
    requests = tokens_in = tokens_out = 0.0
    for prompt, answer, count in prompts:
        read = sum(likely_tokens(text) + AROUND_MESSAGE for _, text in prompt.messages)
        requests += count
        tokens_in += count * read
        tokens_out += count * likely_tokens(answer)
    dollars = None if price is None else price(tokens_in, tokens_out)
    return Estimate(round(requests), round(tokens_in), round(tokens_out), dollars)
