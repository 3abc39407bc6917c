"""Weights that live on the grid: scales and their events, the three roundings, whole codes, and states that resume."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from altgrad.formats import SPLITS_8BIT, FloatFormat, get_format  # noqa: E402
from altgrad.optim import CodeOptimizer, GridOptimizer, ManifoldAdamW, extra_bytes_per_weight  # noqa: E402
from altgrad.optim.code import moved  # noqa: E402
from altgrad.rounding import decode, encode, quantize, ulp  # noqa: E402
from altgrad.scaling import amax_scale, power_of_two_scale  # noqa: E402

E4M3 = get_format("e4m3")
FORMATS = (*SPLITS_8BIT, get_format("p3109_k8p4"), get_format("e2m1"), get_format("fp16"), get_format("bf16"))
RULES: list[dict[str, Any]] = [
    {"precondition": precondition, "rounding": rounding}
    for precondition in (None, "gradient", "update")
    for rounding in ("nearest_even", "stochastic", "error_feedback")
] + [{}]


def make(params: list[Any], fmt: FloatFormat, rule: dict[str, Any], **rest: Any) -> GridOptimizer:
    """A grid optimizer of the rule; {} is the code rule."""
    if not rule:
        return CodeOptimizer(params, fmt, **{"lr": 0.5, **rest})
    lr = 0.5 if rule["precondition"] == "update" else 1e-2
    return ManifoldAdamW(params, fmt, **{"lr": lr, "storage": "grid", **rule, **rest})


def weights(seed: int = 0, shape: tuple[int, ...] = (16, 12)) -> torch.nn.Parameter:
    """Spread over many binades, as trained weights are."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(shape, generator=generator) * 2 ** torch.empty(shape).uniform_(-5, 0, generator=generator)
    return torch.nn.Parameter(spread)


def run(optimizer: torch.optim.Optimizer, params: list[Any], count: int, scale: float = 1, seed: int = 9) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for parameter in params:
            parameter.grad = torch.randn(parameter.shape, generator=generator) * scale
        optimizer.step()


def on_grid(w: torch.Tensor, fmt: FloatFormat, scale: float) -> bool:
    """By the table of the format's values, in float64."""
    return bool(np.isin(w.detach().double().numpy() / scale, fmt.finite_values).all())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())) or "code")
def test_values_are_on_the_grid_after_every_step_and_events_tell_every_move(rule: dict[str, Any]) -> None:
    for fmt in FORMATS:
        for scaled in (True, False):
            w = weights()
            optimizer = make([w], fmt, rule, scaled=scaled)
            scale = optimizer.scale_of(w)
            known = float(scale)
            assert on_grid(w, fmt, known)
            moves = 0
            for i in range(6):
                if i == 3:  # weights that have become small or large bring the scale down or up
                    with torch.no_grad():
                        quantize(w * 2.0**-9, fmt, scale=known, out=w)
                run(optimizer, [w], 1, seed=i)
                events = optimizer.pop_events()
                assert [(p is w, old, new) for p, old, new in events] == (
                    [(True, known, float(scale))] if float(scale) != known else []
                )
                known, moves = float(scale), moves + len(events)
                assert math.frexp(known)[0] == 0.5
                assert on_grid(w, fmt, known), (fmt.name, scaled, i)
            assert optimizer.scale_of(w) is scale
            assert scaled or (known == 1 and not moves)


def test_the_scale_starts_with_a_factor_of_two_of_headroom() -> None:
    for fmt in SPLITS_8BIT:
        w = weights(3)
        before = w.detach().clone()
        scale = make([w], fmt, RULES[0]).scale_of(w)
        assert (scale.dtype, scale.shape) == (torch.float32, torch.Size())
        assert float(scale) == 2 * float(amax_scale(before, fmt))
        assert torch.equal(w, quantize(before, fmt, scale=scale))


def test_the_scale_of_a_number_is_that_of_a_tensor() -> None:
    for fmt in SPLITS_8BIT:
        for x in [*torch.randn(50).mul(100).abs().tolist(), fmt.max, math.nextafter(fmt.max, math.inf), 1e-40, 0.0]:
            x = float(np.float32(x))
            assert power_of_two_scale(x, fmt) == float(amax_scale(torch.tensor([[x, -x / 2]]), fmt, granularity="row"))


