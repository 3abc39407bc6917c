"""How figures become text: the one place for it, in evidence, on pages, in tables and beside charts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from altgrad.text import figure as figure

if TYPE_CHECKING:
    import pandas as pd

    from altgrad.analysis.statistics import Estimate


ENDINGS = ("finished", "not recorded", "failed", "crashed", "interrupted", "running")
"""How runs end (`altgrad.runs.RunRecord.ending`), in the order in which they are told."""


def endings(runs: pd.Series) -> str:
    """How some runs ended: ``35 finished, 1 failed``."""
    if {*runs} == {"not recorded"}:
        return f"how {'it' if len(runs) == 1 else 'they'} ended is not recorded"
    return ", ".join(ended(count, each) for each in ENDINGS if (count := int((runs == each).sum())))


def ended(count: int, how: str) -> str:
    """``35 finished``."""
    return f"{count} with the ending not recorded" if how == "not recorded" else f"{count} {how}"


def counted(n: int, endings: Sequence[str]) -> str:
    """How many runs of an arm have a result, and how the others ended: ``3``, ``2 of 3, 1 failed``."""
    if n == len(endings):
        return str(n)
    others = (ended(count, how) for how in ENDINGS[2:] if (count := list(endings).count(how)))
    return ", ".join([f"{n} of {len(endings)}", *others])


def number(value: float, digits: int = 3, sign: bool = False) -> str:
    """`value` with fixed digits; a dash for NaN."""
    if not finite(value):
        return "–"
    return figure(value, f"{'+' if sign else ''}.{digits}f")


def interval(low: float, high: float, digits: int = 3, sign: bool = True) -> str:
    """``[low, high]``, with signs for differences; "none" where there is no interval (fewer than two pairs).

    A digit more where an end would be shown as 0 and is not: on which side of zero it lies is what a reader looks for.
    """
    if not (finite(low) and finite(high)):
        return "none"
    near = any(end and not round(float(end), digits) for end in (low, high))
    return f"[{number(low, digits + near, sign)}, {number(high, digits + near, sign)}]"


def span(low: float, high: float, digits: int = 3) -> str:
    """An interval in a sentence: ``0.003 to 0.014``; a digit more where `interval` has one."""
    return interval(low, high, digits, sign=False).strip("[]").replace(", ", " to ")


def estimate(value: Estimate, digits: int = 3) -> str:
    """``0.008 nats (95% CI 0.003 to 0.014, n = 5)``."""
    return f"{number(value.mean, digits)} nats (95% CI {span(value.low, value.high, digits)}, n = {value.n})"


def contrast(row: Mapping[Any, Any], digits: int = 3) -> str:
    """``+0.016 nats [+0.006, +0.026] (n = 16)``: a row of `altgrad.analysis.contrasts`."""
    mean, n = number(row["difference"], digits, sign=True), int(row["n_pairs"])
    return f"{mean} nats {interval(row['low'], row['high'], digits)} (n = {n})"


def in_short(contrast: str) -> str:
    """A contrast whose arms begin or end alike, with that once: ``E4M3 AdamW (grid, error feedback − stochastic)``."""
    one, mark, other = contrast.partition(" − ")
    if not mark or " − " in other:
        return contrast
    (first, _, tail), end = one.rpartition("; "), other.rpartition("; ")[2]
    one = first if first and tail == end else one
    mine, theirs = one.split(" "), other.split(" ")
    pairs = ((left.rstrip(",;"), right.rstrip(",;")) for left, right in zip(mine, theirs, strict=False))
    alike = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    rest = theirs[alike:]
    if not 0 < alike < min(len(mine), len(theirs)) or rest[0] in ("with", "in") or rest == mine[-len(rest) :]:
        return f"{one} − {other}"
    closed = ")" if one.endswith(")") and other.endswith(")") and "(" in " ".join(mine[:alike]) else ""
    return f"{one.removesuffix(closed)} − {' '.join(rest)}"


def percent(value: float) -> str:
    """A fraction as a percentage with three significant digits; a dash for NaN."""
    return "–" if not finite(value) else f"{figure(100 * value, '.3g')}%"


def p_text(value: float) -> str:
    """A p-value with three digits, "< 0.001" below them, a dash for NaN."""
    return "–" if not finite(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def p_equals(value: float) -> str:
    """A p-value for a sentence: ``p = 0.012``, ``p < 0.001``; "no p-value" for NaN."""
    text = p_text(value)
    return "no p-value" if text == "–" else f"p {text}" if text.startswith("<") else f"p = {text}"


def quantized(scope: str) -> str:
    """A scope with the word where it belongs: ``weights quantized; no scale``."""
    what, mark, how = scope.partition(";")
    return f"{names(what.split(' + '))} quantized{mark}{how}"


def names(items: Sequence[str]) -> str:
    """``A``, ``A and B``, ``A, B and C``."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def moment(text: str | None) -> str:
    """An ISO time as ``2026-11-23 20:15 UTC``."""
    return "no records" if text is None else datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def finite(value: object) -> bool:
    """Whether a value is a number that can be shown."""
    return isinstance(value, int | float | np.number) and math.isfinite(value)
