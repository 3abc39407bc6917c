"""Weights written as codes and scales are read back bit for bit; a recorded model is evaluated under any policy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch.nn.functional import linear  # noqa: E402

from altgrad.cli import main  # noqa: E402
from altgrad.config import UsageError, parse_config  # noqa: E402
from altgrad.export import export_weights, read_weights  # noqa: E402
from altgrad.formats import FP32, FloatFormat, get_format  # noqa: E402
from altgrad.nn import Operand, Policy, Scaling, observed, quantize_model, quantized_layers, recipe  # noqa: E402
from altgrad.recipes import RECIPES  # noqa: E402
from altgrad.runs import record  # noqa: E402
from altgrad.training import train  # noqa: E402
from altgrad.training.evaluated import OWN, evaluate, policies  # noqa: E402
from altgrad.training.probed import checkpointed  # noqa: E402

E4M3, E2M1 = get_format("e4m3"), get_format("e2m1")


def model() -> Any:
    torch.manual_seed(0)
    found = torch.nn.ModuleDict(
        {"embedding": torch.nn.Embedding(11, 40), "mlp": torch.nn.Linear(40, 24), "head": torch.nn.Linear(24, 37)}
    )
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.mul_(torch.randn_like(parameter).mul(3).exp2())
        found["mlp"].weight[3, :5] = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 40.0])
    return found


def read_back(given: Any, policy: Any, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is in the file as it is, and what its values are; these are held against what the layers read."""
    quantize_model(given, policy)
    before = {key: value.clone() for key, value in given.state_dict().items()}
    export_weights(given, path)
    assert all(torch.equal(value, before[key]) for key, value in given.state_dict().items())
    values = read_weights(path)
    assert values.keys() == {key for key in before if ".delayed." not in key}
    for name, layer in quantized_layers(given).items():
        expected = layer.weight_as_read()
        assert torch.equal(values[f"{name}.weight"].view(torch.int32), expected.view(torch.int32)), name
    assert torch.equal(values["mlp.bias"], given["mlp"].bias)
    return load_file(path), values


