"""Counts: what rounding did to an operand, which codes are in use, and which weights an optimizer's step really moved.

Every count is exact. What overflowed and underflowed is counted by the kernel in the pass that rounds; the rest is
counted here from the same values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.formats import FP32, FloatFormat
from altgrad.nn import Reading
from altgrad.rounding import encode
from altgrad.scaling import amax

_PIECE = 1 << 16
"""Elements whose squares are summed in float32; memory for them stays in the cache."""
_LEAST, _MOST = 2.0**-70, 2.0**100
"""Sums of squares between these have lost nothing to float32's range."""
_HALVES = 1 << 16
"""Upper halves of a float32."""


class OperandSums(NamedTuple):
    """What `operand_statistics` needs of an operand, or of the parts of one, on its device.

    Attributes:
        maxima: float64 [2]: the largest magnitude, the largest scale.
        norms: float64 [2]: ||x|| and ||q - x||.
        counts: float64 [4]: elements that are not zero, not finite, that overflowed, that underflowed.
        dead: bool [features], where q = 0 in every row.
    """

    maxima: Tensor
    norms: Tensor
    counts: Tensor
    dead: Tensor

    def with_part(self, part: OperandSums) -> OperandSums:
        """The sums of both together, as if they were rows of one tensor; the features must be the same."""
        maxima = torch.maximum(self.maxima, part.maxima)
        norms = (self.norms.square() + part.norms.square()).sqrt()
        return OperandSums(maxima, norms, self.counts + part.counts, self.dead & part.dead)

    def numbers(self) -> Tensor:
        """float64 [10], for `operand_statistics`."""
        dead, features = torch.count_nonzero(self.dead).double(), self.norms.new_tensor(len(self.dead))
        return torch.cat([self.maxima, self.norms, self.counts, torch.stack([dead, features])])


@torch.no_grad()
def operand_sums(reading: Reading) -> OperandSums:
    """The sums of one reading.

    On the processor NaN is not counted where the largest magnitude is finite: there is none.
    """
    real, rounded = reading.real.detach().float(), reading.rounded.detach().float()
    on_cpu = real.device.type == "cpu"
    largest = amax(real)
    scale = real.new_ones(()) if reading.scale is None else reading.scale.detach()
    norm, noise = _norms(real, None if reading.rounded is reading.real else rounded)
    damaged = not on_cpu or not math.isfinite(largest)
    nonzero = 1.0 if reading.nonzero is None else reading.nonzero
    nonfinite = torch.count_nonzero(real - real) if damaged else 0.0  # NaN where it is not 0
    return OperandSums(
        _together(largest, scale.max() if scale.numel() else 1.0, like=real),
        _together(norm, noise, like=real),
        _together(nonzero, nonfinite, reading.overflow, reading.underflow, like=real),
        _dead(rounded, 1 if reading.operand == "weight" else 0),
    )


def _together(*numbers: Tensor | float, like: Tensor) -> Tensor:
    """Numbers and tensors of one element as a float64 tensor on the device of `like`."""
    if like.device.type == "cpu":
        return torch.tensor([float(each) for each in numbers], dtype=torch.float64)
    return torch.stack([torch.as_tensor(each, dtype=torch.float64, device=like.device) for each in numbers])


def operand_statistics(sums: Sequence[float]) -> dict[str, float]:
    """What rounding did to one operand of the matrix products, from `OperandSums.numbers`.

    x are the real values, q the rounded ones. On the processor sums of squares are float32 for every 65,536 elements
    and float64 beyond, which is right to 1e-5 of them; all is float64 on a GPU, and where squares would leave float32's
    range. Fractions of a tensor without nonzero elements are 0.

    Measures (weight, activation, grad_output):
        amax [unit of the operand; at least 0]: max |x|. NaN where there is one.
        scale [unit of the operand; above 0]: s, where q = s * a value of the format. The largest
            where there are several.
        norm_l2 [unit of the operand; at least 0]: sqrt(sum x^2).
        nonfinite [elements; at least 0]: count(x is NaN or infinite).
        overflow [fraction; 0 to 1]: count(|q| > max before saturation) / count(x != 0). Infinities are included.
        underflow [fraction; 0 to 1]: count(x != 0 and q = 0) / count(x != 0).
        sqnr_db [dB; any]: 10 log10(sum x^2 / sum (q - x)^2). Left out where nothing was lost, and where a sum is not
            finite.
        dead [fraction; 0 to 1]: count(features with q = 0 in every row) / count(features). Features are the last
            dimension of activation and grad_output, and the rows of a weight (its outputs, or the rows of a table).
            Left out without features.
    """
    largest, scale, norm, noise, nonzero, nonfinite, overflow, underflow, dead, features = sums
    found = {
        "amax": largest,
        "scale": scale,
        "norm_l2": norm,
        "nonfinite": nonfinite,
        "overflow": overflow / max(nonzero, 1),
        "underflow": underflow / max(nonzero, 1),
    }
    if norm > 0 and noise > 0 and math.isfinite(norm) and math.isfinite(noise):
        found["sqnr_db"] = 20 * (math.log10(norm) - math.log10(noise))
    if features:
        found["dead"] = dead / features
    return found


