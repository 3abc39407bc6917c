"""Quantized layers in a graph of torch.compile: one graph for all steps, with the numbers of the eager layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

from compiler import needs_compiler  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from altgrad.formats import get_format  # noqa: E402
from altgrad.nn import Operand, Policy, Scaling, clock_of, quantize_model  # noqa: E402

pytestmark = [  # torch's own, when the parts of it that compile are imported, and when they trace a Function
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

E4M3 = get_format("e4m3")
SPECS = {
    "plain": Operand(E4M3),
    "stochastic": Operand(E4M3, "stochastic"),
    "delayed": Operand(E4M3, scaling=Scaling("delayed", history=3)),
    "most recent": Operand(E4M3, "stochastic", Scaling("delayed", history=4, algorithm="most_recent", margin=1)),
    "exact delayed": Operand(E4M3, scaling=Scaling("delayed", power_of_two=False, quotient="up")),
    "blocks": Operand(get_format("e2m1"), "stochastic", Scaling("nvfp4")),
}


def layers(name: str, *, seed: int = 0, draw_version: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 48, bias=False), nn.ReLU(), nn.Linear(48, 16, bias=False))
    spec = SPECS[name]
    quantize_model(model, Policy(spec, spec, spec, layers=("*",)), seed=seed, draw_version=draw_version)
    return model


def batches(steps: int = 5, parts: int = 2) -> Iterator[tuple[int, int, Tensor]]:
    for step in range(steps):
        for part in range(parts):
            generator = torch.Generator().manual_seed(step * parts + part)
            yield step, part, torch.randn(8, 32, generator=generator) * 4.0 ** (step % 3)


def numbers(model: nn.Module, run, *, clock: bool) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """Outputs and gradients of every batch, and the buffers at the end."""
    found = []
    for step, part, x in batches():
        if clock:
            clock_of(model).step, clock_of(model).part = step, part
        model.zero_grad()
        x.requires_grad_()
        y = run(x)
        y.square().sum().backward()
        found += [y.detach(), x.grad, *(parameter.grad.clone() for parameter in model.parameters())]
    return found + [buffer.clone() for buffer in model.buffers()]


def compared(model: nn.Module, backend: str, *, clock: bool) -> None:
    """The eager model and its compiled twin: equal bits, and one graph, made at the first batch."""
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run = torch.compile(twin, backend=backend, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = numbers(twin, run, clock=clock)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    expected = numbers(model, model, clock=clock)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(("name", "clock"), [*((name, True) for name in SPECS), ("delayed", False)])
def test_one_graph_serves_all_steps_with_the_bits_of_the_eager_layers(name: str, clock: bool) -> None:
    compared(layers(name, seed=3, draw_version=2 if clock else 1), "aot_eager", clock=clock)


@needs_compiler
@pytest.mark.parametrize("name", ["most recent"])
def test_one_graph_of_inductor_serves_all_steps_with_the_bits_of_the_eager_layers(name: str) -> None:
    compared(layers(name, draw_version=2), "inductor", clock=True)


def test_steps_draw_anew_and_a_repeated_step_draws_the_same() -> None:
    model = layers("stochastic")
    run, clock, x = torch.compile(model, backend="aot_eager"), clock_of(model), torch.randn(8, 32)
    found = []
    for clock.step in (1, 2, 1):
        found.append(run(x).detach())
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_models_of_other_seeds_and_versions_are_other_draws() -> None:
    x, found = torch.randn(8, 32), []
    for seed, version in ((0, 1), (2**70, 1), (0, 2)):
        model = layers("stochastic", seed=seed, draw_version=version)
        found.append(torch.compile(model, backend="aot_eager", fullgraph=True)(x).detach())
        assert torch.equal(found[-1], model(x))
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_evaluation_without_gradients_is_a_graph_of_its_own_and_moves_no_history() -> None:
    model = layers("delayed")
    run, clock = torch.compile(model, backend="aot_eager"), clock_of(model)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    x = torch.randn(8, 32)
    for clock.step in range(1, 5):
        clock.part = 0
        run(x).sum().backward()
        before = copy.deepcopy(model.state_dict())
        clock.part = -1
        with torch.no_grad():
            assert torch.equal(run(1e6 * x), model(1e6 * x))
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_under_autocast_the_compiled_layers_have_the_bits_of_the_eager_ones() -> None:
    """As the guide says: with a setting of torch, which otherwise takes the backward pass under autocast too."""
    model = layers("exact delayed")
    twin = copy.deepcopy(model)
    run = torch.compile(twin, backend="aot_eager", fullgraph=True)
    with torch._functorch.config.patch(backward_pass_autocast="off"):
        for step, _, x in batches(3, 1):
            clock_of(model).step = clock_of(twin).step = step
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found, expected = run(x), model(x)
            assert found.dtype == torch.bfloat16
            assert torch.equal(found, expected)
            found.sum().backward()
            expected.sum().backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_a_compiled_model_that_is_checkpointed_has_the_bits_of_none(reentrant: bool) -> None:
    ends = []
    for checkpointed in (False, True):
        model = layers("delayed")
        run = torch.compile(model, backend="aot_eager")
        found = []
        for clock_of(model).step, _, x in batches(4, 1):
            model.zero_grad()
            x.requires_grad_()
            y = checkpoint(run, x, use_reentrant=reentrant) if checkpointed else run(x)
            y.square().sum().backward()
            found += [parameter.grad.clone() for parameter in model.parameters()]
        ends.append(found + list(model.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
