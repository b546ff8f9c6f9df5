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


def panels(image: Image.Image) -> list[np.ndarray]:
    """The pixels [height, width, 3] of the four rows of two."""
    pixels = np.asarray(image.convert("RGB"), dtype=int)
    rows = np.array_split(pixels[image.height // 13 :], 4)
    return [panel for row in rows for panel in np.array_split(row, 2, axis=1)]


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        pytest.param(Config(alphas=(1e-4, 1e-3, 1e-2, 1e-1), seeds=3), marks=pytest.mark.slow),
        pytest.param(Config(alphas=tuple(range(7)), seeds=2), marks=pytest.mark.slow),
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
    for panel in panels(image):
        coloured = np.ptp(panel, axis=2) > 40  # no grey of axes, grid or text
        assert coloured.sum() > 100
    margin = np.asarray(image.convert("RGB"))[: image.height // 10, -8:]
    assert (margin == 255).all()  # the legend ends before the picture does
    assert mpl.rcParams["font.size"] == size


@pytest.mark.slow
def test_the_directional_rule_has_a_colour_of_its_own_in_every_panel() -> None:
    green = (0x00, 0x9E, 0x73)
    for directional in (True, False):
        config = Config(directional=directional)
        image = Image.open(io.BytesIO(figure.draw(config, results(config))))
        for panel in panels(image):
            assert ((panel == green).all(axis=2).sum() > 100) == directional


def test_a_method_without_a_rate_at_the_start_is_drawn() -> None:
    config = Config(seeds=3)
    curves = results(config)
    curves[-1].lr[:, 0] = np.nan
    assert figure.draw(config, curves).startswith(b"\x89PNG")


def test_readings_that_are_missing_or_negative_do_not_stop_it() -> None:
    config = Config(seeds=3)
    curves = results(config)
    curves[1].trace[:, 3] = np.nan
    curves[1].trace[0, 5] = np.nan
    curves[1].trace[:, 0] = -1
    assert figure.draw(config, curves).startswith(b"\x89PNG")
