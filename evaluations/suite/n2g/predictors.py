"""What predicts where a unit fires, by name: the graph, the lookups beside it, and a constant."""

from __future__ import annotations

LOOKUPS = ("lookup", "lookup_windows", "lookup_published")
PREDICTORS = ("trie", *LOOKUPS, "always")
