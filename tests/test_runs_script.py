"""The table of runs and Compare: the files made at build, and the scripts run by node against Python's answers."""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from records import LAYERS, config, full_look, write_run
from scipy.stats import t

from altgrad.analysis.labels import site_labels
from altgrad.analysis.loader import RUN_COLUMNS, ExperimentDataLoader
from altgrad.analysis.statistics import mean_interval, paired_difference
from altgrad.reports.arms import arm_pages
from altgrad.reports.compare import arm_json, arm_table, config_lines, health_by_type, table_json
from altgrad.reports.health import FIGURES
from altgrad.reports.tuning import moved
from altgrad.site import slug

HERE = Path(__file__).parent
SCRIPTS = HERE.parent / "docs" / "javascripts" / "runs"


@pytest.fixture(scope="session")
def node() -> str:
    """The command; the test is skipped without one unless ALTGRAD_REQUIRE_BROWSER is set, as in CI."""
    found = shutil.which("node")
    if found is None:
        if os.environ.get("ALTGRAD_REQUIRE_BROWSER"):
            pytest.fail("node is not installed")
        pytest.skip("node is not installed")
    return found


def answers(node: str, script: str, value: Any) -> Any:
    """What `script`, a function's body with the modules `table`, `compare`, `layers` and the value `given`, returns."""
    program = (
        f"const table = await import({json.dumps((SCRIPTS / 'table.js').as_uri())});\n"
        f"const compare = await import({json.dumps((SCRIPTS / 'compare.js').as_uri())});\n"
        f"const layers = await import({json.dumps((SCRIPTS.parent / 'layers.js').as_uri())});\n"
        "let text = ''; for await (const part of process.stdin) text += part;\n"
        f"const given = JSON.parse(text);\nconst found = (() => {{ {script} }})();\n"
        "process.stdout.write(JSON.stringify(found));\n"
    )
    command = [node, "--input-type=module", "-e", program]
    done = subprocess.run(command, input=json.dumps(value), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_scripts_pass_their_own_tests(node: str) -> None:
    tests = [HERE / "site" / "javascript" / f"{name}.test.js" for name in ("table", "compare", "layers")]
    done = subprocess.run([node, "--test", *map(str, tests)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert "# fail 0" in done.stdout
    assert "# pass 41" in done.stdout


def test_paired_differences_in_the_browser_are_those_of_the_statistics(node: str) -> None:
    draw = np.random.default_rng(0)
    cases, expected = [], []
    for n in (0, 1, 2, 3, 5, 16, 64):
        for spread in (1e-3, 1.0):
            losses = [
                pd.Series(2 + spread * draw.standard_normal(n + 3), index=draw.permutation(n + 6)[: n + 3])
                for _ in range(2)
            ]
            losses[0].iloc[0] = math.nan
            cases.append(
                [
                    {
                        "runs": [{"seed": int(seed), "role": "report"} for seed in each.index],
                        "final": [None if math.isnan(loss) else loss for loss in each],
                    }
                    for each in losses
                ]
            )
            estimate = paired_difference(*losses)
            expected.append([estimate.mean, estimate.low, estimate.high, estimate.n])
    quantiles = [None, *t.ppf(0.975, np.arange(1, 80)).tolist()]
    script = "return given[0].map(([a, b]) => Object.values(compare.paired(a, b, given[1])));"
    found = answers(node, script, [cases, quantiles])
    for one, other in zip(found, expected, strict=True):
        assert one[3] == other[3]
        assert [math.nan if value is None else value for value in one[:3]] == pytest.approx(
            other[:3], rel=1e-12, abs=1e-13, nan_ok=True
        )
    assert {0, 1, 2} < {other[3] for other in expected}


def test_a_value_has_the_level_in_the_browser_that_it_has_in_the_drawings_of_reports(node: str) -> None:
    for figure in FIGURES.values():
        edges = figure.levels.edges
        values = [0.0, 1e-300, 1.0, 60.0, *edges, *np.nextafter(edges, -np.inf).tolist()]
        found = answers(node, "return given[0].map((value) => layers.level(given[1], value));", [values, edges])
        assert found == figure.levels.of(np.array(values)).tolist(), figure.title


def test_anchors_in_the_browser_are_those_of_the_pages(node: str) -> None:
    names = ["e4m3-adamw-s1-00ab", "A.b c", "Ünï--_ß", "✓", "", "  x ", "a" * 300, "ﬁn²", "\u202ex"]
    assert answers(node, "return given.map(table.slug);", names) == [slug(name) for name in names]


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> ExperimentDataLoader:
    """FP32 and two formats, a swept arm, and runs that failed, crashed or are another loop's."""
    root = tmp_path_factory.mktemp("records")
    for seed in range(3):
        write_run(root, config("fp32", seed=seed), 2.0 + 0.01 * seed)
        write_run(
            root, config("e4m3", seed=seed), 2.1 + 0.013 * seed, looks=full_look(20), url="https://wandb.ai/a/b/runs/c"
        )
        write_run(root, config("e5m2", seed=seed, lr=1e-2, study="formats-tuning"), 2.3)
    write_run(root, config("e5m2", seed=0), 2.2)
    write_run(root, config("e5m2", seed=1), status="failed")
    write_run(root, config("e7m0", seed=0), status="crashed")
    write_run(root, config("e7m0", seed=5, foreign={"<b>": "<img src=x>"}), looks=[])
    return ExperimentDataLoader([root])


def test_the_browser_has_every_run_as_the_loader_has_it(node: str, loader: ExperimentDataLoader) -> None:
    arms = arm_table(loader)
    found = answers(node, "return table.decode(given);", json.loads(table_json(loader, arms)))
    runs = loader.runs
    for key, name in {"id": "run_id", "arm": "arm", "format": "format", "scope": "scope", "rule": "rule"}.items():
        assert found["runs"]["columns"][key] == runs[name].tolist(), key
    for key in ("status", "study"):
        assert found["runs"]["columns"][key] == runs[key].tolist(), key
    for key in ("seed", "last_step", "max_steps", "learning_rate", "final_val_loss", "stall_ratio"):
        got = np.array(found["runs"]["columns"][key], dtype=np.float64)
        np.testing.assert_allclose(got, runs[key].to_numpy(np.float64), rtol=1e-6, err_msg=key)
    assert found["runs"]["columns"]["wandb"].count("https://wandb.ai/a/b/runs/c") == 3
    assert "nan_loss" in found["runs"]["columns"]["failure"]


def test_rows_of_grouped_seeds_have_the_mean_and_interval_of_the_statistics(loader: ExperimentDataLoader) -> None:
    arms = arm_table(loader).set_index("format")
    estimate = mean_interval([2.1, 2.113, 2.126])
    row = arms.loc["E4M3"]
    assert (row["n"], row["val_loss"], row["low"], row["high"]) == pytest.approx(
        (3, estimate.mean, estimate.low, estimate.high)
    )
    own = arms[(arms.index == "E5M2") & (arms["studies"] == "local")].iloc[0]
    assert (own["runs"], own["finished"], own["n"], own["val_loss"]) == (2, 1, 1, 2.2)
    assert math.isnan(own["low"])
    swept = arms[arms["studies"] == "formats-tuning"].iloc[0]
    assert (swept["n"], swept["val_loss"]) == (3, pytest.approx(2.3))
    crashed = arms[(arms.index == "E7M0") & (arms["finished"] == 0)].iloc[0]
    assert (crashed["n"], math.isnan(crashed["val_loss"])) == (0, True)


def test_every_arm_has_its_file_where_the_browser_looks_for_it(node: str, loader: ExperimentDataLoader) -> None:
    pages = arm_pages(loader)
    files = {
        f"{page.path}.{download.name}": json.loads(download.content)
        for page in pages
        for download in page.downloads
        if download.name.endswith("curves.json")
    }
    value = json.loads(table_json(loader, arm_table(loader)))
    script = (
        "const all = table.decode(given); return all.arms.columns.arm.map((_, row) => table.places(all, row).file);"
    )
    addresses = answers(node, script, value)
    arms = value["arms"]["arm"]
    assert len(arms) == 6
    assert [files[address.removeprefix("../")]["arm"] for address in addresses] == arms
    assert sorted(files) == sorted(address.removeprefix("../") for address in addresses)


def test_t_quantiles_reach_the_largest_arm_and_are_those_of_scipy(loader: ExperimentDataLoader) -> None:
    quantiles = json.loads(table_json(loader, arm_table(loader)))["t"]
    assert quantiles[0] is None
    assert quantiles[1:4] == pytest.approx([12.7062, 4.3027, 3.1824], abs=1e-4)
    assert len(quantiles) > 64


def test_the_file_of_an_arm_has_its_config_and_its_losses_with_all_digits(loader: ExperimentDataLoader) -> None:
    runs = loader.runs[(loader.runs["format"] == "E4M3")]
    arm = runs["arm"].iloc[0]
    value = json.loads(arm_json(loader, arm, runs, "base", loader.last_look(runs["run_id"])))
    assert value["final"] == runs["final_val_loss"].tolist()
    assert value["config"] == config_lines(loader.config(arm))
    assert value["config"]["optimizer.learning_rate"] == "0.003"
    assert "seed" not in value["config"]
    assert [run["role"] for run in value["runs"]] == ["report"] * 3


def test_the_config_of_another_loop_has_its_own_keys(loader: ExperimentDataLoader) -> None:
    (arm,) = loader.runs.loc[loader.runs["foreign"], "arm"]
    assert config_lines(loader.config(arm))["<b>"] == "<img src=x>"


def test_health_by_type_is_the_mean_over_layers_and_the_stall_ratio_of_their_sums(tmp_path: Path) -> None:
    looks = []
    for layer, sqnr, flips in (("a", 20.0, 10.0), ("b", math.inf, 30.0), ("c", 30.0, 80.0)):
        looks += [(20, layer, "mlp", "weight", "sqnr_db", sqnr), (20, layer, "mlp", "weight", "overflow", 0.25)]
        looks += [(20, layer, "mlp", "update", "flips", flips), (20, layer, "mlp", "update", "updates", 100.0)]
    write_run(tmp_path, config("e4m3"), looks=looks)
    loader = ExperimentDataLoader([tmp_path])
    assert sorted(health_by_type(loader.last_look(loader.runs["run_id"]))) == [
        ["overflow", "weight", "mlp", 0.25],
        ["sqnr_db", "weight", "mlp", 25.0],
        ["stall_ratio", "update", "mlp", 1.0 - 120.0 / 300.0],
    ]
    assert health_by_type(loader.last_look([])) == []


def test_health_has_every_kind_of_layer_and_operand(loader: ExperimentDataLoader) -> None:
    runs = loader.runs[loader.runs["format"] == "E4M3"]
    found = {tuple(row[:3]) for row in health_by_type(loader.last_look(runs["run_id"]))}
    for _, kind in LAYERS:
        assert {("overflow", "weight", kind), ("sqnr_db", "weight", kind), ("stall_ratio", "update", kind)} <= found
    assert ("underflow", "grad_output", "attention") in found


def test_suggested_comparisons_have_arms_and_a_baseline_that_exist(loader: ExperimentDataLoader) -> None:
    value = json.loads(table_json(loader, arm_table(loader)))
    assert len(value["suggested"]) == 1
    for suggested in value["suggested"]:
        assert {suggested["baseline"], *suggested["arms"]} <= set(value["arms"]["arm"])
        assert suggested["baseline"].startswith("fp32")


def test_ten_thousand_runs_are_at_most_300_kb_for_the_first_view() -> None:
    loader = made_up(10_000)
    data = table_json(loader, arm_table(loader))
    assert len(json.loads(data)["runs"]["arm"]) == 10_000
    assert len(gzip.compress(data, 6)) < 300_000


def made_up(count: int) -> ExperimentDataLoader:
    """A loader with a table of `count` runs, names and hashes as different as real ones."""
    draw = np.random.default_rng(1)
    loader = ExperimentDataLoader([])
    rows = []
    for number in range(count):
        arm, seed = divmod(number, 8)
        fmt = ["E4M3", "E5M2", "E3M4", "E7M0", "FP32", "E2M5"][arm % 6]
        name = f"{fmt.lower()}-wag-adamw-lr{arm % 9}"
        digits = draw.integers(0, 1 << 32)
        status = "failed" if draw.random() < 0.05 else "finished"
        rows.append(
            {
                **dict.fromkeys(RUN_COLUMNS),
                "run_id": f"{name}-s{seed}-{digits:08x}",
                "arm": f"{name}-{arm * 2654435761 % (1 << 32):08x}",
                "seed": seed,
                "foreign": False,
                "status": status,
                "ending": status,
                "study": f"study-{arm % 7}",
                "role": "report",
                "format": fmt,
                "scope": "nothing" if fmt == "FP32" else "weights + activations + gradients",
                "rule": ["AdamW", "ManifoldAdamW"][arm % 2],
                "learning_rate": [1e-3, 3e-3, 1e-2][arm % 3],
                "max_steps": 300,
                "setting": f"{arm % 5}",
                "final_val_loss": 2 + draw.standard_normal() / 10 if status == "finished" else math.nan,
                "last_step": 300 if status == "finished" else int(draw.integers(300)),
                "stall_ratio": draw.random(),
                "failure": {"kinds": ["nan_loss"]} if status == "failed" else None,
            }
        )
    loader.__dict__["runs"] = runs = pd.DataFrame(rows).sort_values(["arm", "seed"], ignore_index=True)
    labels = {row.arm: f"{row.format}, {row.rule}; learning rate {row.arm}" for row in runs.itertuples()}
    known = {site_labels: labels, moved: {}}  # what needs the records
    loader.memo = lambda find: known[find] if find in known else find(loader)
    return loader


def test_an_empty_store_says_so_and_loads_no_script(tmp_path: Path) -> None:
    pages = {page.path: page for page in arm_pages(ExperimentDataLoader([tmp_path]))}
    assert set(pages) == {"runs/index", "compare/index"}
    for page in pages.values():
        assert "Pending Experiments" in str(page.blocks)
        assert "<script" not in str(page.blocks)
    value = json.loads(pages["runs/index"].downloads[0].content)
    assert value["arms"]["arm"] == value["runs"]["arm"] == value["suggested"] == []
