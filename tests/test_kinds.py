"""Kinds of layers: each reads rounded operands in every pass, is counted right, and is what it was when undone."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.nn.utils import parametrizations  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from altgrad.formats import get_format  # noqa: E402
from altgrad.nn import (  # noqa: E402
    Operand,
    Policy,
    QuantizedLinear,
    Scaling,
    all_layers,
    dequantize_model,
    observed,
    quantize_model,
    quantized_layers,
    report_of,
)
from altgrad.rounding import quantize  # noqa: E402
from altgrad.scaling import amax_scale  # noqa: E402

E4M3, E5M2, E2M1 = (get_format(name) for name in ("e4m3", "e5m2", "e2m1"))
FULL = Policy(E4M3, E4M3, E5M2)


class Conv1D(nn.Module):
    """As Hugging Face's: a linear layer whose weight stands transposed."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, self.nx), self.weight).view(*x.shape[:-1], self.nf)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * F.linear(x, self.weight, self.bias)


class Standardized(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight, None, padding=1).tanh()


class Shifted(nn.Embedding):
    def forward(self, token: Tensor) -> Tensor:
        return super().forward(token + 1) + self.weight[:1]


class ReadsItsChildren(nn.Module):
    """Two layers that are never called: one is read by linear, the other stands left of its activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 12), nn.Linear(12, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.second.weight @ F.linear(x, self.first.weight, self.first.bias).tanh().mT).mT


class ByKeywords(nn.Module):
    """Weights by torch's keywords, and one of a child as a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(6, 4))
        self.third = nn.Parameter(torch.randn(4, 4))
        self.conv = nn.Conv1d(4, 4, 3, padding=1, groups=4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(input=x, weight=self.first).relu_()
        x = torch.addmm(input=x.sum(), mat1=x.flatten(0, 1), mat2=self.second, alpha=0.5).unflatten(0, x.shape[:2])
        unread = torch.full_like(x, math.nan)[0]  # with a beta of 0 torch does not look at it
        x = torch.stack([torch.addmm(unread, each, self.third, beta=0) for each in x])
        return depthwise(x.mT, self.conv.weight.squeeze(1))


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv1d(x, weight.unsqueeze(1), padding=1, groups=len(weight))


class Experts(nn.Module):
    def __init__(self, grouped: bool) -> None:
        super().__init__()
        self.grouped = grouped
        self.up = nn.Parameter(torch.randn(3, 16, 8) / 3)
        self.down = nn.Parameter(torch.randn(3, 8, 16) / 4)

    def forward(self, x: Tensor) -> Tensor:
        """Rows 0 to 3 for expert 0, none for expert 1, the others for expert 2."""
        if self.grouped:
            ends = torch.tensor([4, 4, len(x)], dtype=torch.int32)
            hidden = torch._grouped_mm(x, self.up.transpose(-2, -1), offs=ends).relu()
            return torch._grouped_mm(hidden, self.down.transpose(-2, -1), offs=ends)
        return torch.cat(
            [F.linear(F.linear(rows, self.up[e]).relu(), self.down[e]) for e, rows in ((0, x[:4]), (2, x[4:]))]
        )


class LoRA(nn.Module):
    def __init__(self, base: nn.Module | None = None) -> None:
        super().__init__()
        self.base = base or nn.Linear(8, 8)
        self.a, self.b = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.mT @ self.b.T


class Attends(nn.Module):
    """Cross-attention with every option of nn.MultiheadAttention."""

    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True, **given)
        self.kdim, self.vdim = given.get("kdim", 8), given.get("vdim", 8)

    def forward(self, x: Tensor) -> Tensor:
        key = x if self.kdim == 8 else x[..., : self.kdim]
        value = x if self.vdim == 8 else x[..., : self.vdim]
        mask = torch.zeros(x.shape[:2], dtype=torch.bool)
        mask[:, -1] = True
        return self.attn(x, key, value, key_padding_mask=mask, need_weights=False)[0]


