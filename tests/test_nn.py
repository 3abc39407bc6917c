"""Quantized layers: FP32 is plain torch bit by bit, and each of the three products reads the operands it should."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from compiler import needs_compiler  # noqa: E402

from altgrad.config import LAYER_TYPES, NATIVE_FORMATS, ScaleRule, parse_config  # noqa: E402
from altgrad.formats import FP32, FloatFormat, get_format  # noqa: E402
from altgrad.models import GPT  # noqa: E402
from altgrad.nn import (  # noqa: E402
    NATIVE_DTYPES,
    Operand,
    Policy,
    QuantizedEmbedding,
    QuantizedLinear,
    Reading,
    Scaling,
    clock_of,
    dequantize_model,
    layer_type,
    observed,
    quantize_model,
)
from altgrad.nn import quantized_layers as layers_of  # noqa: E402
from altgrad.rounding import quantize, ulp  # noqa: E402
from altgrad.scaling import amax_scale, quantize_mx, quantize_nvfp4  # noqa: E402
from altgrad.telemetry import first_nonfinite  # noqa: E402
from altgrad.training.loop import policy_of  # noqa: E402

E4M3, E5M2, E7M0 = (get_format(name) for name in ("e4m3", "e5m2", "e7m0"))


def small_gpt(seed: int = 0, layers: int = 2) -> GPT:
    return GPT(96, layers=layers, dim=16, heads=2, context=8, seed=seed)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, 96, (4, 9), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1], tokens[:, 1:]


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_fp32_policy_is_bit_identical_to_plain_torch() -> None:
    plain = small_gpt()
    surgical = quantize_model(copy.deepcopy(plain), Policy())
    for _ in range(3):
        losses = [model.loss(*batch()) for model in (plain, surgical)]
        for model, loss in zip((plain, surgical), losses, strict=True):
            model.zero_grad()
            loss.backward()
        assert losses[0].item() == losses[1].item()
        expected, found = gradients(plain), gradients(surgical)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        with torch.no_grad():
            for model in (plain, surgical):
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad


@pytest.mark.parametrize("bias", [True, False])
def test_fp32_linear_layer_with_bias_is_bit_identical(bias: bool) -> None:
    plain = torch.nn.Linear(24, 40, bias=bias)
    quantized = copy.deepcopy(plain)
    quantize_model(torch.nn.ModuleDict({"head": quantized}), Policy())
    x = torch.randn(5, 7, 24)
    ends = []
    for layer in (plain, quantized):
        inputs = x.clone().requires_grad_()
        y = layer(inputs)
        y.square().sum().backward()
        ends.append((y, inputs.grad, *(parameter.grad for parameter in layer.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_each_of_the_three_products_reads_its_own_rounded_operands() -> None:
    policy = Policy(weight=E4M3, activation=E5M2, grad_output=E7M0)
    model = torch.nn.ModuleDict({"mlp": torch.nn.Linear(12, 20, bias=False)})
    layer = quantize_model(model, policy)["mlp"]
    x, grad = torch.randn(30, 12, requires_grad=True), torch.randn(30, 20)
    y = layer(x)
    y.backward(grad)

    def on_grid(tensor, fmt):  # type: ignore[no-untyped-def]
        return quantize(tensor.detach(), fmt, scale=amax_scale(tensor, fmt)).double()

    x_, w_, g_ = on_grid(x, E5M2), on_grid(layer.weight, E4M3), on_grid(grad, E7M0)
    torch.testing.assert_close(y.double(), x_ @ w_.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), g_ @ w_, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.weight.grad.double(), g_.T @ x_, rtol=1e-5, atol=1e-5)


def test_the_embedding_reads_a_rounded_table_and_passes_its_gradient_through() -> None:
    table = torch.nn.Embedding(10, 4)
    layer = quantize_model(torch.nn.ModuleDict({"embedding": table}), Policy(weight=E4M3))["embedding"]
    token = torch.tensor([1, 3, 3])
    y = layer(token)
    y.sum().backward()
    expected = quantize(table.weight.detach(), E4M3, scale=amax_scale(table.weight, E4M3))
    assert torch.equal(y, expected[token])
    assert layer.weight.grad[:, 0].tolist() == [0, 1, 0, 2, 0, 0, 0, 0, 0, 0]


def test_layers_are_found_by_name_and_only_the_chosen_types_are_quantized() -> None:
    model = quantize_model(small_gpt(), Policy(weight=E4M3, layers=("mlp", "head")))
    found = {name: layer.policy.weight.format.name for name, layer in layers_of(model).items()}
    assert found == {
        "embedding": "fp32",
        "blocks.0.attention.qkv": "fp32",
        "blocks.0.attention.projection": "fp32",
        "blocks.0.mlp.up": "e4m3",
        "blocks.0.mlp.down": "e4m3",
        "blocks.1.attention.qkv": "fp32",
        "blocks.1.attention.projection": "fp32",
        "blocks.1.mlp.up": "e4m3",
        "blocks.1.mlp.down": "e4m3",
        "head": "e4m3",
    }
    assert isinstance(model.head, QuantizedLinear)
    assert isinstance(model.embedding, QuantizedEmbedding)
    assert layer_type("blocks.0.attention_norm") is None


def test_the_model_depends_on_its_seed_alone() -> None:
    torch.manual_seed(3)
    first = small_gpt(5).state_dict()
    torch.manual_seed(4)
    second, other = small_gpt(5).state_dict(), small_gpt(6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_operands_are_observed_only_while_asked() -> None:
    model = quantize_model(small_gpt(), Policy(E4M3, E4M3, E4M3))
    readings: list[Reading] = []
    with observed(model, readings.append):
        model.loss(*batch()).backward()
    seen = {(reading.layer, reading.operand) for reading in readings}
    linear = [name for name in layers_of(model) if name != "embedding"]
    assert seen == {(name, part) for name in linear for part in ("weight", "activation", "grad_output")} | {
        ("embedding", "weight")
    }
    count = len(readings)
    model.loss(*batch()).backward()
    assert len(readings) == count == len(seen)


OBSERVED = {
    "amax": Operand(E4M3),
    "row": Operand(E4M3, scaling=Scaling(granularity="row")),
    "block": Operand(E5M2, scaling=Scaling(granularity="block", block=5)),
    "static": Operand(E4M3, scaling=Scaling("static", value=2.0**-12)),
    "none": Operand(E4M3, scaling=Scaling("none")),
    "delayed": Operand(E4M3, scaling=Scaling("delayed")),
    "mx": Operand(E4M3, scaling=Scaling("mx")),
    "mx_rceil": Operand(get_format("e2m1"), scaling=Scaling("mx_rceil")),
    "nvfp4": Operand(get_format("e2m1"), scaling=Scaling("nvfp4")),
    "stochastic": Operand(E7M0, "stochastic"),
    "fp32": Operand(),
}


@pytest.mark.parametrize("name", OBSERVED)
def test_a_reading_has_the_values_of_the_products_their_scale_and_their_counts(name: str) -> None:
    spec = OBSERVED[name]
    losses, readings = [], []
    for watched in (False, True):
        model = quantize_model(small_gpt(), Policy(spec, spec, spec))
        with observed(model, readings.append if watched else lambda reading: None):
            losses.append(model.loss(*batch()))
            losses[-1].backward()
        losses.append(gradients(model)["blocks.0.mlp.up.weight"])
    plain = quantize_model(small_gpt(), Policy(spec, spec, spec))
    loss = plain.loss(*batch())
    loss.backward()
    assert all(torch.equal(found, loss) for found in losses[::2]), "who looks changes nothing"
    assert all(torch.equal(found, gradients(plain)["blocks.0.mlp.up.weight"]) for found in losses[1::2])
    for reading in readings:
        scale = reading.element_scale
        assert reading.overflow.dtype == reading.underflow.dtype == torch.int64
        if name == "fp32":
            assert reading.rounded is reading.real
            assert reading.overflow == reading.underflow == 0
            continue
        assert int(reading.underflow) == int(((reading.real != 0) & (reading.rounded == 0)).sum())
        if name != "stochastic":
            assert torch.equal(quantize(reading.real, spec.format, scale=scale), reading.rounded)


def test_a_weight_reading_leaves_no_trace() -> None:
    operand = Operand(E4M3, scaling=Scaling("delayed"))
    model = quantize_model(small_gpt(), Policy(operand, operand))
    reading = layers_of(model)["head"].weight_reading()
    assert torch.equal(reading.rounded, layers_of(model)["head"].weight_as_read())
    assert not layers_of(model)["head"].delayed["weight"].history.any()


def test_the_first_bad_tensor_is_named_with_its_phase() -> None:
    model = quantize_model(small_gpt(), Policy(E4M3, E4M3, E4M3))

    def loss() -> torch.Tensor:
        return model.loss(*batch())

    with torch.no_grad():
        model.blocks[0].mlp.up.weight[0, 0] = torch.inf
    assert first_nonfinite(model, [loss]) == ("blocks.0.mlp.up.weight", "optimizer")
    with torch.no_grad():
        model.blocks[0].mlp.up.weight[0, 0] = 0
        model.blocks[1].attention_norm.weight.mul_(3e38)
    tensor, phase = first_nonfinite(model, [loss])
    assert phase == "forward"
    assert tensor.startswith("blocks.1.attention.")
    with torch.no_grad():
        model.blocks[1].attention_norm.weight.div_(3e38)
    assert first_nonfinite(model, [lambda: loss() * torch.tensor(torch.inf)]) == ("loss", "forward")

    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return x.clone()

        @staticmethod
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            return grad * torch.nan

    hook = model.blocks[0].mlp.register_forward_hook(lambda module, inputs, output: Spoil.apply(output))
    assert first_nonfinite(model, [loss]) == ("blocks.0.mlp.down.grad_output", "backward")
    hook.remove()


def test_dequantizing_undoes_the_surgery_bit_by_bit() -> None:
    plain = small_gpt()
    model = quantize_model(copy.deepcopy(plain), Policy(E4M3, E4M3, E5M2))
    changed = model.loss(*batch()).item()
    assert dequantize_model(model) is model
    assert not layers_of(model)
    assert {type(module) for module in model.modules()} == {type(module) for module in plain.modules()}
    assert model.loss(*batch()).item() == plain.loss(*batch()).item() != changed
    assert [module.__dict__.keys() for module in model.modules()] == [
        module.__dict__.keys() for module in plain.modules()
    ]


def test_any_model_is_quantized_by_name_pattern_and_the_first_match_counts() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.Linear(8, 4))
    everything = ("*",)
    quantize_model(model, {"2": Policy(E5M2), "[01]": Policy(E4M3)})
    assert {name: layer.policy.weight.format.name for name, layer in layers_of(model).items()} == {
        "0": "e4m3",
        "2": "e5m2",
    }
    assert layers_of(model)["0"].layer_type == "other"
    quantize_model(model, Policy(E7M0, layers=everything, patterns=("3",)))
    assert list(layers_of(model)) == ["3"]
    quantize_model(model, Policy(E4M3))
    assert list(layers_of(model)) == ["0", "2", "3"]
    with pytest.raises(ValueError, match=r"each layer is left out \(its type, other, is not in layers\)"):
        quantize_model(model, Policy(E4M3, layers=LAYER_TYPES))
    assert list(layers_of(model)) == ["0", "2", "3"], "an error leaves the model as it was"


def test_patterns_restrict_the_layer_types() -> None:
    model = quantize_model(small_gpt(), Policy(weight=E4M3, layers=("mlp",), patterns=("blocks.1.*",)))
    covered = [name for name, layer in layers_of(model).items() if layer.policy.weight.format is E4M3]
    assert covered == ["blocks.1.mlp.up", "blocks.1.mlp.down"]


SCALINGS = {
    "row": Scaling(granularity="row"),
    "block": Scaling(granularity="block", block=8),
    "exact": Scaling(power_of_two=False),
    "static": Scaling("static", value=0.25),
    "none": Scaling("none"),
    "delayed": Scaling("delayed", history=2),
    "mx": Scaling("mx"),
    "mx_rceil": Scaling("mx_rceil"),
    "nvfp4": Scaling("nvfp4"),
}


def on_grid(x: torch.Tensor, scaling: ScaleRule) -> torch.Tensor:
    """The operand by the functions of altgrad.scaling, called one by one."""
    if scaling.kind in ("mx", "mx_rceil"):
        return quantize_mx(x, E4M3, rule="floor" if scaling.kind == "mx" else "rceil")
    if scaling.kind == "nvfp4":
        return quantize_nvfp4(x)
    if scaling.granularity == "block":
        padded = torch.cat([quantize(part, E4M3, scale=amax_scale(part, E4M3, granularity="row")) for part in
                            x.split(scaling.block, dim=-1)], dim=-1)  # fmt: skip
        return padded
    scales = {"static": scaling.value, "none": None}
    if scaling.kind in scales:
        return quantize(x, E4M3, scale=scales[scaling.kind])
    scale = amax_scale(x, E4M3, granularity=scaling.granularity, power_of_two=scaling.power_of_two)
    return quantize(x, E4M3, scale=scale)


@pytest.mark.parametrize("name", SCALINGS)
def test_every_operand_has_its_own_scale_rule(name: str) -> None:
    spec = Operand(get_format("e2m1") if name == "nvfp4" else E4M3, scaling=SCALINGS[name])
    model = torch.nn.ModuleDict({"mlp": torch.nn.Linear(32, 16, bias=False)})
    layer = quantize_model(model, Policy(activation=spec, grad_output=spec))["mlp"]
    x = (torch.randn(6, 32) * torch.logspace(-3, 1, 6)[:, None]).requires_grad_()
    grad = torch.randn(6, 16)
    y = layer(x)
    y.backward(grad)
    assert torch.equal(y, torch.nn.functional.linear(on_grid(x.detach(), spec.scaling), layer.weight))
    torch.testing.assert_close(x.grad, on_grid(grad, spec.scaling) @ layer.weight)
    torch.testing.assert_close(layer.weight.grad, on_grid(grad, spec.scaling).t() @ on_grid(x.detach(), spec.scaling))


def test_a_config_s_scale_rules_are_those_of_the_layers() -> None:
    delayed, row = Scaling("delayed", history=4), Scaling("amax", "row")
    assert delayed == ScaleRule(kind="delayed", history=4)
    scaling = {"granularity": "row", "grad_output": {"kind": "delayed", "history": 4}}
    formats = {"weight": "e4m3", "activation": "e4m3", "grad_output": "e5m2"}
    given = {"quantize": formats | {"rounding": {"grad_output": "stochastic"}}, "scaling": scaling}
    found = policy_of(parse_config(given, source="test"))
    operand = Operand(E4M3, scaling=row)
    assert found == Policy(operand, operand, Operand(E5M2, "stochastic", delayed), layers=(*LAYER_TYPES, "other"))
    assert all(type(found.operand(name).scaling) is ScaleRule for name in ("weight", "grad_output"))


def test_a_delayed_scale_lags_behind_the_tensor_and_may_clip_it() -> None:
    spec = Operand(E4M3, scaling=Scaling("delayed", history=4))
    model = torch.nn.ModuleDict({"mlp": torch.nn.Linear(4, 4, bias=False)})
    layer = quantize_model(model, Policy(activation=spec))["mlp"]
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4))
    small, large = torch.full((2, 4), 3.0), torch.full((2, 4), 3000.0)
    first, second, third = layer(small), layer(large), layer(large)
    assert torch.equal(first, small)
    assert (second < large).all()
    assert (third - large).abs().max() <= large.max() * 2**-4


def test_draws_depend_on_the_clock_and_not_on_what_ran_before() -> None:
    spec = Operand(E4M3, rounding="stochastic")
    x = torch.randn(64, 8)

    def output(step: int, part: int = 0, warm: int = 0) -> torch.Tensor:
        model = torch.nn.ModuleDict({"mlp": torch.nn.Linear(8, 8, bias=False)})
        torch.nn.init.eye_(model["mlp"].weight)
        quantize_model(model, Policy(activation=spec), seed=3)
        for _ in range(warm):
            model["mlp"](x)
        clock_of(model).step, clock_of(model).part = step, part
        return model["mlp"](x)

    assert torch.equal(output(1), output(1, warm=2))
    assert not torch.equal(output(1), output(2))
    assert not torch.equal(output(1), output(1, part=1))
    mean = torch.stack([output(step) for step in range(400)]).mean(0)
    spacing = ulp(x, E4M3, amax_scale(x, E4M3))
    assert ((mean - x).abs() <= 5 * spacing / 2 / 400**0.5).all()


@pytest.mark.parametrize("formats", [(E4M3, E4M3, E5M2), (E4M3, E5M2, E4M3)], ids=["e4m3-e4m3-e5m2", "e4m3-e5m2-e4m3"])
def test_native_products_agree_with_simulated_ones(formats: tuple) -> None:  # type: ignore[type-arg]
    """Within 2^-10 of the sum of the products' magnitudes: hardware may accumulate in fewer bits than float32."""
    generator = torch.Generator().manual_seed(0)
    weight, x, grad = (torch.randn(shape, generator=generator) for shape in ((48, 64), (32, 64), (32, 48)))
    ends = []
    for compute in ("simulated", "native"):
        layer = torch.nn.Linear(64, 48)
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.fill_(0.5)
        model = quantize_model(torch.nn.ModuleDict({"mlp": layer}), Policy(*formats, compute=compute))
        inputs = x.clone().requires_grad_()
        y = model["mlp"](inputs)
        y.backward(grad)
        ends.append((y - 0.5, inputs.grad, layer.weight.grad, layer.bias.grad))
    bounds = (x.abs() @ weight.abs().t(), grad.abs() @ weight.abs(), grad.abs().t() @ x.abs(), grad.abs().sum(0))
    for simulated, native, bound in zip(*ends, bounds, strict=True):
        assert ((simulated - native).abs() <= 2**-10 * bound).all()


