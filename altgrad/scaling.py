"""amax -> scale: the factor that brings a tensor into a format's range, per tensor, per row or per block.

The scale is a *dequantization* scale: `x / scale` is rounded onto the format's grid, and the real value is the grid
value times the scale. Powers of two lose nothing in float32, so the quantizer stays exact; they are found from the bits
of amax, never by a logarithm. Tensors are float32, bfloat16 or float16, scales are float32.

    current scaling   `amax_scale` of the tensor itself: per tensor [], per row [..., 1], per block [..., blocks]
    delayed scaling   `DelayedScale`, from the amax of the steps before
    static scaling    a number of one's own, which `rounding.quantize` takes as it is
    MX                `quantize_mx`: blocks of 32 with a power of two each (E8M0)
    NVFP4             `quantize_nvfp4`: blocks of 16 with an E4M3 number each, and one float32 for the tensor

A block is `block` neighbours of the last dimension; where that is no multiple of `block`, its last block is short. A
tensor of block scales is [..., ceil(n / block)]: `quantize_blocks` takes it as it is, and `expand_blocks` makes it
[..., n] for everything else that takes a scale. What stochastic rounding draws depends on the elements' indices alone.

Blocks that lie otherwise in a matrix are tiles of (rows, columns): (128, 128) a square, (32, 1) an MX block down a
column. `tile_amax` gives [ceil(R / rows), ceil(C / columns)], the rules that end in `_of_amax` make scales of it, and
`expand_tiles` brings these to the elements. Tiles at the end of a side are short.

Results are rounded once more where the tensor's dtype is narrower than the grid, and become infinite beyond its range:
the amax of a float16 tensor, 65504, rounds up to 65536 in MXFP8.

Sources: OCP Microscaling Formats (MX) 1.0, sections 5 and 6.3; NVIDIA, Pretraining Large Language Models with NVFP4
(arXiv 2509.25149); Micikevicius et al., FP8 Formats for Deep Learning (arXiv 2209.05433), for delayed scaling;
DeepSeek-V3 (arXiv 2412.19437, section 3.3.2), for tiles of 1 x 128 and 128 x 128.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.formats import E8M0, FP32, FloatFormat, get_format
from altgrad.ranks import over_group
from altgrad.rounding import PIECE, Compiler, compile_quantize, decode, dtype_or_type, encode, is_traced, quantize

GRANULARITIES = ("tensor", "row", "block")
RULES = ("floor", "rceil")
ALGORITHMS = ("max", "most_recent")
QUOTIENTS = ("nearest", "up")
INPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MX_ELEMENTS = tuple(map(get_format, ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1", "mxint8")))
MX_BLOCK = 32
NVFP4_BLOCK = 16

_E4M3, _E2M1 = get_format("e4m3"), get_format("e2m1")
_MIN_SCALE = 2.0**-126
"""Smallest scale but for those of MX: the smallest normal float32."""
_MAX_SCALE = 2.0**127
_NO_MOMENT = -(1 << 63)
_MAX_TENSOR_SCALE = FP32.max / 448
"""Above, the scale of an NVFP4 block may be infinite."""


def amax(x: Tensor, *, granularity: str = "tensor", block: int = MX_BLOCK) -> Tensor:
    """Largest absolute value: of the tensor, of every row, or of every block of the last dimension.

    Args:
        x: float32, bfloat16 or float16, any strides. "row" and "block" need a dimension.
        granularity: "tensor", "row" (the last dimension) or "block".
        block: elements of a block, at least 1; the last block may be short.

    Returns:
        float32 of shape [], [..., 1] or [..., ceil(n / block)]; 0 where there are no elements, NaN where there is one.

    Raises:
        TypeError: `x` has another dtype, float64 included: its amax is not always a float32.
        ValueError: unknown granularity; a block below 1; rows or blocks of a tensor without dimensions.
    """
    _check(x, granularity, block)
    x = x.detach()
    if granularity == "tensor":
        if x.numel() == 0:
            return torch.zeros((), device=x.device)
        low, high = torch.aminmax(x)
        return torch.maximum(low.abs(), high.abs()).float()
    if granularity == "row":
        return _amax_of_last(x).unsqueeze(-1) if x.shape[-1] else torch.zeros(*x.shape[:-1], 1, device=x.device)
    whole, rest = x.shape[-1] // block, x.shape[-1] % block  # divmod has no graph of dynamic shapes
    found = _amax_of_blocks(x[..., : whole * block].unflatten(-1, (whole, block)))
    return torch.cat([found, _amax_of_last(x[..., whole * block :]).unsqueeze(-1)], dim=-1) if rest else found


def amax_scale(
    x: Tensor,
    fmt: FloatFormat,
    *,
    granularity: str = "tensor",
    block: int = MX_BLOCK,
    power_of_two: bool = True,
    quotient: str = "nearest",
) -> Tensor:
    """Smallest scale at which no element of `x` (of its row, of its block) exceeds the format's largest value.

    Args:
        x: any shape; float32, bfloat16 or float16.
        fmt: the format the tensor is brought into.
        granularity, block: as `amax`. Scales of a tensor or of rows broadcast to `x`; scales of blocks are for
            `quantize_blocks` and `expand_blocks`.
        power_of_two: take the smallest power of two that will do, found exactly from the bits (no logarithm);
            its exponent is kept within [-126, 127]. Otherwise amax / max as a float32, at least 2**-126 and at most
            the largest float32.
        quotient: how amax / max becomes a float32. "nearest": the largest element may exceed the largest value by a
            rounding of float32, and so lose its gradient under `fake_quantize(gradient="mask")`. "up": to the next
            float32 that is no smaller, so that no element exceeds: amax / scale is at most max, and rounded to
            float32 it still is, since rounding is monotone and max is a float32. Only a scale stopped at the largest
            float32, for formats whose largest value is below 1, lets elements exceed.

    Returns:
        Positive float32 of the shape that `amax` has: 1 where all is zero, NaN where there is a NaN or an infinity
        (such a tensor has no scale, and quantizing it with NaN shows the damage at once).

    Raises:
        TypeError, ValueError: as `amax`; ValueError for a format beyond float64 (E11M4 on), an unknown quotient.
    """
    largest = amax(x, granularity=granularity, block=block)
    return scale_of_amax(largest, fmt, power_of_two=power_of_two, quotient=quotient)


def scale_of_amax(largest: Tensor, fmt: FloatFormat, *, power_of_two: bool = True, quotient: str = "nearest") -> Tensor:
    """`amax_scale` where the largest absolute values, float32 of any shape, are already known."""
    _check_quotient(quotient)
    if not power_of_two:
        return _quotient_scale(largest, fmt.max, up=quotient == "up")
    if largest.ndim == 0 and largest.device.type == "cpu" and not is_traced():
        return torch.tensor(power_of_two_scale(float(largest), fmt), dtype=torch.float32)
    exponent = _scale_exponent(largest, fmt).clamp_(-126, 127)
    return _where_defined(largest, torch.where(largest == 0, 1.0, _power_of_two(exponent)))


def inverse_scale_of_amax(largest: Tensor, fmt: FloatFormat) -> Tensor:
    """max / amax as the nearest float32: what torchao and Transformer Engine multiply elements by before they round.

    Their real value is ``quantize(x * inverse, fmt) / inverse``, whose last bits are not those of a division by the
    scale. (torchao: float8_utils.amax_to_scale; Transformer Engine: recipe_common.cuh, compute_scale_from_amax.)

    Args:
        largest: largest absolute values, float32 of any shape.

    Returns:
        Positive float32 of that shape, at most the largest float32: 1 where `largest` is 0, NaN where it is not finite.
    """
    maximum = torch.full((), fmt.max, dtype=torch.float64, device=largest.device)
    inverse = (maximum / largest.double()).float().clamp_(max=FP32.max)
    return _where_defined(largest, torch.where(largest == 0, 1.0, inverse))


@lru_cache(maxsize=256)
def _frexp_of_max(fmt: FloatFormat) -> tuple[float, int]:
    return math.frexp(fmt.max)


def power_of_two_scale(largest: float, fmt: FloatFormat) -> float:
    """`amax_scale` (power_of_two=True) of a tensor whose largest magnitude is known, as a number.

    On the processor a dozen operations on a tensor of one element take 20 times as long.
    """
    if largest == 0 or not math.isfinite(largest):
        return 1.0 if largest == 0 else math.nan
    (mantissa, exponent), (max_mantissa, max_exponent) = math.frexp(largest), _frexp_of_max(fmt)
    return 2.0 ** min(max(exponent - max_exponent + (mantissa > max_mantissa), -126), 127)


def expand_blocks(scale: Tensor, n: int, *, block: int = MX_BLOCK) -> Tensor:
    """Scales of blocks, one for each element: [..., ceil(n / block)] to [..., n], for all that takes a scale.

    Raises:
        ValueError: the last dimension of `scale` is not ceil(n / block); a block below 1.
    """
    _check_block(block)
    blocks = -(-n // block)
    if scale.ndim == 0 or scale.shape[-1] != blocks:
        raise ValueError(
            f"{n} elements in blocks of {block} need scales of shape [..., {blocks}], not {list(scale.shape)}"
        )
    return scale.unsqueeze(-1).expand(*scale.shape, block).flatten(-2)[..., :n]


def tile_amax(x: Tensor, tile: tuple[int, int]) -> Tensor:
    """Largest absolute value of every tile of a matrix.

    Args:
        x: [R, C]; float32, bfloat16 or float16, any strides.
        tile: rows and columns of a tile, each at least 1; those at the ends may be short.

    Returns:
        float32 [ceil(R / rows), ceil(C / columns)]; NaN where a tile holds one.

    Raises:
        TypeError: `x` has another dtype.
        ValueError: `x` is no matrix; a side below 1.
    """
    _check(x, "tensor", MX_BLOCK)
    rows, columns = _checked_tile(x.shape, tile)
    rest = (-x.shape[0] % rows, -x.shape[1] % columns)
    magnitude = x.detach().abs()
    if any(rest):  # zeros change no amax
        magnitude = nn.functional.pad(magnitude, (0, rest[1], 0, rest[0]))
    high, wide = magnitude.shape[0] // rows, magnitude.shape[1] // columns
    return magnitude.reshape(high, rows, wide, columns).amax(1).amax(-1).float()


def expand_tiles(scale: Tensor, shape: Sequence[int], tile: tuple[int, int]) -> Tensor:
    """Scales of tiles, one for each element: [ceil(R / rows), ceil(C / columns)] to `shape`, which is [R, C].

    A stack of matrices [..., R, C] has [...] such scales.

    Raises:
        ValueError: `scale` has another shape; `shape` is no matrix's; a side below 1.
    """
    if scale.ndim > 2 and scale.ndim == len(shape) and scale.numel():
        each = [expand_tiles(one, shape[-2:], tile) for one in scale.flatten(0, -3)]
        return torch.stack(each).view(*shape)
    rows, columns = _checked_tile(shape, tile, scale)
    high, wide = scale.shape
    every = scale[:, None, :, None].expand(high, rows, wide, columns).reshape(high * rows, wide * columns)
    return every[: shape[0], : shape[1]]


def in_tiles(x: Tensor, scale: Tensor, tile: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A matrix and its scales of tiles in shapes that broadcast, the elements in their order; errors as `expand_tiles`.

    Args:
        x: [R, C].
        scale: [ceil(R / rows), ceil(C / columns)].
    """
    rows, columns = _checked_tile(x.shape, tile, scale)
    if x.shape[0] % rows or x.shape[1] % columns:
        return x, expand_tiles(scale, x.shape, tile)
    high, wide = scale.shape
    return x.reshape(high, rows, wide, columns), scale[:, None, :, None]


