"""What every way in has in common: the files that lie in a folder, and a run that one of them found there."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from altgrad.config import UsageError
from altgrad.runs.canary import CANARIES
from altgrad.runs.history import History
from altgrad.runs.schema import UNENDED, digest, without_paths
from altgrad.runs.store import PACKED

CONFIGS = ("hparams", "config", "args", "params", "hyperparameters", "hyperparams")
"""Names of files of a run's folder that hold its config, as YAML or JSON."""
LARGEST_CONFIG = 10_000_000
_PASSED = {".git", "__pycache__", "node_modules", ".venv", ".pull", "checkpoints"}


class Found(NamedTuple):
    """A run that lies in some files, not read yet.

    Attributes:
        tool: what wrote it, such as "TensorBoard".
        name: where it lies in the folder that was given, for people.
        version: another text when the tool has written more.
        read: gives what is said of the run (`described`) and its history.
    """

    tool: str
    name: str
    version: str
    read: Callable[[], tuple[dict[str, Any], History]]


class Files:
    """The files below a folder, or one file, that no way in has taken yet."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.given = not self.path.is_dir()
        self.root = self.path.parent if self.given else self.path
        unread: list[OSError] = []
        there = sorted([self.path] if self.given else _below(self.path, unread))
        self.left = [path for path in there if path.is_file()]
        self.passed = [(self.name(path), "no regular file") for path in {*there}.difference(self.left) if path.exists()]
        """What looks like the log of a run and is none: where it lies, and why."""
        self.passed += [(self.name(Path(each.filename)), f"cannot be read ({each.strerror})") for each in unread]

    def take(self, belongs: Callable[[Path], bool]) -> list[Path]:
        """The files that belong to a way in; the others stay."""
        taken = [path for path in self.left if belongs(path)]
        gone = set(taken)
        self.left = [path for path in self.left if path not in gone]
        return taken

    def name(self, path: Path) -> str:
        """Where a file or folder lies in the given one, or what the given one is called."""
        inside = path.relative_to(self.root).as_posix()
        return inside if inside != "." else self.root.name or "run"


def _below(folder: Path, unread: list[OSError]) -> Iterator[Path]:
    for place, folders, files in os.walk(folder, onerror=unread.append):
        if "run.json" in files and ("history.parquet" in files or "history.jsonl" in files):
            folders[:] = [name for name in folders if name == "wandb"]  # a record of ours, with W&B's file in it
            continue
        folders[:] = sorted(set(folders) - _PASSED)
        if PACKED not in files:
            yield from (Path(place) / name for name in files if name != CANARIES)


def version_of(files: Iterable[Path]) -> str:
    """Changes when one of the files does, wherever they lie: their names, sizes, beginnings and ends."""
    return digest([(path.name, *_ends(path)) for path in files])[:16]


def _ends(path: Path, count: int = 1 << 16) -> tuple[int, str]:
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            parts = hashlib.sha256()
            for place in (0, max(0, size - count)):
                file.seek(place)
                parts.update(file.read(count))
    except OSError:
        return 0, ""
    return size, parts.hexdigest()


def mark_of(tool: str, place: Path, *first: Any) -> str:
    """What tells a run from others, wherever its folder is moved: its tool, the end of its place, how it begins."""
    return digest(tool, place.parts[-3:], str(first))[:12]


def described(
    tool: str,
    mark: str,
    name: str,
    project: str,
    *,
    config: Mapping[str, Any] | None = None,
    state: str = "finished",
    created: float | str | None = None,
    ended: float | str | None = None,
    notes: str = "",
    tags: Sequence[str] = (),
    environment: Mapping[str, Any] | None = None,
    lines: Sequence[str] = (),
    rows: int = 0,
) -> dict[str, Any]:
    """What a tool says of a run, in the form of `altgrad.runs.wandb_fetch`.

    Args:
        tool: what wrote it.
        mark: its identity, of `mark_of` or the tool's own.
        name: what people call it, or where it lies; the project that this begins with is left out.
        project: what it is one of.
        config, notes, tags, environment: as they were logged.
        state: one of `altgrad.runs.schema.STATUSES`.
        created, ended: seconds since 1970, or ISO 8601.
        lines: what is to be said of the reading.
        rows: how many were logged.
    """
    begin, end = iso(created), iso(ended)
    return {
        "kind": tool, "entity": "", "project": project or tool.lower(), "id": mark, "state": state,
        "name": name.removeprefix(f"{project}/"),
        "config": dict(config or {}), "summary": {}, "notes": notes,
        "tags": [str(tag) for tag in tags], "group": None, "url": None, "created": begin or end or _EPOCH,
        "heartbeat": end or begin, "lines": rows,
        "environment": dict(environment or {}), "lines_of_source": list(lines),
    }  # fmt: skip


_EPOCH = "1970-01-01T00:00:00+00:00"
NO_END = f"{UNENDED}{{tool}} does not say how a run ended: not recorded, and in --where status=finished"


def iso(moment: float | str | None) -> str | None:
    """ISO 8601 of seconds since 1970 or of such a text; None where it is no time."""
    try:
        if moment is None or isinstance(moment, str):
            return moment and datetime.fromisoformat(moment).isoformat()
        return datetime.fromtimestamp(moment, UTC).isoformat()
    except (OverflowError, ValueError, OSError):
        return None


def clock(moments: NDArray[np.float64]) -> tuple[float, float, list[str]]:
    """The first and the last of some times, in the order in which they were logged, and a line where they go back."""
    back = int((np.diff(moments) < 0).sum())
    said = [f"clock: it goes back {back} times from one row to the next"] if back else []
    return float(moments.min()), float(moments.max()), said


def config_beside(folder: Path, stem: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """The config of a run that lies beside its log, and what could not be read.

    Args:
        folder: of the run.
        stem: only ``<stem>.yaml`` and the like, where the folder holds the logs of several runs.
    """
    found: dict[str, Any] = {}
    lines = []
    for name in (stem,) if stem else CONFIGS:
        for suffix in (".yaml", ".yml", ".json"):
            path = folder / f"{name}{suffix}"
            if not path.is_file() or path.stat().st_size > LARGEST_CONFIG:
                continue
            try:
                text = path.read_text("utf-8")
                given = json.loads(text) if suffix == ".json" else yaml.load(text, _Loose)
            except (OSError, ValueError, yaml.YAMLError, RecursionError):
                lines.append(f"config: {path.name} cannot be read, and is left out")
                continue
            if isinstance(given, Mapping):
                found |= {str(key): value for key, value in given.items()}
    return found, lines


class _Loose(yaml.SafeLoader):
    """Reads numbers such as 1e-4 as such, and what only Python could make as text."""


def _as_text(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node) or suffix.rpartition(".")[2]
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else None


_Loose.add_multi_constructor("tag:yaml.org,2002:python/", _as_text)
_Loose.add_multi_constructor("!", _as_text)
_Loose.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def value_of(text: str) -> Any:
    """A config's value that a tool keeps as text: a number, a list, true, false or none where it reads as one."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.strip().lower() in words:
        return words[text.strip().lower()]
    kinds: tuple[Callable[[str], Any], ...] = (int, float, *([json.loads] if text.startswith("[") else []))
    for kind in kinds:
        try:
            return kind(text)
        except (ValueError, RecursionError):
            continue
    return text


def first_bytes(path: Path, count: int = 16) -> bytes:
    """How a file begins; nothing where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(count)
    except OSError:
        return b""


def cannot(path: Path, error: OSError) -> UsageError:
    """The line for a file that cannot be read."""
    return UsageError(without_paths(f"{path.name}: cannot be read ({error.strerror})"))
