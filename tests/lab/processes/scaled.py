"""A network with a scalar parameter, which FSDP2 does not support."""

import torch
from torch import nn


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * self.layer(x.flatten(1))
