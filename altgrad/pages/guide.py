"""Guides: Markdown whose Python blocks are run when the site is built, each with what it prints under it.

    ```python exec         run; stdout, and the repr of a last expression, go under it, as in a notebook
    ```python exec torch   needs torch, so a build does not run it: its output is read from a file beside the guide
    ```python exec hide    run; only its output is shown (also with torch)
    ```python noexec       shown, never run

Every Python block says which of these it is. The blocks of one page run in order and share their names. `executed`
gives the page as a build shows it; no block that it runs can import torch. `torch_outputs` runs all blocks and gives
what the file ``<guide>.outputs.json`` holds: the output of each torch block, by a hash of all code that has run up to
its end, so that an edit of an earlier block makes it stale. `make guides`, which is
``python -m altgrad.pages.guide docs/guides``, rewrites these files.

A guide is code of this repository and is trusted; what it prints is not, and is shown as it is, never as markup.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

from altgrad.pages.content import shorten, visible

COMMAND = "make guides"
SUFFIX = ".outputs.json"
"""``number-formats.md`` has its torch blocks' outputs in ``number-formats.outputs.json``."""
_FENCE = re.compile(r"(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>.*)")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+>")


class GuideError(Exception):
    """A guide that cannot be shown: one line that names the guide, the block and what to do."""


@dataclass(frozen=True)
class Block:
    """One Python block of a guide.

    Attributes:
        number: its place among the blocks that are run, from 1; None when it is not run.
        first, last: indices of the lines of its two fences.
        indent: spaces before the fences.
        code: what is run, without the indent.
        torch, hide: as marked.
        key: names its output: a hash of the code of every block that is run up to this one.
    """

    number: int | None
    first: int
    last: int
    indent: str
    code: str
    torch: bool
    hide: bool
    key: str


def blocks(text: str, name: str) -> tuple[Block, ...]:
    """The Python blocks of a guide, in order; what stands inside another fence is not a block.

    Raises:
        GuideError: a Python block that says neither exec nor noexec, an unknown word, or a fence without an end.
    """
    found: list[Block] = []
    lines, at, number, key = text.split("\n"), 0, 0, hashlib.sha256()
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


def executed(text: str, outputs: Mapping[str, Sequence[str]], *, name: str) -> str:
    """A guide as the site shows it: its torch-free blocks are run, torch blocks get their recorded output.

    Args:
        text: the guide.
        outputs: lines of the torch blocks' outputs by key; see `read_outputs`.
        name: what messages call the guide, for example ``docs/guides/number-formats.md``.

    Returns:
        Markdown in the site's dialect (pymdownx.superfences).

    Raises:
        GuideError: a block raises, imports torch unmarked, or prints a memory address; a torch block's output is
            missing or stale; there are outputs of blocks that do not exist.
    """
    lines, shown, at = text.split("\n"), [], 0
    found = blocks(text, name)
    namespace = _namespace()
    for block in found:
        shown += lines[at : block.first]
        if not block.hide:
            fence = lines[block.first].split("python", 1)[0]
            shown += [f"{fence}python", *lines[block.first + 1 : block.last + 1]]
        at = block.last + 1
        printed: Sequence[str] = ()
        if block.torch:
            if block.key not in outputs:
                raise GuideError(
                    f"{name}: block {block.number}, line {block.first + 1}: there is no recorded output of this torch "
                    f"block for the code as it is now; run `{COMMAND}`"
                )
            printed = outputs[block.key]
        elif block.number is not None:
            skipped = any(other.torch for other in found if other.first < block.first)
            with _without_torch():
                printed = _run(block, namespace, name, skipped)
        if printed:
            shown += ["", *(block.indent + line if line else "" for line in _output_block(printed))]
    if set(outputs) - {block.key for block in found if block.torch}:
        raise GuideError(f"{name}: recorded outputs are left of torch blocks that are gone; run `{COMMAND}`")
    return "\n".join([*shown, *lines[at:]])


