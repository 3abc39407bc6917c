"""The site's back end: what the scripts in gen/ hand to a mkdocs build, its cache, its report, and the finished HTML.

A page computed from a `Page` is HTML before mkdocs sees it (`altgrad.site.html`): mkdocs reads a stub with its title,
and the body takes the content's place. gen/hooks.py calls the functions here that have a hook's name. All state of a
build is one `SiteBuild` in ``config.extra["altgrad"]``. Nothing of mkdocs is imported before a build runs:
`altgrad.site` is used where no site engine is installed.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import logging
import multiprocessing
import os
import posixpath
import re
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import altgrad
from altgrad.config import UsageError
from altgrad.site.cache import (
    Entries,
    Warnings,
    bring_back,
    clear,
    docstring_bodies,
    docstring_files,
    docstrings_key,
    documented,
    read_entries,
    remember_search,
    search_stamp,
    set_aside,
    write_beside,
    write_entries,
)
from altgrad.site.chart import inline_svg
from altgrad.site.content import CodeBlock, Note, Page, PageMaker, Paragraph, Source
from altgrad.site.html import Body, body_html, figure_html, table_html
from altgrad.site.policy import seal_html as seal_html
from altgrad.site.render import Dialect, files, front_matter
from altgrad.text import escape

log = logging.getLogger("mkdocs.plugins.altgrad")  # below mkdocs' own logger, so that strict builds count warnings

_CHART = re.compile(r'<p><img alt="[^"]*" src="([^"]+\.svg)" ?/></p>\n<p>(Chart: <a .*?)</p>')
_TABLE = re.compile(
    r'(?:<p class="table-caption"(?P<attributes>[^>]*)>(?P<caption>.*?)</p>\s*)?<table>(?P<body>.*?)</table>', re.DOTALL
)
_FENCE = re.compile(r" *(`{3,}|~{3,})")
_MARKER = re.compile(r"<!--\s*altgrad:.*?(?:-->|$)")
_EMBEDDED = re.compile(r"<!-- altgrad: chart (?P<page>[\w./-]+) (?P<chart>[\w.-]+) -->")
_BODY = ".body/"
"""Where the cache keeps bodies beside the files of the site."""
_DOCSTRINGS = "docstrings"
_SEARCH = "search.json"
_SOURCES = "sources/"
_PARTS = ".parts.json"
"""Where the cache keeps which files are of which part, by the parts' keys."""
PROCESSES = 8
"""Most processes that share a family: each holds the records."""
FEW_FILES = 200
"""Most files that are written without a process of their own."""
PATIENCE = 300.0
"""Seconds that the processes have for their last parts; then this one makes what they do not hand over."""

Origin = Literal["made", "cache", "last", "failed"]


@dataclass(frozen=True)
class Family:
    """What one call of `build` or `build_files` gave: the pages of one script, or of one hand-written file.

    Its origin is "made" now; "cache" while nothing it depends on has changed; "last" as it was the last time, because
    only another page is wanted; "failed" with an error box in its place.
    """

    name: str  # its first page
    origin: Origin
    seconds: float  # from the call to its files, the reading of its key included
    pages: int


class Part(NamedTuple):
    """Some of a family's files: what makes them, and a key of all that they depend on but the script ("": unknown)."""

    make: Callable[[], dict[str, bytes]]
    key: str = ""


