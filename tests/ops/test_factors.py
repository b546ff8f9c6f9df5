"""softmax_factor and row_products against their formulas, written out over signs that rademacher_ made."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metacurv import ops
from metacurv.ops.backend import KERNELS, TWINS
from tests.helpers import BACKENDS, DTYPES, needs_native, property_test, run_python
from tests.ops.activation_digest import digest

FLOATS = [torch.float32, torch.float64]
SHAPES = [(1, 1), (3, 1), (1, 2), (100, 10), (7, 31), (5, 32), (5, 33), (3, 129), (2, 1025)]
SHAPES += [(13, 1100), (0, 5), (4, 0), (2, 50_000)]


def probabilities(samples: int, classes: int, dtype: torch.dtype, *, seed: int = 0):
    """Square roots of probabilities that differ widely, and of weights."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    root = torch.rand(samples, generator=generator, dtype=torch.float64)
    return logits.softmax(1).sqrt().to(dtype), root.to(dtype)


def factor(sqrt_p, root, backend="auto", **coordinates):
    defaults = {"seed": 11, "probe": 2, "number": 6, "n_probes": 3}
    return ops.softmax_factor(sqrt_p, root, backend=backend, **{**defaults, **coordinates})


def by_formula(sqrt_p, root, *, seed=11, probe=2, number=6, n_probes=3):
    """In float64, with signs of probes counted modulo 2^32."""
    draws = []
    for k in range(n_probes):
        v = torch.empty(sqrt_p.shape, dtype=torch.float64)
        ops.rademacher_([v], seed=seed, probe=(probe + k) % 2**32, numbers=[number])
        t = sqrt_p.double() * v
        draws.append(root.double()[:, None] * (t - t * t * t.sum(1, keepdim=True)))
    return torch.stack(draws) if draws else torch.empty(0, *sqrt_p.shape, dtype=torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_factor_worked_by_hand(dtype, backend):
    """p = (1/4, 9/16, 3/16 in place of the rest): t = (+-1/2, +-3/4), root 2."""
    sqrt_p = torch.tensor([[0.5, 0.75]], dtype=dtype)
    root = torch.tensor([2.0], dtype=dtype)
    seen = set()
    for probe in range(20):
        v = torch.empty(1, 2)
        ops.rademacher_([v], seed=0, probe=probe, numbers=[1])
        seen.add(tuple(v.flatten().tolist()))
        u = factor(sqrt_p, root, backend, seed=0, probe=probe, number=1, n_probes=1)
        # t^2 = (1/4, 9/16); sum = 5/4 or 1/4, and their negatives
        expected = {
            (1.0, 1.0): [2 * (0.5 - 0.25 * 1.25), 2 * (0.75 - 0.5625 * 1.25)],
            (1.0, -1.0): [2 * (0.5 + 0.25 * 0.25), 2 * (-0.75 + 0.5625 * 0.25)],
            (-1.0, 1.0): [2 * (-0.5 - 0.25 * 0.25), 2 * (0.75 - 0.5625 * 0.25)],
            (-1.0, -1.0): [2 * (-0.5 + 0.25 * 1.25), 2 * (-0.75 + 0.5625 * 1.25)],
        }[tuple(v.flatten().tolist())]
        assert u.tolist() == [[expected]]
    assert len(seen) == 4


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_factor_shapes(dtype, backend, shape):
    sqrt_p, root = probabilities(*shape, dtype)
    before = sqrt_p.clone()
    u = factor(sqrt_p, root, backend)
    assert u.shape == (3, *shape)
    assert u.dtype == dtype
    assert u.is_contiguous()
    assert torch.equal(sqrt_p, before)
    torch.testing.assert_close(
        u.double(), by_formula(sqrt_p, root), rtol=0, atol=8 * torch.finfo(dtype).eps
    )


@needs_native
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_factor_has_the_bits_of_its_twin(dtype, shape):
    sqrt_p, root = probabilities(*shape, dtype)
    assert torch.equal(factor(sqrt_p, root, "native"), factor(sqrt_p, root, "reference"))


@needs_native
@property_test
@given(
    samples=st.integers(0, 40),
    classes=st.integers(0, 150),
    n_probes=st.integers(0, 3),
    seed=st.integers(0, 2**64 - 1),
    probe=st.integers(0, 2**32 - 1),
    number=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(FLOATS),
)
def test_factor_of_anything(samples, classes, n_probes, seed, probe, number, dtype):
    where = {"seed": seed, "probe": probe, "number": number, "n_probes": n_probes}
    sqrt_p, root = probabilities(samples, classes, dtype)
    native = factor(sqrt_p, root, "native", **where)
    assert torch.equal(native, factor(sqrt_p, root, "reference", **where))
    expected = by_formula(sqrt_p, root, **where)
    torch.testing.assert_close(native.double(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", BACKENDS)
def test_probe_numbers_wrap(backend):
    sqrt_p, root = probabilities(9, 40, torch.float64)
    last = factor(sqrt_p, root, backend, probe=2**32 - 2, n_probes=4)
    assert torch.equal(last[2:], factor(sqrt_p, root, backend, probe=0, n_probes=2))
    assert torch.equal(last[:1], factor(sqrt_p, root, backend, probe=2**32 - 2, n_probes=1))
    assert not torch.equal(last[0], last[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("first", [0, 5, 2**32 - 1, 2**32 + 5, -1])
def test_a_probe_in_a_tensor_is_read_modulo_2_to_32(first, backend):
    sqrt_p, root = probabilities(9, 40, torch.float32)
    tensor = factor(sqrt_p, root, backend, probe=torch.tensor(first))
    assert torch.equal(tensor, factor(sqrt_p, root, backend, probe=first % 2**32))


@pytest.mark.parametrize("backend", BACKENDS)
def test_factor_squares_to_the_hessian(backend):
    """The mean of (S e)(S e)' over many probes is s (diag(p) - p p')."""
    sqrt_p, root = probabilities(1, 4, torch.float64)
    u = factor(sqrt_p, root, backend, n_probes=4000)[:, 0]
    p, s = sqrt_p[0] ** 2, float(root[0] ** 2)
    assert float(s) > 0.01
    torch.testing.assert_close(u.T @ u / len(u), s * (p.diag() - p.outer(p)), rtol=0, atol=0.05 * s)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_factor_layouts(dtype, backend):
    """Rows and columns of a wider, longer or transposed tensor; half precision goes to the twin."""
    if backend == "native" and dtype not in FLOATS:
        pytest.skip("not compiled; test_half_precision_and_native")
    sqrt_p, root = probabilities(20, 12, dtype)
    for view, weights in (
        (sqrt_p[:, :7], root),
        (sqrt_p[::2], root[::2]),
        (sqrt_p.t(), root.repeat(2)[: 2 * 12 : 2]),
        (sqrt_p[:1].expand(5, 12), root[:1].expand(5)),
    ):
        packed = factor(view.contiguous(), weights.contiguous(), backend)
        assert torch.equal(factor(view, weights, backend), packed)


@needs_native
def test_half_precision_and_native():
    for dtype in (torch.float16, torch.bfloat16):
        sqrt_p, root = probabilities(4, 5, dtype)
        a, u = torch.ones(4, 2, dtype=dtype), torch.ones(1, 4, 3, dtype=dtype)
        assert torch.equal(factor(sqrt_p, root), factor(sqrt_p, root, "reference"))
        assert ops.row_products(a, u, u).tolist() == [[24.0, 12.0]]
        assert torch.equal(
            KERNELS.softmax_factor(sqrt_p, root, 11, 2, 6, 3), factor(sqrt_p, root, "reference")
        )
        with pytest.raises(RuntimeError, match=r"native.*serves float32 and float64"):
            factor(sqrt_p, root, "native")
        with pytest.raises(RuntimeError, match=r"native.*serves float32 and float64"):
            ops.row_products(a, u, u, backend="native")


@needs_native
def test_unchecked_functions_take_a_number_or_a_tensor():
    sqrt_p, root = probabilities(9, 40, torch.float32)
    expected = factor(sqrt_p, root)
    for module in (KERNELS, TWINS):
        for probe in (2, torch.tensor(2)):
            assert torch.equal(module.softmax_factor(sqrt_p, root, 11, probe, 6, 3), expected)


def products_by_formula(a, u, w):
    a, u, w = a.double(), u.double(), w.double()
    dots = (u * w).sum(2)
    return torch.stack([(a.square().sum(1) * dots).sum(1), dots.sum(1)], dim=1)


def sizes_by_formula(a, u, w):
    """The same with |u w|: what rounding is measured against."""
    return products_by_formula(a, u.abs(), w.abs())


def factors(rows, inputs, outputs, draws, dtype, *, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape):
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (x * torch.exp2(torch.randint(-4, 5, shape, generator=generator))).to(dtype)

    return numbers(rows, inputs), numbers(draws, rows, outputs), numbers(draws, rows, outputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_worked_by_hand(dtype, backend):
    if backend == "native" and dtype not in FLOATS:
        pytest.skip("not compiled")
    a = torch.tensor([[1.0, 2.0], [3.0, 0.0]], dtype=dtype)  # squared norms 5 and 9
    u = torch.tensor([[[1.0, 2.0, 3.0], [0.0, 1.0, -1.0]], [[1.0, 0.0, 0.0]] * 2], dtype=dtype)
    w = torch.tensor([[[2.0, 0.5, -1.0], [7.0, 4.0, 1.0]], [[2.0, 5.0, 5.0]] * 2], dtype=dtype)
    sums = ops.row_products(a, u, w, backend)
    assert sums.dtype == torch.float64
    # dots: 2 + 1 - 3 = 0 and 4 - 1 = 3; 2 and 2
    assert sums.tolist() == [[27.0, 3.0], [28.0, 4.0]]
    # squares: 14 and 2; 1 and 1
    assert ops.row_products(a, u, u, backend).tolist() == [[88.0, 16.0], [14.0, 2.0]]


PRODUCT_SIZES = [(1, 1, 1, 1), (100, 100, 100, 1), (100, 40, 100, 9), (100, 100, 10, 64)]
PRODUCT_SIZES += [(17, 8, 9, 2), (16, 7, 16, 3), (33, 15, 17, 2), (5, 16, 25, 4), (1, 3, 1000, 1)]
PRODUCT_SIZES += [(0, 3, 4, 2), (3, 0, 4, 2), (3, 4, 0, 2), (3, 4, 5, 0), (2000, 1, 1, 3)]


@pytest.mark.parametrize("sizes", PRODUCT_SIZES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_product_sizes(dtype, backend, sizes):
    a, u, w = factors(*sizes, dtype)
    for other in (w, u, u.clone()):
        sums = ops.row_products(a, u, other, backend)
        assert sums.shape == (sizes[3], 2)
        assert sums.dtype == torch.float64
        error = (sums - products_by_formula(a, u, other)).abs()
        assert (error <= 1e-14 * sizes_by_formula(a, u, other)).all()


@needs_native
@property_test
@given(
    rows=st.integers(0, 50),
    inputs=st.integers(0, 40),
    outputs=st.integers(0, 40),
    draws=st.integers(0, 4),
    same=st.booleans(),
    dtype=st.sampled_from(FLOATS),
)
def test_products_of_anything(rows, inputs, outputs, draws, same, dtype):
    a, u, w = factors(rows, inputs, outputs, draws, dtype)
    w = u if same else w
    error = (ops.row_products(a, u, w, "native") - products_by_formula(a, u, w)).abs()
    assert (error <= 1e-14 * sizes_by_formula(a, u, w)).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_products_of_float32_neither_overflow_nor_vanish(backend):
    a = torch.full((2, 3), 1e25)
    u = torch.full((1, 2, 5), 1e-30)
    weighted, plain = ops.row_products(a, u, u, backend)[0].tolist()
    assert weighted == pytest.approx(2 * 3e50 * 5e-60, rel=1e-6)
    assert plain == pytest.approx(1e-59, rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["a", "u", "w", "end of u"])
def test_numbers_that_are_not_finite_show(where, bad, backend):
    a, u, w = factors(20, 11, 13, 2, torch.float32)
    if where == "a":
        a[3, 2] = bad
    elif where == "end of u":
        u[0, 19, 12] = bad
    else:
        {"u": u, "w": w}[where][0, 7, 12] = bad
    sums = ops.row_products(a, u, w, backend)
    assert not sums[0, 0].isfinite()
    assert sums[0, 1].isfinite() == (where == "a")
    assert sums[1, 1].isfinite()


@pytest.mark.parametrize("backend", BACKENDS)
def test_neighbours_in_memory_do_not_count(backend):
    """Also NaN ones: short rows are read together with what follows them."""
    for outputs, inputs in ((3, 5), (9, 1), (1, 9)):
        memory = torch.full((1000,), math.nan)
        a = memory[3 : 3 + 4 * inputs].view(4, inputs).fill_(2)
        u = memory[200 : 200 + 8 * outputs].view(2, 4, outputs).fill_(3)
        assert (
            ops.row_products(a, u, u, backend).tolist()
            == [[4 * 4 * inputs * 9 * outputs, 4 * 9 * outputs]] * 2
        )
        sqrt_p = memory[300 : 300 + 4 * outputs].view(4, outputs).fill_(0.5)
        assert factor(sqrt_p, torch.ones(4), backend).isfinite().all()
        assert int(memory.isnan().sum()) == 1000 - 4 * inputs - 12 * outputs


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_product_layouts(dtype, backend):
    a, u, w = factors(12, 12, 12, 3, dtype)
    for view in (
        lambda x: x[..., :5],
        lambda x: x.transpose(-1, -2),
        lambda x: x[..., ::2, ::2],
        lambda x: x[..., :1, :].expand(x.shape),
    ):
        strided = [view(x) for x in (a, u, w)]
        packed = [x.contiguous() for x in strided]
        sums = ops.row_products(*strided, backend)
        assert torch.equal(sums, ops.row_products(*packed, backend))
        same = ops.row_products(strided[0], strided[1], strided[1], backend)
        assert torch.equal(same, ops.row_products(packed[0], packed[1], packed[1], backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_lazily_negated_inputs_count_as_negative(backend):
    z = torch.complex(torch.ones(1, 3, 4), torch.full((1, 3, 4), 2.0)).conj().imag
    a = torch.ones(3, 2)
    assert ops.row_products(a, z, -z, backend).tolist() == [[-96.0, -48.0]]
    assert torch.equal(
        factor(z[0], torch.ones(3), backend), factor(z[0].clone(), torch.ones(3), backend)
    )


@needs_native
def test_any_thread_count(restore_threads):
    sqrt_p, root = probabilities(300, 700, torch.float32)
    small = probabilities(3000, 10, torch.float64)
    rows = [factors(500, 70, 90, 5, torch.float32), factors(3000, 3, 50, 2, torch.float64)]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(
            [factor(sqrt_p, root, "native"), factor(*small, "native", n_probes=7)]
            + [ops.row_products(*each, backend="native") for each in rows]
        )
    for result in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(result, results[0], strict=True))


@needs_native
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_any_instruction_set(isa):
    run = run_python(str(Path(__file__).with_name("activation_digest.py")), METACURV_CPU_ISA=isa)
    if "must be baseline, avx2 or avx512 and run on this CPU" in run.stderr and isa != "baseline":
        pytest.skip(f"this CPU does not run {isa}")
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [isa, digest()]


@pytest.mark.parametrize("backend", BACKENDS)
def test_neither_records_a_graph(backend):
    sqrt_p, root = (x.requires_grad_() for x in probabilities(4, 5, torch.float32))
    a, u, w = (x.requires_grad_() for x in factors(4, 3, 5, 2, torch.float32))
    assert not factor(sqrt_p, root, backend).requires_grad
    assert not ops.row_products(a, u, w, backend).requires_grad


def factor_arguments():
    sqrt_p, root = probabilities(3, 4, torch.float32)
    return {"sqrt_p": sqrt_p, "root": root, "seed": 0, "probe": 0, "number": 0, "n_probes": 2}


def product_arguments():
    return dict(zip("auw", factors(3, 4, 5, 2, torch.float32), strict=True))


WRONG = [
    ("sqrt_p", None, TypeError),
    ("sqrt_p", lambda: torch.ones(3, 4, dtype=torch.int64), TypeError),
    ("sqrt_p", lambda: torch.ones(3, 4).to_sparse(), TypeError),
    ("sqrt_p", lambda: torch.ones(3), ValueError),
    ("sqrt_p", lambda: torch.ones(1, 3, 4), ValueError),
    ("root", 1.0, TypeError),
    ("root", lambda: torch.ones(4), ValueError),
    ("root", lambda: torch.ones(3, 1), ValueError),
    ("root", lambda: torch.ones(()), ValueError),
    ("root", lambda: torch.ones(3, dtype=torch.float64), ValueError),
    ("root", lambda: torch.ones(3, device="meta"), ValueError),
    ("seed", -1, ValueError),
    ("seed", 1.5, TypeError),
    ("probe", 2**32, ValueError),
    ("probe", -1, ValueError),
    ("probe", True, TypeError),
    ("probe", lambda: torch.tensor(0.0), ValueError),
    ("probe", lambda: torch.tensor([0, 1]), ValueError),
    ("probe", lambda: torch.tensor(0, device="meta"), ValueError),
    ("number", -1, ValueError),
    ("number", 2**32, ValueError),
    ("number", 0.0, TypeError),
    ("n_probes", -1, ValueError),
    ("n_probes", 1.0, TypeError),
    ("n_probes", None, TypeError),
    ("backend", "cuda", ValueError),
    ("a", None, TypeError),
    ("a", lambda: torch.ones(3, 4, dtype=torch.bool), TypeError),
    ("a", lambda: torch.ones(3), ValueError),
    ("u", [1.0], TypeError),
    ("u", lambda: torch.ones(3, 5), ValueError),
    ("u", lambda: torch.ones(2, 4, 5), ValueError),
    ("u", lambda: torch.ones(2, 3, 5, dtype=torch.float64), ValueError),
    ("w", lambda: torch.ones(2, 3, 5).to_sparse(), TypeError),
    ("w", lambda: torch.ones(2, 3, 1), ValueError),
    ("w", lambda: torch.ones(1, 3, 5), ValueError),
    ("w", lambda: torch.ones(2, 3, 5, dtype=torch.float64), ValueError),
    ("w", lambda: torch.ones(2, 3, 5, device="meta"), ValueError),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("argument", "value", "error"), WRONG)
def test_wrong_arguments(argument, value, error, backend):
    name, arguments = (
        ("row_products", product_arguments())
        if argument in "auw"
        else ("softmax_factor", factor_arguments())
    )
    arguments = {
        "backend": backend,
        **arguments,
        argument: value() if callable(value) else value,
    }
    with pytest.raises(error, match=rf"\b{argument}\b"):
        getattr(ops, name)(**arguments)


@needs_native
def test_bare_ops_check_too():
    """What the kernels rely on, for those who call torch.ops themselves."""
    sqrt_p, root = torch.ones(3, 4), torch.ones(3)
    number = torch.ops.metacurv.softmax_factor.number
    for arguments, message in (
        ((sqrt_p.half(), root.half(), 0, 0, 0, 1), "sqrt_p must be float32 or float64"),
        ((root, root, 0, 0, 0, 1), "sqrt_p must be a matrix"),
        ((sqrt_p, torch.ones(4), 0, 0, 0, 1), "root must have 3 elements"),
        ((sqrt_p, root.double(), 0, 0, 0, 1), "root must have 3 elements"),
        ((sqrt_p, root, 0, -1, 0, 1), r"probe must be in \[0, 2\^32\)"),
        ((sqrt_p, root, 0, 2**32, 0, 1), r"probe must be in \[0, 2\^32\)"),
        ((sqrt_p, root, 0, 0, 2**32, 1), r"number must be in \[0, 2\^32\)"),
        ((sqrt_p, root, 0, 0, 0, -1), "n_probes must be >= 0"),
    ):
        with pytest.raises(RuntimeError, match=message):
            number(*arguments)
    with pytest.raises(RuntimeError, match="probe must hold one element"):
        torch.ops.metacurv.softmax_factor(sqrt_p, root, 0, torch.tensor([1, 2]), 0, 1)
    a, u = torch.ones(3, 4), torch.ones(2, 3, 5)
    for arguments, message in (
        ((a.half(), u, u), "a must be float32 or float64"),
        ((u, u, u), "a must be a matrix"),
        ((a, a, u), r"u must be \[R, N, O\] with N = 3"),
        ((a[:2], u, u), r"u must be \[R, N, O\] with N = 2"),
        ((a, u, u[:1]), "w must have the shape of u"),
        ((a, u, u[:, :, :1]), "w must have the shape of u"),
        ((a, u.double(), u), "u must be of a's dtype"),
        ((a, u, u.double()), "w must be of a's dtype"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.metacurv.row_products(*arguments)