def test_the_scale_rises_before_rounding_so_that_nothing_is_clipped() -> None:
    w = torch.nn.Parameter(torch.tensor([448.0, 1.0]))
    optimizer = ManifoldAdamW(
        [w], E4M3, lr=1000.0, betas=(0.0, 0.0), eps=0.0, weight_decay=0, precondition=None, storage="grid"
    )
    assert float(optimizer.scale_of(w)) == 2
    w.grad = -torch.ones(2)
    optimizer.step()
    assert w.tolist() == [1408.0, 1024.0]  # 1448 and 1001 on the grid of scale 8, whose spacing is 128 and 64 there
    assert optimizer.pop_events() == [(w, 2.0, 8.0)]
    assert optimizer.pop_events() == []


def test_the_scale_falls_when_it_is_four_times_too_large_and_not_before() -> None:
    for smaller, expected in ((1.0, 2.0), (0.5, 2.0), (0.25, 0.5), (0.125, 0.25)):
        w = torch.nn.Parameter(torch.tensor([448.0, 2.0]))
        optimizer = ManifoldAdamW([w], E4M3, lr=0.0, eps=1.0, precondition=None, storage="grid")
        with torch.no_grad():
            w.mul_(smaller)
        before = w.detach().clone()
        run(optimizer, [w], 1)
        assert float(optimizer.scale_of(w)) == expected
        assert torch.equal(w, before)  # finer or equal grids hold the same values


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())) or "code")
def test_nan_stays_nan_and_leaves_the_scale_alone(rule: dict[str, Any]) -> None:
    for fmt in (E4M3, get_format("e3m4")):
        w = weights()
        optimizer = make([w], fmt, rule)
        scale = float(optimizer.scale_of(w))
        with torch.no_grad():
            w[0, 0] = math.nan
            w[0, 1] = math.inf
        run(optimizer, [w], 2, scale=1e-3)
        assert w[0, 0].isnan()
        assert w[1:].isfinite().all() or rule.get("precondition") is not None
        assert float(optimizer.scale_of(w)) == scale
        assert optimizer.pop_events() == []
        w.grad = torch.full_like(w, math.nan)
        optimizer.step()
        assert w.isnan().all()


def test_a_zero_tensor_steps_and_keeps_its_scale() -> None:
    w = torch.nn.Parameter(torch.zeros(8))
    optimizer = ManifoldAdamW([w], E4M3, lr=0.0, storage="grid")
    run(optimizer, [w], 2)
    assert float(optimizer.scale_of(w)) == 2
    assert optimizer.pop_events() == []


def test_tiny_and_huge_tensors_have_scales_that_float32_can_hold() -> None:
    for fmt in SPLITS_8BIT:
        for size in (1e-38, 1e38):
            w = torch.nn.Parameter(torch.tensor([size, -size / 3, 0.0]))
            optimizer = make([w], fmt, RULES[0], lr=0.0)
            run(optimizer, [w], 2)
            assert on_grid(w, fmt, float(optimizer.scale_of(w)))


def test_stochastic_rounding_of_the_weights_is_unbiased() -> None:
    moves, proposed = [], None
    for seed in range(300):
        w = weights(4, (8, 8))
        optimizer = make([w], E4M3, {"precondition": "update", "rounding": "stochastic"}, lr=0.3, seed=seed)
        before, scale = w.detach().double(), optimizer.scale_of(w)
        spacing = ulp(w, E4M3, scale).double()
        w.grad = torch.linspace(-1, 1, 64).view(8, 8)
        optimizer.step()
        moves.append((w.detach().double() - before).numpy())
        proposed = (-0.3 * spacing * (w.grad.sign() + 0.01 * before)).numpy()
        gap = spacing.numpy()
    error = np.mean(moves, axis=0) - proposed
    # a rounding's variance is at most gap^2 / 4
    assert (np.abs(error) < 4 * gap / 2 / math.sqrt(300)).all()
    assert abs((error / gap).mean()) < 4 * 0.5 / math.sqrt(300 * 64)


@pytest.mark.parametrize("rounding", ["nearest_even", "error_feedback"])
@pytest.mark.parametrize("exponent", [-7, 4])
def test_ulp_steps_on_the_grid_are_equivariant_to_power_of_two_rescaling(rounding: str, exponent: int) -> None:
    factor, ends = 2.0**exponent, []
    for size in (1.0, factor):
        w = torch.nn.Parameter(weights().detach() * size)
        rule = {"precondition": "update", "rounding": rounding}
        optimizer = make([w], E4M3, rule, lr=0.7, eps=0.0, weight_decay=0)
        run(optimizer, [w], 8, scale=1 / size)
        ends.append((w.detach() / size, float(optimizer.scale_of(w)) / size))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


