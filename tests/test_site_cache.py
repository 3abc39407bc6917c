"""What a site keeps from one build to the next: it must be what a build from nothing gives."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_guides import mkdocs, small_site

from altgrad.site.cache import docstrings_key, documented

ROOT = Path(__file__).parents[1]

API = """
from altgrad.site.build import build_files

build_files(lambda: {"api.md": b"# API\\n\\n::: altgrad.site.sketch\\n"}, "api")
"""


def site_files(site: Path) -> dict[str, bytes]:
    return {path.relative_to(site).as_posix(): path.read_bytes() for path in site.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("other", "kept"),
    [
        ("# B\n\nA text with ::: in it.\n", True),
        ("# B\n\n::: numpy\n", False),
        ("# B\n\n::: altgrad.formats\n\n::: altgradient\n", False),
        ("# B\n\n::: altgrad.formats\n", False),  # written by hand
        ("# B\n\n## ::: mine\n", False),
        ("# B\n\n!!! note\n    ::: mine\n", False),
        ("# B\n\n[a format][altgrad.formats.FloatFormat]\n", False),  # a title of it would be lost
    ],
)
def test_all_pages_of_docstrings_are_kept_or_none(other: str, kept: bool) -> None:
    own = "# A\n\n::: altgrad.formats\n"
    found = documented({"own.md": own, "other.md": other}, {"own.md"})
    assert found == ({"own.md": own} if kept else {})


def test_docstrings_of_a_package_with_a_longer_name_are_not_kept() -> None:
    assert documented({"own.md": "# A\n\n::: altgrad.formats\n\n::: altgrad_more.formats\n"}, {"own.md"}) == {}


@pytest.mark.parametrize("more", ["[gone](gone.md)\n", "<!-- altgrad: chart reports/x y -->\n", "::: numpy\n"])
def test_a_page_with_more_than_this_library_s_docstrings_is_not_kept(more: str) -> None:
    text = f"# A\n\n::: altgrad.formats\n\n::: altgrad.optim\n\n{more}"
    assert documented({"own.md": text}, {"own.md"}) == {}
    assert documented({"own.md": text.removesuffix(more)}, {"own.md"})


def project_with_docstrings(folder: Path, api: str = API, more: str = "") -> Path:
    pytest.importorskip("mkdocs_gen_files")
    pytest.importorskip("mkdocstrings")
    text = "---\nexecute: true\n---\n# Guide\n\n```python exec\nprint(1)\n```\n"
    project = small_site(folder, text)
    (project / "gen/api.py").write_text(api)
    settings = (project / "mkdocs.yml").read_text()
    settings = settings.replace("[gen/executed.py]}}", "[gen/executed.py, gen/api.py]}}, search, mkdocstrings")
    (project / "mkdocs.yml").write_text(f"{settings}theme: material\n{more}")
    return project


def fresh(project: Path) -> dict[str, bytes]:
    """The site, built from nothing."""
    shutil.rmtree(project / "site", ignore_errors=True)
    shutil.rmtree(project / ".cache", ignore_errors=True)
    done = mkdocs(project)
    assert done.returncode == 0, done.stderr
    return site_files(project / "site")


def test_a_build_after_another_is_the_build_from_nothing(tmp_path: Path) -> None:
    """Pages that are gone or drafts now, a site that somebody has changed, and docstrings from the cache, damaged."""
    project = project_with_docstrings(tmp_path / "project")
    for name in ("gone", "draft"):
        (project / f"docs/{name}.md").write_text(f"---\n2024: x\nfoo: y\n---\n# {name}\n\nText.\n")
    first = fresh(project)
    assert b"altgrad.site.sketch.Sketch" in first["api/index.html"]
    cached = list((project / ".cache/site").glob("docstrings-*.zip"))
    assert cached

    (project / "docs/gone.md").unlink()
    with open(project / "mkdocs.yml", "a") as file:
        file.write("draft_docs: draft.md\n")
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    (project / "site/api/index.html").write_text("changed")
    (project / "site/stray.txt").write_text("nobody's")
    (project / "site/index.html").unlink()
    (project / "site/index.html").symlink_to(outside)
    done = mkdocs(project)
    assert done.returncode == 0, done.stderr
    after = site_files(project / "site")
    assert outside.read_text() == "mine"
    assert not {"gone/index.html", "draft/index.html", "stray.txt"} & after.keys()
    assert list((project / ".cache/site").glob("docstrings-*.zip")) == cached
    assert fresh(project) == after
    assert after["assets/_mkdocstrings.css"]
    assert after["objects.inv"]
    assert any(name.startswith("search/") for name in after)

    for damage in (lambda data: b"nonsense", lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:]):
        for path in (project / ".cache/site").iterdir():
            path.write_bytes(damage(path.read_bytes()))
        assert mkdocs(project).returncode == 0
        assert site_files(project / "site") == after


EARLY = """
from pathlib import Path

