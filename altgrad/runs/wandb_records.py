"""A run as W&B or another tool has it, made into a record: what AltGrad logged comes back as it was.

A record made here says where it came from in ``origin``: the kind of the source, entity, project and id there, the
state, heartbeat and line count that it was made from, when, and under ``report`` what could not be mapped or kept.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from altgrad.config import LONGEST_NOTES, ExperimentConfig, UsageError, one_line, parse_config
from altgrad.runs import locks
from altgrad.runs.files import read_bytes
from altgrad.runs.foreign import data_fingerprint, foreign_config, slug
from altgrad.runs.history import History, diverged, of_wandb
from altgrad.runs.names import METRICS, flattened, map_config
from altgrad.runs.names import columns as read_as
from altgrad.runs.precision import precision
from altgrad.runs.schema import SCHEMA_VERSION, Failure, arm_id, digest, run_id, with_seed
from altgrad.runs.secrets import in_words, left_out, mask, mask_record
from altgrad.runs.site_names import refused
from altgrad.runs.store import check_run, read_run
from altgrad.runs.tables import write_table
from altgrad.runs.writer import no_room, utc_time, write_json, write_rows
from altgrad.text import visible

STATUSES = ("finished", "failed", "crashed", "running")
"""W&B's states that are a record's too; every other one (killed, preempted, pending) is ``interrupted``."""

_KEPT = "is kept under its own name in all runs"
SHOWN = 30
"""Names that a line of a report lists."""

_STAGING = Path(".pull") / "new"
_PLACE = ("entity", "project", "id")


def make_record(
    given: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] | History, known: Iterable[str] = ()
) -> tuple[dict[str, Any], History]:
    """run.json and the history of a run that W&B or another tool described.

    Args:
        given: what `altgrad.runs.wandb_fetch` says of a run; `altgrad.runs.sources.found.described` for other tools.
        rows: its complete history, or the rows of it as W&B gives them.
        known: ids of records of the same run; a run of other code keeps the one that it has.

    Raises:
        UsageError: the run cannot be a record; the line says why.
        ValueError, TypeError, LookupError, OverflowError: what W&B described is of another kind than it should be.
    """
    history = rows if isinstance(rows, History) else of_wandb(rows)
    report = _folded(given.get("lines_of_source", ()))
    given = {**given, **{key: mask(given[key], key) for key in ("name", "notes")}, "config": mask(given["config"])}
    notes = str(given["notes"] or "")
    if len(notes) > LONGEST_NOTES:
        report.append(f"notes: cut from {len(notes):,} characters to {LONGEST_NOTES:,}")
        notes = notes[:LONGEST_NOTES]
    try:
        config, data, kept = _own(given, notes)
    except (AttributeError, LookupError, TypeError, ValueError):
        config, data, found = _foreign(given, notes)
        kept = {"id": foreign_id(given, config, known), "environment": dict(given.get("environment") or {}), "code": {}}
        kept["title"] = visible(str(given["name"] or given["id"]))[:200]
        report += found + metrics_report(history)
    columns = read_as(history.names)
    created, ended = _time(given["created"]), _time(given.get("heartbeat") or given["created"])
    ending = _ending(given, history)
    timed = next((history.table[name].to_numpy() for name, column in columns.items() if column == "seconds"), ())
    seconds = max((float(each) for each in timed if math.isfinite(each)), default=None)
    run = {
        "schema": SCHEMA_VERSION,
        "id": kept["id"],
        **({"title": title} if (title := kept.get("title")) and not _says(kept["id"], title) else {}),
        "arm": arm_id(config, data),
        "created": kept.get("created", created),
        "ended": None if ending["status"] == "running" else ended,
        "seconds": seconds,
        "config": config.model_dump(mode="json", exclude_unset=config.foreign is not None),
        "data": data,
        "environment": kept["environment"],
        "code": kept["code"],
        "wandb_url": given["url"],
        **ending,
        "origin": {
            "kind": given.get("kind", "wandb"),
            **{key: given[key] for key in ("entity", "project", "id", "state", "heartbeat", "lines")},
            **({"version": given["version"]} if "version" in given else {}),
            "pulled": utc_time(),
            "report": report,
        },
    }
    run = mask_record(run)
    if places := left_out({key: value for key, value in run.items() if key != "origin"}):
        report.append(f"left out, since it looks like a secret: {in_words(places)}")
    check_run(run, str(run["id"]), "val_loss" in columns.values())
    return run, history


def foreign_id(given: Mapping[str, Any], config: ExperimentConfig, known: Iterable[str] = ()) -> str:
    """A record's id for a run of other code: its name, its seed where that does not say it, a hash of where it lies.

    The one of `known` with this hash where there is one, whatever the run is called by now.
    """
    where = digest(given["entity"], given["project"], given["id"])[:8]
    name, seed = slug(str(given["name"] or given["id"])), config.stated_seed
    said = re.search(rf"(?:^|[-_.])(?:s|seed)[-_.]?{seed}(?=$|[-_])|[-_]{seed}$", name)
    new = f"{name if said else with_seed(name, config)}-{where}"
    return next((each for each in known if each.endswith(f"-{where}")), new)


def _says(identity: str, title: str) -> bool:
    """Whether an id is what its run is called, but for a seed and a hash."""
    return title == slug(title) and re.fullmatch(r"(?:-s-?\d+)?-[0-9a-f]{8}", identity.removeprefix(title)) is not None


def write_record(root: Path, run: Mapping[str, Any], history: History) -> Path:
    """Write an ended record whole: a reader sees it complete, or the one that was there before.

    Raises:
        UsageError: `root` has a record of this id that is not an earlier copy of this run; it is kept.
    """
    name = str(run["id"])
    target = root / name
    if target.exists() and (other := _other_run(target, run)):
        raise UsageError(f"{name}: {other} has this id already, and is kept")
    staging = staging_of(root, name)
    staging.mkdir(parents=True)
    proofs = {
        "history": write_table(history.table, staging / "history.parquet", run=name).model_dump(),
        "layers": write_rows(staging / "layers.parquet", (), name).model_dump(),
    }
    write_json(staging / "run.json", {**run, "tables": proofs})
    put_in_place(staging, target)
    return target


def staging_of(root: Path, name: str) -> Path:
    """Where a record is made before it gets its name; nothing is there."""
    staging = root / _STAGING / name
    shutil.rmtree(staging, ignore_errors=True)
    return staging


def put_in_place(staging: Path, target: Path) -> None:
    """Give a folder of `staging_of` its name, in place of an earlier one; after a kill in between it is made again."""
    gone = staging.with_name("earlier")
    shutil.rmtree(gone, ignore_errors=True)
    if target.exists():
        target.rename(gone)
    os.rename(staging, target)
    shutil.rmtree(gone, ignore_errors=True)


def _other_run(target: Path, run: Mapping[str, Any]) -> str | None:
    """Whose record lies at `target`, where it is not an earlier copy of `run`."""
    try:
        there = json.loads(read_bytes(target / "run.json"))
        origin = there.get("origin")
        if origin is None:
            return "a run that was recorded here"
        place = _place(there)
        from_file = origin["kind"] == "wandb-file" and run["origin"]["kind"] == "wandb"  # W&B has all that a file has
        same = from_file or (origin["kind"] == run["origin"]["kind"] and _place(run) == place)
        return None if same else f"the run {place} of {tool_of(there)}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        # The id of a run of other code holds its place in W&B: a damaged copy of it is made again.
        return None if run["config"].get("foreign") is not None else "a damaged record"


def _place(run: Mapping[str, Any]) -> str:
    return place_of(run["origin"])


def place_of(origin: Mapping[str, Any]) -> str:
    """Where a run lies in its tool: entity, project and id."""
    return "/".join(str(origin[key]) for key in _PLACE)


def tool_of(run: Mapping[str, Any]) -> str:
    """What wrote the run that a record was made of, such as "W&B" or "TensorBoard"."""
    kind = str(run["origin"].get("kind", "wandb"))
    return "W&B" if kind in ("wandb", "wandb-file") else kind


def origins(root: Path) -> Iterator[tuple[str, dict[str, Any], Path]]:
    """Place (`place_of`), origin and folder of every whole record that was made of another tool's run."""
    for path in sorted(root.glob("*/run.json")):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            origin = json.loads(read_bytes(path)).get("origin")
            if isinstance(origin, dict) and (path.parent / "history.parquet").exists():
                yield place_of(origin), origin, path.parent


