"""The scale is the smallest that brings a tensor, a row or a block into range; MX and NVFP4 are what others define."""

from __future__ import annotations

import copy
import math
import warnings
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from altgrad.formats import ROUNDINGS, SPLITS_8BIT, FloatFormat, get_format, stochastic_draw  # noqa: E402
from altgrad.rounding import fake_quantize, quantize  # noqa: E402
from altgrad.scaling import (  # noqa: E402
    MX_ELEMENTS,
    DelayedScale,
    amax,
    amax_scale,
    decode_mx,
    decode_nvfp4,
    encode_mx,
    encode_nvfp4,
    expand_blocks,
    expand_tiles,
    mx_scale,
    nvfp4_scales,
    quantize_blocks,
    quantize_mx,
    quantize_nvfp4,
    tile_amax,
)

E4M3, E5M2, E2M1 = (get_format(name) for name in ("e4m3", "e5m2", "e2m1"))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(7,), (3, 8), (2, 3, 13), (4, 1), (0,), (3, 0), (0, 5), (1, 33)]
# OCP MX 1.0, section 5.3: emax, largest value, exponent of the smallest normal value, mantissa bits
MX_TABLE = {"e4m3": (8, 448, -6, 3), "e5m2": (15, 57344, -14, 2), "e3m2": (4, 28, -2, 2), "e2m3": (2, 7.5, 0, 3)}
MX_TABLE["e2m1"], MX_TABLE["e0m7b-1"] = (2, 6, 0, 1), (0, 127 / 64, 1, 7)
elements = pytest.mark.parametrize("fmt", MX_ELEMENTS, ids=lambda fmt: fmt.name)
rules = pytest.mark.parametrize("rule", ["floor", "rceil"])


def same(found: torch.Tensor, expected: torch.Tensor | np.ndarray) -> None:
    """Equal bit by bit, but for which NaN it is."""
    expected = torch.as_tensor(expected)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    nan = expected.isnan()
    assert torch.equal(found.isnan(), nan)
    found, expected = found.masked_fill(nan, 0), expected.masked_fill(nan, 0)
    wrong = (found != expected) | (torch.signbit(found) != torch.signbit(expected))
    assert not wrong.any(), f"{int(wrong.sum())} differ: {found[wrong][:4]} instead of {expected[wrong][:4]}"


def blocks_of_many_magnitudes(block: int = 32, count: int = 3000, damaged: bool = True) -> np.ndarray:
    """float32 [count, block], from subnormals to near the largest; wide and narrow blocks, ties, zeros, NaN, inf."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((count, block)) * 2.0 ** rng.integers(-148, 120, (count, 1))
    x[::3] *= 2.0 ** -rng.integers(0, 12, (len(x[::3]), block))
    x[1::5] = rng.integers(-64, 65, (len(x[1::5]), block)) * 2.0 ** rng.integers(-149, 120, (len(x[1::5]), 1))
    x = x.astype(np.float32)
    peaks = np.float32(2.0) ** np.arange(-130, 121, dtype=np.float32)
    for row, maximum in enumerate((1, 448, 57344, 28, 7.5, 6, 2688)):  # the places where a scale steps up
        top = maximum * peaks[peaks <= 2.0**110]
        for shift, value in enumerate((top, np.nextafter(top, np.float32(0)), np.nextafter(top, np.float32(np.inf)))):
            rows = slice(200 * shift + row, 200 * shift + row + 7 * len(top), 7)
            target = x[rows]
            target[:] = np.clip(target, -value[: len(target), None], value[: len(target), None])
            target[:, 5] = -value[: len(target)]
    x[10:20] = 0
    x[11, ::2] = -0.0
    x[20] = np.finfo(np.float32).max
    x[21] = np.float32(2.0**-149)
    x[22] = np.arange(block) * np.float32(2.0**-149)
    if damaged:
        x[30, 3], x[31, 0], x[32, -1], x[33, :2] = np.nan, np.inf, -np.inf, (np.nan, np.inf)
        x[34], x[35] = np.nan, np.inf
    return x


def on_grid(v: np.ndarray, maximum: float, emin: int, mantissa_bits: int) -> np.ndarray:
    """float64 rounded to nearest even onto a format's grid, saturating."""
    spacing = np.ldexp(1.0, np.maximum(np.frexp(v)[1] - 1, emin) - mantissa_bits)
    return np.clip(np.copysign(np.rint(v / spacing) * spacing, v), -maximum, maximum)