def test_native_products_name_the_layer_whose_sizes_do_not_fit() -> None:
    model = torch.nn.ModuleDict({"mlp": torch.nn.Linear(20, 16)})
    quantize_model(model, Policy(E4M3, E4M3, E5M2, compute="native"))
    with pytest.raises(ValueError, match=r"layer mlp: native .* multiples of 16.*simulated"):
        model["mlp"](torch.randn(16, 20))
    with pytest.raises(ValueError, match="compute must be"):
        Policy(compute="fast")


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile, about torch itself
def test_a_compiled_model_has_the_eager_models_gradients() -> None:
    ends = []
    for compiled in (False, True):
        model = quantize_model(small_gpt(layers=1), Policy(E4M3, E4M3, E5M2))  # a second one compiles as long again
        loss = (torch.compile(model.loss, fullgraph=True) if compiled else model.loss)(*batch())
        loss.backward()
        ends.append((loss.detach(), gradients(model)))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-5, atol=0)
    for name, expected in ends[0][1].items():
        found = ends[1][1][name]
        # another order of summation moves a value across a rounding boundary now and then
        assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.9999, name


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile, about torch itself
@pytest.mark.parametrize("name", ["static", "mx"])
def test_a_scale_rule_is_traced_whole(name: str) -> None:
    spec = Operand(E4M3, scaling=SCALINGS[name])
    layer = quantize_model(torch.nn.ModuleDict({"mlp": torch.nn.Linear(32, 16)}), Policy(spec, spec))["mlp"]
    x = torch.randn(6, 32)
    traced = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(x), layer(x))


