"""Train a classifier of handwritten digits by Lightning, without choosing a learning rate.

    python examples/frameworks/lightning_module.py --epochs 8

It prints the validation accuracy of each epoch, which is that of the average of the iterates, and the rate that it found.
``pip install -e ".[lightning]"`` brings what it needs.
"""

import argparse

import lightning
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

import metacurv
from metacurv.integrations.lightning import MetaCurvatureCallback


class Digits(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)
        )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        accuracy = (self(batch[0]).argmax(1) == batch[1]).float().mean()
        print(f"epoch {self.current_epoch}: accuracy {accuracy:.1%}")

    def configure_optimizers(self):
        base = torch.optim.AdamW(self.parameters())
        return metacurv.MetaCurvatureLR(base, model=self, loss_fn=F.cross_entropy, probe="later")


def main(epochs: int) -> None:
    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(x / 16).float(), torch.tensor(y))
    train, test = random_split(data, [1400, 397])
    trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=[MetaCurvatureCallback()], accelerator="cpu", logger=False,
        num_sanity_val_steps=0, enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(Digits(), DataLoader(train, 32, shuffle=True), DataLoader(test, 397))
    print(f"learning rate found: {trainer.optimizers[0].history[-1].lr[0]:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    main(**vars(parser.parse_args()))
