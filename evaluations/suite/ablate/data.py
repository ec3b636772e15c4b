"""The prompts that constants are fitted on, and others to measure them on.

The two share no text, and of tasks whose answers are words of the prompt (IOI) no unordered pair of
names: prompts that do are kept on one side together.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from evaluations.core.text import Text
from evaluations.core.windows import LEAST, split_windows
from evaluations.tasks.pairs import Pair, TaskPrompts
from sat_interp._util.errors import UserError

Batches = list[Int[Tensor, "_ _"]]


@dataclass(frozen=True)
class Prompts:
    """Prompts of one side, by length.

    Attributes:
        clean: token ids, a batch for each length.
        counterfactual: their corrupted twins; None for text.
    """

    clean: Batches
    counterfactual: Batches | None = None

    def __len__(self) -> int:
        return sum(map(len, self.clean))


@dataclass(frozen=True)
class Split:
    """Both sides.

    Attributes:
        fit, held: their prompts.
        first: the first position that is ablated.
        left_out: stories that are too short, or copies of others.
    """

    fit: Prompts
    held: Prompts
    first: int
    left_out: int = 0


def split_prompts(prompts: TaskPrompts, n_fit: int, n_held: int, seed: int) -> Split:
    """Split a task's prompts; with too few for both, in the ratio asked for.

    Prompts that come with held-out ones are already split; those that share something are left out.

    Raises:
        UserError: too few prompts, or prompts that cannot be split.
    """
    fit, held = _given(prompts) if prompts.held_out else _divided(prompts, n_fit, n_held, seed)
    fit, held = _first(fit, n_fit), _first(held, n_held)
    if prompts.n < 2 * LEAST and prompts.held_out is None:
        raise UserError(
            f"{prompts.name}: {prompts.n} prompts that can be used; it takes {2 * LEAST}, "
            f"{LEAST} to fit constants on and {LEAST} others to measure them on"
        )
    if min(fit.n, held.n) < LEAST:
        raise UserError(
            f"{prompts.name}: {fit.n} prompts to fit constants on and {held.n} to measure them on, "
            f"with no text and no pair of names in both; it takes {LEAST} of each: more prompts, "
            "or other texts"
        )
    assert_apart(fit, held)
    return Split(_prompts(fit), _prompts(held), prompts.first_ablated)


def _given(prompts: TaskPrompts) -> tuple[TaskPrompts, TaskPrompts]:
    """The prompts, and those of the held-out ones that share nothing with them."""
    held = prompts.held_out
    assert held is not None
    known = [{key[place] for key in _keys(prompts)} - {None} for place in (0, 2)]
    kept = [
        number
        for number, key in enumerate(_keys(held))
        if key[0] not in known[0] and key[2] not in known[1]
    ]
    return prompts, held.subset(kept)


def _divided(
    prompts: TaskPrompts, n_fit: int, n_held: int, seed: int
) -> tuple[TaskPrompts, TaskPrompts]:
    """Divide prompts at random; those that must stay together do."""
    groups = _groups(prompts)
    random.Random(f"ablate/{seed}").shuffle(groups)
    wanted = min(n_held, max(LEAST, round(prompts.n * n_held / (n_fit + n_held))))
    held: list[int] = []
    fit: list[int] = []
    for group in groups:
        (held if len(held) + len(group) <= wanted else fit).extend(group)
    return prompts.subset(fit), prompts.subset(held)


def _first(prompts: TaskPrompts, n: int) -> TaskPrompts:
    """At most ``n`` of the prompts, of all lengths."""
    if prompts.n <= n:
        return prompts
    return prompts.subset(sorted(random.Random("ablate").sample(range(prompts.n), n)))


def _groups(prompts: TaskPrompts) -> list[list[int]]:
    """Numbers of prompts that must stay together: one text, one pair of names, or twins."""
    keys = _keys(prompts)
    clean = {key[0] for key in keys}
    root: dict[object, object] = {}

    def find(key: object) -> object:
        while root.setdefault(key, key) != key:
            root[key] = root[root[key]]
            key = root[key]
        return key

    for text, corrupted, names in keys:
        for other in ([corrupted] if corrupted in clean else []) + ([names] if names else []):
            root[find(other)] = find(text)
    groups: dict[object, list[int]] = {}
    for number, (text, _, _) in enumerate(keys):
        groups.setdefault(find(text), []).append(number)
    return list(groups.values())


def _keys(prompts: TaskPrompts) -> list[tuple[object, object, object]]:
    """Of each prompt its text, its corrupted text, and the pair of names it is about, if any."""
    found: list[tuple[object, object, object]] = []
    texts = iter(prompts.texts)
    for batch in prompts.batches:
        rows = zip(*(part.tolist() for part in (batch.clean, batch.corrupted)), strict=True)
        pairs = zip(batch.right.tolist(), batch.wrong.tolist(), strict=True)
        for (clean, corrupted), pair in zip(rows, pairs, strict=True):
            is_about = _names_both(next(texts)) or set(pair) <= set(clean)
            names = frozenset(pair) if is_about else None
            found.append((tuple(clean), tuple(corrupted), names))
    return found


def _names_both(text: Pair) -> bool:
    """Whether both answers are words of the prompt: at its beginning they are other tokens."""
    answers = (text.right.strip(), text.wrong.strip())
    return all(re.search(rf"(?<!\w){re.escape(one)}(?!\w)", text.clean) for one in answers)


def assert_apart(fit: TaskPrompts, held: TaskPrompts) -> None:
    """Refuse sides that share a text or a pair of names.

    Raises:
        AssertionError: they do.
    """
    ours, theirs = _keys(fit), _keys(held)
    for place in (0, 2):
        shared = {key[place] for key in ours} & {key[place] for key in theirs} - {None}
        assert not shared, f"fit and held-out prompts share {len(shared)} texts or pairs of names"


def _prompts(prompts: TaskPrompts) -> Prompts:
    return Prompts(
        [batch.clean for batch in prompts.batches], [batch.corrupted for batch in prompts.batches]
    )


def split_text(text: Text, n_fit: int, n_held: int, window: int, seed: int) -> Split:
    """Split a text's stories into windows (``windows.split_windows``).

    Raises:
        UserError: too few stories are long enough.
    """
    fit, held = split_windows(text, n_fit, n_held, window, f"ablate/{seed}")
    return Split(Prompts([fit.tokens]), Prompts([held.tokens]), first=1, left_out=fit.left_out)
