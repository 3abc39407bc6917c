"""The kernel equals gfloat, ml_dtypes and a search among neighbours on every input that is tried.

Each rounding takes a fifth of all bfloat16 numbers; with ALTGRAD_EXHAUSTIVE=1, as in `make exhaustive`, all of them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
ml_dtypes = pytest.importorskip("ml_dtypes")
gfloat = pytest.importorskip("gfloat")

from altgrad import rounding as kernel  # noqa: E402
from altgrad.formats import (  # noqa: E402
    BF16,
    DRAW_VERSIONS,
    E8M0,
    FP16,
    FP32,
    ROUNDINGS,
    SPLITS_8BIT,
    SPLITS_16BIT,
    FloatFormat,
    drawn_version,
    get_format,
    list_formats,
    stochastic_draw,
)
from altgrad.rounding import (  # noqa: E402
    decode,
    encode,
    fake_quantize,
    power_of_two_below,
    quantize,
    quantize_counted,
    ulp,
)

NARROW = [fmt for fmt in list_formats() if fmt.bits <= 8]
TABULATED = [fmt for fmt in list_formats() if fmt.bits <= 16 and fmt.fits_float64]
DETERMINISTIC = [rounding for rounding in ROUNDINGS if rounding != "stochastic"]
E4M3, E5M2 = get_format("e4m3"), get_format("e5m2")
FLOAT32_MAX = float(np.finfo(np.float32).max)
SEED = 5


def by_name(fmt: FloatFormat) -> str:
    return fmt.name


def seed_of(rounding: str) -> int | None:
    return SEED if rounding == "stochastic" else None


def draws(count: int, seed: int = SEED) -> np.ndarray:
    """`stochastic_draw` of the first elements, with numpy's 64-bit integers; indices below 2^32."""
    from altgrad.formats import DRAW_MULTIPLIERS, draw_keys

    first, second, third = (np.uint64(multiplier) for multiplier in DRAW_MULTIPLIERS)
    key1, key2 = (np.uint64(key) for key in draw_keys(seed, 0))
    mask = np.uint64(0xFFFFFFFF)
    mixed = (np.arange(count, dtype=np.uint64) * first + key1) & mask
    mixed = ((mixed ^ (mixed >> np.uint64(16))) * second + key2) & mask
    mixed = ((mixed ^ (mixed >> np.uint64(15))) * third) & mask
    return (mixed >> np.uint64(8)).astype(np.float64) * 2.0**-24


def bfloat16_inputs() -> torch.Tensor:
    """All 65,536 of them, as float32."""
    return torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()


def share_of(rounding: str) -> torch.Tensor:
    """Every fifth bfloat16 number, elsewhere for each rounding: together they take all, and each takes ties."""
    stride = 1 if os.environ.get("ALTGRAD_EXHAUSTIVE") else 5
    return bfloat16_inputs()[ROUNDINGS.index(rounding) % stride :: stride].contiguous()


