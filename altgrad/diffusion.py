"""Clamped error diffusion: each element to one of its two neighbours on the grid, so that the sum of a row survives.

Rounding to nearest loses the tail of a gradient of logits: elements below half the smallest spacing become zero, row
after row in the same direction. Here a row (the last dimension) is gone through by falling magnitude, and what rounding
has lost so far is carried to the next element, which goes to that neighbour of its *exact* value that is nearer to the
sum: never beyond, so that no element pays for the others. It is deterministic, and needs no draws.

For x with the neighbours l <= x <= u, S = u - l, and the error e that is carried to it:

    v = e + (x - l) - S/2          how far the sum lies above the middle of the two
    y = u where v >= 0, else l     so a tie goes up
    e' = v - S/2 where v >= 0, else v + S/2;  that is e + x - y

What an element and a row may lose, in exact arithmetic:

- |y - x| < S, since y is a neighbour; an element on the grid stays as it is, with S = 0 and e' = e.
- |e'| <= max(|e|, S/2). Where -S <= v <= S this is |e'| <= S/2. Where v > S, e' = v - S/2 > S/2 > 0, and e' =
  e - (u - x) <= e: the element is clamped to u, and e only shrinks. Where v < -S, likewise with l. So, by induction
  from e = 0, the sums of x and y differ by at most half the largest spacing of the row.
- Where the last element that is not on the grid is not clamped, they differ by at most half *its* spacing. It has the
  smallest magnitude, and so, where one scale is shared by the row, the smallest spacing.

Sums are float64, which adds V * 2^-52 of the largest spacing to that in a row of V elements. A scale that is no power
of two has quotients and neighbours that are rounded to float32: x may then lie beside its neighbours, by as much.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from altgrad.rounding import is_traced

_PIECE = 1 << 18
"""Elements that the processor works on at a time: more scratch would be memory that is new for every call."""


def diffuse(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """`x` rounded to `lower` or `upper` by clamped error diffusion along the last dimension. Has no gradient.

    Elements of one magnitude are in the order of their indices. An element whose neighbours are one value (it is on the
    grid, saturated, infinite) takes it, and neither loses nor is given anything; one with a neighbour that is NaN, as
    NaN itself has, becomes NaN. So a row of zeros stays one, with its signs, and in a row of one element a value goes
    to the nearer neighbour, from the middle up. The bits do not depend on threads, and are the same in compiled code.

    Args:
        x: [..., V], any floating dtype.
        lower, upper: the neighbours of each element on its grid, as `altgrad.rounding.quantize` rounds "down" and "up";
            shape, dtype and device of `x`.

    Returns:
        A new tensor with the shape and dtype of `x`.
    """
    if is_traced():
        found: Tensor = torch.ops.altgrad.diffuse(x, lower, upper)
        return found
    return _diffuse(x, lower, upper)


@torch.no_grad()
def _diffuse(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    if x.numel() == 0 or x.ndim == 0 or x.device.type == "meta":
        return torch.where(2 * x >= lower + upper, upper, lower)
    dtype = torch.promote_types(x.dtype, torch.float32)
    rows, low, high = (each.to(dtype).reshape(-1, x.shape[-1]) for each in (x, lower, upper))
    size = max(1, _PIECE // x.shape[-1]) if x.device.type == "cpu" else len(rows)
    found = [_diffuse_rows(*piece) for piece in zip(*(each.split(size) for each in (rows, low, high)), strict=True)]
    return (found[0] if len(found) == 1 else torch.cat(found)).to(x.dtype).view(x.shape)


def _diffuse_rows(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`diffuse` of [N, V], float32 or float64."""
    span, above = high - low, x - low
    whole = (span > 0).logical_not_()
    span.masked_fill_(whole, 0.0)
    above.masked_fill_(whole, 0.0)
    order = _by_falling_magnitude(x)
    above, span = (each.gather(1, order).t().contiguous().double() for each in (above, span))
    half = span.mul_(0.5)
    sums = (_carried_on_cpu if x.device.type == "cpu" else _carried)(above.sub_(half), half)
    far = torch.copysign(torch.tensor(math.inf, dtype=x.dtype), sums.to(x.dtype))  # a choice by mask is slow
    found = torch.empty_like(x).scatter_(1, order, far.t().contiguous())
    return found.maximum(low).minimum(high)


def _by_falling_magnitude(x: Tensor) -> Tensor:
    """The order of the elements in each row of `x` [N, V], float32 or float64: int64 [N, V].

    Equal magnitudes are in the order of their places, NaN comes first. On the processor, magnitude and place are
    sorted as one whole number, which is 20 times as fast as a stable sort.
    """
    wide = x.dtype == torch.float64
    bits = x.contiguous().view(torch.int64 if wide else torch.int32)
    magnitude = bits & (2 ** (63 if wide else 31) - 1)
    if wide or x.device.type != "cpu":
        return torch.sort(magnitude, dim=-1, descending=True, stable=True).indices
    keys = magnitude.numpy().astype(np.int64)
    keys <<= 32
    np.subtract(np.arange(x.shape[-1]), keys, out=keys)
    keys.sort(axis=-1)
    keys &= 2**32 - 1
    return torch.from_numpy(keys)


def _carried(offsets: Tensor, halves: Tensor) -> Tensor:
    """v of each element, from (x - l) - S/2 and S/2; [V, N], V the elements of N rows in their order."""
    sums, error = torch.empty_like(offsets), torch.zeros_like(offsets[0])
    for offset, half, v in zip(offsets, halves, sums, strict=True):
        torch.add(error, offset, out=v)
        error = v - torch.where(v >= 0, half, -half)
    return sums


def _carried_on_cpu(offsets: Tensor, halves: Tensor) -> Tensor:
    """`_carried` by numpy, whose calls cost a third of torch's. v is never -0: no sum of numbers that are not is."""
    sums: NDArray[np.float64] = np.empty(offsets.shape)
    error, step = np.zeros((2, offsets.shape[1]))
    for offset, half, v in zip(offsets.numpy(), halves.numpy(), sums, strict=True):
        np.add(error, offset, out=v)
        np.copysign(half, v, out=step)
        np.subtract(v, step, out=error)
    return torch.from_numpy(sums)


_SCHEMA = "(Tensor x, Tensor lower, Tensor upper) -> Tensor"
_opaque = torch.library.custom_op("altgrad::diffuse", _diffuse, mutates_args=(), schema=_SCHEMA)
_opaque.register_fake(lambda x, lower, upper: torch.empty_like(x, memory_format=torch.contiguous_format))
