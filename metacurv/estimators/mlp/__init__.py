"""Activation space for the plainest of graphs, a stack of linear layers and elementwise functions."""
