"""Wide residual networks: Zagoruyko and Komodakis (2016), arXiv:1605.07146.

WRN-d-k has (d − 4)/6 blocks in each of three stages of 16k, 32k and 64k channels. A block is batch
norm, ReLU and 3×3 convolution, twice, with dropout before the second convolution; where the shape
changes, the shortcut is a 1×1 convolution of the normalised input. For RGB and 10 classes WRN-40-4
has 8,949,210 parameters (their table 4: 8.9M) and WRN-16-4 has 2,748,890 (2.7M). Weights start as
in He et al. (2015).
"""

import torch.nn.functional as F
from torch import Tensor, nn


class WideBlock(nn.Module):
    """A residual block with its norms in front of its convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Return residual + shortcut."""
        active = F.relu(self.norm1(x))
        residual = self.dropout(F.relu(self.norm2(self.conv1(active))))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        total: Tensor = self.conv2(residual) + shortcut
        return total


class WideResNet(nn.Module):
    """A stem of 16 channels, three stages of wide blocks, and a linear classifier."""

    def __init__(
        self,
        channels: int,
        outputs: int,
        depth: int,
        width: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        blocks, widths = (depth - 4) // 6, (16 * width, 32 * width, 64 * width)
        self.stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.stages = nn.Sequential(
            _stage(16, widths[0], blocks, 1, dropout),
            _stage(widths[0], widths[1], blocks, 2, dropout),
            _stage(widths[1], widths[2], blocks, 2, dropout),
        )
        self.norm = nn.BatchNorm2d(widths[2])
        self.classifier = nn.Linear(widths[2], outputs)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n, outputs) of images (n, C, H, W)."""
        x = F.relu(self.norm(self.stages(self.stem(x))))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


def _stage(inputs: int, outputs: int, blocks: int, stride: int, dropout: float) -> nn.Sequential:
    first = WideBlock(inputs, outputs, stride, dropout)
    return nn.Sequential(first, *(WideBlock(outputs, outputs, 1, dropout) for _ in range(blocks - 1)))


def _initialise(model: WideResNet) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    nn.init.zeros_(model.classifier.bias)


def wrn_40_4(channels: int, outputs: int) -> WideResNet:
    """Return WRN-40-4 without dropout."""
    return WideResNet(channels, outputs, depth=40, width=4)


def wrn_16_4(channels: int, outputs: int) -> WideResNet:
    """Return WRN-16-4 with dropout 0.4, as on SVHN."""
    return WideResNet(channels, outputs, depth=16, width=4, dropout=0.4)