RULES = {
    "tensor": Scaling(),
    "exact": Scaling(power_of_two=False),
    "inverse": Scaling(power_of_two=False, quotient="inverse"),
    "row": Scaling(granularity="row", power_of_two=False),
    "block": Scaling(granularity="block", block=16, power_of_two=False, quotient="inverse"),
    "square": Scaling(granularity="block_2d", block=16),
    "none": Scaling("none"),
    "static": Scaling("static", value=0.3),
    "delayed": Scaling("delayed", history=4),
}


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e3m2", "e2m1", "e0m7", "fp16", "bf16", "e6m9"])
def test_every_rule_is_read_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    for rule in RULES.values():
        read_back(model(), Policy(Operand(get_format(name), scaling=rule), layers=("*",)), tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_read_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    read_back(model(), recipe(name, head=True, embedding=True), tmp_path / "w.safetensors")


READS: dict[str, tuple[tuple[int, ...], Any]] = {
    "one by one": ((3, 24, 40), lambda self, x: [linear(x[e], self.up[e]) for e in range(3)]),  # as Qwen3-MoE does
    "together": ((3, 24, 40), lambda self, x: x @ self.up.mT),
    "[in, out]": ((3, 40, 24), lambda self, x: torch.bmm(x, self.up)),
    "[in, out], copied": ((3, 40, 24), lambda self, x: [linear(x[e], self.up.mT.contiguous()[e]) for e in range(3)]),
    "a matrix, [in, out]": ((40, 24), lambda self, x: x[0] @ self.up),
    "a matrix, at the left": ((24, 40), lambda self, x: (self.up @ x[0].T).T),
    "an equation": ((40, 24), lambda self, x: torch.einsum("...i,io->...o", x, self.up)),
    "the same rows for all": ((3, 40, 24), lambda self, x: x[0] @ self.up),
    "[in, expert, out]": ((40, 3, 24), lambda self, x: torch.bmm(x, self.up.transpose(0, 1))),
    "[out, in, expert]": ((24, 40, 3), lambda self, x: [linear(x[e], self.up[..., e]) for e in range(3)]),
    "a column": ((40, 1), lambda self, x: linear(x[0], self.up.t())),
    "a view of heads": ((40, 24), lambda self, x: torch.einsum("...i,ihd->...hd", [x, self.up.view(40, 4, 6)])),
    "an equation of heads": ((4, 40, 6), lambda self, x: torch.einsum("hid,bni->bnhd", self.up, x)),
}
"""The shape of a weight, and a forward pass that reads it."""


def reading(how: str) -> Any:
    """A module with such a weight, of which no two rows, columns or matrices have the same scale."""
    shape, forward = READS[how]
    module = type("Reading", (torch.nn.Module,), {"forward": forward})()
    module.up = torch.nn.Parameter(torch.randn(shape))
    for dim, size in enumerate(shape):
        module.up.data *= torch.logspace(-2, 2, size).view(-1, *(1,) * (len(shape) - dim - 1))
    return module


def flat(tensors: Any) -> Any:
    return torch.stack(tensors) if isinstance(tensors, list) else tensors


@pytest.mark.parametrize("how", READS)
def test_a_weight_is_read_back_with_the_bits_that_its_products_read(how: str, tmp_path: Path) -> None:
    given = {name: recipe(name) for name in RECIPES}
    given |= {name: Policy(Operand(E4M3, scaling=rule)) for name, rule in RULES.items()}
    given["nvfp4 squares"] = Policy(Operand(E2M1, scaling=Scaling("nvfp4", granularity="block_2d")))
    x, places = torch.randn(3, 8, 40), torch.eye(40).expand(3, 40, 40)
    ran = 0
    for name, policy in given.items():
        torch.manual_seed(0)
        model = quantize_model(torch.nn.ModuleDict({"experts": reading(how)}), policy)["experts"]
        (layer,) = quantized_layers(model).values()
        if how.startswith(("an equation", "a view")) and not layer.one_cast:
            continue  # which is refused: the weight is rounded once
        readings: list[Any] = []
        with observed(model, readings.append), torch.no_grad():
            model(x)
        read = [each.rounded for each in readings if each.operand == "weight"]
        read = layer.as_parameter(flat(read) if len(read) > 1 else read[0].view(layer.as_operand(layer.weight).shape))
        export_weights(model, tmp_path / "w.safetensors")
        found = read_weights(tmp_path / "w.safetensors")["up"]
        assert torch.equal(found.view(torch.int32), read.contiguous().view(torch.int32)), name
        scale = load_file(tmp_path / "w.safetensors").get("up_scale")
        assert scale is None or len(found) != 3 or len(scale) == 3, name
        assert torch.equal(layer.weight_as_read(), found), name
        assert torch.equal(layer.as_parameter(layer.weight_reading().rounded), found), name
        layer.policy = replace(layer.policy, activation=FP32, casts={}, hadamard={})
        plain = reading(how)
        with torch.no_grad():  # rows of the identity: each product has one term, a value of the weight
            plain.up.copy_(found)
            columns = flat(plain(places))
            assert torch.equal(flat(model(places)), columns), name
        ran += 1
    assert ran > 8


def test_scales_lie_as_products_read_a_weight_and_are_not_guessed_before_that(tmp_path: Path) -> None:
    for rule in ("row", "tensor"):
        policy = Policy(Operand(E4M3, scaling=Scaling(granularity=rule)))
        model = quantize_model(torch.nn.ModuleDict({"experts": reading("a matrix, [in, out]")}), policy)
        if rule == "row":
            with pytest.raises(ValueError, match=r"experts.up: its scales lie .*; run a batch first"):
                export_weights(model, tmp_path / "w.safetensors")
            model["experts"](torch.randn(3, 8, 40))
        export_weights(model, tmp_path / "w.safetensors")
    shape = load_file(tmp_path / "w.safetensors")["experts.up_scale"].shape
    assert shape == ()


@pytest.mark.parametrize("module", [torch.nn.LSTM(32, 8), torch.nn.MultiheadAttention(32, 2)])
def test_how_a_module_of_torch_reads_its_weights_is_known_before_a_batch(module: Any, tmp_path: Path) -> None:
    model = quantize_model(torch.nn.ModuleDict({"experts": module}), recipe("torchao-rowwise"))
    found = export_weights(model, tmp_path / "w.safetensors")
    scales = load_file(tmp_path / "w.safetensors")
    assert len(found) == 2
    assert {len(each) for key, each in scales.items() if "scale" in key} == {
        len(w) for w in model.parameters() if w.ndim > 1
    }


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: linear(x[0], self.up.mT.reshape(-1, 40)),  # a copy with other strides
        lambda self, x: x.repeat(1, 1, 3)[0] @ self.up.flatten(0, 1),
        lambda self, x: linear(x[0, :, :20], self.up[0, :, :20]),
    ],
)
def test_what_is_summed_over_is_no_dimension_of_the_weight(forward: Any, tmp_path: Path) -> None:
    module = type("Reading", (torch.nn.Module,), {"forward": forward})()
    module.up = torch.nn.Parameter(torch.randn(3, 40, 40))
    model = quantize_model(torch.nn.ModuleDict({"experts": module}), recipe("mxfp8"))
    model["experts"](torch.randn(3, 8, 40))
    with pytest.raises(ValueError, match="run a batch first"):
        export_weights(model, tmp_path / "w.safetensors")


