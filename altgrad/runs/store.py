"""Reading run records: one folder, a folder of folders, or the packed form; a damaged one never hides the others."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, cached_property, lru_cache, partial
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import BaseModel, ValidationError

from altgrad.config import ExperimentConfig, UsageError, first_mistake, parse_config
from altgrad.runs.canary import Canary, read_canaries
from altgrad.runs.files import read_bytes
from altgrad.runs.schema import (
    LAYER_COLUMNS,
    SCHEMA_VERSION,
    UNENDED,
    Head,
    NewerRecord,
    Problem,
    Proof,
    RecordError,
    arm_id,
    digest,
    public_line,
)
from altgrad.runs.secrets import left_out, mask, mask_record
from altgrad.runs.site_names import NO_NAMES, SiteNames, named_alike, names_file, own_names, site_names
from altgrad.runs.stores import StorePath, as_now, located
from altgrad.runs.tables import is_number, is_text, open_table, read_coded, read_digests
from altgrad.runs.writer import TABLES, is_locked, merged, read_jsonl

T = TypeVar("T", pd.DataFrame, "Packed")
PACKED = "runs.parquet"
DEEPEST = 50
"""Levels of lists and objects in run.json."""
LONGEST_PART = 4000
"""Characters of a part of run.json that is looked for among those of other records."""
FRAME = 3000
"""Bytes that a table in pandas takes beside its values."""
_HALF = re.compile("[\ud800-\udfff]")
PART = re.compile("part-([0-9]{3,})")
"""What the folder of a part of a packed study is called."""
LAYER_TEXT = LAYER_COLUMNS[1:-1]
"""The columns of the per-layer table that hold text."""


class Kept:
    """The proved tables that were asked for lately, of runs and of packed studies, up to so many bytes; for any thread.

    What is beyond them is read again when it is asked for; the table that was asked for last is kept, however large.
    Those of layers never displace a history, which is small and read more often.

    Args:
        most: bytes.
        layers: bytes of tables of layers among them; default: `most`.
    """

    def __init__(self, most: int = 2**30, *, layers: int | None = None) -> None:
        self._most, self._layers, self._size = most, most if layers is None else layers, Counter[str]()
        self._tables = defaultdict[str, OrderedDict[Any, tuple[int, Any]]](OrderedDict)
        self._lock = Lock()

    @cached_property
    def runs(self) -> Kept:
        """For single runs on a disk: layers of few, since each is read again at the cost of one, a study as a whole."""
        return Kept(self._most // 2, layers=self._most // 16)

    def of(self, read: Callable[[str], T], name: str) -> T:
        """What `read` gives for the name, read again where it is not kept."""
        with self._lock:
            tables = self._tables[name]
            if read in tables:
                tables.move_to_end(read)
                return tables[read][1]  # type: ignore[no-any-return]
        table = read(name)
        size = table.size if isinstance(table, Packed) else size_of(table)
        with self._lock:
            self._size[name] += size - tables.pop(read, (0, table))[0]  # another thread may have read it too
            while self._size.total() > self._most or self._size["layers"] > self._layers:
                first = "layers" if self._tables["layers"] else name
                if not self._tables[first]:
                    break
                self._size[first] -= self._tables[first].popitem(last=False)[1][0]
            tables[read] = size, table
        return table


def size_of(table: pd.DataFrame) -> int:
    """The bytes of a table whose text is categories, at a hundredth of what `memory_usage` costs."""
    return FRAME + len(table) * sum(2 if kind == "category" else 8 for kind in table.dtypes)


@dataclass(frozen=True)
class RunRecord:
    """One run as recorded.

    Attributes:
        run: run.json with `status` resolved: a run without an end whose lock is free is ``crashed``.
        config: the validated config.
        arm: the arm's id, computed from config and data fingerprint (never taken from the file).
        tables: gives the table "history" or "layers", text of which may be categories. They are read, or cut out of a
            packed study, when somebody asks for them, and kept for a while (`Kept`).
        secrets: where the file holds what looks like a secret, as earlier versions recorded it; `run` is without it.
        names: by which the metrics of another loop's run are read.
        proved: whether the proofs in `run` are of these tables, and so stand for what is in them.
        moves: how many codes of weights flipped and how many updates were proposed, in all (`moves_in`), where that was
            found when the tables were read.
    """

    run: dict[str, Any]
    config: ExperimentConfig
    arm: str
    tables: Callable[[str], pd.DataFrame] = field(repr=False, compare=False)
    secrets: tuple[str, ...] = ()
    names: SiteNames = field(default=NO_NAMES, compare=False)
    proved: bool = False
    moves: tuple[float, float] | None = field(default=None, repr=False, compare=False)

    @property
    def history(self) -> pd.DataFrame:
        """One row a logged step; column `step` and the metrics, float64; the caller's own."""
        table = self.tables("history")
        if self.config.foreign is None:
            return table.copy(deep=False)
        names = self.names.columns(name for name in table if name != "step")
        same = all(name == column for name, column in names.items())
        return table.copy(deep=False) if same else table.rename(columns=names)

    @property
    def layers(self) -> pd.DataFrame:
        """The long per-layer table, columns `LAYER_COLUMNS`; the caller's own."""
        return _text_as(self.tables("layers"), "str").copy(deep=False)

    @property
    def coded(self) -> pd.DataFrame:
        """`layers` with categories for text, which are compared and grouped at a fraction of the cost; only to read."""
        return _text_as(self.tables("layers"), "category")

    @property
    def looked(self) -> bool:
        """Whether the per-layer table has rows; known without reading one that is proved."""
        return bool(self.run["tables"]["layers"]["rows"] if self.proved else len(self.tables("layers")))

    @property
    def id(self) -> str:
        """The run's id."""
        return str(self.run["id"])

    @property
    def title(self) -> str:
        """What the run is called: as it was named, in any script, else its id."""
        return str(self.run.get("title") or "").strip() or str(self.run["id"])

    @property
    def status(self) -> str:
        """One of `STATUSES`."""
        return str(self.run["status"])

    @property
    def ending(self) -> str:
        """`status` as it is told: "not recorded" of a run that counts as finished since its log says of no ending."""
        report = (self.run.get("origin") or {}).get("report", ())
        unsaid = self.status == "finished" and any(line.startswith(UNENDED) for line in report)
        return "not recorded" if unsaid else self.status


