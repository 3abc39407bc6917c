"""ManifoldAdamW: AdamW without a precondition, steps in ulps with "update", half the chain rule with "gradient"."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from altgrad.config import parse_config  # noqa: E402
from altgrad.formats import SPLITS_8BIT, FloatFormat, get_format  # noqa: E402
from altgrad.optim import ManifoldAdamW, MuonBesideAdamW  # noqa: E402
from altgrad.optim.base import Batch  # noqa: E402
from altgrad.rounding import ulp  # noqa: E402
from altgrad.scaling import amax_scale  # noqa: E402
from altgrad.training.loop import build_model, build_optimizer  # noqa: E402

E4M3 = get_format("e4m3")


def weights(seed: int = 0, shape: tuple[int, ...] = (64, 48)) -> torch.nn.Parameter:
    """Spread over many binades, as trained weights are."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(shape, generator=generator) * 2 ** torch.empty(shape).uniform_(-5, 0, generator=generator)
    return torch.nn.Parameter(spread)


def steps(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], count: int, scale: float = 1) -> None:
    generator = torch.Generator().manual_seed(9)
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator) * scale
        optimizer.step()


def test_without_a_precondition_it_is_torch_adamw_bit_by_bit() -> None:
    ours = [weights(0), weights(1, (7,)), weights(2, (3, 5))]
    theirs = copy.deepcopy(ours)
    settings = {"lr": 3e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    steps(ManifoldAdamW(ours, E4M3, precondition=None, **settings), ours, 20)
    steps(torch.optim.AdamW(theirs, foreach=True, **settings), theirs, 20)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def slope(precondition: str | None, lr: float, **settings: str) -> float:
    """Slope of log2|dw| over log2 ulp(w) after one first step, where Adam's direction has size one."""
    w = weights()
    before = w.detach().clone()
    spacing = ulp(before, E4M3, amax_scale(before, E4M3))
    optimizer = ManifoldAdamW([w], E4M3, lr=lr, weight_decay=0, precondition=precondition, **settings)
    steps(optimizer, [w], 1, scale=1e-2)
    change = (w.detach() - before).double().abs()
    return float(np.polyfit(spacing.log2().flatten().numpy(), change.log2().flatten().numpy(), 1)[0])


def test_the_step_is_a_number_of_ulps_only_when_the_update_is_scaled() -> None:
    assert 0.95 < slope("update", 0.5) < 1.05
    assert abs(slope(None, 1e-3)) < 0.05
    assert abs(slope("gradient", 1e-3)) < 0.05


def test_the_ablations_of_the_stiffness_keep_its_values_and_its_mean() -> None:
    for setting in ({}, {"floor": 0.1}, {"precondition": "gradient"}):
        found = {}
        for stiffness in ("ulp", "shuffled", "constant"):
            first, w = weights(4, (3,)), weights()
            optimizer = ManifoldAdamW([first, w], E4M3, lr=1.0, weight_decay=0, stiffness=stiffness, **setting)
            batch = Batch([first, w], [], [], [], [0, 1], 1)
            fields, unit = optimizer._spacings(optimizer.param_groups[0], batch, None)
            again, _ = optimizer._spacings(optimizer.param_groups[0], batch, None)
            assert torch.equal(fields[1], again[1])
            found[stiffness] = fields[1].double() * unit
        plain, shuffled, constant = found.values()
        assert torch.equal(plain.flatten().sort()[0], shuffled.flatten().sort()[0])
        assert (plain != shuffled).float().mean() > 0.5
        assert (constant == constant[0, 0]).all()
        assert float(constant[0, 0]) == pytest.approx(float(plain.mean()), rel=1e-6)


def test_the_permutation_depends_on_the_seed_and_the_place_of_the_parameter_alone() -> None:
    ends = []
    for seed, others in ((0, 1), (0, 1), (1, 1), (0, 2)):
        w = weights()
        optimizer = ManifoldAdamW([*(weights() for _ in range(others)), w], E4M3, stiffness="shuffled", seed=seed)
        steps(optimizer, [w], 2)
        ends.append(w.detach())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
    assert not torch.equal(ends[0], ends[3])


def test_steps_with_shuffled_or_constant_stiffness_do_not_follow_the_ulp() -> None:
    assert abs(slope("update", 0.5, stiffness="shuffled")) < 0.1
    assert abs(slope("update", 0.5, stiffness="constant")) < 0.05


def test_a_relative_rate_is_the_rate_times_the_rms_of_the_tensor() -> None:
    factors = (1.0, 2.0**-6, 2.0**5)
    ours = [torch.nn.Parameter(weights(i).detach() * factor) for i, factor in enumerate(factors)]
    expected = []
    for i, w in enumerate(ours):
        rate = 1e-2 * float(np.sqrt(np.mean(w.detach().double().numpy() ** 2)))
        twin = copy.deepcopy(w)
        generator = torch.Generator().manual_seed(i)
        w.grad = twin.grad = torch.randn(w.shape, generator=generator)
        torch.optim.AdamW([twin], lr=rate, weight_decay=0.1, foreach=True).step()
        expected.append(twin)
    ManifoldAdamW(ours, E4M3, lr=1e-2, weight_decay=0.1, precondition=None, relative=True).step()
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e7m0", "e0m7", "e1m6", "bf16", "p3109_k8p4", "e2m1"])
@pytest.mark.parametrize("setting", [{}, {"scaled": False}, {"power_of_two": False}])
@pytest.mark.parametrize("size", [1.0, 1e-30, 1e-37, 1e30])
def test_the_short_way_to_the_spacing_is_the_ulp_of_the_kernel(name: str, setting: dict, size: float) -> None:
    fmt = get_format(name)
    w = torch.nn.Parameter(torch.cat([weights().detach().flatten() * size, torch.zeros(2)]))
    optimizer = ManifoldAdamW([w], fmt, **setting)
    fields, unit = optimizer._spacings(optimizer.param_groups[0], Batch([w], [], [], [], [0], 1), None)
    scale = amax_scale(w, fmt, power_of_two=setting.get("power_of_two", True)) if setting.get("scaled", True) else None
    assert torch.equal(fields[0] * unit, ulp(w, fmt, scale))


def test_many_parameters_of_all_sizes_step_as_each_would_alone() -> None:
    shapes = [(3,), (300, 500), (7, 5), (400, 400), (1,), (2, 2)]
    together = [weights(i, shape) for i, shape in enumerate(shapes)]
    alone = copy.deepcopy(together)
    optimizer = ManifoldAdamW(together, E4M3, lr=0.3)
    singles = [ManifoldAdamW([w], E4M3, lr=0.3) for w in alone]
    for i in range(2):
        for a, b in zip(together, alone, strict=True):
            a.grad = b.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(i))
        optimizer.step()
        for single in singles:
            single.step()
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_a_format_of_ones_own_is_kept_by_a_name_that_reads_back() -> None:
    own = FloatFormat.split(3, 2, bias=5, name="mine")
    optimizer = ManifoldAdamW([weights()], own)
    assert get_format(optimizer.param_groups[0]["fmt"]).values.tolist() == own.values.tolist()
    assert ManifoldAdamW([weights()], "float8_e5m2").param_groups[0]["fmt"] == "e5m2"


