"""What code a page depends on: every way to import counts, and an edit is in the next build of a process."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
Library = Callable[[dict[str, str], str], str]
pytest.importorskip("mkdocs")


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """Runs code with a library of a few modules, of which the real ones are what forgets; gives what it prints."""
    for name in ("imports.py", "site/plugin.py"):
        (tmp_path / "altgrad" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "altgrad" / name, tmp_path / "altgrad" / name)
    for package in ("altgrad", "altgrad/site"):
        (tmp_path / package / "__init__.py").touch()

    def run(modules: dict[str, str], code: str) -> str:
        for name, text in {"__init__": "", **modules}.items():
            path = tmp_path / f"altgrad/room/{name}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        head = "import sys, time\nfrom pathlib import Path\nROOM = Path('altgrad/room')\n"
        head += "from altgrad.site.plugin import _forget, _restore\n"
        command = [sys.executable, "-B", "-c", head + code]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


EDIT = """
from altgrad.room.user import shown
now = time.time()
{edit}
forgotten = _forget(now)
"""


def test_an_edited_module_is_read_again_where_its_package_does_not_use_it(library: Library) -> None:
    modules = {"leaf": "value = 1\n", "user": "from altgrad.room import leaf\nshown = leaf.value\n"}
    code = EDIT.format(edit="(ROOM / 'leaf.py').write_text('value = 22\\n')")
    assert library(modules, code + "from altgrad.room.user import shown\nprint(shown)") == "22"
    code += "_restore(forgotten)\nfrom altgrad.room import leaf\nprint(leaf.value, leaf is sys.modules[leaf.__name__])"
    assert library(modules, code) == "1 True"


def test_what_uses_a_module_that_is_gone_is_read_again_and_says_so(library: Library) -> None:
    modules = {"leaf": "value = 1\n", "user": "from altgrad.room import leaf\nshown = leaf.value\n"}
    code = EDIT.format(edit="(ROOM / 'leaf.py').unlink()") + "try:\n    import altgrad.room.user\n"
    assert "leaf" in library(modules, code + "except ImportError as error:\n    print(error)")


@pytest.mark.parametrize(
    "text",
    [
        "import altgrad.room.leaf as other",
        "import os, altgrad.room.leaf",
        "import altgrad.room, altgrad.room.leaf",
        "from altgrad.room import leaf",
        "from altgrad.room import (\n    other,  # why (so)\n    leaf,\n)",
        "from altgrad.room import(other, leaf as it,)",
        "from altgrad.room import other, \\\n    leaf",
        "from altgrad.room \\\n    import leaf",
        "from altgrad.room.leaf import *",
        "from . import leaf",
        "from .leaf import value",
        "from ..room import leaf",
        "if TYPE_CHECKING:\n    from altgrad.room import leaf",
        "try: import altgrad.room.leaf\nexcept ImportError: pass",
        "import os; from altgrad.room import leaf",
        "def f():\n\tfrom\taltgrad.room\timport\tleaf\n",
        '"""Text\nfrom ..... import anything.\n"""\nimport altgrad.room.leaf',
    ],
)
def test_every_way_to_import_counts(library: Library, text: str) -> None:
    code = "from altgrad.imports import used_by\nprint(*sorted(used_by(['altgrad.room.user'])))"
    found = library({"user": text, "leaf": "import altgrad_other.x", "other": ""}, code).split()
    assert {"altgrad", "altgrad.room", "altgrad.room.user", "altgrad.room.leaf"} <= {*found}
    assert not [name for name in found if name.startswith("altgrad_")]
