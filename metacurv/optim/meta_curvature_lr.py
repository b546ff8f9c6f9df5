"""MetaCurvatureLR: any torch optimizer, with its learning rate set by measured curvature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

from torch import Tensor, nn
from torch.optim import Optimizer

from metacurv import _validate
from metacurv.optim.wrapper import OptimizerWrapper

if TYPE_CHECKING:
    from metacurv.optim.directional.optimizer import DirectionalLR
    from metacurv.optim.directional.record import DirectionalRecord
    from metacurv.optim.directional.rule import DirectionalRule
    from metacurv.optim.reciprocal.optimizer import ReciprocalLR
    from metacurv.optim.reciprocal.readings import Estimator
    from metacurv.optim.reciprocal.record import UpdateRecord
    from metacurv.optim.reciprocal.rule import ReciprocalRule


class MetaCurvatureLR(OptimizerWrapper):
    """Wraps an optimizer and sets its learning rate from measured curvature, by one of two rules.

    With ``probe=`` it finds the learning rate by itself (the directional rule), and the training loop stays as it was:

        opt = MetaCurvatureLR(torch.optim.AdamW(model.parameters()), model=model, loss_fn=loss_fn,
                              probe=train_loader, horizon=epochs * len(train_loader))

    Without ``probe=`` it applies the reciprocal rule, lr / (1 + alpha max(trace of the Hessian, 0)), to the learning rate that
    you give. This is the rule of the experiment that the package starts from. It only ever shrinks the rate, it lost to plain
    Adam there, and it is kept as the reference to beat: pass ``probe=`` unless you want just that. It takes one more line in
    the loop:

        opt = MetaCurvatureLR(torch.optim.Adam(model.parameters(), lr=1e-3), alpha=0.01)
        ...
        loss = loss_fn(model(x), y)
        opt.update_curvature(loss)
        loss.backward()
        opt.step()

    The call makes a ``DirectionalLR`` or a ``ReciprocalLR``, and passes its arguments on; their docstrings describe them.
    With ``probe`` they are ``model``, ``loss_fn``, ``horizon``, ``average``, ``race``, ``max_lr``, ``per_group``, ``batch_fn``
    and ``output``; without it ``alpha``, ``update_freq``, ``n_hutchinson_samples``, ``smoothing``, ``estimator``, ``model`` and
    ``backend``; with both ``seed``, ``on_update`` and ``process_group``. The argument ``rule`` says the choice in words:
    "directional", "reciprocal", or a ``DirectionalRule`` with settings of its own.

    Both are optimizers as torch knows them: groups and state are those of the base optimizer, and schedulers, ``GradScaler``,
    clipping, accumulation, hooks and checkpoints work as they do with the base. The learning rates in ``param_groups`` stay
    yours and your scheduler's; a rule's rate is applied inside ``step`` and taken back after it. ``effective_lrs`` tells what
    is applied, and ``group["lr_scale"]`` its ratio to ``group["lr"]``.

    Args:
        optimizer: the base optimizer, any of torch that steps from gradients (not LBFGS). Its groups are used in place.

    Raises:
        TypeError: an argument is of the wrong type; the optimizer is then as it was.
        ValueError: an argument is out of range, or belongs to the other rule; the optimizer is then as it was.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1), alpha=0.5)
        >>> loss = model(torch.ones(1, 2)).square().mean()  # H = 2 x x' over (w, b): trace 6, plus cross terms of the probe
        >>> opt.update_curvature(loss)
        True
        >>> loss.backward(); opt.step()
        >>> opt.effective_lrs[0] < 0.1
        True
    """

    _of_rule: ClassVar[dict[str, type[MetaCurvatureLR]]] = {}

    def __init_subclass__(cls, rule: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        _show_signature(cls, [cls])
        if rule is not None:
            MetaCurvatureLR._of_rule[rule] = cls
            _show_signature(MetaCurvatureLR, MetaCurvatureLR._of_rule.values())

    @overload
    def __new__(
        cls,
        optimizer: Optimizer,
        *,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        probe: Any,
        horizon: int | None = ...,
        average: bool = ...,
        race: bool | int | Literal["auto"] | None = ...,
        max_lr: float | None = ...,
        per_group: bool | None = ...,
        rule: Literal["directional"] | DirectionalRule = ...,
        seed: int = ...,
        on_update: Callable[[DirectionalRecord], None] | None = ...,
        process_group: Any = ...,
        batch_fn: Callable[[Any], Any] | None = ...,
        output: Callable[[Any], Any] | None = ...,
    ) -> DirectionalLR: ...

    @overload
    def __new__(
        cls,
        optimizer: Optimizer,
        *,
        alpha: float = ...,
        update_freq: int = ...,
        n_hutchinson_samples: int = ...,
        smoothing: float = ...,
        estimator: Estimator = ...,
        model: nn.Module | None = ...,
        rule: Literal["reciprocal"] = ...,
        seed: int = ...,
        backend: str = ...,
        on_update: Callable[[UpdateRecord], None] | None = ...,
        process_group: Any = ...,
    ) -> ReciprocalLR: ...

    def __new__(cls, *args: Any, **options: Any) -> MetaCurvatureLR:
        """Makes an instance of the class of the rule that ``options`` ask for."""
        if cls is MetaCurvatureLR:
            if len(args) > 1:
                raise TypeError(
                    f"MetaCurvatureLR must get all arguments but the optimizer by name, such as alpha=0.01, got "
                    f"{_validate.describe(args[1])}"
                )
            return super().__new__(cls._of_rule[_chosen_rule(options)])
        if not issubclass(cls, tuple(cls._of_rule.values())):
            raise TypeError(
                f"{cls.__name__} must be derived from DirectionalLR or ReciprocalLR, got MetaCurvatureLR as its base"
            )
        return super().__new__(cls)

    @property
    def rule(self) -> DirectionalRule | ReciprocalRule:
        """The rule, with its settings."""
        rule: DirectionalRule | ReciprocalRule = self._control.rule
        return rule

    @property
    def seed(self) -> int:
        """The seed of what is drawn at random, in [0, 2^64)."""
        return self._control.seed

    @property
    def effective_lrs(self) -> list[float]:
        """The learning rate that the next ``step`` applies to each parameter group (on CUDA this waits for the device)."""
        return self._control.effective_lrs

    @property
    def skipped_readings(self) -> int:
        """The number of readings that were not finite and so changed nothing."""
        return self._control.skipped_readings

    def eval(self) -> None:
        """Shows the parameters that are to be evaluated or saved: the average of the iterates, where one is kept.

        ``train`` puts the iterate back. Both may be called again and again, as the evaluation of a framework does, and a
        checkpoint of either goes on from the iterate. ``step`` raises in between. This is the protocol of Schedule-Free
        (Defazio et al. 2024), which frameworks know.
        """

    def train(self) -> None:
        """Puts the iterate back that ``eval`` took away."""

    def update_curvature(self, loss: Tensor) -> bool:
        """Measures ``loss`` for the reciprocal rule; the directional rule measures by itself, and the call does nothing.

        Args:
            loss: one element with a graph, before any loss scaling.

        Returns:
            True where a reading was taken.
        """
        return False

    def __repr__(self) -> str:
        return f"MetaCurvatureLR({self._control.describe()},\n{self.optimizer!r})"


def _show_signature(cls: type, of: Iterable[type[MetaCurvatureLR]]) -> None:
    """Makes ``help(cls)`` and notebooks show the arguments of all classes in ``of``, where ``__new__`` takes anything."""
    parameters: dict[str, inspect.Parameter] = {}
    for each in of:
        for parameter in list(inspect.signature(each.__init__).parameters.values())[1:]:
            parameters.setdefault(parameter.name, parameter)
    cls.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]


def _chosen_rule(options: dict[str, Any]) -> str:
    """Returns the name of the rule that ``MetaCurvatureLR(optimizer, **options)`` asks for.

    Raises:
        TypeError: an option belongs to no rule.
        ValueError: ``options["rule"]`` is none, or an option belongs to another rule.
    """
    classes = MetaCurvatureLR._of_rule
    takes = {name: inspect.signature(cls).parameters.keys() for name, cls in classes.items()}
    rules_with = {name: [rule for rule in takes if name in takes[rule]] for name in options}
    for name, rules in rules_with.items():
        if not rules:
            base = "; it belongs to the base optimizer" if name == "lr" else ""
            raise TypeError(f"MetaCurvatureLR takes no argument {name!r}{base}")
    without_directional, without_reciprocal = (
        [name for name, rules in rules_with.items() if rule not in rules]
        for rule in ("directional", "reciprocal")
    )
    chosen = "reciprocal"
    if "rule" in options:
        rule = options["rule"]
        chosen = getattr(rule, "name", rule)
        if not isinstance(chosen, str) or chosen not in classes:
            raise ValueError(
                f"rule must be 'reciprocal', 'directional' or a DirectionalRule, got {_validate.describe(rule)}"
            )
    elif "probe" in options or (without_reciprocal and not without_directional):
        chosen = "directional"
    for name, rules in rules_with.items():
        if chosen in rules:
            continue
        other = rules[0]
        not_of_other = [name for name, rules in rules_with.items() if other not in rules]
        way_out = f"did you mean rule={other!r}?"
        if not_of_other:
            way_out = f"leave out either it or {not_of_other[0]}"
        raise ValueError(
            f"{name} must be left out with rule={chosen!r}; rule={other!r} takes it, got "
            f"{_validate.describe(options[name])}; {way_out}"
        )
    return chosen
