"""Train a classifier of handwritten digits in a loop of Accelerate's, without choosing a learning rate.

    accelerate launch examples/frameworks/accelerate_loop.py --epochs 8
    python examples/frameworks/accelerate_loop.py

The loop is the same on one process and on several. ``pip install -e ".[accelerate]"`` brings what it needs.
"""

import argparse

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

import metacurv


def main(epochs: int) -> None:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(x / 16).float(), torch.tensor(y))
    train, test = random_split(data, [1400, 397])
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    model, loader = accelerator.prepare(model, DataLoader(train, batch_size=32, shuffle=True))
    base = torch.optim.AdamW(model.parameters())
    steps = epochs * len(loader)
    opt = accelerator.prepare(
        metacurv.MetaCurvatureLR(
            base, model=model, loss_fn=F.cross_entropy, probe=loader, horizon=steps
        )
    )
    for epoch in range(epochs):
        opt.train()
        for inputs, targets in loader:
            opt.zero_grad()
            accelerator.backward(F.cross_entropy(model(inputs), targets))
            opt.step()
        opt.eval()  # the average of the iterates
        inputs, targets = test[:]
        accuracy = (model(inputs).argmax(1) == targets).float().mean()
        accelerator.print(f"epoch {epoch}: accuracy {accuracy:.1%}")
    accelerator.print(f"learning rate found: {opt.optimizer.history[-1].lr[0]:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    main(**vars(parser.parse_args()))