@dataclass
class SiteBuild:
    """One build of a site; places are those in the site's sources."""

    root: Path  # the folder of mkdocs.yml
    serving: bool = False  # errors become boxes on pages
    page: str = ""  # the only page that is wanted, by its path; "" for all
    refresh: bool = False  # the cache is passed over, and written anew
    problem: str = ""  # why the library cannot be imported, while serving: every page that it makes says so
    begun: float = field(default_factory=time.perf_counter)
    files: dict[str, bytes] = field(default_factory=dict)  # what is added to the site's sources, by place
    bodies: dict[str, Body] = field(default_factory=dict)  # the content of pages that need no Markdown, by place
    families: list[Family] = field(default_factory=list)  # what was made or taken from the cache
    waiting: list[Callable[[], None]] = field(default_factory=list)  # finishes families that are made beside others
    seconds: dict[str, float] = field(default_factory=dict)  # what Markdown and templates took, by page
    kept: set[Path] = field(default_factory=set)  # files of the cache that are in use
    contents: dict[Path, dict[str, bytes]] = field(default_factory=dict)  # while serving, by place in the cache
    made: dict[str, Any] = field(default_factory=dict)  # mkdocs' files of what the scripts made, by place
    there: set[str] = field(default_factory=set)  # those that the site's folder has already
    written: Callable[[], None] | None = None  # waits for the process that writes those which are no pages
    warnings: Warnings = field(default_factory=Warnings)
    entries: Entries = field(default_factory=dict)  # the search's entries of the pages
    search: str = ""  # what all entries depend on
    documented: dict[str, str] = field(default_factory=dict)  # the text of pages of docstrings that can be kept
    docstrings: Path | None = None  # where the cache keeps them
    docstring_files: dict[str, bytes] = field(default_factory=dict)  # what the cache has of them
    new_docstrings: dict[str, bytes] = field(default_factory=dict)  # what this build has made of them
    clock: float = 0.0

    @property
    def cache(self) -> Path:
        """Where files are kept from build to build."""
        return self.root / ".cache" / "site"

    def wants(self, expected: tuple[str, ...]) -> bool:
        """Whether a family has to be up to date: the wanted page is one of it, below it, or beside its index."""
        beside = {posixpath.dirname(path) for path in expected if posixpath.basename(path) == "index"}
        below = any(self.page.startswith(f"{path}/") for path in expected)
        return not self.page or self.page in expected or below or posixpath.dirname(self.page) in beside - {""}


def write_mkdocs(pages: Iterable[Page]) -> None:
    """Hand the pages and the files beside them to the mkdocs build in progress."""
    current = _current()
    _hand_over(current, _site_files(pages, current.root))


def build(
    make_pages: Callable[[], Iterable[Page | PageMaker]],
    *expected: str,
    key: Callable[[], str] | None = None,
    beside: bool = False,
) -> None:
    """Make pages and write them: what a script in gen/ calls.

    Under `mkdocs build` an error fails the build. Under `mkdocs serve` that would leave every page hanging, so each
    of the `expected` paths becomes a page with the error in a box instead.

    Args:
        make_pages: the pages, or what makes each of them.
        expected: paths of pages that there must be; the first names the family.
        key: a digest of everything that the pages depend on but the script that calls this. Where it is given, their
            files are kept in ``.cache/site`` beside mkdocs.yml (one file a family) and taken from there while the
            digest and the script's bytes stay the same. ALTGRAD_REFRESH=1 makes them again.
        beside: whether `mkdocs build` begins them on the other cores, while the scripts that follow run here, and all
            cores share what is left then: for what takes as long as all the rest, page by page. The pages come after
            those of all other scripts. Of these the cache keeps each under the key of its maker.
    """
    root, script = _current().root, _script(make_pages)

    def parts() -> list[Part]:
        return [
            Part(partial(_site_files, [page], root), page.key if isinstance(page, PageMaker) else "")
            for page in make_pages()
        ]

    build_files(
        lambda: _site_files(make_pages(), root), *expected, key=key, script=script, parts=parts if beside else None
    )


def build_files(
    make_files: Callable[[], dict[str, bytes]],
    *expected: str,
    key: Callable[[], str] | None = None,
    script: Path | None = None,
    parts: Callable[[], Sequence[Part]] | None = None,
) -> None:
    """`build` for files of any kind by their place in the site's sources, such as pages that are Markdown already.

    `parts` are functions that make all these files together, for cores that share them (`beside` of `build`).
    """
    current, begun = _current(), time.perf_counter()
    script = script or _script(make_files)
    if parts is not None:
        stamp = hashlib.sha256(script.read_bytes() if script else b"").hexdigest()

        def started(processes: int = PROCESSES) -> Callable[[], dict[str, bytes]]:
            return _started(parts(), _known_parts(current, _family(expected), stamp), stamp, processes)

        make_files = made_here = lambda: started(1)()
        if not (current.serving or current.problem) and current.wants(expected):
            if key is not None:
                key = partial(str, key())  # of what is read now, whatever changes until all is done
            kept = (
                key and not current.refresh and _kept(current.cache, _family(expected), _whole(key, script)).is_file()
            )
            make_files = made_here if kept else started()
        current.waiting.append(partial(_finish, current, make_files, expected, key, script, begun))
    else:
        _finish(current, make_files, expected, key, script, begun)


