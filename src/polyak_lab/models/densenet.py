"""Densely connected networks for small images: Huang, Liu, van der Maaten, Weinberger (2017), arXiv:1608.06993.

Both have bottlenecks (1×1 convolutions to four times the growth) and transitions that halve the
channels: DenseNet-BC. They differ in how the experiments with SPS and with ALI-G built them:

- `densenet121`: 6, 12, 24 and 16 layers of growth 32, a 3×3 stem without pooling, torch's own
  initialisation: the network of the code of Loizou et al. (2021). For RGB and 10 classes it has
  6,956,298 parameters (commonly given as 6.96M); the ImageNet network of Huang et al., with its 7×7
  stem and 1000 classes, has 7,978,856.
- `densenet-40-40`: 6, 6 and 6 layers of growth 40, depth 40 in all: the network of Berrada et al.
  (2020), weights as in He et al. (2015) and no bias in the classifier. For RGB and 10 classes it
  has 1,901,920 parameters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """Batch norm, ReLU, convolution, twice (1×1, 3×3); the result is concatenated to the input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input with `growth` more channels."""
        grown = self.conv1(F.relu(self.norm1(x)))
        grown = self.conv2(F.relu(self.norm2(grown)))
        return torch.cat([x, grown], 1)


class Transition(nn.Module):
    """Batch norm, ReLU, a 1×1 convolution to half the channels, and 2×2 average pooling."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, inputs // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Halve channels, height and width."""
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2, ceil_mode=True)


class DenseNet(nn.Module):
    """A 3×3 stem of 2·growth channels, dense blocks with transitions, and a linear classifier."""

    def __init__(
        self,
        channels: int,
        outputs: int,
        depths: tuple[int, ...],
        growth: int,
        bias: bool = True,
    ) -> None:
        super().__init__()
        width = 2 * growth
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.stages = nn.Sequential()
        for index, depth in enumerate(depths):
            if index > 0:
                self.stages.append(Transition(width))
                width //= 2
            self.stages.append(_block(width, depth, growth))
            width += depth * growth
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n, outputs) of images (n, C, H, W)."""
        x = F.relu(self.norm(self.stages(self.stem(x))))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


def _block(inputs: int, depth: int, growth: int) -> nn.Sequential:
    return nn.Sequential(*(Bottleneck(inputs + layer * growth, growth) for layer in range(depth)))


def densenet121(channels: int, outputs: int) -> DenseNet:
    """Return the DenseNet-121 with a 3×3 stem."""
    return DenseNet(channels, outputs, (6, 12, 24, 16), growth=32)


def densenet_40_40(channels: int, outputs: int) -> DenseNet:
    """Return the DenseNet of depth 40 and growth 40."""
    model = DenseNet(channels, outputs, (6, 6, 6), growth=40, bias=False)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    return model
