"""A record survives a kill, says how it ended, and a damaged one never hides the others."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from records import DATA, config, without_proofs, write_matrix, write_run

from altgrad.analysis import ExperimentDataLoader, FailureAnalyzer
from altgrad.analysis.loader import final_val_loss, stall_ratio
from altgrad.config import UsageError
from altgrad.runs import Failure, NothingToResume, RunExists, RunWriter, load_runs, pack_study, read_run
from altgrad.runs import writer as run_writer
from altgrad.runs.tracking import Tracker

ROOT = Path(__file__).parents[1]


def only(path: Path):
    found = load_runs([path])
    assert len(found.records) == 1, found.problems
    return found.records[0]


def test_a_finished_run_reads_back_as_it_was_logged(tmp_path: Path) -> None:
    cfg = config("e4m3", seed=3)
    with RunWriter.create(tmp_path, cfg, data_fingerprint=DATA, environment={"device": "cpu"}) as writer:
        writer.log(0, loss=1.5, grad_norm=math.inf)
        writer.log(1, loss=math.nan, val_loss=1.25)
        writer.log_layers([(1, "head", "head", "weight", "amax", 2.0)])
        writer.event("warning", 1, detail="x")
        writer.finish({"final_val_loss": 1.25, "odd": math.nan})
    record = only(tmp_path)
    assert record.status == "finished"
    assert record.config == cfg
    assert record.history["step"].tolist() == [0, 1]
    assert record.history["grad_norm"].iloc[0] == math.inf
    assert math.isnan(record.history["loss"].iloc[1])
    assert record.layers.to_dict("records") == [
        {"step": 1, "layer": "head", "layer_type": "head", "operand": "weight", "statistic": "amax", "value": 2.0}
    ]
    assert record.run["events"] == [{"kind": "warning", "step": 1, "detail": "x"}]
    assert record.run["summary"] == {"final_val_loss": 1.25, "odd": None}
    assert sorted(path.name for path in writer.path.iterdir()) == [
        "history.parquet",
        "layers.parquet",
        "lock",
        "run.json",
    ]


def test_the_id_depends_on_what_decides_the_result_and_the_arm_not_on_the_seed(tmp_path: Path) -> None:
    first = only(write_run(tmp_path / "a", config("e4m3", seed=0)))
    other_seed = only(write_run(tmp_path / "b", config("e4m3", seed=1)))
    renamed = only(write_run(tmp_path / "c", config("e4m3", seed=0, name="mine", notes="x")))
    other_data = only(write_run(tmp_path / "d", config("e4m3", seed=0), data={"name": "licenses", "sha256": "cd" * 32}))
    assert first.arm == other_seed.arm == renamed.arm != other_data.arm
    assert len({first.id, other_seed.id, renamed.id, other_data.id}) == 4
    assert first.id.startswith("e4m3-wag-adamw-s0-")


def test_a_finished_run_is_not_run_again_and_an_unfinished_one_is_kept_aside(tmp_path: Path) -> None:
    write_run(tmp_path, config("e4m3"))
    with pytest.raises(RunExists, match="already finished"):
        write_run(tmp_path, config("e4m3"))
    crashed = write_run(tmp_path, config("e5m2"), status="crashed")
    again = write_run(tmp_path, config("e5m2"))
    assert again == crashed
    assert read_run(again).status == "finished"
    assert (tmp_path / f"{again.name}.1.old" / "history.jsonl").exists()
    assert len(load_runs([tmp_path]).records) == 2


def test_a_second_writer_of_a_running_run_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path, config("e4m3"), status="running")
    assert read_run(path).status == "running"
    with pytest.raises(RunExists, match="another process"):
        write_run(tmp_path, config("e4m3"))


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (KeyboardInterrupt(), "interrupted", "stopped by Ctrl-C"),
        (SystemExit(143), "interrupted", "stopped by SIGTERM"),
        (SystemExit("enough"), "interrupted", "stopped by exit enough"),
        (RuntimeError("boom"), "crashed", "RuntimeError: boom"),
    ],
)
def test_leaving_the_block_by_an_exception_is_recorded(
    tmp_path: Path, raised: BaseException, status: str, message: str
) -> None:
    def training() -> None:
        with RunWriter.create(tmp_path, config(), data_fingerprint=DATA, environment={}) as writer:
            writer.log(0, loss=1.0)
            raise raised

    with pytest.raises(type(raised)):
        training()
    record = only(tmp_path)
    assert record.status == status
    assert record.run["message"] == message
    assert len(record.history) == 1


@pytest.mark.parametrize("status", ["crashed", "interrupted"])
def test_a_resumed_record_loses_what_came_after_the_step_and_nothing_else(tmp_path: Path, status: str) -> None:
    given = {"data_fingerprint": DATA, "environment": {"device": "cpu"}}
    writer = RunWriter.create(tmp_path, config(), **given)
    rows = [
        {"step": 1, "tokens": 8, "loss": math.inf},
        {"step": 2, "tokens": 16, "loss": math.nan, "val_loss": 1 / 3},
        {"step": 3, "tokens": 24, "loss": 1.0},
    ]
    for row in rows:
        writer.log(**row)  # type: ignore[arg-type]
        writer.log_layers([(row["step"], "head", "head", "weight", "amax", 0.1)])  # type: ignore[list-item]
        writer.event("scale", int(row["step"]), layer="head", old=1.0, new=2.0)
    if status == "interrupted":  # tables closed as Parquet
        writer.__exit__(None, None, None)
    else:  # killed: tables open, one with a row cut short
        writer._release()
        with open(writer.path / "history.jsonl", "ab") as file:
            file.write(b'{"step": 4, "lo')
    moved = {"data_fingerprint": DATA, "environment": {"device": "cuda"}}
    with RunWriter.resume(tmp_path, config(), **moved, find=lambda folder: (2, 5.0)) as writer:
        assert read_run(writer.path).status == "running"
        assert read_run(writer.path).history["step"].tolist() == [1, 2]
        writer.log(3, tokens=24, loss=2.0, val_loss=0.5)
        writer.finish({"val_loss": 0.5})
    record = only(tmp_path)
    assert record.history["loss"].tolist()[0] == math.inf
    assert math.isnan(record.history["loss"][1])
    assert record.history["loss"][2] == 2.0
    assert math.isnan(record.history["val_loss"][0])
    assert record.history["val_loss"][1] == 1 / 3
    assert record.layers["step"].tolist() == [1, 2]
    kinds = [(event["kind"], event["step"]) for event in record.run["events"]]
    assert kinds == [("scale", 1), ("scale", 2), ("resumed", 2)]
    assert record.run["events"][-1]["environment"] == {"device": "cuda"}
    assert record.run["environment"] == {"device": "cpu"}
    assert record.run["seconds"] >= 5


def test_a_resume_that_finds_nothing_leaves_the_record_and_its_lock(tmp_path: Path) -> None:
    given = {"data_fingerprint": DATA, "environment": {}}
    path = write_run(tmp_path, config(), status="crashed")
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def nothing(folder: Path) -> tuple[int, float]:
        raise NothingToResume("no checkpoint")

    with pytest.raises(NothingToResume):
        RunWriter.resume(tmp_path, config(), **given, find=nothing)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    with pytest.raises(NothingToResume, match="no record to resume"):
        RunWriter.resume(tmp_path / "elsewhere", config(), **given, find=nothing)
    (path / "run.json").write_text("{")
    with pytest.raises(UsageError, match=r"run\.json: damaged"):
        RunWriter.resume(tmp_path, config(), **given, find=nothing)
    assert write_run(tmp_path, config()).exists(), "the lock is free"


def test_a_running_record_is_not_resumed(tmp_path: Path) -> None:
    write_run(tmp_path, config(), status="running")
    with pytest.raises(RunExists, match="another process"):
        RunWriter.resume(tmp_path, config(), data_fingerprint=DATA, environment={}, find=lambda folder: (0, 0.0))


def test_a_killed_run_is_crashed_and_keeps_every_acknowledged_row(tmp_path: Path) -> None:
    script = f"""
        import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
        from pathlib import Path
        from records import *
        writer = RunWriter.create(Path({str(tmp_path)!r}), config("e4m3"), data_fingerprint=DATA, environment={{}})
        for step in range(10**9):
            writer.log(step, loss=1.0)
            print(step, flush=True)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(200):
        acknowledged = int(process.stdout.readline())
    assert only(tmp_path).status == "running"
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split()
    process.stdout.close()
    process.wait()
    acknowledged = int(rest[-1]) if rest and rest[-1].isdigit() else acknowledged
    record = only(tmp_path)
    assert record.status == "crashed"
    assert record.history["step"].tolist() == list(range(len(record.history)))
    assert len(record.history) >= acknowledged


