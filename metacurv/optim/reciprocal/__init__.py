"""The reciprocal rule at work: the learning rate from the trace of the Hessian of the loss that the loop hands over.

``optimizer`` is what a user holds, ``control`` steps, ``readings`` measures, ``step_capture`` finds the forward pass of the
loss, ``record`` is what a callback gets, and ``rule`` is the rule itself.
"""
