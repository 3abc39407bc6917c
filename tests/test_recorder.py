"""A recorder takes whatever a loop logs, and nothing that goes wrong with it ends the loop."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel
from pydantic_core import to_json

from altgrad.analysis import ExperimentDataLoader
from altgrad.cli import main
from altgrad.config import UsageError
from altgrad.reports.arms import arm_pages
from altgrad.runs import Failure, RunExists, RunRecord, load_runs, read_run, record
from altgrad.runs.query import values, verify
from altgrad.site import write_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)


def only(root: Path) -> RunRecord:
    """The one record under `root`, which has nothing wrong."""
    found = load_runs([root])
    assert found.problems == ()
    assert verify([root]) == (1, [], [])
    return found.records[0]


def columns(run: RunRecord) -> dict[str, list[float | None]]:
    """The history by column, None for what is not there."""
    return {name: [None if math.isnan(x) else x for x in run.history[name]] for name in run.history.columns}


def warnings(captured: pytest.CaptureFixture[str]) -> list[str]:
    """What was said on stderr, without the run's name."""
    lines = captured.readouterr().err.splitlines()
    assert all(line.startswith("warning: ") for line in lines), lines
    return [line.split(": ", 2)[2] for line in lines]


# What is logged


def test_metrics_of_a_step_may_come_in_several_calls_and_steps_in_any_order(tmp_path: Path) -> None:
    with record(tmp_path, name="hf", config={"learning_rate": 5e-5}) as run:
        run.log(100, loss=0.5)  # Trainer.log, and then Trainer.evaluate at the same step
        run.log(100, val_loss=0.6)
        run.log(50, loss=1.0)
        run.log(200, loss=0.25)
        run.log(100, loss=0.75)
        assert columns(read_run(run.path)) == {
            "step": [50, 100, 200], "loss": [1.0, 0.75, 0.25], "val_loss": [None, 0.6, None],
        }  # fmt: skip
        run.finish()
    found = only(tmp_path)
    assert found.status == "finished"
    assert columns(found) == {"step": [50, 100, 200], "loss": [1.0, 0.75, 0.25], "val_loss": [None, 0.6, None]}


@pytest.mark.parametrize("calls", [1, 2])
def test_a_kill_between_two_calls_of_a_step_loses_neither(tmp_path: Path, calls: int) -> None:
    script = (
        "import os, sys; from altgrad.runs import record\n"
        f"run = record({str(tmp_path)!r}, name='a', config={{}})\n"
        "run.log(7, loss=1.0)\n" + "run.log(7, val_loss=2.0)\n" * (calls - 1) + "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    found = only(tmp_path)
    assert found.status == "crashed"
    assert columns(found) == {"step": [7], "loss": [1.0], **({"val_loss": [2.0]} if calls == 2 else {})}


class OneElement:
    """What a tensor of a framework looks like from outside."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def item(self) -> Any:
        if len(self.values) != 1:
            raise RuntimeError("a Tensor with 2 elements cannot be converted to Scalar")
        return self.values[0]


class Hostile:
    """A value whose every method fails."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no")

    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __float__(self) -> float:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"x": True}, {"x": 1}), ({"x": "0.5"}, {"x": 0.5}), ({"x": "inf"}, {"x": math.inf}), ({"x": 3}, {"x": 3}),
        ({"x": {"a": 1, "b": {"c": 2.5}}}, {"x.a": 1, "x.b.c": 2.5}), ({"x": np.float32(0.5)}, {"x": 0.5}),
        ({"x": {"a": 1}, "x.a": 2}, {"x.a": 1, "x.a_": 2}), ({"x": OneElement(1.5)}, {"x": 1.5}),
        ({"norms/head": 1.0, "a b": 2.0}, {"norms/head": 1.0, "a b": 2.0}), ({3: 1.0}, {"3": 1.0}),
        ({"": 1.0}, {"(no name)": 1.0}),
        ({"step": 9, "run_id": 8}, {"logged_step": 9, "logged_run_id": 8}), ({"x": np.array([[2.0]])}, {"x": 2.0}),
        ({"x": 2**60}, {"x": 2.0**60}), ({"bad \ud800": 1.0}, {"bad ?": 1.0}), ({"x": np.bool_(False)}, {"x": 0}),
    ],
)  # fmt: skip
def test_numbers_of_every_kind_are_kept_and_nothing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: dict[Any, Any], kept: dict[str, float]
) -> None:
    with record(tmp_path, name="a", config={}) as run:
        run.log(0, given)
        run.finish()
    assert columns(only(tmp_path)) == {"step": [0], **{name: [value] for name, value in kept.items()}}
    assert warnings(capsys) == []


