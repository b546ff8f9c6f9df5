"""python -m metacurv.measure: what the report holds, what fails in it, and what is wrong with a name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metacurv.measure.cli import main

MODULE = """
import torch
from torch import nn


def data():
    torch.manual_seed(0)
    x, y = torch.randn(30, 6), torch.randint(3, (30,))
    return [(x[:20], y[:20]), (x[20:], y[20:])]


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    return model, nn.CrossEntropyLoss(), data()


def iterator():
    model, loss_fn, batches = make()
    return model, loss_fn, iter(batches)


def pair_of_outputs():
    model, loss_fn, batches = make()

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x), x

    return Pair(), lambda out, y: loss_fn(out[0], y), batches


def two():
    return make()[:2]


def no_model():
    return 1, None, []
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model_to_measure.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "model_to_measure", raising=False)
    return tmp_path


def measured(folder: Path, function: str, *options: str) -> tuple[int, dict]:
    quick = ["--probes", "2", "--steps", "8", "--top", "2", "--out", "out"]
    status = main([f"model_to_measure:{function}", *quick, *options])
    return status, json.loads((folder / "out" / "report.json").read_text())


def test_the_report(folder, capsys):
    status, found = measured(folder, "make")
    assert status == 0
    matrices = ("Hessian", "Gauss-Newton matrix")
    names = [f"{n} of the {m}" for m in matrices for n in ("trace", "eigenvalues", "density")]
    assert list(found["findings"]) == names
    assert found["about"]["parameters"] == 83
    assert found["findings"]["eigenvalues of the Gauss-Newton matrix"]["method"] == "gram"
    assert len(found["findings"]["eigenvalues of the Hessian"]["values"]) == 2
    layers = found["findings"]["trace of the Hessian"]["per_layer"]
    assert sum(layers.values()) == pytest.approx(found["findings"][names[0]]["value"])
    page = (folder / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert all(f"<h2>{name}</h2>" in page for name in names)
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == [*names, "report"]


def test_batches_are_as_many_as_asked_for(folder):
    _, one = measured(folder, "iterator", "--batches", "1", "--kind", "ggn")
    _, both = measured(folder, "iterator", "--kind", "ggn")
    _, again = measured(folder, "make", "--kind", "ggn")
    trace = "trace of the Gauss-Newton matrix"
    assert both["findings"][trace]["value"] == again["findings"][trace]["value"]
    assert one["findings"][trace]["value"] != both["findings"][trace]["value"]


def test_what_fails_does_not_stop_the_rest(folder):
    """The Gauss-Newton matrix has no output to end at, and the Hessian needs none."""
    status, found = measured(folder, "pair_of_outputs")
    assert status == 1
    assert found["findings"]["trace of the Hessian"]["value"]
    error = found["findings"]["trace of the Gauss-Newton matrix"]["error"]
    assert error.startswith("ValueError: kind='ggn' cannot be measured here")
    page = (folder / "out" / "report.html").read_text()
    assert page.count('<p class="failed">') == 3


BAD = {
    "model_to_measure": "MODULE:FUNCTION must have this form, such as mymodel:make, got",
    "no_such_module:make": "or installed, got 'no_such_module'",
    "model_to_measure:nothing": "MODULE:FUNCTION must name a function that the module has, got",
    "model_to_measure:two": "model_to_measure:two must return (model, loss_fn, loader), got a tuple of 2",
    "model_to_measure:no_model": "must return a torch.nn.Module first, got int 1",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_names(name, folder, capsys):
    assert main([name, "--out", "out"]) == 2
    assert BAD[name] in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_bad_number_of_batches(folder, capsys):
    assert main(["model_to_measure:make", "--batches", "0"]) == 2
    assert "--batches must be >= 1, got 0" in capsys.readouterr().err
