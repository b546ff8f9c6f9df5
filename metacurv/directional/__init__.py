"""The directional rule at work: when and where it measures along the optimizer's own step, and what it does to the rate.

``control`` runs it; ``step_line`` moves the parameters along a step and back, ``probe_batches`` draws what it measures on,
``iterate_average`` keeps the average, ``decoupled_decay`` keeps weight decay out of the direction, ``record`` is the
history. The arithmetic of the rule is in ``metacurv.rules.directional``.
"""