@contextlib.contextmanager
def sole_writer(root: Path) -> Iterator[None]:
    """Only one pull or import writes to a folder at a time; what a killed one left half written is removed.

    Raises:
        UsageError: another one is at work there, or the folder cannot be written.
    """
    place = root / _STAGING.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        with open(place / "lock", "wb") as lock:
            try:
                locks.lock(lock)
            except BlockingIOError:
                raise UsageError(f"--out {root}: another pull or import is writing there; wait for it") from None
            shutil.rmtree(root / _STAGING, ignore_errors=True)
            yield
    except OSError as error:
        raise no_room(root, error) from None


def known_runs(root: Path) -> tuple[dict[str, list[Any]], list[str]]:
    """What earlier pulls brought, and what was recorded here: the manifest is the records themselves.

    Returns:
        ``entity/project/id`` -> [heartbeat, lines, state] of pulled records, and the ids of all others.
    """
    known: dict[str, list[Any]] = {}
    local: list[str] = []
    for path in sorted(root.glob("*/run.json")):
        try:
            run = json.loads(read_bytes(path))
            origin = run.get("origin")
            if origin is None:
                local.append(str(run["id"]))
            elif origin["kind"] == "wandb":
                known[_place(run)] = [origin["heartbeat"], origin["lines"], origin["state"]]
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            local.append(path.parent.name)  # damaged: `load_runs` names it, and nothing writes over it
    return known, local