def boundaries(fmt: FloatFormat, dtype: type = np.float32) -> torch.Tensor:
    """Grid values, midpoints, what lies beside both, the overflow threshold, zeros, subnormals, infinities, NaN."""
    values = fmt.finite_values
    if len(values) > 8000:  # both ends, the middle, and a sample between them
        half = len(values) // 2
        parts = (values[:600], values[half - 600 : half + 600], values[-600:], values[:: len(values) // 800])
        values = np.unique(np.concatenate(parts))
    top = np.array([fmt.max + fmt.max_ulp / 2, fmt.max + fmt.max_ulp, fmt.max * 4])
    centres = np.concatenate([values, -values, (values[:-1] + values[1:]) / 2, top, -top])
    with np.errstate(over="ignore", under="ignore"):
        centres = centres.astype(dtype)
    up, down = (np.nextafter(centres, dtype(side)) for side in (np.inf, -np.inf))
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1.1e-38, -1.1e-38, 3.4e38, -3.4e38, 1.5]
    return torch.from_numpy(np.concatenate([centres, up, down, np.array(special, dtype)]))


def random_bits(count: int = 1 << 17, seed: int = 0) -> torch.Tensor:
    bits = np.random.default_rng(seed).integers(0, 1 << 32, count, dtype=np.uint32)
    return torch.from_numpy(bits.view(np.float32))


def same(found: torch.Tensor, expected: np.ndarray | torch.Tensor) -> bool:
    """Equal values, equal signs of zero, NaN in the same places."""
    found_64 = found.double().numpy()
    expected_64 = expected.double().numpy() if isinstance(expected, torch.Tensor) else expected
    equal = (found_64 == expected_64) & (np.signbit(found_64) == np.signbit(expected_64))
    return bool(np.all(equal | (np.isnan(found_64) & np.isnan(expected_64))))


def searched(x: torch.Tensor, fmt: FloatFormat, rounding: str, saturate: bool, seed: int = SEED) -> np.ndarray:
    """Rounding by looking a magnitude's neighbours up in the table of values and comparing the two distances.

    The distances are exact in float64. Codes are positions in the table, which goes on by one value beyond the largest.
    """
    v = x.double().numpy()
    positive = fmt.values[: 1 << (fmt.bits - int(fmt.signed))]
    positive = positive[np.isfinite(positive)]
    top = len(positive) - 1
    field, mantissa = divmod(top + 1, 1 << fmt.mantissa_bits)
    exponent = (field if fmt.exponent_bits else 1) - fmt.bias - fmt.mantissa_bits
    beyond = math.ldexp((1 << fmt.mantissa_bits) + mantissa, exponent)
    if not fmt.exponent_bits:
        beyond = (top + 1) * fmt.quantum
    table = np.append(positive, beyond)

    magnitude, negative = np.abs(v), np.signbit(v)
    with np.errstate(invalid="ignore", over="ignore"):
        code = np.clip(np.searchsorted(table, magnitude, side="right") - 1, 0, top)
        below, above = magnitude - table[code], table[code + 1] - magnitude
        away = {
            "nearest_even": (above < below) | ((above == below) & (code % 2 == 1)),
            "nearest_away": above <= below,
            "toward_zero": np.zeros(v.shape, bool),
            "up": (below > 0) & ~negative,
            "down": (below > 0) & negative,
            "stochastic": draws(v.size, seed).reshape(v.shape) * (table[code + 1] - table[code]) < below,
        }[rounding]
    smallest = magnitude < table[0]  # only where the code 0 is no zero
    away = np.where(np.isinf(v), True, away & ~smallest)
    code = np.where(np.isinf(v), top, code) + away
    overflow = np.inf if fmt.has_infinity else np.nan if fmt.has_nan else fmt.max
    result = np.where(code > top, fmt.max if saturate else overflow, table[np.minimum(code, top)])
    result = np.where(negative, -result, result)
    result = np.where((result == 0) & (not fmt.has_negative_zero), 0.0, result)
    if not fmt.signed:
        result = np.where(v > 0, result, np.nan)
    return np.where(np.isnan(v), np.nan, result)


def to_float32_range(expected: np.ndarray, fmt: FloatFormat) -> np.ndarray:
    """A format with a range beyond float32's stops at its largest value that float32 has."""
    if fmt.max <= FLOAT32_MAX:
        return expected
    values = fmt.finite_values
    limit = values[values <= FLOAT32_MAX][-1]
    return np.clip(expected, -limit, limit)


def reference(fmt: FloatFormat) -> gfloat.FormatInfo:
    """gfloat's description of the format."""
    return gfloat.FormatInfo(
        name=fmt.name,
        k=fmt.bits,
        precision=fmt.mantissa_bits + 1,
        bias=fmt.bias,
        is_signed=fmt.signed,
        domain=gfloat.Domain.Extended if fmt.has_infinity else gfloat.Domain.Finite,
        has_nz=fmt.has_negative_zero,
        num_high_nans={"ieee": 2**fmt.mantissa_bits - 1, "fn": 1, "unsigned": 1}.get(fmt.specials, 0),
        has_subnormals=fmt.signed,
        is_twos_complement=False,
    )


def by_gfloat(x: torch.Tensor, fmt: FloatFormat, rounding: str, saturate: bool) -> np.ndarray:
    v = x.double().numpy()
    if not fmt.signed:  # what is no positive number is NaN, small numbers go to the smallest: ours, gfloat has none
        v = np.where(v > 0, np.maximum(v, fmt.quantum), np.nan)
    if rounding == "stochastic":
        mode, numbers = gfloat.RoundMode.StochasticFastest, 2**24 - 1 - (draws(v.size) * 2**24).astype(np.int64)
    else:
        modes = {
            "nearest_even": gfloat.RoundMode.TiesToEven,
            "nearest_away": gfloat.RoundMode.TiesToAway,
            "toward_zero": gfloat.RoundMode.TowardZero,
            "up": gfloat.RoundMode.TowardPositive,
            "down": gfloat.RoundMode.TowardNegative,
        }
        mode, numbers = modes[rounding], None
    info, always = reference(fmt), saturate or not (fmt.has_infinity or fmt.has_nan)
    with np.errstate(all="ignore"):
        # int16 significands in gfloat: what is far beyond the largest value would leave them
        near = np.where(np.isfinite(v), np.clip(v, -4 * fmt.max, 4 * fmt.max), v)
        return gfloat.round_ndarray(info, near, mode, always, numbers, 24 if numbers is not None else 0)


# Every rounding on its share of the bfloat16 numbers


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("fmt", [fmt for fmt in NARROW if fmt.exponent_bits], ids=by_name)
def test_equals_gfloat_on_bfloat16_numbers(fmt: FloatFormat, rounding: str) -> None:
    x = share_of(rounding)
    if rounding == "stochastic":  # gfloat compares with whole 2^-24: where the fraction is that, the two agree
        x = torch.where(x.abs() < fmt.quantum * 2.0**-16, 0.0, x)
    for saturate in (True, False):
        if saturate or fmt.has_infinity or fmt.has_nan:  # else there is no other overflow
            expected = by_gfloat(x, fmt, rounding, saturate)
        found = quantize(x, fmt, rounding=rounding, saturate=saturate, seed=seed_of(rounding))
        assert same(found, expected), saturate


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("fmt", NARROW, ids=by_name)
def test_equals_a_search_among_neighbours_on_bfloat16_numbers(fmt: FloatFormat, rounding: str) -> None:
    x = share_of(rounding)
    for saturate in (True, False):
        expected = searched(x, fmt, rounding, saturate)
        found = quantize(x, fmt, rounding=rounding, saturate=saturate, seed=seed_of(rounding))
        assert same(found, expected), saturate
        narrow = quantize(x.bfloat16(), fmt, rounding=rounding, saturate=saturate, seed=seed_of(rounding))
        assert narrow.dtype == torch.bfloat16
        assert same(narrow, torch.from_numpy(expected).bfloat16()), saturate


def test_fixed_point_is_numpys_rounding_to_multiples() -> None:
    fmt, x = get_format("e0m7"), torch.cat([bfloat16_inputs(), random_bits(), boundaries(get_format("e0m7"))])
    steps = x.double().numpy() * 128
    modes = {"nearest_even": np.rint, "toward_zero": np.trunc, "up": np.ceil, "down": np.floor}
    for rounding, function in modes.items():
        for saturate in (True, False):
            expected = np.clip(function(steps) / 128, -127 / 128, 127 / 128)
            assert same(quantize(x, fmt, rounding=rounding, saturate=saturate), expected), rounding


@pytest.mark.parametrize("fmt", [f for f in SPLITS_8BIT if f.specials == "finite" and f.exponent_bits], ids=by_name)
def test_a_finite_split_is_a_wider_ieee_one_clipped(fmt: FloatFormat) -> None:
    wide = FloatFormat("wide", fmt.exponent_bits + 1, fmt.mantissa_bits, fmt.bias, "ieee")
    x = torch.cat([bfloat16_inputs(), boundaries(fmt)])
    for rounding in DETERMINISTIC:
        expected = np.clip(by_gfloat(x, wide, rounding, saturate=False), -fmt.max, fmt.max)
        assert same(quantize(x, fmt, rounding=rounding), expected), rounding


ML_DTYPES = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e4m3_ieee": ml_dtypes.float8_e4m3,
    "e3m4_ieee": ml_dtypes.float8_e3m4,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e4m3b11fnuz": ml_dtypes.float8_e4m3b11fnuz,
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
}


@pytest.mark.parametrize("name", ML_DTYPES)
@pytest.mark.parametrize("saturate", [True, False])
def test_equals_the_casts_of_ml_dtypes(name: str, saturate: bool) -> None:
    fmt = get_format(name)
    x = torch.cat([bfloat16_inputs(), boundaries(fmt), random_bits()])
    if not fmt.has_nan:
        x = x[~x.isnan()]
    source = x.clamp(-fmt.max, fmt.max) if saturate or not fmt.has_nan else x
    with np.errstate(all="ignore"):
        expected = source.numpy().astype(ML_DTYPES[name]).astype(np.float64)
    assert same(quantize(x, fmt, saturate=saturate), expected)


def test_e8m0_differs_from_ml_dtypes_in_ties_alone_which_go_to_the_even_code() -> None:
    x = bfloat16_inputs()
    with np.errstate(all="ignore"):
        theirs = torch.from_numpy(x.numpy().astype(ml_dtypes.float8_e8m0fnu).astype(np.float64))
    ours = quantize(x, E8M0, saturate=False).double()
    differ = ~((ours == theirs) | (ours.isnan() & theirs.isnan()))
    normal = x > 2.0**-126
    significand = torch.frexp(x)[0]
    assert differ[normal].any()
    assert (significand[normal & differ] == 0.75).all(), "1.5 times a power of two"
    lower = torch.frexp(x[normal & differ])[1] - 1
    assert (ours[normal & differ] == 2.0 ** lower.double()).all()
    assert ((lower + 127) % 2 == 0).all()


@pytest.mark.parametrize(("fmt", "dtype"), [(FP16, torch.float16), (BF16, torch.bfloat16)], ids=["fp16", "bf16"])
def test_fp16_and_bf16_are_torchs_own_casts(fmt: FloatFormat, dtype: torch.dtype) -> None:
    x = torch.cat([random_bits(), boundaries(fmt)])
    assert same(quantize(x, fmt, saturate=False), x.to(dtype))
    assert same(quantize_counted(x, fmt, saturate=False).values, x.to(dtype))


def test_e5m2_is_torchs_own_cast() -> None:
    x = torch.cat([random_bits(), boundaries(E5M2)])
    assert same(quantize(x, E5M2, saturate=False), x.to(torch.float8_e5m2).float())


# Boundaries


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("fmt", TABULATED, ids=by_name)
def test_equals_a_search_among_neighbours_on_boundaries(fmt: FloatFormat, rounding: str) -> None:
    x, wide = boundaries(fmt), boundaries(fmt, np.float64)
    for saturate in (True, False):
        found = quantize(x, fmt, rounding=rounding, saturate=saturate, seed=seed_of(rounding))
        assert same(found, to_float32_range(searched(x, fmt, rounding, saturate), fmt)), saturate
        found = quantize(wide, fmt, rounding=rounding, saturate=saturate, seed=seed_of(rounding))
        assert found.dtype == torch.float64
        assert same(found, searched(wide, fmt, rounding, saturate)), saturate


