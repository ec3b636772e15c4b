"""The null task: prompts of the task's own frames, with nothing answer-related to find.

A null prompt is a pair of prompts that both lack what makes the task's clean prompt answerable: the
task's corrupted prompt, and the same prompt with other words in it. The frame stays, as many tokens
change as between the task's clean and corrupted prompt, and none of them bears on the answer. A
circuit found on such pairs shows what any change of that many words costs.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from evaluations.tasks.pairs import Pair, PairBatch, TaskPrompts
from sat_interp._util.errors import UserError

ALONE = "no other prompt changes at the same places"
TOO_FEW = "too few words that do not bear on the answer"
TWICE = "drawn before"


class NoNullTaskError(UserError):
    """A task has no null task, or too little of one.

    Attributes:
        reason: why, as reasons in records say it.
    """

    def __init__(self, task: str, reason: str) -> None:
        self.reason = f"no null task: {reason}"
        super().__init__(f"{task}: {self.reason}")


Place = tuple[int, ...]
"""The positions of one word, which may come several times."""


def null_prompts(prompts: TaskPrompts, seed: int) -> TaskPrompts:
    """Draw the null task's prompts, one for each prompt of the task where there is one.

    Where clean and corrupted prompt differ, the corrupted prompt's words are replaced: by words
    that other corrupted prompts, which differ from their clean prompts at the same positions, have
    in the same place; equal words by equal ones. A new word is in neither prompt of the pair, and
    is neither of its answers. Where the answers are no words of the prompt (he or she, was or
    were), the words decide which of the two is right, so that they come only from prompts of the
    same right and wrong answer, and from between the same neighbours. If too few words can be
    replaced so, further words of the frame are exchanged, between the same neighbours, until as
    many tokens have changed as in the task.

    Returns:
        The null task's prompts; those left out are counted by reason.

    Raises:
        NoNullTaskError: there is no null prompt at all.
    """
    draws = np.random.default_rng(seed)
    batches: list[PairBatch] = []
    texts: list[Pair] = []
    left_out: Counter[str] = Counter()
    first = 0
    for batch in prompts.batches:
        rows = _Rows.of(batch)
        kept: dict[tuple[int, ...], tuple[int, list[int]]] = {}
        for row in range(len(batch)):
            replaced = rows.replaced(row, draws)
            if isinstance(replaced, str):
                left_out[replaced] += 1
                continue
            known = (*rows.base[row], *replaced, rows.right[row], rows.wrong[row])
            if known in kept:
                left_out[TWICE] += 1
                continue
            kept[known] = (row, replaced)
        if kept:
            chosen = [row for row, _ in kept.values()]
            part = batch[chosen]
            changed = torch.tensor([replaced for _, replaced in kept.values()], dtype=torch.long)
            batches.append(PairBatch(part.corrupted, changed, part.right, part.wrong))
            texts += [
                _text(prompts, first + row, changed[place].tolist())
                for place, row in enumerate(chosen)
            ]
        first += len(batch)
    if not batches:
        reason = left_out.most_common(1)[0][0] if left_out else "no prompt"
        raise NoNullTaskError(prompts.name, reason)
    return dataclasses.replace(
        prompts,
        name=f"{prompts.name} (null)",
        batches=tuple(batches),
        texts=tuple(texts),
        left_out=dict(left_out),
        held_out=None,
    )


def _text(prompts: TaskPrompts, number: int, tokens: list[int]) -> Pair:
    """Return the null prompt as text; empty where the task's prompts have none."""
    if number >= len(prompts.texts):
        return Pair("", "", "", "")
    pair = prompts.texts[number]
    changed = prompts.decode(tokens) if prompts.decode else str(tokens)
    return pair._replace(clean=pair.corrupted, corrupted=changed)


