"""Prompts for indirect-object identification (IOI), in the built-in corpus' own manner."""

from __future__ import annotations

import random
from typing import NamedTuple

from sat_interp.data.stories.grammar import GRAMMAR_VERSION, Slots, fill_frame, is_held_out, pick
from sat_interp.data.stories.lexicon import NAMES, POOLS
from sat_interp.data.stories.scenes import IOI_FRAMES


class IOIPrompt(NamedTuple):
    """A prompt whose right continuation is ``" " + io`` and whose wrong one is ``" " + s``."""

    text: str  # ends in "to", without a space
    io: str  # the indirect object: named once
    s: str  # the subject, who gives or speaks: named twice


def ioi_prompts(n: int, seed: int = 0, held_out: bool = True) -> list[IOIPrompt]:
    """``n`` prompts from the seven frames of ``IOI_FRAMES``, each as often ABBA as BABA.

    Frames take turns, so any run of 14 prompts holds every frame in both orders; names, places
    and objects are drawn at random.

    Args:
        n: number of prompts.
        seed: of the draws.
        held_out: with pairs of names that training never uses in this role (True), or only with
            pairs that it may use (False).
    """
    rng = random.Random(f"ioi/{GRAMMAR_VERSION}/{held_out}/{seed}")
    return [_prompt(rng, index, held_out) for index in range(n)]


def _prompt(rng: random.Random, index: int, held_out: bool) -> IOIPrompt:
    first, second = _pair(rng, held_out)
    repeats_first = index // len(IOI_FRAMES) % 2 == 1  # BABA
    giver, receiver = (first, second) if repeats_first else (second, first)
    frame = IOI_FRAMES[index % len(IOI_FRAMES)]
    text = fill_frame(frame, Slots(rng), first, second, giver, pick(rng, POOLS["start"]))
    return IOIPrompt(text, io=str(receiver), s=str(giver))


def _pair(rng: random.Random, held_out: bool) -> tuple[str, str]:
    while True:
        first, second = pick(rng, NAMES), pick(rng, NAMES)
        if first != second and is_held_out(first, second) == held_out:
            return first, second
