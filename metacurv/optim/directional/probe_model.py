"""Evaluates the user's model and loss on probe batches, in eval mode, without a trace in modes, buffers or random state."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metacurv import _validate
from metacurv.estimators.problem.model_loss import call_model
from metacurv.estimators.problem.numerics import wide
from metacurv.estimators.problem.user_state import StateKept
from metacurv.optim.directional.output_loss import Leaves, OutputLoss
from metacurv.optim.group_parameters import check_model_has_some
from metacurv.processes.fully_sharded import reshard, sharded_modules
from metacurv.processes.local_tensors import locals_of
from metacurv.processes.ranks import Ranks


class ProbeModel:
    """A model and its loss, to be evaluated on probe batches.

    Args:
        model: see ``DirectionalLR``, as for ``loss_fn``, ``process_group`` and ``output``.
        base: the base optimizer; the model must own some of its parameters.

    Raises:
        TypeError: ``model`` is no module, or ``loss_fn`` is no function.
        ValueError: the model owns no parameter of ``base``.
    """

    def __init__(
        self,
        model: Any,
        loss_fn: Callable[[Any, Any], Tensor] | None,
        base: Optimizer,
        process_group: Any = None,
        output: Callable[[Any], Any] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"model must be a torch.nn.Module with rule='directional', got {_validate.describe(model)}"
            )
        _validate.loss_function(loss_fn)
        sharded_modules(model)  # refuses those that it cannot serve
        check_model_has_some(model, (p for group in base.param_groups for p in group["params"]))
        self.model = model
        self.loss_fn = loss_fn
        self.pick = _validate.callback("output", output)
        self.ranks = Ranks(model, process_group)
        self.computed_in: set[torch.dtype] | None = None  # once a batch has been asked

    def batch(self, pair: tuple[Any, Any], device: torch.device) -> ProbeBatch:
        """Pairs the loss with one batch on ``device``."""
        assert self.loss_fn is not None
        return ProbeBatch(self, pair[0], OutputLoss(self.loss_fn, pair[1]), device)


class ProbeBatch:
    """A batch on which the model is evaluated with its parameters as they are at the moment of each call."""

    def __init__(
        self, owner: ProbeModel, inputs: Any, loss: OutputLoss, device: torch.device
    ) -> None:
        self._owner, self._inputs, self.loss, self.device = owner, inputs, loss, device
        self.ranks = owner.ranks
        self._modules = list(owner.model.modules())
        loss_fn = owner.loss_fn
        self._loss_modules = list(loss_fn.modules()) if isinstance(loss_fn, nn.Module) else []
        self._memory = {_memory(p) for p in locals_of(owner.model.parameters())}

    def computed_in(self) -> set[torch.dtype]:
        """Returns the dtypes that a pass through the model computes in, as far as autocast and its outputs tell.

        A pass in bfloat16 rounds away what a difference would see that was chosen for float32 parameters. The first batch that
        is asked makes a pass.
        """
        if self._owner.computed_in is None:
            with _noted_autocast(self._owner.model, self.device) as seen:
                seen |= self.dtypes()
            self._owner.computed_in = seen
        return self._owner.computed_in

    def dtypes(self) -> set[torch.dtype]:
        """Returns the dtypes of the output's floating tensors."""
        return {leaf.dtype for leaf in self._leaves(self._modules)}

    @torch.no_grad()
    def output(self, *, batch_statistics: bool = False) -> Leaves:
        """Returns the floating tensors of the model's output; every pass sees the same random numbers.

        Args:
            batch_statistics: True to let batch norm that is in train mode use the batch's own mean and variance; its running
                statistics belong to other parameters than, say, an average.
        """
        in_eval = self._modules
        if batch_statistics:
            in_eval = [m for m in in_eval if not isinstance(m, nn.modules.batchnorm._BatchNorm)]
        # An output that shares memory with a parameter would change with it, so it is copied.
        leaves = self._leaves(in_eval)
        return [wide(x.clone() if _memory(x) in self._memory else x) for x in leaves]

    def _leaves(self, in_eval: list[nn.Module]) -> Leaves:
        """Runs a pass with these modules in eval mode, and returns the output's floating tensors."""
        try:
            with (
                _errors_say_where(),
                torch.inference_mode(False),
                torch.no_grad(),
                StateKept(self._modules, self.device),
                _eval_mode(in_eval),
            ):
                output = call_model(self._owner.model, self._inputs)
                picked = output if self._owner.pick is None else self._owner.pick(output)
                return self.loss.leaves(picked)
        finally:
            reshard(self._owner.model)

    @torch.no_grad()
    def value(self, *, batch_statistics: bool = False) -> Tensor:
        """Returns the loss, 0-dim float64; for ``batch_statistics`` see ``output``."""
        leaves = self.output(batch_statistics=batch_statistics)
        with self.loss_quiet():
            return self.loss.at(leaves).to(torch.float64)

    @contextmanager
    def loss_quiet(self) -> Iterator[None]:
        """Keeps the modes, buffers and random state that the loss function uses as they were."""
        modules = self._loss_modules
        with _errors_say_where(), StateKept(modules, self.device), _eval_mode(modules):
            yield


@contextmanager
def _errors_say_where() -> Iterator[None]:
    """Adds a note to errors of the user's model or loss, since they look like errors of the training step."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "add_note"):  # from Python 3.11 on
            error.add_note(
                "metacurv: raised in evaluating loss_fn(model(inputs), targets), the output first, on a batch of probe, with "
                "the model in eval mode, which MetaCurvatureLR does to measure a step; not by the training step itself"
            )
        raise


@contextmanager
def _eval_mode(modules: list[nn.Module]) -> Iterator[None]:
    """Sets the modules' ``training`` flags to False for the length of the block.

    ``model.eval()`` may be overridden to do more, and ``Module.__setattr__`` is slow, so neither is used.
    """
    training = [module for module in modules if module.training]
    for module in training:
        object.__setattr__(module, "training", False)
    try:
        yield
    finally:
        for module in training:
            object.__setattr__(module, "training", True)


def _memory(x: Tensor) -> int:
    """Returns the address of the tensor's storage, computed because asking the storage itself is slower."""
    return x.data_ptr() - int(x.storage_offset()) * x.element_size()


@contextmanager
def _noted_autocast(model: nn.Module, device: torch.device) -> Iterator[set[torch.dtype]]:
    """Notes the dtypes of autocast under which modules are called; compiled ones are called without their compiled code."""
    seen: set[torch.dtype] = set()

    def look(*_: Any) -> None:
        if torch.is_autocast_enabled(device.type):
            seen.add(torch.get_autocast_dtype(device.type))

    handles = [module.register_forward_pre_hook(look) for module in model.modules()]
    is_compiling = "torch._dynamo" in sys.modules
    try:
        with torch.compiler.set_stance("force_eager") if is_compiling else nullcontext():
            yield seen
    finally:
        for handle in handles:
            handle.remove()
