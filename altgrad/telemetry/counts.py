"""Counts: what rounding did to an operand, which codes are in use, and which weights an optimizer's step really moved.

Every count is exact. What overflowed and underflowed is counted by the kernel in the pass that rounds; the rest is
counted here from the same values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from altgrad.formats import FP32, FloatFormat
from altgrad.nn import Reading
from altgrad.rounding import encode
from altgrad.scaling import amax

_HALF = 1 << 16


@torch.no_grad()
def operand_sums(reading: Reading) -> Tensor:
    """What `operand_statistics` needs of one operand: float64 [10], on its device."""
    real, rounded = reading.real.detach(), reading.rounded.detach()
    real = real if real.dtype == torch.float32 else real.float()
    rounded = rounded if rounded.dtype == torch.float32 else rounded.float()
    norm = torch.linalg.vector_norm(real, dtype=torch.float64)
    nonfinite = noise = torch.zeros((), device=real.device)
    if real.is_cuda or not math.isfinite(norm):
        nonfinite = torch.count_nonzero(real - real)  # NaN where it is not 0
    if rounded is not real:
        noise = torch.linalg.vector_norm(rounded - real, dtype=torch.float64)
    dead, features = _dead(rounded, 1 if reading.operand == "weight" else 0)
    scale = torch.ones(()) if reading.scale is None else reading.scale.detach()
    sums = (
        amax(real),
        scale.max() if scale.numel() else scale.new_ones(()),
        norm,
        noise,
        torch.count_nonzero(real),
        nonfinite,
        reading.overflow,
        reading.underflow,
        dead,
        features,
    )
    return torch.stack([torch.as_tensor(each, dtype=torch.float64, device=real.device) for each in sums])


def operand_statistics(sums: Sequence[float]) -> dict[str, float]:
    """What rounding did to one operand of the matrix products, from the numbers of `operand_sums`.

    x are the real values, q the rounded ones; sums of squares are taken in float64. Fractions of a tensor without
    nonzero elements are 0.

    Measures (weight, activation, grad_output):
        amax [unit of the operand; at least 0]: max |x|. NaN where there is one.
        scale [unit of the operand; above 0]: the dequantization scale, the largest where there are several.
        norm_l2 [unit of the operand; at least 0]: sqrt(sum x^2).
        nonfinite [elements; at least 0]: count(x is NaN or infinite).
        overflow [fraction; 0 to 1]: count(|q| > max before saturation) / count(x != 0), infinities included.
        underflow [fraction; 0 to 1]: count(x != 0 and q = 0) / count(x != 0).
        sqnr_db [dB; any]: 10 log10(sum x^2 / sum (q - x)^2). Left out where nothing was lost, and where a sum is not
            finite.
        dead [fraction; 0 to 1]: features that are zero in every row, as read: of the last dimension of activation and
            grad_output, of the rows of a weight (its outputs, or the rows of a table). Left out without features.
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


def _dead(x: Tensor, dim: int) -> tuple[Tensor | int, int]:
    """How many features of [..., features] (`dim` 0) or [features, ...] (`dim` 1) are zero all along, of how many."""
    if x.ndim == 0:
        x = x[None]
    matrix = x.reshape(-1, x.shape[-1]) if x.shape[-1] else x.reshape(math.prod(x.shape[:-1]), 0)
    features = matrix.shape[1 - dim]
    if matrix.shape[dim] == 0:
        return features, features
    return torch.count_nonzero((matrix.amax(dim) == 0) & (matrix.amin(dim) == 0)), features


@torch.no_grad()
def code_counts(values: Tensor, fmt: FloatFormat, scale: Tensor | None = None) -> Tensor:
    """How often each code occurs among the finite elements of `values`: int64 [2**bits], by code.

    Args:
        values: of the grid `scale * fmt`, any shape.
        fmt: a format of at most 16 bits.
        scale: broadcastable to `values`; None is 1.
    """
    grid = values.detach().float()
    grid = (grid if scale is None else grid / scale).flatten()
    counts = torch.zeros(1 << fmt.bits, dtype=torch.int64, device=grid.device)
    if fmt.signed and fmt.mantissa_bits <= 7 and fmt.quantum_exponent >= -126 and fmt.max_exponent <= 127:
        # A value is the upper half of a float32: those are counted, and few are left to encode. Half of the lower half
        # is added first, for a quotient may be next to the value.
        halves = torch.bincount((grid.view(torch.int32) + _HALF // 2 >> 16) & (_HALF - 1), minlength=_HALF)
        found = halves.nonzero()[:, 0]
        grid, numbers = (found << 16).int().view(torch.float32), halves[found]
        grid, numbers = grid[grid.isfinite()], numbers[grid.isfinite()]
        return counts.index_add_(0, encode(grid, fmt).int(), numbers)
    codes = encode(grid[grid.isfinite()], fmt).int()
    return counts + torch.bincount(codes, minlength=counts.numel())


def code_statistics(counts: Tensor, fmt: FloatFormat, *, histogram: bool) -> dict[str, float]:
    """Which codes of a format are in use.

    Args:
        counts: as `code_counts` has them.
        histogram: with the counts themselves, where the format has at most 8 bits.

    Measures (weight, activation, grad_output):
        codes_used [fraction; 0 to 1]: distinct finite values that occur / distinct finite values of the format. -0 and
            +0 are one value. Left out, as is the rest, where no element is finite.
        code_entropy [bits; 0 to the format's bits]: -sum p log2 p over the codes, p = count / sum of counts.

    Measures (weight):
        code_<c> [elements; at least 1]: count of the code c. c has two lower-case hexadecimal digits. Codes that do not
            occur are left out.
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


def has_codes(fmt: FloatFormat) -> bool:
    """Whether codes of the format are counted: it quantizes, and has at most 16 bits."""
    return fmt is not FP32 and fmt.bits <= 16 and fmt.fits_float64


@torch.no_grad()
def update_sums(change: Tensor, proposed: Tensor, flipped: Tensor | None) -> Tensor:
    """What `update_statistics` needs of one weight's step: float64 [4], on its device.

    Args:
        change: of the stored weight.
        proposed: the change before rounding onto the grid; `change` itself for a master weight.
        flipped: bool, where the value on the grid is another one after the step; None without a grid.
    """
    updates = torch.count_nonzero(proposed)
    flips = updates.new_zeros(()) if flipped is None else torch.count_nonzero(flipped & (proposed != 0))
    norm = torch.linalg.vector_norm(change, dtype=torch.float64)
    return torch.stack([norm, updates.double(), flips.double(), torch.full_like(norm, change.numel())])


def update_statistics(sums: Sequence[float], *, on_grid: bool) -> dict[str, float]:
    """What an optimizer's step really did to one weight, from the numbers of `update_sums`.

    The proposed change is that of the master weight, or what the optimizer proposes before rounding onto the grid.

    Args:
        on_grid: the weight is rounded or lives on the grid; else norm_l2 and zero_update are all there is.

    Measures (update):
        norm_l2 [unit of the weight; at least 0]: sqrt(sum dw^2), dw the change of the stored weight.
        updates [elements; at least 0]: count(proposed change != 0).
        flips [elements; 0 to updates]: those of them whose value on the grid differs after the step.
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
