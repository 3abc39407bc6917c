"""Text that others wrote, shown as nothing but text: on a terminal, in Markdown, in a spreadsheet.

Run names, notes, config values and messages come from files and from W&B. `visible` leaves no control character in
them, `escape` and `fenced` no markup, `csv` no formula.
"""

from __future__ import annotations

import math
import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

TEXT_LIMIT = 1000
"""Longest untrusted text shown in full, in characters; a table cell shows `CELL_LIMIT`."""
CELL_LIMIT = 160

_SPECIAL = re.compile(r"""[\\`*\[\]{}<>&"'|~^$]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])|(?<=[/:.@])/|(?<=www)\.|@""")
_LINE_START = re.compile(r"^(?:[#=:!?%]|[-+](?![0-9A-Za-z.])|(?<![0-9])[0-9]+(?P<dot>[.)])(?=\s|$))")
_BREAKS = re.compile(r"[\r\n\t\f\v\x1c-\x1e\x85\u2028\u2029]+")
"""What some reader takes for the end of a row or of a cell, within quotes too."""
_FORMULA = re.compile(
    r"^\s*(?=[=@＝＠]|[+＋－-](?!(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?$))|"
    r";\s*(?=[=@＝＠]|[+＋－-]\s*(?:[^\s\d.]|[\d.]+(?:e[+-]?\d+)?\s*[-+*/^&|!=<>%]))"
)
"""Where a spreadsheet sees the beginning of a formula; those of some countries separate cells by semicolons."""


class Md(str):
    """Markdown that is trusted to be markup. Adding a plain string to it gives a plain, untrusted string."""

    __slots__ = ()


def visible(text: str) -> str:
    """`text` on one line with every control, bidirectional and invisible character spelled out as ⟨U+XXXX⟩.

    Line breaks and tabs become spaces; characters that no encoding can hold (lone surrogates) are spelled out too.
    """
    text = str(text)
    if text.isprintable():  # none of the categories below
        return text
    text = re.sub(r"[\r\n\t\f\v\x85\u2028\u2029]+", " ", text)
    return "".join(
        f"⟨U+{ord(char):04X}⟩" if unicodedata.category(char) in ("Cc", "Cf", "Co", "Cs", "Cn") else char
        for char in text
    )


def shorten(text: str, limit: int) -> str:
    """`text`, or its first `limit` characters followed by its full length."""
    return text if len(text) <= limit else f"{text[:limit].rstrip()}… ({len(text):,} characters)"


def cut(text: str, limit: int) -> str:
    """`text` for a place that holds `limit` characters: its beginning, and a dot where more follows."""
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}…"


def escape(text: str, limit: int = TEXT_LIMIT) -> Md:
    """Untrusted text as markdown that shows exactly this text, in GitHub's dialect and in Python-Markdown.

    Everything that could start markup becomes a numeric character reference: neither dialect reads structure from
    one (links, emphasis, tables, HTML, attribute lists, template braces), and both leave it alone inside a cell.
    """
    line = shorten(visible(text), limit).strip()
    escaped = _SPECIAL.sub(lambda match: f"&#{ord(match.group())};", line)
    start = _LINE_START.match(escaped)
    if start:
        at = start.start("dot") if start.group("dot") else 0
        escaped = f"{escaped[:at]}&#{ord(escaped[at])};{escaped[at + 1 :]}"
    return Md(escaped)


def figure(value: float, form: str = "g") -> str:
    """A number in a form of Python's as readers are shown it: with a true minus, and no sign where it is shown as zero.

    What a program reads (CSV, JSON, code, a command) has Python's own hyphen.
    """
    text = format(value, form)
    return text.lstrip("+-") if not re.search("[1-9in]", text) else text.replace("-", "−")


def minus(text: str) -> str:
    """A text that was recorded or is in the code, with a true minus in its numbers."""
    return re.sub(r"(?<![\w)\]./-])-(?=\d)|(?<=\d[eE])-(?=\d)", "−", text)


def cell(value: str | float | None) -> Md:
    """What a table's cell shows: four digits and a true minus of a number, a dash where there is nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Md("–")
    if isinstance(value, int | float):
        return Md(figure(value, ".4g" if isinstance(value, float) else "d"))
    return escape(value, CELL_LIMIT)


def code_lines(text: str) -> list[str]:
    """The lines of a block of code, without tabs, control characters and blanks at their ends."""
    return [visible(line).rstrip() for line in text.expandtabs().splitlines()]


def fenced(text: str, info: str = "") -> str:
    """`text` as a block of code in Markdown, `info` (ours) after its fence, which no run of backticks inside ends."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return "\n".join([fence + info, *code_lines(text), fence])


def hyphens(data: pd.DataFrame) -> pd.DataFrame:
    """`data` with the hyphen that programs read in the numbers of its texts."""
    found = data.select_dtypes(include=["object", "string", "category"])
    marked = [name for name in found if any("−" in value for value in found[name].tolist() if isinstance(value, str))]
    found = data.copy()
    for name in marked:
        found[name] = data[name].map(_hyphen)
    return found


def _hyphen(value: object) -> object:
    return re.sub(r"−(?=[.\d])", "-", value) if isinstance(value, str) else value


def csv(data: pd.DataFrame) -> bytes:
    """`data` as CSV (UTF-8, LF, ten digits), with `hyphens`.

    A row is a line: breaks and tabs in texts are spaces. What a spreadsheet would take for a formula gets a quote
    before it.
    """
    data = hyphens(data)
    texts = data.select_dtypes(include=["object", "string", "category"]).columns
    guarded = data.rename(columns=_plain)
    for name in texts:
        if any(value is not _plain(value) for value in data[name].tolist()):
            guarded[_plain(name)] = data[name].map(_plain)
    text: str = guarded.to_csv(index=False, lineterminator="\n", float_format="%.10g")
    return text.encode("utf-8", "backslashreplace")


def _plain(value: object) -> object:
    if not isinstance(value, str) or not (_BREAKS.search(value) or _FORMULA.search(value)):
        return value
    return _FORMULA.sub(lambda found: f"{found[0]}'", _BREAKS.sub(" ", value))
