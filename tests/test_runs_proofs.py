"""What proves a record: a table that was changed, shortened or swapped is named, and the other runs are read."""

from __future__ import annotations

import itertools
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from records import DATA, config, without_proofs, write_matrix, write_run

from altgrad.analysis import ExperimentDataLoader
from altgrad.analysis.machines import crossing
from altgrad.cli import main
from altgrad.config import UsageError
from altgrad.reports.machines import machine_blocks
from altgrad.runs import (
    RecordError,
    RunWriter,
    load_runs,
    pack_part,
    pack_study,
    read_histories,
    read_run,
    record,
    tables,
)
from altgrad.runs.canary import Canary, keep_canary
from altgrad.runs.processor import PROCESSOR, describe_processor, stated
from altgrad.runs.query import verify
from altgrad.runs.schema import LAYER_COLUMNS
from altgrad.runs.store import Kept
from altgrad.runs.tables import DIGESTS, read_coded

ROOT = Path(__file__).parents[1]
FLIPS = 300
SEED = 20261130


def flipped(data: bytes, generator: random.Random) -> bytes:
    """One bit the other way."""
    at = generator.randrange(8 * len(data))
    changed = bytearray(data)
    changed[at // 8] ^= 1 << at % 8
    return bytes(changed)


def test_a_flipped_bit_of_a_finished_history_is_told(tmp_path: Path) -> None:
    good, bad = write_run(tmp_path, config("fp32")), write_run(tmp_path, config("e4m3"))
    whole, generator, silent, changed = (bad / "history.parquet").read_bytes(), random.Random(SEED), 0, 0
    table = read_histories([tmp_path])[0]
    for _ in range(FLIPS):
        (bad / "history.parquet").write_bytes(flipped(whole, generator))
        found = load_runs([tmp_path])
        assert good.name in [one.id for one in found.records]
        assert all(f"{bad.name}/history: damaged (" in problem.reason for problem in found.problems)
        silent += len(found.records) == 2
        read, problems = read_histories([tmp_path])
        changed += not problems and not read.equals(table)
    assert silent == 0
    assert changed <= 1, "the fast reader does not see every bit, but values are as they were"


def test_a_flipped_bit_of_a_packed_table_is_told_and_other_studies_are_read(tmp_path: Path) -> None:
    write_matrix(tmp_path / "runs", seeds=1)
    first, *others = load_runs([tmp_path / "runs"]).records
    pack_study([first], tmp_path / "packed" / "one")
    pack_study(others, tmp_path / "packed" / "two")
    generator = random.Random(SEED)
    unseen = 0
    for name in ("runs.parquet", "history.parquet", "layers.parquet", DIGESTS):
        path = tmp_path / "packed" / "two" / name
        whole = path.read_bytes()
        for _ in range(40):
            path.write_bytes(flipped(whole, generator))
            found = load_runs([tmp_path / "packed"])
            if name == DIGESTS and not found.problems:  # a space, or the digest of a footer, which is not asked for
                unseen += 1
                continue
            assert [one.id for one in found.records] == [first.id]
            (problem,) = found.problems
            assert problem.where == "two"
            assert problem.reason.startswith("two: damaged packed study (")
            assert problem.reason.endswith("; restore the folder from version control")
        path.write_bytes(whole)
    assert unseen < 20
    assert len(load_runs([tmp_path / "packed"]).records) == 1 + len(others)


def shorten(path: Path) -> None:
    """The file without its last row, as a program writes it that knows how."""
    table = pq.read_table(path)
    pq.write_table(table.slice(0, len(table) - 1), path, compression="zstd")


def swap(one: Path, two: Path) -> None:
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)


