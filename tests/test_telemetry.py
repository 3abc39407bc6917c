"""Telemetry: every figure equals a brute-force recomputation in numpy, and looking changes nothing.

The oracle reads the rounded values and the scale of an operand and knows the format as the table of its finite values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from altgrad.config import TelemetryConfig  # noqa: E402
from altgrad.formats import FP32, FloatFormat, get_format  # noqa: E402
from altgrad.models import GPT  # noqa: E402
from altgrad.nn import Operand, Policy, Reading, Scaling, clock_of, observed, quantize_model, quantized_layers  # noqa: E402
from altgrad.optim import CodeOptimizer, ManifoldAdamW  # noqa: E402
from altgrad.telemetry import Look, Row  # noqa: E402
from altgrad.telemetry.counts import (  # noqa: E402
    binade_counts,
    binade_statistics,
    code_counts,
    code_statistics,
    operand_statistics,
    operand_sums,
    update_statistics,
    update_sums,
)
from altgrad.telemetry.geometry import position_statistics, spacing, step_statistics, stiffness_correlation  # noqa: E402

F64 = NDArray[np.float64]
E4M3, E5M2, E2M1 = (get_format(name) for name in ("e4m3", "e5m2", "e2m1"))
FORMATS = [get_format(name) for name in ("e4m3", "e5m2", "e0m7", "e7m0", "e3m4", "e2m1", "bf16")]
ULPS = ("0", "2^-6", "2^-4", "2^-2", "2^0", "2^2", "2^4", "inf")


def small_gpt(seed: int = 0) -> GPT:
    return GPT(96, layers=1, dim=16, heads=2, context=8, seed=seed)


def batch(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, 96, (4, 9), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def numbers(x: torch.Tensor) -> F64:
    return x.detach().double().numpy()


def table(fmt: FloatFormat) -> F64:
    """The nonnegative finite values, ascending."""
    return fmt.finite_values[fmt.finite_values >= 0]


def oracle_operand(reading: Reading, beyond: int) -> dict[str, float]:
    """The statistics of an operand of which `beyond` elements round beyond the largest value."""
    x, q = numbers(reading.real), numbers(reading.rounded)
    features = list(q if reading.operand == "weight" else np.moveaxis(q, -1, 0))
    nonzero = np.count_nonzero(x)
    found = {
        "amax": float(np.abs(x).max()) if x.size else 0.0,
        "scale": 1.0 if reading.scale is None else float(reading.scale.max()),
        "norm_l2": math.sqrt(math.fsum((x * x).ravel())) if np.isfinite(x).all() else float(np.linalg.norm(x)),
        "nonfinite": float(np.count_nonzero(~np.isfinite(x))),
        "overflow": beyond / max(nonzero, 1),
        "underflow": np.count_nonzero((x != 0) & (q == 0)) / max(nonzero, 1),
    }
    if features:
        found["dead"] = sum(not feature.any() for feature in features) / len(features)
    signal, noise = (x * x).sum(), ((q - x) ** 2).sum()
    if signal > 0 and noise > 0 and math.isfinite(signal) and math.isfinite(noise):
        found["sqnr_db"] = 10 * math.log10(signal / noise)
    return found


def oracle_codes(q: F64, fmt: FloatFormat, scale: F64 | float) -> dict[str, float]:
    """Codes in use: every value is looked for in the table of the format's codes."""
    grid = (q / scale).ravel()
    grid = grid[np.isfinite(grid)]
    if not grid.size:
        return {}
    nearest = np.abs(grid[:, None] - fmt.finite_values[None, :]).argmin(1)
    values = fmt.finite_values[nearest]
    np.testing.assert_allclose(values, grid, rtol=1e-6)
    distinct, numbers_of = np.unique(np.copysign(values, grid).view(np.int64), return_counts=True)  # -0 is not +0
    counts = np.zeros(1 << fmt.bits)
    for value, number in zip(distinct.view(np.float64), numbers_of, strict=True):
        counts[fmt.encode(value)] += number
    p = counts[counts > 0] / counts.sum()
    found = {
        "codes_used": len(np.unique(values)) / len(fmt.finite_values),
        "code_entropy": float(-(p * np.log2(p)).sum()),
    }
    if fmt.bits <= 8:
        found |= {f"code_{code:02x}": float(count) for code, count in enumerate(counts) if count}
    return found


