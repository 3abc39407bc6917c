"""Six casts: each product reads its own, scales lie where the recipes have them, and a rotation leaves the product."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

torch = pytest.importorskip("torch")

from test_nn import batch, small_gpt  # noqa: E402
from test_scaling import E2M1, E4M3, MX_TABLE, on_grid, same, torchao  # noqa: E402, F401

from altgrad.analysis.loader import format_label, scope_key, scope_label  # noqa: E402
from altgrad.config import ExperimentConfig, UsageError, command, parse_config  # noqa: E402
from altgrad.formats import FP32, FloatFormat, get_format  # noqa: E402
from altgrad.nn import (  # noqa: E402
    Operand,
    Policy,
    QuantizedLinear,
    Reading,
    Scaling,
    observed,
    quantize_model,
    quantized_layers,
)
from altgrad.rounding import quantize  # noqa: E402
from altgrad.scaling import amax_scale, expand_tiles, in_tiles, quantize_mx, tile_amax  # noqa: E402
from altgrad.telemetry import Look  # noqa: E402
from altgrad.training import train  # noqa: E402
from altgrad.training.loop import policy_of, shifted  # noqa: E402

BF16 = get_format("bf16")
Array = np.ndarray
FIRST, SECOND = (
    ("activation", "weight", "grad_output"),
    (
        "grad_input.weight",
        "grad_weight.activation",
        "grad_weight.grad_output",
    ),
)


# The recipes, from the equations that they were published with


def mx(name: str) -> Callable[[float, float], float]:
    """OCP MX 1.0, section 6.3: the largest power of two not above the block's amax, over that of the element format."""
    return lambda block, _: 2.0 ** (math.frexp(block)[1] - 1 - MX_TABLE[name][0])


def nvfp4(block: float, tensor: float) -> float:
    """arXiv 2509.25149, appendix: s = amax / (6 * 448) for the tensor, in float32, E4M3(amax_block / 6 / s) a block."""
    outer = float(np.float32(tensor / (6 * 448)))
    return float(np.float32(float(on_grid(np.array(max(block / 6 / outer, 2.0**-6)), 448, -6, 3)) * outer))


def online(block: float, _: float) -> float:
    """arXiv 2412.19437, section 3.3.2: the float32 scale that brings the amax of the tile to the largest value."""
    return float(np.float32(block / 448))


Tile = tuple[int, int]


def tiles_of(shape: tuple[int, ...], tile: Tile) -> Iterator[tuple[slice, slice]]:
    for row in range(0, shape[0], tile[0]):
        for column in range(0, shape[1], tile[1]):
            yield slice(row, row + tile[0]), slice(column, column + tile[1])


def by_tiles(x: Array, tile: Tile, scale_of: Callable[[float, float], float], element: str) -> Array:
    """float64: each tile divided by its scale, rounded to nearest even, saturated, and multiplied again."""
    _, maximum, emin, bits = MX_TABLE[element]
    found, largest = np.empty(x.shape), np.abs(x).max()
    for place in tiles_of(x.shape, tile):
        scale = scale_of(np.abs(x[place]).max(), largest)
        found[place] = on_grid(x[place] / scale, maximum, emin, bits) * scale
    return found


class Recipe:
    """Operands for a policy, and the tiles of its six casts in an independent description."""

    def __init__(self, operand: Operand, size: int, rule: Callable[[float, float], float], element: str) -> None:
        self.operands = dict.fromkeys(FIRST, operand)
        self.rule, self.element = rule, element
        self.tiles: dict[str, Tile] = dict.fromkeys(FIRST, (1, size)) | dict.fromkeys(SECOND, (size, 1))

    def with_square_weights(self, operand: Operand, size: int) -> Recipe:
        self.operands["weight"] = operand
        self.tiles |= dict.fromkeys(("weight", "grad_input.weight"), (size, size))
        return self

    def reference(self, x: Array, cast: str) -> Array:
        return by_tiles(x, self.tiles[cast], self.rule, self.element)


def along(kind: str, fmt: FloatFormat, **settings: object) -> Operand:
    return Operand(fmt, scaling=Scaling(kind, **{"axis": "contraction", **settings}))  # type: ignore[arg-type]