@pytest.mark.parametrize("fmt", [fmt for fmt in list_formats() if fmt.fits_float64], ids=by_name)
def test_equals_the_scalar_specification_on_a_sample_of_boundaries(fmt: FloatFormat) -> None:
    dtype = np.float64 if fmt.bits == 32 or fmt.max > FLOAT32_MAX else np.float32
    if fmt.bits == 32:
        x = torch.cat(
            [random_bits(60).double() * 1.0000001, torch.tensor([3.5e38, -1e300, 1e-46], dtype=torch.float64)]
        )
    else:
        x = boundaries(fmt, dtype)
        x = torch.cat([x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[:60]], x[-12:]])
    drawn = [stochastic_draw(SEED, index) for index in range(len(x))]
    for rounding in ROUNDINGS:
        for saturate in (True, False):
            values = [
                fmt.round(value, rounding=rounding, saturate=saturate, draw=draw)
                for value, draw in zip(x.tolist(), drawn, strict=True)
            ]
            found = quantize(x, fmt, rounding=rounding, saturate=saturate, seed=seed_of(rounding))
            assert same(found, np.array(values)), (rounding, saturate)


@given(
    st.lists(st.floats(width=32), min_size=1, max_size=20),
    st.sampled_from([fmt for fmt in list_formats() if fmt.max_exact[1] < 100 and fmt.bits <= 16]),
    st.sampled_from(ROUNDINGS),
    st.booleans(),
    st.integers(0, 2**64 - 1),
    st.sampled_from(DRAW_VERSIONS),
)
@settings(max_examples=200, deadline=None)
def test_equals_the_scalar_specification(
    values: list[float], fmt: FloatFormat, rounding, saturate, seed: int, asked: int
) -> None:
    version = drawn_version(asked, fmt)
    expected = [
        fmt.round(value, rounding=rounding, saturate=saturate, draw=stochastic_draw(seed, index, version))
        for index, value in enumerate(values)
    ]
    how = {"rounding": rounding, "saturate": saturate, "seed": seed, "draw_version": asked}
    for dtype in (torch.float32, torch.float64):
        assert same(quantize(torch.tensor(values, dtype=dtype), fmt, **how), np.array(expected))


@pytest.mark.parametrize("fmt", [fmt for fmt in TABULATED if fmt.mantissa_bits <= 7], ids=by_name)
def test_draws_of_16_bits_decide_on_every_boundary_as_the_scalar_specification(fmt: FloatFormat) -> None:
    """Where the draw equals the fraction, and one unit in the last place on both sides of it; zeros keep their sign."""
    drawn = np.array([stochastic_draw(SEED, index, 2) for index in range(400)])
    steps = np.random.default_rng(0).integers(0, 2 << fmt.mantissa_bits, 400) if fmt.mantissa_bits else np.ones(400)
    with np.errstate(over="ignore", under="ignore"):
        at = ((steps + drawn) * fmt.quantum).astype(np.float32)
        below, above = (np.nextafter(at, np.float32(side)) for side in (-np.inf, np.inf))
        tiny = (drawn * fmt.quantum * 2.0**-12).astype(np.float32)
    for inputs in (at, below, above, tiny, np.zeros(400, np.float32)):
        for sign in (1, -1):
            x = torch.from_numpy(sign * inputs)
            expected = [
                fmt.round(value, rounding="stochastic", draw=draw)
                for value, draw in zip(x.tolist(), drawn.tolist(), strict=True)
            ]
            found = quantize(x, fmt, rounding="stochastic", seed=SEED, draw_version=2)
            assert same(found, to_float32_range(np.array(expected), fmt))