def torch_outputs(text: str, *, name: str) -> dict[str, list[str]]:
    """What the torch blocks of a guide print, as lines by key; needs torch where there are such blocks.

    Raises:
        GuideError: a block raises; or a block that is not marked torch prints something else after the torch blocks
            than it does in a build, which skips them.
    """
    found = [block for block in blocks(text, name) if block.number is not None]
    namespace, built, outputs = _namespace(), {}, {}
    for block in found:
        if not block.torch:
            skipped = any(other.torch for other in found if other.first < block.first)
            with _without_torch():
                built[block.key] = _run(block, namespace, name, skipped)
    namespace = _namespace()
    if any(block.torch for block in found):
        for block in found:
            printed = _run(block, namespace, name)
            if block.torch:
                outputs[block.key] = printed
            elif printed != built[block.key]:
                raise GuideError(
                    f"{name}: block {block.number}, line {block.first + 1}: it prints something else after the torch "
                    "blocks before it have run; mark it torch as well"
                )
    return outputs


def read_outputs(text: str, *, name: str) -> dict[str, list[str]]:
    """The content of an outputs file.

    Raises:
        GuideError: it is damaged.
    """
    with contextlib.suppress(ValueError):
        read = json.loads(text)
        if isinstance(read, dict) and all(
            isinstance(lines, list) and all(isinstance(line, str) for line in lines) for lines in read.values()
        ):
            return read
    raise GuideError(f"{name}: the recorded outputs are damaged; run `{COMMAND}`")


def write_outputs(outputs: Mapping[str, Sequence[str]]) -> str:
    """The content of an outputs file, in the blocks' order."""
    return json.dumps(outputs, indent=1, ensure_ascii=False) + "\n"


def outputs_path(guide: Path) -> Path:
    """Where the outputs of a guide's torch blocks are kept."""
    return guide.with_name(guide.stem + SUFFIX)


def _namespace() -> dict[str, Any]:
    return {"__name__": "__main__"}


def _run(block: Block, namespace: dict[str, Any], name: str, torch_skipped: bool = False) -> list[str]:
    """What a block prints, as lines that `_lines` made safe to keep and to show."""
    printed = io.StringIO()
    try:
        # Empty lines before the code make every line number the guide's own.
        tree = ast.parse("\n" * (block.first + 1) + block.code, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, name, "exec", dont_inherit=True), namespace)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), namespace)
                if value is not None:
                    print(repr(value))
    except (Exception, SystemExit) as error:
        hint = ""
        if isinstance(error, ModuleNotFoundError) and error.name == "torch" and not block.torch:
            hint = "; mark a block that needs torch `python exec torch`"
        elif isinstance(error, NameError) and torch_skipped:
            hint = "; a block that needs the names of a torch block is marked torch as well"
        message = shorten(visible(str(error)), 300)
        line = _line(error, name) or block.first + 1
        raise GuideError(
            f"{name}: block {block.number}, line {line}: {type(error).__name__}: {message}{hint}"
        ) from error
    if _ADDRESS.search(printed.getvalue()):
        raise GuideError(
            f"{name}: block {block.number}, line {block.first + 1}: it prints a memory address, which differs from "
            "build to build"
        )
    return _lines(printed.getvalue())


def _line(error: BaseException, name: str) -> int | None:
    """The line of the guide that an error comes from."""
    if isinstance(error, SyntaxError) and error.filename == name:
        return error.lineno
    found, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == name:
            found = trace.tb_lineno
        trace = trace.tb_next
    return found


def _lines(printed: str) -> list[str]:
    """Printed text as lines without control characters, without blanks at their ends and empty lines at the end."""
    lines = [visible(line.expandtabs()).rstrip() for line in printed.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _output_block(printed: Sequence[str]) -> list[str]:
    """The fenced block that shows an output; its fence is longer than any run of backticks inside."""
    lines = _lines("\n".join(printed))
    longest = max((len(run) for run in re.findall("`+", "\n".join(lines))), default=0)
    fence = "`" * max(3, longest + 1)
    return [f'{fence} {{ .text .output .no-copy title="Output" }}', *lines, fence]


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every guide of a folder and rewrite the outputs of its torch blocks; returns the exit code."""
    parser = argparse.ArgumentParser(prog="altgrad.pages.guide", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="where the guides are, docs/guides")
    folder: Path = parser.parse_args(arguments).folder
    guides = sorted(folder.glob("*.md"))
    stale = {*folder.glob(f"*{SUFFIX}")}
    for guide in guides:
        text, path = guide.read_text("utf-8"), outputs_path(guide)
        try:
            outputs = torch_outputs(text, name=guide.as_posix())
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
    print(f"{len(guides)} guides are up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
