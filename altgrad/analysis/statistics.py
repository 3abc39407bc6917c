"""Intervals and tests for small numbers of seeds. scipy is loaded when a number is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CONFIDENCE = 0.95
ALPHA = 0.05
MARGIN = 0.01
"""Nats per character within which two losses are called equivalent (docs/method/preregistration.md)."""

FAILURE_GAP = 0.05
"""An arm whose paired gap to the unquantized run is above this, in nats per character, has failed (preregistered)."""

SMALLEST_GAP = 0.005
"""The smallest difference of losses that this project calls interesting, nats per character."""

MIN_PAIRS = 3
"""Pairs below which nothing is ranked: two give an interval, but one so wide that only chance makes it short."""

PERMUTATION_FROM = 12
"""Pairs from which the p-value is the sign-flip permutation test's; below it is the paired t test's."""

EXACT_UP_TO = 16
MOST_LEVELS = 128
"""Levels of a factor above which `residual` is not asked for it: its time grows with their cube."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% t interval and the test of mean 0.

    Attributes:
        mean: NaN when n is 0.
        low, high: ends of the interval; NaN when n is below 2.
        sd: sample standard deviation (n - 1); NaN when n is below 2.
        n: number of values, or of pairs.
        p_value: two-sided test of mean 0, the one that `name_of_test` says; NaN when n is below 2.
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

    @property
    def effect_size(self) -> float:
        """Cohen's d of the pairs, mean / sd; NaN when n is below 2 or nothing differs, infinite without spread."""
        if self.n < 2 or (self.mean == 0 and self.sd == 0):
            return math.nan
        return self.mean / self.sd if self.sd else math.copysign(math.inf, self.mean)

    def equivalence_p(self, margin: float = MARGIN) -> float:
        """p-value of TOST: two one-sided t tests of |mean| >= margin (Schuirmann 1987); NaN when n is below 2."""
        if self.n < 2:
            return math.nan
        if self.sd == 0:
            return 0.0 if abs(self.mean) < margin else 1.0
        return _t_beyond((margin - abs(self.mean)) * math.sqrt(self.n) / self.sd, self.n - 1)

    def equivalent(self, margin: float = MARGIN) -> bool:
        """Whether the mean is shown to lie within the margin of 0: a tie, not only the lack of a difference."""
        return self.equivalence_p(margin) < ALPHA


def mean_interval(values: Sequence[float] | pd.Series) -> Estimate:
    """Mean, two-sided 95% t interval and test of `values` (NaN and infinities are an error: they are failures).

    Without spread (sd 0) the interval is the mean itself, and the t test's p-value is 0, or 1 for a mean of exactly 0.

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
    permuted = sign_flip_p(data) if n >= PERMUTATION_FROM else None
    if sd == 0:
        return Estimate(mean, mean, mean, 0.0, n, (1.0 if mean == 0 else 0.0) if permuted is None else permuted)
    error = sd / math.sqrt(n)
    half = t_quantile(n - 1) * error
    p_value = 2 * _t_beyond(abs(mean) / error, n - 1) if permuted is None else permuted
    return Estimate(mean, mean - half, mean + half, sd, n, p_value)


def unpaired_difference(values: Floats, baseline: Floats) -> Estimate:
    """The mean of `values` minus that of `baseline`, of two or more finite values each that form no pairs.

    The interval and the t test take each side's spread as its own (Welch, Biometrika 34, 1947). `n` counts the values
    of both sides; `sd` is NaN, since there is none of pairs.
    """
    mean = float(values.mean() - baseline.mean())
    parts = [float(each.var(ddof=1)) / len(each) for each in (values, baseline)]
    error, n = math.sqrt(sum(parts)), len(values) + len(baseline)
    if error == 0:
        return Estimate(mean, mean, mean, math.nan, n, 1.0 if mean == 0 else 0.0)
    shares = (part / sum(parts) for part in parts)
    degrees = 1 / sum(share**2 / (len(each) - 1) for share, each in zip(shares, (values, baseline), strict=True))
    half = t_quantile(degrees) * error
    return Estimate(mean, mean - half, mean + half, math.nan, n, 2 * _t_beyond(abs(mean) / error, degrees))


@cache
def t_quantile(degrees: float) -> float:
    """The two-sided 95% quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))


def _t_beyond(value: float, degrees: float) -> float:
    """How likely Student's t is above `value`; scipy.stats.t.sf gives the same and takes a hundred times as long."""
    from scipy.special import stdtr

    return float(stdtr(degrees, -value))


def sign_flip_p(differences: Sequence[float] | Floats) -> float:
    """Two-sided p-value of the sign-flip permutation test of mean 0 (Fisher 1935, section 21).

    Under the null a difference is as likely as its negative. All 2^n sign patterns are counted up to n = 16, and 2^16
    random ones beyond it, the observed one included (Phipson & Smyth 2010), always the same ones for the same n.
    """
    data = np.asarray(differences, dtype=np.float64)
    n, observed = len(data), abs(float(np.sum(data)))
    if n <= EXACT_UP_TO:  # all patterns of one half beside all of the other
        half = n // 2
        sums = np.abs(np.add.outer(_signs(half, n) @ data[:half], _signs(n - half, n) @ data[half:]).ravel())
    else:
        sums = np.abs(_signs(n, n) @ data)
    # What differs from the observed sum by the roundoff of another order of summation is equal to it.
    reached = int(np.count_nonzero(sums >= observed - 1e-12 * np.abs(data).sum()))
    return reached / len(sums) if n <= EXACT_UP_TO else (reached + 1) / (len(sums) + 1)


