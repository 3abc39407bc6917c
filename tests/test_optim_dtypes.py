"""Step rules for every dtype that AdamW takes, for shards, tensor rates and rates by default, and moments in 8 bits."""

from __future__ import annotations

import copy
import itertools
import math
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from altgrad.config import UsageError, moment_bytes_per_weight, parse_config  # noqa: E402
from altgrad.formats import get_format  # noqa: E402
from altgrad.optim import CodeOptimizer, ManifoldAdamW  # noqa: E402
from altgrad.training import train  # noqa: E402

E4M3 = get_format("e4m3")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
RULES: dict[str, Callable[..., Any]] = {
    "adamw": lambda params, **how: ManifoldAdamW(params, E4M3, precondition=None, **how),
    "gradient": lambda params, **how: ManifoldAdamW(params, E4M3, precondition="gradient", **how),
    "update": lambda params, **how: ManifoldAdamW(params, E4M3, precondition="update", **how),
    "relative": lambda params, **how: ManifoldAdamW(params, E4M3, precondition=None, relative=True, **how),
    "grid": lambda params, **how: ManifoldAdamW(
        params, E4M3, precondition="update", storage="grid", rounding="stochastic", **how
    ),
    "code": lambda params, **how: CodeOptimizer(params, E4M3, **how),
}


def some(*shape: int, seed: int) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.1


def stepped(make: Callable[..., Any], dtype: Any, steps: int = 3, **how: Any) -> Any:
    weight = torch.nn.Parameter(some(40, 13, seed=0).to(dtype))
    optimizer = make([weight], **how)
    for step in range(steps):
        weight.grad = some(40, 13, seed=step + 1).to(dtype)
        optimizer.step()
    return weight.detach()


def spacing(w: np.ndarray, precondition: str) -> np.ndarray:
    """S of E4M3: at most 2**-3 of the weight, and of the format's own smallest step under the tensor's scale."""
    binade = np.exp2(np.frexp(np.abs(w))[1] - 1.0)
    if precondition == "gradient":
        return binade * 2.0**-3
    scale = 2.0 ** math.ceil(math.log2(np.abs(w).max() / 448))
    return np.maximum(binade * 2.0**-3, scale * 2.0**-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("precondition", ["gradient", "update"])
def test_every_dtype_takes_the_step_of_the_equations(precondition: str, dtype: Any) -> None:
    found = stepped(RULES[precondition], dtype, lr=0.01, eps=1e-5)
    w = some(40, 13, seed=0).to(dtype).double().numpy()
    m, v = np.zeros_like(w), np.zeros_like(w)
    for step in range(1, 4):
        g, s = some(40, 13, seed=step).to(dtype).double().numpy(), spacing(w, precondition)
        scaled = g * s if precondition == "gradient" else g
        m, v = 0.9 * m + 0.1 * scaled, 0.999 * v + 0.001 * scaled**2
        u = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-5)
        moved = s * (u + 0.01 * w) if precondition == "update" else u + 0.01 * w
        w = w - 0.01 * moved
        w = torch.from_numpy(w).to(dtype).double().numpy()
    assert found.dtype == dtype
    allowed = 64 * torch.finfo(torch.float32).eps if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    np.testing.assert_allclose(found.double().numpy(), w, rtol=allowed, atol=max(1e-8, allowed * 1e-3))
    assert np.abs(found.double().numpy() - some(40, 13, seed=0).numpy()).max() > 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_a_precondition_every_dtype_is_torch_s_adamw_bit_by_bit(dtype: Any) -> None:
    def theirs(params: Any, **how: Any) -> Any:
        return torch.optim.AdamW(params, foreach=True, **how)

    assert torch.equal(stepped(RULES["adamw"], dtype), stepped(theirs, dtype, lr=1e-3))


def test_parameters_of_several_dtypes_step_as_each_alone() -> None:
    together = [torch.nn.Parameter(some(8, 8, seed=0).to(dtype)) for dtype in DTYPES]
    optimizer = ManifoldAdamW(together, E4M3, lr=0.1)
    for parameter in together:
        parameter.grad = some(8, 8, seed=1).to(parameter.dtype)
    optimizer.step()
    for parameter in together:
        alone = torch.nn.Parameter(some(8, 8, seed=0).to(parameter.dtype))
        alone.grad = some(8, 8, seed=1).to(parameter.dtype)
        ManifoldAdamW([alone], E4M3, lr=0.1).step()
        assert torch.equal(parameter, alone)