@given(
    st.tuples(st.integers(0, 6), st.integers(0, 8), st.integers(-140, 140)),
    st.sampled_from(["finite", "ieee", "fn", "fnuz", "p3109"]),
    st.lists(st.floats(width=32), min_size=1, max_size=10),
    st.floats(-3, 3, width=32),
    st.sampled_from(ROUNDINGS),
    st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_formats_of_ones_own_with_any_bias_equal_the_scalar_specification(
    fields: tuple[int, int, int], specials, values: list[float], factor: float, rounding, saturate: bool
) -> None:
    try:
        fmt = FloatFormat.split(*fields[:2], bias=fields[2], specials=specials)
    except ValueError:
        return
    x = torch.tensor([*values, *(factor * fmt.max * 2.0**-k for k in range(0, 40, 3))], dtype=torch.float64)
    expected = np.array(
        [
            fmt.round(value, rounding=rounding, saturate=saturate, draw=stochastic_draw(SEED, index))
            for index, value in enumerate(x.tolist())
        ]
    )
    assert same(quantize(x, fmt, rounding=rounding, saturate=saturate, seed=SEED), expected)
    exact = (x.abs() < FLOAT32_MAX) & (x.float().double() == x)
    inside = np.where(np.isfinite(expected), np.abs(expected), 0) <= FLOAT32_MAX
    chosen = (exact | x.isinf() | x.isnan()) & torch.from_numpy(inside)
    if fmt.max <= FLOAT32_MAX and fmt.quantum_exponent >= -149:
        found = quantize(x.float(), fmt, rounding=rounding, saturate=saturate, seed=SEED)
        assert same(found[chosen], expected[chosen.numpy()])


def test_without_a_mantissa_ties_go_to_the_even_code() -> None:
    fmt = get_format("e7m0")
    exponents = np.arange(-62, 64)
    ties = torch.from_numpy((1.5 * 2.0**exponents).astype(np.float32))
    lower_code_is_even = (exponents + fmt.bias) % 2 == 0
    expected = np.where(lower_code_is_even, 1.0, 2.0) * 2.0**exponents
    assert same(quantize(ties, fmt), expected)
    assert same(quantize(-ties, fmt), -expected)


@pytest.mark.parametrize("fmt", TABULATED, ids=by_name)
def test_values_just_below_the_smallest_normal_round_up_to_it(fmt: FloatFormat) -> None:
    if fmt.min_normal is not None:
        below = torch.tensor([math.nextafter(fmt.min_normal, 0.0)], dtype=torch.float64)
        assert quantize(below, fmt).item() == fmt.min_normal


def test_overflow_is_decided_after_rounding() -> None:
    x = torch.tensor([464.0, math.nextafter(464.0, 500.0) + 1e-4])
    assert quantize(x, E4M3, saturate=False)[0] == 448
    assert quantize(x, E4M3, saturate=False)[1].isnan()
    assert quantize(x, E4M3).tolist() == [448, 448]


def test_float64_is_rounded_once() -> None:
    x = torch.tensor([1.0625 + 2**-40, -1.0625 - 2**-40, 1.0625], dtype=torch.float64)
    assert x.float().tolist() == [1.0625, -1.0625, 1.0625]
    assert quantize(x, E4M3).tolist() == [1.125, -1.125, 1.0]
    assert quantize(x.float(), E4M3).tolist() == [1.0, -1.0, 1.0]
    assert quantize(x, FP32).tolist() == [1.0625, -1.0625, 1.0625]
    assert encode(x, E4M3).tolist() == [57, 185, 56]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fmt", [E5M2, FP16, BF16, get_format("p3109_k8p3"), get_format("e10m5")], ids=by_name)
def test_16_bit_inputs_keep_their_dtype_and_equal_float32(dtype: torch.dtype, fmt: FloatFormat) -> None:
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    rows = torch.rand(256, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    for scale in (None, 0.37, torch.tensor(0.37), torch.tensor(0.37).bfloat16(), rows):
        shaped = x.view(256, 256)
        for saturate in (True, False):
            expected = quantize(shaped.float(), fmt, scale=scale, saturate=saturate).to(dtype)
            found = quantize(shaped, fmt, scale=scale, saturate=saturate)
            assert found.dtype == dtype
            assert same(found, expected)
            assert same(quantize_counted(shaped, fmt, scale=scale, saturate=saturate).values, expected)


def test_fp32_means_not_quantized_but_for_float64() -> None:
    x = random_bits(1000)
    for tensor in (x, x.bfloat16(), x.half()):
        found = quantize(tensor, FP32, rounding="stochastic", seed=0)
        assert same(found, tensor)
        assert found.data_ptr() != tensor.data_ptr()
    y = torch.randn(1000, dtype=torch.float64)
    assert same(quantize(y, FP32), y.float())


def test_e1m6_is_e0m7_times_four() -> None:
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    for rounding in ROUNDINGS:
        first = quantize(x, get_format("e1m6"), rounding=rounding, seed=1)
        assert torch.equal(first, quantize(x, get_format("e0m7"), scale=4.0, rounding=rounding, seed=1))


@pytest.mark.parametrize("fmt", [fmt for fmt in SPLITS_16BIT if fmt.exponent_bits >= 11], ids=by_name)
def test_formats_beyond_float64_are_refused_with_the_reason(fmt: FloatFormat) -> None:
    x = torch.ones(3)
    for function in (quantize, quantize_counted, ulp, encode, fake_quantize):
        with pytest.raises(ValueError, match="float64 cannot hold its range"):
            function(x, fmt)
    with pytest.raises(ValueError, match="float64 cannot hold its range"):
        kernel.compile_quantize(fmt)
    with pytest.raises(ValueError, match="float64 cannot hold its range"):
        decode(torch.zeros(1, dtype=torch.uint16), fmt)


def test_float64_tensors_are_refused_where_normal_numbers_are_beneath_float64s() -> None:
    deep = get_format("e11m0b1074ieee")
    with pytest.raises(ValueError, match="beneath float64's"):
        quantize(torch.ones(1, dtype=torch.float64), deep)
    assert quantize(torch.tensor([1.5, 1e-30]), deep, rounding="down").tolist() == [1.0, 2.0**-100]


# Codes


@pytest.mark.parametrize("fmt", TABULATED, ids=by_name)
def test_every_code_comes_back_from_its_value(fmt: FloatFormat) -> None:
    codes = torch.arange(1 << fmt.bits, dtype=torch.int32).to(torch.uint8 if fmt.bits <= 8 else torch.uint16)
    numbers = ~np.isnan(fmt.values)
    codes = codes[torch.from_numpy(numbers)]
    values = torch.from_numpy(fmt.values[numbers])
    with np.errstate(over="ignore"):
        assert same(decode(codes, fmt), fmt.values[numbers].astype(np.float32).astype(np.float64))
    for rounding in ROUNDINGS:
        found = encode(values, fmt, rounding=rounding, saturate=False, seed=seed_of(rounding))
        assert found.dtype == codes.dtype
        assert torch.equal(found, codes), rounding


@pytest.mark.parametrize("fmt", TABULATED, ids=by_name)
def test_codes_equal_the_scalar_specifications_on_a_sample_of_boundaries(fmt: FloatFormat) -> None:
    x = boundaries(fmt)
    x = torch.cat([x[torch.randperm(len(x), generator=torch.Generator().manual_seed(2))[:60]], x[-12:]])
    if not fmt.has_nan:
        with pytest.raises(ValueError, match=f"x holds NaN, and {fmt.name} has no NaN code"):
            encode(x, fmt)
        x = x[~x.isnan()]
    for rounding in ROUNDINGS:
        for saturate in (True, False):
            found = encode(x, fmt, rounding=rounding, saturate=saturate, seed=seed_of(rounding))
            assert found.tolist() == [
                fmt.encode(value, rounding=rounding, saturate=saturate, draw=stochastic_draw(SEED, index))
                for index, value in enumerate(x.tolist())
            ], (rounding, saturate)


@pytest.mark.parametrize("name", ["e11m4b1023ieee", "e3m4b1060", "e0m7b1060", "e5m10b1030"])
def test_codes_of_formats_with_spacings_beneath_float64s_normal_numbers_equal_the_scalar_specifications(name) -> None:
    fmt = get_format(name)
    x = torch.tensor([1e-308, 3e-308, 1.0, -5e-324, 1e300, -(2.0**-1030), 3 * 2.0**-1028], dtype=torch.float64)
    for tensor in (x.float(), x) if fmt.min_normal is None or fmt.min_normal >= 2.0**-1022 else (x.float(),):
        assert encode(tensor, fmt).tolist() == [fmt.encode(value) for value in tensor.tolist()]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", ["e4m3", "e7m0", "e0m7", "p3109_k8p3", "e5m2fnuz", "e2m1", "bf16", "fp16", "e8m0"])
def test_decoded_codes_are_the_quantized_values(name: str, rounding: str) -> None:
    fmt = get_format(name)
    x = torch.cat([boundaries(fmt), random_bits(4400)])[:4400].view(40, 110)
    x = x if fmt.has_nan else x.nan_to_num(0.0)
    rows = torch.rand(40, 1, generator=torch.Generator().manual_seed(3)) + 0.5
    for scale in (None, 0.37, rows):
        for saturate in (True, False):
            codes = encode(x, fmt, scale=scale, rounding=rounding, saturate=saturate, seed=SEED)
            expected = quantize(x, fmt, scale=scale, rounding=rounding, saturate=saturate, seed=SEED)
            assert same(decode(codes, fmt, scale=scale), expected)
    strided = encode(x.t(), fmt, rounding="nearest_even")
    assert torch.equal(strided.t(), encode(x, fmt, rounding="nearest_even"))


def test_codes_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="codes of e2m1 go from 0 to 15; there is a 16"):
        decode(torch.tensor([3, 16], dtype=torch.uint8), get_format("e2m1"))
    with pytest.raises(ValueError, match="go from 0 to 255; there is a 256"):
        decode(torch.tensor([256], dtype=torch.uint16), E4M3)
    with pytest.raises(TypeError, match="uint8 or uint16 codes, not int64"):
        decode(torch.tensor([1]), E4M3)
    with pytest.raises(ValueError, match="at most 16 bits"):
        encode(torch.ones(1), FP32)
    with pytest.raises(ValueError, match="2\\*\\*32 codes"):
        decode(torch.zeros(1, dtype=torch.uint16), FP32)
    with pytest.raises(ValueError, match="positive"):
        decode(torch.zeros(1, dtype=torch.uint8), E4M3, scale=0.0)


def test_codes_without_elements_or_dimensions_or_memory_keep_their_shape() -> None:
    assert encode(torch.empty(0, 3), E4M3).shape == (0, 3)
    assert encode(torch.tensor(1.0), E4M3).shape == ()
    assert decode(torch.tensor(56, dtype=torch.uint8), E4M3).item() == 1
    assert decode(torch.empty(2, 0, dtype=torch.uint8), get_format("e2m1")).shape == (2, 0)
    meta = encode(torch.empty(3, 4, device="meta"), FP16)
    assert (meta.shape, meta.dtype, meta.device.type) == ((3, 4), torch.uint16, "meta")
    assert decode(meta, FP16).shape == (3, 4)


# Counts and the ulp field


@lru_cache
def widened(fmt: FloatFormat) -> FloatFormat:
    return FloatFormat("wide", 10, fmt.mantissa_bits, fmt.bias, "ieee")


def brute_force_counts(x, values, previous, scale, fmt, rounding) -> tuple[int, int, int | None]:
    """Counts by numpy: what an unbounded exponent range would round beyond the largest value is an overflow."""
    v, y = x.double().numpy(), values.double().numpy()
    grid = torch.as_tensor(v if scale is None else (x.float() / scale).double().numpy())
    if fmt is BF16:  # only infinities are beyond it when they round toward zero
        beyond = np.isinf(searched(grid, fmt, rounding, saturate=False))
    else:
        beyond = np.abs(searched(grid, widened(fmt), rounding, saturate=False)) > fmt.max
    flips = None if previous is None else int((y != previous.double().numpy()).sum())
    return int(beyond.sum()), int(((y == 0) & (v != 0)).sum()), flips


SCALES = {
    "none": None,
    "number": 0.37,
    "tensor": torch.tensor(3.0),
    "row": torch.rand(60, 1, generator=torch.Generator().manual_seed(4)) + 0.25,
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("rounding", ["nearest_even", "toward_zero", "stochastic"])
@pytest.mark.parametrize("name", ["e4m3", "e7m0", "e3m4", "p3109_k8p3", "bf16"])
@pytest.mark.parametrize("special", [True, False], ids=["specials", "plain"])
def test_counts_and_the_ulp_field_equal_brute_force(name: str, rounding: str, scale: str, special: bool) -> None:
    fmt, factor = get_format(name), SCALES[scale]
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(60, 70, generator=generator) * torch.exp2(torch.randint(-20, 12, (60, 70), generator=generator))
    x[:, 0] = 0.0
    previous = quantize(x * 1.01, fmt, scale=factor)
    if special:
        x[0, :6] = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-45, 3e38])
        previous[0, :6] = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, math.nan])
        previous[1, :2] = torch.tensor([math.nan, -math.inf])
    for saturate in (True, False):
        found = quantize_counted(
            x, fmt, scale=factor, rounding=rounding, saturate=saturate, seed=SEED, previous=previous
        )
        values = quantize(x, fmt, scale=factor, rounding=rounding, saturate=saturate, seed=SEED)
        assert same(found.values, values)
        expected = brute_force_counts(x, values, previous, factor, fmt, rounding)
        assert (found.overflow.item(), found.underflow.item(), found.flips.item()) == expected
        assert found.nonzero.item() == np.count_nonzero(x.numpy())
        assert all(count.dtype == torch.int64 and count.shape == () for count in found[2:])
        assert found.ulp.dtype == torch.float32
        assert torch.equal(found.ulp, ulp(x, fmt, factor))
        assert quantize_counted(x, fmt, scale=factor, rounding=rounding, seed=SEED).flips is None
        without = quantize_counted(
            x, fmt, scale=factor, rounding=rounding, saturate=saturate, seed=SEED, with_ulp=False
        )
        assert without.ulp is None
        assert without[2:4] == found[2:4]


