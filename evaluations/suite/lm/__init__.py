"""lm: how well a model predicts text."""
