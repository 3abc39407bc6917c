"""Logs of other tools become records: what each tool's own reader says is in them, and what is wrong is said."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import re
import shutil
import sqlite3
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import config as run_config
from records import write_run

from altgrad.analysis import ExperimentDataLoader
from altgrad.analysis.comparison import FormatComparator
from altgrad.analysis.labels import site_labels
from altgrad.cli import main
from altgrad.config import UsageError
from altgrad.recipes import recipe_keys
from altgrad.reports.arms import arm_pages
from altgrad.reports.compare import swept_columns
from altgrad.runs import RunRecord, load_runs, pack_study, read_histories, record, sources_fingerprint
from altgrad.runs.history import MOST_METRICS, of_rows
from altgrad.runs.names import columns
from altgrad.runs.query import values, verify
from altgrad.runs.sources import import_runs
from altgrad.runs.sources.found import described
from altgrad.runs.sources.tensorboard import _masked_crc
from altgrad.runs.wandb_pull import Pulled

FIXTURES = Path(__file__).parent / "fixtures"
TOLD = {path.stem: json.loads(path.read_text()) for path in sorted(FIXTURES.glob("*.json"))}
BESIDE = ("hparam/last", "nested.a")
"""What the readers show elsewhere: the metrics of a run's hyperparameters, and what lies within a row."""
NEED_WANDB = [name for name in TOLD if name.startswith("wandb")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


@pytest.fixture(scope="module", params=[name for name in TOLD if name not in NEED_WANDB])
def brought(request: pytest.FixtureRequest, home: Path) -> tuple[str, Path, Path, Pulled]:
    """A tool's version, its files, the records of them, and what the import said."""
    return bring(request.param, home)


def bring(name: str, home: Path) -> tuple[str, Path, Path, Pulled]:
    files, out = home / name, home / f"{name}-records"
    shutil.copytree(FIXTURES / name, files)
    for path in files.rglob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    return name, files, out, import_runs(files, out)


def by_name(out: Path) -> dict[str, RunRecord]:
    return {run.run.get("title") or run.config.resolved_name: run for run in load_runs([out]).records}


def check(name: str, out: Path, found: Pulled) -> None:
    """Every value that the tool's own reader has is in the record, and nothing else is."""
    assert found.problems == []
    runs = by_name(out)
    assert runs.keys() == TOLD[name]["runs"].keys() if "lightning" not in name else len(runs) == 2
    for title, metrics in TOLD[name]["runs"].items():
        run = runs.get(title) or next(run for key, run in runs.items() if key.endswith(title))
        table = run.history.set_index("step")
        read_as = columns(metrics)
        for metric, points in metrics.items():
            told = {int(step): float(value) for step, value in points}
            own = table[read_as[metric]].dropna()
            assert own.to_dict() == {step: value for step, value in told.items() if not math.isnan(value)}, metric
        assert set(table.columns) - {"seconds", *BESIDE} <= {*read_as.values(), "epoch"}


def test_every_value_that_the_tool_s_own_reader_has_is_in_the_record(brought: tuple[str, Path, Path, Pulled]) -> None:
    name, _, out, found = brought
    check(name, out, found)
    assert verify([out])[1] == []


def test_a_repeat_reads_nothing_again(brought: tuple[str, Path, Path, Pulled]) -> None:
    _, files, out, first = brought
    again = import_runs(files, out)
    assert (again.fetched, again.unchanged) == ([], len(first.fetched))


@pytest.mark.parametrize("name", ["tensorboard-2.20", "mlflow-3", "trackio-0.43", "lightning-2.5"])
def test_config_and_seed_are_read_where_the_tool_has_them(name: str, home: Path) -> None:
    out = home / f"{name}-records"
    if not out.exists():
        bring(name, home)
    runs = sorted(load_runs([out]).records, key=lambda run: run.config.seed)
    assert {run.config.seed for run in runs} == {0, 1}
    assert all(run.config.states("seed") for run in runs)
    assert {run.config.optimizer.learning_rate for run in runs} == {0.1, 0.2}


def test_mlflow_says_how_a_run_ended(home: Path) -> None:
    out = home / "mlflow-3-records"
    if not out.exists():
        bring("mlflow-3", home)
    assert {title: run.status for title, run in by_name(out).items()} == {
        "files first": "finished",
        "files second": "failed",
        "sqlite first": "finished",
        "sqlite second": "failed",
    }


@pytest.mark.parametrize("name", NEED_WANDB)
def test_offline_files_of_w_and_b_give_what_was_logged(name: str, home: Path) -> None:
    pytest.importorskip("wandb")
    name, _, out, found = bring(name, home)
    check(name, out, found)
    first = by_name(out)["first"]
    assert first.run["environment"]["python"].startswith("3.")
    assert "arm by itself" not in str(found.reports)


def test_tools_in_one_folder_do_not_take_each_other_s_files(tmp_path: Path) -> None:
    for name in ("tensorboard-2.20", "keras-3", "trainer-4.57", "lightning-2.5"):
        shutil.copytree(FIXTURES / name, tmp_path / "logs" / name)
    shutil.copy(FIXTURES / "keras-3" / "first.csv", tmp_path / "logs" / "tensorboard-2.20" / "first" / "metrics.csv")
    (tmp_path / "logs" / "data.csv").write_text("x,y\n1,2\n")
    shutil.copytree(FIXTURES / "lightning-2.5", tmp_path / "logs" / "again" / "lightning-2.5")
    found = import_runs(tmp_path / "logs", tmp_path / "out")
    assert (len(found.fetched), found.copies) == (9, 2), "the same files twice are the same runs"
    assert import_runs(tmp_path / "logs", tmp_path / "out").unchanged == 11
    assert [(each.where, "no column that is a step" in each.reason) for each in found.problems] == [("data.csv", True)]
    assert {tool.strip("()") for tool in found.project.split(" ", 1)[1].split(", ")} == {
        "CSV",
        "TensorBoard",
        "Trainer",
    }


# Event files, written here byte by byte.


def event_file(*events: bytes) -> bytes:
    def crc(data: bytes) -> bytes:
        return struct.pack("<I", int(_masked_crc(np.frombuffer(data, np.uint8)[None])[0]))

    heads = (struct.pack("<Q", len(event)) for event in events)
    return b"".join(head + crc(head) + event + crc(event) for head, event in zip(heads, events, strict=True))


def varint(number: int) -> bytes:
    number &= 2**64 - 1
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def scalar_event(step: int, tag: str, value: float, time: float = 1.7e9) -> bytes:
    name = tag.encode()
    inner = b"\x0a" + varint(len(name)) + name + b"\x15" + struct.pack("<f", value)
    summary = b"\x0a" + varint(len(inner)) + inner
    return b"\x09" + struct.pack("<d", time) + b"\x10" + varint(step) + b"\x2a" + varint(len(summary)) + summary


def test_a_checksum_is_that_of_rfc_3720() -> None:
    zeros = np.zeros((1, 32), np.uint8)
    crc = 0x8A9136AA  # B.4 of the RFC: 32 bytes of zeros
    assert int(_masked_crc(zeros)[0]) == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32


def write_events(folder: Path, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "events.out.tfevents.1.host"
    path.write_bytes(data)
    return path


STEPS = (0, 1, 127, 128, 300, 2**21, 2**40)


def test_events_of_every_length_and_order_give_their_steps(tmp_path: Path) -> None:
    events = [scalar_event(step, tag, step % 7) for step in STEPS for tag in ("a", "loss", "b" * 200)]
    write_events(tmp_path / "run", event_file(*events))
    import_runs(tmp_path / "run", tmp_path / "out")
    (run,) = load_runs([tmp_path / "out"]).records
    assert run.history["step"].tolist() == list(STEPS)
    for column in ("a", "loss", "b" * 200):
        assert run.history[column].tolist() == [step % 7 for step in STEPS]


def test_a_file_that_still_grows_is_read_again_and_one_cut_short_gives_what_it_holds(tmp_path: Path) -> None:
    whole = event_file(*(scalar_event(step, "loss", 1.0) for step in range(20)))
    record_size = len(whole) // 20
    for kept, rows, status in ((whole[: 5 * record_size + 9], 5, "crashed"), (whole, 20, "finished")):
        write_events(tmp_path / "run", kept)
        found = import_runs(tmp_path / "run", tmp_path / "out")
        (run,) = load_runs([tmp_path / "out"]).records
        assert (len(found.fetched), len(run.history), run.status) == (1, rows, status)
    assert "how a run ended: not recorded" in str(found.reports)


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        ("lr0.1_s3", "lr0.1_s3"),
        ("warm-seed3-wide", "warm-seed3-wide"),
        ("sgd-3", "sgd-3"),
        ("s33", "s33-s3"),
        ("a", "a-s3"),
    ],
)
def test_an_id_has_the_seed_once_and_an_earlier_one_is_kept(tmp_path: Path, name: str, beginning: str) -> None:
    log = tmp_path / "logs" / "lightning_logs" / name / "metrics.csv"
    log.parent.mkdir(parents=True)
    log.with_name("config.json").write_text('{"seed": 3}')
    log.write_text("step,loss\n0,2\n1,1\n")
    (new,) = import_runs(tmp_path / "logs", tmp_path / "out").fetched
    assert re.fullmatch(f"{re.escape(beginning)}-[0-9a-f]{{8}}", new)
    earlier = f"{name}-s3-{new[-8:]}"  # of a version that said it twice
    (tmp_path / "out" / new).rename(tmp_path / "out" / earlier)
    assert import_runs(tmp_path / "logs", tmp_path / "out").unchanged == 1
    log.write_text("step,loss\n0,2\n1,1\n2,0.5\n")
    assert import_runs(tmp_path / "logs", tmp_path / "out").fetched == [earlier]
    (run,) = load_runs([tmp_path / "out"]).records
    assert (run.id, len(run.history)) == (earlier, 3)


