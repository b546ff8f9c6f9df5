"""The figures by which the settings of the directional rule were chosen: ``python -m benchmarks.learning_rates.development``.

``tasks`` are what is trained, ``variants`` the rule with a setting changed, ``reference`` the fixed grid of rates that they are
compared with; ``plan`` has the seeds and the runs, ``single`` does one of them, ``summary`` and ``table`` compare.
"""
