"""Claims about the repository as a whole: what it holds, and which room may use which."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# DESIGN's rooms, ground floor first: a room imports itself and rooms above it.
ROOMS = (
    "formats",
    "config",
    "runs",
    "pages",
    "analysis",
    "analysis.reports",
    "rounding",
    "scaling",
    "nn",
    "models",
    "optim",
    "telemetry",
    "training",
    "cli",
)
READING = ("formats", "config", "runs", "pages", "analysis", "analysis.reports")
# Words that only a machine's own settings contain, spelled so that this file does not contain them.
PRIVATE = re.compile(
    rb"(?<![\w.])/(?:home|root|Users|work|tmp)/[\w.-]"
    rb"|[\w.-]+\.(?:internal|local|lan|corp)\b"
    rb"|index[-_]url ?= ?\S"
)


def tracked() -> list[Path]:
    """Every file under version control that exists; skipped in a copy without git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def room(module: str) -> str | None:
    """The room of a module "altgrad.runs.store"; None for `altgrad` itself and foreign modules."""
    parts = module.split(".")
    if parts[0] != "altgrad" or len(parts) == 1:
        return None
    return "analysis.reports" if parts[1:3] == ["analysis", "reports"] else parts[1]


def imports(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            if node.module in ("altgrad", "altgrad.analysis"):
                found.update(f"{node.module}.{alias.name}" for alias in node.names if alias.name.islower())
    return found


def test_readme_is_at_most_90_lines_and_begins_with_picture_commands_and_answer() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 90
    first_screen = "\n".join(lines[:30])
    for part in ("![", "make serve", "make test", "<!-- answer -->"):
        assert part in first_screen
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", "\n".join(lines)):
        assert (ROOT / target).exists(), target


def test_no_tracked_file_names_a_machine() -> None:
    text = [path for path in tracked() if path.suffix not in (".parquet", ".png")]
    assert {str(path.relative_to(ROOT)): found for path in text if (found := PRIVATE.findall(path.read_bytes()))} == {}


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_rooms_above_it(name: str) -> None:
    package = ROOT / "altgrad"
    files = [
        path
        for path in package.rglob("*.py")
        if room(".".join(path.relative_to(ROOT).with_suffix("").parts)) == name and "new_site" not in path.parts
    ]
    assert files, f"no file in {name}"
    # The package's __init__ re-exports its reports on purpose.
    allowed = {*ROOMS[: ROOMS.index(name) + 1]} | ({"analysis.reports"} if name == "analysis" else set())
    for path in files:
        used = {other for module in imports(path) if (other := room(module)) in ROOMS}
        if name == "analysis" and path.name != "__init__.py":
            assert not used & {"pages", "analysis.reports"}, path
        assert used <= allowed, f"{path.name} imports {sorted(used - allowed)}"


def test_the_reading_half_imports_without_torch_wandb_and_mkdocs() -> None:
    blocked = ["torch", "wandb", "mkdocs", "mkdocs_gen_files"]
    script = (
        "import sys\n"
        f"for name in {blocked}: sys.modules[name] = None\n"
        "import altgrad.formats, altgrad.config, altgrad.runs, altgrad.pages, altgrad.pages.mkdocs, altgrad.analysis\n"
        "import altgrad.reports\n"
        "print([name for name in ('scipy.stats', 'matplotlib') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_every_command_of_the_makefile_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    declared = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert declared
    for target in declared.group(1).split():
        assert re.search(rf"^{target}:.*## \S", makefile, re.MULTILINE), target
