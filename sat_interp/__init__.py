"""Self-ablating transformers, their training, and nothing of the evaluations."""

from sat_interp.config import SelfAblationConfig
from sat_interp.transformer import DualOutput, SelfAblatingTransformer

__all__ = ["DualOutput", "SelfAblatingTransformer", "SelfAblationConfig"]
