"""One fused step with interpreted kernels; prints what it raises."""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch

import polyak

w = torch.nn.Parameter(torch.ones(2))
w.grad = torch.ones(2)
try:
    polyak.ALIG([w], fused=True).step(loss=1.0)
except RuntimeError as error:
    print(error)
