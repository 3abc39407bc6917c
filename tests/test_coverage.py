"""The report on what quantization reached, what strict refuses, and inputs that no layer takes."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.nn.utils import prune  # noqa: E402
from torch.nn.utils.parametrizations import weight_norm  # noqa: E402

from altgrad.analysis import ExperimentDataLoader  # noqa: E402
from altgrad.cli import main  # noqa: E402
from altgrad.formats import get_format  # noqa: E402
from altgrad.models import GPT  # noqa: E402
from altgrad.nn import (  # noqa: E402
    Operand,
    Policy,
    Scaling,
    dequantize_model,
    layer_type,
    quantize_model,
    quantized_layers,
    recipe,
    report_of,
)
from altgrad.reports.arms import arm_pages  # noqa: E402
from altgrad.runs import record  # noqa: E402
from altgrad.site.render import Dialect, render  # noqa: E402
from altgrad.telemetry import LayerTelemetry  # noqa: E402

E4M3, E5M2 = get_format("e4m3"), get_format("e5m2")
FULL = Policy(E4M3, E4M3, E5M2)


class Net(nn.Module):
    """Something of everything: read, never read, read unseen, not supported."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(10, 8)
        self.fc1, self.spare = nn.Linear(8, 16), nn.Linear(16, 16)
        self.pair = nn.Bilinear(16, 16, 4, bias=False)
        self.hidden = nn.Parameter(torch.randn(4, 4))
        self.lm_head = nn.Linear(4, 10, bias=False)

    def forward(self, token: Tensor) -> Tensor:
        x = self.fc1(self.embed_tokens(token)).tanh()
        x = unseen(self, self.pair(x, x))
        return self.lm_head(x @ x.mT @ x)


def unseen(net: Net, x: Tensor) -> Tensor:
    """A product that the code of the module's class does not show."""
    return x @ net.hidden


TOKEN = torch.tensor([[1, 2, 3], [4, 5, 6]])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_layer_types_are_read_off_the_names_of_the_usual_families() -> None:
    found = {
        "model.layers.0.self_attn.q_proj": "attention",
        "bert.encoder.layer.0.attention.self.query": "attention",
        "transformer.h.0.attn.c_attn": "attention",
        "encoder.block.0.layer.0.SelfAttention.q": "attention",
        "encoder.block.0.layer.1.DenseReluDense.wi": "mlp",
        "model.decoder.layers.0.fc1": "mlp",
        "model.layers.0.mlp.experts.gate_up_proj": "mlp",
        "model.embed_tokens": "embedding",
        "transformer.wte": "embedding",
        "lm_head": "head",
        "classifier": "head",
        "blocks.0.attention.qkv": "attention",
        "head": "head",
        "0": None,
        "blocks.0.attention_norm": None,
        "bert.encoder.layer.0.output.dense": "mlp",
        "bert.encoder.layer.0.attention.output.dense": "attention",
        "backbone.layers.0.mixer.in_proj": None,  # of a state space, Mamba's
        "model.layers.0.conv.out_proj": None,  # of a convolution, LFM2's
        "backbone.layers.0.mixer.q_proj": "attention",  # a mixer may be attention too, as Nemotron-H's
    }
    assert {name: layer_type(name) for name in found} == found
    own = quantize_model(nn.ModuleDict({"mix": nn.MultiheadAttention(8, 2)}), FULL)
    assert {layer.layer_type for layer in quantized_layers(own).values()} == {"attention"}


