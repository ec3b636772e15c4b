"""Names of hook points, for modules that read no model, such as reports."""

from __future__ import annotations

from typing import Literal

Stream = Literal["clean", "ablated"]
"""The two streams of a model with gates."""

NEURONS = "blocks.*.mlp.hook_post"
"""The neurons of every block's MLP, after the activation function."""
