"""What a run measures, from the docstrings of the functions that measure it.

A measuring function of `altgrad.telemetry` has a section in its docstring that names the operands and, indented under
it, one measure after the other:

    Measures (weight, activation):
        sqnr_db [dB; any]: 10 log10(sum x^2 / sum (q - x)^2). Left out where nothing was lost.

that is ``name [unit; range]: formula. Further sentences.``; lines that are indented deeper go on. A name may be a
pattern: `<c>` in ``code_<c>`` stands for any text. The files are parsed and never imported, since a site builds where
there is no torch.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import altgrad
from altgrad.config import UsageError
from altgrad.reports import columns as col
from altgrad.site import Block, Heading, Page, Paragraph, code, join, md
from altgrad.site.html import Placed
from altgrad.site.render import Dialect, fragment
from altgrad.text import minus

TELEMETRY = Path(altgrad.__file__).parent / "telemetry"
OPERANDS = ("weight", "activation", "output", "grad_output", "gradient", "update")
MARKER = "<!-- measures -->"
"""Where a hand-written page wants the tables."""

_HEADER = re.compile(r"Measures \((\w+(?:, \w+)*)\):")
_ITEM = re.compile(r"(?P<name>[a-z]\S*) \[(?P<unit>[^;\[\]]+); (?P<range>[^;\[\]]+)\]: (?P<text>\S.*)")
_MARKER = re.compile(r"<!-- [\w-]+ -->")
_COLUMNS = (
    col.of("Measure", lambda row: code(row["name"])),
    col.of("Definition", lambda row: join(". ", filter(None, (code(row["formula"]), row["notes"])))),
    col.text("Unit", "unit"),
    col.text("Range", "range"),
)


class MeasureError(UsageError):
    """A docstring or a page that cannot be read: one line that names the file, the line and what to write."""


@dataclass(frozen=True)
class Measure:
    """One statistic of the layers table."""

    name: str  # as recorded, or a pattern: ``code_<c>``
    operands: tuple[str, ...]  # whose statistic it is
    unit: str  # for people: "dB"
    range: str  # for people: "0 to 1"
    formula: str  # plain text
    notes: str  # further sentences, or nothing
    function: str  # dotted name of the one that computes it
    subject: str  # the first sentence of its module's docstring: "Rank health: how many directions ..."


def measures(folder: Path = TELEMETRY) -> tuple[Measure, ...]:
    """Every measure that the modules of `folder` document, in the order of files and lines.

    Raises:
        MeasureError: a section or a line in it is malformed, or a measure of an operand is documented twice.
    """
    found: list[Measure] = []
    places: dict[tuple[str, str], str] = {}
    for path in sorted(folder.glob("*.py")):
        for place, measure in _of_module(path):
            found.append(measure)
            for operand in measure.operands:
                first = places.setdefault((measure.name, operand), place)
                if first != place:
                    raise MeasureError(f"{place}: {measure.name} of {operand} is documented in {first} already")
    return tuple(found)


def method_page(text: str, known: Sequence[Measure], name: str) -> dict[str, bytes]:
    """The Method page, hand-written, with the measures' tables in place of its marker, as files of the site.

    Raises:
        MeasureError: the page (which messages call `name`) has not this one marker.
    """
    if (markers := _MARKER.findall(text)) != [MARKER]:
        raise MeasureError(
            f"{name}: needs the marker {MARKER} once and no other, and has {', '.join(markers) or 'none'}"
        )
    page = Page("method", "Method", tuple(_blocks(known)))
    placed = Placed(page, {})
    tables = fragment(page, Dialect(lambda reference: f"{reference.path}.md", placed))
    return {"method.md": text.replace(MARKER, tables).encode(), **placed.file()}


def _blocks(known: Sequence[Measure]) -> Iterator[Block]:
    """A heading for each module, and a table for each function and the operands it is for."""
    for subject, of_module in groupby(known, key=lambda measure: measure.subject):
        title, _, about = subject.partition(": ")
        yield Heading(title, level=3)
        if about:
            yield Paragraph(f"{about[0].upper()}{about[1:]}.")
        for (operands, function), rows in groupby(of_module, key=lambda measure: (measure.operands, measure.function)):
            name = md("<code>{name}</code>", name=join(".<wbr>", function.split(".")))  # may break after each dot
            caption = md("Of {operands}, by {function}", operands=", ".join(operands), function=name)
            yield col.table(map(asdict, rows), _COLUMNS, caption)


def _of_module(path: Path) -> Iterator[tuple[str, Measure]]:
    tree = ast.parse(path.read_text("utf-8"), str(path))
    subject = (ast.get_docstring(tree) or path.stem).split("\n\n")[0].replace("\n", " ").partition(". ")[0].rstrip(".")
    for name, node in _functions(tree, f"altgrad.telemetry.{path.stem}"):
        for line, operands, text in _items(ast.get_docstring(node, clean=False) or "", node.body[0].lineno, path.name):
            place = f"{path.name}:{line}"
            if not (item := _ITEM.fullmatch(text)):
                raise MeasureError(f"{place}: write 'name [unit; range]: formula. Further sentences.', not {text!r}")
            formula, _, notes = item["text"].partition(". ")
            notes, reach = minus(notes), minus(item["range"])
            parts = (item["name"], operands, item["unit"], reach, formula.rstrip("."), notes, name, subject)
            yield place, Measure(*parts)


def _functions(node: ast.AST, name: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            yield f"{name}.{child.name}", child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{name}.{child.name}")


def _items(docstring: str, first: int, file: str) -> Iterator[tuple[int, tuple[str, ...], str]]:
    """(line, operands, text with its continuation) of each item of the sections; `first` is the docstring's line."""
    lines = [(len(line) - len(line.lstrip()), line.strip()) for line in docstring.expandtabs().split("\n")]
    for at, (indent, header) in enumerate(lines, first):
        if not re.match(r"Measures\b.*:$", header):
            continue
        match = _HEADER.fullmatch(header)
        operands = tuple(match[1].split(", ")) if match else ()
        if not operands or set(operands) - {*OPERANDS}:
            raise MeasureError(f"{file}:{at}: write 'Measures (operand, ...):' with operands of {', '.join(OPERANDS)}")
        below, items = lines[at - first + 1 :], list[tuple[int, str]]()
        end = next((number for number, (deep, text) in enumerate(below) if not text or deep <= indent), len(below))
        for number, (deeper, text) in enumerate(below[:end], at + 1):
            if deeper == indent + 4:
                items.append((number, text))
            elif deeper > indent + 4 and items:
                items[-1] = (items[-1][0], f"{items[-1][1]} {text}")
            else:
                raise MeasureError(f"{file}:{number}: indent a measure by 4 and its further lines by more")
        after = below[end : end + 2]
        if not items or (len(after) == 2 and not after[0][1] and after[1][0] > indent):
            raise MeasureError(f"{file}:{at}: the section is empty, or has an empty line inside")
        yield from ((number, operands, text) for number, text in items)
