"""The shapes that are timed: many small tensors, a convolutional network, two transformers."""

from collections.abc import Callable

Shapes = list[tuple[int, ...]]


def mlp() -> Shapes:
    """Return a small MLP, where the overhead of a step is everything."""
    return [(64, 64), (64,), (64, 64), (64,), (10, 64), (10,)]


def resnet34() -> Shapes:
    """Return the note's ResNet-34 (3x3 stem, 10 classes): 21.3 M numbers in 110 tensors."""
    shapes: Shapes = [(64, 3, 3, 3), (64,), (64,)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for _ in range(blocks):
            shapes += [(width, inputs, 3, 3), (width,), (width,), (width, width, 3, 3), (width,), (width,)]
            shapes += [(width, inputs, 1, 1), (width,), (width,)] if inputs != width else []
            inputs = width
    return [*shapes, (10, 512), (10,)]


def transformer(depth: int, width: int, outside: Shapes) -> Shapes:
    """Return a transformer: what stands outside its blocks, and the blocks."""
    block: Shapes = [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,)]
    block += [(width,), (width,), (4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return [*outside, *(block * depth), (width,), (width,)]


SHAPES: dict[str, Callable[[], Shapes]] = {
    "mlp": mlp,
    "resnet34": resnet34,
    "vit-b16": lambda: transformer(
        12, 768, [(1, 1, 768), (1, 197, 768), (768, 3, 16, 16), (768,), (1000, 768), (1000,)]
    ),
    "gpt2": lambda: transformer(12, 768, [(50257, 768), (1024, 768)]),
}
