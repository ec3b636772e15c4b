"""Examiners, which explain neurons and predict them: a lookup table and language models."""
