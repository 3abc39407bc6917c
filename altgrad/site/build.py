"""The site's back end: what the scripts in gen/ hand to a mkdocs build, its cache, its report, and the finished HTML.

A page computed from a `Page` is HTML before mkdocs sees it (`altgrad.site.html`): mkdocs reads a stub with its title,
and the body takes the content's place. `altgrad.site.plugin` calls the functions here that have a hook's name. All
state of a build is one `SiteBuild` in ``config.extra["altgrad"]``. Nothing of mkdocs is imported before a build runs:
`altgrad.site` is used where no site engine is installed.
"""

from __future__ import annotations

import difflib
import gc
import hashlib
import json
import logging
import multiprocessing
import os
import posixpath
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import altgrad
from altgrad.config import UsageError
from altgrad.imports import look
from altgrad.runs.schema import digest
from altgrad.site.cache import (
    Cache,
    Warnings,
    docstring_bodies,
    docstring_files,
    docstrings_key,
    documented,
    log,
    write_beside,
)
from altgrad.site.chart import inline_svg
from altgrad.site.content import CodeBlock, Note, Page, PageMaker, Paragraph, Source
from altgrad.site.html import BODY, Body, body_html, figure_html, filled, folder_of, mark, table_html
from altgrad.site.policy import seal_html
from altgrad.site.render import files, front_matter
from altgrad.text import escape

_TABLE = re.compile(r"<table>(.*?)</table>", re.DOTALL)
_UNSEARCHED = re.compile(r"<(table|figure|pre|svg)\b.*?</\1>", re.DOTALL)
_FENCE = re.compile(r" *(`{3,}|~{3,})")
_MARKER = re.compile(r"<!--\s*altgrad:.*?(?:-->|$)")
_EMBEDDED = re.compile(r"<!-- altgrad: chart (?P<page>[\w./-]+) (?P<chart>[\w.-]+) -->")
_PARTS = ".parts.json"
"""Where the cache has the keys of a family's parts."""
_DOCSTRINGS = "docstrings"
_SOURCES = "sources/"
PROCESSES = 8
"""Most processes that share a family: each holds the records."""
SEARCHED = 240
"""Characters of a section that the search knows."""

Origin = Literal["made", "cache", "last", "failed"]
Files = dict[str, bytes]


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
    made: int = 0  # of its parts, how many were made now


class Part(NamedTuple):
    """Some of a family's files: what makes them, and a key of all that they depend on but the script ("": unknown)."""

    make: Callable[[], Files]
    key: str = ""


@dataclass
class SiteBuild:
    """One build of a site; places are those in the site's sources."""

    root: Path  # the folder of mkdocs.yml
    serving: bool = False  # errors become boxes on pages
    held: bool = False  # who serves has the files of data from this build, and needs none of them written
    page: str = ""  # the only page that is wanted, by its path; "" for all
    problem: str = ""  # why the library cannot be imported, while serving: every page that it makes says so
    cache: Cache = field(default_factory=lambda: Cache(Path(), refresh=True))
    begun: float = field(default_factory=time.perf_counter)
    made: set[str] = field(default_factory=set)  # the pages that the scripts have added to the site's sources
    data: Files = field(default_factory=dict)  # files beside them, which would be written twice
    bodies: dict[str, Body] = field(default_factory=dict)  # the content of pages that need no Markdown, by place
    parts: dict[str, list[str]] = field(default_factory=dict)  # tables and charts of pages that do, by place
    families: list[Family] = field(default_factory=list)  # what was made or taken from the cache
    seconds: dict[str, float] = field(default_factory=dict)  # what Markdown and templates took, by page
    warnings: Warnings = field(default_factory=Warnings)
    documented: dict[str, str] = field(default_factory=dict)  # the text of pages of docstrings that can be kept
    docstrings: str = ""  # the key under which the cache keeps them
    docstring_files: Files = field(default_factory=dict)  # what the cache has of them
    new_docstrings: Files = field(default_factory=dict)  # what this build has made of them
    clock: float = 0.0

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
    parallel: bool = False,
) -> None:
    """Make pages and write them: what a script in gen/ calls.

    Under `mkdocs build` an error fails the build. Under `mkdocs serve` that would leave every page hanging, so each
    of the `expected` paths becomes a page with the error in a box instead.

    Args:
        make_pages: the pages, or what makes each of them: of these the cache keeps each under the key of its maker.
        expected: paths of pages that there must be; the first names the family.
        key: a digest of everything that the pages depend on but the script that calls this. Where it is given, their
            files are kept in ``.cache/site`` beside mkdocs.yml and taken from there while the digest and the script's
            bytes stay the same. ALTGRAD_REFRESH=1 makes them again.
        parallel: whether the cores share the makers under `mkdocs build`: for many pages that have little in common,
            since what one process has found the others have not.
    """
    root = _current().root

    def parts() -> Iterable[Part]:
        pages = [*make_pages()]
        makers = [page for page in pages if isinstance(page, PageMaker)]
        yield from (Part(partial(_site_files, [maker], root), maker.key) for maker in makers)
        if plain := [page for page in pages if isinstance(page, Page)]:
            yield Part(partial(_site_files, plain, root))

    _add(parts, expected, key, _script(make_pages), PROCESSES if parallel else 1)


