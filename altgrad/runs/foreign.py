"""Records of training loops that are not AltGrad's: `record` opens one from any framework, in a few lines.

    with record("runs", name="mlp", config={"width": 32, "quantize": {"weight": "e4m3"}}, seed=0, data="digits") as run:
        for step in range(100):
            ...
            run.log(step, loss=loss, val_loss=val_loss)
        run.finish()

The config is the loop's own. Keys that AltGrad's config has (`altgrad.config.config_keys`) are used where their values
are ones it knows, the others are kept as they are in `ExperimentConfig.foreign`. Two such runs are comparable where all
of it but formats and seed is equal.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from altgrad.config import (
    LONGEST_NOTES,
    ExperimentConfig,
    Scalar,
    UsageError,
    config_keys,
    nested,
    one_line,
    parse_config,
)
from altgrad.runs.files import read_bytes
from altgrad.runs.names import map_config
from altgrad.runs.processor import describe_processor
from altgrad.runs.recorder import Recorder, say, writes
from altgrad.runs.schema import digest, plain, public_line, run_id, without_paths
from altgrad.runs.secrets import mask
from altgrad.runs.settings import plain_settings
from altgrad.runs.store import read_table
from altgrad.runs.writer import TABLES, NothingToResume, RunWriter

_BOOKKEEPING = ("name", "notes", "tags", "study", "seed", "data", "foreign", "tracking", "checkpoint")
_LONGEST = 10_000
LONGEST_TITLE = 200
_DEEPEST = 20
_LIBRARIES = ("numpy", "torch", "jax", "flax", "tensorflow", "keras", "mlx", "tinygrad", "sklearn")


def record(
    root: str | Path,
    *,
    name: str,
    config: Any,
    seed: int | None = None,
    data: str | Mapping[str, Any] = "not named",
    study: str = "local",
    notes: str = "",
    tags: Sequence[str] = (),
    environment: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> Recorder:
    """Open the record of a run of your own loop; use it in a ``with`` block and call `finish` at the end.

    From here on nothing that goes wrong with the record ends the loop. In a distributed run rank 0 writes, and the
    recorders of the others do nothing.

    Args:
        root: folder of the records, made where missing; `experiments/runs` of a checkout is read by its site.
        name: what the run is called, in any script; the run's id begins with its letters, digits, ``.``, ``_`` and
            ``-``. Not part of what makes runs comparable.
        config: everything that decides the result beside seed and data, in whatever a loop has it
            (`altgrad.runs.settings`): a mapping, a Namespace, a dataclass. ``quantize: {weight: e4m3, activation: fp32,
            grad_output: fp32}`` and ``optimizer: {learning_rate: 0.001}`` are what pages know best.
        seed: the run's seed, by which runs are paired; default: the config's ``seed``. A run that states none
            is an arm by itself, and paired with no other.
        data: a name, or a mapping with ``name`` and ``sha256`` (64 hex digits). Data with one name and no sha256 is
            taken to be the same data.
        study: a group of runs.
        notes, tags: for people.
        environment: versions and device; default: the processor, and the versions of Python and the imported array
            libraries.
        resume: go on with the record of this run where a kill or an error has ended it; its rows stay, and what is
            logged for a step again adds to them. Without it, such a record is set aside, and one line says where.

    Raises:
        UsageError: before the loop begins: no config, an unknown format, no name, a folder that cannot be written; the
            line names the key.
        RunExists: this run is finished already, or another process is writing it.
    """
    settings, said = plain_settings(config)
    if type(own := settings.get("seed", 0)) is not int or not 0 <= own < 2**31:
        settings["logged_seed"] = settings.pop("seed")
    given, title = _called(name)
    about_it: dict[str, Any] = {"notes": str(notes)[:LONGEST_NOTES], "tags": [str(tag) for tag in tags]}
    checked = foreign_config(settings, name=given, seed=seed, study=slug(study), **about_it)
    about: dict[str, Any] = {
        "data_fingerprint": data_fingerprint(data),
        "environment": _environment() if environment is None else environment,
    }
    root, identity = Path(root), run_id(checked, about["data_fingerprint"])
    if not writes():
        return Recorder(None, identity, root / identity)
    try:
        writer = _opened(root, checked, about, title, resume)
    except UsageError as error:
        line = str(error).removeprefix("--out ").replace("--resume", "resume=True")
        raise type(error)(line.replace("use another --out", "record elsewhere")) from None
    for line in said:
        say(identity, line)
    return Recorder(writer, identity, writer.path)


def _opened(
    root: Path, config: ExperimentConfig, about: Mapping[str, Any], title: str | None, resume: bool
) -> RunWriter:
    if resume:
        with contextlib.suppress(NothingToResume):
            writer = RunWriter.resume(root, config, find=_end_of, **about)
            say(writer.run_id, f"its record is gone on with, after step {writer.last_step}")
            return writer
    writer = RunWriter.create(root, config, title=title, **about)
    if writer.earlier:
        kept = f"an earlier attempt, which did not finish, is kept as {writer.earlier}"
        say(writer.run_id, f"{kept}; with resume=True it would have been gone on with")
    return writer


def _end_of(folder: Path) -> tuple[int, float]:
    """The last step of a record, and about how many seconds it took until then."""
    tables = [read_table(folder, name) for name in TABLES]
    run = json.loads(read_bytes(folder / "run.json"))
    steps = [int(table["step"].max()) for table in tables if len(table)] + [event["step"] for event in run["events"]]
    files = [path for path in folder.iterdir() if path.suffix in (".jsonl", ".parquet")]
    last = max((path.stat().st_mtime for path in files), default=0.0)
    return max(steps, default=-1), max(last - datetime.fromisoformat(run["created"]).timestamp(), 0.0)


def _called(name: str) -> tuple[str, str | None]:
    """A name as the slug with which ids begin, and as it was given where that is another."""
    if not isinstance(name, str) or not name.strip():
        raise UsageError("name: give the run a name")
    found = slug(name)
    return found, None if found == name else public_line(name)[:LONGEST_TITLE]


def slug(name: str) -> str:
    """Lower-case letters, digits, ``.``, ``_`` and ``-`` of a name, without its accents; a hash for other scripts."""
    letters = re.sub(r"(?<=\de)\+(?=\d)", "", unicodedata.normalize("NFKD", name).lower())  # 1e+06 is not 1e-06
    kept = re.sub(r"[^a-z0-9._-]+", "-", letters.encode("ascii", "ignore").decode()).strip("-._")[:60].rstrip("-._")
    lost = any(each.isalnum() and not each.isascii() for each in letters)
    return "-".join(filter(None, (kept, digest(name)[:6] if lost or not kept else "")))


def foreign_config(
    given: Mapping[str, Any],
    *,
    name: str | None,
    seed: int | None = None,
    study: str = "local",
    notes: str = "",
    tags: Sequence[str] = (),
    strict: bool = True,
) -> ExperimentConfig:
    """A foreign loop's config as a validated one: AltGrad's keys in their place, all others in `foreign`.

    Args:
        given: nested or dotted keys. A value that AltGrad's key of this name does not have (``schedule: linear``) is a
            key of the loop's own. What looks like a secret (`altgrad.runs.secrets`) is left out, and said to be; paths
            keep their last part.
        name, seed, study, notes, tags: as in `record`.
        strict: an unknown format is an error; else it too is a key of the loop's own.

    Raises:
        UsageError: the line names the key.
    """
    if not isinstance(given, Mapping):
        raise UsageError(f"config: give a mapping of keys and values, not a {type(given).__name__}")
    own = _leaves(given)
    leaves, called = _named(own, seed is not None, strict)
    own_seed = leaves.pop("seed", None)
    if seed is not None and own_seed is not None and seed != own_seed:
        raise UsageError(f"config.seed={own_seed} and seed={seed}: the run has one seed; leave one of them out")
    fixed: dict[str, Any] = {"name": name, "study": study, "notes": notes, "tags": tuple(tags)}
    if seed is not None or own_seed is not None:
        fixed["seed"] = plain(own_seed if seed is None else seed)
    parse_config(fixed, source="record")
    usable = {key for key in config_keys() if key.partition(".")[0] not in _BOOKKEEPING}
    used = {key: value for key, value in leaves.items() if key in usable}
    while True:
        kept = {key: called.get(key, key) for key in leaves if key not in used}
        foreign = {name: own.get(name, leaves[key]) for key, name in kept.items()}
        try:
            return ExperimentConfig.model_validate(nested(used) | fixed | {"foreign": foreign})
        except ValidationError as error:
            refused = _refused(error, used)
            if not used:
                raise UsageError(f"config: {one_line(error)}") from None
            if strict and any(key.startswith("quantize.") for key in refused):
                reason = one_line(error.errors()[0]["msg"]).removeprefix("Value error, ")
                raise UsageError(f"config: {reason}") from None
            used = {key: value for key, value in used.items() if key not in refused}


def _named(
    leaves: dict[str, Scalar | tuple[Scalar, ...]], with_seed: bool, strict: bool
) -> tuple[dict[str, Scalar | tuple[Scalar, ...]], dict[str, str]]:
    """`leaves` with AltGrad's keys for those of the one table of names, and what each such key was called."""
    mapped, used = map_config(
        {key: list(value) if isinstance(value, tuple) else value for key, value in leaves.items()}
    )
    called = {key: own for own, key in used.items()}
    seed = mapped.get("seed")
    is_seed = type(seed) is int and 0 <= seed < 2**31 and not with_seed
    if "seed" in mapped and not is_seed and (called.get("seed") or not strict):  # its own name may be of something else
        mapped[called.pop("seed", "logged_seed")] = mapped.pop("seed")
    if "data" in called:
        mapped[called.pop("data")] = mapped.pop("data")
    found = {key: tuple(value) if isinstance(value, list) else value for key, value in mapped.items()}
    return found, called


