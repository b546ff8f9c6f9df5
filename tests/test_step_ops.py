"""``step_direction_`` and ``move_``: by hand, against float64, native against twin to the bit, and as ops of torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metacurv import ops
from tests.helpers import BACKENDS, DTYPES, carved, needs_native, run_python
from tests.layouts import READABLE, WRITABLE
from tests.step_digest import digest, one_list_of_everything
from tests.test_ops_bits import numbers_of, same_bits

SIZES = [0, 1, 31, 32, 33, 127, 128, 129, 1023, 1025, 32767, 32768, 32769, 100003]
INF, NAN = float("inf"), float("nan")

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def float64(value):
    return torch.tensor(value, dtype=torch.float64)


def a_step(numel, dtype):
    """before, after: a step of about a thousandth."""
    before = numbers_of(numel, dtype, seed=numel)
    return before, (before.double() - 1e-3 * numbers_of(numel, torch.float64, seed=1)).to(dtype)


def same_values(x, y):
    """Equal to the bit but for what bits a NaN has."""
    return torch.equal(x.isnan(), y.isnan()) and same_bits(x.nan_to_num(), y.nan_to_num())


def step(before, after, keep, lr, backend):
    """Direction (in the layout of ``before``) and sums."""
    direction = [torch.full_like(x, 7) for x in before]
    return direction, ops.step_direction_(direction, before, after, keep, lr, backend=backend)


def assert_twins_agree(before, after, keep, lr=1e-3):
    native, sums = step(before, after, keep, lr, "native")
    twin, expected = step(before, after, keep, lr, "reference")
    assert all(map(same_values, native, twin))
    assert same_values(sums, expected)
    moved, twin_moved = ([torch.full_like(x, 7) for x in before] for _ in range(2))
    ops.move_(moved, before, native, -0.37, backend="native")
    ops.move_(twin_moved, before, native, -0.37, backend="reference")
    assert all(map(same_values, moved, twin_moved))


# By hand


@each_backend
@each_dtype
def test_numbers_worked_by_hand(dtype, backend):
    """keep 0.5, lr 0.25: (0.5 * 4 - 1) / 0.25 = 4, (0.5 * -2 - 2) / 0.25 = -12, (0 - 0.5) / 0.25 = -2; 16 + 144 + 4 = 164."""
    before, after = (
        torch.tensor([4.0, -2.0, 0.0]).to(dtype),
        torch.tensor([1.0, 2.0, 0.5]).to(dtype),
    )
    for lr in (0.25, float64(0.25)):
        (direction,), sums = step([before], [after], [0.5], lr, backend)
        assert direction.tolist() == [4.0, -12.0, -2.0]
        assert direction.dtype == dtype
        assert sums.tolist() == [164.0, 20.0, 0.0]
        assert sums.dtype == torch.float64
    for distance in (0.5, float64(0.5)):
        moved = torch.empty_like(before)
        ops.move_([moved], [before], [direction], distance, backend=backend)
        assert moved.tolist() == [6.0, -8.0, -1.0]


@each_backend
def test_each_tensor_has_its_factor(backend):
    before = [torch.full((2,), 1.0), torch.full((3,), 2.0, dtype=torch.float64), torch.ones(0)]
    after = [torch.zeros_like(x) for x in before]
    direction, sums = step(before, after, [1.0, 0.25, 3.0], 0.5, backend)
    assert [u.tolist() for u in direction] == [[2.0, 2.0], [1.0, 1.0, 1.0], []]
    assert sums.tolist() == [11.0, 14.0, 0.0]


@each_backend
def test_a_step_of_sgd_is_its_gradient(backend):
    """Moving back by lr gives where decoupled weight decay alone would have led."""
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0, 8.0]))
    parameter.grad = torch.tensor([0.5, 4.0, -1.0])
    before = [parameter.detach().clone()]
    torch.optim.SGD([parameter], lr=0.125).step()
    (direction,), _ = step(before, [parameter], [1.0], 0.125, backend)
    assert torch.equal(direction, parameter.grad)
    ops.move_([parameter], [parameter], [direction], 0.125, backend=backend)
    assert torch.equal(parameter.detach(), before[0])


@each_backend
@each_dtype
def test_against_the_formula_in_float64(dtype, backend):
    eps = torch.finfo(dtype).eps
    before, after = a_step(40_001, dtype)
    (direction,), sums = step([before], [after], [0.9], 0.01, backend)
    exact = (0.9 * before.double() - after.double()) / 0.01
    scale = (before.abs() + after.abs()).double() / 0.01  # the difference may cancel
    arithmetic = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    assert ((direction.double() - exact).abs() <= eps * exact.abs() + 3 * arithmetic * scale).all()
    assert sums[0] == pytest.approx(float(direction.double().square().sum()), rel=1e-13)
    assert sums[1] == pytest.approx(float(before.double().square().sum()), rel=1e-13)

    moved = torch.empty_like(before)
    ops.move_([moved], [before], [direction], 0.3, backend=backend)
    exact = before.double() + 0.3 * direction.double()
    scale = before.abs().double() + 0.3 * direction.abs().double()
    assert ((moved.double() - exact).abs() <= eps * exact.abs() + 3 * arithmetic * scale).all()


@each_backend
@each_dtype
def test_elements_that_are_not_finite_are_counted(dtype, backend):
    before, after = a_step(33_001, dtype)
    bad = {3: NAN, 40: INF, 32_767: -INF, 33_000: NAN}
    for index, value in bad.items():
        after[index] = value
    direction, sums = step([before, before], [after, before], [1.0, 1.0], 0.1, backend)
    assert sums[2] == len(bad)
    assert not sums[0].isfinite()
    assert sums[1].isfinite()
    finite = direction[0].isfinite()
    assert [i for i in range(33_001) if not finite[i]] == sorted(bad)


@each_backend
def test_overflow_is_counted_too(backend):
    (direction,), sums = step(
        [torch.tensor([1.0, 1e20])], [torch.tensor([0.5, 0.0])], [1.0], 1e-20, backend
    )
    assert direction.tolist() == [float(torch.tensor(0.5) / torch.tensor(1e-20)), INF]
    assert sums[2] == 1


# To the bit


@needs_native
@each_dtype
@pytest.mark.parametrize("numel", SIZES)
def test_sizes(numel, dtype):
    before, after = a_step(numel, dtype)
    assert_twins_agree([before], [after], [0.999])
    for misalign in (0, 1):
        direction, assert_guards_untouched = carved(numel, dtype, misalign=misalign)
        ops.step_direction_([direction], [before], [after], [0.999], 1e-3, backend="native")
        assert same_bits(direction, step([before], [after], [0.999], 1e-3, "reference")[0][0])
        assert_guards_untouched()
        ops.move_([direction], [before], [after], 2.5, backend="native")
        assert_guards_untouched()


@needs_native
@each_dtype
@pytest.mark.parametrize("layout", WRITABLE)
def test_written_layouts(layout, dtype):
    """Into every layout, from that and from a contiguous one; neighbours in memory stay."""
    make = WRITABLE[layout]
    results = []
    for backend in ("native", "reference"):
        direction, before, moved = (make(dtype, "cpu") for _ in range(3))
        after = (before * 0.5).contiguous()
        sums = ops.step_direction_([direction], [before], [after], [0.75], 0.1, backend=backend)
        ops.move_([moved], [after], [direction], 0.1, backend=backend)
        whole = [
            torch.empty(0, dtype=dtype).set_(tensor.untyped_storage())
            for tensor in (direction, moved)
        ]
        results.append([sums, *whole])
    assert all(map(same_bits, *results))


@needs_native
@each_dtype
@pytest.mark.parametrize("layout", READABLE)
def test_read_layouts(layout, dtype):
    before = READABLE[layout](dtype, "cpu")
    for after in (before, (before * 0.5).contiguous()):
        results = []
        for backend in ("native", "reference"):
            direction, moved = (torch.empty(before.shape, dtype=dtype) for _ in range(2))
            sums = ops.step_direction_([direction], [before], [after], [0.75], 0.1, backend=backend)
            ops.move_([moved], [before], [after], 0.1, backend=backend)
            results.append([sums, direction, moved])
        assert all(map(same_bits, *results))


@needs_native
def test_one_list_of_everything(restore_threads):
    """Mixed dtypes and sizes, on one thread and two."""
    before, after, keep = one_list_of_everything()
    torch.set_num_threads(1)
    twin, expected = step(before, after, keep, 1e-3, "reference")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        native, sums = step(before, after, keep, 1e-3, "native")
        assert all(map(same_bits, native, twin))
        assert same_bits(sums, expected)
        assert_twins_agree(before, after, keep)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_and_how_it_is_rounded(dtype):
    """All bit patterns, times numbers that give ties, subnormal numbers and overflow."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    zeros = torch.zeros_like(every)
    for distance in (1.0, 0.5, 1.0009765625, 1.00390625, 0.37, 2.0**-14, 3.3e-5, 7.0, 2.0**-130):
        results = [torch.empty_like(every) for _ in range(2)]
        for moved, backend in zip(results, ("native", "reference"), strict=True):
            ops.move_([moved], [zeros], [every], distance, backend=backend)
        assert same_values(*results)
        assert_twins_agree([every], [zeros], [distance])


