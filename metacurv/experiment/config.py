"""The experiment's configuration: every choice that changes the numbers, and the training runs that follow from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

SWEEP = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Method:
    """An optimizer under comparison.

    Adam at its constant rate; ``MetaCurvatureLR(Adam)`` by the reciprocal rule, which has an ``alpha``; or by the
    directional rule, with a horizon.
    """

    alpha: float | None
    is_directional: bool = False

    @property
    def name(self) -> str:
        """The ``method`` column of metrics.csv."""
        if self.is_directional:
            return "directional"
        return "Adam" if self.alpha is None else "reciprocal"

    @property
    def label(self) -> str:
        """The name wherever people see it: in tables, legends and words."""
        return self.name if self.alpha is None else f"{self.name}, alpha={self.alpha:g}"


ADAM = Method(None)
DIRECTIONAL = Method(None, is_directional=True)


@dataclass(frozen=True)
class Run:
    """One method from one seed, which sets the initial weights, the batches and the probes."""

    seed: int
    method: Method

    @property
    def name(self) -> str:
        """A file name; ``repr`` keeps alphas apart that ``:g`` would merge.

        The reciprocal rule's files keep the name they have always had, so that earlier run folders go on.
        """
        name = self.method.name.lower()
        if self.method.alpha is not None:
            name = f"metacurvaturelr-alpha{self.method.alpha!r}"
        return f"seed{self.seed:03d}-{name}"


@dataclass(frozen=True)
class Config:
    """Everything that changes the numbers. The command line checks the values (``options``)."""

    hidden: tuple[int, ...] = (100, 100)
    activation: str = "relu"
    batch_size: int = 100
    steps: int = 4000
    seeds: int = 10
    lr: float = 1e-3
    alphas: tuple[float, ...] = (1e-2,)
    update_freq: int = 10
    n_hutchinson_samples: int = 1
    eval_every: int = 100
    threads: int = 1
    backend: str = "auto"
    num_samples: int = 5000
    data_seed: int = 42
    directional: bool = True
    quick: bool = False

    @property
    def methods(self) -> tuple[Method, ...]:
        """Adam first, then one method per alpha, and the directional rule at the end."""
        last = (DIRECTIONAL,) if self.directional else ()
        return (ADAM, *(Method(alpha) for alpha in self.alphas), *last)

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run in the order of training.

        Methods alternate within a seed, and their order from seed to seed, so that a machine that
        drifts slows them all alike.
        """
        return tuple(
            Run(seed, method)
            for seed in range(self.seeds)
            for method in (self.methods if seed % 2 == 0 else reversed(self.methods))
        )

    @property
    def eval_steps(self) -> tuple[int, ...]:
        """Finished steps at which a run is evaluated: 0, every ``eval_every``, and the last."""
        return (*range(0, self.steps, self.eval_every), self.steps)

    def to_json(self) -> dict[str, Any]:
        """The values as json.load returns them: tuples are lists there."""
        loaded: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return loaded

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Config:
        """Takes back what ``to_json`` gave; an unknown name is a TypeError."""
        lists = {"hidden", "alphas"}
        checked: Any = {name: tuple(v) if name in lists else v for name, v in values.items()}
        return cls(**checked)

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that name this configuration."""
        canonical = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:8]
