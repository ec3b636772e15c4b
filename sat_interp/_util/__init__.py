"""Helpers that both packages share."""