@needs_native
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_any_instruction_set(isa):
    """Narrow and wide registers give the same bits, the twin's."""
    run = run_python(str(Path(__file__).with_name("step_digest.py")), METACURV_CPU_ISA=isa)
    if "must be baseline, avx2 or avx512 and run on this CPU" in run.stderr and isa != "baseline":
        pytest.skip(f"this CPU does not run {isa}")
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [isa, digest("reference")]


# Aliases and autograd


@each_backend
@each_dtype
def test_results_may_replace_what_they_are_made_of(dtype, backend):
    before, after = a_step(3001, dtype)
    for reshape in (lambda x: x, lambda x: x[:3000].view(50, 60).t()):
        x, y = reshape(before.clone()), reshape(after.clone())
        (direction,), sums = step([x], [y], [0.9], 0.01, backend)
        moved = torch.empty_like(x)
        ops.move_([moved], [x], [direction], 0.3, backend=backend)
        for alias in (x.clone(), y.clone()):
            pair = ([alias], [y]) if torch.equal(alias, x) else ([x], [alias])
            assert torch.equal(
                ops.step_direction_([alias], *pair, [0.9], 0.01, backend=backend), sums
            )
            assert torch.equal(alias, direction)
        ops.move_([x], [x], [direction], 0.3, backend=backend)
        assert torch.equal(x, moved)


