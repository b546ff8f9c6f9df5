"""Activation space: the trace as sums of squared per-example gradients, layer by layer."""
