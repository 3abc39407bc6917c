"""torch.func's transforms and make_fx: bit by bit what a loop over backward passes gives, or one line."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402

from altgrad.formats import get_format  # noqa: E402
from altgrad.nn import Operand, Policy, Scaling, clock_of, quantize_model, quantized_layers, recipe  # noqa: E402
from altgrad.rounding import fake_quantize, quantize  # noqa: E402

E4M3, E5M2 = get_format("e4m3"), get_format("e5m2")
OPERANDS = {
    "amax": Operand(E4M3),
    "mx": Operand(E4M3, scaling=Scaling("mx")),
    "delayed": Operand(E4M3, scaling=Scaling("delayed", history=4)),
    "stochastic": Operand(E4M3, "stochastic"),
    "diffused": Operand(E4M3, "diffused"),
}


def small(operand: Operand) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Tanh(), nn.Linear(24, 8), nn.Tanh(), nn.Linear(8, 2))
    return quantize_model(layers, Policy(operand, operand, operand))


def squares(model: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    found: Tensor = functional_call(model, parameters, (x,)).square().mean()
    return found


@pytest.mark.parametrize("name", ["amax", "mx", "delayed", "stochastic"])
def test_grad_vjp_and_gradients_of_examples_are_those_of_backward_passes(name: str) -> None:
    x, found = torch.randn(5, 3, 8), {}
    for way in ("backward", "grad", "vjp"):
        model = small(OPERANDS[name])
        parameters = dict(model.named_parameters())
        clock_of(model).step = 1
        if way == "backward":
            squares(model, parameters, x).backward()
            found[way] = [parameter.grad for parameter in parameters.values()]
        elif way == "grad":
            found[way] = list(grad(lambda p: squares(model, p, x))(parameters).values())  # noqa: B023
        else:
            y, pull = vjp(lambda p: squares(model, p, x), parameters)  # noqa: B023
            found[way] = list(pull(torch.ones_like(y))[0].values())
        found[f"{way} state"] = list(model.state_dict().values())
    for way in ("grad", "vjp", "grad state", "vjp state"):  # histories of delayed scales among the state
        expected = found["backward state" if way.endswith("state") else "backward"]
        assert all(torch.equal(a, b) for a, b in zip(found[way], expected, strict=True)), way

    model = small(OPERANDS[name])
    parameters = dict(model.named_parameters())
    each = vmap(grad(lambda p, x: squares(model, p, x)), (None, 0))(parameters, x[:, None])
    twin = small(OPERANDS[name])
    twin[0].load_state_dict(model[0].state_dict())
    if name == "delayed":  # the examples of one pass are one step: each reads the scale of the first
        return
    for example in range(len(x)):
        twin.zero_grad()
        squares(twin, dict(twin.named_parameters()), x[example, None]).backward()
        for key, parameter in twin.named_parameters():
            assert torch.allclose(each[key][example], parameter.grad, rtol=1e-5, atol=1e-8), key


def test_vmap_gives_each_example_a_scale_of_its_own() -> None:
    model = quantize_model(nn.Linear(8, 4), Policy(E4M3, E4M3, E5M2))
    x = torch.randn(3, 2, 8) * torch.tensor([1.0, 1e3, 1e-3])[:, None, None]
    assert torch.allclose(vmap(model)(x), torch.stack([model(each) for each in x]), rtol=1e-6)
    assert not torch.allclose(vmap(model)(x)[2], model(x)[2], rtol=1e-3)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # in torch, for forward mode
def test_forward_and_second_derivatives_take_rounding_for_the_identity() -> None:
    torch.manual_seed(0)
    layer = quantize_model(nn.Linear(8, 4), Policy(E4M3, E4M3, E5M2))
    weight = quantized_layers(layer)[""].weight_as_read()
    x, v = torch.randn(8), torch.randn(8)
    y, tangent = jvp(layer, (x,), (v,))
    assert torch.equal(y, layer(x))
    assert torch.allclose(tangent, weight @ v, rtol=1e-6)
    assert torch.equal(jacfwd(layer)(x), weight)
    expected = torch.stack([E5 * row for E5, row in zip(torch.ones(4), weight, strict=True)])
    assert torch.equal(jacrev(layer)(x), expected), "a one is on the grid of E5M2"
    twice = hessian(lambda x: layer(x).square().sum())(x)
    assert torch.allclose(twice, 2 * weight.T @ weight, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("gradient", ["pass", "mask"])
def test_fake_quantize_has_both_derivatives(gradient: str) -> None:
    x, scale = torch.tensor([[1.06, -3.0, 500.0], [0.0, 1e-9, -448.0]]), torch.tensor([[1.0], [0.5]])
    inside = (x / scale).abs() <= E4M3.max if gradient == "mask" else torch.ones_like(x, dtype=torch.bool)

    def f(x: Tensor, scale: Tensor) -> Tensor:
        return fake_quantize(x, E4M3, scale=scale, gradient=gradient)

    y, tangent = jvp(lambda x: f(x, scale), (x,), (torch.ones_like(x),))
    assert torch.equal(y, quantize(x, E4M3, scale=scale))
    assert torch.equal(tangent, inside.float())
    assert torch.equal(grad(lambda x: f(x, scale).sum())(x), inside.float())
    rows = vmap(grad(lambda x, scale: f(x, scale).sum()))(x, scale)
    assert torch.equal(rows, inside.float())


@pytest.mark.parametrize("given", ["mxfp8", Policy(E4M3, E4M3, E5M2, compute="native")])
def test_what_transforms_cannot_do_is_one_line(given: Any) -> None:
    policy = recipe(given)["*"] if isinstance(given, str) else given
    model = quantize_model(nn.Sequential(nn.Linear(32, 32)), policy)
    with pytest.raises(ValueError, match=r"^layer 0: torch.func's transforms need policies without casts .*$"):
        grad(lambda x: model(x).sum())(torch.randn(32, 32))


def test_a_graph_of_make_fx_rounds_as_the_eager_layers_at_every_step() -> None:
    x, scale = torch.randn(4, 8), torch.tensor([[0.25], [3.0], [1e-3], [700.0]])
    graph = make_fx(lambda x, scale: quantize(x, E4M3, scale=scale))(torch.ones(4, 8), torch.ones(4, 1))
    assert torch.equal(graph(x, scale), quantize(x, E4M3, scale=scale))
    one = make_fx(lambda x, scale: quantize(x, E4M3, scale=scale))(torch.ones(4, 8), torch.tensor(2.0))
    assert torch.equal(one(x, torch.tensor(0.125)), quantize(x, E4M3, scale=0.125)), "the scale is read as it runs"
    for name in ("amax", "stochastic", "diffused"):
        model = small(OPERANDS[name])
        clock = clock_of(model)
        clock.step = 0
        graph = make_fx(model)(torch.ones(5, 3, 8))
        x = torch.randn(5, 3, 8)
        assert torch.equal(graph(x), model(x)), name
