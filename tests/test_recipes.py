"""The recipes that have a name: each cast is the real tool's, or what its published equations give, bit for bit."""

from __future__ import annotations

import inspect
import itertools
import math
import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.linalg

torch = pytest.importorskip("torch")

from test_scaling import MX_TABLE, mx_reference, on_grid, torchao  # noqa: E402, F401

from altgrad.cli import main  # noqa: E402
from altgrad.config import ExperimentConfig, UsageError, load_config, parse_config  # noqa: E402
from altgrad.formats import get_format, stochastic_draw  # noqa: E402
from altgrad.nn import (  # noqa: E402
    Operand,
    Policy,
    Reading,
    Scaling,
    clock_of,
    observed,
    policies_of,
    quantize_model,
    quantized_layers,
    recipe,
)
from altgrad.recipes import RECIPES, recipe_keys  # noqa: E402
from altgrad.scaling import inverse_scale_of_amax  # noqa: E402
from altgrad.training import train  # noqa: E402
from altgrad.training.loop import build_model  # noqa: E402

Array = np.ndarray
ROWS, INPUTS, OUTPUTS = 160, 256, 192
FORMATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
single = np.float32


def heavy_tailed(*shape: int, seed: int) -> Array:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal(shape) * np.exp2(generator.integers(-6, 7, shape))
    x[0, :5] = (0.0, -0.0, 1e-30, -1e-30, 3.0)
    return x.astype(single)


TENSORS = {
    "activation": heavy_tailed(ROWS, INPUTS, seed=1),
    "weight": heavy_tailed(OUTPUTS, INPUTS, seed=2),
    "grad_output": heavy_tailed(ROWS, OUTPUTS, seed=3),
}
CASTS = (*TENSORS, "grad_input.weight", "grad_weight.activation", "grad_weight.grad_output")


def one_layer() -> Any:
    layer = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(TENSORS["weight"]))
    return layer


def pass_through(layer: Any, factor: float = 1.0) -> dict[str, Reading]:
    """The six casts of a forward and a backward pass, of which some are shared."""
    readings: list[Reading] = []
    with observed(layer, readings.append):
        x = torch.from_numpy(TENSORS["activation"] * single(factor)).requires_grad_()
        layer(x).backward(torch.from_numpy(TENSORS["grad_output"]))
    found = {reading.cast: reading for reading in readings}
    return {cast: found.get(cast, found[cast.rpartition(".")[2]]) for cast in CASTS}


def rounded(name: str, **settings: Any) -> dict[str, Array]:
    model = quantize_model(one_layer(), recipe(name, **settings))
    return {cast: reading.rounded.detach().numpy() for cast, reading in pass_through(model).items()}


def same(found: Array, expected: Array) -> None:
    assert np.array_equal(found.view(np.int32), np.asarray(expected, dtype=single).view(np.int32))


def grid(x: Array, element: str) -> Array:
    _, maximum, emin, bits = MX_TABLE[element]
    return on_grid(x.astype(np.float64), maximum, emin, bits)


def divided(x: Array, scale: Array, element: str) -> Array:
    """round(x / scale) * scale, each step a float32."""
    with np.errstate(under="ignore"):
        return (grid((x / scale).astype(single), element).astype(single) * scale).astype(single)


def multiplied(x: Array, inverse: Array, element: str) -> Array:
    """round(x * inverse) / inverse, each step a float32."""
    with np.errstate(under="ignore"):
        return (grid((x * inverse).astype(single), element).astype(single) / inverse).astype(single)


def amax_of_tiles(x: Array, tile: tuple[int, int]) -> Array:
    """float32, one an element."""
    largest = np.empty_like(x)
    for row in range(0, x.shape[0], tile[0]):
        for column in range(0, x.shape[1], tile[1]):
            place = slice(row, row + tile[0]), slice(column, column + tile[1])
            largest[place] = np.abs(x[place]).max()
    return largest


# torchao's own casts


@pytest.fixture(scope="module")
def float8() -> SimpleNamespace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = pytest.importorskip("torchao.float8.config", exc_type=ImportError)
        from torchao.float8.float8_linear import Float8Linear
        from torchao.float8.float8_scaling_utils import hp_tensor_to_float8_dynamic
        from torchao.float8.float8_training_tensor import LinearMMConfig
    return SimpleNamespace(
        config=config, linear=Float8Linear, cast=hp_tensor_to_float8_dynamic, products=LinearMMConfig()
    )


