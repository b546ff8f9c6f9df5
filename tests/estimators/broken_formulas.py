"""Breaks formulas of the estimators one at a time, and says which tests see it: python tests/estimators/broken_formulas.py

Works in a copy of the tree. The exit status is 1 where a broken formula is seen by none of the tests that are there for it.
It takes a quarter of an hour.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SPECTRUM, SPLIT = "metacurv/estimators/spectrum", "metacurv/estimators/split"
ACTIVATION = "metacurv/estimators/activation"
DENSE = "tests/estimators/dense/test_dense_spectrum.py"
OF_DENSITY = "tests/estimators/spectrum/test_spectral_density.py"
OF_PAIRS = "tests/estimators/spectrum/test_eigenpairs.py"
OF_TOP = "tests/estimators/spectrum/test_top_eigenvalues.py"
OF_DIAGONAL = "tests/estimators/spectrum/test_diagonal.py"
OF_SPLIT = "tests/estimators/split"
OF_AXES = "tests/estimators/estimate_trace/test_batch_separation.py"


@dataclass(frozen=True)
class Fault:
    """A formula, in words, with its text in a file, the wrong one, and the tests that must see it."""

    formula: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]


FAULTS = (
    Fault(
        "density: the height of a bell",
        f"{SPECTRUM}/density.py",
        "(grid.width * math.sqrt(2 * math.pi))",
        "grid.width",
        (OF_DENSITY,),
    ),
    Fault(
        "density: degrees of freedom of the band",
        f"{SPECTRUM}/density.py",
        "freedom = freedom * len(quadratures)",
        "freedom = freedom * 2 * len(quadratures)",
        (OF_DENSITY,),
    ),
    Fault(
        "density: quantiles of chi-squared",
        f"{SPECTRUM}/density.py",
        "spread = 2 / (9 * freedom)",
        "spread = 1 / (9 * freedom)",
        (OF_DENSITY,),
    ),
    Fault(
        "density: error of a trace of a function",
        f"{SPECTRUM}/density.py",
        "over_probes = float(samples[:, 0].var()) / count",
        "over_probes = float(samples[:, 0].var())",
        (OF_DENSITY,),
    ),
    Fault(
        "density: error of the Frobenius norm",
        f"{SPECTRUM}/density.py",
        "squares.stderr / (2 * norm)",
        "squares.stderr / norm",
        (OF_DENSITY,),
    ),
    Fault(
        "density: effective dimension",
        f"{SPECTRUM}/density.py",
        "lambda x: x / (x + shift)",
        "lambda x: x / (x + 2 * shift)",
        (OF_DENSITY,),
    ),
    Fault(
        "density: log determinant",
        f"{SPECTRUM}/density.py",
        "lambda x: (x + shift).log()",
        "lambda x: x.abs().log()",
        (OF_DENSITY,),
    ),
    Fault(
        "quadrature: weights",
        f"{SPECTRUM}/quadrature.py",
        "vectors[0].square()",
        "vectors[0].abs()",
        (OF_DENSITY, DENSE),
    ),
    Fault(
        "Lanczos: residual of a Ritz vector",
        f"{SPECTRUM}/krylov.py",
        "lengths + self.floors(vectors)",
        "0.1 * lengths + self.floors(vectors)",
        (OF_PAIRS, OF_TOP, DENSE),
    ),
    Fault(
        "Lanczos: error by the gap (Kato and Temple)",
        f"{SPECTRUM}/eigenpairs.py",
        "residual * (residual / gaps)",
        "residual * (residual / gaps) ** 2",
        (OF_PAIRS, OF_TOP, DENSE),
    ),
    Fault(
        "Lanczos: what couples kept vectors after a restart",
        f"{SPECTRUM}/krylov.py",
        "self._inner[kept : kept + self.waiting, :kept] = outside",
        "pass",
        (OF_PAIRS, OF_TOP, DENSE),
    ),
    Fault(
        "Lanczos: values of kept vectors after a restart",
        f"{SPECTRUM}/krylov.py",
        "torch.diag(values)",
        "torch.diag(values.abs())",
        (OF_PAIRS, OF_TOP, DENSE),
    ),
    Fault(
        "Lanczos: a random vector before the end",
        f"{SPECTRUM}/eigenpairs.py",
        "        if wants_fresh:\n            space.add(fresh)",
        "        if wants_fresh and not space.waiting:\n            space.add(fresh)",
        (OF_PAIRS, OF_TOP, DENSE),
    ),
    Fault(
        "Gram matrix: the share of a batch",
        f"{SPECTRUM}/gram.py",
        "u = u * math.sqrt(share)",
        "u = u * share",
        (DENSE, OF_TOP, OF_DENSITY),
    ),
    Fault(
        "Gram matrix: length of eigenvectors",
        f"{SPECTRUM}/gram.py",
        "vectors / values.sqrt()",
        "vectors / values",
        (DENSE, OF_TOP, OF_DENSITY),
    ),
    Fault(
        "diagonal: squared error of a mean",
        f"{SPECTRUM}/diagonals.py",
        "/ moments.count\n",
        "/ (2 * moments.count)\n",
        (OF_DIAGONAL,),
    ),
    Fault(
        "diagonal: the norm without what noise adds",
        f"{SPECTRUM}/diagonals.py",
        "max(square - noise, 0.0)",
        "square",
        (OF_DIAGONAL,),
    ),
    Fault(
        "diagonal: weights of batches in errors",
        "metacurv/estimators/diagonal.py",
        "alpha=share**2",
        "alpha=share",
        (OF_DIAGONAL,),
    ),
    Fault(
        "diagonal: share of smooth activations",
        f"{SPECTRUM}/diagonals.py",
        "total += _flat(bend_diagonals(chain, batch.forward.loss), parameters)",
        "pass",
        (OF_DIAGONAL, DENSE),
    ),
    Fault(
        "diagonal: a probe's products",
        f"{SPECTRUM}/diagonals.py",
        "(wide(h) * wide(v))",
        "(wide(h) * wide(h))",
        (OF_DIAGONAL, DENSE),
    ),
    Fault(
        "split: signs of rows",
        f"{SPLIT}/places.py",
        "scaled(self._detached, before, self.layout) @ matrix, after, self.layout)",
        "scaled(self._detached, before, self.layout) @ matrix, after.abs(), self.layout)",
        (OF_SPLIT,),
    ),
    Fault(
        "split: signs of columns",
        f"{SPLIT}/places.py",
        "scaled(scaled(delta, after, self.layout) @ matrix.t(), before, self.layout)",
        "scaled(scaled(delta, after, self.layout) @ matrix.t(), before.abs(), self.layout)",
        (OF_SPLIT,),
    ),
    Fault(
        "split: through a layer norm",
        f"{SPLIT}/places.py",
        "below - mean - self._a * along",
        "below - mean",
        (OF_SPLIT,),
    ),
    Fault(
        "split: coefficient without the probe's own share",
        f"{SPLIT}/control_variate.py",
        "c = (products.sum(0) - by * products) / others.unsqueeze(1) * choice.mask(n)",
        "c = (products.sum(0) / squares.sum()).expand(n, -1) * choice.mask(n)",
        (OF_SPLIT,),
    ),
    Fault(
        "split: error of tr G",
        f"{SPLIT}/control_variate.py",
        "of_trace = (c.mean(0) * trace.error).square()",
        "of_trace = (0 * c.mean(0) * trace.error).square()",
        (OF_SPLIT,),
    ),
    Fault(
        "split: c tr G",
        f"{SPLIT}/control_variate.py",
        "beyond = beyond - trace.value",
        "pass",
        (OF_SPLIT,),
    ),
    Fault(
        "errors by example: their variances add up",
        "metacurv/estimators/statistics/moments.py",
        "variances[0].sqrt() + variances[1:].sum(0).sqrt()",
        "variances[0].sqrt() + variances[1:].mean(0).sqrt()",
        ("tests/estimators/dense/test_dense_calibration.py", OF_SPLIT),
    ),
    Fault(
        "softmax: a random product with the factor",
        "metacurv/ops/_reference/factors.py",
        "t.addcmul_(t.square(), t.sum(-1, keepdim=True), value=-1)",
        "t.addcmul_(t, t.sum(-1, keepdim=True), value=-1)",
        ("tests/estimators/dense/test_dense_calibration.py", "tests/ops"),
    ),
    Fault(
        "examples: where a view's input has them",
        f"{ACTIVATION}/batch_separation.py",
        "if step % inner == 0 and size % (step // inner * examples) == 0:",
        "if size % examples == 0:",
        (OF_AXES,),
    ),
    Fault(
        "examples: the order of axes",
        f"{ACTIVATION}/batch_separation.py",
        "return _order(name, at, len(after))[axis]",
        "return axis",
        (OF_AXES,),
    ),
    Fault(
        "examples: an operation along their own axis",
        f"{ACTIVATION}/batch_separation.py",
        "return None if axis == along else axis - (after > before and axis > along)",
        "return axis - (after > before and axis > along)",
        (OF_AXES,),
    ),
)


def copied(folder: Path) -> Path:
    """A copy of the tree, with the compiled module."""
    tree = folder / "tree"
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout.split(b"\0")
    compiled = [path.relative_to(ROOT) for path in (ROOT / "metacurv").glob("_C*.so")]
    for name in [*(Path(name.decode()) for name in names if name), *compiled]:
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    return tree


def is_seen(tree: Path, fault: Fault) -> bool:
    """Plants the fault, and tells whether its tests fail."""
    path = tree / fault.file
    text = path.read_text()
    if text.count(fault.right) != 1:
        raise SystemExit(f"{fault.formula}: {fault.file} must have once {fault.right!r}")
    path.write_text(text.replace(fault.right, fault.wrong))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *fault.tests]
    try:
        ended = subprocess.run(
            [*command, "-m", "not slow"], cwd=tree, capture_output=True, text=True, check=False
        )
    finally:
        path.write_text(text)
    if ended.returncode not in (0, 1):  # 1: tests failed
        raise SystemExit(f"{fault.formula}: pytest ended with {ended.returncode}\n{ended.stdout}")
    return ended.returncode == 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--only", default="", metavar="WORD", help="formulas with this in their name"
    )
    given = parser.parse_args()
    unseen = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(Path(folder))
        for fault in FAULTS:
            if given.only in fault.formula:
                seen = is_seen(tree, fault)
                unseen += not seen
                print(f"{'seen' if seen else 'NOT SEEN'}: {fault.formula}", flush=True)
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main())
