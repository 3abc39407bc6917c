"""What a record says is published: it never tells where things lie on the machine that wrote it.

Of the code it names what decides a run's numbers, and pages name what decides a page: an edit remakes what it changes.
"""

from __future__ import annotations

import ast
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from altgrad.config import parse_config
from altgrad.imports import RUN_ROOMS, code_fingerprint
from altgrad.runs import RunWriter
from altgrad.runs.schema import without_paths
from altgrad.site import build as site_build
from altgrad.site.cache import docstrings_key

ROOT = Path(__file__).parents[1]
EDITS = {
    "reports/home.py": {"page"},
    "runs/store.py": {"page"},
    "__init__.py": {"page"},
    "a_new_room.py": {"page"},
    "another/new_room.py": {"page"},
    "training/loop.py": {"run"},
    "telemetry/rank.py": {"run"},
    "nn.py": {"run"},
    "formats.py": {"run", "page"},
    "config.py": {"run", "page"},
}
"""A file of the package -> the fingerprints that an edit of it changes, besides that of all code."""
FAMILIES = ("benchmarks", "formats", "index", "reports", "runs", "tensors")
"""The pages about formats and recorded runs, by the scripts that make them."""


HOME, USERS = "/" + "home", "/" + "Users"  # in parts: no file of the repository names a home


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("/srv/ann/runs/a.json", "a.json"),
        ("cannot read /srv/ann/a.json: gone", "cannot read a.json: gone"),
        ("[Errno 2] No such file: '/srv/ann/my runs/a.json'", "[Errno 2] No such file: 'a.json'"),
        ('in "/srv/o\'neil/a.json"', 'in "a.json"'),
        ("from '/x/old' to '/x/new'", "from 'old' to 'new'"),
        ("(/opt/lib/x.so:12), root=/srv/data/", "(x.so:12), root=data/"),
        ("'/srv/ann/'", "'ann/'"),
        ("PATH /a/b:/c/d", "PATH b:d"),
        ("file:///srv/ann/a.json", "file:a.json"),
        (r"C:\Users\ann\a.json: gone", "a.json: gone"),
        (r"'C:\\Users\\ann b\\a.json'", "'a.json'"),
        ("at D:/data/ann/a.json", "at a.json"),
        (r"at \\server\share\a.json", "at a.json"),
        (f"cache {HOME}/ann '{USERS}/ann/' and C:\\Users\\ann", "cache ~ '~/' and ~"),
    ],
)
def test_an_absolute_path_becomes_its_last_component(text: str, kept: str) -> None:
    assert without_paths(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "see https://wandb.ai/team/project/runs/1 and 'http://localhost:8080/a/b'",
        "experiments/runs/a.json",
        "./a/b or ../a/b",
        "1/2/3 tokens / second, 4 / 5",
        "/tmp is full",
        "ratio: a/b",
        r"a line\nof 'text'",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert without_paths(text) == text


def test_a_crashed_record_tells_no_path(tmp_path: Path) -> None:
    data = {"name": "none", "sha256": "0" * 64}
    config = parse_config({"max_steps": 1}, source="test")
    writer = RunWriter.create(tmp_path, config, data_fingerprint=data, environment={})
    with pytest.raises(OSError, match="No such file"), writer:
        open(tmp_path / "gone" / "a file.txt")  # noqa: SIM115 - raises
    message = json.loads((writer.path / "run.json").read_text())["message"]
    assert message == "FileNotFoundError: [Errno 2] No such file or directory: 'a file.txt'"


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_changes_the_fingerprint_of_what_it_decides(edit: Callable[[str], None], name: str) -> None:
    before = {of: code_fingerprint(of) for of in ("run", "page", "any")}
    edit(name)
    assert {of for of, value in before.items() if code_fingerprint(of) != value} == EDITS[name] | {"any"}


def test_what_the_code_of_runs_imports_decides_their_numbers_or_only_writes_them_down() -> None:
    def room(path: Path) -> str:
        return path.relative_to(ROOT / "altgrad").parts[0].removesuffix(".py")

    trees = [ast.parse(path.read_text()) for path in (ROOT / "altgrad").rglob("*.py") if room(path) in RUN_ROOMS]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported = [(*str(node.module).split("."), alias.name) for node in nodes for alias in node.names]
    others = [names for names in imported if names[0] == "altgrad" and names[1] not in RUN_ROOMS]
    assert {names[1] for names in others} <= {"runs"}
    assert {names[-1] for names in others if names[-1].isupper()} == {"PHASES"}, "no limit that may end a run"


@pytest.mark.parametrize(
    ("name", "made_again"),
    [
        ("training/loop.py", {"guides", "api", "benchmarks"}),  # which say whether the code has changed since
        ("rounding.py", {"guides", "api", "benchmarks"}),
        ("reports/home.py", {"guides", "api", *FAMILIES}),
        ("formats.py", {"guides", "api", *FAMILIES}),
    ],
)
def test_an_edit_makes_the_pages_again_that_depend_on_it(
    edit: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, made_again: set[str]
) -> None:
    pytest.importorskip("mkdocs")
    monkeypatch.setenv("ALTGRAD_RUNS", str(tmp_path / "none"))
    theme = SimpleNamespace(name="material")
    config = {"plugins": {}, "markdown_extensions": [], "mdx_configs": {}, "use_directory_urls": True, "theme": theme}
    keys: dict[str, Callable[[], str]] = {"api": lambda: docstrings_key({}, config)}

    def build(_make: object, page: str, *_pages: str, key: Callable[[], str] | None = None, **_more: object) -> None:
        if key is not None:
            keys[page.partition("/")[0]] = key

    for function in ("build", "build_files"):
        monkeypatch.setattr(site_build, function, build)
    for script in (ROOT / "gen").glob("*.py"):
        if "altgrad.site.build import build" in script.read_text():
            runpy.run_path(str(script))
    before = {family: key() for family, key in keys.items()}
    edit(name)
    assert {family for family, key in keys.items() if key() != before[family]} == made_again
    assert set(before) == {"guides", "api", *FAMILIES}
