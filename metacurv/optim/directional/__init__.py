"""The directional rule at work: it measures along the base optimizer's step, lets the rate settle, and watches it.

``control`` runs it and ``first_step`` finds the first rate; ``step_line`` moves parameters along a step and back, ``read_line``
measures there, ``probe_batches`` draws the batches. ``race`` lets candidates take turns where that says little, as copies of
the training that ``snapshot`` makes; ``judge`` compares them, and ``guard`` watches afterwards. ``iterate_average`` keeps the
average; ``group_rates``, ``effective_rates`` and ``decoupled_decay`` know the parameter groups, ``history`` keeps a ``record``
of every event, ``checked_state`` looks through a checkpoint. The phases are in ``metacurv.optim.directional.rule``.
"""
