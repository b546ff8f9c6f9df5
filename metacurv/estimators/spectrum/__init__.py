"""The spectrum of a curvature matrix: products with given vectors, Krylov spaces, and the Gram matrix of the loss's factor."""
