"""The mnist1d experiment, run by ``python -m metacurv.experiment``: Adam against MetaCurvatureLR.

An idea a module: what is run (``config``), on what (``data``, ``model``), how (``training``,
``comparison``), where it is kept (``storage``, ``run_folder``, ``environment``) and what it says
(``results``, ``statistics``, ``verdict``, ``directional``, ``report``, ``figure``). ``cli`` and
``options`` are the command line. Only metacurv's public names are used, and nothing in metacurv imports this package.
"""
