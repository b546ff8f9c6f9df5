"""The architectures to compile for: those asked for, those of the GPUs here, or the usual ones."""

from __future__ import annotations

from pathlib import Path

import pytest

import cuda_archs
from build_settings import SettingError
from cuda_archs import capabilities, choose_archs, gencode_flags, visible_archs
from cuda_toolkit import CudaToolkit, CudaUnavailableError


def a_toolkit(*archs: str) -> CudaToolkit:
    return CudaToolkit("nvcc", "13.0", "13.0.88", Path("/include"), Path("/cudart.a"), archs)


TODAYS = a_toolkit("75", "80", "86", "87", "89", "90", "100", "120")


def driver_that(does: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nvidia-smi on PATH that is the shell script ``does``."""
    script = folder / "nvidia-smi"
    script.write_text(f"#!/bin/sh\n{does}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("does", "found"),
    [
        ("echo 9.0", ("90",)),
        ("printf '12.0\\n8.6\\n12.0\\n'", ("86", "120")),
        ('test "$*" = "--query-gpu=compute_cap --format=csv,noheader" && echo 8.9', ("89",)),
        ("echo 'No devices were found'; exit 6", ()),
        ("echo '[N/A]'", ()),
        # A driver from before compute_cap.
        ("echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2", ()),
        ("exit 9", ()),
    ],
)
def test_asks_the_driver_for_the_gpus(
    does: str, found: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver_that(does, tmp_path, monkeypatch)
    assert visible_archs() == found


def test_no_driver_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_archs() == ()


def test_driver_that_hangs_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver_that("exec sleep 60", tmp_path, monkeypatch)
    monkeypatch.setattr(cuda_archs, "DRIVER_SECONDS", 0.1)
    assert visible_archs() == ()


def test_without_a_gpu_two_architectures_serve_most() -> None:
    assert choose_archs(TODAYS, None, ()) == ("80", "90+PTX")
    assert choose_archs(a_toolkit("70", "75", "80", "86"), None, ()) == ("80+PTX",)


def test_nvcc_that_knows_neither_of_the_two() -> None:
    assert choose_archs(a_toolkit("100", "120", "130"), None, ()) == ("100+PTX",)
    with pytest.raises(CudaUnavailableError, match="knows none of 75, 80"):
        choose_archs(a_toolkit("35", "70"), None, ())


def test_visible_gpus_go_before_the_usual_ones() -> None:
    assert choose_archs(TODAYS, None, ("89",)) == ("89+PTX",)
    assert choose_archs(TODAYS, None, ("75", "120")) == ("75", "120+PTX")


def test_visible_gpu_that_nvcc_does_not_know() -> None:
    """The driver translates PTX for one newer than nvcc."""
    old = a_toolkit("80", "86", "90")
    assert choose_archs(old, None, ("120",)) == ("80", "90+PTX")
    assert choose_archs(old, None, ("86", "120")) == ("86+PTX",)


def test_wanted_archs_are_taken_as_they_are() -> None:
    assert choose_archs(TODAYS, ("90a", "80+PTX"), ("89",)) == ("90a", "80+PTX")


def test_wanted_arch_that_nvcc_does_not_know() -> None:
    with pytest.raises(SettingError, match=r"nvcc 13\.0 does not compile for '30'; it knows 80;90"):
        choose_archs(a_toolkit("80", "90"), ("80", "30"), ())


def test_gencode_flags() -> None:
    assert gencode_flags(("80", "90a", "120+PTX")) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


def test_names_for_people() -> None:
    assert capabilities(("80", "90a", "120+PTX")) == "8.0, 9.0a, 12.0+PTX"
