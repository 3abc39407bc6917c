"""The kernel equals the scalar specification, ml_dtypes and gfloat on every input that is tried."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
ml_dtypes = pytest.importorskip("ml_dtypes")
gfloat = pytest.importorskip("gfloat")

from altgrad.formats import SPLITS_8BIT, FloatFormat, get_format, list_formats  # noqa: E402
from altgrad.rounding import fake_quantize, quantize, ulp  # noqa: E402

NARROW = [fmt for fmt in list_formats() if fmt.name != "fp32"]
MANTISSAS = [fmt for fmt in SPLITS_8BIT if fmt.mantissa_bits > 0]


def bfloat16_inputs() -> torch.Tensor:
    """All 65,536 of them, as float32."""
    return torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()


def boundaries(fmt: FloatFormat) -> torch.Tensor:
    """Grid values, midpoints, what lies beside both, the overflow threshold, zeros, infinities, NaN."""
    values = fmt.finite_values
    top = np.array([fmt.max + fmt.max_ulp / 2, fmt.max + fmt.max_ulp])
    centres = np.concatenate([values, (values[:-1] + values[1:]) / 2, top, -top])
    with np.errstate(over="ignore", under="ignore"):
        centres = centres.astype(np.float32)
    up, down = (np.nextafter(centres, np.float32(side)) for side in (np.inf, -np.inf))
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3.4e38, -3.4e38], np.float32)
    return torch.from_numpy(np.concatenate([centres, up, down, special]))


def random_bits(count: int = 1 << 20) -> torch.Tensor:
    bits = np.random.default_rng(0).integers(0, 1 << 32, count, dtype=np.uint32)
    return torch.from_numpy(bits.view(np.float32))


def same(found: torch.Tensor, expected: np.ndarray) -> bool:
    """Equal values, equal signs of zero, NaN in the same places."""
    found_64 = found.double().numpy()
    nan = np.isnan(expected)
    equal = (found_64 == expected) & (np.signbit(found_64) == np.signbit(expected))
    return bool(np.all(np.where(nan, np.isnan(found_64), equal)))


def reference(fmt: FloatFormat) -> gfloat.FormatInfo:
    return gfloat.FormatInfo(
        name=fmt.name,
        k=fmt.bits,
        precision=fmt.mantissa_bits + 1,
        bias=fmt.bias,
        is_signed=True,
        domain=gfloat.Domain.Extended if fmt.has_infinity else gfloat.Domain.Finite,
        has_nz=True,
        num_high_nans={"ieee": 2**fmt.mantissa_bits - 1, "fn": 1, "finite": 0}[fmt.specials],
        has_subnormals=True,
        is_twos_complement=False,
    )


@pytest.mark.parametrize("fmt", NARROW, ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("saturate", [True, False])
def test_equals_the_scalar_specification_on_boundaries(fmt: FloatFormat, saturate: bool) -> None:
    x = boundaries(fmt)
    if len(x) > 4000:  # 16-bit formats: the scalar form is slow; the ends and an even sample between them
        x = torch.cat([x[:500], x[500:-500:400], x[-500:]])
    expected = np.array([fmt.round(value, saturate) for value in x.tolist()])
    assert same(quantize(x, fmt, saturate=saturate), expected)


@pytest.mark.parametrize("fmt", MANTISSAS, ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("inputs", ["bfloat16", "boundaries", "random bits"])
@pytest.mark.parametrize("saturate", [True, False])
def test_equals_gfloat(fmt: FloatFormat, inputs: str, saturate: bool) -> None:
    x = {"bfloat16": bfloat16_inputs, "boundaries": lambda: boundaries(fmt), "random bits": random_bits}[inputs]()
    if fmt.exponent_bits == 0:
        expected = on_fixed_point(x, fmt)
    else:
        wanted = saturate or fmt.specials == "finite"
        finite = x if fmt.has_infinity and not wanted else torch.nan_to_num(x, math.nan, 3.4e38, -3.4e38)
        with np.errstate(all="ignore"):
            expected = (
                gfloat.round_ndarray(reference(fmt), finite.double().numpy(), gfloat.RoundMode.TiesToEven, sat=wanted)
                if fmt.specials != "finite"
                else rounded_then_clipped(finite, fmt)
            )
    assert same(quantize(x, fmt, saturate=saturate), expected)


def on_fixed_point(x: torch.Tensor, fmt: FloatFormat) -> np.ndarray:
    """numpy's own rounding in float64, on the grid of multiples of the quantum."""
    steps = x.double().numpy() / fmt.quantum
    return np.clip(np.round(steps) * fmt.quantum, -fmt.max, fmt.max)


def rounded_then_clipped(x: torch.Tensor, fmt: FloatFormat) -> np.ndarray:
    """A finite split is the IEEE-like format of one more exponent value, clipped; gfloat rounds, numpy clips."""
    wide = gfloat.FormatInfo(
        name="wide",
        k=fmt.bits + 1,
        precision=fmt.mantissa_bits + 1,
        bias=fmt.bias,
        is_signed=True,
        domain=gfloat.Domain.Extended,
        has_nz=True,
        num_high_nans=2**fmt.mantissa_bits - 1,
        has_subnormals=True,
        is_twos_complement=False,
    )
    rounded = gfloat.round_ndarray(wide, x.double().numpy(), gfloat.RoundMode.TiesToEven, sat=False)
    return np.clip(rounded, -fmt.max, fmt.max)


ML_DTYPES = {
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
}


