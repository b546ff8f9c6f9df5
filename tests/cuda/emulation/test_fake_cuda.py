"""Ops on fake CUDA tensors: shape functions and tracing as for a GPU, on a machine without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map

from tests.helpers import DTYPES, needs_native
from tests.ops.op_calls import OPS, calls

pytestmark = needs_native


def op_and_arguments(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Arguments are real ones, on the CPU."""
    return getattr(torch.ops.metacurv, name).default, calls(dtype)[name]


def on_fake_cuda(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_results_are_on_the_device_of_the_arguments(name: str, dtype: torch.dtype) -> None:
    """With the shape, dtype and strides of a real run on the CPU."""
    op, real = op_and_arguments(name, dtype)
    with FakeTensorMode():
        fakes = tree_map(on_fake_cuda, real)
        made = tree_leaves(op(*fakes))
    expected = tree_leaves(op(*real))
    for fake, result in zip(made, expected, strict=True):
        if isinstance(result, Tensor):
            assert fake.device == torch.device("cuda", 0)
            assert (fake.shape, fake.dtype) == (result.shape, result.dtype)
            assert fake.stride() == result.stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_opcheck(name: str, dtype: torch.dtype) -> None:
    """Schema, shapes and tracing; that values are right, and untouched where they should be, needs a device."""
    op, real = op_and_arguments(name, dtype)
    with FakeTensorMode():
        results = torch.library.opcheck(op, tree_map(on_fake_cuda, real))
    assert set(results.values()) == {"SUCCESS"}
    assert "test_aot_dispatch_dynamic" in results


@pytest.mark.parametrize("name", OPS)
def test_traced_for_the_device(name: str) -> None:
    """Into one call of the op, without a constant or a copy beside it."""
    op, real = op_and_arguments(name)
    with FakeTensorMode(allow_non_fake_inputs=False):
        fakes = tree_map(on_fake_cuda, real)
        graph = make_fx(op, tracing_mode="fake")(*fakes).graph
    called = [node.target for node in graph.nodes if node.op == "call_function"]
    assert called.count(op) == 1
    assert {str(other) for other in called if other is not op} <= {"<built-in function getitem>"}


@pytest.mark.parametrize("name", OPS)
def test_compiled_for_the_device_into_one_graph(name: str) -> None:
    op, real = op_and_arguments(name)
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()

    def function(*arguments: Any) -> Any:
        return op(*arguments)

    with FakeTensorMode():
        fakes = tree_map(on_fake_cuda, real)
        torch.compile(function, fullgraph=True, backend=keep)(*fakes)
    assert len(graphs) == 1
    assert [n.target for n in graphs[0].graph.nodes if n.op == "call_function"].count(op) == 1
