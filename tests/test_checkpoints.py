"""A run that is interrupted anywhere and resumed is the uninterrupted one, bit for bit; what cannot be is one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from altgrad.config import ExperimentConfig, UsageError, parse_config  # noqa: E402
from altgrad.runs import RunExists, RunWriter, load_runs, read_run, sources_fingerprint  # noqa: E402
from altgrad.training import Checkpoints, Corpus, checkpoint, loop, train  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SMALL: dict[str, Any] = {
    "max_steps": 12,
    "batch_size": 2,
    "warmup_steps": 3,
    "eval_every": 5,
    "eval_batches": 1,
    "layers_every": 6,
    "checkpoint": {"every": 4},
    "model": {"layers": 1, "dim": 8, "heads": 1, "context": 8},
}
E4M3 = {"quantize": dict.fromkeys(("weight", "activation", "grad_output"), "e4m3")}
FP32 = {"quantize": dict.fromkeys(("weight", "activation", "grad_output"), "fp32")}
ARMS: dict[str, dict[str, Any]] = {
    "fp32": FP32,
    "e4m3": E4M3,
    "update": {**E4M3, "optimizer": {"step_rule": "manifold", "precondition": "update", "learning_rate": 0.5}},
    "shuffled": {
        **E4M3,
        "optimizer": {
            "step_rule": "manifold",
            "precondition": "update",
            "stiffness": "shuffled",
            "learning_rate": 0.5,
        },
    },
    "grid-stochastic": {**E4M3, "optimizer": {"storage": "grid", "rounding": "stochastic", "learning_rate": 0.1}},
    "grid-error-feedback": {**E4M3, "optimizer": {"storage": "grid", "rounding": "error_feedback"}},
    "muon": {**E4M3, "optimizer": {"step_rule": "muon"}},
    "code": {**E4M3, "optimizer": {"step_rule": "code", "storage": "grid", "rounding": "stochastic"}},
    "relative": {**E4M3, "optimizer": {"relative": True, "learning_rate": 0.05}},
    "stochastic-gradients": {"quantize": {**E4M3["quantize"], "rounding": {"grad_output": "stochastic"}}},
    "stochastic-weights": {**E4M3, "optimizer": {"rounding": "stochastic"}, "accumulate": 2},
    "delayed": {**E4M3, "scaling": {"kind": "delayed", "history": 3}, "stability": {"clip": "range_aware"}},
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def text(seed: int = 0) -> Corpus:
    noise = np.random.default_rng(seed).integers(0, 96, 4000).astype(np.uint8)
    return Corpus(noise, noise[:500], {"name": "noise", "sha256": f"{seed}" * 64})


def config(**given: Any) -> ExperimentConfig:
    return parse_config({**SMALL, **given}, source="test")


def run(out: Path, *, resume: bool = False, corpus: Corpus | None = None, **given: Any) -> loop.Result:
    return train(config(**given), out, corpus=corpus or text(), progress=False, resume=resume)


def interrupted(out: Path, monkeypatch: pytest.MonkeyPatch, step: int, *, resume: bool = False, **given: Any) -> Path:
    """A run that Ctrl-C ends when `step` steps are done; with checkpoints it leaves one there."""
    original = loop._Run._step_and_its_row

    def then_stop(self: loop._Run):  # type: ignore[no-untyped-def]
        failure = original(self)
        if self.at.step >= step:
            signal.raise_signal(signal.SIGINT)
        return failure

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_step_and_its_row", then_stop)
        with pytest.raises(KeyboardInterrupt):
            run(out, resume=resume, **given)
    (folder,) = (path for path in out.iterdir() if not path.name.endswith(".old"))
    assert read_run(folder).status == "interrupted"
    return folder


def killed(out: Path, monkeypatch: pytest.MonkeyPatch, step: int, **given: Any) -> Path:
    """What a kill in the middle of step `step` leaves: no last checkpoint, open tables, a record that says running."""
    original = loop._Run._note_moved_scales

    class Killed(BaseException):
        pass

    def die(self: loop._Run) -> None:
        original(self)
        if self.at.step == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_note_moved_scales", die)
        patch.setattr(RunWriter, "_close", lambda self, *given: None)
        with pytest.raises(Killed):
            run(out, **given)
    (folder,) = out.iterdir()
    assert read_run(folder).status == "crashed"
    return folder


def tables(folder: Path) -> list[Any]:
    """Every column of the history and the per-layer table but the seconds."""
    record = read_run(folder)
    return [record.history.drop(columns="seconds"), record.layers]


def tensors(folder: Path, step: int = 12) -> bytes:
    return (folder / "checkpoints" / f"step-{step}" / checkpoint.TENSORS).read_bytes()


def events(folder: Path) -> list[dict[str, Any]]:
    return [event for event in read_run(folder).run["events"] if event["kind"] != "resumed"]


def assert_same_run(first: Path, second: Path) -> None:
    for one, other in zip(tables(first), tables(second), strict=True):
        assert one.equals(other)
    assert tensors(first) == tensors(second)
    assert events(first) == events(second)
    assert first.name == second.name
    one, other = (read_run(path).run["summary"] for path in (first, second))
    assert {**one, "tokens_per_second": 0} == {**other, "tokens_per_second": 0}


ONCE = ("shuffled", "relative", "stochastic-weights")  # interrupted at one point only: their chain is another arm's


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm not in ONCE])
def test_a_run_interrupted_after_every_step_is_the_uninterrupted_one(
    arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", **ARMS[arm])
    for step in range(1, 13):
        folder = interrupted(tmp_path / "parts", monkeypatch, step, resume=step > 1, **ARMS[arm])
    resumed = run(tmp_path / "parts", resume=True, **ARMS[arm])
    assert resumed.path == folder
    assert resumed.status == "finished"
    assert_same_run(whole.path, resumed.path)
    kinds = [event["kind"] for event in read_run(folder).run["events"]]
    assert kinds.count("resumed") == 12


@pytest.mark.parametrize(
    ("arm", "step"), [("fp32", 5), ("code", 8), ("delayed", 9), ("e4m3", 12), *((arm, 9) for arm in ONCE)]
)
def test_a_run_killed_in_the_middle_of_a_step_goes_on_from_its_last_checkpoint(
    arm: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", **ARMS[arm])
    folder = killed(tmp_path / "parts", monkeypatch, step, **ARMS[arm])
    with open(folder / "history.jsonl", "ab") as file:
        file.write(b'{"step": 13, "lo')  # a row cut short
    resumed = run(tmp_path / "parts", resume=True, **ARMS[arm])
    assert_same_run(whole.path, resumed.path)
    assert {"kind": "resumed", "step": (step - 1) // 4 * 4} in read_run(folder).run["events"]


def test_a_run_s_histories_count_steps_and_not_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {**E4M3, "scaling": {"kind": "delayed", "history": 8}, "accumulate": 2}
    folder = interrupted(tmp_path, monkeypatch, 3, **given)
    state = checkpoint.Checkpoints(folder, config(**given), text().fingerprint["sha256"]).newest(print)
    histories = {key: history for key, history in state["model"].items() if ".delayed." in key}
    assert len(histories) == 3 * 5 + 1
    assert all(int(torch.count_nonzero(history)) == 3 for history in histories.values())


def test_a_checkpoint_with_the_delayed_scales_beside_the_model_is_still_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they were written before the histories were buffers: for every operand, an embedding's too."""
    whole = run(tmp_path / "whole", **ARMS["delayed"])
    folder = interrupted(tmp_path / "parts", monkeypatch, 6, **ARMS["delayed"])
    checkpoints = checkpoint.Checkpoints(folder, config(**ARMS["delayed"]), text().fingerprint["sha256"])
    state = checkpoints.newest(print)
    histories = {key: state["model"].pop(key) for key in list(state["model"]) if ".delayed." in key}
    assert len(histories) == 3 * 5 + 1
    state["delayed"] = {"embedding": {"activation": {"history": torch.zeros(3)}}}
    for key, history in histories.items():
        layer, operand = key.removesuffix(".history").split(".delayed.")
        state["delayed"].setdefault(layer, {})[operand] = {"history": history}
    checkpoints.save(state["step"], state)
    resumed = run(tmp_path / "parts", resume=True, **ARMS["delayed"])
    assert_same_run(whole.path, resumed.path)


