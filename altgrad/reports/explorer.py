"""What the Explorer page loads: the formats as data, up to 8 bits with the value of every code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from altgrad.formats import BF16, FP16, ROUNDINGS, SPLITS_8BIT, SPLITS_16BIT, FloatFormat, list_formats
from altgrad.reports.curves import compact
from altgrad.reports.format_styles import format_style
from altgrad.reports.formats import PAGES

_VARIANTS = tuple(
    fmt
    for fmt in list_formats(8)
    if fmt not in SPLITS_8BIT and fmt.signed and fmt.specials != "p3109" and not fmt.name.startswith("p3109")
)
GROUPS: Mapping[str, Sequence[FloatFormat]] = {
    "8-bit splits": SPLITS_8BIT,
    "IEEE and FNUZ variants": _VARIANTS,
    "MX elements and scale": tuple(fmt for fmt in list_formats() if fmt.bits < 8 or not fmt.signed),
    "16 bits": (FP16, BF16),
    "IEEE P3109": tuple(fmt for fmt in list_formats(8) if fmt.name.startswith("p3109")),
    "Other 16-bit splits": tuple(
        fmt for fmt in SPLITS_16BIT if fmt not in (FP16, BF16) and fmt.fits_float64 and fmt.max_exponent < 1023
    ),
}
"""The formats by the group that the page shows them in; the neighbours of every value are float64 too."""


def formats_json() -> bytes:
    """``explorer/formats.json``: what docs/javascripts/explorer/format.js reads. Infinities and NaN are text."""
    formats = [_entry(fmt, group) for group, formats in GROUPS.items() for fmt in formats]
    return compact({"roundings": list(ROUNDINGS), "formats": formats})


_FIELDS = (
    "bits", "exponent_bits", "mantissa_bits", "bias", "specials", "max_code", "max_exponent", "quantum_exponent",
    "max_ulp_exponent",
)  # fmt: skip


def _entry(fmt: FloatFormat, group: str) -> dict[str, Any]:
    entry = {"name": fmt.name, "label": fmt.label, "group": group, "page": fmt in PAGES}
    entry["style"] = format_style(fmt.label).value
    entry |= {field: getattr(fmt, field) for field in _FIELDS}
    return entry | ({"values": [_number(value) for value in fmt.values.tolist()]} if fmt.bits <= 8 else {})


def _number(value: float) -> float | int | str:
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    whole = value.is_integer() and abs(value) < 2**53 and math.copysign(1.0, value) == math.copysign(1.0, int(value))
    return int(value) if whole else value