def _finish(
    current: SiteBuild,
    make_files: Callable[[], dict[str, bytes]],
    expected: tuple[str, ...],
    key: Callable[[], str] | None,
    script: Path | None,
    begun: float,
) -> None:
    family = _family(expected)
    origin: Origin
    try:
        if current.problem:
            raise ImportError("the library cannot be imported")
        if not current.wants(expected):
            origin, content = "last", _last(current.cache, family) or {f"{path}.md": b"" for path in expected}
        elif key is None:
            origin, content = "made", make_files()
        else:
            path = _kept(current.cache, family, _whole(key, script))
            known = None if current.refresh else current.contents.get(path)
            origin, content = ("cache", known) if known else _cached(path, family, make_files, refresh=current.refresh)
            current.kept.add(path)
            if current.serving:
                current.contents[path] = content
    except Exception as error:
        if not current.serving and isinstance(error, UsageError):  # a mistake in a document or a record: one line
            from mkdocs.exceptions import PluginError

            raise PluginError(str(error)) from error
        if not current.serving:
            raise
        box = Note("warning", "This page could not be built", (CodeBlock(current.problem or traceback.format_exc()),))
        retry = Paragraph("Correct the error and save: the page is built again.")
        pages = [Page(path, "Build error", (box, retry), search=False) for path in expected]
        origin, content = "failed", _site_files(pages, current.root)
    _hand_over(current, content)
    count = sum(name.endswith(".md") and not name.startswith(_BODY) for name in content)
    current.families.append(Family(expected[0], origin, time.perf_counter() - begun, count))


def _known_parts(current: SiteBuild, family: str, stamp: str) -> dict[str, dict[str, bytes]]:
    """The files of each part of a family that the cache has, by the part's key; none of a script of other bytes."""
    files = {} if current.refresh else _last(current.cache, family) or {}
    with contextlib.suppress(KeyError, ValueError, TypeError, AttributeError):
        kept = json.loads(files[_PARTS])
        if kept["script"] == stamp:
            return {key: {name: files[name] for name in names} for key, names in kept["parts"].items()}
    return {}


def _started(
    parts: Sequence[Part],
    known: Mapping[str, dict[str, bytes]] = MappingProxyType({}),
    stamp: str = "",
    processes: int = PROCESSES,
) -> Callable[[], dict[str, bytes]]:
    """Begin to make the parts that are not known in processes of their own, one for each core but this one.

    What is given back makes here what nobody has begun, and gives all files in the order of the parts. What a process
    does not hand over, since it failed or died, is made here too: what is wrong then shows as it always does.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    left = [index for index, part in enumerate(parts) if part.key not in known]
    beside = max(0, min(cores - 1, processes - 1, len(left)))
    context = multiprocessing.get_context("fork" if beside else None)
    turn = context.Value("q", 0) if beside else None

    def taken() -> Iterator[int]:
        if turn is None:
            yield from left
            return
        while True:
            with turn.get_lock():
                place, turn.value = turn.value, turn.value + 1
            if place >= len(left):
                return
            yield left[place]

    def work(send: Connection, *others: Connection) -> None:
        for other in others:  # so that it ends where nobody is left to read
            other.close()
        found: dict[int, dict[str, bytes]] = {}
        with send, contextlib.suppress(Exception):
            try:
                for index in taken():
                    found[index] = parts[index].make()
            finally:
                send.send(found)

    children: list[tuple[BaseProcess, Connection]] = []
    for _ in range(beside):
        receive, send = multiprocessing.Pipe(duplex=False)
        others = (receive, *(connection for _, connection in children))
        process = context.Process(target=work, args=(send, *others), daemon=True)
        with send:
            try:
                process.start()
            except OSError:  # as many processes as there may be
                receive.close()
                break
        children.append((process, receive))

    def files_made() -> dict[str, bytes]:
        found = {index: parts[index].make() for index in taken()}
        until = time.monotonic() + PATIENCE
        for process, receive in children:
            with receive, contextlib.suppress(EOFError, OSError):  # nothing comes, or not all of it
                found |= receive.recv() if receive.poll(max(0.0, until - time.monotonic())) else {}
            process.kill()
            process.join()
        all_files: dict[str, bytes] = {}
        names: dict[str, list[str]] = {}
        for index, part in enumerate(parts):
            own = found.get(index) or known.get(part.key) or part.make()
            all_files |= own
            names |= {part.key: list(own)} if part.key else {}
        kept = json.dumps({"script": stamp, "parts": names}).encode()
        return all_files | ({_PARTS: kept} if names else {})

    return files_made


def _writing(writes: Sequence[Callable[[], None]]) -> Callable[[], None] | None:
    """Write files in a process of its own, since opening thousands of them takes seconds; None without a core for it.

    What is given back waits until they are written; those of a process that failed are written here.
    """
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        return None

    def work() -> None:
        for write in writes:
            write()

    process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    try:
        process.start()
    except OSError:  # as many processes as there may be
        return None

    def written() -> None:
        process.join()
        if process.exitcode:
            work()

    return written


def _family(expected: tuple[str, ...]) -> str:
    return expected[0].replace("/", ".")


def _whole(key: Callable[[], str], script: Path | None) -> str:
    """A digest of all that a family depends on."""
    return hashlib.sha256(key().encode() + (script.read_bytes() if script else b"")).hexdigest()


def _kept(folder: Path, family: str, whole: str) -> Path:
    """Where the cache has a family's files of this digest."""
    return folder / f"{family}-{whole[:16]}.zip"


