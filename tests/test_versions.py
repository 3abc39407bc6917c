"""Versions of a site: redirects, a root that leads to the newest, and what a version of the same pages costs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mike")
pytest.importorskip("mkdocs_gen_files")
ROOT = Path(__file__).resolve().parents[1]


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def version(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    """`make version V=name` in the project."""
    return subprocess.run(
        [sys.executable, "-m", "altgrad.site.versions", name],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small site in a git repository."""
    (tmp_path / "gen").mkdir()
    (tmp_path / "docs/notes").mkdir(parents=True)
    (tmp_path / "docs/index.md").write_text("# Home\n")
    for number in range(8):
        (tmp_path / f"docs/notes/{number}.md").write_text(f"# Note {number}\n\n{'words ' * 400}\n")
    (tmp_path / "docs/notes/run.md").write_text("# Run\n\n```python exec\nprint(6 * 7)\n```\n")
    for name in ("executed", "hooks"):
        (tmp_path / f"gen/{name}.py").write_text((ROOT / f"gen/{name}.py").read_text())
    (tmp_path / "mkdocs.yml").write_text(
        "site_name: x\nsite_url: ''\ntheme: {name: material, font: false}\n"
        "plugins: [search, {gen-files: {scripts: [gen/executed.py]}}]\nhooks: [gen/hooks.py]\n"
        "markdown_extensions: [attr_list, pymdownx.superfences]\n"
    )
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "config", "user.name", "A reader")
    git(tmp_path, "config", "user.email", "reader@example.org")
    (tmp_path / ".gitignore").write_text("/.cache/\n/build/\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "A site")
    return tmp_path


def packed(folder: Path) -> int:
    """Bytes of the repository, packed."""
    git(folder, "gc", "-q", "--prune=now")
    found = re.search(r"size-pack: (\d+)", git(folder, "count-objects", "-v"))
    assert found
    return int(found[1]) * 1024


def shown(folder: Path, path: str) -> str:
    return git(folder, "show", f"gh-pages:{path}")


def test_versions_stand_side_by_side_and_the_same_pages_again_cost_kilobytes(project: Path) -> None:
    first = version(project, "0.1")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "git push origin gh-pages" in first.stdout
    before = packed(project)
    again = version(project, "v0.2")  # as a tag is named
    assert again.returncode == 0, again.stdout + again.stderr
    assert packed(project) - before < 16 * 1024
    tree = {name: git(project, "rev-parse", f"gh-pages:{name}").strip() for name in ("0.1", "0.2")}
    assert tree["0.1"] == tree["0.2"], "identical input gives identical bytes"
    versions = {each["version"]: each["aliases"] for each in json.loads(shown(project, "versions.json"))}
    assert versions == {"0.2": ["latest"], "0.1": []}
    assert re.search(r"0\.2, 0\.1; [0-9.]+ MB", again.stdout)

    # The alias and the root are redirects that keep query and anchor, and allow one script by its hash.
    redirect = shown(project, "latest/notes/run/index.html")
    assert '<a href="../../../0.2/notes/run/">' in redirect
    assert "script-src 'sha256-" in redirect
    assert '<a href="latest/">' in shown(project, "index.html")
    page = shown(project, "0.2/notes/run/index.html")
    assert '"provider": "mike"' in page
    assert "42" in page

    # An older number, and the newest state, leave `latest` where it is; a working copy has no selector.
    for name in ("0.1.1", "dev"):
        assert version(project, name).returncode == 0
    aliases = {each["version"]: each["aliases"] for each in json.loads(shown(project, "versions.json"))}
    assert aliases == {"dev": [], "0.2": ["latest"], "0.1.1": [], "0.1": []}
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-q"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    assert "mike" not in (project / "site/index.html").read_text()


def test_a_mistake_is_one_line_and_commits_nothing(project: Path) -> None:
    for name in ("latest", "../up", "a b", "-x"):
        done = version(project, name)
        assert done.returncode == 2, name
        assert "error:" in done.stderr
        assert "Traceback" not in done.stderr
    (project / "docs/notes/run.md").write_text("# Run\n\n[gone](no-such-page.md)\n")
    done = version(project, "0.3")
    assert done.returncode == 2
    assert done.stderr.rstrip().endswith("error: version 0.3: the strict build failed; nothing was committed")
    assert git(project, "branch", "--list", "gh-pages") == ""