def build_files(make_files: Callable[[], Files], *expected: str, key: Callable[[], str] | None = None) -> None:
    """`build` for files of any kind by their place in the site's sources, such as pages that are Markdown already."""
    _add(lambda: [Part(make_files)], expected, key, _script(make_files))


def build_executed(docs: Path) -> None:
    """`build` for every Markdown file in a folder that has blocks of code, run, with their results."""

    def made(page: Path) -> Files:
        from altgrad.site.executed import page_files  # inside, so that an error in it shows as a page while serving

        return page_files(page, docs)

    def key(page: Path) -> str:
        from altgrad.site.executed import page_key

        return page_key(page)

    for page in sorted(docs.rglob("*.md")):
        if re.search(rb"python (?:no)?exec", page.read_bytes()):
            build_files(partial(made, page), page.relative_to(docs).with_suffix("").as_posix(), key=partial(key, page))


def _add(
    parts: Callable[[], Iterable[Part]],
    expected: tuple[str, ...],
    key: Callable[[], str] | None,
    script: bytes,
    processes: int = 1,
) -> None:
    current, begun, name = _current(), time.perf_counter(), expected[0].replace("/", ".")
    origin: Origin
    made = 0
    try:
        if current.problem:
            raise ImportError("the library cannot be imported")
        whole = digest(key(), script.hex()) if key and current.wants(expected) else ""
        if not current.wants(expected):
            found = _whole(current.cache, name, script, current.cache.last(name))
            origin, content = "last", found or {f"{path}.md": b"" for path in expected}
        elif whole and (known := _whole(current.cache, name, script, current.cache.get(name, whole))) is not None:
            origin, content = "cache", known
        else:
            origin, content, made = "made", *_made(current, name, [*parts()], whole, script, processes)
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
    count = sum(name.endswith(".md") and not name.startswith(BODY) for name in content)
    current.families.append(Family(expected[0], origin, time.perf_counter() - begun, count, made))


def _whole(cache: Cache, name: str, script: bytes, kept: Files | None) -> Files | None:
    """All files of a family that the cache has under one key, those of its parts too; None where one is missing."""
    if kept is None or _PARTS not in kept:
        return kept
    content = {file: data for file, data in kept.items() if file != _PARTS}
    for key in json.loads(kept[_PARTS]):
        part = cache.get(f"{name}.part", digest(key, script.hex()))
        if part is None:
            return None
        content |= part
    return content


def _made(
    current: SiteBuild, name: str, parts: Sequence[Part], whole: str, script: bytes, processes: int
) -> tuple[Files, int]:
    """The files of all parts, in their order, and how many were made: those that the cache has not."""
    keys = [digest(part.key, script.hex()) if whole and part.key else "" for part in parts]
    known = [current.cache.get(f"{name}.part", key) if key else None for key in keys]
    left = [part.make for part, kept in zip(parts, known, strict=True) if kept is None]
    fresh = iter(_shared(left, 1 if current.serving else processes))
    content: Files = {}
    rest: Files = {}
    for key, kept in zip(keys, known, strict=True):
        found = next(fresh) if kept is None else kept
        content |= found
        if not key:
            rest |= found
        elif kept is None:
            current.cache.put(f"{name}.part", key, found)
    if whole:
        named = {_PARTS: json.dumps([part.key for part in parts if part.key]).encode()} if any(keys) else {}
        current.cache.put(name, whole, rest | named)
    return content, len(left)


_work: Sequence[Callable[[], Files]] = ()


def _do(number: int) -> Files:
    return _work[number]()