@each_backend
def test_parameters_stay_leaves_and_their_versions_count(backend):
    parameter = torch.nn.Parameter(torch.ones(5))
    factor = torch.ones(5, requires_grad=True)
    product = (factor * parameter).sum()
    direction = torch.ones(5)
    versions = parameter._version, direction._version
    ops.step_direction_([direction], [parameter], [parameter], [0.5], 0.5, backend=backend)
    ops.move_([parameter], [parameter], [direction], 2.0, backend=backend)
    assert parameter._version > versions[0]
    assert direction._version > versions[1]
    assert not direction.requires_grad
    assert parameter.is_leaf
    assert parameter.requires_grad
    assert parameter.tolist() == [-1.0] * 5
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@each_backend
def test_numbers_in_tensors_may_require_grad(backend):
    x = torch.ones(3)
    number = float64(0.5).requires_grad_()
    sums = ops.step_direction_([torch.empty(3)], [x], [x], [2.0], number, backend=backend)
    assert not sums.requires_grad
    ops.move_([x], [x], [x], number, backend=backend)
    assert x.tolist() == [1.5] * 3


@each_backend
def test_works_in_inference_mode_and_under_autocast(backend):
    for context in (torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with context:
            x, y = torch.full((100,), 1.01), torch.ones(100)
            (direction,), _ = step([x], [y], [1.0], 0.01, backend)
            ops.move_([y], [y], [direction], 0.01, backend=backend)
            assert torch.allclose(y, x, rtol=1e-6)


# As ops of torch


def calls(dtype):
    before = [
        torch.randn(5, 7).to(dtype),
        torch.randn(9, 40).to(dtype).t(),
        torch.empty(0, dtype=dtype),
    ]
    after, direction = ([torch.randn_like(x) for x in before] for _ in range(2))
    return {
        "step_direction_": (direction, before, after, [0.9, 1.0, 0.5], float64(0.1)),
        "move_": (direction, before, after, float64(0.1)),
    }


@needs_native
@each_dtype
@pytest.mark.parametrize("overload", ["default", "number"])
@pytest.mark.parametrize("name", ["step_direction_", "move_"])
def test_opcheck(name, overload, dtype):
    *lists, number = calls(dtype)[name]
    arguments = (*lists, float(number) if overload == "number" else number)
    op = getattr(getattr(torch.ops.metacurv, name), overload)
    assert set(torch.library.opcheck(op, arguments).values()) == {"SUCCESS"}
    written = [a.name for a in op._schema.arguments if a.alias_info and a.alias_info.is_write]
    assert written == ["direction" if name == "step_direction_" else "parameters"]


@needs_native
@pytest.mark.parametrize("name", ["step_direction_", "move_"])
def test_opcheck_of_empty_lists(name):
    arguments = [[] if isinstance(a, list) else a for a in calls(torch.float32)[name]]
    op = getattr(torch.ops.metacurv, name).default
    assert set(torch.library.opcheck(op, tuple(arguments)).values()) == {"SUCCESS"}


@needs_native
def test_shapes_without_data():
    with torch._subclasses.fake_tensor.FakeTensorMode():
        x = [torch.empty(3), torch.empty(4, 5, dtype=torch.bfloat16)]
        for lr in (0.1, torch.empty((), dtype=torch.float64)):
            sums = ops.step_direction_(x, x, x, [1.0, 1.0], lr)
            assert (sums.shape, sums.dtype) == ((3,), torch.float64)
            ops.move_(x, x, x, lr)
    x = [torch.empty(3, device="meta")]
    sums = ops.step_direction_(x, x, x, [1.0], 0.1)
    assert (sums.shape, sums.dtype, sums.device.type) == ((3,), torch.float64, "meta")


@needs_native
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("number", [0.25, float64(0.25)], ids=["number", "tensor"])
def test_compiles_into_one_graph(number, backend):
    torch._dynamo.reset()

    def function(direction, before, after, number):
        sums = ops.step_direction_([direction], [before], [after], [0.5], number)
        ops.move_([before], [before], [direction], number)
        return sums * 2

    eager, compiled = ([torch.zeros(50), torch.ones(50), torch.arange(50.0)] for _ in range(2))
    expected = function(*eager, number)
    result = torch.compile(function, fullgraph=True, backend=backend)(*compiled, number)
    assert torch.equal(result, expected)
    assert all(map(torch.equal, eager, compiled))


@each_backend
def test_empty_lists(backend):
    for number in (0.5, float64(0.5)):
        sums = ops.step_direction_([], [], [], [], number, backend=backend)
        assert sums.tolist() == [0.0] * 3
        assert sums.dtype == torch.float64
        ops.move_([], [], [], number, backend=backend)


# Wrong arguments


def direction_arguments():
    lists = {
        name: [torch.full((4,), 7.0), torch.full((3,), 7.0)]
        for name in ("direction", "before", "after")
    }
    return {**lists, "keep": [1.0, 1.0], "lr": 0.5}


def move_arguments():
    arguments = direction_arguments()
    names = ("parameters", "start", "direction")
    lists = (arguments[name] for name in ("direction", "before", "after"))
    return {**dict(zip(names, lists, strict=True)), "distance": 0.5}


MAKE = {"step_direction_": direction_arguments, "move_": move_arguments}

WRONG_LISTS = [
    (lambda: torch.ones(3), TypeError),
    (lambda: None, TypeError),
    (lambda: (tensor for tensor in [torch.ones(4), torch.ones(3)]), TypeError),
    (lambda: [torch.ones(4), None], TypeError),
    (lambda: [torch.ones(4), [1.0] * 3], TypeError),
    (lambda: [torch.ones(4), torch.ones(3, dtype=torch.int64)], TypeError),
    (lambda: [torch.ones(4), torch.ones(3).to_sparse()], TypeError),
    (lambda: [torch.ones(4), torch.ones(3, device="meta")], ValueError),
]
WRONG_NEIGHBOURS = [
    lambda: [torch.ones(4)],
    lambda: [torch.ones(4), torch.ones(3), torch.ones(3)],
    lambda: [torch.ones(4), torch.ones(1, 3)],
    lambda: [torch.ones(4), torch.ones(3, dtype=torch.float64)],
    lambda: [],
]
WRONG_NUMBERS = [
    (True, TypeError),
    ("0.5", TypeError),
    (None, TypeError),
    (NAN, ValueError),
    (INF, ValueError),
    (lambda: torch.tensor(0.5), ValueError),
    (lambda: torch.ones(1, dtype=torch.float64), ValueError),
    (lambda: torch.ones((), dtype=torch.float64, device="meta"), ValueError),
]
WRONG_KEEPS = [
    (1.0, TypeError),
    ("11", TypeError),
    (lambda: torch.ones(2), TypeError),
    ([1.0], ValueError),
    ([1.0, 1.0, 1.0], ValueError),
    ([1.0, NAN], ValueError),
    ([1.0, INF], ValueError),
    ([1.0, "1"], TypeError),
    ([1.0, None], TypeError),
    ([1.0, True], TypeError),
]


def assert_refused(name, argument, value, error, backend):
    arguments = MAKE[name]()
    written = next(iter(arguments.values()))
    arguments[argument] = value() if callable(value) else value
    with pytest.raises(error, match=argument):
        getattr(ops, name)(**arguments, backend=backend)
    assert all(bool((tensor == 7).all()) for tensor in written)


@each_backend
@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(("value", "error"), WRONG_LISTS)
def test_wrong_lists(value, error, place, name, backend):
    assert_refused(name, list(MAKE[name]())[place], value, error, backend)


@each_backend
@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("place", [1, 2])
@pytest.mark.parametrize("value", WRONG_NEIGHBOURS)
def test_lists_that_do_not_match(value, place, name, backend):
    assert_refused(name, list(MAKE[name]())[place], value, ValueError, backend)


@each_backend
@pytest.mark.parametrize(("value", "error"), WRONG_KEEPS)
def test_wrong_factors(value, error, backend):
    assert_refused("step_direction_", "keep", value, error, backend)


@each_backend
@pytest.mark.parametrize(("name", "argument"), [("step_direction_", "lr"), ("move_", "distance")])
@pytest.mark.parametrize(("value", "error"), WRONG_NUMBERS)
def test_wrong_numbers(value, error, name, argument, backend):
    assert_refused(name, argument, value, error, backend)


@each_backend
@pytest.mark.parametrize("lr", [0.0, -0.5])
def test_learning_rates_are_positive(lr, backend):
    assert_refused("step_direction_", "lr", lr, ValueError, backend)
    with pytest.raises(ValueError, match=r"lr must be a finite number > 0, got"):
        ops.step_direction_([], [], [], [], lr, backend=backend)


@each_backend
@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("wrong", ["cuda", None, 1, "Native"])
def test_wrong_backends(wrong, name, backend):
    with pytest.raises(ValueError, match="backend must be one of auto, native, reference"):
        getattr(ops, name)(**MAKE[name](), backend=wrong)


@each_backend
@pytest.mark.parametrize("name", MAKE)
def test_what_is_written_must_own_its_elements(name, backend):
    def views():
        memory = torch.full((12,), 7.0)
        yield memory[:1].expand(4), "overlapping"
        yield memory.unfold(0, 4, 2), "overlapping"
        yield torch._neg_view(memory), "negated"

    for view, why in views():
        arguments = MAKE[name]()
        lists = [key for key, value in arguments.items() if key != "keep" and type(value) is list]
        arguments.update({key: [torch.ones(view.shape)] for key in lists})
        arguments[lists[0]] = [view]
        if "keep" in arguments:
            arguments["keep"] = [1.0]
        before = view.clone()
        with pytest.raises(ValueError, match=rf"{lists[0]}\[0\] must own .* {why}"):
            getattr(ops, name)(**arguments, backend=backend)
        assert torch.equal(view, before)


@needs_native
def test_the_bare_ops_check_for_themselves():
    x, y = [torch.zeros(3)], [torch.ones(3)]
    op = torch.ops.metacurv
    for call, words in [
        (lambda: op.step_direction_(x, y, y, [1.0], 0.0), "lr must be finite and > 0"),
        (lambda: op.step_direction_(x, y, y, [1.0], torch.ones(())), "lr must hold one element"),
        (lambda: op.step_direction_(x, y, y, [], 0.5), "keep must have one entry"),
        (lambda: op.step_direction_(x, y, y, [NAN], 0.5), r"keep\[0\] must be finite"),
        (lambda: op.step_direction_(x, y, [], [1.0], 0.5), "after must have one tensor for each"),
        (lambda: op.move_(x, y, y, INF), "distance must be finite"),
        (lambda: op.move_(x, [torch.ones(4)], y, 0.5), r"start\[0\] must have the shape"),
        (lambda: op.move_([y[0][:1].expand(3)], y, y, 0.5), r"parameters\[0\] must own"),
    ]:
        with pytest.raises(RuntimeError, match=words):
            call()
    assert not x[0].any()
    assert y[0].tolist() == [1.0] * 3