def record_of(
    run: dict[str, Any],
    config: ExperimentConfig,
    tables: Callable[[str], pd.DataFrame],
    secrets: tuple[str, ...],
    names: SiteNames = NO_NAMES,
    proved: bool = False,
    moves: tuple[float, float] | None = None,
) -> RunRecord:
    """A record whose run.json was checked: another loop's run is in the arm that its config and `names` make."""
    config, run = names.config(config), {**run, "data": names.data(run["data"])}
    return RunRecord(run, config, arm_id(config, run["data"], run["id"]), tables, secrets, names, proved, moves)


def moves_in(layers: pd.DataFrame) -> tuple[float, float]:
    """How many codes of weights flipped and how many updates were proposed in all steps of `RunRecord.coded`."""
    statistic, values = layers["statistic"].array, layers["value"].to_numpy(np.float64)
    flips, updates = (
        float(np.nansum(values[statistic.codes == statistic.categories.get_loc(name)]))
        if name in statistic.categories
        else 0.0
        for name in ("flips", "updates")
    )
    return flips, updates


def _as_its_site_has_them(records: list[RunRecord], sources: Iterable[Path]) -> list[RunRecord]:
    """The records with the names that their site gives; of two runs of one arm and seed, the later one is an arm alone.

    Raises:
        UsageError: the site's file of names is none.
    """
    names, seen, found = site_names(sources), set[tuple[str, int]](), []
    if names != NO_NAMES:
        records = [record if record.config.foreign is None else _renamed(record, names) for record in records]
    alike = own_names(record.config for record in records)
    for record in records:
        if record.config.foreign is not None:
            config = named_alike(record.config, alike)
            if config is not record.config:
                record = replace(record, config=config, arm=arm_id(config, record.run["data"], record.id))
            place = record.arm, record.config.seed
            if place in seen:
                record = replace(record, arm=f"{record.arm}-{digest(record.id)[:4]}")
            seen.add(place)
        found.append(record)
    return found


def _renamed(record: RunRecord, names: SiteNames) -> RunRecord:
    stated = parse_config(record.run["config"], source=record.id)
    return record_of(record.run, stated, record.tables, record.secrets, names, record.proved, record.moves)


def _text_as(layers: pd.DataFrame, kind: Literal["str", "category"]) -> pd.DataFrame:
    """The per-layer table with its text as text or as categories, which it may be already."""
    other = [name for name in LAYER_TEXT if name in layers and (layers[name].dtype == "category") == (kind == "str")]
    return layers.astype(dict.fromkeys(other, kind)) if other else layers


