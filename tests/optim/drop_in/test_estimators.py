"""Readings in activation space: ``MetaCurvatureLR(..., model=model, estimator=...)``.

They reuse the forward pass of the step, which a hook on the model finds while a reading is due.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import math
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import lr_scheduler

import metacurv
from metacurv import MetaCurvatureLR, NotTwiceDifferentiableError, UpdateRecord, estimate_trace
from metacurv.optim.reciprocal.step_capture import StepCapture
from tests.helpers import assert_same
from tests.problems.bad_losses import LOSSES
from tests.problems.modules import Checkpointed
from tests.problems.once_differentiable import OnceDifferentiable

from .reciprocal_training import (
    curvature_state,
    fresh_batch,
    loss_of,
    mlp,
    through_a_file,
    train_on_fresh,
    weights,
)

IN_ACTIVATION_SPACE = ("activation", "exact", "auto")


def relu_net(dtype: torch.dtype = torch.float64, classes: int = 3) -> nn.Sequential:
    """4 -> 8 -> 8 -> classes, always the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, classes)]
        return nn.Sequential(*layers).to(dtype)


class Scaled(nn.Module):
    """More than a stack of layers and activations."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def scaled_tanh_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), Scaled(), nn.Linear(8, 3)).double()


def wrap(model: nn.Module, estimator: Any = "activation", **options: Any) -> MetaCurvatureLR:
    """SGD over all parameters, measured every second step."""
    options = {"alpha": 0.3, "update_freq": 2, "seed": 11, **options}
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    return MetaCurvatureLR(base, model=model, estimator=estimator, **options)


def hooks(model: nn.Module) -> int:
    """Forward hooks of the model; torch keeps those that take keywords in two places."""
    return max(len(model._forward_hooks), len(model._forward_hooks_with_kwargs))


def generic_loss(output: Tensor) -> Tensor:
    """Of no form that the estimators know."""
    return output.sin().exp().mean() + 0.1 * output.pow(4).mean()


def dense_trace(loss: Tensor, model: nn.Module) -> float:
    """One element of the gradient after another."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    total = 0.0
    for gradient, parameter in zip(gradients, parameters, strict=True):
        for index, element in enumerate(gradient.flatten()):
            row = torch.autograd.grad(element, parameter, retain_graph=True, allow_unused=True)[0]
            total += 0.0 if row is None else float(row.flatten()[index])
    return total


def last(opt: MetaCurvatureLR) -> metacurv.TraceEstimate:
    assert opt.last_estimate is not None
    return opt.last_estimate


# What a reading is.


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-6)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("estimator", ["exact", "auto"])
def test_exact_is_the_trace(estimator: str, dtype: torch.dtype, tolerance: float) -> None:
    model = relu_net(dtype)
    opt = wrap(model, estimator)
    assert opt.update_curvature(loss_of(model))
    estimate = last(opt)
    reference = relu_net()  # float64, of the same weights
    reference.load_state_dict(model.state_dict())
    x, y = fresh_batch(0, dtype)
    truth = dense_trace(F.cross_entropy(reference(x.double()), y), reference)
    assert estimate.value == pytest.approx(truth, rel=tolerance)
    assert (estimate.stderr, estimate.n_samples, estimate.method) == (0.0, 0, "exact")
    whole = estimate_trace(model, F.cross_entropy, x, y, method="exact")
    assert estimate.value == pytest.approx(whole.value, rel=tolerance)
    assert [*estimate.per_parameter.values()] == pytest.approx(
        [*whole.per_parameter.values()], rel=10 * tolerance
    )


@pytest.mark.parametrize("generic", [False, True], ids=["cross entropy", "generic loss"])
@pytest.mark.parametrize("make", [relu_net, mlp], ids=["relu", "tanh"])
def test_activation_is_right_on_average(make: Callable[..., nn.Module], generic: bool) -> None:
    model = make(torch.float64)
    opt = wrap(model, n_hutchinson_samples=4000)
    loss = generic_loss(model(fresh_batch(0, torch.float64)[0])) if generic else loss_of(model)
    opt.update_curvature(loss)
    estimate = last(opt)
    assert (estimate.method, estimate.n_samples) == ("activation", 4000)
    assert estimate.why == "asked for by name"
    assert abs(estimate.value - dense_trace(loss, model)) < 4 * estimate.stderr
    assert estimate.stderr < 0.05 * abs(estimate.value)


def test_activation_draws_the_samples_of_estimate_trace() -> None:
    """The same probes, and the batch's samples told apart, or it would be noisier."""
    for make, batch_of in ((relu_net, 0), (mlp, 1)):
        model = make(torch.float64)
        opt = wrap(model, n_hutchinson_samples=5)
        opt.update_curvature(loss_of(model, batch_of))
        x, y = fresh_batch(batch_of, torch.float64)
        whole = estimate_trace(
            model, F.cross_entropy, x, y, method="activation", n_samples=5, seed=11
        )
        assert last(opt).value == pytest.approx(whole.value, rel=1e-12)
        # estimate_trace knows the scatter of each example, a reading that of the sums.
        assert last(opt).stderr == pytest.approx(whole.stderr, rel=0.5)


