"""How the suite shares the cores: a file is the work of one worker, and so are those that share what is found first.

And what an edit of the library changes, without editing it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

import altgrad
from altgrad.imports import look

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers that each use every core wait for one another

RECORDED = (
    "test_headlines.py",
    "test_labels.py",
    "test_corrections_failures.py",
    "test_studies.py",
    "test_hypotheses.py",
    "test_arms.py",
)
SITE = ("test_browser.py", "test_explorer.py", "test_runs_pages.py", "test_site.py")

LONG = (
    *RECORDED,
    "test_wandb_in.py",
    "test_rounding_compiled.py",
    "test_tracking.py",
    "test_nn_compiled.py",
    "test_training.py",
    "test_guides.py",
    "test_failure_modes.py",
    "test_checkpoints.py",
    "test_distributed.py",
    "test_sweep.py",
    "test_training_campaign.py",
    "test_run_costs.py",
    "test_site_cache.py",
    "test_reports.py",
    "test_nn.py",
    "test_diffusion.py",
    "test_runs_cli.py",
)


class Groups(LoadScopeScheduling):
    """Gives the tests of a group to one worker; xdist's own groups are lost under this pytest, in silence."""

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.partition("::")[0])
        return "site" if file.name in SITE else "recorded" if file.name in RECORDED else file.stem


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    """What xdist asks for a scheduler."""
    return Groups(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """A worker more than there are cores: much of a test's time it waits, for a browser, a server or a process."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no worker is left with it: the built sites, then `LONG`."""
    order = {name: place for place, name in enumerate(LONG)}
    apart = Path(__file__).parent
    items.sort(key=lambda item: (item.path.parent == apart, order.get(item.path.name, len(LONG))))


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Adds a comment to a file of the package, or makes it: in a copy, of which fingerprints of code are taken."""
    own, copy = altgrad.__file__, tmp_path / "altgrad"
    shutil.copytree(Path(own).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(altgrad, "__file__", str(copy / "__init__.py"))

    def edited(name: str) -> None:
        path = copy / name
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            file.write("# One word more.\n")
        look()

    look()
    yield edited
    monkeypatch.setattr(altgrad, "__file__", own)
    look()
