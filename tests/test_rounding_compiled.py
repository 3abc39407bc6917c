"""The compiled forms of the kernel give the bits of the eager one, which test_rounding holds against others."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from compiler import needs_compiler  # noqa: E402

from altgrad.formats import BF16, E8M0, ROUNDINGS, FloatFormat, get_format  # noqa: E402
from altgrad.rounding import compile_quantize, fake_quantize, quantize, quantize_counted  # noqa: E402
from altgrad.scaling import compile_mx, compile_nvfp4, quantize_mx, quantize_nvfp4  # noqa: E402

E4M3, E2M1 = get_format("e4m3"), get_format("e2m1")
FORMATS = [E4M3, get_format("e7m0"), get_format("p3109_k8p3"), BF16, E8M0]
ROOT = Path(__file__).parent.parent
ALL = bool(os.environ.get("ALTGRAD_EXHAUSTIVE"))
"""Whether every case is compiled, as in `make exhaustive`, and not each of them once."""


pytestmark = [  # torch's own, when the parts of it that compile are imported, and when they trace a Function
    pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


def inputs(fmt: FloatFormat, count: int) -> torch.Tensor:
    """Grid values, midpoints, their neighbours and special numbers, then random bits."""
    values = fmt.finite_values
    values = values[:: max(1, len(values) // 500)]
    centres = np.concatenate([values, (values[:-1] + values[1:]) / 2, [fmt.max * 1.01, fmt.max * 4, -fmt.max * 4]])
    with np.errstate(over="ignore", under="ignore"):
        centres = centres.astype(np.float32)
    up, down = (np.nextafter(centres, np.float32(side)) for side in (np.inf, -np.inf))
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3.4e38, -3.4e38], np.float32)
    known = np.concatenate([special, centres, up, down])
    bits = np.random.default_rng(0).integers(0, 1 << 32, count, dtype=np.uint32).view(np.float32)
    return torch.from_numpy(np.concatenate([known, bits])[:count])


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal dtypes, values and signs of zero, NaN in the same places."""
    equal = (found == expected) & (torch.signbit(found) == torch.signbit(expected))
    return found.dtype == expected.dtype and bool((equal | (found.isnan() & expected.isnan())).all())


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@needs_compiler
@pytest.mark.parametrize("formats", [FORMATS[:1], FORMATS[1:]], ids=["e4m3", "others"])
def test_inside_ones_own_graph_every_rounding_gives_the_bits_of_the_eager_form(formats: list[FloatFormat]) -> None:
    if E4M3 in formats:
        both = [(E4M3, rounding, saturate) for rounding in ROUNDINGS for saturate in (True, False)]
        variants = both if ALL else [*both[::4], *both[3::4]]  # saturating by turns
    else:
        some = (("nearest_even", False), ("up", False), ("stochastic", True))
        variants = [(fmt, rounding, saturate) for fmt in formats for rounding, saturate in some]

    def all_of_them(x: torch.Tensor) -> list[torch.Tensor]:
        return [quantize(x, fmt, rounding=rounding, saturate=saturate, seed=3) for fmt, rounding, saturate in variants]

    x = torch.cat([inputs(fmt, 6000) for fmt in formats])
    found = torch.compile(all_of_them, fullgraph=True)(x)
    for variant, one, expected in zip(variants, found, all_of_them(x), strict=True):
        assert same(one, expected), variant


@needs_compiler
def test_ones_own_function_may_be_called_with_one_format_after_another() -> None:
    def both(x: torch.Tensor, fmt: FloatFormat) -> torch.Tensor:
        return quantize(x, fmt) + fake_quantize(x, fmt, scale=2.0, gradient="mask")

    x, whole = torch.randn(500) * 300, torch.compile(both, fullgraph=True, backend="aot_eager")
    formats = [FloatFormat("mine", 4, 3, 7, "fn"), FloatFormat("mine", 4, 3, 9, "fn"), FloatFormat("mine", 4, 3, 9)]
    for fmt in [E4M3, get_format("e5m2"), BF16, *formats, E4M3]:
        assert same(whole(x, fmt), both(x, fmt)), fmt