def test_an_element_whose_quotient_is_zero_is_an_underflow() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        found = quantize_counted(torch.tensor([1e-40, 0.0, 1.0], dtype=dtype), E4M3, scale=1e20)
        assert (found.underflow.item(), found.values.tolist()) == (2, [0, 0, 0])
        assert found.nonzero == 2
    found = quantize_counted(torch.tensor([1.0, 0.0, 3.0]), get_format("e8m0"))
    assert (found.underflow, found.nonzero) == (0, 2), "a format without zero has no underflow"


def test_flips_take_nan_for_a_change_and_minus_zero_for_none() -> None:
    x = torch.tensor([0.0, -0.0, math.nan, 1.0, math.inf])
    previous = torch.tensor([-0.0, 0.0, math.nan, 1.0, 448.0])
    assert quantize_counted(x, E4M3, previous=previous).flips == 1
    assert quantize_counted(x[[0, 1, 3]], E4M3, previous=previous[[0, 1, 3]]).flips == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("fmt", [E4M3, BF16, FP32, E8M0], ids=by_name)
def test_out_may_be_x_or_previous_and_previous_may_be_x(fmt: FloatFormat, dtype: torch.dtype, strided: bool) -> None:
    def fresh() -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(20, 30, generator=torch.Generator().manual_seed(7)).to(dtype)
        x[0, :4] = torch.tensor([0.0, -0.0, math.inf, -math.inf])
        return (x.t() if strided else x), quantize(x.t().contiguous() if strided else x, E4M3)

    x, previous = fresh()
    for scale in (None, 0.75):
        plain, counted = quantize(x, fmt, scale=scale), quantize_counted(x, fmt, scale=scale, previous=previous)
        against_itself = int((plain != x).sum())
        assert same(plain, counted.values)
        assert counted.flips == int((plain != previous).sum())
        x, previous = fresh()
        assert quantize(x, fmt, scale=scale, out=x) is x
        assert same(x, plain)
        x, previous = fresh()
        found = quantize_counted(x, fmt, scale=scale, out=x, previous=previous)
        assert found.values is x
        assert same(x, plain)
        assert found[2:] == counted[2:]
        x, previous = fresh()
        found = quantize_counted(x, fmt, scale=scale, out=previous, previous=previous)
        assert found.values is previous
        assert same(previous, plain)
        assert found[2:] == counted[2:]
        x, previous = fresh()
        assert quantize_counted(x, fmt, scale=scale, previous=x).flips == against_itself
        found = quantize_counted(x, fmt, scale=scale, out=x, previous=x)
        assert found.flips == against_itself
        assert same(x, plain)
        x, previous = fresh()


def test_the_ulp_field_is_written_where_it_is_wanted() -> None:
    for dtype, ulp_dtype in ((torch.float32, torch.float32), (torch.half, torch.float32), (torch.double, torch.double)):
        x, field = torch.randn(30, 40).to(dtype), torch.empty(30, 40, dtype=ulp_dtype)
        found = quantize_counted(x.t().contiguous().t(), E4M3, scale=0.5, ulp_out=field)
        assert found.ulp is field
        assert torch.equal(field, ulp(x, E4M3, 0.5))
    with pytest.raises(TypeError, match=r"ulp_out must be float32 \[3\] on cpu as x has it, not float64"):
        quantize_counted(torch.ones(3), E4M3, ulp_out=torch.empty(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="contiguous"):
        quantize_counted(torch.ones(3, 4), E4M3, ulp_out=torch.empty(4, 3).t())


@pytest.mark.parametrize("fmt", TABULATED, ids=by_name)
def test_ulp_field_equals_the_scalar_specification(fmt: FloatFormat) -> None:
    x = boundaries(fmt, np.float64)
    x = x[~x.isnan()]
    x = torch.cat([x[torch.randperm(len(x), generator=torch.Generator().manual_seed(2))[:300]], x[-11:]])
    field = ulp(x, fmt)
    assert field.dtype == torch.float64
    assert field.tolist() == [fmt.ulp(value) for value in x.tolist()]
    assert torch.equal(ulp(x, fmt, 0.25), ulp(x / 0.25, fmt) * 0.25)
    assert ulp(torch.tensor([math.nan, 0.0], dtype=torch.float64), fmt).tolist() == [fmt.max_ulp, fmt.quantum]


def test_power_of_two_below_is_that_of_frexp() -> None:
    x = random_bits()
    x = x[x.isfinite() & (x.abs() >= 2.0**-126)]
    for tensor in (x, x.double()):
        expected = np.ldexp(1.0, np.frexp(tensor.numpy())[1] - 1)
        assert same(power_of_two_below(tensor), expected)
    assert power_of_two_below(torch.tensor([0.0, 1e-40])).tolist() == [0, 0]


# Scales


def test_a_scale_is_broadcast_as_torch_does_and_equals_division_and_multiplication() -> None:
    x = torch.randn(6, 8, 12, generator=torch.Generator().manual_seed(0)) * 30
    shapes = [(), (1,), (1, 1, 1), (12,), (8, 1), (8, 12), (6, 1, 1), (6, 8, 1), (6, 1, 12), (1, 8, 1), (6, 8, 12)]
    for shape in shapes:
        scale = torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.1
        expected = quantize((x / scale).contiguous(), E4M3) * scale
        assert torch.equal(quantize(x, E4M3, scale=scale), expected), shape
        assert torch.equal(quantize(x, E4M3, scale=scale.double()), expected), shape
        assert torch.equal(ulp(x, E4M3, scale), quantize_counted(x, E4M3, scale=scale).ulp), shape
    blocks = torch.rand(6, 8, 3, 1) + 0.1
    per_block = quantize(x.view(6, 8, 3, 4), E4M3, scale=blocks).view(6, 8, 12)
    assert torch.equal(per_block, quantize(x, E4M3, scale=blocks.expand(6, 8, 3, 4).reshape(6, 8, 12)))
    assert torch.equal(quantize(x, E4M3, scale=2), quantize(x, E4M3, scale=torch.tensor(2.0)))


@pytest.mark.parametrize("function", [quantize, quantize_counted, fake_quantize, ulp, encode])
@pytest.mark.parametrize(
    "scale",
    [0, 0.0, -1.0, math.nan, math.inf, 1e-60, 1e39]
    + [torch.tensor(value) for value in (0.0, -1.0, math.nan, math.inf)]
    + [torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0], [-math.inf]]), torch.tensor([[math.nan], [1.0]])]
    + [torch.tensor(1e-60, dtype=torch.float64), torch.tensor(1e60, dtype=torch.float64)],
    ids=str,
)
def test_a_scale_that_is_not_positive_and_finite_is_refused(function, scale) -> None:
    if function is ulp and isinstance(scale, torch.Tensor):
        return  # ulp does not look at a tensor's values
    with pytest.raises(ValueError, match="scale must be positive and finite") as error:
        function(torch.ones(2, 3), E4M3, scale=scale)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 2), (1, 2, 3), (2, 3, 1), (0,)], ids=str)
