"""Delayed scales count steps and travel with the model; layers keep what torch promises of nn.Linear."""

from __future__ import annotations

import copy
import io
import math
from collections import deque
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from altgrad.config import ExperimentConfig, parse_config  # noqa: E402
from altgrad.formats import FP32, FloatFormat, get_format  # noqa: E402
from altgrad.nn import (  # noqa: E402
    Operand,
    Policy,
    Reading,
    Scaling,
    clock_of,
    dequantize_model,
    observed,
    quantize_model,
)
from altgrad.rounding import fake_quantize, quantize, quantize_counted  # noqa: E402
from altgrad.scaling import DelayedScale, amax_scale  # noqa: E402
from altgrad.telemetry import Look  # noqa: E402

E4M3, E5M2 = get_format("e4m3"), get_format("e5m2")


def delayed(history: int = 4, **how: object) -> Operand:
    return Operand(E4M3, scaling=Scaling("delayed", history=history, **how))


def model(spec: Operand | FloatFormat | None = None, *, compute: str = "simulated") -> nn.Sequential:
    """Two layers of 32 whose three operands are all `spec`."""
    torch.manual_seed(0)
    spec = spec or delayed()
    layers = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32))
    quantize_model(layers, Policy(spec, spec, spec, layers=("*",), compute=compute))
    return layers


def histories(layers: nn.Module) -> dict[str, list[float]]:
    return {key: value.tolist() for key, value in layers.state_dict().items() if key.endswith(".history")}


