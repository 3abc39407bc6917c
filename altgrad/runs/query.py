"""Questions to recorded runs: which, what is in one, what differs between two, are they sound, which may go."""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import operator
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from altgrad.config import ExperimentConfig, UsageError, config_keys, parse_config
from altgrad.formats import get_format
from altgrad.runs import locks
from altgrad.runs.canary import unlike
from altgrad.runs.schema import STATUSES, NewerRecord, Problem, RecordError, digest, run_id
from altgrad.runs.secrets import in_words
from altgrad.runs.store import (
    PACKED,
    Held,
    Kept,
    RunRecord,
    RunSet,
    find_canaries,
    load_runs,
    read_places,
    read_run,
    read_table,
    record_folders,
    set_aside,
)
from altgrad.runs.stores import as_now
from altgrad.runs.tables import DIGESTS
from altgrad.runs.writer import CLOCK_SLACK, REPORT, is_locked

LARGEST = int(sys.float_info.max)
_FIELDS = ("id", "arm", "status", "study", "seed", "created", "ended", "seconds", "data", "failure", "wandb_url")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le, ">=": operator.ge, "!=": operator.ne, "=": operator.eq, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_CONDITION = re.compile(r"(?P<key>[^<>=!]+?)\s*(?P<sign><=|>=|!=|==|=|<|>)\s*(?P<value>.*)", re.DOTALL)
_FILES = re.compile(rf"run\.json|{re.escape(REPORT)}|lock|checkpoints|wandb|(history|layers)\.(jsonl|parquet)|.*\.tmp")


def values(record: RunRecord) -> dict[str, Any]:
    """Everything about a run that has one value, by its dotted key.

    Fields of the record, its config (of a foreign run only what it states, its own keys as they are), ``summary.``,
    ``environment.`` and ``code.``, and of each metric of the history the last value as ``last.``.
    """
    run, config = record.run, record.config
    found: dict[str, Any] = {key: run.get(key) for key in _FIELDS}
    found |= {"title": record.title} if record.title != record.id else {}
    found |= {
        "arm": record.arm,
        "seed": config.stated_seed,
        "study": config.study,
        "data": run["data"]["name"],
    }
    found["failure"] = ", ".join(run["failure"]["kinds"]) if run["failure"] else None
    for key in config_keys():
        if key != "foreign" and key not in found and config.states(key):
            found[key] = _inside(config, key)
    found |= {key: value for key, value in (config.foreign or {}).items() if key not in found}
    for part in ("summary", "environment", "code"):
        found |= {f"{part}.{key}": value for key, value in run[part].items()}
    found |= {f"origin.{key}": value for key, value in (run.get("origin") or {}).items() if key != "report"}
    found["data.sha256"] = run["data"]["sha256"]
    history = record.history
    found["last.step"] = int(history["step"].iloc[-1]) if len(history) else None
    for column in history.columns.drop("step"):
        known = history[column].dropna()
        found[f"last.{column}"] = float(known.iloc[-1]) if len(known) else math.nan
    return found


def _inside(config: ExperimentConfig, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part, None)
    return list(value) if isinstance(value, tuple) else value


def has_ended(record: RunRecord) -> bool:
    """Whether a run came to an end of its own, good or bad.

    One that was interrupted, or whose process was killed, did not, and is run again.
    """
    return record.status in ("finished", "failed", "crashed") and bool(record.run.get("ended"))


def ended_losses(folders: Iterable[Path]) -> dict[str, float]:
    """The final loss of every run in the folders that has ended, by id; infinite for one that did not finish."""
    return losses_of(load_runs(tuple(folders)).records)


def losses_of(records: Iterable[RunRecord]) -> dict[str, float]:
    """`ended_losses` of some records."""
    found: dict[str, float] = {}
    for record in records:
        if has_ended(record):
            loss = (record.run.get("summary") or {}).get("val_loss")
            sound = isinstance(loss, float) and math.isfinite(loss)
            found[record.id] = float(loss) if sound and record.status == "finished" else math.inf  # type: ignore[arg-type]
    return found


def select(records: Iterable[RunRecord], conditions: Sequence[str]) -> list[RunRecord]:
    """The records that meet all conditions, such as ``quantize.weight=e4m3`` or ``last.loss<2.5``.

    Comparisons are ``= != < <= > >=``; numbers compare as numbers, times and other text as text. A list meets
    ``=`` by any of its elements. A run without the key meets ``!=`` only.

    Raises:
        UsageError: a condition of another form, an unknown key, or a comparison that its values do not have.
    """
    records = list(records)
    if not conditions:
        return records
    known = [values(record) for record in records]  # not by id: attempts that were set aside share theirs
    tests = [_test(condition, known) for condition in conditions]
    return [record for record, found in zip(records, known, strict=True) if all(test(found) for test in tests)]