def test_each_reading_draws_new_probes() -> None:
    """Readings of one probe, one after another, are the samples of one reading of as many."""
    model = mlp(torch.float64)
    opt = wrap(model, update_freq=1)
    values = []
    for _ in range(4):
        opt.update_curvature(loss_of(model))
        values.append(last(opt).value)
        opt.step()  # without gradients: the weights stay
    at_once = wrap(model, n_hutchinson_samples=4)
    at_once.update_curvature(loss_of(model))
    assert len(set(values)) == 4
    assert sum(values) / 4 == pytest.approx(last(at_once).value, rel=1e-12)


def test_auto_says_what_it_took_and_why() -> None:
    """Few columns: exact. Many, or smooth activations in more than a stack: activation. Else Hutchinson, as it always was."""
    normed = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)).double()
    found = {}
    for name, model in {
        "few": relu_net(),
        "many": relu_net(classes=100),
        "smooth stack": mlp(torch.float64),
        "smooth": scaled_tanh_net(),
        "normed": normed,
    }.items():
        opt = wrap(model, "auto")
        opt.update_curvature(loss_of(model))
        found[name] = last(opt).method
        assert last(opt).why.startswith(f"{found[name]}: ")
    assert found == {
        "few": "exact",
        "many": "activation",
        "smooth stack": "exact",
        "smooth": "activation",
        "normed": "hutchinson",
    }


def layer_norm() -> nn.Module:
    return nn.LayerNorm(8)


def batch_norm() -> nn.Module:
    return nn.BatchNorm1d(8)


@pytest.mark.parametrize(
    ("norm", "reason"), [(layer_norm, "NativeLayerNorm"), (batch_norm, "batch norm in train mode")]
)
def test_where_activation_space_is_wrong(norm: Callable[[], nn.Module], reason: str) -> None:
    """By name: refused with the way out, and nothing has changed. "auto": Hutchinson's reading, bit for bit."""
    model = nn.Sequential(nn.Linear(4, 8), norm(), nn.Linear(8, 3))
    plain = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1), alpha=0.3, seed=11)
    plain.update_curvature(loss_of(model))
    for estimator in ("activation", "exact"):
        opt = wrap(model, estimator)
        before = copy.deepcopy(opt.state_dict())
        with pytest.raises(ValueError, match=reason) as error:
            opt.update_curvature(loss_of(model))
        assert "estimator='auto'" in str(error.value)
        assert "estimator='hutchinson'" in str(error.value)
        assert_same(opt.state_dict(), before)
        assert opt.last_estimate is None
    auto = wrap(model, "auto")
    auto.update_curvature(loss_of(model))
    assert reason in last(auto).why
    assert_same({**vars(last(auto)), "why": ""}, vars(last(plain)))


def test_exact_is_refused_beside_smooth_activations() -> None:
    model = scaled_tanh_net()
    opt = wrap(model, "exact")
    with pytest.raises(ValueError, match=r"estimator='exact'.*smooth activations"):
        opt.update_curvature(loss_of(model))


def test_batch_norm_in_eval_mode_is_served() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
    model.eval()
    opt = wrap(model, "exact")
    loss = loss_of(model)
    opt.update_curvature(loss)
    assert last(opt).value == pytest.approx(dense_trace(loss, model), rel=1e-9)


def test_hutchinson_is_the_default_and_a_model_changes_nothing() -> None:
    model, other = mlp(), mlp()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1), alpha=0.3)
    base = torch.optim.SGD(other.parameters(), lr=0.1)
    given = MetaCurvatureLR(base, alpha=0.3, model=other)
    assert (opt.estimator, given.estimator) == ("hutchinson", "hutchinson")
    assert hooks(other) == 0
    train_on_fresh(model, opt, 12)
    train_on_fresh(other, given, 12)
    assert_same(weights(other), weights(model))
    assert_same(given.state_dict(), opt.state_dict())
    assert_same(given.last_estimate, opt.last_estimate)
    assert last(given).why == ""


@pytest.mark.parametrize("estimator", IN_ACTIVATION_SPACE)
def test_without_strength_training_is_the_bases(estimator: str) -> None:
    bare_model, model = relu_net(torch.float32), relu_net(torch.float32)
    train_on_fresh(bare_model, torch.optim.SGD(bare_model.parameters(), lr=0.1), 6, curvature=False)
    train_on_fresh(model, wrap(model, estimator, alpha=0.0), 6)
    assert_same(weights(model), weights(bare_model))


