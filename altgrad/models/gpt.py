"""A small pre-norm character GPT with an untied head (Radford et al. 2019; Vaswani et al. 2017).

The modules' attribute names carry their layer types (`attention`, `mlp`, `embedding`, `head`), which is how
`altgrad.nn.quantize_model` finds them. Linear layers have no bias.

Shape suffixes: B batch, T time, D model dimension, H heads, K dimension of a head, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention


class Attention(nn.Module):
    """Causal multi-head self-attention; the scores and their softmax stay in float32."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.projection = nn.Linear(dim, dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Mixes each position with those before it; [B, T, D] to the same."""
        B, T, D = x_BTD.shape
        q_BHTK, k_BHTK, v_BHTK = (
            part_BTD.view(B, T, self.heads, D // self.heads).transpose(1, 2)
            for part_BTD in self.qkv(x_BTD).split(D, dim=-1)
        )
        mixed_BHTK = scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        y_BTD: Tensor = self.projection(mixed_BHTK.transpose(1, 2).reshape(B, T, D))
        return y_BTD


class MLP(nn.Module):
    """Two linear layers with a GELU between them, four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, 4 * dim, bias=False)
        self.down = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Transforms each position by itself; [B, T, D] to the same."""
        y_BTD: Tensor = self.down(gelu(self.up(x_BTD)))
        return y_BTD


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = MLP(dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """One layer of the residual stream; [B, T, D] to the same."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD))
        y_BTD: Tensor = x_BTD + self.mlp(self.mlp_norm(x_BTD))
        return y_BTD


class GPT(nn.Module):
    """Logits for the next token.

    Args:
        vocabulary: number of tokens V.
        layers, dim, heads, context: size of the model; `heads` divides `dim`.
        seed: all of the initialization depends on it and on the sizes, nothing else. Linear weights are normal with
            standard deviation 1 / sqrt(inputs), the two that write into the residual stream divided by sqrt(2 * layers)
            (GPT-2); the token and position tables have standard deviation 0.5. GPT-2's own 0.02 is far too small at
            width 64, where it cost AdamW a quarter nat after 300 steps, and mis-scaled weights would favour step rules
            that are relative to the weight.
    """

    def __init__(self, vocabulary: int, *, layers: int, dim: int, heads: int, context: int, seed: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.position = nn.Parameter(torch.empty(context, dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.final_norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name in ("embedding.weight", "position"):
                    parameter.normal_(0.0, 0.5, generator=generator)
                elif parameter.ndim == 2:
                    residual = name.endswith(("projection.weight", "down.weight"))
                    variance = 1 / parameter.shape[1] / (2 * layers if residual else 1)
                    parameter.normal_(0.0, variance**0.5, generator=generator)

    def forward(self, token_BT: Tensor) -> Tensor:
        """Logits [B, T, V] of each position's next token."""
        x_BTD = self.embedding(token_BT) + self.position[: token_BT.shape[1]]
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits_BTV: Tensor = self.head(self.final_norm(x_BTD))
        return logits_BTV

    def loss(self, token_BT: Tensor, target_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token, a scalar."""
        return cross_entropy(self(token_BT).flatten(0, 1), target_BT.flatten())
