"""What a format would make of a recorded tensor, against rounding the tensor itself."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from records import config as make_config
from records import write_run

from altgrad.analysis.tensors import Histogram, histograms, outcome, scale_by
from altgrad.formats import E8M0, get_format
from altgrad.runs import load_runs, pack_study

E4M3, E5M2, E0M7 = (get_format(name) for name in ("e4m3", "e5m2", "e0m7"))


def normal(n: int = 4000) -> list[float]:
    return np.random.default_rng(5).normal(0, 0.02, n).astype(np.float32).astype(float).tolist()


def binades(values: list[float]) -> Histogram:
    exponents = [float(math.frexp(value)[1] - 1) for value in values if value]
    counts = {e: float(exponents.count(e)) for e in sorted(set(exponents))}
    return Histogram("binades", counts, float(values.count(0.0)), max(map(abs, values)), math.hypot(*values))


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e0m7", "e3m4", "e7m0"])
def test_binades_tell_what_rounding_the_tensor_itself_does(name: str) -> None:
    fmt, values = get_format(name), normal()
    found = outcome(binades(values), fmt)
    scaled = np.array(values) / found.scale
    rounded = np.array([fmt.round(x) for x in scaled.tolist()])
    flushed = float((rounded == 0).mean())
    low, high = found.flushed_bounds
    assert low <= flushed <= high
    assert found.flushed == pytest.approx(flushed, abs=0.01)
    assert found.clipped == found.clipped_bounds[1] == 0
    true = 10 * math.log10((scaled**2).sum() / ((rounded - scaled) ** 2).sum())
    assert found.sqnr_db == pytest.approx(true, abs=1.5 if name == "e7m0" else 0.3)


def test_codes_tell_it_exactly() -> None:
    values = [E4M3.round(value * 1000) / 1000 for value in normal(1500)]
    magnitudes, numbers = np.unique(np.abs(values), return_counts=True)
    counts = dict(zip(magnitudes.tolist(), numbers.astype(float).tolist(), strict=True))
    zeros = counts.pop(0.0, 0.0)
    found = outcome(Histogram("codes", counts, zeros, max(counts)), E0M7)
    scaled = np.array([value for value in values if value]) / found.scale
    rounded = np.array([E0M7.round(x) for x in scaled.tolist()])
    assert found.flushed == pytest.approx(float((rounded == 0).mean()))
    assert found.flushed_bounds == (found.flushed, found.flushed)
    true = 10 * math.log10((scaled**2).sum() / ((rounded - scaled) ** 2).sum())
    assert found.sqnr_db == pytest.approx(true)


def test_without_a_scale_large_values_are_clipped_and_small_ones_flushed() -> None:
    found = outcome(Histogram("binades", {-20.0: 1.0, 0.0: 2.0, 8.0: 4.0, 9.0: 3.0}, 7.0, 1000.0), E4M3, "none")
    assert found.flushed == pytest.approx(0.1)
    assert found.clipped_bounds == (pytest.approx(0.3), pytest.approx(0.7))  # 464 and more, somewhere in [256, 512)
    assert 0.3 < found.clipped < 0.7
    assert found.kept == pytest.approx(0.9 - found.clipped)


def test_the_scale_is_that_of_training() -> None:
    scaling = pytest.importorskip("altgrad.scaling") if _torch() else None
    for amax in (448.0, 448.1, 1e-3, 7.3, 2.0**-120, 0.0):
        for fmt in (E4M3, E5M2, E0M7):
            scale = scale_by("amax", amax, fmt)
            assert amax / scale <= fmt.max
            assert amax == 0 or amax / (scale / 2) > fmt.max or scale == 2.0**-126
            if scaling is not None:
                assert scale == scaling.power_of_two_scale(amax, fmt)
    assert scale_by("amax_exact", 7.0, E4M3) == 7.0 / 448
    assert scale_by("none", 7.0, E4M3) == 1


def _torch() -> bool:
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


def test_what_has_no_answer_is_refused_and_an_empty_tensor_has_zeros() -> None:
    empty = outcome(Histogram("binades", {}, 0.0, 0.0), E4M3)
    assert (empty.kept, empty.clipped, empty.flushed, empty.sqnr_db) == (0, 0, 0, None)
    with pytest.raises(ValueError, match="scale's format"):
        outcome(binades([1.0]), E8M0)
    with pytest.raises(ValueError, match="no scale"):
        outcome(Histogram("binades", {0.0: 1.0}, 0.0, math.inf), E4M3)
    with pytest.raises(ValueError, match="scale policy"):
        scale_by("delayed", 1.0, E4M3)  # type: ignore[arg-type]


def test_histograms_are_read_from_the_layers_table_binades_first() -> None:
    def rows(step: int, operand: str, **values: float) -> list[tuple[int, str, str, str, str, float]]:
        return [(step, "head", "head", operand, name.replace("neg", "-"), value) for name, value in values.items()]

    table = [
        *rows(
            0,
            "weight",
            norm_l2=1.5,
            amax=0.5,
            scale=0.5,
            code_38=3,
            code_b8=2,
            code_00=1,
            binade_neg1=5.0,
            binade_zero=1.0,
        ),
        *rows(5, "weight", amax=0.5, scale=0.5, code_38=3, code_b8=2, code_00=1, code_entropy=1.4, codes_used=0.1),
        *rows(5, "activation", amax=3.0, scale=1.0, code_38=3.0),
        *rows(6, "grad_output", amax=3.0, scale=1.0),
    ]
    layers = pd.DataFrame(table, columns=["step", "layer", "layer_type", "operand", "statistic", "value"])
    assert histograms(layers, {"weight": E4M3}) == {
        ("head", "weight", 0): Histogram("binades", {-1.0: 5.0}, 1.0, 0.5, 1.5),
        ("head", "weight", 5): Histogram("codes", {0.5: 5.0}, 1.0, 0.5),
    }
    assert histograms(layers[:0], {"weight": E4M3}) == {}


def test_a_packed_run_keeps_what_its_last_histogram_is_read_with(tmp_path: Path) -> None:
    """Codes at a step that is no multiple of `layers_every`, and looks after it without codes."""
    looks = [
        (step, "head", "head", "weight", name, value)
        for step in (1, 50, 100)
        for name, value in {"scale": 0.5, "amax": 0.75, "norm_l2": 1.5, "zeros": 0.25}.items()
    ]
    looks += [(50, "head", "head", "weight", name, value) for name, value in {"code_38": 3.0, "code_00": 1.0}.items()]
    write_run(tmp_path / "runs", make_config("e4m3"), looks=looks)
    (record,) = load_runs([tmp_path / "runs"]).records
    pack_study([record], tmp_path / "packed", layers_every=100)
    (packed,) = load_runs([tmp_path / "packed"]).records
    found = histograms(packed.layers, {"weight": E4M3})
    assert found == histograms(record.layers, {"weight": E4M3})
    assert found[("head", "weight", 50)] == Histogram("codes", {0.5: 3.0}, 1.0, 0.5)
    kept = packed.layers.groupby("statistic")["step"].apply(list)
    assert kept["zeros"] == [1, 100], "the rest is thinned as before"
