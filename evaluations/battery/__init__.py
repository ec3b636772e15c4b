"""The battery: all evaluations of several models."""
