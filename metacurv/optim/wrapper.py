"""An optimizer around an optimizer: everything torch expects of one, with the groups and state of the base.

Nothing here knows a rule; the classes that derive from it bring one. The contract is in the tests, ``tests/optim/drop_in``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from metacurv import _validate
from metacurv._warnings import warn_user
from metacurv.estimators.problem.user_state import recording
from metacurv.optim.base_step import is_dry
from metacurv.optim.carried_state import put_in, taken_out
from metacurv.optim.eagerly import eagerly
from metacurv.optim.group_parameters import all_parameters
from metacurv.optim.rule_control import RuleControl


class OptimizerWrapper(Optimizer):
    """A ``torch.optim.Optimizer`` that owns nothing: groups, state and defaults are the base's, by reference.

    ``Optimizer.__init__`` is not called, because it would rebuild the base's groups; ``Optimizer.__setstate__`` sets up the
    hooks without touching them (a test pins that). There is no ``__getattr__``: forwarding would leak private flags of the
    base, such as ``_step_supports_amp_scaling``, which makes GradScaler step on scaled gradients.
    """

    _control: RuleControl

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
            )
        if isinstance(optimizer, OptimizerWrapper):
            raise TypeError(
                f"optimizer must be a base optimizer, got one that is wrapped already: {type(optimizer).__name__}"
            )
        if isinstance(optimizer, LBFGS):
            raise TypeError(
                "optimizer must step from one gradient, got LBFGS, whose line search evaluates its closure several "
                "times within one step and sets its own step lengths"
            )
        if any(hasattr(parameter, "ds_id") for parameter in all_parameters(optimizer)):
            raise TypeError(
                "optimizer must hold the model's own parameters, got those of DeepSpeed's ZeRO stage 3, which puts flat parts "
                "of them in their place; stages 1 and 2, or FSDP's fully_shard, leave them"
            )
        for index, group in enumerate(optimizer.param_groups):
            if "lr" not in group:
                raise ValueError(
                    f"optimizer must have a learning rate 'lr' in every parameter group, got {sorted(group)} in group {index}"
                )
        # Lightning's facade of an optimizer has an ``optimizer`` of its own, which is this wrapper, so methods use ``_base``.
        self.optimizer = self._base = optimizer
        Optimizer.__setstate__(self, {})

    # Properties, never aliases: loading a state dict rebinds the base's lists.

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the base optimizer."""
        return self._base.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        self._base.param_groups = value

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The state of the base optimizer."""
        return self._base.state

    @state.setter
    def state(self, value: defaultdict[Tensor, Any]) -> None:
        self._base.state = value

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of the base optimizer."""
        return self._base.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        self._base.defaults = value

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients, as the base optimizer does.

        Args:
            set_to_none: True sets them to None, False to zeros.
        """
        self._base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the base optimizer; its parameters get the next parameter numbers.

        Args:
            param_group: a dict with "params" and the group's options, as ``torch.optim.Optimizer.add_param_group`` takes it.

        Raises:
            TypeError: the curvature of a parameter cannot be measured, because of its type; nothing is added.
            ValueError: a parameter is on another device, or in a group already; nothing is added.
        """
        held = all_parameters(self._base)
        # torch's own checks first: what it adds is well formed.
        self._base.add_param_group(param_group)
        added = self.param_groups[-1]["params"]
        try:
            for index, tensor in enumerate(added):
                _validate.real_tensor(f"param_group['params'][{index}]", tensor)
            _validate.same_device("parameters", [*held[:1], *added])
            self._control.group_added()
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    # State dicts: the base's, with our own state in it. Hooks registered here fire here, once.

    def state_dict(self) -> dict[str, Any]:
        """Returns the base's state dict with the state in it that resumes the curvature part bit for bit.

        It is where frameworks look for it: numbers are one string of JSON, ``["param_groups"][0]["metacurv"]``, and tensors are
        entries of ``["state"]`` whose names begin with "metacurv_", or lie in ``["param_groups"][0]["metacurv_tensors"]``.

        Returns:
            A dict with "state" and "param_groups".
        """
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state = put_in(self._control.own_state(), self._base.state_dict())
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            replaced = post_hook(self, state)
            state = state if replaced is None else replaced
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back ``state_dict()``, or that of a bare base optimizer: then curvature starts afresh, with a warning.

        Args:
            state_dict: such a dict. It is not changed.

        Raises:
            TypeError: ``state_dict`` is no dict, or holds an entry of the wrong type; nothing is changed.
            ValueError: ``state_dict`` lacks an entry, or holds one out of range; nothing is changed.
        """
        if not isinstance(state_dict, dict):
            raise TypeError(f"state_dict must be a dict, got {_validate.describe(state_dict)}")
        state_dict = dict(state_dict)
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            replaced = pre_hook(self, state_dict)
            state_dict = state_dict if replaced is None else dict(replaced)
        missing = sorted({"state", "param_groups"} - state_dict.keys())
        if missing:
            raise ValueError(
                f"state_dict must be that of an optimizer, lacks {missing}, got keys {sorted(state_dict)}"
            )
        own, dropped, of_base = taken_out(state_dict, all_parameters(self._base))
        load_own = self._control.checked_own_state(own, dropped)
        self._base.load_state_dict(of_base)
        load_own()
        if own is None:
            warn_user(
                "state_dict has nothing of MetaCurvatureLR, which therefore begins afresh: it is of the bare optimizer, or "
                "of a framework that has left it out",
                UserWarning,
            )
        elif dropped:
            warn_user(
                f"state_dict lacks {dropped} of MetaCurvatureLR, which a framework has left out: what they say begins afresh",
                UserWarning,
            )
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    # Pickling: schedulers store a patched ``step`` on the instance and hooks may not pickle, so neither travels.

    def __getstate__(self) -> dict[str, Any]:
        return {
            key: value
            for key, value in self.__dict__.items()
            if key not in ("step", "_opt_called") and not key.startswith("_optimizer_")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        Optimizer.__setstate__(self, {})

    # Stepping.

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "step() must not be called within a backward pass, as optimizers in the backward pass (optimizer_in_bwd) do: "
                "the gradients of a step are measured together"
            )
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        with recording():
            if not self._base.state and is_dry(self._base):
                self._base.step()
            else:
                eagerly(self._control.step)
        return result

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step of the base optimizer, between the step hooks registered on this wrapper.

        Args:
            closure: a function that evaluates the loss. It is called once, with gradients enabled.

        Returns:
            The value of ``closure``; None without one.

        Raises:
            RuntimeError: a step pre-hook returned something other than None or a pair of (args, kwargs).
        """
        if not self._optimizer_step_pre_hooks and not self._optimizer_step_post_hooks:
            return self._step(closure)
        args: tuple[Any, ...] = (self,) if closure is None else (self, closure)
        kwargs: dict[str, Any] = {}
        for pre_hook in self._optimizer_step_pre_hooks.values():
            replaced = pre_hook(self, args, kwargs)
            if replaced is None:
                continue
            if not isinstance(replaced, tuple) or len(replaced) != 2:
                raise RuntimeError(
                    f"a step pre-hook must return None or a tuple of (args, kwargs), got {replaced!r}"
                )
            args, kwargs = replaced
        result = self._step(*args[1:], **kwargs)
        for post_hook in self._optimizer_step_post_hooks.values():
            post_hook(self, args, kwargs)
        return result

    # torch wraps every optimizer's step in a profiler range and in global hooks. The base's step has both already, and a
    # second set would cost 5 us a step and fire global hooks twice; this flag is how torch marks a step that is wrapped.
    step.hooked = True  # type: ignore[attr-defined]
