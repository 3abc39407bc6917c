"""What the code of a page reads that no key of it covers: variables are put into its key, files are named below it.

Files are those that Python opens. What pyarrow opens by itself (`pyarrow.parquet.read_table`) is not seen.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.util import source_from_cache
from pathlib import Path
from typing import Any

import altgrad
from altgrad.runs import default_sources
from altgrad.runs.site_names import names_file

_VARIABLE = re.compile(r"""\b(?:environ(?:\[|\.get\()|getenv\()\s*["'](\w+)["']""")
_ENVIRONMENT = re.compile(r"\b(?:environ|getenv)\b")
_EVENTS = ("open", "os.mkdir", "os.rename", "sqlite3.connect")
_SYSTEM = tuple(map(Path, ("/dev", "/etc", "/proc", "/sys", "/usr", "/Library", "/System")))


def variables(code: str) -> dict[str, str | None]:
    """The variables of the environment that code names, with their values; all of them where it names one otherwise."""
    named = _VARIABLE.findall(code)
    every = len(named) < len(_ENVIRONMENT.findall(code))
    return dict(os.environ) if every else {name: os.environ.get(name) for name in named}


@contextlib.contextmanager
def read_outside(page: Path) -> Iterator[Callable[[], list[Path]]]:
    """Gives a function: the files that were read since this began, or since its last call, and are not in the key of
    `page`, a file of Markdown.

    Not those of the interpreter, its packages and the system, what tools keep in hidden folders, records, or what was
    itself written meanwhile. The project's own modules that were imported meanwhile are forgotten at the end, so that
    the next page that imports them reads them again.
    """
    page = page.absolute()
    here = page.parent
    log: list[tuple[Path, bool]] = []
    made: set[Path] = set()
    known: set[Path] = set()
    modules = {*sys.modules}

    def read() -> list[Path]:
        made.update(path for path, written in log if written)
        paths = dict.fromkeys(path for path, _ in log if path not in known and not made & {path, *path.parents})
        known.update(path for path in paths if _is_of_project(path, here))
        log.clear()
        found = [path for path in paths if path in known and path != page]
        return [path for path in found if path.suffix == ".md" or not path.is_relative_to(here)]

    _logs().append(log)
    try:
        yield read
    finally:
        _logs().pop()
        read()
        for name in {*sys.modules} - modules:
            if Path(getattr(sys.modules[name], "__file__", None) or "") in known:
                del sys.modules[name]


@cache
def _logs() -> list[list[tuple[Path, bool]]]:
    """Logs that are being kept, of files and whether each is written: one hook, since none can be removed."""
    logs: list[list[tuple[Path, bool]]] = []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if not logs or event not in _EVENTS or isinstance(arguments[0], int):
            return
        path = os.path.abspath(os.fsdecode(arguments[event == "os.rename"]))
        with contextlib.suppress(ValueError):  # compiled, but of no source
            path = source_from_cache(path) if path.endswith(".pyc") else path
        written = event == "os.rename" or (event == "os.mkdir" and not os.path.exists(path))
        opened = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        logs[-1].append((Path(path), written or bool(opened)))

    sys.addaudithook(note)
    return logs


def names_of(paths: Sequence[Path], here: Path) -> str:
    """Files as seen from the folder of a page; one outside its site's project, by its name alone."""
    here = here.absolute()
    root = next((folder for folder in here.parents if (folder / "mkdocs.yml").is_file()), here)
    names = sorted(os.path.relpath(path, here) if path.is_relative_to(root) else path.name for path in paths)
    more = [f"one of {len(names) - 3} more"] if len(names) > 3 else []
    return " or ".join([*names[:3], *more])


def _is_of_project(path: Path, here: Path) -> bool:
    others = [Path(sys.prefix), Path(sys.base_prefix), Path(altgrad.__file__).parent, *default_sources(), *_SYSTEM]
    others += filter(None, [names_file(default_sources())])  # it is read with them
    if matplotlib := sys.modules.get("matplotlib"):
        others += [Path(matplotlib.get_cachedir()), Path(matplotlib.get_configdir())]
    hidden = any(part.strip(".") and part.startswith(".") for part in Path(os.path.relpath(path, here)).parts)
    return os.path.isfile(path) and not hidden and not any(path.is_relative_to(place.absolute()) for place in others)