def draws(count: int, seed: int = 1) -> list[Tensor]:
    """Inputs whose size changes by orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 32, generator=generator) * 4.0 ** ((3 * i) % 5) for i in range(count)]


# the recipe


def transformer_engine(amaxes: list[float], length: int, margin: int, algorithm: str) -> list[float]:
    """Transformer Engine's documented recipe in numpy: the dequantization scale that each step is given.

    Docs of recipe.DelayedScaling: scale = 2**margin * amax / max, amax the largest of a window of `amax_history_len`
    steps, or the most recent one. A step whose amax is zero keeps the scale that was.
    """
    window: deque[np.float32] = deque(maxlen=length)
    scales, scale = [], math.nan
    for amax in amaxes:
        scales.append(scale)
        window.append(np.float32(amax))
        chosen = max(window) if algorithm == "max" else window[-1]
        if chosen > 0:
            scale = float(np.float32(chosen / np.float32(448)) * np.float32(2.0**margin))
    return scales


@given(
    st.lists(st.floats(2.0**-20, 1e6, width=32), min_size=2, max_size=12),
    st.integers(1, 5),
    st.integers(0, 3),
    st.sampled_from(["max", "most_recent"]),
)
@settings(max_examples=150, deadline=None)
def test_a_delayed_scale_is_transformer_engine_s(amaxes: list[float], length: int, margin: int, algorithm: str) -> None:
    scale = DelayedScale(E4M3, length=length, margin=margin, algorithm=algorithm, power_of_two=False)
    found = [float(scale.update(torch.tensor([0.0, -amax]))) for amax in amaxes]
    assert found[1:] == transformer_engine(amaxes, length, margin, algorithm)[1:]


def test_the_most_recent_scale_outlives_a_step_of_zeros_as_in_transformer_engine() -> None:
    amaxes = [896.0, 448.0, 0.0, 0.0, 1792.0, 1.0]
    scale = DelayedScale(E4M3, length=4, algorithm="most_recent")
    found = [float(scale.update(torch.tensor([amax]))) for amax in amaxes]
    assert found[1:] == transformer_engine(amaxes, 4, 0, "most_recent")[1:] == [2, 1, 1, 1, 4]


@pytest.mark.parametrize(("algorithm", "expected"), [("max", 4.0), ("most_recent", 2.0)])
def test_a_config_s_margin_and_algorithm_reach_the_layers(algorithm: str, expected: float) -> None:
    spec = delayed(algorithm=algorithm, margin=1)
    layers = quantize_model(nn.Sequential(nn.Linear(4, 4)), Policy(activation=spec, layers=("*",)))
    layers(torch.full((1, 4), 896.0))
    layers(torch.full((1, 4), 448.0))
    seen: list[Reading] = []
    with observed(layers, seen.append):
        layers(torch.ones(1, 4))
    assert next(reading.scale for reading in seen if reading.operand == "activation") == expected


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Scaling(margin=1), "scaling.margin 1 belongs to kind 'delayed', not to 'amax'"),
        (lambda: Scaling("mx", algorithm="most_recent"), "'most_recent' belongs to kind 'delayed', not to 'mx'"),
        (lambda: Scaling("delayed", algorithm="mean"), "scaling.algorithm: .*'max' or 'most_recent'"),
        (lambda: Scaling("delayed", margin=-1), "scaling.margin"),
        (lambda: Scaling(history=4), "scaling.history 4 belongs to kind 'delayed', not to 'amax'"),
        (lambda: Scaling("mx", block=16), "blocks of kind 'mx' are 32 wide, not 16; leave out scaling.block"),
        (lambda: Scaling("nvfp4", block=8), "blocks of kind 'nvfp4' are 16 wide, not 8; leave out scaling.block"),
        (lambda: Scaling(block=64), "scaling.block 64 belongs to granularity 'block' or 'block_2d', not to 'tensor'"),
        (lambda: Scaling(granularity="block", block=0), "scaling.block: .*greater than or equal to 1"),
        (lambda: Scaling(granularity="block", axis="rows"), "scaling.axis: .*'last' or 'contraction'"),
        (lambda: Scaling(quotient="up"), "quotient 'up' belongs to a scale .* with power_of_two false"),
        (lambda: Scaling("static", value=1.0, power_of_two=False, quotient="up"), "kind 'amax' or 'delayed'"),
        (
            lambda: parse_config({"scaling": {"margin": 2}}, source="a.yaml"),
            "a.yaml: scaling: scaling.margin 2 belongs",
        ),
        (lambda: DelayedScale(E4M3, algorithm="mean"), "algorithm must be one of max, most_recent, not 'mean'"),
        (lambda: DelayedScale(E4M3, quotient="down"), "quotient must be one of nearest, up, not 'down'"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused_with_one_line(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def test_the_new_keys_take_no_part_in_the_identity_of_a_config_that_does_not_use_them() -> None:
    plain = ExperimentConfig.model_validate({"scaling": {"kind": "delayed"}}).identity()
    assert not {"margin", "algorithm", "quotient"} & plain["scaling"].keys()
    used = ExperimentConfig.model_validate({"scaling": {"kind": "delayed", "margin": 1}}).identity()
    assert used["scaling"] == plain["scaling"] | {"margin": 1}


# a step is a step


def test_parts_of_a_step_read_one_scale_and_leave_one_entry() -> None:
    """The outlier of a step of eight batches is known in the next, whose parts read one weight."""
    layers = model()
    clock = clock_of(layers)
    clock.step = 1
    for clock.part in range(8):
        x = torch.randn(4, 32)
        x[0, 0] = 100.0 if clock.part == 0 else 0.0
        layers(x).sum().backward()
    assert histories(layers)["0.delayed.activation.history"] == [0, 0, 0, 100]
    with torch.no_grad():
        layers[0].weight.mul_(1.5)
    clock.step = 2
    outputs = []
    for clock.part in range(2):
        outputs.append(layers(x))
    assert torch.equal(*outputs)
    assert histories(layers)["0.delayed.weight.history"][-1] == float(layers[0].weight.detach().abs().max())


@given(st.lists(st.lists(st.floats(0, 1e4, width=32), min_size=1, max_size=4), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_a_history_of_steps_is_that_of_the_largest_of_their_parts(steps: list[list[float]]) -> None:
    parts, whole = DelayedScale(E4M3, length=3), DelayedScale(E4M3, length=3)
    for step, amaxes in enumerate(steps):
        known = bool(whole.history.any())
        scale = float(whole.update(torch.tensor([max(amaxes)])))
        found = [float(parts.update(torch.tensor([amax]), step)) for amax in amaxes]
        assert torch.equal(parts.history, whole.history)
        assert not known or found == [scale] * len(amaxes)


def test_a_damaged_part_does_not_push_out_what_was_known() -> None:
    scale = DelayedScale(E4M3, length=2)
    for step, amax in enumerate((448.0, 896.0)):
        scale.update(torch.tensor([amax]), step)
    scale.update(torch.tensor([math.inf]), 7)
    assert scale.history.tolist() == [448, 896]
    scale.update(torch.tensor([1.0]), 7)
    scale.update(torch.tensor([math.nan]), 7)
    assert scale.history.tolist() == [896, 1]


def test_a_step_that_is_computed_again_has_the_same_numbers_and_leaves_the_same_histories() -> None:
    layers = trained()
    clock, ends = clock_of(layers), []
    clock.step = 1
    for _ in range(2):
        layers.zero_grad()
        for clock.part, x in enumerate(draws(3, seed=9)):
            layers(x).square().sum().backward()
        ends.append(([parameter.grad for parameter in layers.parameters()], histories(layers)))
    assert ends[0][1] == ends[1][1]
    assert all(torch.equal(a, b) for a, b in zip(ends[0][0], ends[1][0], strict=True))


def test_without_a_clock_every_forward_pass_is_a_step() -> None:
    layers = model(delayed(history=3))
    for x in draws(3):
        layers(x).sum().backward()
    amaxes = [float(x.abs().max()) for x in draws(3)]
    assert histories(layers)["0.delayed.activation.history"] == amaxes
    assert all(len(set(history)) > 1 for key, history in histories(layers).items() if "0.delayed.grad_output" in key)


@pytest.mark.parametrize("counted", [True, False], ids=["clock", "no clock"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_activation_checkpointing_is_bit_equal_to_none(reentrant: bool, counted: bool) -> None:
    ends = []
    for checkpointed in (False, True):
        layers, gradients = model(), []
        for step, x in enumerate(draws(6), 1):
            if counted:
                clock_of(layers).step = step
            layers.zero_grad()
            x.requires_grad_()
            y = checkpoint(layers, x, use_reentrant=reentrant) if checkpointed else layers(x)
            y.square().mean().backward()
            gradients += [parameter.grad.clone() for parameter in layers.parameters()] + [x.grad]
        ends.append((gradients, histories(layers)))
    assert ends[0][1] == ends[1][1]
    assert all(torch.equal(a, b) for a, b in zip(ends[0][0], ends[1][0], strict=True))


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_a_layer_used_twice_in_a_step_of_parts_is_checkpointed_bit_by_bit(reentrant: bool) -> None:
    ends = []
    for checkpointed in (False, True):
        layers, gradients = model(), []
        clock = clock_of(layers)
        for clock.step in (1, 2, 3):
            inputs = draws(2, seed=clock.step)
            for clock.part, x in enumerate(inputs):
                layers.zero_grad()  # a reentrant checkpoint adds gradients in another order than torch does without
                x.requires_grad_()
                for _ in range(2):
                    x = checkpoint(layers, x, use_reentrant=reentrant) if checkpointed else layers(x)
                x.square().mean().backward()
                gradients += [parameter.grad.clone() for parameter in layers.parameters()]
        ends.append((gradients, histories(layers)))
    assert ends[0][1] == ends[1][1]
    assert all(torch.equal(a, b) for a, b in zip(ends[0][0], ends[1][0], strict=True))


def test_without_gradients_and_in_evaluation_nothing_moves() -> None:
    layers = model()
    for x in draws(2):
        layers(x).sum().backward()
    before = histories(layers)
    with torch.no_grad():
        layers(draws(1)[0] * 1e6)
    with torch.inference_mode():
        layers(draws(1)[0] * 1e6)
    layers.eval()(draws(1)[0] * 1e6).sum().backward()
    clock_of(layers.train()).part = -1
    layers(draws(1)[0] * 1e6)
    assert histories(layers) == before
    clock_of(layers).part = 0
    layers(draws(1)[0] * 1e6)
    assert histories(layers) != before


# the way from here to there


def trained() -> nn.Sequential:
    layers = model()
    for x in draws(5):
        layers(x).sum().backward()
    return layers


def through_a_file(layers: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(layers.state_dict(), file)
    file.seek(0)
    twin = model()
    twin.load_state_dict(torch.load(file, weights_only=True))
    return twin


@pytest.mark.parametrize("travel", [copy.deepcopy, through_a_file], ids=["deepcopy", "state_dict"])
def test_histories_travel_with_the_model(travel: Callable[[nn.Module], nn.Module]) -> None:
    layers = trained()
    twin = travel(layers)
    for x in draws(3, seed=5):
        outputs = [each(x) for each in (layers, twin)]
        assert torch.equal(*outputs)
        for output in outputs:
            output.sum().backward()
    assert histories(layers) == histories(twin)
    twin(draws(1)[0] * 1e3)
    assert histories(layers) != histories(twin), "they share nothing"


def test_a_model_that_goes_back_to_a_saved_step_repeats_it_bit_by_bit() -> None:
    layers, x = trained(), draws(1)[0] * 1e4
    state = copy.deepcopy(layers.state_dict())
    outputs = []
    for clock_of(layers).step in (6, 7, 8):
        outputs.append(layers(x))
    layers.load_state_dict(state)
    clock_of(layers).step = 8
    assert torch.equal(layers(x), outputs[0])
    assert not torch.equal(outputs[2], outputs[0])


def test_loading_says_which_histories_are_missing() -> None:
    plain = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32))
    with pytest.raises(
        RuntimeError, match=r"Missing key.*0\.delayed\.weight\.history.*2\.delayed\.grad_output\.history"
    ):
        model().load_state_dict(plain.state_dict())


def test_layers_without_delayed_scales_have_the_modules_and_the_state_that_they_had() -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.Embedding(3, 4))
    layers = quantize_model(copy.deepcopy(plain), Policy(E4M3, E4M3, layers=("*",)))
    assert list(layers.state_dict()) == list(plain.state_dict())
    assert len(list(layers.modules())) == len(list(plain.modules()))
    quantize_model(layers, Policy(delayed(), delayed(), layers=("*",)))
    keys = {key for key in layers.state_dict() if "delayed" in key}
    assert keys == {"0.delayed.weight.history", "0.delayed.activation.history", "1.delayed.weight.history"}
    for change in (lambda: quantize_model(layers, Policy(E4M3, layers=("*",))), lambda: dequantize_model(layers)):
        change()
        assert list(layers.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_histories_stay_float32_in_a_model_of_another_dtype(dtype: torch.dtype) -> None:
    layers = trained()
    before = histories(layers)
    layers.to(dtype)
    assert layers[0].weight.dtype == dtype
    assert histories(layers) == before
    assert layers[0].delayed["weight"].history.dtype == torch.float32
    assert layers.to("meta")[0].delayed["weight"].history.is_meta


# looks


def test_a_look_sees_every_part_of_a_step() -> None:
    layers = model()
    layers(torch.randn(4, 32)).sum().backward()
    look, clock = Look(layers, 1, number=5), clock_of(layers)
    clock.step = 1
    inputs, seen = [torch.randn(4, 32) * (1000 if part == 2 else 1) for part in range(4)], []
    inputs[2][0, 0] = math.inf
    for x in inputs:
        x[:, 5] = 0.0
    inputs[1][:, 7] = 0.0  # dead in one part only
    with look.operands():
        layers[0].observer = lambda reading: (seen.append(reading), look._observe(reading))
        for clock.part, x in enumerate(inputs):
            layers(x).sum().backward()
    rows = {(operand, statistic): value for _, layer, _, operand, statistic, value in look.rows if layer == "0"}
    x = torch.cat(inputs)
    scale = next(reading.scale for reading in seen if reading.operand == "activation")
    whole = quantize_counted(x, E4M3, scale=scale)
    nonzero = int((x != 0).sum())
    assert rows["activation", "overflow"] == int(whole.overflow) / nonzero > 0
    assert rows["activation", "underflow"] == int(whole.underflow) / nonzero
    assert rows["activation", "amax"] == math.inf
    assert rows["activation", "nonfinite"] == 1
    assert rows["activation", "dead"] == 1 / 32
    parts = [reading for reading in seen if reading.operand == "grad_output"]
    assert len(parts) == 4
    gradient, rounded = (torch.cat([getattr(part, key) for part in parts]).double() for key in ("real", "rounded"))
    assert rows["grad_output", "norm_l2"] == pytest.approx(gradient.norm().item(), rel=1e-5)
    codes = {key: value for (operand, key), value in rows.items() if operand == "grad_output" and key == "codes_used"}
    used = rounded[rounded.isfinite()].unique().numel()
    assert codes["codes_used"] == used / len(E4M3.finite_values)
    weight = layers[0].weight.detach().double()
    assert rows["weight", "norm_l2"] == pytest.approx(weight.norm().item(), rel=1e-5)


def test_a_look_at_parts_is_a_look_at_their_rows_together() -> None:
    """With a scale that does not depend on the rows, the parts of a step count like one batch."""
    inputs = [torch.randn(6, 32) * size for size in (1.0, 30.0, 1e-3)]
    found = []
    for parts in (inputs, [torch.cat(inputs)]):
        layers = model(Operand(E4M3, scaling=Scaling("static", value=2.0**-6)))
        look, clock = Look(layers, 1, number=5), clock_of(layers)
        with look.operands():
            for clock.part, x in enumerate(parts):
                layers(x).square().sum().backward()
        found.append({row[1:5]: row[5] for row in look.rows if row[3] != "gradient"})
    assert found[0].keys() == found[1].keys()
    for place, value in found[1].items():
        assert found[0][place] == pytest.approx(value, rel=1e-5), place


# second order, autocast


def test_second_order_gradients_are_those_of_the_linear_layer_where_rounding_changes_little() -> None:
    """A gradient penalty, with a format of 20 fraction bits: what is left is rounding of 2**-21."""
    fine = FloatFormat.split(7, 20)
    ends = []
    for spec in (None, fine):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
        if spec is not None:
            quantize_model(layers, Policy(spec, spec, spec, layers=("*",)))
        x = torch.randn(16, 8, requires_grad=True)
        (gradient,) = torch.autograd.grad(layers(x).sum(), x, create_graph=True)
        (gradient.norm(dim=1) - 1).square().mean().backward()
        ends.append([parameter.grad for parameter in layers.parameters()])
    assert [grad is None for grad in ends[0]] == [grad is None for grad in ends[1]] == [False, False, False, True]
    for expected, found in zip(ends[0][:3], ends[1][:3], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_second_order_gradients_read_what_the_products_have_read() -> None:
    """y = q(x) q(w): the gradient of sum(grad_x**2) / 2 to w is q(g)^T (q(g) q(w)), every rounding the identity."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 4, bias=False)
    quantize_model(nn.Sequential(layer), Policy(E4M3, E4M3, E5M2, layers=("*",)))
    x, g = torch.randn(16, 8, requires_grad=True), torch.randn(16, 4)
    (grad_x,) = torch.autograd.grad(layer(x), x, g, create_graph=True)
    grad_x.square().sum().div(2).backward()
    w, g = (
        quantize(each, fmt, scale=amax_scale(each, fmt)) for each, fmt in ((layer.weight.detach(), E4M3), (g, E5M2))
    )
    torch.testing.assert_close(layer.weight.grad, g.t() @ (g @ w))