def test_a_cut_last_line_is_dropped_and_a_bad_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = write_run(tmp_path, config("e4m3"), status="crashed")
    with open(path / "history.jsonl", "ab") as file:
        file.write(b'{"step": 11, "los')
    assert only(tmp_path).history["step"].max() == 10
    lines = (path / "history.jsonl").read_bytes().splitlines()
    for damaged in (b"garbage", b"[" * 100_000):
        lines[3] = damaged
        (path / "history.jsonl").write_bytes(b"\n".join(lines))
        problems = load_runs([tmp_path]).problems
        assert len(problems) == 1
        assert "line 4 is not a row" in problems[0].reason
    lines[3] = b'{"step": 1%s}' % (b"0" * 30)
    (path / "history.jsonl").write_bytes(b"\n".join(lines))
    assert "a value is not a number" in load_runs([tmp_path]).problems[0].reason


@pytest.mark.parametrize("after", ["history.jsonl", "layers.jsonl"])
def test_a_signal_while_a_finished_record_is_tidied_leaves_it_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    original = Path.unlink

    def stopped(path: Path, missing_ok: bool = False) -> None:
        original(path, missing_ok)
        if path.name == after:
            raise SystemExit(143)

    monkeypatch.setattr(Path, "unlink", stopped)
    writer = RunWriter.create(tmp_path, config("e4m3"), data_fingerprint=DATA, environment={})
    writer.log(1, val_loss=1.0)
    with pytest.raises(SystemExit) as stop:
        writer.finish({})
    writer.explain(Failure(("unknown",), 1), "stopped")  # as the trainer does
    writer.__exit__(stop.type, stop.value, stop.tb)
    assert only(tmp_path).status == "finished"
    assert not (writer.path / "failure.md").exists()
    assert not run_writer.is_locked(writer.path)


