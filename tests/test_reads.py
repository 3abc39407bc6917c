"""A page is computed again when what it reads changes, or says below its block that it is not."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from altgrad.reports import provenance
from altgrad.reports.provenance import code_key
from altgrad.site import executed
from altgrad.site.executed import page_files, page_key
from altgrad.text import escape


def write(docs: Path, code: str) -> Path:
    """A page with this code in a site that has a file beside the page, one elsewhere, and a module elsewhere."""
    for name, text in {
        "../mkdocs.yml": "",
        "guides/data/in.csv": "a\n1\n",
        "guides/other.md": "",
        "data/ext.csv": "a\n2\n",
        "lib/far.py": "VALUE = 3\n",
        "../../elsewhere.txt": "x",
        "guides/page.md": f"# P\n\n```python exec\n{code}\n```\n",
    }.items():
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        (docs / name).write_text(text)
    return docs / "guides/page.md"


def told(page: Path) -> list[str]:
    """The files that the page says it does not follow."""
    shown = page_files(page, page.parents[1])["guides/page.md"].decode()
    return re.findall(r"^\*Not computed again when (.*) changes\.\*$", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("code", "files"),
    [
        ("(here.parent / 'data/ext.csv').read_text()", "../data/ext.csv"),
        ("import pandas as pd\npd.read_csv(here / '../data/ext.csv')", "../data/ext.csv"),
        ("import os\nos.close(os.open(here.parent / 'data/ext.csv', os.O_RDONLY))", "../data/ext.csv"),
        ("import sqlite3\nsqlite3.connect(here.parent / 'data/ext.csv').close()", "../data/ext.csv"),
        ("(here / 'other.md').read_bytes()", "other.md"),
        ("_ = [path.read_text() for path in sorted(here.parents[2].rglob('*.*')) if path.is_file()]", None),
        ("(here.parents[2] / 'elsewhere.txt').read_text()", "elsewhere.txt"),
        ("import sys; sys.path.insert(0, str(here.parent / 'lib'))\nimport far\ndel sys.path[0]", "../lib/far.py"),
    ],
)
def test_a_file_that_the_key_has_not_is_named_below_the_block(tmp_path: Path, code: str, files: str | None) -> None:
    page = write(tmp_path / "project/docs", code)
    names = [files] if files else ["../../mkdocs.yml", "../data/ext.csv", "../lib/far.py", "one of 2 more"]
    for _ in range(2):  # the second time, what Python keeps of imports must not hide it
        assert told(page) == [" or ".join(map(escape, names))]
    assert "far" not in sys.modules


@pytest.mark.parametrize(
    "code",
    [
        "(here / 'data/in.csv').read_text(); (here / 'page.md').read_text()",
        "import matplotlib.pyplot, sqlite3, altgrad.reports",
        "import tempfile, pathlib\nwith tempfile.TemporaryDirectory() as folder:\n"
        "    path = pathlib.Path(folder) / 'x'; path.write_text('x'); path.rename(f'{path}y').read_text()",
        "(here.parent / 'made.csv').write_text('x'); (here.parent / 'made.csv').read_text()",
        "(here.parent / '.cache').mkdir(exist_ok=True); open(here.parent / '.cache/x', 'a+').close()",
    ],
)
def test_what_the_key_has_and_what_a_page_makes_itself_is_not_named(tmp_path: Path, code: str) -> None:
    assert told(write(tmp_path / "docs", code)) == []


def test_each_file_is_named_once_and_a_module_elsewhere_is_read_anew(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, str(here.parent / 'lib'))\nimport far\ndel sys.path[0]\nprint(far.VALUE)"
    page = write(tmp_path / "docs", f"{code}\n```\n\n```python exec\nimport far; open(far.__file__).close()")
    assert told(page) == [escape("../lib/far.py")]
    (page.parents[1] / "lib/far.py").write_text("VALUE = 31415\n")
    assert b"31415" in page_files(page, page.parents[1])["guides/page.md"]


def test_a_module_beside_the_page_is_in_its_key_and_what_python_compiles_of_it_is_not(tmp_path: Path) -> None:
    page = write(tmp_path / "docs", "import sys; sys.path.insert(0, str(here))\nimport near\ndel sys.path[0]")
    (page.parent / "near.py").write_text("")
    before = page_key(page)
    assert told(page) == []
    assert page_key(page) == before
    (page.parent / "near.py").write_text("VALUE = 1\n")
    assert page_key(page) != before


def test_a_page_that_uses_the_reports_follows_the_words_that_they_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executed, "_SHARED", tmp_path)
    uses, other = (
        write(tmp_path / name / "docs", code)
        for name, code in (("a", "from altgrad.reports import verdicts"), ("b", "import altgrad.formats"))
    )
    before = page_key(uses), page_key(other)
    (tmp_path / "evidence.md").write_text("Other words.")
    assert page_key(uses) != before[0]
    assert page_key(other) == before[1]


@pytest.mark.parametrize(
    "text", ["from altgrad.analysis.costs import token_rate", "from altgrad.analysis import costs"]
)
def test_the_library_that_a_module_beside_the_page_uses_is_the_page_s(
    tmp_path: Path, edit: Callable[[str], None], text: str
) -> None:
    page = write(tmp_path / "docs", "import near")
    (page.parent / "near.py").write_text(text)
    before = page_key(page)
    edit("analysis/costs.py")
    assert page_key(page) != before


def test_pages_are_made_again_with_another_version_of_what_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = write(tmp_path / "docs", "print(1)")
    before = page_key(page), code_key()
    monkeypatch.setattr(executed, "version", lambda name: "99" if name == "matplotlib" else metadata.version(name))
    monkeypatch.setattr(provenance, "installed", lambda name: "99" if name == "Markdown" else metadata.version(name))
    assert page_key(page) != before[0]
    assert code_key() != before[1]


@pytest.mark.parametrize(
    ("code", "follows"),
    [
        ("os.environ.get('MINE')", ["MINE"]),
        ("os.environ[\"MINE\"], os.getenv('OTHER', '')", ["MINE", "OTHER"]),
        ("dict(os.environ)", ["MINE", "OTHER"]),
        ("name = 'MINE'; os.getenv(name), os.getenv('OTHER')", ["MINE", "OTHER"]),
        ("'MINE'", []),
    ],
)
def test_a_page_is_computed_again_when_a_variable_that_it_reads_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, follows: list[str]
) -> None:
    page = write(tmp_path / "docs", f"import os\n{code}")
    before = page_key(page)
    for name in ("MINE", "OTHER"):
        with monkeypatch.context() as context:
            context.setenv(name, "changed")
            assert (page_key(page) != before) is (name in follows)
    assert page_key(page) == before
