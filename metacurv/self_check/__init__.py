"""The output of ``python -m metacurv``: what is installed, and whether it computes what it should."""