TORCHAO = {
    "torchao-tensorwise": "tensorwise",
    "torchao-rowwise": "rowwise",
    "torchao-rowwise-gw-hp": "rowwise_with_gw_hp",
}


@pytest.mark.parametrize("power_of_two", [None, True, False])
@pytest.mark.parametrize("name", TORCHAO)
def test_every_cast_is_that_of_torchao(float8: SimpleNamespace, name: str, power_of_two: bool | None) -> None:
    config = float8.config.Float8LinearConfig.from_recipe_name(TORCHAO[name])
    settings = {} if power_of_two is None else {"round_scales_to_power_of_2": power_of_two}
    powers = settings.get("round_scales_to_power_of_2", config.round_scales_to_power_of_2)
    casts = {
        "activation": (config.cast_config_input, -1),
        "weight": (config.cast_config_weight, -1),
        "grad_output": (config.cast_config_grad_output, -1),
        "grad_input.weight": (config.cast_config_weight_for_grad_input, 0),
        "grad_weight.activation": (config.cast_config_input_for_grad_weight, 0),
        "grad_weight.grad_output": (config.cast_config_grad_output_for_grad_weight, 0),
    }
    found = rounded(name, **settings)
    for cast, (how, dim) in casts.items():
        x = torch.from_numpy(TENSORS[cast.rpartition(".")[2]])
        expected = x
        if how.scaling_type is not float8.config.ScalingType.DISABLED:
            by_rows = how.scaling_granularity is float8.config.ScalingGranularity.AXISWISE
            expected = float8.cast(
                x,
                how.target_dtype,
                float8.products,
                scaling_granularity=how.scaling_granularity,
                axiswise_dim=dim if by_rows else None,
                round_scales_to_power_of_2=powers,
            ).to_original_precision()
        same(found[cast], expected.numpy())


@pytest.mark.parametrize("name", TORCHAO)
def test_a_layer_is_that_of_torchao(float8: SimpleNamespace, name: str) -> None:
    """Emulated, as its kernels need a GPU: the same products of the same values."""
    config = float8.config.Float8LinearConfig.from_recipe_name(TORCHAO[name])
    object.__setattr__(config, "emulate", True)
    theirs = float8.linear.from_float(one_layer(), config)
    ours = quantize_model(one_layer(), name)
    found = []
    for layer in (ours, theirs):
        x = torch.from_numpy(TENSORS["activation"]).requires_grad_()
        y = layer(x)
        y.backward(torch.from_numpy(TENSORS["grad_output"]))
        found.append((y.detach(), x.grad, layer.weight.grad))
    for mine, its in zip(*found, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6 * float(its.abs().max()))


@pytest.mark.parametrize("mode", ["rceil", "floor"])
@pytest.mark.parametrize("fp8_format", ["E4M3", "HYBRID"])
def test_mxfp8_is_that_of_torchao(torchao: Any, mode: str, fp8_format: str) -> None:  # noqa: F811
    """But for the last bit of `rceil` just above a power of two, which a test of the scales pins."""
    found = rounded("mxfp8", scale_calculation_mode=mode, fp8_format=fp8_format)
    for cast, values in found.items():
        operand = cast.rpartition(".")[2]
        element = "e5m2" if operand == "grad_output" and fp8_format == "HYBRID" else "e4m3"
        x = TENSORS[operand].T if "." in cast else TENSORS[operand]
        fmt = SimpleNamespace(name=element)
        expected = torchao.dequantize_mx(torch.from_numpy(np.ascontiguousarray(x)), fmt, mode).numpy()
        same(np.ascontiguousarray(values.T if "." in cast else values), expected)
        same(expected, mx_reference(x, element, mode)[0])


# The published equations, in numpy


def delayed_reference(amax: list[float], maximum: float, margin: int, algorithm: str) -> Array:
    """(max / amax) / 2**margin over the history, as Transformer Engine's DelayedScaling documents it."""
    chosen = max(amax) if algorithm == "max" else amax[-1]
    return single(single(maximum) / single(chosen)) / single(2.0**margin)


