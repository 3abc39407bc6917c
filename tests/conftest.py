"""How the suite shares the cores: a file is the work of one worker, and so are the tests that look at built sites."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers that each use every core wait for one another

SITE = ("test_browser.py", "test_explorer.py", "test_runs_pages.py", "test_site.py")


@pytest.hookimpl(tryfirst=True)  # before the plugin reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test its group, and begin with what takes longest: the built sites."""
    for item in items:
        group = "site" if item.path.name in SITE else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.path.parent == Path(__file__).parent)
