"""The evaluations, a folder each."""