def _leave_with(parent: int) -> None:
    """End this process when the one that began it is gone: a pool's processes would wait for work for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _shared(work: Sequence[Callable[[], Files]], processes: int) -> list[Files]:
    """What the functions give; the cores share them where a process can be forked, which has all that is read."""
    global _work
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if min(cores, processes, len(work)) > 1:
        _work = work
        try:
            context = multiprocessing.get_context("fork")
            gc.freeze()  # so that no process looks through, and so copies, what all have read
            with ProcessPoolExecutor(min(cores, processes), context, _leave_with, (os.getpid(),)) as pool:
                return list(pool.map(_do, range(len(work))))
        except (BrokenProcessPool, OSError):  # a process was killed, or none could be started: it is all made here
            log.info("A process ended early; its pages are made in this one")
        finally:
            gc.unfreeze()
    return [make() for make in work]


def _current() -> SiteBuild:
    import mkdocs_gen_files

    current = mkdocs_gen_files.config["extra"].get("altgrad")
    if current is None:
        from mkdocs.exceptions import PluginError

        raise PluginError("mkdocs.yml: the plugin `altgrad`, here `hooks: [gen/hooks.py]`, is missing; gen/ needs it")
    return current  # type: ignore[no-any-return]


def _script(make: Callable[..., object]) -> bytes:
    """The bytes of the file in which a function is defined."""
    while isinstance(make, partial):
        make = make.func
    code = getattr(make, "__code__", None)
    return path.read_bytes() if code and (path := Path(code.co_filename)).is_file() else b""


def _site_files(pages: Iterable[Page | PageMaker], root: Path) -> dict[str, bytes]:
    """Every file of the pages by its place in the site's sources, their bodies, and the scripts behind them."""
    found: dict[str, bytes] = {}
    for page in pages:
        found |= _page_files(page if isinstance(page, Page) else page(), root, found)
    return found


def _page_files(page: Page, root: Path, sources: dict[str, bytes]) -> dict[str, bytes]:
    place = posixpath.dirname(page.path)

    def source(made_by: Source) -> tuple[str, str] | None:
        name = source_name(made_by, root)
        if name is None:
            return None
        published = f"{_SOURCES}{name}.txt"
        data = sources.setdefault(published, Path(made_by.path).read_bytes())
        jump = made_by.function.rsplit(".", 1)[-1]
        jump = f"#:~:text={quote(f'def {jump}(', safe='')}" if jump else ""
        address = posixpath.relpath(published, folder_of(page.path) or ".") + jump
        return address, f"{name}, sha256 {hashlib.sha256(data).hexdigest()[:12]}"

    beside = files(page)
    body = body_html(page, beside, source)
    return {
        **{posixpath.join(place, name): data for name, data in beside.items()},
        f"{page.path}.md": f"{front_matter(page)}# {escape(page.title)}\n".encode(),
        f"{BODY}{page.path}.md": json.dumps(asdict(body)).encode(),
    }


def source_name(made_by: Source, root: Path) -> str | None:
    """A file of the library or of the project by its name there; None for any other."""
    path = Path(made_by.path)
    for above in (Path(altgrad.__file__).parent, root / "gen", root / "docs"):
        if path.is_relative_to(above) and path.is_file():
            return path.relative_to(above.parent).as_posix()
    return None


def _hand_over(current: SiteBuild, content: Mapping[str, bytes]) -> None:
    import mkdocs_gen_files

    for name, data in content.items():
        if name.startswith(BODY):
            found = json.loads(data)
            if isinstance(found, dict):
                current.bodies[name.removeprefix(BODY)] = Body(**found)
            else:
                current.parts[name.removeprefix(BODY)] = found
        elif name.endswith(".md"):
            current.made.add(name)
            with mkdocs_gen_files.open(name, "wb") as file:
                file.write(data)
        else:
            current.data[name] = data


# What `altgrad.site.plugin` calls, in this order.