def mx_reference(x: np.ndarray, name: str, rule: str, block: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """(values, scale codes) in float64, a block at a time, from OCP MX 1.0, section 6.3."""
    emax, maximum, emin, mantissa_bits = MX_TABLE[name]
    values = np.empty(x.shape)
    codes = np.empty((len(x), -(-x.shape[1] // block)), dtype=np.uint8)
    for row, line in enumerate(x.astype(np.float64)):
        for index in range(codes.shape[1]):
            part = slice(index * block, (index + 1) * block)
            largest = np.abs(line[part]).max()
            if not np.isfinite(largest):
                values[row, part], codes[row, index] = np.nan, 255
                continue
            exponent = -127
            if largest:
                exponent = math.frexp(largest)[1] - 1 - emax
                if rule == "rceil":
                    exponent = -160
                    while largest / 2.0**exponent > maximum:
                        exponent += 1
            exponent = min(max(exponent, -127), 127)
            codes[row, index] = exponent + 127
            values[row, part] = on_grid(line[part] / 2.0**exponent, maximum, emin, mantissa_bits) * 2.0**exponent
    with np.errstate(over="ignore"):
        return values.astype(np.float32), codes


def nvfp4_reference(x: np.ndarray, tensor_scale: float | None) -> tuple[np.ndarray, np.ndarray, np.float32]:
    """(values, block scales, tensor scale) for whole blocks; float32 where the definition rounds to it."""
    single, blocks = np.float32, x.reshape(len(x), -1, 16)
    with np.errstate(all="ignore"):
        largest = np.abs(blocks).max(-1)
        outer = single(largest.max() / single(2688)) if tensor_scale is None else single(tensor_scale)
        if tensor_scale is None:
            outer = single(np.nan if not np.isfinite(outer) else max(outer, 2.0**-126) if largest.max() else 1)
        wanted = np.clip((largest / single(6)) / outer, 2.0**-6, 448).astype(np.float64)
        inner = np.where(np.isfinite(largest), on_grid(wanted, 448, -6, 3), np.nan).astype(single)
        scale = (inner * outer)[..., None]
        values = on_grid((blocks / scale).astype(np.float64), 6, 0, 1).astype(single) * scale
    return values.reshape(x.shape), inner, outer


@pytest.fixture(scope="module")
def torchao() -> SimpleNamespace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor", exc_type=ImportError)
        nvfp4 = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor", exc_type=ImportError)
        from torchao.prototype.mx_formats.config import ScaleCalculationMode as Mode

    kinds = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "e2m1": torch.float4_e2m1fn_x2}
    modes = {"floor": Mode.FLOOR, "rceil": Mode.RCEIL}

    def unpacked(codes: torch.Tensor) -> torch.Tensor:
        return torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)

    def to_mx(x: torch.Tensor, fmt: FloatFormat, rule: str) -> tuple[torch.Tensor, torch.Tensor]:
        scales, codes = mx.to_mx(x, kinds.get(fmt.name, f"fp6_{fmt.name}"), 32, modes[rule])
        codes = codes.view(torch.uint8)
        return unpacked(codes) if fmt == E2M1 else codes, scales.view(torch.uint8)

    def to_nvfp4(x: torch.Tensor, tensor_scale: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        scales, codes = nvfp4.nvfp4_quantize(x, 16, tensor_scale)
        return unpacked(codes), scales.view(torch.uint8).view(len(x), -1)

    def dequantize_nvfp4(x: torch.Tensor, tensor_scale: torch.Tensor | None) -> torch.Tensor:
        return nvfp4.NVFP4Tensor.to_nvfp4(x, per_tensor_scale=tensor_scale).dequantize(torch.float32)

    def dequantize_mx(x: torch.Tensor, fmt: FloatFormat, rule: str) -> torch.Tensor:
        kind = kinds.get(fmt.name, f"fp6_{fmt.name}")
        scales, codes = mx.to_mx(x, kind, 32, modes[rule])
        return mx.to_dtype(codes, scales, kind, 32, torch.float32)

    return SimpleNamespace(
        to_mx=to_mx, dequantize_mx=dequantize_mx, to_nvfp4=to_nvfp4, dequantize_nvfp4=dequantize_nvfp4
    )


# amax and its scale


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
def test_an_amax_of_max_times_a_power_of_two_fills_the_format(fmt: FloatFormat) -> None:
    for exponent in (-20, 0, 7):
        assert amax_scale(torch.tensor([fmt.max * 2.0**exponent]), fmt).item() == 2.0**exponent
        above = torch.tensor([fmt.max * 2.0**exponent]).nextafter(torch.tensor([math.inf]))
        assert amax_scale(above, fmt).item() == 2.0 ** (exponent + 1)


def test_an_exact_scale_maps_amax_to_max() -> None:
    assert amax_scale(torch.tensor([-3.0, 1.0]), E4M3, power_of_two=False).item() == np.float32(3) / np.float32(448)


def test_scales_stop_at_the_smallest_normal_number() -> None:
    x = torch.tensor([2.0**-149, -(2.0**-140)])
    for power_of_two in (True, False):
        assert amax_scale(x, E4M3, power_of_two=power_of_two).item() == 2.0**-126


def test_zeros_have_scale_one_and_damaged_tensors_none() -> None:
    assert amax_scale(torch.zeros(3), E5M2).item() == 1
    assert amax_scale(torch.empty(0), E5M2).item() == 1
    for bad in (math.nan, math.inf, -math.inf):
        for power_of_two in (True, False):
            assert amax_scale(torch.tensor([1.0, bad]), E5M2, power_of_two=power_of_two).isnan()
            x = torch.tensor([[1.0, bad, 0.0, 0.0, 4.0]])
            found = amax_scale(x, E2M1, granularity="block", block=2, power_of_two=power_of_two)
            assert found.isnan().tolist() == [[True, False, False]]
            assert found[0, 1] == 1


def test_amax_of_every_input_dtype_is_float32() -> None:
    for dtype in DTYPES:
        x = torch.tensor([1.0, -2.5], dtype=dtype)
        for found in (amax(x), amax(x, granularity="row"), amax(x, granularity="block")):
            assert found.dtype == torch.float32
            assert found.item() == 2.5
    assert not torch.signbit(amax(torch.tensor([-0.0, -0.0])))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block", [1, 3, 4, 32])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_amax_per_tensor_row_and_block_is_that_of_brute_force(
    shape: tuple[int, ...], block: int, dtype: torch.dtype
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[..., 5:6] *= math.nan
    array = np.abs(x.float().numpy())
    parts = [array[..., start : start + block] for start in range(0, shape[-1], block)]
    blocks = [part.max(-1) for part in parts]
    empty = np.zeros((*shape[:-1], 0), dtype=np.float32)
    same(amax(x), np.float32(array.max() if array.size else 0))
    same(amax(x, granularity="row"), array.max(-1, keepdims=True, initial=0))
    same(amax(x, granularity="block", block=block), np.stack(blocks, -1) if blocks else empty)
    strided = x.repeat_interleave(2, dim=-1)[..., ::2]
    same(amax(strided, granularity="block", block=block), amax(x, granularity="block", block=block))


@given(st.lists(st.floats(width=32, allow_subnormal=True), min_size=1, max_size=9), st.integers(1, 5))
@settings(max_examples=300, deadline=None)
def test_a_part_has_the_scale_that_it_has_as_a_tensor(numbers: list[float], block: int) -> None:
    x = torch.tensor(numbers, dtype=torch.float32)
    for power_of_two in (True, False):
        expected = torch.stack([amax_scale(part, E4M3, power_of_two=power_of_two) for part in x.split(block)])
        same(amax_scale(x, E4M3, granularity="block", block=block, power_of_two=power_of_two), expected)
        rows = amax_scale(torch.stack([x, x / 4]), E4M3, granularity="row", power_of_two=power_of_two)
        same(rows[0, 0], amax_scale(x, E4M3, power_of_two=power_of_two))


def test_scales_of_rows_and_tensors_broadcast() -> None:
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(2)) * torch.logspace(-5, 5, 5)[:, None]
    by_row = quantize(x, E4M3, scale=amax_scale(x, E4M3, granularity="row"))
    for row in range(5):
        same(by_row[row], quantize(x[row], E4M3, scale=amax_scale(x[row], E4M3)))


# blocks


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("block", [1, 4, 5, 64])
def test_a_block_is_rounded_by_its_scale_and_draws_by_the_element_s_index(
    shape: tuple[int, ...], rounding: str, block: int
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    scale = amax_scale(x, E4M3, granularity="block", block=block) / 2  # some elements are beyond
    found = quantize_blocks(x, E4M3, scale, block=block, rounding=rounding, saturate=False, seed=11)
    expected = np.empty(x.numel(), dtype=np.float32)
    for index, position in enumerate(np.ndindex(*shape)):
        factor = float(scale[(*position[:-1], position[-1] // block)])
        expected[index] = factor * E4M3.round(
            float(x[position]) / factor,
            rounding=rounding,  # type: ignore[arg-type]
            saturate=False,
            draw=stochastic_draw(11, index),
        )
    same(found, expected.reshape(shape))
    expanded = expand_blocks(scale, shape[-1], block=block)
    same(quantize(x, E4M3, scale=expanded, rounding=rounding, saturate=False, seed=11), found)


@pytest.mark.parametrize("columns", [64, 61])
@pytest.mark.parametrize("rounding", ["nearest_even", "stochastic"])
def test_strides_outputs_and_size_do_not_change_a_block(columns: int, rounding: str) -> None:
    x = torch.randn(5000, 64, generator=torch.Generator().manual_seed(4))[:, :columns].contiguous()

    def run(x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return quantize_mx(x, E4M3, rounding=rounding, seed=5, out=out)

    expected = run(x)
    assert expected.is_contiguous()
    same(run(x.t().contiguous().t()), expected)
    for out in (torch.empty_like(x), torch.empty(columns, 5000).t(), x.clone(), x.t().contiguous().t()):
        assert run(x if out.is_contiguous() else out.copy_(x), out) is out
        same(out, expected)
    same(run(x[:100]), expected[:100])


def test_expanded_scales_serve_what_takes_a_scale() -> None:
    x = torch.randn(3, 10, requires_grad=True)
    scale = mx_scale(x, E4M3, block=4)
    y = fake_quantize(x, E4M3, scale=expand_blocks(scale, 10, block=4))
    same(y.detach(), quantize_mx(x, E4M3, block=4))
    y.sum().backward()
    assert x.grad is not None
    assert (x.grad == 1).all()
    assert not quantize_mx(x, E4M3).requires_grad


# delayed and static scaling


@given(
    st.lists(
        st.one_of(st.floats(0, 1e6, width=32), st.sampled_from([0.0, math.nan, math.inf])), min_size=1, max_size=12
    ),
    st.integers(1, 4),
    st.integers(0, 3),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_a_delayed_scale_is_that_of_the_largest_amax_before(
    steps: list[float], length: int, margin: int, power_of_two: bool
) -> None:
    delayed = DelayedScale(E4M3, length=length, margin=margin, power_of_two=power_of_two)
    history: deque[float] = deque(maxlen=length)
    for step in steps:
        known = max(history, default=0.0) or step
        expected = amax_scale(torch.tensor(known), E4M3, power_of_two=power_of_two) * 2.0**margin
        x = torch.tensor([step, -step / 2, 0.0])
        same(delayed.scale(x), expected)
        same(delayed.update(x), expected)
        if math.isfinite(step):
            history.append(step)


def test_a_damaged_step_does_not_stay() -> None:
    delayed = DelayedScale(E4M3, length=2)
    assert delayed.update(torch.tensor([math.nan])).isnan()  # nothing else is known
    assert delayed.update(torch.tensor([448.0])) == 1
    for _ in range(3):
        assert delayed.update(torch.tensor([math.inf])) == 1
    assert delayed.update(torch.tensor([896.0])) == 1
    assert delayed.update(torch.tensor([1.0])) == 2


def test_a_delayed_scale_continues_from_its_state() -> None:
    first, second = (DelayedScale(E5M2, length=3, margin=1) for _ in range(2))
    for step in range(1, 6):
        first.update(torch.tensor([1000.0 / step]))
    state = copy.deepcopy(first.state_dict())
    second.load_state_dict(state)
    state["history"].zero_()  # which was copied
    for step in range(5):
        x = torch.tensor([10.0**step])
        same(second.update(x), first.update(x))
    assert torch.equal(first.history, second.history)


def test_a_margin_stops_at_the_largest_power_of_two() -> None:
    delayed = DelayedScale(E2M1, margin=127)
    assert delayed.update(torch.tensor([1e30])) == 2.0**127


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length of the history must be a whole number of at least 1, not 0"),
        ({"length": 2.0}, "not 2.0"),
        ({"length": True}, "not True"),
        ({"margin": -1}, "margin must be a whole number from 0 to 127, not -1"),
        ({"margin": 128}, "not 128"),
    ],
)
def test_a_delayed_scale_refuses_what_makes_no_history(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DelayedScale(E4M3, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, r"Missing key\(s\) in state_dict: \"history\""),
        ({"history": torch.zeros(3), "more": torch.zeros(1)}, 'Unexpected key.* "more"'),
        ({"history": torch.zeros(2)}, r"size mismatch for history: .*\[2\].*\[3\]"),
        ({"history": [0, 0, 0]}, "received <class 'list'>"),
        ({"history": torch.tensor([0, -1.0, 0])}, "history must hold finite numbers that are not negative"),
        ({"history": torch.tensor([0, math.nan, 0])}, "finite"),
    ],
)
def test_a_state_that_is_no_history_is_refused(state: dict[str, torch.Tensor], message: str) -> None:
    delayed = DelayedScale(E4M3, length=3)
    with pytest.raises(RuntimeError, match=message):
        delayed.load_state_dict(state)
    assert torch.equal(delayed.history, torch.zeros(3))


# MX


@elements
@rules
def test_mx_blocks_are_those_of_the_specification(fmt: FloatFormat, rule: str) -> None:
    x = blocks_of_many_magnitudes()
    values, codes = mx_reference(x, fmt.name, rule)
    same(quantize_mx(torch.from_numpy(x), fmt, rule=rule), values)
    found_elements, found_scales = encode_mx(torch.from_numpy(x), fmt, rule=rule)
    same(found_scales, codes)
    same(decode_mx(found_elements, found_scales, fmt), values)
    assert not found_elements[torch.from_numpy(codes == 255).squeeze(-1)].any()


@elements
@rules
@pytest.mark.parametrize("block", [8, 20, 100])
def test_mx_blocks_of_other_sizes_and_short_ones_are_the_same(fmt: FloatFormat, rule: str, block: int) -> None:
    x = blocks_of_many_magnitudes(block=50, count=400)
    values, codes = mx_reference(x, fmt.name, rule, block)
    same(quantize_mx(torch.from_numpy(x), fmt, rule=rule, block=block), values)
    found = encode_mx(torch.from_numpy(x), fmt, rule=rule, block=block)
    same(found[1], codes)
    same(decode_mx(*found, fmt, block=block), values)


def _torchao_agrees(fmt: FloatFormat, rule: str, x: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """bool [blocks]: not one of the places where torchao 0.18 leaves the specification; a test below pins each."""
    largest = np.abs(x).max(-1)
    agrees = ~np.isinf(largest) & ((codes[:, 0] != 0) | (largest == 0))
    if rule == "rceil":
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            quotient = largest / np.float32(fmt.max)
            mantissa = np.frexp(quotient)[0]
            agrees &= ~((mantissa > 0.5) & (mantissa < 0.5 * (1 + 2.0**-15)))
    return agrees


@pytest.mark.parametrize("fmt", MX_ELEMENTS[:-1], ids=lambda fmt: fmt.name)  # it has no MXINT8
@rules
def test_mx_blocks_are_those_of_torchao(torchao: SimpleNamespace, fmt: FloatFormat, rule: str) -> None:
    x = blocks_of_many_magnitudes()
    found_elements, found_scales = encode_mx(torch.from_numpy(x), fmt, rule=rule)
    agrees = torch.from_numpy(_torchao_agrees(fmt, rule, x, found_scales.numpy()))
    assert agrees.float().mean() > 0.75
    x_agreed = torch.from_numpy(x)[agrees].contiguous()
    expected_elements, expected_scales = torchao.to_mx(x_agreed, fmt, rule)
    same(found_scales[agrees], expected_scales)
    whole = (expected_scales != 255).squeeze(-1)  # element codes of a NaN block mean nothing
    same(found_elements[agrees][whole], expected_elements[whole])
    same(quantize_mx(x_agreed, fmt, rule=rule), torchao.dequantize_mx(x_agreed, fmt, rule))


def test_torchao_floor_halves_blocks_at_the_smallest_scale(torchao: SimpleNamespace) -> None:
    """It writes the scale 2**-127 but divides by 2**-126, the smallest normal number."""
    x = torch.full((1, 32), 2.0**-125)
    same(quantize_mx(x, E4M3), x)
    same(torchao.dequantize_mx(x, E4M3, "floor"), x / 2)


def test_torchao_rceil_loses_blocks_at_the_smallest_scale(torchao: SimpleNamespace) -> None:
    """It writes the scale 2**-127 but does not divide at all."""
    x = torch.full((1, 32), 2.0**-125)
    same(quantize_mx(x, E4M3, rule="rceil"), x)
    same(torchao.dequantize_mx(x, E4M3, "rceil"), torch.zeros(1, 32))


def test_torchao_rceil_is_one_too_low_just_above_a_power_of_two(torchao: SimpleNamespace) -> None:
    """It takes ceil(log2(amax / max)) in float32, where the logarithm rounds to a whole number."""
    x = torch.full((1, 32), 448 * 2.0**60).nextafter(torch.tensor(math.inf))
    assert encode_mx(x, E4M3, rule="rceil")[1].item() == 127 + 61
    assert torchao.to_mx(x, E4M3, "rceil")[1].item() == 127 + 60


def test_torchao_saturates_an_infinity_where_here_its_block_is_nan(torchao: SimpleNamespace) -> None:
    """E8M0 has no infinity, and a block scaled by one has no other information left."""
    x = torch.ones(1, 32)
    x[0, 3] = math.inf
    assert quantize_mx(x, E4M3).isnan().all()
    expected = torch.zeros(1, 32)
    expected[0, 3] = math.inf  # 448 * 2**120, which float32 does not hold
    assert torchao.to_mx(x, E4M3, "floor")[1].item() == 127 + 120
    same(torchao.dequantize_mx(x, E4M3, "floor"), expected)


@given(
    st.floats(width=32, min_value=2.0**-149, max_value=float(np.finfo(np.float32).max), allow_subnormal=True),
    st.sampled_from(MX_ELEMENTS),
)
@settings(max_examples=500, deadline=None)
def test_rceil_is_the_smallest_power_of_two_without_saturation(largest: float, fmt: FloatFormat) -> None:
    scale = mx_scale(torch.tensor([0.0, -largest]), fmt, rule="rceil").double().item()
    assert math.frexp(scale)[0] == 0.5
    assert largest / scale <= fmt.max or (scale == 2.0**127 and fmt is MX_ELEMENTS[-1])
    assert scale == 2.0**-127 or largest / (scale / 2) > fmt.max
    floor = mx_scale(torch.tensor([0.0, -largest]), fmt).double().item()
    assert floor in (scale, scale / 2)
    assert floor == 2.0**-127 or 2.0**fmt.max_exponent <= largest / floor < 2.0 ** (fmt.max_exponent + 1)


@elements
def test_every_mx_code_decodes_to_element_times_scale(fmt: FloatFormat) -> None:
    codes, scales = np.arange(2**fmt.bits, dtype=np.uint8), np.arange(256, dtype=np.uint8)
    factors = np.append(2.0 ** np.arange(-127.0, 128.0), np.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = (fmt.values * factors[:, None]).astype(np.float32)
    grid = torch.from_numpy(np.broadcast_to(codes, (256, len(codes))).copy())
    same(decode_mx(grid, torch.from_numpy(scales)[:, None], fmt, block=len(codes)), expected)


def test_the_smallest_scale_is_a_subnormal_and_exact() -> None:
    x = torch.tensor([[3.0, -1.0, 1.5, 0.0]]) * 2.0**-126
    codes, scales = encode_mx(x, E2M1)
    assert scales.item() == 0
    assert mx_scale(x, E2M1).item() == 2.0**-127
    same(decode_mx(codes, scales, E2M1), x)


@elements
@rules
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rounding", ["nearest_even", "toward_zero", "stochastic"])
def test_mx_codes_decode_to_what_quantize_mx_returns(
    fmt: FloatFormat, rule: str, dtype: torch.dtype, rounding: str
) -> None:
    x = torch.from_numpy(blocks_of_many_magnitudes(count=300)).to(dtype)[:, :29]
    found = encode_mx(x, fmt, rule=rule, rounding=rounding, seed=3)
    same(
        decode_mx(*found, fmt, dtype=dtype),
        quantize_mx(x, fmt, rule=rule, rounding=rounding, seed=3),
    )
    with_all_bits = quantize_mx(x.float(), fmt, rule=rule, rounding=rounding, seed=3)
    same(quantize_mx(x, fmt, rule=rule, rounding=rounding, seed=3), with_all_bits.to(dtype))


def test_what_rounds_up_beyond_the_dtype_is_infinite() -> None:
    for dtype in DTYPES:
        x = torch.full((1, 32), torch.finfo(dtype).max, dtype=dtype)
        assert quantize_mx(x, E4M3, rule="rceil").isinf().all()
        assert quantize_mx(x, E4M3).isfinite().all()
        assert quantize_nvfp4(x).isfinite().all()


# NVFP4


@pytest.mark.parametrize("tensor_scale", [None, 1.0, 0.0123, 2.0**-126, 2.0**100])
def test_nvfp4_blocks_are_those_of_the_definition(tensor_scale: float | None) -> None:
    whole = blocks_of_many_magnitudes(block=64, count=1500, damaged=tensor_scale is not None)
    pieces = [whole] if tensor_scale is not None else [whole, *np.split(whole, 150)]  # many tensor scales
    for x in pieces:
        values, inner, outer = nvfp4_reference(x, tensor_scale)
        found = encode_nvfp4(torch.from_numpy(x), tensor_scale=tensor_scale)
        same(found[2], outer)
        same(nvfp4_scales(torch.from_numpy(x), tensor_scale)[0], inner)
        same(decode_nvfp4(*found), values)
        same(quantize_nvfp4(torch.from_numpy(x), tensor_scale=tensor_scale), values)


def test_an_nvfp4_tensor_keeps_its_largest_element() -> None:
    for exponent in range(-100, 120, 7):
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(exponent + 100)) * 2.0**exponent
        place = x.abs().argmax()
        kept = quantize_nvfp4(x).flatten()[place] / x.flatten()[place]
        assert abs(kept - 1) < 2.0**-22


@pytest.mark.parametrize("two_levels", [True, False])
def test_nvfp4_blocks_are_those_of_torchao(torchao: SimpleNamespace, two_levels: bool) -> None:
    """Scales to the bit. torchao multiplies by a rounded inverse, which decides differently next to a tie."""
    for exponent in (-90, -20, 0, 3, 100) if two_levels else (0, 3):
        rng = np.random.default_rng(exponent + 100)
        x = rng.standard_normal((500, 256)) * 2.0 ** (exponent - rng.integers(0, 12, (500, 256)))
        x[7], x[9, :16], x[11, 20] = 0, 0, np.nan if not two_levels else 0
        x = torch.from_numpy(x.astype(np.float32))
        outer = amax(x) / 2688 if two_levels else None
        expected_elements, expected_scales = torchao.to_nvfp4(x, outer)
        found_elements, found_scales, _ = encode_nvfp4(x, tensor_scale=outer if two_levels else 1.0)
        same(found_scales, expected_scales)
        scale = expand_blocks(nvfp4_scales(x, outer if two_levels else 1.0)[0], 256, block=16)
        steps = (x.double() / (scale * (1.0 if outer is None else outer)).double()).abs() * 4
        near_tie = ((steps - steps.round()).abs() < 2.0**-18) & ~steps.isnan()
        assert near_tie[x != 0].float().mean() < 1e-3
        clear = (~near_tie | (x == 0)) & ~steps.isnan()
        same(found_elements[clear], expected_elements[clear])
        assert (found_elements != expected_elements)[~steps.isnan()].float().mean() < 1e-4
        agreed = (found_elements == expected_elements) | steps.isnan()
        mine = quantize_nvfp4(x, tensor_scale=outer if two_levels else 1.0)
        same(mine[agreed], torchao.dequantize_nvfp4(x, outer)[agreed])


def test_torchao_s_inverse_decides_a_tie_away_from_even(torchao: SimpleNamespace) -> None:
    """37.5 / 15 is 2.5, exactly a tie, and goes to the even code 4 (2.0); 37.5 * float32(1 / 15) is above it."""
    x = torch.zeros(1, 16)
    x[0, :2] = torch.tensor([90.0, 37.5])
    assert nvfp4_scales(x, 1.0)[0].item() == 15
    assert encode_nvfp4(x, tensor_scale=1.0)[0][0, :2].tolist() == [7, 4]
    assert torchao.to_nvfp4(x, None)[0][0, :2].tolist() == [7, 5]


def test_torchao_has_no_scale_for_a_tensor_of_zeros(torchao: SimpleNamespace) -> None:
    x = torch.zeros(1, 16)
    same(quantize_nvfp4(x), x)
    assert encode_nvfp4(x)[1:] == (torch.tensor([[8]], dtype=torch.uint8), torch.tensor(1.0))
    assert torchao.dequantize_nvfp4(x, amax(x) / 2688).isnan().all()


def test_nvfp4_of_damaged_tensors() -> None:
    x = torch.ones(2, 40)
    for bad in (math.nan, math.inf, -math.inf):
        x[1, 20] = bad
        assert quantize_nvfp4(x).isnan().all()
        block = quantize_nvfp4(x, tensor_scale=0.25).isnan()
        assert block[1, 16:32].all()
        assert block.sum() == 16
        for scale in (None, 0.25):
            codes, scales, outer = encode_nvfp4(x, tensor_scale=scale)
            same(decode_nvfp4(codes, scales, outer), quantize_nvfp4(x, tensor_scale=scale))
            assert not codes[1, 16:32].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rounding", ["nearest_even", "up", "stochastic"])
@pytest.mark.parametrize("columns", [64, 50])
def test_nvfp4_codes_decode_to_what_quantize_nvfp4_returns(dtype: torch.dtype, rounding: str, columns: int) -> None:
    x = torch.randn(30, columns, generator=torch.Generator().manual_seed(9)).to(dtype)
    found = encode_nvfp4(x, rounding=rounding, seed=2)
    expected = quantize_nvfp4(x, rounding=rounding, seed=2)
    same(decode_nvfp4(*found, dtype=dtype), expected)
    same(quantize_nvfp4(x.float(), rounding=rounding, seed=2).to(dtype), expected)
    out = torch.empty_like(x)
    assert quantize_nvfp4(x, rounding=rounding, seed=2, out=out) is out
    same(out, expected)


# shapes, devices and mistakes


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 32)], ids=str)
def test_an_empty_tensor_has_empty_blocks(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape)
    blocks = (*shape[:-1], -(-shape[-1] // 32))
    assert quantize_mx(x, E4M3).shape == quantize_nvfp4(x).shape == shape
    codes, scales = encode_mx(x, E4M3)
    assert (codes.shape, scales.shape) == (shape, blocks)
    assert decode_mx(codes, scales, E4M3).shape == shape
    assert decode_nvfp4(*encode_nvfp4(x)).shape == shape


@pytest.mark.parametrize("shape", [(3, 64), (3, 40), (0, 3)], ids=str)
def test_meta_tensors_give_shapes_and_dtypes(shape: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        x, real = torch.empty(shape, dtype=dtype, device="meta"), torch.zeros(shape, dtype=dtype)

        def results(x: torch.Tensor) -> list[torch.Tensor]:
            found = [amax(x), amax(x, granularity="row"), amax_scale(x, E4M3, granularity="block")]
            found += [amax_scale(x, E4M3, power_of_two=False), mx_scale(x, E4M3), quantize_mx(x, E4M3)]
            found += [*encode_mx(x, E2M1), *encode_nvfp4(x), quantize_nvfp4(x, tensor_scale=0.5)]
            return [*found, decode_mx(*encode_mx(x, E4M3), E4M3), decode_nvfp4(*encode_nvfp4(x))]

        for found, expected in zip(results(x), results(real), strict=True):
            assert found.is_meta
            assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


X = torch.ones(2, 32)
CODES, SCALES = encode_mx(X, E4M3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: amax(X.double()), TypeError, "float32, bfloat16, float16, not float64"),
        (lambda: quantize_mx(X.double(), E4M3), TypeError, "float32, bfloat16, float16, not float64"),
        (lambda: quantize_nvfp4(X.double()), TypeError, "not float64"),
        (lambda: amax_scale(X.int(), E4M3), TypeError, "not int32"),
        (lambda: amax([1.0]), TypeError, "not list"),
        (lambda: amax(X, granularity="column"), ValueError, "one of tensor, row, block, not 'column'"),
        (lambda: amax(X, granularity="block", block=0), ValueError, "whole number of at least 1, not 0"),
        (lambda: amax(X, granularity="block", block=2.0), ValueError, "not 2.0"),
        (lambda: amax(X, granularity="block", block=True), ValueError, "not True"),
        (lambda: amax(torch.tensor(1.0), granularity="row"), ValueError, "without dimensions has no rows"),
        (lambda: quantize_mx(torch.tensor(1.0), E4M3), ValueError, "without dimensions has no blocks"),
        (lambda: quantize_nvfp4(torch.tensor(1.0)), ValueError, "without dimensions has no blocks"),
        (lambda: mx_scale(X, E4M3, rule="ceil"), ValueError, "one of floor, rceil, not 'ceil'"),
        (lambda: quantize_mx(X, get_format("e3m4")), ValueError, "E4M3, E5M2, E3M2, E2M3, E2M1, E0M7B-1, not E3M4"),
        (lambda: encode_mx(X, "e4m3"), TypeError, "must be a FloatFormat .* not 'e4m3'"),
        (lambda: quantize_mx(X, E4M3, block=-1), ValueError, "not -1"),
        (
            lambda: quantize_mx(X, E4M3, rounding="odd"),
            ValueError,
            "rounding to odd is for what is rounded a second time",
        ),
        (lambda: quantize_mx(X, E4M3, rounding="stochastic"), ValueError, "seed"),
        (lambda: quantize_mx(X, E4M3, out=torch.ones(64)), ValueError, r"shape \[2, 32\] of x, not \[64\]"),
        (lambda: quantize_mx(X, E4M3, out=X.half()), TypeError, "out must be float32"),
        (lambda: quantize_mx(X, E4M3, out=[1.0]), TypeError, "out must be a tensor, not list"),
        (lambda: quantize_mx(X, E4M3, draw_version=3), ValueError, "draw_version must be one of 1, 2, not 3"),
        (
            lambda: quantize_nvfp4(X, rounding="stochastic", seed=X),
            TypeError,
            r"one int64 number, not float32 \[2, 32\]",
        ),
        (lambda: tile_amax(X, (32,)), ValueError, r"two sides, \(rows, columns\), not \(32,\)"),
        (lambda: tile_amax(X, 32), ValueError, r"two sides, \(rows, columns\), not 32"),
        (lambda: tile_amax(X, (0, 32)), ValueError, "rows of a tile must be a whole number of at least 1, not 0"),
        (lambda: expand_tiles(SCALES, (2, 64), (1, 32)), ValueError, r"need scales of shape \[2, 2\], not \[2, 1\]"),
        (lambda: quantize_blocks(X, E4M3, torch.ones(2, 32)), ValueError, r"scales of shape \[2, 1\], not \[2, 32\]"),
        (lambda: quantize_blocks(X, E4M3, 1.0), ValueError, "not float"),
        (lambda: expand_blocks(torch.ones(2, 2), 32), ValueError, r"shape \[..., 1\], not \[2, 2\]"),
        (lambda: decode_mx(CODES, SCALES, get_format("fp16")), ValueError, "not FP16"),
        (lambda: decode_mx(CODES.int(), SCALES, E4M3), TypeError, "elements must be a tensor of uint8 codes"),
        (lambda: decode_mx(CODES, SCALES.float(), E4M3), TypeError, "scales must be a tensor of uint8 codes"),
        (lambda: decode_mx(CODES, SCALES, E4M3, block=16), ValueError, r"scales of shape \[2, 2\], not \[2, 1\]"),
        (lambda: decode_mx(CODES, SCALES, E4M3, dtype=torch.float64), TypeError, "not torch.float64"),
        (lambda: decode_mx(CODES, SCALES, E2M1), ValueError, "codes of e2m1 go from 0 to 15"),
        (lambda: quantize_nvfp4(X, tensor_scale=0.0), ValueError, "from 2.*-126 to 7.59.*e.35, not 0"),
        (lambda: quantize_nvfp4(X, tensor_scale=torch.tensor(-1.0)), ValueError, "not -1"),
        (lambda: quantize_nvfp4(X, tensor_scale=math.nan), ValueError, "tensor_scale"),
        (lambda: quantize_nvfp4(X, tensor_scale=1e36), ValueError, "not 1e"),
        (lambda: quantize_nvfp4(X, tensor_scale=torch.ones(2)), ValueError, "one element"),
        (lambda: quantize_nvfp4(X, tensor_scale="1"), TypeError, "not str"),
        (lambda: quantize_nvfp4(X, tensor_scale=torch.tensor(1)), TypeError, "not int64"),
    ],
)
def test_mistakes_are_told_with_what_is_allowed(call, error: type[Exception], message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("name", "expected"), [("e9m6", 2.0**-126), ("e4m3b-200", 2.0**-126), ("e4m3b200", np.finfo(np.float32).max)]
)
def test_an_exact_scale_is_finite_where_the_format_is_far_from_the_tensor(name: str, expected: float) -> None:
    assert amax_scale(torch.tensor([3.0]), get_format(name), power_of_two=False).item() == expected