def path(rounding: str, precondition: str | None, storage: str = "grid", steps: int = 2400) -> np.ndarray:
    """Ulps that 16 weights have moved by under a constant gradient, after every step; one ulp everywhere is 1 / 128."""
    w = torch.nn.Parameter(torch.linspace(100, 115, 16) / 128)
    lr = 0.05 if precondition == "update" else 0.05 / 128
    settings = {"betas": (0.9, 0.99), "weight_decay": 0.0, "scaled": False, "precondition": precondition}
    optimizer = ManifoldAdamW([w], get_format("e0m7"), lr=lr, storage=storage, rounding=rounding, **settings)
    first, found = w.detach().clone(), []
    for _ in range(steps):
        w.grad = torch.full_like(w, 0.3)
        optimizer.step()
        found.append(((first - w.detach()) * 128).numpy())
    return np.array(found)


@pytest.mark.parametrize("precondition", [None, "update"])
def test_error_feedback_moves_weights_as_unrounded_steps_would_where_nearest_stalls(precondition: str | None) -> None:
    assert (path("nearest_even", precondition, steps=100) == 0).all()
    exact = path("nearest_even", precondition, storage="master")
    fed = path("error_feedback", precondition)
    assert exact[-1] == pytest.approx(0.05 * 2400, rel=1e-3)
    assert np.polyfit(np.arange(400, 2400), fed[400:].mean(1), 1)[0] == pytest.approx(0.05, rel=0.02)
    # the bound is for a constant rate of each element; that of the first steps is larger (the bias of the momentum)
    assert np.abs(fed - exact).max() < 1.01 * 0.5 / (1 - 0.9)


def test_the_error_is_carried_in_full_by_the_momentum() -> None:
    """After one rounding that is not repeated, later unrounded steps add up to the error; constant v, no gradient."""
    w = torch.nn.Parameter(torch.full((1,), 200.0))
    settings = {"lr": 4.0, "betas": (0.9, 1 - 1e-12), "eps": 1.0, "weight_decay": 0.0, "scaled": False}
    optimizer = ManifoldAdamW([w], E4M3, precondition=None, storage="grid", rounding="error_feedback", **settings)
    state = optimizer.state[w]
    run(optimizer, [w], 1, scale=0.0)
    state["step"].fill_(1e4)  # the bias of the momentum is gone
    with torch.no_grad():
        w.fill_(197.0)  # off the grid: the next step rounds it to 192
    run(optimizer, [w], 1, scale=0.0)
    assert w.item() == 192
    group = optimizer.param_groups[0]
    group["storage"] = "master"
    run(optimizer, [w], 300, scale=0.0)
    assert w.item() == pytest.approx(197.0, abs=1e-3)


def test_a_step_of_the_code_rule_is_a_walk_along_the_sorted_values() -> None:
    for name in ("e4m3", "e5m2", "e7m0", "e3m4", "p3109_k8p4", "e0m7", "e2m1"):
        fmt = get_format(name)
        table = fmt.finite_values
        codes = np.array([code for code in range(2**fmt.bits) if math.isfinite(fmt.decode(code))])
        values = np.array([fmt.decode(int(code)) for code in codes])
        for rungs in (1, 3, 40):
            for sign in (-1.0, 1.0):
                # u is -sign at the first step: lr whole codes are exact, and more are clipped to the rungs
                w = torch.nn.Parameter(torch.from_numpy(values).float())
                optimizer = CodeOptimizer([w], fmt, lr=float(rungs + 5), eps=0.0, rungs=rungs, scaled=False)
                w.grad = torch.full_like(w, -sign)
                optimizer.step()
                places = np.searchsorted(table, values) + int(sign) * rungs
                expected = table[places.clip(0, len(table) - 1)]
                assert np.array_equal(w.detach().double().numpy(), expected), (name, rungs, sign)


def test_moves_by_codes_follow_the_scale_and_stop_at_the_largest_value() -> None:
    for fmt in FORMATS:
        table = torch.from_numpy(fmt.finite_values).float()
        for k in (-7, -1, 0, 2, 64):
            found = moved(table * 0.5, torch.full_like(table, k), fmt, 0.5) if fmt.name != "bf16" else table
            expected = table[(torch.arange(len(table)) + k).clamp(0, len(table) - 1)] * 0.5
            assert fmt.name == "bf16" or torch.equal(found, expected), (fmt.name, k)