@cache
def _signs(n: int, of: int) -> Floats:
    """Sign patterns of `n` of `of` differences, one a row."""
    if of <= EXACT_UP_TO:
        bits = np.arange(1 << n)[:, None] >> np.arange(n) & 1
    else:
        bits = np.random.default_rng(n).integers(0, 2, size=((1 << EXACT_UP_TO) - 1, n))
    return np.where(bits == 1, -1.0, 1.0).astype(np.float64)


def name_of_test(n: int) -> str:
    """What the p-value of `n` pairs comes from, in words."""
    return "sign-flip permutation test" if n >= PERMUTATION_FROM else "paired t test"


def seeds_needed(sd: float, gap: float) -> int | None:
    """How many pairs a two-sided paired t test at 5% needs to see a difference of `gap` with a power of 80%.

    From the noncentral t distribution (Cohen 1988, chapter 2). None above 100,000, or where sd or gap is not finite or
    gap is 0.
    """
    if not (math.isfinite(sd) and math.isfinite(gap)) or gap == 0:
        return None
    if sd == 0:
        return 2
    from scipy.stats import nct, t

    def seen(n: int) -> bool:
        limit, shift = float(t.ppf(1 - ALPHA / 2, n - 1)), abs(gap) / sd * math.sqrt(n)
        return float(nct.sf(limit, n - 1, shift) + nct.cdf(-limit, n - 1, shift)) >= 0.8

    low, high = 1, 2
    while not seen(high):
        low, high = high, 2 * high
        if high > 100_000:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if seen(middle) else (middle, high)
    return high


def paired_difference(values: pd.Series, baseline: pd.Series) -> Estimate:
    """Mean of ``values - baseline`` over the seeds that both have (the index), with its paired t interval.

    Seeds that only one of them has, and values that are not finite (failed runs), form no pair; `n` says how many did.

    Raises:
        ValueError: if a seed stands twice in one of them.
    """
    if values.index.has_duplicates or baseline.index.has_duplicates:
        raise ValueError("a paired difference needs each seed once in each arm")
    first, second = values.to_numpy(np.float64), baseline.to_numpy(np.float64)
    if not values.index.equals(baseline.index):
        _, own, other = np.intersect1d(values.index, baseline.index, assume_unique=True, return_indices=True)
        first, second = first[own], second[other]
    with np.errstate(invalid="ignore"):
        difference = first - second
    return mean_interval(difference[np.isfinite(difference)])


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Scandinavian Journal of Statistics 6, 1979); NaN stays NaN and is not counted."""
    known = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    worst = 0.0
    for rank, (p, index) in enumerate(known):
        worst = max(worst, min(1.0, (len(known) - rank) * p))
        adjusted[index] = worst
    return adjusted


class Residual(NamedTuple):
    """What a linear model leaves of some values: the sum of squares, and its degrees of freedom."""

    squares: float
    degrees: int


def residual(values: Floats, groups: NDArray[np.intp], *factors: NDArray[np.intp]) -> Residual:
    """What least squares leave with a mean for each group and a shift for each level of the factors, all of shape (n,).

    Groups may be of any size and levels may be missing from them: groups are swept out of both sides first (Frisch and
    Waugh 1933), and levels that go with groups or with each other cost no degree of freedom. Squares as small as
    roundoff are 0.
    """
    levels = [np.equal.outer(codes, np.unique(codes)).astype(np.float64) for codes in factors]
    both = np.column_stack([values, *levels])
    _, groups, counts = np.unique(groups, return_inverse=True, return_counts=True)
    begins = counts.cumsum() - counts
    both -= (np.add.reduceat(both[np.argsort(groups, kind="stable")], begins) / counts[:, None])[groups]
    y, x = both[:, 0], both[:, 1:]
    fit, _, rank, _ = np.linalg.lstsq(x.T @ x, x.T @ y, rcond=1e-9)
    squares = float(((y - x @ fit) ** 2).sum())
    degrees = len(y) - len(counts) - int(rank)
    return Residual(squares if squares > 1e-24 * float(values @ values) else 0.0, degrees)


def f_test(fuller: Residual, simpler: Residual, noise: Residual) -> float:
    """p-value of the F test of the terms that a fuller model has beside those of a simpler one, against noise.

    NaN where these terms cost no degree of freedom, or the noise has none; without noise 0, or 1 for no gain.
    """
    from scipy.special import fdtrc

    squares, degrees = max(0.0, simpler.squares - fuller.squares), simpler.degrees - fuller.degrees
    if degrees <= 0 or noise.degrees <= 0:
        return math.nan
    if noise.squares == 0:
        return 0.0 if squares else 1.0
    return float(fdtrc(degrees, noise.degrees, squares / degrees * noise.degrees / noise.squares))


def beyond_noise(fuller: Residual, simpler: Residual, noise: Residual) -> float:
    """By how much a fuller model lowers the sum of squares more than noise alone would have it do.

    It is the numerator of omega squared, SS - df MS(noise) (Hays, Statistics for Psychologists, 1963).
    """
    each = noise.squares / noise.degrees if noise.degrees else 0.0
    return simpler.squares - fuller.squares - (simpler.degrees - fuller.degrees) * each


def rank_correlation(one: pd.Series, other: pd.Series) -> float:
    """Spearman's correlation of two columns, row by row; NaN where either is all alike."""
    from scipy.stats import spearmanr

    if min(one.nunique(), other.nunique()) < 2:  # scipy warns of it
        return math.nan
    return float(spearmanr(one, other).statistic)