def _current() -> SiteBuild:
    import mkdocs_gen_files

    current = mkdocs_gen_files.config["extra"].get("altgrad")
    if current is None:
        from mkdocs.exceptions import PluginError

        raise PluginError("mkdocs.yml: `hooks: [gen/hooks.py]` is missing; the scripts in gen/ need it")
    return current  # type: ignore[no-any-return]


def _script(make: Callable[..., object]) -> Path | None:
    """The file in which a function is defined."""
    while isinstance(make, partial):
        make = make.func
    code = getattr(make, "__code__", None)
    path = Path(code.co_filename) if code else None
    return path if path and path.is_file() else None


def _site_files(pages: Iterable[Page | PageMaker], root: Path) -> dict[str, bytes]:
    """Every file of the pages by its place in the site's sources, their bodies, and the scripts behind them."""
    found: dict[str, bytes] = {}
    for page in pages:
        found |= _page_files(page if isinstance(page, Page) else page(), root, found)
    return found


def _page_files(page: Page, root: Path, sources: dict[str, bytes]) -> dict[str, bytes]:
    place = posixpath.dirname(page.path)
    folder = place if posixpath.basename(page.path) == "index" else page.path

    def source(made_by: Source) -> tuple[str, str] | None:
        name = source_name(made_by, root)
        if name is None:
            return None
        published = f"{_SOURCES}{name}.txt"
        data = sources.setdefault(published, Path(made_by.path).read_bytes())
        jump = made_by.function.rsplit(".", 1)[-1]
        jump = f"#:~:text={quote(f'def {jump}(', safe='')}" if jump else ""
        address = posixpath.relpath(published, folder or ".") + jump
        return address, f"{name}, sha256 {hashlib.sha256(data).hexdigest()[:12]}"

    beside = files(page, Dialect(site=True, address=lambda reference: reference.path))
    body = body_html(page, beside, source)
    return {
        **{posixpath.join(place, name): data for name, data in beside.items()},
        f"{page.path}.md": f"{front_matter(page)}# {escape(page.title)}\n".encode(),
        f"{_BODY}{page.path}.md": json.dumps(asdict(body)).encode(),
    }


def source_name(made_by: Source, root: Path) -> str | None:
    """A file of the library or of the project by its name there; None for any other."""
    path = Path(made_by.path)
    for above in (Path(altgrad.__file__).parent, root / "gen", root / "docs"):
        if path.is_relative_to(above) and path.is_file():
            return path.relative_to(above.parent).as_posix()
    return None