BROKEN = {"kinds": ["nan_loss"], "step": 1, "tensor": None, "phase": None, "message": ""}
ORIGIN = {"entity": "team", "project": "p", "id": "a", "pulled": "2026-01-01T00:00:00Z"}
FIELDS = {
    "created not a time": ({"created": "yesterday"}, "created: it is not an ISO 8601 time"),
    "ended not a time": ({"ended": "x"}, "ended: it is not an ISO 8601 time"),
    "ended beyond time": ({"ended": "9999-12-31T23:00:00-14:00"}, "ended: it is not an ISO 8601 time"),
    "ended a number": ({"ended": 5}, "ended: Input should be an instance of str (given '5')"),
    "kinds a number": ({"failure": BROKEN | {"kinds": 5}}, "failure.kinds: Input should be a valid tuple"),
    "kinds unknown": ({"failure": BROKEN | {"kinds": ["sadness"]}}, "failure.kinds.0: must be one of nan_loss"),
    "failure step text": ({"failure": BROKEN | {"step": "abc"}}, "failure.step: Input should be a valid integer"),
    "failure step null": ({"failure": BROKEN | {"step": None}}, "failure.step: Input should be a valid integer"),
    "failure foreign key": ({"failure": BROKEN | {"more": 1}}, "failure.more: Unexpected keyword argument"),
    "data name a number": ({"data": DATA | {"name": 3}}, "data.name: Input should be an instance of str"),
    "url a list": ({"wandb_url": []}, "wandb_url: Input should be an instance of str"),
    "origin a list": ({"origin": []}, "origin: Input should be"),
    "origin of nowhere": ({"origin": {}}, "origin.entity: Field required (and 3 more); restore the file, or pull"),
    "origin at no time": ({"origin": ORIGIN | {"pulled": "today"}}, "origin.pulled: it is not an ISO"),
    "origin report a number": ({"origin": ORIGIN | {"report": 3}}, "origin.report: Input should be a valid list"),
    "events a dict": ({"events": {}}, "events: Input should be a valid list"),
}


