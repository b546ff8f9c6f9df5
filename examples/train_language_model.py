"""Train a character model on Python's own help texts without choosing a learning rate.

    python examples/train_language_model.py

It prints the loss (nats per character, on text that it does not train on) before and after, and a text that the model writes.
"""

from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import metacurv


class CharacterModel(nn.Module):
    """Characters [B, T] -> scores [B, n, T] of the next one, from the last 15, by dilated convolutions."""

    def __init__(self, n: int = 128, width: int = 64) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(n, width), nn.Conv1d(width, n, 1)
        layers = (nn.Conv1d(width, width, 3, dilation=d, padding=2 * d) for d in (1, 2, 4))
        self.layers = nn.ModuleList(layers)

    def forward(self, codes: Tensor) -> Tensor:
        h = self.embedding(codes).mT
        for layer in self.layers:
            h = h + layer(h)[..., : h.shape[2]].relu()  # the cut hides what comes later
        return self.head(h)


def main(epochs: int = 2) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more threads would only wait for each other on so small a network
    codes = torch.tensor(list("".join(topics.values()).encode("ascii", "replace")))  # below 128
    windows = codes.unfold(0, 65, 64)  # 64 characters, and the one after each of them
    inputs, targets = windows[:, :-1], windows[:, 1:]
    loader = DataLoader(TensorDataset(inputs[:-500], targets[:-500]), batch_size=32, shuffle=True)
    model, loss_fn = CharacterModel(), nn.CrossEntropyLoss()

    base, steps = torch.optim.Adam(model.parameters()), epochs * len(loader)
    opt = metacurv.MetaCurvatureLR(base, model=model, loss_fn=loss_fn, probe=loader, horizon=steps)
    print(f"loss before: {loss_fn(model(inputs[-500:]), targets[-500:]):.2f}")
    for _ in range(epochs):
        for x, y in loader:
            opt.zero_grad()
            loss_fn(model(x), y).backward()
            opt.step()
    print(f"loss after:  {loss_fn(model(inputs[-500:]), targets[-500:]):.2f}")
    written = codes[:16]
    for _ in range(300):
        scores = model(written[None, -16:])[0, :, -1]
        written = torch.cat([written, (scores / 0.7).softmax(0).multinomial(1)])
    print(bytes(written.tolist()).decode())


if __name__ == "__main__":
    main()