def test_the_code_rule_rounds_its_steps_without_bias() -> None:
    total = np.zeros(64)
    for seed in range(200):
        w = torch.nn.Parameter(torch.full((64,), 1.5))
        optimizer = CodeOptimizer([w], E4M3, lr=0.3, eps=0.0, scaled=False, seed=seed, rungs=2)
        w.grad = torch.ones(64)
        optimizer.step()
        total += ((1.5 - w.detach()) / 0.125).numpy()
    assert abs(total.mean() / 200 - 0.3) < 4 * math.sqrt(0.21 / (200 * 64))
    assert (np.abs(total / 200 - 0.3) < 4.5 * math.sqrt(0.21 / 200)).all()


def test_weight_decay_of_the_code_rule_shrinks_weights_by_its_part_on_average() -> None:
    w = torch.nn.Parameter(torch.full((20000,), 1.5))
    optimizer = CodeOptimizer([w], E4M3, lr=0.2, weight_decay=0.1, scaled=False, rungs=4)
    w.grad = torch.ones(20000)
    optimizer.step()
    assert 1.5 - float(w.detach().mean()) == pytest.approx(0.2 * 0.125 + 0.2 * 0.1 * 1.5, rel=0.03)


def test_a_zero_gradient_moves_nothing_under_the_code_rule() -> None:
    w = weights(5, (32, 8))
    optimizer = CodeOptimizer([w], E4M3, lr=1.0, weight_decay=0.1, rungs=4)
    run(optimizer, [w], 3)
    before = w.detach().clone()
    w.grad = torch.randn(32, 8)
    w.grad[::2] = 0
    optimizer.step()
    assert torch.equal(w[::2], before[::2])
    assert (w[1::2] != before[1::2]).float().mean() > 0.3
    w.grad = torch.zeros(32, 8)
    before = w.detach().clone()
    optimizer.step()
    assert torch.equal(w, before)


def test_the_scale_rises_where_a_walk_leaves_the_grid() -> None:
    w = torch.nn.Parameter(torch.tensor([448.0, 1.0]))
    optimizer = CodeOptimizer([w], E4M3, lr=1.0, eps=0.0)
    for _ in range(12):
        w.grad = -torch.ones(2)
        optimizer.step()
    assert optimizer.pop_events() == [(w, 2.0, 8.0)]
    # 8 codes to the largest value of scale 2, 896; the next would be 960; then, with scale 8, 1024, 1152, 1280
    assert w[0].item() == 1280


