"""Hand-written pages with code: Markdown whose Python blocks are run when the site is built, each with its result.

    ```python exec         run; stdout, and the value of a last expression, go under it, as in a notebook
    ```python exec torch   needs torch, so a build does not run it: its output is read from a file beside the page
    ```python exec hide    run; only its output is shown (also with torch)
    ```python noexec       shown, never run

Every Python block of such a page says which of these it is. The blocks of one page run in order and share their names;
`here` is the page's folder. A value that is a chart, a table's `DataFrame`, a block of `altgrad.site` or a list of
these is shown as such, any other by its repr. `executed` gives the page as a build shows it; no block that it runs can
import torch. `torch_outputs` runs all blocks and gives what the file ``<page>.outputs.json`` holds: the output of each
torch block, by a hash of all code that has run up to its end, so that an edit of an earlier block makes it stale.
`make guides`, which is ``python -m altgrad.site.executed docs``, rewrites these files.

One file can be several pages: with ``parameters:`` in its front matter, a mapping of page names to names and values, it
gives a page for each, in which the blocks find these names, and ``{{ name }}`` in the prose stands for the value. The
file's own place becomes a list of them.

A page is code of its repository and is trusted; what it prints is not, and is shown as it is, never as markup.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import posixpath
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

import altgrad
from altgrad.imports import code_fingerprint, named_in
from altgrad.runs import sources_fingerprint
from altgrad.runs.schema import digest
from altgrad.site.blocks import GuideError, Output, blocks, is_executed, output_block, place_of, run, run_without_torch
from altgrad.site.content import Bullets, Link, Page, PageRef, check_path
from altgrad.site.html import Placed
from altgrad.site.reads import names_of, read_outside, variables
from altgrad.site.render import Dialect, files, fragment
from altgrad.text import escape, shorten, visible

COMMAND = "make guides"
SUFFIX = ".outputs.json"
"""``number-formats.md`` has its torch blocks' outputs in ``number-formats.outputs.json``."""
_SHARED = Path(altgrad.__file__).parent / "reports" / "documents" / "sections"
"""What `altgrad.reports` words its findings by, which a page may print."""
_READS_RUNS = re.compile(r"\b(?:altgrad\.|from altgrad import\b.*\b)(?:analysis|reports|runs)\b")
_PARAMETER = re.compile(r"\{\{ *(\w+) *\}\}")


def executed(
    text: str,
    outputs: Mapping[str, Sequence[str]],
    *,
    name: str,
    path: str = "page",
    parameters: Mapping[str, Any] | None = None,
    here: Path | None = None,
) -> dict[str, bytes]:
    """A page as the site shows it: its torch-free blocks are run, torch blocks get their recorded output.

    Args:
        text: the page.
        outputs: lines of the torch blocks' outputs by key; see `read_outputs`. Of other parameters there may be more.
        name: what messages call the page, for example ``docs/guides/number-formats.md``.
        path: its place in the site without suffix.
        parameters: names that the blocks find.
        here: the page's folder, which the blocks find under this name.

    Returns:
        Markdown in the site's dialect (pymdownx.superfences) as ``<path>.md``, and the files of charts and tables.

    Raises:
        GuideError: a block raises, imports torch unmarked, or prints a memory address; a torch block's output is
            missing or stale; there are outputs of blocks that do not exist; two charts or tables have one id.
    """
    lines, shown, at = text.split("\n"), [], 0
    found = blocks(text, name, parameters)
    namespace = _namespace(parameters, here)
    beside: dict[str, bytes] = {}
    placed = Placed(Page(path, "", ()), beside)
    dialect = Dialect(partial(source_address, path), placed)
    with read_outside(here / Path(name).name) if here else contextlib.nullcontext(list[Path]) as read:
        for block in found:
            shown += lines[at : block.first]
            if not block.hide:
                fence = lines[block.first].split("python", 1)[0]
                shown += [f"{fence}python", *lines[block.first + 1 : block.last + 1]]
            at = block.last + 1
            output = Output(())
            if block.torch:
                if block.key not in outputs:
                    missing = "there is no recorded output of this torch block for the code as it is now"
                    raise GuideError(f"{place_of(block, name)}: {missing}; run `{COMMAND}`")
                output = Output(outputs[block.key])
            elif block.number is not None:
                output = run_without_torch(block, namespace, name, found)
            content = output_block(output.lines) if output.lines else []
            if output.blocks:
                page = Page(path, "", output.blocks)
                _take(beside, page, name)
                content += ["", *fragment(page, dialect).split("\n")]
            if here and (outside := read()):
                content += ["", f"*Not computed again when {escape(names_of(outside, here))} changes.*"]
            if content:
                shown += ["", *(block.indent + line if line else "" for line in content)]
    if set(outputs) - {block.key for block in found if block.torch}:
        raise GuideError(f"{name}: recorded outputs are left of torch blocks that are gone; run `{COMMAND}`")
    place = posixpath.dirname(path)
    page_file = {f"{path}.md": "\n".join([*shown, *lines[at:]]).encode()}
    return page_file | placed.file() | {posixpath.join(place, file): data for file, data in beside.items()}


