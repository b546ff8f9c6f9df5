"""``python -m metacurv``: it passes here, sees what is broken, and says how it is without compiled kernels."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import metacurv
from metacurv.__main__ import checks, main
from metacurv.ops import _native
from metacurv.ops.backend import KERNELS, TWINS
from metacurv.self_check import checks as whole
from metacurv.self_check import op_checks as checks_of_ops
from metacurv.self_check.checks import Check, Mismatch, compare
from metacurv.self_check.op_checks import OPS, op_checks, philox
from tests.helpers import needs_native, run_python, run_without_native

CPU = torch.device("cpu")
CSRC = Path(__file__).parents[2] / "csrc"


def failures(device=CPU):
    return {check.name: failure for check in checks(device) if (failure := check.failure())}


def lines_of(report):
    """Name to the rest of the line."""
    pairs = (re.split(r"  +", line, maxsplit=1) for line in report.splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


# As a whole


def test_it_passes_in_seconds():
    run = run_python("-m", "metacurv")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    seconds = re.search(r"all \d+ checks passed \((.*) s of CPU time\)$", run.stdout.strip())
    assert seconds, run.stdout
    assert float(seconds[1]) < 5 or torch.cuda.is_available()
    lines = lines_of(run.stdout)
    assert all(lines[check.name] == "ok" for check in checks(CPU))
    assert (
        lines["metacurv"]
        == f"{metacurv.__version__}, imported from {Path(metacurv.__file__).parent}"
    )
    assert lines["torch"].startswith(torch.__version__)


@needs_native
def test_it_says_which_kernels_are_loaded(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    lines, info = lines_of(printed), metacurv.build_info()
    assert info["compiler"] in lines["kernels"]
    assert lines["instruction set"] == info["cpu_isa"]
    assert lines["CUDA kernels"].startswith("compiled" if info["cuda_compiled"] else "none")
    assert "against each other" in " ".join(printed.split())


def test_architectures_and_settings_are_told(monkeypatch, capsys):
    built = {**metacurv.build_info(), "cuda_version": "13.0", "cuda_archs": "80;90+PTX"}
    monkeypatch.setattr(metacurv, "build_info", lambda: built)
    monkeypatch.setattr(_native, "cuda_compiled", lambda: True)
    monkeypatch.setenv("METACURV_CPU_ISA", "avx2")  # read when the package was imported
    main([])
    lines = lines_of(capsys.readouterr().out)
    assert lines["CUDA kernels"] == "compiled by CUDA 13.0 for 80, 90+PTX"
    assert lines["METACURV_CPU_ISA"] == "avx2"


def test_help_explains():
    run = run_python("-m", "metacurv", "--help")
    assert run.returncode == 0
    for words in ("exit status is 0", "bug report", "by hand"):
        assert words in run.stdout


@pytest.mark.slow
def test_without_kernels():
    said = run_without_native("from metacurv.__main__ import main\nassert main([]) == 0\n")
    printed = " ".join(said.split())
    assert "NOT LOADED" in printed
    assert "pip install -e ." in printed or "METACURV_REQUIRE_NATIVE" in printed
    assert "docs/develop/build.md" in printed
    assert "nothing to compare the torch twins with" in printed
    assert re.search(r"all \d+ checks passed", printed)


# Every check can fail


def add_one(tensor, at=0):
    if tensor.numel() > at:
        tensor.view(-1)[at] += 1


def broken(function, at=0):
    """Element ``at`` of what it returns, or of what it writes to, is one too much."""

    def run(*arguments, **named):
        result = function(*arguments, **named)
        if result is None:
            written = arguments[0]
            for tensor in written if isinstance(written, list) else [written]:
                if tensor.is_contiguous():
                    add_one(tensor, at)
        else:
            add_one(result, at)
        return result

    return run


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@pytest.mark.parametrize(
    ("module", "whose"),
    [pytest.param(KERNELS, "the kernel", marks=needs_native), (TWINS, "the torch twin")],
)
def test_a_broken_op_is_seen(op, module, whose, monkeypatch):
    monkeypatch.setattr(module, op.name, broken(getattr(module, op.name)))
    (check,) = (check for check in op_checks(CPU) if check.name == op.name)
    failure = check.failure()
    assert re.fullmatch(r"expected \S+( to 1e-06)?, got \S+ \(element 0.*\) from " + whose, failure)


@needs_native
def test_a_kernel_that_is_right_on_small_tensors_only_is_seen(monkeypatch):
    """What is worked out by hand has not that many elements."""
    monkeypatch.setattr(KERNELS, "rademacher_", broken(KERNELS.rademacher_, 4000))
    assert "(element 4000 of result" in failures()["rademacher_"]


@needs_native
def test_a_kernel_that_rounds_otherwise_is_seen(monkeypatch):
    """By one unit in the last place of a sum."""
    original = KERNELS.signed_sum

    def rounded_up(*arguments):
        return original(*arguments).nextafter(torch.tensor(torch.inf, dtype=torch.float64))

    monkeypatch.setattr(KERNELS, "signed_sum", rounded_up)
    assert "from the kernel" in failures()["signed_sum"]


@needs_native
def test_a_wrong_kernel_makes_the_command_fail(monkeypatch, capsys):
    monkeypatch.setattr(KERNELS, "signed_sum", broken(KERNELS.signed_sum))
    assert main([]) == 1
    printed = capsys.readouterr().out
    line = lines_of(printed)["signed_sum"]
    assert line == "FAILED: expected 597.0 to 1e-06, got 598.0 (element 0) from the kernel"
    assert re.search(r"\d+ of \d+ checks FAILED", printed)


@pytest.mark.parametrize("module", [pytest.param(_native, marks=needs_native), checks_of_ops])
def test_a_wrong_generator_is_seen(module, monkeypatch):
    monkeypatch.setattr(module, "philox4x32_10", lambda counter, key: (1, 2, 3, 4))
    with pytest.raises(Mismatch, match=r"expected 3513581065\.0, got 1\.0"):
        philox()


def test_a_wrong_trace_is_seen(monkeypatch):
    def too_much(*arguments, **named):
        return metacurv.estimate_trace(
            *(x * 1.0001 if x is arguments[2] else x for x in arguments), **named
        )

    monkeypatch.setattr(whole, "estimate_trace", too_much)
    (failure,) = failures().values()
    assert re.fullmatch(r"expected \S+ to 1e-09, got \S+", failure)


def test_trainings_that_do_not_move_are_seen(monkeypatch):
    for rule in ("directional", "reciprocal"):
        monkeypatch.setattr(metacurv.MetaCurvatureLR._of_rule[rule], "step", lambda self: None)
    found = failures()
    assert len(found) == 2
    for rule in ("directional", "reciprocal"):
        assert "expected a loss below" in found[f"training by the {rule} rule"]


def test_an_exception_is_a_failure_and_the_other_checks_run(monkeypatch):
    def raises(*arguments, **named):
        raise RuntimeError("no kernel image is available\nand more")

    monkeypatch.setattr(metacurv.ops, "signed_sum", raises)
    assert failures() == {
        "signed_sum": "expected no exception, got RuntimeError: no kernel image is available"
    }


# The list of ops


@needs_native
def test_every_op_has_a_check():
    registered = {
        name.removeprefix("metacurv::").partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("metacurv::")
    }
    assert {op.name for op in OPS} == registered


def test_ops_with_cuda_kernels():
    sources = "".join(path.read_text() for path in (CSRC / "cuda").glob("*.cu"))
    implemented = set(re.findall(r'm\.impl\("(\w+)', sources))
    assert {op.name for op in OPS if op.has_cuda} == implemented
    assert [check.name for check in op_checks(torch.device("cuda"))] == [
        op.name for op in OPS if op.has_cuda
    ]


# What is compared, and how


def test_numbers_that_are_not():
    nan, inf, one = (torch.tensor([value, 2.0]) for value in (torch.nan, torch.inf, 1.0))
    for same in (nan, inf, one):
        compare("it", [same], [same.clone()])
    for got, want in ((nan, one), (one, nan), (inf, one), (one, inf), (inf, -inf)):
        with pytest.raises(Mismatch):
            compare("it", [got], [want], rtol=1e-3)


def test_shapes_dtypes_and_counts_count():
    ones = torch.ones(2)
    for other in (torch.ones(1, 2), torch.ones(3), ones.double()):
        with pytest.raises(Mismatch, match=r"got torch.float32 of shape \(2,\) from it"):
            compare("it", [ones], [other])
    with pytest.raises(ValueError, match="zip"):
        compare("it", [ones], [])


def test_errors_are_relative_to_the_largest_element():
    want = torch.tensor([1000.0, 0.0])
    compare("it", [want + 1e-4], [want], rtol=1e-6)
    with pytest.raises(Mismatch, match=r"element 0 of result 2"):
        compare("it", [want, want + 1e-2], [want, want], rtol=1e-6)


def test_threads_are_put_back(restore_threads):
    torch.set_num_threads(2)
    seen = []
    assert Check("x", lambda: seen.append(torch.get_num_threads())).failure() == ""
    assert seen == [1]
    assert torch.get_num_threads() == 2
