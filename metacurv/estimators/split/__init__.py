"""The Hessian's trace of smooth networks: probes with a direction for each example, and the Gauss-Newton matrix beside them."""
