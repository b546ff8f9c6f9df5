"""Wrong arguments of the ops: the type of the error, the argument it names, and that nothing was written."""

from __future__ import annotations

import pytest
import torch

from metacurv import ops
from tests.helpers import BACKENDS

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


def list_arguments():
    return {"tensors": [torch.full((4,), 7.0), torch.full((3,), 7.0)], "seed": 0, "probe": 0}


def accumulate_arguments():
    return {
        "mean": float64(1, 2, 3),
        "m2": float64(4, 5, 6),
        "count": torch.tensor(2),
        "products": list_arguments()["tensors"],
        "seed": 0,
        "probe": 0,
    }


def rule_arguments():
    return {"scale": torch.tensor(0.25), "trace": torch.tensor(3.0), "alpha": 0.5}


MAKE = {
    "rademacher_": list_arguments,
    "signed_sum": list_arguments,
    "hutchinson_accumulate_": accumulate_arguments,
    "reciprocal_lr_": rule_arguments,
}

# (argument, wrong value, error); the message must name the argument. Values are made in the test: see `value`.
WRONG_COORDINATES = [
    ("seed", -1, ValueError),
    ("seed", 2**64, ValueError),
    ("seed", 1.0, TypeError),
    ("seed", True, TypeError),
    ("seed", "0", TypeError),
    ("seed", None, TypeError),
    ("probe", -1, ValueError),
    ("probe", 2**32, ValueError),
    ("probe", 0.0, TypeError),
    ("probe", False, TypeError),
    ("probe", None, TypeError),
    ("probe", lambda: torch.tensor(0.0), ValueError),
    ("probe", lambda: torch.tensor(0, dtype=torch.int32), ValueError),
    ("probe", lambda: torch.tensor([0, 1]), ValueError),
    ("probe", lambda: torch.tensor(0, device="meta"), ValueError),
    ("numbers", [0], ValueError),
    ("numbers", [0, 1, 2], ValueError),
    ("numbers", [0, -1], ValueError),
    ("numbers", [0, 2**32], ValueError),
    ("numbers", [0, 1.0], TypeError),
    ("numbers", 5, TypeError),
    ("offsets", [0], ValueError),
    ("offsets", [0, -1], ValueError),
    ("offsets", [0, 2**63], ValueError),
    ("offsets", [0, "1"], TypeError),
    ("offsets", 5, TypeError),
]

WRONG_LISTS = [
    (lambda: torch.ones(3), TypeError),
    (lambda: None, TypeError),
    (lambda: 3, TypeError),
    (lambda: {"a": torch.ones(3)}, TypeError),
    (lambda: (tensor for tensor in [torch.ones(3)]), TypeError),
    (lambda: [torch.ones(3), None], TypeError),
    (lambda: [torch.ones(3), [1.0]], TypeError),
    (lambda: [torch.ones(3), torch.ones(3, dtype=torch.int64)], TypeError),
    (lambda: [torch.ones(3), torch.ones(3, dtype=torch.bool)], TypeError),
    (lambda: [torch.ones(3), torch.ones(3, dtype=torch.complex64)], TypeError),
    (lambda: [torch.ones(3), torch.ones(3).to_sparse()], TypeError),
    (lambda: [torch.ones(3), torch.ones(3, device="meta")], ValueError),
]

WRONG_STATISTICS = [
    ("mean", None, TypeError),
    ("mean", 1.0, TypeError),
    (
        "mean",
        lambda: float64(1, 2),
        ValueError,
    ),  # one short: an entry for each tensor and the total
    ("mean", lambda: float64(1, 2, 3).float(), ValueError),
    ("mean", lambda: float64(1, 2, 3).view(3, 1), ValueError),
    ("mean", lambda: torch.ones(6, dtype=torch.float64)[::2], ValueError),
    ("mean", lambda: torch.ones(3, dtype=torch.float64, device="meta"), ValueError),
    ("m2", lambda: float64(1, 2, 3, 4), ValueError),
    ("m2", lambda: float64(1, 2, 3).float(), ValueError),
    ("m2", [1.0, 2.0, 3.0], TypeError),
    ("count", 2, TypeError),
    ("count", lambda: torch.tensor(2.0), ValueError),
    ("count", lambda: torch.tensor([2]), ValueError),
    ("count", lambda: torch.tensor(2, dtype=torch.int32), ValueError),
]

WRONG_RULES = [
    ("scale", 1.0, TypeError),
    ("scale", lambda: torch.ones(2), ValueError),
    ("scale", lambda: torch.ones((), dtype=torch.float16), ValueError),
    ("scale", lambda: torch.ones((), dtype=torch.int64), ValueError),
    ("trace", None, TypeError),
    ("trace", lambda: torch.ones(0), ValueError),
    ("trace", lambda: torch.ones((), dtype=torch.bfloat16), ValueError),
    ("trace", lambda: torch.ones((), device="meta"), ValueError),
    ("alpha", -1e-9, ValueError),
    ("alpha", float("nan"), ValueError),
    ("alpha", float("inf"), ValueError),
    ("alpha", True, TypeError),
    ("alpha", "0.1", TypeError),
    ("alpha", None, TypeError),
]


def tensors_in(arguments):
    for value in arguments.values():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, torch.Tensor) and item.device.type == "cpu":
                yield item