# Which forward pass.


def test_other_passes_do_not_matter() -> None:
    """Under no_grad, with gradients, of another size, before and after the one that made the loss."""
    model = mlp(torch.float64)
    x, _ = fresh_batch(0, torch.float64)
    readings = []
    for others in (False, True):
        opt = wrap(model, n_hutchinson_samples=3)
        if others:
            with torch.no_grad():
                model(x[:3])
            model(x[:5]).sum()
        loss = generic_loss(model(x))
        if others:
            kept = model(x[:2])
            with torch.no_grad():
                model(x[:1])
            del kept
        assert opt.update_curvature(loss)
        readings.append(last(opt))
    assert_same(readings[1], readings[0])


def test_two_losses_of_two_passes() -> None:
    """As in adversarial training: each loss is measured by its own pass, and their sum by none."""
    model = mlp(torch.float64)
    x, _ = fresh_batch(0, torch.float64)
    for size in (8, 5):
        opt = wrap(model, n_hutchinson_samples=3)
        losses = {8: generic_loss(model(x)), 5: generic_loss(model(x[:5]))}
        opt.update_curvature(losses[size])
        alone = wrap(model, n_hutchinson_samples=3)
        alone.update_curvature(generic_loss(model(x[:size])))
        assert_same(opt.last_estimate, alone.last_estimate)
        both = wrap(model, "auto")
        both.update_curvature(losses[8] + losses[5])
        assert last(both).method == "hutchinson"


class Staged(nn.Module):
    """One of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 3)]).double()

    def forward(self, x: Tensor, stage: int) -> Tensor:
        h: Tensor = self.stages[stage](x)
        return h


def test_the_last_of_several_passes_counts() -> None:
    """Of passes side by side and one after another; their sizes tell them apart."""
    model = nn.Linear(4, 4).double()
    x, _ = fresh_batch(0, torch.float64)
    capture = StepCapture(model, model.parameters())
    capture.listen(True)
    first, second, third = model(x), model(x[:5]), model(model(x[:2]).repeat(2, 1))
    for total, samples in [
        (first.sum() + second.sum(), 5),
        (second.sum() + first.sum(), 5),
        (first.sum(), 8),
        (third.sum() + second.sum(), 4),
    ]:
        assert capture.find(total)[1] == samples


def test_the_last_pass_where_one_feeds_the_next() -> None:
    model = Staged()
    x, _ = fresh_batch(0, torch.float64)
    opt = wrap(model, "exact")
    loss = generic_loss(model(model(x, 0).relu(), 1))
    opt.update_curvature(loss)
    assert last(opt).value == pytest.approx(dense_trace(loss, model), rel=1e-9)


@pytest.mark.parametrize("estimator", IN_ACTIVATION_SPACE)
def test_gradient_accumulation_measures_the_first_micro_batch(estimator: str) -> None:
    model = relu_net()
    opt = wrap(model, estimator, update_freq=1)
    for step in range(3):
        opt.zero_grad()
        alone = wrap(model, estimator)
        alone.update_curvature(loss_of(model, 4 * step) / 4)
        for micro in range(4):
            loss = loss_of(model, 4 * step + micro) / 4
            assert opt.update_curvature(loss) is (micro == 0)
            loss.backward()
        if estimator != "activation":  # whose probes have gone on
            assert last(opt).value == last(alone).value
        opt.step()


def test_the_last_micro_batch_can_be_measured_instead() -> None:
    model = relu_net()
    opt = wrap(model, "exact")
    for micro in range(4):
        loss = loss_of(model, micro)
        if micro < 3:
            loss.backward()
    opt.update_curvature(loss)
    assert last(opt).value == pytest.approx(dense_trace(loss, model), rel=1e-9)


class TwoHeads(nn.Module):
    """Takes keywords and gives a tuple and a dict of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.body = relu_net()

    def forward(self, *, x: Tensor) -> Any:
        h = self.body(x)
        return {"logits": h, "parts": h.unbind(1)}


def test_structured_outputs() -> None:
    """A known loss needs no output. Another is refused: which part of the output it sees is not known."""
    model = TwoHeads()
    x, y = fresh_batch(0, torch.float64)
    opt = wrap(model, "exact")
    loss = F.cross_entropy(model(x=x)["logits"], y)
    opt.update_curvature(loss)
    assert last(opt).value == pytest.approx(dense_trace(loss, model), rel=1e-9)
    opt = wrap(model, n_hutchinson_samples=5)  # needs the samples, which are among the keywords
    opt.update_curvature(F.cross_entropy(model(x=x)["logits"], y))
    whole = estimate_trace(
        model,
        lambda output, target: F.cross_entropy(output["logits"], target),
        {"x": x},
        y,
        method="activation",
        n_samples=5,
        seed=11,
    )
    assert last(opt).value == pytest.approx(whole.value, rel=1e-12)
    opt = wrap(model, "exact")
    first, second, _ = model(x=x)["parts"]
    with pytest.raises(ValueError, match="no known form"):
        opt.update_curvature((first.exp() * second).mean())