def test_one_step_of_the_update_rule_is_lr_ulps() -> None:
    w = torch.nn.Parameter(torch.tensor([448.0, 1.0, -0.01, 0.0]))
    before = w.detach().clone()
    optimizer = ManifoldAdamW([w], E4M3, lr=0.25, eps=0, weight_decay=0)
    w.grad = torch.tensor([1.0, -2.0, 0.5, 1.0])
    optimizer.step()
    expected = before - 0.25 * torch.tensor([32.0, -0.125, 2.0**-9, 2.0**-9])
    torch.testing.assert_close(w.detach(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["e2m5", "e4m3", "e5m2"])
@pytest.mark.parametrize("exponent", [-7, 4])
def test_ulp_steps_are_equivariant_to_power_of_two_rescaling(name: str, exponent: int) -> None:
    factor = 2.0**exponent
    w = weights()
    scaled = torch.nn.Parameter(w.detach() * factor)
    for parameter in (w, scaled):
        # dL/dw of the rescaled tensor is smaller by the factor; eps is zero, so that nothing else sets a size.
        optimizer = ManifoldAdamW([parameter], get_format(name), lr=0.3, eps=0, weight_decay=0)
        steps(optimizer, [parameter], 5, scale=1.0 if parameter is w else 1 / factor)
    assert torch.equal(w.detach() * factor, scaled.detach())


def test_on_a_fixed_point_grid_ulp_steps_are_adamw_with_another_rate() -> None:
    fixed, plain = weights(), weights()
    grid = get_format("e0m7")
    spacing = float(ulp(fixed, grid, amax_scale(fixed, grid))[0, 0])
    steps(ManifoldAdamW([fixed], grid, lr=0.01, weight_decay=0.1), [fixed], 1)
    steps(torch.optim.AdamW([plain], lr=0.01 * spacing, betas=(0.9, 0.999), weight_decay=0.1), [plain], 1)
    torch.testing.assert_close(fixed, plain, rtol=1e-6, atol=1e-7)


def test_the_gradient_rule_is_adamw_on_gradients_times_the_classical_stiffness() -> None:
    ours, theirs = weights(), weights()
    optimizer = ManifoldAdamW([ours], E4M3, lr=1e-3, precondition="gradient")
    reference = torch.optim.AdamW([theirs], lr=1e-3, foreach=True)
    generator = torch.Generator().manual_seed(5)
    for _ in range(5):
        gradient = torch.randn(ours.shape, generator=generator)
        stiffness = torch.exp2(torch.floor(torch.log2(theirs.detach().double().abs())) - 3).float()
        ours.grad, theirs.grad = gradient.clone(), gradient * stiffness
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("precondition", ["gradient", "update"])
def test_zero_weights_move(precondition: str) -> None:
    for fmt in SPLITS_8BIT:
        w = torch.nn.Parameter(torch.zeros(4))
        optimizer = ManifoldAdamW([w], fmt, lr=0.5, eps=1e-30, precondition=precondition)
        w.grad = torch.ones(4)
        optimizer.step()
        assert (w < 0).all()


def test_floor_and_max_stiffness_bound_the_step_in_ulps() -> None:
    values = torch.tensor([4.0, 2.0**-8])
    for setting, expected in (({"floor": 1.0}, [0.25, 0.25]), ({"max_stiffness": 2.0**-10}, [2.0**-10] * 2)):
        w = torch.nn.Parameter(values.clone())
        optimizer = ManifoldAdamW([w], get_format("e4m3"), lr=1.0, eps=0, weight_decay=0, scaled=False, **setting)
        w.grad = torch.ones(2)
        optimizer.step()
        assert (values - w.detach()).tolist() == pytest.approx(expected, rel=1e-3) or "floor" in setting
        if "floor" in setting:
            change = values - w.detach()
            assert change[0] == 0.5
            assert change[1] == pytest.approx(0.25, rel=1e-3)


def test_groups_may_be_plain_adamw_and_state_survives_saving() -> None:
    matrix, vector = weights(), weights(3, (8,))
    groups = [{"params": [matrix]}, {"params": [vector], "precondition": None, "lr": 1e-3, "weight_decay": 0.0}]
    optimizer = ManifoldAdamW(groups, E4M3, lr=0.2)
    steps(optimizer, [matrix, vector], 3)
    twins = [torch.nn.Parameter(matrix.detach().clone()), torch.nn.Parameter(vector.detach().clone())]
    groups = [{"params": [twins[0]]}, {"params": [twins[1]], "precondition": None, "lr": 1e-3, "weight_decay": 0.0}]
    resumed = ManifoldAdamW(groups, E4M3, lr=0.2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(optimizer, [matrix, vector], 2)
    steps(resumed, twins, 2)
    assert torch.equal(matrix, twins[0])
    assert torch.equal(vector, twins[1])


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="precondition"):
        ManifoldAdamW([weights()], E4M3, precondition="weights")
    with pytest.raises(ValueError, match="betas"):
        ManifoldAdamW([weights()], E4M3, betas=(0.9, 1.0))


@pytest.mark.parametrize("fmt", ["fp32", "e4m3"])
def test_a_config_s_muon_steps_the_matrices_of_attention_and_mlp(fmt: str) -> None:
    config = parse_config(
        {"quantize": dict.fromkeys(("weight", "activation"), fmt), "optimizer": {"step_rule": "muon"}}, source="test"
    )
    model = build_model(config)
    optimizer = build_optimizer(config, model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    stepped = {group["muon"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups}
    assert stepped[True] == {
        f"blocks.{block}.{layer}.weight"
        for block in range(2)
        for layer in ("attention.qkv", "attention.projection", "mlp.up", "mlp.down")
    }


def test_muon_beside_adamw_is_both_of_torch_bit_by_bit_and_goes_on_from_its_state() -> None:
    def pair() -> list[torch.nn.Parameter]:
        return [weights(0), weights(1, (7,))]

    def ours(parameters: list[torch.nn.Parameter]) -> MuonBesideAdamW:
        groups = [
            {"params": parameters[1:], "lr": 3e-3, "weight_decay": 0.0},
            {"params": parameters[:1], "lr": 1e-2, "weight_decay": 0.1, "muon": True},
        ]
        return MuonBesideAdamW(groups, betas=(0.9, 0.99), eps=1e-8)

    one, other, resumed = pair(), pair(), pair()
    optimizer = ours(one)
    steps(optimizer, one, 5)
    generator = torch.Generator().manual_seed(9)
    muon = torch.optim.Muon(other[:1], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(other[1:], lr=3e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0, foreach=True)
    for _ in range(5):
        for parameter in other:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        muon.step()
        adamw.step()
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    state = copy.deepcopy(optimizer.state_dict())
    for a, b in zip(resumed, one, strict=True):
        a.data.copy_(b)
    again = copy.deepcopy(ours(resumed))
    resumed = [p for group in (*again.param_groups[1:], *again.param_groups[:1]) for p in group["params"]]
    again.load_state_dict(state)
    steps(optimizer, one, 3)
    steps(again, resumed, 3)
    assert all(torch.equal(a, b) for a, b in zip(one, resumed, strict=True))
    with pytest.raises(ValueError, match="2D"):
        MuonBesideAdamW([{"params": [weights(1, (7,))], "lr": 1e-2, "weight_decay": 0.0, "muon": True}], (0.9, 0.99), 1)
