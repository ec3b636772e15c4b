"""The built-in corpus ``demo``: short stories of a small child's world, from a grammar of our own.

In the manner of TinyStories (Eldan and Li 2023, arXiv:2305.07759) and without a download. What a
small transformer can learn from it is what the evaluations look for: indirect objects, the gender
of pronouns, quotes, agreement, recall of an object, repetition.
"""

from sat_interp.data.stories.grammar import (
    GRAMMAR_VERSION,
    HELD_OUT_PAIRS,
    SPLITS,
    Slots,
    fill_frame,
    is_held_out,
    stories,
)
from sat_interp.data.stories.lexicon import NAMES_F, NAMES_M, OBJECTS, PLACES
from sat_interp.data.stories.prompts import IOIPrompt, ioi_prompts
from sat_interp.data.stories.scenes import IOI_FRAMES

__all__ = [
    "GRAMMAR_VERSION",
    "HELD_OUT_PAIRS",
    "IOI_FRAMES",
    "NAMES_F",
    "NAMES_M",
    "OBJECTS",
    "PLACES",
    "SPLITS",
    "IOIPrompt",
    "Slots",
    "fill_frame",
    "ioi_prompts",
    "is_held_out",
    "stories",
]
