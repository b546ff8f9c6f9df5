"""Measure the curvature of a convolutional network's loss, layer by layer.

    python examples/measure_network.py --plot curvature.png

It prints the traces of the Hessian and of the Gauss-Newton matrix, why each was measured the way it was, and the part of each
layer with its standard error, and draws both. ``pip install -e ".[experiment]"`` brings scikit-learn and matplotlib.
"""

import argparse

import torch
from matplotlib import pyplot
from sklearn.datasets import load_digits
from torch import nn

import metacurv


def main(plot: str) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more threads would only wait for each other on so small a network
    images, digits = load_digits(return_X_y=True)
    x = torch.tensor(images[:500] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    y = torch.tensor(digits[:500])
    model = nn.Sequential()
    model.conv1 = nn.Conv2d(1, 16, 3, padding=1)
    model.gelu1 = nn.GELU()  # smooth: the Hessian and the Gauss-Newton matrix differ
    model.pool1 = nn.AvgPool2d(2)
    model.conv2 = nn.Conv2d(16, 32, 3, padding=1)
    model.gelu2 = nn.GELU()
    model.flatten = nn.Flatten()
    model.head = nn.Linear(512, 10)
    loss_fn = nn.CrossEntropyLoss()

    figure, axes = pyplot.subplots(2, layout="constrained")
    for kind, ax in zip(("hessian", "ggn"), axes, strict=True):
        estimate = metacurv.estimate_trace(model, loss_fn, x, y, kind=kind)
        print(estimate)
        print(f"  why: {estimate.why}")
        for layer, part in estimate.per_layer.items():
            print(f"  {layer:6} {part:9.4f} +- {estimate.per_layer_stderr[layer]:.4f}")
        estimate.plot(ax)
    figure.savefig(plot)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", default="curvature.png", help="file for the picture")
    main(**vars(parser.parse_args()))
