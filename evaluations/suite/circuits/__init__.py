"""Circuits: which edges of a model's computational graph a task needs."""
