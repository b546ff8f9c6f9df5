"""One run: the same start and the same batches for every method, and a restart without a trace."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

import metacurv
from metacurv.experiment import training
from metacurv.experiment.config import ADAM, DIRECTIONAL, Config, Method, Run
from metacurv.experiment.data import Data
from metacurv.experiment.model import ACTIVATIONS, mlp
from metacurv.experiment.training import Batches, DivergedError, TrainingRun


def trained(run: Run, config: Config, dataset: Data) -> TrainingRun:
    started = TrainingRun(run, config, dataset)
    while not started.done:
        started.advance()
    return started


def without_seconds(rows: list[training.Row]) -> list[training.Row]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_every_method_of_a_seed_starts_from_the_same_weights(config: Config, dataset: Data) -> None:
    adam, ours = (TrainingRun(Run(1, m), config, dataset).model for m in (ADAM, Method(0.1)))
    other = TrainingRun(Run(2, ADAM), config, dataset).model
    for a, b, c in zip(adam.parameters(), ours.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_every_method_of_a_seed_sees_the_same_batches(
    config: Config, dataset: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the network sees them: recorded where the training loss is computed."""
    seen: dict[Method, list[torch.Tensor]] = {}
    plain = TrainingRun._batch_loss

    def recorded(self: TrainingRun, step: int) -> torch.Tensor:
        if torch.is_grad_enabled() and step == self.step:
            seen.setdefault(self.run.method, []).append(self.data.x_train[self.batches[step]])
        return plain(self, step)

    monkeypatch.setattr(TrainingRun, "_batch_loss", recorded)
    methods = (ADAM, Method(0.01), Method(0.1), DIRECTIONAL)
    for method in methods:
        run = TrainingRun(Run(1, method), config, dataset)
        for _ in range(12):  # more than an epoch of 8
            run.train_step()
    assert len(seen[ADAM]) == 12
    for method in methods[1:]:
        assert all(map(torch.equal, seen[ADAM], seen[method]))


def test_alpha_zero_is_adam_exactly(config: Config, dataset: Data) -> None:
    """Weights, batches, evaluation: whatever differed between the methods would show here."""
    adam, ours = (trained(Run(0, m), config, dataset).rows for m in (ADAM, Method(0.0)))
    for theirs, mine in zip(without_seconds(adam), without_seconds(ours), strict=True):
        theirs.pop("trace"), mine.pop("trace")
        assert theirs == mine


def test_an_epoch_is_every_example_once() -> None:
    batches = Batches(103, 10, seed=5)
    epoch = torch.cat([batches[step] for step in range(10)])
    assert len(epoch) == 100
    assert len(epoch.unique()) == 100
    assert 0 <= epoch.min() <= epoch.max() <= 102
    assert not torch.equal(epoch, torch.cat([batches[step] for step in range(10, 20)]))


def test_batches_depend_on_seed_and_step_alone() -> None:
    forward, backward = Batches(50, 10, seed=5), Batches(50, 10, seed=5)
    there = [forward[step] for step in range(12)]
    back = [backward[step] for step in reversed(range(12))]
    assert all(map(torch.equal, there, reversed(back)))
    assert not torch.equal(Batches(50, 10, seed=6)[0], there[0])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_network_is_as_described(activation: str) -> None:
    network = mlp(40, (7, 5), 10, activation, seed=0)
    assert network(torch.zeros(3, 40)).shape == (3, 10)
    shapes = [tuple(p.shape) for p in network.parameters()]
    assert shapes == [(7, 40), (7,), (5, 7), (5,), (10, 5), (10,)]
    assert isinstance(network[1], type(ACTIVATIONS[activation]()))


