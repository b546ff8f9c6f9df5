"""chain_draws and chain_columns against their formulas in float64, written out sample by sample."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metacurv import ops
from metacurv.ops.backend import KERNELS
from tests.helpers import BACKENDS, needs_native, run_python
from tests.ops.chain_digest import sums

SCRIPT = str(Path(__file__).with_name("chain_digest.py"))


def run(backend: str):
    return ops.implementation(backend, torch.device("cpu"))


class Stack:
    """Random layers of these widths from the top, classes first, over ``rows`` samples."""

    def __init__(self, rows: int, *widths: int, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(rows + sum(widths))

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        self.log_p = random(rows, widths[0]).mul(2).log_softmax(1)
        self.sample_weight = random(rows).abs()
        self.inputs = [random(rows, width) for width in widths[1:]]
        self.weights = [
            random(out, width) / width**0.5 for out, width in itertools.pairwise(widths[:-1])
        ]
        self.rectified = [index % 2 == 0 for index in range(len(self.weights))]
        self.slopes = [
            a if rectified else random(rows, a.shape[1])
            for a, rectified in zip(self.inputs, self.rectified, strict=False)
        ]

    @property
    def chain(self) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[bool]]:
        return self.inputs, self.weights, self.slopes, self.rectified

    def factors(self) -> Tensor:
        """S of each sample, float64 [N, C, C]: s (diag p - p p') = S S'."""
        p, s = self.log_p.double().exp(), self.sample_weight.double()
        root = p.sqrt()
        factor = torch.diag_embed(root) - p.unsqueeze(2) * root.unsqueeze(1)
        return s.sqrt().expand(len(p)).view(-1, 1, 1) * factor

    def products(self, u: Tensor) -> Tensor:
        """float64 [2 L] of one cotangent a sample, u [N, C]: norms of the gradients as they are, outer products."""
        found = []
        for layer, a in enumerate(self.inputs):
            outer = torch.einsum("no,ni->noi", u, a.double())
            found += [outer.square().sum(), u.square().sum()]
            if layer < len(self.weights):
                slope = self.slopes[layer].double()
                if self.rectified[layer]:
                    slope = (slope > 0).double()
                u = torch.einsum("no,oi->ni", u, self.weights[layer].double()) * slope
        return torch.stack(found)


STACKS = [
    (1, 1, 1),
    (3, 2, 1, 1),
    (5, 3, 8, 2),
    (6, 10, 7, 9, 4),
    (47, 10, 15, 16, 17, 3),
    (48, 4, 24, 25, 8),
    (49, 33, 31, 32, 33),
    (97, 10, 100, 100, 40),
    (5, 2, 300, 210, 6),
    (4, 3, 5),
]
stacks = pytest.mark.parametrize("shape", STACKS, ids=str)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@stacks
def test_draws(shape, dtype, backend):
    stack = Stack(*shape, dtype=dtype)
    rows, classes = shape[:2]
    found = run(backend).chain_draws(stack.log_p, stack.sample_weight, 9, 4, 3, *stack.chain)
    signs = torch.empty(3, rows, classes)
    for k in range(3):
        ops.rademacher_([signs[k]], seed=9, probe=4 + k)
    u = torch.einsum("ncd,rnd->rnc", stack.factors(), signs.double())
    expected = torch.stack([stack.products(each) for each in u])
    assert found.dtype == torch.float64
    torch.testing.assert_close(
        found,
        expected,
        rtol=2e-5 if dtype == torch.float32 else 1e-11,
        atol=1e-6 if dtype == torch.float32 else 1e-12,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@stacks
def test_columns(shape, dtype, backend):
    """Their sum is over all of any factor: of C columns here, of C - 1 there."""
    stack = Stack(*shape, dtype=dtype)
    classes = shape[1]
    found = run(backend).chain_columns(
        stack.log_p, stack.sample_weight, 0, classes - 1, *stack.chain
    )
    assert found.shape == (classes - 1, 2 * (len(shape) - 2))
    expected = sum(stack.products(u) for u in stack.factors().unbind(2))
    torch.testing.assert_close(
        found.sum(0),
        expected,
        rtol=2e-5 if dtype == torch.float32 else 1e-11,
        atol=1e-6 if dtype == torch.float32 else 1e-12,
    )
    some = run(backend).chain_columns(
        stack.log_p, stack.sample_weight, classes // 2, classes - 1, *stack.chain
    )
    torch.testing.assert_close(some, found[classes // 2 :], rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_weight_for_all(backend):
    stack = Stack(7, 4, 6, 5)
    chain = stack.chain
    for op, numbers in (("chain_draws", (0, 0, 2)), ("chain_columns", (0, 3))):
        of_one = getattr(run(backend), op)(stack.log_p, torch.full((1,), 0.25), *numbers, *chain)
        of_all = getattr(run(backend), op)(stack.log_p, torch.full((7,), 0.25), *numbers, *chain)
        assert torch.equal(of_one, of_all)


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_that_do_not_count(backend):
    """Weights of 0, and probabilities that round to 0."""
    stack = Stack(7, 4, 6, 5)
    stack.sample_weight[:] = 0
    stack.sample_weight[2] = 1
    stack.log_p[2] = torch.tensor([0.0, -1000.0, -200.0, -torch.inf])
    found = run(backend).chain_columns(stack.log_p, stack.sample_weight, 0, 3, *stack.chain)
    assert found.abs().max() < 1e-30


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_probes_no_columns(backend):
    stack = Stack(7, 4, 6, 5)
    first = (stack.log_p, stack.sample_weight)
    assert run(backend).chain_draws(*first, 0, 0, 0, *stack.chain).shape == (0, 4)
    assert run(backend).chain_columns(*first, 2, 2, *stack.chain).shape == (0, 4)


@needs_native
def test_probe_numbers_wrap():
    stack = Stack(7, 40, 6, 5)
    first = (stack.log_p, stack.sample_weight)
    both = run("native").chain_draws(*first, 5, 2**32 - 1, 2, *stack.chain)
    assert torch.equal(both[1:], run("native").chain_draws(*first, 5, 0, 1, *stack.chain))


@needs_native
def test_strided_arguments():
    stack = Stack(9, 4, 6, 5, 3)
    packed = run("native").chain_draws(stack.log_p, stack.sample_weight, 0, 0, 2, *stack.chain)

    def strided(x: Tensor) -> Tensor:
        return torch.stack([x, x + 1], -1)[..., 0]

    lists = [[strided(x) for x in tensors] for tensors in stack.chain[:3]]
    found = run("native").chain_draws(
        strided(stack.log_p), strided(stack.sample_weight), 0, 0, 2, *lists, stack.rectified
    )
    assert torch.equal(found, packed)


@needs_native
def test_any_thread_count(restore_threads):
    stack = Stack(200, 10, 100, 130, 40)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(
            run("native").chain_columns(stack.log_p, stack.sample_weight, 0, 9, *stack.chain)
        )
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa):
    """Products are rounded differently where there is a fused multiply-add."""
    process = run_python(SCRIPT, METACURV_CPU_ISA=isa)
    if (
        "must be baseline, avx2 or avx512 and run on this CPU" in process.stderr
        and isa != "baseline"
    ):
        pytest.skip(f"this CPU does not run {isa}")
    assert process.returncode == 0, process.stderr
    name, *values = process.stdout.split()
    assert name == isa
    assert [float(value) for value in values] == pytest.approx(sums(), rel=1e-5)


@needs_native
def test_what_is_not_compiled_goes_by_parts(monkeypatch):
    """float64, layers that fall out of the cache, and very many classes; the signs still come from their kernel."""
    calls = []
    fill = KERNELS.rademacher_
    monkeypatch.setattr(KERNELS, "rademacher_", lambda *a: calls.append(1) or fill(*a))
    for stack, by_kernel in (
        (Stack(3, 2, 256, 256, 1), True),
        (Stack(3, 2, 256, 257, 1), False),
        (Stack(3, 2, 4, dtype=torch.float64), False),
        (Stack(2, 40_000, 3), False),
    ):
        calls.clear()
        run("native").chain_draws(stack.log_p, stack.sample_weight, 0, 0, 1, *stack.chain)
        assert bool(calls) != by_kernel


@needs_native
def test_bare_ops_check():
    stack = Stack(3, 4, 6, 5)
    log_p, weight, chain = stack.log_p, stack.sample_weight, stack.chain
    inputs, weights, slopes, rectified = chain
    for arguments, message in (
        ((log_p.double(), weight, 0, 0, 1, *chain), "log_p must be a float32 matrix"),
        ((log_p[0], weight, 0, 0, 1, *chain), "log_p must be a float32 matrix"),
        ((log_p, weight[:2], 0, 0, 1, *chain), r"sample_weight must be float32 of shape \[1\] or \[3\]"),
        ((log_p, weight.double(), 0, 0, 1, *chain), "sample_weight must be float32"),
        ((log_p, weight, 0, -1, 1, *chain), r"probe must be in \[0, 2\^32\)"),
        ((log_p, weight, 0, 2**32, 1, *chain), r"probe must be in \[0, 2\^32\)"),
        ((log_p, weight, 0, 0, -1, *chain), "n_probes must be >= 0"),
        ((log_p, weight, 0, 0, 1, [], [], [], []), "inputs must hold one tensor a layer"),
        ((log_p, weight, 0, 0, 1, inputs, [], slopes, rectified), "one entry fewer than the 2 inputs"),
        ((log_p, weight, 0, 0, 1, inputs, weights, [], rectified), "one entry fewer than the 2 inputs"),
        ((log_p, weight, 0, 0, 1, inputs, weights, slopes, []), "one entry fewer than the 2 inputs"),
        ((log_p, weight, 0, 0, 1, [inputs[0][:2], inputs[1]], *chain[1:]), r"inputs\[0\] must be"),
        ((log_p, weight, 0, 0, 1, [inputs[0], inputs[1].double()], *chain[1:]), r"inputs\[1\] must be"),
        ((log_p, weight, 0, 0, 1, inputs, [weights[0][:3]], slopes, rectified), r"weights\[0\] must be"),
        ((log_p, weight, 0, 0, 1, inputs, weights, [slopes[0][:, :4]], rectified), r"slopes\[0\] must be"),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            torch.ops.metacurv.chain_draws(*arguments)
    for start, stop in ((-1, 2), (2, 1), (0, 4)):
        with pytest.raises(RuntimeError, match="0 <= start <= stop < 4"):
            torch.ops.metacurv.chain_columns(log_p, weight, start, stop, *chain)
