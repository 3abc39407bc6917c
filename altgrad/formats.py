"""What a number format is, and the catalogue of formats.

A format is data: exponent bits, mantissa bits, bias, and which codes are special. The scalar functions here (`decode`,
`encode`, `round`, `ulp`) are the readable specification; `altgrad.rounding` must equal them on every input.

Specials:

- ``ieee``: the top exponent holds infinities and NaNs (E5M2, FP16, BF16, FP32); without exponent bits there is none;
- ``fn``: finite, with the all-ones code as the only NaN (E4M3, maximum 448);
- ``fnuz``: finite, no -0: its code is the only NaN (the FNUZ formats; the finite formats of IEEE P3109);
- ``p3109``: as ``fnuz``, and the all-ones codes are infinities (the extended formats of IEEE P3109);
- ``finite``: every code is a finite number (every other split of 8 or 16 bits);
- ``unsigned``: powers of two without sign and zero, the all-ones code is NaN (E8M0, the scale of the MX formats).

A code is sign | exponent | mantissa, from the most significant bit. Values are
``sign * 2**(e - bias) * (1 + m / 2**M)`` and, where the exponent field is 0, the subnormals
``sign * 2**(1 - bias) * m / 2**M``. Without exponent bits (E0M7) the format is the fixed-point grid
``m * 2**(-bias - M)``; without mantissa bits (E7M0) the exponent field 0 holds only zero.

Sources: OCP 8-bit Floating Point Specification 1.0; OCP Microscaling Formats 1.0; IEEE P3109 interim report; the
names' suffixes are those of ml_dtypes.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Specials = Literal["ieee", "fn", "fnuz", "p3109", "finite", "unsigned"]
Rounding = Literal["nearest_even", "nearest_away", "toward_zero", "up", "down", "stochastic"]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
_MAX_EXPONENT_BITS, _MAX_MANTISSA_BITS = 15, 23


def no_rounding(rounding: object, known: Iterable[str] = ROUNDINGS) -> str:
    """Why this is no rounding, on one line."""
    if str(rounding) in ("odd", "to_odd", "round_to_odd"):
        return "rounding to odd is for what is rounded a second time, and here all is rounded once: use nearest_even"
    return f"rounding must be one of {', '.join(known)}, not {rounding!r}"


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format of one sign bit, `exponent_bits` and `mantissa_bits`.

    Attributes:
        name: lower-case catalogue name, for example ``e4m3``.
        exponent_bits: width of the exponent field, 0 to 15; 0 gives a fixed-point grid.
        mantissa_bits: stored fraction bits, the leading one not counted, 0 to 23.
        bias: what is subtracted from the exponent field.
        specials: which codes are not finite numbers; see the module's docstring.

    Raises:
        ValueError: for a split that holds no positive number, or whose fields are out of range.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    specials: Specials = "finite"

    def __deepcopy__(self, memo: dict[int, object]) -> FloatFormat:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        """A format of the catalogue comes back from pickle as the one that is there: `is FP32` goes on to hold."""
        return _again, (self.name, self.exponent_bits, self.mantissa_bits, self.bias, self.specials)

    def __post_init__(self) -> None:
        def refuse(reason: str) -> None:
            raise ValueError(f"format {str(self.name)[:80]!r}: {reason}")

        for key, top in (("exponent_bits", _MAX_EXPONENT_BITS), ("mantissa_bits", _MAX_MANTISSA_BITS)):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= top:
                refuse(f"{key} must be a whole number from 0 to {top}, not {value!r}")
        if isinstance(self.bias, bool) or not isinstance(self.bias, int) or abs(self.bias) > 1 << 16:
            refuse(f"bias must be a whole number from -65536 to 65536, not {self.bias!r}")
        if self.specials not in get_args(Specials):
            refuse(f"specials must be one of {', '.join(get_args(Specials))}, not {self.specials!r}")
        if self.specials == "unsigned" and (self.mantissa_bits or not self.exponent_bits):
            refuse("an unsigned format has exponent bits only")
        if self.max_code < (0 if self.specials == "unsigned" else 1):
            refuse(
                f"{self.exponent_bits} exponent and {self.mantissa_bits} mantissa bits with {self.specials} specials "
                "leave no positive number"
            )

    @classmethod
    def split(
        cls,
        exponent_bits: int,
        mantissa_bits: int,
        *,
        bias: int | None = None,
        specials: Specials = "finite",
        name: str | None = None,
    ) -> FloatFormat:
        """A format of one's own. The bias defaults to 2**(exponent_bits - 1) - 1 (0 without exponent bits).

        Without `name` it is called by its definition, ``e3m2b3`` or ``e4m3b11fnuz``, which `get_format` reads back, so
        that a config can name it.

        Raises:
            ValueError: as the class.
        """
        if bias is None:  # what is no exponent width is refused by the class
            known = isinstance(exponent_bits, int) and 0 < exponent_bits <= _MAX_EXPONENT_BITS
            bias = (1 << (exponent_bits - 1)) - 1 if known else 0
        suffix = "" if specials == "finite" else specials
        return cls(
            name or f"e{exponent_bits}m{mantissa_bits}b{bias}{suffix}", exponent_bits, mantissa_bits, bias, specials
        )

    @classmethod
    def p3109(cls, bits: int, precision: int, *, finite: bool = False) -> FloatFormat:
        """The signed IEEE P3109 format of `bits` (K) and `precision` (P, the leading bit counted).

        Bias 2**(K - P - 1), one NaN in the place of -0, infinities unless `finite` ("extended" is P3109's default).

        Raises:
            ValueError: unless 1 <= P < K <= P + 15, whole numbers.
        """
        whole = all(isinstance(value, int) and not isinstance(value, bool) for value in (bits, precision))
        if not whole or not 1 <= precision < bits <= precision + _MAX_EXPONENT_BITS:
            raise ValueError(
                "P3109 needs whole numbers 1 <= precision < bits, and exponent_bits = bits - precision of at most "
                f"{_MAX_EXPONENT_BITS}, not precision {precision!r} and bits {bits!r}"
            )
        name = f"p3109_k{bits}p{precision}{'_finite' if finite else ''}"
        return cls(name, bits - precision, precision - 1, 1 << (bits - precision - 1), "fnuz" if finite else "p3109")

    @property
    def label(self) -> str:
        """The name as people write it, for example ``E4M3``."""
        return self.name.upper()

    @property
    def signed(self) -> bool:
        """Whether a code has a sign bit."""
        return self.specials != "unsigned"

    @property
    def bits(self) -> int:
        """Width of a code, the sign included."""
        return int(self.signed) + self.exponent_bits + self.mantissa_bits

    @property
    def has_infinity(self) -> bool:
        """Whether overflow has an infinity to go to."""
        return self.specials == "p3109" or (self.specials == "ieee" and self.exponent_bits > 0)

    @property
    def has_nan(self) -> bool:
        """Whether any code is NaN (an ``ieee`` split without mantissa or exponent bits has none)."""
        if self.specials == "ieee":
            return self.exponent_bits > 0 and self.mantissa_bits > 0
        return self.specials != "finite"

    @property
    def has_negative_zero(self) -> bool:
        """Whether -0 has a code of its own."""
        return self.specials in ("ieee", "fn", "finite")

    @property
    def quantum_exponent(self) -> int:
        """log2 of `quantum`."""
        return (1 if self.exponent_bits and self.signed else 0) - self.bias - self.mantissa_bits

    @property
    def quantum(self) -> float:
        """Smallest positive value, which is also the spacing of the grid at zero."""
        return self._float(1, self.quantum_exponent, "smallest value")

    @property
    def max_exponent(self) -> int:
        """floor(log2(max)), the exponent of the top binade."""
        significand, exponent = self.max_exact
        return exponent + significand.bit_length() - 1

    @property
    def max_exact(self) -> tuple[int, int]:
        """`max` as (integer, power of two), also where it is beyond float64."""
        return self._significand(self.max_code)

    @property
    def min_normal_exact(self) -> tuple[int, int] | None:
        """`min_normal` as (integer, power of two), also where it is beyond float64."""
        exponent = (1 if self.signed else 0) - self.bias
        return (1, exponent) if self.exponent_bits and self.max_exponent >= exponent else None

    @property
    def min_subnormal_exact(self) -> tuple[int, int] | None:
        """`min_subnormal` as (integer, power of two), also where it is beyond float64."""
        return (1, self.quantum_exponent) if self.mantissa_bits else None

    @property
    def max(self) -> float:
        """Largest finite value. This and the next four raise ValueError where float64 cannot hold them (E11M4 on)."""
        return self._float(*self.max_exact, "largest value")

    @property
    def min_normal(self) -> float | None:
        """Smallest normal value; None where every value is on one fixed-point grid (E0M7)."""
        return None if self.min_normal_exact is None else self._float(*self.min_normal_exact, "smallest normal value")

    @property
    def min_subnormal(self) -> float | None:
        """Smallest subnormal value; None without mantissa bits (E7M0)."""
        exact = self.min_subnormal_exact
        return None if exact is None else self._float(*exact, "smallest subnormal value")

    @property
    def max_ulp_exponent(self) -> int:
        """log2 of `max_ulp`."""
        if self.exponent_bits == 0:
            return self.quantum_exponent
        return max(self.max_exponent - self.mantissa_bits, self.quantum_exponent)

    @property
    def max_ulp(self) -> float:
        """Spacing of the grid at `max`."""
        return self._float(1, self.max_ulp_exponent, "spacing at the largest value")

    @property
    def eps(self) -> float:
        """Spacing of the grid just above 1 when 1 is a normal value: 2**-mantissa_bits."""
        return math.ldexp(1.0, -self.mantissa_bits)

    @property
    def fits_float64(self) -> bool:
        """Whether every finite value is a float64: up to E10M5 among the splits of 16 bits."""
        return self.quantum_exponent >= -1074 and self.max_exponent <= 1023

    @cached_property
    def values(self) -> NDArray[np.float64]:
        """The value of every code, float64 of shape [2**bits], NaN and infinities included.

        Raises:
            ValueError: for more than 16 bits (a table of FP32 would hold 2**32 rows), or beyond float64.
        """
        if self.bits > 16:
            raise ValueError(
                f"values of {self.name} would be a table of 2**{self.bits} codes; use decode(code) instead"
            )
        self.require_float64("values")
        table = np.array([self.decode(code) for code in range(1 << self.bits)])
        table.flags.writeable = False
        return table

    @cached_property
    def finite_values(self) -> NDArray[np.float64]:
        """The distinct finite values, ascending (-0 and +0 count once)."""
        return np.unique(self.values[np.isfinite(self.values)])

    def decode(self, code: int) -> float:
        """The exact value of `code`.

        Raises:
            ValueError: if `code` is not in ``[0, 2**bits)``, or its value is beyond float64.
            TypeError: `code` is no whole number; those of numpy count.
        """
        code = operator.index(code)
        if not 0 <= code < 1 << self.bits:
            raise ValueError(f"code {code} is outside 0..{(1 << self.bits) - 1} of {self.name}")
        negative, magnitude = divmod(code, self._sign_bit) if self.signed else (0, code)
        sign = -1.0 if negative else 1.0
        if negative and magnitude == 0 and not self.has_negative_zero:
            return math.nan
        if magnitude > self.max_code:
            infinity = self.has_infinity and magnitude == self.max_code + 1
            return sign * math.inf if infinity else math.nan
        return sign * self._float(*self._significand(magnitude), f"value of code {code}")

    def encode(
        self,
        value: float | Fraction,
        *,
        rounding: Rounding = "nearest_even",
        saturate: bool = True,
        draw: float | None = None,
    ) -> int:
        """The code of `value` rounded onto the format's grid.

        Args:
            value: any float64 or fraction (or a narrower float of numpy); rounded once, from its exact value.
            rounding: "nearest_even" sends ties to the even code, "nearest_away" away from zero; "toward_zero", "up"
                (towards +infinity) and "down" are directed; "stochastic" goes away from zero with a probability equal
                to the fraction of the gap that `value` lies above its lower neighbour.
            saturate: values that round beyond the largest go to the largest, infinities included; otherwise to
                infinity where the format has one, else to NaN where it has that (finite formats always saturate). A
                directed rounding that points inwards stops a finite value at the largest, as IEEE 754 has it.
            draw: for "stochastic", a number in [0, 1): the magnitude is rounded up where draw < fraction.

        Zero and negative numbers are NaN in an unsigned format; what is positive goes to its smallest value at least.

        Raises:
            ValueError: NaN in a format without a NaN code; unknown rounding; a stochastic one without a draw.
        """
        if rounding not in ROUNDINGS:
            raise ValueError(no_rounding(rounding))
        if rounding == "stochastic" and (draw is None or not 0 <= draw < 1):
            raise ValueError(f"stochastic rounding needs a draw in [0, 1), not {draw!r}")
        if isinstance(value, np.floating):
            value = float(value)
        negative = value < 0 or (value == 0 and math.copysign(1.0, value) < 0)
        if value != value or (not self.signed and (negative or value == 0)):
            if not self.has_nan:
                raise ValueError(f"{self.name} has no NaN code")
            return self._nan_code
        infinite = isinstance(value, float) and math.isinf(value)
        inwards = rounding == "toward_zero" or rounding == ("up" if negative else "down")
        # Non-negative codes are ordered as their values: the largest code not above |value|, then its upper neighbour.
        code = self.max_code
        if not infinite:
            exact = abs(Fraction(value))
            code = self._floor_code(exact)
            low = self._magnitude(code)
            fraction = (exact - low) / (self._magnitude(code + 1) - low)
            if rounding == "nearest_even":
                code += fraction > Fraction(1, 2) or (fraction == Fraction(1, 2) and code % 2 == 1)
            elif rounding == "nearest_away":
                code += fraction >= Fraction(1, 2)
            elif rounding == "stochastic":
                assert draw is not None
                code += Fraction(draw) < fraction
            elif not inwards:
                code += fraction > 0
        if infinite or code > self.max_code:
            code = self.max_code
            if not saturate and self.has_infinity:
                code += 1
            elif not saturate and self.has_nan:
                return self._nan_code
        return code + self._sign_bit if negative and (code or self.has_negative_zero) else code

    def round(
        self,
        value: float | Fraction,
        *,
        rounding: Rounding = "nearest_even",
        saturate: bool = True,
        draw: float | None = None,
    ) -> float:
        """`value` on the format's grid: ``decode(encode(...))``, with NaN kept as NaN where there is no code for it."""
        if value != value and not self.has_nan:
            return math.nan
        return self.decode(self.encode(value, rounding=rounding, saturate=saturate, draw=draw))

    def ulp(self, value: float) -> float:
        """Spacing of the grid at `value`: 2**floor(log2|value|) * 2**-M, at least `quantum`, at most `max_ulp`."""
        if math.isnan(value):
            return math.nan
        if value == 0:
            return self.quantum
        exponent = math.frexp(value)[1] - 1 if math.isfinite(value) else self.max_exponent
        return math.ldexp(1.0, min(max(exponent - self.mantissa_bits, self.quantum_exponent), self.max_ulp_exponent))

    def relation(self, other: FloatFormat) -> Relation:
        """How the finite values of this format lie to those of `other`; exact, also for formats beyond float64.

        `self` is inside s * `other` when its quantum is a multiple of s times the other's, no value has more
        significant bits, and its maximum is not larger. Of the scales s that do, powers of two, the one nearest to 1
        counts: 1 gives "equal", "subset" or "superset", another the same "up to a scale".
        """
        inside, around = _scales(self, other), _scales(other, self)
        if inside and around:  # then quanta and maxima have the same ratio
            return Relation(self, other, "equal", inside[1])
        if inside:
            return Relation(self, other, "subset", min(max(0, inside[0]), inside[1]))
        if around:
            return Relation(self, other, "superset", -min(max(0, around[0]), around[1]))
        return Relation(self, other, "different", 0)

    def require_float64(self, what: str) -> None:
        """Refuse with the reason what float64 cannot do for this format.

        Raises:
            ValueError: where a finite value is beyond float64.
        """
        if not self.fits_float64:
            (top, exponent), low = self.max_exact, self.quantum_exponent
            raise ValueError(
                f"{what} of {self.name}: float64 cannot hold its range (smallest value 2**{low}, largest {top} * "
                f"2**{exponent}); max_exact, min_normal_exact and min_subnormal_exact have the exact constants"
            )

    @property
    def _sign_bit(self) -> int:
        return 1 << (self.exponent_bits + self.mantissa_bits)

    @property
    def max_code(self) -> int:
        """Code of `max`: everything above it, up to the sign bit, is special."""
        if self.specials == "ieee" and self.exponent_bits:
            return (((1 << self.exponent_bits) - 1) << self.mantissa_bits) - 1
        return self._sign_bit - (2 if self.specials in ("fn", "p3109", "unsigned") else 1)

    @property
    def _nan_code(self) -> int:
        if self.specials in ("fnuz", "p3109"):
            return self._sign_bit
        if self.specials == "ieee":
            return self.max_code + 1 + (1 << (self.mantissa_bits - 1))
        return self._sign_bit - 1

    def _significand(self, code: int) -> tuple[int, int]:
        """(integer, power of two) of a non-negative code, as if no code were special: the grid continued above max."""
        field, mantissa = code >> self.mantissa_bits, code & ((1 << self.mantissa_bits) - 1)
        if self.exponent_bits == 0:
            return code, self.quantum_exponent
        if field == 0 and self.signed:
            return mantissa, self.quantum_exponent
        return (1 << self.mantissa_bits) + mantissa, field - self.bias - self.mantissa_bits

    def _magnitude(self, code: int) -> Fraction:
        significand, exponent = self._significand(code)
        return Fraction(significand << exponent) if exponent >= 0 else Fraction(significand, 1 << -exponent)

    def _floor_code(self, magnitude: Fraction) -> int:
        """The largest code up to that of `max` whose value is not above `magnitude`; 0 where there is none."""
        low, high = 0, self.max_code
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._magnitude(middle) <= magnitude else (low, middle - 1)
        return low

    def _float(self, significand: int, exponent: int, what: str) -> float:
        if significand and (exponent < -1074 or exponent + significand.bit_length() > 1024):
            raise ValueError(f"the {what} of {self.name} is {significand} * 2**{exponent}, beyond float64")
        return math.ldexp(significand, exponent)


@dataclass(frozen=True)
class Relation:
    """How one format's finite values lie to another's.

    Attributes:
        first, second: the two formats.
        kind: "equal", "subset" (first inside scale * second), "superset" or "different".
        scale_exponent: log2 of the scale that second is multiplied by.
    """

    first: FloatFormat
    second: FloatFormat
    kind: Literal["equal", "subset", "superset", "different"]
    scale_exponent: int = 0

    @property
    def scale(self) -> float:
        """The power of two that the second format is multiplied by."""
        return math.ldexp(1.0, self.scale_exponent)

    @property
    def up_to_scale(self) -> bool:
        """Whether the relation holds only after multiplication by a scale other than 1."""
        return self.kind != "different" and self.scale_exponent != 0

    def __str__(self) -> str:
        sign = {"equal": "=", "subset": "is inside", "superset": "contains", "different": "is neither in nor around"}
        factor = self.scale_exponent
        scale = "" if factor == 0 else f"{self.scale:g} x " if abs(factor) <= 10 else f"2^{factor} x "
        return f"{self.first.label} {sign[self.kind]} {scale}{self.second.label}"


def _scales(inner: FloatFormat, outer: FloatFormat) -> tuple[int, int] | None:
    """The range of powers s for which every finite value of `inner` is one of 2**s * `outer`; None where empty."""
    if (inner.signed and not outer.signed) or _significant_bits(inner) > _significant_bits(outer):
        return None
    (inner_top, inner_exponent), (outer_top, outer_exponent) = inner.max_exact, outer.max_exact
    ratio = Fraction(inner_top, outer_top)
    low = inner_top.bit_length() - outer_top.bit_length() - 1
    while ratio > Fraction(2) ** low:
        low += 1
    low += inner_exponent - outer_exponent
    high = inner.quantum_exponent - outer.quantum_exponent
    return (low, high) if low <= high else None


def _significant_bits(fmt: FloatFormat) -> int:
    """The most significant bits that any finite value has (the largest odd factor, in bits)."""
    if fmt.min_normal_exact is not None and fmt.max_exponent > fmt.min_normal_exact[1]:
        return fmt.mantissa_bits + 1  # there is a whole binade of normal values
    top, exponent = fmt.max_exact
    largest = top << (exponent - fmt.quantum_exponent)
    return ((largest - 1) | 1).bit_length()


def stochastic_draw(seed: int, index: int, version: int = 1) -> float:
    """The number in (0, 1) or [0, 1) that stochastic rounding draws for an element.

    It depends on the seed and the element's index in row-major order, and on nothing else: not on chunks, devices or
    threads. A 64-bit number's upper half and the seed make two keys (the finalizer of splitmix64, Steele et al. 2014),
    its lower half is mixed with them by two rounds of multiply and shift in 32 bits (constants of Wellons' lowbias32).

    Version 1 mixes the index; the draw is a multiple of 2**-24. Version 2 mixes half the index, rounded down, into a
    word of 32 bits for two elements, with shifts that keep the sign and a shifted sum at the end. The draw is an odd
    multiple of 2**-16: 1/2 plus, as a signed number of 2**-16, the word's lower half for even and its upper half for
    odd indices, with its last bit set.

    Args:
        seed: 0 <= seed < 2**64.
        index: 0 <= index < 2**64.
        version: one of `DRAW_VERSIONS`; see `drawn_version`.
    """
    number = index if version == 1 else index >> 1
    key1, key2 = draw_keys(seed, number >> 32)
    first, second, third = DRAW_MULTIPLIERS
    if version == 1:
        mixed = (number * first + key1) % 2**32
        mixed ^= mixed >> 16
        mixed = (mixed * second + key2) % 2**32
        mixed ^= mixed >> 15
        mixed = mixed * third % 2**32
        return (mixed >> 8) * 2.0**-24
    word = _signed(number * first + key1, 32)
    word ^= word >> 16
    word = _signed(word * second + key2, 32)
    word ^= word >> 15
    word = _signed(word * third, 32)
    word = _signed(word + (word >> 16), 32)
    return 0.5 + (_signed(word >> 16 * (index & 1), 16) | 1) * 2.0**-16


DRAW_MULTIPLIERS = (0x9E3779B1, 0x7FEB352D, 0x846CA68B)
DRAW_VERSIONS = (1, 2)


def drawn_version(version: int, fmt: FloatFormat) -> int:
    """The version that a format's draws have where `version` is asked for.

    The steps of version 2, 2**-15 in probability, are for formats of at most 7 mantissa bits; others have version 1.

    Raises:
        ValueError: there is no such version.
    """
    version = check_draw_version(version)
    return version if fmt.mantissa_bits <= 7 else 1


def check_draw_version(version: int) -> int:
    """`version`, where there is such a version of `stochastic_draw`.

    Raises:
        ValueError: there is none.
    """
    if isinstance(version, bool) or version not in DRAW_VERSIONS:
        raise ValueError(f"draw_version must be one of {', '.join(map(str, DRAW_VERSIONS))}, not {version!r}")
    return version


def draw_keys(seed: int, index_high: int) -> tuple[int, int]:
    """The two 32-bit keys of `stochastic_draw` for a seed and the upper half of the number that is mixed.

    Raises:
        ValueError: the seed is no whole number in [0, 2**64).
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must be a whole number from 0 to 2**64 - 1, not {seed!r}")
    key = _splitmix64(_splitmix64(seed) ^ index_high)
    return key & 0xFFFFFFFF, key >> 32


def _signed(value: int, bits: int) -> int:
    """The lower bits as the signed number that they are."""
    return (value + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))


def _splitmix64(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


def _standard_split(bits: int, exponent_bits: int, specials: Specials = "finite") -> FloatFormat:
    mantissa_bits = bits - 1 - exponent_bits
    return FloatFormat.split(exponent_bits, mantissa_bits, specials=specials, name=f"e{exponent_bits}m{mantissa_bits}")


SPLITS_8BIT: tuple[FloatFormat, ...] = tuple(
    _standard_split(8, exponent_bits, {4: "fn", 5: "ieee"}.get(exponent_bits, "finite"))  # type: ignore[arg-type]
    for exponent_bits in range(8)
)
FP16 = FloatFormat("fp16", 5, 10, 15, "ieee")
BF16 = FloatFormat("bf16", 8, 7, 127, "ieee")
FP32 = FloatFormat("fp32", 8, 23, 127, "ieee")
SPLITS_16BIT: tuple[FloatFormat, ...] = tuple(
    {5: FP16, 8: BF16}.get(exponent_bits) or _standard_split(16, exponent_bits) for exponent_bits in range(16)
)
E8M0 = FloatFormat("e8m0", 8, 0, 127, "unsigned")

_CATALOGUE: dict[str, FloatFormat] = {
    fmt.name: fmt
    for fmt in (
        FloatFormat("e2m1", 2, 1, 1, "finite"),
        FloatFormat("e2m3", 2, 3, 1, "finite"),
        FloatFormat("e3m2", 3, 2, 3, "finite"),
        *SPLITS_8BIT,
        FloatFormat("e3m4_ieee", 3, 4, 3, "ieee"),
        FloatFormat("e4m3_ieee", 4, 3, 7, "ieee"),
        FloatFormat("e4m3fnuz", 4, 3, 8, "fnuz"),
        FloatFormat("e4m3b11fnuz", 4, 3, 11, "fnuz"),
        FloatFormat("e5m2fnuz", 5, 2, 16, "fnuz"),
        *(FloatFormat.p3109(8, precision) for precision in range(1, 8)),
        *(FloatFormat.p3109(8, precision, finite=True) for precision in range(1, 8)),
        E8M0,
        *SPLITS_16BIT,
        FP32,
    )
}
_ALIASES = {  # ml_dtypes' and torch's names, and the names by the split of what is known by another
    "e4m3fn": "e4m3",
    "float8_e4m3fn": "e4m3",
    "float8_e5m2": "e5m2",
    "float8_e4m3": "e4m3_ieee",
    "float8_e3m4": "e3m4_ieee",
    "float8_e4m3fnuz": "e4m3fnuz",
    "float8_e5m2fnuz": "e5m2fnuz",
    "float8_e4m3b11fnuz": "e4m3b11fnuz",
    "float8_e8m0fnu": "e8m0",
    "e8m0fnu": "e8m0",
    "e2m3fn": "e2m3",
    "e3m2fn": "e3m2",
    "e2m1fn": "e2m1",
    "float6_e2m3fn": "e2m3",
    "float6_e3m2fn": "e3m2",
    "float4_e2m1fn": "e2m1",
    "float4_e2m1fn_x2": "e2m1",
    "float16": "fp16",
    "half": "fp16",
    "e5m10": "fp16",
    "bfloat16": "bf16",
    "e8m7": "bf16",
    "float32": "fp32",
    "mxint8": "e0m7b-1",  # in blocks of MX; its -2, which the standard leaves to the tool, is not used
    "float": "fp32",
    "e8m23": "fp32",
}
_SPELLED_OUT = re.compile(r"e(\d{1,2})m(\d{1,2})b(-?\d{1,5})(ieee|fn|fnuz|p3109|finite|unsigned)?")
_P3109 = re.compile(r"p3109_k(\d{1,2})p(\d{1,2})(_finite)?|binary(\d{1,2})p(\d{1,2})s([ef])")
_UNSIGNED = re.compile(r"(float8_)?ue\d+m\d+|binary\d+p\d+u[ef]")


def get_format(name: object) -> FloatFormat:
    """The format called `name`: a name of the catalogue, of ml_dtypes or of torch, in any case; or ``mxint8``.

    A bare split means what the field means by it: ``e4m3`` is E4M3FN (maximum 448), ``e5m2`` is IEEE-like. A format
    outside the catalogue is spelled out with its bias: ``e3m2b3``, ``e4m3b7ieee``, ``p3109_k6p3``. A torch or numpy
    dtype is taken by its name.

    Raises:
        ValueError: for a name that is none of these; the message has the nearest names.
    """
    scalar_type = isinstance(name, type) and issubclass(name, np.generic)
    key = (name.__name__ if scalar_type else str(name)).strip().lower()  # type: ignore[attr-defined]
    key = key.removeprefix("torch.").removeprefix("ml_dtypes.")
    key = _ALIASES.get(key, key)
    found = _CATALOGUE.get(key)
    if found is None and (match := _SPELLED_OUT.fullmatch(key)):
        specials = match[4] or "finite"
        found = FloatFormat.split(int(match[1]), int(match[2]), bias=int(match[3]), specials=specials)  # type: ignore[arg-type]
    if found is None and (match := _P3109.fullmatch(key)):
        bits, precision = (int(match[1]), int(match[2])) if match[1] else (int(match[4]), int(match[5]))
        made = FloatFormat.p3109(bits, precision, finite=bool(match[3]) or match[6] == "f")
        found = _CATALOGUE.get(made.name, made)
    if found is None and _UNSIGNED.fullmatch(key):
        raise ValueError(
            f"format {str(name)[:80]!r} has no sign, and what is rounded here has one; of scales, those of nvfp4 are "
            "the positive values of e4m3 (its ue4m3), and those of mx are e8m0"
        )
    if found is None:
        near = difflib.get_close_matches(key, [*_CATALOGUE, *_ALIASES], n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(
            f"unknown format {str(name)[:80]!r}: {hint}Known are the splits e0m7 to e7m0 and e0m15 to e15m0, "
            "fp16, bf16, fp32 and what list_formats() has; a format of your own is spelled with its bias, as e3m2b3"
        )
    return found


def _again(name: str, exponent_bits: int, mantissa_bits: int, bias: int, specials: Specials) -> FloatFormat:
    made = FloatFormat(name, exponent_bits, mantissa_bits, bias, specials)
    return known if (known := _CATALOGUE.get(name)) == made and known is not None else made


def list_formats(bits: int | None = None) -> tuple[FloatFormat, ...]:
    """The catalogue, narrow formats first; only formats of `bits` bits where given."""
    found = sorted(_CATALOGUE.values(), key=lambda fmt: fmt.bits)
    return tuple(fmt for fmt in found if bits is None or fmt.bits == bits)
