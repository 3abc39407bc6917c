"""What recording costs: a row appended, thousands of runs read, against the least that must be done in the same run.

    make bench-runs                                              measure and record, in about eight minutes and 2 GB
    .venv/bin/python benchmarks/runs.py --quick --record trial.json
    .venv/bin/python benchmarks/runs.py --add figures.json        take over figures that were measured elsewhere

`--add` reads a JSON list of figures (name, value, unit, goal, reason ...) and puts them into the record, each in the
place of one with its name; so the W&B failures, which the tests time against a server on the loopback, stand beside
the rest. The record goes to benchmarks/recorded/runs.json, which the site turns into a page.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import altgrad  # noqa: E402
from altgrad.cli import main as main_of  # noqa: E402
from altgrad.config import UsageError, one_line  # noqa: E402
from altgrad.imports import code_fingerprint  # noqa: E402
from altgrad.reports.measured import RECORDED, read_record, write_record  # noqa: E402
from altgrad.reports.run_costs import Figure, RunsRecord  # noqa: E402
from altgrad.runs import RunRecord, load_runs, pack_study, read_histories, record, run_id  # noqa: E402
from altgrad.runs.sources import import_runs  # noqa: E402
from altgrad.runs.sources.tensorboard import _masked_crc, read_events  # noqa: E402
from altgrad.runs.tables import write_table  # noqa: E402
from altgrad.runs.wandb_access import inspected, missing_package  # noqa: E402
from altgrad.runs.writer import write_json  # noqa: E402

SIZES = {
    "full": {
        "rows appended": 20_000, "runs": 1_000, "rows a run": 2_000, "columns": 60, "packed runs": 2_000,
        "W&B runs": 135, "event files": 1_000, "rows of one history": 1_000_000,
        "runs of a site": 129,
    },
    "quick": {
        "rows appended": 200, "runs": 4, "rows a run": 50, "columns": 60, "packed runs": 20,
        "W&B runs": 1, "event files": 2, "rows of one history": 5_000,
        "runs of a site": 6,
    },
}  # fmt: skip
SHIPPED = ROOT / "experiments" / "recorded"
TAGS = [f"train/metric_{number}" for number in range(10)]
THREE = ["metric_1", "metric_30", "metric_59"]


def append(folder: Path, sizes: dict[str, int]) -> Figure:
    """The time of one `RunWriter.log` of many metrics, without the fsync that comes every few seconds."""
    generator, rows = np.random.default_rng(0), sizes["rows appended"]
    values = [
        dict(zip(_names(sizes), map(float, generator.normal(size=sizes["columns"])), strict=True)) for _ in range(50)
    ]
    seconds = []
    with record(folder, name="append", config={}) as writer:
        for step in range(rows):
            begun = time.perf_counter()
            writer.log(step, **values[step % 50])
            seconds.append(time.perf_counter() - begun)
        line = (writer.path / "history.jsonl").read_bytes().partition(b"\n")[0] + b"\n"
        floor = []
        with open(folder / "floor", "ab", buffering=0) as file:
            for _ in range(rows):
                begun = time.perf_counter()
                os.write(file.fileno(), line)
                floor.append(time.perf_counter() - begun)
        writer.finish()
    return Figure(
        name=f"Append a row of {sizes['columns']} metrics",
        value=1e6 * statistics.median(seconds),
        unit="µs",
        goal=20,
        floor=1e6 * statistics.median(floor),
        floor_name="writing the bytes alone",
        reason="The median; besides it an fsync every 5 s and at each evaluation.",
    )


def generate(folder: Path, sizes: dict[str, int], show: Callable[[str], None]) -> float:
    """Finished runs with random metrics in float32, and the MiB that they take. One config serves all of them."""
    generator, names = np.random.default_rng(0), _names(sizes)
    with record(folder, name="head", config={}) as writer:
        writer.log(0, **dict.fromkeys(names, 0.0))
        writer.finish()
    head, total = json.loads((writer.path / "run.json").read_text()), 0
    for number in range(sizes["runs"]):
        show(f"run {number + 1} of {sizes['runs']}")
        path = folder / "runs" / f"run-{number:05d}"
        path.mkdir(parents=True)
        columns: dict[str, Any] = {"step": np.arange(sizes["rows a run"])}
        columns |= {name: generator.normal(size=sizes["rows a run"]).astype("float32") for name in names}
        proof = write_table(pa.table(columns), path / "history.parquet", run=path.name)
        write_json(path / "run.json", head | {"id": path.name, "tables": {"history": proof.model_dump()}})
        total += (path / "history.parquet").stat().st_size
    return total / 2**20


def read(folder: Path, sizes: dict[str, int], repeats: int) -> tuple[Figure, Figure]:
    """Three columns and all columns of every run, against pyarrow.dataset on the same files, in turns; best times."""
    files = sorted(str(path) for path in (folder / "runs").rglob("history.parquet"))
    schema = pa.schema([("step", pa.int64()), *((name, pa.float32()) for name in _names(sizes))])
    figures = []
    for title, columns, goal, goal_ratio in (("three columns", THREE, 1.0, None), ("all columns", None, None, 2.0)):
        ours, floor = [], []
        for _ in range(repeats):
            ours.append(_seconds(partial(read_histories, [folder / "runs"], columns)))
            floor.append(_seconds(partial(_dataset, files, schema, columns)))
        figures.append(
            Figure(
                name=f"Read {title} of {sizes['runs']:,} runs",
                value=min(ours),
                unit="s",
                goal=goal,
                floor=min(floor),
                floor_name="pyarrow.dataset",
                goal_ratio=goal_ratio,
                reason="Before anything is unpacked, the header of each of its pages is read: "
                "a small file could fill the memory.",
            )
        )
    return figures[0], figures[1]


def checked(folder: Path, sizes: dict[str, int], repeats: int) -> list[Figure]:
    """What it costs to check tables against what proves them: the same runs without any proof, in turns; best times."""
    few = sorted((folder / "runs").iterdir())[: max(sizes["runs"] // 10, 2)]
    for path in few:
        (folder / "checked").mkdir(exist_ok=True)
        (folder / "checked" / path.name).symlink_to(path)
        bare = folder / "bare" / path.name
        bare.mkdir(parents=True)
        head = json.loads((path / "run.json").read_text())
        write_json(bare / "run.json", {key: value for key, value in head.items() if key != "tables"})
        pq.write_table(pq.read_table(path / "history.parquet"), bare / "history.parquet", compression="zstd")
    ways: dict[str, Callable[..., object]] = {
        f"Read three columns of {len(few):,} runs, checked": partial(read_histories, columns=THREE),
        f"Read all columns of {len(few):,} runs, checked": read_histories,
        f"Load {len(few):,} runs, checked": load_runs,
    }
    figures = []
    for name, way in ways.items():
        found: dict[str, list[float]] = {"checked": [], "bare": []}
        for _ in range(4 * repeats):
            for kind, seconds in found.items():
                seconds.append(_seconds(partial(way, [folder / kind])))
        value, floor = (min(seconds) for seconds in found.values())
        told = "the same tables without checksums and digests"
        figures.append(Figure(name=name, value=value, unit="s", floor=floor, floor_name=told, goal_ratio=1.05))
    return figures


def _dataset(files: list[str], schema: pa.Schema, columns: list[str] | None) -> pa.Table:
    return ds.dataset(files, schema=schema).to_table(columns=columns)


def packed(folder: Path, sizes: dict[str, int], repeats: int, show: Callable[[str], None]) -> Figure:
    """Loading a packed study made of the recorded runs, again and again under other seeds."""
    shipped, copies = load_runs([SHIPPED]).records, []
    for number in range(sizes["packed runs"]):
        source = shipped[number % len(shipped)]
        config = source.config.model_copy(update={"seed": number})
        run = source.run | {"config": config.model_dump(mode="json"), "id": run_id(config, source.run["data"])}
        copies.append(RunRecord(run, config, source.arm, source.tables))
    show(f"packing {len(copies):,} runs")
    pack_study(copies, folder / "study")
    files = [folder / "study" / f"{name}.parquet" for name in ("runs", "history", "layers")]
    show("loading them")
    ours = [_seconds(lambda: load_runs([folder / "study"])) for _ in range(repeats)]
    floor = [_seconds(lambda: [pq.read_table(path) for path in files]) for _ in range(repeats)]
    return Figure(
        name=f"Load {sizes['packed runs']:,} packed runs",
        value=min(ours),
        unit="s",
        goal=2,
        floor=min(floor),
        floor_name="reading the three files",
        reason="Every config is validated; a run's tables are cut out when asked for.",
    )


def imports(folder: Path, sizes: dict[str, int], show: Callable[[str], None]) -> list[Figure]:
    """What it costs to bring in other tools' files, in processor time against the least that reading them takes."""
    figures = []
    events = [
        folder / "events" / f"run-{number}" / "events.out.tfevents.1.host" for number in range(sizes["event files"])
    ]
    show("writing event files")
    for number, path in enumerate(events):
        write_events(path, TAGS, sizes["rows a run"], number)
    show("reading event files")
    ours = _processor(lambda: import_runs(folder / "events", folder / "from-events"))
    floor = _processor(lambda: [read_events(path) for path in events])
    rows = f"{sizes['rows a run']:,} rows of {len(TAGS)} metrics"
    figures.append(
        Figure(
            name=f"Import {len(events):,} TensorBoard runs of {rows}", value=ours, unit="s", floor=floor,
            floor_name="decoding their events", goal_ratio=2.5,
        )
    )  # fmt: skip
    if missing_package() is None:
        show("writing and reading W&B's files")
        files = [folder / "wandb" / f"run-{number:08d}.wandb" for number in range(sizes["W&B runs"])]
        for path in files:
            write_offline(path, TAGS, sizes["rows a run"])
        ours = _processor(lambda: import_runs(folder / "wandb", folder / "from-wandb"))
        floor = _processor(lambda: [json.loads(line) for path in files for line in _told(path)])
        figures.append(
            Figure(
                name=f"Import {len(files):,} W&B offline runs of {rows}", value=ours, unit="s", floor=floor,
                floor_name="reading them", goal_ratio=2,
            )
        )  # fmt: skip
    show("reading one long history")
    write_events(folder / "long" / "events.out.tfevents.1.host", TAGS[:5], sizes["rows of one history"], 0)
    figures.append(
        Figure(
            name=f"Import one history of {sizes['rows of one history']:,} rows", unit="GB", goal=1,
            value=_memory(folder / "long", folder / "from-long"), reason="Memory of the whole process, 5 metrics.",
        )
    )  # fmt: skip
    return figures


