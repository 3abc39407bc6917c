"""Quantized layers: FP32 is plain torch bit by bit, and each of the three products reads the operands it should."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from altgrad.formats import FP32, get_format  # noqa: E402
from altgrad.models import GPT  # noqa: E402
from altgrad.nn import Policy, QuantizedEmbedding, QuantizedLinear, layer_type, quantize_model  # noqa: E402
from altgrad.nn import quantized_layers as layers_of  # noqa: E402
from altgrad.rounding import quantize  # noqa: E402
from altgrad.scaling import amax_scale  # noqa: E402
from altgrad.telemetry import OperandRecorder, first_nonfinite, observed, operand_statistics  # noqa: E402

E4M3, E5M2, E7M0 = (get_format(name) for name in ("e4m3", "e5m2", "e7m0"))


def small_gpt(seed: int = 0) -> GPT:
    return GPT(96, layers=2, dim=16, heads=2, context=8, seed=seed)


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
    recorder = OperandRecorder(7)
    with observed(model, recorder):
        model.loss(*batch()).backward()
    seen = {(row[1], row[3]) for row in recorder.rows}
    linear = [name for name in layers_of(model) if name != "embedding"]
    assert seen == {(name, part) for name in linear for part in ("weight", "activation", "grad_output")} | {
        ("embedding", "weight")
    }
    count = len(recorder.rows)
    model.loss(*batch()).backward()
    assert len(recorder.rows) == count
    assert {row[0] for row in recorder.rows} == {7}


def test_operand_statistics_on_a_tensor_worked_by_hand() -> None:
    real = torch.tensor([0.0, 500.0, 1.0, 2.0**-12, -600.0])
    found = operand_statistics(real, quantize(real, E4M3), E4M3, None)
    assert found["amax"] == 600
    assert found["scale"] == 1
    assert found["overflow"] == 2 / 4
    assert found["underflow"] == 1 / 4
    assert found["nonfinite"] == 0
    noise = 52**2 + 152**2 + 2.0**-24
    assert found["sqnr_db"] == pytest.approx(10 * torch.tensor((500**2 + 1 + 600**2) / noise).log10().item(), rel=1e-6)
    assert "sqnr_db" not in operand_statistics(real, real, FP32, None)


def test_the_first_bad_tensor_is_named_with_its_phase() -> None:
    model = quantize_model(small_gpt(), Policy(E4M3, E4M3, E4M3))

    def loss() -> torch.Tensor:
        return model.loss(*batch())

    with torch.no_grad():
        model.blocks[0].mlp.up.weight[0, 0] = torch.inf
    assert first_nonfinite(model, loss) == ("blocks.0.mlp.up.weight", "optimizer")
    with torch.no_grad():
        model.blocks[0].mlp.up.weight[0, 0] = 0
        model.blocks[1].attention_norm.weight.mul_(3e38)
    tensor, phase = first_nonfinite(model, loss)
    assert phase == "forward"
    assert tensor.startswith("blocks.1.attention.")
    with torch.no_grad():
        model.blocks[1].attention_norm.weight.div_(3e38)
    assert first_nonfinite(model, lambda: loss() * torch.tensor(torch.inf)) == ("loss", "forward")

    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return x.clone()

        @staticmethod
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            return grad * torch.nan

    hook = model.blocks[0].mlp.register_forward_hook(lambda module, inputs, output: Spoil.apply(output))
    assert first_nonfinite(model, loss) == ("blocks.0.mlp.down.grad_output", "backward")
    hook.remove()
