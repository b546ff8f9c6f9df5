"""Train a model that is sharded over processes by fully_shard, without choosing a learning rate.

    torchrun --standalone --nproc-per-node 2 examples/frameworks/fsdp2.py --steps 200

Each process holds a part of every parameter; all of them find one rate. It needs nothing beside torch, and runs on CPUs.
"""

import argparse

import torch
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import metacurv


def main(steps: int) -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    x = torch.randn(4000, 20)
    y = (x[:, :10] * x[:, 10:]).argmax(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(20, 256), torch.nn.ReLU(), torch.nn.Linear(256, 256), torch.nn.ReLU(),
        torch.nn.Linear(256, 10),
    )  # fmt: skip
    for layer in (model[0], model[2], model[4]):
        fully_shard(layer)
    fully_shard(model)
    loader = DataLoader(TensorDataset(x, y), batch_size=64)
    opt = metacurv.MetaCurvatureLR(
        torch.optim.AdamW(model.parameters()), model=model, loss_fn=F.cross_entropy,
        probe=loader, horizon=steps, seed=rank,
    )  # fmt: skip
    torch.manual_seed(rank)  # each process trains on batches of its own
    for step in range(steps):
        rows = torch.randint(len(x), (64,))
        opt.zero_grad()
        loss = F.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        opt.step()
        if rank == 0 and step % (steps // 5) == 0:
            print(f"step {step}: loss {loss:.3f}, learning rate {opt.effective_lrs[0]:.4f}")
    trace = metacurv.estimate_trace(model, F.cross_entropy, x[rank::2], y[rank::2], kind="ggn")
    if rank == 0:
        print(trace)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps")
    main(**vars(parser.parse_args()))
