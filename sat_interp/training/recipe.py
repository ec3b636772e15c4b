"""Whether a model was trained as a run of a study is: models of two studies can have one name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sat_interp.training.study import StudyRun

RECIPE = (
    *("variant", "gates", "k_attention", "k_neurons", "ablated_weight", "weight_density"),
    *("n_layers", "d_model", "n_heads", "n_ctx", "data", "tokenizer", "seed"),
    *("batch_size", "learning_rate", "steps"),
)
"""Settings by which a model is told from one of the same name of another study."""


def differences(run: StudyRun, training: Mapping[str, Any]) -> list[str]:
    """Return the settings in which a model was trained otherwise than a run is.

    Settings that the model's record does not have are left out, and so are the steps of a matched
    baseline, which takes those it needs. Of paths the last part counts.

    Args:
        training: of the model's record.
    """
    known = {**training, "steps": training.get("planned_steps", training.get("steps"))}
    names = [name for name in RECIPE if known.get(name) is not None]
    if run.kind == "matched":
        names = [name for name in names if name != "steps"]
    return [
        name for name in names if _last_part(known[name]) != _last_part(getattr(run.config, name))
    ]


def _last_part(value: object) -> object:
    return Path(value).name if isinstance(value, str) else value