@dataclass(frozen=True, eq=False)
class RunSet:
    """Every readable record of some sources, ordered by id, what was left out, and the canaries of their machines."""

    records: tuple[RunRecord, ...]
    problems: tuple[Problem, ...] = ()
    canaries: tuple[Canary, ...] = ()
    found: dict[str, tuple[Any, Any]] = field(default_factory=dict, init=False, repr=False)
    """What `altgrad.analysis.loader.ExperimentDataLoader.memo` found in these records, with the functions, by name."""


def default_sources() -> tuple[Path, ...]:
    """Where records are looked for: ``ALTGRAD_RUNS``, else the working directory, else the checkout.

    In the variable paths and addresses of stores (`located`) are joined by the system's path separator.

    Of a site's folder and of a checkout these are ``experiments/recorded`` and ``experiments/runs``. The checkout's,
    beside the package, are taken where the working directory has neither.
    """
    chosen = os.environ.get("ALTGRAD_RUNS")
    if chosen is not None:
        return tuple(map(located, filter(None, re.split(f"{re.escape(os.pathsep)}(?!//)", chosen))))
    beside = Path(__file__).resolve().parents[2]
    places = [(root / "experiments" / "recorded", root / "experiments" / "runs") for root in (Path.cwd(), beside)]
    return next((own for own in places if any(map(Path.is_dir, own))), places[0])


def load_runs(sources: Iterable[Path] | None = None) -> RunSet:
    """Read every record under `sources` (default: `default_sources`).

    A source is a run's folder, a packed study, or a folder that holds such (two levels down at most). Missing sources
    hold no runs. A record that two sources hold is read once, a finished one before any other; of two parts of one
    packed study, which hold no run twice, the first one's. Records that cannot be used are listed in `problems` and do
    not stop the others.
    """
    found: dict[str, RunRecord] = {}
    held, kept = Held(), Kept()
    sources = as_now(default_sources() if sources is None else sources)
    canaries, problems = find_canaries(sources)
    for source in sources:
        for folder, where, records, damaged in read_places(source, kept, problems):
            problems += damaged
            twice = held.twice(folder, where, [record.id for record in records])
            problems += twice.values()
            for record in records:
                if record.id in twice:
                    continue
                known = found.setdefault(record.id, record)
                if known is record:
                    continue
                better, worse = (record, known) if _rank(record) > _rank(known) else (known, record)
                found[record.id] = better
                if worse.status in ("failed", "crashed"):
                    again = f"{record.id}: {worse.status}, and recorded again as {better.status}"
                    problems.append(Problem(where, again))
        problems += _set_aside_records(source)
    pa.default_memory_pool().release_unused()  # a third of the records' size, of reading them
    records = _as_its_site_has_them([found[key] for key in sorted(found)], sources)
    return RunSet(tuple(records), tuple(problems), canaries)


def find_canaries(sources: Iterable[Path]) -> tuple[tuple[Canary, ...], list[Problem]]:
    """The canaries that lie with the records of some sources, each once, and the files of them that are damaged."""
    found: list[Canary] = []
    problems = []
    for source in sources:
        for folder in dict.fromkeys([source, *(each for each in record_folders(source) if (each / PACKED).exists())]):
            try:
                found += [one for one in read_canaries(folder) if not any(map(one.repeats, found))]
            except RecordError as error:
                problems.append(Problem(folder.name, str(error)))
    return tuple(found), problems


class Held:
    """Which part of a packed study holds which run."""

    def __init__(self) -> None:
        self._where: dict[Path, dict[str, str]] = {}

    def twice(self, folder: Path, where: str, runs: Collection[str]) -> dict[str, Problem]:
        """The runs of a folder that an earlier part of the same study holds, each with its problem."""
        if not (folder / PACKED).exists():
            return {}
        study = folder.parent if PART.fullmatch(folder.name) else folder
        known = self._where.setdefault(study, {})
        remedy = "the first is kept; remove the part that should not be there"
        again = {run: known[run] for run in runs if run in known}
        known.update(dict.fromkeys(set(runs) - set(again), where))
        return {
            run: Problem(f"{where}/{run}", f"{first} holds this run already: {remedy}") for run, first in again.items()
        }