EXACT = {"power_of_two": False}
RECIPES: dict[str, Callable[[], Recipe]] = {
    "mxfp8": lambda: Recipe(along("mx", E4M3), 32, mx("e4m3"), "e4m3"),
    "mxfp4": lambda: Recipe(along("mx", E2M1), 32, mx("e2m1"), "e2m1"),
    "nvfp4": lambda: Recipe(along("nvfp4", E2M1), 16, nvfp4, "e2m1"),
    "nvfp4 with square weights": lambda: Recipe(along("nvfp4", E2M1), 16, nvfp4, "e2m1").with_square_weights(
        Operand(E2M1, scaling=Scaling("nvfp4", "block_2d")), 16
    ),
    "mxfp8 with square weights": lambda: Recipe(along("mx", E4M3), 32, mx("e4m3"), "e4m3").with_square_weights(
        Operand(E4M3, scaling=Scaling("mx", "block_2d")), 32
    ),
    "deepseek-v3": lambda: Recipe(
        along("amax", E4M3, granularity="block", block=128, **EXACT), 128, online, "e4m3"
    ).with_square_weights(Operand(E4M3, scaling=Scaling("amax", "block_2d", block=128, **EXACT)), 128),
    "rows": lambda: Recipe(along("amax", E4M3, granularity="row", **EXACT), 10_000, online, "e4m3"),
}
recipes = pytest.mark.parametrize("name", RECIPES)
SIZES = {"N": (2, 75), "I": 200, "O": 136}
"""No side is a multiple of 128, and the rows are none of 16 or 32 either."""


