"""The house of DESIGN.md, drawn from the sources: no room imports upward, no imports go round in a circle.

Drawn are the imports as they are written, anywhere in a module. That importing `altgrad.runs.store` runs the `__init__`
of `altgrad.runs` first is not: a module imports from its package's other modules, never what the package re-exports.
"""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
# Floors, ground floor first. The rooms from rounding on need torch, and use of the reading half no more than SHARED.
GROUND = ("altgrad", "text", "imports", "formats", "recipes", "config")
READING = (*GROUND, "studies", "runs", "analysis", "site", "reports")
SHARED = READING[: READING.index("analysis")]
LAYERS = ("scratch", "draws", "ranks", "rounding", "diffusion", "scaling", "nn")
TORCH = (*LAYERS, "export", "models", "optim", "telemetry", "training")
OLD_NAMES = ("analysis/reports.py", "pages/__init__.py", "pages/mkdocs.py")
HEAVY = {"torch", "wandb", "mkdocs", "mkdocs_gen_files"}


class Import(NamedTuple):
    """One import statement's target; `when` is "load", "call" within a function, "types" under TYPE_CHECKING."""

    module: str
    target: str
    line: int
    when: str


def sources(root: Path) -> dict[str, Path]:
    """Module -> file of the package; what a new site is laid out from is no module of it, nor are the old names."""
    found = {}
    for path in sorted((root / "altgrad").rglob("*.py")):
        if "templates" not in path.parts and path.relative_to(root / "altgrad").as_posix() not in OLD_NAMES:
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def drawn(root: Path) -> list[Import]:
    """Every import of every module, wherever it stands; of our own modules to the module itself."""
    modules = sources(root)
    found = []
    for module, path in modules.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node, when in statements(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
                base = ".".join([*above, *filter(None, [node.module])])
                inner = [f"{base}.{alias.name}" for alias in node.names]
                targets = list(dict.fromkeys(each if each in modules else base for each in inner))
            found += [Import(module, target, node.lineno, when) for target in targets]
    return found


def statements(node: ast.AST, when: str = "load") -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """The import statements below a node, and when each is run."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, when
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from statements(ast.Module(child.body, []), "types")
            yield from statements(ast.Module(child.orelse, []), when)
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from statements(child, "call" if function and when == "load" else when)


def room(module: str) -> str:
    """The room of one of our modules."""
    parts = module.split(".")[1:]
    return parts[0] if parts else "altgrad"


def reachable(name: str) -> tuple[str, ...]:
    """The rooms that a room may import from."""
    if name == "cli":
        return (*READING, *TORCH, name)
    if name in TORCH:
        return (*SHARED, *TORCH[: TORCH.index(name) + 1])
    return READING[: READING.index(name) + 1]


def upward(root: Path) -> list[str]:
    """The imports that lead to a room which is not below; a module that is in no room is one, too."""
    known = (*READING, *TORCH, "cli")
    found = [f"{module} is in no room" for module in sources(root) if room(module) not in known]
    for each in drawn(root):
        ours = each.target.split(".")[0] == "altgrad" and room(each.module) in known
        if ours and room(each.target) not in reachable(room(each.module)):
            found.append(f"{each.module}, line {each.line}, imports {each.target}")
    return found


def circle(root: Path) -> list[str]:
    """Modules that import each other in a circle, the first again at the end; empty where there is none."""
    graph: dict[str, set[str]] = {module: set() for module in sources(root)}
    for each in drawn(root):
        if each.when != "types" and each.target in graph:
            graph[each.module].add(each.target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))
    return []


def heavy(root: Path) -> list[str]:
    """Where the reading half imports torch, wandb or mkdocs as it is loaded; the plugin is loaded by mkdocs."""
    return [
        f"{each.module}, line {each.line}, imports {each.target}"
        for each in drawn(root)
        if each.when == "load" and each.module in reading(root) and each.target.split(".")[0] in HEAVY
    ]


def reading(root: Path) -> list[str]:
    """The modules of the reading half."""
    return [module for module in sources(root) if room(module) in READING and module != "altgrad.site.plugin"]


def test_no_room_imports_upward() -> None:
    assert upward(ROOT) == []


def test_contributing_draws_the_rooms_in_this_order_in_at_most_25_lines() -> None:
    house = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## The house\n")[2].partition("\n## ")[0]
    drawn_lines = re.findall(r"^    altgrad/(.+?)  ", house, re.MULTILINE)
    rooms = [name.rstrip("/").removesuffix(".py") for line in drawn_lines for name in line.split()]
    assert rooms == [*READING[1:], *TORCH, "cli"]
    assert {*rooms} == {room(module) for module in sources(ROOT)} - {"altgrad"}
    assert house.count("\n") < 25


def test_no_imports_go_round_in_a_circle() -> None:
    assert circle(ROOT) == []


def test_the_reading_half_names_torch_wandb_and_mkdocs_in_functions_only() -> None:
    assert heavy(ROOT) == []


def test_the_reading_half_imports_without_torch_wandb_and_mkdocs() -> None:
    script = (
        "import sys\n"
        f"for name in {sorted(HEAVY)}: sys.modules[name] = None\n"
        f"import altgrad.cli, {', '.join(reading(ROOT))}\n"
        "print([name for name in ('scipy.stats', 'matplotlib') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small sound package with something in many rooms."""
    write(tmp_path, "__init__", "__version__ = '1'")
    write(tmp_path, "config", "import altgrad")
    write(tmp_path, "runs/__init__", "from altgrad.runs.store import read")
    write(tmp_path, "runs/schema", "from altgrad.config import load")
    write(tmp_path, "runs/store", "from . import schema\nfrom .schema import run_id\nfrom ..config import load")
    write(tmp_path, "analysis/__init__", "from altgrad.analysis.loader import runs")
    write(tmp_path, "analysis/loader", "from altgrad.runs import read")
    write(tmp_path, "site/__init__", "def write():\n    import mkdocs.utils\n    from altgrad import runs")
    write(tmp_path, "reports/__init__", "from altgrad import site\nfrom altgrad.analysis.loader import runs")
    write(tmp_path, "nn", "import torch\nimport altgrad.config as config")
    write(tmp_path, "training/__init__", "from altgrad import nn\nfrom altgrad.runs.store import read")
    write(tmp_path, "cli", "def main():\n    import altgrad.training, altgrad.analysis")
    return tmp_path


def write(root: Path, module: str, text: str) -> None:
    path = root / "altgrad" / f"{module}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def test_a_sound_house_is_found_sound(house: Path) -> None:
    assert (upward(house), circle(house), heavy(house)) == ([], [], [])
    assert Import("altgrad.runs.store", "altgrad.config", 3, "load") in drawn(house)


@pytest.mark.parametrize(
    ("module", "text", "target"),
    [
        ("runs/late", "import altgrad.analysis.loader", "altgrad.analysis.loader"),
        ("runs/late", "def read():\n    from altgrad.analysis.loader import runs", "altgrad.analysis.loader"),
        ("runs/late", "from ..analysis.loader import runs", "altgrad.analysis.loader"),
        ("runs/late", "from .. import analysis", "altgrad.analysis"),
        ("runs/late", "from altgrad import __version__, site", "altgrad.site"),
        ("runs/late", "if TYPE_CHECKING:\n    from altgrad.site import Page", "altgrad.site"),
        ("config", "from altgrad import runs", "altgrad.runs"),
        ("analysis/late", "from altgrad import reports", "altgrad.reports"),
        ("site/late", "from altgrad.reports import pages", "altgrad.reports"),
        ("training/loop", "from altgrad.analysis.loader import runs", "altgrad.analysis.loader"),
        ("training/loop", "class Run:\n    def end(self):\n        import altgrad.site", "altgrad.site"),
        ("nn", "from altgrad.training import train", "altgrad.training"),
        ("training/loop", "from altgrad.cli import main", "altgrad.cli"),
        ("formats", "import altgrad.rounding", "altgrad.rounding"),
    ],
)
def test_an_import_that_leads_upward_is_named(house: Path, module: str, text: str, target: str) -> None:
    write(house, module, text)
    importer = f"altgrad.{module.replace('/', '.')}"
    assert upward(house) == [f"{importer}, line {len(text.splitlines())}, imports {target}"]


def test_a_module_that_no_room_has_is_named(house: Path) -> None:
    write(house, "utils", "")
    assert upward(house) == ["altgrad.utils is in no room"]


@pytest.mark.parametrize(
    ("module", "text", "found"),
    [
        ("runs/schema", "def read():\n    from altgrad.runs.store import read", {"runs.schema", "runs.store"}),
        ("runs/schema", "from altgrad.runs import read", {"runs.schema", "runs.store", "runs"}),
        ("runs/schema", "from altgrad.runs import schema", {"runs.schema"}),
        ("__init__", "import altgrad.config", {"", "config"}),
    ],
)
def test_a_circle_of_imports_is_named(house: Path, module: str, text: str, found: set[str]) -> None:
    write(house, module, text)
    named = circle(house)
    assert {each.removeprefix("altgrad").removeprefix(".") for each in named} == found
    assert named[0] == named[-1]


def test_types_alone_make_no_circle(house: Path) -> None:
    write(house, "runs/schema", "if typing.TYPE_CHECKING:\n    from altgrad.runs.store import Record")
    assert circle(house) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import torch.nn", ["torch.nn"]),
        ("try:\n    from mkdocs.plugins import event\nexcept ImportError:\n    pass", ["mkdocs.plugins"]),
        ("class Mirror:\n    import wandb", ["wandb"]),
        ("if TYPE_CHECKING:\n    import torch\nelse:\n    import wandb", ["wandb"]),
        ("def start():\n    import torch", []),
        ("import torchless", []),
    ],
)
def test_what_the_reading_half_may_not_load_is_named(house: Path, text: str, found: list[str]) -> None:
    write(house, "runs/late", text)
    assert [each.split()[-1] for each in heavy(house)] == found
