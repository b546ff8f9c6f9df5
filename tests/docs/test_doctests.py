"""The examples in docstrings run as they stand."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import metacurv

NEED_EXTRAS = (
    "metacurv.experiment",
    "metacurv.integrations.lightning",
    "metacurv.integrations.transformers",
)


def module_names() -> list[str]:
    """All but those that need extras, and what cannot be loaded without the compiled module."""
    found = [info.name for info in pkgutil.walk_packages(metacurv.__path__, "metacurv.")]
    left_out = {"metacurv._C"} | (set() if metacurv.native_available() else {"metacurv._fake"})
    return [
        "metacurv",
        *(name for name in found if name not in left_out and not name.startswith(NEED_EXTRAS)),
    ]


@pytest.mark.parametrize("name", module_names())
def test_examples(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


def test_the_public_names_have_examples():
    finder = doctest.DocTestFinder(recurse=False)
    for public in (
        metacurv.hessian_trace,
        metacurv.MetaCurvatureLR,
        metacurv.ops.rademacher_,
        metacurv.ops.signed_sum,
    ):
        examples = [test.examples for test in finder.find(public, globs={})]
        assert any(examples), public


def test_public_names():
    assert set(metacurv.__all__) <= set(dir(metacurv))
    assert all(getattr(metacurv, name) is not None for name in metacurv.__all__)
