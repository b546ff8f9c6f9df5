"""The command ``python -m metacurv.measure``, which measures a user's model and writes a report."""
