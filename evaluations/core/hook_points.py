"""Names of hook points, for modules that read no model, such as reports."""

from __future__ import annotations

NEURONS = "blocks.*.mlp.hook_post"
"""The neurons of every block's MLP, after the activation function."""