@pytest.mark.parametrize(
    ("value", "kind"),
    [("some text", "str"), ([1.0], "list"), (np.zeros(2), "ndarray"), (OneElement(1, 2), "OneElement"), (1j, "complex"),
     (10**400, "int"), (object(), "object"), (Hostile, "Hostile")],
)  # fmt: skip
def test_what_is_no_number_is_left_out_with_one_line_for_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: Any, kind: str
) -> None:
    with record(tmp_path, name="a", config={}) as run:
        for step in range(3):
            run.log(step, loss=1.0, x=Hostile() if value is Hostile else value)
        run.log(3, loss=1.0, x=2.0, none=None)
        run.finish()
    assert columns(only(tmp_path)) == {"step": [0, 1, 2, 3], "loss": [1.0] * 4, "x": [None, None, None, 2.0]}
    (line,) = warnings(capsys)
    assert line.startswith(f"metric 'x' is left out: a {kind} (")
    assert line.endswith("is no number")


def test_a_loop_that_logs_a_million_kinds_of_nonsense_is_told_so_in_few_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with record(tmp_path, name="a", config={}) as run:
        for step in range(100):
            run.log(step, {f"text {step}": "x", "loss": 1.0})
        run.finish()
    assert columns(only(tmp_path))["loss"] == [1.0] * 100
    lines = warnings(capsys)
    assert len(lines) == 21
    assert lines[-1] == "there is more to say; further warnings are not shown"


def test_steps_of_every_kind_have_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with record(tmp_path, name="a", config={}) as run:
        for step in (np.int64(0), 1.0, "2", OneElement(3)):
            run.log(step, x=1.0)
        run.log({"x": 2.0}, step=4)  # as W&B has it
        run.log({"x": 2.0})
        run.log(step=6, x=2.0)
        run.log(x=2.0)
        for step in (7.5, 8.5, None, "epoch", 2**63, math.nan):
            run.log(step, x=3.0)
        run.finish()
    found = columns(only(tmp_path))
    assert found["step"] == list(range(14))
    assert found["x"] == [1.0] * 4 + [2.0] * 4 + [3.0] * 6
    assert found["logged_step"] == [None] * 8 + [7.5, 8.5, None, None, 2.0**63, None]
    (line,) = warnings(capsys)
    assert line == "a float (7.5) is no step: rows are numbered on, and it is kept as logged_step"


def test_a_row_of_layers_of_another_shape_is_left_out_and_the_others_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (0, "a", "mlp", "weight", "amax", 1.0)
    with record(tmp_path, name="a", config={}) as run:
        run.log(0, loss=1.0)
        run.log_layers([good, (0, "a"), None, (*good[:-1], "x"), (1, *good[1:])])  # type: ignore[list-item]
        run.log_layers(None)  # type: ignore[arg-type]
        run.event("note", "x", cells={1: object}, bad=Hostile())  # type: ignore[arg-type]
        run.explain(Failure(("unknown",), 0), "report")
        run.set_wandb_url(None)
        run.sync()
        run.finish([1])  # type: ignore[arg-type]
        run.log(1, loss=1.0)
        run.finish()
    assert only(tmp_path).layers["step"].tolist() == [0, 1]
    lines = warnings(capsys)
    assert lines[0].startswith("left out, and others like it: a row of the layers table is step, layer")
    assert lines[1].startswith("log_layers: TypeError")
    assert lines[-1] == "log: the run has ended; nothing more is recorded"
    assert len(lines) <= 5


# The config


class Mode(enum.Enum):
    """An enum of a loop's own."""

    FAST = "fast"
    ODD = object()


@dataclasses.dataclass
class Nested:
    """A dataclass inside another."""

    width: int = 32
    path: Path = Path("/data/secret/place")


@dataclasses.dataclass
class Settings:
    """A loop's config as a dataclass."""

    alpha: float = 0.5
    mode: Mode = Mode.FAST
    model: Nested = dataclasses.field(default_factory=Nested)


class Model(BaseModel):
    """As pydantic has it."""

    alpha: float = 0.5
    mode: Mode = Mode.FAST