def damage(path: Path, kind: str) -> None:
    run = json.loads((path / "run.json").read_text())
    if kind == "truncated json":
        (path / "run.json").write_text(json.dumps(run)[:100])
    elif kind == "no json":
        (path / "run.json").unlink()
    elif kind == "a folder":
        (path / "run.json").unlink()
        (path / "run.json").mkdir()
    elif kind == "not an object":
        (path / "run.json").write_text("[1]")
    elif kind == "future schema":
        (path / "run.json").write_text(json.dumps(run | {"schema": 99}))
    elif kind == "unknown status":
        (path / "run.json").write_text(json.dumps(run | {"status": "great"}))
    elif kind == "no data":
        (path / "run.json").write_text(json.dumps(run | {"data": {}}))
    elif kind == "foreign config key":
        run["config"]["surprise"] = 1
        (path / "run.json").write_text(json.dumps(run))
    elif kind == "unknown format":
        run["config"]["quantize"]["weight"] = "e9m9"
        (path / "run.json").write_text(json.dumps(run))
    elif kind == "truncated parquet":
        whole = (path / "history.parquet").read_bytes()
        (path / "history.parquet").write_bytes(whole[: len(whole) // 2])
    elif kind == "no loss":
        pd.DataFrame({"step": [0, 1]}).to_parquet(path / "history.parquet")
    elif kind == "text loss":
        pd.DataFrame({"step": [0, 1], "val_loss": ["a", "b"]}).to_parquet(path / "history.parquet")
    elif kind == "text step":
        pd.DataFrame({"step": ["a", "b"], "val_loss": [1.0, 2.0]}).to_parquet(path / "history.parquet")
    elif kind == "text layers":
        layers = pd.read_parquet(path / "layers.parquet").astype({"value": "str"})
        layers.loc[0, "value"] = "high"
        layers.to_parquet(path / "layers.parquet")
    elif kind in ("NaN", "1e999"):
        text = json.dumps(run | {"summary": {"best": 1.5}})
        (path / "run.json").write_text(text.replace("1.5", kind))
    elif kind == "nested":
        (path / "run.json").write_text("[" * 100_000)
    elif kind == "nested in it":
        (path / "run.json").write_text(json.dumps(run)[:-1] + ', "more": ' + "[" * 60 + "]" * 60 + "}")
    elif kind in FIELDS:
        (path / "run.json").write_text(json.dumps(run | FIELDS[kind][0]))
    elif kind == "no step":
        pd.DataFrame({"val_loss": [1.0]}).to_parquet(path / "history.parquet")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("truncated json", "run.json: not readable JSON"),
        ("no json", "run.json: missing"),
        ("a folder", "Is a directory: 'run.json'"),
        ("not an object", "a record is a JSON object"),
        ("future schema", "schema 99 is newer"),
        ("unknown status", "status: must be one of running, finished"),
        ("no data", "data.sha256: Field required"),
        ("foreign config key", "unknown key 'surprise'"),
        ("unknown format", "unknown format 'e9m9'"),
        ("truncated parquet", "history: damaged"),
        ("no loss", "'val_loss' is missing"),
        ("text loss", "a value is not a number"),
        ("no step", "column 'step' is missing"),
        ("text step", "a value is not a number"),
        ("text layers", "a value is not a number"),
        ("nested", "not readable JSON"),
        ("nested in it", "nested too deeply"),
        ("NaN", "a number is NaN or infinite"),
        ("1e999", "a number is NaN or infinite"),
        *((kind, expected) for kind, (_, expected) in FIELDS.items()),
    ],
)
def test_a_damaged_record_is_named_and_the_others_are_read(tmp_path: Path, kind: str, expected: str) -> None:
    good = write_run(tmp_path, config("fp32"))
    bad = without_proofs(write_run(tmp_path, config("e4m3")))
    damage(bad, kind)
    found = load_runs([tmp_path])
    assert [record.id for record in found.records] == [good.name]
    assert len(found.problems) == 1
    assert expected in found.problems[0].reason
    assert bad.name in found.problems[0].where
    assert "\n" not in found.problems[0].reason
    assert str(tmp_path) not in found.problems[0].reason