def heavy_tailed(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randint(-5, 6, shape, generator=generator).float().exp2()
    return torch.randn(shape, generator=generator) * spread


def pass_through(policy: Policy, seed: int = 0) -> tuple[dict[str, Reading], dict[str, torch.Tensor]]:
    """The readings of a layer's forward and backward pass by cast, and its products with what went in."""
    layer = torch.nn.Linear(SIZES["I"], SIZES["O"], bias=False)  # type: ignore[arg-type]
    x = heavy_tailed(*SIZES["N"], SIZES["I"], seed=1).requires_grad_()  # type: ignore[misc]
    grad = heavy_tailed(*SIZES["N"], SIZES["O"], seed=2)  # type: ignore[misc]
    with torch.no_grad():
        layer.weight.copy_(heavy_tailed(SIZES["O"], SIZES["I"], seed=3))  # type: ignore[arg-type]
    model = quantize_model(torch.nn.ModuleDict({"mlp": layer}), policy, seed=seed)
    readings: list[Reading] = []
    with observed(model, readings.append):
        y = layer(x)
        y.backward(grad)
    by_cast = {reading.cast: reading for reading in readings}
    assert len(by_cast) == len(readings)
    tensors = {"activation": x.detach().flatten(0, 1), "weight": layer.weight.detach(), "grad_output": grad}
    tensors |= {"output": y.detach(), "grad_input": x.grad, "grad_weight": layer.weight.grad}
    return by_cast, {key: value.flatten(0, -2) for key, value in tensors.items()}


def check(recipe: Recipe, right: Recipe) -> None:
    """The policy of `right` makes the casts and products that `recipe` describes."""
    readings, found = pass_through(Policy(**right.operands))
    casts: dict[str, Array] = {}
    for cast in (*FIRST, *SECOND):
        operand = cast.rpartition(".")[2]
        reading = readings.get(cast, readings[operand])  # squares are shared
        casts[cast] = recipe.reference(found[operand].double().numpy(), cast)
        np.testing.assert_allclose(reading.rounded.flatten(0, -2).double().numpy(), casts[cast], rtol=1e-6, atol=0)
    products = {
        "output": (casts["activation"], casts["weight"].T),
        "grad_input": (casts["grad_output"], casts["grad_input.weight"]),
        "grad_weight": (casts["grad_weight.grad_output"].T, casts["grad_weight.activation"]),
    }
    for product, (a, b) in products.items():
        lost = np.abs(found[product].double().numpy() - a @ b)
        assert (lost <= 1e-5 * (np.abs(a) @ np.abs(b))).all(), product


@recipes
def test_casts_and_products_are_those_of_the_published_equations(name: str) -> None:
    check(RECIPES[name](), RECIPES[name]())


def the_last_axis_for_all(recipe: Recipe) -> None:
    for operand, cast in (("weight", SECOND[0]), ("activation", SECOND[1]), ("grad_output", SECOND[2])):
        recipe.tiles[cast] = recipe.tiles[operand]


def the_other_axis(recipe: Recipe) -> None:
    for cast in (*FIRST, *SECOND):
        recipe.tiles[cast] = recipe.tiles[cast][::-1]


def half_the_block(recipe: Recipe) -> None:
    recipe.tiles = {cast: (max(a // 2, 1), max(b // 2, 1)) for cast, (a, b) in recipe.tiles.items()}
    recipe.tiles = {cast: (min(a, 64), min(b, 64)) for cast, (a, b) in recipe.tiles.items()}


def twice_the_scale(recipe: Recipe) -> None:
    rule = recipe.rule
    recipe.rule = lambda block, tensor: 2 * rule(block, tensor)


def the_scale_of_the_tensor(recipe: Recipe) -> None:
    rule = recipe.rule
    recipe.rule = lambda _, tensor: rule(tensor, tensor)


@recipes
@pytest.mark.parametrize(
    "mistake", [the_last_axis_for_all, the_other_axis, half_the_block, twice_the_scale, the_scale_of_the_tensor]
)
def test_a_planted_axis_block_or_scale_is_seen(name: str, mistake: Callable[[Recipe], None]) -> None:
    wrong = RECIPES[name]()
    mistake(wrong)
    with pytest.raises(AssertionError):
        check(wrong, RECIPES[name]())


@pytest.mark.parametrize("rule", ["floor", "rceil"])
@pytest.mark.parametrize("fmt", [E4M3, E2M1, get_format("e3m2")], ids=lambda fmt: fmt.name)
def test_all_six_mx_casts_are_those_of_torchao(torchao, fmt: FloatFormat, rule: str) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    """Its cast along the rows is that of the transpose."""
    operand = along("mx" if rule == "floor" else "mx_rceil", fmt)
    x, weight, grad = (heavy_tailed(*shape, seed=seed) for seed, shape in enumerate([(96, 64), (32, 64), (96, 32)]))
    layer = torch.nn.Linear(64, 32, bias=False)
    layer.weight.data.copy_(weight)
    model = quantize_model(torch.nn.ModuleDict({"mlp": layer}), Policy(operand, operand, operand))
    readings: list[Reading] = []
    with observed(model, readings.append):
        layer(x.requires_grad_()).backward(grad)
    assert {reading.cast for reading in readings} == {*FIRST, *SECOND}
    for reading in readings:
        down = "." in reading.cast
        given = reading.real.detach().t().contiguous() if down else reading.real.detach()
        expected = torchao.dequantize_mx(given, fmt, rule)
        same(reading.rounded, expected.t() if down else expected)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (64, 64), (33, 31), (0, 4), (4, 0)])
@pytest.mark.parametrize("tile", [(1, 4), (4, 1), (3, 2), (128, 128)])
def test_every_element_has_the_scale_of_its_tile(shape: Tile, tile: Tile) -> None:
    x = heavy_tailed(*shape, seed=5)
    expected = torch.zeros(shape)
    for place in tiles_of(shape, tile):
        expected[place] = x[place].abs().max()
    largest = tile_amax(x, tile)
    assert torch.equal(expand_tiles(largest, shape, tile), expected)
    elements, scale = in_tiles(x, largest, tile)
    assert torch.equal(elements.reshape(shape), x)
    assert torch.equal(scale.broadcast_to(elements.shape).reshape(shape), expected)


def test_a_nan_damages_its_tile_alone() -> None:
    x = torch.ones(70, 40)
    x[40, 3] = torch.nan
    layer = torch.nn.Linear(40, 8, bias=False)
    spec = Operand(E4M3, scaling=Scaling(granularity="block_2d", block=32))
    quantize_model(torch.nn.ModuleDict({"mlp": layer}), Policy(activation=spec))
    damaged = layer.operand(x, "activation").isnan()  # type: ignore[operator]
    assert damaged[32:64, :32].all()
    assert damaged.sum() == 32 * 32


# Casts of the two products


def test_each_product_reads_its_own_cast_of_an_operand() -> None:
    names = {"weight": "e4m3", "activation": "e5m2", "grad_output": "e3m4", "grad_input.weight": "e2m5"}
    names |= {"grad_weight.activation": "e7m0", "grad_weight.grad_output": "bf16"}
    formats = {cast: get_format(name) for cast, name in names.items()}
    first = {cast: fmt for cast, fmt in formats.items() if "." not in cast}
    readings, found = pass_through(
        Policy(**first, casts={cast: fmt for cast, fmt in formats.items() if "." in cast})  # type: ignore[arg-type]
    )
    assert {cast: reading.format for cast, reading in readings.items()} == formats
    casts = {}
    for cast, fmt in formats.items():
        real = found[cast.rpartition(".")[2]]
        casts[cast] = quantize(real, fmt, scale=amax_scale(real, fmt))
        assert torch.equal(readings[cast].rounded.flatten(0, -2), casts[cast])
        assert readings[cast].products == ((cast.partition(".")[0],) if "." in cast else READ_FIRST[cast])
    expected = {
        "output": casts["activation"] @ casts["weight"].t(),
        "grad_input": casts["grad_output"] @ casts["grad_input.weight"],
        "grad_weight": casts["grad_weight.grad_output"].t() @ casts["grad_weight.activation"],
    }
    for product, value in expected.items():
        torch.testing.assert_close(found[product], value, rtol=1e-5, atol=1e-3)


READ_FIRST = {"weight": ("output",), "activation": ("output",), "grad_output": ("grad_input",)}


def test_an_operand_that_both_products_read_alike_is_rounded_once() -> None:
    readings, _ = pass_through(Policy(E4M3, E4M3, E4M3, casts={"grad_weight.grad_output": BF16}))
    assert {cast: reading.products for cast, reading in readings.items()} == {
        "weight": ("output", "grad_input"),
        "activation": ("output", "grad_weight"),
        "grad_output": ("grad_input",),
        "grad_weight.grad_output": ("grad_weight",),
    }
    repeated = Policy(E4M3, E4M3, E4M3, casts={"grad_input.weight": E4M3})
    assert repeated.apart == ()


def test_casts_that_do_the_same_give_the_same_bits_as_a_shared_one() -> None:
    """A square as large as any tensor is another rule with the same scale, and takes the way of separate casts."""
    twin = Operand(E4M3, scaling=Scaling(granularity="block_2d", block=1 << 20))
    apart = Policy(E4M3, E4M3, E4M3, casts=dict.fromkeys(SECOND, twin))
    assert apart.apart == ("weight", "activation", "grad_output")
    losses, gradients = [], []
    for policy in (Policy(E4M3, E4M3, E4M3), apart):
        model = quantize_model(small_gpt(), policy)
        loss = model.loss(*batch())
        loss.backward()
        losses.append(loss)
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert torch.equal(*losses)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_only_what_a_pass_needs_is_rounded() -> None:
    operand = along("mx", E4M3)
    layer = torch.nn.Linear(32, 32)
    model = quantize_model(torch.nn.ModuleDict({"mlp": layer}), Policy(operand, operand, operand))
    readings: list[Reading] = []

    def casts() -> set[str]:
        found = {reading.cast for reading in readings}
        readings.clear()
        return found

    with observed(model, readings.append):
        with torch.no_grad():
            layer(torch.randn(4, 32))
        assert casts() == {"activation", "weight"}
        layer(torch.randn(4, 32)).sum().backward()
        assert casts() == {"activation", "weight", "grad_weight.activation", "grad_weight.grad_output"}
        layer.weight.requires_grad_(False)
        layer(torch.randn(4, 32, requires_grad=True)).sum().backward()
        assert casts() == {"activation", "weight", "grad_input.weight", "grad_output"}


def test_the_second_cast_has_draws_and_a_history_of_its_own() -> None:
    drawn = Operand(E4M3, "stochastic")
    readings, _ = pass_through(Policy(grad_output=drawn, casts={"grad_weight.grad_output": along_twin(drawn)}))
    first, second = (readings[cast].rounded.flatten(0, -2) for cast in ("grad_output", "grad_weight.grad_output"))
    assert not torch.equal(first, second)
    delayed = Operand(E4M3, scaling=Scaling("delayed", history=2))
    model = torch.nn.ModuleDict({"mlp": torch.nn.Linear(4, 4)})
    quantize_model(model, Policy(casts={"grad_weight.activation": delayed}))
    x = torch.full((2, 4), 3.0, requires_grad=True)
    model["mlp"](x).sum().backward()
    model["mlp"](1000 * x).sum().backward()
    clipped = model["mlp"].weight.grad[0, 0].item()
    assert clipped < 2 * (3 + 3000), "the second batch met the scale of the first"


def along_twin(operand: Operand) -> Operand:
    """A rule that does the same by other settings."""
    return replace(operand, scaling=Scaling(granularity="block_2d", block=1 << 20))


def test_shapes_and_biases_are_those_of_a_linear_layer() -> None:
    operand = along("mx", E4M3)
    for shape in ((32,), (3, 32), (2, 3, 32), (0, 32)):
        layer = torch.nn.Linear(32, 8)
        quantize_model(torch.nn.ModuleDict({"mlp": layer}), Policy(operand, operand, operand))
        x = torch.randn(shape, requires_grad=True)
        y = layer(x)
        y.sum().backward()
        assert y.shape == (*shape[:-1], 8)
        assert x.grad is not None
        assert x.grad.shape == shape
        assert torch.equal(layer.bias.grad, torch.full((8,), float(y.numel() / 8)))


def test_a_second_gradient_is_refused() -> None:
    layer = torch.nn.Linear(8, 8)
    quantize_model(torch.nn.ModuleDict({"mlp": layer}), Policy(E4M3, E4M3, casts={"grad_input.weight": BF16}))
    x = torch.randn(4, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile, about torch itself
def test_casts_and_rotations_are_traced_whole() -> None:
    operand = along("mx", E4M3)
    policy = Policy(operand, operand, operand, hadamard={"grad_weight": 16})
    layer = quantize_model(torch.nn.ModuleDict({"mlp": torch.nn.Linear(32, 16)}), policy)["mlp"]
    ends = []
    for run in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        layer.zero_grad()
        x = heavy_tailed(40, 32, seed=1).requires_grad_()
        y = run(x)
        y.square().sum().backward()
        ends.append((y.detach(), x.grad, layer.weight.grad))
    for eager, traced in zip(*ends, strict=True):
        torch.testing.assert_close(traced, eager)


# Rotation


@pytest.mark.parametrize("size", [16, 32])
def test_a_rotated_product_is_the_same_to_roundoff_where_nothing_is_rounded(size: int) -> None:
    products = ("output", "grad_input", "grad_weight")
    readings, found = pass_through(Policy(hadamard=dict.fromkeys(products, size)))
    assert set(readings) == {*FIRST, *SECOND}
    x, weight, grad = (found[name].double() for name in FIRST)
    factors = {"output": (x, weight.t()), "grad_input": (grad, weight), "grad_weight": (grad.t(), x)}
    for product, (a, b) in factors.items():
        assert (found[product].double() - a @ b).abs().le(3e-6 * (a.abs() @ b.abs())).all()


@pytest.mark.parametrize("product", ["output", "grad_input", "grad_weight"])
def test_the_factors_are_whole_blocks_times_signs_and_hadamard_s_matrix(product: str) -> None:
    size = 32
    readings, found = pass_through(Policy(E4M3, E4M3, E4M3, hadamard={product: size}))
    for cast, reading in readings.items():
        real = reading.real.detach().flatten(0, -2).double().numpy()
        plain = found[reading.operand].double().numpy()
        if product not in reading.products:
            assert (real == plain).all()
            continue
        if "." in cast:  # summed over the rows
            real, plain = real.T, plain.T
        whole = plain.shape[1] // size * size
        assert plain.shape[1] > whole, "there is a remainder"
        assert (real[:, whole:] == plain[:, whole:]).all()
        blocks = plain[:, :whole].reshape(len(plain), -1, size)
        turned = real[:, :whole].reshape(len(plain), -1, size) @ scipy.linalg.hadamard(size).T / math.sqrt(size)
        signs = np.sign((turned * blocks).sum((0, 1)))
        np.testing.assert_allclose(turned, blocks * signs, atol=1e-5 * np.abs(blocks).max())
        assert 0 < (signs > 0).sum() < size, "some signs are turned, and some are not"
        assert (reading.rounded != reading.real).any()


def test_the_signs_depend_on_the_seed_alone() -> None:
    policy = Policy(E4M3, E4M3, E4M3, hadamard={"output": 16})
    real = [pass_through(policy, seed)[0]["weight"].real for seed in (0, 0, 1)]
    assert torch.equal(real[0], real[1])
    assert not torch.equal(real[0], real[2])


@pytest.mark.parametrize("operand", FIRST)
def test_a_rotation_of_one_factor_alone_is_seen(operand: str, monkeypatch: pytest.MonkeyPatch) -> None:
    turned = QuantizedLinear.rotation
    monkeypatch.setattr(
        QuantizedLinear,
        "rotation",
        lambda layer, name: None if name.rpartition(".")[2] == operand else turned(layer, name),
    )
    with pytest.raises(AssertionError):
        test_a_rotated_product_is_the_same_to_roundoff_where_nothing_is_rounded(16)


def test_a_rotation_spreads_an_outlier_so_that_less_is_lost() -> None:
    """What it is for: in four bits an outlier a block costs its neighbours more than a rotated one."""
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    x[:, ::16] = 20.0
    spec = Operand(E2M1)
    lost = []
    for rotation in ({}, {"output": 16}):
        layer = torch.nn.Linear(64, 64, bias=False)
        torch.nn.init.eye_(layer.weight)
        quantize_model(torch.nn.ModuleDict({"mlp": layer}), Policy(activation=spec, hadamard=rotation))
        lost.append((layer(x) - x).square().mean().item())
    assert lost[1] < 0.5 * lost[0]


# Telemetry


def look_at(policy: Policy) -> list[tuple[str, str, str]]:
    """(layer, operand, statistic) of every row of a look at a step."""
    model = quantize_model(small_gpt(), policy)
    look, optimizer = Look(model, 1), torch.optim.SGD(model.parameters(), lr=0.1)
    with look.operands():
        model.loss(*batch()).backward()
    look.gradients()
    with look.update(optimizer):
        optimizer.step()
    return [(layer, operand, statistic) for _, layer, _, operand, statistic, _ in look.rows]


def test_a_look_records_second_casts_under_names_of_their_own_and_all_else_as_before() -> None:
    shared, apart = look_at(Policy(E4M3, E4M3, E4M3)), look_at(Policy(E4M3, E4M3, E4M3, casts={SECOND[2]: BF16}))
    assert {operand for _, operand, _ in shared} == {*FIRST, "gradient", "update"}
    new = [row for row in apart if row[1] == "grad_weight.grad_output"]
    assert {layer for layer, _, _ in new} == {layer for layer, operand, _ in shared if operand == "grad_output"}
    assert {"sqnr_db", "amax", "underflow", "codes_used"} <= {statistic for _, _, statistic in new}

    def places(rows: list[tuple[str, str, str]]) -> set[tuple[str, str, str]]:
        return {row for row in rows if row[1] in FIRST and not row[2].startswith(("code_", "binade_"))}

    assert places(apart) == places(shared)


def test_a_rotated_weight_has_no_place_on_the_grid() -> None:
    rows = look_at(Policy(E4M3, E4M3, E4M3, hadamard={"output": 16}))
    by_layer = {statistic for layer, _, statistic in rows if layer == "head"}
    assert not by_layer & {"grid_distance", "ulps_rms", "flips", "stall_ratio", "stiffness_correlation"}
    assert {"sqnr_db", "zero_update", "spectral_norm"} <= by_layer
    assert {"grid_distance", "flips"} <= {statistic for layer, _, statistic in rows if layer == "embedding"}


# Config


def parsed(given: dict[str, object]) -> ExperimentConfig:
    return parse_config(given, source="test")


ALL = {"weight": "e4m3", "activation": "e4m3", "grad_output": "e5m2"}


def test_a_config_s_casts_are_those_of_the_layers() -> None:
    rule = {"kind": "amax", "granularity": "block", "axis": "contraction"}
    cast = {"format": "bf16", "rounding": "stochastic", "scaling": {"kind": "none"}}
    quantized = ALL | {"casts": {"grad_weight": {"grad_output": cast}}, "hadamard": {"grad_weight": 16}}
    policy = policy_of(parsed({"quantize": quantized, "scaling": rule}))
    along_blocks = Scaling(**rule)
    assert policy.weight == Operand(E4M3, scaling=along_blocks)
    assert policy.casts == {"grad_weight.grad_output": Operand(BF16, "stochastic", Scaling("none"))}
    assert policy.hadamard == {"grad_weight": 16}
    assert policy.apart == ("weight", "activation", "grad_output")


def test_casts_and_axis_take_part_in_the_identity_only_where_they_are_set() -> None:
    plain = parsed({"quantize": ALL, "scaling": {"kind": "mx"}})
    empty = {"casts": {"grad_weight": {}}, "hadamard": {}}
    assert parsed({"quantize": ALL | empty, "scaling": {"kind": "mx", "axis": "last"}}).identity() == plain.identity()
    assert not {"casts", "hadamard"} & set(plain.identity()["quantize"])
    assert "axis" not in plain.identity()["scaling"]
    changed = [
        {"quantize": ALL | {"casts": {"grad_weight": {"grad_output": {"format": "e4m3"}}}}},
        {"quantize": ALL | {"hadamard": {"output": 16}}},
        {"quantize": ALL, "scaling": {"kind": "mx", "axis": "contraction"}},
    ]
    assert len({str(parsed({"scaling": {"kind": "mx"}} | each).identity()) for each in changed}) == len(changed)


def test_casts_axis_and_rotation_are_part_of_what_pages_compare() -> None:
    contraction = {"scaling": {"kind": "mx", "axis": "contraction"}}
    configs = {
        "": {},
        "; MX scales along the contraction": contraction,
        "; MX scales of squares": {"scaling": {"kind": "mx", "granularity": "block_2d"}},
        "; amax scale per square of 128 x 128": {"scaling": {"granularity": "block_2d", "block": 128}},
        "; grad_weight rotated by 16": {"quantize": ALL | {"hadamard": {"grad_weight": 16}}},
        "; gradients of grad_weight in BF16, stochastically": {
            "quantize": having("grad_weight.grad_output", format="bf16", rounding="stochastic")
        },
    }
    found = {scope_label(parsed({"quantize": ALL} | given)): scope_key(parsed({"quantize": ALL} | given))
             for given in configs.values()}  # fmt: skip
    assert [label.removeprefix("weights + activations + gradients") for label in found] == list(configs)
    assert len({*found.values()}) == len(configs)
    backward = {"quantize": {"casts": {"grad_weight": {"activation": {"format": "e4m3"}}}}}
    assert scope_key(parsed(backward)) == "activation; grad_weight.activation e4m3"
    assert format_label(parsed(backward)) == "E4M3"


def test_the_command_of_a_config_states_its_casts() -> None:
    config = parsed({"quantize": ALL | {"casts": {"grad_weight": {"grad_output": {"format": "bf16"}}}}})
    assert "--set quantize.casts.grad_weight.grad_output.format=bf16 " in command(config)


def test_a_shift_reaches_the_casts() -> None:
    casts = {"grad_input": {"weight": {"format": "e5m2"}}, "grad_weight": {"activation": {"format": "fp32"}}}
    casts["grad_weight"]["grad_output"] = {"format": "e2m5", "rounding": "stochastic"}  # type: ignore[dict-item]
    config = shifted(parsed({"quantize": ALL | {"casts": casts}, "stability": {"shift_to": "bf16"}}))
    names = ("weight", "activation", "grad_output", *SECOND)
    assert [config.cast(name)[0] for name in names] == ["bf16", "bf16", "bf16", "bf16", "fp32", "bf16"]
    assert set(config.quantize.casts.given) == {"grad_weight.activation", "grad_weight.grad_output"}


def having(name: str, **cast: object) -> dict[str, object]:
    """A section `quantize` with a cast of this name, its other operands quantized."""
    product, operand = name.split(".")
    return ALL | {"casts": {product: {operand: cast}}}


NVFP4, GRID = {"kind": "nvfp4"}, {"storage": "grid"}


@pytest.mark.parametrize(
    ("quantized", "others", "said"),
    [
        (ALL, {"scaling": {"axis": "contraction"}}, "axis 'contraction'.*one scale per tensor"),
        (ALL, {"scaling": {"axis": "contraction", "granularity": "block_2d"}}, "axis 'contraction'.*square blocks"),
        (ALL, {"scaling": {"axis": "rows"}}, "scaling.axis.*'last' or 'contraction'"),
        (ALL, {"scaling": {"granularity": "block_2d", "block": 0}}, "scaling.block"),
        (ALL, {"scaling": {"kind": "delayed", "granularity": "block_2d"}}, "belongs to kind 'amax'"),
        (having("output.weight", format="bf16"), {}, "quantize.casts: .*quantize.weight itself"),
        (having("grad_input.grad_output", format="bf16"), {}, "quantize.casts: .*quantize.grad_output itself"),
        (having("grad_wieght.activation"), {}, "did you mean 'quantize.casts.grad_weight'"),
        (having("grad_weight.activation"), {}, "grad_weight.activation is what quantize.activation says"),
        (
            having("grad_weight.activation", format="e4m3"),
            {},
            "grad_weight.activation is what quantize.activation says",
        ),
        (
            having("grad_weight.activation", rounding="stochastic") | {"activation": "fp32"},
            {},
            "grad_weight.activation is what quantize.activation says",
        ),
        (
            having("grad_weight.activation", format="fp32", rounding="stochastic"),
            {},
            "casts.grad_weight.activation: a cast to fp32 rounds nothing",
        ),
        (
            having("grad_weight.activation", scaling=NVFP4),
            {},
            "e2m1, and quantize.casts.grad_weight.activation is e4m3",
        ),
        (
            having("grad_weight.activation", format="bf16"),
            {"scaling": {"kind": "mx"}},
            "'mx' is a rule for .* and e0m7b-1",
        ),
        (having("grad_weight.activation", format="e15m0"), {}, "grad_weight.activation='e15m0' has a range beyond"),
        (
            having("grad_weight.activation", format="bf16") | {"compute": "native"},
            {},
            "'native' reads each operand once.*leave out casts.grad_weight.activation",
        ),
        (ALL | {"compute": "native", "hadamard": {"output": 16}}, {}, "leave out hadamard.output"),
        (ALL | {"compute": "native"}, {"scaling": {"kind": "mx", "axis": "contraction"}}, "'native' has one scale"),
        (ALL | {"hadamard": {"output": 24}}, {}, "hadamard.output.*16 or 32"),
        (
            having("grad_input.weight", format="bf16"),
            {"optimizer": GRID},
            "'grid'.*leave out .*casts.grad_input.weight",
        ),
        (ALL | {"hadamard": {"output": 16}}, {"optimizer": GRID}, "'grid'.*leave out quantize.hadamard.output"),
    ],
)
def test_casts_that_cannot_be_meant_are_one_line(
    quantized: dict[str, object], others: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match=said) as error:
        parsed({"quantize": quantized} | others)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: Policy(E4M3, casts={"output.weight": E4M3}),
            "casts must be of grad_input.weight, .*not output.weight",
        ),
        (lambda: Policy(E4M3, hadamard={"grad": 16}), "hadamard must be of output, .*not grad"),
        (lambda: Policy(E4M3, hadamard={"output": 24}), "rotation of output must have the size 16 or 32, not 24"),
        (lambda: Policy(E4M3, E4M3, E4M3, compute="native", hadamard={"output": 16}), "'native' reads each"),
        (lambda: Policy(E4M3, casts={SECOND[0]: Operand(E4M3, scaling=Scaling("nvfp4"))}), "grad_input.weight is e4m3"),
        (lambda: tile_amax(torch.ones(3), (1, 2)), "of a matrix, not of the shape .3."),
        (lambda: in_tiles(torch.ones(4, 4), torch.ones(1, 2), (2, 2)), r"4 x 4 .* need .*\[2, 2\], not \[1, 2\]"),
        (lambda: tile_amax(torch.ones(3, 3), (0, 2)), "rows of a tile must be a whole number of at least 1, not 0"),
        (
            lambda: expand_tiles(torch.ones(1, 1), (3, 3), (2, 2)),
            r"3 x 3 .* 2 x 2 need scales .*\[2, 2\], not \[1, 1\]",
        ),
    ],
)
def test_a_call_that_cannot_be_meant_is_one_line(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_run_with_casts_trains_and_records_them(tmp_path: Path) -> None:
    casts = {"grad_weight": {"grad_output": {"format": "bf16", "scaling": {"kind": "none"}}}}
    model = {"layers": 1, "dim": 16, "heads": 2, "context": 8}
    given = {"quantize": ALL | {"casts": casts, "hadamard": {"grad_weight": 16}}, "model": model, "max_steps": 3}
    config = parsed(given | {"scaling": {"kind": "mx", "axis": "contraction"}, "layers_every": 1, "eval_batches": 1})
    result = train(config, tmp_path, progress=False)
    assert result.status == "finished"
    from altgrad.runs import read_run

    record = read_run(result.path)
    assert set(SECOND) <= set(record.layers["operand"])
    assert record.config.identity() == config.identity()


def test_nothing_is_apart_by_default() -> None:
    for spec in (Operand(E4M3), Operand(E4M3, scaling=Scaling("mx")), Operand(E4M3, "stochastic")):
        assert Policy(spec, spec, spec).apart == ()
    assert Policy().operand("grad_weight.activation").format is FP32
    x = heavy_tailed(40, 40, seed=0)
    layer = torch.nn.Linear(40, 8)
    quantize_model(torch.nn.ModuleDict({"mlp": layer}), Policy(activation=along("mx", E4M3)))
    assert torch.equal(layer.operand(x, "activation"), quantize_mx(x, E4M3))  # type: ignore[operator]
    assert quantized_layers(torch.nn.ModuleDict({"mlp": layer}))["mlp"].policy.apart == ("activation",)
