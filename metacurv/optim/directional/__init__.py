"""The directional rule at work: it measures along the base optimizer's step, lets the rate settle, and watches it.

``control`` takes the steps, and ``phases`` does what comes between two of them; ``first_step`` finds the first rate.
``probe_batches`` draws from ``probe_sources``, ``step_line`` moves parameters along a step and back, ``line_reading`` measures
there. ``race`` lets candidates take turns where that says little, as copies of the training that ``snapshot`` makes; ``judge``
compares them, and ``guard`` watches afterwards. ``iterate_average`` keeps the average, and ``shown_parameters`` shows it;
``group_rates`` knows the parameter groups, ``history`` keeps a ``record`` of every event, ``checked_state`` looks through a
checkpoint. The settings are in ``rule``, and ``stage`` says how far a training has come.
"""
