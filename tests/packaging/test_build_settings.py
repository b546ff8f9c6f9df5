"""The METACURV_* variables: what they take, and what they say to what they do not take."""

from __future__ import annotations

import pytest

from build_settings import BuildSettings, SettingError, parse_archs


def test_defaults_build_cuda_where_it_is_found_and_allow_the_fallback() -> None:
    settings = BuildSettings.from_env({})
    assert settings == BuildSettings(cuda="auto", cuda_archs=None, require_native=False)
    assert settings.required_by() is None


def test_reads_every_variable() -> None:
    settings = BuildSettings.from_env(
        {
            "METACURV_CUDA": "1",
            "METACURV_CUDA_ARCHS": "8.0;9.0",
            "METACURV_REQUIRE_NATIVE": "1",
            "METACURV_WERROR": "1",
            "METACURV_DEBUG": "1",
            "METACURV_PTXAS_VERBOSE": "1",
        }
    )
    assert settings == BuildSettings("1", ("80", "90"), True, True, True, True)


@pytest.mark.parametrize("value", ["", " ", "auto", "AUTO"])
def test_cuda_is_auto_unless_set(value: str) -> None:
    assert BuildSettings.from_env({"METACURV_CUDA": value}).cuda == "auto"


@pytest.mark.parametrize("value", ["2", "yes", "true", "-1"])
@pytest.mark.parametrize(
    "name",
    [
        "METACURV_CUDA",
        "METACURV_REQUIRE_NATIVE",
        "METACURV_WERROR",
        "METACURV_DEBUG",
        "METACURV_PTXAS_VERBOSE",
    ],
)
def test_bad_value_names_variable_and_value(name: str, value: str) -> None:
    with pytest.raises(SettingError, match=rf"{name} must be 0.*1.*got '{value}'"):
        BuildSettings.from_env({name: value})


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"METACURV_REQUIRE_NATIVE": "1"}, "METACURV_REQUIRE_NATIVE=1"),
        ({"METACURV_CUDA": "1"}, "METACURV_CUDA=1"),
        ({"METACURV_CUDA": "0"}, None),
    ],
)
def test_what_forbids_the_fallback(environ: dict[str, str], named: str | None) -> None:
    assert BuildSettings.from_env(environ).required_by() == named


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8.0;9.0", ("80", "90")),
        ("80;90", ("80", "90")),
        ("8.0 9.0+PTX", ("80", "90+PTX")),
        ("10.0,12.0", ("100", "120")),
        ("9.0a;100F", ("90a", "100f")),
        ("9.0+ptx", ("90+PTX",)),
        (" ;8.0;; 8.0 ;80;", ("80",)),
    ],
)
def test_parse_archs(text: str, expected: tuple[str, ...]) -> None:
    assert parse_archs(text) == expected


@pytest.mark.parametrize("text", [";", "ampere", "8.0;sm_90", "8", "8.0+SASS", "8.0;9.0b"])
def test_parse_archs_names_the_bad_entry(text: str) -> None:
    with pytest.raises(SettingError, match="METACURV_CUDA_ARCHS must list"):
        parse_archs(text)
