"""The optimizer class of the directional rule, which ``MetaCurvatureLR`` makes where it gets a probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from metacurv import _validate
from metacurv.directional.control import DirectionalControl
from metacurv.directional.record import DirectionalRecord
from metacurv.optimizer import MetaCurvatureLR
from metacurv.rules.directional import DirectionalRule


class DirectionalLR(MetaCurvatureLR, rule=DirectionalRule.name):
    """Finds a learning rate by itself, from slope and curvature of the loss along the optimizer's own step.

    On few steps it measures, on a batch of ``probe`` that the step did not use, the slope n = g . u and the curvature
    d = u . G u of the loss along the base optimizer's step u for a rate of 1 (g is the gradient, G the Gauss-Newton matrix). To
    second order, lr n is what the step gains and lr^2 d / 2 what it loses again, so that progress ends at lr d / n = 2. The
    rule moves the rate towards that edge during the first quarter of the horizon and then holds it; in the last 15 % the
    parameters go on from the average of the iterates while the rate falls to zero. The training loop stays as it was.

    The base's lr is not used as a rate: the lrs of several groups only give the ratios between them, and what a scheduler does
    to them multiplies the rate that was found. Slope and curvature along the step are those of Roulet et al. 2024, "Stepping on
    the edge" (there measured on the training batch); the page "The rule" of the documentation derives the controller.

    Args:
        optimizer: the base optimizer, any of torch that steps from gradients and takes its lr for the length of a step (not
            LBFGS, Rprop, ASGD or ``maximize=True``). Its groups are used in place.
        model: what the loop trains; the rule calls it in eval mode on probe batches. With a ``DistributedDataParallel`` model
            all ranks come to one rate.
        loss_fn: a function of the model's output and the targets that returns a scalar and is twice differentiable in the
            output (the first ``step`` raises ``NotTwiceDifferentiableError`` otherwise, and leaves all as it was).
        probe: where the probe batches come from: a ``DataLoader``, from whose data set the rule draws batches of the
            loader's size in an order of its own (a loader with a sampler that chooses is iterated over); a list of pairs
            (inputs, targets); any other iterable of them, begun again at its end; or a function that returns the next pair.
            Pass training data, or held-out data with ``DirectionalRule.held_out()``, which then stops training early by
            itself. A tuple of inputs is passed to the model as positional arguments, a mapping as keyword arguments. While a
            batch is drawn, the global generators are seeded by ``seed`` and the number of batches before.
        horizon: the number of optimizer steps of the training to come, >= 1. Steps that a ``GradScaler`` skips do not count.
            More steps than that keep the last rate, with a warning. Without a horizon the rate is not brought to zero.
        average: True keeps an average of the iterates, for ``averaged_parameters`` and, with a horizon, for the end of the
            training. It takes memory for one copy of the parameters. None means True where there is a horizon, else False, or
            what a checkpoint says that is loaded.
        rule: "directional", or a ``DirectionalRule`` with settings of its own.
        seed: an integer in [0, 2^64) from which the probe batches are drawn; the global random state is not used.
        on_update: is called with a ``DirectionalRecord`` after every reading (on CUDA this waits for the device).

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
        average: bool | None = None,
        rule: Literal["directional"] | DirectionalRule = DirectionalRule.name,
        seed: int = 0,
        on_update: Callable[[DirectionalRecord], None] | None = None,
    ) -> None:
        super().__init__(optimizer)
        if rule != DirectionalRule.name and not isinstance(rule, DirectionalRule):
            raise ValueError(
                f"rule must be {DirectionalRule.name!r} or a DirectionalRule for DirectionalLR, got {_validate.describe(rule)}"
            )
        self._control = DirectionalControl(
            optimizer,
            rule if isinstance(rule, DirectionalRule) else DirectionalRule(),
            model=model,
            loss_fn=loss_fn,
            probe=probe,
            horizon=horizon,
            average=average,
            seed=seed,
            on_update=_validate.callback("on_update", on_update),
        )

    @property
    def rule(self) -> DirectionalRule:
        """The rule, with its settings."""
        return self._control.rule

    @property
    def on_update(self) -> Callable[[DirectionalRecord], None] | None:
        """The function that is called after every reading, or None."""
        return self._control.on_update

    @on_update.setter
    def on_update(self, value: Callable[[DirectionalRecord], None] | None) -> None:
        self._control.on_update = _validate.callback("on_update", value)

    @property
    def history(self) -> list[DirectionalRecord]:
        """All readings since the start or the last ``load_state_dict`` (on CUDA this waits for the device)."""
        return self._control.history

    @contextmanager
    def averaged_parameters(self) -> Iterator[None]:
        """Puts the average of the iterates into the parameters for the ``with`` block, and the iterate back after it.

        Evaluate or save the model inside the block; no step may be taken there. Over the last part of a horizon, which goes on
        from the average, the parameters are what they are. Batch norm's statistics stay those of the last iterate:
        ``torch.optim.swa_utils.update_bn`` makes the average's, on a copy of the model that was made inside the block.

        Raises:
            ValueError: no average is kept (``average`` is False, or None without a horizon).
        """
        with self._control.averaged_parameters():
            yield
