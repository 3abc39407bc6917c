"""Formats that other tools' configs state take part in the comparison of formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from altgrad.analysis import ExperimentDataLoader
from altgrad.analysis.comparison import FormatComparator
from altgrad.analysis.effects import effects
from altgrad.analysis.labels import site_labels
from altgrad.config import OPERANDS
from altgrad.recipes import recipe_keys
from altgrad.runs import load_runs, record
from altgrad.runs.precision import precision
from altgrad.runs.sources import import_runs

RECIPES: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    # torchtitan, old and new, and the flag of its first versions
    ({"float8.recipe_name": "rowwise", "training.mixed_precision_param": "bfloat16"}, "torchao-rowwise", {}),
    ({"quantize.linear.float8.recipe_name": "rowwise_with_gw_hp", "dtype": "bfloat16"}, "torchao-rowwise-gw-hp", {}),
    ({"model.converters": ("quantize.linear.float8",), "float8.recipe_name": None}, "torchao-tensorwise", {}),
    ({"training.enable_float8_linear": True}, "torchao-tensorwise", {}),
    ({"mx.recipe_name": "mxfp8_cublas"}, "mxfp8", {}),
    # Megatron
    (
        {"fp8": "hybrid", "fp8_recipe": "delayed", "fp8_amax_history_len": 512, "fp8_margin": 1, "bf16": True},
        "te-delayed",
        {"amax_history_len": 512, "margin": 1},
    ),
    ({"fp8": "e4m3", "fp8_recipe": "tensorwise", "bf16": True}, "te-current", {"fp8_format": "E4M3"}),
    ({"fp8": "e4m3", "fp8_recipe": "blockwise"}, "te-block", {}),
    ({"fp4": "e2m1", "fp4_recipe": "nvfp4", "bf16": True}, "nvfp4", {}),
    ({"te_recipe": "MXFP8BlockScaling"}, "mxfp8", {}),
    # accelerate
    (
        {"mixed_precision": "fp8", "fp8_config.backend": "TE", "fp8_config.amax_compute_algo": "most_recent"},
        "te-delayed",
        {"amax_compute_algo": "most_recent"},
    ),
    ({"mixed_precision": "fp8", "fp8_config.backend": "AO"}, "torchao-tensorwise", {}),
]
FORMATS: list[tuple[dict[str, Any], tuple[str, str, str]]] = [
    ({"mixed_precision": "fp8"}, ("e4m3", "e4m3", "e5m2")),
    ({"use_fp8": True, "fp8_format": "E4M3"}, ("e4m3", "e4m3", "e4m3")),
    ({"trainer.precision": "transformer-engine"}, ("e4m3", "e4m3", "e5m2")),
    ({"quantization_config.quant_method": "fp8", "torch_dtype": "bfloat16"}, ("e4m3", "e4m3", "bf16")),
    ({"mixed_precision": "bf16", "fp8_config.backend": "TE"}, ("bf16",) * 3),
    ({"fp8": None, "fp8_recipe": "delayed", "fp8_amax_history_len": 1, "bf16": True}, ("bf16",) * 3),
    ({"model.converters": (), "float8.recipe_name": "rowwise", "mixed_precision_param": "bfloat16"}, ("bf16",) * 3),
    ({"precision": "bf16-mixed"}, ("bf16",) * 3),
    ({"dtype": "torch.float16"}, ("fp16",) * 3),
    ({"precision": 16}, ("fp16",) * 3),
    ({"bf16": False, "fp16": False}, ("fp32",) * 3),
    ({"mixed_precision": "no"}, ("fp32",) * 3),
]
NOTHING: list[dict[str, Any]] = [
    {}, {"precision": 0.93}, {"average_precision": "16"}, {"data_dtype": "bfloat16"}, {"kv_cache_dtype": "fp8"},
    {"precision": "high"}, {"converters": ["jpeg"]}, {"fp8_margin": 0}, {"recipe_name": "rowwise"}, {"bf16": False},
    {"margin": 0.2}, {"fp8": "hybrid", "fp8_recipe": "delayed", "fp8_amax_history_len": "long"},
]  # fmt: skip


@pytest.mark.parametrize(("given", "recipe", "settings"), RECIPES)
def test_a_tool_s_recipe_is_that_of_this_name(given: dict[str, Any], recipe: str, settings: dict[str, Any]) -> None:
    found, said = precision({"lr": 1e-3, **given})
    wanted = recipe_keys(recipe, **settings)
    assert found["scaling"] == wanted["scaling"]
    assert found["quantize"] == {key: value for key, value in wanted["quantize"].items() if key != "layers"}
    assert set(said) == {*given}


@pytest.mark.parametrize(("given", "formats"), FORMATS)
def test_without_a_recipe_the_formats_are_stated_and_no_scale(
    given: dict[str, Any], formats: tuple[str, str, str]
) -> None:
    found, said = precision({"n_layer": 2, **given})
    assert found == {"quantize": dict(zip(OPERANDS, formats, strict=True))}
    assert set(said) == {*given}


@pytest.mark.parametrize("given", NOTHING)
def test_what_states_no_format_is_left_alone(given: dict[str, Any]) -> None:
    assert precision(given) == ({}, ())


MEGATRON = {
    "bf16": {"fp8": None, "fp8_recipe": "delayed"},
    "delayed": {"fp8": "hybrid", "fp8_recipe": "delayed"},
    "mx": {"fp8": "e4m3", "fp8_recipe": "mxfp8"},
    "mx wide": {"fp8": "e4m3", "fp8_recipe": "mxfp8", "width": 64},
}


def test_runs_in_fp8_are_compared_with_those_in_bf16_of_the_same_setting(tmp_path: Path) -> None:
    """From logs to the page of an arm; gaps worked out here by hand."""
    seeds, losses = range(4), {"bf16": 3.0, "delayed": 3.25, "mx": 3.125, "mx wide": 2.0}
    for name, keys in MEGATRON.items():
        for seed in seeds:
            folder = tmp_path / "logs" / f"{name}-{seed}"
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps({"bf16": True, "lr": 1e-3, "seed": seed, **keys}))
            loss = losses[name] + seed + (seed % 2) / 64 * (name != "bf16")
            (folder / "metrics.csv").write_text(f"step,val_loss\n0,9\n100,{loss}\n")
    found = import_runs(tmp_path / "logs", tmp_path / "out")
    assert found.problems == []
    told = str(next(lines for name, lines in found.reports.items() if name.startswith("mx-0")))
    assert "bf16, fp8, fp8_recipe: read as weight e4m3, activation e4m3, grad_output e4m3" in told
    stored = json.loads(next((tmp_path / "out").glob("mx-0*/run.json")).read_text())
    assert stored["config"]["foreign"] == {"bf16": True, "fp8": "e4m3", "fp8_recipe": "mxfp8"}, "nothing is lost"
    loader = ExperimentDataLoader([tmp_path / "out"])
    comparisons = FormatComparator(loader, foreign=True).comparisons
    assert {each.row(each.table["format"].iloc[0])["gap"] for each in comparisons} == {0.25 + 1 / 128, 0.125 + 1 / 128}
    (baseline,) = {each.baseline for each in comparisons}
    assert set(loader.runs.loc[loader.runs["arm"] == baseline, "format"]) == {"BF16"}
    labels = loader.memo(site_labels)
    assert labels[baseline].startswith("BF16")
    assert any("MX scales" in label for label in labels.values())
    assert {effect.key for effect in effects(loader)} >= {"formats", "width"}


def test_formats_that_the_loop_states_in_altgrad_s_words_come_first(tmp_path: Path) -> None:
    """And a recipe with a setting that AltGrad's cannot have is left as it is."""
    own = {"weight": "e3m4", "activation": "fp32", "grad_output": "fp32"}
    long = {"fp8": "hybrid", "fp8_recipe": "delayed", "fp8_amax_history_len": 10**9}
    for name, config in (("a", {"quantize": own, "mixed_precision": "fp8"}), ("b", long)):
        with record(tmp_path, name=name, config=config, seed=0) as run:
            run.log(0, val_loss=1.0)
            run.finish()
    first, second = sorted(load_runs([tmp_path]).records, key=lambda found: found.id)
    assert first.config.quantize.weight == "e3m4"
    assert first.config.foreign == {"mixed_precision": "fp8"}
    assert second.config.foreign == long


@pytest.mark.parametrize(("arms", "formats"), [("[mixed_precision]", "e4m3"), ("[width]", "fp32")])
def test_a_site_says_whether_formats_make_an_arm(tmp_path: Path, arms: str, formats: str) -> None:
    (tmp_path / "altgrad.yaml").write_text(f"arms: {arms}\n")
    with record(tmp_path / "runs", name="a", config={"mixed_precision": "fp8", "width": 3}, seed=0) as run:
        run.log(0, val_loss=1.0)
        run.finish()
    (found,) = load_runs([tmp_path / "runs"]).records
    assert found.config.quantize.weight == formats
