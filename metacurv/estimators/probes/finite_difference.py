"""Samples v . H v from two gradients, for any model that has a gradient (fused attention, checkpoints, compiled modules).

    v . H v ~ v . (g(theta + h v) - g(theta - h v)) / 2h,    g the gradient, v a Rademacher probe, h the step

The error has two parts: h^2/6 times the fourth derivative along v, and the rounding of the gradients, about eps |v . g| / h. In
units of the root mean square of the parameters they balance near h = eps^(1/3), with eps the spacing of the coarsest number
format on the way (Press et al., "Numerical Recipes", section 5.7). Measured, the best step is 0.15 eps^(1/3). On perceptrons
with tanh and GELU, a convolutional network with batch norm and a transformer block, before and after training, it leaves an
error of 5e-6 to 2e-4 of a typical sample in float32, 2e-2 to 1.2e-1 in bfloat16 and below 1e-9 in float64. A network whose
layers differ much in size may want a step of its own.

At kinks (ReLU, max pooling) a difference sees what autograd's Hessian, that of the smooth pieces, does not: a unit that
switches between the two points adds its jump of the gradient, over 2h. On a perceptron of 15,210 parameters with ReLU, samples
were off from those of autograd's Hessian by 7 times their size at the start and 60 times after training (float32), and the
smaller the step, the more. Both are right, about different functions: the difference describes the loss as seen from a
distance h, with a large variance. For such networks take an estimator that differentiates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metacurv import _validate, ops
from metacurv.estimators.problem.model_loss import ModelLoss, check_loss
from metacurv.estimators.problem.numerics import relative_step, root_mean_square
from metacurv.estimators.problem.user_state import without_hooks
from metacurv.ops.arguments import elements_overlap

_COMPARED = 4  # probes by which two steps are compared


class FiniteDifference:
    """Samples v_p . (g_p(theta + h v) - g_p(theta - h v)) / 2h of every parameter p.

    The parameters are moved in place and come back bit for bit, whatever the model raises; graphs that the user holds stay
    usable. Memory: one copy of the parameters and one gradient. Cost: two gradients a probe, and one forward pass to choose
    the step.

    Args:
        problem: the model, loss and batch to measure.
        seed: int in [0, 2^64); the probes are those of ``hessian_trace``.
        backend: "auto", "native" or "reference" (see ``metacurv.ops``).
        step: h, > 0, in the parameters' units; by default 0.15 eps^(1/3) times their root mean square.
    """

    def __init__(
        self, problem: ModelLoss, *, seed: int, backend: str, step: float | None = None
    ) -> None:
        self.problem = problem
        self._seed = seed
        self._backend = backend
        self._given_step = None if step is None else _validate.real("step", step, low=0)
        if self._given_step == 0:
            raise ValueError("step must be > 0, got 0.0")
        for parameter in problem.parameters:
            if elements_overlap(parameter.tensor):
                raise ValueError(
                    f"the model's parameters must own each of their elements, got an expanded or unfolded view as "
                    f"{parameter.name!r}"
                )
        self._leaves = [p.tensor for p in problem.parameters]
        self._numbers = [p.number for p in problem.parameters]

    @cached_property
    def step(self) -> float:
        """The step h, in the parameters' units."""
        if self._given_step is not None:
            return self._given_step
        forward = self.problem.forward()
        check_loss(forward.loss)
        outputs = [x for x in pytree.tree_leaves(forward.output) if isinstance(x, Tensor)]
        # Autocast, also one inside the model, shows in what comes out.
        dtypes = [x.dtype for x in [*self._leaves, *outputs] if x.is_floating_point()]
        return relative_step(dtypes) * root_mean_square(self._leaves)

    def samples(self, first_probe: int, n_samples: int) -> Tensor:
        """Returns one row for each of the probes ``first_probe`` ... ``first_probe + n_samples - 1``.

        Returns:
            float64 [n_samples, T], a column for each of the problem's parameters; 0 for one that the loss does not use.

        Raises:
            ValueError: the loss is not a finite scalar that depends on the parameters, or two parameters share memory.
        """
        step, device = self.step, self.problem.device
        losses: list[Tensor] = []
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            self.problem.state_kept(),
            without_hooks(self.problem.parameters),
            self._restored() as (here, moved),
        ):
            self._refuse_shared_memory(moved, torch.full((), first_probe, device=device))
            rows = torch.empty(n_samples, len(moved), dtype=torch.float64, device=device)
            for row in range(n_samples):
                probe = torch.full((), first_probe + row, device=device)
                self._move(moved, here, probe, step)
                rows[row] = self._slopes(probe, losses)
                self._move(moved, here, probe, -step)
                rows[row] -= self._slopes(probe, losses)
            rows /= 2 * step
        for loss in losses:
            if not bool(torch.isfinite(loss)):
                raise ValueError(
                    f"loss must be finite within a step of {step:g} from the parameters, got {loss.item()}"
                )
        return rows

    def disagreement(self) -> float:
        """Returns how far samples at the step and at twice the step are apart, relative to their size; 0 in half precision.

        Samples of a smooth loss change in proportion to h^2; at kinks they depend on the kinks that a step happens to cross.
        """
        if any(x.dtype in (torch.float16, torch.bfloat16) for x in self._leaves):
            return 0.0  # rounding alone gives up to 0.2
        twice = FiniteDifference(
            self.problem, seed=self._seed, backend=self._backend, step=2 * self.step
        )
        near, far = (way.samples(0, _COMPARED).sum(1) for way in (self, twice))
        size = float(near.norm())
        return float((near - far).norm()) / size if size else 0.0

    @contextmanager
    def _restored(self) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Yields a copy of the parameters, and the parameters to write to, which equal the copy again at the end."""
        here = [leaf.detach().clone() for leaf in self._leaves]
        # Unlike detach(), data has a version counter of its own: graphs that saved the parameters do not see these changes,
        # and find the same bits again afterwards.
        moved = [leaf.data for leaf in self._leaves]
        try:
            yield here, moved
        finally:
            for tensor, value in zip(moved, here, strict=True):
                tensor.copy_(value)
            torch.clear_autocast_cache()

    def _probing(self, probe: Tensor, columns: Sequence[int]) -> dict[str, Any]:
        """Returns the probe's part of a call of an op, for the parameters at ``columns``."""
        numbers = [self._numbers[t] for t in columns]
        return {"seed": self._seed, "probe": probe, "numbers": numbers, "backend": self._backend}

    def _refuse_shared_memory(self, moved: list[Tensor], probe: Tensor) -> None:
        """Raises ValueError where v . v does not count the elements: then one parameter's signs overwrote another's."""
        probing = self._probing(probe, range(len(moved)))
        ops.rademacher_(moved, **probing)
        counts = ops.signed_sum(moved, **probing).tolist()
        for parameter, count in zip(self.problem.parameters, counts, strict=True):
            if count != parameter.tensor.numel():
                raise ValueError(
                    f"the model's parameters must not share memory, which finite differences would move twice; "
                    f"{parameter.name!r} does (one Parameter under two names is fine)"
                )

    def _move(self, moved: list[Tensor], here: list[Tensor], probe: Tensor, step: float) -> None:
        """Moves the parameters to here + step v; v is written into the parameters themselves, so that it takes no memory."""
        ops.rademacher_(moved, **self._probing(probe, range(len(moved))))
        for tensor, value in zip(moved, here, strict=True):
            torch.add(value, tensor, alpha=step, out=tensor)
        # In the caller's autocast region the cache holds casts of the weights at another point.
        torch.clear_autocast_cache()

    def _slopes(self, probe: Tensor, losses: list[Tensor]) -> Tensor:
        """Returns v_p . g_p at the present parameters, float64 [T], and appends the loss; looking at it now would block."""
        loss = self.problem.forward().loss
        check_loss(loss, finite=False)
        # Backward passes take the dtypes that the forward pass chose.
        with torch.autocast(loss.device.type, enabled=False):
            gradients = torch.autograd.grad(loss, self._leaves, allow_unused=True)
        losses.append(loss.detach())
        used = [t for t, gradient in enumerate(gradients) if gradient is not None]
        if not used:
            raise ValueError("loss must depend on the model's parameters, got one that uses none")
        dense = [g.to_dense() if g.is_sparse else g for g in gradients if g is not None]
        slopes = torch.zeros(len(gradients), dtype=torch.float64, device=probe.device)
        slopes[used] = ops.signed_sum(dense, **self._probing(probe, used))
        return slopes
