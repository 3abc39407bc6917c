"""What benchmarks recorded: how a record is read and written, and what their pages have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pandas as pd
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

import altgrad
from altgrad.reports import columns as col
from altgrad.reports.document import page_of
from altgrad.runs.files import write_text
from altgrad.runs.schema import RecordError
from altgrad.site import Block, Bullets, CodeBlock, Column, Note, Page, Paragraph, Provenance
from altgrad.site.document import Part

MAKES_FOR_OTHERS = True
"""The source of a table made here is the function that asked for it."""
RECORDED = Path(altgrad.__file__).resolve().parents[1] / "benchmarks" / "recorded"
_PROBE = "altgrad probe experiments/configs/fresh.yaml --seed 50 --roundings nearest,stochastic,diffused"
COMMANDS = {
    "quantize.json": "make bench",
    "exhaustive.json": "make exhaustive",
    "training.json": "make bench-training",
    "training-cuda.json": ".venv/bin/python benchmarks/training.py --device cuda",
    "runs.json": "make bench-runs",
    "large.json": "make bench-large",
    "processes.json": "make bench-processes",
    "gpu.json": "make gpu-check",
    "site.json": "make bench-site",
    "keystrokes.json": "make bench-keystrokes",
    "step-slopes.json": ".venv/bin/python benchmarks/step_slopes.py",
    "diffusion.json": ".venv/bin/python benchmarks/diffusion.py",
    "probe-tensor.json": f"{_PROBE} --formats e5m2,e3m4 --save benchmarks/recorded/probe-tensor.json",
    "probe-blocks.json": (
        f"{_PROBE} --set scaling.kind=mx_rceil --set scaling.axis=contraction --formats e3m2"
        " --save benchmarks/recorded/probe-blocks.json"
    ),
}
"""What makes each record."""
RESULT = {True: "met", False: "missed", None: ""}
"""What a table says of a goal."""


Positive = Annotated[float, Field(gt=0)]
Some = Annotated[int, Field(gt=0)]


class Record(BaseModel):
    """A record or a part of one: frozen, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def row(self) -> dict[str, Any]:
        """Its fields and properties by name, for the columns of a table."""
        kind = type(self)
        properties = [name for name, value in vars(kind).items() if isinstance(value, property)]
        return {name: getattr(self, name) for name in (*kind.model_fields, *properties)}


class Measured(Record):
    """What one script measured in one run, with this version of the library and these packages."""

    date: AwareDatetime
    altgrad: str
    cores: Some
    load: float | None = Field(default=None, ge=0)  # the one-minute average when it began; None where it is not known
    versions: dict[str, str]


AnyRecord = TypeVar("AnyRecord", bound=Record)


def read_record(path: Path, kind: type[AnyRecord]) -> AnyRecord | None:
    """The record in `path`; None where there is no such file.

    Raises:
        RecordError: what the file holds is no such record; one line with file, key and remedy.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordError(f"benchmarks/recorded/{path.name}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise RecordError(
            f"benchmarks/recorded/{path.name}: {key}: {first['msg'][:160]}; restore the file (git checkout), or "
            f"delete it and make it again: {COMMANDS.get(path.name, 'make bench')}"
        ) from None


def write_record(record: Record, path: Path) -> None:
    """Write the record; a reader finds the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")


def found(
    path: Path, kind: type[AnyRecord], missing: str = "No measurement is recorded."
) -> tuple[AnyRecord | None, list[Block]]:
    """The record; or None and what stands in its place: how to make it, or what is wrong with the one there is."""
    try:
        record = read_record(path, kind)
    except RecordError as error:
        return None, [Note("warning", "A record was left out", (Bullets((str(error),)),))]
    command = CodeBlock(COMMANDS[path.name], "bash")
    return record, [] if record else [Note("question", "Pending", (Paragraph(missing), command))]


def table(rows: Sequence[Record], columns: Sequence[Column], caption: str, id: str) -> list[Block]:
    """A row a record, nothing without; the fields of all, but for nested ones, are there to download."""
    fields = [{key: value for key, value in row if not isinstance(value, dict | tuple)} for row in rows]
    return [col.table([row.row() for row in rows], columns, caption, id, pd.DataFrame(fields))] if rows else []


def packages(versions: Mapping[str, str]) -> str:
    """``torch 2.13.0, numpy 2.5.1``."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def page(path: str, values: Mapping[str, Any], parts: Mapping[str, Part], records: str = "", code: str = "") -> Page:
    """The page of docs/`path`.md with its foot; `records` names them there, `code` more than the library's version."""
    lines = (
        *([("Records", records)] if records else ()),
        ("Code", f"altgrad {altgrad.__version__}{code}"),
        ("Built", "from local records; no network was used"),
    )
    return page_of(path, Provenance(lines), {"packages": packages, **values}, parts)
