"""What a number format is, and the catalogue of formats.

A format is data: exponent bits, mantissa bits, bias, and which codes are special. The scalar functions here (`decode`,
`encode`, `round`) are the readable specification; `altgrad.rounding` must equal them on every input.

Specials:

- ``ieee``: the top exponent holds infinities and NaNs (E5M2, FP16, BF16, FP32);
- ``fn``: finite, with the all-ones code as the only NaN (E4M3, maximum 448);
- ``finite``: every code is a finite number (every other split).

A code is sign | exponent | mantissa, from the most significant bit. Values are
``sign * 2**(e - bias) * (1 + m / 2**M)`` and, where the exponent field is 0, the subnormals
``sign * 2**(1 - bias) * m / 2**M``. Without exponent bits (E0M7) the format is the fixed-point grid
``m * 2**(-bias - M)``; without mantissa bits (E7M0) the exponent field 0 holds only zero.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Specials = Literal["ieee", "fn", "finite"]


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format of one sign bit, `exponent_bits` and `mantissa_bits`.

    Attributes:
        name: lower-case catalogue name, for example ``e4m3``.
        exponent_bits: width of the exponent field; 0 gives a fixed-point grid.
        mantissa_bits: stored fraction bits, the leading one not counted.
        bias: what is subtracted from the exponent field.
        specials: which codes are not finite numbers; see the module's docstring.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    specials: Specials = "finite"

    @property
    def label(self) -> str:
        """The name as people write it, for example ``E4M3``."""
        return self.name.upper()

    @property
    def bits(self) -> int:
        """Width of a code, the sign included."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def has_infinity(self) -> bool:
        """Whether overflow has an infinity to go to."""
        return self.specials == "ieee"

    @property
    def has_nan(self) -> bool:
        """Whether any code is NaN (an ``ieee`` split without mantissa bits would have none)."""
        return self.specials == "fn" or (self.specials == "ieee" and self.mantissa_bits > 0)

    @property
    def quantum_exponent(self) -> int:
        """log2 of `quantum`."""
        return (1 if self.exponent_bits else 0) - self.bias - self.mantissa_bits

    @property
    def quantum(self) -> float:
        """Smallest positive value, which is also the spacing of the grid at zero."""
        return math.ldexp(1.0, self.quantum_exponent)

    @property
    def max_exponent(self) -> int:
        """floor(log2(max)), the exponent of the top binade."""
        if self.exponent_bits == 0:
            return -self.bias - 1
        top = (1 << self.exponent_bits) - 1
        return top - self.bias - (1 if self.specials == "ieee" else 0)

    @cached_property
    def max(self) -> float:
        """Largest finite value."""
        if self.exponent_bits == 0:
            return math.ldexp((1 << self.mantissa_bits) - 1, self.quantum_exponent)
        significand = (2 << self.mantissa_bits) - (2 if self.specials == "fn" else 1)
        return math.ldexp(significand, self.max_exponent - self.mantissa_bits)

    @property
    def min_normal(self) -> float | None:
        """Smallest normal value; None where every value is on one fixed-point grid (E0M7)."""
        return math.ldexp(1.0, 1 - self.bias) if self.exponent_bits and self.max_exponent >= 1 - self.bias else None

    @property
    def min_subnormal(self) -> float | None:
        """Smallest subnormal value; None without mantissa bits (E7M0)."""
        return self.quantum if self.mantissa_bits else None

    @property
    def max_ulp(self) -> float:
        """Spacing of the grid at `max`."""
        return self.quantum if self.exponent_bits == 0 else math.ldexp(1.0, self.max_exponent - self.mantissa_bits)

    @property
    def eps(self) -> float:
        """Spacing of the grid just above 1 when 1 is a normal value: 2**-mantissa_bits."""
        return math.ldexp(1.0, -self.mantissa_bits)

    @cached_property
    def values(self) -> NDArray[np.float64]:
        """The value of every code, float64 of shape [2**bits], NaN and infinities included.

        Raises:
            ValueError: for more than 16 bits (a table of FP32 would hold 2**32 rows).
        """
        if self.bits > 16:
            raise ValueError(
                f"values of {self.name} would be a table of 2**{self.bits} codes; use decode(code) instead"
            )
        return np.array([self.decode(code) for code in range(1 << self.bits)])

    @cached_property
    def finite_values(self) -> NDArray[np.float64]:
        """The distinct finite values, ascending (-0 and +0 count once)."""
        return np.unique(self.values[np.isfinite(self.values)])

    def decode(self, code: int) -> float:
        """The exact value of `code`.

        Raises:
            ValueError: if `code` is not in ``[0, 2**bits)``.
        """
        if not 0 <= code < 1 << self.bits:
            raise ValueError(f"code {code} is outside 0..{(1 << self.bits) - 1} of {self.name}")
        sign = -1.0 if code >> (self.bits - 1) else 1.0
        magnitude = code & ((1 << (self.bits - 1)) - 1)
        if self.specials == "fn" and magnitude == (1 << (self.bits - 1)) - 1:
            return math.nan
        field, mantissa = magnitude >> self.mantissa_bits, magnitude & ((1 << self.mantissa_bits) - 1)
        if self.specials == "ieee" and field == (1 << self.exponent_bits) - 1:
            return math.nan if mantissa else sign * math.inf
        if field == 0:
            return sign * math.ldexp(mantissa, self.quantum_exponent)
        return sign * math.ldexp((1 << self.mantissa_bits) + mantissa, field - self.bias - self.mantissa_bits)

    def encode(self, value: float, saturate: bool = True) -> int:
        """The code nearest to `value`, ties to the even code.

        Args:
            value: any float64; rounded once, from its exact value.
            saturate: finite values beyond the largest go to the largest; otherwise to infinity where the format has
                one, else to NaN, else (finite formats) still to the largest. Infinity follows the same rule.

        Raises:
            ValueError: for NaN in a format without a NaN code.
        """
        sign = (1 << (self.bits - 1)) if math.copysign(1.0, value) < 0 else 0
        top = self._max_code
        if math.isnan(value):
            if not self.has_nan:
                raise ValueError(f"{self.name} has no NaN code")
            return self._nan_code
        # Non-negative codes are ordered as their values: the largest code not above |value|, then its upper neighbour.
        exact = Fraction(abs(value)) if math.isfinite(value) else None
        if exact is None:
            overflow = True
        else:
            code = self._floor_code(abs(value))
            low = Fraction(self._magnitude(code))
            gap = Fraction(self._magnitude(code + 1)) - low
            twice = 2 * (exact - low)
            code += twice > gap or (twice == gap and code % 2 == 1)
            overflow = code > top
        if overflow:
            if saturate or self.specials == "finite":
                return sign | top
            return sign | (top + 1) if self.has_infinity else self._nan_code
        return sign | code

    def round(self, value: float, saturate: bool = True) -> float:
        """`value` rounded to the nearest value of the format: ``decode(encode(value))``, with NaN kept as NaN."""
        return math.nan if math.isnan(value) else self.decode(self.encode(value, saturate))

    def ulp(self, value: float) -> float:
        """Spacing of the grid at `value`: 2**floor(log2|value|) * 2**-M, at least `quantum`, at most `max_ulp`."""
        if math.isnan(value):
            return math.nan
        if value == 0:
            return self.quantum
        exponent = math.frexp(value)[1] - 1 if math.isfinite(value) else self.max_exponent
        return min(
            max(math.ldexp(1.0, min(exponent, self.max_exponent) - self.mantissa_bits), self.quantum), self.max_ulp
        )

    @property
    def _max_code(self) -> int:
        """Code of `max`: everything above it, up to the sign bit, is special."""
        if self.specials == "ieee":
            return (((1 << self.exponent_bits) - 1) << self.mantissa_bits) - 1
        return (1 << (self.bits - 1)) - (2 if self.specials == "fn" else 1)

    @property
    def _nan_code(self) -> int:
        all_ones = (1 << (self.bits - 1)) - 1
        return all_ones if self.specials == "fn" else self._max_code + 1 + (1 << max(self.mantissa_bits - 1, 0))

    def _magnitude(self, code: int) -> float:
        """The value a non-negative code would have if no code were special: the grid continued above `max`."""
        field, mantissa = code >> self.mantissa_bits, code & ((1 << self.mantissa_bits) - 1)
        if self.exponent_bits == 0:
            return math.ldexp(code, self.quantum_exponent)
        if field == 0:
            return math.ldexp(mantissa, self.quantum_exponent)
        return math.ldexp((1 << self.mantissa_bits) + mantissa, field - self.bias - self.mantissa_bits)

    def _floor_code(self, magnitude: float) -> int:
        """The largest code (specials ignored) whose value is not above `magnitude`, capped one above the largest."""
        low, high = 0, self._max_code + 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._magnitude(middle) <= magnitude else (low, middle - 1)
        return low