def test_a_scale_that_does_not_broadcast_is_refused_with_both_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="does not broadcast") as error:
        quantize(torch.ones(2, 3), E4M3, scale=torch.ones(shape))
    assert str(list(shape)) in str(error.value)
    assert "[2, 3]" in str(error.value)


@pytest.mark.parametrize(
    ("scale", "given_type"),
    [
        (True, "bool"),
        ("1", "str"),
        ([1.0], "list"),
        (1j, "complex"),
        (torch.tensor(2), "int64"),
        (torch.tensor([True]), "bool"),
        (torch.tensor(1j), "complex64"),
        (torch.tensor([2], dtype=torch.uint8), "uint8"),
    ],
    ids=str,
)
def test_a_scale_that_is_no_floating_point_number_is_refused_with_its_type(scale, given_type: str) -> None:
    with pytest.raises(TypeError, match=f"not {given_type}$"):
        quantize(torch.ones(2), E4M3, scale=scale)


@pytest.mark.parametrize("exponent", [-149, -127, -126, -120, -100, -64, -9, -8, 0, 1, 2, 64, 100, 120, 127])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("saturate", [True, False])
def test_one_power_of_two_gives_the_bits_of_a_scale_for_each_element(
    exponent: int, rounding: str, saturate: bool
) -> None:
    scale = torch.tensor(math.ldexp(1.0, exponent))
    for name in ("e4m3", "e5m2", "e0m7", "e1m6", "e7m0", "e6m1", "e2m1", "fp16", "bf16"):
        fmt = get_format(name)
        x = torch.cat([random_bits(1 << 11), (boundaries(fmt).double() * scale.double()).float()])
        settings = {"rounding": rounding, "saturate": saturate, "seed": seed_of(rounding), "check_scale": False}
        each = scale.expand(x.shape).contiguous()
        expected = quantize_counted(x, fmt, scale=each, previous=x, **settings)
        found = quantize_counted(x, fmt, scale=scale, previous=x, **settings)
        assert torch.equal(found.values.view(torch.int32), expected.values.view(torch.int32)), name
        assert torch.equal(found.ulp, expected.ulp), name
        counts = ("overflow", "underflow", "nonzero", "flips")
        assert [getattr(found, count) for count in counts] == [getattr(expected, count) for count in counts], name
        plain = quantize(x, fmt, scale=scale, **settings)
        assert torch.equal(plain.view(torch.int32), quantize(x, fmt, scale=each, **settings).view(torch.int32)), name


def test_float64_takes_scales_that_float32_has_not() -> None:
    x = torch.tensor([3e-60, 1e-300], dtype=torch.float64)
    assert quantize(x, E4M3, scale=1e-60).tolist() == [3 * 1e-60, 0.0]
    with pytest.raises(ValueError, match="positive and finite in float64"):
        quantize(x, E4M3, scale=10**400)


def test_an_unchecked_scale_of_nan_makes_its_elements_nan() -> None:
    scale = torch.tensor([[1.0], [math.nan]])
    y = quantize(torch.ones(2, 3), E4M3, scale=scale, check_scale=False)
    assert y[0].tolist() == [1, 1, 1]
    assert y[1].isnan().all()


# Arguments


@pytest.mark.parametrize("function", [quantize, quantize_counted, fake_quantize, ulp, encode])
def test_arguments_that_cannot_be_are_refused(function) -> None:
    for x, given_type in (
        (torch.ones(2, dtype=torch.int64), "int64"),
        (torch.ones(2, dtype=torch.bool), "bool"),
        (torch.ones(2, dtype=torch.complex64), "complex64"),
        (torch.ones(2).to(torch.float8_e5m2), "float8_e5m2"),
        (np.ones(2), "ndarray"),
        ([1.0], "list"),
        (1.0, "float"),
    ):
        with pytest.raises(TypeError, match=f"x must be a tensor of float32, .*not {given_type}"):
            function(x, E4M3)
    with pytest.raises(TypeError, match="get_format"):
        function(torch.ones(2), "e4m3")
    if function is ulp:
        return
    for rounding in ("even", None, "NEAREST_EVEN"):
        with pytest.raises(ValueError, match="nearest_even, nearest_away, toward_zero, up, down, stochastic"):
            function(torch.ones(2), E4M3, rounding=rounding)
    with pytest.raises(ValueError, match="needs a seed"):
        function(torch.ones(2), E4M3, rounding="stochastic")
    for seed in (-1, 2**64, 1.0, True, "1"):
        with pytest.raises(ValueError, match=r"seed must be a whole number from 0 to 2\*\*64 - 1, not"):
            function(torch.ones(2), E4M3, rounding="stochastic", seed=seed)


@pytest.mark.parametrize("name", ["out", "previous"])
def test_tensors_unlike_x_are_refused_with_what_they_are(name: str) -> None:
    for wrong, error in (
        (torch.ones(3, 2), ValueError),
        (torch.ones(6), ValueError),
        (torch.ones(2, 3, device="meta"), ValueError),
        (torch.ones(2, 3, dtype=torch.float64), TypeError),
        (torch.ones(2, 3, dtype=torch.bfloat16), TypeError),
    ):
        with pytest.raises(error, match=rf"{name} must be float32 \[2, 3\] on cpu as x has it, not"):
            quantize_counted(torch.ones(2, 3), E4M3, **{name: wrong})


def test_a_gradient_that_is_neither_pass_nor_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="'pass' or 'mask'"):
        fake_quantize(torch.zeros(1), E4M3, gradient="none")


