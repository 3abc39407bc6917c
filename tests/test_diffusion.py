"""Clamped error diffusion: what it does to a row is what its scalar description says, and within its bounds."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from compiler import needs_compiler  # noqa: E402
from test_nn import batch, small_gpt  # noqa: E402

from altgrad.analysis.loader import scope_label  # noqa: E402
from altgrad.config import ExperimentConfig, UsageError, parse_config  # noqa: E402
from altgrad.diffusion import _by_falling_magnitude, _carried, _carried_on_cpu, diffuse  # noqa: E402
from altgrad.formats import FP32, FloatFormat, get_format  # noqa: E402
from altgrad.nn import Operand, Policy, Reading, Scaling, observed, quantize_model, register_rounding  # noqa: E402
from altgrad.rounding import quantize  # noqa: E402
from altgrad.scaling import amax_scale  # noqa: E402
from altgrad.telemetry import Look  # noqa: E402
from altgrad.training import train  # noqa: E402
from altgrad.training.loop import build_model, policy_of, quantized_layers, shifted  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("e0m7", "e1m6", "e2m5", "e3m4", "e4m3", "e5m2", "e6m1", "e7m0")
RULES: dict[str, tuple[tuple[str, ...], Scaling]] = {  # type: ignore[valid-type]
    "amax": (SPLITS, Scaling()),
    "exact amax": (("e0m7", "e4m3", "e7m0"), Scaling(power_of_two=False)),
    "rows": (("e4m3", "e7m0"), Scaling(granularity="row")),
    "blocks": (("e4m3", "e0m7"), Scaling(granularity="block", block=8, power_of_two=False)),
    "blocks down": (("e4m3",), Scaling(granularity="block", block=8, axis="contraction")),
    "squares": (("e5m2",), Scaling(granularity="block_2d", block=8)),
    "none": (("e4m3", "e5m2"), Scaling("none")),
    "static": (("e4m3",), Scaling("static", value=2.0**-6)),
    "delayed": (("e4m3",), Scaling("delayed")),
    "mx": (("e4m3", "e3m2", "e2m3", "e2m1"), Scaling("mx")),
    "mx up": (("e2m1",), Scaling("mx_rceil", axis="contraction")),
    "nvfp4": (("e2m1",), Scaling("nvfp4")),
    "nvfp4 down": (("e2m1",), Scaling("nvfp4", axis="contraction")),
}
CASES = [(rule, name) for rule, (names, _) in RULES.items() for name in names]


class Described(NamedTuple):
    """A row as the description has it: values, the error that is left, the spacings, and whether the last clamped."""

    values: list[float]
    left: Fraction
    spacings: dict[int, Fraction]
    last: int | None
    clamped: bool


def described(row: list[float], neighbours: list[tuple[float, float]]) -> Described:
    """The rule in whole fractions: by falling magnitude, the neighbour that is nearer to the value and what is owed."""
    values, owed, spacings, last, clamped = list(row), Fraction(0), {}, None, False
    for i in sorted(range(len(row)), key=lambda i: 0.0 if math.isnan(row[i]) else -abs(row[i])):
        low, high = neighbours[i]
        if math.isnan(low) or low == high:
            values[i] = low
            continue
        target = Fraction(row[i]) + owed
        values[i] = high if Fraction(high) - target <= target - Fraction(low) else low
        owed = target - Fraction(values[i])
        spacings[i] = Fraction(high) - Fraction(low)
        last, clamped = i, abs(owed) > spacings[i] / 2
    return Described(values, owed, spacings, last, clamped)


def neighbours_on(grid: np.ndarray, x: float, scale: float) -> tuple[float, float]:
    """The two values of `grid` around x / scale, saturated, as float32 multiples of the scale."""
    if math.isnan(x):
        return math.nan, math.nan
    quotient = float(np.float32(x) / np.float32(scale))
    quotient = min(max(quotient, grid[0]), grid[-1])
    if quotient == 0:
        return x * 0.0, x * 0.0
    low = grid[np.searchsorted(grid, quotient, side="right") - 1]
    high = grid[np.searchsorted(grid, quotient, side="left")]
    sign = math.copysign(0.0, x)
    return tuple(float(np.float32(g) * np.float32(scale)) if g else sign for g in (low, high))  # type: ignore[return-value]


def gradients(*shape: int, seed: int) -> torch.Tensor:
    """Gradients of logits: a softmax minus its target, of few distinct magnitudes in some rows, zeros, signs, twins."""
    generator = torch.Generator().manual_seed(seed)
    rows = (torch.randn(shape, generator=generator) * 2.5).softmax(-1)
    rows[:, 0] -= 1
    rows[1::4] = (rows[1::4] * 2**10).round() / 2**10  # many on the grid, many alike
    rows[2::4] *= torch.randint(0, 2, rows[2::4].shape, generator=generator) * 2 - 1
    rows[3::4] *= torch.randint(-12, 5, rows[3::4].shape, generator=generator).float().exp2()
    rows[0], rows[1, 5:7] = 0.0, -0.0
    return rows / shape[0]


def read(x: torch.Tensor, fmt: FloatFormat, rule: object, rounding: str = "diffused") -> list[Reading]:
    """What the products of a head read of a gradient of logits: a reading for both, or two."""
    head = torch.nn.Linear(4, x.shape[-1], bias=False)
    spec = Operand(fmt, rounding, rule)  # type: ignore[arg-type]
    model = quantize_model(torch.nn.ModuleDict({"head": head}), Policy(grad_output=spec))
    seen: list[Reading] = []
    with observed(model, seen.append):
        head(torch.ones(len(x), 4).requires_grad_()).backward(x)
    readings = [reading for reading in seen if reading.operand == "grad_output"]
    for reading in readings:
        assert torch.equal(head.operand(x, reading.cast), reading.rounded)  # type: ignore[operator]
    return readings


def check(x: torch.Tensor, rounded: torch.Tensor, fmt: FloatFormat, scale: torch.Tensor | None) -> None:
    """Every row is the described one, and the description keeps its bounds."""
    grid = np.array(sorted({float(v) for v in fmt.finite_values}))
    scales = (torch.ones(()) if scale is None else scale).broadcast_to(x.shape)
    for given_row, found, of_row in zip(x.tolist(), rounded.tolist(), scales.tolist(), strict=True):
        around = [neighbours_on(grid, *each) for each in zip(given_row, of_row, strict=True)]
        expected = described(given_row, around)
        assert [*map(repr, found)] == [*map(repr, expected.values)]
        if not expected.spacings:
            continue
        lost = sum(Fraction(given_row[i]) - Fraction(found[i]) for i in expected.spacings)
        assert lost == expected.left
        assert abs(lost) <= max(expected.spacings.values()) / 2
        exact = all(math.frexp(each)[0] == 0.5 for each in of_row)
        for i, spacing in expected.spacings.items():  # a scale that is no power of two rounds the neighbours themselves
            slack = Fraction(0 if exact else abs(given_row[i])) / 2**23
            assert abs(Fraction(given_row[i]) - Fraction(found[i])) < spacing + slack
        if not expected.clamped:
            assert abs(lost) <= expected.spacings[expected.last] / 2  # type: ignore[index]
        if exact and (scale is None or scale.numel() == 1):
            assert expected.spacings[expected.last] == min(expected.spacings.values())  # type: ignore[index]


@pytest.mark.parametrize(("rule", "name"), CASES)
def test_a_row_is_the_described_one_in_every_format_and_scale_rule(rule: str, name: str) -> None:
    fmt, x = get_format(name), gradients(40, 52, seed=3)
    readings = read(x, fmt, RULES[rule][1])
    assert len(readings) == (2 if RULES[rule][1].axis == "contraction" else 1)
    for reading in readings:
        check(x, reading.rounded, fmt, reading.element_scale)


def rounded(x: torch.Tensor, fmt: FloatFormat, scale: float = 1.0) -> torch.Tensor:
    return diffuse(x, *(quantize(x, fmt, scale=scale, rounding=way) for way in ("down", "up")))


small_rows = st.lists(
    st.one_of(st.floats(-8, 8, width=32), st.sampled_from([0.25, -0.25, 0.5, 1.5, -1.5, 2.5, 0.0, -0.0, 6.0])),
    min_size=1,
    max_size=7,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(row=small_rows, name=st.sampled_from(["e2m1", "e0m7", "e3m2", "e7m0", "e5m2"]), power=st.integers(-3, 3))
def test_of_all_choices_it_is_the_one_that_owes_least_element_by_element(
    row: list[float], name: str, power: int
) -> None:
    """Brute force: every choice of neighbours, by what is owed after the largest element, the next, and so on."""
    fmt, scale = get_format(name), 2.0**power
    grid = np.array(sorted({float(v) for v in fmt.finite_values}))
    x = torch.tensor([row])
    around = [neighbours_on(grid, each, scale) for each in row]
    order = sorted(range(len(row)), key=lambda i: -abs(row[i]))

    def owed(choice: tuple[float, ...]) -> list[tuple[Fraction, Fraction]]:
        sums, total = [], Fraction(0)
        for i, value in zip(order, choice, strict=True):
            total += 0 if around[i][0] == around[i][1] else Fraction(row[i]) - Fraction(value)
            sums.append((abs(total), -Fraction(value)))  # a tie goes up
        return sums

    best = min(product(*(sorted({*around[i]}) for i in order)), key=owed)
    found = rounded(x, fmt, scale)[0].tolist()
    assert [found[i] for i in order] == [*best]


@pytest.mark.parametrize("mistake", ["class order", "no clamp", "nothing carried"])
def test_a_planted_mistake_is_seen(mistake: str) -> None:
    fmt, x = get_format("e4m3"), gradients(40, 52, seed=3)
    right = rounded(x, fmt, 2.0**-17)
    lower, upper = (quantize(x, fmt, scale=2.0**-17, rounding=way) for way in ("down", "up"))
    wrong = right.clone()
    for row in range(len(x)):
        order = range(x.shape[1]) if mistake == "class order" else torch.argsort(-x[row].abs(), stable=True).tolist()
        owed = 0.0
        for i in order:
            target = float(x[row, i]) + (0.0 if mistake == "nothing carried" else owed)
            low, high = float(lower[row, i]), float(upper[row, i])
            wrong[row, i] = high if high - target <= target - low else low
            if mistake == "no clamp":
                wrong[row, i] = quantize(torch.tensor(target), fmt, scale=2.0**-17)
            owed = target - float(wrong[row, i])
    check(x, right, fmt, torch.tensor(2.0**-17))
    with pytest.raises(AssertionError):
        check(x, wrong, fmt, torch.tensor(2.0**-17))


def test_nan_infinity_zeros_and_single_classes_are_defined() -> None:
    fmt = get_format("e4m3")
    x = torch.tensor([[math.nan, 1.03, math.inf, -0.0, 0.0, -math.inf, 500.0, -0.0001, 1.03, -600.0]])
    found = rounded(x, fmt)[0].tolist()
    assert math.isnan(found[0])
    assert found[2] == found[6] == 448
    assert found[5] == found[9] == -448
    assert [*map(repr, found[3:5])] == ["-0.0", "0.0"]
    assert sorted([found[1], found[8]]) == [1.0, 1.0]  # .03 and .06 are less than half of the spacing, .125
    assert found[7] == 0.0
    assert math.copysign(1, found[7]) == -1.0
    assert [*map(repr, rounded(torch.tensor([[0.0, -0.0]]), fmt)[0].tolist())] == ["0.0", "-0.0"]
    single = torch.tensor([[1.03], [1.07], [-1.07], [1.0625], [-1.0625], [math.nan]])
    assert rounded(single, fmt).flatten().tolist()[:5] == [1.0, 1.125, -1.125, 1.125, -1.0]
    assert rounded(single, fmt)[5].isnan().all()
    for shape in ((0, 4), (4, 0), (3, 0, 2)):
        assert rounded(torch.zeros(shape), fmt).shape == shape
    assert rounded(torch.tensor(1.07), fmt) == 1.125


def test_twins_are_in_the_order_of_their_places() -> None:
    x = torch.full((1, 9), 0.25)
    assert rounded(x, get_format("e2m1"), 1.0)[0].tolist() == [0.5, 0.0, 0.5, 0.0, 0.5, 0.0, 0.5, 0.0, 0.5]
    signs = torch.tensor([[0.5, -0.5, -0.5, 0.5, math.nan, -math.nan, 2.0, -2.0]])
    for dtype in (torch.float32, torch.float64):
        assert _by_falling_magnitude(signs.to(dtype)).tolist() == [[4, 5, 6, 7, 0, 1, 2, 3]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_rounded_as_what_they_hold(dtype: torch.dtype) -> None:
    fmt, x = get_format("e4m3"), gradients(24, 30, seed=5).to(dtype)
    found = rounded(x, fmt, 2.0**-17)
    assert found.dtype == dtype
    check(x.double(), found.double(), fmt, torch.tensor(2.0**-17))


def test_more_dimensions_are_rows_and_strides_do_not_matter() -> None:
    fmt, x = get_format("e5m2"), gradients(24, 30, seed=6)
    found = rounded(x, fmt, 2.0**-20)
    assert torch.equal(rounded(x.view(4, 6, 30), fmt, 2.0**-20).view(24, 30), found)
    assert torch.equal(rounded(x.t().contiguous().t(), fmt, 2.0**-20), found)


def test_the_sums_of_other_devices_and_any_number_of_threads_are_the_same() -> None:
    fmt, x = get_format("e3m4"), gradients(200, 96, seed=7)
    found, threads = rounded(x, fmt, 2.0**-12), torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert torch.equal(rounded(x, fmt, 2.0**-12), found)
    finally:
        torch.set_num_threads(threads)
    offsets, halves = torch.randn(96, 200, dtype=torch.float64), torch.rand(96, 200, dtype=torch.float64)
    halves[::5] = offsets[::5] = 0.0
    assert torch.equal(_carried(offsets, halves), _carried_on_cpu(offsets, halves))
    ties = torch.tensor([[0.5], [0.5], [-1.0], [0.0]], dtype=torch.float64)
    assert torch.equal(_carried(ties, ties.abs()), _carried_on_cpu(ties, ties.abs()))


@needs_compiler
@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_code_has_the_same_bits() -> None:
    plain = {"weight": "fp32", "activation": "fp32"}  # their rounding, compiled, is in test_nn
    config = with_roundings("e4m3", {"head": "diffused"}, quantize=plain)
    gradients_of = []
    for compiled in (False, True):
        model = build_model(config)
        loss = torch.compile(model.loss) if compiled else model.loss
        loss(*batch()).backward()
        gradients_of.append(model.head.weight.grad)
    found = torch.compile(lambda x: rounded(x, get_format("e4m3"), 2.0**-17))(gradients(40, 52, seed=3))
    assert torch.equal(found, rounded(gradients(40, 52, seed=3), get_format("e4m3"), 2.0**-17))
    torch.testing.assert_close(*gradients_of, rtol=0.2, atol=1e-5)


# In a config


SMALL = {"layers": 1, "dim": 16, "heads": 2, "context": 8}


def with_roundings(name: str, roundings: dict[str, str], **more: object) -> ExperimentConfig:
    """Everything in one format, the output gradients of single layer types rounded otherwise."""
    quantized = {"weight": name, "activation": name, "grad_output": name, "grad_output_rounding": roundings}
    own = more.pop("quantize", {})
    short = {"model": SMALL, "max_steps": 3, "batch_size": 4, "eval_batches": 1, "layers_every": 1}
    return parse_config(short | {"quantize": quantized | own} | more, source="test")  # type: ignore[operator]


def test_a_rounding_of_its_own_is_that_of_the_layer_and_of_no_other() -> None:
    given = {"head": "diffused", "mlp": "wide"}
    model = build_model(with_roundings("e4m3", given))
    readings: list[Reading] = []
    with observed(model, readings.append):
        model.loss(torch.zeros(2, 8, dtype=torch.int64), torch.arange(16).view(2, 8)).backward()
    last = {reading.layer: reading for reading in readings if reading.operand == "grad_output"}
    for name, reading in last.items():
        policy = quantized_layers(model)[name].policy
        assert policy.weight.format.name == policy.activation.format.name == "e4m3"  # type: ignore[union-attr]
        if reading.layer_type == "mlp":
            assert reading.format is FP32
            assert torch.equal(reading.rounded, reading.real)
        elif name == "head":
            check(reading.real.flatten(0, -2), reading.rounded.flatten(0, -2), get_format("e4m3"), reading.scale)
        else:
            assert torch.equal(reading.rounded, quantize(reading.real, get_format("e4m3"), scale=reading.scale))


def test_it_is_for_both_products_unless_a_cast_has_a_rounding_of_its_own() -> None:
    second = "grad_weight.grad_output"
    blocks = {"scaling": {"kind": "mx", "axis": "contraction"}}
    both = with_roundings("e4m3", {"head": "diffused"}, **blocks)
    own = with_roundings(
        "e4m3", {"head": "diffused"}, quantize={"casts": {"grad_weight": {"grad_output": {"rounding": "stochastic"}}}}
    )
    plain = with_roundings(
        "e4m3", {"head": "diffused"}, quantize={"casts": {"grad_weight": {"grad_output": {"rounding": "nearest_even"}}}}
    )
    for config, expected in ((both, "diffused"), (own, "stochastic"), (plain, "nearest_even")):
        policy = policy_of(config, "head")
        assert policy.grad_output.rounding == "diffused"  # type: ignore[union-attr]
        assert policy.operand(second).rounding == expected
    wide = policy_of(with_roundings("e4m3", {"head": "wide"}, **blocks), "head")
    assert wide.grad_output.format is wide.operand(second).format is FP32  # type: ignore[union-attr]


def test_telemetry_counts_what_the_own_rounding_did() -> None:
    lost = {}
    for rounding in ("nearest_even", "stochastic", "diffused", "wide"):
        roundings = {} if rounding == "nearest_even" else {"head": rounding}
        model = build_model(with_roundings("e4m3", roundings, scaling={"kind": "none"}))
        look = Look(model, 1)
        with look.operands():
            model.loss(torch.zeros(4, 8, dtype=torch.int64), torch.arange(32).view(4, 8)).backward()
        rows = {(row[1], row[3], row[4]): row[5] for row in look.rows}
        lost[rounding] = rows["head", "grad_output", "underflow"]
        assert rows["blocks.0.mlp.up", "grad_output", "underflow"] > 0
        assert ("head", "grad_output", "codes_used") in rows or rounding == "wide"
    assert lost["wide"] == 0 < lost["diffused"] < lost["nearest_even"]
    assert lost["stochastic"] < lost["nearest_even"]


HEAD_STUDY = [
    *((name, {}) for name in SPLITS if name != "e1m6"),
    ("e3m2", {"kind": "mx", "axis": "contraction"}),
    ("e2m1", {"kind": "mx_rceil", "axis": "contraction"}),
    ("e2m1", {"kind": "nvfp4", "axis": "contraction"}),
]


@pytest.mark.parametrize("rounding", ["diffused", "wide"])
@pytest.mark.parametrize(("name", "scaling"), HEAD_STUDY, ids=str)
def test_every_arm_of_a_study_of_the_head_trains(tmp_path, name: str, scaling: dict[str, str], rounding: str) -> None:  # type: ignore[no-untyped-def]
    config = with_roundings(name, {"head": rounding}, scaling=scaling)
    result = train(config, tmp_path, progress=False)
    assert result.status == "finished"


def test_recorded_identities_have_no_such_key_and_arms_say_what_differs() -> None:
    plain = with_roundings("e4m3", {})
    assert "grad_output_rounding" not in plain.identity()["quantize"]
    labels = [scope_label(with_roundings("e4m3", {"head": each})) for each in ("stochastic", "diffused", "wide")]
    assert labels == [
        f"weights + activations + gradients; gradients of the head {how}"
        for how in ("rounded stochastically", "rounded by error diffusion", "not quantized")
    ]
    both = with_roundings("e4m3", {"mlp": "wide", "head": "diffused"})
    assert len({scope_label(each) for each in (plain, both)} | {*labels}) == 5
    assert both.identity()["quantize"]["grad_output_rounding"] == {"mlp": "wide", "head": "diffused"}


@pytest.mark.parametrize(
    ("roundings", "quantized", "more", "words"),
    [
        ({"hed": "wide"}, {}, {}, "unknown key .*grad_output_rounding.hed'; did you mean .*rounding.head'"),
        (
            {"embedding": "wide"},
            {},
            {},
            "grad_output_rounding.embedding'; known keys: attention, mlp, head",
        ),
        (
            {"head": "odd"},
            {},
            {},
            "grad_output_rounding.head: must be one of nearest_even, .*, wide, or own:NAME",
        ),
        ({"head": "nearest_even"}, {}, {}, "head is what quantize.rounding.grad_output says already"),
        ({"head": "wide"}, {"grad_output": "fp32"}, {}, "quantize.grad_output is fp32; leave it out"),
        ({"head": "wide"}, {"layers": ["mlp"]}, {}, "quantize.layers has no head; leave one out"),
        (
            {"head": "wide"},
            {"casts": {"grad_weight": {"grad_output": {"format": "e5m2"}}}},
            {},
            "'wide' is for both products, and quantize.casts.grad_weight.grad_output quantizes one",
        ),
        ({"head": "diffused"}, {"compute": "native"}, {}, "'native' .*leave out grad_output_rounding.head"),
        ({"head": "diffused"}, {}, {"draw_version": 2}, "draw_version 2 is of stochastic rounding"),
    ],
)
def test_a_rounding_that_cannot_be_is_one_line(
    roundings: dict[str, str], quantized: dict[str, object], more: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=words) as error:
        with_roundings("e4m3", roundings, quantize=quantized, **more)
    assert "\n" not in str(error.value)


def test_an_unknown_rounding_of_an_operand_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"stochastic, diffused.*, not 'difused'"):
        Operand(get_format("e4m3"), "difused")


@pytest.mark.parametrize("to", ["bf16", "fp32"])
def test_a_run_that_shifts_its_format_keeps_what_there_is_to_round(to: str) -> None:
    config = with_roundings("e4m3", {"head": "diffused"}, stability={"shift_to": to})
    kept = shifted(config).quantize
    assert kept.grad_output == to
    assert kept.grad_output_rounding.given == ({"head": "diffused"} if to == "bf16" else {})


def test_only_the_head_may_be_quantized() -> None:
    config = with_roundings("e4m3", {"head": "diffused"}, quantize={"layers": ["head"]})
    assert quantized_layers(build_model(config))["head"].policy.grad_output.rounding == "diffused"  # type: ignore[union-attr]


def test_models_of_ones_own_take_it_by_policy() -> None:
    model = small_gpt()
    spec = Operand(get_format("e4m3"), "diffused")
    quantize_model(model, {"head": Policy(grad_output=spec), "*": Policy(grad_output=get_format("e4m3"))})
    model.loss(*batch()).backward()
    assert model.head.weight.grad.isfinite().all()


def test_the_controls_keep_the_sum_that_nearest_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of experiments/controls.py, on one row, element by element in Fractions; and as a layer applies them."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import controls

    x = torch.tensor([[0.3, 0.06, 0.02, -0.38], [0.0, 0.5, -0.75, 0.25]])
    near = torch.tensor([[0.25, 0.0, 0.0, -0.5], [0.0, 0.5, -0.75, 0.25]])
    for row, (exact, rounded) in enumerate(zip(x.tolist(), near.tolist(), strict=True)):
        mean = sum(map(Fraction, rounded)) / 4
        assert controls.mean_removed(x, near)[row].tolist() == [float(Fraction(v) - mean) for v in rounded]
        lost = sum(map(Fraction, exact)) - sum(map(Fraction, rounded))
        wanted = [Fraction(v) + (lost if of == min(exact) else 0) for of, v in zip(exact, rounded, strict=True)]
        found = controls.residual_on_target(x, near)[row].tolist()
        assert found == pytest.approx([float(v) for v in wanted], abs=1e-7)
        assert sum(found) == pytest.approx(sum(exact), abs=1e-7)
    fmt, model = get_format("e2m1"), torch.nn.Sequential(torch.nn.Linear(4, 3))
    quantize_model(model, Policy(grad_output=Operand(fmt, "own:mean-removed"), layers=("*",)))
    grad = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    model(given := torch.eye(4).repeat(2, 1)[:5]).backward(grad)
    rounded = quantize(grad, fmt, scale=amax_scale(grad, fmt))
    assert torch.equal(model[0].weight.grad, (rounded - rounded.mean(-1, keepdim=True)).T @ given)


def test_a_rounding_of_ones_own_has_a_name_and_is_there() -> None:
    with pytest.raises(UsageError, match="own:nobody' is not registered"):
        Operand(get_format("e4m3"), "own:nobody")
    with pytest.raises(UsageError, match="lower-case letters"):
        register_rounding("No Name", lambda x, _near: x)
    register_rounding("of-a-test", first := lambda x, _near: x)
    register_rounding("of-a-test", first)
    with pytest.raises(UsageError, match="registered already"):
        register_rounding("of-a-test", lambda x, _near: x)
