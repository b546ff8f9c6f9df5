"""The picture: a valid PNG with every panel filled, for the widest and the narrowest of results."""

from __future__ import annotations

import io

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from metacurv.experiment import figure
from metacurv.experiment.config import Config
from metacurv.experiment.results import Curves


def results(config: Config) -> list[Curves]:
    random = np.random.default_rng(0)
    steps = np.array(config.eval_steps, dtype=float)
    shape = (config.seeds, len(steps))
    columns = ("train_loss", "test_loss", "train_acc", "test_acc", "lr", "trace")
    return [
        Curves(
            method=method,
            steps=steps,
            seconds=np.cumsum(random.uniform(0.1, 0.2, shape), axis=1),
            **{name: random.uniform(0.1, 2, shape) for name in columns},
        )
        for method in config.methods
    ]


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(alphas=(1e-4, 1e-3, 1e-2, 1e-1), seeds=3),
        Config(alphas=tuple(range(7)), seeds=2),
        Config(seeds=1, steps=1, quick=True),
    ],
    ids=["default", "sweep", "seven alphas", "least"],
)
def test_the_picture_is_valid_and_full(config: Config) -> None:
    size = mpl.rcParams["font.size"]
    image = Image.open(io.BytesIO(figure.draw(config, results(config))))
    image.load()
    assert image.format == "PNG"
    assert image.width == 1500
    pixels = np.asarray(image.convert("RGB"), dtype=int)
    body = pixels[image.height // 10 :]
    for rows in np.array_split(body, 3):
        for panel in np.array_split(rows, 2, axis=1):
            coloured = np.ptp(panel, axis=2) > 40  # no grey of axes, grid or text
            assert coloured.sum() > 100
    assert mpl.rcParams["font.size"] == size


def test_readings_that_are_missing_or_negative_do_not_stop_it() -> None:
    config = Config(seeds=3)
    curves = results(config)
    curves[1].trace[:, 3] = np.nan
    curves[1].trace[0, 5] = np.nan
    curves[1].trace[:, 0] = -1
    assert figure.draw(config, curves).startswith(b"\x89PNG")
