"""All methods by name."""

from __future__ import annotations

from .cdat import Cdat
from .directional import DIRECTIONAL
from .gen import GeN
from .methods import Maker
from .scheduled import SCHEDULED
from .searched import SEARCHED
from .tuning_free import TUNING_FREE

PUBLISHED: dict[str, Maker] = {
    **TUNING_FREE,
    "gen": GeN,
    "cdat": lambda setting: Cdat(setting, 2.0),
    "cdat 1": lambda setting: Cdat(setting, 1.0),
}
METHODS: dict[str, Maker] = {**SCHEDULED, **PUBLISHED, **DIRECTIONAL, **SEARCHED}
