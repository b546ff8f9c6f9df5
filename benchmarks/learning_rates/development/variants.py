"""The variants of the directional rule that are compared, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import metacurv

from ..directional import directional
from ..methods import Method, Setting

_GAIN = "metacurv.optim.directional.settling._GAIN"
_LAST_GAIN = "metacurv.optim.directional.settling._LAST_GAIN"
_WARM_UP, _TARGET = (
    "metacurv.optim.directional.rule._WARM_UP",
    "metacurv.optim.directional.settling._TARGET",
)
_FINISH, _FROM = "metacurv.optim.directional.rule._FINISH", "metacurv.optim.directional.rule._FROM"


@dataclass(frozen=True)
class Variant:
    """The directional rule with something changed.

    Attributes:
        rule: arguments of ``DirectionalRule``.
        patches: where something is in metacurv -> what stands there instead while the variant trains.
    """

    rule: Mapping[str, Any] = field(default_factory=dict)
    patches: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the patches in for the length of the block.

        Raises:
            AttributeError: metacurv has nothing where a patch belongs.
        """
        with ExitStack() as stack:
            for place, instead in self.patches.items():
                stack.enter_context(mock.patch(place, instead))
            yield

    def make(self, setting: Setting) -> Method:
        """Makes the method; to be called, and to be trained with, while the patches are in."""
        rule = metacurv.DirectionalRule(**self.rule)
        return directional(setting, horizon=setting.task.steps, rule=rule)


def _go_on(guard: Any) -> None:
    """Leaves the training where it is, in the place of ``Guard.begin_again``."""


VARIANTS = {
    "as it is": Variant(),
    "race": Variant(rule={"race": True}),
    "no race": Variant(rule={"race": False}),
    "no settling": Variant(patches={_GAIN: 0.0, _LAST_GAIN: 0.0}),
    "no new beginning": Variant(
        patches={"metacurv.optim.directional.guard.Guard.begin_again": _go_on, _WARM_UP: 0.0}
    ),
    "warm-up 0.05": Variant(patches={_WARM_UP: 0.05}),
    "warm-up 0.2": Variant(patches={_WARM_UP: 0.2}),
    "noise 0.01": Variant(patches={_TARGET: 0.01}),
    "noise 0.04": Variant(patches={_TARGET: 0.04}),
    "finish 0.15 from 0.4": Variant(patches={_FINISH: 0.15, _FROM: 0.4}),
    "finish 0.5 from 1": Variant(patches={_FINISH: 0.5, _FROM: 1.0}),
}
