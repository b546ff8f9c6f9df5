"""Optimizers that set the learning rate from measured curvature: the wrapper that both rules share, and a room for each rule."""
