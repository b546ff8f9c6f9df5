"""Says what a rule has to bring: the object that measures and steps for an optimizer of the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol


class RuleControl(Protocol):
    """Takes the steps of one rule, and has a state of its own; the optimizer's class checks and describes the arguments.

    It also keeps ``group["lr_scale"]`` of every group of the base: the ratio of the rate that is applied to ``group["lr"]``.
    """

    seed: int

    @property
    def rule(self) -> Any:
        """The rule with its settings; its ``name`` is what the argument ``rule`` of ``MetaCurvatureLR`` takes."""

    @property
    def effective_lrs(self) -> list[float]:
        """The learning rate that the next step applies to each parameter group."""

    @property
    def skipped_readings(self) -> int:
        """The number of readings that were not finite and so changed nothing."""

    def step(self) -> None:
        """Takes one step of the base, at rates that are taken back after it (``base_step.step_base_at``)."""

    def group_added(self) -> None:
        """Takes in the last parameter group of the base; where it raises, the group is taken out again."""

    def own_state(self) -> dict[str, Any]:
        """Returns all that resumes the rule bit for bit, in the form that ``carried_state.put_in`` takes.

        "version" is the number of the format, and "rule" the name of the rule: the reciprocal one, the oldest, has none.
        """

    def checked_own_state(self, state: Any, missing: Sequence[str]) -> Callable[[], None]:
        """Checks what ``own_state`` returned, before anything is changed, and returns a function that loads it.

        ``state`` is None for a checkpoint of the bare base; ``missing`` names the tensors that a framework left out.
        """

    def describe(self) -> str:
        """Describes the rule and its settings, for ``repr``."""
