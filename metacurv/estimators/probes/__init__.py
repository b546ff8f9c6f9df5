"""Parameter space: products of the Hessian or the Gauss-Newton matrix with random sign vectors."""