def _norms(x: Tensor, q: Tensor | None) -> tuple[Tensor | float, Tensor | float]:
    """||x|| and ||q - x||, which is 0 without q; see `operand_statistics`."""
    if x.device.type == "cpu":
        x, q = x.reshape(-1), None if q is None else q.reshape(-1)
        square = error = 0.0
        scratch = torch.empty(min(x.numel(), _PIECE))
        for start in range(0, x.numel(), _PIECE):
            piece = x[start : start + _PIECE]
            if q is not None:
                lost = torch.sub(q[start : start + _PIECE], piece, out=scratch[: len(piece)])
                error += float(torch.dot(lost, lost))
            square += float(torch.dot(piece, piece))
        if _LEAST < square < _MOST and (q is None or _LEAST < error < _MOST):
            return math.sqrt(square), math.sqrt(error)
    norm = torch.linalg.vector_norm(x, dtype=torch.float64)
    return norm, torch.zeros_like(norm) if q is None else torch.linalg.vector_norm(q - x, dtype=torch.float64)


def _dead(x: Tensor, dim: int) -> Tensor:
    """Which features of [..., features] (`dim` 0) or [features, ...] (`dim` 1) are zero all along: bool [features]."""
    features = x.shape[-1 - dim] if x.ndim > dim else 1
    others = x.numel() // features if features else 0
    matrix = x.reshape((features, others) if dim else (others, features))
    if not matrix.shape[dim]:
        return torch.ones(features, dtype=torch.bool, device=x.device)
    return (matrix.amax(dim) == 0) & (matrix.amin(dim) == 0)