def _take(beside: dict[str, bytes], page: Page, name: str) -> None:
    """Add the files of an output to those of the page's outputs before."""
    try:
        own = files(page)
    except ValueError as error:
        raise GuideError(f"{name}: {error}") from error
    if taken := beside.keys() & own.keys():
        raise GuideError(f"{name}: two files named {min(taken)}; every chart and table needs its own id")
    beside |= own


def page_files(file: Path, docs: Path) -> dict[str, bytes]:
    """The pages that one file of `docs` gives, run, by their places in the site's sources.

    Raises:
        GuideError: as `executed`; or its front matter is wrong.
    """
    text, name = file.read_text("utf-8"), f"{docs.name}/{file.relative_to(docs).as_posix()}"
    kept = outputs_path(file)
    outputs = read_outputs(kept.read_text("utf-8"), name=name) if kept.is_file() else {}
    path = file.relative_to(docs).with_suffix("").as_posix()
    variants = _variants(text, name)
    if variants is None:
        return executed(text, outputs, name=name, path=path, here=file.parent)
    found: dict[str, bytes] = {}
    known = {each: {block.key for block in blocks(text, name, values)} for each, values in variants.items()}
    if set(outputs) - set().union(*known.values()):
        raise GuideError(f"{name}: recorded outputs are left of torch blocks that are gone; run `{COMMAND}`")
    for each, values in variants.items():
        own = {key: lines for key, lines in outputs.items() if key in known[each]}
        body = _filled(text, values, name)
        found |= executed(body, own, name=name, path=f"{path}/{each}", parameters=values, here=file.parent)
    title = str(_front_matter(text, name).get("title") or file.stem.replace("-", " ").replace("_", " ").capitalize())
    links = Bullets(tuple(Link(each, PageRef(f"{path}/{each}")) for each in variants))
    body = fragment(Page(path, title, (links,)), Dialect(partial(source_address, path)))
    found[f"{path}.md"] = f"# {escape(title)}\n\n{body}\n".encode()
    return found


def source_address(path: str, reference: PageRef) -> str:
    """Where a page or a file is, as the Markdown source of the page `path` links to it."""
    place = reference.path if reference.is_file else f"{reference.path}.md"
    anchor = f"#{reference.anchor}" if reference.anchor else ""
    return posixpath.relpath(place, posixpath.dirname(path) or ".") + anchor


def page_key(file: Path) -> str:
    """A digest of what a page depends on: its bytes, the library, the data beside it, the variables of the environment
    and the runs that it reads. Its files elsewhere are not in it, and the page says so.

    Data beside it is every file in its folder and below that is not Markdown; modules there are its code too. It reads
    runs if its code names `altgrad.analysis`, `altgrad.reports` or `altgrad.runs`.
    """
    text = file.read_text("utf-8")
    beside = [path for path in sorted(file.parent.rglob("*")) if path.suffix not in (".md", ".pyc") and path.is_file()]
    data = [
        (path.relative_to(file.parent).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()) for path in beside
    ]
    modules = [path.read_text("utf-8", "replace") for path in beside if path.suffix == ".py"]
    code = "\n".join([text, *modules])
    shared = [path.read_text("utf-8") for path in sorted(_SHARED.glob("*.md"))] if "altgrad.reports" in code else []
    runs = [sources_fingerprint(), os.environ.get("SOURCE_DATE_EPOCH")] if _READS_RUNS.search(code) else []
    packages = [version(package) for package in ("numpy", "pandas", "pyarrow", "scipy", "matplotlib")]
    used = code_fingerprint(f"{named_in(code)} {__name__}")
    return digest(used, packages, sys.version, text, data, runs, variables(code), shared)


def torch_outputs(text: str, *, name: str, here: Path | None = None) -> dict[str, list[str]]:
    """What the torch blocks of a page print, as lines by key; needs torch where there are such blocks.

    Raises:
        GuideError: a block raises; or a block that is not marked torch prints something else after the torch blocks
            than it does in a build, which skips them.
    """
    variants = _variants(text, name)
    if variants is None:
        return _torch_outputs(text, name, None, here)
    found: dict[str, list[str]] = {}
    for values in variants.values():
        found |= _torch_outputs(_filled(text, values, name), name, values, here)
    return found


