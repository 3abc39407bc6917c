"""Tensors onto a format's grid: the kernel.

One short function does it all, and yields the spacing of the grid (the *ulp field*) on the way:

    ulp = clamp(2^exponent(x) * 2^-M, quantum, max_ulp)     exponent from the bits, never floor(log2(x))
    y   = round_half_even(x / ulp) * ulp                    exact: ulp is a power of two
    y   = saturate, or overflow to inf / NaN as the format has it

It equals `FloatFormat.round`, the readable specification, on every input and in every rounding. Formats that do not fit
float32's normal numbers (BF16, E9M6, E8M0) and float64 tensors go through the same function in float64, where all of
it is exact as well. A stochastic draw depends on (seed, index of the element) alone: `formats.stochastic_draw`. Version
2 of the draws costs half as much: a word for two elements, and so few bits that the steps minus the draw are exact.

Conventions: `scale` is the *dequantization* scale, real value = grid value x scale, and results are real values.
-0 stays -0 where the format has one, NaN stays NaN, overflow is decided after rounding.

Eager code works through a tensor in pieces that stay in the processor's cache, so that its scratch memory is a piece
and not a tensor. `compile_quantize` makes one pass of it with torch.compile; both give the same bits.
"""

from __future__ import annotations

import logging
import math
import struct
import sys
import types
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from altgrad.draws import Draws, draws_of_each
from altgrad.formats import BF16, FP16, FP32, ROUNDINGS, FloatFormat, draw_keys, drawn_version, no_rounding
from altgrad.scratch import Scratch

INPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NATIVE = {FP16: torch.float16, BF16: torch.bfloat16}
CODE_DTYPES = (torch.uint8, torch.uint16)

PIECE = 1 << 18
"""Elements that eager code works on at a time, for each thread: the scratch for them stays in the cache."""
_SMALL = 1 << 16
"""Elements up to which the allocator's own memory is as fast as scratch of ours."""
_WHOLE = 1 << 30
"""Elements of one compiled call: their indices and counts fit 32 bits."""
_log = logging.getLogger("altgrad")


class _Layout(NamedTuple):
    """How a working dtype lies in its bits."""

    integer: torch.dtype
    exponent_mask: int
    sign_mask: int
    mantissa_bits: int
    exponent_bias: int


_LAYOUTS = {
    torch.float32: _Layout(torch.int32, 0x7F800000, -(1 << 31), 23, 127),
    torch.float64: _Layout(torch.int64, 0x7FF << 52, -(1 << 63), 52, 1023),
}


class Counted(NamedTuple):
    """What `quantize_counted` found; the counts are int64 tensors without dimensions.

    Attributes:
        values: what `quantize` returns.
        ulp: float32 (float64 for float64 input), the spacing of the grid at every element, the scale included; None
            where it was not asked for.
        overflow: elements whose rounded magnitude is beyond the format's largest value, infinities included.
        underflow: elements that were not zero and became zero on the grid.
        flips: elements that differ from `previous`; None without it.
        nonzero: elements that were not zero, NaN included.
    """

    values: Tensor
    ulp: Tensor
    overflow: Tensor
    underflow: Tensor
    flips: Tensor | None
    nonzero: Tensor


def quantize(
    x: Tensor,
    fmt: FloatFormat,
    *,
    scale: Tensor | float | None = None,
    rounding: str = "nearest_even",
    saturate: bool = True,
    seed: int | Tensor | None = None,
    draw_version: int = 1,
    first: int = 0,
    out: Tensor | None = None,
    check_scale: bool = True,
) -> Tensor:
    """Round every element of `x` to a value of the grid `scale * fmt`. Has no gradient.

    Args:
        x: any shape; float32, bfloat16, float16 (each exact in float32) or float64 (rounded once, in float64).
        fmt: the number format. FP32 returns a copy of what is no wider: it means "not quantized".
        scale: dequantization scale, broadcastable to `x`; positive and finite. None is 1.
        rounding: "nearest_even": ties to the even code (for M = 0 as well, where neighbours are powers of two);
            "nearest_away"; "toward_zero"; "up", "down": towards +-infinity; "stochastic": unbiased to 2^-24.
        saturate: True clips to the format's largest value, infinities included; False overflows to infinity where
            the format has it, else to NaN where it has that. A finite format always saturates, and a directed
            rounding that points inwards keeps finite values finite.
        seed: of stochastic rounding, 0 <= seed < 2**64; the draws depend on it and the elements' indices alone. An
            int64 tensor of one element holds the bits of a seed that a graph of one's own reads when it runs.
        draw_version: of `formats.stochastic_draw`; 2 is quicker and unbiased to 2^-15, and formats of more than 7
            mantissa bits keep version 1.
        first: index that the first element of `x` has in the tensor it is a part of, for the draws.
        out: receives the result; same shape, dtype and device as `x`. May be `x` itself, or overlap it: what would be
            overwritten too early is copied first.
        check_scale: False skips the look at a scale tensor's values, which on a GPU would wait for the device (there
            it is never taken). A NaN scale then makes its elements NaN.

    Returns:
        Real values with the shape and dtype of `x`, contiguous. Where the dtype is narrower than the grid (values
        beyond 65504 in a float16 tensor; a scale that is no power of two) values are rounded once more to the dtype.
        A format with a range beyond float32's (E9M6, E10M5) stops at its largest value that the dtype has.

    Raises:
        TypeError: `x` or `out` has another dtype, or `scale` is neither a number nor a floating-point tensor.
        ValueError: unknown rounding or version; a stochastic one without a seed; a scale that is zero, negative,
            infinite, NaN or of a shape that does not broadcast to `x`; `out` of another shape; a format beyond float64
            (E11M4 on).
    """
    return _quantize(
        _job(x, fmt, scale, rounding, saturate, (seed, draw_version, first), check_scale, out), counted=False
    ).values


