"""Checkpoints: everything that decides how a run goes on, so that a resumed run is the uninterrupted one bit for bit.

A checkpoint is a folder of two files, ``<run>/checkpoints/step-<n>/``:

- ``tensors.safetensors``: weights, the optimizer's state, delayed scales; of a run on several processes a folder
  ``shards`` of such files, which any number of processes can read (`altgrad.training.distributed`);
- ``state.json``: all the rest (counters, the batch generator's state, the optimizer's groups), where each tensor's
  name stands for it, the identity of the run, and the sha256 of the tensors and of the state itself.

Nothing is unpickled. A folder is written beside its place and renamed when both files are on the disk, so a kill leaves
the checkpoint whole or none. The newest few are kept, and beside them ``best`` (the lowest validation loss) and
``anomaly`` (the first step whose loss or gradient was not finite).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from altgrad.config import ExperimentConfig, UsageError
from altgrad.runs import NothingToResume
from altgrad.runs.schema import digest
from altgrad.training.distributed import Processes

VERSION = 2
"""Of what a checkpoint holds and means: raise it when an older one cannot be gone on from."""

FOLDER = "checkpoints"
TENSORS, SHARDS, STATE = "tensors.safetensors", "shards", "state.json"
REMEDY = "run again without --resume to start from the beginning"


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run: the run's folder.
        config, data_sha256: whose checkpoints these are; one of another config or other data is refused.
        keep: how many of the newest are kept.
        processes: those that train; all of them save and load, and process 0 does what is done once.

    Attributes:
        chosen: the folder that `newest` has found.
    """

    chosen: Path | None = None

    def __init__(
        self,
        run: Path,
        config: ExperimentConfig,
        data_sha256: str,
        keep: int = 2,
        processes: Processes | None = None,
    ) -> None:
        self.folder, self.keep, self.processes = run / FOLDER, keep, processes or Processes()
        self._identity: dict[str, Any] = {"config": config.identity(), "data": data_sha256}

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write ``step-<step>`` and remove what is older than the newest `keep`.

        Raises:
            OSError: it cannot be written; the earlier ones are as they were.
        """
        self.save_as(f"step-{step}", state, self.keep)

    def save_as(self, name: str, state: Mapping[str, Any], keep: int | None = None) -> None:
        """Write one under a name of its own, in place of an earlier one of that name; not counted in `keep`."""
        target, temporary, former = (self.folder / part for part in (name, f".{name}.tmp", f".{name}.old"))
        tensors: dict[str, Tensor] = {}
        packed, shards = _packed(state, "", tensors), temporary / SHARDS

        def begin() -> tuple[None, None]:
            shutil.rmtree(temporary, ignore_errors=True)
            (shards if self.processes.kind else temporary).mkdir(parents=True)
            return None, None

        def end() -> tuple[None, None]:
            _write(temporary, self._identity, packed, tensors)
            if target.exists():  # a folder cannot replace another: `recover` undoes a kill between these two lines
                target.rename(former)
            temporary.rename(target)
            _to_disk(self.folder)
            shutil.rmtree(former, ignore_errors=True)
            for old in self.steps()[keep:] if keep is not None else ():
                shutil.rmtree(old)
            return None, None

        try:
            self.processes.first(begin)
            if self.processes.kind:
                self.processes.write(shards, tensors)
            self.processes.first(end)
        except BaseException:
            if not self.processes.rank:
                shutil.rmtree(temporary, ignore_errors=True)
            raise

    def has(self, name: str) -> bool:
        """Whether there is one of this name."""
        return (self.folder / name).is_dir()

    def steps(self) -> list[Path]:
        """The folders ``step-<n>``, newest first."""
        found = [path for path in self.folder.glob("step-*") if path.name[5:].isdecimal() and path.is_dir()]
        return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)

    def newest(self, notice: Callable[[str], None]) -> dict[str, Any]:
        """The state of the newest intact checkpoint; `notice` is told where a newer one was passed over.

        Tensors in shards are not read: `load` does, of the folder that is then `chosen`.

        Raises:
            NothingToResume: there is no checkpoint.
            UsageError: there are some, and none can be used; the line names the newest, what is wrong and the remedy.
        """
        self._recover()
        problems: list[UsageError] = []
        for folder in [*self.steps(), self.folder / "best"]:
            if not folder.is_dir():
                continue
            try:
                state, self.chosen = self.load(folder, unread=True), folder
                if problems:
                    notice(f"{problems[0]}; going on from {folder.name}, step {state['step']}")
                return state
            except UsageError as error:
                problems.append(error)
        if problems:
            raise UsageError(f"{problems[0]}, and no other checkpoint can be used; {REMEDY}")
        raise NothingToResume(f"{self.folder.parent.name} has no checkpoint (see checkpoint.every)")

    def load(self, folder: Path, owners: Mapping[str, Tensor] | None = None, *, unread: bool = False) -> dict[str, Any]:
        """The state that `folder` holds, its tensors on the CPU.

        Args:
            folder: of one checkpoint.
            owners: as of `Processes.read`, which all processes call together, where tensors are in shards.
            unread: leave tensors in shards where they are, None in their places.

        Raises:
            UsageError: it is damaged, of another version, another config or other data; the line names the file.
        """
        where = "/".join(folder.parts[-3:])
        try:
            document = json.loads((folder / STATE).read_text(encoding="utf-8"))
            content, expected = document["content"], document["sha256"]
            intact = digest(content) == expected
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            intact = False
        if not intact:
            raise UsageError(f"{where}/{STATE} is missing or damaged")
        try:
            return self._read(folder, where, content, owners, unread)
        except UsageError:
            raise
        except (LookupError, ValueError, TypeError, AttributeError, RecursionError):
            raise UsageError(f"{where}/{STATE} is damaged: not what a checkpoint holds") from None

    def _read(
        self, folder: Path, where: str, content: Mapping[str, Any], owners: Mapping[str, Tensor] | None, unread: bool
    ) -> dict[str, Any]:
        if content["version"] != VERSION:
            raise UsageError(f"{where}/{STATE} has version {content['version']} and this altgrad reads {VERSION}")
        theirs, ours = content["identity"], self._identity
        if (config := theirs["config"]) != ours["config"]:
            keys = (key for key in {*config, *ours["config"]} if config.get(key) != ours["config"].get(key))
            raise UsageError(f"{where}/{STATE} was written for another config ({', '.join(sorted(keys))})")
        if theirs["data"] != ours["data"]:
            raise UsageError(f"{where}/{STATE} was written for other data")
        if (shards := content.get("shards")) is not None:
            return self._read_shards(folder, where, content["state"], shards, owners, unread)
        try:
            raw = (folder / TENSORS).read_bytes()
            if hashlib.sha256(raw).hexdigest() != content["tensors_sha256"]:
                raise UsageError(f"{where}/{TENSORS} is truncated or damaged")
            tensors = load_tensors(raw)
        except (OSError, SafetensorError):
            raise UsageError(f"{where}/{TENSORS} is missing or cannot be read") from None
        found: dict[str, Any] = _unpacked(content["state"], tensors)
        return found

    def _read_shards(
        self,
        folder: Path,
        where: str,
        packed: Any,
        shards: Mapping[str, str],
        owners: Mapping[str, Tensor] | None,
        unread: bool,
    ) -> dict[str, Any]:
        for name, sha256 in shards.items() if owners is None else ():
            if Path(name).name != name or _sha256(folder / SHARDS / name) != sha256:
                raise UsageError(f"{where}/{SHARDS}/{name} is missing, truncated or damaged")
        tensors = defaultdict(lambda: None) if unread else self.processes.read(folder / SHARDS, owners or {})
        found: dict[str, Any] = _unpacked(packed, tensors)
        return found

    def forget_after(self, step: int) -> None:
        """Remove the checkpoints of later steps: the run goes on from `step` and writes them again."""
        for folder in self.steps():
            if int(folder.name[5:]) > step:
                shutil.rmtree(folder)

    def _recover(self) -> None:
        for former in self.folder.glob(".*.old"):
            target = self.folder / former.name[1:-4]
            if target.exists():
                shutil.rmtree(former)
            else:
                former.rename(target)
        for temporary in self.folder.glob(".*.tmp"):
            shutil.rmtree(temporary)


def _write(folder: Path, identity: Mapping[str, Any], state: Any, tensors: Mapping[str, Tensor]) -> None:
    """Write what is not in the folder yet: the state, and the tensors unless they are there in shards."""
    content, files = {"version": VERSION, "identity": identity, "state": state}, {}
    if (folder / SHARDS).is_dir():
        shards = sorted((folder / SHARDS).iterdir())
        content["shards"] = {path.name: _sha256(path) for path in shards}
        _to_disk(folder / SHARDS)
    else:
        alone = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        files[TENSORS] = dump_tensors(alone)
        content["tensors_sha256"] = hashlib.sha256(files[TENSORS]).hexdigest()
    files[STATE] = json.dumps({"content": content, "sha256": digest(content)}, allow_nan=False).encode()
    for name, data in files.items():
        with open(folder / name, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    _to_disk(folder)


def _sha256(path: Path) -> str | None:
    """Of a file, which is on the disk then; None where there is none."""
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _to_disk(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON. What JSON has no form for becomes an object of one key: the kind, and how to make it again."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Tensor):
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, list | tuple):
        inner = [_packed(item, f"{name}.{number}", tensors) for number, item in enumerate(value)]
        return inner if isinstance(value, list) else {"tuple": inner}
    if isinstance(value, Mapping):
        return {"map": [[key, _packed(item, f"{name}.{key}".lstrip("."), tensors)] for key, item in value.items()]}
    raise TypeError(f"a checkpoint cannot hold {name}, a {type(value).__name__}")


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "map":
        return {key: _unpacked(item, tensors) for key, item in inner}
    if kind == "tuple":
        return tuple(_unpacked(item, tensors) for item in inner)
    return tensors[inner] if kind == "tensor" else float(inner)
