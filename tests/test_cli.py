"""The commands: exit codes, one line for a user's mistake, no torch before it is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from altgrad.cli import guarded, main
from altgrad.config import load_config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "experiments" / "configs").glob("*.yaml"))
SMALL = ["max_steps=3", "batch_size=2", "eval_batches=1", "final_eval_characters=0"]
SMALL += ["model.layers=1", "model.dim=8", "model.heads=1", "model.context=8"]


def settings(*more: str) -> list[str]:
    return [part for value in (*SMALL, *more) for part in ("--set", value)]


def script(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "experiments" / "run_experiment.py"), *arguments]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


def needs_training() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    from importlib.util import find_spec

    if find_spec("licensedcode") is None:
        pytest.skip("licensedcode-data is not installed")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid_and_explained(path: Path) -> None:
    load_config(path)
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["missing.yaml"], ["missing.yaml", "no such config"]),
        (["CONFIG", "--set", "quantize.weight=e4m4"], ["quantize.weight", "unknown format 'e4m4'", "e4m3"]),
        (["CONFIG", "--set", "optimizer.lr=1"], ["unknown key", "optimizer.lr"]),
        (["CONFIG", "--set", "max_steps"], ["--set", "key=value"]),
        (["CONFIG", "--set", "max_steps=0"], ["max_steps"]),
        (["CONFIG", "--threads", "0"], ["--threads"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = str(ROOT / "experiments" / "configs" / "e5m2.yaml")
    arguments = [argument.replace("CONFIG", config) for argument in arguments]
    assert main(["train", *arguments, "--out", str(tmp_path / "runs")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    for part in parts:
        assert part in printed.err
    assert not (tmp_path / "runs").exists()


def test_missing_torch_is_one_line_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "altgrad.training", raising=False)
    config = str(ROOT / "experiments" / "configs" / "fp32.yaml")
    assert main(["train", config, "--out", str(tmp_path)]) == 2
    assert "pip install 'altgrad[train]'" in capsys.readouterr().err


def test_the_command_line_does_not_import_torch() -> None:
    check = "import altgrad.cli, sys; sys.exit('torch' in sys.modules or 'wandb' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", check], env=environment, timeout=60).returncode == 0


def test_the_script_trains_from_any_folder_and_says_what_to_do_next(tmp_path: Path) -> None:
    needs_training()
    config = str(ROOT / "experiments" / "configs" / "e5m2.yaml")
    arguments = [config, *settings(), "--seed", "5", "--out", str(tmp_path / "runs")]
    done = script(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == [
        "Training complete!",
        "To update analysis reports:",
        "  python scripts/generate_reports.py",
    ]
    (record,) = (tmp_path / "runs").iterdir()
    assert record.name.startswith("e5m2-wag-adamw-s5-")
    again = script(*arguments, cwd=tmp_path)
    assert again.returncode == 2
    assert "already finished" in again.stderr
    assert "Traceback" not in again.stderr


def test_the_script_names_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    needs_training()
    (tmp_path / "file").write_text("")
    config = str(ROOT / "experiments" / "configs" / "e5m2.yaml")
    done = script(config, *settings(), "--out", str(tmp_path / "file" / "runs"), cwd=tmp_path)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_the_device_must_exist(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    config = str(ROOT / "experiments" / "configs" / "e5m2.yaml")
    assert main(["train", config, "--out", str(tmp_path), "--device", "cuda"]) == 2
    assert "--device cpu" in capsys.readouterr().err


def test_help_says_what_is_written_where_and_what_the_exit_codes_mean(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for part in ("run.json", "history.parquet", "checkpoints/", "examples:", "exit codes:", "--resume", "--data FILE"):
        assert part in printed
    assert max(map(len, printed.splitlines())) <= 120


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"short"])
def test_a_bad_data_file_is_one_line_and_leaves_no_record(
    content: bytes | None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    config = str(ROOT / "experiments" / "configs" / "fp32.yaml")
    assert main(["train", config, "--data", str(text), "--out", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --data ")
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_config_of_a_text_needs_the_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    config = str(ROOT / "experiments" / "configs" / "fp32.yaml")
    assert main(["train", config, "--set", "data=file", "--out", str(tmp_path)]) == 2
    assert "--data FILE" in capsys.readouterr().err


def test_a_text_of_ones_own_is_trained_on_recorded_and_resumed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    threads = torch.get_num_threads()
    text = tmp_path / "mine.txt"
    text.write_text("to be or not to be, 漢字漢字\n" * 200, encoding="utf-8")
    config = str(ROOT / "experiments" / "configs" / "e4m3.yaml")
    command = ["train", config, *settings("checkpoint.every=2"), "--data", str(text), "--out", str(tmp_path / "runs")]
    assert main(command) == 0
    assert "22% of the characters have no ASCII likeness" in capsys.readouterr().err
    (record,) = (tmp_path / "runs").iterdir()
    head = json.loads((record / "run.json").read_text())
    assert head["config"]["data"] == "file"
    assert head["data"]["name"] == "mine.txt"
    assert str(tmp_path) not in json.dumps(head)
    assert main([*command, "--resume"]) == 2
    assert "already finished" in capsys.readouterr().err
    (record / "run.json").write_text(json.dumps(head | {"status": "interrupted"}))
    assert main([*command, "--resume"]) == 0
    again = json.loads((record / "run.json").read_text())
    assert again["events"] == [*head["events"], {"kind": "resumed", "step": 3}]
    assert again["summary"]["val_loss"] == head["summary"]["val_loss"]
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_a_stop_from_outside_is_one_line(raised: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> int:
        raise raised

    assert guarded(stopped) == code
    error = capsys.readouterr().err
    assert "the record so far is kept" in error
    assert error.count("\n") == 1