# Shapes and memory


def test_out_is_written_and_x_left_alone() -> None:
    x = torch.randn(100)
    expected, original = quantize(x, E4M3), x.clone()
    out = torch.empty_like(x)
    assert quantize(x, E4M3, out=out) is out
    assert torch.equal(out, expected)
    strided = torch.empty(200)[::2]
    assert quantize(x, E4M3, out=strided) is strided
    assert torch.equal(strided, expected)
    assert torch.equal(x, original)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_strided_tensors_give_the_same_values_by_their_logical_indices(rounding: str) -> None:
    x, seed = torch.randn(32, 48, generator=torch.Generator().manual_seed(0)), seed_of(rounding)
    channels = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    for strided in (x.t(), x[::2, 1::3], x[0].expand(7, 48), channels, x.flip(0)[3:]):
        found = quantize(strided, get_format("e7m0"), rounding=rounding, seed=seed)
        assert found.is_contiguous()
        assert torch.equal(found, quantize(strided.contiguous(), get_format("e7m0"), rounding=rounding, seed=seed))


def test_tensors_without_elements_or_dimensions() -> None:
    for fmt in (E4M3, BF16, FP32):
        for shape in ((0,), (3, 0), (0, 3)):
            found = quantize_counted(torch.empty(shape), fmt, previous=torch.empty(shape), scale=2.0)
            assert found.values.shape == found.ulp.shape == shape
            assert (found.overflow, found.underflow, found.flips) == (0, 0, 0)
            assert quantize(torch.empty(shape), fmt, scale=torch.ones(shape)).shape == shape
    point = quantize(torch.tensor(1.04), E4M3, scale=torch.tensor(1.0))
    assert (point.shape, point.item()) == ((), 1.0)
    assert quantize(torch.tensor(1.04), E4M3, rounding="stochastic", seed=0).item() in (1.0, 1.125)
    assert quantize_counted(torch.tensor(1e-9), E4M3).underflow == 1


@pytest.mark.parametrize("fmt", [E4M3, BF16, FP32, E8M0], ids=by_name)
def test_meta_tensors_keep_shape_and_dtype(fmt: FloatFormat) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = torch.empty(3, 4, dtype=dtype, device="meta")
        for rounding in ("nearest_even", "stochastic"):
            y = quantize(x, fmt, rounding=rounding, seed=0, scale=2.0)
            assert (y.shape, y.dtype, y.device.type) == ((3, 4), dtype, "meta")
        found = quantize_counted(x, fmt, previous=x)
        assert (found.ulp.shape, found.ulp.device.type, found.overflow.device.type) == ((3, 4), "meta", "meta")
        assert ulp(x, fmt).shape == (3, 4)


def test_parameters_are_quantized_in_place_without_a_graph() -> None:
    weight = torch.nn.Parameter(torch.randn(5, 6))
    expected = quantize(weight, E4M3)
    assert not expected.requires_grad
    assert type(expected) is torch.Tensor
    assert quantize(weight, E4M3, out=weight) is weight
    assert torch.equal(weight, expected)
    assert weight.requires_grad
    assert weight.is_leaf
    scale = torch.nn.Parameter(torch.tensor(0.5))
    assert not quantize(weight, E4M3, scale=scale).requires_grad
    assert quantize_counted(weight, E4M3, previous=weight, out=weight).flips == 0


# Pieces