def data_fingerprint(data: str | Mapping[str, Any]) -> dict[str, Any]:
    """Name and sha256 of a data set; that of the name where only this is known.

    Raises:
        UsageError: a sha256 that is none, or no name.
    """
    given = {"name": data} if isinstance(data, str) else dict(data) if isinstance(data, Mapping) else {}
    name = given.get("name")
    if not isinstance(name, str) or not name or len(name) > 200:
        raise UsageError("data: give a name, or a mapping with 'name' and 'sha256'")
    name = mask(name, "data.name")
    sha256 = given.get("sha256", digest({"data": name}))
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise UsageError("data.sha256: give 64 lower-case hex digits, as hashlib.sha256(...).hexdigest() does")
    more = {key: value for key, value in _leaves(given).items() if key not in ("name", "sha256")}
    return {"name": without_paths(name), "sha256": sha256, **more}


def _leaves(given: Mapping[str, Any]) -> dict[str, Scalar | tuple[Scalar, ...]]:
    """Dotted key -> plain value; UsageError names what cannot be recorded."""
    found: dict[str, Scalar | tuple[Scalar, ...]] = {}

    def visit(prefix: str, value: Any, depth: int) -> None:
        if isinstance(value, Mapping) and (value or not prefix):
            if depth > _DEEPEST:
                raise UsageError(f"config.{prefix[:80]}: nested more than {_DEEPEST} deep; give dotted keys")
            for key, inner in value.items():
                if not isinstance(key, str) or not key:
                    raise UsageError(f"config: the key {key!r} is not text; name every key")
                key = key.encode(errors="replace").decode()
                visit(f"{prefix}.{key}" if prefix else key, inner, depth + 1)
            return
        value = _value(prefix, value)
        while prefix in found and found[prefix] != value:  # given twice, nested and dotted
            prefix += "_"
        found[prefix] = value

    visit("", mask(given), 0)
    return found