class First(nn.Module):
    """A recurrent layer's outputs."""

    def __init__(self, inner: nn.Module, packed: bool = False) -> None:
        super().__init__()
        self.inner, self.packed = inner, packed

    def forward(self, x: Tensor) -> Tensor:
        if not self.packed:
            return self.inner(x)[0]
        lengths = torch.tensor([3, 5])
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(self.inner(packed)[0], batch_first=True)[0]


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(8, 6), (4, 8)),
    "subclass of Linear": (lambda: Doubled(8, 6), (4, 8)),
    "lazy": (lambda: nn.LazyLinear(6), (4, 8)),
    "Conv1D": (lambda: Conv1D(6, 8), (2, 4, 8)),
    "Conv1d": (lambda: nn.Conv1d(8, 6, 3, padding=1, groups=2), (2, 8, 10)),
    "Conv2d": (lambda: nn.Conv2d(3, 6, 3, stride=2, padding=1, padding_mode="circular"), (2, 3, 8, 8)),
    "Conv3d": (lambda: nn.Conv3d(2, 4, 2, bias=False), (2, 2, 4, 4, 4)),
    "unbatched": (lambda: nn.Conv2d(3, 6, 3), (3, 8, 8)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(3, 6, 3, stride=2), (2, 3, 5, 5)),
    "subclass of Conv1d": (lambda: Standardized(8, 6, 3, bias=False), (2, 8, 10)),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(8, 6)), (4, 8)),
    "old weight_norm": (lambda: old_weight_norm(nn.Linear(8, 6)), (4, 8)),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(8, 6)), (4, 8)),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(8, 8)), (4, 8)),
    "parametrized Conv1d": (lambda: parametrizations.weight_norm(nn.Conv1d(8, 6, 3)), (2, 8, 10)),
    "MultiheadAttention": (lambda: Attends(), (2, 5, 8)),
    "MultiheadAttention, own dimensions": (lambda: Attends(kdim=4, vdim=6), (2, 5, 8)),
    "MultiheadAttention, all options": (lambda: Attends(add_bias_kv=True, add_zero_attn=True), (2, 5, 8)),
    "TransformerEncoder": (encoder, (2, 5, 8)),
    "LSTM": (lambda: First(nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True)), (2, 5, 8)),
    "packed LSTM": (lambda: First(nn.LSTM(8, 6, bidirectional=True, proj_size=3), packed=True), (2, 5, 8)),
    "GRU": (lambda: First(nn.GRU(8, 6, 2, bias=False)), (5, 2, 8)),
    "packed GRU": (lambda: First(nn.GRU(8, 6, bidirectional=True), packed=True), (2, 5, 8)),
    "RNN": (lambda: First(nn.RNN(8, 6, nonlinearity="relu")), (5, 2, 8)),
    "LSTMCell": (lambda: First(nn.LSTMCell(8, 6)), (4, 8)),
    "GRUCell": (lambda: nn.GRUCell(8, 6), (4, 8)),
    "read by its parent": (ReadsItsChildren, (2, 4, 8)),
    "by keywords": (ByKeywords, (2, 4, 8)),
    "changed in place": (lambda: nn.Sequential(nn.Conv1d(8, 6, 3, bias=False), nn.ReLU(inplace=True)), (2, 8, 10)),
    "experts": (lambda: Experts(False), (9, 8)),
    "grouped experts": (lambda: Experts(True), (9, 8)),
    "LoRA": (LoRA, (4, 8)),
}
DECOMPOSED = ("LSTM", "GRU", "RNN", "Cell", "Conv", "unbatched", "by keywords")
"""Parts of names of kinds whose products or biases torch adds up otherwise."""


RECURRENT = ("LSTM", "GRU", "RNN", "Cell")
COUNTED = [name for name in KINDS if not any(each in name for each in (*RECURRENT, "norm", "grouped"))]
"""Of the others torch counts no products, or takes other ones."""


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest) -> tuple[str, nn.Module, Tensor]:
    """A kind's name, a model around it, and an input."""
    build, shape = KINDS[request.param]
    x = torch.randn(*shape)
    model = nn.Sequential(build())
    return request.param, model, x


