"""Geometry: where weights and steps lie on the grid of their format, in its own measure, the ulp.

S(w) is the spacing of the grid at a weight w, the tensor's scale and the subnormal range included: one ulp.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from altgrad.nn import Reading
from altgrad.rounding import ulp

EDGES = tuple(f"2^{exponent}" for exponent in (-6, -4, -2, 0, 2, 4))
"""Upper ends of the histogram's intervals, in ulps."""


@torch.no_grad()
def spacing(weight: Reading) -> Tensor:
    """S(w) of every element of a quantized weight: float32 with its shape, at least the smallest float32 (2^-149)."""
    return ulp(weight.real.detach().float(), weight.format, weight.element_scale).clamp_(min=2.0**-149)


@torch.no_grad()
def position_statistics(weight: Reading, spacings: Tensor, counts: Tensor | None) -> dict[str, float]:
    """Where the elements of a quantized weight lie on the grid.

    Args:
        spacings: `spacing` of the weight.
        counts: `counts.code_counts` of its rounded values; None where its codes are not counted.

    Measures (weight):
        code_position [fraction; 0 to 1]: mean(k / K). The mean is over the finite elements; the rounded |w| is the k-th
            of the format's nonnegative finite values in order, from 0 for zero to K for the largest. Left out where no
            element is finite.
        grid_distance [ulp; at least 0]: mean(|w - q(w)| / S(w)). q(w) is the weight as read. At most 1/2 where it is
            rounded to the nearest, 0 on the grid; more where a scale lets values overflow. Left out where
            there are no elements.
    """
    found = {}
    if counts is not None and (total := int(counts.sum())):
        fmt = weight.format
        magnitudes = counts.unflatten(0, (2 if fmt.signed else 1, -1)).sum(0).double()
        place = torch.arange(len(magnitudes), dtype=torch.float64, device=counts.device)
        found["code_position"] = float(magnitudes @ place) / total / fmt.encode(fmt.max)
    if weight.real.numel():
        distance = (weight.rounded - weight.real).abs_().div_(spacings) if weight.rounded is not weight.real else None
        found["grid_distance"] = 0.0 if distance is None else float(distance.mean(dtype=torch.float64))
    return found


@torch.no_grad()
def step_statistics(proposed: Tensor, spacings: Tensor) -> dict[str, float]:
    """How many ulps a step proposes to move the elements of a quantized weight by; nothing where there are none.

    Args:
        proposed: the change before rounding onto the grid.
        spacings: S(w) before the step.

    Measures (update):
        ulps_rms [ulp; at least 0]: sqrt(mean u^2). u = |proposed change| / S(w).
        ulps_0 [fraction; 0 to 1]: count(u = 0) / count(all).
        ulps_2^<e> [fraction; 0 to 1]: count(u < 2^e, and not in an interval before it) / count(all). e is -6 to 4 by 2.
        ulps_inf [fraction; 0 to 1]: count(u >= 2^4, or NaN) / count(all). The eight fractions sum to 1.
    """
    n = proposed.numel()
    if not n:
        return {}
    u = (proposed.float() / spacings).abs_()
    if not math.isfinite(float(u.sum())):  # what does not move has moved by 0, also where S is NaN
        u.masked_fill_(proposed == 0, 0.0)
    exponent = (u.view(torch.int32) >> 23).sub_(127 - 6)  # of 2^-6 is 0
    place = exponent.bitwise_right_shift_(1).clamp_(-1, len(EDGES) - 1).add_(1).flatten()
    numbers = torch.bincount(place, minlength=len(EDGES) + 1).tolist()
    zeros = n - int(torch.count_nonzero(proposed))
    numbers[0] -= zeros
    names = ("0", *EDGES, "inf")
    found = {f"ulps_{name}": number / n for name, number in zip(names, (zeros, *numbers), strict=True)}
    return found | {"ulps_rms": float(torch.linalg.vector_norm(u, dtype=torch.float64)) / math.sqrt(n)}


@torch.no_grad()
def stiffness_correlation(spacings: Tensor, gradient: Tensor) -> dict[str, float]:
    """Whether the gradient knows the grid: large gradients where the grid is coarse, or where it is fine.

    Logarithms are float32, their sums float64.

    Measures (gradient):
        stiffness_correlation [correlation; -1 to 1]: corr(log2 S(w), log2 |g|). Pearson's, over the elements with a
            finite g that is not 0. Left out where S or |g| is the same for all of them, or there are fewer than two.
    """
    g = gradient.detach()
    g = (g.to_dense() if g.is_sparse else g).float().flatten()
    x, y = spacings.flatten().log2(), g.abs().log2()  # not finite where g is 0 or not finite
    if not math.isfinite(float(x.sum() + y.sum())):
        chosen = x.isfinite() & y.isfinite()
        x, y = x[chosen], y[chosen]
    if len(x) < 2:
        return {}
    (x_low, x_high), (y_low, y_high) = torch.aminmax(x), torch.aminmax(y)
    if x_low == x_high or y_low == y_high:
        return {}
    x, y = x.double(), y.double()
    x -= x.mean()
    y -= y.mean()
    return {"stiffness_correlation": max(-1.0, min(1.0, float((x @ y) / ((x @ x).sqrt() * (y @ y).sqrt()))))}
