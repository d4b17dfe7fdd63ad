"""Residual networks for small images: 3×3 stem, no max-pool, global average pooling, so any image size works.

Two families from the literature, which differ in width, in initialisation and in how a shortcut
changes its shape:

- `resnet8`, `resnet20`: He, Zhang, Ren, Sun (2016), arXiv:1512.03385, section 4.2: 6n + 2 layers
  with 16, 32 and 64 channels and shortcuts of option A, which have no parameters (every second
  pixel, zeros for the new channels). For RGB and 10 classes `resnet20` has 269,722 parameters
  (their table 6: 0.27M); shortcuts of option B would make it 272,474. Weights start as in He et al.
  (2015), arXiv:1502.01852.
- `resnet34`: the network of the CIFAR experiments with SPS and ALI-G: 3, 4, 6 and 3 blocks of 64,
  128, 256 and 512 channels, shortcuts of option B (1×1 convolution and batch norm), torch's own
  initialisation; 21,282,122 parameters in 110 tensors for RGB and 10 classes.
"""

from collections.abc import Callable
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

Shortcut = Callable[[int, int, int], nn.Module]


class PadShortcut(nn.Module):
    """Option A of He et al. (2016): every `stride`-th pixel, and zeros as the new channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def projection_shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Option B of He et al. (2016): a strided 1×1 convolution and batch norm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm, added to the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        changes_shape = stride != 1 or inputs != outputs
        self.shortcut = shortcut(inputs, outputs, stride) if changes_shape else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(residual + shortcut)."""
        residual = F.relu(self.norm1(self.conv1(x)))
        residual = self.norm2(self.conv2(residual))
        return F.relu(residual + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, stages of blocks (halving the image from the second on), and a classifier."""

    def __init__(
        self, channels: int, outputs: int, depths: tuple[int, ...], widths: tuple[int, ...], shortcut: Shortcut
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        self.stages = nn.Sequential(
            _stage(widths[0], widths[0], depths[0], 1, shortcut),
            *(_stage(i, o, depth, 2, shortcut) for (i, o), depth in zip(pairwise(widths), depths[1:], strict=True)),
        )
        self.classifier = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n, outputs) of images (n, C, H, W)."""
        x = self.stages(F.relu(self.norm(self.stem(x))))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


def _stage(inputs: int, outputs: int, depth: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, shortcut) for _ in range(depth - 1)))


def small_resnet(channels: int, outputs: int, blocks: int) -> ResNet:
    """Return the CIFAR network of He et al. (2016) with 6·blocks + 2 layers."""
    model = ResNet(channels, outputs, (blocks,) * 3, (16, 32, 64), PadShortcut)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return model


def resnet34(channels: int, outputs: int) -> ResNet:
    """Return the ResNet-34 with a 3×3 stem."""
    return ResNet(channels, outputs, (3, 4, 6, 3), (64, 128, 256, 512), projection_shortcut)
