"""The mnist1d experiment, run by ``python -m metacurv.experiment``: Adam against MetaCurvatureLR.

An idea a module: what is run (``config``), on what (``data``, ``model``), how (``training``,
``comparison``), where it is kept (``storage``, ``run_folder``, ``environment``), what it says (``results``,
``statistics``, ``verdict``, ``directional``, ``sentences``) and how that is shown (``report``, ``figure``,
``results_files``, ``redraw``). ``cli`` and ``options`` are the command line. Only metacurv's public names
are used, and nothing in metacurv imports this package.
"""