def test_copies_and_pickles_of_a_quantized_model_still_leave_fp32_operands_alone() -> None:
    model = quantize_model(small_gpt(), Policy(weight=E4M3))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(layer.policy.activation.format is FP32 for layer in layers_of(twin).values())  # type: ignore[union-attr]
        assert len({id(layer.clock) for layer in layers_of(twin).values()}) == 1
        assert torch.equal(twin.loss(*batch()), model.loss(*batch()))
        assert list(twin.state_dict()) == list(small_gpt().state_dict())


@pytest.mark.parametrize(
    "given", [{"padding_idx": 0}, {"scale_grad_by_freq": True}, {"sparse": True}, {"max_norm": 0.5}]
)
@pytest.mark.parametrize("fmt", [FP32, E4M3])
def test_an_embedding_keeps_the_options_it_was_made_with(given: dict[str, float], fmt: FloatFormat) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Embedding(6, 4, **given))
    with torch.no_grad():  # on the grid of E4M3, so that rounding changes no value
        plain[0].weight.copy_(torch.tensor([-2.0, -0.5, 1.0, 4.0])[torch.randint(0, 4, (6, 4))])
    surgical = quantize_model(copy.deepcopy(plain), Policy(weight=Operand(fmt, scaling=Scaling("none")), layers=("*",)))
    token = torch.tensor([[0, 1, 1], [2, 0, 5]])
    found, expected = surgical(token), plain(token)
    (found * 3).sum().backward()
    (expected * 3).sum().backward()
    gradients = [model[0].weight.grad.to_dense() for model in (surgical, plain)]
    assert torch.equal(*gradients)
    assert torch.equal(surgical[0].weight, plain[0].weight)
    assert torch.equal(found, expected if fmt is FP32 else quantize(expected.detach(), E4M3))


