"""What a record says is published: it never tells where things lie on the machine that wrote it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from altgrad.config import parse_config
from altgrad.runs import RunWriter
from altgrad.runs.schema import without_paths


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
        ("cache /home/ann '/Users/ann/' and C:\\Users\\ann", "cache ~ '~/' and ~"),
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