@pytest.mark.parametrize("rule", [*RULES, None], ids=str)
def test_groups_of_plain_adamw_are_torchs_bit_by_bit(rule: dict[str, Any] | None) -> None:
    ours, theirs, matrix = weights(1, (7, 3)), weights(1, (7, 3)), weights(2)
    plain = {"lr": 3e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    reference = torch.optim.AdamW([theirs], foreach=True, **plain)
    group = {"params": [ours], "storage": "master", **plain}
    if rule != {}:
        group["precondition"] = None
    optimizer = make([{"params": [matrix]}, group], E4M3, RULES[0] if rule is None else rule)
    generator = torch.Generator().manual_seed(2)
    for i in range(12):
        matrix.grad = torch.randn(matrix.shape, generator=generator)
        if i != 4:  # a parameter without a gradient keeps its step count
            ours.grad = torch.randn(ours.shape, generator=generator)
            theirs.grad = ours.grad.clone()
        else:
            ours.grad = theirs.grad = None
        optimizer.step()
        reference.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "rule", [*RULES, {"precondition": "update", "storage": "master", "stiffness": "shuffled"}], ids=str
)
def test_a_resumed_optimizer_continues_bit_for_bit(rule: dict[str, Any]) -> None:
    def fresh() -> tuple[list[Any], GridOptimizer]:
        params = [weights(0), weights(1, (8,)), weights(2, (5, 5))]
        plain = {"params": [params[1]], "storage": "master", "lr": 1e-3}
        if rule:
            plain["precondition"] = None
        return params, make([{"params": params[::2]}, plain], get_format("e3m2b4"), rule, seed=5)

    params, optimizer = fresh()
    run(optimizer, params, 3)
    state = optimizer.state_dict()
    groups = json.loads(json.dumps(state["param_groups"]))
    tensors = {(i, key): tensor.clone() for i, row in state["state"].items() for key, tensor in row.items()}
    assert all(type(tensor) is torch.Tensor for tensor in tensors.values())

    others, resumed = fresh()
    scales = [resumed.scale_of(p) for p in others[::2]] if rule.get("storage") != "master" else []
    with torch.no_grad():
        for mine, theirs in zip(others, params, strict=True):
            mine.copy_(theirs)
    rows: dict[int, dict[str, Any]] = {}
    for (i, key), tensor in tensors.items():
        rows.setdefault(i, {})[key] = tensor
    resumed.load_state_dict({"state": rows, "param_groups": groups})
    assert all(resumed.scale_of(p) is scale for p, scale in zip(others[::2], scales, strict=False))
    run(optimizer, params, 4, seed=11)
    run(resumed, others, 4, seed=11)
    assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))
    for a, b in zip(optimizer.state.values(), resumed.state.values(), strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_state_of_another_format_or_storage_is_refused() -> None:
    state = make([weights()], E4M3, RULES[0]).state_dict()
    with pytest.raises(ValueError, match="fmt 'e4m3'"):
        make([weights()], get_format("e5m2"), RULES[0]).load_state_dict(state)
    with pytest.raises(ValueError, match="storage 'grid'"):
        ManifoldAdamW([weights()], E4M3).load_state_dict(state)


def test_extra_bytes_are_what_the_state_really_holds() -> None:
    for storage, roundings in {
        "master": ("nearest_even", "stochastic"),
        "grid": ("nearest_even", "stochastic", "error_feedback"),
    }.items():
        for rounding in roundings:
            w = weights()
            optimizer = ManifoldAdamW([w], E4M3, lr=0.3, storage=storage, rounding=rounding)
            run(optimizer, [w], 3)
            kept = {key: t for key, t in optimizer.state[w].items() if t.ndim and not key.startswith("exp_avg")}
            extra = sum(t.numel() * t.element_size() for t in kept.values()) / w.numel()
            scale = optimizer.scale_of(w) if storage == "grid" else amax_scale(w, E4M3)
            if not torch.equal(decode(encode(w, E4M3, scale=scale), E4M3, scale=scale), w):
                extra += w.element_size()
            assert extra == extra_bytes_per_weight(storage, rounding)
    with pytest.raises(ValueError, match="allowed"):
        extra_bytes_per_weight("master", "error_feedback")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"storage": "disk"}, "'master' or 'grid'"),
        ({"rounding": "up", "storage": "grid"}, "nearest_even or stochastic or error_feedback"),
        ({"rounding": "error_feedback"}, "nearest_even or stochastic"),
        ({"stiffness": "random"}, "shuffled"),
        ({"stiffness": "shuffled", "precondition": None}, "ablation"),
        ({"relative": True}, "relative"),
        ({"lr": -1.0}, "negative"),
        ({"floor": -1.0}, "floor"),
        ({"max_stiffness": 0.0}, "max_stiffness"),
        ({"storage": "grid", "power_of_two": False}, "power_of_two"),
        ({"storage": "grid", "rounding": "error_feedback", "betas": (0.0, 0.9)}, "betas"),
        ({"storage": "grid", "fmt": get_format("e9m6")}, "16 bits"),
        ({"storage": "grid", "fmt": get_format("e8m0")}, "signed"),
    ],
)
def test_what_does_not_exist_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ManifoldAdamW([weights()], **{"fmt": E4M3, **settings})
    if "fmt" not in settings:
        with pytest.raises(ValueError, match=message):
            ManifoldAdamW([{"params": [weights()], **settings}], E4M3)


def test_bad_settings_of_the_code_rule_are_refused() -> None:
    for settings, message in (
        ({"rungs": 0}, "rungs"),
        ({"lr": -0.1}, "negative"),
        ({"storage": "disk"}, "'master' or 'grid'"),
        ({"fmt": get_format("fp32")}, "16 bits"),
    ):
        with pytest.raises(ValueError, match=message):
            CodeOptimizer([weights()], **{"fmt": E4M3, **settings})
    with pytest.raises(ValueError, match="float32"):
        CodeOptimizer([torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))], E4M3)
    with pytest.raises(ValueError, match="scale"):
        ManifoldAdamW([w := weights()], E4M3).scale_of(w)