def begin(
    config: Any,
    *,
    serving: bool,
    dated: bool,
    problem: str = "",
    memory: dict[str, Files] | None = None,
    held: bool = False,
) -> None:
    """Start a build: note what is wanted, and date it by its newest record, not by the clock.

    `ALTGRAD_PAGE` is the only page to build, `ALTGRAD_REFRESH=1` passes the cache over. In a build that mike makes the
    version selector is on; elsewhere it would ask for a list of versions that does not exist.

    Args:
        config: of mkdocs.
        serving: whether a reader is editing the pages.
        dated: whether the user has set SOURCE_DATE_EPOCH.
        problem: why the library cannot be imported as it is now, where this is the one before.
        memory: while serving, what the build before this one had from the cache.
        held: whether files of data are served from memory.
    """
    look()  # what a page is made with is no newer than what its key says, whenever somebody saves a file
    page = os.environ.get("ALTGRAD_PAGE", "").strip().strip("/").removesuffix(".md")
    refresh = os.environ.get("ALTGRAD_REFRESH", "0") not in ("", "0")
    root = Path(config["config_file_path"]).parent
    serving = serving or bool(config["extra"].get("serving"))
    cache = Cache(root / ".cache" / "site", refresh, memory)
    current = config["extra"]["altgrad"] = SiteBuild(root, serving, held, page, problem, cache)
    _watch(current.warnings)
    index = getattr(config["plugins"].get("material/search"), "search_index", None)  # none where it is switched off
    if index is not None:
        index.add_entry_from_context = partial(_searched, index, index.add_entry_from_context)
    if page:
        config["nav"] = None
        config["validation"].links.anchors = config["validation"].links.not_found = logging.DEBUG
    if os.environ.get("MIKE_DOCS_VERSION"):
        config["extra"]["version"] = {"provider": "mike", "default": "latest", "alias": True}
    from altgrad.runs import newest_time

    newest = None if dated else newest_time()
    if newest is not None:
        os.environ["SOURCE_DATE_EPOCH"] = os.environ["ALTGRAD_EPOCH"] = str(int(newest.timestamp()))


def _searched(index: Any, parse: Callable[[Any], None], page: Any) -> None:
    """Let the search's index know the beginning of each section of a page, but no table, drawing or code."""
    known, whole = len(index.entries), page.content
    page.content = _UNSEARCHED.sub("", whole)
    parse(page)
    page.content = whole
    for entry in index.entries[known:]:
        text = " ".join(re.sub(r"<[^>]*>", " ", entry["text"]).split())
        entry["text"] = text if len(text) <= SEARCHED else text[:SEARCHED].rpartition(" ")[0]


def _watch(warnings: Warnings | None) -> None:
    """Let mkdocs' warnings be counted; with None no longer."""
    logger = logging.getLogger("mkdocs")
    for handler in [*logger.handlers]:
        if type(handler).__name__ == Warnings.__name__:  # of whichever reading of the library
            logger.removeHandler(handler)
    if warnings is not None:
        logger.addHandler(warnings)


def add_files(found: Any, config: Any) -> Any:
    """Put the pages' styles and scripts into the site's sources; leave all pages but the wanted one unbuilt."""
    from mkdocs.exceptions import PluginError
    from mkdocs.structure.files import File, InclusionLevel

    from altgrad.site.new_site import assets

    current: SiteBuild = config["extra"]["altgrad"]
    for name, data in [*assets(), *current.data.items()]:
        known = found.get_file_from_path(name)
        if known is not None and name in current.data:
            found.remove(known)
        if known is None or name in current.data:  # a project's own file goes before the library's
            file = File.generated(config, name, content=data)
            if current.held and name in current.data:
                file.copy_file = lambda dirty=False: None  # thousands of files: `altgrad.site.plugin` serves them
            found.append(file)
    if current.page:
        pages = {file.src_uri.removesuffix(".md"): file for file in found if file.is_documentation_page()}
        if current.page not in pages:
            near = ", ".join(difflib.get_close_matches(current.page, pages, 3, 0.4))
            raise PluginError(f"there is no page {current.page}; {f'near it: {near}' if near else 'none is near it'}")
        for path, file in pages.items():
            if path != current.page:
                file.inclusion = InclusionLevel.EXCLUDED
    texts = {file.src_uri: file.content_string for file in found.documentation_pages()}
    current.documented = {} if current.page else documented(texts, current.made)
    if current.documented and "mkdocstrings" in config["plugins"]:
        current.docstrings = docstrings_key(current.documented, config)
        current.docstring_files = current.cache.get(_DOCSTRINGS, current.docstrings) or {}
        current.bodies |= docstring_bodies(current.docstring_files)
    return found