class Lazy(Mapping[str, Any]):
    """What OmegaConf's DictConfig looks like: a mapping that is no dict, with lists that are no lists."""

    def __init__(self, **values: Any) -> None:
        self.values_ = values

    def __getitem__(self, key: str) -> Any:
        return self.values_[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)


class HasItems:
    """As ml_collections has it."""

    def items(self) -> Any:
        return {"alpha": 0.5}.items()


class ToDict:
    """As the configs of transformers have it."""

    def to_dict(self) -> dict[str, Any]:
        return {"alpha": 0.5}


class Plain:
    """A config as a class of the loop's own."""

    def __init__(self) -> None:
        self.alpha = 0.5


Pair = namedtuple("Pair", "alpha beta")
LOOP: dict[str, Any] = {"alpha": 0.5}
LOOP["again"] = LOOP


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        (argparse.Namespace(alpha=0.5, sub=types.SimpleNamespace(a=1)), {"alpha": 0.5, "sub.a": 1}),
        (Settings(), {"alpha": 0.5, "mode": "fast", "model.width": 32, "model.path": "place"}),
        (Model(), {"alpha": 0.5, "mode": "fast"}),
        (Lazy(alpha=0.5, betas=range(2), sub=Lazy(a=1)), {"alpha": 0.5, "betas": (0, 1), "sub.a": 1}),
        (HasItems(), {"alpha": 0.5}), (ToDict(), {"alpha": 0.5}), (Plain(), {"alpha": 0.5}),
        (Pair(0.5, 1), {"alpha": 0.5, "beta": 1}),
        (OrderedDict(alpha=0.5), {"alpha": 0.5}), ({3: 1, None: 2, Mode.FAST: 3}, {"3": 1, "None": 2, "FAST": 3}),
        ({"steps": [{"alpha": 1}, [{"alpha": 2}]]}, {"steps": ('{"alpha": 1}', '[{"alpha": 2}]')}),
        ({"a": {"b": 1}, "a.b": 2}, {"a.b": 1, "a.b_": 2}), ({"a": {"b": 1}, "a.b": 1}, {"a.b": 1}),
        ({"when": date(2026, 1, 2), "raw": b"abc", "s": {"b", "a"}},
         {"when": "2026-01-02", "raw": "abc", "s": ("a", "b")}),
        ({"x": np.zeros((1, 2)), "big": np.zeros((50, 50))},
         {"x": ("[0, 0]",), "big": "ndarray of 50 x 50 (2,500 values)"}),
        ({"act": math.tanh, "cls": Plain, "dtype": np.float32},
         {"act": "tanh", "cls": "test_recorder.Plain", "dtype": "numpy.float32"}),
        ({"seed": "x"}, {"logged_seed": "x"}), ({"seed": -1}, {"logged_seed": -1}),
        ({"seed": 2**40}, {"logged_seed": 2**40}),
    ],
)  # fmt: skip
def test_a_config_of_every_kind_is_taken_as_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: Any, kept: dict[str, Any]
) -> None:
    with record(tmp_path, name="a", config=config) as run:
        run.log(0, loss=1.0)
        run.finish()
    found = only(tmp_path).config
    assert found.foreign == kept
    assert warnings(capsys) == []


@pytest.mark.parametrize("kind", ["object", "Hostile", "Plain", "LOOP"])
def test_what_has_no_text_of_its_own_is_recorded_by_its_kind_and_gives_one_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    config = LOOP if kind == "LOOP" else {"model": {"object": object, "Hostile": Hostile, "Plain": Plain}[kind]()}
    with record(tmp_path, name="a", config=config) as run:
        run.log(0, loss=1.0)
    assert len(warnings(capsys)) == 1
    found = only(tmp_path)
    assert "0x" not in json.dumps(found.config.foreign)
    with record(tmp_path / "again", name="a", config=config) as again:
        assert again.run_id == found.id


@pytest.mark.parametrize("config", [None, [1], "alpha=1", 3, Plain, math.tanh])
def test_what_has_no_settings_is_said_before_the_loop_begins(tmp_path: Path, config: Any) -> None:
    with pytest.raises(UsageError, match="config: give a mapping of keys and values"):
        record(tmp_path, name="a", config=config)
    assert list(tmp_path.iterdir()) == []


# Names


