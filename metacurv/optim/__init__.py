"""Optimizers that set the learning rate from measured curvature: a wrapper that both rules share, and a room for each."""