class Loose(nn.Module):
    """Gives something that is no collection of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.body = relu_net()

    def forward(self, x: Tensor) -> Any:
        return lambda: self.body(x)


def not_called(model: nn.Module) -> Tensor:
    x, y = fresh_batch(0, torch.float64)
    return F.cross_entropy(nn.Sequential(*model.body.children())(x), y)


def unreadable_output(model: nn.Module) -> Tensor:
    x, y = fresh_batch(0, torch.float64)
    return F.cross_entropy(model(x)(), y)


@pytest.mark.parametrize("make_loss", [not_called, unreadable_output])
def test_a_loss_that_no_pass_made(make_loss: Callable[[nn.Module], Tensor]) -> None:
    model = Loose()
    opt = wrap(model, "exact")
    with pytest.raises(ValueError, match="does not come from a forward pass of model"):
        opt.update_curvature(make_loss(model))
    opt = wrap(model, "auto")
    opt.update_curvature(make_loss(model))
    assert last(opt).method == "hutchinson"
    assert "forward pass of model" in last(opt).why


class WithLoss(nn.Module):
    """Computes the loss itself, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = relu_net()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.body(x), y)


class SecondHalf(nn.Module):
    """Its output is the second result of the last operation."""

    def __init__(self) -> None:
        super().__init__()
        self.body = relu_net(classes=6)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.body(x).split([2, 4], dim=1)[1]
        return h


def test_an_output_that_is_one_of_several_results() -> None:
    model = SecondHalf()
    opt = wrap(model, "exact")
    loss = generic_loss(model(fresh_batch(0, torch.float64)[0]))
    opt.update_curvature(loss)
    assert last(opt).value == pytest.approx(dense_trace(loss, model), rel=1e-9)


def test_a_model_that_gives_the_loss() -> None:
    model = WithLoss()
    opt = wrap(model, "exact")
    loss = model(*fresh_batch(0, torch.float64))
    opt.update_curvature(loss)
    assert last(opt).value == pytest.approx(dense_trace(loss, model), rel=1e-9)


class Around(nn.Module):
    """Gives on what another model gives."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(x)


def test_two_optimizers_listen_to_the_same_output() -> None:
    """One hears a tensor, the other a tuple with that tensor: their marks do not mix."""

    class Tupled(Around):
        def forward(self, x: Tensor) -> Any:
            return (self.body(x),)

    outer = Tupled(relu_net())
    plain = MetaCurvatureLR(
        torch.optim.SGD(outer.parameters(), lr=0.1), model=outer.body, estimator="exact"
    )
    tupled = wrap(outer, "exact")
    loss = generic_loss(outer(fresh_batch(0, torch.float64)[0])[0])
    plain.update_curvature(loss)
    assert last(plain).value == pytest.approx(dense_trace(loss, outer), rel=1e-9)
    with pytest.raises(ValueError, match="no known form"):
        tupled.update_curvature(loss)


def test_a_compiled_model_is_heard() -> None:
    model = relu_net()
    opt = MetaCurvatureLR(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model=(compiled := torch.compile(model, backend="eager")),
        estimator="exact",
    )
    loss = loss_of(compiled)
    opt.update_curvature(loss)
    assert last(opt).value == pytest.approx(dense_trace(loss, model), rel=1e-9)


def test_a_hook_inside_a_compiled_model_does_not_break_its_graph() -> None:
    model = relu_net()
    opt = wrap(model, "auto")
    whole = nn.Sequential(model, nn.Tanh())
    loss_of(torch.compile(whole, backend="eager", fullgraph=True)).backward()
    opt.update_curvature(loss_of(whole))
    assert last(opt).method == "exact"


# The hook.


@pytest.mark.parametrize("estimator", IN_ACTIVATION_SPACE)
def test_the_hook_is_there_on_due_steps_only(estimator: str) -> None:
    model = relu_net()
    own = model.register_forward_hook(lambda *_: None)
    opt = wrap(model, estimator, update_freq=3)
    for step in range(8):
        due = step % 3 == 0
        assert hooks(model) == 1 + due
        loss = loss_of(model, step)
        assert opt.update_curvature(loss) is due
        assert hooks(model) == 1
        loss.backward()
        opt.step()
    own.remove()
    assert hooks(model) == 0


def test_the_hook_follows_update_freq_and_checkpoints() -> None:
    model = relu_net()
    opt = wrap(model)
    fresh = copy.deepcopy(opt.state_dict())
    train_on_fresh(model, opt, 1)
    assert hooks(model) == 0  # step 1 of 2
    saved = copy.deepcopy(opt.state_dict())
    opt.update_freq = 1
    assert hooks(model) == 1
    opt.update_freq = 1
    assert hooks(model) == 1
    opt.update_freq = 2
    assert hooks(model) == 0
    opt.load_state_dict(fresh)
    assert hooks(model) == 1
    opt.load_state_dict(saved)
    assert hooks(model) == 0
    with pytest.warns(UserWarning, match="begins afresh"):
        opt.load_state_dict(opt.optimizer.state_dict())  # of a bare base
    assert hooks(model) == 1
    assert opt.update_curvature(loss_of(model))


def test_a_step_without_a_reading_takes_the_hook_away() -> None:
    model = relu_net()
    opt = wrap(model)
    loss_of(model).backward()
    with pytest.warns(UserWarning, match="without a curvature reading"):
        opt.step()
    assert hooks(model) == 0
    loss_of(model).backward()
    opt.step()
    assert hooks(model) == 1


class Fails(nn.Module):
    """Raises when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.body = relu_net()
        self.fail = False

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.body(x)
        if self.fail:
            raise RuntimeError("from the model")
        return h


