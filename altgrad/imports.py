"""What the library's modules import: of which code a result depends on, and which modules an edit concerns.

The sources are read, never imported: all at one time, and again by `look`. An import inside a function counts like one
at the head; a package's own file counts for each of its modules, what it imports only where it is itself imported.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Collection, Iterable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import altgrad

_BOTH = ("formats", "recipes", "config")
RUN_ROOMS = (
    *_BOTH,
    "scratch",
    "draws",
    "ranks",
    "rounding",
    "diffusion",
    "scaling",
    "nn",
    "models",
    "optim",
    "telemetry",
    "training",
)
"""The rooms that decide a run's numbers; all others and `_BOTH` decide a page about runs (`code_fingerprint`)."""
_IMPORT = re.compile(
    r"(?:^|[;:])[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import\b[ \t]*(\([^)]*\)|[^\n;]+)|import[ \t]+([^\n;]+))", re.MULTILINE
)
_PASSED_OVER = re.compile(r"#[^\n]*|\\\n")
_NAMED = re.compile(r"\baltgrad(?:\.\w+)+")
_ANY = re.compile(r"\b(?:import_module|__import__|runpy|exec\(|subprocess|system|from[ \t]+altgrad[ \t]+import)")


@cache
def code_fingerprint(of: str = "any") -> str:
    """First 12 hex of a sha256 over the package's Python files: names and bytes, in order.

    Args:
        of: "run": what decides a run's numbers; "page": what decides a page about recorded runs; "any": all, for a page
            that runs or shows any code. A new room decides a page unless `RUN_ROOMS` has it. Else names of modules with
            spaces between: they and all that they use.
    """
    files = _sources()
    if names := [name for name in of.split() if _is_ours(name)]:
        return _digest(files if "any" in of.split() else used_by(names))
    room = {name: f"{name}.".split(".")[1] for name in files}
    of_run = {name for name in files if room[name] in RUN_ROOMS}
    of_page = {name for name in files if name not in of_run or room[name] in _BOTH}
    return _digest({"run": of_run, "page": of_page, "any": files}[of])


def _digest(names: Collection[str]) -> str:
    total = hashlib.sha256()
    for source in sorted((_sources()[name] for name in names), key=lambda source: Path(source.place)):
        total.update(source.place.encode() + b"\0" + source.data + b"\0")
    return total.hexdigest()[:12]


@cache
def face_fingerprint(of: str) -> str:
    """The same of modules' names, docstrings and signatures, without what their functions do but for ``__init__``."""
    faces = [(name, _face(_sources()[name].data)) for name in sorted(used_by(of.split()))]
    return hashlib.sha256(repr(faces).encode()).hexdigest()[:12]


@lru_cache(maxsize=1024)
def _face(data: bytes) -> str:
    try:
        tree = ast.parse(data)
    except (SyntaxError, ValueError):  # it is being edited, and who imports it is told
        return hashlib.sha256(data).hexdigest()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name != "__init__":
            node.body = node.body[:1] if ast.get_docstring(node) else []
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def used_by(modules: Iterable[str]) -> set[str]:
    """The modules, all that they import directly or not, and the packages that these are in."""
    known = _sources()
    found, left = set[str](), [_module(name, known) for name in modules]
    while left:
        if (name := left.pop()) not in found:
            found.add(name)
            left += _imports(name, known)
    return found | {above for name in found for above in _packages(name)}


def users_of(changed: Collection[str], among: Iterable[str]) -> set[str]:
    """Of some modules those that have changed, and all that import one of these directly or not."""
    files = _sources()
    found, known = {name for name in among if name in changed}, {*files, *changed}  # some of which may be gone
    users = {name: _imports(name, known) for name in among if name in files}
    while more := {name for name, used in users.items() if name not in found and used & found}:
        found |= more
    return found


def named_in(text: str) -> str:
    """The modules that code names, for `code_fingerprint`: "any" where it may import others."""
    imported = _parsed("", text.encode("utf-8", "replace"))
    if "altgrad" in imported or _ANY.search(text):
        return "any"
    return " ".join(sorted({_module(name, _sources()) for name in (*imported, *_NAMED.findall(text))}))


class _Source(NamedTuple):
    place: str  # in the library's folder
    package: str
    data: bytes


def look() -> None:
    """Take the library's sources as they are now."""
    for known in (_sources, code_fingerprint, face_fingerprint):
        known.cache_clear()
    _sources()


@cache
def _sources() -> dict[str, _Source]:
    """The library's modules by name."""
    root, found = Path(altgrad.__file__).parent, dict[str, _Source]()
    for path in root.rglob("*.py"):
        place = path.relative_to(root)
        names = ["altgrad", *place.with_suffix("").parts]
        name = ".".join(names).removesuffix(".__init__")
        if path.is_file():  # and no editor's lock
            package = name if path.name == "__init__.py" else ".".join(names[:-1])
            found[name] = _Source(place.as_posix(), package, path.read_bytes())
    return found


def _module(name: str, known: Collection[str]) -> str:
    """The module that a dotted name is, or is something of."""
    while name not in known:
        name = name.rpartition(".")[0]
    return name


def _imports(name: str, known: Collection[str]) -> set[str]:
    """The modules of the library that a module imports: a package where it is no module of the package."""
    source = _sources()[name]
    return {_module(each, known) for each in _parsed(source.package, source.data)}


@lru_cache(maxsize=1024)
def _parsed(package: str, data: bytes) -> set[str]:
    """Every name that a file of a package imports from the library, dotted."""
    found = set[str]()
    for base, names, modules in _IMPORT.findall(_PASSED_OVER.sub("", data.decode("utf-8", "replace"))):
        if up := len(base) - len(base.lstrip(".")):
            above = package.split(".")
            base = ".".join([*above[: len(above) - up + 1], *filter(None, [base[up:]])])
        found |= {f"{base}.{name.split()[0]}" for name in names.strip("()").split(",") if name.split()}
        found |= {name.split()[0] for name in modules.split(",") if name.split()}
    return {name for name in found if _is_ours(name)}


def _is_ours(name: str) -> bool:
    return name.split(".")[0] == "altgrad"


def _packages(name: str) -> Iterator[str]:
    while name := name.rpartition(".")[0]:
        yield name
