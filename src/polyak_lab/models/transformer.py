"""A decoder-only transformer for language."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, BLOCKS = 128, 4, 5
STD = 0.02  # of the first weights, as in GPT-2


class Block(nn.Module):
    """Causal self-attention and a feed-forward network, with pre-norm and residuals."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, width) to the same shape, causally."""
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = torch.add(x, self.mix(seen.transpose(1, 2).flatten(2)))
        return torch.add(x, self.contract(F.gelu(self.expand(self.feed_forward_norm(x)))))


class Transformer(nn.Module):
    """GPT-2 without dropout: learned positions, output weights tied to the embedding."""

    def __init__(self, context: int, vocabulary: int, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(context, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self._initialise()

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (batch, time) to logits of the next token (batch, time, vocabulary)."""
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)

    def _initialise(self) -> None:
        """Initialise as GPT-2: residual projections are scaled down with the depth."""
        nn.init.normal_(self.positions, std=STD)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                added = name.endswith(("mix", "contract"))
                nn.init.normal_(module.weight, std=STD / math.sqrt(2 * len(self.blocks)) if added else STD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)


def gpt_small(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Return 5 blocks of width 128 with 4 heads: 1.02 million parameters for 100 characters."""
    (context,) = shape
    return Transformer(context, outputs, WIDTH, HEADS, BLOCKS)
