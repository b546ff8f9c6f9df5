"""One of two processes of a training on two GPUs, for test_training.py: python -m tests.cuda.ddp_on_gpus RULE RANK FOLDER"""

from __future__ import annotations

import sys

import torch
from torch import nn

from tests.cuda.gpu_training import gpu_data, gpu_network, gpu_step, wrapped_by


def main(rule: str, rank: int, folder: str) -> None:
    torch.cuda.set_device(rank)
    torch.distributed.init_process_group(
        "nccl", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    model = gpu_network()
    x, y = (part[rank::2] for part in gpu_data())
    parallel = nn.parallel.DistributedDataParallel(model, device_ids=[rank])
    base = torch.optim.Adam(model.parameters(), capturable=True)
    opt = wrapped_by(rule, parallel, base, x, y)
    for _ in range(25):
        gpu_step(parallel, opt, x, y)
    torch.save({"model": model.state_dict(), "rates": opt.effective_lrs}, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
