"""The reciprocal rule at work: the learning rate from the trace of the Hessian of the loss that the loop hands over.

``optimizer`` is what a user holds, ``control`` measures and steps, ``step_capture`` finds the forward pass of the loss, and
``record`` is what a callback gets. The rule itself is in ``metacurv.optim.reciprocal.rule``.
"""