@pytest.mark.parametrize("rule", ["adamw", "grid", "code"])
def test_complex_parameters_are_refused_when_the_optimizer_is_made(rule: str) -> None:
    complex_one = torch.nn.Parameter(torch.randn(3, dtype=torch.complex64))
    with pytest.raises(ValueError, match="a number format has no complex values; give real and imaginary parts"):
        RULES[rule]([complex_one])
    optimizer = RULES[rule]([torch.nn.Parameter(torch.randn(3))])
    with pytest.raises(ValueError, match="complex values"):
        optimizer.add_param_group({"params": [("name", complex_one)]})


# Rates


@pytest.mark.parametrize("rule", RULES)
def test_a_tensor_rate_is_the_rate_as_a_number(rule: str) -> None:
    rate = torch.tensor(0.25)
    assert torch.equal(stepped(RULES[rule], torch.float32, lr=rate), stepped(RULES[rule], torch.float32, lr=0.25))
    assert rate.item() == 0.25


def test_a_schedule_moves_a_tensor_rate() -> None:
    weights = []
    for rate in (torch.tensor(0.5), 0.5):
        weight = torch.nn.Parameter(some(8, 8, seed=0).float())
        optimizer = ManifoldAdamW([weight], E4M3, lr=rate)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for step in range(3):
            weight.grad = some(8, 8, seed=step).float()
            optimizer.step()
            schedule.step()
        assert float(optimizer.param_groups[0]["lr"]) == 0.0625
        weights.append(weight.detach())
    assert torch.equal(*weights)


@pytest.mark.parametrize("rate", ["fast", True, torch.tensor([0.1, 0.2]), torch.tensor(1), 1j])
@pytest.mark.parametrize("rule", ["update"])
def test_a_rate_that_is_none_is_refused_when_the_optimizer_is_made(rule: str, rate: Any) -> None:
    with pytest.raises(ValueError, match="lr must be a number or a tensor of one"):
        RULES[rule]([torch.nn.Parameter(torch.randn(3))], lr=rate)


def test_rates_below_zero_and_nan_are_refused() -> None:
    for rate in (-1.0, math.nan, torch.tensor(-1.0)):
        with pytest.raises(ValueError, match="lr, eps and weight_decay must not be negative"):
            RULES["update"]([torch.nn.Parameter(torch.randn(3))], lr=rate)


@pytest.mark.parametrize(
    ("rule", "name"),
    [*itertools.product(("gradient", "update", None), ("e4m3", "e2m1", "e0m7")), ("code", "e4m3"), ("code", "e0m7")],
)
def test_the_default_rate_trains(rule: str | None, name: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.GELU(), torch.nn.Linear(64, 4))
    params = list(model.parameters())
    optimizer = (
        CodeOptimizer(params, name)
        if rule == "code"
        else ManifoldAdamW(params, name, precondition=rule)  # rate unnamed
    )
    x, target = torch.randn(256, 16), torch.randint(0, 4, (256,))
    first = torch.nn.functional.cross_entropy(model(x), target).item()
    for _ in range(200):
        loss = torch.nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8 * first


def test_each_group_has_the_default_rate_of_its_own_rule() -> None:
    weights = [torch.nn.Parameter(torch.randn(4)) for _ in range(4)]
    optimizer = ManifoldAdamW(weights[:1], E4M3)
    optimizer.add_param_group({"params": [weights[1]], "precondition": None})
    optimizer.add_param_group({"params": [weights[2]], "fmt": "bf16"})
    optimizer.add_param_group({"params": [weights[3]], "lr": 3.0})
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 1e-3, 2.0, 3.0]
    code = CodeOptimizer(weights[:1], E4M3)
    code.add_param_group({"params": [weights[1]], "storage": "master", "rounding": "nearest_even"})
    assert [group["lr"] for group in code.param_groups] == [0.1, 1e-3]