def resolved(config: Any, found: Any) -> None:
    """When all references between pages are resolved: take the pages of docstrings, or what lies beside kept ones."""
    current: SiteBuild = config["extra"]["altgrad"]
    site = Path(config["site_dir"])
    if current.docstring_files:
        write_beside(current.docstring_files, site)
    elif current.docstrings:
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
        opening = _FENCE.match(line)
        if opening and (not fence or line.strip() == fence):
            fence = "" if fence else opening.group(1)
        if fence or not _MARKER.search(line):
            continue
        where = f"{page.file.src_uri}: line {number + 1}: "
        wanted = _EMBEDDED.fullmatch(line.strip())
        if wanted is None:
            problem = f"{where}write `<!-- altgrad: chart PAGE CHART -->` on a line of its own, not {line.strip()[:80]}"
        else:
            drawing = found.get_file_from_path(f"{wanted['page']}.{wanted['chart']}.svg")
            if drawing is not None:
                parts = current.parts.setdefault(page.file.src_uri, [])
                parts.append(_embedded(wanted["page"], wanted["chart"], drawing.content_string, page, found))
                lines[number] = mark(len(parts) - 1)
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
    """A chart of another page as HTML, with its files and the page that it is from."""
    near = partial(posixpath.relpath, start=page.url or ".")
    kinds = [kind for kind in ("csv", "json", "svg") if found.get_file_from_path(f"{path}.{chart}.{kind}")]
    links = [f'<a href="{near(f"{path}.{chart}.{kind}")}">{kind.upper()}</a>' for kind in kinds]
    source = found.get_file_from_path(f"{path}.md")
    named = re.search(r"^# (.+)$", source.content_string, re.MULTILINE) if source else None
    if source and named:
        links.append(f'from <a href="{near(source.url or ".")}/">{named[1]}</a>')
    return figure_html(inline_svg(drawing), f'<p class="files">Chart: {" · ".join(links)}</p>')


def content(html: str, page: Any, config: Any, found: Any) -> str:
    """The body of a page: the one that is there already, or what Markdown made with its tables and charts."""
    current: SiteBuild = config["extra"]["altgrad"]
    body = current.bodies.get(page.file.src_uri)
    if body is None:
        finished = finish_html(html, current.parts.get(page.file.src_uri, ()))
        if finished != html:
            page.present_anchor_ids = (page.present_anchor_ids or set()) | _ids(finished)
        return finished
    from mkdocs.structure.toc import get_toc

    page.toc = get_toc(body.toc)
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


def tick(config: Any, page: Any, *, stop: bool) -> None:
    """Add the time between two calls, a start and a stop, to the page's seconds."""
    current: SiteBuild = config["extra"]["altgrad"]
    now = time.perf_counter()
    if stop:
        name = page.file.src_uri
        current.seconds[name] = current.seconds.get(name, 0.0) + now - current.clock
    current.clock = now


def finish_page(html: str, page: Any, config: Any) -> str:
    """A page as it is published: its search dialog has a name; nothing but the site's own content runs or loads."""
    current: SiteBuild = config["extra"]["altgrad"]
    html = html.replace(' data-md-component="source"', "")  # for which the theme asks GitHub about `repo_url`
    html = html.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )
    tick(config, page, stop=True)
    return html if current.serving else seal_html(html, page.file.src_uri)


def failed() -> None:
    """After a build that failed, count no warnings."""
    _watch(None)


def end(config: Any) -> None:
    """Write the build report beside the site (never into it) and remove what the cache no longer needs."""
    current: SiteBuild = config["extra"]["altgrad"]
    _watch(None)
    total = time.perf_counter() - current.begun
    families = sorted(current.families, key=lambda family: -family.seconds)
    slowest = sorted(current.seconds.items(), key=lambda item: -item[1])
    report = {
        "seconds": round(total, 3),
        "page": current.page,
        "families": [asdict(family) | {"seconds": round(family.seconds, 4)} for family in families],
        "pages": {name: round(seconds, 4) for name, seconds in slowest},
    }
    lines = [f"{len(slowest)} pages in {total:.1f} s", "", "Scripts and executed pages, slowest first"]
    lines += [f"{family.seconds:9.3f} s  {family.origin:6}  {family.name} ({family.pages})" for family in families]
    lines += ["", "Markdown and templates, slowest 20 pages"]
    lines += [f"{seconds:9.3f} s  {name}" for name, seconds in slowest[:20]]
    folder = current.root / "build" / "report"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        (folder / "build.txt").write_text("\n".join(lines) + "\n", "utf-8")
    except OSError as error:
        log.info(f"There is no build report, since build/report cannot be written ({error.strerror})")
    if current.page:
        log.info(f"Page: {Path(config['site_dir']) / folder_of(current.page) / 'index.html'}")
    elif all(family.origin in ("made", "cache") for family in families):
        if current.docstrings and current.new_docstrings and not current.warnings.count:
            current.cache.put(_DOCSTRINGS, current.docstrings, current.new_docstrings)
        current.cache.tidy()


def finish_html(html: str, parts: Sequence[str] = ()) -> str:
    """What Python-Markdown made of a hand-written page, with its parts in place and its own tables in boxes."""
    return filled(_TABLE.sub(lambda table: table_html(table[1], ""), html), parts)