def _hand_over(current: SiteBuild, content: Mapping[str, bytes]) -> None:
    for name, data in content.items():
        if name == _PARTS:
            continue
        if name.startswith(_BODY):
            body = json.loads(data)
            pairs = {key: tuple(map(tuple, body[key])) for key in ("toc", "links")}
            current.bodies[name.removeprefix(_BODY)] = Body(body["html"], **pairs)
        else:
            current.files[name] = data


def _cached(
    path: Path, family: str, make: Callable[[], dict[str, bytes]], *, refresh: bool = False
) -> tuple[Literal["made", "cache"], dict[str, bytes]]:
    """What `make` gives, kept in `path`; a damaged file is made again."""
    known = None if refresh else _read(path)
    if known is not None:
        return "cache", known
    content = make()
    _keep(path, family, content)
    return "made", content


def _keep(path: Path, family: str, content: Mapping[str, bytes]) -> None:
    """Write a family's files into the cache; its older ones go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
        archive.comment = _digest(content)
    os.replace(temporary, path)
    for old in _of_family(path.parent, family):
        if old != path:
            old.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, bytes] | None:
    """The files of an archive that `_keep` wrote; None without one, and of one that is not as it was written."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = {name: archive.read(name) for name in archive.namelist()}
            return found if archive.comment == _digest(found) else None
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error):  # damage of every kind
        return None


def _digest(content: Mapping[str, bytes]) -> bytes:
    total = hashlib.sha256()
    for name, data in content.items():
        total.update(f"{name}\0{len(data)}\0".encode() + data)
    return total.hexdigest().encode()


def _of_family(folder: Path, family: str) -> list[Path]:
    """The family's files, not those of one whose name begins with this one's."""
    return sorted(folder.glob(f"{family}-{'?' * 16}.zip"))


def _last(folder: Path, family: str) -> dict[str, bytes] | None:
    """The family's files as they were the last time, whatever has changed since; None without such."""
    return next((found for path in _of_family(folder, family) if (found := _read(path)) is not None), None)


# What gen/hooks.py calls, in this order.


def begin(
    config: Any,
    *,
    serving: bool,
    dated: bool,
    problem: str = "",
    dirty: bool = False,
    contents: dict[Path, dict[str, bytes]] | None = None,
) -> None:
    """Start a build: note what is wanted, and date it by its newest record, not by the clock.

    `ALTGRAD_PAGE` is the only page to build, `ALTGRAD_REFRESH=1` passes the cache over. In a build that mike makes the
    version selector is on; elsewhere it would ask for a list of versions that does not exist.

    Args:
        config: of mkdocs.
        serving: whether a reader is editing the pages.
        dated: whether the user has set SOURCE_DATE_EPOCH.
        problem: why the library cannot be imported as it is now, where this is the one before.
        dirty: whether mkdocs leaves the site's folder as it is.
        contents: while serving, what the build before this one had from the cache.
    """
    page = os.environ.get("ALTGRAD_PAGE", "").strip().strip("/").removesuffix(".md")
    refresh = os.environ.get("ALTGRAD_REFRESH", "0") not in ("", "0")
    root = Path(config["config_file_path"]).parent
    serving = serving or bool(config["extra"].get("serving"))
    current = SiteBuild(root, serving, page, refresh, problem, contents=contents or {})
    config["extra"]["altgrad"] = current
    _watch(current.warnings)
    if not dirty:
        set_aside(Path(config["site_dir"]))
    index = getattr(config["plugins"].get("material/search"), "search_index", None)  # none where it is switched off
    if index is not None:
        current.search = search_stamp(index)
        known = {} if refresh else read_entries(current.cache / _SEARCH, current.search)
        remember_search(index, known, current.entries)
    if page:
        config["nav"] = None
        config["validation"].links.anchors = config["validation"].links.not_found = logging.DEBUG
    if os.environ.get("MIKE_DOCS_VERSION"):
        config["extra"]["version"] = {"provider": "mike", "default": "latest", "alias": True}
    from altgrad.runs import newest_time

    newest = None if dated else newest_time()
    if newest is not None:
        os.environ["SOURCE_DATE_EPOCH"] = os.environ["ALTGRAD_EPOCH"] = str(int(newest.timestamp()))


