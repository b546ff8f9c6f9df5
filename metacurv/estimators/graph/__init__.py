"""Reading autograd's graph, and differentiating through it."""