def test_the_report_tells_every_parameter_and_after_a_batch_what_really_ran() -> None:
    model = quantize_model(Net(), FULL)
    rows = {row.name: row for row in report_of(model).rows}
    assert rows.keys() == dict(model.named_parameters()).keys()
    assert {name for name, row in rows.items() if row.state == "listed"} == {
        "embed_tokens.weight", "fc1.weight", "spare.weight", "lm_head.weight",
    }  # fmt: skip
    assert not any(row.quantized for row in rows.values()), "nothing has been read"
    assert rows["pair.weight"].why == "nn.Bilinear is a product of three factors"
    assert rows["hidden"].why == "no product of matrices in the code of Net reads it"
    assert "vector" in rows["fc1.bias"].why
    total = sum(parameter.numel() for parameter in model.parameters())
    assert report_of(model).parameter_share == (80 + 128 + 256 + 40) / total
    assert report_of(model).multiply_add_share is None
    assert "listed, not read yet" in str(report_of(model))
    assert "\nquantized" not in str(report_of(model))
    model(TOKEN)
    report = report_of(model)
    rows = {row.name: row for row in report.rows}
    assert report.never_read == ("spare",)
    assert not rows["spare.weight"].quantized
    assert report.parameter_share == (80 + 128 + 40) / total
    assert (rows["fc1.weight"].multiply_adds, rows["fc1.weight"].of_them_rounded) == (6 * 8 * 16,) * 2
    assert (rows["lm_head.weight"].multiply_adds, rows["hidden"].of_them_rounded) == (6 * 4 * 10, 0)
    assert rows["hidden"].multiply_adds == 6 * 4 * 4
    alone = sum(each.multiply_adds for each in report.products if not each.parameters)
    assert alone == 2 * (3 * 4 * 3 + 3 * 3 * 4)
    bilinear = rows["pair.weight"].multiply_adds
    made = 768 + 240 + 96 + alone + bilinear
    assert report.multiply_add_share == (768 + 240) / made
    text = str(report)
    assert "listed, but read by no product or lookup of the first batch: spare" in text
    assert rows["spare.weight"].why == "not read in the first batch"
    assert f"of {total:,} parameters are quantized" in text
    assert f"of {made:,} multiply-adds" in text