def set_url(folder: Path, url: str) -> None:
    """Record the address that W&B gave a run which was synced after it had ended.

    Raises:
        UsageError: no web address, or the run is still being written; the record is as it was.
    """
    if not re.fullmatch(r"https?://[^\s@/]+/[^\s@]+", url) or len(url) > 2000:
        raise UsageError(f"{url[:80]!r} is not the address of a run; copy the one that 'wandb sync' printed")
    record = read_run(folder)
    if record.status == "running" and "origin" not in record.run:
        raise UsageError(f"{record.id} is still running; link it when it has ended")
    run = json.loads(read_bytes(folder / "run.json"))
    write_json(folder / "run.json", run | {"wandb_url": url})


def _own(given: Mapping[str, Any], notes: str) -> tuple[ExperimentConfig, dict[str, Any], dict[str, Any]]:
    """Config, data and the rest of a run that AltGrad logged; any error means that it did not."""
    config = {key: value for key, value in given["config"].items() if "." not in key}  # a sweep's are there once more
    kept = dict(config.pop("altgrad"))
    more = {"notes": notes, "tags": [str(tag) for tag in given["tags"]], "name": kept.get("name")}
    found = parse_config({**config, **more}, source=str(given["id"]))
    if run_id(found, kept["data"]) != kept["id"]:
        raise ValueError("another config or data than the id says")
    rest: dict[str, Any] = {key: dict(kept[key]) for key in ("environment", "code")}
    return found, dict(kept["data"]), rest | {key: str(kept[key]) for key in ("id", "created") if key in kept}


def _foreign(given: Mapping[str, Any], notes: str) -> tuple[ExperimentConfig, dict[str, Any], list[str]]:
    stated = flattened(given["config"]) if isinstance(given["config"], Mapping) else {}
    mapped, used = map_config(stated)
    dataset = mapped.get("data")
    known = dataset if isinstance(dataset, str) and dataset else None
    unknown = (
        f"not stated, {given['entity']}/{given['project']}" if given["entity"] else f"not stated, {given['project']}"
    )
    data = data_fingerprint((known or unknown)[:200])
    name, tags = slug(str(given["name"] or given["id"])), [str(tag) for tag in given["tags"]]
    config = foreign_config(stated, name=name, study=slug(str(given["project"])), notes=notes, tags=tags, strict=False)
    without = sorted(config.foreign or {})
    report = [f"config: {own} is read as {key}" for own, key in used.items() if own not in without]
    formats, said = precision(config.foreign or {})
    if formats:
        words = ", ".join(f"{name} {each}" for name, each in formats["quantize"].items() if isinstance(each, str))
        report.append(f"config: {', '.join(said)}: read as {words}")
    others = refused(config)
    told = {*said, *others.values()}
    report += some("config: kept under their own names: ", [key for key in without if key not in told])
    report += [f"config: {own} {_KEPT}: not all its values are ones of {key}" for key, own in others.items()]
    if not config.states("seed"):
        ask = "which key is the seed? Say it in altgrad.yaml, as seed: KEY"
        report.append(f"config: no seed is stated, and the run is an arm by itself: {ask}")
    return config, data, report