def test_exceptions_leave_one_hook() -> None:
    """In the model, in the reading, in the callback, in the base: the next step is what it would have been."""
    results = []
    for disturbed in (False, True):
        model = Fails()
        seen: list[UpdateRecord] = []
        opt = wrap(model, "exact", on_update=seen.append)
        for step in range(5):
            if disturbed:
                due = step % 2 == 0
                model.fail = True
                with pytest.raises(RuntimeError, match="from the model"):
                    loss_of(model, step)
                model.fail = False
                assert hooks(model) == due
                with pytest.raises(ValueError, match="finite") if due else contextlib.nullcontext():
                    opt.update_curvature(loss_of(model, step) * math.inf)
                assert hooks(model) == due
            train_on_fresh(model, opt, 1, start=step)
        results.append((weights(model), seen))
    assert_same(results[1], results[0])


def test_a_callback_that_raises_leaves_no_hook() -> None:
    model = relu_net()

    def fail(record: UpdateRecord) -> None:
        raise RuntimeError("from the callback")

    opt = wrap(model, on_update=fail)
    with pytest.raises(RuntimeError, match="from the callback"):
        opt.update_curvature(loss_of(model))
    assert hooks(model) == 0


def test_a_model_that_outlives_its_optimizer_loses_the_hook() -> None:
    model = relu_net()
    opt = wrap(model)
    gone = weakref.ref(opt)
    del opt
    assert gone() is None  # the hook does not hold it
    loss_of(model)
    assert hooks(model) == 0


def test_refused_arguments_leave_no_hook() -> None:
    model = relu_net()
    with pytest.raises(TypeError, match="optimizer must"):
        MetaCurvatureLR(model.parameters(), model=model, estimator="exact")  # type: ignore[arg-type]
    assert hooks(model) == 0


# What belongs to the user.