def in_blocks(x: Tensor, scale: Tensor, *, block: int = MX_BLOCK) -> tuple[Tensor, Tensor]:
    """`x` and its scales of blocks in shapes that broadcast, for all that takes a scale; the elements in their order.

    Args:
        x: [..., n].
        scale: [..., ceil(n / block)].

    Raises:
        ValueError: scales of another shape; a block below 1.
    """
    _check_block(block)
    n = x.shape[-1]
    blocks = -(-n // block)
    if not isinstance(scale, Tensor) or scale.shape != (*x.shape[:-1], blocks):
        raise ValueError(
            f"x of shape {list(x.shape)} in blocks of {block} needs scales of shape {[*x.shape[:-1], blocks]}, "
            f"not {list(scale.shape) if isinstance(scale, Tensor) else type(scale).__name__}"
        )
    return (x, expand_blocks(scale, n, block=block)) if n % block else (_split(x, block), scale.unsqueeze(-1))


def quantize_blocks(
    x: Tensor,
    fmt: FloatFormat,
    scale: Tensor,
    *,
    block: int = MX_BLOCK,
    rounding: str = "nearest_even",
    saturate: bool = True,
    seed: int | Tensor | None = None,
    draw_version: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """`rounding.quantize` with a scale for each block.

    In one line: ``quantize_blocks(x, fmt, amax_scale(x, fmt, granularity="block"))``.

    Args:
        x: [..., n]; float32, bfloat16 or float16.
        scale: floating-point [..., ceil(n / block)], positive. Its values are not looked at: NaN makes its block NaN.
        rounding, saturate, seed, draw_version, out: as `rounding.quantize`.

    Returns:
        Real values with the shape and dtype of `x`: `out` where given, else contiguous.

    Raises:
        TypeError, ValueError: as `amax` and `rounding.quantize`; ValueError for scales of another shape.
    """
    _check(x, "block", block)
    _check_out(x, out)
    blocks, factor = in_blocks(x.detach(), scale, block=block)
    target = None if out is None else out.detach().view_as(x) if blocks.ndim == x.ndim else _split(out.detach(), block)
    how: dict[str, Any] = {"rounding": rounding, "saturate": saturate, "seed": seed, "draw_version": draw_version}
    y = quantize(blocks, fmt, scale=factor, out=target, check_scale=False, **how)
    return y.view(x.shape) if out is None else out


class DelayedScale(nn.Module):
    """A scale from the amax of the last steps, known before the tensor is: delayed scaling.

    `update(x)` returns the scale that the history before `x` gives, then records the amax of `x`; `scale(x)` only
    returns it. Semantics of NVIDIA's Transformer Engine (recipe.DelayedScaling: `amax_history_len`, `margin`,
    `amax_compute_algo`), but for what is said here about the first step and damaged tensors:

    - "max" takes the largest amax of the history, "most_recent" the latest that is not zero;
    - as long as nothing but zeros is recorded, the amax of `x` itself is taken (1 for zeros, NaN for a damaged tensor);
    - an amax that is NaN or infinite is not recorded, so that it neither lasts nor pushes out what was known. Elements
      of later tensors that are beyond the scale saturate.

    A history counts steps, whose parts share a `moment`: all of them have the scale that was known before the moment,
    and together they leave one entry, the largest amax of them. So what is computed again changes nothing.

    Nothing here waits for a GPU. The history is a buffer: it is in `state_dict`, follows the module to a device, and
    stays float32 in a model that is brought to another dtype.

    Args:
        fmt: the format that tensors are brought into.
        length: how many steps are remembered, at least 1.
        margin: whole number from 0 to 127; the scale is taken 2**margin larger, at most 2**127.
        algorithm: "max" or "most_recent".
        power_of_two, quotient: as `amax_scale`. With "inverse", `update` and `scale` return the inverse of the scale
            (`inverse_scale_of_amax`), 2**margin smaller.

    Raises:
        ValueError: a length or a margin out of range, an unknown algorithm or quotient.
    """

    history: Tensor
    """float32 [length], the latest amax last; 0 is a zero tensor, or nothing yet."""

    def __init__(
        self,
        fmt: FloatFormat,
        *,
        length: int = 16,
        margin: int = 0,
        algorithm: str = "max",
        power_of_two: bool = True,
        quotient: str = "nearest",
    ) -> None:
        super().__init__()
        _check_whole("length of the history", length, 1)
        _check_whole("margin", margin, 0, 127)
        if algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, not {algorithm!r}")
        if quotient != "inverse":
            _check_quotient(quotient)
        self.fmt, self.margin, self.algorithm = fmt, margin, algorithm
        self.power_of_two, self.quotient = power_of_two, quotient
        self.register_buffer("history", torch.zeros(length))
        # The moment of the latest entry; `before` and `latest` are the history before it and the largest amax of it,
        # -1 for none.
        self.register_buffer("moment", torch.full((), _NO_MOMENT), persistent=False)
        self.register_buffer("before", torch.zeros(length), persistent=False)
        self.register_buffer("latest", torch.zeros(()), persistent=False)

    def scale(self, x: Tensor, moment: Tensor | int | None = None, group: Any = None) -> Tensor:
        """The scale for `x`, float32 []; records nothing.

        Args:
            x: float32, bfloat16 or float16.
            moment: where it is that of the latest entry, what was known before that entry counts. A whole number; as
                a tensor (int64 [], on the processor) one that a compiled graph reads when it runs.
            group: process group whose ranks each have a part of the tensor, as many rows: amax is that of all.

        Raises:
            TypeError: as `amax`.
        """
        self._follow(x)
        known = self.history if moment is None else torch.where(self.moment == moment, self.before, self.history)
        return self._scale(over_group(amax(x), group), known)

    def update(self, x: Tensor, moment: Tensor | int | None = None, group: Any = None) -> Tensor:
        """The scale for `x`, float32 []; its amax then counts for the steps that follow.

        Args:
            x: float32, bfloat16 or float16.
            moment: of the step that `x` is a part of, as in `scale`; None is a step of its own.
            group: as in `scale`; the ranks keep the same history.

        Raises:
            TypeError: as `amax`.
        """
        self._follow(x)
        now = over_group(amax(x), group)
        new = torch.ones_like(self.moment, dtype=torch.bool) if moment is None else self.moment != moment
        before = torch.where(new, self.history, self.before)
        known = torch.where(new, -1.0, self.latest)
        latest = torch.where(torch.isfinite(now), torch.maximum(known, now), known)
        self.moment.fill_(_NO_MOMENT if moment is None else moment)
        self.before.copy_(before)
        self.latest.copy_(latest)
        self.history.copy_(torch.where(latest < 0, before, torch.cat([before[1:], latest[None]])))
        return self._scale(now, before)

    def _scale(self, now: Tensor, history: Tensor) -> Tensor:
        if self.algorithm == "max":
            known = history.max()
        else:
            order = torch.arange(1, len(history) + 1, device=history.device)
            known = history.gather(0, (order * (history > 0)).argmax(0, keepdim=True)).squeeze(0)
        largest = torch.where(known > 0, known, now)
        if self.quotient == "inverse":
            return inverse_scale_of_amax(largest, self.fmt).mul_(2.0**-self.margin)
        scale = scale_of_amax(largest, self.fmt, power_of_two=self.power_of_two, quotient=self.quotient)
        return scale.mul_(2.0**self.margin).clamp_(max=_MAX_SCALE)

    def _follow(self, x: Tensor) -> None:
        """A layer may be used on another device than the one it was quantized on."""
        if self.history.device != x.device:
            self.to(x.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DelayedScale:
        """`nn.Module._apply`, which `.to`, `.half` and the like are made of: the dtype of the buffers stays."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """`nn.Module._load_from_state_dict`, which `load_state_dict` is made of; what is no amax is an error there."""
        given = state_dict.get(f"{prefix}history")
        if isinstance(given, Tensor) and not given.is_meta and not bool(((given >= 0) & given.isfinite()).all()):
            rest[-1].append(f"{prefix}history must hold finite numbers that are not negative")
            return
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.history = self.history.float()
        self.to(self.history.device)
        self.moment.fill_(_NO_MOMENT)

    def reset_parameters(self) -> None:
        """Forget everything: what `to_empty` leaves behind in a model made on the meta device is no history."""
        self.history.zero_()
        self.moment.fill_(_NO_MOMENT)

    def extra_repr(self) -> str:
        """The format, and what the history is reduced by."""
        return f"{self.fmt.name}, length={len(self.history)}, margin={self.margin}, algorithm={self.algorithm!r}"


def mx_scale(x: Tensor, element_format: FloatFormat, *, rule: str = "floor", block: int = MX_BLOCK) -> Tensor:
    """The scales of the MX blocks of `x`: powers of two, float32 of shape [..., ceil(n / block)].

    With emax the exponent of the element format's largest value (E4M3 8, E5M2 15, E3M2 4, E2M3 and E2M1 2, MXINT8 0):

    - "floor": 2**(floor(log2 amax) - emax), as OCP MX 1.0 section 6.3 has it; amax / scale may be up to twice 2**emax,
      so that the largest elements saturate;
    - "rceil": the smallest power of two with amax / scale <= max, which is amax / max rounded up. No element saturates.
      (Hardware rounds the float32 quotient; the two differ only where that is subnormal, below 2**-126.)

    Exponents are kept within [-127, 127], those of E8M0; 2**-127 is a float32 subnormal (not to be used with
    torch.set_flush_denormal). No amax is above this range but MXINT8's above 127/64 * 2**127, which saturate; below it,
    elements become small in their format and zero in the end. A block of zeros has the scale 2**-127. A block with a
    NaN or an infinity has the scale NaN, that is, all of it is NaN: E8M0 has no infinity.

    Args:
        x: [..., n]; float32, bfloat16 or float16.
        element_format: one of `MX_ELEMENTS`.

    Raises:
        TypeError: `x` has another dtype; `element_format` is no FloatFormat.
        ValueError: an element format that is not one of MX; unknown rule; a block below 1; `x` without dimensions.
    """
    return mx_scale_of_amax(amax(x, granularity="block", block=block), element_format, rule=rule)


def mx_scale_of_amax(largest: Tensor, element_format: FloatFormat, *, rule: str = "floor") -> Tensor:
    """`mx_scale` where the largest absolute values, float32 of any shape, are already known."""
    _check_mx(element_format)
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, not {rule!r}")
    mantissa, exponent = math.frexp(element_format.max)
    above = 0x7FFFFF - int((2 * mantissa - 1) * 2**23) if rule == "rceil" else 0  # carries where amax is above max
    power = (largest.view(torch.int32) + above).bitwise_and_(0x7F800000).sub_((exponent - 1) << 23)
    return _where_defined(largest, power.clamp_(1 << 22, 0x7F000000).view(torch.float32))  # 2**-127, 2**127


def quantize_mx(
    x: Tensor,
    element_format: FloatFormat,
    *,
    rule: str = "floor",
    block: int = MX_BLOCK,
    rounding: str = "nearest_even",
    seed: int | Tensor | None = None,
    draw_version: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """`x` in an MX format (MXFP8, MXFP6, MXFP4, MXINT8): rounded onto the grids of its blocks, elements saturate.

    Arguments and errors are those of `mx_scale` and `rounding.quantize`; 32 elements are a block of the specification.

    Returns:
        Real values with the shape and dtype of `x`, NaN in every block that holds a NaN or an infinity. Under "rceil"
        a float32 amax next to the largest float32 may round up to infinity: 2**128 = 256 * 2**120.
    """
    scale = mx_scale(x, element_format, rule=rule, block=block)
    how: dict[str, Any] = {"rounding": rounding, "seed": seed, "draw_version": draw_version}
    return quantize_blocks(x, element_format, scale, block=block, out=out, **how)


def encode_mx(
    x: Tensor,
    element_format: FloatFormat,
    *,
    rule: str = "floor",
    block: int = MX_BLOCK,
    rounding: str = "nearest_even",
    seed: int | Tensor | None = None,
    draw_version: int = 1,
) -> tuple[Tensor, Tensor]:
    """The codes of what `quantize_mx` returns; arguments and errors are its.

    Returns:
        Elements: uint8 with the shape of `x`, one code a byte, in its low bits; 0 in NaN blocks.
        Scales: uint8 [..., ceil(n / block)] in E8M0: the exponent plus 127; 255 is NaN.
    """
    scale = mx_scale(x, element_format, rule=rule, block=block)
    how: dict[str, Any] = {"rounding": rounding, "seed": seed, "draw_version": draw_version}
    return _encode_blocks(x, element_format, scale, block, **how), encode(scale, E8M0, check_scale=False)


def decode_mx(
    elements: Tensor,
    scales: Tensor,
    element_format: FloatFormat,
    *,
    block: int = MX_BLOCK,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The real values of MX codes, in `dtype`: exactly what `quantize_mx` returns for a tensor of that dtype.

    Args:
        elements: uint8 [..., n]. scales: uint8 [..., ceil(n / block)]. As `encode_mx` returns them.

    Raises:
        TypeError: codes that are not uint8; another dtype than float32, bfloat16, float16.
        ValueError: an element format that is not one of MX; scales of another shape; a code the format does not have.
    """
    _check_mx(element_format)
    _check_codes(elements, scales, dtype)
    return _decode_blocks(elements, element_format, decode(scales, E8M0), block, dtype)


def nvfp4_scales(x: Tensor, tensor_scale: Tensor | float | None = None) -> tuple[Tensor, Tensor]:
    """The two levels of NVFP4 scales; an element's scale is their product in float32.

    Args:
        x: [..., n]; float32, bfloat16 or float16.
        tensor_scale: a number or a tensor of one element, from 2**-126 to the largest float32 / 448 (one on a GPU is
            not looked at); for weights that share one, or from a calibration. A NaN tensor makes all NaN. None is
            amax / (448 * 6), at least 2**-126, and 1 for a tensor of zeros.

    Returns:
        Block scales: E4M3(block amax / 6 / tensor scale), clamped to [2**-6, 448] (which zeros get the lower end of):
        float32 [..., ceil(n / 16)]. NaN where the block holds a NaN or an infinity.
        Tensor scale: float32 []. Where it is not given, a NaN or an infinity anywhere makes it NaN, and so every block.

    Raises:
        TypeError: `x` has another dtype; a tensor scale that is no number and no floating-point tensor.
        ValueError: `x` without dimensions; a tensor scale out of range, or of more than one element.
    """
    return nvfp4_scales_of_amax(amax(x, granularity="block", block=NVFP4_BLOCK), tensor_scale)


def nvfp4_scales_of_amax(
    largest: Tensor, tensor_scale: Tensor | float | None = None, group: Any = None
) -> tuple[Tensor, Tensor]:
    """`nvfp4_scales` where the largest absolute values of the blocks, float32 of any shape, are already known.

    The tensor's own is that of the blocks of all ranks of a process `group`.
    """
    outer = None if tensor_scale is None else _checked_tensor_scale(tensor_scale, largest.device)
    return _nvfp4_scales(largest, outer, group)


def _nvfp4_scales(largest: Tensor, outer: Tensor | None, group: Any = None) -> tuple[Tensor, Tensor]:
    if outer is None:
        outer = _quotient_scale(over_group(amax(largest), group), _E4M3.max * _E2M1.max)
    wanted = (largest / largest.new_full((), _E2M1.max)).div_(outer).clamp_(2.0**-6, _E4M3.max)
    return _where_defined(largest, quantize(wanted, _E4M3, out=wanted)), outer


def quantize_nvfp4(
    x: Tensor,
    *,
    tensor_scale: Tensor | float | None = None,
    rounding: str = "nearest_even",
    seed: int | Tensor | None = None,
    draw_version: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """`x` in NVFP4: E2M1 elements, an E4M3 scale for each block of 16, a float32 scale for the tensor.

    An element is E2M1(x / scale) * scale with scale = block scale * tensor scale in float32, the quotient correctly
    rounded; elements saturate. `rounding` and `seed` are those of the elements: scales round to the nearest. Arguments
    and errors are those of `nvfp4_scales` and `rounding.quantize`.

    Returns:
        Real values with the shape and dtype of `x`. A NaN or an infinity makes its block NaN where the tensor scale is
        given, and the tensor where it is not.
    """
    inner, outer = nvfp4_scales(x, tensor_scale)
    how: dict[str, Any] = {"rounding": rounding, "seed": seed, "draw_version": draw_version}
    return quantize_blocks(x, _E2M1, inner * outer, block=NVFP4_BLOCK, out=out, **how)


def compile_mx(
    element_format: FloatFormat,
    *,
    rule: str = "floor",
    block: int = MX_BLOCK,
    rounding: str = "nearest_even",
    draw_version: int = 1,
) -> Callable[..., Tensor]:
    """`quantize_mx` as two compiled passes over the tensor, for its scales and its elements; the same bits.

    The function that is returned takes `x`, `seed` and `out`. When it is compiled, and what happens where that fails,
    is as in `rounding.compile_quantize`. Where the last dimension is no multiple of `block` it is the eager form.

    Raises:
        TypeError, ValueError: as `quantize_mx`.
    """
    mx_scale(torch.ones(1), element_format, rule=rule, block=block)

    def scales(flat: Tensor) -> Tensor:
        return mx_scale(flat.view(-1, block), element_format, rule=rule, block=block)

    def eager(x: Tensor, **how: Any) -> Tensor:
        return quantize_mx(x, element_format, rule=rule, block=block, **how)

    run = _compile_blocks(scales, eager, element_format, block, rounding, draw_version)
    return lambda x, *, seed=None, out=None: run(x, seed=seed, out=out)


def compile_nvfp4(*, rounding: str = "nearest_even", draw_version: int = 1) -> Callable[..., Tensor]:
    """`quantize_nvfp4` as `compile_mx` is `quantize_mx`; its function takes `tensor_scale` besides."""

    def scales(flat: Tensor, outer: Tensor | None) -> Tensor:
        largest = amax(flat.view(-1, NVFP4_BLOCK), granularity="block", block=NVFP4_BLOCK)
        inner, outer = _nvfp4_scales(largest, outer)
        return inner * outer

    def eager(x: Tensor, outer: Tensor | None, **how: Any) -> Tensor:
        return quantize_nvfp4(x, tensor_scale=outer, **how)

    both = _compile_blocks(scales, eager, _E2M1, NVFP4_BLOCK, rounding, draw_version)

    def run(
        x: Tensor,
        *,
        tensor_scale: Tensor | float | None = None,
        seed: int | Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        outer = None if tensor_scale is None else _checked_tensor_scale(tensor_scale, x.device)
        return both(x, outer, seed=seed, out=out)

    return run


def _compile_blocks(
    scales: Callable[..., Tensor],
    eager: Callable[..., Tensor],
    fmt: FloatFormat,
    block: int,
    rounding: str,
    draw_version: int,
) -> Callable[..., Tensor]:
    """The blocks' scales as one compiled function, then the elements as another: in one, each element would make them.

    Args:
        scales: of a flat tensor, whose length is a multiple of `block`, and the rest: [blocks, 1].
        eager: of a tensor and the rest, `rounding`, `draw_version`, `seed` and `out`.
    """
    compiler = Compiler()
    compiled = compiler.compiled(scales, f"scales_{fmt.name}_{block}")
    elements = compile_quantize(fmt, rounding=rounding, draw_version=draw_version)

    def run(x: Tensor, *rest: Any, seed: int | Tensor | None, out: Tensor | None) -> Tensor:
        _check(x, "block", block)
        _check_out(x, out)
        scale, dense = None, out is None or out.is_contiguous()
        if x.numel() and not x.is_meta and x.shape[-1] % block == 0 and dense:
            flat = x.detach().reshape(-1)
            scale = compiler.call(lambda: compiled(flat, *rest), lambda: None)
        if scale is None:
            return eager(x, *rest, rounding=rounding, draw_version=draw_version, seed=seed, out=out)
        target = None if out is None else out.detach().view(-1, block)
        found = elements(flat.view(-1, block), scale=scale, seed=seed, out=target, check_scale=False)
        return found.view(x.shape) if out is None else out

    return run


def encode_nvfp4(
    x: Tensor,
    *,
    tensor_scale: Tensor | float | None = None,
    rounding: str = "nearest_even",
    seed: int | Tensor | None = None,
    draw_version: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """The codes of what `quantize_nvfp4` returns; arguments and errors are its.

    Returns:
        Elements: uint8 with the shape of `x`, one E2M1 code a byte, in its low bits; 0 in NaN blocks.
        Block scales: uint8 [..., ceil(n / 16)], E4M3 codes. Tensor scale: float32 [].
    """
    inner, outer = nvfp4_scales(x, tensor_scale)
    how: dict[str, Any] = {"rounding": rounding, "seed": seed, "draw_version": draw_version}
    return _encode_blocks(x, _E2M1, inner * outer, NVFP4_BLOCK, **how), encode(inner, _E4M3), outer


def decode_nvfp4(
    elements: Tensor, scales: Tensor, tensor_scale: Tensor, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The real values of NVFP4 codes, in `dtype`: exactly what `quantize_nvfp4` returns for a tensor of that dtype.

    Args:
        elements: uint8 [..., n]. scales: uint8 [..., ceil(n / 16)]. tensor_scale: []. As `encode_nvfp4` returns them.

    Raises:
        TypeError: codes that are not uint8; another dtype than float32, bfloat16, float16.
        ValueError: scales of another shape; an element code above 15.
    """
    _check_codes(elements, scales, dtype)
    scale = decode(scales, _E4M3) * _checked_tensor_scale(tensor_scale, elements.device)
    return _decode_blocks(elements, _E2M1, scale, NVFP4_BLOCK, dtype)


def _amax_of_last(x: Tensor) -> Tensor:
    """amax over the last dimension, which has elements where the result has. aminmax takes four times as long here."""
    return torch.maximum(x.amax(-1).abs(), x.amin(-1).abs()).float()


def _amax_of_blocks(blocks: Tensor) -> Tensor:
    """`_amax_of_last` of many short blocks.

    On the processor the reduction is fast where the last dimension is a multiple of 32: zeros, which change no amax,
    fill it up, in memory of a piece that stays in the cache.
    """
    block = blocks.shape[-1]
    if is_traced():
        return blocks.abs().amax(-1).float()
    if blocks.device.type != "cpu":
        return _amax_of_last(blocks)
    rows, found = blocks.reshape(-1, block), torch.empty(blocks.shape[:-1])
    width = -(-block // 32) * 32
    some = min(len(rows), max(1, PIECE * torch.get_num_threads() // max(block, 16)))
    padded = torch.zeros(some, width)
    for part, target in zip(rows.split(some), found.view(-1).split(some), strict=True):
        torch.abs(part.float(), out=padded[: len(part), :block])
        torch.amax(padded[: len(part)], -1, out=target)
    return found


def _scale_exponent(largest: Tensor, fmt: FloatFormat) -> Tensor:
    """int32: floor(log2 amax) - floor(log2 max), and one more where amax is then above max."""
    mantissa, exponent = torch.frexp(largest)
    max_mantissa, max_exponent = math.frexp(fmt.max)
    return exponent - max_exponent + (mantissa > max_mantissa)


def _power_of_two(exponent: Tensor) -> Tensor:
    """2**exponent from the bits of a float32, for exponents in [-126, 127]."""
    return ((exponent + 127) << 23).view(torch.float32)


def _quotient_scale(largest: Tensor, maximum: float, *, up: bool = False) -> Tensor:
    """amax / maximum, where a tensor divides: a GPU multiplies by the inverse of a number.

    Rounded up, the product that decides is exact in float64: both factors have at most 24 bits.
    """
    dtype = torch.float32 if maximum <= FP32.max else torch.float64
    quotient = largest / torch.full((), maximum, dtype=dtype, device=largest.device)
    scale = quotient.float().clamp_(_MIN_SCALE, FP32.max)
    if up:
        above = torch.nextafter(scale, scale.new_full((), FP32.max))
        scale = torch.where(scale.double() * maximum < largest, above, scale)
    return _where_defined(largest, torch.where(largest == 0, 1.0, scale))


def _where_defined(largest: Tensor, scale: Tensor) -> Tensor:
    """`scale`, and NaN where there is an infinity or a NaN, which 0 times makes NaN."""
    return scale.add_(largest, alpha=0)


def _split(x: Tensor, block: int) -> Tensor:
    """[..., n] as a view [..., n / block, block]."""
    return x.unflatten(-1, (x.shape[-1] // block, block))


def _encode_blocks(x: Tensor, fmt: FloatFormat, scale: Tensor, block: int, **how: Any) -> Tensor:
    """Codes of the elements; a block whose scale is NaN counts as zeros, for which every format has a code."""
    blocks, factor = in_blocks(x.detach(), scale, block=block)
    damaged = factor.isnan()
    blocks, factor = blocks.masked_fill(damaged, 0), factor.masked_fill(damaged, 1)
    return encode(blocks, fmt, scale=factor, check_scale=False, **how).view(x.shape)


def _decode_blocks(elements: Tensor, fmt: FloatFormat, scale: Tensor, block: int, dtype: torch.dtype) -> Tensor:
    blocks, factor = in_blocks(decode(elements, fmt), scale, block=block)
    return blocks.mul_(factor).view(elements.shape).to(dtype)


def _checked_tensor_scale(value: Tensor | float, device: torch.device) -> Tensor:
    """float32 []; NaN goes through, as it is the scale of a damaged tensor."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"tensor_scale must be a number or a floating-point tensor, not {dtype_or_type(value)}")
        if value.numel() != 1:
            raise ValueError(f"tensor_scale must have one element, not the shape {list(value.shape)}")
        scale = value.detach().float().reshape(())
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"tensor_scale must be a number or a floating-point tensor, not {dtype_or_type(value)}")
    else:
        inside = abs(value) <= FP32.max  # not so: infinite, which is refused, and so is NaN
        scale = torch.tensor(float(value) if inside else math.inf, dtype=torch.float64).float()
    if scale.device.type == "cpu" and (float(scale) < _MIN_SCALE or float(scale) > _MAX_TENSOR_SCALE):
        raise ValueError(f"tensor_scale must be from 2**-126 to {_MAX_TENSOR_SCALE:g}, not {float(scale):g}")
    return scale.to(device)


def _check(x: Tensor, granularity: str, block: int) -> None:
    if not isinstance(x, Tensor) or x.dtype not in INPUT_DTYPES:
        raise TypeError(f"x must be a tensor of {_names(INPUT_DTYPES)}, not {dtype_or_type(x)}")
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity must be one of {', '.join(GRANULARITIES)}, not {granularity!r}")
    _check_block(block)
    if granularity != "tensor" and x.ndim == 0:
        raise ValueError(f"a tensor without dimensions has no {granularity}s")


def _check_out(x: Tensor, out: Tensor | None) -> None:
    if out is not None and not isinstance(out, Tensor):
        raise TypeError(f"out must be a tensor, not {type(out).__name__}")
    if out is not None and out.shape != x.shape:
        raise ValueError(f"out must have the shape {list(x.shape)} of x, not {list(out.shape)}")


def _check_block(block: int) -> None:
    _check_whole("block", block, 1)


def _checked_tile(shape: Sequence[int], tile: tuple[int, int], scale: Tensor | None = None) -> tuple[int, int]:
    """The sides of a tile, no longer than those of the matrix; `scale` must have a number for each tile."""
    if len(shape) != 2:
        raise ValueError(f"tiles are of a matrix, not of the shape {list(shape)}")
    if not isinstance(tile, Sequence) or len(tile) != 2:
        raise ValueError(f"a tile has two sides, (rows, columns), not {tile!r:.80}")
    rows, columns = tile
    _check_whole("rows of a tile", rows, 1)
    _check_whole("columns of a tile", columns, 1)
    rows, columns = min(rows, max(shape[0], 1)), min(columns, max(shape[1], 1))
    expected = (-(-shape[0] // rows), -(-shape[1] // columns))
    if scale is not None and scale.shape != expected:
        size = f"{shape[0]} x {shape[1]} elements in tiles of {rows} x {columns}"
        raise ValueError(f"{size} need scales of shape {list(expected)}, not {list(scale.shape)}")
    return rows, columns


def _check_quotient(quotient: str) -> None:
    if quotient not in QUOTIENTS:
        raise ValueError(f"quotient must be one of {', '.join(QUOTIENTS)}, not {quotient!r}")


def _check_whole(name: str, value: int, low: int, high: int | None = None) -> None:
    inside = isinstance(value, int) and not isinstance(value, bool) and value >= low and (high is None or value <= high)
    if not inside:
        limits = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"the {name} must be a whole number {limits}, not {value!r}")


def _check_mx(element_format: FloatFormat) -> None:
    known = ", ".join(fmt.label for fmt in MX_ELEMENTS)
    if not isinstance(element_format, FloatFormat):
        raise TypeError(f"the element format must be a FloatFormat ({known}), not {element_format!r:.80}")
    if element_format not in MX_ELEMENTS:
        raise ValueError(f"MX has elements of {known}, not {element_format.label}")


def _check_codes(elements: Tensor, scales: Tensor, dtype: torch.dtype) -> None:
    for name, codes in (("elements", elements), ("scales", scales)):
        if not isinstance(codes, Tensor) or codes.dtype != torch.uint8:
            raise TypeError(f"{name} must be a tensor of uint8 codes, not {dtype_or_type(codes)}")
    if elements.ndim == 0:
        raise ValueError("a tensor without dimensions has no blocks")
    if dtype not in INPUT_DTYPES:
        raise TypeError(f"dtype must be one of {_names(INPUT_DTYPES)}, not {dtype}")


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