def sources_fingerprint(sources: Iterable[Path] | None = None) -> str:
    """Hex sha256 over names, bytes and locks of every record file under `sources`: what readers could see change.

    Of the files on a store nothing is read: what it says of them stands for their bytes.
    """
    total = hashlib.sha256()
    sources = tuple(map(located, default_sources() if sources is None else sources))
    if names := names_file(sources):
        total.update(_content(names))
    for source in sources:
        for path in sorted(source.rglob("*")):
            passed = {"wandb", "checkpoints"} & set(path.relative_to(source).parts)
            if path.suffix in (".json", ".jsonl", ".parquet") and not passed and (content := _content(path)):
                locked = path.name == "run.json" and is_locked(path.parent)
                total.update(f"{path.relative_to(source).as_posix()}\0{locked}\0".encode())
                total.update(content)
    return total.hexdigest()


def _content(path: Path) -> bytes:
    """A sha256 of a file, nothing of what is none; of one that cannot be read, which readers name, that this is so."""
    try:
        if not path.is_file():
            return b""
        return path.state() if isinstance(path, StorePath) else hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        return str(error.errno).encode()


def newest_time(sources: Iterable[Path] | None = None) -> datetime | None:
    """When the newest record ended (or began), read from the records' heads alone; None without records.

    Heads that cannot be read are passed over: `load_runs` names them.
    """
    times: list[datetime] = []
    for folder, _ in record_places(sources):
        damage = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, pa.ArrowException)
        with contextlib.suppress(*damage):
            if (folder / PACKED).exists():
                texts = read_coded(folder / PACKED, columns=["run"])["run"].to_pylist()
            else:
                texts = [read_bytes(folder / "run.json")]
            ends = [head.get("ended") or head["created"] for head in map(json.loads, texts)]
            times += [datetime.fromisoformat(end).astimezone(UTC) for end in ends]
    return max(times, default=None)


def _rank(record: RunRecord) -> int:
    return ("crashed", "interrupted", "running", "failed", "finished").index(record.status)


def set_aside(source: Path) -> list[Path]:
    """Earlier attempts of runs that were repeated, ``<id>.<n>.old``: in the source or one level down."""
    return sorted(source.glob("*.old")) + sorted(source.glob("*/*.old"))


def _set_aside_records(source: Path) -> list[Problem]:
    """Earlier attempts of runs that were repeated: one that failed or crashed is named, never dropped silently."""
    problems = []
    for folder in set_aside(source):
        try:
            status = read_run(folder).status
        except RecordError as error:
            status = f"damaged ({error})"
        if status not in ("interrupted", "finished"):
            problems.append(Problem(folder.name, f"an earlier attempt of a run that was repeated: {status}"))
    return problems


def read_run(folder: Path, kept: Kept | None = None) -> RunRecord:
    """Read one run's folder; its tables are checked, and kept with those of other runs where `kept` is given.

    Raises:
        RecordError: for a missing, truncated or inconsistent record; one line with file, key and remedy.
    """
    path = folder / "run.json"
    # The lock is asked before the file is read: a run that ends in between is then seen as ended, not as crashed.
    locked = is_locked(folder)
    try:
        run = json.loads(read_bytes(path).decode("utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{folder.name}/run.json: missing; delete the folder or restore the file") from None
    except (ValueError, OSError, RecursionError) as error:
        raise RecordError(f"{folder.name}/run.json: not readable JSON ({reason_of(error)}); restore the file") from None
    run, config, secrets = _checked(run, folder.name, locked)
    proofs = run.get("tables") or {}
    read = partial(_stored_table, folder, proofs, run["id"])
    tables: Callable[[str], pd.DataFrame]
    if proved := proofs.keys() >= {*TABLES}:
        tables = partial((kept or Kept()).of, read)
    else:  # they may be written on: what is read now is the record
        tables = {name: read(name) for name in TABLES}.__getitem__
    history, layers = map(tables, TABLES)
    if "val_loss" not in history or not history["val_loss"].notna().any():
        _needs_loss(run, config, folder.name)
    moves = moves_in(_text_as(layers, "category")) if proved else None  # a table that is not kept is not read for them
    return record_of(run, config, tables, secrets, proved=proved, moves=moves)


def _stored_table(folder: Path, proofs: Mapping[str, Any], run: str, name: str) -> pd.DataFrame:
    table = read_table(folder, name, Proof.model_validate(proofs[name]) if name in proofs else None, run)
    return _ordered(table) if name == "history" else table


def check_run(run: Mapping[str, Any], where: str, with_loss: bool) -> None:
    """What readers ask of a run.json, asked of one that is not written yet.

    Raises:
        RecordError: they would refuse it; `where` is what its line begins with.
        ValueError, TypeError: it is no JSON.
    """
    read, config, _ = _checked(json.loads(json.dumps(run, allow_nan=False)), where, False)
    if not with_loss:
        _needs_loss(read, config, where)


def _ordered(history: pd.DataFrame) -> pd.DataFrame:
    if history["step"].is_monotonic_increasing and history["step"].is_unique:
        return history
    return history.drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)


