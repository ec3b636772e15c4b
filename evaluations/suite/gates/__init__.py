"""gates: what the masks of a gated model do, and what they leak."""
