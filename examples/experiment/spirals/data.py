"""Three arms of a spiral."""

import torch

Part = tuple[torch.Tensor, torch.Tensor]


def load(samples: int = 900, noise: float = 0.05) -> tuple[Part, Part]:
    """Return points and the number of their arm, for training and for testing."""
    radius = torch.rand(samples)
    arm = torch.randint(3, (samples,))
    angle = 4 * radius + arm * (2 * torch.pi / 3)
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    points += noise * torch.randn(samples, 2)
    test = samples // 3
    return (points[test:], arm[test:]), (points[:test], arm[:test])
