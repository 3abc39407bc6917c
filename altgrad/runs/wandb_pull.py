"""Runs of a W&B project, into local records: only what is new or changed, and never longer silent than allowed.

The fetching is done by a child process (`altgrad.runs.wandb_fetch`) with its input closed. It is ended, with what it
has started, as soon as nothing has come for a time; what has come until then is kept, and the next pull goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from altgrad.runs.history import History
from altgrad.runs.schema import Problem
from altgrad.runs.wandb_access import (
    WITHOUT_PROMPT,
    not_wanted,
    project_and_entity,
    reason_of,
    unusable,
    without_key,
)
from altgrad.runs.wandb_records import known_runs, make_record, origins, place_of, sole_writer, tool_of, write_record

SILENCE_SECONDS = 60.0
THREADS = 6
END_SECONDS = 1.0


@dataclass
class Pulled:
    """What a pull brought."""

    project: str
    entity: str | None = None  # as W&B gives it; None where nothing was listed
    listed: int = 0  # runs that the project has
    fetched: list[str] = field(default_factory=list)  # ids of the records that were written
    unchanged: int = 0  # runs that an earlier pull brought as they are
    copies: int = 0  # files that hold the same run as others do
    recorded_here: int = 0  # runs that were recorded here; their records are kept
    problems: list[Problem] = field(default_factory=list)  # runs that could not be fetched or made into a record
    reports: dict[str, list[str]] = field(default_factory=dict)  # by id: what was renamed, what could not be kept
    reason: str | None = None  # why the pull ended early; None where all was seen

    @property
    def in_words(self) -> str:
        """How many runs there were, and what became of them."""
        counts = {"fetched": len(self.fetched), "unchanged": self.unchanged, "copies of others": self.copies}
        counts["recorded here"] = self.recorded_here
        parts = [f"{count} {what}" for what, count in {**counts, "left out": len(self.problems)}.items() if count]
        where = f"{self.entity}/{self.project}" if self.entity else self.project
        return f"{where}: {self.listed} runs" + (f" ({', '.join(parts)})" if parts else "")

    def add(
        self,
        out: Path,
        described: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]] | History,
        where: str = "",
        before: Iterable[Path] = (),
    ) -> Path | None:
        """Write the record of a run that was described under `out`, or note why there can be none; its folder.

        `before` are folders of the same run: it keeps its id, and one of another id is removed.
        """
        before = list(before)
        try:
            run, history = make_record(described, rows, [folder.name for folder in before])
            written = write_record(out, run, history)
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            self.problems.append(Problem(where or str(described.get("id")), reason_of(error)))
            return None
        for folder in before:
            if folder != written:
                shutil.rmtree(folder)
        self.fetched.append(run["id"])
        if run["origin"]["report"]:
            self.reports[run["id"]] = run["origin"]["report"]
        return written


def pull(
    out: Path,
    project: str | None = None,
    entity: str | None = None,
    *,
    silence: float = SILENCE_SECONDS,
    threads: int = THREADS,
    full: bool = False,
    progress: Callable[[Pulled, int], None] | None = None,
) -> Pulled:
    """Fetch the runs of a project into records under `out`.

    Args:
        out: folder of the records; one recorded here is never replaced.
        project, entity: default: WANDB_PROJECT, else altgrad; WANDB_ENTITY, else the key's own.
        silence: seconds without anything from W&B after which the pull ends.
        threads: histories fetched at a time, 1 to 8; more gets 429.
        full: fetch every run again, also unchanged ones.
        progress: is told the state and how many runs are to be fetched, after each run.

    Raises:
        UsageError: `out` cannot be written, or another pull is writing there. That W&B gives nothing is no error but
            `Pulled.reason`.
    """
    project, entity = project_and_entity(project, entity)
    pulled = Pulled(project, entity)
    if reason := not_wanted() or unusable():
        pulled.reason = reason
        return pulled
    with sole_writer(out):
        known, local = known_runs(out)
        request: dict[str, Any] = {"project": project, "entity": entity, "known": {} if full else known, "local": local}
        request |= {"threads": min(max(threads, 1), 8), "timeout": max(int(silence), 5)}
        with contextlib.closing(_events(request, silence)) as events:
            _take(events, out, pulled, progress)
    return pulled


def _take(
    events: Iterable[dict[str, Any]], out: Path, pulled: Pulled, progress: Callable[[Pulled, int], None] | None
) -> None:
    """Writes each run's record when all of it has come."""
    rows: dict[str, list[dict[str, Any]]] = {}
    held: dict[str, list[Path]] = {}
    for place, origin, folder in origins(out):
        if tool_of({"origin": origin}) == "W&B":
            held.setdefault(place, []).append(folder)
    expected = 0
    for event in events:
        match event["event"]:
            case "listed":
                pulled.listed, pulled.entity = event["runs"], event.get("entity", pulled.entity)
                expected = event.get("changed", 0)
            case "unchanged":
                pulled.unchanged += 1
            case "local":
                pulled.recorded_here += 1
            case "rows":
                if event.get("first"):
                    rows[event["id"]] = []
                rows[event["id"]] += event["rows"]
            case "run":
                pulled.add(out, event, rows.pop(event["id"], []), before=held.get(place_of(event), ()))
            case "failed":
                rows.pop(event["id"], None)
                pulled.problems.append(Problem(event["id"], event["reason"]))
            case "error":
                pulled.reason = event["reason"]
        if progress:
            progress(pulled, expected)


def _events(request: dict[str, Any], silence: float) -> Generator[dict[str, Any], None, None]:
    """What the child process says, until it has said the last, or nothing for `silence` seconds."""
    silent = f"nothing came from W&B's server for {silence:g} s: no answer, or only that it is busy"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        path = Path(scratch) / "request.json"
        path.write_text(json.dumps(request), encoding="utf-8")
        folders = {f"WANDB_{name}": scratch for name in ("DIR", "CACHE_DIR", "DATA_DIR")}
        package = str(Path(__file__).resolve().parents[2])
        search = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        with open(Path(scratch) / "stderr", "w+b") as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", "altgrad.runs.wandb_fetch", str(path)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, cwd=scratch, start_new_session=True,
                env={**os.environ, **WITHOUT_PROMPT, **folders, "PYTHONPATH": search},
            )  # fmt: skip
            ended = False
            try:
                assert child.stdout is not None
                for line in _lines(child.stdout.fileno(), silence):
                    event = json.loads(line) if line else {"event": "error", "reason": silent}
                    last, ended = event["event"] in ("done", "error"), bool(line)
                    yield event
                    if last:
                        return
                ended = True
                errors.seek(0)
                said = without_key(errors.read().decode(errors="replace")).strip().splitlines() or ["it gave no reason"]
                yield {"event": "error", "reason": reason_of(f"W&B's client ended: {said[-1]}")}
            finally:
                _end(child, END_SECONDS if ended and sys.exc_info()[0] is None else 0)


def _lines(source: int, silence: float) -> Iterator[bytes]:
    """Lines as they come; an empty one, the last, after `silence` seconds without any."""
    buffer, heard = b"", time.monotonic()
    while True:
        left = heard + silence - time.monotonic()
        if left <= 0 or not select.select([source], [], [], left)[0]:
            yield b""
            return
        data = os.read(source, 1 << 16)
        if not data:
            return
        *lines, buffer = (buffer + data).split(b"\n")
        if lines:
            yield from lines
            heard = time.monotonic()


def _end(child: subprocess.Popen[bytes], seconds: float) -> None:
    """Ends the child and its group, after `seconds` at most; W&B's own process ends when the child is gone."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(seconds)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdout:
        child.stdout.close()