@needs_compiler
def test_quantizers_and_their_gradients_are_part_of_ones_own_graph() -> None:
    def network(x: torch.Tensor, weight: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        y = fake_quantize(x * 2, E4M3, gradient="mask") @ fake_quantize(weight, get_format("e5m2"), scale=0.5)
        return quantize(y.detach(), E4M3, scale=rows) + fake_quantize(y, E4M3, rounding="stochastic", seed=1)

    generator = torch.Generator().manual_seed(0)
    whole = torch.compile(network, fullgraph=True)
    # One column of ones in the weight: no sum whose order a compiler might choose.
    results = []
    for function in (network, whole):
        generator.manual_seed(0)
        x = (torch.randn(64, 1, generator=generator) * 300).requires_grad_()
        weight = torch.ones(1, 1).requires_grad_()
        rows = torch.rand(64, 1, generator=generator) + 0.5
        y = function(x, weight, rows)
        (y * torch.arange(64.0)[:, None]).sum().backward()
        results.append((y.detach(), x.grad))
    assert same(results[1][0], results[0][0])
    assert torch.equal(results[1][1], results[0][1])
    assert (results[0][1] == 0).sum() > 5, "the mask has something to do"


@needs_compiler
def test_one_compiled_function_serves_all_sizes_and_strides() -> None:
    run = compile_quantize(E4M3)
    x = inputs(E4M3, 30_000)
    assert same(run(x), quantize(x, E4M3))
    assert same(run(x[:77]), quantize(x[:77], E4M3))
    made = graphs()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for tensor in (x[:2], x[:4097], x.view(300, 100), x.view(10, 30, 100), x.view(300, 100).t(), x[::3], x[5:]):
            found = run(tensor)
            assert found.is_contiguous()
            assert found.shape == tensor.shape
            assert same(found, quantize(tensor, E4M3))
    assert graphs() == made
    assert same(run(x[0]), quantize(x[0], E4M3))
    assert same(run(x[:1]), quantize(x[:1], E4M3))
    assert run(x[:0].view(0, 3)).shape == (0, 3)
    assert run(torch.empty(3, device="meta")).device.type == "meta"
    assert not run(torch.nn.Parameter(x)).requires_grad


@needs_compiler
def test_scales_out_and_other_dtypes_give_the_bits_of_the_eager_form() -> None:
    run = compile_quantize(E4M3, saturate=False)
    x = inputs(E4M3, 24_000).view(60, 400)
    rows = torch.rand(60, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    for scale in (0.37, 3, torch.tensor(0.81), rows):
        assert same(run(x, scale=scale), quantize(x, E4M3, saturate=False, scale=scale))
    made = graphs()
    assert same(run(x, scale=0.11), quantize(x, E4M3, saturate=False, scale=0.11))
    assert same(run(x[:9], scale=rows[:9]), quantize(x[:9], E4M3, saturate=False, scale=rows[:9]))
    assert graphs() == made, "another number or size is no other graph"
    expected = quantize(x, E4M3, saturate=False)
    out = torch.empty_like(x)
    assert run(x, out=out) is out
    assert same(out, expected)
    strided = torch.empty(400, 60).t()
    assert run(x, out=strided) is strided
    assert same(strided, expected)
    in_place = x.clone()
    assert run(in_place, out=in_place) is in_place
    assert same(in_place, expected)
    for dtype in (torch.bfloat16, torch.float64):
        assert same(run(x.to(dtype)), quantize(x.to(dtype), E4M3, saturate=False))


@needs_compiler
@pytest.mark.parametrize(("counted", "version"), [(False, 1), (True, 1), (False, 2)])
def test_stochastic_draws_are_those_of_the_eager_form(counted: bool, version: int) -> None:
    run = compile_quantize(E4M3, rounding="stochastic", counted=counted, draw_version=version)
    options = {"rounding": "stochastic", "draw_version": version}
    x = inputs(E4M3, 21_000)
    rows = torch.rand(100, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    for tensor, scale, seed in (
        (x, None, 7),
        (x[:8192], None, 2**64 - 1),
        (x[:100], None, 0),
        (x.view(100, 210), rows, 8) if counted else (x.view(100, 210), torch.tensor(0.37), 7),
    ):
        found = run(tensor, scale=scale, seed=seed)
        if counted:
            expected = quantize_counted(tensor, E4M3, scale=scale, seed=seed, **options)
            assert same(found.values, expected.values)
            assert torch.equal(found.ulp, expected.ulp)
            assert found[2:] == expected[2:]
        else:
            assert same(found, quantize(tensor, E4M3, scale=scale, seed=seed, **options))
    made = graphs()
    run(x[:16_384], seed=99)
    assert graphs() == made, "another seed is no other graph"


@needs_compiler
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_graph_of_ones_own_serves_all_seeds_that_are_tensors(backend: str) -> None:
    def both(x: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return torch.stack([quantize(x, E4M3, rounding="stochastic", seed=seed, draw_version=v) for v in (1, 2)])

    x, run = inputs(E4M3, 3001), torch.compile(both, fullgraph=True, backend=backend)
    seeds = [torch.tensor(seed, dtype=torch.uint64).view(torch.int64) for seed in (0, 5, 2**63, 2**64 - 1)]
    assert same(run(x, seeds[0]), both(x, seeds[0]))
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert all(same(run(x, seed), both(x, seed)) for seed in seeds[1:])


def damaged(rows: int, columns: int) -> torch.Tensor:
    """Rows of very different sizes; some hold a NaN, an infinity, or nothing but zeros."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, columns, generator=generator) * torch.logspace(-42, 37, rows)[:, None]
    x[1, 3], x[2, 40], x[3, ::2], x[4] = math.nan, -math.inf, -0.0, 0.0
    return x


@needs_compiler
def test_compiled_block_formats_have_the_bits_of_the_eager_ones() -> None:
    x = damaged(40, 96)
    how = {"rounding": "stochastic", "draw_version": 2}
    cases = [
        (compile_mx(E4M3), lambda x, **k: quantize_mx(x, E4M3, **k), {}),
        (compile_mx(E2M1, rule="rceil"), lambda x, **k: quantize_mx(x, E2M1, rule="rceil", **k), {}),
        (compile_nvfp4(), quantize_nvfp4, {}),
        (compile_nvfp4(), quantize_nvfp4, {"tensor_scale": 0.3}),
        (compile_nvfp4(**how), lambda x, **k: quantize_nvfp4(x, **how, **k), {"seed": 4}),
    ]
    tensors = (x[5:], x, x[:3].bfloat16(), x[:, ::3], x[:, :33], x[:0], x.view(4, 10, 96))
    for number, (run, eager, given) in enumerate(cases):
        for tensor in tensors if ALL or number == 0 else tensors[:2]:  # a dtype or shape is graphs to compile
            assert same(run(tensor, **given), eager(tensor, **given))
        out = torch.empty_like(x)
        assert run(x, out=out, **given) is out
        assert same(out, eager(x, **given))
        in_place, strided = x.clone(), torch.empty(96, 40).t()
        assert same(run(in_place, out=in_place, **given), out)
        assert same(run(x, out=strided, **given), out)
        assert run(torch.empty(2, 32, device="meta"), **given).is_meta
        made = graphs()
        assert same(run(x[7:], **given), eager(x[7:], **given))
        assert graphs() == made, "another size is no other graph"


@needs_compiler
@pytest.mark.parametrize("fmt", [get_format("e7m0"), BF16], ids=lambda fmt: fmt.name)
def test_counts_and_ulp_fields_are_those_of_the_eager_form(fmt: FloatFormat) -> None:
    run = compile_quantize(fmt, counted=True)
    x = inputs(fmt, 12_000).view(40, 300)
    previous = torch.round(x)
    rows = torch.rand(40, 1, generator=torch.Generator().manual_seed(0)) + 0.5

    for scale in (None, rows):
        found = run(x, previous=previous, scale=scale)
        expected = quantize_counted(x, fmt, previous=previous, scale=scale)
        assert same(found.values, expected.values)
        assert torch.equal(found.ulp, expected.ulp)
        assert found[2:] == expected[2:]
        assert all(count.dtype == torch.int64 and count.shape == () for count in found[2:])
    out, field = torch.empty_like(x), torch.empty_like(x)
    expected = quantize_counted(x, fmt, previous=previous)
    found = run(x, previous=previous, out=out, ulp_out=field)
    assert found.values is out
    assert found.ulp is field
    assert same(out, expected.values)
    assert torch.equal(field, expected.ulp)
    assert found[2:] == expected[2:]


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_flips_compare_what_is_stored_where_the_dtype_is_narrower_than_the_grid(dtype: torch.dtype) -> None:
    run = compile_quantize(E4M3, counted=True)
    x = inputs(E4M3, 5000).to(dtype)
    previous = quantize(x, E4M3, scale=0.3)
    changed = previous.clone()
    changed[::7] += 1
    for before in (previous, changed, torch.where(previous == 0, -previous, previous)):
        expected = quantize_counted(x, E4M3, scale=0.3, previous=before)
        assert run(x, scale=0.3, previous=before)[2:] == expected[2:]
        assert expected.flips == int((previous != before).sum())


@needs_compiler
def test_an_overlapping_out_gets_what_a_fresh_one_would() -> None:
    memory = inputs(E4M3, 5000)
    expected = quantize(memory[:-1], E4M3)
    assert same(compile_quantize(E4M3)(memory[:-1], out=memory[1:]), expected)


@needs_compiler
def test_out_may_be_x_or_previous_when_counted() -> None:
    run = compile_quantize(E4M3, counted=True)
    fresh = inputs(E4M3, 5000)
    previous = torch.round(fresh)
    expected = quantize_counted(fresh, E4M3, previous=previous)
    for target in ("x", "previous"):
        x, before = fresh.clone(), previous.clone()
        out = x if target == "x" else before
        found = run(x, previous=before, out=out)
        assert found.values is out
        assert same(out, expected.values), target
        assert found[2:] == expected[2:], target
    x = fresh.clone()
    found = run(x, previous=x, out=x)
    assert same(x, expected.values)
    assert found.flips == int((expected.values != fresh).sum())
    assert run(x).flips is None


def test_bad_arguments_are_refused_before_anything_is_compiled() -> None:
    made = graphs()
    with pytest.raises(ValueError, match="nearest_even, nearest_away"):
        compile_quantize(E4M3, rounding="even")
    run = compile_quantize(E4M3)
    with pytest.raises(TypeError, match="counted=True"):
        run(torch.ones(3), previous=torch.ones(3))
    with pytest.raises(TypeError, match="float32"):
        run(torch.ones(3, dtype=torch.int32))
    for scale in (0.0, math.nan, torch.tensor(-1.0)):
        with pytest.raises(ValueError, match="positive and finite"):
            run(torch.ones(3), scale=scale)
    with pytest.raises(ValueError, match="needs a seed"):
        compile_quantize(E4M3, rounding="stochastic")(torch.ones(3))
    with pytest.raises(ValueError, match="draw_version must be one of 1, 2, not 3"):
        compile_quantize(E4M3, draw_version=3)
    with pytest.raises(ValueError, match="MX has elements of"):
        compile_mx(get_format("bf16"))
    with pytest.raises(ValueError, match="the block must be a whole number of at least 1, not 0"):
        compile_mx(E4M3, block=0)
    with pytest.raises(ValueError, match=r"out must have the shape \[2, 32\] of x, not \[64\]"):
        compile_nvfp4()(torch.ones(2, 32), out=torch.empty(64))
    with pytest.raises(ValueError, match="without dimensions has no blocks"):
        compile_nvfp4()(torch.ones(()))
    assert graphs() == made


def test_without_a_compiler_one_line_says_so_and_the_eager_form_does_the_work(tmp_path: Path) -> None:
    program = """
import torch
from altgrad.formats import get_format
from altgrad.rounding import compile_quantize, quantize
x, fmt = torch.linspace(-500, 500, 999), get_format("e4m3")
run = compile_quantize(fmt)
assert all(torch.equal(run(x), quantize(x, fmt)) for _ in range(2))
y = x.clone()
assert run(y, out=y) is y and torch.equal(y, quantize(x, fmt))
print("done")
"""
    environment = os.environ | {
        "CXX": str(tmp_path / "no-such-compiler"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "no compiled quantizer here" in lines[0]
    assert "the eager form does the work" in lines[0]
