"""One training run: the loop that a user of metacurv writes, timed, and evaluated off the clock."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from metacurv import DirectionalLR, MetaCurvatureLR, ReciprocalLR, UpdateRecord, hessian_trace

from .config import Config, Run
from .data import N_CLASSES, N_FEATURES, Data
from .model import mlp

Row = dict[str, float]  # what one evaluation found, by column name


class DivergedError(RuntimeError):
    """The training loss stopped being finite."""


class Batches:
    """Batches by epoch-wise shuffling, the incomplete last one dropped: a function of (seed, step).

    So every method of a seed sees the same batches, and a resumed run has no generator to restore.
    """

    def __init__(self, n_examples: int, batch_size: int, seed: int) -> None:
        self._n_examples, self._batch_size, self._seed = n_examples, batch_size, seed
        self._per_epoch = n_examples // batch_size
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __getitem__(self, step: int) -> Tensor:
        """The example numbers of the batch of ``step`` (from 0). Returns: [batch_size] int64."""
        epoch, position = divmod(step, self._per_epoch)
        if epoch != self._epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(self._n_examples)
            self._epoch, self._order = epoch, torch.from_numpy(order)
        return self._order[position * self._batch_size : (position + 1) * self._batch_size]


class TrainingRun:
    """A run that can be advanced, saved and restored; ``rows`` holds its evaluations."""

    def __init__(self, run: Run, config: Config, data: Data) -> None:
        self.run, self.config, self.data = run, config, data
        self.model = mlp(N_FEATURES, config.hidden, N_CLASSES, config.activation, seed=run.seed)
        self.batches = Batches(len(data.x_train), config.batch_size, run.seed)
        self.step, self.seconds, self.trace = 0, 0.0, float("nan")
        self.rows: list[Row] = []
        adam = torch.optim.Adam(self.model.parameters(), lr=config.lr)
        self.optimizer: torch.optim.Optimizer = adam
        self._wrapper: ReciprocalLR | None = None
        self._directional: DirectionalLR | None = None
        if run.method.is_directional:
            self.optimizer = self._directional = MetaCurvatureLR(
                adam,
                model=self.model,
                loss_fn=functional.cross_entropy,
                probe=DataLoader(TensorDataset(data.x_train, data.y_train), config.batch_size),
                horizon=config.steps,
                seed=run.seed,
            )
        elif run.method.alpha is not None:
            self.optimizer = self._wrapper = MetaCurvatureLR(
                adam,
                alpha=run.method.alpha,
                update_freq=config.update_freq,
                n_hutchinson_samples=config.n_hutchinson_samples,
                seed=run.seed,
                on_update=self._note_trace,
                backend=config.backend,
            )

    def _note_trace(self, record: UpdateRecord) -> None:
        self.trace = record.trace

    @property
    def done(self) -> bool:
        """True where the last evaluation is in ``rows``."""
        return len(self.rows) == len(self.config.eval_steps)

    def advance(self) -> None:
        """Train to the next evaluation and evaluate there. Only the training counts as ``seconds``.

        Raises:
            DivergedError: the training loss is not finite.
        """
        target = self.config.eval_steps[len(self.rows)]
        started = time.perf_counter()
        while self.step < target:
            self.train_step()
        self.seconds += time.perf_counter() - started
        self.rows.append(self._evaluate())

    def train_step(self) -> None:
        """One step of the loop, the same for Adam but for the line about curvature."""
        self.optimizer.zero_grad()
        loss = self._batch_loss(self.step)
        self._require_finite(loss.item())
        if self._wrapper is not None:
            self._wrapper.update_curvature(loss)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.optimizer.step()
        self.step += 1

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            follows_lr = self._directional is None
            cure = f"; try a smaller --lr than {self.config.lr:g}" if follows_lr else ""
            raise DivergedError(
                f"{self.run.method.label}, seed {self.run.seed}: the training loss is {loss} at "
                f"step {self.step}{cure}"
            )

    def _batch_loss(self, step: int) -> Tensor:
        batch, data = self.batches[step], self.data
        return functional.cross_entropy(self.model(data.x_train[batch]), data.y_train[batch])

    def _evaluate(self) -> Row:
        """Evaluates the model; with the directional rule, at its average of the iterates."""
        if self._directional is None:
            return self._evaluate_as_it_is()
        with self._directional.averaged_parameters():
            return self._evaluate_as_it_is()

    def _evaluate_as_it_is(self) -> Row:
        data, wrapper = self.data, self._wrapper
        train_loss, train_acc = _loss_and_accuracy(self.model, data.x_train, data.y_train)
        self._require_finite(train_loss)  # a trace of anything else is an error
        test_loss, test_acc = _loss_and_accuracy(self.model, data.x_test, data.y_test)
        measured = wrapper is not None and self.step > 0
        return {
            "step": self.step,
            "seconds": self.seconds,
            "train_loss": train_loss,
            "test_loss": test_loss,
            "train_acc": train_acc,
            "test_acc": test_acc,
            "lr": self._lr(),
            "trace": self.trace if measured else self._would_be_trace(),
        }

    def _lr(self) -> float:
        """Returns the rate that the next step will use; before its first step the directional rule has none, nan."""
        wrapper = self._wrapper or self._directional
        return self.config.lr if wrapper is None else wrapper.effective_lrs[0]

    def _would_be_trace(self) -> float:
        """Returns the reading that would be taken here: for Adam, and for every method before its first step.

        It is taken on the last batch trained on (at step 0: the first). It steers nothing, and is not timed.
        """
        estimate = hessian_trace(
            self._batch_loss(max(self.step - 1, 0)),
            self.model.parameters(),
            n_samples=self.config.n_hutchinson_samples,
            seed=(self.run.seed << 32) + self.step,  # a fresh probe at every evaluation
            backend=self.config.backend,
        )
        return estimate.value

    def state_dict(self) -> dict[str, Any]:
        """All that ``load_state_dict`` needs to go on bit for bit: tensors and plain values."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "trace": self.trace,
            "rows": self.rows,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.trace = state["step"], state["seconds"], state["trace"]
        self.rows = list(state["rows"])


def warm_up(run: Run, config: Config, data: Data) -> None:
    """Take two steps and throw them away: a process's first steps load code, which no run owes."""
    training = TrainingRun(run, config, data)
    for _ in range(2):
        training.train_step()


@torch.no_grad()
def _loss_and_accuracy(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean cross-entropy in nats and share of correct answers. x: [N, 40], y: [N]."""
    logits = model(x)
    accuracy = (logits.argmax(1) == y).double().mean()
    return functional.cross_entropy(logits, y).item(), accuracy.item()