def _torch_outputs(
    text: str, name: str, parameters: Mapping[str, Any] | None, here: Path | None
) -> dict[str, list[str]]:
    found = [block for block in blocks(text, name, parameters) if block.number is not None]
    if not any(block.torch for block in found):
        return {}
    namespace, built, outputs = _namespace(parameters, here), {}, {}
    for block in found:
        if not block.torch:
            built[block.key] = run_without_torch(block, namespace, name, found).lines
    namespace = _namespace(parameters, here)
    for block in found:
        printed = list(run(block, namespace, name).lines)
        if block.torch:
            outputs[block.key] = printed
        elif printed != built[block.key]:
            differs = "it prints something else after the torch blocks before it have run"
            raise GuideError(f"{place_of(block, name)}: {differs}; mark it torch as well")
    return outputs


def _front_matter(text: str, name: str) -> dict[str, Any]:
    """What stands between two lines of ``---`` at the head of a page."""
    match = re.match(r"---[ \t]*\n(.*?)\n---[ \t]*\n", text, re.DOTALL)
    try:
        found = yaml.safe_load(match.group(1)) if match else {}
    except yaml.YAMLError as error:
        raise GuideError(f"{name}: its front matter is no YAML: {shorten(visible(str(error)), 200)}") from None
    return found if isinstance(found, dict) else {}


def _variants(text: str, name: str) -> dict[str, dict[str, Any]] | None:
    """The parameters of each page that a file gives; None for a file that is one page.

    Raises:
        GuideError: they are no mapping of page names to mappings of Python names to values.
    """
    found = _front_matter(text, name).get("parameters")
    if found is None:
        return None
    with contextlib.suppress(ValueError):
        if isinstance(found, dict) and found and all(isinstance(each, dict) for each in found.values()):
            pages = all(isinstance(each, str) and "/" not in check_path(each) for each in found)
            names = (key for values in found.values() for key in values)
            if pages and all(isinstance(key, str) and key.isidentifier() for key in names):
                return found
    mapping = "a mapping of page names (letters, digits, '-') to mappings of Python names to values"
    raise GuideError(f"{name}: `parameters` in its front matter is {mapping}")


def _filled(text: str, parameters: Mapping[str, Any], name: str) -> str:
    """The prose with ``{{ name }}`` replaced by the parameter's value, as text; blocks keep their lines."""
    code = {line for block in blocks(text, name) for line in range(block.first, block.last + 1)}

    def value(match: re.Match[str]) -> str:
        if match[1] not in parameters:
            raise GuideError(f"{name}: {match.group()}: there is no parameter of this name")
        return escape(str(parameters[match[1]]))

    lines = text.split("\n")
    return "\n".join(line if at in code else _PARAMETER.sub(value, line) for at, line in enumerate(lines))


def read_outputs(text: str, *, name: str) -> dict[str, list[str]]:
    """The content of an outputs file.

    Raises:
        GuideError: it is damaged.
    """
    with contextlib.suppress(ValueError):
        read = json.loads(text)
        known = isinstance(read, dict) and all(isinstance(lines, list) for lines in read.values())
        if known and all(isinstance(line, str) for lines in read.values() for line in lines):
            return read  # type: ignore[no-any-return]
    raise GuideError(f"{name}: the recorded outputs are damaged; run `{COMMAND}`")


def write_outputs(outputs: Mapping[str, Sequence[str]]) -> str:
    """The content of an outputs file, in the blocks' order."""
    return json.dumps(outputs, indent=1, ensure_ascii=False) + "\n"


def outputs_path(guide: Path) -> Path:
    """Where the outputs of a guide's torch blocks are kept."""
    return guide.with_name(guide.stem + SUFFIX)


def _namespace(parameters: Mapping[str, Any] | None, here: Path | None) -> dict[str, Any]:
    return {"__name__": "__main__", **({"here": here} if here else {}), **(parameters or {})}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every page of a folder that has code and rewrite the outputs of its torch blocks; returns the exit code."""
    parser = argparse.ArgumentParser(prog="altgrad.site.executed", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="where the pages are, docs")
    folder: Path = parser.parse_args(arguments).folder
    pages = [path for path in sorted(folder.rglob("*.md")) if is_executed(path.read_text("utf-8"))]
    stale = {*folder.rglob(f"*{SUFFIX}")}
    for page in pages:
        text, path = page.read_text("utf-8"), outputs_path(page)
        try:
            outputs = torch_outputs(text, name=page.as_posix(), here=page.parent)
        except GuideError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        if outputs:
            content = write_outputs(outputs).encode()
            if not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)
                print(f"{path.as_posix()}: written")
            stale.discard(path)
    for path in sorted(stale):
        path.unlink()
        print(f"{path.as_posix()}: removed")
    print(f"{len(pages)} pages with code are up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