class Mixer(nn.Module):
    """As Mamba's: decays whose exponential is no factor of a product of matrices, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.A_log, self.conv1d = nn.Parameter(torch.zeros(4, 8)), nn.Conv1d(8, 8, 1, bias=False)
        self.x_proj = nn.Linear(8, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1d(x.mT).mT
        return (self.x_proj(x) @ torch.exp(x[0, 0] * -torch.exp(self.A_log.float()))).sum()


def test_reasons_tell_what_reads_a_matrix_and_what_names_it() -> None:
    model, x = quantize_model(Mixer(), "mxfp8"), torch.ones(1, 3, 8)
    model(x)
    rows = {row.name: row for row in report_of(model).rows}
    assert {name for name, row in rows.items() if row.quantized} == {"x_proj.weight"}
    assert rows["A_log"].why == "read, but by no product of matrices"
    assert rows["conv1d.weight"].why.startswith("its operands can be rounded once only")
    quantize_model(model, recipe("mxfp8", wide=("A_log", "conv1d")))(x)
    named = {row.name: row.why for row in report_of(model).skipped}
    assert named == dict.fromkeys(("A_log", "conv1d.weight"), "`wide`, or a policy that rounds nothing, names it")


class Positions(nn.Module):
    """As DeBERTa's: a table that a projection reads, and a weight that a parametrization makes of two."""

    def __init__(self) -> None:
        super().__init__()
        self.rel = nn.Parameter(torch.ones(6, 8))
        self.proj, self.out = nn.Linear(8, 8, bias=False), weight_norm(nn.Linear(8, 8, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x) @ self.proj(self.rel).mT


def test_a_product_of_two_parameters_is_counted_once_and_what_is_left_out_has_those_of_none() -> None:
    model = quantize_model(Positions(), FULL)
    model(torch.ones(4, 8))
    report = report_of(model)
    rows = {row.name: row.multiply_adds for row in report.rows}
    weights = "out.parametrizations.weight.original"
    assert rows == {"rel": 0, "proj.weight": 6 * 64, f"{weights}0": 4 * 64, f"{weights}1": 0}
    kept = report.summary()
    assert kept["left_out"][-1] == {
        "name": "mm", "why": "a product of activations alone", "count": 0, "parameters": 0, "multiply_adds": 4 * 6 * 8
    }  # fmt: skip
    left = sum(each["multiply_adds"] for each in kept["left_out"])
    assert left == pytest.approx(kept["multiply_adds"] * (1 - kept["rounded"]))


@pytest.mark.parametrize("policy", ["mxfp8", "nvfp4", Policy(E4M3, E4M3, E5M2, head=False, hadamard={"output": 16})])
def test_shares_are_of_the_models_own_products_also_where_casts_rotate(policy: Any) -> None:
    (layers, dim, time, batch, words) = 2, 32, 8, 3, 96
    model = quantize_model(GPT(words, layers=layers, dim=dim, heads=2, context=time, seed=0), policy)
    around = nn.Sequential(model)
    around(torch.zeros(batch, time, dtype=torch.int64))
    report = report_of(around)
    of_layers, of_head = batch * time * layers * 12 * dim**2, batch * time * dim * words
    of_attention = batch * layers * 2 * time**2 * dim
    assert sum(row.of_them_rounded for row in report.rows) == of_layers
    assert sum(row.multiply_adds for row in report.rows) == of_layers + of_head
    assert report.multiply_add_share == of_layers / (of_layers + of_head + of_attention)


def test_counting_changes_no_number_and_ends_with_the_first_batch() -> None:
    model = quantize_model(Net(), FULL)
    twin = copy.deepcopy(model)
    first, second = model(TOKEN), model(TOKEN)
    assert torch.equal(first, second)
    counted = report_of(model).products
    model(TOKEN[:1])
    assert report_of(model).products is counted
    assert report_of(twin).products is None, "a copy counts its own first batch"
    assert all("counter" not in vars(layer) for layer in quantized_layers(model).values())
    hooks = len(model._forward_hooks)
    quantize_model(model, FULL)
    assert (len(model._forward_hooks), report_of(model).products) == (hooks, None)
    dequantize_model(model)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    with pytest.raises(ValueError, match="has no report"):
        report_of(model)


def test_a_batch_that_fails_is_not_counted() -> None:
    model = quantize_model(Net(), FULL)
    with pytest.raises(IndexError):
        model(torch.tensor([[99]]))
    assert report_of(model).products is None
    with torch.inference_mode():
        model(TOKEN)
    assert report_of(model).multiply_add_share > 0


def test_head_and_embedding_have_a_switch_each() -> None:
    model = quantize_model(Net(), Policy(E4M3, E4M3, E5M2, head=False, embedding=False))
    rows = {row.name: row for row in report_of(model).rows}
    assert {name for name, row in rows.items() if row.state == "listed"} == {"fc1.weight", "spare.weight"}
    assert (rows["lm_head.weight"].why, rows["embed_tokens.weight"].why) == ("head=False", "embedding=False")
    both = nn.ModuleDict({"embed_tokens": nn.Embedding(4, 4), "lm_head": nn.Linear(4, 4)})
    quantize_model(both, Policy(E4M3, head=False))
    assert both["lm_head"].policy.weight.format is not E4M3


def test_strict_refuses_before_the_first_batch_what_is_known_then_and_says_how_to_name_it() -> None:
    model = Net()
    with pytest.raises(ValueError, match=r"strict: .* pair.weight \(nn.Bilinear is a product of three") as error:
        quantize_model(model, FULL, strict=True)
    assert "hidden (no product of matrices in the code of Net reads it)" in str(error.value)
    assert 'name them: {"hidden": Policy(), "pair": Policy(), "*": policy}, or in a recipe' in str(error.value)
    assert not quantized_layers(model), "nothing has been changed"
    named = {"hidden": Policy(), "pair": Policy(), "*": FULL}
    quantize_model(model, named, strict=True)(TOKEN)
    quantize_model(model, recipe("fp8-hybrid", wide=["hidden", "pair"]), strict=True)(TOKEN)
    del named["*"]
    with pytest.raises(ValueError, match=r": lm_head.weight .no policy is for its name"):
        quantize_model(model, named | dict.fromkeys(("fc1", "spare", "embed*"), FULL), strict=True)
    for policy in (FULL, Policy(E4M3, head=False)):
        model = GPT(96, layers=1, dim=16, heads=2, context=8, seed=0)
        quantize_model(model, {"position": Policy(), "*": policy}, strict=True)


class Direct(nn.Module):
    """Parameters that no layer has, each read in its own way; in the same code as a product of matrices."""

    def __init__(self, **parameters: tuple[int, ...]) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        for name in ("decay", "table", "scale", "gate", "experts_bias"):
            setattr(self, name, None)
        for name, shape in parameters.items():
            setattr(self, name, nn.Parameter(torch.ones(shape)))

    def forward(self, x: Tensor) -> Tensor:
        """`x` [3, 4]."""
        if self.decay is not None:
            x = torch.matmul(x, x.mT @ x) * torch.exp(-self.decay)
        return self.fc(self.around(x))

    def around(self, x: Tensor) -> Tensor:
        """What is no product of matrices, but for a vector's."""
        for name in ("table", "scale", "experts_bias"):
            if (found := getattr(self, name)) is not None:
                x = x + found if name != "scale" else x * found
        return x if self.gate is None else x * (x @ self.gate)[:, None]


@pytest.mark.parametrize(
    ("name", "shape", "when"),
    [
        ("decay", (3, 4), "after"),  # a state space's, listed because its code multiplies
        ("table", (3, 4), "before"),  # of positions
        ("gate", (4,), "after"),  # a vector that is a factor
        ("decay", (1, 4), "never"),  # RWKV's: a vector by what it holds
        ("scale", (4,), "never"),  # LayerScale
        ("experts_bias", (3, 4), "never"),  # a vector an expert
    ],
)
def test_strict_refuses_what_a_module_reads_directly_or_the_policy_names_it(
    name: str, shape: tuple[int, ...], when: str
) -> None:
    x = torch.ones(3, 4)
    model = Direct(**{name: shape})
    if when == "before":
        with pytest.raises(ValueError, match=f"would be left as they are: {name} "):
            quantize_model(model, FULL, strict=True)
    else:
        quantize_model(model, FULL, strict=True)
    if when == "after":
        for _ in range(2):
            with pytest.raises(ValueError, match=f'strict: .*first batch: {name} .*name them: ."{name}": Policy'):
                model(x)
    if when == "never":
        model(x)
    quantize_model(model, {name: Policy(), "*": FULL}, strict=True)(x)
    row = next(row for row in report_of(model).rows if row.name == name)
    assert (row.state, row.of_them_rounded) == ("left out", 0)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("part", [False, True])
def test_strict_wants_a_batch_before_a_graph(part: bool) -> None:
    """Products inside a graph are not seen, and what is not seen could be left out."""
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8)))
    quantize_model(model, FULL, strict=True)
    (model[0] if part else model).compile(backend="eager", fullgraph=True)
    with pytest.raises(Exception, match=r"strict: .* not counted; run one batch before torch.compile"):
        model(torch.ones(2, 8))
    model = quantize_model(nn.Sequential(nn.Sequential(nn.Linear(8, 8))), FULL, strict=True)
    model(torch.ones(2, 8))
    (model[0] if part else model).compile(backend="eager", fullgraph=True)
    model(torch.ones(2, 8))