def test_native_products_refuse_second_order_gradients() -> None:
    layers = model(E4M3, compute="native")
    x = torch.randn(16, 32, requires_grad=True)
    try:
        y = layers(x)
    except RuntimeError as error:
        pytest.skip(f"no native product here: {error}")
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


AUTOCAST = {
    "exact": Operand(E4M3, scaling=Scaling(power_of_two=False)),
    "delayed": delayed(power_of_two=False),
    "power of two": Operand(E4M3),
    "fp32": Operand(FP32),
}


@pytest.mark.parametrize("name", AUTOCAST)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_dtype_is_that_of_a_linear_layer_and_products_read_the_grid(
    name: str, bias: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    spec, plain, seen = AUTOCAST[name], nn.Linear(32, 16, bias=bias), []
    layers = quantize_model(nn.Sequential(copy.deepcopy(plain)), Policy(spec, spec, spec, layers=("*",)))
    x = torch.randn(4, 32).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        expected = plain(x)
        y = layers(x)
    with torch.autocast("cpu", dtype=dtype), observed(layers, seen.append):
        watched = layers(x)
    assert y.dtype == expected.dtype == dtype
    watched.sum().backward()
    assert x.grad.dtype == dtype
    assert layers[0].weight.grad.dtype == torch.float32
    if name == "fp32":
        assert torch.equal(y, expected)
        assert torch.equal(watched, expected)
        return
    rounded = {reading.operand: reading.rounded.float() for reading in seen}
    for reading in seen:
        assert torch.equal(quantize(reading.real.float(), E4M3, scale=reading.scale), reading.rounded)
    product = nn.functional.linear(rounded["activation"], rounded["weight"])
    product = product if plain.bias is None else product + plain.bias
    assert torch.equal(watched, product.to(dtype))


# an exact scale


def adversarial() -> list[Tensor]:
    """Largest values next to multiples of the format's largest value, of every size."""
    near = torch.arange(-40, 41, dtype=torch.int32)
    found = []
    for top in (448.0, 57344.0, 6.0, 28.0, 7.5, 1.984375):
        for factor in (1.0, 1.1, 1 / 3, 2.0**-100, 3.0, 2.0**-125, 2.0**100 / top):
            bits = torch.tensor(top * factor, dtype=torch.float32).view(torch.int32) + near
            found.append(bits.view(torch.float32))
    return found


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e2m1", "e3m2", "e2m3", "e3m4", "e1m6", "e5m10", "e8m7"])
def test_an_exact_scale_rounded_up_never_lets_an_element_exceed(name: str) -> None:
    fmt = get_format(name)
    generator = torch.Generator().manual_seed(0)
    random = torch.rand(200_000, generator=generator) * 2.0 ** torch.randint(-140, 100, (200_000,), generator=generator)
    exceeded = 0
    for values in [random, *adversarial()]:
        rows = values.abs()[:, None]
        scales = {
            rule: amax_scale(rows, fmt, granularity="row", power_of_two=False, quotient=rule)
            for rule in ("nearest", "up")
        }
        above = {rule: (rows / scale) > fmt.max for rule, scale in scales.items()}
        exceeded += int(above["nearest"].sum())
        assert not above["up"].any()
        assert not (rows.double() > scales["up"].double() * fmt.max).any(), "not in exact arithmetic either"
        smaller = torch.nextafter(scales["up"], torch.zeros(()))
        smallest = (scales["up"] <= 2.0**-126) | (rows == 0) | (rows.double() > smaller.double() * fmt.max)
        assert smallest.all(), "and no smaller float32 would do"
    assert exceeded or name == "e2m1", "which the nearest quotient lets, where it is off by more than a third of an ulp"


def test_under_mask_no_tensor_loses_the_gradient_of_its_largest_element() -> None:
    lost = {"nearest": 0, "up": 0}
    for seed in range(500):
        values = torch.randn(32, generator=torch.Generator().manual_seed(seed))
        for rule in lost:
            x = values.clone().requires_grad_()
            scale = amax_scale(x, E4M3, power_of_two=False, quotient=rule)
            fake_quantize(x, E4M3, scale=scale, gradient="mask").sum().backward()
            lost[rule] += int((x.grad == 0).sum())
    assert lost["up"] == 0 < lost["nearest"]


@pytest.mark.parametrize("kind", ["amax", "delayed"])
def test_the_rule_that_rounds_up_reaches_the_layers(kind: str) -> None:
    spec = Operand(E4M3, scaling=Scaling(kind, power_of_two=False, quotient="up"))
    layers = quantize_model(nn.Sequential(nn.Linear(32, 8)), Policy(activation=spec, layers=("*",)))
    seen: list[Reading] = []
    with observed(layers, seen.append):
        for seed in range(200):
            x = torch.randn(4, 32, generator=torch.Generator().manual_seed(seed))
            layers(x)
            if kind == "delayed":
                layers[0].delayed["activation"].reset_parameters()
    readings = [reading for reading in seen if reading.operand == "activation"]
    assert len(readings) == 200
    assert not any(int(reading.overflow) or (reading.real / reading.scale).abs().max() > 448 for reading in readings)
