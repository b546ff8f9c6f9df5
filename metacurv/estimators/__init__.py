"""Curvature estimators: a loss in, a TraceEstimate out. They know no optimizer."""
