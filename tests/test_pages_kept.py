"""What a site keeps from one build to the next: it must be what a build from nothing gives."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_guides import mkdocs, small_site

from altgrad.pages.kept import Entries, bring_back, documented, has, read_entries, remember_search, set_aside

API = """
from altgrad.pages.mkdocs import build_files

build_files(lambda: {"api.md": b"# API\\n\\n::: altgrad.pages.sketch\\n"}, "api")
"""


class Index:
    """As material's search plugin has it: counts the pages that it parses."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.parsed: list[str] = []

    def add_entry_from_context(self, page: Any) -> None:
        self.parsed.append(page.url)
        self.entries += [{"location": page.url, "text": page.content}, {"location": f"{page.url}#x", "text": ""}]


def a_page(url: str, content: str, toc: Iterable[Any] = (), meta: dict[str, Any] | None = None) -> SimpleNamespace:
    return SimpleNamespace(url=url, title=url, content=content, meta=meta or {}, toc=list(toc))


def site_files(site: Path) -> dict[str, bytes]:
    return {path.relative_to(site).as_posix(): path.read_bytes() for path in site.rglob("*") if path.is_file()}


def test_only_pages_that_changed_are_parsed_for_the_search(tmp_path: Path) -> None:
    known: Entries = {}
    heading = SimpleNamespace(id="x", title="X", children=[])
    first = [a_page("a", "one"), a_page("b", "two", [heading])]
    changed = [
        a_page("a", "one"),
        a_page("b", "two", [SimpleNamespace(id="x", title="Y", children=[])]),
        a_page("c", "one"),
        a_page("d", "four", meta={"tags": ["t"]}),
    ]
    for pages, parsed in ((first, ["a", "b"]), (first, []), (changed, ["b", "c", "d"])):
        index, plain, now = Index(), Index(), Entries()
        remember_search(index, dict(known), now)
        for page in pages:
            index.add_entry_from_context(page)
            plain.add_entry_from_context(page)
        assert index.parsed == parsed
        assert index.entries == plain.entries
        assert len(now) == len(pages), "those of pages that are no more are not kept"
        index.entries[0]["text"] = "changed by the plugin when it writes its index"
        known = now


@pytest.mark.parametrize("damage", ["", "{", "[]", "null"])
def test_a_damaged_file_of_entries_is_none(tmp_path: Path, damage: str) -> None:
    (tmp_path / "search.json").write_text(damage)
    assert read_entries(tmp_path / "search.json") == {}
    assert read_entries(tmp_path / "no such file") == {}


def test_of_what_was_set_aside_only_what_is_wanted_comes_back(tmp_path: Path) -> None:
    for name in ("index.html", "runs/a/index.html", "runs/b/index.html", "old/deep/page.html", ".git/config"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for _ in range(2):  # the second time after a build that ended between the two
        set_aside(tmp_path)
    shutil.rmtree(tmp_path / ".altgrad-last")
    bring_back(tmp_path, ())
    assert [path.name for path in tmp_path.iterdir()] == [".git"]

    for name in ("index.html", "runs/a/index.html", "runs/b/index.html", "old/deep/page.html"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    set_aside(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
    bring_back(tmp_path, {"runs/a/index.html", "index.html"})
    assert sorted(site_files(tmp_path)) == [".git/config", "index.html", "runs/a/index.html"]
    assert not (tmp_path / "old").exists()


def test_a_file_is_there_only_with_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert has(tmp_path / "file", b"abc")
    assert not has(tmp_path / "file", b"abd")
    assert not has(tmp_path / "other", b"abc")
    assert not has(tmp_path, b"")


@pytest.mark.parametrize(
    ("other", "kept"),
    [
        ("# B\n\nA text with ::: in it.\n", True),
        ("# B\n\n::: numpy\n", False),
        ("# B\n\n::: altgrad.formats\n\n::: altgradient\n", False),
        ("# B\n\n::: altgrad.formats\n", False),  # written by hand
    ],
)
def test_all_pages_of_docstrings_are_kept_or_none(other: str, kept: bool) -> None:
    own = "# A\n\n::: altgrad.formats\n"
    found = documented({"own.md": own, "other.md": other}, {"own.md"})
    assert found == ({"own.md": own} if kept else {})


def test_a_build_after_another_is_the_build_from_nothing(tmp_path: Path) -> None:
    """A page that is gone, a file that somebody changed in the site, and docstrings that come from the cache."""
    pytest.importorskip("mkdocs_gen_files")
    pytest.importorskip("mkdocstrings")
    text = "---\nexecute: true\n---\n# Guide\n\n```python exec\nprint(1)\n```\n"
    project = small_site(tmp_path / "project", text)
    (project / "gen/api.py").write_text(API)
    settings = (project / "mkdocs.yml").read_text()
    settings = settings.replace("[gen/executed.py]}}", "[gen/executed.py, gen/api.py]}}, search, mkdocstrings")
    (project / "mkdocs.yml").write_text(f"{settings}theme: material\n")
    (project / "docs/gone.md").write_text("# Gone\n\nText.\n")
    assert mkdocs(project).returncode == 0
    before = site_files(project / "site")
    assert b"altgrad.pages.sketch.Sketch" in before["api/index.html"]
    cached = list((project / ".cache/site").glob("docstrings-*.zip"))
    assert cached

    (project / "docs/gone.md").unlink()
    (project / "site/api/index.html").write_text("changed")
    (project / "site/stray.txt").write_text("nobody's")
    done = mkdocs(project)
    assert done.returncode == 0, done.stderr
    after = site_files(project / "site")
    assert "gone/index.html" not in after
    assert "stray.txt" not in after
    assert list((project / ".cache/site").glob("docstrings-*.zip")) == cached
    shutil.rmtree(project / "site")
    shutil.rmtree(project / ".cache")
    assert mkdocs(project).returncode == 0
    assert site_files(project / "site") == after
    assert after["assets/_mkdocstrings.css"]
    assert after["objects.inv"]
    assert any(name.startswith("search/") for name in after)

    cached[0].parent.mkdir(parents=True, exist_ok=True)
    for path in (project / ".cache/site").iterdir():
        path.write_bytes(b"nonsense")
    assert mkdocs(project).returncode == 0
    assert site_files(project / "site") == after
