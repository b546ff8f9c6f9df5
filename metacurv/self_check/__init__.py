"""The self-check that ``python -m metacurv`` runs, and the list of what is installed."""
