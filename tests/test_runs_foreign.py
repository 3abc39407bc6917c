"""Anyone's training loop leaves a record, in a few lines; what it does not say is not made up."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import DATA, config, write_run

from altgrad.analysis import ExperimentDataLoader, FormatComparator
from altgrad.config import UsageError, load_config
from altgrad.reports.arms import arm_pages
from altgrad.runs import Failure, RunExists, RunWriter, foreign_config, load_runs, record
from altgrad.runs.query import verify
from altgrad.runs.secrets import LEFT_OUT
from altgrad.site import write_folder

ROOT = Path(__file__).parents[1]
FP32 = {"weight": "fp32", "activation": "fp32", "grad_output": "fp32"}


def write(root: Path, loss: float = 1.0, seed: int = 0, name: str = "mlp", **given: Any) -> str:
    with record(root, name=name, config=given, seed=seed, data="digits") as run:
        for step in range(3):
            run.log(step, loss=loss + 2 - step, val_loss=loss + 2 - step)
        run.finish({"val_loss": loss})
    return run.run_id


def text_of(loader: ExperimentDataLoader, folder: Path, arm: str) -> str:
    write_folder(arm_pages(loader), folder, site_root="../")
    return (folder / f"{arm}.md").read_text()


def test_the_loops_own_keys_are_kept_and_known_ones_are_used(tmp_path: Path) -> None:
    write(tmp_path, width=32, schedule="linear", quantize={"weight": "E4M3"}, optimizer={"learning_rate": 0.5, "k": 1})
    (found,) = load_runs([tmp_path]).records
    assert found.config.foreign == {"width": 32, "schedule": "linear", "optimizer.k": 1}
    assert found.config.quantize.weight == "e4m3"
    assert found.config.optimizer.learning_rate == 0.5
    assert found.run["config"]["foreign"] == found.config.foreign
    assert "model" not in found.run["config"], "a default is not a fact about another loop"
    assert found.id.startswith("mlp-s0-")


def test_a_vocabulary_alone_is_a_fact_of_another_loop() -> None:
    given = {"vocabulary": 50_257, "tokenizer": "gpt2", "max_steps": 30}
    found = foreign_config(given, name="mlp")
    assert (found.vocabulary, found.tokens, found.max_steps) == (50_257, 50_257, 30)
    assert found.foreign == {"tokenizer": "gpt2"}
    found = foreign_config({"tokenizer": "bpe", "vocabulary": 200_000}, name="mlp")
    assert (found.tokenizer, found.tokens, found.foreign) == ("bpe", 96, {"vocabulary": 200_000})


def test_what_a_loop_does_not_say_is_not_stated(tmp_path: Path) -> None:
    write(tmp_path, width=32)
    row = ExperimentDataLoader([tmp_path]).runs.iloc[0]
    assert row["foreign"]
    assert (row["format"], row["scope"], row["rule"]) == ("not stated",) * 3
    assert (row["weight"], row["step_rule"]) == (None, None)
    assert math.isnan(row["learning_rate"])
    assert row["max_steps"] == row["last_step"] == 2
    assert row["final_val_loss"] == 1


def test_two_runs_are_comparable_only_where_all_but_format_and_seed_is_equal(tmp_path: Path) -> None:
    for seed in (0, 1):
        write(tmp_path, 1.0, seed, name="base", width=32, quantize=FP32)
        write(tmp_path, 1.25, seed, width=32, quantize=FP32 | {"weight": "e4m3"})
        write(tmp_path, 1.5, seed, width=64, quantize=FP32 | {"weight": "e5m2"})
        write(tmp_path, 1.5, seed, width=32, batch_size=16, quantize=FP32 | {"weight": "e3m4"})
        write(tmp_path, 9.0, seed, width=32)
        write_run(tmp_path, config("fp32", seed=seed))
    loader = ExperimentDataLoader([tmp_path])
    assert not loader.problems
    assert loader.runs["arm"].nunique() == 6
    (comparison,) = FormatComparator(loader, foreign=True).comparisons
    assert comparison.table[["format", "gap", "n_pairs"]].to_numpy().tolist() == [["E4M3", 0.25, 2]]
    assert FormatComparator(loader).comparisons == ()
    stated = loader.runs[loader.runs["format"] == "E4M3"]["arm"].iloc[0]
    text = text_of(loader, tmp_path / "pages", str(stated))
    assert "Formats compared" in text
    assert "+0.25" in text
    assert "experiment.py" not in text, "AltGrad cannot run another loop again"


def test_losses_that_no_axis_holds_leave_the_other_rows_to_be_drawn(tmp_path: Path) -> None:
    with record(tmp_path / "runs", name="wild", config={}) as run:
        for step, loss in enumerate((1.0, 1e308, -1e308, 2.0)):
            run.log(step, loss=loss, val_loss=loss)
        run.finish()
    loader = ExperimentDataLoader([tmp_path / "runs"])
    text_of(loader, tmp_path / "pages", loader.runs["arm"].iloc[0])
    (drawn,) = (tmp_path / "pages").glob("*.loss.csv")
    assert drawn.read_text().count("\n") == 3


def test_the_config_of_another_loop_is_shown_as_text(tmp_path: Path) -> None:
    write(tmp_path, **{"<b>x</b>": "</script><script>", "note": "a\x1b[31m\u202e"})
    loader = ExperimentDataLoader([tmp_path])
    text = text_of(loader, tmp_path / "pages", loader.runs["arm"].iloc[0])
    assert "<script>" not in text
    assert "<b>" not in text
    assert "\x1b" not in text
    assert "not known" in text


def test_seed_and_name_decide_the_run_but_not_the_arm(tmp_path: Path) -> None:
    first, other = write(tmp_path, seed=1, width=1), write(tmp_path, seed=2, width=1, name="other")
    found = load_runs([tmp_path]).records
    assert {record.id for record in found} == {first, other}
    assert len({record.arm for record in found}) == 1
    with pytest.raises(RunExists):
        write(tmp_path, seed=1, width=1)
    assert foreign_config({"seed": 7, "x": 1}, name="a").seed == 7
    with pytest.raises(UsageError, match="one seed"):
        foreign_config({"seed": 7}, name="a", seed=8)


class OneElement:
    """What a tensor of a framework looks like from outside."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def item(self) -> Any:
        if isinstance(self.value, list):
            raise RuntimeError("a Tensor with 2 elements cannot be converted to Scalar")
        return self.value


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (np.float32(0.5), 0.5), (np.float64(0.1), 0.1), (np.int8(3), 3), (np.bool_(True), 1), (True, 1),
        (2**60, 2.0**60),
        (np.array([[2.0]]), 2.0), (OneElement(1.5), 1.5), (math.inf, math.inf), (7, 7), (np.float16(0.5), 0.5),
    ],
)  # fmt: skip
def test_a_metric_of_any_kind_of_number_is_recorded(tmp_path: Path, value: Any, kept: float) -> None:
    with record(tmp_path, name="a", config={}) as run:
        run.log(np.int64(0), x=value, nan=np.float32("nan"))
        run.log_layers([(np.int32(0), "a", "dense", "weight", "amax", value)])
        run.finish()
    (found,) = load_runs([tmp_path]).records
    assert found.history["x"].tolist() == [kept]
    assert found.history["nan"].isna().tolist() == [True]
    assert found.layers["value"].tolist() == [kept]


