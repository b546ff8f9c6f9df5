"""MetaCurvatureLR: any torch optimizer, with its learning rate set by measured curvature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metacurv import _validate
from metacurv.directional.control import DirectionalControl
from metacurv.directional.record import DirectionalRecord
from metacurv.estimators.state import recording
from metacurv.estimators.trace_estimate import TraceEstimate
from metacurv.rules.directional import DirectionalRule
from metacurv.rules.reciprocal import ReciprocalRule
from metacurv.trace_control import Estimator, TraceControl
from metacurv.wrapper import OptimizerWrapper

LossFunction = Callable[[Any, Any], Tensor]


class MetaCurvatureLR(OptimizerWrapper):
    """Wraps an optimizer and sets its learning rate from measured curvature.

    **rule="directional"** finds and follows a learning rate by itself: on few steps it measures, on a batch that the step
    did not use, the slope n and the curvature d of the loss along the optimizer's own step u, and moves the rate towards the
    edge where lr d / n says that progress ends. The training loop stays as it was::

        opt = MetaCurvatureLR(torch.optim.Adam(model.parameters()), rule="directional",
                              model=model, loss_fn=loss_fn, probe=train_loader)

    The base's lr only gives the ratios between parameter groups, and what a scheduler does to it later multiplies the rate
    found.

    **rule="reciprocal"** is that of the experiment this package starts from:  lr <- lr / (1 + alpha max(tr H, 0)), tr H the
    trace of the loss's Hessian. The learning rates in ``param_groups`` stay the user's and the scheduler's: the rate is
    applied inside ``step`` and taken back after it. ``group["lr_scale"]`` holds the factor for logs. Decoupled weight decay
    (AdamW) shrinks with the effective rate, as it does under any schedule. Two ways to supply the loss::

        opt.zero_grad()                          opt.zero_grad()
        loss = loss_fn(model(x), y)              loss = loss_fn(model(x), y)
        opt.update_curvature(loss)  # new line   loss.backward(create_graph=True)
        loss.backward()                          opt.step()
        opt.step()

    On the right, gradients that carry a graph are used on due steps and freed on all steps. The left is preferred: torch warns
    about the right one, which builds the graph on every step. Pass the loss before GradScaler scales it. With gradient
    accumulation the first micro-batch of a due step is measured.

    Args:
        optimizer: any torch optimizer that steps from gradients (not LBFGS). Its parameter groups are used in place.
        rule: "reciprocal", "directional", or a ``DirectionalRule`` with settings of its own.
        model: what the loop calls for its outputs. The directional rule calls it in eval mode. The reciprocal rule needs it for
            estimators other than "hutchinson": while a step is due, a forward hook on it finds the pass that made the loss. A
            ``DistributedDataParallel`` model makes all ranks take the mean of their readings and so come to one rate; without
            it each rank follows its own loss, and the copies of the model drift apart.
        seed: int in [0, 2^64) of probes and probe batches; the global random state is not used.
        backend: "auto", "native" or "reference" (see ``metacurv.ops``).
        on_update: called with an ``UpdateRecord`` or ``DirectionalRecord`` after every reading (on CUDA this waits for the
            device).
        loss_fn: (directional) of the model's output and targets; a scalar, twice differentiable in the output (the first
            ``step`` raises ``NotTwiceDifferentiableError`` otherwise, and leaves all as it was).
        probe: (directional) where the batches to measure on come from: a ``DataLoader``, of whose data set it draws in an
            order of its own (one with a sampler that chooses is iterated over); a list of (inputs, targets) pairs; any other
            iterable of them, begun again at its end; or a function that returns one. Training data, or held-out data with
            ``DirectionalRule.held_out()``, which then stops training early by itself. Tuples of inputs are passed to the model
            as positional arguments, mappings as keyword arguments. What it draws from the global generators is seeded by
            ``seed`` and the number of batches before.
        horizon: (directional) number of steps of the training to come, over the last part of which the rate goes to zero.
            Steps that a GradScaler skips do not count. More steps than that keep the last rate, with a warning.
        average: (directional) keep an average of the iterates, for ``averaged_parameters``, and seek the rate that serves it.
            With ``horizon`` the parameters are set to the average once, where the finish begins, and go on from there.
        alpha: (reciprocal, as all below) strength of the rule, >= 0, in units of 1 / trace.
        update_freq: optimizer steps between readings, >= 1; step 0 is due.
        n_hutchinson_samples: probes in a reading, >= 1; of "activation" too, where a probe is one backward pass to the layers.
        smoothing: decay in [0, 1) of a bias-corrected moving average of the trace; 0 is the original rule.
        estimator: "hutchinson" draws probes in parameter space, for any loss. The others reuse the step's own forward pass and
            add only backward passes to the layers; ``estimate_trace`` says where they are right. "activation" draws samples
            with much less noise; "exact", for networks that are linear in pieces and for plain stacks of layers, has none.
            "auto" takes exact where that needs few columns, else activation, and hutchinson where neither is right:
            ``last_estimate.method`` and ``.why`` tell.
            Gradients that carry a graph (on the right above) are always measured by hutchinson.

    Raises:
        TypeError, ValueError: a wrong argument; the optimizer is then as it was.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1), alpha=0.5)
        >>> loss = model(torch.ones(1, 2)).square().mean()  # H = 2 x x' over (w, b): trace 6, plus cross terms of the probe
        >>> opt.update_curvature(loss)
        True
        >>> loss.backward(); opt.step()
        >>> opt.effective_lrs[0] < 0.1
        True
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        alpha: float = 1e-2,
        update_freq: int = 10,
        n_hutchinson_samples: int = 1,
        seed: int = 0,
        rule: str | DirectionalRule = ReciprocalRule.name,
        smoothing: float = 0.0,
        on_update: Callable[[Any], None] | None = None,
        backend: str = "auto",
        model: nn.Module | None = None,
        estimator: Estimator = "hutchinson",
        loss_fn: LossFunction | None = None,
        probe: Any = None,
        horizon: int | None = None,
        average: bool = False,
    ) -> None:
        super().__init__(optimizer)
        if on_update is not None and not callable(on_update):
            raise TypeError(f"on_update must be callable, got {_validate.describe(on_update)}")
        self._trace: TraceControl | None = None
        self._directional: DirectionalControl | None = None
        if isinstance(rule, DirectionalRule) or rule == DirectionalRule.name:
            _refuse_arguments(
                ReciprocalRule.name,
                DirectionalRule.name,
                alpha=alpha,
                update_freq=update_freq,
                n_hutchinson_samples=n_hutchinson_samples,
                smoothing=smoothing,
                estimator=estimator,
            )
            self._directional = DirectionalControl(
                optimizer,
                rule if isinstance(rule, DirectionalRule) else DirectionalRule(),
                model=model,
                loss_fn=loss_fn,
                probe=probe,
                horizon=horizon,
                average=average,
                seed=seed,
                backend=backend,
                on_update=on_update,
            )
        elif rule == ReciprocalRule.name:
            _refuse_arguments(
                DirectionalRule.name,
                ReciprocalRule.name,
                loss_fn=loss_fn,
                probe=probe,
                horizon=horizon,
                average=average,
            )
            self._trace = TraceControl(
                optimizer,
                alpha=alpha,
                update_freq=update_freq,
                n_hutchinson_samples=n_hutchinson_samples,
                seed=seed,
                smoothing=smoothing,
                on_update=on_update,
                backend=backend,
                model=model,
                estimator=estimator,
            )
        else:
            raise ValueError(
                f"rule must be {ReciprocalRule.name!r}, {DirectionalRule.name!r} or a DirectionalRule, got "
                f"{_validate.describe(rule)}"
            )

    @property
    def _control(self) -> TraceControl | DirectionalControl:
        control = self._trace or self._directional
        assert control is not None
        return control

    def _traced(self, asked: str) -> TraceControl:
        if self._trace is None:
            raise AttributeError(f"{asked} belongs to rule='reciprocal', got rule='directional'")
        return self._trace

    def _directed(self, asked: str) -> DirectionalControl:
        if self._directional is None:
            raise AttributeError(f"{asked} belongs to rule='directional', got rule='reciprocal'")
        return self._directional

    # Of both rules.

    @property
    def rule(self) -> ReciprocalRule | DirectionalRule:
        """The rule and its settings."""
        return self._control.rule

    @property
    def seed(self) -> int:
        """Of the probes or the probe batches."""
        return self._control.seed

    @property
    def on_update(self) -> Callable[[Any], None] | None:
        """Called after every reading."""
        return self._control.on_update

    @on_update.setter
    def on_update(self, value: Callable[[Any], None] | None) -> None:
        self._control.on_update = value

    @property
    def effective_lrs(self) -> list[float]:
        """What the next ``step`` will use, for every parameter group (on CUDA this waits for the device)."""
        return self._control.effective_lrs

    @property
    def skipped_readings(self) -> int:
        """Readings that were not finite and so changed nothing."""
        return self._control.skipped_readings

    # Of the directional rule.

    @property
    def history(self) -> list[DirectionalRecord]:
        """All readings since the start or the last ``load_state_dict`` (on CUDA this waits for the device)."""
        return self._directed("history").history

    @contextmanager
    def averaged_parameters(self) -> Iterator[None]:
        """Within the ``with`` block the parameters are the average of the iterates; ``average=True`` keeps it.

        Over the last part of a horizon, which goes on from the average, they are what they are.

        Evaluate or save the model inside it; no step may be taken there. Batch norm's statistics are those of the last iterate:
        ``torch.optim.swa_utils.update_bn`` makes the average's.

        Raises:
            ValueError: ``average`` is False.
        """
        with self._directed("averaged_parameters").averaged_parameters():
            yield

    # Of the reciprocal rule.

    @property
    def update_freq(self) -> int:
        """Optimizer steps between readings, >= 1."""
        return self._traced("update_freq").update_freq

    @update_freq.setter
    def update_freq(self, value: int) -> None:
        self._traced("update_freq").update_freq = value

    @property
    def n_hutchinson_samples(self) -> int:
        """Probes in a reading, >= 1."""
        return self._traced("n_hutchinson_samples").n_hutchinson_samples

    @n_hutchinson_samples.setter
    def n_hutchinson_samples(self, value: int) -> None:
        self._traced("n_hutchinson_samples").n_hutchinson_samples = value

    @property
    def estimator(self) -> Estimator:
        """What measures the loss that ``update_curvature`` is given."""
        return self._traced("estimator").estimator

    @property
    def last_estimate(self) -> TraceEstimate | None:
        """The latest reading, or None before the first (and after loading a checkpoint)."""
        return self._traced("last_estimate").last_estimate

    def update_curvature(self, loss: Tensor) -> bool:
        """Measures the curvature of ``loss`` if this step is due, and sets the scale that the next ``step`` uses.

        Call it between the forward and the backward pass. Steps that are not due cost one comparison. The directional rule
        measures on its own batches inside ``step`` and has no use for the loss; the call then does nothing.

        Args:
            loss: one element with a graph, before any loss scaling.

        Returns:
            Whether a reading was taken. At most one is taken between two steps.

        Raises:
            TypeError, ValueError: ``loss`` is no finite scalar with a graph that reaches the parameters (on CUDA with a
                ``capturable`` base a loss that is not finite is skipped instead: looking at it would wait for the device).
            ValueError: ``estimator`` is "activation" or "exact", which is not right for this model and loss, or ``loss`` does
                not come from a forward pass of ``model`` since the step became due. The message says what to use instead.
            NotTwiceDifferentiableError: the graph has an operation without a second derivative.
        """
        return False if self._trace is None else self._trace.update_curvature(loss)

    # What OptimizerWrapper asks for.

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        with recording():
            self._control.step()
        return result

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the base; its parameters get the next parameter numbers.

        Raises:
            TypeError, ValueError: a parameter whose curvature cannot be measured; nothing is added.
        """
        held = [tensor for group in self.param_groups for tensor in group["params"]]
        super().add_param_group(
            param_group
        )  # torch's own checks first: what it adds is well formed
        added = self.param_groups[-1]["params"]
        try:
            for index, tensor in enumerate(added):
                _validate.real_tensor(f"param_group['params'][{index}]", tensor)
            _validate.same_device("parameters", [*held[:1], *added])
            self._control.group_added()
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _own_state(self) -> dict[str, Any]:
        return self._control.own_state()

    def _checked_own_state(self, state: Any) -> Callable[[], None]:
        return self._control.checked_own_state(state)

    def __repr__(self) -> str:
        return f"MetaCurvatureLR({self._control.describe()},\n{self.optimizer!r})"


def _refuse_arguments(of: str, rule: str, **given: Any) -> None:
    """Raises ValueError where an argument of rule ``of`` is not at its default, since ``rule`` would not look at it."""
    parameters = inspect.signature(MetaCurvatureLR.__init__).parameters
    for name, value in given.items():
        default = parameters[name].default
        if type(value) is not type(default) or value != default:
            raise ValueError(
                f"{name} must be left out with rule={rule!r}; rule={of!r} takes it, got {_validate.describe(value)}; "
                f"did you mean rule={of!r}?"
            )
