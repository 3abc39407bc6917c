"""Rank health: how many directions the weights of a layer use."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def rank_statistics(weights: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Stable rank, effective rank and spectral norm of matrices, by name.

    The singular values sigma are the roots of the eigenvalues of the Gram matrix of the smaller side, W W^T or W^T W,
    in float64; equal sides are solved in one batch. Of float32 weights the spectral norm and the stable rank are right
    to 1e-12 of themselves. So is the effective rank of a well-conditioned matrix; singular values below about 1e-7 of
    the largest drown in the squares' roundoff and count as 0, which costs the effective rank at most 1e-4 of itself.

    The zero matrix and one without elements have rank 0 and norm 0. One row or column has rank 1. Where an element is
    NaN or infinite, all three are NaN.

    Args:
        weights: matrices [O, I] of any floating dtype, on any device.

    Measures:
        spectral_norm [unit of the weight; at least 0]: sigma_1 = ||W||_2, the largest singular value.
        stable_rank [directions; 0, or from 1 to the smaller side]: ||W||_F^2 / ||W||_2^2 = sum sigma_i^2 / sigma_1^2.
        effective_rank [directions; 0, or from 1 to the smaller side]: exp(-sum p_i ln p_i) with p_i = sigma_i / sum
            sigma (Roy and Vetterli 2007).
    """
    groups: dict[tuple[int, torch.device], list[str]] = {}
    for name, weight in weights.items():
        groups.setdefault((min(weight.shape), weight.device), []).append(name)
    found: dict[str, dict[str, float]] = {}
    for (side, _), names in groups.items():
        grams = torch.stack([_gram(weights[name]) for name in names])
        finite = grams.isfinite().flatten(1).all(1)
        if side == 0:
            rows = [[0.0, 0.0, 0.0]] * len(names)
        else:
            squares = torch.linalg.eigvalsh(torch.where(finite[:, None, None], grams, 0.0)).clamp_(min=0)
            largest = squares[:, -1:]
            squares *= squares > largest * (side * torch.finfo(torch.float64).eps)
            rows = torch.where(finite[:, None], _three(squares), torch.nan).tolist()
        for name, (norm, stable, effective) in zip(names, rows, strict=True):
            found[name] = {"spectral_norm": norm, "stable_rank": stable, "effective_rank": effective}
    return {name: found[name] for name in weights}


def _gram(weight: Tensor) -> Tensor:
    w = weight.detach().double()
    return w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w


def _three(squares: Tensor) -> Tensor:
    """[n, side] eigenvalues in ascending order to [n, 3]: spectral norm, stable rank, effective rank."""
    values, largest = squares.sqrt(), squares[:, -1]
    there = largest > 0
    stable = squares.sum(1) / largest.where(there, 1.0)
    shares = values / values.sum(1).where(there, 1.0)[:, None]
    effective = torch.special.entr(shares).sum(1).exp().where(there, 0.0)
    return torch.stack([values[:, -1], stable, effective], 1)
