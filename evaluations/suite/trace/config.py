"""The configuration of ``sat-eval trace``; imports nothing heavy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from evaluations.core.options import Object
from sat_interp._util.errors import UserError, suggest
from sat_interp._util.settings import check_at_least

METHODS = ("oat", "oat_shared", "gnt", "gnt_dims", "swap")
KINDS = ("attn", "mlp")
TOKENS = ("last", "last_subject", "all_subject", "first_subject")
LEAST = {
    "n_facts": 1,
    "draws": 1,
    "random_sets": 0,
    "evaluations": 4,
    "polish": 0,
    "resamples": 1,
    "memory": 1,
}


@dataclass(frozen=True)
class TraceConfig:
    """Which facts are traced, what corrupts their subject, and what is restored."""

    facts: Object = None
    """Facts: facts (the built-in planted ones), ioi (names to be copied), or a .json file in the
    format of ROME's known_1000. By default facts for models trained on them, ioi for all others."""

    n_facts: int = 200
    """Facts, drawn at random where there are more; 60 % of the subjects fit constants."""

    answer: Literal["attribute", "own"] = "attribute"
    """The answer that is traced: the attribute, of facts whose attribute is the model's first
    choice, or the model's own first choice on all facts, whatever it is."""

    no_bos: bool = False
    """Leave out the token that begins a prompt (BOS, or end-of-text)."""

    methods: tuple[str, ...] = METHODS
    """What corrupts the subject: oat (optimal constants, one for each thing restored), oat_shared
    (the one that is best where nothing is restored), gnt (Gaussian noise of one size), gnt_dims
    (of a size for each dimension), swap (the tokens of another subject)."""

    kinds: tuple[str, ...] = KINDS
    """Outputs that are restored: attn, mlp."""

    tokens: tuple[str, ...] = ("last", "last_subject", "all_subject")
    """Where they are restored: last (token of the prompt), last_subject, all_subject,
    first_subject."""

    windows: tuple[int, ...] = (1, 5, 9)
    """Layers that are restored together, an odd number of them; fewer at both ends."""

    draws: int = 5
    """Draws of the noise and of the other subject."""

    random_sets: int = 5
    """Random sets of layers that are restored as a control of windows; 0 leaves it out."""

    evaluations: int = 60
    """At most so many evaluations of value and gradient in a fit of constants."""

    polish: int = 0
    """Steps of AdamW on the exact loss after the fit."""

    resamples: int = 2000
    """Bootstrap resamples of the facts."""

    seed: int = 0
    """Seed of the facts, the split by subject, the noise and the bootstrap."""

    memory: int = 256
    """MiB of activations that one pass may hold."""

    def recorded(self) -> dict[str, Any]:
        """Return what decides the figures, besides the model and the facts."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("facts", "no_bos", "memory"):
            del settings[name]
        return settings

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: an unknown method, output or token, an even window, or a number too small.
        """
        for what, given, known in (
            ("method", self.methods, METHODS),
            ("output", self.kinds, KINDS),
            ("token", self.tokens, TOKENS),
        ):
            if not given:
                raise UserError(f"name at least one {what}")
            for name in given:
                if name not in known:
                    raise UserError(suggest(what, name, known))
        even = [width for width in self.windows if width < 1 or width % 2 == 0]
        if even or not self.windows:
            wrong = even[0] if even else "none"
            raise UserError(f"windows must be odd numbers of layers, such as 1,5,9, not {wrong}")
        check_at_least(self, LEAST)