def metrics_report(history: History) -> list[str]:
    """What was read under another name, is kept under its own name, or could not be kept."""
    columns = read_as(history.names)
    report = [f"metric: {own} is read as {column}" for own, column in columns.items() if own != column]
    unknown = [name for name, column in columns.items() if name == column and name not in METRICS]
    if not {"loss", "val_loss"} & {*columns.values()} and unknown:
        ask = "which is the loss? Say it in altgrad.yaml, as metrics: {val_loss: NAME}"
        report.append(f"metrics: none has the name of a loss: {ask}")
    return [*report, *some("metrics: kept under their own names: ", sorted(unknown)), *_folded(history.lines)]


def summed(reports: Iterable[Sequence[str]]) -> dict[str, int]:
    """The lines of the reports of some runs, and of how many each is; of a key of several runs the last word alone."""
    counts = Counter(chain.from_iterable(reports))
    kept = {name for line in counts for name, found, _ in [line.partition(f" {_KEPT}")] if found}
    return {line: count for line, count in counts.items() if line.partition(" is read as ")[0] not in kept}


def _folded(lines: Sequence[str]) -> list[str]:
    """Some of the lines, and how many more there are."""
    more = len(lines) - SHOWN
    return [*lines[:SHOWN], *([f"and {more:,} more lines like these"] if more > 0 else [])]


def some(what: str, names: Sequence[str]) -> list[str]:
    """A line with some of `names` and how many more there are; none without any."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return [f"{what}{', '.join(names[:SHOWN])}{more}"] if names else []


def _ending(given: Mapping[str, Any], history: History) -> dict[str, Any]:
    """Status, failure, events and summary: the ones that AltGrad put into W&B's summary, else by W&B's state.

    What its tool holds as finished and has diverged, has failed.
    """
    status = given["state"] if given["state"] in STATUSES else "interrupted"
    ending: dict[str, Any] = {"status": status, "failure": None, "events": [], "summary": _numbers(given["summary"])}
    with contextlib.suppress(LookupError, TypeError, ValueError):
        own = json.loads(given["summary"]["altgrad"])
        failure = own["failure"] and Failure(**own["failure"]).to_json()
        if status != "running" and own["status"] in (*STATUSES, "interrupted"):
            kept = {key: own[key] for key in ("status", "summary")}
            return {**kept, "failure": failure, "events": list(own["events"])}
    if status == "failed":
        reason = f"{tool_of({'origin': given})} holds the run as failed, without a reason"
        ending["failure"] = Failure(("unknown",), history.last_step, message=reason).to_json()
    if status == "finished" and (failure := diverged(history.table)):
        ending |= {"status": "failed", "failure": failure.to_json()}
    return ending


def _numbers(summary: Any) -> dict[str, Any]:
    """The summary's plain values; histories hold the rest."""
    items: Iterable[tuple[Any, Any]] = summary.items() if isinstance(summary, Mapping) else ()
    plain = {str(key): value for key, value in items if isinstance(value, int | float | str)}
    finite = {key: value for key, value in plain.items() if not isinstance(value, float) or math.isfinite(value)}
    return {key: value for key, value in finite.items() if not key.startswith("_")}


def _time(text: Any) -> str:
    """W&B's time, which is UTC whether or not it says so, in ISO 8601."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        raise UsageError(f"{one_line(text)[:40]!r} is not a time") from None
    return utc_time(moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC))