@pytest.mark.parametrize("name", ML_DTYPES)
@pytest.mark.parametrize("inputs", ["bfloat16", "boundaries", "random bits"])
@pytest.mark.parametrize("saturate", [True, False])
def test_equals_ml_dtypes(name: str, inputs: str, saturate: bool) -> None:
    fmt = get_format(name)
    x = {"bfloat16": bfloat16_inputs, "boundaries": lambda: boundaries(fmt), "random bits": random_bits}[inputs]()
    source = x.clamp(-fmt.max, fmt.max) if saturate else x
    with np.errstate(all="ignore"):
        expected = source.numpy().astype(ML_DTYPES[name]).astype(np.float64)
    assert same(quantize(x, fmt, saturate=saturate), expected)


def test_e3m4_equals_ml_dtypes_below_its_ieee_maximum() -> None:
    x = random_bits()
    x = x[x.abs() < 15.5]
    expected = x.numpy().astype(ml_dtypes.float8_e3m4).astype(np.float64)
    assert same(quantize(x, get_format("e3m4")), expected)


def test_without_a_mantissa_ties_go_to_the_even_code() -> None:
    fmt = get_format("e7m0")
    exponents = np.arange(-62, 64)
    ties = torch.from_numpy((1.5 * 2.0**exponents).astype(np.float32))
    lower_code_is_even = (exponents + fmt.bias) % 2 == 0
    expected = np.where(lower_code_is_even, 1.0, 2.0) * 2.0**exponents
    assert same(quantize(ties, fmt), expected)
    assert same(quantize(-ties, fmt), -expected)


def test_values_just_below_the_smallest_normal_round_up_to_it() -> None:
    for fmt in SPLITS_8BIT:
        if fmt.min_normal is not None:
            below = torch.tensor([np.nextafter(np.float32(fmt.min_normal), np.float32(0))])
            assert quantize(below, fmt).item() == fmt.min_normal


def test_overflow_is_decided_after_rounding() -> None:
    fmt = get_format("e4m3")
    x = torch.tensor([464.0, math.nextafter(464.0, 500.0) + 1e-4])
    assert quantize(x, fmt, saturate=False)[0] == 448
    assert quantize(x, fmt, saturate=False)[1].isnan()
    assert quantize(x, fmt).tolist() == [448, 448]


def test_e1m6_is_e0m7_times_four() -> None:
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(quantize(x, get_format("e1m6")), quantize(x, get_format("e0m7"), scale=4.0))


@given(
    st.lists(st.floats(width=32, allow_nan=False, min_value=-1e4, max_value=1e4), min_size=1, max_size=30),
    st.sampled_from([fmt.name for fmt in SPLITS_8BIT]),
    st.integers(-20, 20),
)
@settings(max_examples=200, deadline=None)
def test_quantizing_is_idempotent_and_moves_with_the_scale(values: list[float], name: str, exponent: int) -> None:
    fmt, scale = get_format(name), 2.0**exponent
    x = torch.tensor(values)
    once = quantize(x, fmt, scale=scale)
    assert torch.equal(quantize(once, fmt, scale=scale), once)
    assert torch.equal(once, quantize(x / scale, fmt) * scale)


@pytest.mark.parametrize("fmt", SPLITS_8BIT, ids=lambda fmt: fmt.name)
def test_ulp_field_equals_the_scalar_specification(fmt: FloatFormat) -> None:
    x = boundaries(fmt)
    x = x[~x.isnan()]
    assert ulp(x, fmt).tolist() == [fmt.ulp(value) for value in x.tolist()]
    assert torch.equal(ulp(x, fmt, 0.25), ulp(x / 0.25, fmt) * 0.25)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs_keep_their_dtype_and_round_once(dtype: torch.dtype) -> None:
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    y = quantize(x, get_format("e5m2"))
    assert y.dtype == dtype
    assert same(y.float(), quantize(x.float(), get_format("e5m2")).double().numpy())


def test_out_is_written_and_may_be_the_input() -> None:
    x, fmt = torch.randn(100), get_format("e4m3")
    expected, original = quantize(x, fmt), x.clone()
    out = torch.empty_like(x)
    assert quantize(x, fmt, out=out) is out
    assert torch.equal(out, expected)
    assert torch.equal(x, original)
    assert quantize(x, fmt, out=x) is x
    assert torch.equal(x, expected)


def test_a_strided_input_gives_the_same_values() -> None:
    x = torch.randn(32, 48)
    assert torch.equal(quantize(x.t(), get_format("e7m0")), quantize(x, get_format("e7m0")).t())


def test_gradient_passes_or_is_masked_beyond_the_largest_value() -> None:
    fmt = get_format("e4m3")
    for gradient, expected in (("pass", [1.0, 1.0, 1.0]), ("mask", [1.0, 0.0, 1.0])):
        x = torch.tensor([1.03, 500.0, -3.0], requires_grad=True)
        fake_quantize(x, fmt, gradient=gradient).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == expected
    assert not quantize(torch.ones(1, requires_grad=True), fmt).requires_grad


def test_what_cannot_be_rounded_is_refused() -> None:
    fmt = get_format("e4m3")
    with pytest.raises(TypeError, match="float64"):
        quantize(torch.zeros(1, dtype=torch.float64), fmt)
    with pytest.raises(ValueError, match="nearest_even"):
        quantize(torch.zeros(1), fmt, rounding="up")
    with pytest.raises(ValueError, match="mask"):
        fake_quantize(torch.zeros(1), fmt, gradient="none")