# Moments in 8 bits


def kept(x: np.ndarray, element: Any, largest: float) -> np.ndarray:
    """Codes of blocks of 256 and their scales, by ml_dtypes, and back: what a moment is after a step."""
    flat = x.ravel().astype(np.float32)
    found = np.empty_like(flat)
    for start in range(0, flat.size, 256):
        block = flat[start : start + 256]
        scale = np.float32(np.abs(block).max() / np.float32(largest)) if block.any() else np.float32(1)
        found[start : start + 256] = (block / scale).astype(element).astype(np.float32) * scale
    return found.reshape(x.shape)


@pytest.mark.parametrize("shape", [(7,), (40, 13)])
def test_moments_in_8_bits_are_those_of_an_independent_adamw(shape: tuple[int, ...]) -> None:
    weight = torch.nn.Parameter(some(*shape, seed=0).float())
    optimizer = ManifoldAdamW([weight], E4M3, lr=0.01, precondition=None, moments="fp8", eps=1e-4)
    w = weight.detach().numpy().astype(np.float64)
    m, v = np.zeros(shape), np.zeros(shape)
    for step in range(1, 6):
        g = some(*shape, seed=step).float()
        weight.grad = g
        optimizer.step()
        g = g.double().numpy()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        u = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-4)
        w = w * (1 - 0.01 * 0.01) - 0.01 * u
        m = kept(m, ml_dtypes.float8_e4m3fn, 448).astype(np.float64)
        v = kept(v, ml_dtypes.float8_e5m2, 57344).astype(np.float64)
        np.testing.assert_allclose(weight.detach().numpy(), w, rtol=0, atol=3e-7)
    state = optimizer.state[weight]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.uint8
    codes = state["exp_avg"].numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float32).ravel()
    scale = np.repeat(state["exp_avg_scale"].numpy(), 256)[: codes.size]
    np.testing.assert_allclose(codes * scale, m.ravel(), rtol=1e-6)


def test_the_bytes_of_moments_are_what_the_state_holds() -> None:
    for moments in ("fp32", "fp8"):
        weight = torch.nn.Parameter(torch.randn(64, 128))
        optimizer = ManifoldAdamW([weight], E4M3, moments=moments)
        weight.grad = torch.randn(64, 128)
        optimizer.step()
        held = [value for key, value in optimizer.state[weight].items() if key.startswith("exp_avg")]
        assert sum(value.numel() * value.element_size() for value in held) / 8192 == moment_bytes_per_weight(moments)
    with pytest.raises(ValueError, match="moments must be one of fp32, fp8"):
        moment_bytes_per_weight("int8")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", ["adamw", "update", "grid"])
def test_moments_in_8_bits_go_on_bit_for_bit_from_a_saved_state(rule: str, dtype: Any) -> None:
    if rule == "grid" and dtype != torch.float32:
        pytest.skip("the grid is kept in float32")

    def run(resume: bool) -> Any:
        weight = torch.nn.Parameter(some(20, 30, seed=0).to(dtype))
        optimizer = RULES[rule]([weight], lr=0.1, moments="fp8")
        for step in range(4):
            if resume and step == 2:
                state, values = copy.deepcopy(optimizer.state_dict()), weight.detach().clone()
                weight = torch.nn.Parameter(torch.zeros_like(values))
                optimizer = RULES[rule]([weight], moments="fp8")
                optimizer.load_state_dict(state)
                weight.data.copy_(values)
            weight.grad = some(20, 30, seed=step + 1).to(dtype)
            optimizer.step()
        return weight.detach()

    assert torch.equal(run(True), run(False))


def test_a_state_of_other_moments_is_refused_and_an_old_one_is_read() -> None:
    weight = torch.nn.Parameter(torch.randn(4))
    wide, narrow = ManifoldAdamW([weight], E4M3), ManifoldAdamW([weight], E4M3, moments="fp8")
    with pytest.raises(ValueError, match="the state has moments 'fp32' where this optimizer has 'fp8'"):
        narrow.load_state_dict(wide.state_dict())
    old = wide.state_dict()
    del old["param_groups"][0]["moments"]
    wide.load_state_dict(old)
    weight.grad = torch.randn(4)
    wide.step()