@pytest.mark.parametrize("estimator", IN_ACTIVATION_SPACE)
def test_a_reading_touches_nothing(estimator: str) -> None:
    """.grad, weights, modes, buffers, random numbers, parameter hooks; and the user's backward pass still runs."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    )
    model[1].eval()
    model[4].bias.requires_grad_(False)
    loss_of(model).backward()
    expected = copy.deepcopy([p.grad for p in model.parameters()])
    calls: list[int] = []
    model[0].weight.register_hook(lambda _: calls.append(1))
    opt = wrap(model, estimator, n_hutchinson_samples=3)
    held = [p.grad for p in model.parameters()]
    loss = loss_of(model)

    def belongings() -> dict[str, Any]:
        return {
            "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
            "state": copy.deepcopy(dict(model.state_dict())),
            "versions": [p._version for p in model.parameters()],
            "requires_grad": [p.requires_grad for p in model.parameters()],
            "training": [m.training for m in model.modules()],
            "random": torch.get_rng_state(),
            "grad mode": torch.is_grad_enabled(),
        }

    before = belongings()
    assert opt.update_curvature(loss)
    assert last(opt).method in ("exact", "activation")
    assert_same(belongings(), before)
    assert all(p.grad is g for p, g in zip(model.parameters(), held, strict=True))
    assert calls == []
    assert_same([p.grad for p in model.parameters()], expected)
    opt.zero_grad()
    loss.backward()
    assert calls == [1]


# Memory.


def loop_with_readings(model: nn.Module, opt: MetaCurvatureLR, step: int) -> None:
    train_on_fresh(model, opt, 1, start=step)


def loop_without_readings(model: nn.Module, opt: MetaCurvatureLR, step: int) -> None:
    """Passes with gradients that lead to no reading, as an evaluation without no_grad makes."""
    loss_of(model, step)


def loop_of_failures(model: nn.Module, opt: MetaCurvatureLR, step: int) -> None:
    with contextlib.suppress(ValueError):
        opt.update_curvature(loss_of(model, step) * math.nan)


@pytest.mark.filterwarnings("ignore:MetaCurvatureLR steps without:UserWarning")
@pytest.mark.parametrize("loop", [loop_with_readings, loop_without_readings, loop_of_failures])
def test_nothing_is_kept(loop: Callable[..., None]) -> None:
    """Outputs, and all that their graphs saved, are gone at once, without the garbage collector."""
    model = relu_net()
    opt = wrap(model, "auto", update_freq=1)
    outputs: list[weakref.ref[Tensor]] = []
    model.register_forward_hook(lambda *args: outputs.append(weakref.ref(args[2])))
    model[2].register_forward_hook(lambda *args: outputs.append(weakref.ref(args[2])))
    gc.disable()
    try:
        for step in range(100):
            loop(model, opt, step)
            assert all(output() is None for output in outputs), step
    finally:
        gc.enable()
    assert len(outputs) == 200


def test_a_dropped_model_is_gone() -> None:
    model = relu_net()
    opt = wrap(model)
    train_on_fresh(model, opt, 4)
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model, opt
        assert gone() is None
    finally:
        gc.enable()


# Copies and checkpoints.

COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
}


@pytest.fixture(params=COPIES)
def make_copy(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return COPIES[request.param]


@pytest.mark.parametrize("model_first", [True, False])
@pytest.mark.parametrize("steps", [0, 1, 2], ids=["fresh", "not due", "due"])
def test_a_copy_of_both_trains_on_alike(
    make_copy: Callable[[Any], Any], steps: int, model_first: bool
) -> None:
    model = mlp()
    opt = wrap(model, "activation")
    lr_scheduler.StepLR(opt, 1)  # patches step
    train_on_fresh(model, opt, steps)
    if model_first:
        other_model, other = make_copy((model, opt))
    else:
        other, other_model = make_copy((opt, model))
    assert hooks(other_model) == hooks(model) == (steps != 1)
    train_on_fresh(other_model, other, 5, start=steps)
    train_on_fresh(model, opt, 5, start=steps)
    assert_same(weights(other_model), weights(model))
    assert_same(other.state_dict(), opt.state_dict())
    assert_same(other.last_estimate, opt.last_estimate)
    assert hooks(other_model) == hooks(model) == (steps == 1)


def test_a_model_copied_alone_loses_the_hook(make_copy: Callable[[Any], Any]) -> None:
    """As a moving average of the weights does: the copy takes no part, and its first pass cleans up."""
    model = mlp()
    opt = wrap(model)
    other = make_copy(model)
    own = other.register_forward_hook(lambda *_: None)
    loss_of(other)
    assert hooks(other) == 1
    own.remove()
    assert hooks(other) == 0
    assert opt.update_curvature(loss_of(model))


def test_a_copied_optimizer_has_a_model_of_its_own(make_copy: Callable[[Any], Any]) -> None:
    model = mlp()
    opt = wrap(model)
    other = make_copy(opt)
    with pytest.raises(ValueError, match="does not come from a forward pass"):
        other.update_curvature(loss_of(model))
    assert opt.update_curvature(loss_of(model))
    assert hooks(model) == 0


def test_checkpoints_have_no_new_entries() -> None:
    model, other = mlp(), mlp()
    plain = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1))
    opt = wrap(other, "auto")
    assert curvature_state(opt).keys() == curvature_state(plain).keys()
    train_on_fresh(model, plain, 3)
    opt.load_state_dict(through_a_file(plain.state_dict()))  # what came before goes on
    assert curvature_state(opt) == curvature_state(plain)
    plain.load_state_dict(through_a_file(opt.state_dict()))


@pytest.mark.parametrize("estimator", IN_ACTIVATION_SPACE)
@pytest.mark.parametrize("stop", [4, 5], ids=["due", "not due"])
def test_resumed_training_equals_uninterrupted(estimator: str, stop: int) -> None:
    def make() -> tuple[nn.Module, MetaCurvatureLR]:
        model = relu_net(torch.float32)
        return model, wrap(model, estimator, n_hutchinson_samples=2, smoothing=0.5)

    whole_model, whole = make()
    train_on_fresh(whole_model, whole, 11)
    first_model, first = make()
    train_on_fresh(first_model, first, stop)
    saved = through_a_file({"model": first_model.state_dict(), "opt": first.state_dict()})
    model, opt = make()
    model.load_state_dict(saved["model"])
    opt.load_state_dict(saved["opt"])
    train_on_fresh(model, opt, 11 - stop, start=stop)
    assert_same(weights(model), weights(whole_model))
    assert_same(opt.state_dict(), whole.state_dict())
    assert_same(opt.last_estimate, whole.last_estimate)
    assert curvature_state(whole)["probes"] == 12  # 6 readings of 2, as with any estimator


RESUME = """
import sys, torch, metacurv
from torch import nn
saved = torch.load(sys.argv[1], weights_only=True)
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
model.load_state_dict(saved["model"])
base = torch.optim.SGD(model.parameters(), lr=0.1)
opt = metacurv.MetaCurvatureLR(
    base, alpha=0.3, update_freq=2, model=model, estimator="activation"
)
opt.load_state_dict(saved["opt"])
for x, y in saved["batches"]:
    opt.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    opt.update_curvature(loss)
    loss.backward()
    opt.step()
torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, sys.argv[2])
"""


@pytest.mark.slow
def test_resumed_in_a_new_process(tmp_path: Path) -> None:
    """Which has looked at no graph yet."""
    model = mlp()
    opt = wrap(model, seed=0)
    train_on_fresh(model, opt, 5)
    saved = {"model": model.state_dict(), "opt": opt.state_dict()}
    torch.save({**saved, "batches": [fresh_batch(s) for s in range(5, 10)]}, tmp_path / "saved.pt")
    train_on_fresh(model, opt, 5, start=5)
    package = Path(metacurv.__file__).parent.parent
    subprocess.run(
        [sys.executable, "-c", RESUME, tmp_path / "saved.pt", tmp_path / "resumed.pt"],
        check=True,
        cwd=package,
    )
    resumed = torch.load(tmp_path / "resumed.pt", weights_only=True)
    assert_same(dict(resumed["model"]), dict(model.state_dict()))
    assert_same(resumed["opt"], opt.state_dict())


# Beside everything else that a loop may have.


@pytest.mark.parametrize("estimator", IN_ACTIVATION_SPACE)
def test_parameter_groups_and_schedulers(estimator: str) -> None:
    """Parts are by parameter in the groups' order, and the schedule owns lr."""
    model = relu_net()
    first, *_, final = model.children()
    groups = [{"params": [*final.parameters()], "lr": 0.02}, {"params": [*first.parameters()]}]
    opt = MetaCurvatureLR(
        torch.optim.SGD(groups, lr=0.05), update_freq=2, model=model, estimator=estimator
    )
    scheduler = lr_scheduler.ExponentialLR(opt, 0.5)
    for step in range(3):
        train_on_fresh(model, opt, 1, start=step)
        scheduler.step()
        assert [g["lr"] for g in opt.param_groups] == [
            0.02 / 2 ** (step + 1),
            0.05 / 2 ** (step + 1),
        ]
    assert hooks(model) == 0
    assert opt.effective_lrs[0] < opt.param_groups[0]["lr"]
    # A group for the layer in the middle, now that readings go on.
    opt.add_param_group({"params": [*model[2].parameters()]})
    train_on_fresh(model, opt, 1)
    loss = loss_of(model)
    opt.update_curvature(loss)
    assert [*last(opt).per_parameter] == ["0", "1", "2", "3", "4", "5"]
    if estimator == "exact":
        assert last(opt).value == pytest.approx(dense_trace(loss, model), rel=1e-9)


def test_parameters_that_the_optimizer_does_not_step_are_left_out() -> None:
    model = relu_net()
    opt = MetaCurvatureLR(
        torch.optim.SGD(model[0].parameters(), lr=0.1), model=model, estimator="exact"
    )
    loss = loss_of(model)
    opt.update_curvature(loss)
    assert last(opt).value == pytest.approx(dense_trace(loss, model[0]), rel=1e-9)


def test_a_part_of_the_network_can_be_the_model() -> None:
    """What lies between its output and the loss counts as loss, if it has no parameters that are asked for."""
    body, frozen = relu_net(), nn.Linear(3, 3).double().requires_grad_(False)
    opt = wrap(body, "exact")
    loss = loss_of(nn.Sequential(body, nn.Tanh(), frozen))
    opt.update_curvature(loss)
    assert last(opt).value == pytest.approx(dense_trace(loss, body), rel=1e-9)


