"""The optimizer class of the directional rule, which ``MetaCurvatureLR`` makes where it gets a probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from metacurv import _validate
from metacurv.optim.directional.control import DirectionalControl
from metacurv.optim.directional.history import History
from metacurv.optim.directional.probe_batches import ProbeBatches
from metacurv.optim.directional.probe_model import ProbeModel
from metacurv.optim.directional.record import DirectionalRecord
from metacurv.optim.directional.rule import DirectionalRule
from metacurv.optim.meta_curvature_lr import MetaCurvatureLR


class DirectionalLR(MetaCurvatureLR, rule=DirectionalRule.name):
    """Finds a learning rate by itself, from slope and curvature of the loss along the optimizer's step and from its noise.

    On the first 20 steps it measures, on batches of ``probe`` that the step did not use, the slope n = g . u and the curvature
    d = u . G u of the loss along the base optimizer's step u for a rate of 1 (g is the gradient, G the Gauss-Newton matrix),
    and the rate moves towards lr d / n = 2, where progress ends. Then the training begins again, with a warm-up to that rate
    over 0.1 of the horizon; over the next 0.15 the rate settles where noise costs 2 % of the progress. It is held, and over
    the last 0.4 it falls to zero while the parameters go on from the average of the iterates. A guard looks at the loss twenty
    times and takes a training that has died back to where it was well. Where the first slopes are noise, rates race instead:
    they take turns in the training loop, and their losses on the same probe batches decide.

    The base's lr is not used as a rate: the lrs of several groups only give the ratios between them, and what a scheduler does
    to them multiplies the rate that was found. Slope and curvature along the step are those of Roulet et al. 2024, "Stepping on
    the edge" (there measured on the training batch); the average is that of Shamir and Zhang 2013. The page "The learning-rate
    rules" of the documentation explains the rule.

    Memory beside the base's: a copy of the parameters for the average and one for the guard; in a race also copies of
    parameters, optimizer state, buffers and average, one for each candidate and one of the race's beginning.

    Args:
        optimizer: the base optimizer, any of torch that steps from gradients and takes its lr for the length of a step (not
            LBFGS, Rprop, ASGD or ``maximize=True``). Its groups are used in place.
        model: what the loop trains; the rule calls it in eval mode on probe batches.
        loss_fn: a function of the model's output and the targets that returns a scalar and is twice differentiable in the
            output (the first ``step`` raises ``NotTwiceDifferentiableError`` otherwise, and leaves all as it was).
        probe: where the probe batches come from: a ``DataLoader``, from whose data set the rule draws batches of the
            loader's size in an order of its own (a loader with a sampler that chooses is iterated over); a list of pairs
            (inputs, targets); any other iterable of them, begun again at its end; or a function that returns the next pair.
            Pass training data, or held-out data with ``DirectionalRule.held_out()``, which ends where the held-out loss was
            least. A tuple of inputs is passed to the model as positional arguments, a mapping as keyword arguments. While a
            batch is drawn, the global generators are seeded by ``seed`` and the number of batches before. A loader that
            Accelerate has prepared is seen through. "later" stands for the training data that a callback of
            ``metacurv.integrations`` hands over. The first batches (8 or more, until they have 512 examples or are a hundredth
            of the horizon) are kept to judge by.
        horizon: the number of optimizer steps of the training to come, >= 1. Steps that a ``GradScaler`` skips do not count,
            the early ones and those of all candidates do. More steps than that keep the last rate, with a warning. A horizon
            below 167 steps is too short for a race. Without a horizon the rate is not brought to zero, and settles again
            whenever the number of steps has doubled, from 2000 on; with ``race=True`` rates race again then.
        average: True keeps an average of the iterates, to settle by, for ``averaged_parameters`` and the end of the training.
            False saves its memory: the early rate is then held without settling, and the finish begins from the iterate and
            takes the last half of the horizon.
        race: see ``DirectionalRule``, as for ``max_lr`` and ``per_group``; None for what ``rule`` says.
        max_lr: a cap on the learning rate of every parameter group.
        per_group: True gives each parameter group a rate of its own.
        rule: "directional", or a ``DirectionalRule`` with settings of its own.
        seed: an integer in [0, 2^64) from which the probe batches are drawn; the global random state is not used.
        on_update: is called with a ``DirectionalRecord`` at every event (a reading, a look at the noise or of the guard, a
            race's end), as ``log_rates`` makes one.
        process_group: the ranks that read together, and hold one rate: None for all processes where ``torch.distributed`` is
            initialised (the model's own group where it is a ``DistributedDataParallel``); a group of ``torch.distributed``;
            or False for this process alone.
        batch_fn: a function that makes a pair (inputs, targets) of what ``probe`` gives. Without it pairs are taken as they
            are, and of a mapping with "labels" or "label" these are the targets and the rest the inputs.
        output: a function that picks from the model's output what ``loss_fn`` gets, such as ``lambda out: out.logits``.

    Raises:
        TypeError: an argument is of the wrong type; the optimizer is then as it was.
        ValueError: an argument is out of range, or does not fit the others; the optimizer is then as it was.

    Examples:
        >>> import torch
        >>> data = [(torch.eye(4), torch.tensor([0, 1, 0, 1]))]
        >>> model, loss_fn = torch.nn.Linear(4, 2), torch.nn.CrossEntropyLoss()
        >>> opt = DirectionalLR(torch.optim.SGD(model.parameters()), model=model, loss_fn=loss_fn, probe=data, horizon=50)
        >>> for _ in range(50):
        ...     for x, y in data:
        ...         opt.zero_grad()
        ...         loss_fn(model(x), y).backward()
        ...         opt.step()
        >>> loss_fn(model(x), y).item() < 0.2
        True
        >>> opt.history[0].step, len(opt.history) > 5
        (0, True)
    """

    _control: DirectionalControl

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        model: nn.Module | None = None,
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        probe: Any = None,
        horizon: int | None = None,
        average: bool = True,
        race: bool | int | Literal["auto"] | None = None,
        max_lr: float | None = None,
        per_group: bool | None = None,
        rule: Literal["directional"] | DirectionalRule = DirectionalRule.name,
        seed: int = 0,
        on_update: Callable[[DirectionalRecord], None] | None = None,
        process_group: Any = None,
        batch_fn: Callable[[Any], Any] | None = None,
        output: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(optimizer)
        if rule != DirectionalRule.name and not isinstance(rule, DirectionalRule):
            raise ValueError(
                f"rule must be {DirectionalRule.name!r} or a DirectionalRule for DirectionalLR, got {_validate.describe(rule)}"
            )
        settings = rule if isinstance(rule, DirectionalRule) else DirectionalRule()
        given = {"race": race, "max_lr": max_lr, "per_group": per_group}
        changed: dict[str, Any] = {n: value for n, value in given.items() if value is not None}
        seed = _validate.seed(seed)
        self._control = DirectionalControl(
            optimizer,
            replace(settings, **changed),
            probes=ProbeBatches(probe, seed, _validate.callback("batch_fn", batch_fn)),
            model=ProbeModel(model, loss_fn, optimizer, process_group, output),
            history=History(_validate.callback("on_update", on_update)),
            seed=seed,
            horizon=horizon,
            average=average,
        )

    @property
    def rule(self) -> DirectionalRule:
        """The rule, with its settings."""
        return self._control.rule

    @property
    def on_update(self) -> Callable[[DirectionalRecord], None] | None:
        """The function that is called at every event, or None."""
        return self._control.history.on_update

    @on_update.setter
    def on_update(self, value: Callable[[DirectionalRecord], None] | None) -> None:
        self._control.history.on_update = _validate.callback("on_update", value)

    @property
    def waits_for_probe(self) -> bool:
        """True while ``hand_over`` has still to give the probe that ``probe="later"`` stands for."""
        return self._control.is_to_come

    def hand_over(
        self,
        probe: Any,
        horizon: int | None = None,
        *,
        convert: Callable[[Any], Any] | None = None,
    ) -> None:
        """Gives the probe that ``probe="later"`` stands for, before the first step; frameworks' callbacks call it.

        Args:
            probe: as for the class.
            horizon: the number of steps; None to leave it as it is.
            convert: makes of a batch what the training loop makes of it, such as a cast of its tensors.

        Raises:
            TypeError: ``probe`` is of a type that no batches can be drawn from.
            ValueError: ``probe`` is empty, ``horizon`` out of range, or a probe was there already.
        """
        if not self.waits_for_probe:
            raise ValueError(
                "probe must be 'later' to be handed over, got an optimizer that has one"
            )
        # Before the probe is taken, so that a call that failed can be made again.
        if horizon is not None:
            horizon = _validate.integer("horizon", horizon, low=1)
        self._control.hand_over(probe, horizon, convert)

    @property
    def history(self) -> list[DirectionalRecord]:
        """All events since the start or the last ``load_state_dict``."""
        return list(self._control.history.records)

    def eval(self) -> None:
        """Shows the parameters that are to be evaluated or saved; ``MetaCurvatureLR.eval`` says more.

        Where the model holds the average, loading a checkpoint puts the iterate in its place: load the model first.
        """
        self._control.shown.evaluate(True)

    def train(self) -> None:
        """Puts the iterate back that ``eval`` took away."""
        self._control.shown.evaluate(False)

    @contextmanager
    def averaged_parameters(self) -> Iterator[None]:
        """Puts the average of the iterates into the parameters for the ``with`` block, and the iterate back after it.

        Evaluate or save the model inside the block; no step may be taken there. Over the last part of a horizon, which goes on
        from the average, the parameters are what they are. Batch norm's statistics stay those of the last iterate:
        ``torch.optim.swa_utils.update_bn`` makes the average's, on a copy of the model that was made inside the block.

        Raises:
            ValueError: no average is kept (``average`` is False).
        """
        with self._control.shown.averaged():
            yield
