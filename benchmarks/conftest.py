"""One thread, facts that every saved result carries, and comparisons within one loop.

``pytest benchmarks --benchmark-json=benchmarks/results/latest.json`` runs all of it in half an hour.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import metacurv
from benchmarks.ratio import Call, compare
from benchmarks.workloads import SEED

PEERS = {
    "pyhessian": "pyhessian",
    "curvlinops": "curvlinops-for-pytorch",
    "backpack": "backpack-for-pytorch",
    "hessian_eigenthings": "hessian-eigenthings",
    "nngeometry": "nngeometry",
    "asdl": "asdfghjkl",
    "pytorch_optimizer": "pytorch_optimizer",
    "sklearn": "scikit-learn",
}
# compares metacurv, the first call, with another one, and saves the outcome under the name of the comparison
Versus = Callable[[str, Call, Call], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pair-seconds",
        type=float,
        default=2.0,
        help="time for each comparison of metacurv with something else (default: 2)",
    )


@pytest.fixture(scope="session", autouse=True)
def _compiled_kernels() -> None:
    if not metacurv.native_available():
        pytest.fail(f"benchmarks need the compiled kernels: {metacurv.build_info()}")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _settled_allocator() -> None:
    """Brings glibc's allocator to where a process comes that has freed a large tensor: it then keeps what is freed.

    Before that it returns temporaries of megabytes to the system every time, and fresh pages double the time of whatever
    makes temporaries, which metacurv does not.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


@pytest.fixture(scope="session")
def peers() -> dict[str, str]:
    """Import name -> version of the libraries to compare with."""
    versions = {}
    for module, package in PEERS.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            pytest.fail(f'{package} is missing ({error}): pip install "metacurv[benchmark]"')
        versions[module] = importlib.metadata.version(package)
    return versions


@pytest.fixture(autouse=True)
def _facts(benchmark: Any) -> None:
    """Defaults of what each result says about itself; tests overwrite what applies to them."""
    benchmark.extra_info.update(
        impl=None, size=None, n=None, K=None, stderr=None, bytes=None, comparison=None
    )
    benchmark.extra_info.update(threads=torch.get_num_threads(), seed=SEED, backend=None)


@pytest.fixture
def versus(benchmark: Any, pytestconfig: pytest.Config) -> Versus:
    """Does nothing under --benchmark-disable."""

    def run(comparison: str, ours: Call, other: Call) -> None:
        if not benchmark.disabled:
            paired = compare(ours, other, seconds=pytestconfig.getoption("--pair-seconds"))
            benchmark.extra_info.update(comparison=comparison, paired=paired.as_dict())

    return run


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine_info.pop("node", None)
    cpu = machine_info.get("cpu", {})
    machine_info["cpu"] = {
        name: cpu[name] for name in ("brand_raw", "arch", "count") if name in cpu
    }
    machine_info["torch"] = torch.__version__
    machine_info["torch_cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    machine_info["metacurv"] = metacurv.build_info()
    machine_info["peers"] = {
        package: importlib.metadata.version(package)
        for module, package in PEERS.items()
        if importlib.util.find_spec(module) is not None
    }


STATISTICS = ("min", "median", "mean", "stddev", "iqr", "rounds", "iterations")


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]
) -> None:
    """Keeps what the table and a careful reader need, so that results are small enough to commit."""
    output_json["commit_info"] = {
        name: output_json["commit_info"].get(name) for name in ("id", "time", "dirty")
    }
    output_json["benchmarks"] = [
        {
            "group": result["group"],
            "name": result["name"],
            "extra_info": {
                name: value for name, value in result["extra_info"].items() if value is not None
            },
            "stats": {name: result["stats"][name] for name in STATISTICS},
        }
        for result in output_json["benchmarks"]
    ]