@pytest.mark.parametrize("fp8_format", ["HYBRID", "E4M3"])
@pytest.mark.parametrize(("margin", "length", "algorithm"), [(0, 1024, "max"), (2, 2, "max"), (1, 3, "most_recent")])
def test_te_delayed_scales_by_the_history(fp8_format: str, margin: int, length: int, algorithm: str) -> None:
    settings = {"margin": margin, "amax_history_len": length, "amax_compute_algo": algorithm}
    model = quantize_model(one_layer(), recipe("te-delayed", fp8_format=fp8_format, **settings))
    clock, history = clock_of(model), []
    for clock.step, factor in enumerate((1.0, 40.0, 0.3, 2.0, 0.1)):
        readings = pass_through(model, factor)
        x = TENSORS["activation"] * single(factor)
        known = history[-length:] or [float(np.abs(x).max())]  # the first step takes the scale of its own tensor
        same(
            readings["activation"].rounded.detach().numpy(),
            multiplied(x, delayed_reference(known, 448, margin, algorithm), "e4m3"),
        )
        history.append(float(np.abs(x).max()))
    element = "e5m2" if fp8_format == "HYBRID" else "e4m3"
    largest = [float(np.abs(TENSORS["grad_output"]).max())]
    inverse = delayed_reference(largest, MX_TABLE[element][1], margin, algorithm)
    same(readings["grad_output"].rounded.numpy(), multiplied(TENSORS["grad_output"], inverse, element))


@pytest.mark.parametrize("powers", [False, True])
def test_te_current_scales_each_tensor(powers: bool) -> None:
    found = rounded("te-current", use_power_2_scales=powers)
    for cast, values in found.items():
        x = TENSORS[cast.rpartition(".")[2]]
        element = "e5m2" if "grad_output" in cast else "e4m3"
        inverse = single(MX_TABLE[element][1]) / np.abs(x).max()
        if powers:  # the mantissa of max / amax is dropped
            inverse = single(2.0 ** (math.frexp(inverse)[1] - 1))
        same(values, multiplied(x, inverse, element))


def tiles(cast: str, size: int, square: tuple[str, ...] = ("weight",)) -> tuple[int, int]:
    if cast.rpartition(".")[2] in square:
        return size, size
    return (size, 1) if "." in cast else (1, size)


@pytest.mark.parametrize("wide", [False, True])
def test_te_block_scales_tiles_and_squares(wide: bool) -> None:
    for cast, values in rounded("te-block", use_f32_scales=wide).items():
        x = TENSORS[cast.rpartition(".")[2]]
        inverse = (single(448) / amax_of_tiles(x, tiles(cast, 128))).astype(single)
        if not wide:
            inverse = np.exp2(np.frexp(inverse)[1] - 1.0).astype(single)
        same(values, multiplied(x, inverse, "e4m3"))


@pytest.mark.parametrize("powers", [False, True])
def test_deepseek_v3_scales_tiles_and_squares(powers: bool) -> None:
    """Section 3.3.2: the scale takes the largest value of the tile to that of the format."""
    for cast, values in rounded("deepseek-v3", ue8m0=powers).items():
        x = TENSORS[cast.rpartition(".")[2]]
        scale = (amax_of_tiles(x, tiles(cast, 128)) / single(448)).astype(single)
        if powers:
            mantissa, exponent = np.frexp(scale)
            scale = np.exp2(exponent - (mantissa == 0.5) * 1.0).astype(single)
        same(values, divided(x, scale, "e4m3"))


def test_fp8_hybrid_scales_by_the_smallest_power_of_two() -> None:
    for cast, values in rounded("fp8-hybrid").items():
        x, element = TENSORS[cast.rpartition(".")[2]], "e5m2" if "grad_output" in cast else "e4m3"
        scale = 2.0**-100
        while np.abs(x).max() / scale > MX_TABLE[element][1]:
            scale *= 2
        same(values, divided(x, single(scale), element))


def nvfp4_scales(x: Array, tile: tuple[int, int]) -> Array:
    """arXiv 2509.25149, appendix C: a float32 for the tensor, E4M3 for each block; float32, one an element."""
    outer = single(np.abs(x).max() / single(6 * 448))
    wanted = ((amax_of_tiles(x, tile) / single(6)).astype(single) / outer).astype(single)
    inner = on_grid(np.maximum(wanted, 2.0**-6).astype(np.float64), 448, -6, 3)
    return (inner.astype(single) * outer).astype(single)


