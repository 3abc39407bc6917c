"""A tensor onto a format's grid: the kernel.

One short function does it all, and yields the spacing of the grid (the *ulp field*) on the way:

    ulp = clamp(2^exponent(x) * 2^-M, quantum, max_ulp)     exponent from the bits, never floor(log2(x))
    y   = round_half_even(x / ulp) * ulp                    exact: ulp and its inverse are powers of two
    y   = saturate, or overflow to inf / NaN as the format has it

It equals `FloatFormat.round`, the readable specification, on every input. FP16 and BF16 go through torch's
native casts (a BF16 ulp can be a float32 subnormal, whose inverse does not exist in float32).

Conventions: `scale` is the *dequantization* scale, real value = grid value x scale, and results are real values.
-0 stays -0, NaN stays NaN, overflow is decided after rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from altgrad.formats import FloatFormat

ROUNDINGS = ("nearest_even",)
INPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NATIVE = {"fp16": torch.float16, "bf16": torch.bfloat16}

_EXPONENT_MASK = 0x7F800000
_ONE_SQUARED_BITS = 254 << 23  # bits(2^k) + bits(2^-k), so bits(1 / ulp) = this - bits(ulp)


def quantize(
    x: Tensor,
    fmt: FloatFormat,
    *,
    scale: Tensor | float | None = None,
    rounding: str = "nearest_even",
    saturate: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """Round every element of `x` to the nearest value of the grid `scale * fmt`. Has no gradient.

    Args:
        x: any shape; float32, bfloat16 or float16 (each exact in float32).
        fmt: the number format. FP32 returns a copy: it means "not quantized".
        scale: dequantization scale, broadcastable to `x`; positive. A NaN scale makes its elements NaN. None is 1.
        rounding: "nearest_even": ties to the even code (for M = 0 as well, where neighbours are powers of two).
        saturate: True clips to the format's largest value, infinities included; False overflows to infinity where
            the format has it, else to NaN where it has that. A finite format always saturates.
        out: receives the result; same shape and dtype as `x`. May be `x` itself.

    Returns:
        Real values with the shape and dtype of `x`. In a float16 tensor, grid values beyond 65504 become infinite,
        and with a scale that is no power of two values are rounded once more to the dtype.

    Raises:
        TypeError: `x` is float64 (rounding it to float32 first would round twice) or not floating point.
        ValueError: unknown rounding.
    """
    _check(x, rounding)
    if fmt.name == "fp32":
        return x.clone() if out is None else out.copy_(x)
    with torch.no_grad():
        real = x.float()
        grid = real if scale is None else real / scale
        grid = _round_to_grid(grid, fmt, saturate, owned=grid is not x)
        if scale is not None:
            grid.mul_(scale)
        return grid.to(x.dtype) if out is None else out.copy_(grid)


def fake_quantize(
    x: Tensor,
    fmt: FloatFormat,
    *,
    scale: Tensor | float | None = None,
    rounding: str = "nearest_even",
    saturate: bool = True,
    gradient: str = "pass",
) -> Tensor:
    """`quantize` with a gradient: the straight-through estimator (Bengio et al. 2013, arXiv 1308.3432).

    Args:
        gradient: "pass" hands the incoming gradient on unchanged; "mask" zeroes it where |x / scale| exceeds the
            format's largest value, where the true derivative is zero. `scale` gets no gradient.

    The rest, the returned values and the errors are those of `quantize`.
    """
    if gradient not in ("pass", "mask"):
        raise ValueError(f"gradient must be 'pass' or 'mask', not {gradient!r}")
    y: Tensor = _FakeQuantize.apply(x, fmt, scale, rounding, saturate, gradient == "mask")
    return y


def ulp(x: Tensor, fmt: FloatFormat, scale: Tensor | float | None = None) -> Tensor:
    """Spacing of the grid `scale * fmt` at every element of `x`, as float32.

    In the subnormal range and at zero it is the format's `quantum`, beyond the largest value the spacing there
    (`max_ulp`); infinities and NaN get `max_ulp`.

    Raises:
        TypeError: `x` is not float32, bfloat16 or float16.
    """
    _check(x, "nearest_even")
    with torch.no_grad():
        real = x.float()
        spacing = _ulp(real if scale is None else real / scale, fmt)
        return spacing if scale is None else spacing.mul_(scale)


def power_of_two_below(x: Tensor) -> Tensor:
    """2^floor(log2|x|) of a float32 tensor, from its exponent bits; 0 for zeros and float32 subnormals."""
    return (x.view(torch.int32) & _EXPONENT_MASK).view(torch.float32)


def _check(x: Tensor, rounding: str) -> None:
    if x.dtype not in INPUT_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in INPUT_DTYPES)
        raise TypeError(f"quantize takes {names}, not {str(x.dtype).removeprefix('torch.')}: convert it first")
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding must be one of {', '.join(ROUNDINGS)}, not {rounding!r}")


def _ulp(grid: Tensor, fmt: FloatFormat) -> Tensor:
    spacing = power_of_two_below(grid)
    return spacing.mul_(2.0**-fmt.mantissa_bits).clamp_(fmt.quantum, fmt.max_ulp)


def _round_to_grid(grid: Tensor, fmt: FloatFormat, saturate: bool, owned: bool) -> Tensor:
    """Rounds float32 grid units; works in place where `owned` says that the tensor is ours."""
    if fmt.name in NATIVE:
        if saturate:
            grid = grid.clamp(-fmt.max, fmt.max)
        return grid.to(NATIVE[fmt.name]).float()
    spacing = _ulp(grid, fmt)
    inverse = (_ONE_SQUARED_BITS - spacing.view(torch.int32)).view(torch.float32)
    steps = grid.mul_(inverse) if owned else grid * inverse
    if fmt.mantissa_bits == 0:
        _break_ties_to_even_code(steps, spacing, fmt)
    rounded = steps.round_().mul_(spacing)
    if saturate or not (fmt.has_infinity or fmt.has_nan):
        return rounded.clamp_(-fmt.max, fmt.max)
    beyond = rounded.abs() > fmt.max
    if fmt.has_infinity:
        return torch.where(beyond, torch.copysign(torch.full_like(rounded, torch.inf), rounded), rounded)
    return rounded.masked_fill_(beyond, torch.nan)


def _break_ties_to_even_code(steps: Tensor, spacing: Tensor, fmt: FloatFormat) -> None:
    """Without a mantissa the lower neighbour's code is its exponent field: an even one wins the tie at 1.5 steps.

    There, every magnitude is taken down by one float32 ulp, which moves nothing but the tie. The spacings at both ends
    of the range (subnormals, zero; overflow, infinities, NaN) belong to odd codes and stay as they are.
    """
    lower_is_even = (spacing.view(torch.int32) >> 23).add_(fmt.bias).bitwise_and_(1)
    steps.view(torch.int32).sub_(lower_is_even)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, fmt, scale, rounding, saturate, mask):  # type: ignore[no-untyped-def]
        if mask:
            grid = x.detach().float() if scale is None else x.detach().float() / scale
            ctx.save_for_backward(grid.abs() <= fmt.max)
        return quantize(x, fmt, scale=scale, rounding=rounding, saturate=saturate)

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def]
        if ctx.saved_tensors:
            grad_output = grad_output * ctx.saved_tensors[0]
        return grad_output, None, None, None, None, None
