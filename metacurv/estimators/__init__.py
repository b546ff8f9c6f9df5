"""Curvature estimators: each takes a loss and returns a ``TraceEstimate``. They know no optimizer."""