def test_the_parts_of_a_matrix_have_a_scale_each_where_one_would_be_of_the_whole(tmp_path: Path) -> None:
    attention = torch.nn.ModuleDict({"it": torch.nn.MultiheadAttention(16, 2)})
    query, key = torch.randn(3, 1, 16), torch.randn(5, 1, 16)
    for rule in (Scaling(), Scaling("mx"), Scaling("delayed", history=2)):
        model = quantize_model(attention, Policy(Operand(E4M3, scaling=rule)))
        model["it"](query, query, query)
        export_weights(model, tmp_path / "w.safetensors")
        model["it"](query, key, key)  # torch cuts in_proj_weight in two
        if rule.kind == "amax":
            with pytest.raises(ValueError, match=r"it.in_proj: products read it in parts with a scale each"):
                export_weights(model, tmp_path / "w.safetensors")
        else:
            export_weights(model, tmp_path / "w.safetensors")


def test_fp8_is_the_dtype_of_torch_and_its_scale_a_number(tmp_path: Path) -> None:
    raw, values = read_back(model(), Policy(E4M3, layers=("*",)), tmp_path / "w.safetensors")
    assert raw["mlp.weight"].dtype == torch.float8_e4m3fn
    assert raw["mlp.weight_scale"].shape == ()
    assert torch.equal(raw["mlp.weight"].float() * raw["mlp.weight_scale"], values["mlp.weight"])


@pytest.mark.parametrize("square", [False, True])
def test_mx_has_scales_in_e8m0_that_other_tools_read(square: bool, tmp_path: Path) -> None:
    where = {"granularity": "block_2d"} if square else {}
    spec = Operand(E4M3, scaling=Scaling("mx_rceil", **where))
    raw, values = read_back(model(), Policy(spec, layers=("*",)), tmp_path / "w.safetensors")
    assert raw["mlp.weight_scale"].dtype == torch.float8_e8m0fnu
    assert raw["mlp.weight_scale"].shape == ((1, 2) if square else (24, 2))
    scale = raw["mlp.weight_scale"].view(torch.uint8).numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    every = np.repeat(scale, 32, axis=1)[:, :40]
    codes = raw["mlp.weight"].view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(codes * every, values["mlp.weight"].numpy())