def stochastic(x: Array, scale: Array, seed: int) -> Array:
    """Away from zero with the probability that is the part of the spacing that is left, by the documented draws."""
    quotient = np.clip((x / scale).astype(single).astype(np.float64), -6, 6)
    magnitude = np.abs(quotient)
    spacing = np.ldexp(1.0, np.maximum(np.frexp(magnitude)[1] - 1, 0) - 1)
    below = np.floor(magnitude / spacing)
    draws = np.array([stochastic_draw(seed, index) for index in range(x.size)]).reshape(x.shape)
    value = np.copysign((below + (draws < magnitude / spacing - below)) * spacing, quotient)
    return (value.astype(single) * scale).astype(single)


NVFP4_SWITCHES = ({}, {"disable_rht": True}, {"disable_stochastic_rounding": True}, {"disable_2d_quantization": True})


@pytest.mark.parametrize("settings", NVFP4_SWITCHES, ids=lambda given: next(iter(given), "all"))
def test_nvfp4_has_blocks_of_16_squares_a_rotation_and_stochastic_gradients(settings: Mapping[str, bool]) -> None:
    model = quantize_model(one_layer(), recipe("nvfp4", **settings), seed=7)
    readings = pass_through(model)
    if not settings.get("disable_rht"):
        matrix = model.rotations[16].numpy()
        signs = matrix[:, 0] * 4
        assert set(signs.tolist()) == {-1.0, 1.0}
        assert np.array_equal(matrix, signs[:, None] * scipy.linalg.hadamard(16) / 4)
    square = () if settings.get("disable_2d_quantization") else ("weight",)
    for cast, reading in readings.items():
        operand = cast.rpartition(".")[2]
        x = TENSORS[operand]
        if cast.startswith("grad_weight.") and not settings.get("disable_rht"):
            turned = np.einsum("ij,bic->bjc", matrix.astype(np.float64), x.reshape(ROWS // 16, 16, -1))
            read = reading.real.detach().numpy()
            np.testing.assert_allclose(read, turned.reshape(x.shape), rtol=0, atol=2e-6 * np.abs(x).max())
            x = read
        scale = nvfp4_scales(x, tiles(cast, 16, square))
        if operand == "grad_output" and not settings.get("disable_stochastic_rounding"):
            expected = stochastic(x, scale, model.clock.seed_of("", cast))
        else:
            expected = divided(x, scale, "e2m1")
        same(reading.rounded.detach().numpy(), expected)


def test_a_fault_in_any_recipe_would_be_seen() -> None:
    """The oracles above tell the recipes apart: none passes for another, but where two are the same in one step."""
    values = {name: rounded(name) for name in RECIPES}
    alike = {
        frozenset((one, other))
        for one in values
        for other in values
        if one != other and all(np.array_equal(values[one][cast], values[other][cast]) for cast in CASTS)
    }
    same_scales = ("te-current", "te-delayed", "torchao-tensorwise")
    assert alike == {frozenset(pair) for pair in itertools.combinations(same_scales, 2)}


# The inverse that torchao and Transformer Engine multiply by


def test_the_inverse_is_max_over_amax_and_defined_where_that_is_not() -> None:
    largest = torch.tensor([0.0, 448.0, 3.0, 1e-45, 3.4e38, torch.inf, torch.nan])
    found = inverse_scale_of_amax(largest, get_format("e4m3"))
    assert found[:2].tolist() == [1.0, 1.0]
    assert found[2] == single(448) / single(3)
    assert found[3] == np.finfo(single).max
    assert 0 < found[4] < 1e-35
    assert found[5:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_tensors_are_multiplied_in_float32(dtype: Any) -> None:
    layer = quantize_model(torch.nn.ModuleDict({"mlp": torch.nn.Linear(8, 8)}), "te-current")["mlp"]
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = layer.operand(x.float(), "activation")
    found = layer.operand(x, "activation")
    assert found.dtype == dtype
    assert torch.equal(found, expected.to(dtype))


def test_the_scale_of_a_reading_is_what_codes_are_multiplied_by() -> None:
    for name in ("te-current", "te-block"):
        settings = {"use_f32_scales": True} if name == "te-block" else {}
        for cast, reading in pass_through(quantize_model(one_layer(), recipe(name, **settings))).items():
            scale = reading.element_scale
            codes = reading.rounded.detach() / scale
            fmt = torch.float8_e5m2 if cast.endswith("grad_output") and name == "te-current" else torch.float8_e4m3fn
            torch.testing.assert_close(codes, codes.to(fmt).float(), rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile, about torch itself
def test_one_compiled_graph_rounds_as_the_eager_layer() -> None:
    outputs = []
    for compiled in (False, True):
        model = quantize_model(one_layer(), "te-delayed")
        run = torch.compile(model, backend="eager") if compiled else model
        for factor in (1.0, 3.0):
            y = run(torch.from_numpy(TENSORS["activation"] * single(factor)))
        outputs.append(y.detach())
    assert torch.equal(*outputs)


# Recipes in a config


SMALL: dict[str, Any] = {
    "model": {"layers": 1, "dim": 32, "heads": 2, "context": 16},
    "max_steps": 2,
    "batch_size": 4,
    "eval_batches": 1,
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_config_and_its_policy_the_recipe_s(name: str) -> None:
    config = parse_config({"recipe": name, **SMALL}, "test")
    keys = parse_config({**recipe_keys(name), **SMALL}, "test")
    assert config.identity() == keys.identity()
    assert config.resolved_name == name
    assert parse_config(config.model_dump(mode="json"), "a record") == config
    by_config = policies_of(config)["*"]
    assert recipe(name) == policies_of(keys)  # so that what is recorded is what ran
    assert by_config.layers == ("attention", "mlp", "other")
    model = build_model(config)
    kinds = {layer.layer_type for layer in quantized_layers(model).values() if layer.policy == by_config}
    assert kinds == {"attention", "mlp"}
    token = torch.randint(0, 96, (4, 16))
    model.loss(token, token).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("name", [*RECIPES, "mx", "mx_rceil", "none", "row", "block_2d", "static"])
def test_zeros_and_rows_of_zeros_stay_finite(name: str) -> None:
    given = {"row": {"granularity": "row"}, "block_2d": {"granularity": "block_2d"}, "static": {"value": 0.5}}
    kind = name if name in ("mx", "mx_rceil", "none", "static") else "amax"
    spec = Operand(get_format("e4m3"), scaling=Scaling(kind, **given.get(name, {})))
    policy = recipe(name) if name in RECIPES else Policy(spec, spec, spec)
    layer = quantize_model(torch.nn.ModuleDict({"mlp": torch.nn.Linear(32, 48, bias=False)}), policy)["mlp"]
    for rows in (0, 5):
        x = torch.zeros(5, 32, requires_grad=True)
        x.data[:rows, 3] = 2.0
        y = layer(x)
        (y * (x.detach().sum(-1, keepdim=True))).sum().backward()  # zeros in grad_output too
        assert y[rows:].eq(0).all()
        assert y.isfinite().all()
        assert layer.weight.grad.isfinite().all()
        assert x.grad.isfinite().all()


def test_head_embedding_and_wide_say_which_layers_are_quantized() -> None:
    given = {"name": "fp8-hybrid", "head": True, "embedding": True, "wide": ["*.projection"]}
    model = build_model(parse_config({"recipe": given, **SMALL}, "test"))
    rounds = {name: layer.policy.weight.format.name for name, layer in quantized_layers(model).items()}
    assert rounds["head"] == rounds["embedding"] == rounds["blocks.0.attention.qkv"] == "e4m3"
    assert rounds["blocks.0.attention.projection"] == "fp32"
    foreign = torch.nn.ModuleDict({"up": torch.nn.Linear(8, 8), "gate": torch.nn.Linear(8, 8)})
    quantize_model(torch.nn.ModuleDict({"experts": foreign}), "deepseek-v3")
    assert foreign["up"].policy.weight.format.name == "e4m3"
    assert foreign["gate"].policy.weight.format.name == "fp32"


def test_a_format_s_name_is_a_policy_of_all_operands_and_of_fp32_the_baseline() -> None:
    e4m3, e5m2 = get_format("e4m3"), get_format("e5m2")
    mlp = {"mlp": torch.nn.Linear(32, 16), "head": torch.nn.Linear(16, 4)}
    named = quantized_layers(quantize_model(torch.nn.ModuleDict(mlp), "E4M3"))
    whole = Policy(e4m3, e4m3, e4m3, layers=("attention", "mlp", "embedding", "head", "other"))
    assert {name: layer.policy for name, layer in named.items()} == dict.fromkeys(mlp, whole)
    assert Policy("e4m3", Operand("e4m3"), "e5m2", casts={"grad_weight.activation": "e5m2"}) == Policy(
        e4m3, e4m3, e5m2, casts={"grad_weight.activation": e5m2}
    )
    with pytest.raises(ValueError, match="unknown format 'e4m'"):
        Policy("e4m", "e4m3", "e5m2")
    with pytest.raises(ValueError, match="'e4m3' is a format, which has no setting 'head'"):
        recipe("e4m3", head=True)
    with pytest.raises(ValueError, match="no recipe is called 'e4m'"):
        quantize_model(torch.nn.ModuleDict(mlp), "e4m")
    assert recipe_keys("fp32") == {"quantize": dict.fromkeys(("weight", "activation", "grad_output"), "fp32")}
    observed = quantized_layers(quantize_model(torch.nn.ModuleDict(mlp), "fp32")).values()
    assert [layer.policy.rounds for layer in observed] == [False, False]


def test_keys_beside_a_recipe_win_and_sections_are_merged(tmp_path: Any) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("recipe: te-delayed\nquantize: {grad_output: e4m3}\n")
    config = load_config(path, ["recipe.margin=3", "scaling.history=8", "max_steps=7"])
    assert (config.quantize.weight, config.quantize.grad_output) == ("e4m3", "e4m3")
    assert (config.scaling.margin, config.scaling.history, config.max_steps) == (3, 8, 7)
    assert config.scaling.quotient == "inverse"
    assert load_config(path, ["recipe=mxfp8", "name=mine"]).resolved_name == "mine"


def test_what_no_recipe_is_has_no_key_of_it() -> None:
    assert "wide" not in ExperimentConfig().identity()["quantize"]
    assert "recipe" not in parse_config({"recipe": "nvfp4"}, "test").model_dump()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nvfp", "no recipe is called 'nvfp'; did you mean 'nvfp4'?"),
        ("x" * 500, "no recipe is called 'xxx"),
        ({"margin": 1}, "recipe must be a name, or a mapping of name and settings"),
        (3, "recipe must be a name"),
        (
            {"name": "te-delayed", "margins": 1},
            "recipe 'te-delayed' has no setting 'margins'; it has margin, ",
        ),
        ({"name": "te-delayed", "margin": "one"}, "recipe 'te-delayed': margin must be a whole number, not 'one'"),
        ({"name": "te-delayed", "margin": True}, "margin must be a whole number, not True"),
        ({"name": "te-delayed", "margin": -1}, "scaling.margin: Input should be greater than or equal to 0"),
        ({"name": "te-delayed", "fp8_format": "E5M2"}, "fp8_format must be 'E4M3' or 'HYBRID', not 'E5M2'"),
        (
            {"name": "te-delayed", "amax_compute_algo": "min"},
            "scaling.algorithm: Input should be 'max'",
        ),
        ({"name": "nvfp4", "disable_rht": "yes"}, "disable_rht must be true or false, not 'yes'"),
        ({"name": "nvfp4", "wide": "head"}, "wide must be a list of layer names, not 'head'"),
        ({"name": "mxfp8", "scale_calculation_mode": "up"}, "scale_calculation_mode must be 'rceil' or 'floor'"),
        ({"name": "deepseek-v3", "block_size": 0}, "scaling.block: Input should be greater than or equal to 1"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line(given: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_config({"recipe": given}, "test")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_recipe_that_leaves_no_layer_is_refused() -> None:
    config = parse_config({"recipe": {"name": "mxfp8", "wide": ["blocks.*"]}, **SMALL}, "test")
    with pytest.raises(UsageError, match=r"quantize.wide=\['blocks.\*'\] leaves no layer of quantize.layers"):
        build_model(config)


def test_a_run_with_a_recipe_is_recorded_with_its_keys(tmp_path: Any) -> None:
    config = parse_config({"recipe": "nvfp4", **SMALL}, "test")
    result = train(config, tmp_path, progress=False)
    assert result.status == "finished"
    assert result.run_id.startswith("nvfp4-s0-")


def test_recipes_lists_each_with_source_settings_and_differences(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    for name, each in RECIPES.items():
        assert f"{name}\n  {each.what}\n  source: {each.source}\n  differs: {each.differs[0]}" in listed
        assert main(["recipes", name]) == 0
        shown = capsys.readouterr().out
        assert each.source in shown
        assert all(f"  - {line}\n" in shown for line in each.differs)
        assert all(f"  {key}: " in shown for key in inspect.signature(each.keys).parameters)
    assert main(["recipes", "fp8"]) == 2
    assert "did you mean" in capsys.readouterr().err