def _value(key: str, value: Any) -> Scalar | tuple[Scalar, ...]:
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, list | tuple) or (type(value).__module__ == "numpy" and getattr(value, "ndim", 0) == 1):
        return tuple(_scalar(f"{key}[{index}]", inner) for index, inner in enumerate(value))
    return _scalar(key, value)


def _scalar(key: str, value: Any, depth: int = 1) -> Scalar:
    """A JSON scalar: NaN and infinities as text, whole floats as integers (W&B gives 1.0 back as 1), lists as text."""
    if isinstance(value, Mapping):
        value = json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, list | tuple) and depth < _DEEPEST:
        return "[" + ", ".join(str(_scalar(key, inner, depth + 1)) for inner in value) + "]"
    try:
        scalar = plain(str(value) if isinstance(value, Path) else value)
    except TypeError:
        said = f"config.{key}: a {type(value).__name__} cannot be recorded"
        raise UsageError(f"{said}; give a number, text, or a list of these") from None
    if isinstance(scalar, float):
        return str(scalar) if not math.isfinite(scalar) else int(scalar) if scalar.is_integer() else scalar
    if isinstance(scalar, str):
        text = mask(without_paths(scalar.encode(errors="replace").decode()), key)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… (cut: {len(text):,} characters)"
    return scalar


def _refused(error: ValidationError, used: Mapping[str, Any]) -> set[str]:
    """The keys that an error is about: at its places, or all where it is about the whole."""
    places = [".".join(str(part) for part in each["loc"]) for each in error.errors(include_url=False)]
    pairs = ((key, f"{key}.", f"{place}.") for key in used for place in places)
    return {key for key, own, place in pairs if own.startswith(place) or place.startswith(own)} or set(used)


def _environment() -> dict[str, Any]:
    versions = {name: getattr(sys.modules.get(name), "__version__", None) for name in _LIBRARIES}
    own = {"python": platform.python_version(), "system": platform.system(), **describe_processor()}
    return own | {name: version for name, version in versions.items() if isinstance(version, str)}
