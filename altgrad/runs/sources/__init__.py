"""Ways in for runs that other tools logged: each finds its own in a folder, and says what it could not read.

A way in is a module with ``find``: it takes its files out of `found.Files` and gives a `found.Found` a run. Those whose
files are told by name or content come first; tables, which may be anything, last.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from altgrad.config import UsageError
from altgrad.runs.files import read_bytes
from altgrad.runs.schema import Problem, digest, without_paths
from altgrad.runs.sources import mlflow, tables, tensorboard, trackio, trainer, wandb
from altgrad.runs.sources.found import Files, Found
from altgrad.runs.store import record_folders
from altgrad.runs.wandb_access import reason_of
from altgrad.runs.wandb_pull import Pulled
from altgrad.runs.wandb_records import known_runs, place_of, sole_writer

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
    or pulled from W&B keeps its record. Records are copied as they are, without their checkpoints.

    Args:
        path: a file, or a folder with those of any of the tools.
        out: folder of the records.
        progress: is told the state and how many runs there are, after each run.

    Raises:
        UsageError: no such file, no run in it, or `out` cannot be written.
    """
    found, passed = find_runs(path)
    records = record_folders(path)
    tools = [tool for tool, _ in Counter(run.tool for run in found).most_common()] + ["records"] * bool(records)
    imported = Pulled(f"{path.name or path.resolve().name} ({', '.join(tools)})", problems=list(passed))
    imported.listed = len(found) + len(records)
    with sole_writer(out):
        for record in records:
            if (out / record.name).exists():
                imported.unchanged += 1
                continue
            shutil.copytree(record, out / record.name, symlinks=True, ignore=shutil.ignore_patterns("checkpoints"))
            imported.fetched.append(record.name)
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
                progress(imported, len(found))
    return imported


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
    written = imported.add(out, {**given, "version": run.version}, history, run.name)
    if written and before and before != written:  # its name or seed was not known the last time
        shutil.rmtree(before)
    if written:
        held[place_of(given)] = run.version, written


def _imported(out: Path) -> dict[str, tuple[str, Path]]:
    """Place -> version and folder of what was imported before."""
    return {place_of(origin): (str(origin["version"]), path) for path, origin in _origins(out) if "version" in origin}


def _origins(out: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(out.glob("*/run.json")):
        try:
            origin = json.loads(read_bytes(path)).get("origin")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(origin, dict) and (path.parent / "history.parquet").exists():
            yield path.parent, origin
