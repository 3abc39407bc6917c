"""The scale is the smallest that brings a tensor into range, and is exact."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from altgrad.formats import SPLITS_8BIT, get_format  # noqa: E402
from altgrad.scaling import amax, amax_scale  # noqa: E402


@given(st.floats(width=32, min_value=2.0**-100, max_value=2.0**60), st.sampled_from([f.name for f in SPLITS_8BIT]))
@settings(max_examples=300, deadline=None)
def test_the_scale_is_the_smallest_power_of_two_without_overflow(largest: float, name: str) -> None:
    fmt = get_format(name)
    scale = amax_scale(torch.tensor([-largest, 0.0, largest / 3]), fmt).item()
    if scale == 2.0**-126:  # the smallest exponent that is allowed
        return
    assert math.frexp(scale)[0] == 0.5
    assert largest / scale <= fmt.max < largest / (scale / 2)


@pytest.mark.parametrize("fmt", SPLITS_8BIT, ids=lambda fmt: fmt.name)
def test_an_amax_of_max_times_a_power_of_two_fills_the_format(fmt) -> None:  # type: ignore[no-untyped-def]
    for exponent in (-20, 0, 7):
        assert amax_scale(torch.tensor([fmt.max * 2.0**exponent]), fmt).item() == 2.0**exponent
        above = torch.tensor([fmt.max * 2.0**exponent]).nextafter(torch.tensor([math.inf]))
        assert amax_scale(above, fmt).item() == 2.0 ** (exponent + 1)


def test_an_exact_scale_maps_amax_to_max() -> None:
    assert amax_scale(torch.tensor([-3.0, 1.0]), get_format("e4m3"), power_of_two=False).item() == pytest.approx(
        3 / 448
    )


def test_zeros_have_scale_one_and_damaged_tensors_none() -> None:
    fmt = get_format("e5m2")
    assert amax_scale(torch.zeros(3), fmt).item() == 1
    assert amax_scale(torch.empty(0), fmt).item() == 1
    for bad in (math.nan, math.inf, -math.inf):
        assert amax_scale(torch.tensor([1.0, bad]), fmt).isnan()
        assert amax_scale(torch.tensor([1.0, bad]), fmt, power_of_two=False).isnan()


def test_amax_of_every_input_dtype_is_float32() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = amax(torch.tensor([1.0, -2.5], dtype=dtype))
        assert found.dtype == torch.float32
        assert found.item() == 2.5
