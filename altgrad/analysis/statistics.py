"""Intervals and tests for small numbers of seeds. scipy is loaded when a number is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% t interval.

    Attributes:
        mean: NaN when n is 0.
        low, high: ends of the interval; NaN when n is below 2.
        sd: sample standard deviation (n - 1); NaN when n is below 2.
        n: number of values, or of pairs.
        p_value: two-sided t test of mean 0; NaN when n is below 2.
    """

    mean: float
    low: float
    high: float
    sd: float
    n: int
    p_value: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0; False without an interval."""
        return self.low > 0 or self.high < 0


def mean_interval(values: Sequence[float] | pd.Series) -> Estimate:
    """Mean and two-sided 95% t interval of `values` (NaN and infinities are an error: they are failures, not data).

    Without spread (sd 0) the interval is the mean itself, and the p-value is 0, or 1 for a mean of exactly 0.

    Raises:
        ValueError: for a value that is not finite.
    """
    data = np.asarray(values, dtype=np.float64)
    if not np.isfinite(data).all():
        raise ValueError("intervals are over finite values only; count failed runs instead")
    n = len(data)
    mean = float(data.mean()) if n else math.nan
    if n < 2:
        return Estimate(mean, math.nan, math.nan, math.nan, n, math.nan)
    sd = float(data.std(ddof=1))
    if sd == 0:
        return Estimate(mean, mean, mean, 0.0, n, 1.0 if mean == 0 else 0.0)
    from scipy.stats import t

    error = sd / math.sqrt(n)
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    return Estimate(mean, mean - half, mean + half, sd, n, float(2 * t.sf(abs(mean) / error, n - 1)))


def paired_difference(values: pd.Series, baseline: pd.Series) -> Estimate:
    """Mean of ``values - baseline`` over the seeds that both have (the index), with its paired t interval.

    Seeds that only one of them has, and values that are not finite (failed runs), form no pair; `n` says how many did.

    Raises:
        ValueError: if a seed stands twice in one of them.
    """
    if values.index.has_duplicates or baseline.index.has_duplicates:
        raise ValueError("a paired difference needs each seed once in each arm")
    difference = (values - baseline).replace([np.inf, -np.inf], np.nan).dropna()
    return mean_interval(difference.to_numpy())


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Scandinavian Journal of Statistics 6, 1979); NaN stays NaN and is not counted."""
    known = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    worst = 0.0
    for rank, (p, index) in enumerate(known):
        worst = max(worst, min(1.0, (len(known) - rank) * p))
        adjusted[index] = worst
    return adjusted
