"""Versions of the site on the branch gh-pages, by mike: what `make version V=0.2` calls.

A version is a strict build in a folder of its name. `latest` leads to the newest numbered one; its pages, and the one
at the root, are redirects, since GitHub Pages takes no symbolic links. Equal input gives equal files, kept once by git:
a version that changes little costs little. ``dev`` is the newest state of the main branch and never `latest`.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from altgrad.config import UsageError, one_line

BRANCH = "gh-pages"
WARNING_BYTES, LIMIT = 500 * 10**6, "GitHub Pages publishes at most 1 GB"
_SCRIPT = "location.replace(document.querySelector('a').href + location.search + location.hash)"
_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
REDIRECT = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'sha256-{_HASH}'\">\n"
    '<title>Moved</title>\n<noscript><meta http-equiv="refresh" content="0; url={{href}}"></noscript>\n</head>\n'
    f'<body>\n<p>This page is at <a href="{{{{href}}}}">{{{{href}}}}</a>.</p>\n<script>{_SCRIPT}</script>\n'
    "</body>\n</html>\n"
)
"""A page that leads on with its query and anchor, by a template of Jinja; one script for all, so one hash allows it."""


@dataclass(frozen=True)
class Published:
    """What is on the branch: its versions, newest first, and the bytes of its files."""

    versions: tuple[str, ...]
    size: int
    changed: bool


def deploy(version: str, root: Path, *, push: bool = False) -> Published:
    """Build the site of the project in `root` strictly and commit it to the branch as `version`.

    A tag's name serves as well: v0.2 is the version 0.2.

    Raises:
        UsageError: the name of the version, git, or the build; one line.
        ModuleNotFoundError: mike is not installed.
    """
    from mike import commands, git_utils

    version = re.sub(r"^v(?=\d)", "", version)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}", version) or version == "latest":
        raise UsageError(f"version {version[:50]!r}: give a name of letters, digits, '.', '-' and '_', such as 0.2")
    if not (root / "mkdocs.yml").is_file():
        raise UsageError(f"{root}: there is no mkdocs.yml; run this in the project's folder")
    changed = False
    with tempfile.TemporaryDirectory(prefix="altgrad-version-") as name, contextlib.chdir(root):
        site, template = Path(name) / "site", Path(name) / "redirect.html"
        template.write_text(REDIRECT, "utf-8")
        try:
            git_utils.update_from_upstream("origin", BRANCH)
            known = [str(each.version) for each in commands.list_versions(BRANCH)]
            numbered = [_numbers(each) for each in known if _numbers(each)]
            newest = bool(_numbers(version)) and all(_numbers(version) >= each for each in numbered)
            with commands.deploy(
                {"site_dir": str(site), "use_directory_urls": True},
                version,
                aliases=["latest"] if newest else [],
                update_aliases=True,
                alias_type=commands.AliasType.redirect,
                template=str(template),
                branch=BRANCH,
                message=f"The site as version {version}",
            ):
                _build(root, site, version)
            changed = True
        except git_utils.GitEmptyCommit:
            pass
        except UsageError:
            raise
        except (git_utils.GitError, ValueError) as error:
            raise UsageError(f"git: {one_line(error)[:300]}") from None
        target = "latest" if newest or numbered else version
        with contextlib.suppress(git_utils.GitEmptyCommit):
            commands.set_default(target, str(template), branch=BRANCH, message=f"The site begins at {target}")
        if push:
            try:
                git_utils.push_branch("origin", BRANCH)
            except git_utils.GitError as error:
                raise UsageError(f"git push: {one_line(error)[:300]}") from None
        versions = tuple(str(each.version) for each in commands.list_versions(BRANCH))
        listed = subprocess.run(["git", "ls-tree", "-r", "-l", BRANCH], capture_output=True, text=True, check=True)
    return Published(versions, sum(int(line.split()[3]) for line in listed.stdout.splitlines()), changed)


def _numbers(version: str) -> tuple[int, ...]:
    """0.2 as (0, 2); empty for a name that is no number."""
    return tuple(map(int, version.split("."))) if re.fullmatch(r"\d+(\.\d+)*", version) else ()


def _build(root: Path, site: Path, version: str) -> None:
    """A strict build that knows that it is a version, so that the selector is on."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(root / "mkdocs.yml"), "-d", str(site)]
    done = subprocess.run(command, env={**os.environ, "MIKE_DOCS_VERSION": version, "ALTGRAD_PAGE": ""})
    if done.returncode:
        raise UsageError(f"version {version}: the strict build failed; nothing was committed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Deploy a version and say what is published; 0, or 2 where it could not be."""
    parser = argparse.ArgumentParser(prog="altgrad.site.versions", description=__doc__)
    parser.add_argument("version", help="its name: 0.2, or dev")
    parser.add_argument("--push", action="store_true", help="push the branch to origin, which publishes it")
    options = parser.parse_args(arguments)
    try:
        found = deploy(options.version, Path.cwd(), push=options.push)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name != "mike":
            raise
        print("error: the package mike is not installed; run: pip install 'altgrad[site]'", file=sys.stderr)
        return 2
    state = "on" if found.changed else "as it was on"
    print(f"{options.version} is {state} the branch {BRANCH}: {', '.join(found.versions)}; {found.size / 1e6:.1f} MB")
    if found.size >= WARNING_BYTES:
        remedy = "remove old versions (mike delete VERSION)"
        print(f"warning: {found.size / 1e6:.0f} MB; {LIMIT}: {remedy}", file=sys.stderr)
    if not options.push:
        print(f"To publish it: git push origin {BRANCH}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