def test_what_a_convolution_cannot_do_is_told() -> None:
    policy = Policy(E4M3, E4M3, E5M2, casts={"grad_weight.activation": E5M2})
    model = nn.Sequential(nn.Conv1d(4, 4, 3), nn.Flatten(), nn.Linear(8, 4))
    quantize_model(model, policy)
    assert list(quantized_layers(model)) == ["2"]
    assert "its operands can be rounded once only" in {row.name: row.why for row in report_of(model).rows}["0.weight"]
    with pytest.raises(ValueError, match=r"strict: .* 0.weight .its operands can be rounded once only"):
        quantize_model(model, policy, strict=True)


def test_a_forward_pass_replaced_on_the_object_is_told() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].forward = model[0].forward
    quantize_model(model, FULL)
    assert list(quantized_layers(model)) == ["1"]
    assert "its forward is replaced" in {row.name: row.why for row in report_of(model).rows}["0.weight"]


def one(policy: Policy = FULL) -> nn.Module:
    return quantize_model(nn.ModuleDict({"first": nn.Linear(8, 8)}), policy)["first"]


@pytest.mark.parametrize(
    ("x", "word"),
    [
        (torch.randn(4, 8).to_sparse(), "its input is sparse_coo, and only dense tensors are rounded; use to_dense"),
        (torch.ones(4, 8, dtype=torch.int64), "its input is int64, and only real floating point is rounded"),
        (torch.ones(4, 8, dtype=torch.complex64), "its input is complex64"),
    ],
)
def test_an_input_that_is_no_dense_real_tensor_is_refused_with_the_layers_name(x: Tensor, word: str) -> None:
    with pytest.raises(ValueError, match=f"layer first: {word}") as error:
        one()(x)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_a_nested_input_is_refused_with_the_layers_name() -> None:
    nested = torch.nested.nested_tensor([torch.randn(2, 8), torch.randn(3, 8)])
    with pytest.raises(ValueError, match="layer first: its input is a nested tensor; pad it"):
        one()(nested)


