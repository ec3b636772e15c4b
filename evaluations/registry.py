"""The evaluations there are: the one list that everything else reads."""

from __future__ import annotations

from evaluations.core.spec import Spec
from evaluations.suite import ablate, circuits, gates, lens, lm, n2g, neurons, sae, trace
from evaluations.suite.circuits import frontier
from sat_interp._util.errors import UserError, suggest

SPECS: list[Spec] = [
    lm.SPEC,
    gates.SPEC,
    circuits.SPEC,
    sae.SPEC,
    neurons.SPEC,
    n2g.SPEC,
    ablate.SPEC,
    trace.SPEC,
    lens.SPEC,
    frontier.SPEC,
]


def find_spec(name: str) -> Spec:
    """Return the evaluation of that name.

    Raises:
        UserError: there is none.
    """
    for spec in SPECS:
        if spec.name == name:
            return spec
    raise UserError(suggest("evaluation", name, [spec.name for spec in SPECS]))
