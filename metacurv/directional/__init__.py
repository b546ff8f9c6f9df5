"""The directional rule at work: when and where it measures along the base optimizer's step, and how that moves the rate.

``control`` runs it and ``first_step`` finds the first rate; ``step_line`` moves parameters along a step and back, ``read_line``
measures there, ``probe_batches`` draws the batches, ``iterate_average`` keeps the average, ``decoupled_decay`` keeps
weight decay out of the direction, ``record`` is the history. The rule itself is in ``metacurv.rules.directional``.
"""
