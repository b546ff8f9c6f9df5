"""Learning-rate rules compared on many tasks, run by ``python -m metacurv.experiment rules``.

An idea a module: what is learnt (``tasks``, ``datasets``, ``networks``), by what (``methods``, ``grid``, ``tuning_free``,
``gen``, ``cdat``), which runs follow from it (``plan``), how (``training``, ``workers``), where results are kept (``store``)
and what they say (``summary``, ``tables``, ``figures``). ``options`` and ``cli`` are the command line. Only
metacurv's public names are used.
"""