@pytest.mark.parametrize(
    ("name", "slug"),
    [("基线模型", r"[0-9a-f]{6}"), ("学习率 实验", r"[0-9a-f]{6}"), ("Базовая модель", r"[0-9a-f]{6}"),
     ("Modèle é", "modele-e"),
     ("GPT 2 (big)", "gpt-2-big"), ("模型 v2", r"v2-[0-9a-f]{6}"),
     ("sgd lr1e+06", "sgd-lr1e06"), ("../../etc", "etc"), ("mlp", "mlp")],
)  # fmt: skip
def test_a_name_in_any_script_is_kept_and_its_slug_begins_the_id(tmp_path: Path, name: str, slug: str) -> None:
    with record(tmp_path, name=name, config={"lr": 1}) as run:
        run.log(0, loss=1.0)
        run.finish()
    found = only(tmp_path)
    assert re.fullmatch(rf"{slug}-[0-9a-f]{{8}}", found.id)
    assert found.run.get("title") == (None if name == slug else name)
    assert found.title == (found.id if name == slug else name)
    shown = [name] if name != slug else []
    assert [values(found)[key] for key in values(found) if key == "title"] == shown


def test_two_names_that_have_one_slug_are_two_runs(tmp_path: Path) -> None:
    for name in ("基线模型", "学习率"):
        with record(tmp_path, name=name, config={"lr": 1}) as run:
            run.log(0, loss=1.0)
            run.finish()
    assert len({found.id for found in load_runs([tmp_path]).records}) == 2


def test_the_page_of_an_arm_and_the_command_show_the_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with record(tmp_path / "runs", name="基线 <b>", config={"lr": 1}) as run:
        run.log(0, loss=1.0)
        run.finish()
    write_folder(arm_pages(ExperimentDataLoader([tmp_path / "runs"])), tmp_path / "pages", site_root="../")
    (page,) = [path.read_text() for path in (tmp_path / "pages").glob("*.md") if run.run_id in path.read_text()]
    assert "基线 &#60;b&#62;" in page
    assert main(["runs", "show", run.run_id, "--runs", str(tmp_path / "runs")]) == 0
    assert "基线 <b>" in capsys.readouterr().out


# Processes


@pytest.mark.parametrize(
    ("variables", "writes"),
    [({}, True), ({"RANK": "0"}, True), ({"RANK": "1"}, False), ({"LOCAL_RANK": "2"}, False),
     ({"LOCAL_RANK": "0"}, True),
     ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False), ({"RANK": "0", "LOCAL_RANK": "0", "NODE_RANK": "0"}, True)],
)  # fmt: skip
def test_only_rank_0_writes_and_the_recorders_of_the_others_do_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    variables: dict[str, str], writes: bool,
) -> None:  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with record(tmp_path, name="ddp", config={"lr": 1}) as run:
        run.log(0, loss=1.0)
        run.log_layers([(0, "a", "mlp", "weight", "amax", 1.0)])
        run.event("note", 0)
        run.finish({"loss": 1.0})
        run.log(1, loss=1.0) if not writes else None
    assert run.path == tmp_path / run.run_id
    assert run.path.exists() == writes
    assert warnings(capsys) == []


def test_torch_distributed_has_the_word_where_it_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = iter((1, 0))
    given = {"is_available": lambda: True, "is_initialized": lambda: True, "get_rank": lambda: next(ranks)}
    monkeypatch.setitem(sys.modules, "torch.distributed", types.SimpleNamespace(**given))
    monkeypatch.setenv("RANK", "1")
    for _ in range(2):
        with record(tmp_path, name="ddp", config={"lr": 1}) as run:
            run.log(0, loss=1.0)
    assert only(tmp_path).status == "interrupted"


# A loop that is killed and starts again

PREEMPTED = """
import os, sys
from altgrad.runs import record
start, die, resume = map(int, sys.argv[2:])
with record(sys.argv[1], name="pre", config={"lr": 1}, seed=0, resume=bool(resume)) as run:
    for step in range(start, 10):
        run.log(step, loss=1 / (step + 1), attempt=start)
        if step == 2: run.log_layers([(step, "a", "mlp", "weight", "amax", 1.0)])
        if step == die: os.kill(os.getpid(), 9)
    run.finish({"loss": 0.1})
"""


