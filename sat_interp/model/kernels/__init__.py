"""Fused kernels, one module per device."""