def oracle_spacing(w: F64, fmt: FloatFormat, scale: F64 | float) -> F64:
    """The distance of the grid's two values around |w|; at a value, to the next one above it, were there one."""
    values, grid = table(fmt), np.abs(w / scale)
    index = np.clip(np.searchsorted(values, grid, side="right") - 1, 0, len(values) - 2)
    return np.where(grid >= fmt.max, fmt.max_ulp, values[index + 1] - values[index]) * scale


def oracle_binades(x: F64) -> dict[str, float]:
    plain = np.abs(x[np.isfinite(x)])
    exponents, numbers = np.unique(np.frexp(plain[plain >= 2.0**-126])[1] - 1, return_counts=True)
    found = {f"binade_{e}": float(n) for e, n in zip(exponents, numbers, strict=True)}
    return found | {"binade_zero": float((plain < 2.0**-126).sum())}


def oracle_step(proposed: F64, spacings: F64) -> dict[str, float]:
    u = np.abs(proposed) / spacings
    edges = [0.0, *(2.0**e for e in (-6, -4, -2, 0, 2, 4)), math.inf]
    found = {"ulps_0": np.mean(proposed == 0), "ulps_rms": math.sqrt((u * u).mean())}
    for (low, high), name in zip(pairwise(edges), ULPS[1:], strict=True):
        found[f"ulps_{name}"] = np.mean((u < high) & (u >= low) & (proposed != 0))
    return found


