"""What a batch of guesses settles, and what it says of the candidates it does not settle.

ACDC decides one candidate after another, each on top of the decisions before it. A batch evaluates
the states of many candidates at once, each on top of guesses; every state up to the first wrong
guess is one that the sequential algorithm would have met.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settled:
    """What a batch of states settles.

    Attributes:
        steps: of the candidates up to the first wrong guess, that one included.
        accepted: the state that is the circuit now; None if it has not changed.
        kl: its KL.
        outlook: for every candidate behind the wrong guess, whether it looks removable.
    """

    steps: list[float]
    accepted: int | None
    kl: float
    outlook: list[bool]


def settle(kl: float, kls: list[float], guesses: list[bool], tau: float) -> Settled:
    """Compare guesses (True: removed) with the steps, up to the first that is wrong."""
    steps: list[float] = []
    accepted = None
    for index, (candidate, guess) in enumerate(zip(kls, guesses, strict=True)):
        steps.append(candidate - kl)
        removed = steps[-1] < tau
        reference = candidate if guess else kl  # of the states that follow
        if removed:
            accepted, kl = index, candidate
        if removed != guess:
            return Settled(steps, accepted, kl, _outlook(reference, kls, guesses, index + 1, tau))
    return Settled(steps, accepted, kl, [])


def _outlook(
    reference: float, kls: list[float], guesses: list[bool], start: int, tau: float
) -> list[bool]:
    """Whether later candidates look removable, from steps between states of the wrong branch."""
    outlook = []
    for candidate, guess in zip(kls[start:], guesses[start:], strict=True):
        outlook.append(candidate - reference < tau)
        if guess:
            reference = candidate
    return outlook
