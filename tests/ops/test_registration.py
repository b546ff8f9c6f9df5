"""The native ops as citizens of torch: schemas, shape functions, tracing, version counters, autograd."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from metacurv import ops
from metacurv.ops._reference import OpSet
from metacurv.self_check import op_checks
from tests.helpers import BACKENDS, DTYPES, needs_native, sampled
from tests.ops.op_calls import OPS, calls, chain, softmax, statistics

SCHEMAS = Path(__file__).resolve().parents[2] / "csrc" / "ops.cpp"
LIST_OPS = ["rademacher_", "signed_sum", "hutchinson_accumulate_"]


def test_every_op_is_everywhere():
    """It has a schema, a kernel that overrides a twin, a check of installed packages, and a line here."""
    schemas = re.findall(r'm\.def\(\s*"(\w+)[.(]', SCHEMAS.read_text())
    assert set(schemas) == set(OPS) == {op.name for op in op_checks.OPS}
    twins = {name for base in OpSet.__mro__ for name in vars(base) if not name.startswith("__")}
    assert twins == set(OPS)


@needs_native
def test_every_op_has_a_kernel():
    from metacurv.ops._compiled import CompiledOps

    assert {name for name in vars(CompiledOps) if not name.startswith("__")} == set(OPS)


@needs_native
@pytest.mark.parametrize("dtype", sampled(DTYPES, 4), ids=str)
@pytest.mark.parametrize("name", OPS)
def test_opcheck(name, dtype):
    op = getattr(torch.ops.metacurv, name).default
    results = torch.library.opcheck(op, calls(dtype)[name])
    assert set(results.values()) == {"SUCCESS"}


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["rademacher_", "signed_sum"])
def test_opcheck_with_the_probe_as_a_number(name, dtype):
    tensors, seed, probe, *coordinates = calls(dtype)[name]
    op = getattr(torch.ops.metacurv, name).number
    results = torch.library.opcheck(op, (tensors, seed, int(probe), *coordinates))
    assert set(results.values()) == {"SUCCESS"}


@needs_native
@pytest.mark.parametrize("name", LIST_OPS)
def test_opcheck_of_empty_lists(name):
    arguments = [[] if isinstance(a, list) else a for a in calls(torch.float32)[name]]
    if name == "hutchinson_accumulate_":
        arguments[:3] = statistics(1)
    op = getattr(torch.ops.metacurv, name).default
    assert set(torch.library.opcheck(op, tuple(arguments)).values()) == {"SUCCESS"}


@needs_native
def test_schemas_declare_what_is_written():
    def written(name):
        schema = getattr(torch.ops.metacurv, name).default._schema
        return [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]

    assert written("rademacher_") == ["tensors"]
    assert written("signed_sum") == []
    assert written("hutchinson_accumulate_") == ["mean", "m2", "count"]
    assert written("reciprocal_lr_") == ["scale"]
    assert written("chain_draws") == []
    assert written("chain_columns") == []


@needs_native
def test_shapes_without_data():
    """Fake and meta tensors pass through; the result has the shape, dtype and device of a real run."""
    with FakeTensorMode():
        tensors = [torch.empty(3), torch.empty(4, 5, dtype=torch.bfloat16)]
        ops.rademacher_(tensors, seed=0, probe=0)
        assert ops.signed_sum(tensors, seed=0, probe=0).shape == (2,)
        draws = torch.ops.metacurv.chain_draws(*softmax(), 0, 0, 4, *chain())
        assert (draws.shape, draws.dtype) == ((4, 6), torch.float64)
        columns = torch.ops.metacurv.chain_columns(*softmax(), 1, 4, *chain())
        assert (columns.shape, columns.dtype) == ((3, 6), torch.float64)
    tensors = [torch.empty(3, device="meta"), torch.empty(4, device="meta")]
    ops.rademacher_(tensors, seed=0, probe=0)
    result = ops.signed_sum(tensors, seed=0, probe=0)
    assert (result.shape, result.dtype, result.device.type) == ((2,), torch.float64, "meta")


# One function an op, written as a user would; each changes its arguments in place or returns a result.


def fill(x):
    ops.rademacher_([x], seed=1, probe=3)
    return x * 2


def add_up(x):
    return ops.signed_sum([x, x[1:]], seed=1, probe=3) + 1


def accumulate(mean, m2, count, x):
    ops.hutchinson_accumulate_(mean, m2, count, [x], seed=1, probe=3)
    return mean + m2


def scale_lr(scale, trace):
    ops.reciprocal_lr_(scale, trace, alpha=0.5)
    return scale * 2


COMPILED = [
    pytest.param(fill, lambda: (torch.zeros(50),), id="rademacher_"),
    pytest.param(add_up, lambda: (torch.linspace(-1, 3, 50),), id="signed_sum"),
    pytest.param(accumulate, lambda: (*statistics(2), torch.ones(50)), id="hutchinson_accumulate_"),
    pytest.param(scale_lr, lambda: (torch.ones(()), torch.tensor(2.0)), id="reciprocal_lr_"),
]


@needs_native
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(("function", "make"), COMPILED)
def test_compiles_into_one_graph(function, make, backend):
    torch._dynamo.reset()
    eager, compiled = make(), make()
    expected = function(*eager)
    result = torch.compile(function, fullgraph=True, backend=backend)(*compiled)
    assert torch.equal(result, expected)
    assert all(torch.equal(x, y) for x, y in zip(eager, compiled, strict=True))


@needs_native
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_bare_ops_compile_with_a_probe_tensor(backend):
    """A probe number that is an input of the graph, not a constant in it."""
    torch._dynamo.reset()

    def function(x, probe):
        torch.ops.metacurv.rademacher_([x], 1, probe, [0], [0])
        return torch.ops.metacurv.signed_sum([x], 1, probe + 1, [0], [0])

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for k in range(3):
        x, y = torch.zeros(70), torch.zeros(70)
        assert torch.equal(compiled(x, torch.tensor(k)), function(y, torch.tensor(k)))
        assert torch.equal(x, y)


@pytest.mark.parametrize("backend", BACKENDS)
def test_filling_bumps_the_version_counter(backend):
    """So that autograd notices when a tensor it saved is overwritten, as with any in-place op."""
    factor = torch.ones(5, requires_grad=True)
    tensors = [torch.ones(5), torch.ones(3)]
    versions = [tensor._version for tensor in tensors]
    product = (factor * tensors[0]).sum()
    ops.rademacher_(tensors, seed=0, probe=0, backend=backend)
    assert all(t._version > before for t, before in zip(tensors, versions, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_statistics_and_scales_bump_it_too(backend):
    written = [*statistics(2), torch.ones(())]
    mean, m2, count, scale = written
    before = [tensor._version for tensor in written]
    ops.hutchinson_accumulate_(mean, m2, count, [torch.ones(3)], seed=0, probe=0, backend=backend)
    ops.reciprocal_lr_(scale, torch.ones(()), alpha=1.0, backend=backend)
    assert all(t._version > version for t, version in zip(written, before, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_filling_a_parameter_records_no_graph(backend):
    parameter = torch.zeros(5, requires_grad=True)
    ops.rademacher_([parameter], seed=0, probe=0, backend=backend)
    assert parameter.is_leaf
    assert parameter.requires_grad
    assert parameter.abs().tolist() == [1.0] * 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_works_in_inference_mode_and_under_autocast(backend):
    with torch.inference_mode():
        x = torch.empty(100)
        ops.rademacher_([x], seed=0, probe=0, backend=backend)
        assert ops.signed_sum([x], seed=0, probe=0, backend=backend).item() == 100
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = torch.empty(1000)
        ops.rademacher_([x], seed=0, probe=0, backend=backend)
        x.mul_(1.01)
        assert ops.signed_sum([x], seed=0, probe=0, backend=backend).item() == pytest.approx(1010)


@needs_native
@pytest.mark.parametrize("name", ["rademacher_", "signed_sum"])
@pytest.mark.parametrize("probe", [-1, 2**32])
def test_bare_ops_check_the_number_of_a_probe(name, probe):
    x = torch.zeros(3)
    with pytest.raises(RuntimeError, match=r"probe must be in \[0, 2\^32\)"):
        getattr(torch.ops.metacurv, name).number([x], 0, probe, [0], [0])
    assert not x.any()
