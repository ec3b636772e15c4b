"""One typed function a command: what the shell calls, and a notebook may.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

from collections.abc import Callable

from evaluations.commands.acdc import acdc
from evaluations.commands.all import all_parts
from evaluations.commands.check import check
from evaluations.commands.curves import curves
from evaluations.commands.gates import gates
from evaluations.commands.lm import lm
from evaluations.commands.n2g import n2g
from evaluations.commands.neurons import neurons
from evaluations.commands.report import report
from evaluations.commands.sae import sae

COMMANDS: dict[str, Callable[..., object]] = {
    "lm": lm,
    "curves": curves,
    "gates": gates,
    "acdc": acdc,
    "sae": sae,
    "neurons": neurons,
    "n2g": n2g,
    "check": check,
    "all": all_parts,
    "report": report,
}
