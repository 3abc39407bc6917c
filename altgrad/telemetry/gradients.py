"""Gradients: how large the gradient of a layer's weight is, and how much of it is missing."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def gradient_statistics(gradient: Tensor) -> dict[str, float]:
    """Norms of one gradient and its zero and non-finite elements, before clipping.

    A gradient with a NaN has norms NaN, one with an infinity infinite norms. One without elements has norms 0 and no
    `zero`. The sum of squares is taken in float64, which no float32 gradient overflows.

    Args:
        gradient: of the loss for a weight, any shape, floating dtype and device, dense or sparse.

    Measures (gradient):
        norm_l2 [loss per unit of the weight; at least 0]: sqrt(sum g^2).
        norm_inf [loss per unit of the weight; at least 0]: max |g|.
        zero [fraction; 0 to 1]: count(g = 0) / count(all). Elements without a gradient, exactly 0. Left out where there
            are no elements.
        nonfinite [elements; at least 0]: count(g is NaN or infinite).
    """
    g = gradient.detach().to_dense() if gradient.is_sparse else gradient.detach()
    if g.numel() == 0:
        return {"norm_l2": 0.0, "norm_inf": 0.0, "nonfinite": 0.0}
    g = g.flatten()
    largest = g.abs().max()
    norm = torch.linalg.vector_norm(g, dtype=torch.float64)
    zeros, finite = (g == 0).sum(), g.isfinite().sum()
    found = torch.stack([norm, largest.double(), zeros.double(), finite.double()]).tolist()  # one wait for a GPU
    return {"norm_l2": found[0], "norm_inf": found[1], "zero": found[2] / g.numel(), "nonfinite": g.numel() - found[3]}
