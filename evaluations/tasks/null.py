"""The null task: prompts of the task's own frames, with nothing answer-related to find.

A null prompt is a pair of prompts that both lack what makes the task's clean prompt answerable: the
task's corrupted prompt, and the same prompt with other words in it. The frame stays, as many tokens
change as between the task's clean and corrupted prompt, and none of them bears on the answer. What
is found on such pairs, any change of so many words costs.
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

Place = tuple[int, ...]  # the positions of one word, which may come several times


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
        UserError: there is no null prompt at all.
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
            found = rows.replaced(row, draws)
            if isinstance(found, str):
                left_out[found] += 1
                continue
            known = (*rows.base[row], *found, rows.right[row], rows.wrong[row])
            if known in kept:
                left_out[TWICE] += 1
                continue
            kept[known] = (row, found)
        if kept:
            chosen = [row for row, _ in kept.values()]
            part = batch[chosen]
            changed = torch.tensor([found for _, found in kept.values()], dtype=torch.long)
            batches.append(PairBatch(part.corrupted, changed, part.right, part.wrong))
            texts += [
                _text(prompts, first + row, changed[place].tolist())
                for place, row in enumerate(chosen)
            ]
        first += len(batch)
    if not batches:
        reason = left_out.most_common(1)[0][0] if left_out else "no prompt"
        raise UserError(f"{prompts.name}: no null task: {reason}")
    return dataclasses.replace(
        prompts,
        name=f"{prompts.name} (null)",
        batches=tuple(batches),
        texts=tuple(texts),
        left_out=dict(left_out),
        held_out=None,
    )


def _text(prompts: TaskPrompts, number: int, tokens: list[int]) -> Pair:
    """The null prompt as text, as far as the tokenizer is known."""
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
        mates: for each such set of positions the prompts that have it.
    """

    clean: list[list[int]]
    base: list[list[int]]
    right: list[int]
    wrong: list[int]
    changed: list[Place]
    mates: dict[Place, list[int]]

    @classmethod
    def of(cls, batch: PairBatch) -> _Rows:
        clean, base = batch.clean.tolist(), batch.corrupted.tolist()
        changed = [
            tuple(at for at, (one, other) in enumerate(zip(*pair, strict=True)) if one != other)
            for pair in zip(clean, base, strict=True)
        ]
        mates: dict[Place, list[int]] = {}
        for row, positions in enumerate(changed):
            mates.setdefault(positions, []).append(row)
        return cls(clean, base, batch.right.tolist(), batch.wrong.tolist(), changed, mates)

    def replaced(self, row: int, draws: np.random.Generator) -> list[int] | str:
        """The base of a row with other words in it, or the reason why there is none."""
        positions = self.changed[row]
        mates = [mate for mate in self.mates[positions] if mate != row]
        if not mates:
            return ALONE
        used = {*self.clean[row], *self.base[row], self.right[row], self.wrong[row]}
        asked = self.words(row, positions)
        rest = self.words(row, [at for at in range(len(self.base[row])) if at not in positions])
        choices: dict[Place, int] = {}
        for place in asked:
            self.draw(row, place, self.like(row, mates), not self.copies(row), used, choices, draws)
        missing = len(positions) - sum(map(len, choices))
        others: dict[Place, int] = {}
        for place in (rest[index] for index in draws.permutation(len(rest)).tolist()):
            if missing and len(place) <= missing:
                self.draw(row, place, mates, True, used, others, draws)
        filled = _of_size(list(others), missing)
        if filled is None or not positions:
            return TOO_FEW
        found = list(self.base[row])
        for place, token in [*choices.items(), *((place, others[place]) for place in filled)]:
            for at in place:
                found[at] = token
        return found

    def copies(self, row: int) -> bool:
        """Whether the answers are words of the prompt, as in IOI."""
        return {self.right[row], self.wrong[row]} <= set(self.clean[row])

    def like(self, row: int, mates: list[int]) -> list[int]:
        """The mates whose changed words may stand in this row without giving its answer away."""
        if self.copies(row):
            return mates
        answers = (self.right[row], self.wrong[row])
        return [mate for mate in mates if (self.right[mate], self.wrong[mate]) == answers]

    def words(self, row: int, positions: Sequence[int]) -> list[Place]:
        """Positions by word: equal tokens of the base belong together."""
        found: dict[int, list[int]] = {}
        for at in positions:
            found.setdefault(self.base[row][at], []).append(at)
        return [tuple(places) for places in found.values()]

    def draw(
        self,
        row: int,
        place: Place,
        mates: list[int],
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
        for mate in mates:
            other = self.base[mate]
            token = other[place[0]]
            if token in used or any(other[at] != token for at in place):
                continue
            agrees = all(_around(base, at) == _around(other, at) for at in place)
            (near if agrees else far).add(token)
        if known := near or (set() if between_same else far):
            choices[place] = int(draws.choice(sorted(known)))
            used.add(choices[place])


def _around(tokens: list[int], at: int) -> list[list[int]]:
    """The neighbours of a position; none beyond the ends."""
    return [tokens[max(0, at - 1) : at], tokens[at + 1 : at + 2]]


def _of_size(places: list[Place], size: int) -> list[Place] | None:
    """Places, the first ones if possible, that have ``size`` positions between them."""
    for n in range(len(places) + 1):
        for chosen in combinations(places[:12], n):
            if sum(map(len, chosen)) == size:
                return list(chosen)
    return None