def preempted(root: Path, start: int, die: int, resume: bool) -> str:
    """What an attempt says on stderr that begins at a step and is killed at one."""
    command = [sys.executable, "-c", PREEMPTED, str(root), str(start), str(die), str(int(resume))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == (-9 if die < 10 else 0), done.stderr
    return done.stderr


def test_a_killed_run_that_is_resumed_has_every_row_in_one_record(tmp_path: Path) -> None:
    assert preempted(tmp_path, 0, 5, True) == ""
    said = preempted(tmp_path, 3, 7, True)
    assert "its record is gone on with, after step 5" in said
    assert said.count("\n") == 1
    preempted(tmp_path, 8, 99, True)
    found = only(tmp_path)
    assert found.status == "finished"
    assert columns(found)["step"] == list(range(10))
    assert columns(found)["attempt"] == [0, 0, 0, 3, 3, 3, 3, 3, 8, 8]
    assert len(found.layers) == 1
    assert [(event["kind"], event["step"]) for event in found.run["events"]] == [("resumed", 5), ("resumed", 7)]
    assert found.run["seconds"] > 0
    with pytest.raises(RunExists, match="is already finished: there is nothing to resume"):
        record(tmp_path, name="pre", config={"lr": 1}, seed=0, resume=True)


def test_an_attempt_that_is_set_aside_is_said_to_be_and_where(tmp_path: Path) -> None:
    preempted(tmp_path, 0, 5, False)
    said = preempted(tmp_path, 3, 99, False)
    assert "an earlier attempt, which did not finish, is kept as pre-s0-" in said
    assert ".1.old; with resume=True it would have been gone on with" in said
    assert said.count("\n") == 1
    (found,) = load_runs([tmp_path]).records
    assert columns(found)["step"] == list(range(3, 10))


@pytest.mark.parametrize("rows", [0, 3])
def test_a_run_that_an_error_ended_is_resumed_too(tmp_path: Path, rows: int) -> None:
    def training() -> None:
        with record(tmp_path, name="a", config={}, resume=True) as run:
            for step in range(rows):
                run.log(step, loss=1.0)
            run.event("note", 7)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        training()
    with record(tmp_path, name="a", config={}, resume=True) as run:
        run.log(rows, loss=2.0)
        run.finish()
    found = only(tmp_path)
    assert columns(found)["step"] == list(range(rows + 1))
    assert [event["kind"] for event in found.run["events"]] == ["note", "resumed"]
    assert "message" not in found.run or found.run["message"] is None


# What goes wrong


def failing(number: int, times: int = 10**9) -> Callable[..., Any]:
    """A function of the system that fails so often."""
    left = [times]

    def call(*given: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(number, os.strerror(number))
        return None

    return call


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_an_error_of_the_disk_is_a_line_and_the_loop_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, number: int
) -> None:
    with record(tmp_path, name="a", config={}) as run:
        run.log(0, val_loss=1.0)
        monkeypatch.setattr(os, name, failing(number))
        for step in range(1, 5):
            run.log(step, val_loss=1.0)
        run.event("note", 2)
        run.finish({"val_loss": 1.0})
    monkeypatch.undo()
    (found,) = load_runs([tmp_path]).records
    assert found.status == "crashed"
    assert columns(found)["step"] == [0, 1, 2, 3, 4]
    assert [problem.reason for problem in verify([tmp_path]).problems] == []
    lines = warnings(capsys)
    assert lines
    assert all("Traceback" not in line for line in lines)
    assert any(os.strerror(number) in line for line in lines)


def test_a_disk_that_fills_up_between_two_tables_leaves_the_rows_and_verify_finds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace = os.replace

    def full(source: Any, target: Path) -> None:
        if target.name == "layers.parquet":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with record(tmp_path, name="a", config={}) as run:
        run.log(0, loss=1.0)
        monkeypatch.setattr(os, "replace", full)
        run.finish({"loss": 1.0})
    assert sorted(path.name for path in run.path.iterdir()) == ["history.jsonl", "layers.jsonl", "lock", "run.json"]
    found = only(tmp_path)
    assert (found.status, columns(found)["step"]) == ("finished", [0])
    assert warnings(capsys) == ["the end: OSError: No space left on device"]


def test_rows_that_were_lost_are_counted_in_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with record(tmp_path, name="a", config={}) as run:
        run.log(0, loss=1.0)
        with monkeypatch.context() as broken:
            broken.setattr(os, "write", failing(errno.ENOSPC))
            for step in range(1, 4):
                run.log(step, loss=1.0)
        run.log(4, loss=1.0)
        run.finish()
    found = only(tmp_path)
    assert found.status == "finished"
    assert columns(found)["step"] == [0, 4]
    assert found.run["events"] == [{"kind": "rows_lost", "step": 4, "rows": 3}]
    assert warnings(capsys) == [
        "a row is lost: OSError: No space left on device",
        "3 rows of the history were lost",
    ]


def test_a_part_of_a_row_that_cannot_be_cut_off_is_never_joined_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def short(file: int, data: Any) -> int:
        if len(data) > 4:
            return write(file, bytes(data)[:4])
        raise OSError(errno.ENOSPC, "full")

    run = record(tmp_path, name="a", config={})
    run.log(0, loss=1.0)
    with monkeypatch.context() as broken:
        broken.setattr(os, "ftruncate", failing(errno.EIO))
        with monkeypatch.context() as full:
            full.setattr(os, "write", short)
            run.log(1, loss=1.0)
        run.log(2, loss=1.0)  # there is room again, but the part is still there
        assert columns(read_run(run.path))["step"] == [0]
        assert (run.path / "history.jsonl").read_bytes().endswith(b'\n{"step":1,"loss":1.0')
    run.log(3, loss=1.0)
    run.finish()
    found = only(tmp_path)
    assert columns(found)["step"] == [0, 3]
    assert found.run["events"][0]["rows"] == 2


def test_a_folder_without_locks_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))
    with pytest.raises(
        UsageError, match=r"no file can be locked there \(No locks available\); give a folder on"
    ) as error:
        record(tmp_path, name="a", config={})
    assert "--out" not in str(error.value)


