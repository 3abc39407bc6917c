"""The catalogue against FORMATS.md's table and ml_dtypes; the scalar specification against gfloat."""

from __future__ import annotations

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
from gfloat import RoundMode, decode_float, round_float
from gfloat.formats import format_info_bfloat16, format_info_binary16, format_info_ocp_e4m3, format_info_ocp_e5m2
from hypothesis import given
from hypothesis import strategies as st

from altgrad.formats import get_format, list_formats

TABLE = {  # bias, max, min normal, min subnormal, distinct finite values: shared/FORMATS.md
    "e0m7": (0, 0.9921875, None, 2**-7, 255),
    "e1m6": (0, 3.96875, 2.0, 2**-5, 255),
    "e2m5": (1, 7.875, 1.0, 2**-5, 255),
    "e3m4": (3, 31.0, 0.25, 2**-6, 255),
    "e4m3": (7, 448.0, 2**-6, 2**-9, 253),
    "e5m2": (15, 57344.0, 2**-14, 2**-16, 247),
    "e6m1": (31, 6442450944.0, 2**-30, 2**-31, 255),
    "e7m0": (63, 2.0**64, 2**-62, None, 255),
}
MLDTYPES = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
}
GFLOAT = {
    "e4m3": format_info_ocp_e4m3,
    "e5m2": format_info_ocp_e5m2,
    "fp16": format_info_binary16,
    "bf16": format_info_bfloat16,
}


@pytest.mark.parametrize("name", TABLE)
def test_the_eight_splits_have_the_published_constants(name: str) -> None:
    fmt = get_format(name)
    assert (fmt.bias, fmt.max, fmt.min_normal, fmt.min_subnormal, len(fmt.finite_values)) == TABLE[name]
    assert fmt.bits == 8


@pytest.mark.parametrize("name", MLDTYPES)
def test_every_code_decodes_as_ml_dtypes_does(name: str) -> None:
    fmt = get_format(name)
    codes = np.arange(1 << fmt.bits, dtype=np.uint8 if fmt.bits == 8 else np.uint16)
    with np.errstate(invalid="ignore"):
        expected = codes.view(MLDTYPES[name]).astype(np.float64)
    assert np.array_equal(fmt.values, expected, equal_nan=True)
    numbers = ~np.isnan(expected)
    assert np.array_equal(np.signbit(fmt.values[numbers]), np.signbit(expected[numbers]))


@pytest.mark.parametrize("name", GFLOAT)
def test_a_thousand_codes_decode_as_gfloat_does(name: str) -> None:
    fmt, info = get_format(name), GFLOAT[name]
    for code in range(0, 1 << fmt.bits, max(1, (1 << fmt.bits) // 1024)):
        expected = decode_float(info, code).fval
        assert fmt.decode(code) == expected or (math.isnan(expected) and math.isnan(fmt.decode(code)))


@given(value=st.floats(allow_nan=False, width=32), name=st.sampled_from(sorted(GFLOAT)), saturate=st.booleans())
def test_the_scalar_rounding_equals_gfloats(value: float, name: str, saturate: bool) -> None:
    if saturate and math.isinf(value):
        value = math.copysign(3e38, value)
    expected = round_float(GFLOAT[name], value, RoundMode.TiesToEven, sat=saturate)
    found = get_format(name).round(value, saturate)
    assert found == expected or (math.isnan(expected) and math.isnan(found))
    assert math.copysign(1, found) == math.copysign(1, expected) or math.isnan(expected)


@pytest.mark.parametrize("fmt", list_formats(bits=8), ids=lambda fmt: fmt.name)
def test_every_finite_value_encodes_to_its_own_code(fmt) -> None:
    for code, value in enumerate(fmt.values):
        if np.isfinite(value):
            assert fmt.encode(float(value)) == code


@pytest.mark.parametrize("fmt", list_formats(bits=8), ids=lambda fmt: fmt.name)
def test_rounding_picks_a_nearest_value_and_ties_go_to_the_even_code(fmt) -> None:
    values = fmt.finite_values
    low, high = values[:-1], values[1:]
    for a, b in zip(low, high, strict=True):
        middle = (a + b) / 2
        result = fmt.round(float(middle))
        assert result in (a, b)
        assert fmt.encode(result) % 2 == 0
        assert fmt.round(float(np.nextafter(middle, -np.inf))) == a
        assert fmt.round(float(np.nextafter(middle, np.inf))) == b


@pytest.mark.parametrize("fmt", list_formats(bits=8), ids=lambda fmt: fmt.name)
def test_ulp_is_the_distance_to_the_next_value_away_from_zero(fmt) -> None:
    positive = fmt.finite_values[fmt.finite_values >= 0]
    for value, following in itertools.pairwise(positive):
        assert fmt.ulp(float(value)) == following - value
    assert fmt.ulp(math.inf) == fmt.max_ulp


def test_e1m6_is_e0m7_times_four_code_by_code() -> None:
    assert np.array_equal(get_format("e1m6").values, 4 * get_format("e0m7").values)


def test_overflow_is_decided_after_rounding() -> None:
    e4m3, e5m2 = get_format("e4m3"), get_format("e5m2")
    assert e4m3.round(464.0, saturate=False) == 448.0
    assert math.isnan(e4m3.round(464.001, saturate=False))
    assert e5m2.round(61439.0, saturate=False) == 57344.0
    assert e5m2.round(61440.0, saturate=False) == math.inf
    assert e5m2.round(61440.0) == 57344.0
    assert get_format("e3m4").round(1e30, saturate=False) == 31.0


def test_minus_zero_and_nan_are_kept() -> None:
    for fmt in list_formats(bits=8):
        assert math.copysign(1, fmt.round(-0.0)) == -1
        assert math.isnan(fmt.round(math.nan))
    with pytest.raises(ValueError, match="no NaN code"):
        get_format("e3m4").encode(math.nan)


def test_an_unknown_name_gets_the_nearest_names() -> None:
    with pytest.raises(ValueError, match="did you mean e4m3") as error:
        get_format("e4m33")
    assert "\n" not in str(error.value)
    assert get_format(" E4M3 ") is get_format("e4m3")


def test_a_code_outside_the_format_and_a_table_of_fp32_are_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        get_format("e4m3").decode(256)
    with pytest.raises(ValueError, match="decode"):
        _ = get_format("fp32").values