@pytest.mark.parametrize("arm", ["e4m3", "grid-stochastic"])
def test_checkpoints_change_no_number(arm: str, tmp_path: Path) -> None:
    with_them = run(tmp_path / "with", **ARMS[arm])
    without = run(tmp_path / "without", **{**ARMS[arm], "checkpoint": {"every": 0}})
    assert with_them.run_id == without.run_id
    for one, other in zip(tables(with_them.path), tables(without.path), strict=True):
        assert one.equals(other)
    assert not (without.path / "checkpoints").exists()


CHILD = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
import torch
torch.set_num_threads(1)
from test_checkpoints import ARMS, run
run(Path(sys.argv[1]), resume=True, **ARMS["grid-stochastic"], **{more!r})
"""
LONG = {"max_steps": 150, "layers_every": 40, "eval_every": 50, "checkpoint": {"every": 7}}


def child(out: Path, more: dict[str, Any], **environment: str) -> subprocess.Popen[str]:
    script = CHILD.format(root=str(ROOT), tests=str(ROOT / "tests"), more=more)
    return subprocess.Popen([sys.executable, "-c", script, str(out)], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_and_resumed_in_another_gives_the_same_run(
    tmp_path: Path, sent: signal.Signals
) -> None:
    process = child(tmp_path / "parts", LONG)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("parts/*/checkpoints/step-2*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(sent)
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == (-signal.SIGKILL if sent == signal.SIGKILL else 128 + signal.SIGTERM)
    (folder,) = (tmp_path / "parts").iterdir()
    assert read_run(folder).status == ("crashed" if sent == signal.SIGKILL else "interrupted")
    if sent == signal.SIGTERM:
        assert "stopping after this step" in errors
        newest = json.loads((Checkpoints(folder, config(), "").steps()[0] / checkpoint.STATE).read_text())
        assert dict(newest["content"]["state"]["map"])["step"] == read_run(folder).history["step"].max()
    resumed = run(tmp_path / "parts", resume=True, **ARMS["grid-stochastic"], **LONG)
    whole = run(tmp_path / "whole", **ARMS["grid-stochastic"], **LONG)
    for one, other in zip(tables(whole.path), tables(resumed.path), strict=True):
        assert one.equals(other)
    assert tensors(whole.path, 150) == tensors(resumed.path, 150)


def test_the_newest_the_best_and_the_anomaly_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: loop._Run, _original=loop._Run._train_step):  # type: ignore[no-untyped-def]
        if self.at.step == 6:
            with monkeypatch.context() as patch:
                patch.setattr(self, "eager", lambda token, target: 0 * self.loss(token, target) / 0)
                return _original(self)
        return _original(self)

    monkeypatch.setattr(loop._Run, "_train_step", broken)
    result = run(tmp_path, layers_every=1, eval_every=3, checkpoint={"every": 2, "keep": 3})
    folder = result.path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["anomaly", "best", "step-10", "step-12", "step-8"]
    checkpoints = Checkpoints(result.path, config(layers_every=1, eval_every=3), "0" * 64)
    anomaly, best = checkpoints.load(folder / "anomaly"), checkpoints.load(folder / "best")
    assert anomaly["step"] == 6
    assert anomaly["progress"]["first_bad"] == (6, "loss", "forward")
    history = read_run(result.path).history
    evaluated = history[history["val_loss"].notna()]
    assert best["step"] == evaluated.loc[evaluated["val_loss"].idxmin(), "step"]
    assert best["progress"]["best_loss"] == evaluated["val_loss"].min()
    batches = loop.Batches(text(), config(), torch.device("cpu"))  # the bad batch can be had again
    for _ in range(5):
        batches.next()
    assert anomaly["batches_before"] == batches.state


def truncate(folder: Path) -> None:
    path = folder / checkpoint.TENSORS
    path.write_bytes(path.read_bytes()[:-10])


def flip(folder: Path) -> None:
    path = folder / checkpoint.TENSORS
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)


def lose(folder: Path) -> None:
    (folder / checkpoint.TENSORS).unlink()


def edit(folder: Path) -> None:
    path = folder / checkpoint.STATE
    path.write_text(path.read_text().replace('"step", 8', '"step", 9'))


def cut_state(folder: Path) -> None:
    path = folder / checkpoint.STATE
    path.write_text(path.read_text()[:100])


def no_json(folder: Path) -> None:
    (folder / checkpoint.STATE).write_text("[]")


@pytest.mark.parametrize("damage", [truncate, flip, lose, edit, cut_state, no_json])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    damage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = killed(tmp_path / "parts", monkeypatch, 10, eval_every=50)
    damage(folder / "checkpoints" / "step-8")
    capsys.readouterr()
    resumed = run(tmp_path / "parts", resume=True, eval_every=50)
    notice = capsys.readouterr().err
    assert notice.count("\n") == 1
    assert f"{folder.name}/checkpoints/step-8/" in notice
    assert str(tmp_path) not in notice, "the run's name and the file are enough"
    assert "going on from step-4, step 4" in notice
    assert_same_run(run(tmp_path / "whole", eval_every=50).path, resumed.path)


def test_where_no_checkpoint_is_intact_the_record_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = interrupted(tmp_path, monkeypatch, 5)
    for path in (folder / "checkpoints").iterdir():
        truncate(path)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(UsageError, match=r"step-5/tensors\.safetensors.*run again without --resume") as caught:
        run(tmp_path, resume=True)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert run(tmp_path).status == "finished"  # the remedy


@pytest.mark.parametrize("change", ["config", "data", "version"])
def test_a_checkpoint_of_another_run_is_refused(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = interrupted(tmp_path / "mine", monkeypatch, 5)
    shutil.rmtree(folder / "checkpoints")
    other = {"config": {"seed": 1}, "data": {"corpus": text(1)}, "version": {}}[change]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "VERSION", checkpoint.VERSION + (change == "version"))
        theirs = interrupted(tmp_path / "theirs", monkeypatch, 5, **other)
    shutil.copytree(theirs / "checkpoints", folder / "checkpoints")
    said = {"config": r"another config \(seed\)", "data": "other data", "version": f"version {checkpoint.VERSION + 1}"}[
        change
    ]
    with pytest.raises(UsageError, match=said):
        run(tmp_path / "mine", resume=True)


def test_nothing_to_resume_starts_from_the_beginning_with_a_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, resume=True).status == "finished"
    notice = capsys.readouterr().err
    assert "there is no record to resume" in notice
    assert notice.count("\n") == 1
    with pytest.raises(RunExists, match="already finished: there is nothing to resume"):
        run(tmp_path, resume=True)
    killed(tmp_path / "early", monkeypatch, 2)
    assert run(tmp_path / "early", resume=True).status == "finished"
    assert "has no checkpoint" in capsys.readouterr().err
    assert len(list((tmp_path / "early").glob("*.old"))) == 1


def test_a_failed_run_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExperimentConfig, "diverged", 0.0)
    failing = {"nan_patience": 2, "warmup_steps": 0, "checkpoint": {"every": 1}}
    assert run(tmp_path, **failing).status == "failed"
    with pytest.raises(RunExists, match="would fail again"):
        run(tmp_path, resume=True, **failing)


def test_a_run_of_other_code_is_resumed_with_a_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "code_fingerprint", lambda of: "0" * 12)
        folder = interrupted(tmp_path, monkeypatch, 5)
    run(tmp_path, resume=True)
    assert "written by other code" in capsys.readouterr().err
    assert read_run(folder).status == "finished"


@pytest.mark.parametrize(("name", "told"), [("reports/home.py", False), ("training/loop.py", True)])
def test_an_edit_of_a_report_is_no_other_code_for_a_run(
    edit: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    told: bool,
) -> None:
    folder = interrupted(tmp_path / "runs", monkeypatch, 5)
    edit(name)
    run(tmp_path / "runs", resume=True)
    assert ("written by other code" in capsys.readouterr().err) == told
    (resumed,) = (event for event in read_run(folder).run["events"] if event["kind"] == "resumed")
    assert ("code" in resumed) == told


def test_a_save_that_is_killed_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, config(), "0" * 64)
    checkpoints.save_as("best", {"step": 1})
    for cut in ("mkdir", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, cut, lambda *_given, **_more: (_ for _ in ()).throw(KeyboardInterrupt))
            patch.setattr(Path, "exists", lambda self: True)
            patch.setattr(checkpoint.shutil, "rmtree", lambda *given, **more: None)  # a kill cleans nothing up
            with pytest.raises(KeyboardInterrupt):
                checkpoints.save_as("best", {"step": 2})
        assert checkpoints.newest(print)["step"] == 1
    (checkpoints.folder / "best").rename(checkpoints.folder / ".best.old")  # killed between the two renames
    assert checkpoints.newest(print)["step"] == 1
    assert [path.name for path in checkpoints.folder.iterdir()] == ["best"]


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, config(), "0" * 64)
    state = {
        "step": 1,
        "big": 2**100,
        "floats": [0.1, float("inf"), -float("inf"), 1e-310],
        "tuple": (1, None, "x", True),
        "nested": {0: {"a": torch.tensor(1.5), "b": torch.arange(3, dtype=torch.int8)}, "half": torch.ones(2).half()},
        "views": (base := torch.arange(6.0).view(2, 3), base.t()),
    }
    checkpoints.save(1, state)
    found = checkpoints.newest(print)
    assert found["nested"][0]["a"].shape == ()
    assert found["nested"][0]["b"].dtype == torch.int8
    assert torch.equal(found["views"][1], base.t())
    assert torch.equal(found["nested"]["half"], state["nested"]["half"])
    plain = [key for key in state if key not in ("nested", "views")]
    assert {key: found[key] for key in plain} == {key: state[key] for key in plain}
    with pytest.raises(TypeError, match="cannot hold odd"):
        checkpoints.save(2, {"step": 2, "odd": object()})
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-1"]


def no_room(*_given: Any, **_more: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def stale(*_given: Any) -> None:
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


@pytest.mark.parametrize("where", ["checkpoint", "history", "layers", "parquet", "event", "fsync", "everything"])
def test_a_full_disk_is_one_line_and_leaves_a_record_that_can_be_resumed(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from altgrad.runs import tables, writer

    def fill_up(patch: pytest.MonkeyPatch) -> None:
        if where in ("history", "layers", "everything"):
            patch.setattr(writer.RunWriter, "_write_rows", no_room)
        if where == "fsync":
            patch.setattr(os, "fsync", stale)
        if where in ("parquet", "everything"):
            patch.setattr(tables.pq, "write_table", no_room)
        if where in ("event", "everything"):
            patch.setattr(writer, "write_json", no_room)
        if where in ("checkpoint", "everything"):
            patch.setattr(checkpoint, "_write", no_room)

    original = loop._Run._train_step
    with monkeypatch.context() as patch:

        def late(self: loop._Run):  # type: ignore[no-untyped-def]
            if self.at.step == 7:
                fill_up(patch)
            return original(self)

        patch.setattr(loop._Run, "_train_step", late)
        with pytest.raises(UsageError, match=r"No space left on device|Stale file handle") as caught:
            run(tmp_path / "parts", stability={"patience": 1} if where == "event" else {}, eval_every=2)
    assert "\n" not in str(caught.value)
    assert "--resume" in str(caught.value)
    (folder,) = (tmp_path / "parts").iterdir()
    record = read_run(folder)
    assert record.status == "crashed"
    assert len(record.history) >= 6
    assert not list(folder.glob("**/*.tmp"))
    if where != "event":
        run(tmp_path / "parts", resume=True, eval_every=2)
        assert_same_run(run(tmp_path / "whole", eval_every=2).path, folder)


FULL = """
import resource, sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from altgrad.cli import guarded
from test_checkpoints import FP32, run
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
def command():
    run(Path(sys.argv[1]), **FP32, checkpoint={checkpoint!r}, max_steps=5000)
    return 0
