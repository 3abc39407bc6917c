"""Ways in for runs that other tools logged: each finds its own in a folder, and says what it could not read.

A way in is a module with ``find``: it takes its files out of `found.Files` and gives a `found.Found` a run. Those whose
files are told by name or content come first; tables, which may be anything, last.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from altgrad.config import UsageError
from altgrad.runs.files import read_bytes
from altgrad.runs.schema import Problem, digest, without_paths
from altgrad.runs.sources import mlflow, tables, tensorboard, trackio, trainer, wandb
from altgrad.runs.sources.found import Files, Found
from altgrad.runs.store import PACKED, PART, record_folders
from altgrad.runs.tables import read_coded
from altgrad.runs.wandb_access import reason_of
from altgrad.runs.wandb_pull import Pulled
from altgrad.runs.wandb_records import known_runs, origins, place_of, put_in_place, sole_writer, staging_of
from altgrad.runs.writer import is_locked

SOURCES = (wandb, tensorboard, mlflow, trackio, trainer, tables)
READS = (
    "W&B's offline files (run-<id>.wandb), TensorBoard's event files, MLflow (mlruns or SQLite), trackio (SQLite), "
    "trainer_state.json, CSV, JSON lines (.jsonl) or AltGrad's own records"
)


def find_runs(path: Path) -> tuple[list[Found], list[Problem]]:
    """The runs in a file or below a folder, and the files that look like logs and are none.

    Raises:
        UsageError: there is nothing of that name, or no run in it.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder; give one that holds {READS}")
    files = Files(path)
    found = [run for source in SOURCES for run in source.find(files)]
    problems = [Problem(where, reason) for where, reason in files.passed]
    if not found and not record_folders(path):
        why = f"; {problems[0].where}: {problems[0].reason}" if problems else ""
        raise UsageError(f"{path}: no run in it{why}; what is read: {READS}")
    return found, problems


def import_runs(path: Path, out: Path, progress: Callable[[Pulled, int], None] | None = None) -> Pulled:
    """Make records under `out` of the runs in a file or below a folder, each as soon as it is read.

    A run whose files are as they were is passed over; one that has gone on is read again. A run that was recorded here
    or pulled from W&B keeps its record. Records are copied as they are, without their checkpoints, and again when they
    have gone on; the parts of a packed study stay together.

    Args:
        path: a file, or a folder with those of any of the tools.
        out: folder of the records.
        progress: is told the state and how many runs there are, after each run.

    Raises:
        UsageError: no such file, no run in it, or `out` cannot be written.
    """
    found, passed = find_runs(path)
    folders = [folder for folder in record_folders(path.resolve()) if out.resolve() not in folder.parents]
    records = {folder: _runs_in(folder) or [folder.name] for folder in folders}
    tools = [tool for tool, _ in Counter(run.tool for run in found).most_common()] + ["records"] * bool(records)
    imported = Pulled(f"{path.name or path.resolve().name} ({', '.join(tools)})", problems=list(passed))
    imported.listed = len(found) + sum(map(len, records.values()))
    with sole_writer(out):
        for record, runs in records.items():
            _copy(record, runs, out, imported)
            if progress:
                progress(imported, imported.listed)
        pulled, local = known_runs(out)
        here = {*local, *(place.rpartition("/")[2] for place in pulled)}  # W&B had all that its file has
        held = _imported(out)
        versions = {version for version, _ in held.values()}
        there = Counter(run.version for run in found)
        for run in found:
            if run.version in versions and there[run.version] == 1:
                imported.unchanged += 1
            else:
                _bring(run, out, here, held, there, imported)
            if progress:
                progress(imported, imported.listed)
    return imported


def _copy(record: Path, runs: list[str], out: Path, imported: Pulled) -> None:
    """A record's folder or a packed one, with the runs in it, under `out`: whole, or with a line why not."""
    packed = (record / PACKED).exists()
    target = out / (record.parent.name if PART.fullmatch(record.name) else "") / record.name
    files = [path.name for path in record.iterdir() if path.is_file()]
    here, there = _head(target), _head(record)
    ended = not packed and here.get("status") == "finished"
    again = ended and here.get("created") == there.get("created")
    if filecmp.cmpfiles(record, target, files)[1:] == ([], []) or (again and ("origin" in here) != ("origin" in there)):
        imported.unchanged += len(runs)
        return
    if packed:
        stays = (target / "run.json").exists() or not {*_runs_in(target)} <= {*runs}
    else:
        own = (target / PACKED).exists() or (target / "checkpoints").exists() or is_locked(target)
        stays = own or (ended and not (again and there.get("status") == "finished"))
    if stays:
        kept = "what lies under this name is not an earlier copy of it, and is kept; rename one or remove it"
        imported.problems.append(Problem(target.relative_to(out).as_posix(), kept))
        return
    staging, running = staging_of(out, record.name), is_locked(record)
    try:
        shutil.copytree(record, staging, symlinks=True, ignore=_passed_over(packed))
    except shutil.Error as error:  # of a file of the record
        imported.problems.append(Problem(record.name, without_paths(f"cannot be copied ({error.args[0][0][2]})")))
        return
    target.parent.mkdir(exist_ok=True)
    if packed and target.is_dir():  # parts may lie in it
        for path in sorted(staging.iterdir(), key=lambda path: path.name == PACKED):
            os.replace(path, target / path.name)
    else:
        put_in_place(staging, target)
    imported.fetched += runs
    if running:
        imported.reports[record.name] = ["still being written, and copied as far as it is; import it again at its end"]


def _passed_over(packed: bool) -> Callable[[str, list[str]], list[str]]:
    """What of a folder is not copied: checkpoints; of a packed study the folders in it, which are its parts."""
    return lambda at, names: [name for name in names if name == "checkpoints" or (packed and Path(at, name).is_dir())]


def _runs_in(folder: Path) -> list[str]:
    """The ids of the runs in a packed folder; none where there is none."""
    try:
        return list(map(str, read_coded(folder / PACKED, columns=["run_id"])["run_id"].to_pylist()))
    except (OSError, ValueError, LookupError, pa.ArrowException):
        return []


def _head(record: Path) -> dict[str, Any]:
    try:
        head = json.loads(read_bytes(record / "run.json"))
    except (OSError, ValueError, RecursionError):
        return {}
    return head if isinstance(head, dict) else {}


def _bring(
    run: Found,
    out: Path,
    here: set[str],
    held: dict[str, tuple[str, Path]],
    there: Counter[str],
    imported: Pulled,
) -> None:
    try:
        given, history = run.read()
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, MemoryError, OSError) as error:
        said = str(error) if isinstance(error, UsageError) else f"what it holds is no run ({reason_of(error)})"
        said = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else said
        imported.problems.append(Problem(run.name, without_paths(said)))
        return
    if run.tool == wandb.TOOL and given["id"] in here:
        imported.recorded_here += 1
        return
    version, before = held.get(place_of(given), ("", None))
    if version != run.version and there[version]:  # that is the record of another run, which begins alike
        given["id"] = digest(given["id"], run.name)[:12]
        version, before = held.get(place_of(given), ("", None))
    if version == run.version:
        copy = before is not None and before.name in imported.fetched
        imported.copies += copy
        imported.unchanged += not copy
        return
    written = imported.add(out, {**given, "version": run.version}, history, run.name, [before] if before else ())
    if written:
        held[place_of(given)] = run.version, written


def _imported(out: Path) -> dict[str, tuple[str, Path]]:
    """Place -> version and folder of what was imported before."""
    return {place: (str(origin["version"]), path) for place, origin, path in origins(out) if "version" in origin}
