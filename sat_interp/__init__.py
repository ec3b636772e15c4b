"""Self-ablating transformers, their training, and nothing of the evaluations.

Public names are imported on first use, so that ``sat-train --help`` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sat_interp._util.errors import UserError
    from sat_interp.model.config import SelfAblationConfig
    from sat_interp.model.shape import gpt_neo_config
    from sat_interp.model.streams import DualOutput
    from sat_interp.model.transformer import SelfAblatingTransformer
    from sat_interp.training.config import TrainConfig
    from sat_interp.training.loop import TrainResult
    from sat_interp.training.train import train

_HOMES = {
    "DualOutput": "sat_interp.model.streams",
    "SelfAblatingTransformer": "sat_interp.model.transformer",
    "SelfAblationConfig": "sat_interp.model.config",
    "TrainConfig": "sat_interp.training.config",
    "TrainResult": "sat_interp.training.loop",
    "UserError": "sat_interp._util.errors",
    "gpt_neo_config": "sat_interp.model.shape",
    "train": "sat_interp.training.train",
}

__all__ = [
    "DualOutput",
    "SelfAblatingTransformer",
    "SelfAblationConfig",
    "TrainConfig",
    "TrainResult",
    "UserError",
    "gpt_neo_config",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
