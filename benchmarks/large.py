"""How the cost of records and pages grows with the number of runs: processor time and memory of ten times as many.

    make bench-large                                                        measure and record, up to 10,000 runs
    make bench-large ARGS="--runs 100,1000,10000,50000"                     the largest sites, about an hour
    .venv/bin/python benchmarks/large.py --runs 20,200 --record trial.json   a trial of the machinery

The runs are recorded ones again, under other learning rates and seeds, ten an arm and each in a folder of its own. Each
step is a process of its own: its processor time, that of its children included, less what it takes with no runs. The
exponent is the slope of log time over log runs between the two largest numbers; reading the bytes of all files and
parsing the JSON among them is measured beside the steps. Disk: 12 kB a run, and 70 kB a page, removed at the end: 1 to
2 GB with 50,000 runs.

What was measured is noted at once in build/, and the same code goes on from there; --again measures anew. The record
goes to benchmarks/recorded/large.json, which the site shows.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import pyarrow as pa  # noqa: E402
from notes import Notes  # noqa: E402

import altgrad  # noqa: E402
from altgrad.config import UsageError  # noqa: E402
from altgrad.imports import code_fingerprint  # noqa: E402
from altgrad.reports.measured import RECORDED, read_record, write_record  # noqa: E402
from altgrad.reports.run_costs import Growth, LargeRecord  # noqa: E402
from altgrad.runs import load_runs, run_id  # noqa: E402
from altgrad.runs.schema import arm_id  # noqa: E402
from altgrad.runs.tables import write_table  # noqa: E402
from altgrad.site.new_site import lay_out  # noqa: E402

SEEDS = 10
KINDS = 40
"""Recorded runs that the generated ones are made from."""
LINKS = 30_000
"""Most names of one file; file systems allow 65,000."""
GOAL = 1.1
_FLOOR = """
import json, sys
from pathlib import Path
import pyarrow.parquet as pq
for path in Path(sys.argv[1]).rglob("*.*"):
    json.loads(path.read_bytes()) if path.suffix == ".json" else pq.read_table(path).to_pandas()
"""
_LOAD = """
import sys
from altgrad.runs import load_runs
load_runs(sys.argv[1:])
"""
_FINDINGS = """
import sys
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.reports.own import own_pages
loader = ExperimentDataLoader(sys.argv[1:])
own_pages(loader), loader.fingerprint
"""
PAGES = "Pages: a cold build of the site"
STEPS: dict[str, Sequence[str]] = {
    "Reading the files, with pyarrow and json alone": ("-c", _FLOOR),
    "Loading": ("-c", _LOAD),
    "altgrad runs list": ("-m", "altgrad.cli", "runs", "list", "--runs"),
    "altgrad runs verify": ("-m", "altgrad.cli", "runs", "verify", "--runs"),
    "altgrad runs export": ("-m", "altgrad.cli", "runs", "export", "--runs"),
    "altgrad runs export --history": ("-m", "altgrad.cli", "runs", "export", "--history", "--runs"),
    "Findings: overview, effects, curves and health": ("-c", _FINDINGS),
    PAGES: ("-m", "mkdocs", "build", "-q", "-f"),
}


NOTES = ROOT / "build" / "bench-large.json"
"""Where what was measured is noted."""


class Cost(NamedTuple):
    """Seconds of the processors, the most memory that one process took, in GB, and how busy the machine was before."""

    seconds: float
    memory: float
    load: float = 0.0


def generate(folder: Path, runs: int, like: Path = ROOT / "experiments" / "recorded") -> Path:
    """Records of `runs` runs, each in a folder; the tables of those that were made from one are one file."""
    folder.mkdir(parents=True)
    if not runs:
        return folder
    every = load_runs([like]).records
    ended = [record for record in every if record.status == "finished"]
    shown = ended[:: max(1, len(ended) // KINDS)][:KINDS]
    made: dict[int, tuple[Path, dict[str, Any]]] = {}
    for number in range(runs):
        arm, seed = divmod(number, SEEDS)
        source = shown[arm % len(shown)]
        optimizer = source.config.optimizer.model_copy(update={"learning_rate": 1e-3 + 1e-6 * arm})
        config = source.config.model_copy(update={"optimizer": optimizer, "seed": seed, "study": "many"})
        identity = run_id(config, source.run["data"])
        path = folder / identity
        path.mkdir()
        kind = arm % len(shown) + len(shown) * (number // LINKS)
        if kind not in made:
            tables = {"history": source.history, "layers": source.layers}
            proofs = {}
            for name, frame in tables.items():
                table = pa.Table.from_pandas(frame, preserve_index=False)
                proofs[name] = write_table(table, path / f"{name}.parquet").model_dump()
            made[kind] = path, proofs
        else:
            for name in ("history", "layers"):
                os.link(made[kind][0] / f"{name}.parquet", path / f"{name}.parquet")
        own = {"config": config.model_dump(mode="json"), "id": identity, "tables": made[kind][1]}
        run = source.run | own | {"arm": arm_id(config, source.run["data"], identity)}
        (path / "run.json").write_text(json.dumps(run, indent=1))
    return folder


def cost(step: str, records: Path) -> Cost:
    """What one step takes on the records of a folder.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ALTGRAD", "SOURCE_DATE"))}
    environment |= {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    command, place = [sys.executable, *STEPS[step]], records.parent
    if step == PAGES:
        place = records.parent / f"site-{records.name}"
        lay_out(place)
        (place / "experiments" / "runs").symlink_to(records)
        command.append(str(place / "mkdocs.yml"))
    else:
        command.append(str(records))
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0
    with open(os.devnull, "w") as nothing, tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, cwd=place, env=environment, stdout=nothing, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise subprocess.CalledProcessError(process.returncode, command, stderr=said.read().decode()[-500:])
    if step == PAGES:
        shutil.rmtree(place)
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6, load)