def test_config_values_are_converted_or_named(tmp_path: Path) -> None:
    given = {
        "a": np.float32(0.5), "b": [1, 2.0, "x"], "c": float("nan"), "d": None, "e": {"f": {"g": True}},
        "h": Path("/data/x/y"), "i": "x" * 20_000, "j": [[1, 2], [3]], "k": {}, "max_tokens": 5, "l": 2.0,
        "m": np.arange(2), "api_key": "hush", "wandb.password": "hush", "n": "bad \ud800 text",
    }  # fmt: skip
    foreign = foreign_config(given, name="a").foreign
    assert foreign is not None
    assert foreign["a"] == 0.5
    assert foreign["b"] == (1, 2, "x")
    assert foreign["c"] == "nan"
    assert foreign["d"] is None
    assert foreign["e.f.g"] is True
    assert foreign["h"] == "y"
    assert len(str(foreign["i"])) < 10_100
    assert "20,000 characters" in str(foreign["i"])
    assert foreign["j"] == ("[1, 2]", "[3]")
    assert foreign["k"] == "{}"
    assert "hush" not in json.dumps(foreign)
    assert (foreign["max_tokens"], foreign["l"], foreign["m"]) == (5, 2, (0, 1))
    write(tmp_path, **given)
    (found,) = load_runs([tmp_path]).records
    assert found.config.foreign == foreign


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"quantize": {"weight": "e9m9"}}, "unknown format 'e9m9'"),
        ("lr=1", "config: give a mapping"),
    ],
)
def test_a_config_that_cannot_be_recorded_is_one_line_and_leaves_nothing(
    tmp_path: Path, given: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UsageError, match=expected) as raised:
        record(tmp_path, name="a", config=given)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "given",
    [
        {"name": ""},
        {"name": 3},
        {"data": {"sha256": "x"}},
        {"data": {"name": "d", "sha256": "x"}},
    ],
)
def test_names_and_fingerprints_are_checked(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        record(tmp_path, **{"name": "a", "config": {}, **given})
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_finished_with_a_loss_of_nan_has_failed(tmp_path: Path) -> None:
    for name, end in (("well", 0.5), ("badly", math.nan)):
        with record(tmp_path, name=name, config={}) as run:
            run.log(0, loss=1.0)
            run.log(1, loss=end)
            run.log(2, other=1.0)
            run.finish()
    runs = {run.config.name: run for run in load_runs([tmp_path]).records}
    assert {name: run.status for name, run in runs.items()} == {"well": "finished", "badly": "failed"}
    assert runs["badly"].run["failure"]["message"] == "loss is NaN or infinite from step 1 to its last value"


def test_a_loop_that_fails_or_is_left_says_so(tmp_path: Path) -> None:
    with record(tmp_path, name="fails", config={}) as run:
        run.log(0, loss=math.nan)
        run.fail(Failure(("nan_loss",), 0, "head.weight", "forward", "loss is NaN"))

    def training() -> None:
        with record(tmp_path, name="raises", config={}) as run:
            run.log(0, loss=1.0)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        training()
    found = {record.config.name: record for record in load_runs([tmp_path]).records}
    assert found["fails"].status == "failed"
    assert found["raises"].status == "crashed"
    assert found["raises"].run["message"] == "RuntimeError: out of memory"


def test_what_is_no_json_value_does_not_keep_a_run_from_its_end(tmp_path: Path) -> None:
    versions = {"dtype": np.float32, "peak": math.nan}
    with record(tmp_path, name="own", config={}, environment=versions) as run:
        run.log(0, loss=1.0)
        run.event("shift", np.int64(0), scale=np.float32(0.5), by=object, cells={1: (np.int64(2),)})
        run.finish({"val_loss": np.float32(0.5), "model": Path("/srv/me/model.pt")})
    (found,) = load_runs([tmp_path]).records
    assert found.run["environment"] == {"dtype": "<class 'numpy.float32'>", "peak": None}
    (event,) = found.run["events"]
    assert event == {"kind": "shift", "step": 0, "scale": 0.5, "by": "<class 'object'>", "cells": {"1": [2]}}
    assert found.run["summary"] == {"val_loss": 0.5, "model": "model.pt"}


def test_no_api_key_reaches_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is part of: a command line in the config, notes, an environment, an exception."""
    own, other = "k3y" * 14, "wandb_v1_" + "0aZ_" * 20
    monkeypatch.setenv("WANDB_API_KEY", own)
    given = {"command": f"WANDB_API_KEY={own} python train.py", "log": [other], "commit": "ab" * 20}
    with (
        contextlib.suppress(RuntimeError),
        record(tmp_path, name="keys", config=given, notes=f"with {own}", environment={"shell": own}) as run,
    ):
        run.log(0, loss=1.0)
        run.event("warning", 0, message=f"key {own}")
        raise RuntimeError(f"key {own} or {other} was refused")
    text = "".join(path.read_text() for path in tmp_path.rglob("*.json*"))
    assert (own in text, other in text) == (False, False)
    assert text.count(LEFT_OUT) == 7
    assert "ab" * 20 in text
    assert verify([tmp_path]) == (1, [], [])


def test_a_step_that_no_table_holds_is_refused_by_the_writer(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path, foreign_config({}, name="own"), data_fingerprint=DATA, environment={}) as run:
        for call in (lambda: run.log(2**63, loss=1.0), lambda: run.event("shift", 2**63)):
            with pytest.raises(UsageError, match="is not an integer, or too large"):
                call()
        run.log(2**63 - 1, loss=1.0)
        run.finish()
    assert load_runs([tmp_path]).records[0].history["step"].tolist() == [2**63 - 1]


@pytest.mark.parametrize("given", [{"config": None}, {"config": [1]}, {"config": {}, "data": None}])
def test_what_is_no_mapping_is_one_line(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="give a"):
        record(tmp_path, name="own", **given)


def test_a_foreign_config_is_not_trained(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("foreign: {width: 3}\n")
    with pytest.raises(UsageError, match="'foreign' is the config of another loop"):
        load_config(tmp_path / "x.yaml")


def test_recording_needs_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys\nfor name in ('torch', 'wandb', 'mkdocs'): sys.modules[name] = None\n"
        "from altgrad.runs import record\n"
        f"with record({str(tmp_path)!r}, name='a', config={{'x': 1}}) as run:\n"
        "    run.log(0, loss=1.0)\n    run.finish()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(load_runs([tmp_path]).records) == 1
