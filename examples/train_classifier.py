"""Train a classifier of handwritten digits without choosing a learning rate.

    python examples/train_classifier.py --epochs 15 --plot digits.png

It prints the accuracy on images that it does not train on, before and after, and the learning rate that it found. The images
come with scikit-learn, and the picture is drawn by matplotlib: ``pip install -e ".[experiment]"`` brings both.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import metacurv


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader) -> float:
    return sum((model(x).argmax(1) == y).sum().item() for x, y in loader) / len(loader.dataset)


def main(epochs: int, plot: str | None) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more threads would only wait for each other on so small a network
    images, digits = load_digits(return_X_y=True)  # 1797 images of 8 x 8 pixels
    x = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    training, validation = random_split(TensorDataset(x, torch.tensor(digits)), [0.8, 0.2])
    loader = DataLoader(training, batch_size=64, shuffle=True)
    validation_loader = DataLoader(validation, batch_size=256)
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    model, loss_fn = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10)), nn.CrossEntropyLoss()

    base, steps = torch.optim.Adam(model.parameters()), epochs * len(loader)
    opt = metacurv.MetaCurvatureLR(base, model=model, loss_fn=loss_fn, probe=loader, horizon=steps)
    print(f"accuracy before training: {accuracy(model, validation_loader):.1%}")
    for _ in range(epochs):
        for inputs, targets in loader:
            opt.zero_grad()
            loss_fn(model(inputs), targets).backward()
            opt.step()
    print(f"accuracy after {epochs} epochs: {accuracy(model, validation_loader):.1%}")
    print(f"learning rate found: {opt.history[-1].lr[0]:.2g}")
    if plot:
        from matplotlib import pyplot

        pyplot.semilogy([reading.step for reading in opt.history], [r.lr[0] for r in opt.history])
        pyplot.xlabel("step")
        pyplot.ylabel("learning rate")
        pyplot.savefig(plot)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--plot", metavar="FILE", help="save a picture of the learning rate")
    main(**vars(parser.parse_args()))