@dataclass(frozen=True)
class _Rows:
    """The prompts of one length as lists of tokens.

    Attributes:
        base: the corrupted prompts.
        changed: the positions at which clean and corrupted prompt differ.
        peers: for each such set of positions the prompts that differ there.
    """

    clean: list[list[int]]
    base: list[list[int]]
    right: list[int]
    wrong: list[int]
    changed: list[Place]
    peers: dict[Place, list[int]]

    @classmethod
    def of(cls, batch: PairBatch) -> _Rows:
        clean, base = batch.clean.tolist(), batch.corrupted.tolist()
        changed = [
            tuple(at for at, (one, other) in enumerate(zip(*pair, strict=True)) if one != other)
            for pair in zip(clean, base, strict=True)
        ]
        peers: dict[Place, list[int]] = {}
        for row, positions in enumerate(changed):
            peers.setdefault(positions, []).append(row)
        return cls(clean, base, batch.right.tolist(), batch.wrong.tolist(), changed, peers)

    def replaced(self, row: int, draws: np.random.Generator) -> list[int] | str:
        """Return a row's base with other words in it, or the reason why there is none."""
        positions = self.changed[row]
        peers = [peer for peer in self.peers[positions] if peer != row]
        if not peers:
            return ALONE
        used = {*self.clean[row], *self.base[row], self.right[row], self.wrong[row]}
        asked = self.words(row, positions)
        rest = self.words(row, [at for at in range(len(self.base[row])) if at not in positions])
        choices: dict[Place, int] = {}
        for place in asked:
            self.draw(row, place, self.like(row, peers), not self.copies(row), used, choices, draws)
        missing = len(positions) - sum(map(len, choices))
        others: dict[Place, int] = {}
        for place in (rest[index] for index in draws.permutation(len(rest)).tolist()):
            if missing and len(place) <= missing:
                self.draw(row, place, peers, True, used, others, draws)
        filled = _of_size(list(others), missing)
        if filled is None or not positions:
            return TOO_FEW
        tokens = list(self.base[row])
        for place, token in [*choices.items(), *((place, others[place]) for place in filled)]:
            for at in place:
                tokens[at] = token
        return tokens

    def copies(self, row: int) -> bool:
        """Whether the answers are words of the prompt, as in IOI."""
        return {self.right[row], self.wrong[row]} <= set(self.clean[row])

    def like(self, row: int, peers: list[int]) -> list[int]:
        """Return the peers whose changed words do not give this row's answer away."""
        if self.copies(row):
            return peers
        answers = (self.right[row], self.wrong[row])
        return [peer for peer in peers if (self.right[peer], self.wrong[peer]) == answers]

    def words(self, row: int, positions: Sequence[int]) -> list[Place]:
        """Return positions by word: equal tokens of the base belong together."""
        by_token: dict[int, list[int]] = {}
        for at in positions:
            by_token.setdefault(self.base[row][at], []).append(at)
        return [tuple(places) for places in by_token.values()]

    def draw(
        self,
        row: int,
        place: Place,
        peers: list[int],
        between_same: bool,
        used: set[int],
        choices: dict[Place, int],
        draws: np.random.Generator,
    ) -> None:
        """Choose another word for a place, if there is one, and count it as used.

        Words between the same neighbours come first; others only if ``between_same`` is False.
        """
        base = self.base[row]
        near: set[int] = set()
        far: set[int] = set()
        for peer in peers:
            other = self.base[peer]
            token = other[place[0]]
            if token in used or any(other[at] != token for at in place):
                continue
            agrees = all(_around(base, at) == _around(other, at) for at in place)
            (near if agrees else far).add(token)
        if known := near or (set() if between_same else far):
            choices[place] = int(draws.choice(sorted(known)))
            used.add(choices[place])


def _around(tokens: list[int], at: int) -> list[list[int]]:
    """Return the neighbours of a position; none beyond the ends."""
    return [tokens[max(0, at - 1) : at], tokens[at + 1 : at + 2]]


def _of_size(places: list[Place], size: int) -> list[Place] | None:
    """Return places that have ``size`` positions in all, the first ones if possible."""
    for n in range(len(places) + 1):
        for chosen in combinations(places[:12], n):
            if sum(map(len, chosen)) == size:
                return list(chosen)
    return None