import altgrad.text

source = Path(altgrad.text.__file__)
source.write_text(source.read_text().replace("TEXT_LIMIT = 1000", "TEXT_LIMIT = 999"))
"""
LATE = """
from altgrad.imports import code_fingerprint
from altgrad.site.build import build_files
from altgrad.text import TEXT_LIMIT

build_files(lambda: {"late.md": f"# {TEXT_LIMIT}\\n".encode()}, "late", key=lambda: code_fingerprint("altgrad.text"))
"""


def test_what_is_made_while_somebody_edits_the_library_is_made_again_in_the_next_build(tmp_path: Path) -> None:
    project = small_site(tmp_path / "project", "# Guide\n")
    shutil.copytree(ROOT / "altgrad", project / "altgrad", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in (("early", EARLY), ("late", LATE)):
        (project / f"gen/{name}.py").write_text(text)
    settings = project / "mkdocs.yml"
    settings.write_text(settings.read_text().replace("[gen/executed.py]", "[gen/early.py, gen/late.py]"))
    for limit in ("1000", "999"):
        done = mkdocs(project, PYTHONPATH=str(project))
        assert done.returncode == 0, done.stderr
        assert f">{limit}</h1>" in (project / "site/late/index.html").read_text()


def test_a_warning_in_docstrings_fails_every_strict_build(tmp_path: Path) -> None:
    project = project_with_docstrings(tmp_path / "project")
    library = project / "altgrad"
    shutil.copytree(ROOT / "altgrad", library, ignore=shutil.ignore_patterns("__pycache__"))
    sketch = library / "site/sketch.py"
    sketch.write_text(sketch.read_text().replace('"""', '"""See [that][altgrad.nowhere]. ', 1))
    for _ in range(2):
        done = mkdocs(project, PYTHONPATH=str(project))
        assert done.returncode == 1
        assert "altgrad.nowhere" in done.stderr
    assert not list((project / "site").glob(".*"))


def test_docstrings_depend_on_the_settings_that_make_their_pages() -> None:
    def key(**changed: Any) -> str:
        config = {"plugins": {}, "markdown_extensions": ["toc"], "mdx_configs": {"toc": {"slugify": key}}}
        config |= {"use_directory_urls": True, "theme": SimpleNamespace(name="material")}
        return docstrings_key({"api.md": "# API\n\n::: altgrad\n"}, config | changed)

    plugin = SimpleNamespace(config={"handlers": {"python": {"options": {"heading_level": 2}}}})
    keys = [
        key(),
        key(use_directory_urls=False),
        key(mdx_configs={"toc": {"slugify": key, "permalink": True}}),
        key(plugins={"mkdocstrings": plugin}),
    ]
    assert key() == keys[0]
    assert len(set(keys)) == 4


def test_a_site_without_search_and_one_without_mkdocstrings_build_twice(tmp_path: Path) -> None:
    project = project_with_docstrings(tmp_path / "project")
    settings = project / "mkdocs.yml"
    settings.write_text(settings.read_text().replace(" search, mkdocstrings", " search: {enabled: false}"))
    for _ in range(2):
        done = mkdocs(project)
        assert done.returncode == 0, done.stderr
