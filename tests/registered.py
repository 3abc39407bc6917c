"""The commit that a registration names, held against git and against the moments at which its runs began."""

from __future__ import annotations

import json
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT / "experiments" / "recorded"


def before_the_runs(document: str, text: str, study: str) -> str:
    """The document as it stood at the commit that `text` names: on that day, before each run of the study.

    Skips, with what can be held without it checked, where the history is not there.
    """
    named = re.search(r"committed on ([0-9-]{10}) as `([0-9a-f]{7,40})`", text)
    assert named is not None
    created = [
        json.loads(run)["created"]
        for part in (RECORDED / study).glob("part-*")
        for run in pd.read_parquet(part / "runs.parquet", columns=["run"])["run"]
    ]
    if not created:
        pytest.skip(f"nothing of study {study} is recorded")
    assert all(moment[:10] >= named[1] for moment in created)
    if not _git("cat-file", "-t", named[2]):
        pytest.skip("the history is not there")
    when = datetime.fromtimestamp(int(_git("show", "-s", "--format=%ct", named[2])), UTC).isoformat()
    assert when[:10] == named[1]
    assert all(moment > when for moment in created)
    return _git("show", f"{named[2]}:{document}")


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