def test_a_folder_that_cannot_be_written_is_said_before_the_loop_begins(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file: cannot be written \(.*\); give a folder you may write to") as error:
        record(tmp_path / "file", name="a", config={})
    assert "--out" not in str(error.value)


def test_the_loops_own_errors_go_on_and_ours_do_not_hide_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def training() -> None:
        with record(tmp_path, name="a", config={}) as run:
            run.log(0, loss=1.0)
            monkeypatch.setattr(os, "replace", failing(errno.ENOSPC))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        training()
    monkeypatch.undo()
    assert columns(only(tmp_path))["step"] == [0]


def test_without_fcntl_records_are_locked_as_windows_has_it(tmp_path: Path) -> None:
    script = f"""
import errno, sys, types
import pandas, pyarrow.parquet, subprocess
sys.modules["fcntl"] = None
held = {{}}
def locking(descriptor, mode, size):
    import os
    place = os.fstat(descriptor).st_ino
    if place in held and held[place] != descriptor and alive(held[place]): raise OSError(errno.EACCES, "busy")
    held[place] = descriptor
def alive(descriptor):
    import os
    try: return os.fstat(descriptor).st_ino in held
    except OSError: return False
sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
from altgrad.runs import RunExists, load_runs, record
with record({str(tmp_path)!r}, name="a", config={{}}) as run:
    run.log(0, loss=1.0)
    assert [found.status for found in load_runs([{str(tmp_path)!r}]).records] == ["running"]
    try:
        record({str(tmp_path)!r}, name="a", config={{}})
    except RunExists as error:
        print(error)
    run.finish()
assert [found.status for found in load_runs([{str(tmp_path)!r}]).records] == ["finished"]
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "is being written by another process" in done.stdout


# What it costs


def test_a_row_costs_little_more_than_its_text_and_its_writing(tmp_path: Path) -> None:
    names = [f"metric_{number}" for number in range(60)]
    rows = [
        dict(zip(names, map(float, np.random.default_rng(seed).normal(size=60)), strict=True)) for seed in range(20)
    ]

    def seconds(call: Callable[[int, dict[str, float]], Any]) -> float:
        begun = time.process_time()
        for step in range(1000):
            call(step, rows[step % 20])
        return time.process_time() - begun

    with record(tmp_path, name="a", config={}) as run, open(tmp_path / "floor", "ab", buffering=0) as file:
        floor = lambda step, row: os.write(file.fileno(), to_json({"step": step, **row}) + b"\n")  # noqa: E731
        pairs = [(seconds(lambda step, row: run.log(step, **row)), seconds(floor)) for _ in range(7)]
        run.finish()
    ours, least = (min(times) for times in zip(*pairs, strict=True))
    assert ours < 2.5 * least  # the figure is that of make bench-runs