def same(found: dict[str, float], expected: dict[str, float], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name.startswith(
            ("overflow", "underflow", "nonfinite", "dead", "code_", "updates", "flips", "ulps_2", "zero")
        ):
            assert found[name] == pytest.approx(value, abs=1e-12), name
        elif name.endswith("_db"):
            assert found[name] == pytest.approx(value, abs=1e-4), name
        else:
            assert found[name] == pytest.approx(value, rel=tolerance, abs=1e-12, nan_ok=True), name


def by_place(rows: list[Row]) -> dict[tuple[str, str], dict[str, float]]:
    places: dict[tuple[str, str], dict[str, float]] = {}
    for _, layer, _, operand, statistic, value in rows:
        assert statistic not in places.setdefault((layer, operand), {}), "once"
        places[layer, operand][statistic] = value
    return places


def tensors(fmt: FloatFormat) -> Iterator[torch.Tensor]:
    """Random tensors of all sizes, with and without outliers."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(37, 24, generator=generator)
    yield normal
    yield normal * torch.logspace(-12, 4, 24)
    dead = normal.clone()
    dead[:, 3] = 0
    dead[5] = 0
    yield dead
    yield torch.full((4, 4), 0.3)
    yield torch.zeros(3, 5)
    yield torch.randn(1, 9, generator=generator)
    yield torch.randn(300, 1, generator=generator) * min(fmt.max, 1e37)
    yield torch.randn(130, 600, generator=generator)
    yield normal * 1e-30
    yield normal * 1e30


SCALINGS = {
    "amax": Scaling(),
    "quotient": Scaling(power_of_two=False),
    "none": Scaling("none"),
    "static": Scaling("static", value=0.03),
    "row": Scaling(granularity="row"),
    "block": Scaling(granularity="block", block=5),
}


def readings(x: torch.Tensor, spec: Operand) -> list[Reading]:
    """`x` as a weight and as an activation."""
    layer = torch.nn.Linear(x.shape[1], x.shape[0], bias=False)
    layer.weight = torch.nn.Parameter(x.clone())
    model = quantize_model(torch.nn.ModuleDict({"head": layer}), Policy(spec, spec))
    seen: list[Reading] = []
    with observed(model, seen.append):
        model["head"](x)
    return seen


def beyond(reading: Reading) -> int:
    """Elements whose nearest value, on the grid gone on with its last spacing, is beyond the largest."""
    fmt = reading.format
    if fmt is FP32:
        return 0
    scale = torch.ones(()) if reading.element_scale is None else reading.element_scale
    quotients = np.abs(numbers(reading.real.detach() / scale))
    half = fmt.max + fmt.max_ulp / 2  # exact in float64; a tie goes to the even code
    odd = fmt.encode(fmt.max) % 2 == 1
    return int(np.count_nonzero((quotients > half) | ((quotients == half) & odd)))


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_operand_statistics_equal_a_recomputation_in_numpy(fmt: FloatFormat, scaling: str) -> None:
    for x in tensors(fmt):
        for reading in readings(x, Operand(fmt, scaling=SCALINGS[scaling])):
            found = operand_statistics(operand_sums(reading).numbers().tolist())
            same(found, oracle_operand(reading, beyond(reading)))
            scale = 1.0 if reading.element_scale is None else numbers(reading.element_scale)
            if fmt.bits <= 8 and x.numel() < 1000:
                codes = code_statistics(code_counts(reading.rounded, fmt, reading.element_scale), fmt, histogram=True)
                same(codes, oracle_codes(numbers(reading.rounded), fmt, scale), 1e-9)
                found = position_statistics(
                    reading, spacing(reading), code_counts(reading.rounded, fmt, reading.element_scale)
                )
                grid = np.abs(numbers(reading.rounded) / scale)
                place = np.abs(grid[..., None] - table(fmt)).argmin(-1) / (len(table(fmt)) - 1)
                ulps = oracle_spacing(numbers(x), fmt, scale)
                distance = np.abs(numbers(x) - numbers(reading.rounded)) / ulps
                same(found, {"code_position": place.mean(), "grid_distance": distance.mean()}, 1e-5)


def test_operand_statistics_of_a_tensor_worked_by_hand() -> None:
    x = torch.tensor([[0.0, 500.0, 1.0, 2.0**-12, -600.0]])
    found = next(readings(x, Operand(E4M3, scaling=Scaling("none"))).__iter__())
    assert found.operand == "activation"
    statistics = operand_statistics(operand_sums(found).numbers().tolist())
    noise = 52**2 + 152**2 + 2.0**-24
    expected = {"amax": 600, "scale": 1, "overflow": 2 / 4, "underflow": 1 / 4, "nonfinite": 0, "dead": 2 / 5}
    expected |= {"norm_l2": math.sqrt(500**2 + 1 + 600**2 + 2.0**-24)}
    expected |= {"sqnr_db": 10 * math.log10((500**2 + 1 + 600**2) / noise)}
    same(statistics, expected)


REAL = {
    "e4m3-amax": Operand(E4M3),
    "e5m2-static": Operand(E5M2, scaling=Scaling("static", value=2.0**-20)),
    "e0m7-none": Operand(get_format("e0m7"), scaling=Scaling("none")),
    "e7m0-row": Operand(get_format("e7m0"), scaling=Scaling(granularity="row")),
    "e3m4-block": Operand(get_format("e3m4"), scaling=Scaling(granularity="block", block=5)),
    "e2m1-mx": Operand(E2M1, scaling=Scaling("mx")),
    "e4m3-mx_rceil": Operand(E4M3, scaling=Scaling("mx_rceil")),
    "e2m1-nvfp4": Operand(E2M1, scaling=Scaling("nvfp4")),
    "e4m3-delayed": Operand(E4M3, scaling=Scaling("delayed")),
}


@pytest.mark.parametrize("name", REAL)
def test_a_look_at_real_layers_equals_a_recomputation_from_their_operands(name: str) -> None:
    spec = REAL[name]
    model = quantize_model(small_gpt(), Policy(spec, spec, spec))
    seen: dict[tuple[str, str], Reading] = {}
    with observed(model, lambda r: seen.setdefault((r.layer, r.operand), r._replace(real=r.real.detach().clone()))):
        model.loss(*batch()).backward()
    model.zero_grad()
    for layer in quantized_layers(model).values():
        for delayed in layer.delayed.values():
            delayed.history.zero_()
    look = Look(model, 3, TelemetryConfig(histograms=("weight", "activation", "grad_output")), number=5)
    with look.operands():
        model.loss(*batch()).backward()
    look.gradients()
    found = by_place(look.rows)
    for place, reading in seen.items():
        fmt, x, q = spec.format, numbers(reading.real), numbers(reading.rounded)
        scale = 1.0 if reading.element_scale is None else numbers(reading.element_scale)
        expected = oracle_operand(reading, beyond(reading)) | oracle_codes(q, fmt, scale) | oracle_binades(x)
        if place[1] == "weight":
            spacings = oracle_spacing(x, fmt, scale)
            index = np.abs(np.abs(q / scale)[..., None] - table(fmt)).argmin(-1)
            expected["code_position"] = index.mean() / (len(table(fmt)) - 1)
            expected["grid_distance"] = (np.abs(q - x) / spacings).mean()
            sigma = np.linalg.svd(q, compute_uv=False)
            p = sigma[sigma > 1e-12] / sigma.sum()
            expected |= {"spectral_norm": sigma[0], "stable_rank": (sigma**2).sum() / sigma[0] ** 2}
            expected["effective_rank"] = math.exp(-(p * np.log(p)).sum())
            g = numbers(quantized_layers(model)[place[0]].weight.grad)
            chosen = (g != 0) & (spacings > 0)
            a, b = np.log2(spacings[chosen]), np.log2(np.abs(g[chosen]))
            correlation = found[place[0], "gradient"].get("stiffness_correlation")
            if np.ptp(a) == 0:
                assert correlation is None, "the grid is the same everywhere"
            else:
                assert correlation == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-5)
        else:
            assert sum(value for key, value in expected.items() if len(key) == 7 and key.startswith("code_")) == x.size
        same(found[place], expected, 1e-5)


def manifold(params: list[torch.nn.Parameter], fmt: FloatFormat, rounding: str) -> torch.optim.Optimizer:
    return ManifoldAdamW(params, fmt, lr=0.4, storage="grid", rounding=rounding)


def code(params: list[torch.nn.Parameter], fmt: FloatFormat, rounding: str) -> torch.optim.Optimizer:
    return CodeOptimizer(params, fmt, lr=0.4, weight_decay=0.1)


STORAGES: dict[str, tuple[str, Callable[..., torch.optim.Optimizer] | None]] = {
    "master-nearest": ("nearest_even", None),
    "master-stochastic": ("stochastic", None),
    "grid-nearest": ("nearest_even", manifold),
    "grid-stochastic": ("stochastic", manifold),
    "grid-feedback": ("error_feedback", manifold),
    "code": ("stochastic", code),
}


@contextmanager
def written_down(optimizer: torch.optim.Optimizer, into: dict[int, torch.Tensor]) -> Iterator[None]:
    """Note what the optimizer proposes, beside whoever else listens."""
    listener = optimizer.observer

    def note(parameter: torch.Tensor, change: torch.Tensor) -> None:
        into[id(parameter)] = change.clone()
        listener(parameter, change)

    optimizer.observer = note
    yield


@pytest.mark.parametrize("fmt", [E4M3, get_format("e0m7"), get_format("e7m0")], ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("storage", STORAGES)
def test_flips_updates_and_ulps_are_those_of_the_optimizers_real_step(storage: str, fmt: FloatFormat) -> None:
    rounding, make = STORAGES[storage]
    spec = Operand(fmt, rounding if make is None else "nearest_even")
    model = quantize_model(small_gpt(), Policy(weight=spec), seed=3)
    layers = quantized_layers(model)
    if make is None:
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    else:
        optimizer = make([layer.weight for layer in layers.values()], fmt, rounding)
        for layer in layers.values():
            layer.grid_scale = optimizer.scale_of(layer.weight)
    for step in range(1, 4):
        clock_of(model).step = step
        model.zero_grad()
        look = Look(model, step)
        model.loss(*batch(step)).backward()
        before = {name: numbers(layer.weight).copy() for name, layer in layers.items()}
        scales = {name: layer.weight_reading().scale.clone() for name, layer in layers.items()}
        read = {name: numbers(layer.weight_as_read()).copy() for name, layer in layers.items()}
        proposals: dict[int, torch.Tensor] = {}
        with look.update(optimizer):
            if make is not None:
                with written_down(optimizer, proposals):
                    optimizer.step()
            else:
                optimizer.step()
        found = by_place(look.rows)
        for name, layer in layers.items():
            after = numbers(layer.weight)
            change = after - before[name]
            proposed = numbers(proposals[id(layer.weight)]) if make is not None else change
            moved = proposed != 0
            flips = np.count_nonzero(moved & (numbers(layer.weight_as_read()) != read[name]))
            expected = {
                "norm_l2": math.sqrt((change**2).sum()),
                "updates": np.count_nonzero(moved),
                "flips": flips,
                "stall_ratio": 1 - flips / np.count_nonzero(moved),
                "zero_update": np.mean(~moved),
            } | oracle_step(proposed, oracle_spacing(before[name], fmt, numbers(scales[name])))
            same(found[name, "update"], expected, 1e-5)
            assert 0 <= found[name, "update"]["stall_ratio"] <= 1
            assert sum(found[name, "update"][f"ulps_{end}"] for end in ULPS) == pytest.approx(1)
    assert not make or optimizer.observer is None


def test_what_is_proposed_on_the_grid_is_the_step_before_rounding() -> None:
    start = torch.tensor([1.0, 0.5, -0.25, 1.75])
    gradient = torch.tensor([1.0, -1.0, 1.0, 0.0])
    proposals = []
    for rounding in ("nearest_even", "stochastic", "error_feedback"):
        weight = torch.nn.Parameter(start.clone())
        optimizer = ManifoldAdamW([weight], E4M3, lr=0.4, weight_decay=0.0, storage="grid", rounding=rounding)
        optimizer.observer = lambda parameter, change: proposals.append(change)
        weight.grad = gradient
        optimizer.step()
    ulps = torch.tensor([0.125, 0.0625, 0.03125, 0.125])
    for change in proposals:  # Adam's first step is the gradient's sign
        torch.testing.assert_close(change, -0.4 * ulps * gradient, rtol=1e-5, atol=0)
    weight = torch.nn.Parameter(start.clone())
    coder = CodeOptimizer([weight], E4M3, lr=0.4)
    coder.observer = lambda parameter, change: proposals.append(change)
    weight.grad = gradient
    coder.step()
    torch.testing.assert_close(proposals[-1], -0.4 * ulps * gradient, rtol=1e-5, atol=0)


def test_a_stochastic_weight_that_does_not_move_does_not_flip() -> None:
    model = quantize_model(small_gpt(), Policy(weight=Operand(E4M3, "stochastic")))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    look = Look(model, 1)
    with look.operands():
        model.loss(*batch()).backward()
    with look.update(optimizer):
        optimizer.step()
    for (_, operand), found in by_place(look.rows).items():
        if operand == "update":
            assert found["flips"] == found["updates"] == 0
            assert found["zero_update"] == found["ulps_0"] == 1
            assert "stall_ratio" not in found


OPERAND = {"amax", "scale", "norm_l2", "nonfinite", "overflow", "underflow", "sqnr_db", "dead"}
CODES = {"codes_used", "code_entropy"}
HISTOGRAMS = {"code_<c>", "binade_<e>"}
RANK = {"stable_rank", "effective_rank", "spectral_norm"}
GRADIENT = {"norm_l2", "norm_inf", "zero", "nonfinite", "stiffness_correlation"}
UPDATE = {"norm_l2", "updates", "flips", "stall_ratio", "zero_update", "ulps_rms", *(f"ulps_{end}" for end in ULPS)}
SCHEMA = {
    "weight": OPERAND | CODES | RANK | {"code_position", "grid_distance", "code_<c>", "binade_<e>"},
    "activation": OPERAND | CODES,
    "grad_output": OPERAND | CODES,
    "gradient": GRADIENT | {"shadow_cosine", "shadow_snr_db"},
    "update": UPDATE,
}


def one_look(model: GPT, number: int = 5, **given: object) -> list[Row]:
    look = Look(model, 9, TelemetryConfig(**given), number=number)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with look.operands():
        loss = model.loss(*batch())
        loss.backward()
    look.gradients([lambda: model.loss(*batch())])
    with look.update(optimizer):
        optimizer.step()
    return look.rows


def names(rows: list[Row]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for _, _, _, operand, statistic, value in rows:
        assert type(value) is float
        histogram = statistic.startswith("code_") and statistic not in ("code_entropy", "code_position")
        binade = statistic.startswith("binade_")
        found.setdefault(operand, set()).add("code_<c>" if histogram else "binade_<e>" if binade else statistic)
    return found


def test_a_look_has_every_statistic_of_the_schema_for_every_layer() -> None:
    model = quantize_model(small_gpt(), Policy(E4M3, E4M3, E4M3))
    rows = one_look(model, shadow=True)
    assert names(rows) == SCHEMA
    places = by_place(rows)
    for name, layer in quantized_layers(model).items():
        operands = ("weight",) if name == "embedding" else ("weight", "activation", "grad_output")
        for operand in (*operands, "gradient", "update"):
            assert set(names([row for row in rows if row[1] == name and row[3] == operand])[operand]) == SCHEMA[operand]
        assert (
            sum(value for key, value in places[name, "weight"].items() if key.startswith("code_") and len(key) == 7)
            == layer.weight.numel()
        )
    assert {row[0] for row in rows} == {9}
    assert {row[2] for row in rows} == {"embedding", "attention", "mlp", "head"}


def test_binades_count_magnitudes_as_numpy_does() -> None:
    x = torch.randn(3, 1000) * torch.logspace(-44, 38, 1000)
    x[0, :6] = torch.tensor([0.0, -0.0, math.nan, math.inf, 2.0**-126, 1.0])
    assert binade_statistics(binade_counts(x)) == oracle_binades(x.double().numpy())
    assert binade_statistics(binade_counts(x.bfloat16().t()[:, :1])) == oracle_binades(
        x[:1].bfloat16().double().numpy()
    )
    assert binade_statistics(binade_counts(x[:0])) == {"binade_zero": 0.0}


def test_unrounded_operands_have_binades_where_the_config_names_them() -> None:
    operands = ("weight", "activation", "grad_output")
    rows = one_look(quantize_model(small_gpt(), Policy()), histograms=operands)
    binades = [row for row in rows if row[4].startswith("binade_")]
    assert {row[3] for row in binades} == set(operands)
    weights = [row[5] for row in binades if row[1] == "head" and row[3] == "weight"]
    assert sum(weights) == small_gpt().head.weight.numel()


def test_each_section_of_the_config_decides_its_own_rows() -> None:
    def found(**given: object) -> dict[str, set[str]]:
        return names(one_look(quantize_model(small_gpt(), Policy(E4M3, E4M3, E4M3)), **given))

    nothing = {
        "operands": False,
        "updates": False,
        "gradients": False,
        "geometry": False,
        "rank_every": 0,
        "codes_every": 0,
    }
    ulps = {name for name in UPDATE if name.startswith("ulps")}
    assert found(**nothing) == {}
    assert found(**nothing | {"operands": True}) == dict.fromkeys(("weight", "activation", "grad_output"), OPERAND)
    assert found(**nothing | {"updates": True}) == {"update": UPDATE - ulps}
    assert found(**nothing | {"gradients": True}) == {"gradient": GRADIENT - {"stiffness_correlation"}}
    assert found(**nothing | {"geometry": True}) == {
        "weight": {"code_position", "grid_distance"},
        "gradient": {"stiffness_correlation"},
        "update": ulps,
    }
    assert found(**nothing | {"rank_every": 5}) == {"weight": RANK}
    assert found(**nothing | {"codes_every": 5}) == {"weight": CODES | HISTOGRAMS}
    assert found(**nothing | {"codes_every": 5, "histograms": ()}) == {"weight": CODES}
    counted = found(**nothing | {"codes_every": 5, "operands": True, "histograms": ("grad_output", "activation")})
    assert counted == {
        "weight": OPERAND | CODES,
        "activation": OPERAND | CODES | HISTOGRAMS,
        "grad_output": OPERAND | CODES | HISTOGRAMS,
    }
    assert found(**nothing | {"shadow": True}) == {"gradient": {"shadow_cosine", "shadow_snr_db"}}


def test_rank_and_codes_are_taken_at_the_first_look_and_then_at_every_so_many() -> None:
    model = quantize_model(small_gpt(), Policy(E4M3, E4M3, E4M3))
    for number in range(7):
        found = names(one_look(model, number, rank_every=2, codes_every=3))["weight"]
        assert (found >= RANK) == (number in (0, 2, 4, 6)), number
        assert (found >= CODES) == (number in (0, 3, 6)), number


def test_layers_that_are_not_quantized_have_norms_and_no_grid() -> None:
    rows = one_look(quantize_model(small_gpt(), Policy()))
    found = names(rows)
    assert found["weight"] == (OPERAND - {"sqnr_db"}) | RANK | {"binade_<e>"}
    assert found["gradient"] == GRADIENT - {"stiffness_correlation"}
    assert found["update"] == {"norm_l2", "zero_update"}
    assert all(row[5] == 0 for row in rows if row[4] in ("overflow", "underflow"))


def test_an_operand_read_twice_keeps_its_first_reading() -> None:
    model = quantize_model(small_gpt(), Policy(E4M3, E4M3, E4M3))
    seen: list[Reading] = []
    with observed(model, lambda r: seen.append(r._replace(real=r.real.detach().clone()))):
        model.loss(*batch(1))
    look = Look(model, 1)
    with look.operands():
        model.loss(*batch(1))
        model.loss(*batch(2)).backward()
    found = by_place(look.rows)
    for reading in seen:
        norm = float(np.linalg.norm(numbers(reading.real)))
        assert found[reading.layer, reading.operand]["norm_l2"] == pytest.approx(norm, rel=1e-6)


def test_a_weight_that_products_read_in_another_shape_has_updates_and_no_place_on_the_grid() -> None:
    class Heads(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = torch.nn.Parameter(torch.randn(8, 12))

        def forward(self, x: Any) -> Any:
            return torch.einsum("ni,ihd->nhd", x, self.up.view(8, 3, 4))

    model = quantize_model(torch.nn.ModuleDict({"mlp": Heads()}), Policy(E4M3))
    look, optimizer = Look(model, 1), torch.optim.SGD(model.parameters(), lr=0.1)
    with look.operands():
        model["mlp"](torch.randn(5, 8)).sum().backward()
    look.gradients()
    with look.update(optimizer):
        optimizer.step()
    found = {(row[3], row[4]) for row in look.rows}
    assert {("weight", "amax"), ("gradient", "norm_l2"), ("update", "norm_l2")} <= found
    assert not found & {("update", "flips"), ("weight", "grid_distance")}


@pytest.mark.parametrize("storage", STORAGES)
def test_losses_and_weights_are_the_same_bits_with_and_without_looks(storage: str) -> None:
    ends = []
    rounding, make = STORAGES[storage]
    for looked in (False, True):
        stochastic = Operand(E4M3, "stochastic", Scaling("delayed"))
        weight = Operand(E4M3, rounding if make is None else "nearest_even")
        model = quantize_model(small_gpt(), Policy(weight, stochastic, stochastic), seed=3)
        layers = quantized_layers(model)
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        if make is not None:
            optimizer = make([layer.weight for layer in layers.values()], E4M3, rounding)
            for layer in layers.values():
                layer.grid_scale = optimizer.scale_of(layer.weight)
        losses = []
        for step in range(1, 5):
            clock_of(model).step = step
            model.zero_grad()
            look = Look(model, step, TelemetryConfig(shadow=True), number=5)
            if looked:
                with look.operands():
                    loss = model.loss(*batch(step))
                    loss.backward()
                look.gradients([partial(model.loss, *batch(step))])
                with look.update(optimizer):
                    optimizer.step()
            else:
                loss = model.loss(*batch(step))
                loss.backward()
                optimizer.step()
            losses.append(loss.item())
        ends.append((losses, [parameter.detach() for parameter in model.parameters()]))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(a, b) for a, b in zip(ends[0][1], ends[1][1], strict=True))


BAD: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nan": lambda w: w.index_fill(1, torch.tensor([1]), torch.nan),
    "infinity": lambda w: w.index_fill(1, torch.tensor([1]), -torch.inf),
    "zero": torch.zeros_like,
    "constant": lambda w: torch.full_like(w, 0.3),
    "one row": lambda w: w[:1].clone(),
    "no rows": lambda w: w[:0].clone(),
    "no columns": lambda w: w[:, :0].clone(),
    "tiny": lambda w: w * 1e-44,
    "huge": lambda w: w * 1e37,
}


@pytest.mark.parametrize("fmt", [E4M3, E2M1, get_format("e7m0"), FP32], ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_bad_weights_have_defined_statistics_and_no_warnings(name: str, fmt: FloatFormat, frozen: bool) -> None:
    weight = BAD[name](torch.randn(6, 5, generator=torch.Generator().manual_seed(0)))
    damaged = float((~weight.isfinite()).sum())
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight = torch.nn.Parameter(weight, requires_grad=not frozen)
    model = quantize_model(torch.nn.ModuleDict({"head": layer}), Policy(fmt, fmt, fmt))
    other = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([layer.weight, other], lr=1.0)
    x = torch.ones(3, weight.shape[1], requires_grad=True)
    look = Look(model, 1, TelemetryConfig(shadow=True), number=5)
    with look.operands():
        (model["head"](x).square().sum() * other).backward()
    look.gradients([lambda: model["head"](x).square().sum()])
    with look.update(optimizer):
        optimizer.step()
    found = by_place(look.rows)
    assert (("head", "gradient") in found) == (not frozen)
    weights, update = found["head", "weight"], found["head", "update"]
    assert weights["nonfinite"] == damaged
    for place, statistics in found.items():
        for key, value in statistics.items():
            fraction = key in ("overflow", "underflow", "dead", "zero", "zero_update", "stall_ratio", "codes_used")
            assert not fraction or 0 <= value <= 1, (place, key)
            assert damaged or place[1] != "weight" or math.isfinite(value), (place, key)
    if frozen:
        assert update["norm_l2"] == 0 or damaged
    if not weight.numel():
        assert "zero_update" not in update
        assert not any(key.startswith("ulps") for key in update)
    if name == "zero":
        assert weights["dead"] == 1
        assert weights["stable_rank"] == 0


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("make", [manifold, code])
def test_bad_weights_on_the_grid_have_defined_statistics_and_no_warnings(name: str, make: Callable) -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight = torch.nn.Parameter(BAD[name](torch.randn(6, 5, generator=torch.Generator().manual_seed(0))))
    model = quantize_model(torch.nn.ModuleDict({"head": layer}), Policy(E4M3, E4M3, E4M3))
    optimizer = make([layer.weight], E4M3, "stochastic")
    layer.grid_scale = optimizer.scale_of(layer.weight)
    x = torch.ones(3, layer.weight.shape[1])
    look = Look(model, 1, TelemetryConfig(shadow=True), number=5)
    with look.operands():
        model["head"](x).square().sum().backward()
    look.gradients([lambda: model["head"](x).square().sum()])
    with look.update(optimizer):
        optimizer.step()
    update = by_place(look.rows)["head", "update"]
    assert 0 <= update["flips"] <= update["updates"] <= layer.weight.numel()
    assert all(0 <= value <= 1 for key, value in update.items() if key.endswith(("ratio", "zero_update")))


def test_a_gradient_with_nan_is_counted_and_does_not_hide_the_correlation_of_the_rest() -> None:
    generator = torch.Generator().manual_seed(0)
    w, g = torch.randn(20, 30, generator=generator), torch.randn(20, 30, generator=generator)
    spec = Operand(E4M3)
    weight = readings(w, spec)[1]
    whole = stiffness_correlation(spacing(weight), g)["stiffness_correlation"]
    s = oracle_spacing(numbers(w), E4M3, numbers(weight.scale))
    assert whole == pytest.approx(np.corrcoef(np.log2(s).ravel(), np.log2(np.abs(numbers(g))).ravel())[0, 1], abs=1e-6)
    g[0] = torch.tensor([torch.nan, torch.inf, 0.0]).repeat(10)
    part = stiffness_correlation(spacing(weight), g)["stiffness_correlation"]
    rest = np.corrcoef(np.log2(s[1:]).ravel(), np.log2(np.abs(numbers(g[1:]))).ravel())[0, 1]
    assert part == pytest.approx(rest, abs=1e-6)
    for bad in (torch.zeros(20, 30), torch.full((20, 30), torch.nan), torch.ones(20, 30)):
        assert stiffness_correlation(spacing(weight), bad) == {}


def test_statistics_of_steps_at_the_edges_of_the_histogram() -> None:
    edges = [0.0, 2.0**-149, 2.0**-6 - 2.0**-30, 2.0**-6, 2.0**-4, 0.25, 1.0, 4.0, 16.0, torch.inf, torch.nan, -0.25]
    found = step_statistics(torch.tensor(edges), torch.ones(len(edges)))
    expected = dict(zip(ULPS, (1, 2, 1, 1, 2, 1, 1, 3), strict=True))
    assert {name: found[f"ulps_{name}"] * len(edges) for name in ULPS} == pytest.approx(expected)
    assert step_statistics(torch.tensor([2.0**-149]), torch.tensor([2.0**20]))["ulps_2^-6"] == 1, "not none"


def test_updates_of_a_weight_without_elements_or_updates() -> None:
    nothing = torch.zeros(0, 3)
    assert update_statistics(update_sums(nothing, nothing, nothing != 0).tolist(), on_grid=True) == {
        "norm_l2": 0,
        "updates": 0,
        "flips": 0,
    }
    still = torch.zeros(2, 3)
    assert update_statistics(update_sums(still, still, None).tolist(), on_grid=False) == {
        "norm_l2": 0,
        "zero_update": 1,
    }