@pytest.fixture(params=[7, 64])
def tiny_pieces(request, monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(kernel, "PIECE", request.param)
    monkeypatch.setattr(kernel, "_SMALL", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def whole(function, *args, **arguments):
    """The result in one piece, whatever the fixture set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "PIECE", 1 << 18)
        patch.setattr(kernel, "_SMALL", 1 << 16)
        return function(*args, **arguments)


@pytest.mark.usefixtures("tiny_pieces")
@pytest.mark.parametrize(("rounding", "version"), [*((rounding, 1) for rounding in ROUNDINGS), ("stochastic", 2)])
def test_pieces_give_the_same_bits_as_the_whole(rounding: str, version: int) -> None:
    x = torch.cat([boundaries(get_format("e2m1")), random_bits(40)])[:105].view(5, 3, 7)
    previous = torch.round(x)
    scales = [None, 0.37, torch.rand(1) + 0.5]
    scales += [
        torch.rand(shape) + 0.5 for shape in ((5, 1, 1), (5, 3, 1), (1, 3, 1), (7,), (3, 1), (5, 1, 7), (5, 3, 7))
    ]
    for name in ("e4m3", "p3109_k8p3", "e7m0", "bf16", "e8m0"):
        fmt = get_format(name)
        for scale in scales:
            options = {"scale": scale, "rounding": rounding, "seed": 3, "saturate": name != "p3109_k8p3"}
            options["draw_version"] = version
            expected = whole(quantize_counted, x, fmt, previous=previous, **options)
            found = quantize_counted(x, fmt, previous=previous, **options)
            assert same(found.values, expected.values)
            assert same(found.ulp, expected.ulp)
            assert found[2:] == expected[2:]
            assert same(quantize(x, fmt, **options), expected.values)
            assert same(quantize(x.bfloat16(), fmt, **options), whole(quantize, x.bfloat16(), fmt, **options))
            in_place = x.clone()
            quantize(in_place, fmt, out=in_place, **options)
            assert same(in_place, expected.values)


def test_tensors_of_several_pieces_equal_their_rows() -> None:
    x = torch.randn(40, 30_011, generator=torch.Generator().manual_seed(0))
    rows = torch.rand(40, 1, generator=torch.Generator().manual_seed(1)) + 0.5
    y = quantize(x, E4M3, scale=rows)
    assert torch.equal(y, torch.stack([quantize(x[i], E4M3, scale=rows[i]) for i in range(40)]))
    counted = quantize_counted(x, E4M3, scale=rows, previous=x)
    assert torch.equal(counted.values, y)
    assert counted.flips == int((y != x).sum())
    assert same(quantize(x, E4M3, rounding="stochastic", seed=SEED), searched(x, E4M3, "stochastic", True))


# Properties


FINITE = st.floats(width=32, allow_nan=False, min_value=-(2.0**20), max_value=2.0**20)
NAMES = st.sampled_from([fmt.name for fmt in NARROW if fmt.signed] + ["fp16", "bf16", "e9m6"])


@given(st.lists(FINITE, min_size=1, max_size=30), NAMES, st.sampled_from(ROUNDINGS), st.integers(-20, 20))
@settings(max_examples=200, deadline=None)
def test_quantizing_is_idempotent_and_moves_with_powers_of_two(values, name: str, rounding: str, exponent: int) -> None:
    fmt, scale, x = get_format(name), 2.0**exponent, torch.tensor(values)
    once = quantize(x, fmt, scale=scale, rounding=rounding, seed=1)
    assert same(quantize(once, fmt, scale=scale, rounding=rounding, seed=2), once)
    if (x == 0).logical_or(x.abs() > 2.0**-100).all():
        assert same(
            quantize(x * scale, fmt, scale=scale, rounding=rounding, seed=1),
            quantize(x, fmt, rounding=rounding, seed=1) * scale,
        )


@given(st.lists(FINITE, min_size=2, max_size=30), NAMES, st.sampled_from(ROUNDINGS))
@settings(max_examples=200, deadline=None)
def test_quantizing_keeps_the_order_and_the_mirror_image(values: list[float], name: str, rounding: str) -> None:
    fmt, x = get_format(name), torch.tensor(sorted(values))
    if rounding != "stochastic":  # each element has its own draw there
        assert (quantize(x, fmt, rounding=rounding).diff() >= 0).all()
    mirrored = {"up": "down", "down": "up"}.get(rounding, rounding)
    found = quantize(-x, fmt, rounding=rounding, seed=4)
    assert torch.equal(found, -quantize(x, fmt, rounding=mirrored, seed=4))


@given(st.lists(FINITE, min_size=1, max_size=30), NAMES, st.sampled_from(ROUNDINGS))
@settings(max_examples=200, deadline=None)
def test_results_lie_within_an_ulp_and_nearest_ones_within_half(values: list[float], name: str, rounding: str) -> None:
    fmt, x = get_format(name), torch.tensor(values)
    inside = x.abs().double() <= fmt.max
    error = quantize(x, fmt, rounding=rounding, seed=9).double() - x.double()
    ulps = (error / ulp(x.double(), fmt))[inside]
    assert (ulps.abs() <= (0.5 if rounding.startswith("nearest") and fmt.mantissa_bits else 1.0)).all()
    if rounding == "up":
        assert (ulps >= 0).all()
    if rounding == "down":
        assert (ulps <= 0).all()
    if rounding == "toward_zero":
        assert (ulps * x[inside].sign() <= 0).all()


@given(
    st.floats(2**-8, 400, width=32), st.sampled_from(["e4m3", "e7m0", "e2m5", "p3109_k8p2"]), st.integers(0, 2**64 - 1)
)
@settings(max_examples=60, deadline=None)
def test_stochastic_rounding_is_right_on_average(value: float, name: str, seed: int) -> None:
    fmt, count = get_format(name), 20_000
    value = math.fmod(value, fmt.max)
    y = quantize(torch.full((count,), value), fmt, rounding="stochastic", seed=seed).double()
    low, high = fmt.round(value, rounding="down"), fmt.round(value, rounding="up")
    assert set(y.tolist()) <= {low, high}
    if low < high:
        chance = (value - low) / (high - low)
        sigma = math.sqrt(chance * (1 - chance) / count) * (high - low)
        assert abs(y.mean().item() - value) <= 5 * sigma + 2**-24 * (high - low)  # 4 would fail for 1 seed in 16,000


# Gradients


def test_gradient_passes_or_is_masked_beyond_the_largest_value() -> None:
    for gradient, expected in (("pass", [1.0, 1.0, 1.0, 1.0]), ("mask", [1.0, 0.0, 1.0, 0.0])):
        x = torch.tensor([1.03, 500.0, -3.0, -math.inf], requires_grad=True)
        y = fake_quantize(x, E4M3, gradient=gradient)
        assert torch.equal(y, quantize(x, E4M3))
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == expected
    assert not quantize(torch.ones(1, requires_grad=True), E4M3).requires_grad


def test_a_mask_sees_the_scale_and_leaves_no_nan_of_an_infinite_gradient() -> None:
    x = torch.tensor([[1.03, 500.0, -3.0], [1.03, 500.0, -3.0]], requires_grad=True)
    y = fake_quantize(x, E4M3, scale=torch.tensor([[2.0], [0.001]]), gradient="mask")
    y.backward(torch.tensor([[2.0, 3.0, 4.0], [math.inf, math.nan, 4.0]]))
    assert x.grad is not None
    assert x.grad.tolist() == [[2, 3, 4], [0, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_the_gradient_has_the_dtype_and_the_scale_gets_none(dtype: torch.dtype, rounding: str) -> None:
    x = torch.randn(4, 5, dtype=dtype, requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    weights = torch.randn(4, 5, dtype=dtype)
    for gradient in ("pass", "mask"):
        x.grad = None
        y = fake_quantize(x, E4M3, scale=scale, rounding=rounding, seed=0, gradient=gradient)
        assert torch.equal(y, quantize(x, E4M3, scale=scale, rounding=rounding, seed=0))
        (y * weights).sum().backward()
        assert x.grad is not None
        assert x.grad.dtype == dtype
        assert torch.equal(x.grad, weights)
        assert scale.grad is None


@pytest.mark.parametrize("layout", ["later", "earlier", "transposed", "scale", "previous", "ulp"])
def test_writing_over_what_is_still_to_be_read_changes_nothing(layout: str) -> None:
    count = 1000  # more than a piece
    fresh = torch.randn(count, count, generator=torch.Generator().manual_seed(0))
    memory = fresh.clone()
    x, out, scale, field, previous = fresh[:-1], memory[:-1], None, None, fresh[:-1] + 0.0
    if layout == "later":
        x, out = memory[:-1], memory[1:]
    elif layout == "earlier":
        x, out = memory[1:], memory[:-1]
    elif layout == "transposed":
        x, out, previous = memory.T, memory, fresh
    elif layout == "scale":
        memory[0].abs_().add_(0.5)
        scale = memory[:1]
    elif layout == "previous":
        previous = memory[1:]
    else:
        x, out, field = memory[:-1], fresh[:-1].clone(), memory[:-1]
    scale_before = None if scale is None else scale.clone()
    expected = quantize_counted(x.clone(), E4M3, rounding="up", scale=scale_before, previous=previous.clone())
    found = quantize_counted(x, E4M3, rounding="up", scale=scale, previous=previous, out=out, ulp_out=field)
    assert found.values is out
    assert torch.equal(out, expected.values)
    assert torch.equal(found.ulp, expected.ulp)
    assert found[2:] == expected[2:]


def test_out_and_the_ulp_field_may_not_overlap() -> None:
    memory = torch.ones(9)
    with pytest.raises(ValueError, match="must not overlap"):
        quantize_counted(torch.ones(5), E4M3, out=memory[:5], ulp_out=memory[4:])
    quantize_counted(torch.ones(4), E4M3, out=memory[:4], ulp_out=memory[4:8])


@pytest.mark.parametrize("name", ["e4m3b-130", "e3m10b-130", "e2m3b-140", "e4m3b-200", "e9m6"])
def test_beyond_float32_saturation_stops_at_a_value_of_the_grid(name: str) -> None:
    fmt = get_format(name)
    x = torch.tensor([math.inf, -math.inf, FLOAT32_MAX, 2.0**127, 1.0])
    for dtype in (torch.float32, torch.bfloat16):
        y = quantize(x.to(dtype), fmt)
        assert y.tolist() == [fmt.round(value) for value in y.tolist()]
        assert y[0] == -y[1]
        above = fmt.round(math.nextafter(y[0].item(), math.inf), rounding="up")
        assert above >= 2.0**128, "the next value of the grid is no float32"


def test_what_is_no_tensor_and_no_format_is_refused_as_that() -> None:
    x, codes = torch.ones(3), torch.ones(3, dtype=torch.uint8)
    for name in ("out", "previous", "ulp_out"):
        with pytest.raises(TypeError, match=f"{name} must be a tensor, not list"):
            quantize_counted(x, E4M3, **{name: [1.0]})
    with pytest.raises(TypeError, match="uint8 or uint16 codes, not list"):
        decode([1], E4M3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="FloatFormat"):
        decode(codes, "e4m3")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="FloatFormat"):
        kernel.compile_quantize("e4m3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on cpu as x is, not on meta"):
        quantize(x, E4M3, scale=torch.ones((), device="meta"))
    assert quantize(x.double(), E4M3, scale=10**300).tolist() == [0.0] * 3


def test_a_number_as_scale_is_a_tensor_where_a_gpu_would_multiply_by_its_inverse() -> None:
    job = kernel._job(torch.ones(3, device="meta"), E4M3, 0.3, "nearest_even", True, (None, 1), True)
    assert isinstance(job.scale, torch.Tensor)
    assert (job.scale.shape, job.scale.dtype, job.scale.device.type) == ((), torch.float32, "meta")