sys.exit(guarded(command))
"""


@pytest.mark.parametrize(("size", "every"), [(30_000, 0), (30_000, 3)], ids=["history", "checkpoint"])
def test_files_that_may_not_grow_end_a_real_process_with_one_line(tmp_path: Path, size: int, every: int) -> None:
    script = FULL.format(root=str(ROOT), tests=str(ROOT / "tests"), size=size, checkpoint={"every": every})
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: --out ")
    assert done.stderr.count("\n") == 1
    assert "cannot be written any more" in done.stderr
    (folder,) = tmp_path.iterdir()
    record = read_run(folder)
    assert record.status == "crashed"
    assert record.history["step"].tolist() == list(range(1, len(record.history) + 1))


def test_readers_pass_over_checkpoints(tmp_path: Path) -> None:
    folder = run(tmp_path).path
    before = sources_fingerprint([tmp_path])
    assert len(load_runs([tmp_path]).records) == 1
    shutil.rmtree(folder / "checkpoints")
    assert sources_fingerprint([tmp_path]) == before


def test_what_a_checkpoint_holds_is_never_unpickled() -> None:
    for path in (ROOT / "altgrad").rglob("*.py"):
        source = path.read_text()
        assert "torch.load" not in source, path.name
        assert "import pickle" not in source, path.name


def _replace(key: str, value: Any) -> Any:
    def change(content: dict[str, Any]) -> None:
        content["state"]["map"] = [[name, value if name == key else held] for name, held in content["state"]["map"]]

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("identity"),
        lambda content: content.update(state=[1]),
        lambda content: content.update(state={"tensor": "../../etc/passwd"}),
        _replace("step", 10**40),
        _replace("step", -5),
        _replace("seconds", "x"),
        _replace("model", {"map": []}),
        _replace("batches", 3),
        _replace("optimizer", {"map": [["state", {"map": []}], ["param_groups", []]]}),
        _replace("progress", {"map": [["step", 8], ["unknown", 1]]}),
    ],
)
def test_a_checkpoint_made_up_with_a_right_digest_is_one_line(
    change: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = interrupted(tmp_path, monkeypatch, 9)
    for path in (folder / "checkpoints").glob("*/state.json"):
        document = json.loads(path.read_text())
        change(document["content"])
        path.write_text(json.dumps(document | {"sha256": checkpoint.digest(document["content"])}))
    with pytest.raises(UsageError, match="without --resume") as error:
        run(tmp_path, resume=True)
    assert "\n" not in str(error.value)