CHANGES: dict[str, tuple[Callable[[Path, Path], Any], str, int]] = {
    "swapped": (swap, "it is the table of run ", 2),
    "shortened": (lambda path, _: shorten(path), "it has 20 rows, and 21 were recorded", 1),
    "of another run": (lambda path, other: shutil.copy(other, path), "it is the table of run ", 1),
    "cut": (lambda path, _: path.write_bytes(path.read_bytes()[:-100]), "Parquet magic bytes not found in footer", 1),
    "empty": (lambda path, _: path.write_bytes(b""), "", 1),
    "a byte more": (lambda path, _: path.write_bytes(path.read_bytes()[:4] + b"x" + path.read_bytes()[4:]), "", 1),
    "written again": (lambda path, _: pq.write_table(pq.read_table(path), path), "its bytes are not those", 1),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_table_that_is_not_the_recorded_one_is_named_and_the_other_runs_are_read(tmp_path: Path, kind: str) -> None:
    good = write_run(tmp_path, config("fp32"))
    bad, other = write_run(tmp_path, config("e4m3")), write_run(tmp_path, config("e5m2"))
    change, reason, count = CHANGES[kind]
    change(bad / "history.parquet", other / "history.parquet")
    damaged = sorted([bad.name, other.name][:count])
    loaded, checked = load_runs([tmp_path]), verify([tmp_path])
    bulk, few = (read_histories([tmp_path], columns) for columns in (None, ["val_loss"]))
    assert {one.id for one in loaded.records} == {good.name, bad.name, other.name} - {*damaged}
    for problems in (loaded.problems, checked.problems, bulk[1], few[1]):
        assert [problem.where for problem in problems] == damaged
        for problem in problems:
            assert problem.reason.startswith(f"{problem.where}/history: damaged (")
            assert "restore the file" in problem.reason
            assert reason in problem.reason
            assert "\n" not in problem.reason
            assert str(tmp_path) not in problem.reason
    if reason.endswith("run "):
        assert f"it is the table of run {other.name}" in "".join(each.reason for each in loaded.problems)
    for table in (bulk[0], few[0]):
        assert set(table["run_id"].to_pylist()) == {good.name, bad.name, other.name} - {*damaged}


@pytest.mark.parametrize("name", ["history", "layers"])
def test_a_table_that_was_recorded_and_is_gone_is_named(tmp_path: Path, name: str) -> None:
    path = write_run(tmp_path, config("e4m3"))
    (path / f"{name}.parquet").unlink()
    (problem,) = load_runs([tmp_path]).problems
    assert problem.reason == f"{path.name}/{name}: missing; restore the file or record the run again"


def test_tables_of_packed_studies_that_changed_places_are_named(tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        write_run(tmp_path / "runs" / name, config("e4m3", seed=seed))
        pack_study(load_runs([tmp_path / "runs" / name]).records, tmp_path / "packed" / name)
    swap(*(tmp_path / "packed" / name / "layers.parquet" for name in ("one", "two")))
    found = load_runs([tmp_path / "packed"])
    assert not found.records
    reason = "damaged packed study (layers.parquet: its bytes are not those that were recorded)"
    assert all(reason in problem.reason for problem in found.problems)
    assert len(found.problems) == 2


def test_records_of_earlier_versions_are_read_and_verify_says_that_nothing_proves_them(tmp_path: Path) -> None:
    write_matrix(tmp_path / "runs", seeds=1)
    whole = load_runs([tmp_path / "runs"]).records
    pack_study(whole, tmp_path / "packed")
    for folder in (*(tmp_path / "runs").iterdir(), tmp_path / "packed"):
        without_proofs(folder)
    for source in (tmp_path / "runs", tmp_path / "packed"):
        found = load_runs([source])
        assert ([one.id for one in found.records], found.problems) == ([one.id for one in whole], ())
        note = "nothing proves the tables of 7 records, which an earlier version wrote"
        assert verify([source]) == (7, [], [note])
    path = next((tmp_path / "runs").iterdir())
    run = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(run | {"tables": {"history": {"rows": "many"}}}))
    assert "tables.history" in load_runs([tmp_path / "runs"]).problems[0].reason


def test_the_command_notes_digests_once_and_never_of_a_changed_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_matrix(tmp_path / "runs", seeds=1)
    folder = tmp_path / "packed" / "study"
    pack_study(load_runs([tmp_path / "runs"]).records, folder)
    noted = (folder / DIGESTS).read_bytes()
    without_proofs(folder)
    command = ["runs", "digest", "--runs", str(tmp_path / "packed")]
    assert main(command) == 0
    assert capsys.readouterr().out == "study: digests noted\n1 packed studies, 1 without digests until now\n"
    assert (folder / DIGESTS).read_bytes() == noted
    assert main(command) == 0
    assert capsys.readouterr().out == "1 packed studies, 0 without digests until now\n"
    shorten(folder / "history.parquet")
    assert main(command) == 2
    assert re.match(r"error: study: it has \d+ rows, and \d+ were recorded; restore", capsys.readouterr().err)
    assert (folder / DIGESTS).read_bytes() == noted


def test_every_recorded_study_has_digests() -> None:
    for table in sorted((ROOT / "experiments" / "recorded").rglob("runs.parquet")):
        assert (table.parent / DIGESTS).exists(), f"{table.parent.name}: altgrad runs digest notes them"


def test_a_resumed_run_has_proofs_of_its_new_tables_and_does_not_go_on_from_changed_ones(tmp_path: Path) -> None:
    path = write_run(tmp_path, config("e4m3"), status="interrupted")
    before = json.loads((path / "run.json").read_text())["tables"]["history"]
    assert before["rows"] == 11
    given: dict[str, Any] = {"data_fingerprint": DATA, "environment": {}, "find": lambda folder: (5, 0.0)}
    with RunWriter.resume(tmp_path, config("e4m3"), **given) as writer:
        assert "tables" not in json.loads((path / "run.json").read_text())
        writer.log(6, loss=1.0, val_loss=1.0)
        writer.finish({})
    after = json.loads((path / "run.json").read_text())["tables"]["history"]
    assert (after["rows"], verify([tmp_path]).problems) == (7, [])
    other = write_run(tmp_path / "b", config("e4m3", seed=1), status="interrupted")
    shorten(other / "history.parquet")
    with pytest.raises(UsageError, match="it has 10 rows, and 11 were recorded"):
        RunWriter.resume(tmp_path / "b", config("e4m3", seed=1), **given)
    assert json.loads((other / "run.json").read_text())["status"] == "interrupted"


def test_a_pipe_in_place_of_a_record_is_named_and_not_waited_for(tmp_path: Path) -> None:
    good, bad, worse = (write_run(tmp_path, config(fmt)) for fmt in ("fp32", "e4m3", "e5m2"))
    for path in (bad / "run.json", worse / "history.parquet"):
        path.unlink()
        os.mkfifo(path)
    begun = time.monotonic()
    found = load_runs([tmp_path])
    assert time.monotonic() - begun < 10
    assert [one.id for one in found.records] == [good.name]
    assert "run.json is no regular file" in found.problems[0].reason
    assert "history.parquet is no regular file" in found.problems[1].reason


@pytest.mark.parametrize("kind", ["twice", "a struct", "400 digits"])
def test_columns_that_no_table_has_are_named(tmp_path: Path, kind: str) -> None:
    good, bad = write_run(tmp_path, config("fp32")), without_proofs(write_run(tmp_path, config("e4m3")))
    steps, loss = pa.array([0, 1]), pa.array([1.0, 2.0])
    (bad / "history.parquet").unlink()
    if kind == "400 digits":
        rows = [f'{{"step": {step}, "val_loss": 1{"0" * 400}}}\n' for step in range(2)]
        (bad / "history.jsonl").write_text("".join(rows))
    else:
        extra = loss if kind == "twice" else pa.array([{"a": 1}, {"a": 2}])
        names = ["step", "val_loss", "val_loss" if kind == "twice" else "lr"]
        pq.write_table(pa.Table.from_arrays([steps, loss, extra], names), bad / "history.parquet")
    for found in (load_runs([tmp_path]), *(read_histories([tmp_path]),)):
        problems = found.problems if hasattr(found, "problems") else found[1]
        assert [problem.where for problem in problems] == [bad.name], problems
    assert [one.id for one in load_runs([tmp_path]).records] == [good.name]


HUGE = int("9" * 400)
WRONG = {"400 digits": HUGE, "beyond 2^53": 2**53 + 1, "a struct": {"a": [1]}, "text": "x", "null": None}
HEADS = ("seconds", "summary", "events", "failure", "message", "wandb_url", "ended", "created", "environment", "code",
         "data", "tables", "title", "arm", "status", "schema", "id", "origin")  # fmt: skip


def test_one_damaged_record_stops_neither_the_others_nor_any_command(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A wrong value in each place of run.json, all beside one sound record."""
    good = write_run(tmp_path / "runs", config("fp32"))
    text = (write_run(tmp_path / "one", config("e4m3")) / "run.json").read_text()

    def damaged(number: int, change: Callable[[dict[str, Any]], Any]) -> None:
        run = json.loads(text)
        change(run)
        folder = (
            tmp_path / "runs" / f"{run['id']}-{number}" if isinstance(run["id"], str) else tmp_path / f"runs/x{number}"
        )
        folder.mkdir()
        for table in ("history", "layers"):
            (folder / f"{table}.jsonl").write_text('{"step": 1, "val_loss": 2.0}\n' if table == "history" else "")
        run.pop("tables", None) if run.get("tables") == json.loads(text)["tables"] else None
        run["id"] = folder.name if run["id"] == json.loads(text)["id"] else run["id"]
        (folder / "run.json").write_text(json.dumps(run))

    places: list[Callable[[dict[str, Any], Any], Any]] = [
        *(lambda run, value, key=key: run.__setitem__(key, value) for key in HEADS),
        lambda run, value: run["summary"].update(val_loss=value),
        lambda run, value: run["environment"].update(processor=value),
        lambda run, value: run["data"].update(name=value),
        lambda run, value: run["config"].update(seed=value),
        lambda run, value: run["config"].update(max_steps=value),
        lambda run, value: run["config"].update(foreign={"a": value}),
        lambda run, value: run["events"].append(value),
        lambda run, value: run["events"].append({"kind": value, "step": value, "what": value, "value": value}),
        lambda run, value: run["events"].append({"kind": "warning", "step": 1, "what": value, "message": value}),
    ]
    for number, (place, value) in enumerate(itertools.product(places, WRONG.values())):
        damaged(number, partial(lambda place, value, run: place(run, value), place, value))
    found = load_runs([tmp_path / "runs"])
    assert good.name in [record.id for record in found.records]
    assert len(found.records) + len(found.problems) > 130
    assert all("\n" not in problem.reason and len(problem.reason) < 500 for problem in found.problems)
    assert verify([tmp_path / "runs"]).records > 130
    assert len(ExperimentDataLoader([tmp_path / "runs"]).runs) == len(found.records)
    assert good.name in read_histories([tmp_path / "runs"])[0]["run_id"].to_pylist()
    for command in (["list"], ["export"], ["export", "--format", "json"], ["show", good.name], ["verify"]):
        assert main(["runs", *command, "--runs", str(tmp_path / "runs")]) in (0, 1), command
        out, err = capfd.readouterr()
        assert good.name in out or command == ["verify"]
        assert "Traceback" not in err


@pytest.mark.parametrize("kind", ["rows", "texts", "text"])
def test_a_small_file_that_would_be_large_in_memory_is_named_and_not_unpacked(tmp_path: Path, kind: str) -> None:
    good, bad = write_run(tmp_path, config("fp32")), without_proofs(write_run(tmp_path, config("e4m3")))
    rows = {"rows": 500_000, "texts": 200_000, "text": 2}[kind]
    word = {"rows": "a", "texts": "a" * 20_000, "text": "a" * 70_000_000}[kind]
    texts = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [word])
    columns = [np.zeros(rows, np.int64), texts, texts, texts, texts, np.zeros(rows)]
    table = pa.Table.from_arrays([pa.array(column) for column in columns], LAYER_COLUMNS)
    with pq.ParquetWriter(bad / "layers.parquet", table.schema, compression="zstd", store_schema=False) as writer:
        for _ in range(20 if kind == "rows" else 1):
            writer.write_table(table)
    assert (bad / "layers.parquet").stat().st_size < 300_000
    begun = time.process_time()
    found = load_runs([tmp_path])
    assert time.process_time() - begun < 5
    assert [one.id for one in found.records] == [good.name]
    assert ("its texts are too long" if kind == "texts" else "no run writes such a table") in found.problems[0].reason


def footer_says(path: Path, real: int, said: int) -> None:
    """Another size in a file's footer, as long as the real one: Thrift's integers may end in nothing."""

    def written(value: int, length: int = 0) -> bytes:
        groups = [value << 1 >> shift & 127 for shift in range(0, max((value << 1).bit_length(), 7 * length), 7)]
        return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])

    data = path.read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    assert written(real) in data[start:]
    path.write_bytes(data[:start] + data[start:].replace(written(real), written(said, len(written(real)))))


def test_what_pages_unpack_to_is_bounded_whatever_the_footer_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, texts = tmp_path / "layers.parquet", [letter * 200_000 for letter in "abcdefghijklmnopqrst"]
    table = pa.table({"step": range(20), "layer": texts})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    group = pq.ParquetFile(path).metadata.row_group(0)
    for real in {group.total_byte_size, group.column(1).total_uncompressed_size}:
        footer_says(path, real, 1000)
    assert pq.ParquetFile(path).metadata.row_group(0).total_byte_size == 1000
    assert read_coded(path).num_rows == 20, "it is not damaged"
    monkeypatch.setattr(tables, "MOST_VALUES", 1000)
    with pytest.raises(tables.NotAsRecorded, match=r"bytes that would unpack to 4,0\d\d,\d\d\d: no run"):
        read_coded(path)
    with pytest.raises(tables.NotAsRecorded, match=r"bytes that would unpack to 4,0\d\d,\d\d\d: no run"):
        tables.read_columns(path, None, None, lambda schema: schema.names)


@pytest.mark.parametrize("checksums", [True, False])
def test_headers_of_pages_are_read_alike_at_once_and_field_by_field(tmp_path: Path, checksums: bool) -> None:
    path, draw, usual = tmp_path / "history.parquet", random.Random(3), [0, 0]
    columns = {"step": range(3000), "loss": np.random.default_rng(0).normal(size=3000).astype("float32")}
    columns |= {"norm": [None, 1.5] * 1500, "kind": ["a", "b"] * 1500, "done": [True, None] * 1500}
    pq.write_table(pa.table(columns), path, write_page_checksum=checksums, data_page_size=4000)
    data, group = path.read_bytes(), pq.ParquetFile(path).metadata.row_group(0)

    def changed(header: bytes) -> bytes:
        found = bytearray(header)
        for _ in range(draw.randrange(1, 4)):
            found[draw.randrange(len(found))] = draw.randrange(256)
        return bytes(found)

    for column in map(group.column, range(group.num_columns)):
        place = min(column.dictionary_page_offset or len(data), column.data_page_offset)
        end = place + column.total_compressed_size
        while place < end:
            sizes, after = tables._struct(data, place)
            header = data[place:after]
            for made in (header, *(changed(header) for _ in range(500))):
                if found := tables._USUAL_HEADER.match(made):
                    usual[made != header] += 1
                    slow, length = tables._struct(made, 0)
                    assert [tables._integer(each, 0)[0] for each in found.groups()] == [slow[2], slow[3]]
                    assert found.end() == length
            place = after + sizes[3]
    assert usual[0] > 5
    assert usual[1] > 500


def test_one_long_text_of_many_rows_is_not_written_out(tmp_path: Path) -> None:
    path, rows = tmp_path / "runs.parquet", np.zeros(2000, np.int32)
    text = pa.DictionaryArray.from_arrays(rows, ["a" * 1_000_000])
    pq.write_table(pa.table({"run": text}), path, compression="zstd", store_schema=False)
    with pytest.raises(tables.NotAsRecorded, match="its texts are too long"):
        read_coded(path)
    pq.write_table(pa.table({"run": [["a"]]}), path)
    with pytest.raises(tables.NotAsRecorded, match="column 'run' holds neither numbers nor text"):
        read_coded(path)


def test_tables_of_packed_studies_are_kept_within_the_bound_and_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for study in ("one", "two"):
        runs = [write_run(tmp_path / "runs" / study, config("e4m3", seed=seed, study=study)) for seed in range(2)]
        pack_study([read_run(run) for run in runs], tmp_path / "packed" / study)
    whole = load_runs([tmp_path / "packed"]).records
    monkeypatch.setattr(Kept.__init__, "__defaults__", (1,))
    bounded = load_runs([tmp_path / "packed"]).records
    kept = {id(each.tables.args[0].func.__self__): each.tables.args[0].func.__self__ for each in bounded}
    (tables_kept,) = (each._tables for each in kept.values())
    counts = {name: len(found) for name, found in tables_kept.items()}
    assert counts == {"history": 1, "layers": 1}, "of both studies those that were read last"
    for one, other in zip(bounded, whole, strict=True):
        assert one.history.equals(other.history)
        assert one.layers.equals(other.layers)
    shutil.rmtree(tmp_path / "packed" / "one")
    tables_kept.clear()
    with pytest.raises(RecordError, match="one: damaged packed study"):
        assert [len(each.history) for each in bounded]


def test_parts_hold_each_run_once_and_are_read_as_one_study(tmp_path: Path) -> None:
    write_matrix(tmp_path / "runs", seeds=2)
    records = load_runs([tmp_path / "runs"]).records
    study = tmp_path / "recorded" / "study"
    pack_study(records[:4], study)
    names = [pack_part(part, study).name for part in (records[4:9], records[9:])]
    assert names == ["part-001", "part-002"]
    for sources in ([tmp_path / "recorded"], [study]):
        found = load_runs(sources)
        assert [one.id for one in found.records] == [one.id for one in records]
        assert found.problems == ()
        assert verify(sources) == (len(records), [], [])
        assert set(read_histories(sources)[0]["run_id"].to_pylist()) == {one.id for one in records}
    with pytest.raises(UsageError, match="never written over"):
        pack_study(records[:1], study / "part-001")
    with pytest.raises(UsageError, match="never written over"):
        pack_study(records[:1], study)
    damaged = study / "part-001" / "history.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    found = load_runs([tmp_path / "recorded"])
    assert [problem.where for problem in found.problems] == ["study/part-001"]
    assert {one.id for one in found.records} == {one.id for one in (*records[:4], *records[9:])}


def test_a_run_in_two_parts_is_named_and_the_first_is_kept(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", config("e4m3"), 2.0)
    second = write_run(tmp_path / "b", config("e4m3"), 2.5)
    more = write_run(tmp_path / "b", config("e5m2"), 2.5)
    study = tmp_path / "recorded" / "study"
    pack_part([read_run(first)], study)
    pack_part([read_run(second), read_run(more)], study)
    line = "study/part-001 holds this run already: the first is kept"
    for sources in ([tmp_path / "recorded"], [study]):
        found = load_runs(sources)
        losses = {one.id: one.run["summary"]["final_val_loss"] for one in found.records}
        assert losses == {first.name: 2.0, more.name: 2.5}
        table, problems = read_histories(sources)
        assert len(table) == sum(len(one.history) for one in found.records)
        for named in (found.problems, verify(sources).problems[:1], problems):
            (problem,) = named
            assert problem.where.endswith(f"part-002/{first.name}")
            assert problem.reason.startswith(line.removeprefix("study/" if sources == [study] else ""))


KILLED = """
import sys
sys.path[:0] = [{root!r}]
from pathlib import Path
from altgrad.runs import load_runs, pack_part
records = load_runs([Path(sys.argv[1])]).records
print("begun", flush=True)
for number in range(1000):
    print(pack_part(records[number % len(records):][:1], Path(sys.argv[2])).name, flush=True)
"""


def test_a_killed_pack_leaves_whole_parts_only(tmp_path: Path) -> None:
    """Kills at five moments or more, until one came in the midst of a part: every part that is there reads in full, and
    the next pack goes on behind it.
    """
    for seed in range(3):
        write_run(tmp_path / "runs", config("e4m3", seed=seed))
    command = [sys.executable, "-c", KILLED.format(root=str(ROOT)), str(tmp_path / "runs")]
    generator, left = random.Random(SEED), 0
    for trial in range(40):
        if trial > 4 and left:
            break
        study = tmp_path / str(trial) / "study"
        with subprocess.Popen([*command, str(study)], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "begun\n"
            time.sleep(0.05 + 0.2 * generator.random())
            os.kill(child.pid, signal.SIGKILL)
            told = child.stdout.read().split()
        left += len(list(study.glob("*.tmp")))
        there = sorted(path.name for path in study.glob("part-*") if path.suffix != ".tmp")
        assert there[: len(told)] == told, "what was told is there"
        assert len(there) <= len(told) + 1
        for part in there:
            assert len(load_runs([study / part]).records) == 1
            assert verify([study / part]) == (1, [], [])
        assert load_runs([study.parent]).records or not there
        assert pack_part(load_runs([tmp_path / "runs"]).records[:1], study).name == f"part-{len(there) + 1:03}"
        assert not list(study.glob("*.tmp"))
    assert left, "no kill came in the midst of a part"


def test_a_part_carries_the_canaries_of_its_machines(tmp_path: Path) -> None:
    path = write_run(tmp_path / "runs", config("e4m3"))
    own = read_run(path).run["environment"]
    given = {"code": "c", "created": "2026-01-02T03:04:05Z"}
    kept = Canary(environment=own, digest="1" * 64, **given)
    for canary in (kept, Canary(environment=own | {"torch": "1.0"}, digest="2" * 64, **given)):
        keep_canary(tmp_path / "runs", canary)
    runs = load_runs([tmp_path / "runs"])
    assert len(runs.canaries) == 2
    pack_part(runs.records, tmp_path / "packed" / "study", canaries=runs.canaries)
    assert load_runs([tmp_path / "packed"]).canaries == (kept,)


def test_the_processor_is_named_and_no_machine_user_or_path(tmp_path: Path) -> None:
    found = describe_processor()
    assert set(found) <= {*PROCESSOR}
    if sys.platform == "linux" and platform.machine() == "x86_64":
        assert set(found) == {*PROCESSOR}
        assert re.match(r"AVX2|AVX512|DEFAULT", found["instructions"])
    text = json.dumps(found)
    for private in (platform.node(), os.environ.get("USER", "") or "root@", str(Path.home()), str(Path.cwd())):
        assert private not in text
    with record(tmp_path, name="own", config={}) as run:
        run.log(0, loss=1.0)
        run.finish()
    assert read_run(run.path).run["environment"].items() >= found.items()
    assert stated(found).startswith(found.get("processor", "not stated"))
    assert stated({"torch": "2.13.0"}) == "not stated"


def test_comparisons_across_processors_are_told_as_far_as_records_state_them(tmp_path: Path) -> None:
    def written(fmt: str, environment: dict[str, str]) -> str:
        cfg = config(fmt)
        with RunWriter.create(tmp_path, cfg, data_fingerprint=DATA, environment=environment) as writer:
            writer.log(0, loss=1.0, val_loss=1.0)
            writer.finish({})
        return read_run(writer.path).arm

    one, two = ({"processor": name, "instructions": "AVX2", "torch": "2"} for name in ("A", "B"))
    arms = [written("fp32", one), written("e4m3", two), written("e5m2", one), written("e3m4", {"torch": "2"})]
    given = {"code": "c", "digest": "1" * 64, "created": "2026-01-02T03:04:05Z"}
    for environment in (one, two):
        keep_canary(tmp_path, Canary(environment=environment, **given))
    table = crossing(ExperimentDataLoader([tmp_path]), [(arm, arm, arms[0]) for arm in arms[1:]])
    assert table["n_crossing"].tolist() == [1, 0, 1]
    assert table["processors"].tolist() == ["B, AVX2 against A, AVX2", "", "not stated against A, AVX2"]
    assert table["canary"].tolist() == ["the same bits", "", "not stated"]
    page = str(machine_blocks(ExperimentDataLoader([tmp_path]), [(arm, arm, arms[0]) for arm in arms[1:]]))
    for told in ("B, AVX2 against A, AVX2", "the same bits", "as far as the records state them"):
        assert told in page
    assert "The processor is not in the records" not in page
    keep_canary(tmp_path, Canary(environment=two, **given | {"digest": "2" * 64}))
    table = crossing(ExperimentDataLoader([tmp_path]), [("a", arms[1], arms[0])])
    assert table["canary"].tolist() == ["other bits"]
    assert np.isfinite(table["n_pairs"]).all()