def assert_refused(name, argument, value, error, backend):
    arguments = MAKE[name]()
    arguments[argument] = value() if callable(value) else value
    before = [tensor.clone() for tensor in tensors_in(arguments)]
    with pytest.raises(error, match=argument):
        getattr(ops, name)(**arguments, backend=backend)
    for tensor, copy in zip(tensors_in(arguments), before, strict=True):
        assert torch.equal(tensor.to_dense(), copy.to_dense())


@pytest.mark.parametrize("name", ["rademacher_", "signed_sum", "hutchinson_accumulate_"])
@pytest.mark.parametrize(("argument", "value", "error"), WRONG_COORDINATES)
def test_coordinates(name, argument, value, error, backend):
    assert_refused(name, argument, value, error, backend)


@pytest.mark.parametrize("name", ["rademacher_", "signed_sum", "hutchinson_accumulate_"])
@pytest.mark.parametrize(("value", "error"), WRONG_LISTS)
def test_lists(name, value, error, backend):
    argument = "products" if name == "hutchinson_accumulate_" else "tensors"
    assert_refused(name, argument, value, error, backend)


@pytest.mark.parametrize(("argument", "value", "error"), WRONG_STATISTICS)
def test_statistics(argument, value, error, backend):
    assert_refused("hutchinson_accumulate_", argument, value, error, backend)


@pytest.mark.parametrize(("argument", "value", "error"), WRONG_RULES)
def test_rules(argument, value, error, backend):
    assert_refused("reciprocal_lr_", argument, value, error, backend)


@pytest.mark.parametrize(
    "share",
    [
        pytest.param(lambda x: x.expand(4, 12), id="expanded rows"),
        pytest.param(lambda x: x.view(12, 1).expand(12, 3), id="expanded columns"),
        pytest.param(lambda x: x[3].expand(2, 2), id="one number expanded"),
        pytest.param(lambda x: x.unfold(0, 4, 2), id="windows"),
    ],
)
def test_tensors_that_share_memory_cannot_be_filled(share, backend):
    memory = torch.full((12,), 7.0)
    with pytest.raises(ValueError, match=r"tensors\[1\] must .* overlapping"):
        ops.rademacher_([torch.empty(2), share(memory)], seed=0, probe=0, backend=backend)
    assert memory.tolist() == [7.0] * 12


def test_lazily_negated_views_cannot_be_filled(backend):
    """``z.conj().imag`` is one: its numbers are not those in memory."""
    x = torch.complex(torch.ones(4), torch.ones(4)).conj().imag
    with pytest.raises(ValueError, match=r"tensors\[0\] must .* negated"):
        ops.rademacher_([x], seed=0, probe=0, backend=backend)
    assert x.tolist() == [-1.0] * 4


def test_a_dimension_of_one_element_shares_nothing(backend):
    x = torch.full((1, 5), 7.0).expand(1, 5).as_strided((1, 5), (0, 1))
    ops.rademacher_([x], seed=0, probe=0, backend=backend)
    assert x.abs().tolist() == [[1.0] * 5]


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("wrong", ["cuda", "", None, 1, "Native"])
def test_backends(name, wrong, backend):
    arguments = MAKE[name]()
    before = [tensor.clone() for tensor in tensors_in(arguments)]
    with pytest.raises(ValueError, match="backend must be one of auto, native, reference"):
        getattr(ops, name)(**arguments, backend=wrong)
    assert all(torch.equal(x, y) for x, y in zip(tensors_in(arguments), before, strict=True))


def test_messages_say_what_was_given(backend):
    with pytest.raises(ValueError, match=r"numbers\[1\] must be in \[0, 4294967296\), got -3"):
        ops.signed_sum([torch.ones(2)] * 2, seed=0, probe=0, numbers=[0, -3], backend=backend)
    with pytest.raises(TypeError, match=r"tensors\[1\] must be .*float32.* got torch.int64"):
        ops.signed_sum(
            [torch.ones(2), torch.ones(2, dtype=torch.int64)], seed=0, probe=0, backend=backend
        )
    with pytest.raises(TypeError, match="alpha must be a finite number >= 0, got str 'high'"):
        ops.reciprocal_lr_(torch.ones(()), torch.ones(()), alpha="high", backend=backend)


@pytest.mark.parametrize("sparse", ["scale", "trace"])
def test_sparse_scalars(sparse, backend):
    arguments = {"scale": torch.ones(1), "trace": torch.ones(1)}
    arguments[sparse] = arguments[sparse].to_sparse()
    with pytest.raises((TypeError, ValueError), match=f"{sparse} must"):
        ops.reciprocal_lr_(**arguments, alpha=0.5, backend=backend)


def test_numpy_integers_are_integers(backend):
    numpy = pytest.importorskip("numpy")
    x, y = torch.empty(40), torch.empty(40)
    ops.rademacher_([x], seed=5, probe=6, numbers=[7], offsets=[8], backend=backend)
    ops.rademacher_(
        [y],
        seed=numpy.uint64(5),
        probe=numpy.int32(6),
        numbers=[numpy.int64(7)],
        offsets=[numpy.uint8(8)],
        backend=backend,
    )
    assert torch.equal(x, y)
