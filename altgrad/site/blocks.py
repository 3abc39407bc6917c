"""Blocks of Python in a Markdown page: found by their fences, run in order, each with what it prints and its value.

How a block is marked stands in `altgrad.site.executed`. No block that is not marked torch can import torch.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import json
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from typing import Any

import pandas as pd

from altgrad.config import UsageError
from altgrad.site.content import Block as PageBlock
from altgrad.site.content import Cell, Chart, ChartBlock, Column, Page, Table
from altgrad.text import fenced, shorten, visible

_FENCE = re.compile(r"(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>.*)")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+>")
_RUN = re.compile(r"^ *(?:`{3,}|~{3,})python (?:no)?exec\b", re.MULTILINE)
ROWS = 50
"""Most rows of a DataFrame that a page shows; all are in its CSV and JSON."""


class GuideError(UsageError):
    """A guide that cannot be shown: one line that names the guide, the block and what to do."""


@dataclass(frozen=True)
class Output:
    """What a block gave."""

    lines: Sequence[str]  # printed, made safe to keep and to show by `visible_lines`
    blocks: tuple[PageBlock, ...] = ()  # its value, where a page can show it better than by its repr


@dataclass(frozen=True)
class Block:
    """One Python block of a guide."""

    number: int | None  # its place among the blocks that are run, from 1; None when it is not run
    first: int  # with `last`, indices of the lines of its two fences
    last: int
    indent: str  # spaces before the fences
    code: str  # what is run, without the indent
    torch: bool  # this and `hide` as marked
    hide: bool
    key: str  # names its output: a hash of the code of every block that is run up to this one


def is_executed(text: str) -> bool:
    """Whether a Markdown file is such a page: it has a Python block that says whether it is run."""
    return _RUN.search(text) is not None


def blocks(text: str, name: str, parameters: Mapping[str, Any] | None = None) -> tuple[Block, ...]:
    """The Python blocks of a guide, in order; what stands inside another fence is not a block.

    Keys of one code under other `parameters` are other keys.

    Raises:
        GuideError: a Python block that says neither exec nor noexec, an unknown word, or a fence without an end.
    """
    found: list[Block] = []
    lines, at, number = text.split("\n"), 0, 0
    key = hashlib.sha256(json.dumps(parameters, sort_keys=True, default=str).encode() if parameters else b"")
    while at < len(lines):
        opening = _FENCE.fullmatch(lines[at].rstrip())
        if opening is None or (opening["fence"][0] == "`" and "`" in opening["info"]):
            at += 1
            continue
        first, indent = at, opening["indent"]
        end = re.compile(f" *{re.escape(opening['fence'])} *")
        at = next((i for i in range(first + 1, len(lines)) if end.fullmatch(lines[i])), -1)
        if at < 0:
            raise GuideError(f"{name}: line {first + 1}: this fence has no end")
        words = opening["info"].split()
        if words and re.match(r"\W*py", words[0], re.IGNORECASE):
            if words[:2] == ["python", "exec"] and set(words[2:]) <= {"torch", "hide"}:
                number += 1
            elif words != ["python", "noexec"]:
                raise GuideError(
                    f"{name}: line {first + 1}: mark a Python block `python exec`, with torch or hide after it where "
                    f"needed, or `python noexec`, not {shorten(visible(opening['info'].strip()), 60)!r}"
                )
            run = words[1] == "exec"
            code = "\n".join(line.removeprefix(indent) for line in lines[first + 1 : at]) + "\n"
            if run:
                data = code.encode()
                key.update(len(data).to_bytes(8, "big") + data)
            torch, hide = "torch" in words, "hide" in words
            digest = key.hexdigest()[:16]
            found.append(Block(number if run else None, first, at, indent, code, torch, hide, digest))
        at += 1
    return tuple(found)


def run_without_torch(block: Block, namespace: dict[str, Any], name: str, found: Sequence[Block]) -> Output:
    """As a build runs one of the blocks that were `found`, which skips those marked torch."""
    with _without_torch():
        return run(block, namespace, name, any(other.torch for other in found if other.first < block.first))


def run(block: Block, namespace: dict[str, Any], name: str, torch_skipped: bool = False) -> Output:
    """What a block prints, and its value where it is one for pages (a torch block's is kept as text)."""
    printed = io.StringIO()
    shown: tuple[PageBlock, ...] | None = None
    try:
        # Empty lines before the code make every line number the guide's own.
        tree = ast.parse("\n" * (block.first + 1) + block.code, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, name, "exec", dont_inherit=True), namespace)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), namespace)
                shown = None if block.torch else _shown(value, f"table-{block.number}")
                if value is not None and shown is None:
                    print(repr(value))
    except (Exception, SystemExit) as error:
        hint = ""
        if isinstance(error, ModuleNotFoundError) and error.name == "torch" and not block.torch:
            hint = "; mark a block that needs torch `python exec torch`"
        elif isinstance(error, NameError) and torch_skipped:
            hint = "; a block that needs the names of a torch block is marked torch as well"
        message = shorten(visible(str(error)), 300)
        where = place_of(block, name, _line(error, name))
        raise GuideError(f"{where}: {type(error).__name__}: {message}{hint}") from error
    if _ADDRESS.search(printed.getvalue()):
        raise GuideError(f"{place_of(block, name)}: it prints a memory address, which differs from build to build")
    return Output(visible_lines(printed.getvalue()), shown or ())