def _split(exponent_bits: int, specials: Specials = "finite") -> FloatFormat:
    bias = (1 << (exponent_bits - 1)) - 1 if exponent_bits else 0
    return FloatFormat(f"e{exponent_bits}m{7 - exponent_bits}", exponent_bits, 7 - exponent_bits, bias, specials)


SPLITS_8BIT: tuple[FloatFormat, ...] = (
    _split(0),
    _split(1),
    _split(2),
    _split(3),
    _split(4, "fn"),
    _split(5, "ieee"),
    _split(6),
    _split(7),
)
FP16 = FloatFormat("fp16", 5, 10, 15, "ieee")
BF16 = FloatFormat("bf16", 8, 7, 127, "ieee")
FP32 = FloatFormat("fp32", 8, 23, 127, "ieee")

_CATALOGUE = {fmt.name: fmt for fmt in (*SPLITS_8BIT, FP16, BF16, FP32)}


def get_format(name: str) -> FloatFormat:
    """The catalogue's format called `name`, in any case.

    Raises:
        ValueError: for a name that is not in the catalogue; the message has the nearest names.
    """
    found = _CATALOGUE.get(str(name).strip().lower())
    if found is None:
        near = difflib.get_close_matches(str(name).lower(), _CATALOGUE, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"unknown format {str(name)[:80]!r}: {hint}formats are {', '.join(_CATALOGUE)}")
    return found


def list_formats(bits: int | None = None) -> tuple[FloatFormat, ...]:
    """The catalogue in order of width and exponent bits; only formats of `bits` bits where given."""
    return tuple(fmt for fmt in _CATALOGUE.values() if bits is None or fmt.bits == bits)
