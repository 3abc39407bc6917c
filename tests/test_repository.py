"""Claims about the repository as a whole: what it holds."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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


def test_every_command_of_the_makefile_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    declared = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert declared
    for target in declared.group(1).split():
        assert re.search(rf"^{target}:.*## \S", makefile, re.MULTILINE), target