def quantize_counted(
    x: Tensor,
    fmt: FloatFormat,
    *,
    scale: Tensor | float | None = None,
    rounding: str = "nearest_even",
    saturate: bool = True,
    seed: int | Tensor | None = None,
    draw_version: int = 1,
    first: int = 0,
    previous: Tensor | None = None,
    out: Tensor | None = None,
    ulp_out: Tensor | None = None,
    with_ulp: bool = True,
    check_scale: bool = True,
) -> Counted:
    """`quantize`, with what it did to the tensor counted in the same pass.

    Args:
        previous: values that the new ones are compared with for `flips`, with the shape and dtype of `x`.
        ulp_out: receives the ulp field: shape of `x`, float32 (float64 for float64 input), contiguous.
        with_ulp: False leaves the ulp field out, and what it costs to write it.

    The rest, the returned values and the errors are those of `quantize`.
    """
    job = _job(x, fmt, scale, rounding, saturate, (seed, draw_version, first), check_scale, out, previous, ulp_out)
    return _quantize(job, counted=True, with_ulp=with_ulp or ulp_out is not None)


def fake_quantize(
    x: Tensor,
    fmt: FloatFormat,
    *,
    scale: Tensor | float | None = None,
    rounding: str = "nearest_even",
    saturate: bool = True,
    seed: int | Tensor | None = None,
    draw_version: int = 1,
    gradient: str = "pass",
    check_scale: bool = True,
) -> Tensor:
    """`quantize` with a gradient: the straight-through estimator (Bengio et al. 2013, arXiv 1308.3432).

    Args:
        gradient: "pass" hands the incoming gradient on unchanged; "mask" zeroes it where |x / scale| exceeds the
            format's largest value, where the true derivative is zero. `scale` gets no gradient.

    The rest, the returned values and the errors are those of `quantize`.
    """
    if gradient not in ("pass", "mask"):
        raise ValueError(f"gradient must be 'pass' or 'mask', not {gradient!r}")
    how = (rounding, saturate, seed, draw_version, gradient == "mask", check_scale)
    y: Tensor = straight_through(_FakeQuantize, x, fmt, scale, *how)
    return y


def ulp(x: Tensor, fmt: FloatFormat, scale: Tensor | float | None = None) -> Tensor:
    """Spacing of the grid `scale * fmt` at every element of `x`, as float32 (float64 for float64 input).

    In the subnormal range and at zero it is the format's `quantum`, beyond the largest value the spacing there
    (`max_ulp`); infinities and NaN get `max_ulp`. BF16's smallest spacings are subnormal float32 numbers.

    Raises:
        TypeError, ValueError: as `quantize`.
    """
    job = _job(x, fmt, scale, "nearest_even", True, (None, 1), False)
    with torch.no_grad():
        c = _constants(fmt, x.dtype)
        spacing = _spacing(_to_grid(x.detach(), job.scale, c), c)
        return (spacing if job.scale is None else spacing * job.scale).to(_ulp_dtype(x.dtype))


def encode(
    x: Tensor,
    fmt: FloatFormat,
    *,
    scale: Tensor | float | None = None,
    rounding: str = "nearest_even",
    saturate: bool = True,
    seed: int | Tensor | None = None,
    draw_version: int = 1,
    check_scale: bool = True,
) -> Tensor:
    """The codes of `x` in the format: uint8 for formats of up to 8 bits, uint16 for up to 16; shape of `x`.

    They are those of `FloatFormat.encode`, also where a format's range is beyond the dtype's (E9M6, E10M5).

    Raises:
        ValueError: a NaN where the format has no NaN code; a format of more than 16 bits; and as `quantize`.
        TypeError: as `quantize`.
    """
    job = _job(x, fmt, scale, rounding, saturate, (seed, draw_version), check_scale)
    if fmt.bits > 16:
        raise ValueError(f"encode has codes of at most 16 bits; {fmt.name} has {fmt.bits}")
    codes = torch.empty(x.shape, dtype=torch.uint8 if fmt.bits <= 8 else torch.uint16, device=x.device)
    if x.device.type == "meta" or x.numel() == 0:
        return codes
    with torch.no_grad():
        c = _constants(fmt, x.dtype)._replace(limit=fmt.max)  # codes go as far as the format does
        dense = x.detach().contiguous()
        size = PIECE * torch.get_num_threads() if x.device.type == "cpu" else x.numel()
        for start, shape, part in _pieces(tuple(x.shape), job.scale, size):
            stop = start + math.prod(shape)
            grid = _to_grid(dense.view(-1)[start:stop].view(shape), part, c)
            draw = None if job.draws is None else job.draws.numbers(start, shape, x.device)
            codes.view(-1)[start:stop].view(shape).copy_(_codes(grid, c, job, draw))
        return codes


def _codes(grid: Tensor, c: _Constants, job: _Job, draw: Tensor | None) -> Tensor:
    """The codes of `grid` in the working dtype's integers. A value of k spacings of 2^j quanta has k + j * 2^M."""
    layout, fmt = _LAYOUTS[c.dtype], job.fmt
    rounded, spacing = _round(grid, c, job.rounding, draw, job.version)
    values = _finish(rounded, grid, c, job.rounding, job.saturate)
    steps = (values / spacing).abs_()
    special = ~steps.isfinite()
    if fmt.quantum_exponent >= 1 - layout.exponent_bias:
        exponent = (spacing.view(layout.integer) >> layout.mantissa_bits) - layout.exponent_bias
    else:  # subnormal spacings have no exponent in their bits
        exponent = (torch.frexp(spacing)[1] - 1).to(layout.integer)
    binade = exponent - fmt.quantum_exponent
    code = steps.masked_fill_(special, 0).to(layout.integer) + (binade << fmt.mantissa_bits)
    if not fmt.signed:
        code -= 1  # the code 0 is not a zero
    found = bool(special.any())
    if found and fmt.has_infinity:
        code.masked_fill_(values.isinf(), fmt.encode(math.inf, saturate=False))
    if fmt.signed:
        negative = torch.signbit(values)
        code += (negative if fmt.has_negative_zero else negative & (code != 0)).to(code.dtype) << (fmt.bits - 1)
    if found and bool((nan := values.isnan()).any()):
        if not fmt.has_nan:
            raise ValueError(f"x holds NaN, and {fmt.name} has no NaN code")
        code.masked_fill_(nan, fmt.encode(math.nan))
    return code


