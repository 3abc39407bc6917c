"""Rank health: figures against numpy's singular values, and a warning that real runs raise when they should."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from altgrad.config import parse_config  # noqa: E402
from altgrad.runs import read_run  # noqa: E402
from altgrad.telemetry.rank import COLLAPSED, LOOKS, RECOVERED, RankWatch, rank_statistics  # noqa: E402
from altgrad.training import load_corpus, train  # noqa: E402


def by_singular_values(matrix: np.ndarray) -> dict[str, float]:
    """The definitions, word for word."""
    sigma = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    p = sigma[sigma > 0] / sigma.sum()
    return {
        "spectral_norm": sigma.max(),
        "stable_rank": (matrix.astype(np.float64) ** 2).sum() / sigma.max() ** 2,
        "effective_rank": math.exp(-(p * np.log(p)).sum()),
    }


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (64, 192), (192, 64), (64, 64), (3, 500)])
@pytest.mark.parametrize("magnitude", [1e-30, 1.0, 1e30])
def test_the_figures_are_those_of_the_singular_values(shape: tuple[int, int], magnitude: float) -> None:
    matrix = (np.random.default_rng(0).standard_normal(shape) * magnitude).astype(np.float32)
    found = rank_statistics({"layer": torch.from_numpy(matrix)})["layer"]
    assert found == pytest.approx(by_singular_values(matrix), rel=1e-12)


@pytest.mark.parametrize("decades", [1, 3, 6, 12, 40])
def test_singular_values_over_many_decades_cost_the_effective_rank_at_most_1e_4(decades: int) -> None:
    random = np.random.default_rng(1)
    u, v = (np.linalg.qr(random.standard_normal((64, 64)))[0] for _ in range(2))
    matrix = (u * np.logspace(0, -decades, 64)) @ v
    found = rank_statistics({"layer": torch.from_numpy(matrix)})["layer"]
    expected = by_singular_values(matrix)
    assert found["effective_rank"] == pytest.approx(expected["effective_rank"], rel=1e-4)
    assert found["stable_rank"] == pytest.approx(expected["stable_rank"], rel=1e-12)


def test_ranks_of_known_matrices() -> None:
    outer = torch.outer(torch.arange(1.0, 51), torch.linspace(-1, 2, 60))
    identity = torch.eye(8)
    found = rank_statistics({"outer": outer, "identity": identity, "subnormal": identity * 2.0**-149})
    assert found["outer"]["stable_rank"] == pytest.approx(1, rel=1e-12)
    assert found["outer"]["effective_rank"] == pytest.approx(1, rel=1e-12)
    assert found["identity"] == pytest.approx({"spectral_norm": 1, "stable_rank": 8, "effective_rank": 8})
    assert found["subnormal"] == pytest.approx({"spectral_norm": 2.0**-149, "stable_rank": 8, "effective_rank": 8})


def test_matrices_without_content_have_rank_0_and_damaged_ones_nan() -> None:
    damaged = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
    weights = {name: torch.ones(4, 3).index_fill_(0, torch.tensor([2]), value) for name, value in damaged.items()}
    weights |= {"whole": torch.ones(4, 3), "zero": torch.zeros(4, 3), "no rows": torch.zeros(0, 3)}
    weights |= {"no columns": torch.zeros(3, 0), "nothing": torch.zeros(0, 0), "one row of zeros": torch.zeros(1, 5)}
    found = rank_statistics(weights)
    assert list(found) == list(weights)
    for name, values in found.items():
        if name in damaged:
            assert all(math.isnan(value) for value in values.values()), name
        elif name != "whole":
            assert set(values.values()) == {0.0}, name
    assert found["whole"]["effective_rank"] == pytest.approx(1)
    assert rank_statistics({}) == {}


def test_a_layer_has_the_same_figures_alone_and_among_others() -> None:
    torch.manual_seed(0)
    weights = {f"{rows}x{columns}": torch.randn(rows, columns) for rows in (8, 16, 24) for columns in (8, 16)}
    together = rank_statistics(weights)
    for name, weight in weights.items():
        assert rank_statistics({name: weight})[name] == pytest.approx(together[name], rel=1e-13)


def test_weights_keep_their_gradients_and_may_be_in_any_precision() -> None:
    weight = torch.nn.Parameter(torch.eye(4, dtype=torch.bfloat16))
    assert rank_statistics({"layer": weight})["layer"]["effective_rank"] == pytest.approx(4)
    assert weight.grad is None


def warned(watch: RankWatch, ranks: list[float], layer: str = "blocks.0.mlp.up", kind: str = "mlp") -> list[int]:
    """The places in `ranks`, one a look, at which the watch warns."""
    places = []
    for at, rank in enumerate(ranks):
        alarms = watch.update([(at, layer, kind, "weight", "effective_rank", rank)])
        assert all(alarm[:3] == ("rank_collapse", f"{layer}.weight", "optimizer") for alarm in alarms)
        places += [at] * len(alarms)
    return places


def test_the_average_of_the_last_looks_is_held_against_the_first_look() -> None:
    limit = COLLAPSED["other"]
    assert LOOKS == 3
    assert warned(RankWatch(), [100, 100, 100, 100, 0, 100]) == []  # the average is two thirds
    assert warned(RankWatch(), [100, *[100 * limit + 1] * 9]) == []
    assert warned(RankWatch(), [100, 100 * limit - 1]) == [1]
    assert warned(RankWatch(), [100, 90, 50, 30, 20]) == [4]
    alarm = RankWatch()
    alarm.update([(0, "head", "head", "weight", "effective_rank", 60.0)])
    (found,) = alarm.update([(20, "head", "head", "weight", "effective_rank", 24.0)])
    assert found.value == 24.0
    assert found.message == "effective rank 24.0 (average of 1 looks) is below 30.0, 50% of the 60.0 at the first look"


def test_the_head_and_the_output_projections_are_held_to_more() -> None:
    falling = [100.0, *np.linspace(100, 1, 100)]
    ordinary = warned(RankWatch(), falling)
    for layer, kind in (("head", "head"), ("blocks.1.mlp.down", "mlp"), ("blocks.0.attention.projection", "attention")):
        assert warned(RankWatch(), falling, layer, kind)[0] < ordinary[0]
    assert warned(RankWatch(), falling, "blocks.0.attention.qkv", "attention") == ordinary


def test_a_collapse_is_told_once_until_it_has_recovered() -> None:
    limit = 100 * COLLAPSED["other"]
    near = [limit * factor for factor in (0.99, 1.01) * 10]
    assert warned(RankWatch(), [100, *near]) == [1]
    assert warned(RankWatch(), [100, *[limit / 2] * 5, *[limit * RECOVERED + 1] * 5, *[limit / 2] * 5]) == [1, 11]


def test_looks_without_a_rank_are_passed_over() -> None:
    assert warned(RankWatch(), [math.nan, 0.0, 100, math.nan, 30, math.nan]) == [4]
    assert warned(RankWatch(), [0.0] * 5) == []
    assert warned(RankWatch(), [1.0] * 5) == []
    rows = [(1, "head", "head", "weight", "stable_rank", 1.0), (1, "head", "head", "update", "effective_rank", 1.0)]
    watch = RankWatch()
    assert watch.update(rows) == []
    assert watch.state == {}


@given(st.lists(st.floats(0, 64) | st.just(math.nan), max_size=20), st.integers(0, 20))
def test_a_watch_with_the_state_of_another_warns_where_that_one_would_have(ranks: list[float], at: int) -> None:
    whole, first, second = RankWatch(), RankWatch(), RankWatch()
    before = warned(first, ranks[:at])
    second.state = json.loads(json.dumps(first.state, allow_nan=False))
    after = [at + place for place in warned(second, ranks[at:])]
    assert before + after == warned(whole, ranks)


@pytest.mark.parametrize("fmt", ["fp32", "e4m3"])
@pytest.mark.parametrize(("rate", "collapses"), [(1.6e-2, False), (0.3, True)])
def test_a_real_run_that_collapses_warns_and_a_healthy_one_does_not(
    tmp_path: Path, fmt: str, rate: float, collapses: bool
) -> None:
    given = {
        "quantize": {"weight": fmt, "activation": fmt, "grad_output": fmt},
        "optimizer": {"learning_rate": rate},
        "max_steps": 60,
        "eval_batches": 2,
    }
    result = train(parse_config(given, source="test"), tmp_path, corpus=load_corpus("licenses"), progress=False)
    warnings = [event for event in read_run(result.path).run["events"] if event["kind"] == "warning"]
    collapsed = {event["tensor"]: event["step"] for event in warnings if event["what"] == "rank_collapse"}
    assert ("blocks.1.attention.projection.weight" in collapsed) == bool(collapsed) == collapses
    assert all(step in (20, 40, 60) for step in collapsed.values())
