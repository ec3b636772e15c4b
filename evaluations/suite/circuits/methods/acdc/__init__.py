"""ACDC: the search and its engines."""
