"""What a record says is published: it never tells where things lie on the machine that wrote it.

Of the code it names what decides a run's numbers, and pages name what decides a page: an edit remakes what it changes.
"""

from __future__ import annotations

import ast
import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from altgrad.config import parse_config
from altgrad.imports import RUN_ROOMS, code_fingerprint, face_fingerprint, look, named_in, used_by, users_of
from altgrad.reports import REPORTS
from altgrad.reports.provenance import page_code
from altgrad.runs import RunWriter
from altgrad.runs.schema import without_paths
from altgrad.site import build as site_build

ROOT = Path(__file__).parents[1]
EDITS = {
    "reports/home.py": {"page"},
    "runs/store.py": {"page"},
    "__init__.py": {"page"},
    "a_new_room.py": {"page"},
    "another/new_room.py": {"page"},
    "training/loop.py": {"run"},
    "telemetry/rank.py": {"run"},
    "nn/layers.py": {"run"},
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
        ("sqlite:////srv/ann/a.db in gs://b/p/q", "sqlite:a.db in gs://b/p/q"),
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
        "gs://bucket/p/q.parquet and s3://b/a/b.pt, hf://datasets/x/y",
        "git+ssh://git@host.example/team/repo, abfss://c@acc.example/x/y",
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
    assert {names[1] for names in others} <= {"runs", "imports"}
    assert {names[-1] for names in others if names[-1].isupper()} == {"PHASES"}, "no limit that may end a run"


ANALYSED = {"findings", "record-your-own-loop", "your-own-page", "explore", "step-rules", "wandb"}
"""The guides whose code names `altgrad.analysis`."""
RECORDED = {"formats/index", "index", "reports/format_comparison", "runs/index", "tensors/data"}
"""The first pages of the families that read records."""


@pytest.mark.parametrize(
    ("name", "guides", "others"),
    [
        ("training/loop.py", {"many-processes", "telemetry", "wandb"}, set[str]()),
        ("reports/home.py", {"findings", "your-own-page", "wandb"}, {"index", "reports/format_comparison"}),
        (
            "formats.py",
            {
                *ANALYSED,
                "compare",
                "telemetry",
                "number-formats",
                "own-format",
                "quantize-a-model",
                "recipes",
                "add-a-rung",
                "training-loops",
                "many-processes",
            },
            RECORDED,
        ),
        ("analysis/failures.py", ANALYSED, {"reports/format_comparison", "formats/index"}),
        ("analysis/comparison.py", {*ANALYSED, "many-processes"}, RECORDED),
        ("site/plugin.py", {"wandb"}, {"reports/format_comparison"}),
    ],
)
def test_an_edit_makes_the_pages_again_that_use_the_module(
    edit: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    guides: set[str],
    others: set[str],
) -> None:
    pytest.importorskip("mkdocs")
    monkeypatch.setenv("ALTGRAD_RUNS", str(tmp_path / "none"))
    keys: dict[str, Callable[[], str]] = {}

    def build(_make: object, page: str, *_pages: str, key: Callable[[], str] | None = None, **_more: object) -> None:
        if key is not None:
            keys[page] = key

    for function in ("build", "build_files"):
        monkeypatch.setattr(site_build, function, build)
    for script in (ROOT / "gen").glob("*.py"):
        if "altgrad.site.build import build" in script.read_text():
            runpy.run_path(str(script))
    before = {page: key() for page, key in keys.items()}
    edit(name)
    found = {page for page, key in keys.items() if key() != before[page]}
    found -= {"benchmarks/index"}  # which says of each measurement whether any code has changed since
    assert found == {f"guides/{guide}" for guide in guides} | others


def test_an_edit_makes_no_report_again_but_those_that_use_the_module(edit: Callable[[str], None]) -> None:
    def codes() -> dict[str, str]:
        return {path: page_code(make.__module__) for path, make in REPORTS.items()}

    before = codes()
    edit("analysis/failures.py")
    assert {path for path, code in codes().items() if code != before[path]} == {
        "reports/failure_modes",
        "reports/corrections",
    }


def test_pages_of_docstrings_are_kept_until_what_they_show_changes(tmp_path: Path, edit: Callable[[str], None]) -> None:
    before = face_fingerprint("altgrad.analysis"), code_fingerprint("altgrad.analysis")
    edit("analysis/failures.py")
    assert face_fingerprint("altgrad.analysis") == before[0]
    assert code_fingerprint("altgrad.analysis") != before[1]
    path = tmp_path / "altgrad/analysis/statistics.py"
    text = path.read_text()
    for old, new in (('    """', '    """Or so.'), ("(", "(*, _more: int = 0, ")):
        place = text.index(old, text.index("\ndef "))
        path.write_text(text[:place] + new + text[place + len(old) :])
        look()
        assert face_fingerprint("altgrad.analysis") != before[0]
    path.write_text(text + "def half(:\n")  # while it is being edited
    look()
    assert face_fingerprint("altgrad.analysis") != before[0]


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("from altgrad.formats import get_format", "altgrad.formats"),
        ("import altgrad.nn\nfrom altgrad.runs import record", "altgrad.nn altgrad.runs"),
        ("from altgrad.analysis import tensors as held", "altgrad.analysis altgrad.analysis.tensors"),
        ("from altgrad import nn", "any"),
        ("import altgrad as ag", "any"),
        ("import os, altgrad", "any"),
        ("exec(path.read_text())", "any"),
        ("subprocess.run(['altgrad', 'train'])", "any"),
        ("importlib.import_module(name)", "any"),
        ("print(1)", ""),
    ],
)
def test_the_modules_that_code_uses_are_those_it_names_or_any(code: str, named: str) -> None:
    assert named_in(code) == named


def test_a_module_uses_what_it_imports_anywhere_and_of_a_package_only_what_it_names(
    tmp_path: Path, edit: Callable[[str], None]
) -> None:
    sources = {
        "__init__.py": "from altgrad.room.big import everything\n",
        "big.py": "everything = 1\n",
        "leaf.py": "import altgrad.text\n",
        "user.py": "from altgrad.room import (\n    leaf,\n)\n",
        "late.py": "def f():\n    from altgrad.room.user import leaf as other\n",
        "whole.py": "from altgrad.room import everything\n",
    }
    for name, text in sources.items():
        edit(f"room/{name}")
        (tmp_path / "altgrad/room" / name).write_text(text)
    look()
    above = {"altgrad", "altgrad.room", "altgrad.text"}
    assert used_by(["altgrad.room.late"]) == above | {f"altgrad.room.{name}" for name in ("late", "user", "leaf")}
    assert used_by(["altgrad.room.whole"]) == above - {"altgrad.text"} | {"altgrad.room.whole", "altgrad.room.big"}
    known = {"altgrad.room", *(f"altgrad.room.{name[:-3]}" for name in sources if name != "__init__.py")}
    assert users_of({"altgrad.room.leaf"}, known) == {f"altgrad.room.{name}" for name in ("late", "user", "leaf")}
    assert users_of({"altgrad.room.big"}, known) == {"altgrad.room", "altgrad.room.big", "altgrad.room.whole"}