def test_native_products_and_experts_with_casts_name_the_layer() -> None:
    with pytest.raises(ValueError, match=r"layer first: native FP8 products need .* multiples of 16"):
        one(Policy(E4M3, E4M3, E4M3, compute="native"))(torch.randn(4, 8))

    class Batched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.randn(3, 8, 4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("eni,eio->eno", x, self.up)

    across = Operand(E4M3, scaling=Scaling("mx", axis="contraction"))
    model = quantize_model(nn.ModuleDict({"experts": Batched()}), Policy(across, across, across))
    with pytest.raises(ValueError, match=r"layer experts.up: its operands can be rounded once only"):
        model["experts"](torch.randn(3, 2, 8))


def test_meta_tensors_pass_with_their_shapes_and_fake_ones_are_refused() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 4), nn.Conv1d(4, 2, 1))
    quantize_model(model, FULL)
    assert model(torch.randn(3, 4, 8, device="meta")).shape == (3, 2, 4)
    assert report_of(model).multiply_add_share == 1
    with FakeTensorMode(), pytest.raises(ValueError, match="layer first: its input is a fake tensor"):
        one()(torch.randn(3, 8))
    with FakeTensorMode(), pytest.raises(ValueError, match="layer 0: its table is a fake tensor"):
        quantize_model(nn.Sequential(nn.Embedding(8, 4)), FULL)(torch.tensor([1]))


def test_a_pattern_that_matches_nothing_is_told_and_strict_refuses_it() -> None:
    model = nn.ModuleDict({"mlp": nn.Linear(4, 4), "head": nn.Linear(4, 4)})
    told = r"no layer and no parameter has a name that matches 'nope\*', 'gone.\*'"
    for policy in (
        {"nope*": Policy(), "gone.*": Policy(), "mlp": FULL, "*": FULL},
        {"*": replace(FULL, patterns=("nope*", "mlp", "gone.*"))},
        recipe("mxfp8", wide=["nope*", "gone.*"]),
    ):
        with pytest.warns(UserWarning, match=told):
            quantize_model(model, policy)
        with pytest.raises(ValueError, match=f"^strict: {told}"):
            quantize_model(model, policy, strict=True)
    quantize_model(model, {"attention": FULL, "ml?": Policy(), "*": FULL}, strict=True)
    quantize_model(model, "deepseek-v3", strict=True)


