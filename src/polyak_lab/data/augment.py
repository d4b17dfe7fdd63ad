"""Random crop and flip of a whole batch as one gather, on whatever device the images are on."""

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Shift every image by up to `padding` pixels over zeros, and mirror every second one, at random.

    Same semantics as torchvision's `RandomCrop(size, padding)` followed by
    `RandomHorizontalFlip()`: the offsets are uniform over the 2·padding + 1 positions of each axis.

    Args:
        images: uint8 (n, C, H, W).
        generator: Source of the offsets and flips; lives on the device of the images.
        padding: Width of the border of zeros.

    Returns:
        A new uint8 tensor of the same shape.
    """
    n, channels, height, width = images.shape
    top, left, mirrored = draw(n, generator, padding)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(n, width)
    columns = left[:, None] + torch.where(mirrored[:, None], width - 1 - columns, columns)
    pixels = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
    padded = F.pad(images, [padding] * 4).flatten(2)
    return padded.gather(2, pixels.view(n, 1, -1).expand(-1, channels, -1)).view(images.shape)


def draw(n: int, generator: torch.Generator, padding: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw top and left offsets in 0..2·padding and whether to mirror, for n images."""
    device = generator.device
    offsets = torch.randint(2 * padding + 1, (2, n), generator=generator, device=device)
    mirrored = torch.randint(2, (n,), generator=generator, device=device).bool()
    return offsets[0], offsets[1], mirrored


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return (x/255 − mean)/std in float32, with one mean and one std per channel."""
    scale = 1 / (255 * std)
    return images.float().mul_(scale[:, None, None]).sub_((mean / std)[:, None, None])
