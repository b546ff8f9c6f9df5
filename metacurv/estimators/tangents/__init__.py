"""Derivatives along a probe by rules for known operations: forward over reverse, without a gradient's graph."""