def _test(condition: str, known: Sequence[Mapping[str, Any]]) -> Callable[[Mapping[str, Any]], bool]:
    parts = _CONDITION.fullmatch(condition.strip())
    if parts is None:
        raise UsageError(f"--where {condition[:80]!r}: write KEY=VALUE, KEY!=VALUE, KEY<VALUE ...")
    key, sign, text = parts["key"].strip(), parts["sign"].replace("==", "="), parts["value"].strip()
    keys = {*config_keys(), *_FIELDS, *(key for found in known for key in found)}
    if key not in keys:
        near = difflib.get_close_matches(key, sorted(keys), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "altgrad runs show ID lists the keys of a run"
        raise UsageError(f"--where {condition[:80]!r}: no run has the key {key[:80]!r}; {hint}")
    if key.startswith("quantize."):
        with contextlib.suppress(ValueError):
            text = get_format(text).name
    wanted = None
    with contextlib.suppress(ValueError):
        wanted = float(text)

    def meets(found: Mapping[str, Any]) -> bool:
        value = found.get(key)
        if isinstance(value, list | tuple):
            hit = any(_text(element) == text for element in value)
            return hit == (sign == "=") if sign in ("=", "!=") else False
        if value is None:
            return (text.lower() in ("null", "none")) == (sign == "=") if sign in ("=", "!=") else False
        if isinstance(value, int | float) and not isinstance(value, bool) and wanted is not None:
            return _COMPARE[sign](float(value), wanted)
        if sign not in ("=", "!=") and not isinstance(value, str):
            reason = f"{key} is {_text(value)[:40]}, which has no order with {text}"
            raise UsageError(f"--where {condition[:80]!r}: {reason}")
        return _COMPARE[sign](_text(value), text.lower() if isinstance(value, bool) else text)

    return meets


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def find(runs: RunSet, prefix: str) -> RunRecord:
    """The run with this id, or the only one whose id begins so.

    Raises:
        UsageError: there is none, or more than one.
    """
    exact = [record for record in runs.records if record.id == prefix]
    found = exact or [record for record in runs.records if prefix and record.id.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(record.id for record in found[:4]) + (", ..." if len(found) > 4 else "")
        raise UsageError(f"{prefix[:80]!r} is the beginning of {len(found)} ids: {some}; give more of it")
    near = difflib.get_close_matches(prefix, [record.id for record in runs.records], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "altgrad runs list shows them"
    raise UsageError(f"no run has an id that begins with {prefix[:80]!r}; {hint}")


def difference(first: RunRecord, second: RunRecord) -> list[tuple[str, Any, Any]]:
    """What differs, as key and both values (None where a run has no such key), in the order of `values`."""
    one, two = values(first), values(second)
    keys = [key for key in dict.fromkeys([*one, *two]) if key not in ("id", "created", "ended")]
    return [(key, one.get(key), two.get(key)) for key in keys if not _same(one.get(key), two.get(key))]


def _same(one: Any, two: Any) -> bool:
    both_nan = isinstance(one, float) and isinstance(two, float) and math.isnan(one) and math.isnan(two)
    return both_nan or bool(one == two)


def table(
    records: Sequence[RunRecord], what: Literal["runs", "history", "layers"], columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """One frame of many runs: a row a run with all its `values`, or their histories or layers with column run_id.

    Args:
        records: the runs.
        what: which table.
        columns: metrics of the histories; default: all.

    Raises:
        UsageError: no run has one of `columns`.
    """
    if what == "runs":
        found = dict[str, list[Any]]()  # columns: a dict a run takes ten times as much
        for number, record in enumerate(records):
            for key, value in values(record).items():
                column = found.setdefault(key, [])
                column += [math.nan] * (number - len(column))
                column.append(value)
        for column in found.values():
            column += [math.nan] * (len(records) - len(column))
        return pd.DataFrame({key: _one_kind(pd.Series(column)) for key, column in found.items()})
    frames = [getattr(record, what).assign(run_id=record.id) for record in records]
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        return pd.DataFrame(columns=["run_id", "step"])
    frame = pd.concat(frames, ignore_index=True)
    if columns is not None:
        if missing := [column for column in columns if column not in frame]:
            raise UsageError(f"no run has a metric {missing[0][:80]!r}")
        frame = frame[list(dict.fromkeys(["run_id", "step", *columns]))]
    return frame[["run_id", *frame.columns.drop("run_id")]]


def _one_kind(column: pd.Series) -> pd.Series:
    """A column that a file can hold: lists, and values of several kinds, become text."""
    kinds = {type(value) for value in column.dropna()}
    if kinds <= {int, float}:  # beyond 64 bits, no file has integers
        huge = column.dtype == object and max((abs(value) for value in column.dropna()), default=0)
        return (
            column.map(str, na_action="ignore")
            if huge > LARGEST
            else column.astype("float64")
            if huge >= 2**63
            else column
        )
    if kinds == {bool} or kinds <= {str}:
        return column
    return column.map(lambda value: json.dumps(value) if not isinstance(value, str) else value, na_action="ignore")


class Verified(NamedTuple):
    """How many records there are, what is wrong with which, and what is no fault of any."""

    records: int
    problems: list[Problem]
    notes: list[str]


def verify(sources: Iterable[Path]) -> Verified:
    """Check every record under `sources`.

    Its schema; that its id is its folder's name and belongs to its config and data; that its tables are those that were
    recorded; their steps in order; a row that was cut short; clocks that jumped; one id recorded twice with different
    content, or in two parts of a packed study. Notes say which records have nothing that proves their tables, and which
    machines are described alike and do not compute alike.
    """
    sources = as_now(sources)
    canaries, problems = find_canaries(sources)
    count, unproved, held, kept = 0, 0, Held(), Kept(2**28)
    seen: dict[str, tuple[str, str]] = {}
    for folder, where, records, damaged in (
        place for source in sources for place in read_places(source, kept, problems)
    ):
        packed = (folder / PACKED).exists()
        problems += damaged
        problems += held.twice(folder, where, [record.id for record in records]).values()
        count += len(records) + len(damaged)
        unproved += len(records) if packed and not (folder / DIGESTS).exists() else 0
        for record in records:
            place = f"{where}/{record.id}" if packed else where
            found = (
                _record_problems(record) if packed else [*_folder_problems(folder, record), *_record_problems(record)]
            )
            unproved += not packed and (folder / "history.parquet").exists() and not record.run.get("tables")
            problems += [Problem(place, line) for line in found]
            first, said = seen.setdefault(record.id, (place, content := _said(record)))
            if said != content:
                problems.append(Problem(place, f"another record of this id, with other content, is {first}"))
    notes = [f"nothing proves the tables of {unproved} records, which an earlier version wrote"] if unproved else []
    return Verified(count, problems, notes + unlike(canaries))


def _folder_problems(folder: Path, record: RunRecord) -> list[str]:
    found = []
    if folder.name != record.id:
        found.append(f"the folder is not called by the record's id, {record.id}; rename it")
    for name in ("history", "layers"):
        lines, parquet = folder / f"{name}.jsonl", folder / f"{name}.parquet"
        if lines.exists() and parquet.exists() and record.status != "running":
            found.append(f"{name}.jsonl is left beside {name}.parquet: the run was killed as it closed; no row is lost")
        elif lines.exists() and record.status != "running" and (cut := _cut_short(lines)):
            found.append(f"{name}.jsonl: its last row, of which {cut} bytes were written, is lost")
        if not lines.exists() and not parquet.exists():
            found.append(f"{name}: missing, neither as .parquet nor as .jsonl")
    steps = read_table(folder, "history")["step"]
    if not (steps.diff().dropna() > 0).all():
        at = int(steps[steps.diff() <= 0].iloc[0])
        found.append(f"history: step {at} is repeated or out of order; readers take the last row of a step")
    return found


def _cut_short(path: Path) -> int:
    last = path.read_bytes().rpartition(b"\n")[2]
    with contextlib.suppress(ValueError):
        json.loads(last)
        return 0
    return len(last)


def _record_problems(record: RunRecord) -> list[str]:
    run, found = record.run, []
    foreign = record.config.foreign is not None
    stated = parse_config(run["config"], source=record.id) if foreign else record.config
    expected = run_id(stated, run["data"])
    by_place = "origin" in run and foreign  # pulled: the id is of its place in W&B
    if record.secrets:  # the id of such a run belongs to a config with them
        remedy = "take it out of the file, record the run again, or pull it again with --full"
        held = f"run.json holds what looks like a secret, and is read without it: {in_words(record.secrets)}"
        found.append(f"{held}; {remedy}")
    elif record.id != expected and not by_place:
        found.append(f"the id does not belong to config and data, which give {expected}")
    elif run.get("arm") not in (None, record.arm) and not foreign:  # its arm is what its site's names make it
        found.append(f"key 'arm' is {str(run['arm'])[:80]!r} and config and data give {record.arm}")
    if record.status == "failed" and not run["failure"]:
        found.append("it failed, and key 'failure' does not say why")
    history, layers = record.history, record.tables("layers")  # its text as it is: to make it plain takes longest
    if record.status == "finished" and history.empty:
        found.append("history: a finished run without a row")
    if len(layers) and (layers["step"] < 0).any():
        found.append("layers: a step below zero")
    if "seconds" in history and (history["seconds"].diff() < 0).any():
        at = int(history["step"][history["seconds"].diff() < 0].iloc[0])
        found.append(f"history: column seconds goes back at step {at}: a clock jumped")
    return found + _clock_problems(run)


def _clock_problems(run: Mapping[str, Any]) -> list[str]:
    found = [
        f"the clock jumped by {event.get('seconds')} s while it ran: created and ended are not to be compared"
        for event in run["events"]
        if isinstance(event, dict) and event.get("kind") == "clock_jump"
    ]
    created = datetime.fromisoformat(run["created"])
    if created > datetime.now(UTC) + timedelta(days=1):
        found.append(f"created {run['created']} lies in the future: a clock is wrong")
    if found or not run["ended"]:
        return found
    wall = (datetime.fromisoformat(run["ended"]) - created).total_seconds()
    seconds = run.get("seconds")
    if wall < 0:
        found.append(f"ended {run['ended']} before it was created, {run['created']}: a clock jumped")
    elif isinstance(seconds, int | float) and seconds > wall + CLOCK_SLACK:
        found.append(f"it took {seconds:.0f} s, and {wall:.0f} s lie between created and ended: a clock jumped")
    return found


def _said(record: RunRecord) -> str:
    """What a record says of a run, as a digest: its head, and the losses, of which packing keeps all."""
    losses = record.history.get("val_loss", pd.Series(dtype="float64")).dropna()
    head = [record.run.get(key) for key in ("status", "summary", "failure", "config")]
    return digest(head, losses.map(repr).tolist())


@dataclass(frozen=True)
class Prunable:
    """A record's folder that may be removed, or why it may not."""

    folder: Path
    status: str
    size: int
    refused: str | None = None


def prunable(
    sources: Iterable[Path],
    *,
    statuses: Sequence[str] = (),
    older_than: float | None = None,
    conditions: Sequence[str] = (),
    old: bool = False,
) -> list[Prunable]:
    """The local records that meet all criteria; packed studies are never among them.

    Running ones, and ones that a later version of AltGrad wrote, are refused.

    Args:
        sources: folders of records.
        statuses: of `STATUSES`, or ``damaged`` for records that cannot be read.
        older_than: in days, by the time the run ended, or else began.
        conditions: as for `select`; a damaged record meets none.
        old: only earlier attempts that were set aside (``<id>.<n>.old``).
    """
    unknown = set(statuses) - {*STATUSES, "damaged"}
    if unknown:
        raise UsageError(f"--status {sorted(unknown)[0][:80]!r}: one of {', '.join(STATUSES)}, damaged")
    records: dict[Path, RunRecord | None] = {}
    newer: set[Path] = set()
    for source in sources:
        for folder in filter(Path.is_dir, set_aside(source)) if old else record_folders(source):
            if not (folder / PACKED).exists():
                try:
                    records[folder] = read_run(folder)
                except RecordError as error:
                    newer |= {folder} if isinstance(error, NewerRecord) else set()
                    records[folder] = None
    readable = [record for record in records.values() if record is not None]
    meeting = {id(record) for record in select(readable, conditions)}
    before = None if older_than is None else datetime.now(UTC) - timedelta(days=older_than)
    found = []
    for folder, record in records.items():
        status = "damaged" if record is None else record.status
        if statuses and status not in statuses:
            continue
        if record is None:
            time = datetime.fromtimestamp(folder.stat().st_mtime, UTC)
        else:
            time = datetime.fromisoformat(record.run["ended"] or record.run["created"])
        if (before and time > before) or (conditions and id(record) not in meeting):
            continue
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        kept = "a later version of AltGrad wrote it" if folder in newer else _refusal(folder)
        found.append(Prunable(folder, status, size, "it is running" if status == "running" else kept))
    return found


def _refusal(folder: Path) -> str | None:
    if is_locked(folder):
        return "it is being written"
    if folder.is_symlink():
        return "it is a link; remove it by hand"
    if strangers := sorted(path.name for path in folder.iterdir() if not _FILES.fullmatch(path.name)):
        return f"it holds {strangers[0][:80]!r}, which is no part of a record"
    return None


def prune(chosen: Prunable) -> None:
    """Remove a record's folder, its lock held so that nobody begins to write it.

    Raises:
        UsageError: it may not be removed.
    """
    if reason := chosen.refused or _refusal(chosen.folder):
        raise UsageError(f"{chosen.folder.name}: kept, since {reason}")
    try:
        with open(chosen.folder / "lock", "ab") as lock:
            locks.lock(lock)
            shutil.rmtree(chosen.folder)
    except BlockingIOError:
        raise UsageError(f"{chosen.folder.name}: kept, since it is being written") from None
    except OSError as error:
        raise UsageError(f"{chosen.folder.name}: cannot be removed ({error.strerror})") from None