def decode(codes: Tensor, fmt: FloatFormat, *, scale: Tensor | float | None = None) -> Tensor:
    """The real values of `codes` times `scale`: float32 with the shape of `codes`.

    Formats with a range beyond float32's give infinities and zeros there. A NaN code gives NaN.

    Raises:
        TypeError: codes are not uint8 or uint16; and as `quantize` for `scale`.
        ValueError: a code of more than the format's bits; a format of more than 16 bits or beyond float64; and as
            `quantize` for `scale`.
    """
    _check_format(fmt)
    if not isinstance(codes, Tensor) or codes.dtype not in CODE_DTYPES:
        raise TypeError(f"decode takes uint8 or uint16 codes, not {dtype_or_type(codes)}")
    values = torch.from_numpy(fmt.values.copy()).float()
    if codes.device.type == "meta":
        return torch.empty(codes.shape, device="meta")
    index = codes.int()
    if fmt.bits < 8 * codes.dtype.itemsize and index.numel() and int(index.max()) >= len(values):
        raise ValueError(f"codes of {fmt.name} go from 0 to {len(values) - 1}; there is a {int(index.max())}")
    real = values.to(codes.device)[index]
    return real if scale is None else real.mul_(_checked_scale(real, scale, True))


def power_of_two_below(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """2^floor(log2|x|) of a float32 or float64 tensor, from its exponent bits; 0 for zeros and subnormals.

    `out` is a tensor of the integer dtype of the same width that the result may be a view of.
    """
    layout = _LAYOUTS[x.dtype]
    return torch.bitwise_and(x.view(layout.integer), layout.exponent_mask, out=out).view(x.dtype)


def compile_quantize(
    fmt: FloatFormat,
    *,
    rounding: str = "nearest_even",
    saturate: bool = True,
    draw_version: int = 1,
    counted: bool = False,
) -> Callable[..., Any]:
    """`quantize` (`quantize_counted` where `counted`) of one format as one compiled pass over the tensor.

    The function that is returned takes `x` and what is left of their keyword arguments. torch.compile makes it at the
    first call, once for all sizes, in 2 to 30 seconds, with a C++ compiler on the processor and Triton on a GPU. Where
    that fails, one line (from the logger "altgrad", by default on stderr) says so and the eager form does the work.
    Both give the same bits.

    Raises:
        ValueError: unknown rounding, a format beyond float64; the rest as `quantize`, when called.
    """
    _check_format(fmt)
    _check_rounding(rounding)
    fmt.require_float64("quantize")
    version = drawn_version(draw_version, fmt)
    wholes: dict[torch.dtype, Callable[..., Counted]] = {}
    compiler = Compiler()

    def run(
        x: Tensor,
        *,
        scale: Tensor | float | None = None,
        seed: int | Tensor | None = None,
        previous: Tensor | None = None,
        out: Tensor | None = None,
        ulp_out: Tensor | None = None,
        check_scale: bool = True,
    ) -> Any:
        if not counted and (previous is not None or ulp_out is not None):
            raise TypeError("previous and ulp_out belong to compile_quantize(counted=True)")
        job = _job(x, fmt, scale, rounding, saturate, (seed, draw_version), check_scale, out, previous, ulp_out)
        if not job.trivial and x.dtype not in wholes:
            whole = _make_whole(_constants(fmt, x.dtype), rounding, saturate, counted, version)
            wholes[x.dtype] = compiler.compiled(whole, f"quantize_{fmt.name}")
        found = compiler.call(
            lambda: _quantize(job, counted, compiled=wholes.get(x.dtype)), lambda: _quantize(job, counted)
        )
        return found if counted else found.values

    return run


class Compiler:
    """torch.compile as long as it works; where it does not, one line says so and the eager form does the work."""

    def __init__(self) -> None:
        self.works = True

    def compiled(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function, to be compiled for all sizes at its first call."""
        # torch.compile counts recompilations by code object, and formats must not share that budget.
        code = function.__code__.replace(co_name=name)
        function = types.FunctionType(code, function.__globals__, name, None, function.__closure__)
        return torch.compile(function, dynamic=True, options=_exact_division())

    def call(self, compiled: Callable[[], Any], eager: Callable[[], Any]) -> Any:
        """What the one gives, or the other."""
        if self.works:
            try:
                return compiled()
            except Exception as error:
                if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                    raise
                self.works = False
                reason = " ".join(str(error).split())[:120]
                _log.warning("altgrad: no compiled quantizer here (%s...); the eager form does the work", reason)
        return eager()


def _exact_division() -> dict[str, Any] | None:
    """On a GPU, quotients rounded as eager ones are; older torch has no such option, and needs none on a processor."""
    import torch._inductor

    option = "eager_numerics.division_rounding"
    return {option: True} if option in torch._inductor.list_options() else None


class _Constants(NamedTuple):
    """What the kernel needs of a format, for tensors of one dtype. No integers: torch.compile would make them symbols.

    Attributes:
        dtype: the working dtype.
        eps: 2^-M.
        quantum, max_ulp: the limits of the spacing.
        max: the format's largest value; what rounds beyond it is an overflow.
        limit: what saturation clips to; less than `max` where the tensor's dtype ends earlier.
        far: steps that are beyond the largest value at any spacing.
        has_mantissa: ties of whole steps alternate between even and odd codes (not so for M = 0).
        odd_bias: the bias is odd.
        signed, has_infinity, has_nan, has_negative_zero: as the format's.
    """

    dtype: torch.dtype
    eps: float
    quantum: float
    max_ulp: float
    max: float
    limit: float
    far: float
    has_mantissa: bool
    odd_bias: bool
    signed: bool
    has_infinity: bool
    has_nan: bool
    has_negative_zero: bool


def _constants(fmt: FloatFormat, dtype: torch.dtype) -> _Constants:
    """The constants: from a cache, and for torch.compile, which need not see one, as what they are."""
    return (_make_constants if is_traced() else _known_constants)(fmt, dtype)


def _make_constants(fmt: FloatFormat, dtype: torch.dtype) -> _Constants:
    """float32 works where every spacing is a normal float32 and no quotient leaves them; float64 does the rest."""
    narrow = -126 <= fmt.quantum_exponent <= 0 and fmt.max_exponent <= 127 and fmt.signed and dtype != torch.float64
    if not fmt.fits_float64:
        fmt.require_float64("quantize")
    lowest = fmt.min_normal_exact
    if dtype == torch.float64 and lowest is not None and lowest[1] < -1022:
        raise ValueError(
            f"float64 tensors cannot be rounded to {fmt.name}: its normal numbers go down to 2**{lowest[1]}, "
            "beneath float64's own"
        )
    limit = fmt.max
    if dtype != torch.float64 and fmt.max_exponent > 127:  # the grid's last value below 2**128, which may be zero
        limit = max(0.0, 2.0**128 - math.ldexp(1.0, max(127 - fmt.mantissa_bits, fmt.quantum_exponent)))
    return _Constants(
        dtype=torch.float32 if narrow else torch.float64,
        eps=fmt.eps,
        quantum=fmt.quantum,
        max_ulp=fmt.max_ulp,
        max=fmt.max,
        limit=limit,
        far=4.0 * 2.0**fmt.mantissa_bits,
        has_mantissa=fmt.mantissa_bits > 0,
        odd_bias=fmt.bias % 2 == 1,
        signed=fmt.signed,
        has_infinity=fmt.has_infinity,
        has_nan=fmt.has_nan,
        has_negative_zero=fmt.has_negative_zero,
    )


# What torch.compiler.assume_constant_result does, without its import of torch._dynamo. Traced, the whole numbers of a
# second format would become symbols.
_make_constants._dynamo_marked_constant = True  # type: ignore[attr-defined]
_known_constants = lru_cache(maxsize=256)(_make_constants)


class _Job(NamedTuple):
    """The checked arguments of one call."""

    x: Tensor
    fmt: FloatFormat
    scale: Tensor | float | None
    rounding: str
    saturate: bool
    draws: Draws | None
    out: Tensor | None
    previous: Tensor | None = None
    ulp_out: Tensor | None = None

    @property
    def version(self) -> int:
        """Of the draws."""
        return 1 if self.draws is None else self.draws.version

    @property
    def trivial(self) -> bool:
        """Nothing to compute."""
        return self.x.device.type == "meta" or self.x.numel() == 0 or self.unquantized

    @property
    def unquantized(self) -> bool:
        """FP32 means "not quantized" for every tensor that is no wider."""
        return self.fmt == FP32 and self.x.dtype != torch.float64


def _quantize(
    job: _Job, counted: bool, with_ulp: bool = True, compiled: Callable[..., Counted] | None = None
) -> Counted:
    with torch.no_grad():
        x = job.x.detach()
        if is_traced() and not job.trivial:  # inside somebody's own graph
            whole = _make_whole(_constants(job.fmt, x.dtype), job.rounding, job.saturate, counted, job.version)
            found = whole(x, job.scale, _key_or_numbers(job, 0, x.shape), job.previous, job.out, job.ulp_out)
            values = found.values if job.out is None else job.out
            field = found.ulp if job.ulp_out is None else job.ulp_out
            return found._replace(values=values, ulp=field if with_ulp else None)
        # Strided tensors are copied once, into the result, and worked on there.
        previous = None if job.previous is None else job.previous.detach().contiguous()
        copied = not x.is_contiguous() or job.unquantized
        dense = job.out
        if dense is None or not dense.is_contiguous() or (copied and previous is not None):  # out may be previous
            dense = torch.empty_like(x, memory_format=torch.contiguous_format)
        if copied:
            x = dense.copy_(x)
        field = counts = None
        if counted:
            counts = torch.zeros(4, dtype=torch.int64, device=x.device)
        if counted and with_ulp:
            field = (
                torch.empty(x.shape, dtype=_ulp_dtype(x.dtype), device=x.device) if job.ulp_out is None else job.ulp_out
            )
        if not job.trivial and compiled is not None:
            _quantize_whole(job, compiled, x, dense, previous, field, counts)
        elif not job.trivial:
            _quantize_pieces(job, x, dense, previous, field, counts)
        elif counts is not None and job.unquantized and x.device.type != "meta":
            if field is not None:
                field.copy_(_spacing(x.double(), _constants(FP32, torch.float64)))
            counts[2] = torch.count_nonzero(x)
            if previous is not None:
                counts[3] = torch.count_nonzero(x != previous)
        if job.out is not None and dense is not job.out:
            dense = job.out.detach().copy_(dense)
        values = dense if job.out is None else job.out
        overflow, underflow, nonzero, flips = (None,) * 4 if counts is None else counts.unbind()
        flips = flips if previous is not None else None
        return Counted(values, field, overflow, underflow, flips, nonzero)  # type: ignore[arg-type]


def _quantize_pieces(
    job: _Job, x: Tensor, out: Tensor, previous: Tensor | None, field: Tensor | None, counts: Tensor | None
) -> None:
    """The eager form: contiguous `x` to contiguous `out`, a piece at a time; what is not None is filled."""
    c, whole_scale = _constants(job.fmt, x.dtype), job.scale
    size = PIECE * torch.get_num_threads() if x.device.type == "cpu" else _WHOLE
    scratch = Scratch(min(size, x.numel()), x.device) if x.numel() > _SMALL else None
    native = None
    if job.rounding == "nearest_even" and counts is None and x.dtype != torch.float64:
        native = NATIVE.get(job.fmt)
    if native is None and (moved := _moved_grid(job, c)) is not None:
        c, whole_scale = moved, None
    one_spacing = field is None and c.has_mantissa and c.quantum == c.max_ulp
    # Nobody needs the quotients any more when steps are made of them: all of it happens in the result's own memory.
    alone = counts is None and field is None and c.signed and (job.saturate or not (c.has_infinity or c.has_nan))
    out = out.detach()
    total = x.numel()

    def part(whole: Tensor, start: int, stop: int, shape: tuple[int, ...]) -> Tensor:
        if stop - start == total:
            return whole
        piece = whole.view(-1)[start:stop]
        return piece if len(shape) == 1 else piece.view(shape)

    for start, shape, scale in _pieces(tuple(x.shape), whole_scale, size):
        stop = start + math.prod(shape)
        shape = x.shape if stop - start == total else shape
        piece, target = part(x, start, stop, shape), part(out, start, stop, shape)
        if native is not None:
            grid = piece.float() if scale is None else piece.float() / scale
            grid = grid.clamp(-job.fmt.max, job.fmt.max) if job.saturate else grid
            rounded = grid.to(native)
            target.copy_(rounded if scale is None else rounded.float().mul_(scale))
            continue
        into = target if alone and piece.dtype == c.dtype else None
        grid = _to_grid(piece, scale, c, scratch, into)
        draw = None if job.draws is None else job.draws.numbers(start, shape, x.device, scratch)
        rounded, spacing = _round(grid, c, job.rounding, draw, job.version, scratch, one_spacing, into)
        if counts is not None:
            # A quotient may be zero where the element is not.
            before = grid if scale is None else piece if piece.dtype in _LAYOUTS else piece.float()
            counts[:3] += _count(rounded, before, c, scratch)
        if field is not None:
            ulp_target = part(field, start, stop, shape)
            ulp_target.copy_(spacing if scale is None else spacing.mul_(scale))
        # What is written there must not be needed any more: `grid` may be the same memory.
        direct = scale is None and piece.dtype == c.dtype and previous is None and c.signed
        values = _finish(rounded, grid, c, job.rounding, job.saturate, target if direct else rounded)
        values = values if scale is None else values.mul_(scale)
        if direct or into is not None:
            continue
        values = values.to(piece.dtype)
        if previous is not None and counts is not None:
            before = part(previous, start, stop, shape)
            counts[3] += _count_different(values, before, scratch)
        target.copy_(values)


def _moved_grid(job: _Job, c: _Constants) -> _Constants | None:
    """The constants of the grid `scale * fmt`, where rounding onto it gives the bits that division by the scale gives.

    It does for one power of two, which then costs no pass over the tensor: every step is the same power of two away
    from what it was, and exact, as long as the grid's values and spacings are normal float32 numbers. Quotients that
    leave float32's range are no exception where they decide nothing: an infinite one saturates as the element does, and
    one beneath 2^-126 is zero to the nearest as the element is, if the quantum is far above. In the other roundings an
    element that is not zero must have a quotient that is not zero: so it is for scales of at most 1. On a GPU, where a
    look at the scale would wait for the device, None.
    """
    if c.dtype != torch.float32 or job.x.device.type != "cpu" or job.scale is None:
        return None
    if isinstance(job.scale, Tensor) and job.scale.numel() != 1:
        return None
    if not job.saturate and (c.has_infinity or c.has_nan):
        return None
    scale = float(job.scale)
    mantissa, exponent = math.frexp(scale)
    if mantissa != 0.5 or not (scale <= 1 or (job.rounding == "nearest_even" and c.quantum >= 2.0**-100)):
        return None
    if c.quantum * scale < 2.0**-126 or max(c.max, c.max_ulp) * scale > FP32.max:
        return None
    return c._replace(
        quantum=c.quantum * scale,
        max_ulp=c.max_ulp * scale,
        max=c.max * scale,
        limit=c.limit * scale,
        odd_bias=c.odd_bias ^ (exponent % 2 == 0),  # the scale is 2^(exponent - 1)
    )


def _make_whole(c: _Constants, rounding: str, saturate: bool, counted: bool, version: int) -> Callable[..., Counted]:
    """The kernel as one function of whole tensors, to be traced. What goes to `out` and `ulp_out` is not returned.

    Its `draw` has the numbers of `Draws.numbers`, or is int32 [2], the `Draws.key` that they are made from.
    """

    def whole(
        x: Tensor,
        scale: Tensor | float | None,
        draw: Tensor | None,
        previous: Tensor | None,
        out: Tensor | None,
        ulp_out: Tensor | None,
    ) -> Counted:
        if draw is not None and draw.dtype == torch.int32:
            draw = draws_of_each(draw[0], draw[1], version, x.numel(), x.device).view(x.shape)
        grid = _to_grid(x, scale, c)
        rounded, spacing = _round(grid, c, rounding, draw, version)
        values = _finish(rounded, grid, c, rounding, saturate)
        values = (values if scale is None else values * scale).to(x.dtype)
        overflow = underflow = flips = nonzero = spacing_out = None
        if counted:
            spacing_out = (spacing if scale is None else spacing * scale).to(_ulp_dtype(x.dtype))
            overflow = (rounded.abs() > c.max).sum(dtype=torch.int32).long()
            underflow = ((rounded == 0) & (x != 0)).sum(dtype=torch.int32).long()
            nonzero = (x != 0).sum(dtype=torch.int32).long()
            if previous is not None:
                flips = _differs(values, previous).sum(dtype=torch.int32).long()
            if ulp_out is not None:
                ulp_out.copy_(spacing_out)
                spacing_out = None  # an output besides would be written a second time
        if out is not None:
            out.copy_(values)
            values = None
        return Counted(values, spacing_out, overflow, underflow, flips, nonzero)  # type: ignore[arg-type]

    return whole


def _quantize_whole(
    job: _Job,
    whole: Callable[..., Counted],
    x: Tensor,
    out: Tensor,
    previous: Tensor | None,
    field: Tensor | None,
    counts: Tensor | None,
) -> None:
    """The compiled form of `_quantize_pieces`: a compiled `_make_whole`, called once for all but huge tensors."""
    scale, device, tensors = job.scale, x.device, (x, previous, out.detach(), field)
    if scale is not None and not isinstance(scale, Tensor):  # a number would be compiled in
        scale = torch.tensor(scale, dtype=_ulp_dtype(x.dtype), device=device)
    # One number for all elements: a row of them, so that one compiled function serves every shape.
    flat = scale is None or scale.numel() == 1
    for start, shape, part in _pieces((x.numel(),) if flat else tuple(x.shape), scale, _WHOLE):
        stop = start + math.prod(shape)
        draw = _key_or_numbers(job, start, shape)
        first, *others = (None if t is None else t.view(-1)[start:stop].view(shape) for t in tensors)
        found = whole(first, part, draw, *others)
        if counts is not None:
            flips = found.flips if found.flips is not None else torch.zeros_like(found.overflow)
            counts.add_(torch.stack([found.overflow, found.underflow, found.nonzero, flips]))


def _key_or_numbers(job: _Job, start: int, shape: tuple[int, ...]) -> Tensor | None:
    """The `draw` of `_make_whole` for the elements from `start` on."""
    if job.draws is None:
        return None
    if not job.draws.have_one_key(start, math.prod(shape)):
        return job.draws.numbers(start, shape, job.x.device)
    first, key = job.draws.key(start)
    if isinstance(first, Tensor) and isinstance(key, Tensor):
        return torch.stack([first, key]).to(job.x.device)
    return torch.tensor([first, key], dtype=torch.int32, device=job.x.device)


def _pieces(
    shape: tuple[int, ...], scale: Tensor | float | None, size: int, start: int = 0
) -> Iterator[tuple[int, tuple[int, ...], Any]]:
    """(first element, shape, scale) of pieces of at most `size` elements, in order, whose scale broadcasts to them."""
    count = math.prod(shape)
    if isinstance(scale, Tensor) and scale.numel() == 1:
        scale = scale.reshape(())
    if count <= size:
        yield start, shape, scale
        return
    if not isinstance(scale, Tensor) or scale.ndim == 0:
        for first in range(0, count, size):
            yield start + first, (min(size, count - first),), scale
        return
    aligned: Tensor = scale.reshape((1,) * (len(shape) - scale.ndim) + tuple(scale.shape))
    row = count // shape[0]
    rows = max(1, size // row)
    for first in range(0, shape[0], rows):
        some = min(rows, shape[0] - first)
        part = aligned if aligned.shape[0] == 1 else aligned[first : first + some]
        if row > size:
            yield from _pieces(shape[1:], part[0], size, start + first * row)
        else:
            yield start + first * row, (some, *shape[1:]), part


def _to_grid(
    x: Tensor, scale: Tensor | float | None, c: _Constants, scratch: Scratch | None = None, into: Tensor | None = None
) -> Tensor:
    """`x / scale` in the working dtype; `x` itself where it is that already. The quotient is rounded in float32."""
    if into is not None:
        return x if scale is None else torch.div(x, scale, out=into)
    for dtype in (_ulp_dtype(x.dtype), c.dtype):
        if x.dtype != dtype:
            x = x.to(dtype) if scratch is None else scratch.take("grid", x.shape, dtype).copy_(x)
        if scale is not None:
            x = torch.div(x, scale, out=None if scratch is None else scratch.take("grid", x.shape, dtype))
            scale = None
    return x


def _spacing(grid: Tensor, c: _Constants, bits: Tensor | None = None) -> Tensor:
    """The ulp field in grid units; `bits` is memory for it, of the integer dtype."""
    return power_of_two_below(grid, out=bits).mul_(c.eps).clamp_(c.quantum, c.max_ulp)


def _round(
    grid: Tensor,
    c: _Constants,
    rounding: str,
    draw: Tensor | None,
    version: int,
    scratch: Scratch | None = None,
    one_spacing: bool = False,
    into: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(rounded, spacing) in grid units; what is beyond the largest value is still there.

    Rounds in the memory `into` where it is given; without, leaves `grid` as it is.
    `version` is that of the draws. Of those of version 2 the difference to the steps decides, since it is exact: it has
    no more than 24 bits where the steps are below 2^8. `one_spacing`: the grid is uniform, and its spacing, without
    dimensions, is enough.
    """
    layout = _LAYOUTS[c.dtype]
    if one_spacing:
        spacing = torch.full((), c.quantum, dtype=c.dtype, device=grid.device)
    else:
        spacing = _spacing(grid, c, None if scratch is None else scratch.take("spacing", grid.shape, layout.integer))
    even = rounding == "nearest_even" and c.has_mantissa
    unit = spacing
    if not (even or rounding in ("up", "down")):  # symmetric in the sign, which a unit that has it takes and gives back
        memory = None if scratch is None else scratch.take("mixed", grid.shape, layout.integer)
        sign = torch.bitwise_and(grid.view(layout.integer), layout.sign_mask, out=memory)
        unit = sign.bitwise_or_(spacing.view(layout.integer)).view(c.dtype)
    if into is None and scratch is not None:
        into = scratch.take("steps", grid.shape, c.dtype)
    steps = torch.div(grid, unit, out=into)
    if even:
        steps.round_()
    elif rounding == "up":
        steps.ceil_()
    elif rounding == "down":
        steps.floor_()
    elif rounding == "stochastic" and version == 2:
        steps.sub_(draw).ceil_().abs_()  # -0 is no step
    else:  # what is far beyond the largest value stays there, and finite
        steps.clamp_(max=c.far)
        if rounding == "nearest_even":
            # The lower neighbour's code is its exponent field: an even one wins the tie at 1.5 steps. There, every
            # magnitude is taken down by one unit in its last place, which moves nothing but the tie.
            lower_is_even = (spacing.view(layout.integer) >> layout.mantissa_bits).bitwise_and_(1)
            lower_is_even = lower_is_even.bitwise_xor_(1) if c.odd_bias else lower_is_even
            steps = steps.view(layout.integer).sub_(lower_is_even).view(c.dtype).round_()
        elif rounding == "toward_zero":
            steps.floor_()
        else:
            below = torch.floor(steps, out=None if scratch is None else scratch.take("below", grid.shape, c.dtype))
            fraction = steps.sub_(below)
            if rounding == "nearest_away":
                fraction.mul_(2.0).floor_()
            else:  # 1 where draw < fraction, else 0 or -0
                fraction.sub_(draw).ceil_()
            steps = fraction.add_(below)
    rounded = steps.mul_(unit)
    return (rounded if c.signed else rounded.clamp_(min=c.quantum)), spacing


def _finish(
    rounded: Tensor, grid: Tensor, c: _Constants, rounding: str, saturate: bool, out: Tensor | None = None
) -> Tensor:
    """`rounded` with overflow and -0 as the format has them."""
    if saturate or not (c.has_infinity or c.has_nan):
        values = torch.clamp(rounded, -c.limit, c.limit, out=out)
    else:
        values = rounded
        if rounding in ("toward_zero", "up", "down"):  # pointing inwards, it stops finite numbers at the largest
            low = -c.max if rounding != "down" else -math.inf
            high = c.max if rounding != "up" else math.inf
            values = torch.where(grid.isinf(), grid, rounded.clamp(low, high))
        beyond = torch.copysign(torch.full_like(values, math.inf if c.has_infinity else math.nan), values)
        values = torch.where(values.abs() > c.max, beyond, values)
    if not c.signed:
        values = torch.where(grid > 0, values, math.nan)
    elif not c.has_negative_zero:
        values = torch.where(values == 0, 0.0, values)
    return values if out is None or values is out else out.copy_(values)


def _count(rounded: Tensor, x: Tensor, c: _Constants, scratch: Scratch | None) -> Tensor:
    """Overflow, underflow, nonzero: int64 [3].

    On the processor, the extremes tell at once that nothing is beyond, and that signs may be counted.
    """
    if rounded.device.type == "cpu":
        low, high = (float(bound) for bound in torch.aminmax(rounded))
        if -c.max <= low and high <= c.max:
            after = _count_signs(rounded, scratch)
            before = _count_signs(x, scratch) if after < x.numel() or not c.signed else after
            return torch.tensor([0, before - after if c.signed else 0, before])
    underflow = torch.count_nonzero((rounded == 0) & (x != 0))
    return torch.stack([torch.count_nonzero(rounded.abs() > c.max), underflow, torch.count_nonzero(x)])


def _count_different(values: Tensor, before: Tensor, scratch: Scratch | None) -> Tensor | int:
    if values.device.type == "cpu" and values.dtype in _LAYOUTS:
        change = torch.sub(
            values, before, out=None if scratch is None else scratch.take("below", values.shape, values.dtype)
        )
        if math.isfinite(float(change.sum())):
            return _count_signs(change, scratch)
    return torch.count_nonzero(values != before)


def _count_signs(x: Tensor, scratch: Scratch | None) -> int:
    """How many elements are not zero, where none is NaN: the dot product of the signs, a third of count_nonzero's time.

    Exact: a sum of at most 2^24 ones, or of up to 2^53 in float64.
    """
    if x.numel() > 1 << 24 and x.dtype == torch.float32:
        return int(torch.count_nonzero(x))
    signs = torch.sign(x, out=None if scratch is None else scratch.take("signs", x.shape, x.dtype)).view(-1)
    return int(torch.dot(signs, signs))


def _differs(values: Tensor, before: Tensor) -> Tensor:
    """`values != before` for a compiler that keeps bfloat16 and float16 in float32 registers, not yet rounded."""
    if values.dtype in _LAYOUTS:
        return values != before
    a, b = values.view(torch.int16), before.view(torch.int16)
    return ((a != b) & (((a | b) & 0x7FFF) != 0)) | values.isnan()


def _ulp_dtype(dtype: torch.dtype) -> torch.dtype:
    """What scales, quotients and spacings of a tensor are held in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def dtype_or_type(value: object) -> str:
    """What an error calls a value: a tensor by its dtype, anything else by its type."""
    return _dtype_name(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _check_format(fmt: FloatFormat) -> None:
    if not isinstance(fmt, FloatFormat):
        raise TypeError(f"the format must be a FloatFormat, as get_format({str(fmt)[:40]!r}) gives, not {fmt!r:.80}")


def _check_rounding(rounding: str) -> None:
    if rounding not in ROUNDINGS:
        raise ValueError(no_rounding(rounding))


def _job(
    x: Tensor,
    fmt: FloatFormat,
    scale: Tensor | float | None,
    rounding: str,
    saturate: bool,
    draws: tuple[Any, ...],
    check_scale: bool,
    out: Tensor | None = None,
    previous: Tensor | None = None,
    ulp_out: Tensor | None = None,
) -> _Job:
    """The arguments, checked, with the scale in the dtype that quotients are taken in."""
    _check_format(fmt)
    if not isinstance(x, Tensor) or x.dtype not in INPUT_DTYPES:
        raise TypeError(f"x must be a tensor of {', '.join(map(_dtype_name, INPUT_DTYPES))}, not {dtype_or_type(x)}")
    _check_rounding(rounding)
    drawn = _checked_draws(fmt, *draws)
    if rounding == "stochastic" and drawn is None:
        raise ValueError("stochastic rounding needs a seed: a whole number from 0 to 2**64 - 1")
    for name, tensor, dtype in (("out", out, x.dtype), ("previous", previous, x.dtype), ("ulp_out", ulp_out, None)):
        if tensor is not None:
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
            wanted = (x.shape, dtype or _ulp_dtype(x.dtype), x.device)
            if (tensor.shape, tensor.dtype, tensor.device) != wanted:
                raise (TypeError if tensor.dtype != wanted[1] else ValueError)(
                    f"{name} must be {_described(*wanted)} as x has it, not "
                    f"{_described(tensor.shape, tensor.dtype, tensor.device)}"
                )
    if ulp_out is not None and not ulp_out.is_contiguous():
        raise ValueError("ulp_out must be contiguous")
    if scale is not None:
        scale = _checked_scale(x, scale, check_scale)
    if (out is not None or ulp_out is not None) and not is_traced():
        if out is not None and ulp_out is not None and _overlap(out, ulp_out):
            raise ValueError("out and ulp_out must not overlap")
        x = _kept(x, out, ulp_out)
        previous = None if previous is None else _kept(previous, out, ulp_out)
        if isinstance(scale, Tensor) and any(t is not None and _overlap(scale, t) for t in (out, ulp_out)):
            scale = scale.clone()
    return _Job(x, fmt, scale, rounding, saturate, drawn if rounding == "stochastic" else None, out, previous, ulp_out)


def _checked_draws(fmt: FloatFormat, seed: int | Tensor | None, version: int, first: int = 0) -> Draws | None:
    version = drawn_version(version, fmt)
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise TypeError(
                f"a seed that is a tensor is one int64 number, not {_dtype_name(seed.dtype)} {[*seed.shape]}"
            )
        return Draws(seed.reshape(()) if is_traced() else int(seed) % 2**64, version, first)
    if seed is not None:
        draw_keys(seed, 0)
    return None if seed is None else Draws(seed, version, first)


def _kept(read: Tensor, out: Tensor | None, ulp_out: Tensor | None) -> Tensor:
    """`read`, or a copy where writing would change elements that are still to be read. Onto themselves is safe."""
    onto_itself = out is not None and read.data_ptr() == out.data_ptr() and read.stride() == out.stride()
    lost = (not onto_itself and out is not None and _overlap(read, out)) or (
        ulp_out is not None and _overlap(read, ulp_out)
    )
    return read.detach().clone() if lost else read


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether the memory between the first and the last element of one meets the other's."""
    if a.device != b.device or a.is_meta or not a.numel() or not b.numel():
        return False
    a_first, b_first = a.data_ptr(), b.data_ptr()
    return a_first < b_first + _extent(b) and b_first < a_first + _extent(a)


def _extent(x: Tensor) -> int:
    """Bytes from the first element of `x` to the end of its last."""
    if x.is_contiguous():
        return x.nbytes
    return x.itemsize * (1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True)))