def old_weight_norm(module: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(module)


def rounded(weight: Tensor) -> Tensor:
    return quantize(weight.detach(), E4M3, scale=amax_scale(weight.detach(), E4M3))


def by_hand(model: nn.Module) -> nn.Module:
    """The model with every matrix rounded in its memory: what a policy for weights alone computes."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.ndim > 1 and not name.startswith("bias"):
                whole = parameter.ndim == 2 or isinstance(module, nn.modules.conv._ConvNd)
                parameter.data = rounded(parameter) if whole else torch.stack(list(map(rounded, parameter)))
    return twin


def plain_run(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x)
    y = y[0] if isinstance(y, tuple) else y
    return y


def test_a_policy_for_weights_computes_with_rounded_weights(case: tuple[str, nn.Module, Tensor]) -> None:
    name, model, x = case
    model.eval()  # training moves the estimate of a spectral norm
    plain_run(model, x)
    if "norm" in name or name in ("orthogonal", "parametrized Conv1d"):
        function = F.linear if x.ndim == 2 else F.conv1d
        expected = function(x, rounded(model[0].weight), model[0].bias)
    else:
        expected = plain_run(by_hand(model), x)
    quantize_model(model, Policy(E4M3))
    found = plain_run(model, x)
    if any(each in name for each in DECOMPOSED):
        torch.testing.assert_close(found, expected)
    else:
        assert torch.equal(found, expected)


def test_all_operands_are_rounded_in_training_and_in_evaluation(case: tuple[str, nn.Module, Tensor]) -> None:
    name, model, x = case
    plain_run(model, x)
    model.eval()
    with torch.no_grad():
        before = plain_run(model, x)
    types = [type(module) for module in model.modules()]
    held = [vars(module).keys() for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    quantize_model(model, FULL)
    readings = []
    with observed(model, readings.append):
        plain_run(model, x).square().sum().backward()
    layers = {each for each, layer in quantized_layers(model).items()}
    assert {(each.layer, each.operand) for each in readings} >= {
        (layer, operand) for layer in layers for operand in ("weight", "activation", "grad_output")
    }
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        found = plain_run(model, x)
        assert not torch.equal(found, before), "evaluation is quantized"
        assert torch.equal(found, plain_run(model, x))
    report = report_of(model)
    assert report.never_read == ()
    if name not in ("spectral_norm", "orthogonal"):  # which multiply by their parameters to make the weight
        assert not any(row.multiply_adds != row.of_them_rounded for row in report.rows)
    assert {**model.state_dict()}.keys() == state.keys()
    dequantize_model(model)
    assert [type(module) for module in model.modules()] == types
    assert [vars(module).keys() for module in model.modules()] == held
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(plain_run(model, x), before)


@pytest.mark.parametrize("name", COUNTED)
def test_multiply_adds_are_those_that_torch_counts(name: str) -> None:
    build, shape = KINDS[name]
    model, x = nn.Sequential(build()), torch.randn(*shape)
    plain_run(model, x)
    with FlopCounterMode(display=False) as counter:
        plain_run(model, x)
    quantize_model(model, FULL)
    plain_run(model, x)
    attention = sum(each.multiply_adds for each in report_of(model).products if "dot_product" in each.operator)
    counted = sum(each.multiply_adds for each in report_of(model).products)
    assert 2 * (counted - attention) == counter.get_total_flops()
    assert attention == {"Multi": 2 * 5 * 5 * 8 * 2, "Trans": 2 * 2 * 5 * 5 * 8 * 2}.get(name[:5], 0) or "all" in name


def test_copies_and_pickles_go_on_rounding(case: tuple[str, nn.Module, Tensor]) -> None:
    name, model, x = case
    with torch.no_grad():
        plain_run(model.eval(), x)
    model.requires_grad_(name != "old weight_norm")  # torch copies no tensor that has a history
    quantize_model(model, FULL)
    expected = plain_run(model, x)
    assert torch.equal(plain_run(copy.deepcopy(model), x), expected)
    if "norm" in name or "parametrized" in name or name == "orthogonal" or type(model[0]).__module__ == __name__:
        return  # torch does not pickle parametrized modules
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(plain_run(twin, x), expected)
    assert [type(module) for module in dequantize_model(twin).modules()] == [
        type(module) for module in dequantize_model(model).modules()
    ]


def test_a_convolution_rounds_each_operand_once_with_channels_last() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False))
    row = Scaling(granularity="row")
    quantize_model(model, Policy(*(Operand(fmt, scaling=row) for fmt in (E4M3, E4M3, E5M2))))
    x, grad = torch.randn(2, 4, 8, 8, requires_grad=True), torch.randn(2, 6, 6, 6)
    y = model(x)
    y.backward(grad)

    def on_grid(tensor: Tensor, fmt: Any, dims: tuple[int, ...]) -> Tensor:
        return quantize(
            tensor.detach(), fmt, scale=2.0 ** torch.ceil(torch.log2(tensor.detach().abs().amax(dims, True) / fmt.max))
        )

    twin = nn.Conv2d(4, 6, 3, bias=False)
    twin.weight.data = on_grid(model[0].weight, E4M3, (1, 2, 3))
    x_ = on_grid(x, E4M3, (1,)).requires_grad_()
    y_ = twin(x_)
    y_.backward(on_grid(grad, E5M2, (1,)))
    torch.testing.assert_close(y, y_)
    torch.testing.assert_close(x.grad, x_.grad)
    torch.testing.assert_close(model[0].weight.grad, twin.weight.grad)


def test_attention_multiplies_rounded_queries_keys_and_values_where_it_is_asked_to() -> None:
    model = Attends()
    x = torch.randn(2, 5, 8)
    plain = model(x)
    quantize_model(model, Policy(attention=E2M1))
    y = model(x)
    assert {name for name in all_layers(model)} >= {"attn.scores", "attn.mixing"}
    report = report_of(model)
    rounded_ones = [each for each in report.products if each.casts]
    assert sum(each.multiply_adds for each in rounded_ones) == 2 * 5 * 5 * 8 * 2
    q, k, v = F.linear(x, model.attn.in_proj_weight, model.attn.in_proj_bias).chunk(3, -1)
    q, k, v = (each.unflatten(-1, (2, 4)).transpose(1, 2) for each in (q, k, v))

    def on_grid(tensor: Tensor) -> Tensor:
        return quantize(tensor.detach(), E2M1, scale=amax_scale(tensor.detach(), E2M1))

    mask = torch.zeros(5)
    mask[-1] = -torch.inf
    weights = (on_grid(q) @ on_grid(k).mT / 2 + mask).softmax(-1)
    mixed = (on_grid(weights) @ on_grid(v)).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(y, model.attn.out_proj(mixed))
    assert not torch.allclose(y, plain)
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert torch.equal(dequantize_model(model)(x), plain)


@pytest.mark.parametrize(
    "name", ["LSTM", "packed LSTM", "packed GRU", "RNN", "MultiheadAttention", "TransformerEncoder"]
)
def test_without_rounding_the_numbers_are_those_of_torch(name: str) -> None:
    build, shape = KINDS[name]
    model, x = nn.Sequential(build()), torch.randn(*shape)
    expected = plain_run(model, x)
    assert torch.equal(plain_run(quantize_model(model, Policy()), x), expected)


@pytest.mark.parametrize("name", ["Conv2d", "Conv1D", "MultiheadAttention", "read by its parent", "LoRA"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_model_has_the_bits_of_the_eager_one(name: str) -> None:
    build, shape = KINDS[name]
    model, x = quantize_model(nn.Sequential(build()), FULL), torch.randn(*shape)
    torch._dynamo.reset()
    run = torch.compile(model, backend="eager", fullgraph=name != "LoRA")  # which reads a weight's T
    found = run(x)
    found.square().sum().backward()
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    expected = plain_run(model, x)
    expected.square().sum().backward()
    assert torch.equal(found, expected)
    assert all(torch.equal(a, b.grad) for a, b in zip(grads, model.parameters(), strict=True))


@pytest.mark.parametrize("wrapped_first", [True, False])
@pytest.mark.parametrize("name", ["Linear", "Conv1d", "subclass of Linear"])
def test_parametrizations_before_and_after_the_surgery_are_the_same(name: str, wrapped_first: bool) -> None:
    build, shape = KINDS[name]
    model, x = nn.Sequential(build()), torch.randn(*shape)
    twin = copy.deepcopy(model)
    parametrizations.weight_norm(twin[0])
    if wrapped_first:
        parametrizations.weight_norm(model[0])
        quantize_model(model, FULL)
    else:
        quantize_model(model, FULL)
        parametrizations.weight_norm(model[0])
    quantized = model(x)
    assert not torch.equal(quantized, twin(x))
    dequantize_model(model)
    assert torch.equal(model(x), twin(x))
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is type(nn.Sequential(build())[0])
    assert torch.equal(quantize_model(model, FULL)(x), quantized)


def test_adapters_may_be_put_around_layers_that_are_quantized_already() -> None:
    base, x = nn.Linear(8, 8), torch.randn(4, 8)
    before = LoRA(copy.deepcopy(base))
    after = LoRA(quantize_model(nn.Sequential(base), FULL)[0])
    after.load_state_dict(before.state_dict())
    assert torch.equal(
        after(x), quantize_model(nn.Sequential(copy.deepcopy(base)), FULL)(x) + x @ after.a.T @ after.b.T
    )
    assert torch.equal(quantize_model(after, FULL)(x), quantize_model(before, FULL)(x))


def test_a_lazy_layer_is_quantized_before_it_knows_its_size() -> None:
    model, x = nn.Sequential(nn.LazyLinear(6), nn.LazyConv1d(3, 2)), torch.randn(2, 4, 8)
    quantize_model(model, FULL)
    assert "nothing" not in str(report_of(model))
    y = model(x)
    assert type(model[0]) is QuantizedLinear
    assert report_of(model).multiply_add_share == 1
    dequantize_model(model)
    assert [type(module) for module in model] == [nn.Linear, nn.Conv1d]
    assert not torch.equal(model(x), y)


def test_an_embedding_of_a_class_of_its_own_reads_its_rounded_table() -> None:
    model, token = nn.Sequential(Shifted(6, 4)), torch.tensor([0, 4])
    table = rounded(model[0].weight)
    assert torch.equal(quantize_model(model, Policy(E4M3))(token), table[token + 1] + table[:1])


def test_activation_checkpointing_and_quantization_go_in_either_order() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    x, found = torch.randn(3, 8), []
    plain = nn.Sequential(nn.Linear(8, 8), Doubled(8, 4))
    policy = Policy(*(Operand(E4M3, "stochastic"),) * 3)
    for first in (True, False, None):
        model = copy.deepcopy(plain)
        if first:
            quantize_model(model, policy)
        if first is not None:
            model[0], model[1] = checkpoint_wrapper(model[0]), checkpoint_wrapper(model[1])
        if not first:
            quantize_model(model, policy)
        y = model(x)
        y.square().sum().backward()
        found.append([y, *(parameter.grad for parameter in model.parameters())])
        assert torch.equal(dequantize_model(model)(x), plain(x))
    assert all(torch.equal(a, b) for run in found[:2] for a, b in zip(run, found[2], strict=True)), "names, so draws"


def test_a_stacked_weight_is_rounded_in_a_product_that_adds() -> None:
    class Gates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 16, 16))

        def forward(self, x: Tensor) -> Tensor:
            return torch.baddbmm(torch.ones(4, 1, 16), x, self.weight, beta=2)

    torch.manual_seed(0)
    gates, x = Gates(), torch.randn(4, 8, 16)
    plain = gates(x)
    model = quantize_model(nn.ModuleDict({"mlp": gates}), "te-current")
    (layer,) = quantized_layers(model).values()
    read: list[Any] = []
    with observed(model, read.append), torch.no_grad():
        found = model["mlp"](x)
    assert [each.operand for each in read].count("weight") == 1
    assert not torch.equal(found, plain)
    assert torch.allclose(found, plain, atol=1.0)
    assert torch.equal(read[[each.operand for each in read].index("weight")].rounded.mT, layer.weight_as_read())


def test_a_layer_keeps_an_attribute_of_its_own_that_is_called_order() -> None:
    class Polynomial(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.order = 2

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x**self.order, self.weight)

    model = nn.ModuleDict({"mlp": Polynomial()})
    quantize_model(model, Policy(E4M3))["mlp"](torch.ones(2, 4))
    assert model["mlp"].order == 2
    assert dequantize_model(model)["mlp"].order == 2


def test_a_name_that_quantized_layers_use_leaves_the_module_as_it_is_and_is_told() -> None:
    class Scaled(nn.Linear):  # an attribute that would be overwritten
        layer = 3

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.layer

    class Shifted(nn.Linear):  # a method that would be hidden
        def read(self, x: Tensor) -> Tensor:
            return x + 1

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.read(x))

    class Holder(nn.Module):  # a module that would be replaced
        def __init__(self) -> None:
            super().__init__()
            self.w, self.quantized = nn.Parameter(torch.eye(8)), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.quantized(x) @ self.w

    class Same(nn.Conv1d):  # a private method of torch's, which is read, not hidden
        def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return super()._conv_forward(x, weight, bias)

    model = nn.Sequential(Scaled(8, 8), Shifted(8, 8), Holder(), nn.Linear(8, 8), Same(1, 1, 3, padding=1))
    x = torch.randn(4, 1, 8)
    plain = model(x)
    for _ in range(2):  # the second time its own names are no strangers'
        quantize_model(model, Policy(E4M3, E4M3, E4M3))
        model(x)
        assert [*quantized_layers(model)] == ["3", "4"]
        told = str(report_of(model))
        assert all(f"its attribute {name!r} has a name" in told for name in ("layer", "read", "quantized"))
    with pytest.raises(ValueError, match=r"strict: .*0\.weight \(its attribute 'layer' has a name that quantized"):
        quantize_model(model, Policy(E4M3), strict=True)
    assert torch.equal(dequantize_model(model)(x), plain)
