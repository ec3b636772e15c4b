"""Self-ablating transformers, their training, and nothing of the evaluations."""

from sat_interp.config import SelfAblationConfig
from sat_interp.streams import DualOutput
from sat_interp.transformer import SelfAblatingTransformer

__all__ = ["DualOutput", "SelfAblatingTransformer", "SelfAblationConfig"]
