"""What a format would keep, clip and flush of a recorded tensor, computed from its histogram.

A run records two histograms of an operand (`altgrad.telemetry.counts`):

- ``binade_<e>``: how many elements had each exponent *before* rounding. What lies inside a binade is not known: each is
  taken as `SAMPLES` magnitudes spread evenly over it (up to the tensor's largest one), and what is clipped or flushed
  has bounds beside the estimate.
- ``code_<c>``: how often each code occurred *after* rounding. The values are exact, but of a tensor that had been
  rounded: they tell what a further rounding would do, not what rounding the original would have done.

Signs do not matter to what rounding to nearest does, so magnitudes are all there is.
docs/javascripts/tensors/outcome.js computes the same; a test holds the two together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from altgrad.formats import FloatFormat

SAMPLES = 101
"""Magnitudes that stand for the elements of one binade, the middles of as many equal parts of it: a prime number, so
that they are neither on the grid of a format nor halfway between its values."""

Policy = Literal["amax", "amax_exact", "none"]
POLICIES: tuple[Policy, ...] = ("amax", "amax_exact", "none")
_COUNT = re.compile("binade_.*|code_[0-9a-f]{2}")


@dataclass(frozen=True)
class Histogram:
    """Magnitudes of one tensor and how many elements have each.

    Attributes:
        kind: "binades" (before rounding; the keys are exponents) or "codes" (after it; the keys are magnitudes).
        counts: elements by exponent or by magnitude, in ascending order; what is zero is not in it.
        zeros: elements that are zero, or below 2^-126.
        amax: the largest magnitude, which decides the scale.
        norm: sqrt(sum x^2) where it was recorded; without it the SQNR takes it from the histogram.
    """

    kind: Literal["binades", "codes"]
    counts: Mapping[float, float]
    zeros: float
    amax: float
    norm: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What rounding does to a tensor; fractions are of its nonzero elements, 0 where there are none.

    Attributes:
        scale: the dequantization scale.
        clipped: rounded beyond the largest value, which they then get.
        flushed: became zero.
        kept: neither.
        clipped_bounds, flushed_bounds: the least and the most that the histogram allows; equal for codes.
        sqnr_db: 10 log10(sum x^2 / sum (q - x)^2); None where nothing is lost or nothing is there.
    """

    scale: float
    clipped: float
    flushed: float
    kept: float
    clipped_bounds: tuple[float, float]
    flushed_bounds: tuple[float, float]
    sqnr_db: float | None