def _watch(warnings: Warnings | None) -> None:
    """Let mkdocs' warnings be counted; with None no longer."""
    logger = logging.getLogger("mkdocs")
    for handler in [*logger.handlers]:
        if type(handler).__name__ == Warnings.__name__:  # of whichever reading of the library
            logger.removeHandler(handler)
    if warnings is not None:
        logger.addHandler(warnings)


def add_files(found: Any, config: Any) -> Any:
    """Put what the scripts made, and the pages' styles and scripts, into the site's sources; leave all pages but the
    wanted one unbuilt."""
    from mkdocs.exceptions import PluginError
    from mkdocs.structure.files import File, InclusionLevel

    from altgrad.site.new_site import assets

    current: SiteBuild = config["extra"]["altgrad"]
    for finish in current.waiting:
        finish()

    class Made(File):  # type: ignore[misc]  # mkdocs has no types
        """A file that is there already, or that a process beside this one may be writing."""

        def copy_file(self, dirty: bool = False) -> None:
            if current.written is None and self.src_uri not in current.there:
                super().copy_file(dirty)

    for name, data in [*assets(), *current.files.items()]:
        known = found.get_file_from_path(name)
        if known is not None and name not in current.files:
            continue  # a project's own file goes before the library's
        if known is not None:
            found.remove(known)
        current.made[name] = Made.generated(config, name, content=data)
        found.append(current.made[name])
    if current.page:
        pages = {file.src_uri.removesuffix(".md"): file for file in found if file.is_documentation_page()}
        if current.page not in pages:
            near = ", ".join(difflib.get_close_matches(current.page, pages, 3, 0.4))
            raise PluginError(f"there is no page {current.page}; {f'near it: {near}' if near else 'none is near it'}")
        for path, file in pages.items():
            if path != current.page:
                file.inclusion = InclusionLevel.EXCLUDED
    texts = {file.src_uri: file.content_string for file in found.documentation_pages()}
    current.documented = {} if current.page else documented(texts, current.files)
    if current.documented and "mkdocstrings" in config["plugins"]:
        current.docstrings = _kept(current.cache, _DOCSTRINGS, docstrings_key(current.documented, config))
        current.kept.add(current.docstrings)
        current.docstring_files = {} if current.refresh else _read(current.docstrings) or {}
        current.bodies |= docstring_bodies(current.docstring_files)
    return found


def place_files(config: Any, found: Any) -> None:
    """When it is settled what is in the site: have the files that it had already, and begin to write the others."""
    from mkdocs.structure.files import File

    current: SiteBuild = config["extra"]["altgrad"]
    made: list[Any] = [file for file in found if file is current.made.get(file.src_uri)]
    files = [
        file
        for file in made
        if not file.is_documentation_page()
        and (file.inclusion.is_in_serve() if current.serving else file.inclusion.is_included())
    ]
    there = bring_back(Path(config["site_dir"]), {file.dest_uri: file.content_bytes for file in files})
    current.there = {file.src_uri for file in files if file.dest_uri in there}
    missing = [file for file in files if file.src_uri not in current.there]
    if len(missing) > FEW_FILES and not current.serving:
        current.written = _writing([partial(File.copy_file, file) for file in missing])


def resolved(config: Any, found: Any) -> None:
    """When all references between pages are resolved: take the pages of docstrings, or what lies beside kept ones."""
    current: SiteBuild = config["extra"]["altgrad"]
    site = Path(config["site_dir"])
    if current.docstring_files:
        write_beside(current.docstring_files, site)
    elif current.docstrings is not None:
        current.new_docstrings = docstring_files(
            [found.get_file_from_path(name).page for name in current.documented], site
        )