def site(folder: Path, sizes: dict[str, int], show: Callable[[str], None]) -> Figure:
    """How long the new site of somebody's runs, a sweep with three seeds each, takes to be built for the first time."""
    show("building the site of a sweep")
    for run in range(sizes["runs of a site"]):
        logs = folder / "sweep" / f"run-{run}"
        logs.mkdir(parents=True)
        config = {"lr": 10 ** -(1 + run // 3 % 6), "width": 2 ** (run // 18), "seed": run % 3}
        (logs / "config.json").write_text(json.dumps(config))
        values = np.random.default_rng(run).random((200, 3)).tolist()
        rows = [f"{step},{','.join(map(str, row))}" for step, row in enumerate(values)]
        (logs / "metrics.csv").write_text("\n".join(["step,train/loss,val/loss,accuracy", *rows]))
    with contextlib.redirect_stdout(io.StringIO()):
        main_of(["new-site", str(folder / "site"), "--from", str(folder / "sweep")])
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(folder / "site" / "mkdocs.yml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    build = partial(subprocess.run, command, env=environment, capture_output=True, check=True)
    return Figure(
        name=f"Build the new site of {sizes['runs of a site']} runs, cold", value=_seconds(build), unit="s", goal=20,
        reason="Runs of 200 rows with three metrics.",
    )  # fmt: skip


def write_events(path: Path, tags: Sequence[str], rows: int, seed: int) -> None:
    """An event file of scalars, as PyTorch writes them; the steps begin where they take three bytes each."""
    steps, generator, parts = np.arange(rows) + 2**14, np.random.default_rng(seed), []
    for tag in map(str.encode, tags):
        value = b"\x0a" + bytes([len(tag)]) + tag + b"\x15" + bytes(4)
        event = b"\x09" + bytes(8) + b"\x10" + bytes(3) + b"\x2a" + bytes([len(value) + 2, 0x0A, len(value)]) + value
        body = np.tile(np.frombuffer(event, np.uint8), (rows, 1))
        body[:, 1:9] = _bytes((1.7e9 + steps).astype("<f8"))
        for place, byte in ((10, steps & 127 | 128), (11, steps >> 7 & 127 | 128), (12, steps >> 14)):
            body[:, place] = byte
        body[:, -4:] = _bytes(generator.random(rows).astype("<f4"))
        length = np.tile(np.frombuffer(np.uint64(len(event)).tobytes(), np.uint8), (rows, 1))
        parts.append(np.hstack([length, _bytes(_masked_crc(length)), body, _bytes(_masked_crc(body))]))
    path.parent.mkdir(parents=True)
    with open(path, "wb") as file:
        for begin in range(0, rows, 1000):
            for part in parts:
                file.write(part[begin : begin + 1000].tobytes())


def write_offline(path: Path, names: Sequence[str], rows: int) -> None:
    """An offline file of W&B: its records in LevelDB's log format (blocks of 32 KiB, parts with a checksum)."""
    from wandb.proto import wandb_internal_pb2 as wandb

    identity = path.stem.removeprefix("run-")
    records = [wandb.Record(run=wandb.RunRecord(run_id=identity, display_name=identity, project="bench"))]
    records[0].run.start_time.seconds = 1_700_000_000
    for step, values in enumerate(np.random.default_rng(0).random((rows, len(names))).tolist()):
        row = {"_step": step, "_runtime": float(step), **dict(zip(names, values, strict=True))}
        history = wandb.HistoryRecord(item=[wandb.HistoryItem(key=k, value_json=json.dumps(v)) for k, v in row.items()])
        records.append(wandb.Record(history=history))
    records.append(wandb.Record(exit=wandb.RunExitRecord(exit_code=0)))
    out = bytearray(b":W&B" + struct.pack("<HB", 0xBEE1, 0))
    for record_ in records:
        data, first = record_.SerializeToString(), True
        while first or data:
            room = 32768 - len(out) % 32768
            if room < 7:
                out += bytes(room)
                continue
            part, data = data[: room - 7], data[room - 7 :]
            kind = (1 if first else 4) if not data else (2 if first else 3)
            out += struct.pack("<IHB", zlib.crc32(bytes([kind]) + part), len(part), kind) + part
            first = False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out)


def _told(path: Path) -> list[bytes]:
    return inspected(path, seconds=600).stdout.splitlines()


def _bytes(column: Any) -> Any:
    return column.view(np.uint8).reshape(len(column), -1)


def _processor(call: Callable[[], object]) -> float:
    """Seconds of processor time, those of processes that it starts too."""

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    begun = used()
    call()
    return used() - begun


def _memory(path: Path, out: Path) -> float:
    """The most memory that a process takes that imports `path`, in GB.

    Of its own: what `getrusage` says of a process on Linux begins with the memory of the one that started it.
    """
    code = (
        "import re, resource, sys; from pathlib import Path; from altgrad.runs.sources import import_runs\n"
        "found = import_runs(*map(Path, sys.argv[1:])); assert len(found.fetched) == 1, found.problems\n"
        "status = Path('/proc/self/status')\n"
        "known = status.exists() and re.search(r'VmHWM:\\s+(\\d+)', status.read_text())\n"
        "print(known[1] if known else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    command = [sys.executable, "-c", code, str(path), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return int(done.stdout) * 1024 / 1e9


def bench(quick: bool, repeats: int, show: Callable[[str], None]) -> RunsRecord:
    """Measure everything."""
    sizes = SIZES["quick" if quick else "full"]
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    with tempfile.TemporaryDirectory(prefix="altgrad-bench-") as name:
        folder = Path(name)
        show("appending rows")
        figures = [append(folder / "append", sizes)]
        size = generate(folder, sizes, show)
        show("reading histories")
        figures += read(folder, sizes, repeats)
        figures += checked(folder, sizes, repeats)
        figures.append(packed(folder, sizes, repeats, show))
        figures += imports(folder, sizes, show)
        figures.append(site(folder, sizes, show))
    busy = f"Other programs kept the processors busy: load {load} on {os.cpu_count()} cores."
    if load is not None and load > (os.cpu_count() or 1) / 2:
        figures = [
            each.model_copy(update={"reason": f"{each.reason} {busy}".strip()}) if each.met is False else each
            for each in figures
        ]
    return RunsRecord(
        date=datetime.now(UTC).replace(microsecond=0),
        altgrad=altgrad.__version__,
        code=code_fingerprint("page"),
        cores=os.cpu_count() or 1,
        load=load,
        versions={"pyarrow": pa.__version__, "numpy": np.__version__},
        sizes={**sizes, "MiB of histories": round(size)},
        figures=tuple(figures),
    )


def with_figures(old: RunsRecord | None, new: RunsRecord | Sequence[Figure]) -> RunsRecord:
    """`old` with the figures of `new`, each in the place of one with its name; figures of `old` alone stay.

    Raises:
        UsageError: there is no record yet to which figures could be added.
    """
    figures = new.figures if isinstance(new, RunsRecord) else tuple(new)
    base = new if isinstance(new, RunsRecord) else old
    if base is None:
        raise UsageError("--add: there is no record yet; run the benchmark without --add first")
    named = {figure.name: figure for figure in (old.figures if old else ())} | {each.name: each for each in figures}
    return base.model_copy(update={"figures": tuple(named.values())})


def _names(sizes: dict[str, int]) -> list[str]:
    return [f"metric_{index}" for index in range(sizes["columns"])]


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def main() -> int:
    """Measure and record; 0, 2 for a user's mistake, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a trial of the machinery with few runs")
    parser.add_argument("--repeats", type=int, default=5, help="of each reading (5)")
    parser.add_argument("--add", type=Path, metavar="FILE", help="figures measured elsewhere, a JSON list")
    parser.add_argument("--record", type=Path, help="where the figures go (benchmarks/recorded/runs.json)")
    options = parser.parse_args()
    path = options.record or RECORDED / "runs.json"
    if options.quick and options.record is None:
        parser.error("a quick trial is not recorded for the site: name another file with --record")
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: give at least 1")
    try:
        old = read_record(path, RunsRecord)
        if options.add is not None:
            new: RunsRecord | list[Figure] = TypeAdapter(list[Figure]).validate_python(
                json.loads(options.add.read_text())
            )
        else:
            from rich.console import Console

            with Console(stderr=True).status("") as status:
                new = bench(options.quick, options.repeats, status.update)
        found = with_figures(old, new)
    except KeyboardInterrupt:
        print("interrupted; the record is as it was", file=sys.stderr)
        return 130
    except (UsageError, OSError, ValidationError, ValueError) as error:
        print(f"error: {one_line(error)[:300]}", file=sys.stderr)
        return 2
    write_record(found, path)
    for figure in found.figures:
        ratio = f"   {figure.value / figure.floor:.2f} x {figure.floor_name}" if figure.floor else ""
        result = {True: "   met", False: "   missed", None: ""}[figure.met]
        goal = f"   goal {figure.goal:g}" if figure.goal else ""
        print(f"{figure.name:40} {figure.value:8.3g} {figure.unit}{ratio}{goal}{result}")
    print(f"record: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