@torch.no_grad()
def code_counts(values: Tensor, fmt: FloatFormat, scale: Tensor | None = None) -> Tensor:
    """How often each code occurs among the finite elements of `values`: int64 [2**bits], by code.

    Args:
        values: of the grid `scale * fmt`, any shape.
        fmt: a format of at most 16 bits.
        scale: broadcastable to `values`; None is 1.
    """
    grid = torch.div(values.detach().float(), 1.0 if scale is None else scale).flatten()
    size = 1 << fmt.bits
    if fmt.signed and fmt.mantissa_bits <= 7 and fmt.quantum_exponent >= -126 and fmt.max_exponent <= 127:
        # A value is the upper half of a float32. Half of the lower half is added first: a quotient may lie beside it.
        upper = grid.view(torch.int32).add_(_HALVES // 2).bitwise_right_shift_(16).bitwise_and_(_HALVES - 1)
        halves = torch.bincount(upper, minlength=_HALVES)
        counts = torch.zeros(size + 1, dtype=torch.int64, device=grid.device)
        return counts.index_add_(0, _codes_of_halves(fmt).to(grid.device), halves)[:size]
    return torch.bincount(encode(grid[grid.isfinite()], fmt).int(), minlength=size)


@lru_cache(maxsize=64)
def _codes_of_halves(fmt: FloatFormat) -> Tensor:
    """The code of the value that each upper half of a float32 stands for; 2**bits where it is not finite."""
    values = (torch.arange(_HALVES) << 16).to(torch.int32).view(torch.float32)
    finite = values.isfinite()
    return encode(values.where(finite, 0.0), fmt).int().masked_fill_(~finite, 1 << fmt.bits)


def code_statistics(counts: Tensor, fmt: FloatFormat, *, histogram: bool) -> dict[str, float]:
    """Which codes of a format are in use.

    Args:
        counts: as `code_counts` has them.
        histogram: with the counts themselves, where the format has at most 8 bits.

    Measures (weight, activation, grad_output):
        codes_used [fraction; 0 to 1]: count(finite values that occur) / count(finite values of the format). -0 and
            +0 are one value. Left out, as is the rest, where no element is finite.
        code_entropy [bits; 0 to the format's bits]: -sum p log2 p. The sum is over the codes, p the share of a code.
        code_<c> [elements; at least 1]: count(q with the code c). c has two lower-case hexadecimal digits. Codes that
            do not occur are left out. Of the operands that `telemetry.histograms` names, by default the weights.
    """
    total = int(counts.sum())
    if not total:
        return {}
    p = counts[counts > 0].double() / total
    used = int(torch.count_nonzero(counts))
    if fmt.has_negative_zero and fmt.signed and counts[0] and counts[1 << (fmt.bits - 1)]:
        used -= 1
    found = {"codes_used": used / len(fmt.finite_values), "code_entropy": float(-(p * p.log2()).sum())}
    if histogram and fmt.bits <= 8:
        numbers = enumerate(counts.tolist())
        found |= {f"code_{code:02x}": float(number) for code, number in numbers if number}
    return found


@torch.no_grad()
def binade_counts(values: Tensor) -> Tensor:
    """How many elements of `values` (any shape and floating dtype) have each exponent field of float32: int64 [256]."""
    bits = values.detach().float().flatten().view(torch.int32)
    return torch.bincount(bits.bitwise_right_shift(23).bitwise_and_(255), minlength=256)


def binade_statistics(counts: Tensor) -> dict[str, float]:
    """How the magnitudes of an operand are spread before it is rounded, from `binade_counts`.

    Measures (weight, activation, grad_output):
        binade_zero [elements; at least 0]: count(|x| < 2^-126). Zero, or too small for a normal float32. This and
            the next are of the operands that `telemetry.histograms` names.
        binade_<e> [elements; at least 1]: count(2^e <= |x| < 2^(e + 1)). e is -126 to 127. Left out where there are
            none; NaN and infinity are in `nonfinite`.
    """
    zeros, *numbers = counts[:255].tolist()
    found = {f"binade_{e}": float(number) for e, number in enumerate(numbers, -126) if number}
    return {"binade_zero": float(zeros)} | found


def has_codes(fmt: FloatFormat) -> bool:
    """Whether codes of the format are counted: it quantizes, and has at most 16 bits."""
    return fmt is not FP32 and fmt.bits <= 16


@torch.no_grad()
def update_sums(change: Tensor, proposed: Tensor, flipped: Tensor | None) -> Tensor:
    """What `update_statistics` needs of one weight's step: float64 [4], on its device.

    Args:
        change: of the stored weight.
        proposed: the change before rounding onto the grid; `change` itself for a master weight.
        flipped: bool, where the value on the grid is another one after the step; None without a grid.
    """
    updates = torch.count_nonzero(proposed)
    flips = torch.zeros_like(updates) if flipped is None else torch.count_nonzero(flipped.logical_and_(proposed))
    norm = torch.linalg.vector_norm(change, dtype=torch.float64)
    return torch.stack([norm, updates.double(), flips.double(), torch.full_like(norm, change.numel())])


def update_statistics(sums: Sequence[float], *, on_grid: bool) -> dict[str, float]:
    """What an optimizer's step really did to one weight, from the numbers of `update_sums`.

    The proposed change is that of the master weight, or what the optimizer proposes before rounding onto the grid.

    Args:
        on_grid: the weight is rounded or lives on the grid; else norm_l2 and zero_update are all there is.

    Measures (update):
        norm_l2 [unit of the weight; at least 0]: sqrt(sum dw^2). dw is the change of the stored weight.
        updates [elements; at least 0]: count(proposed change != 0).
        flips [elements; 0 to updates]: count(proposed change != 0 and the value on the grid differs after the step).
        stall_ratio [fraction; 0 to 1]: 1 - flips / updates. Left out without updates.
        zero_update [fraction; 0 to 1]: count(proposed change = 0) / count(all). Left out where there are no elements.
    """
    norm, updates, flips, elements = sums
    found = {"norm_l2": norm}
    if on_grid:
        found |= {"updates": updates, "flips": flips}
        if updates:
            found["stall_ratio"] = 1 - flips / updates
    if elements:
        found["zero_update"] = 1 - updates / elements
    return found