def embed(text: str, page: Any, config: Any, found: Any) -> str:
    """Hand-written Markdown with the charts that it names, each on a line of its own, in place of their markers.

        <!-- altgrad: chart reports/format_comparison loss-gap -->

    is the chart `loss-gap` of that page, with its files and the page that it is from. A marker of any other form, or
    one that names no chart, fails the build; while serving the page says so in a box. Fences are left alone.
    """
    current: SiteBuild = config["extra"]["altgrad"]
    if page.file.src_uri in current.bodies:
        return text.partition("\n\n")[0]  # the title; all else is there already
    if "altgrad:" not in text:
        return text
    lines, fence = text.split("\n"), ""
    for number, line in enumerate(lines):
        mark = _FENCE.match(line)
        if mark and (not fence or line.strip() == fence):
            fence = "" if fence else mark.group(1)
        if fence or not _MARKER.search(line):
            continue
        where = f"{page.file.src_uri}: line {number + 1}: "
        wanted = _EMBEDDED.fullmatch(line.strip())
        if wanted is None:
            problem = f"{where}write `<!-- altgrad: chart PAGE CHART -->` on a line of its own, not {line.strip()[:80]}"
        else:
            drawing = found.get_file_from_path(f"{wanted['page']}.{wanted['chart']}.svg")
            if drawing is not None:
                lines[number] = _embedded(wanted["page"], wanted["chart"], drawing.content_string, page, found)
                continue
            pattern = re.compile(re.escape(wanted["page"]) + r"\.([\w.-]+)\.svg")
            known = ", ".join(match[1] for name in sorted(found.src_uris) if (match := pattern.fullmatch(name)))
            hint = f"it has {known}" if known else "it has no charts, or there is no such page"
            problem = f"{where}the page {wanted['page']} has no chart {wanted['chart']}; {hint}"
        if not current.serving:
            from mkdocs.exceptions import PluginError

            raise PluginError(problem)
        lines[number] = f'!!! warning "A chart could not be put here"\n\n    {escape(problem)}'
    return "\n".join(lines)


def _embedded(path: str, chart: str, drawing: str, page: Any, found: Any) -> str:
    """A chart of another page as Markdown that `finish_html` turns into the drawing."""
    place = posixpath.dirname(page.file.src_uri) or "."
    near = partial(posixpath.relpath, start=place)
    title = re.search(r"<title[^>]*>(.*?)</title>", drawing, re.DOTALL)
    kinds = [kind for kind in ("csv", "json", "svg") if found.get_file_from_path(f"{path}.{chart}.{kind}")]
    links = [f"[{kind.upper()}]({near(f'{path}.{chart}.{kind}')})" for kind in kinds]
    source = found.get_file_from_path(f"{path}.md")
    named = re.search(r"^# (.+)$", source.content_string, re.MULTILINE) if source else None
    if named:
        links.append(f"from [{named[1]}]({near(f'{path}.md')})")
    return f"![{title[1] if title else ''}]({near(f'{path}.{chart}.svg')})\n\nChart: {' · '.join(links)}"


def content(html: str, page: Any, config: Any, found: Any) -> str:
    """The body of a page: the one that is there already, or what Markdown made with charts and tables finished."""
    current: SiteBuild = config["extra"]["altgrad"]
    body = current.bodies.get(page.file.src_uri)
    if body is None:

        def find(address: str) -> str | None:
            file = found.get_file_from_path(posixpath.normpath(posixpath.join(page.url, address)))
            return None if file is None else file.content_string

        finished = finish_html(html, find)
        if finished != html:
            page.present_anchor_ids = (page.present_anchor_ids or set()) | _ids(finished)
        return finished
    from mkdocs.structure.toc import get_toc

    page.toc = get_toc(_nested(body.toc))
    page.present_anchor_ids = _ids(body.html)
    page.links_to_anchors = {}
    for path, anchor in body.links:
        file = found.get_file_from_path(f"{path}.md")
        if file is None:
            if not current.page:
                log.warning(f"Doc file '{page.file.src_uri}' leads to '{path}.md', which is not among the pages.")
        elif anchor:
            page.links_to_anchors.setdefault(file, {})[anchor] = f"{path}.md#{anchor}"
    return body.html


def _ids(html: str) -> set[str]:
    return set(re.findall(r'\sid="([^"]+)"', html))


def _nested(flat: Iterable[tuple[int, str, str]]) -> list[Any]:
    """Headings as a tree: each is a child of the last one before it of a higher rank."""
    top: list[Any] = []
    path: list[Any] = []
    for level, identity, name in flat:
        token = {"level": level, "id": identity, "name": name, "children": []}
        while path and path[-1]["level"] >= level:
            path.pop()
        (path[-1]["children"] if path else top).append(token)
        path.append(token)
    return top