def test_half_a_character_is_shown_as_none_in_every_table(tmp_path: Path) -> None:
    warning = {"kind": "warning", "what": "overflow", "step": 3, "tensor": "t", "phase": "forward", "value": 1.0}
    path = write_run(tmp_path, config("e4m3"), events=[warning | {"message": "cut"}], url="https://cut")
    run = (path / "run.json").read_text()
    (path / "run.json").write_text(run.replace('cut"', 'cut \\ud83d"'))
    loader = ExperimentDataLoader([tmp_path])
    assert loader.runs["wandb_url"].tolist() == ["https://cut \ufffd"]
    assert loader.records[path.name].run["events"][0]["message"] == "cut \ufffd"
    assert FailureAnalyzer(loader).warnings["message"].tolist() == ["cut \ufffd"]


def test_a_lock_that_cannot_be_opened_is_held_by_nobody(tmp_path: Path) -> None:
    path = write_run(tmp_path, config("fp32"))
    (path / "lock").unlink(missing_ok=True)
    (path / "lock").mkdir()
    assert [record.status for record in load_runs([tmp_path]).records] == ["finished"]


def test_a_packed_study_reads_back_with_the_same_losses_and_statuses(tmp_path: Path) -> None:
    write_matrix(tmp_path / "runs", seeds=2)
    write_run(tmp_path / "runs", config("e6m1"), status="failed")
    write_run(tmp_path / "runs", config("e6m1", seed=1), status="crashed")
    whole = load_runs([tmp_path / "runs"])
    pack_study(whole.records, tmp_path / "packed" / "study", history_every=5, layers_every=60)
    packed = load_runs([tmp_path / "packed"])
    assert not packed.problems
    assert [record.id for record in packed.records] == [record.id for record in whole.records]
    for before, after in zip(whole.records, packed.records, strict=True):
        assert (before.status, before.arm, before.run["failure"]) == (after.status, after.arm, after.run["failure"])
        if "val_loss" in before.history:
            assert before.history["val_loss"].dropna().tolist() == after.history["val_loss"].dropna().tolist()
        assert set(after.history["step"]) <= set(before.history["step"])
        assert after.history["step"].max() == before.history["step"].max()


def test_a_packed_final_loss_keeps_every_digit(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", config("fp32", final_eval_characters=100_000), 2.0, final=1.0 + 2**-50)
    pack_study(load_runs([tmp_path / "runs"]).records, tmp_path / "packed" / "study")
    (record,) = load_runs([tmp_path / "packed"]).records
    assert final_val_loss(record) == 1.0 + 2**-50


def test_packing_twice_gives_the_same_bytes_and_a_running_run_is_refused(tmp_path: Path) -> None:
    write_matrix(tmp_path / "runs", seeds=1)
    records = load_runs([tmp_path / "runs"]).records
    for name in ("a", "b"):
        pack_study(records, tmp_path / name)
    for file in ("runs", "history", "layers"):
        assert (tmp_path / "a" / f"{file}.parquet").read_bytes() == (tmp_path / "b" / f"{file}.parquet").read_bytes()
    running = read_run(write_run(tmp_path / "more", config("e5m2"), status="running"))
    with pytest.raises(ValueError, match="still running"):
        pack_study([running], tmp_path / "c")


def test_a_damaged_packed_study_is_named_and_the_local_runs_are_read(tmp_path: Path) -> None:
    write_matrix(tmp_path / "runs", seeds=1)
    pack_study(load_runs([tmp_path / "runs"]).records, tmp_path / "recorded" / "study")
    (tmp_path / "recorded" / "study" / "history.parquet").write_bytes(b"PAR1 nonsense")
    found = load_runs([tmp_path / "recorded", tmp_path / "runs"])
    assert len(found.records) == 7
    assert [problem.where for problem in found.problems] == ["study"]


def filled(name: str, value: object, table: pa.Table) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array([value] * len(table)))


def shifted(table: pa.Table) -> pa.Table:
    return table.set_column(1, "run", table["run"].take([*range(1, len(table)), 0]))


@pytest.mark.parametrize(
    ("file", "edit", "reason"),
    [
        ("runs", shifted, "its record is of run"),
        ("history", partial(filled, "val_loss", None), "'val_loss' is missing"),
        ("layers", lambda table: table.drop_columns("value"), "no column value"),
        ("layers", lambda table: table.drop_columns("operand"), "no column operand"),
        ("layers", partial(filled, "operand", None), "a row without operand"),
    ],
)
def test_what_is_wrong_in_a_packed_study_is_named(
    tmp_path: Path, file: str, edit: Callable[[pa.Table], pa.Table], reason: str
) -> None:
    write_matrix(tmp_path / "runs", seeds=1)
    pack_study(load_runs([tmp_path / "runs"]).records, tmp_path / "study")
    path = without_proofs(tmp_path / "study") / f"{file}.parquet"
    pq.write_table(edit(pq.read_table(path)), path)
    found = load_runs([tmp_path / "study"])
    assert not found.records
    assert all(reason in problem.reason for problem in found.problems), found.problems