def test_a_model_in_evaluation_leaves_no_trace_in_delayed_scales() -> None:
    operand = Operand(E4M3, scaling=Scaling("delayed"))
    model = quantize_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), Policy(operand, operand, layers=("*",)))
    model.eval()(torch.ones(2, 4))
    assert not model[0].delayed["activation"].state_dict()["history"].any()
    model.train()(torch.ones(2, 4))
    assert model[0].delayed["activation"].state_dict()["history"].max() == 1


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Scaling("amx"), "scaling.kind: .*'delayed', 'static'.* .given 'amx'"),
        (lambda: Scaling(granularity="rows"), "scaling.granularity: .*'row', 'block' or 'block_2d' .given 'rows'"),
        (lambda: Scaling("delayed", "row"), "belongs to kind 'amax'"),
        (lambda: Scaling("static"), "value is the scale of kind 'static'"),
        (lambda: Scaling("static", value=0.0), "scaling.value"),
        (lambda: Scaling("delayed", histroy=4), "unknown key 'scaling.histroy'; did you mean 'scaling.history'"),
        (lambda: Scaling("amx", "rows"), "scaling.granularity: .*and 1 more"),
        (lambda: Operand(E4M3, "stochastical"), "rounding must be one of"),
        (lambda: Policy(Operand(E4M3, scaling=Scaling("nvfp4"))), "a rule for e2m1, and weight is e4m3"),
        (lambda: Policy(E4M3, layers=("haed",)), "layers must be of"),
        (lambda: Policy(E4M3, layers="head"), "must be a tuple"),  # type: ignore[arg-type]
        (lambda: Policy(E4M3, patterns="a.*"), "must be a tuple"),  # type: ignore[arg-type]
        (lambda: Policy(E4M3, E4M3, compute="native"), "grad_output is fp32"),
        (lambda: Policy(*[Operand(E4M3, scaling=Scaling("mx"))] * 3, compute="native"), "one scale per tensor"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused_where_it_is_made(make: Callable[[], object], word: str) -> None:
    with pytest.raises(ValueError, match=word) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_config_and_a_layer_know_the_same_native_formats() -> None:
    assert set(NATIVE_DTYPES) == set(NATIVE_FORMATS)


def test_a_process_with_scales_of_its_own_draws_what_its_rows_draw_in_the_whole_batch() -> None:
    """`scaling.reduce: none`: there is no group, and rank 1 of two begins behind the rows of rank 0."""
    spec = Operand(E4M3, "stochastic", Scaling("none"))
    layer = quantize_model(torch.nn.ModuleDict({"mlp": torch.nn.Linear(6, 4)}), Policy(activation=spec))["mlp"]
    layer.clock.step, rows = 3, torch.randn(8, 6)
    both = layer(rows)
    layer.clock.rank = 1
    assert torch.equal(layer(rows[4:]), both[4:])
    layer.clock.rank = 0
    assert not torch.equal(layer(rows[4:]), both[4:])