def _needs_loss(run: Mapping[str, Any], config: ExperimentConfig, where: str) -> None:
    """RecordError for a finished run of AltGrad's own without a validation loss; other loops need not have one."""
    if run["status"] == "finished" and config.foreign is None:
        raise RecordError(f"{where}/history: key 'val_loss' is missing from a finished run; record the run again")


def _checked(run: Any, where: str, locked: bool) -> tuple[dict[str, Any], ExperimentConfig, tuple[str, ...]]:
    """run.json with its status resolved and without secrets, its config, and where there were any.

    Raises:
        RecordError: something is missing or of another kind.
    """
    file = f"{where}/run.json"
    if not isinstance(run, dict):
        raise RecordError(f"{file}: a record is a JSON object; restore the file")
    level: list[Any] = [run]
    for _ in range(DEEPEST):
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
        level = [each for each in level if isinstance(each, dict | list)]
    if level:  # how deep Python itself can go depends on who calls
        raise RecordError(f"{file}: nested too deeply; restore the file")
    try:
        text = json.dumps(run, allow_nan=False, ensure_ascii=False)
    except ValueError:
        raise RecordError(f"{file}: a number is NaN or infinite, not null; restore the file") from None
    if _HALF.search(text):  # tables hold no half of a character
        run = json.loads(_HALF.sub("\ufffd", text))
    given, run = run, mask_record(run, own=())  # not by this environment's secrets: what is read depends on the file
    secrets = () if run == given else tuple(place for place in left_out(run) if place not in left_out(given))
    if isinstance(schema := run.get("schema"), int) and schema > SCHEMA_VERSION:
        raise NewerRecord(f"{file}: schema {schema} is newer than {SCHEMA_VERSION}; update altgrad")
    try:
        head = Head.model_validate(run)
        config = parse_config(run["config"], source=f"{file}: config")
    except ValidationError as error:
        remedy = "restore the file, or pull the run again" if "origin" in run else "restore the file"
        raise RecordError(f"{file}: {public_line(first_mistake(error))}; {remedy}") from None
    except UsageError as error:
        raise RecordError(mask(str(error))) from None
    run |= head.model_dump(by_alias=True, exclude={"origin", "tables"})
    run["failure"] = head.failure and head.failure.to_json()
    if run["status"] == "running" and not locked and "origin" not in run:  # W&B knows whether one of its runs goes on
        run["status"] = "crashed"
    return _shared(run | {"config": _shared(run["config"])}), _shared_config(config), secrets