def test_a_damaged_moment_damages_its_block_alone() -> None:
    weight = torch.nn.Parameter(torch.ones(600))
    optimizer = ManifoldAdamW([weight], E4M3, precondition=None, moments="fp8")
    for _ in range(2):
        weight.grad = torch.ones(600)
        weight.grad[300] = torch.nan
        optimizer.step()
    assert weight.detach().isnan().nonzero().flatten().tolist() == list(range(256, 512))


def test_error_feedback_and_moments_in_8_bits_exclude_each_other() -> None:
    how: dict[str, Any] = {"storage": "grid", "rounding": "error_feedback", "moments": "fp8"}
    with pytest.raises(ValueError, match="error_feedback carries the error in the momentum"):
        ManifoldAdamW([torch.nn.Parameter(torch.randn(3))], E4M3, precondition=None, **how)
    given = {"quantize": {"weight": "e4m3"}, "optimizer": {**how}}
    with pytest.raises(UsageError, match=r"leave out optimizer\.moments 'fp8'"):
        parse_config(given, "test")


def test_a_config_has_moments_in_8_bits_and_resumes(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "model": {"layers": 1, "dim": 32, "heads": 2, "context": 16},
        "optimizer": {"moments": "fp8", "learning_rate": 0.01},
        "max_steps": 6,
        "batch_size": 4,
        "eval_batches": 1,
        "checkpoint": {"every": 3},
    }
    config = parse_config(given, "test")
    assert config.resolved_name == "fp32-adamw-fp8-moments"
    assert "moments" not in parse_config({}, "test").identity()["optimizer"]
    whole = train(config, tmp_path / "whole", progress=False)
    assert whole.status == "finished"
    part = train(config.model_copy(update={"max_steps": 6}), tmp_path / "part", progress=False)
    (part.path / "run.json").write_text((part.path / "run.json").read_text().replace('"finished"', '"interrupted"'))
    assert part.summary["val_loss"] == whole.summary["val_loss"]


# Shards


MORE: tuple[dict[str, Any], ...] = ({}, {"floor": 0.1}, {"stiffness": "constant"})


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _on_rank(rank: int, port: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    mesh, found = init_device_mesh("cpu", (2,)), {}
    for placement in (Shard(0), Shard(1), Replicate()):
        for rule, make in RULES.items():
            for number, more in enumerate(MORE if rule == "update" else MORE[:1]):
                whole = some(5, 6, seed=0).float()
                whole[0, 0] = 3.0  # the largest is on one rank
                weight = torch.nn.Parameter(distribute_tensor(whole, mesh, [placement]))
                optimizer = make([weight], lr=0.5, **more)
                for step in range(3):
                    weight.grad = distribute_tensor(some(5, 6, seed=step + 1).float(), mesh, [placement])
                    optimizer.step()
                found[str(placement), rule, number] = weight.full_tensor().detach()
    try:
        ManifoldAdamW([weight], E4M3, moments="fp8")
    except ValueError as error:
        found["refused"] = str(error)
    if rank == 0:
        torch.save(found, folder)
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_the_shards_of_a_parameter_step_as_the_whole_does(tmp_path: Path) -> None:
    file = str(tmp_path / "found.pt")
    torch.multiprocessing.spawn(_on_rank, (_free_port(), file), nprocs=2)
    found = torch.load(file, weights_only=True)
    assert "not for sharded parameters" in found.pop("refused")
    assert len(found) == 24
    for (placement, rule, more), values in found.items():
        whole = some(5, 6, seed=0).float()
        whole[0, 0] = 3.0
        weight = torch.nn.Parameter(whole)
        optimizer = RULES[rule]([weight], lr=0.5, **MORE[more])
        scale = optimizer.state[weight].get("scale")
        for step in range(3):
            weight.grad = some(5, 6, seed=step + 1).float()
            optimizer.step()
        if rule in ("grid", "code") and "1" in placement:  # shards of columns have draws of their own
            codes = (values / scale).tolist()
            assert all(E4M3.round(code) == code for row in codes for code in row)
            continue
        torch.testing.assert_close(values, weight.detach(), rtol=1e-6, atol=1e-7)