@pytest.mark.parametrize("estimator", IN_ACTIVATION_SPACE)
def test_autocast_and_grad_scaler(estimator: str) -> None:
    model = relu_net(torch.float32)
    opt = wrap(model, estimator, update_freq=1)
    scaler = GradScaler("cpu", init_scale=1024.0)
    x, y = fresh_batch(0)
    for _ in range(3):
        opt.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
            opt.update_curvature(loss)
        assert last(opt).method == ("activation" if estimator == "activation" else "exact")
        reference = relu_net()
        reference.load_state_dict(model.state_dict())
        if estimator != "activation":
            truth = dense_trace(F.cross_entropy(reference(x.double()), y), reference)
            assert last(opt).value == pytest.approx(truth, rel=0.05)
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_a_closure() -> None:
    model, other = relu_net(), relu_net()
    opt, plain = wrap(model, "exact"), wrap(other, "exact")
    for step in range(4):

        def closure(step: int = step) -> Tensor:
            opt.zero_grad()
            loss = loss_of(model, step)
            opt.update_curvature(loss)
            loss.backward()
            return loss

        opt.step(closure)
    train_on_fresh(other, plain, 4)
    assert_same(weights(model), weights(other))
    assert hooks(model) == 1


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
def test_the_seeds_loop_is_measured_by_hutchinson() -> None:
    """Gradients that carry a graph say nothing about activations: used on due steps, freed on all."""
    model, other = mlp(), mlp()
    opt = wrap(model, "activation")
    plain = MetaCurvatureLR(
        torch.optim.SGD(other.parameters(), lr=0.1), alpha=0.3, update_freq=2, seed=11
    )
    for step in range(4):
        for m, o in ((model, opt), (other, plain)):
            o.zero_grad()
            loss_of(m, step).backward(create_graph=True)
            o.step()
            assert not any(p.grad is not None and p.grad.requires_grad for p in m.parameters())
        assert hooks(model) == (step % 2 == 1)
    assert_same(weights(model), weights(other))
    assert last(opt).method == "hutchinson"
    assert "update_curvature" in last(opt).why


# Errors.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"estimator": "magic"}, ValueError, "estimator must be one of .*, got str 'magic'"),
        ({"estimator": None}, ValueError, "estimator must be one of .*, got NoneType None"),
        ({"estimator": ["exact"]}, ValueError, "estimator must be one of .*, got list"),
        (
            {"estimator": "activation"},
            ValueError,
            "model must be given with estimator='activation'",
        ),
        ({"estimator": "exact"}, ValueError, "model must be given with estimator='exact'"),
        ({"estimator": "auto"}, ValueError, "model must be given with estimator='auto'"),
        (
            {"estimator": "auto", "model": 3},
            TypeError,
            "model must be a torch.nn.Module, got int 3",
        ),
        ({"model": F.relu}, TypeError, "model must be a torch.nn.Module, got"),
        ({"model": nn.Linear(2, 2)}, ValueError, "model must have parameters that the optimizer"),
        ({"model": nn.ReLU(), "estimator": "auto"}, ValueError, "got a ReLU with none of them"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    """The optimizer is as it was."""
    base = torch.optim.SGD(mlp().parameters(), lr=0.1)
    keys = set(base.param_groups[0])
    with pytest.raises(error, match=message):
        MetaCurvatureLR(base, **options)
    assert set(base.param_groups[0]) == keys


@pytest.mark.parametrize("case", LOSSES)
def test_bad_losses(case: str) -> None:
    """With "auto" as with Hutchinson, which it comes to for a loss that no pass made."""
    make, error, message = LOSSES[case]
    w = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5], [0.1, 0.2, 0.3]]))
    model = nn.ParameterList([w])
    opt = wrap(model, "auto")
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(error, match=message):
        opt.update_curvature(make(w))
    assert_same(opt.state_dict(), before)
    assert hooks(model) == 1


@pytest.mark.parametrize("estimator", IN_ACTIVATION_SPACE)
def test_a_graph_that_is_gone_or_out_of_date(estimator: str) -> None:
    model = relu_net()
    opt = wrap(model, estimator)
    loss = loss_of(model)
    loss.backward()
    with pytest.raises(ValueError, match="loss has been freed: measure curvature before"):
        opt.update_curvature(loss)
    loss = loss_of(model)
    with torch.no_grad():
        model[4].weight.mul_(2)
    with pytest.raises(ValueError, match="out of date"):
        opt.update_curvature(loss)
    assert opt.update_curvature(loss_of(model))


def test_a_loss_without_a_second_derivative() -> None:
    model = relu_net()
    opt = wrap(model, "activation")
    with pytest.raises(NotTwiceDifferentiableError):
        opt.update_curvature(
            OnceDifferentiable.apply(model(fresh_batch(0, torch.float64)[0])).exp().mean()
        )
    assert opt.update_curvature(loss_of(model))


@pytest.mark.parametrize("estimator", ["hutchinson", *IN_ACTIVATION_SPACE[2:]])
def test_batch_norm_under_a_checkpoint_counts_no_batches_of_a_reading(estimator: str) -> None:
    inner = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
    model = nn.Sequential(Checkpointed(inner), nn.Linear(6, 3)).double()
    opt = wrap(model, estimator)
    loss = loss_of(model)
    before = {name: value.clone() for name, value in model.named_buffers()}
    assert opt.update_curvature(loss)
    assert_same(dict(model.named_buffers()), before)
    loss.backward()
