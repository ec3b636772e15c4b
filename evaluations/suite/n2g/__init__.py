"""n2g: a neuron as a graph of the token patterns that fire it (Foote et al. 2023)."""
