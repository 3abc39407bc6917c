"""Tracking never stops a run: what is wrong with its settings is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from altgrad.config import parse_config
from altgrad.runs.tracking import Tracker


@pytest.mark.parametrize("address", ["http://h:abc", "http://[h", "http://h:99999", f"http://{'h' * 70}.example"])
def test_a_bad_address_is_one_line(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the package wandb is not installed")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", address)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    lines: list[str] = []
    config = parse_config({"tracking": "online"}, source="test")
    Tracker.start(config, "run", tmp_path, lines.append).finish("finished")
    assert len(lines) == 1
    assert "W&B tracking is off" in lines[0]
    assert "\n" not in lines[0]
