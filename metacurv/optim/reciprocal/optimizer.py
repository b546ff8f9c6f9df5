"""The optimizer class of the reciprocal rule, which ``MetaCurvatureLR`` makes where it gets no probe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from metacurv import _validate
from metacurv.estimators.problem.results import TraceEstimate
from metacurv.optim.group_parameters import all_parameters
from metacurv.optim.meta_curvature_lr import MetaCurvatureLR
from metacurv.optim.reciprocal.control import TraceControl
from metacurv.optim.reciprocal.readings import Estimator, Readings
from metacurv.optim.reciprocal.record import UpdateRecord
from metacurv.optim.reciprocal.rule import ReciprocalRule
from metacurv.processes.ranks import Ranks


class ReciprocalLR(MetaCurvatureLR, rule=ReciprocalRule.name):
    """Shrinks the learning rate as the trace of the loss's Hessian grows: lr / (1 + alpha max(tr H, 0)).

    In the experiment that the package starts from it lost to plain Adam, since the trace grows during training;
    ``DirectionalLR`` is the rule that finds a rate. The trace of every ``update_freq``-th step is measured, either from the
    loss that ``update_curvature`` is given (left), or from gradients that carry a graph (right):

        opt.zero_grad()                          opt.zero_grad()
        loss = loss_fn(model(x), y)              loss = loss_fn(model(x), y)
        opt.update_curvature(loss)               loss.backward(create_graph=True)
        loss.backward()                          opt.step()
        opt.step()

    The left is preferred: torch warns about the right one, which builds the graph on every step (the wrapper frees it on every
    step, so nothing leaks). Pass the loss before ``GradScaler`` scales it. With gradient accumulation the first micro-batch of
    a measured step is used. Decoupled weight decay (AdamW) shrinks with the effective rate, as it does under any schedule.

    Args:
        optimizer: the base optimizer, any of torch that steps from gradients (not LBFGS). Its groups are used in place.
        alpha: the strength of the rule, >= 0, in units of one over the trace.
        update_freq: the number of optimizer steps from one reading to the next, >= 1; the first step is measured.
        n_hutchinson_samples: the number of probes in a reading, >= 1; with "activation" the number of backward passes.
        smoothing: the decay, in [0, 1), of a bias-corrected moving average of the trace; 0 is the original rule.
        estimator: "hutchinson" draws probes in parameter space and serves any loss. The others need ``model``, reuse the step's
            own forward pass and add only backward passes to the layers: "activation" draws samples with much less noise;
            "exact", for networks that are linear in pieces and for plain stacks of layers, has no noise; "auto" takes exact
            where that needs few passes, else activation, and hutchinson where neither is right: ``last_estimate.method`` and
            ``.why`` tell. Gradients that carry a graph are always measured by hutchinson.
        model: what the loop calls for its outputs. The estimators other than "hutchinson" need it: while a step is to be
            measured, a forward hook on it finds the pass that made the loss.
        rule: "reciprocal", for whoever wants to say it.
        seed: an integer in [0, 2^64) from which the probes are drawn; the global random state is not used.
        backend: "auto", "native" or "reference" (see ``metacurv.ops``).
        on_update: is called with an ``UpdateRecord`` after every reading (on CUDA this waits for the device).
        process_group: the ranks that read together, and hold one rate: None for all processes where ``torch.distributed`` is
            initialised (the model's own group where it is a ``DistributedDataParallel``); a group of ``torch.distributed``;
            or False for this process alone.

    Raises:
        TypeError: an argument is of the wrong type; the optimizer is then as it was.
        ValueError: an argument is out of range, or does not fit the others; the optimizer is then as it was.
    """

    _control: TraceControl

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        alpha: float = 1e-2,
        update_freq: int = 10,
        n_hutchinson_samples: int = 1,
        smoothing: float = 0.0,
        estimator: Estimator = "hutchinson",
        model: nn.Module | None = None,
        rule: Literal["reciprocal"] = ReciprocalRule.name,
        seed: int = 0,
        backend: str = "auto",
        on_update: Callable[[UpdateRecord], None] | None = None,
        process_group: Any = None,
    ) -> None:
        super().__init__(optimizer)
        if rule != ReciprocalRule.name:
            raise ValueError(
                f"rule must be {ReciprocalRule.name!r} for a ReciprocalLR, got {_validate.describe(rule)}"
            )
        self._control = TraceControl(
            optimizer,
            ReciprocalRule(alpha, backend),
            Readings(model, all_parameters(optimizer), estimator),
            Ranks(model, process_group),
            update_freq=_validate.integer("update_freq", update_freq, low=1),
            n_hutchinson_samples=_validate.integer(
                "n_hutchinson_samples", n_hutchinson_samples, low=1, high=1 << 32
            ),
            smoothing=smoothing,
            seed=_validate.seed(seed),
            on_update=_validate.callback("on_update", on_update),
        )

    @property
    def rule(self) -> ReciprocalRule:
        """The rule, with its settings."""
        return self._control.rule

    @property
    def on_update(self) -> Callable[[UpdateRecord], None] | None:
        """The function that is called after every reading, or None."""
        return self._control.on_update

    @on_update.setter
    def on_update(self, value: Callable[[UpdateRecord], None] | None) -> None:
        self._control.on_update = _validate.callback("on_update", value)

    @property
    def update_freq(self) -> int:
        """The number of optimizer steps from one reading to the next, >= 1."""
        return self._control.update_freq

    @update_freq.setter
    def update_freq(self, value: int) -> None:
        self._control.update_freq = _validate.integer("update_freq", value, low=1)
        self._control.listen_if_due()

    @property
    def n_hutchinson_samples(self) -> int:
        """The number of probes in a reading, >= 1."""
        return self._control.n_hutchinson_samples

    @n_hutchinson_samples.setter
    def n_hutchinson_samples(self, value: int) -> None:
        checked = _validate.integer("n_hutchinson_samples", value, low=1, high=1 << 32)
        self._control.n_hutchinson_samples = checked

    @property
    def estimator(self) -> Estimator:
        """The name of the estimator that measures the loss given to ``update_curvature``."""
        return self._control.readings.estimator

    @property
    def last_estimate(self) -> TraceEstimate | None:
        """The latest reading, or None before the first (and after loading a checkpoint)."""
        return None if self._control.last is None else self._control.last.estimate()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients, as the base optimizer does.

        Args:
            set_to_none: True sets them to None, False to zeros.
        """
        if set_to_none:
            self._control.forget_gradients()
        super().zero_grad(set_to_none)

    def update_curvature(self, loss: Tensor) -> bool:
        """Measures the curvature of ``loss`` if this step is to be measured, and sets the scale that the next ``step`` uses.

        Call it between the forward and the backward pass. On other steps it costs one comparison.

        Args:
            loss: one element with a graph, before any loss scaling.

        Returns:
            True where a reading was taken. At most one is taken between two steps.

        Raises:
            TypeError: ``loss`` is no real tensor.
            ValueError: ``loss`` is not a finite scalar with a graph that reaches the parameters (on CUDA with a ``capturable``
                base a loss that is not finite is skipped instead: looking at it would wait for the device). Or ``estimator``
                is "activation" or "exact", which is not right for this model and loss, or ``loss`` does not come from a
                forward pass of ``model`` since the last step; the message says what to use instead.
            NotTwiceDifferentiableError: the graph has an operation without a second derivative.
        """
        return self._control.update_curvature(loss)
