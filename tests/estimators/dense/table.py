"""Holds every network and loss of the tables, with its dense matrices, which are made once a process."""

from __future__ import annotations

import functools

import pytest

from tests.estimators.dense.case import build
from tests.estimators.dense.losses import LOSSES
from tests.estimators.dense.networks import NETWORKS
from tests.estimators.dense.truth import Truth, dense_truth

TABLE = {**NETWORKS, **LOSSES}
_EVERY = 3  # case is in the quick suite


def marks_of(name: str, every: int = _EVERY) -> list[pytest.MarkDecorator]:
    """Returns the marks of a case: all but one of ``every`` are slow, as they take minutes together."""
    return [pytest.mark.slow] if list(TABLE).index(name) % every else []


@functools.cache
def truth_of(name: str) -> Truth:
    """Returns the dense matrices of a case; nobody may change them."""
    return dense_truth(build(TABLE[name]))
