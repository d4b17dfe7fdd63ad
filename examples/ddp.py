"""Several processes with DistributedDataParallel: torchrun --nproc-per-node 2 ddp.py.

Every process passes the loss of its own part of the batch; the optimizer averages it as DDP averages
the gradients, so that all take the same step.
"""

import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import polyak


def main() -> None:
    """Train, and print the result on the first process."""
    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")

    torch.manual_seed(0)  # the same data and the same first weights everywhere
    x = torch.randn(1024, 20)
    data = TensorDataset(x, (x @ torch.randn(20, 5)).argmax(1))
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5)).to(device)
    model = DistributedDataParallel(model)
    optimizer = polyak.ALIG(model.parameters(), lr=0.5, momentum=0.9)
    sampler = DistributedSampler(data, shuffle=True)

    for epoch in range(10):
        sampler.set_epoch(epoch)
        for inputs, targets in DataLoader(data, batch_size=32, sampler=sampler):
            loss = F.cross_entropy(model(inputs.to(device)), targets.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(loss=loss)

    with torch.no_grad():
        accuracy = (model(x.to(device)).argmax(1).cpu() == data.tensors[1]).float().mean().item()
    if dist.get_rank() == 0:
        print(f"{dist.get_world_size()} processes: training accuracy {100 * accuracy:.1f} %")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