def test_a_report_of_several_runs_has_one_line_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rule in ("adamw", "sgd"):
        (tmp_path / "logs" / rule).mkdir(parents=True)
        (tmp_path / "logs" / rule / "config.json").write_text(json.dumps({"seed": 0, "optimizer": rule, "width": 8}))
        (tmp_path / "logs" / rule / "metrics.csv").write_text("step,loss,acc\n0,2,0.1\n")
    assert main(["runs", "import", str(tmp_path / "logs"), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if "optimizer" in line] == [
        "  config: optimizer is kept under its own name in all runs: not all its values are ones of optimizer.step_rule"
    ]
    assert "config: kept under their own names: width (2 runs)" in said


def test_a_damaged_event_is_left_out_and_said(tmp_path: Path) -> None:
    data = bytearray(event_file(*(scalar_event(step, "loss", 1.0) for step in range(20))))
    data[len(data) // 2 + 30] ^= 1
    write_events(tmp_path / "run", bytes(data))
    found = import_runs(tmp_path / "run", tmp_path / "out")
    (run,) = load_runs([tmp_path / "out"]).records
    assert (len(run.history), run.status) == (19, "crashed")
    assert "1 damaged records are left out" in str(found.reports)


def test_a_tag_of_training_and_of_validation_is_two_metrics(tmp_path: Path) -> None:
    """As Keras writes them: one name in two folders of a run."""
    for part, value in (("train", 1.0), ("validation", 2.0)):
        write_events(
            tmp_path / "logs" / "a" / part, event_file(*(scalar_event(s, "epoch_loss", value) for s in range(5)))
        )
    import_runs(tmp_path / "logs", tmp_path / "out")
    (run,) = load_runs([tmp_path / "out"]).records
    assert (run.history["loss"].tolist(), run.history["val_loss"].tolist()) == ([1.0] * 5, [2.0] * 5)


# Tables.


def one(tmp_path: Path, name: str, text: str) -> tuple[RunRecord, Pulled]:
    path = tmp_path / "logs" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    found = import_runs(path, tmp_path / "out")
    assert found.problems == []
    (run,) = load_runs([tmp_path / "out"]).records
    return run, found


def test_rows_by_epoch_and_by_step_are_rows_of_their_steps(tmp_path: Path) -> None:
    rows = [{"step": s, "loss": 1.0} for s in range(4)] + [{"epoch": 1, "eval_loss": 2.0}, {"step": 4, "loss": 0.5}]
    run, _ = one(tmp_path, "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert run.history["step"].tolist() == [0, 1, 2, 3, 4]
    assert run.history.set_index("step")["val_loss"].dropna().to_dict() == {3: 2.0}


def test_steps_as_floats_are_steps(tmp_path: Path) -> None:
    run, _ = one(tmp_path, "a.csv", "step,loss\n0.0,3\n10.0,2\n20.0,1\n")
    assert run.history["step"].tolist() == [0, 10, 20]


def test_steps_in_fractions_are_numbered_and_kept(tmp_path: Path) -> None:
    run, found = one(tmp_path, "b.csv", "step,loss\n0.5,3\n1.5,2\n")
    assert run.history["step"].tolist() == [0, 1]
    assert run.history["logged_step"].tolist() == [0.5, 1.5]
    assert "not whole" in str(found.reports)


def test_one_name_of_two_splits_is_two_metrics(tmp_path: Path) -> None:
    rows = [
        {"step": s, "split": split, "loss": value} for s in range(3) for split, value in (("train", 1.0), ("val", 2.0))
    ]
    run, _ = one(tmp_path, "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert (run.history["loss"].tolist(), run.history["val_loss"].tolist()) == ([1.0] * 3, [2.0] * 3)


def test_values_of_a_step_that_was_logged_again_are_said(tmp_path: Path) -> None:
    run, found = one(tmp_path, "a.csv", "step,loss\n0,3\n1,2\n1,5\n")
    assert run.history["loss"].tolist() == [3, 5]
    assert "metric: loss: 1 values at steps that have a later one are not kept" in str(found.reports)


@pytest.mark.parametrize(
    ("rows", "step"),
    [
        ("0,1,2\n1,1,nan\n2,1,inf\n", 1),
        ("0,1,2\n1,nan,\n2,nan,\n", 1),
        ("0,nan,nan\n1,nan,nan\n", 0),
        ("0,1,2\n1,1,\n2,1,\n", None),
        ("0,1,nan\n1,1,2\n2,1,nan\n", None),
        ("0,1,nan\n1,1,nan\n", None),
    ],
)
def test_a_run_whose_loss_ends_in_nan_or_infinity_has_failed(tmp_path: Path, rows: str, step: int | None) -> None:
    """And one that was not evaluated at its last steps has not, also where its loop says so as NaN."""
    (tmp_path / "a.csv").write_text(f"step,train_loss,val_loss\n{rows}")
    import_runs(tmp_path / "a.csv", tmp_path / "out")
    (run,) = load_runs([tmp_path / "out"]).records
    assert (run.status, run.run["failure"] and run.run["failure"]["step"]) == (
        "finished" if step is None else "failed",
        step,
    )


def test_a_row_that_is_half_written_is_left_out_and_said(tmp_path: Path) -> None:
    run, found = one(tmp_path, "log.jsonl", '{"step": 0, "loss": 1}\n{"step": 1, "lo')
    assert (len(run.history), run.status) == (1, "crashed")
    assert "cut short" in str(found.reports)


ROWS: dict[str, tuple[str, str, dict[str, list[float]], str]] = {
    # name: file, its text, columns of the record (NaN where a step has none), what is said
    "a column twice": ("m.csv", "step,loss,loss\n0,1,2\n", {"step": [0], "loss": [1], "loss_": [2]}, ""),
    "columns without a name": ("m.csv", "step,,\n0,1,2\n", {"step": [0], "(no name)": [1], "_": [2]}, "no name"),
    "nested and dotted": (
        "l.jsonl", '{"step": 0, "a.b": 1, "a": {"b": 2}}\n', {"step": [0], "a.b": [1], "a.b_": [2]}, "",
    ),
    "decimal commas": ("m.csv", "step;loss\n0;1,5\n", {"step": [0], "loss": [1.5]}, ""),
    "steps as text": (
        "l.jsonl", '{"step": "5", "loss": 1}\n{"step": "7", "loss": 2}\n', {"step": [5, 7], "loss": [1, 2]}, "",
    ),
    "negative steps": ("m.csv", "step,loss\n-2,1\n-1,2\n", {"step": [-2, -1], "loss": [1, 2]}, ""),
    "a step that no table holds": (
        "l.jsonl", '{"step": 4, "loss": 1}\n{"step": 1e30, "loss": 2}\n',
        {"step": [4, 5], "loss": [1, 2], "logged_step": [math.nan, 1e30]}, "not whole",
    ),
    "a step that is no number": (
        "l.jsonl", '{"step": NaN, "loss": 1}\n{"step": Infinity, "loss": 2}\n{"step": 3, "loss": 3}\n',
        {"step": [0, 1, 3], "loss": [1, 2, 3], "logged_step": [math.nan, math.inf, math.nan]}, "not whole",
    ),
    "one name of a number, a text and a mapping": (
        "l.jsonl", '{"step": 0, "loss": 1}\n{"step": 1, "loss": "high"}\n{"step": 2, "loss": {"a": 3}}\n',
        {"step": [0, 1, 2], "loss": [1, math.nan, math.nan], "loss.a": [math.nan, math.nan, 3]},
        "loss: 1 values are no numbers",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "text", "columns", "said"), ROWS.values(), ids=ROWS)
def test_no_value_of_a_strange_row_is_lost(
    tmp_path: Path, name: str, text: str, columns: dict[str, list[float]], said: str
) -> None:
    run, found = one(tmp_path, name, text)
    own = run.history.to_dict("list")
    assert own.keys() == columns.keys()
    for column, cells in columns.items():
        np.testing.assert_array_equal(own[column], cells)
    assert said in str(found.reports)


@pytest.mark.parametrize(
    ("column", "times"),
    [
        ("_timestamp", [1.7e9, 1.7e9 + 60, 1.7e9 - 3600]),
        ("timestamp", [1.7e12, 1.7e12 + 60_000, 1.7e12 - 3_600_000]),
        ("time", ["2023-11-14T22:13:20Z", "2023-11-14T22:14:20+00:00", "2023-11-14T21:13:20Z"]),
    ],
)
def test_a_clock_that_goes_back_is_said_and_begin_and_end_are_the_first_and_last_of_it(
    tmp_path: Path, column: str, times: list[Any]
) -> None:
    rows = "".join(json.dumps({"step": step, "loss": 1, column: time}) + "\n" for step, time in enumerate(times))
    run, found = one(tmp_path, "log.jsonl", rows)
    assert (run.run["created"], run.run["ended"]) == ("2023-11-14T21:13:20Z", "2023-11-14T22:14:20Z")
    assert "clock: it goes back 1 times" in str(found.reports)
    assert run.history.columns.tolist() == ["step", "loss"]


def test_seconds_of_events_count_from_the_earliest_also_where_the_clock_goes_back(tmp_path: Path) -> None:
    times = (1.7e9, 1.7e9 + 5, 1.7e9 - 10, 1.7e9 + 1)
    write_events(tmp_path / "r", event_file(*(scalar_event(s, "loss", 1.0, time) for s, time in enumerate(times))))
    found = import_runs(tmp_path / "r", tmp_path / "out")
    (run,) = load_runs([tmp_path / "out"]).records
    assert run.history["seconds"].tolist() == [10, 15, 0, 11]
    assert "clock: it goes back 1 times" in str(found.reports)


def test_events_at_steps_that_no_table_holds_are_counted_and_the_others_kept(tmp_path: Path) -> None:
    write_events(tmp_path / "r", event_file(*(scalar_event(step, "loss", 1.0) for step in (-1, 5, 2**63 - 1))))
    found = import_runs(tmp_path / "r", tmp_path / "out")
    (run,) = load_runs([tmp_path / "out"]).records
    assert run.history["step"].tolist() == [-1, 5]
    assert "metric: loss: 1 values at steps beyond 2**53 are not kept" in str(found.reports)


def test_only_regular_files_are_read_and_what_is_none_is_said(tmp_path: Path) -> None:
    """A pipe would be waited at for ever."""
    logs = tmp_path / "logs"
    (logs / "a").mkdir(parents=True)
    os.mkfifo(logs / "a" / "log.jsonl")
    (logs / "gone.csv").symlink_to("nowhere")
    (logs / "round").symlink_to(logs)
    (logs / "metrics.csv").write_bytes("step,loss\n0,1\n".encode("utf-16"))
    found = import_runs(logs, tmp_path / "out")
    assert [(each.where, each.reason) for each in found.problems] == [("a/log.jsonl", "no regular file")]
    (run,) = load_runs([tmp_path / "out"]).records
    assert run.history.to_dict("list") == {"step": [0], "loss": [1.0]}


def test_a_pipe_among_the_records_and_a_log_that_goes_away_hold_up_no_import(tmp_path: Path) -> None:
    (tmp_path / "out" / "pipe").mkdir(parents=True)
    os.mkfifo(tmp_path / "out" / "pipe" / "run.json")
    (tmp_path / "logs").mkdir()
    for name in "abc":
        (tmp_path / "logs" / f"{name}.csv").write_text("step,loss\n0,1\n")
    write_events(tmp_path / "logs" / "d", event_file(scalar_event(0, "loss", 1.0)))

    def remove(seen: Pulled, total: int) -> None:
        for path in [tmp_path / "logs" / "d" / "events.out.tfevents.1.host", tmp_path / "logs" / "c.csv"]:
            path.unlink(missing_ok=True)

    found = import_runs(tmp_path / "logs", tmp_path / "out", remove)
    assert len(found.fetched) == 3
    assert [each.where for each in found.problems] == ["c.csv"]
    assert "cannot be read (No such file" in found.problems[0].reason


def test_names_that_have_values_at_few_steps_make_room_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop whose names hold its steps, for a long time: the table has no room, and its loss is kept."""
    monkeypatch.setattr("altgrad.runs.history.MOST_CELLS", 50_000)
    kept = of_rows({"step": step, "loss": step, f"at {step % 300}": 1} for step in range(3000))
    assert kept.table.column_names == ["step", "loss"]
    assert kept.table["loss"].to_pylist() == list(range(3000))
    assert kept.lines == ("metrics: 300 names with values at few of 3,000 steps are not kept",)


def test_a_report_of_many_lines_is_folded(tmp_path: Path) -> None:
    row = {"step": 0, "loss": 1, **{f"text {at}": "a" for at in range(1000)}}
    _, found = one(tmp_path, "log.jsonl", json.dumps(row) + "\n")
    (lines,) = found.reports.values()
    assert len(lines) < 40
    assert "and 970 more lines like these" in lines


def test_a_million_names_are_counted(tmp_path: Path) -> None:
    text = "".join(
        json.dumps({"step": 0, **{f"m{at}": 1 for at in range(begin, begin + 500)}}) + "\n"
        for begin in range(0, 10_000, 500)
    )
    run, found = one(tmp_path, "log.jsonl", text)
    assert run.history.shape == (1, MOST_METRICS + 1)
    (lines,) = found.reports.values()
    assert "metrics: 5,000 names beyond the first 5,000 are not kept" in str(lines)
    assert max(map(len, lines)) < 1000


def test_a_config_beside_the_log_is_read_even_with_tags_of_python(tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("epoch,step,train_loss\n0,0,1\n")
    (folder / "hparams.yaml").write_text(
        "lr: 1e-4\nfn: !!python/name:torch.nn.ReLU ''\nnamespace: !!python/object:argparse.Namespace\n  width: 3\n"
    )
    import_runs(tmp_path / "logs", tmp_path / "out")
    (run,) = load_runs([tmp_path / "out"]).records
    assert run.config.optimizer.learning_rate == 1e-4
    assert run.config.foreign == {"fn": "ReLU", "namespace.width": 3}


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.csv", b"", "it is empty"),
        ("a.csv", b"step,loss\n", "it has no row yet"),
        ("a.csv", b"1,2\n3,4\n", "names of columns should be"),
        ("a.jsonl", b"", "it is empty"),
        ("a.jsonl", b"[1]\nnothing\n", "no line of it is a JSON object"),
        ("trainer_state.json", b"{}", "no state of a Trainer"),
        ("events.out.tfevents.1.host", b"", "it is empty"),
        ("events.out.tfevents.1.host", b"noise that is no record", "not a readable file of TensorBoard"),
        ("events.out.tfevents.1.host", event_file(b"\x09" + bytes(8)), "no scalar in it"),
    ],
)
def test_what_no_run_can_be_made_of_is_a_line(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(data)
    (tmp_path / "good.csv").write_text("step,loss\n0,1\n")
    found = import_runs(tmp_path, tmp_path / "out")
    assert len(found.fetched) == 1
    (problem,) = found.problems
    assert reason in problem.reason
    assert str(tmp_path) not in f"{problem}"


def test_a_folder_without_a_log_and_a_damaged_database_are_one_line(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "mlflow.db").write_bytes(b"SQLite format 3\0" + bytes(200))
    assert main(["runs", "import", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no run in it" in error
    with pytest.raises(UsageError, match="no such file"):
        import_runs(tmp_path / "nowhere", tmp_path / "out")


def test_a_database_that_is_being_written_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "sweep.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(
            "create table metrics (id integer primary key, timestamp text, run_name text, step integer, metrics text)"
        )
        connection.execute("insert into metrics values (1, '2026-01-01T00:00:00+00:00', 'a', 0, '{\"loss\": 1}')")
        connection.commit()
        before = sorted(each.name for each in tmp_path.iterdir())
        import_runs(path, tmp_path / "out")
        assert sorted(each.name for each in tmp_path.iterdir() if each.name != "out") == before
    (run,) = load_runs([tmp_path / "out"]).records
    assert run.history["loss"].tolist() == [1.0]


def database(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(";".join(statements))


def test_damaged_rows_of_mlflow_are_counted_and_the_others_kept(tmp_path: Path) -> None:
    """The same in its SQLite file and in its folder; one run's own file is no YAML."""
    database(
        tmp_path / "mlflow.db",
        "create table runs (run_uuid, name, status, start_time, end_time, lifecycle_stage, experiment_id)",
        "create table experiments (experiment_id, name)",
        "create table metrics (run_uuid, key, value, timestamp, step, is_nan)",
        "create table params (run_uuid, key, value)",
        "create table tags (run_uuid, key, value)",
        "insert into runs values ('a', 'a', 'FINISHED', 1700000000000, null, 'active', 1)",
        "insert into metrics values ('a', 'loss', 1.0, 1700000000000, 0, 0), ('a', 'loss', 'x', 1, 1, 0), "
        "('a', 'loss', null, null, null, 0), ('a', 'loss', 2.0, 1700000009000, 2, 0)",
    )
    for name, meta in (("b", "run_id: b\nstatus: 3\nstart_time: 1700000000000\n"), ("c", "run_id: [")):
        folder = tmp_path / "mlruns" / "0" / name
        (folder / "metrics").mkdir(parents=True)
        (folder / "meta.yaml").write_text(meta)
        lines = ("1700000000000 1 0", "1 x 1", f"1 1 {10**30}", "1700000009000 2 2", "17000")
        (folder / "metrics" / "loss").write_text("\n".join(lines))
    found = import_runs(tmp_path, tmp_path / "out")
    assert [(each.where, each.reason.split(" (")[0]) for each in found.problems] == [
        ("mlruns/0/c", "meta.yaml: not readable")
    ]
    for name, damaged in (("a", 2), ("b", 3)):
        run = by_name(tmp_path / "out")[name]
        assert run.history.to_dict("list") == {"step": [0, 2], "loss": [1, 2]}
        assert f"metric: loss: {damaged} values are damaged, and left out" in found.reports[run.id]
        assert (run.run["created"], run.run["ended"]) == ("2023-11-14T22:13:20Z", "2023-11-14T22:13:29Z")


def test_damaged_rows_of_trackio_are_counted_and_no_run_is_lost_over_its_clock(tmp_path: Path) -> None:
    database(
        tmp_path / "p.db",
        "create table metrics (id integer primary key, timestamp text, run_name text, step integer, metrics text)",
        "insert into metrics (timestamp, run_name, step, metrics) values ('soon', 'a', 0, '{\"loss\": 1}'), "
        "(null, 'a', 1, null), (null, 'a', 2, '{\"loss'), (null, null, 3, '{\"loss\": 4}')",
    )
    found = import_runs(tmp_path, tmp_path / "out")
    assert found.problems == []
    runs = by_name(tmp_path / "out")
    assert runs["a"].history["step"].tolist() == [0, 1, 2]
    assert "metrics: 2 rows are damaged, and left out" in found.reports[runs["a"].id]
    assert sorted(float(run.history["loss"].max()) for run in runs.values()) == [1.0, 4.0]


def test_what_w_and_b_s_reader_could_not_read_is_said(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    (path,) = (FIXTURES / "wandb-0.31").rglob("*first*.wandb")
    data = path.read_bytes()
    damaged = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 255]) + data[len(data) // 2 + 1 :]
    for name, part in (("damaged", damaged), ("longer", data + b"\1" * 300)):
        (tmp_path / f"run-{name}.wandb").write_bytes(part)
        found = import_runs(tmp_path / f"run-{name}.wandb", tmp_path / name)
        assert "file: W&B's reader" in str(found.reports), name
    (run,) = load_runs([tmp_path / "longer"]).records
    assert (run.status, len(run.history)) == ("finished", len(TOLD["wandb-0.31"]["runs"]["first"]["train/loss"]))


def test_each_record_is_there_as_soon_as_it_is_read(tmp_path: Path) -> None:
    for at in range(4):
        (tmp_path / f"{at}.csv").write_text(f"step,loss\n0,{at}\n")

    def stop(seen: Pulled, total: int) -> None:
        assert total == 4
        if len(seen.fetched) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_runs(tmp_path, tmp_path / "out", stop)
    assert len(load_runs([tmp_path / "out"]).records) == 2
    again = import_runs(tmp_path, tmp_path / "out")
    assert (again.unchanged, len(again.fetched)) == (2, 2)


def test_logs_that_begin_alike_are_runs_of_their_own_also_when_one_grows(tmp_path: Path) -> None:
    paths = [tmp_path / "logs" / side / "x" / "y" / "metrics.csv" for side in "ab"]
    for at, path in enumerate(paths):
        path.parent.mkdir(parents=True)
        path.write_text(f"step,loss\n0,1\n1,{at}\n")
    assert len(import_runs(tmp_path / "logs", tmp_path / "out").fetched) == 2
    with open(paths[1], "a") as file:
        file.write("2,9\n")
    found = import_runs(tmp_path / "logs", tmp_path / "out")
    assert (found.unchanged, len(found.fetched)) == (1, 1)
    assert sorted(len(run.history) for run in load_runs([tmp_path / "out"]).records) == [2, 3]


def test_no_absolute_path_and_no_secret_is_published(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    row = {
        "step": 0,
        "loss": 1,
        "config": {"hf_token": "hf_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789", "data": str(folder / "x.bin")},
    }
    (folder / "log.jsonl").write_text(json.dumps(row) + "\n")
    import_runs(folder, tmp_path / "out")
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert b"hf_AbCd" not in written
    assert str(tmp_path).encode() not in written
    (run,) = load_runs([tmp_path / "out"]).records
    assert run.config.foreign["data"] == "x.bin"


def test_name_place_summary_and_surroundings_of_a_run_are_kept_and_shown(tmp_path: Path, capsys: Any) -> None:
    """Names in other scripts, a value that only the summary has, commit, Python and system, an address, no seed."""
    surroundings = {"python": "3.12.1", "system": "linux", "commit": "4be1" * 10}
    address = "gs://bucket/tokens/part.parquet"
    given = described(
        "W&B", "uni00000", "基线模型", "проект", config={"lr": 0.1, "shards": address},
        environment=surroundings,
    )  # fmt: skip
    given["summary"] = {"best/accuracy": 0.5}
    found = Pulled("x")
    assert found.add(tmp_path, given, [{"_step": 0, "train/accuracy": 0.25}]), found.problems
    (run,) = load_runs([tmp_path]).records
    assert run.run["title"] == "基线模型"
    assert re.fullmatch("[0-9a-f]{6}-[0-9a-f]{8}", run.id), "no letter of it is one of an id"
    assert run.run["environment"] == surroundings
    assert run.run["summary"] == {"best/accuracy": 0.5}
    assert run.config.foreign == {"shards": address}
    assert run.history.to_dict("list") == {"step": [0], "train/accuracy": [0.25]}
    assert values(run)["seed"] is None, "a seed that nobody stated is none, not 0"
    assert ExperimentDataLoader([tmp_path]).memo(site_labels)[run.arm] == "基线模型"
    assert main(["runs", "show", run.id, "--runs", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert [each for each in ("基线模型", "0.5", "3.12.1", "4be1" * 10) if each not in shown] == []


def test_two_thousand_keys_of_a_config_are_counted_and_the_rest_folded(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "metrics.csv").write_text("step,val_loss\n0,1\n")
    (folder / "config.json").write_text(json.dumps({f"section.key_{at}": at for at in range(2000)}))
    found = import_runs(folder, tmp_path / "out")
    ((*_, line),) = ([line for line in lines if "config: kept under" in line] for lines in found.reports.values())
    assert line.endswith(" and 1,970 more")
    (run,) = load_runs([tmp_path / "out"]).records
    assert run.config.foreign == {f"section.key_{at}": at for at in range(2000)}


# Names.


def test_record_understands_the_names_that_import_understands(tmp_path: Path) -> None:
    """cases/runs/nanogpt_names.py"""
    with record(tmp_path, name="gpt", config={"learning_rate": 1e-3, "n_layer": 4, "max_iters": 20}) as run:
        for step in range(20):
            run.log(step, **{"train/loss": 4 - step / 10, "val/loss": 4.1 - step / 10})
        run.finish({"val/loss": 2.2})
    (found,) = load_runs([tmp_path]).records
    assert (found.config.optimizer.learning_rate, found.config.model.layers, found.config.max_steps) == (1e-3, 4, 20)
    assert found.config.foreign == {}
    assert found.history.columns.tolist() == ["step", "loss", "val_loss"]
    assert verify([tmp_path])[1] == []
    row = ExperimentDataLoader([tmp_path]).runs.iloc[0]
    assert (row["learning_rate"], row["final_val_loss"], row["max_steps"]) == (1e-3, pytest.approx(2.2), 20)


def site(tmp_path: Path, text: str) -> Path:
    """A site's folder of records, with the file of its names."""
    (tmp_path / "altgrad.yaml").write_text(text)
    return tmp_path / "experiments" / "runs"


def test_a_site_names_its_metrics_its_seed_and_what_makes_an_arm(tmp_path: Path) -> None:
    runs = site(
        tmp_path, "metrics: {val_loss: score, accuracy: {names: [acc], better: higher}}\nseed: rng\narms: [width]\n"
    )
    for rng in (1, 2):
        with record(runs, name="a", config={"width": 8, "rng": rng, "lr": 0.1 * rng, "machine": rng}) as run:
            run.log(0, score=1.0, acc=0.5)
            run.finish()
    found = load_runs([runs]).records
    assert [record.config.seed for record in sorted(found, key=lambda record: record.config.seed)] == [1, 2]
    assert len({record.arm for record in found}) == 1
    assert found[0].history.columns.tolist() == ["step", "val_loss", "accuracy"]
    assert found[0].names.metric("accuracy").better == "higher"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("los: x", "unknown key 'los'; did you mean 'loss'?"),
        ("metrics: {a: {better: more}}", "metrics.a.better"),
        ("metrics: {a: x, b: x}", "'x' is a name of a and of b"),
        ("metrics: {step: x}", "step is no metric"),
        ("- a", "give keys and values, not a list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_mistake_in_a_site_s_names_is_one_line(tmp_path: Path, text: str, reason: str) -> None:
    runs = site(tmp_path, text)
    runs.mkdir(parents=True)
    with pytest.raises(UsageError) as error:
        load_runs([runs])
    assert reason in str(error.value)
    assert str(error.value).startswith("altgrad.yaml: ")
    assert "\n" not in str(error.value)


# Arms.


def logged(root: Path, name: str, seed: int | None = None, **config: Any) -> None:
    with record(root, name=name, config=config, seed=seed) as run:
        run.log(0, val_loss=1.0)
        run.finish()


def test_runs_are_pooled_only_with_a_config_and_distinct_seeds(tmp_path: Path) -> None:
    for seed in (0, 1):
        logged(tmp_path, "stated", seed, width=1)
        logged(tmp_path, "no-config", seed)
        logged(tmp_path, f"no-seed-{seed}", None, width=2)
        logged(tmp_path, f"one-seed-{seed}", 5, width=3)
    records = load_runs([tmp_path]).records
    arms = {
        name: {r.arm for r in records if r.id.startswith(name)}
        for name in ("stated", "no-config", "no-seed", "one-seed")
    }
    assert {name: len(found) for name, found in arms.items()} == {
        "stated": 1,
        "no-config": 2,
        "no-seed": 2,
        "one-seed": 2,
    }


def test_a_seed_that_is_not_stated_is_none_and_pairs_no_runs(tmp_path: Path) -> None:
    wide = dict.fromkeys(("weight", "activation", "grad_output"), "fp32")
    logged(tmp_path, "base", width=1, quantize=wide)
    logged(tmp_path, "rounded", width=1, quantize=wide | {"weight": "e4m3"})
    loader = ExperimentDataLoader([tmp_path])
    assert loader.runs["seed"].isna().all()
    assert [run_id.count("-") for run_id in loader.runs["run_id"]] == [1, 1], "a name and a hash, no seed between"
    (comparison,) = FormatComparator(loader, foreign=True).comparisons
    assert comparison.table[["format", "n_pairs"]].to_numpy().tolist() == [["E4M3", 0]]
    for page in arm_pages(loader):
        assert not any(slot in str(page.blocks) for slot in ("paired by seed: ", "-s0-", "<NA>"))
        for file in page.downloads:
            if file.name.endswith("curves.json"):
                assert [run["seed"] for run in json.loads(file.content)["runs"]] == [None]


def test_keys_that_say_which_run_it_is_make_no_arm(tmp_path: Path) -> None:
    for seed in (0, 1):
        logged(tmp_path, "a", seed, width=1, output_dir=f"out-{seed}", **{"wandb.run_name": f"name {seed}"})
    records = load_runs([tmp_path]).records
    assert len({record.arm for record in records}) == 1
    assert records[0].run["config"]["foreign"].keys() == {"width", "output_dir", "wandb.run_name"}


def test_a_key_is_one_for_all_runs_of_a_site_whatever_their_values(tmp_path: Path) -> None:
    """Under AltGrad's name where it knows all values, else under the name that the loops gave it."""
    for at, (key, rule, way) in enumerate(
        (("optimizer", "adamw", "cosine"), ("optimizer", "sgd", "linear"), ("optim", "lion", "cosine"))
    ):
        logged(tmp_path, "run", at, learning_rate=0.1, scheduler=way, **{key: rule})
        found = [record.config for record in load_runs([tmp_path]).records]
        stated = [config.states("optimizer.step_rule") for config in found]
        assert stated == ([False] * len(found) if at else [True])
    assert sorted((each.foreign or {})["optimizer"] for each in found) == ["adamw", "lion", "sgd"]
    assert sorted((each.foreign or {})["scheduler"] for each in found) == ["cosine", "cosine", "linear"]
    assert all(each.optimizer.learning_rate == 0.1 and not each.states("schedule") for each in found)
    loader = ExperimentDataLoader([tmp_path])
    assert sum("optimizer=adamw, scheduler=cosine" in name for name in loader.memo(site_labels).values()) == 1
    assert swept_columns(loader, loader.runs["arm"])["optimizer"].count("adamw") == 1


def test_names_of_arms_have_what_was_swept_and_not_what_follows_from_it(tmp_path: Path) -> None:
    """Nor what is the same in all runs but one whose log states nothing or less; two arms have names of their own."""
    for rule, rate in (("adamw", 0.003), ("sgd", 0.1), ("rmsprop", 0.003)):
        for size in (16, 128):
            logged(tmp_path, "run", 0, optimizer=rule, learning_rate=rate, batch_size=size, depth=2, hidden=64)
    swept = {f"optimizer={rule}, batch_size={size}" for rule in ("adamw", "sgd", "rmsprop") for size in (16, 128)}
    loader = ExperimentDataLoader([tmp_path])
    assert {*loader.memo(site_labels).values()} == {f"run; {name}" for name in swept}
    assert [*swept_columns(loader, loader.runs["arm"])] == ["optimizer", "batch_size"]
    logged(tmp_path, "run", 0, optimizer="lion", learning_rate=0.003, batch_size=16)
    logged(tmp_path, "bare")
    names = {*ExperimentDataLoader([tmp_path]).memo(site_labels).values()}
    assert {name.removeprefix("run; ") for name in names} == {*swept, "optimizer=lion, batch_size=16", "bare"}


def test_arms_are_called_as_their_runs_with_the_keys_that_differ(tmp_path: Path) -> None:
    """A sweep of max_learning_rate whose runs have names of their own."""
    for at, rate in enumerate((1e-3, 3e-3)):
        for seed in (0, 1):
            logged(tmp_path, f"try-{at}", seed, max_learning_rate=rate, n_layer=2, notes_of=f"{'same'}")
    loader = ExperimentDataLoader([tmp_path])
    assert sorted(loader.memo(site_labels).values()) == ["try-0; learning_rate=0.001", "try-1; learning_rate=0.003"]
    assert sorted(loader.runs["learning_rate"].unique()) == [1e-3, 3e-3]


def test_records_are_copied_as_they_are_and_become_a_site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, site = tmp_path / "runs", tmp_path / "site"
    with record(runs, name="mine", config={"width": 3, **recipe_keys("nvfp4")}, seed=0) as run:
        run.log(0, loss=1.0)
        run.finish()
    (run.path / "checkpoints").mkdir()
    assert main(["new-site", str(site), "--from", str(runs)]) == 0
    assert "runs (records): 1 runs (1 fetched)" in capsys.readouterr().out
    copy = site / "experiments" / "runs" / run.run_id
    names = ("run.json", "history.parquet")
    assert [(copy / name).read_bytes() for name in names] == [(run.path / name).read_bytes() for name in names]
    assert not (copy / "checkpoints").exists()
    assert import_runs(runs, copy.parent).unchanged == 1
    assert list(site_labels(ExperimentDataLoader([copy.parent])).values()) == ["mine, recipe nvfp4"]


def test_parts_of_several_studies_and_half_copies_are_imported_whole(tmp_path: Path) -> None:
    """Each study's part is called part-001, and its canaries are no log; a copy that was killed is made again."""
    runs, recorded, out = tmp_path / "runs", tmp_path / "recorded", tmp_path / "out"
    for seed, study in enumerate(("formats", "ladder")):
        write_run(runs, run_config("e4m3", seed=seed))
        pack_study([load_runs([runs]).records[seed]], recorded / study / "part-001")
        (recorded / study / "part-001" / "canaries.jsonl").write_text('{"digest": "0"}\n')
    (out / "formats" / "part-001").mkdir(parents=True)
    found = import_runs(recorded / "formats", out)
    assert (found.problems, found.listed, len(found.fetched)) == ([], 1, 1)
    found = import_runs(recorded, out)
    assert (found.problems, found.listed, found.unchanged, len(found.fetched)) == ([], 2, 1, 1)
    assert [one.id for one in load_runs([out]).records] == [one.id for one in load_runs([recorded]).records]
    other = tmp_path / "other" / "ladder" / "part-001"
    pack_study(load_runs([recorded / "formats"]).records, other)
    assert [each.where for each in import_runs(other, out).problems] == ["ladder/part-001"], "what is there is kept"
    assert len(load_runs([out]).records) == 2


def read_head(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def write_head(folder: Path, **more: Any) -> dict[str, Any]:
    (folder / "run.json").write_text(json.dumps(read_head(folder) | more))
    return read_head(folder)


def test_a_run_that_was_copied_as_it_ran_is_copied_again_at_its_end(tmp_path: Path) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    with record(runs, name="mine", config={"width": 3}, seed=0) as run:
        run.log(0, loss=1.0)
        assert "still being written" in import_runs(runs, out).reports[run.run_id][0]
        run.log(1, loss=0.5)
        run.finish()
    assert import_runs(runs, out).fetched == [run.run_id]
    (copy,) = load_runs([out]).records
    assert (copy.status, copy.history["step"].tolist()) == ("finished", [0, 1])
    assert import_runs(runs, out).unchanged == 1
    assert not any((out / ".pull").rglob("*.json"))
    other = write_head(runs / run.run_id, created="2020-01-01T00:00:00+00:00")
    assert [each.where for each in import_runs(runs, out).problems] == [run.run_id], (
        "another attempt: that here is kept"
    )
    assert read_head(out / run.run_id) != other


def test_a_record_that_cannot_be_copied_is_a_line_and_the_others_are(tmp_path: Path) -> None:
    for name in ("bad", "good"):
        logged(tmp_path / "runs", name, width=1)
    bad = next((tmp_path / "runs").glob("bad-*"))
    os.mkfifo(bad / "pipe")
    found = import_runs(tmp_path / "runs", tmp_path / "out")
    assert [each.where for each in found.problems] == [bad.name]
    assert "is a named pipe" in found.problems[0].reason
    assert str(tmp_path) not in found.problems[0].reason
    assert [path.name for path in (tmp_path / "out").glob("*-*")] == found.fetched


def test_a_folder_that_cannot_be_read_beside_logs_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logs" / "closed").mkdir(parents=True)
    (tmp_path / "logs" / "a.csv").write_text("step,loss\n0,1\n")
    for module, name in ((os, "scandir"), (os, "listdir")):
        real = getattr(module, name)

        def refuse(path: Any = ".", real: Any = real) -> Any:
            if str(path).endswith("closed"):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        monkeypatch.setattr(module, name, refuse)
    found = import_runs(tmp_path / "logs", tmp_path / "out")
    assert [(each.where, each.reason) for each in found.problems] == [("closed", "cannot be read (Permission denied)")]
    assert len(found.fetched) == 1


def test_every_reader_names_a_folder_and_a_file_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("closed", "good", "half"):
        logged(tmp_path, name, width=1)
    closed, good, half = sorted(tmp_path.glob("*-*"))
    real, listed = Path.stat, Path.iterdir

    def stat(path: Path, **how: Any) -> os.stat_result:
        if {closed, half}.isdisjoint(path.parents):
            return real(path, **how)
        raise PermissionError(13, "Permission denied", str(path))

    def iterdir(path: Path) -> Any:
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", iterdir)  # drwx--x--x; the other is drw-r--r--, its files cannot be asked for
        patched.setattr(Path, "stat", stat)
        for problems in (load_runs([tmp_path]).problems, verify([tmp_path]).problems, read_histories([tmp_path])[1]):
            assert sorted(each.where for each in problems) == [closed.name, half.name]
            assert all("cannot be read (Permission denied)" in each.reason for each in problems)
        changed = sources_fingerprint([tmp_path])
        assert [run.id for run in load_runs([tmp_path]).records] == [good.name]
    assert changed != sources_fingerprint([tmp_path])
