"""Learning-rate rules compared on many tasks, run by ``python -m benchmarks.learning_rates`` from the repository's root.

An idea a module: what is learnt (``tasks``, ``new_tasks`` and the data and networks that they name), by what (``methods``,
``grid``, ``tuning_free``, ``gen``, ``cdat``, ``directional``, ``searched``), which runs follow from it (``plan``), how
(``training``, ``workers``), where results are kept (``store``), what they say on one task (``summary``) and on all
(``regret``, ``carried_over``, ``profiles``, ``rates``, ``across``), and how that is shown (``tables``, ``figures``). ``safety``
is a sweep of its own. ``options`` and ``cli`` are the command line. Only metacurv's public names are used.
"""
