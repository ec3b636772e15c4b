"""The model: its gates, its two streams, and its fast path."""