def scale_by(policy: Policy, amax: float, fmt: FloatFormat) -> float:
    """The scale of a tensor: "amax" the smallest power of two at which nothing exceeds the format's largest value.

    "amax_exact" is amax / max, "none" is 1. A tensor of zeros has scale 1, as in `altgrad.scaling`.

    Raises:
        ValueError: another policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"scale policy must be one of {', '.join(POLICIES)}, not {policy!r}")
    if policy == "none" or amax == 0:
        return 1.0
    if policy == "amax_exact":
        return amax / fmt.max
    (mantissa, exponent), (top, top_exponent) = math.frexp(amax), math.frexp(fmt.max)
    return math.ldexp(1.0, min(max(exponent - top_exponent + (mantissa > top), -126), 127))


def outcome(histogram: Histogram, fmt: FloatFormat, policy: Policy = "amax") -> Outcome:
    """What `fmt` would make of the tensor, rounded to nearest even with saturation and one scale for all of it.

    Raises:
        ValueError: an unsigned format, which has no zero to flush to; an amax that is not finite.
    """
    if not fmt.signed:
        raise ValueError(f"{fmt.name} has no zero and no sign: it is a scale's format, not a tensor's")
    if not math.isfinite(histogram.amax):
        raise ValueError("a tensor with NaN or infinity has no scale")
    scale = scale_by(policy, histogram.amax, fmt)
    limit = fmt.max + fmt.max_ulp / 2  # a tie goes to the even code: beyond where the largest code is odd
    beyond_at_tie = fmt.max_code % 2 == 1

    def clips(x: float) -> bool:
        return x > limit or (x == limit and beyond_at_tie)

    clipped, flushed, signal, noise, total = [0.0] * 3, [0.0] * 3, 0.0, 0.0, 0.0
    for key, number in histogram.counts.items():
        magnitudes, low, high = _magnitudes(histogram, key)
        total += number
        share = number / len(magnitudes)
        for magnitude in magnitudes:
            x = magnitude / scale
            q = fmt.round(x)
            clipped[1] += share * clips(x)
            flushed[1] += share * (q == 0)
            signal += share * (x * x)
            noise += share * ((q - x) * (q - x))
        clipped[0] += number * clips(low / scale)
        clipped[2] += number * clips(high / scale)
        flushed[0] += number * (fmt.round(high / scale) == 0)
        flushed[2] += number * (fmt.round(low / scale) == 0)
    if histogram.norm is not None:
        signal = (histogram.norm / scale) ** 2
    (c_low, c, c_high), (f_low, f, f_high) = (
        [each / max(total, 1) for each in counts] for counts in (clipped, flushed)
    )
    sqnr = 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None
    return Outcome(scale, c, f, 1 - c - f if total else 0.0, (c_low, c_high), (f_low, f_high), sqnr)


def _magnitudes(histogram: Histogram, key: float) -> tuple[list[float], float, float]:
    """The magnitudes that one entry stands for, and the ends between which its elements lie (no tie is at an end)."""
    if histogram.kind == "codes":
        return [key], key, key
    base = math.ldexp(1.0, int(key))
    high = max(base, min(2 * base, histogram.amax))
    parts = [base + (high - base) * ((k + 0.5) / SAMPLES) for k in range(SAMPLES)]
    return parts, base * (1 + 2.0**-52), high * (1 - 2.0**-53)


def histograms(layers: pd.DataFrame, formats: Mapping[str, FloatFormat]) -> dict[tuple[str, str, int], Histogram]:
    """The histograms in one run's per-layer table, by (layer, operand, step); binades where both kinds are there.

    Args:
        layers: as `ExperimentDataLoader.layers` gives it.
        formats: of each operand whose codes were counted with one scale per tensor. Codes of others say nothing without
            the scales of their rows or blocks, and are left out.
    """
    found: dict[tuple[str, str, int], Histogram] = {}
    names = layers["statistic"].astype("category").array
    words = names.categories.tolist()
    counted = np.array([_COUNT.fullmatch(str(word)) is not None for word in words], dtype=bool)
    if not counted.any():
        return found
    place = np.zeros(len(layers), np.int64)
    for key in ("layer", "operand", "step"):
        codes, found_keys = pd.factorize(layers[key])
        place = place * len(found_keys) + codes

    def rows_of(chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.asarray(np.append(chosen, False)[names.codes], dtype=bool)

    others = np.isin(words, ("amax", "scale", "norm_l2"))
    told = np.array([str(word) == "scale" or str(word).startswith("binade_") for word in words])
    usable = np.isin(place, place[rows_of(counted)]) & np.isin(place, place[rows_of(told)])  # few looks are
    chosen = layers.loc[rows_of(counted | others) & usable, ["layer", "operand", "step", "statistic", "value"]]
    for (layer, operand, step), rows in chosen.groupby(["layer", "operand", "step"], sort=False, observed=True):
        values = dict(zip(rows["statistic"].astype(str), rows["value"].astype(float), strict=True))
        amax, scale, norm = (values.pop(name, math.nan) for name in ("amax", "scale", "norm_l2"))
        binades = {name[7:]: number for name, number in values.items() if name.startswith("binade_")}
        if binades:
            counts = {float(e): number for e, number in binades.items() if e != "zero"}
            top = amax if math.isfinite(amax) else math.ldexp(1.0, int(max(counts, default=-126)) + 1)
            kind: Literal["binades", "codes"] = "binades"
            zeros, exact = binades.get("zero", 0.0), norm if math.isfinite(norm) else None
        elif (fmt := formats.get(operand)) and math.isfinite(scale) and scale > 0 and values:
            kind, counts, exact = "codes", {}, None
            for name, number in values.items():
                magnitude = abs(fmt.decode(int(name[5:], 16))) * scale
                counts[magnitude] = counts.get(magnitude, 0.0) + number
            zeros, top = counts.pop(0.0, 0.0), max(counts, default=0.0)
        else:
            continue
        found[str(layer), str(operand), int(step)] = Histogram(kind, dict(sorted(counts.items())), zeros, top, exact)
    return found