def _described(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> str:
    return f"{_dtype_name(dtype)} {list(shape)} on {device}"


def _checked_scale(x: Tensor, scale: Tensor | float, check_values: bool) -> Tensor | float:
    dtype = _ulp_dtype(x.dtype)
    if isinstance(scale, bool) or not isinstance(scale, Tensor | int | float):
        raise TypeError(f"scale must be a positive number or a floating-point tensor, not {type(scale).__name__}")
    if not isinstance(scale, Tensor):
        low, high = (0.0, sys.float_info.max) if dtype == torch.float64 else (2.0**-149, FP32.max)
        if not (low <= scale <= high and 0 < scale < math.inf):
            raise ValueError(f"scale must be positive and finite in {_dtype_name(dtype)}, not {scale!r:.80}")
        if x.device.type != "cpu":  # a GPU would multiply by the inverse of a number, which is rounded
            return torch.tensor(float(scale), dtype=dtype, device=x.device)
        return float(scale) if dtype == torch.float64 else struct.unpack("f", struct.pack("f", scale))[0]  # type: ignore[no-any-return]
    if not scale.is_floating_point():
        raise TypeError(f"scale must be a floating-point tensor, not {_dtype_name(scale.dtype)}")
    try:
        fits = scale.ndim == 0 or torch.broadcast_shapes(scale.shape, x.shape) == x.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"scale of shape {list(scale.shape)} does not broadcast to x of shape {list(x.shape)}")
    if scale.device != x.device and (scale.ndim or scale.device.type != "cpu"):
        raise ValueError(f"scale must be a number, or on {x.device} as x is, not on {scale.device}")
    scale = scale.detach() if scale.dtype == dtype else scale.detach().to(dtype)
    if check_values and scale.device.type == "cpu" and scale.numel() and not is_traced():
        low, high = (float(bound) for bound in torch.aminmax(scale))
        if not 0 < low <= high < math.inf:
            raise ValueError(f"scale must be positive and finite; it goes from {low:g} to {high:g}")
    return scale if scale.device == x.device else scale.to(x.device)


