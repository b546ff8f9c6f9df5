"""The directional rule with one of its settings changed, as methods."""

from __future__ import annotations

import metacurv

from .directional import directional
from .methods import Maker

# Fields of DirectionalRule, around their defaults on 2000 steps of Adam: sigma 2.5, kappa .1, interval 20.
FIELDS: dict[str, tuple[float, ...]] = {
    "sigma": (1.25, 1.6, 2.0, 2.5, 3.0, 4.0),
    "kappa": (0.03, 0.05, 0.1, 0.2, 0.4),
    "interval": (5, 10, 20, 40, 80),
}
PROBE_SIZES = (8, 16, 32, 64, 100, 200, 400)


def name_of(setting: str, value: float) -> str:
    """Returns the name of the method with this value of a setting."""
    return f"directional, {setting} {value:g}"


def _with_field(field: str, value: float) -> Maker:
    return lambda setting: directional(
        setting,
        rule=metacurv.DirectionalRule(**{field: value}),  # type: ignore[arg-type]  # int and float fields
        horizon=setting.task.steps,
    )


def _with_probes(size: int) -> Maker:
    return lambda setting: directional(setting, probe_size=size, horizon=setting.task.steps)


VARIANTS: dict[str, Maker] = {
    **{
        name_of(field, value): _with_field(field, value)
        for field, values in FIELDS.items()
        for value in values
    },
    **{name_of("probe size", size): _with_probes(size) for size in PROBE_SIZES},
}
