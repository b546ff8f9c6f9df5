"""Draws eigenvalues of a Hessian during training for docs/guide/spectrum.md: python docs/_site/eigenvalues_picture.py"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import matplotlib as mpl  # noqa: E402
import torch  # noqa: E402
from matplotlib import pyplot  # noqa: E402
from torch import nn  # noqa: E402

import metacurv  # noqa: E402
from benchmarks.curvature_workloads import HIDDEN, MNIST1D_SAMPLES, MNIST1D_SEED, SEED  # noqa: E402
from metacurv.experiment import data as mnist1d  # noqa: E402
from metacurv.experiment.model import mlp  # noqa: E402

PICTURE = ROOT / "docs" / "guide" / "eigenvalues.png"
EXAMPLES, RATE, STEPS, EVERY, SHOWN = 1000, 0.4, 1200, 10, 5


def measure() -> tuple[list[int], list[float], list[list[float]]]:
    """Trains a perceptron by gradient descent on one batch.

    Returns:
        The steps that were measured, and at each of them the loss and the largest eigenvalues.
    """
    data = mnist1d.load(MNIST1D_SAMPLES, MNIST1D_SEED)
    x, y = data.x_train[:EXAMPLES], data.y_train[:EXAMPLES]
    model = mlp(mnist1d.N_FEATURES, HIDDEN, mnist1d.N_CLASSES, "tanh", seed=SEED)
    loss_fn, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=RATE)
    steps, losses, eigenvalues = [], [], []
    for step in range(STEPS + 1):
        loss = loss_fn(model(x), y)
        if step % EVERY == 0:
            top = metacurv.top_eigenvalues(model, loss_fn, x, y, k=SHOWN, largest="algebraic")
            steps.append(step)
            losses.append(loss.item())
            eigenvalues.append(top.values.tolist())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return steps, losses, eigenvalues


def main() -> None:
    """Measures, draws, and prints what the page says."""
    mpl.use("Agg")
    torch.set_num_threads(1)
    steps, losses, eigenvalues = measure()
    figure, (above, below) = pyplot.subplots(
        2, sharex=True, figsize=(7, 4.6), height_ratios=(1, 2), layout="constrained"
    )
    above.set_title(f"Gradient descent on {EXAMPLES} examples, learning rate {RATE}")
    above.semilogy(steps, losses, color="#0072B2")
    above.set_ylabel("loss")
    for i, values in enumerate(zip(*eigenvalues, strict=True)):
        label = f"the {SHOWN} largest eigenvalues" if i == 0 else None
        below.plot(steps, values, color="#0072B2", alpha=1 - 0.17 * i, linewidth=1.2, label=label)
    below.axhline(2 / RATE, color="#D55E00", linestyle="--", label="2 / learning rate")
    below.legend(frameon=False)
    below.set_xlabel("step")
    below.set_ylabel("eigenvalue of the Hessian")
    figure.savefig(PICTURE, dpi=110)

    largest = [values[0] for values in eigenvalues]
    over = [step for step, value in zip(steps, largest, strict=True) if value > 2 / RATE]
    print(f"{PICTURE}: the largest eigenvalue is {largest[0]:.2f} at first,")
    print(f"{max(largest):.2f} at most, {largest[-1]:.2f} at the end; above 2 / learning rate")
    print(f"at {len(over)} of {len(steps)} measured steps, from {over[0]} to {over[-1]}")


if __name__ == "__main__":
    main()