def tick(config: Any, page: Any, *, stop: bool) -> None:
    """Add the time between two calls, a start and a stop, to the page's seconds."""
    current: SiteBuild = config["extra"]["altgrad"]
    now = time.perf_counter()
    if stop:
        name = page.file.src_uri
        current.seconds[name] = current.seconds.get(name, 0.0) + now - current.clock
    current.clock = now


def wait(config: Any) -> None:
    """Before anybody looks at the site: have all files written."""
    current: SiteBuild = config["extra"]["altgrad"]
    if current.written is not None:
        current.written()


def failed(config: Any) -> None:
    """Leave nothing of a build that failed behind."""
    _watch(None)
    clear(Path(config["site_dir"]))


def end(config: Any) -> None:
    """Write the build report beside the site (never into it) and remove what the cache no longer needs."""
    current: SiteBuild = config["extra"]["altgrad"]
    _watch(None)
    current.contents = {path: files for path, files in current.contents.items() if path in current.kept}
    total = time.perf_counter() - current.begun
    families = sorted(current.families, key=lambda family: -family.seconds)
    slowest = sorted(current.seconds.items(), key=lambda item: -item[1])
    folder = current.root / "build" / "report"
    folder.mkdir(parents=True, exist_ok=True)
    report = {
        "seconds": round(total, 3),
        "page": current.page,
        "families": [asdict(family) | {"seconds": round(family.seconds, 4)} for family in families],
        "pages": {name: round(seconds, 4) for name, seconds in slowest},
    }
    (folder / "build.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    lines = [f"{len(slowest)} pages in {total:.1f} s", "", "Scripts and executed pages, slowest first"]
    lines += [f"{family.seconds:9.3f} s  {family.origin:6}  {family.name} ({family.pages})" for family in families]
    lines += ["", "Markdown and templates, slowest 20 pages"]
    lines += [f"{seconds:9.3f} s  {name}" for name, seconds in slowest[:20]]
    (folder / "build.txt").write_text("\n".join(lines) + "\n", "utf-8")
    if current.page:
        log.info(f"Page: {Path(config['site_dir']) / found_place(current.page)}")
    elif all(family.origin in ("made", "cache") for family in families):
        if current.search:
            write_entries(current.cache / _SEARCH, current.search, current.entries)
        if current.docstrings is not None and current.new_docstrings and not current.warnings.count:
            _keep(current.docstrings, _DOCSTRINGS, current.new_docstrings)
        for path in current.cache.glob("*.zip"):
            if path not in current.kept:
                path.unlink(missing_ok=True)


def found_place(path: str) -> str:
    """Where a page lies in the built site."""
    folder = posixpath.dirname(path) if posixpath.basename(path) == "index" else path
    return posixpath.join(folder, "index.html")


def finish_html(html: str, find: Callable[[str], str | None]) -> str:
    """The HTML of one page with its charts inline and its tables in boxes of their own.

    A chart arrives as an image and leaves as an inline drawing that follows the palette, out of the search index. A
    table gets its caption, a region that scrolls by itself (and by keyboard), and marks for the sorting script.

    Args:
        html: What Python-Markdown made of the page.
        find: Gives the text of a drawing by its address relative to the page; None when there is none.
    """

    names: set[str] = set()

    def chart(match: re.Match[str]) -> str:
        address, links = match.groups()
        svg = find(address)
        if svg is None:
            return match.group()
        return figure_html(_with_own_name(inline_svg(svg), names), f'<p class="files">{links}</p>')

    def table(match: re.Match[str]) -> str:
        caption = match["caption"] or ""  # "Table" stands where a page gave none
        return table_html(match["body"], "" if caption == "Table" else caption, match["attributes"] or "")

    html = _TABLE.sub(table, _CHART.sub(chart, html))
    return re.sub(r"<p>((?:Table|Files): <a )", r'<p class="files">\1', html)


def _with_own_name(drawing: str, taken: set[str]) -> str:
    """The drawing with ids that no other on the page has: charts of two pages may have one name."""
    name = re.search(r'aria-labelledby="(\S+)-title ', drawing)
    if name is None:
        return drawing
    own, number = name[1], 2
    while own in taken:
        own, number = f"{name[1]}-{number}", number + 1
    taken.add(own)
    return drawing if own == name[1] else re.sub(rf'(?<=["#( ]){re.escape(name[1])}-', f"{own}-", drawing)
