"""Training: configuration, loss, loop, exact state."""
