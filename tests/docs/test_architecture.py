"""The pictures of the architecture are what their script makes of the imports as they are now, and imports point one way."""

from __future__ import annotations

import ast
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def architecture() -> ModuleType:
    spec = spec_from_file_location("architecture", ROOT / "docs/_site/architecture.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    # The dataclass looks its module up.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "architecture", module)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["WHOLE", "ESTIMATORS"])
def picture(request: pytest.FixtureRequest, architecture: ModuleType) -> Any:
    return getattr(architecture, request.param)


def test_the_picture_is_of_the_code_as_it_is(architecture: ModuleType, picture: Any) -> None:
    made = architecture.draw(architecture.read(picture), picture.rooms)
    assert picture.path.read_text() == made, "run: python docs/_site/architecture.py"
    ElementTree.fromstring(made)


def test_imports_point_down(architecture: ModuleType, picture: Any) -> None:
    """A room imports those that stand below it in the list of rooms, and no others."""
    graph = architecture.read(picture)
    assert set(graph) == set(picture.rooms)
    assert architecture.upward(graph, picture) == []


def test_an_import_that_points_up_is_seen(architecture: ModuleType) -> None:
    graph = {"ops": {"estimators"}, "estimators": {"ops"}}
    assert architecture.upward(graph, architecture.WHOLE) == ["ops imports estimators"]


def test_boxes_stand_apart(architecture: ModuleType, picture: Any) -> None:
    graph = architecture.read(picture)
    rows = architecture.floors(graph)
    at = architecture.places(rows, architecture.drawn_arrows(graph))
    for row in rows:
        middles = sorted(at[name][0] for name in row)
        reach = architecture.BOX_WIDTH / 2
        assert reach <= middles[0]
        assert middles[-1] <= architecture.WIDTH - reach
        assert all(right - left >= 2 * reach + 10 for left, right in pairwise(middles))


def test_what_a_module_imports(architecture: ModuleType) -> None:
    source = """
import torch, metacurv.ops
from typing import TYPE_CHECKING
from . import near
from ..optim.rule import name
from metacurv import hessian_trace
if TYPE_CHECKING:
    from metacurv import not_when_it_runs
def later():
    from metacurv.ops._compiled import late
    import_module("metacurv._C")
"""
    module = architecture.Module("metacurv.estimators.one", False, ast.parse(source))
    found = {name for name in architecture.imports(module) if name.startswith("metacurv")}
    assert found == {
        "metacurv.ops",
        "metacurv.estimators.near",
        "metacurv.optim.rule.name",
        "metacurv.hessian_trace",
        "metacurv.ops._compiled.late",
        "metacurv._C",
    }
    assert architecture.room("metacurv.ops._compiled.late", {}) == "ops"
    assert architecture.room("metacurv.optim.directional.rule", {}) == "optim/directional"
    inner = architecture.ESTIMATORS
    assert architecture.room("metacurv.estimators.hessian_trace", {}, inner) == "public functions"
    assert architecture.room("metacurv.estimators.graph.walk", {}, inner) == "graph"
    assert architecture.room("metacurv.optim.wrapper", {}, inner) is None
    public = {"metacurv.hessian_trace": "metacurv.estimators.hessian_trace.hessian_trace"}
    assert architecture.room("metacurv.hessian_trace", public) == "estimators"
    assert architecture.room("metacurv._validate.real", {}) is None


def test_arrows_that_follow_from_others_are_left_out(architecture: ModuleType) -> None:
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert architecture.drawn_arrows(graph) == [("a", "b"), ("b", "c")]
    assert architecture.floors(graph) == [["a"], ["b"], ["c"]]
    with pytest.raises(ValueError, match="circle: b, c"):
        architecture.draw({"a": {"b"}, "b": {"c"}, "c": {"b"}}, {})