def place_of(block: Block, name: str, line: int | None = None) -> str:
    """Where a block is, or a line of it, for messages."""
    return f"{name}: block {block.number}, line {line or block.first + 1}"


def _shown(value: object, identity: str) -> tuple[PageBlock, ...] | None:
    """The blocks that show a value on a page; None for a value that is no chart, table or block."""
    if isinstance(value, Chart):
        return (ChartBlock(value),)
    if isinstance(value, pd.DataFrame):
        return (table_of(value, identity),)
    if isinstance(value, PageBlock):
        return (value,)
    if isinstance(value, Page):
        return value.blocks
    if isinstance(value, list | tuple) and value:
        parts = [_shown(each, f"{identity}-{number}") for number, each in enumerate(value, start=1)]
        if all(part is not None for part in parts):
            return tuple(block for part in parts for block in part or ())
    return None


def table_of(frame: pd.DataFrame, identity: str) -> Table:
    """A DataFrame as a table of at most `ROWS` rows; the data beside it is whole.

    An index with a name becomes the first columns. `frame.attrs["caption"]` is the caption.
    """
    frame = frame.reset_index() if any(frame.index.names) else frame.reset_index(drop=True)
    numeric = [pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype) for dtype in frame.dtypes]
    columns = tuple(
        Column(str(name), "right" if right else "left") for name, right in zip(frame.columns, numeric, strict=True)
    )
    rows = tuple(tuple(map(_cell, row)) for row in frame.head(ROWS).itertuples(index=False, name=None))
    more = f" (the first {ROWS} of {len(frame):,} rows)" if len(frame) > ROWS else ""
    caption = f"{frame.attrs.get('caption', '')}{more}".strip()
    return Table(columns, rows, caption, data=frame.rename(columns=str), id=identity)


def _cell(value: Any) -> Cell:
    """A value of a DataFrame for a cell of a page."""
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, int | float):
        return value
    item = value.item() if hasattr(value, "item") else value
    return item if isinstance(item, int | float) and not isinstance(item, bool) else str(item)


def _line(error: BaseException, name: str) -> int | None:
    """The line of the guide that an error comes from."""
    if isinstance(error, SyntaxError) and error.filename == name:
        return error.lineno
    trace = traceback.walk_tb(error.__traceback__)
    return next((line for frame, line in reversed([*trace]) if frame.f_code.co_filename == name), None)


def visible_lines(printed: str) -> list[str]:
    """Printed text as lines without control characters, without blanks at their ends and empty lines at the end."""
    lines = [visible(line.expandtabs()).rstrip() for line in printed.split("\n")]
    last = max((at for at, line in enumerate(lines) if line), default=-1)
    return lines[: last + 1]


def output_block(printed: Sequence[str]) -> list[str]:
    """The fenced block that shows an output."""
    text = "\n".join(visible_lines("\n".join(printed)))
    return fenced(text, ' { .text .output .no-copy title="Output" }').split("\n")


class _RefuseTorch(MetaPathFinder):
    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """As if torch were not installed, so that a guide that builds here builds everywhere."""
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "torch"}
    finder = _RefuseTorch()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        sys.modules.update(kept)
