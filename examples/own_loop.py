"""A training loop with mixed precision and gradient accumulation.

float16 with a GradScaler on a GPU, bfloat16 on a CPU.
"""

import torch
import torch.nn.functional as F
from torch import nn

import polyak

EPOCHS, BATCH, PARTS = 20, 64, 4


def rings(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points of three rings, and the number of the ring of each."""
    ring = torch.randint(3, (samples,))
    angle = 2 * torch.pi * torch.rand(samples)
    radius = 1 + ring + 0.1 * torch.randn(samples)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), ring


def main() -> float:
    """Train, and return the accuracy on new points."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.bfloat16
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)).to(device)
    optimizer = polyak.ALIG(model.parameters(), lr=0.3, momentum=0.9)
    scaler = torch.amp.GradScaler(device, enabled=device == "cuda")
    x, y = (part.to(device) for part in rings(2048))

    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(x)).to(device).split(BATCH):
            optimizer.zero_grad()
            for part in rows.chunk(PARTS):
                with torch.autocast(device, dtype):
                    loss = F.cross_entropy(model(x[part]), y[part])
                loss = optimizer.watch(loss, scaler)  # the step reads the mean over the parts
                scaler.scale(loss / PARTS).backward()
            scaler.step(optimizer)
            scaler.update()
        if epoch % 5 == 4:
            step = float(optimizer.param_groups[0]["step_size"])
            print(f"epoch {epoch + 1}: loss {loss.item():.3f}, step size {step:.3f}")

    x, y = (part.to(device) for part in rings(1000))
    with torch.no_grad():
        accuracy = (model(x).argmax(1) == y).float().mean().item()
    print(f"accuracy {100 * accuracy:.1f} %")
    return accuracy


if __name__ == "__main__":
    main()