def is_traced() -> bool:
    """Whether what runs now is written down as a graph: by torch.compile and torch.export, or by make_fx."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


class StraightThrough(torch.autograd.Function):
    """A function of a tensor and of settings that derivatives take for the identity, in torch.func's transforms too.

    Under vmap each example has a call, and so a scale, of its own: the numbers are those of a loop.
    """

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the settings for a backward pass that wants them."""
        ctx.settings = inputs[1:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradient as it is, and none for the settings."""
        return grad, *(None,) * len(ctx.settings)

    @staticmethod
    def tangent(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        """The `jvp` that torch.func finds: the tangent as it is. torch.compile takes no function that has one."""
        return tangent.view_as(tangent)

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        """One call an example, stacked in front."""
        found = []
        for example in range(info.batch_size):
            pairs = zip(args, in_dims, strict=True)
            found.append(cls.apply(*(arg if dim is None else arg.select(dim, example) for arg, dim in pairs)))
        return torch.stack(found), 0


def straight_through(function: Any, x: Tensor, *settings: Any) -> Any:
    """`apply` of a `StraightThrough`, which outside of transforms need not look up a signature each time."""
    if torch.compiler.is_compiling():
        return function.apply(x, *settings)
    if torch._C._are_functorch_transforms_active():
        return _transformed(function).apply(x, *settings)
    return super(torch.autograd.Function, function).apply(x, *settings)


@lru_cache
def _transformed(function: Any) -> Any:
    return type(function)(function.__name__, (function,), {"jvp": staticmethod(function.tangent)})


class _FakeQuantize(StraightThrough):
    @staticmethod
    def forward(x, fmt, scale, rounding, saturate, seed, version, mask, check_scale):  # type: ignore[no-untyped-def]
        drawn = {"rounding": rounding, "seed": seed, "draw_version": version}
        return quantize(x, fmt, scale=scale, saturate=saturate, check_scale=check_scale, **drawn)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        x, fmt, scale, *_, mask, _ = inputs
        ctx.settings, beyond = inputs[1:], []
        if mask:
            job = _job(x, fmt, scale, "nearest_even", True, (None, 1), False)
            c = _constants(fmt, x.dtype)
            beyond.append(_to_grid(x.detach(), job.scale, c).abs() > c.max)
        ctx.save_for_backward(*beyond)
        if not torch.compiler.is_compiling():
            ctx.save_for_forward(*beyond)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return _within(ctx, grad), *(None,) * len(ctx.settings)

    @staticmethod
    def tangent(ctx, tangent, *_):  # type: ignore[no-untyped-def]
        return _within(ctx, tangent)


def _within(ctx: Any, change: Tensor) -> Tensor:
    """`change`, zero where the mask says that rounding has clipped."""
    return change.masked_fill(*ctx.saved_tensors, 0.0) if ctx.saved_tensors else change.view_as(change)