class Router(nn.Module):
    """As those of Mixtral and gpt-oss: a weight of its own, and a name that patterns know."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)


@pytest.mark.parametrize("pattern", ["*.router", "*.router.weight", "*.mlp.*"])
def test_a_module_that_reads_its_own_weight_is_named_as_the_module_too(pattern: str) -> None:
    model = nn.ModuleDict({"a": nn.ModuleDict({"mlp": nn.ModuleDict({"router": Router(), "up": nn.Linear(4, 4)})})})
    quantize_model(model, recipe("mxfp8", wide=[pattern]), strict=True)
    assert "a.mlp.router.weight" in {row.name for row in report_of(model).rows if row.state == "left out"}
    quantize_model(model, "deepseek-v3", strict=True)
    rounded = [name for name, layer in quantized_layers(model).items() if layer.policy.rounds]
    assert rounded == ["a.mlp.up"], "it keeps routers wide, however they are written"
    for missed, told in (("*.mlp", r"'\*.mlp' \(a module, whose layers are '\*.mlp.\*'\)"), ("*.gate", r"'\*.gate'")):
        with pytest.raises(ValueError, match=f"^strict: no layer and no parameter has a name that matches {told}"):
            quantize_model(model, recipe("mxfp8", wide=[missed]), strict=True)


def test_a_model_without_a_layer_to_round_and_what_is_none_are_one_line() -> None:
    sparse = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.complex64))
    sparse[0].weight = nn.Parameter(sparse[0].weight.detach().to_sparse())
    with pytest.raises(
        ValueError, match=r"each layer is left out \(its weight is sparse_coo, not dense; its weight is"
    ):
        quantize_model(sparse, FULL)
    with pytest.raises(ValueError, match=r"^the model has no matrix or embedding to quantize$"):
        quantize_model(nn.ReLU(), FULL)
    for wrong in (None, E4M3):
        with pytest.raises(TypeError, match=r"give a torch.nn.Module, and a Policy"):
            quantize_model(nn.Linear(4, 4), wrong)  # type: ignore[arg-type]


def test_a_gpu_without_fp8_is_told_before_there_is_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    from altgrad.nn.layers import native_lack

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert "compute capability 8.9 or more; use compute 'simulated'" in native_lack(torch.device("cuda"))
    assert native_lack(torch.device("cpu")) == ""


def test_empty_batches_pass_through_every_kind_and_are_not_taken_for_the_first() -> None:
    model = quantize_model(nn.Sequential(nn.Linear(8, 4), nn.Conv1d(4, 2, 1)), FULL)
    x = torch.zeros(0, 4, 8, requires_grad=True)
    assert model(x).shape == (0, 2, 4)
    model(x).sum().backward()
    assert all(parameter.grad.eq(0).all() for parameter in model.parameters())


def test_one_weight_or_one_module_under_two_policies_is_refused() -> None:
    tied = nn.ModuleDict({"embed": nn.Embedding(8, 4), "head": nn.Linear(4, 8, bias=False)})
    tied["head"].weight = tied["embed"].weight
    with pytest.raises(ValueError, match="layers embed and head share a weight, and their policies differ in it"):
        quantize_model(tied, {"embed": Policy(E4M3), "head": Policy(E5M2)})
    quantize_model(tied, {"embed": Policy(), "head": Policy(E5M2)})
    layer = nn.Linear(4, 4)
    shared = nn.ModuleDict({"first": layer, "second": layer})
    with pytest.raises(ValueError, match="layer first is also layer second, and the two have different policies"):
        quantize_model(shared, {"first": Policy(E4M3), "second": Policy(E5M2)})
    quantize_model(shared, FULL)
    report = report_of(tied)
    assert [row.name for row in report.rows] == ["embed.weight"]


@pytest.fixture
def process_group() -> Iterator[None]:
    """A group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_wrappers_for_many_processes_come_before_or_after_the_surgery(wrapper: str) -> None:
    from torch.distributed.fsdp import fully_shard

    def wrapped(model: nn.Module) -> nn.Module:
        if wrapper == "ddp":
            return nn.parallel.DistributedDataParallel(model)
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        fully_shard(model[0], mesh=mesh)  # type: ignore[index]
        fully_shard(model, mesh=mesh)
        return model

    policy = Policy(*(Operand(E4M3, "stochastic"),) * 3)
    plain = nn.Sequential(nn.Linear(8, 8), nn.LSTM(8, 4), nn.Identity())
    plain[2].forward = lambda given: given[0]  # type: ignore[method-assign]
    x, found = torch.randn(3, 2, 8), []
    expected = plain(x)
    for first in (True, False):
        model = copy.deepcopy(plain)
        types = [type(module) for module in wrapped(copy.deepcopy(plain)).modules()]
        model = wrapped(quantize_model(model, policy)) if first else quantize_model(wrapped(model), policy)
        y = model(x)
        y.sum().backward()
        found.append(y)
        assert not torch.equal(y, expected)
        dequantize_model(model)
        assert [type(module).__name__ for module in model.modules()] == [each.__name__ for each in types]
        assert torch.equal(model(x), expected)
    assert torch.equal(*found), "the same names, so the same draws"


def test_case_08_is_covered_whole() -> None:
    def linears(*names: str) -> nn.ModuleDict:
        return nn.ModuleDict({name: nn.Linear(32, 32) for name in names})

    block: Any = nn.ModuleDict(
        {
            "self_attn": linears("q_proj", "k_proj", "v_proj", "o_proj"),
            "mlp": linears("gate_proj", "up_proj", "down_proj"),
        }
    )
    model = nn.ModuleDict(
        {"embed_tokens": nn.Embedding(50, 32), "layers": nn.ModuleList([block]), "lm_head": nn.Linear(32, 50)}
    )
    quantize_model(model, FULL)
    kinds = [layer.layer_type for layer in quantized_layers(model).values()]
    assert kinds == ["embedding", *["attention"] * 4, *["mlp"] * 3, "head"]


