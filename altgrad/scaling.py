"""amax -> scale: the factor that brings a tensor into a format's range, per tensor.

The scale is a *dequantization* scale: `x / scale` is rounded onto the format's grid, and the real value is the grid
value times the scale. Powers of two lose nothing in float32, so the quantizer stays exact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from altgrad.formats import FloatFormat

_MIN_EXPONENT, _MAX_EXPONENT = -126, 127  # the normal float32 powers of two


def amax(x: Tensor) -> Tensor:
    """Largest absolute value of `x` as a float32 scalar tensor; 0 for an empty tensor; NaN where `x` has one."""
    if x.numel() == 0:
        return torch.zeros((), device=x.device)
    low, high = torch.aminmax(x.detach())
    return torch.maximum(-low, high).float()


def amax_scale(x: Tensor, fmt: FloatFormat, *, granularity: str = "tensor", block: int = 32, power_of_two: bool = True) -> Tensor:
    """Smallest scale at which no element of `x` exceeds the format's largest value.

    Args:
        x: any shape.
        fmt: the format the tensor is brought into.
        power_of_two: take the smallest power of two that will do, found exactly from the bits (no logarithm);
            its exponent is kept within [-126, 127]. Otherwise amax / max, rounded to float32.

    Returns:
        A positive float32 scalar tensor: 1 for a tensor of zeros, NaN for one that holds a NaN or an infinity
        (such a tensor has no scale, and quantizing it with NaN shows the damage at once).
    """
    largest = amax(x)
    if power_of_two:
        mantissa, exponent = torch.frexp(largest)
        max_mantissa, max_exponent = math.frexp(fmt.max)
        exponent = (exponent - max_exponent + (mantissa > max_mantissa)).clamp_(_MIN_EXPONENT, _MAX_EXPONENT)
        scale = torch.ldexp(torch.ones_like(largest), exponent)
    else:
        scale = (largest / fmt.max).clamp_(min=2.0**_MIN_EXPONENT)
    scale = torch.where(largest == 0, 1.0, scale)
    return torch.where(torch.isfinite(largest), scale, torch.nan)


# temporary
class DelayedScale:
    def __init__(self, fmt, *, history=16, power_of_two=True):
        self.fmt = fmt


def quantize_blocks(*a, **k):
    raise NotImplementedError


quantize_mx = quantize_nvfp4 = quantize_blocks