def test_a_number_that_float64_cannot_hold_is_rounded_and_hides_nothing(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", config())
    pack_study(load_runs([tmp_path / "runs"]).records, tmp_path / "study")
    path = without_proofs(tmp_path / "study") / "history.parquet"
    pq.write_table(filled("tokens", 2**60 + 1, pq.read_table(path)), path)
    assert set(only(tmp_path / "study").history["tokens"]) == {2.0**60}


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--out"):
        RunWriter.create(tmp_path / "file" / "runs", config(), data_fingerprint=DATA, environment={})


def test_a_failed_attempt_that_was_repeated_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "a", config("e4m3"), status="failed")
    write_run(tmp_path / "a", config("e4m3"))
    found = load_runs([tmp_path / "a"])
    assert [record.status for record in found.records] == ["finished"]
    assert [problem.reason for problem in found.problems] == ["an earlier attempt of a run that was repeated: failed"]
    write_run(tmp_path / "b", config("e5m2"), status="crashed")
    write_run(tmp_path / "c", config("e5m2"))
    found = load_runs([tmp_path / "b", tmp_path / "c"])
    assert [record.status for record in found.records] == ["finished"]
    assert "crashed, and recorded again as finished" in found.problems[0].reason


def test_a_packed_run_gives_the_same_findings(tmp_path: Path) -> None:
    path = write_run(tmp_path / "runs", config("e4m3"), status="crashed")
    rows = [
        {"step": step, "layer": "x", "layer_type": "mlp", "operand": "update", "statistic": name, "value": value}
        for step in (1, 7, 20)
        for name, value in (("flips", float(step)), ("updates", 40.0))
    ]
    (path / "layers.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    before = read_run(path)
    pack_study([before], tmp_path / "packed", layers_every=100)
    (after,) = load_runs([tmp_path / "packed"]).records
    assert stall_ratio(after) == stall_ratio(before) == pytest.approx(1 - 28 / 120)


def test_missing_sources_hold_no_runs(tmp_path: Path) -> None:
    assert load_runs([tmp_path / "nothing"]).records == ()


def test_failure_kinds_and_phases_are_checked() -> None:
    with pytest.raises(ValueError, match="must be one of nan_loss"):
        Failure(("sadness",), 1)
    with pytest.raises(ValueError, match="phase"):
        Failure(("nan_loss",), 1, phase="lunch")


def test_online_tracking_without_a_key_is_one_line_and_no_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the package wandb is not installed")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    lines: list[str] = []
    start = time.monotonic()
    tracker = Tracker.start(config(tracking="online"), {"id": "run", "arm": "arm"}, tmp_path, lines.append)
    tracker.log({"step": 0, "loss": 1.0})
    tracker.finish("finished")
    assert time.monotonic() - start < 3
    assert len(lines) == 1
    assert "no W&B API key" in lines[0]


def test_online_tracking_without_a_network_is_one_line_and_no_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the package wandb is not installed")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    lines: list[str] = []
    start = time.monotonic()
    Tracker.start(config(tracking="online"), {"id": "run", "arm": "arm"}, tmp_path, lines.append).finish("finished")
    assert time.monotonic() - start < 3
    assert len(lines) == 1
    assert "cannot be reached" in lines[0]


def test_offline_tracking_writes_wandbs_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the package wandb is not installed")
    script = f"""
        import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
        from pathlib import Path
        from records import config
        from altgrad.runs.tracking import Tracker
        tracker = Tracker.start(config(tracking="offline"), {{"id": "run", "arm": "arm"}}, Path({str(tmp_path)!r}))
        for step in range(3):
            tracker.log({{"step": step, "loss": 1.0}})
        tracker.finish("finished", {{"final_val_loss": float("nan")}})
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "warning:" not in done.stderr
    files = list(tmp_path.glob("wandb/offline-run-*/run-run.wandb"))
    assert len(files) == 1
    assert files[0].stat().st_size > 0