def test_exported_pruned_and_scaled_models_read_rounded_weights() -> None:
    model = quantize_model(GPT(96, layers=1, dim=16, heads=2, context=8, seed=0), FULL)
    token = torch.arange(16).reshape(2, 8)
    expected = model(token)
    with torch.no_grad():
        assert torch.equal(torch.export.export(model, (token,)).module()(token), expected)
    expected.square().mean().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=1.0), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(model(token).square().mean()).backward()
    scaler.unscale_(optimizer)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, gradients[name]), f"{name}: powers of two change no bit"
    up = model.blocks[0].mlp.up
    prune.l1_unstructured(up, "weight", 0.5)
    read = up.weight_as_read()
    assert torch.equal(read == 0, up.weight_mask == 0)
    x = torch.randn(3, 16)
    rounded = E4M3.round  # the readable form, on the scale that the layer has
    scale = 2.0 ** torch.floor(torch.log2(E4M3.max / x.abs().max())).item()
    values = torch.tensor([[rounded(value * scale) / scale for value in row] for row in x.tolist()])
    assert torch.allclose(up(x), values @ read.T, rtol=1e-5, atol=1e-6)


def page_of_loop(folder: Path, model: nn.Module, x: Tensor, *, seen: bool = True, **more: Any) -> str:
    """The page of a run of one step, as text."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(folder, name="loop", config={"lr": 0.1}, seed=0) as run:
        layers = LayerTelemetry(run, model, every=0)
        layers.begin(0)
        (model if seen else model.forward)(x).sum().backward()
        layers.before_update(optimizer)
        optimizer.step()
        layers.end(loss=1.0)
        for kind, detail in more.items():
            run.event(kind, 0, **detail)
        run.finish()
    arm = ExperimentDataLoader([folder]).runs["arm"].iloc[0]
    (page,) = (each for each in arm_pages(ExperimentDataLoader([folder])) if each.path == f"runs/{arm}")
    return render(page, Dialect(lambda reference: reference.path, whole=True))


def test_the_page_of_a_loop_says_what_is_quantized_and_what_is_left_out_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = nn.ModuleDict({"<b>|x*": Mixer()})
    model = nn.Sequential(named["<b>|x*"])
    model.add_module("<b>|x*", model.pop(0))
    quantize_model(model, FULL)
    page = page_of_loop(tmp_path, model, torch.ones(1, 3, 8))
    assert re.search(r"## What is quantized\s+Quantized are 75.0% of 128 parameters", page)
    adds, rounded = 3 * 8 * 8 + 3 * 8 * 4 + 3 * 4 * 8, 3 * 8 * 8 + 3 * 8 * 4
    assert f"and {rounded / adds:.1%} of {adds} multiply-adds of the first forward pass" in page
    assert re.search(r"A.{1,5}log \| read, but by no product of matrices \| 1 \| 25% \| 0%", page)
    assert "<b>" not in page
    assert "Event at step 0" not in page, "it has a section of its own"
    assert main(["runs", "show", "loop", "--runs", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"quantized 75.0% of 128 parameters, {rounded / adds:.1%} of {adds} multiply-adds of the first" in shown
    assert "A_log: read, but by no product of matrices" in shown


def test_what_a_record_keeps_of_a_report_is_bounded_and_what_it_cannot_be_is_an_event(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    for number in range(30):
        model.register_parameter(f"table{chr(97 + number)}", nn.Parameter(torch.zeros(2, number + 2)))
    kept = report_of(quantize_model(model, FULL)).summary()
    assert ([each["parameters"] for each in kept["left_out"]][:2], len(kept["left_out"]), kept["more"]) == (
        [62, 60],
        20,
        11,
    )
    assert (kept["multiply_adds"], kept["rounded"]) == (None, None)
    unseen = quantize_model(nn.Sequential(nn.Linear(4, 4)), FULL)
    page = page_of_loop(tmp_path / "unseen", unseen, torch.ones(2, 4), seen=False)
    assert re.search(r"80.0% of 20 parameters are listed to be quantized. The first batch was compiled", page)
    page = page_of_loop(tmp_path / "plain", nn.Linear(4, 4), torch.ones(2, 4), coverage={"parameters": "many"})
    assert "What is quantized" not in page
    assert "coverage: parameters many" in page