def test_nvfp4_has_two_codes_a_byte_and_two_levels_of_scales(tmp_path: Path) -> None:
    spec = Operand(E2M1, scaling=Scaling("nvfp4"))
    raw, values = read_back(model(), Policy(spec, layers=("*",)), tmp_path / "w.safetensors")
    packed = raw["mlp.weight"].numpy()
    assert packed.shape == (24, 20)
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(24, 40)
    inner = raw["mlp.weight_scale"].view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    scale = np.repeat(inner, 16, axis=1)[:, :40] * raw["mlp.weight_scale_2"].numpy()
    assert np.array_equal(codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32) * scale, values["mlp.weight"].numpy())


def test_a_damaged_block_is_read_back_as_nan(tmp_path: Path) -> None:
    given = model()
    with torch.no_grad():
        given["mlp"].weight[2, 1] = torch.nan
        given["mlp"].weight[5, 35] = torch.inf
    quantize_model(given, Policy(Operand(E2M1, scaling=Scaling("mx")), layers=("mlp",)))
    export_weights(given, tmp_path / "w.safetensors")
    found = read_weights(tmp_path / "w.safetensors")["mlp.weight"]
    assert torch.equal(found.isnan(), given["mlp"].weight_as_read().isnan())
    assert found.isnan().sum() == 32 + 8


def test_weights_on_the_grid_are_read_back(tmp_path: Path) -> None:
    from altgrad.optim import ManifoldAdamW

    given = quantize_model(model(), Policy(E4M3, layers=("mlp",)))
    optimizer = ManifoldAdamW([given["mlp"].weight], "e4m3", storage="grid")
    given["mlp"].grid_scale = optimizer.scale_of(given["mlp"].weight)
    export_weights(given, tmp_path / "w.safetensors")
    assert torch.equal(read_weights(tmp_path / "w.safetensors")["mlp.weight"], given["mlp"].weight)


def test_what_cannot_be_written_is_one_line_with_the_layer(tmp_path: Path) -> None:
    own = FloatFormat(name="own", exponent_bits=4, mantissa_bits=3, bias=5, specials="finite")
    for policy, message in (
        (Policy(activation=E4M3, layers=("*",)), "no weight of the model is quantized"),
        (Policy(E4M3, E4M3, layers=("mlp",), hadamard={"output": 16}), "mlp: its output product rotates the weight"),
        (Policy(own, layers=("mlp",)), "mlp: the format 'own' has no name that reads back"),
    ):
        with pytest.raises(ValueError, match=message):
            export_weights(quantize_model(model(), policy), tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="cannot be written"):
        export_weights(quantize_model(model(), Policy(E4M3, layers=("*",))), tmp_path / "gone" / "w.safetensors")
    assert not list(tmp_path.iterdir())


