"""A small experiment that every test here can afford, with a cache of its own."""

from __future__ import annotations

import csv
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import metacurv
from metacurv.experiment import cli, data, figure
from metacurv.experiment.config import Config
from metacurv.experiment.data import Data

# On the command line, and as a configuration: what is left out has its default value.
TINY = {
    "hidden": (8,),
    "batch_size": 20,
    "steps": 60,
    "seeds": 2,
    "eval_every": 20,
    "num_samples": 200,
}
TINY_ARGUMENTS = shlex.split(
    "--hidden 8 --batch-size 20 --steps 60 --seeds 2 --eval-every 20 --num-samples 200"
)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data cache for the session, which is not the user's."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METACURV_CACHE", str(cache))


@pytest.fixture
def config() -> Config:
    return Config(**TINY)


@pytest.fixture
def dataset(config: Config) -> Data:
    return data.load(config.num_samples, config.data_seed)


@pytest.fixture
def arguments() -> list[str]:
    """The command line of ``config``."""
    return list(TINY_ARGUMENTS)


@pytest.fixture
def experiment(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the small experiment in this process: ``experiment("--out", folder, ...)``.

    Without its picture, which takes longer than all the rest and has tests of its own.
    """
    monkeypatch.setattr(figure, "draw", lambda config, curves: b"a picture")

    def run(*more: object) -> int:
        return cli.main([*arguments, *map(str, more)])

    return run


@pytest.fixture
def numbers() -> Callable[[Path], list[dict[str, str]]]:
    """The rows of a run folder's metrics.csv but for the seconds, which no two runs share."""

    def read(folder: Path) -> list[dict[str, str]]:
        with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            assert float(row.pop("seconds")) >= 0
        return rows

    return read


@pytest.fixture
def command(cache: Path) -> tuple[list[str], dict[str, str]]:
    """``python -m metacurv.experiment`` as a process of its own, with the metacurv of this one."""
    here = str(Path(metacurv.__file__).parents[1])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "METACURV_CACHE": str(cache)}
    fallback = "ignore:metacurv runs without its compiled kernels:RuntimeWarning"
    flags = ["-W", "error", "-W", fallback]
    return [sys.executable, *flags, "-m", "metacurv.experiment"], environment