def test_making_a_network_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    mlp(40, (7,), 10, "relu", seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", [ADAM, Method(0.01), DIRECTIONAL], ids=lambda m: m.name)
@pytest.mark.parametrize("update_freq", [10, 37])  # 37: some evaluations follow no new reading
@pytest.mark.parametrize("evaluations", [0, 1, 3])
def test_a_restored_run_goes_on_bit_for_bit(
    config: Config, dataset: Data, method: Method, update_freq: int, evaluations: int
) -> None:
    config = dataclasses.replace(config, update_freq=update_freq)
    run = Run(1, method)
    straight = trained(run, config, dataset)
    first = TrainingRun(run, config, dataset)
    for _ in range(evaluations):
        first.advance()
    second = TrainingRun(run, config, dataset)
    second.load_state_dict(first.state_dict())
    assert second.seconds == first.seconds
    while not second.done:
        second.advance()
    np.testing.assert_equal(without_seconds(second.rows), without_seconds(straight.rows))  # nan too
    for a, b in zip(second.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_rows_say_what_happened(config: Config, dataset: Data) -> None:
    adam = trained(Run(0, ADAM), config, dataset).rows
    ours = trained(Run(0, Method(0.5)), config, dataset).rows
    for rows in (adam, ours):
        assert [row["step"] for row in rows] == [0, 20, 40, 60]
        assert rows[-1]["train_loss"] < rows[0]["train_loss"]
        assert all(0 <= row[name] <= 1 for row in rows for name in ("train_acc", "test_acc"))
    assert {row["lr"] for row in adam} == {config.lr}
    assert adam[0]["trace"] == ours[0]["trace"]  # same weights, batch and probe
    assert ours[0]["lr"] == config.lr
    for row in ours[1:]:
        assert row["lr"] == pytest.approx(config.lr / (1 + 0.5 * max(row["trace"], 0)))


def test_the_last_step_is_evaluated_whatever_the_interval(config: Config, dataset: Data) -> None:
    config = dataclasses.replace(config, steps=25, eval_every=20)
    rows = trained(Run(0, ADAM), config, dataset).rows
    assert [row["step"] for row in rows] == [0, 20, 25]


def test_only_training_steps_are_timed(
    config: Config, dataset: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that goes 1 s a step and 1000 s an evaluation."""
    now = 0.0
    step, evaluation = TrainingRun.train_step, training._loss_and_accuracy

    def timed_step(self: TrainingRun) -> None:
        nonlocal now
        now += 1
        step(self)

    def timed_evaluation(*arguments: object) -> tuple[float, float]:
        nonlocal now
        now += 1000
        return evaluation(*arguments)

    monkeypatch.setattr(training.time, "perf_counter", lambda: now)
    monkeypatch.setattr(TrainingRun, "train_step", timed_step)
    monkeypatch.setattr(training, "_loss_and_accuracy", timed_evaluation)
    rows = trained(Run(0, Method(0.01)), config, dataset).rows
    assert [row["seconds"] for row in rows] == [0, 20, 40, 60]


@pytest.mark.parametrize("alpha", [None, 0.01])
def test_a_loss_that_is_not_finite_is_an_error_that_says_where(
    config: Config, dataset: Data, alpha: float | None
) -> None:
    run = TrainingRun(Run(1, Method(alpha)), config, dataset)
    with torch.no_grad():
        next(iter(run.model.parameters())).fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"seed 1: the training loss is nan at step 0; .*--lr"):
        run.train_step()
    with pytest.raises(DivergedError):
        run.advance()


@pytest.mark.skipif(not metacurv.native_available(), reason="needs the native kernels")
def test_backends_agree(config: Config, dataset: Data) -> None:
    runs = [
        trained(Run(0, Method(0.01)), dataclasses.replace(config, backend=backend), dataset)
        for backend in ("native", "reference")
    ]
    for native, reference in zip(runs[0].rows, runs[1].rows, strict=True):
        assert native["trace"] == pytest.approx(reference["trace"], rel=1e-4)
        assert native["train_loss"] == pytest.approx(reference["train_loss"], rel=1e-4)


def halfway(config: Config, dataset: Data) -> TrainingRun:
    """The directional rule at an evaluation before its finish, where its average and its iterate are two things."""
    run = TrainingRun(Run(0, DIRECTIONAL), config, dataset)
    while run.step < config.steps // 3:
        run.advance()
    assert run.rows[-1]["step"] == run.step
    return run


def test_the_directional_rule_is_read_at_its_average(config: Config, dataset: Data) -> None:
    run = halfway(config, dataset)
    assert math.isnan(run.rows[0]["lr"])  # before its first step there is none
    assert all(row["lr"] > 0 for row in run.rows[1:])
    last = run._evaluate_as_it_is()
    assert last["train_loss"] != run.rows[-1]["train_loss"]
    with run.optimizer.averaged_parameters():
        assert run._evaluate_as_it_is()["train_loss"] == run.rows[-1]["train_loss"]


def test_a_directional_run_that_diverges_blames_no_lr(config: Config, dataset: Data) -> None:
    run = TrainingRun(Run(1, DIRECTIONAL), config, dataset)
    with torch.no_grad():
        next(iter(run.model.parameters())).fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"the training loss is nan at step 0$"):
        run.train_step()


def test_the_directional_rules_trace_is_of_the_average(config: Config, dataset: Data) -> None:
    run = halfway(config, dataset)
    with run.optimizer.averaged_parameters():
        assert run._would_be_trace() == run.rows[-1]["trace"]
    assert run._would_be_trace() != run.rows[-1]["trace"]


def test_the_directional_rule_does_not_use_the_lr(config: Config, dataset: Data) -> None:
    losses = {
        trained(Run(0, DIRECTIONAL), dataclasses.replace(config, lr=lr), dataset).rows[-1][
            "test_loss"
        ]
        for lr in (1e-6, 1e-1)
    }
    assert len(losses) == 1
