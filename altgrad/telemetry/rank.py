"""Rank health: how many directions the weights of a layer use.

A layer whose weight falls back on a few directions has stopped telling its inputs apart. `RankWatch` says so while the
run goes on. Its thresholds rest on measured runs (GPT of the default size, 300 steps, a look every 20, weights,
activations and gradients quantized), as the smallest effective rank of a layer relative to the run's first look:

    run                                                   validation loss   head, output projections   other layers
    fp32, E3M4, E4M3, E5M2 at rates 3e-3 and 1.6e-2       2.17 to 2.38      0.73 to 0.91               0.90 to 0.99
    E7M0 and E0M7 at 3e-3 and (four seeds) 1.6e-2         2.32 to 2.95      0.52 to 0.90               0.91 to 0.99
    fp32 and E4M3 at rate 5e-2                            2.50              0.57 to 0.58               0.69
    fp32 and E4M3 at rate 0.1: warn from step 160         2.88 to 2.91      0.43 to 0.46               0.52 to 0.53
    fp32 and E4M3 at rate 0.3: warn from step 20          3.16 to 3.18      0.16 to 0.21               0.29 to 0.32
    fp32 with weight decay 30: all layers, from step 20   2.91              0.06 to 0.16               0.06 to 0.35

The stable rank does not separate them: it falls to a tenth in the best of these runs, where one direction outgrows the
others, so it is recorded and not watched.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from altgrad.runs import Alarm

if TYPE_CHECKING:
    from altgrad.telemetry import Row

LOOKS = 3
"""How many looks the moving average is taken over: at 20 steps a look it speaks after 20 steps and settles after 60."""
COLLAPSED = {"strict": 0.5, "other": 0.4}
"""A layer has collapsed when its average effective rank is below this fraction of that at the first look; "strict" is
for the head and the output projections, which collapse first."""
RECOVERED = 1.1
"""It has recovered when the average is this many times the limit, so that one near the limit warns once."""


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

    Measures (weight):
        spectral_norm [unit of the weight; at least 0]: sigma_1 = ||W||_2. The largest singular value.
        stable_rank [directions; 0, or from 1 to the smaller side]: ||W||_F^2 / ||W||_2^2 = sum sigma_i^2 / sigma_1^2.
        effective_rank [directions; 0, or from 1 to the smaller side]: exp(-sum p_i ln p_i). p_i = sigma_i / sum sigma
            (Roy and Vetterli 2007).
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


class RankWatch:
    """Warns when the effective rank of a weight collapses: a moving average over `LOOKS` looks, held against the first.

    The first look is the reference, and no part of the average. A layer warns once, and again only after it has
    recovered. Looks where the rank is NaN are passed over (they are another alarm's), and so are layers that begin
    as the zero matrix, until they have a rank.

    Attributes:
        state: by layer name `first`, `recent` (ranks, newest last) and `collapsed`. It is JSON-ready; a watch that is
            given the state of another goes on as that one would have.
    """

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def update(self, rows: Iterable[Row]) -> list[Alarm]:
        """The alarms that one look's rows raise; only the rows of weights' `effective_rank` are read."""
        alarms = []
        for _, layer, layer_type, operand, statistic, rank in rows:
            if (operand, statistic) != ("weight", "effective_rank") or math.isnan(rank):
                continue
            if layer not in self.state:
                if rank > 0:
                    self.state[layer] = {"first": rank, "recent": [], "collapsed": False}
                continue
            known = self.state[layer]
            known["recent"] = [*known["recent"], rank][-LOOKS:]
            average = sum(known["recent"]) / len(known["recent"])
            limit = COLLAPSED["strict" if _is_strict(layer, layer_type) else "other"] * known["first"]
            if average < limit and not known["collapsed"]:
                known["collapsed"] = True
                message = (
                    f"effective rank {average:.1f} (average of {len(known['recent'])} looks) is below {limit:.1f}, "
                    f"{limit / known['first']:.0%} of the {known['first']:.1f} at the first look"
                )
                alarms.append(Alarm("rank_collapse", f"{layer}.weight", "optimizer", average, message))
            elif average >= RECOVERED * limit:
                known["collapsed"] = False
        return alarms


def _is_strict(layer: str, layer_type: str) -> bool:
    return layer_type == "head" or layer.endswith(("projection", "down"))