def test_what_is_no_exported_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(UsageError, match="no such file"):
        read_weights(path)
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(UsageError, match="is not a file of exported weights, or damaged"):
        read_weights(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(UsageError, match="is not a file of exported weights"):
        read_weights(path)
    for about in ({"version": 1}, {"version": 9, "weights": {}}, {"version": 1, "weights": {"b": {}}}, []):
        save_file({"a": torch.zeros(2)}, path, {"altgrad": json.dumps(about)})
        with pytest.raises(UsageError, match=r"damaged|this altgrad reads 1"):
            read_weights(path)


# A recorded model


SMALL: dict[str, Any] = {
    "model": {"layers": 1, "dim": 32, "heads": 2, "context": 16},
    "batch_size": 8,
    "eval_batches": 3,
    "max_steps": 12,
    "layers_every": 0,
    "checkpoint": {"every": 12},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("runs")
    every = {"weight": "e4m3", "activation": "e4m3", "grad_output": "e5m2"}
    given = {
        "fp32": {},
        "delayed": {"quantize": every, "scaling": {"kind": "delayed"}, "final_eval_characters": 2000},
        "grid": {"quantize": every, "optimizer": {"storage": "grid", "rounding": "stochastic"}},
    }
    return {name: train(parse_config({**SMALL, **keys}, name), out, progress=False) for name, keys in given.items()}


def test_a_model_s_own_policy_has_the_loss_that_its_run_recorded(runs: dict[str, Any]) -> None:
    for name in ("delayed", "grid"):
        summary = runs[name].summary
        found = evaluate(checkpointed(runs[name].path), {}, batches=0)
        assert found.keys() == {OWN}
        assert found[OWN].loss == summary.get("final_val_loss", summary["val_loss"])


def test_a_gap_is_the_loss_in_the_policy_less_that_without_rounding(runs: dict[str, Any]) -> None:
    kept = checkpointed(runs["fp32"].path)
    found = evaluate(kept, policies(kept.config, ["e4m3", "e2m1", "fp32"], ["mxfp8"]), batches=2)
    recorded = runs["fp32"].summary["val_loss"]
    assert found["fp32"].loss == recorded
    assert found["fp32"].gap == found["fp32"].error == 0
    for each in found.values():
        assert each.gap == pytest.approx(each.loss - recorded, abs=1e-6)
    assert found["e2m1"].gap > 5 * abs(found["e4m3"].gap)
    assert found["e2m1"].class_bias > found["e4m3"].class_bias > 0
    assert np.isnan(found["mxfp8"].class_bias), "the recipe leaves the head as it is"
    again = checkpointed(runs["fp32"].path / "checkpoints" / "step-12")
    assert evaluate(again, policies(again.config, [], ["mxfp8"]), batches=0)["mxfp8"].loss == found["mxfp8"].loss


def test_weights_on_the_grid_are_rounded_by_the_candidates(runs: dict[str, Any]) -> None:
    kept = checkpointed(runs["grid"].path)
    found = evaluate(kept, policies(kept.config, ["e2m1"], []), batches=0)
    assert found["e2m1"].gap > 0.01


def test_evaluate_prints_a_table_by_gap(runs: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    where = str(runs["fp32"].path)
    assert main(["evaluate", where, "--formats", "e4m3,e2m1", "--recipes", "nvfp4,te-delayed", "--batches", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    gaps = [float(line.split()[2]) for line in lines[1:5]]
    assert gaps == sorted(gaps)
    assert {line.split()[0] for line in lines[1:5]} == {"e4m3", "e2m1", "nvfp4", "te-delayed"}
    assert lines[-1] == "Predicted to cost least in training, by class bias: e4m3, e2m1."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name formats or recipes to evaluate"),
        (["--formats", "e4m3", "--threads", "0"], "--threads 0: give a number of at least 1"),
        (["--formats", "e99m1"], "--formats e99m1: "),
        (["--formats", "e8m0"], "a scale's format without sign and zero"),
        (["--recipes", "mxfp9"], "--recipes: no recipe is called 'mxfp9'; did you mean 'mxfp8'?"),
    ],
)
def test_a_mistake_in_evaluate_is_one_line(
    arguments: list[str], message: str, runs: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(runs["fp32"].path), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_export_weights_writes_the_run_s_own_or_a_recipe_s(
    runs: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.safetensors"
    for name, arguments, fmt in (
        ("grid", [], "e4m3"),
        ("grid", ["--recipe", "nvfp4"], "e2m1"),
        ("fp32", ["--format", "e5m2"], "e5m2"),
    ):
        assert main(["export-weights", str(runs[name].path), str(path), *arguments]) == 0
        told = capsys.readouterr().out
        (row,) = (line for line in told.splitlines() if line.startswith("blocks.0.mlp.up "))
        assert row.split()[1] == fmt
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["altgrad"])["weights"]
        assert {each["format"] for each in about.values()} == {fmt}
        assert read_weights(path).keys() == checkpointed(runs[name].path).model.state_dict().keys()
    assert main(["export-weights", str(runs["fp32"].path), str(path)]) == 2
    assert "no weight of the model is quantized" in capsys.readouterr().err
    with record(tmp_path / "runs", name="own-loop", config={"lr": 1}, seed=0) as run:
        run.log(1, loss=1.0)
        run.finish()
    assert main(["export-weights", str(run.path), str(path)]) == 2
    assert "of another loop or model, and has no checkpoint that can be read; in Python" in capsys.readouterr().err
    assert main(["export-weights", str(tmp_path / "none"), str(path)]) == 2
    assert "no such folder" in capsys.readouterr().err