def bench(
    counts: Sequence[int],
    names: Sequence[str],
    show: Callable[[str], None],
    keep: Callable[[LargeRecord], None],
    notes: Path = NOTES,
) -> None:
    """Measure every step with each number of runs; `keep` is given what there is after each that has two numbers.

    What `notes` has of the same code is not measured again.
    """
    costs: dict[str, list[Cost]] = {step: [] for step in names}
    noted = Notes(notes, code_fingerprint("page"))
    with tempfile.TemporaryDirectory(prefix="altgrad-bench-") as name:
        for count in (0, *counts):
            folder = Path(name) / str(count)
            left = [step for step in names if f"{count} {step}" not in noted.known]
            if left:
                show(f"{count:,} runs: making them")
                made = multiprocessing.get_context("spawn").Process(target=generate, args=(folder, count))
                made.start()  # what this process has had counts as memory of those that it starts
                made.join()
                if made.exitcode:
                    raise UsageError(f"{count:,} runs could not be made")
            for step, found in costs.items():
                found.append(Cost(*noted.of(f"{count} {step}", partial(cost, step, folder))))
                before = "" if step in left else " (measured before)"
                show(f"{count:,} runs: {step}: {found[-1].seconds:.1f} s, {found[-1].memory:.2f} GB{before}")
                if len(found) > 2:
                    keep(record_of(counts, costs))
            shutil.rmtree(folder, ignore_errors=True)


def record_of(counts: Sequence[int], costs: dict[str, list[Cost]]) -> LargeRecord:
    """What was measured with two numbers of runs or more; the first cost of each step is with no runs."""
    return LargeRecord(
        date=datetime.now(UTC).replace(microsecond=0),
        altgrad=altgrad.__version__,
        code=code_fingerprint("page"),
        cores=os.cpu_count() or 1,
        load=max(each.load for found in costs.values() for each in found),
        versions={package: version(package) for package in ("pandas", "pyarrow", "mkdocs")},
        steps=tuple(
            Growth(
                name=step,
                runs=tuple(counts[: len(found) - 1]),
                seconds=tuple(max(each.seconds - found[0].seconds, 1e-3) for each in found[1:]),
                memory=tuple(each.memory for each in found[1:]),
                goal=None if step == next(iter(STEPS)) else GOAL,
                load=max(each.load for each in found),
            )
            for step, found in costs.items()
            if len(found) > 2
        ),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and record; 0, 2 where a step failed, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="100,1000,10000", help="how many, two numbers or more (100,1000,10000)")
    parser.add_argument("--steps", help="beginnings of their names, with commas between (all)")
    parser.add_argument("--again", action="store_true", help="measure anew what was measured of this code before")
    parser.add_argument("--record", type=Path, help="where the figures go (benchmarks/recorded/large.json)")
    options = parser.parse_args(arguments)
    counts = [int(each) if each.isdigit() else 0 for each in options.runs.split(",")]
    if len(counts) < 2 or counts != sorted({*counts}) or counts[0] < 1:
        parser.error(f"--runs {options.runs}: give two numbers or more, going up, with commas between")
    if counts[-1] < 1000 and options.record is None:
        parser.error("a trial is not recorded for the site: name another file with --record")
    names = [step for step in STEPS if step.startswith(tuple((options.steps or "").split(",")))]
    path = options.record or RECORDED / "large.json"
    notes = NOTES if options.record is None else options.record.with_suffix(".notes.json")
    if options.again:
        notes.unlink(missing_ok=True)
    try:
        old = read_record(path, LargeRecord) if options.steps else None

        def keep(found: LargeRecord) -> None:
            past = {"date": old.date, "load": old.load} if old else {}
            former = (each if each.date else each.model_copy(update=past) for each in (old.steps if old else ()))
            known = {each.name: each for each in (*former, *found.steps)}
            steps = tuple(known[step] for step in STEPS if step in known)
            write_record(found.model_copy(update={"steps": steps}), path)

        bench(counts, names, lambda text: print(text, file=sys.stderr, flush=True), keep, notes)
    except subprocess.CalledProcessError as error:
        print(f"error: a step failed: {error.stderr.strip()}", file=sys.stderr)
        return 2
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    found = read_record(path, LargeRecord)
    for each in found.steps if found else ():
        seconds = ", ".join(f"{taken:.3g}" for taken in each.seconds)
        result = {True: "met", False: "missed", None: ""}[each.met]
        print(f"{each.name:50} {seconds} s   exponent {each.exponent:.2f} {result}   {max(each.memory):.2f} GB")
    print(f"record: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