def _shared(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, each part that another record has too as one object: they are only to be read."""
    return {sys.intern(key): _part(value) for key, value in values.items()}


def _part(value: Any) -> Any:
    if isinstance(value, str):
        return sys.intern(value)
    return _first(value, json.dumps(value)) if isinstance(value, dict | list) else value


def _shared_config(config: ExperimentConfig) -> ExperimentConfig:
    """The config with sections, and names of what it states, that it shares with others: half of what it takes."""
    for name, value in config.__dict__.items():
        if isinstance(value, BaseModel):
            config.__dict__[name] = _first(value, value.model_dump_json(exclude_unset=True))
    stated = config.model_fields_set
    object.__setattr__(config, "__pydantic_fields_set__", _first(stated, " ".join(sorted(stated))))
    return config


def _first(value: Any, text: str) -> Any:
    """The first of the values of this kind and text, as long as it is remembered."""
    return _known(type(value).__name__, text).setdefault("first", value) if len(text) <= LONGEST_PART else value


@lru_cache(4096)
def _known(kind: str, text: str) -> dict[str, Any]:
    return {}


def read_table(folder: Path, name: str, proof: Proof | None = None, run: str | None = None) -> pd.DataFrame:
    """The table "history" or "layers" of a run's folder, in the order in which it was written.

    Args:
        folder: of the run.
        name: of the table.
        proof: of the table once it is Parquet, where run.json has it.
        run: the run's id.

    Raises:
        RecordError: it is damaged or not the one that was recorded, or a column is missing or of the wrong kind.
    """
    parquet, jsonl = folder / f"{name}.parquet", folder / f"{name}.jsonl"
    where = f"{folder.name}/{name}"
    columns = LAYER_COLUMNS if name == "layers" else ("step",)
    frame = None
    try:
        # A run that ends in between has its table as Parquet when its lines are gone, hence the second look.
        for path in (parquet, jsonl, parquet):
            with contextlib.suppress(FileNotFoundError):
                if path is parquet:
                    frame = _unpacked(read_coded(path, proof, run))
                else:
                    rows = read_jsonl(path)
                    frame = pd.DataFrame(merged(rows) if name == "history" else rows)
                break
    except (ValueError, OSError, OverflowError, pa.ArrowException) as error:
        raise RecordError(f"{where}: damaged ({reason_of(error)}); restore the file or record the run again") from None
    if frame is None and proof is not None:
        raise RecordError(f"{where}: missing; restore the file or record the run again")
    if frame is None or frame.empty:
        kinds = dict.fromkeys(columns, "float64") | dict.fromkeys(LAYER_TEXT if name == "layers" else (), "category")
        return pd.DataFrame({column: pd.Series(dtype=kind) for column, kind in kinds.items()})
    missing = [column for column in columns if column not in frame]
    if missing:
        raise RecordError(f"{where}: column {missing[0]!r} is missing; restore the file")
    if twice := frame.columns[frame.columns.duplicated()].tolist():
        raise RecordError(f"{where}: column {str(twice[0])[:80]!r} is there twice; restore the file")
    return _numeric(frame, where, [column for column in frame if name == "history" or column == "value"])


def _unpacked(table: pa.Table) -> pd.DataFrame:
    """A table in memory, its coded text as categories."""
    kinds = {field.name: field.type for field in table.schema}
    if len(kinds) == table.num_columns:  # at a tenth of what it costs in pandas
        numbers = {name: pa.float64() for name, kind in kinds.items() if is_number(kind) and name != "step"}
        if pa.types.is_integer(kinds.get("step", pa.null())) and not table["step"].null_count:
            numbers["step"] = pa.int64()
        table = table.cast(pa.schema(kinds | numbers), safe=False)
    if len(kinds) < table.num_columns or not any(map(pa.types.is_dictionary, kinds.values())):
        frame = table.to_pandas()
        if frame.columns.is_unique:
            frame.columns = _names(*frame.columns)
        return frame
    columns: dict[str, Any] = {}  # a column at a time, at a third of what it costs in pandas
    for name, column in zip(kinds, table.unify_dictionaries().combine_chunks().itercolumns(), strict=True):
        if words := pa.types.is_dictionary(column.type) and column.num_chunks:
            codes = column.chunk(0).indices.fill_null(-1).to_numpy()
            words = _words(*column.chunk(0).dictionary.to_pylist())
            columns[name] = pd.Categorical.from_codes(codes, dtype=words, validate=False)
        else:
            columns[name] = column.to_pandas().array
    return pd.DataFrame(columns, columns=_names(*columns), copy=False)


@lru_cache(4096)
def _names(*names: str) -> pd.Index:
    """The names of columns, which the tables of many runs share."""
    return pd.Index(names)


@lru_cache(4096)
def _words(*words: str) -> pd.CategoricalDtype:
    """The categories of these words, which the tables of many runs share: alone they take more memory than the rows."""
    return pd.CategoricalDtype(words)


def _numeric(frame: pd.DataFrame, where: str, columns: Sequence[str]) -> pd.DataFrame:
    wanted = {**dict.fromkeys(columns, "float64"), "step": "int64"}
    other = {name: kind for name, kind in wanted.items() if frame[name].dtype != kind}
    try:
        return frame.astype(other) if other else frame
    except (ValueError, TypeError, OverflowError) as error:
        raise RecordError(f"{where}: a value is not a number ({reason_of(error)}); restore the file") from None


def read_place(folder: Path, where: str, kept: Kept) -> tuple[list[RunRecord], list[Problem]]:
    """The records in a run's folder or a packed study, and those that cannot be used; `where` as `record_places`."""
    try:
        if (folder / PACKED).exists():
            return _read_packed(folder, where, kept)
        return [read_run(folder, kept if isinstance(folder, StorePath) else kept.runs)], []
    except RecordError as error:
        return [], [Problem(where, str(error))]


def read_places(
    source: Path, kept: Kept, unread: list[Problem]
) -> Iterator[tuple[Path, str, list[RunRecord], list[Problem]]]:
    """`record_places` of a source, each with what `read_place` gives; of a store, which is slow, several at once."""

    def read(place: tuple[Path, str]) -> tuple[Path, str, list[RunRecord], list[Problem]]:
        return *place, *read_place(*place, kept)

    places = list(record_places([source], unread))
    if not isinstance(source, StorePath):
        yield from map(read, places)
        return
    with ThreadPoolExecutor(16) as pool:
        yield from pool.map(read, places)


def _read_packed(folder: Path, where: str, kept: Kept) -> tuple[list[RunRecord], list[Problem]]:
    """RecordError for files that are missing or damaged as a whole."""
    try:
        proofs = read_digests(folder)
        runs = _named(folder / PACKED, partial(read_coded, proof=proofs.get("runs")))
        rows = [(str(row["run_id"]), str(row["run"])) for row in runs.to_pylist()]
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise _damaged(where, error) from None
    read = partial(_read_table_of_many, folder, where, proofs)
    tables: Callable[[str], Packed] = partial(kept.of, read) if proofs else {n: read(n) for n in TABLES}.__getitem__
    history, _ = map(tables, TABLES)
    with_loss = history.having("val_loss")
    records, problems = [], []
    for identity, text in rows:
        inside = f"{where}/{identity}"
        try:
            run, config, secrets = _checked(json.loads(text), inside, False)
            if run["id"] != identity:
                raise RecordError(
                    f"{inside}: its record is of run {run['id']}; restore the folder from version control"
                )
            if identity not in with_loss:
                _needs_loss(run, config, inside)
            records.append(record_of(run, config, partial(_packed_table, tables, identity), secrets))
        except (RecordError, ValueError, RecursionError) as error:
            problems.append(Problem(inside, reason_of(error)))
    return records, problems


def _damaged(where: str, error: object) -> RecordError:
    return RecordError(f"{where}: damaged packed study ({reason_of(error)}); restore the folder from version control")


def _read_table_of_many(folder: Path, where: str, proofs: Mapping[str, Proof], name: str) -> Packed:
    try:
        return Packed(packed_table(folder / f"{name}.parquet", proofs.get(name)))
    except ValueError as error:
        raise _damaged(where, error) from None


def _packed_table(tables: Callable[[str], Packed], identity: str, name: str) -> pd.DataFrame:
    """One run's rows of a table; of the history only the columns in which it has a value."""
    return tables(name).of(identity)


def packed_table(path: Path, proof: Proof | None = None) -> pa.Table:
    """A table of many runs: its text, the column run_id among it, as dictionaries.

    Args:
        path: of the file.
        proof: of the table, where the study has digests.

    Raises:
        ValueError: it is damaged or not the one that was recorded, or a column is missing or of the wrong kind; the
            message begins with the file's name.
    """
    return _named(path, partial(_packed_rows, proof=proof))


def _named(path: Path, read: Callable[[Path], pa.Table]) -> pa.Table:
    """What `read` gives; where it fails, the message says for which file."""
    try:
        return read(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path.name}: {reason_of(error)}") from None


def _packed_rows(path: Path, proof: Proof | None) -> pa.Table:
    file = open_table(path, proof, coded=True)
    table = file.read().unify_dictionaries().combine_chunks()
    kinds = {column.name: column.type for column in table.schema}
    if len(kinds) < table.num_columns:
        raise ValueError("a column is there twice")
    text = {name for name, kind in kinds.items() if pa.types.is_dictionary(kind) and is_text(kind.value_type)}
    if "run_id" not in text or "step" not in kinds:
        raise ValueError("it has no columns run_id and step")
    layers = path.stem == "layers"
    for name, kind in kinds.items():
        worded = name == "run_id" or (layers and name in LAYER_TEXT)
        if not (name in text or pa.types.is_null(kind) or not len(table) if worded else is_number(kind)):
            raise ValueError(f"a value of column {name!r} is not {'text' if worded else 'a number'}")
    needed = {"run_id", *(LAYER_COLUMNS if layers else ("step",))}
    if missing := needed - set(kinds):
        raise ValueError(f"it has no column {min(missing)}")
    if empty := [name for name in sorted(needed - {"value"}) if table[name].null_count]:
        raise ValueError(f"it has a row without {empty[0]}")
    return table


@dataclass(eq=False)
class Packed:
    """A table of many runs, of which each run's rows are a slice. Once these are asked for, pandas alone has it."""

    table: pa.Table

    def __post_init__(self) -> None:
        self.size, self._of = self.table.nbytes, dict[str, pd.DataFrame]()

    @cached_property
    def _by_run(self) -> tuple[pd.DataFrame, Mapping[str, slice]]:
        """Rows in the order of runs, text as categories, figures in float64; and where the rows of each run are."""
        kept = ("run_id", "step", *LAYER_TEXT)
        kinds = [(field.name, field.type if field.name in kept else pa.float64()) for field in self.table.schema]
        frame = self.table.cast(pa.schema(kinds), safe=False).to_pandas()
        if not frame["run_id"].cat.codes.is_monotonic_increasing:  # the rows of some run lie apart
            frame = frame.sort_values("run_id", kind="stable")
        runs = frame.pop("run_id").cat
        ends = np.searchsorted(runs.codes, range(len(runs.categories)), side="right").tolist()
        self.table = self.table.schema.empty_table()
        return frame, {run: slice(*place) for run, place in zip(runs.categories, pairwise([0, *ends]), strict=True)}

    def of(self, identity: str) -> pd.DataFrame:
        """The rows of one run, in their order; none where it has none. Of a history, the columns with a value in it."""
        if identity not in self._of:
            frame, places = self._by_run
            rows = frame.iloc[places.get(identity, slice(0))].reset_index(drop=True)
            if "layer" not in rows:
                rows = _ordered(rows.dropna(axis="columns", how="all") if len(rows) else rows[["step"]])
            self._of[identity] = rows
        return self._of[identity]

    def having(self, column: str) -> set[str]:
        """The runs that have a value in `column`."""
        if column not in self.table.column_names:
            return set()
        known = ~np.isnan(self.table[column].cast(pa.float64(), safe=False).to_numpy())
        return set(self.table["run_id"].filter(pa.array(known)).unique().to_pylist())


def record_places(
    sources: Iterable[Path] | None = None, unread: list[Problem] | None = None
) -> Iterator[tuple[Path, str]]:
    """Folders that hold a record or a packed study, and where each lies in its source (default: `default_sources`).

    Folders that cannot be read are added to `unread`.
    """
    for source in map(located, default_sources() if sources is None else sources):
        for folder in record_folders(source, unread):
            yield folder, _where(folder, source)


def _where(folder: Path, source: Path) -> str:
    return folder.name if folder == source else folder.relative_to(source).as_posix()


def record_folders(source: Path, unread: list[Problem] | None = None) -> list[Path]:
    """Folders that hold a record or a packed study: the source itself, or those one or two levels down.

    The parts of a packed study (`altgrad.runs.pack.pack_part`) are such folders, in the order in which they were
    written; tables that lie beside them come first. Folders that cannot be read are added to `unread`.
    """

    @cache
    def inside(folder: Path) -> tuple[list[Path], bool]:
        """The folders in a folder, and whether it holds a record itself."""
        try:
            paths = sorted(folder.iterdir())
            record = any(path.name in (PACKED, "run.json", "history.jsonl", "history.parquet") for path in paths)
            return [path for path in paths if path.is_dir() and path.suffix not in (".old", ".tmp")], record
        except PermissionError as error:  # of a store, another error
            if unread is not None:
                unread.append(
                    Problem(
                        _where(folder, source), f"cannot be read ({error.strerror}); allow it, or move the folder away"
                    )
                )
            return [], False

    def below(folder: Path) -> list[Path]:
        return inside(folder)[0]

    def holds_record(folder: Path) -> bool:
        return inside(folder)[1]

    def with_parts(folder: Path) -> list[Path]:
        parts = below(folder) if (folder / PACKED).exists() else []
        return [folder, *(part for part in parts if (part / PACKED).exists())]

    if not source.is_dir():
        return []
    if holds_record(source):
        return with_parts(source)
    children = below(source)
    places = (with_parts(child) if holds_record(child) else filter(holds_record, below(child)) for child in children)
    return [folder for some in places for folder in some]


def reason_of(error: object) -> str:
    """Why a file was refused, on one line: reasons reach public pages."""
    return public_line(error)[:200]
