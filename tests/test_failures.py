"""What breaks in a run is named with tensor, phase and step; a run that ends badly says why, however it ends."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from altgrad.analysis import ExperimentDataLoader, FailureAnalyzer  # noqa: E402
from altgrad.cli import main  # noqa: E402
from altgrad.config import ExperimentConfig, load_config, parse_config  # noqa: E402
from altgrad.models import GPT  # noqa: E402
from altgrad.runs import Alarm, Failure, RunRecord, read_run  # noqa: E402
from altgrad.runs import writer as run_writer  # noqa: E402
from altgrad.runs.diagnosis import SYMPTOMS, diagnose, warnings_of  # noqa: E402
from altgrad.runs.failure_report import failure_report  # noqa: E402
from altgrad.telemetry import Watch  # noqa: E402
from altgrad.telemetry.rank import COLLAPSED  # noqa: E402
from altgrad.telemetry.watch import JUMP, WINDOW  # noqa: E402
from altgrad.training import Corpus, data, loop, train  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SMALL: dict[str, Any] = {
    "max_steps": 12,
    "batch_size": 2,
    "warmup_steps": 3,
    "eval_every": 5,
    "eval_batches": 1,
    "layers_every": 4,
    "nan_patience": 3,
    "model": {"layers": 1, "dim": 16, "heads": 2, "context": 16},
}
FP32: dict[str, Any] = {}
E4M3 = {"quantize": dict.fromkeys(("weight", "activation", "grad_output"), "e4m3")}
FORMATS = pytest.mark.parametrize("given", [FP32, E4M3], ids=["fp32", "e4m3"])
UP, DOWN, QKV = "blocks.0.mlp.up.weight", "blocks.0.mlp.down.weight", "blocks.0.attention.qkv.weight"
PLANTED, ENDED = 5, 8


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def words() -> Corpus:
    """A text with something to learn: words in random order."""
    random = np.random.default_rng(0)
    known = [data.tokens(word) for word in (b"permission ", b"is hereby ", b"granted\n", b"free of charge ")]
    text = np.concatenate([known[index] for index in random.integers(0, 4, 3000)])
    return Corpus(text[:20_000], text[20_000:24_000], {"name": "words", "sha256": "0" * 64})


def config(**given: Any) -> ExperimentConfig:
    return parse_config({**SMALL, **given}, source="test")


Fault = Callable[[loop._Run], None]


def scale(run: loop._Run) -> None:
    with torch.no_grad():
        run.parameters[UP].mul_(2.0**20)


def zero(run: loop._Run) -> None:
    with torch.no_grad():
        run.parameters[QKV].zero_()


def _infinite(grad: torch.Tensor) -> torch.Tensor:
    grad = grad.clone()
    grad[1, 2] = math.inf
    return grad


def lasting_infinity(run: loop._Run) -> None:
    run.parameters[DOWN].register_hook(_infinite)


def passing_infinity(run: loop._Run) -> None:
    def once(grad: torch.Tensor) -> torch.Tensor:
        handle.remove()
        return _infinite(grad)

    handle = run.parameters[DOWN].register_hook(once)


def sigterm(run: loop._Run) -> None:
    signal.raise_signal(signal.SIGTERM)


def ctrl_c(run: loop._Run) -> None:
    signal.raise_signal(signal.SIGINT)


def broken_optimizer(run: loop._Run) -> None:
    def step() -> None:
        raise RuntimeError("no more memory in /srv/data/weights.bin")

    run.optimizer.step = step  # type: ignore[method-assign]


def run(
    out: Path, faults: dict[int, Fault] | None = None, *, resume: bool = False, **given: Any
) -> tuple[RunRecord, str | None]:
    """Train with the faults planted before their steps; the record, and the report that lies beside it."""
    original = loop._Run._train_step

    def with_faults(self: loop._Run) -> dict[str, float]:
        if self.at.step in (faults or {}):
            faults[self.at.step](self)  # type: ignore[index]
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "_train_step", with_faults)
        try:
            train(config(**given), out, corpus=words(), progress=False, resume=resume)
        except (KeyboardInterrupt, SystemExit, RuntimeError):
            assert set(faults or {}) & {ENDED, ENDED + 1}, "only what was planted ends a run"
    (folder,) = (path for path in out.iterdir() if not path.name.endswith(".old"))
    report = folder / "failure.md"
    return read_run(folder), report.read_text() if report.exists() else None


def recorded(record: RunRecord) -> Failure:
    return Failure(**record.run["failure"])


def place(failure: Failure) -> tuple[int, str | None, str | None]:
    return failure.step, failure.tensor, failure.phase


def warned(record: RunRecord) -> list[tuple[int, str, str, str]]:
    return [(step, alarm.what, alarm.tensor, alarm.phase) for step, alarm in warnings_of(record)]


def breaks(record: RunRecord) -> list[tuple[int, str, str, str]]:
    return [each for each in warned(record) if each[1] in ("jump", "zeroed", "nonfinite")]


def assert_report_agrees(record: RunRecord, report: str | None) -> None:
    """The report beside the record says what its JSON says, and is the one that a reader makes."""
    assert report is not None
    failure = recorded(record)
    for part in (*failure.kinds, failure.tensor or "No tensor can be named", failure.phase or "", *failure.advice):
        assert part in report
    assert f"| First bad step | {failure.step} |" in report
    assert failure_report(record).partition("## Warnings")[0] == report.partition("## Warnings")[0]
    assert report.startswith("# ")
    assert failure.advice
    assert "experiments/run_experiment.py" in report


@FORMATS
def test_a_layer_that_is_scaled_between_two_steps_is_named_at_that_step(tmp_path: Path, given: dict) -> None:
    record, report = run(tmp_path, {PLANTED: scale, ENDED: sigterm}, **given)
    assert breaks(record)[0] == (PLANTED, "jump", UP, "forward")
    assert warnings_of(record)[0][1].value == pytest.approx(2.0**20)
    failure = recorded(record)
    assert place(failure) == (PLANTED, UP, "forward")
    assert failure.kinds[0] == "unknown"
    assert failure.message == "stopped by SIGTERM"
    assert "between two steps, not by the optimizer: 1.05e+06 times" in failure.cause
    assert_report_agrees(record, report)


@FORMATS
def test_a_layer_that_is_zeroed_between_two_steps_is_named_at_that_step(tmp_path: Path, given: dict) -> None:
    record, report = run(tmp_path, {PLANTED: zero, ENDED: broken_optimizer}, **given)
    assert breaks(record) == [(PLANTED, "zeroed", QKV, "forward")], "its next steps are no jumps"
    failure = recorded(record)
    assert place(failure) == (PLANTED, QKV, "forward")
    assert record.status == "crashed"
    assert failure.message == "ended by an exception: RuntimeError: no more memory in weights.bin"
    assert_report_agrees(record, report)


@FORMATS
def test_an_infinity_in_one_gradient_ends_the_run_under_its_name(tmp_path: Path, given: dict) -> None:
    record, report = run(tmp_path, {PLANTED: lasting_infinity}, **given)
    assert record.status == "failed"
    failure = recorded(record)
    assert failure.kinds[:2] == ("nan_loss", "early_stop")
    assert place(failure) == (PLANTED, f"{DOWN}.grad", "backward")
    assert breaks(record) == [(PLANTED, "nonfinite", f"{DOWN}.grad", "backward")]
    summary = record.run["summary"]
    assert [summary[f"nonfinite_{phase}"] for phase in ("forward", "backward", "optimizer")] == [0, 3, 0]
    assert summary["nonfinite_steps"] == 3
    looked = record.layers.loc[record.layers["operand"] == "grad_output", "step"]
    assert looked.max() == PLANTED, "the operands of the first bad step are in the table"
    assert {row["step"] for row in failure.diagnostics if row["operand"] == "grad_output"} == {PLANTED}
    of_formats = [line for line in failure.advice if "quantize" in line or "shift_to" in line]
    assert bool(of_formats) == bool(given), "advice on formats is for runs that have some"
    assert_report_agrees(record, report)


@pytest.mark.parametrize("step", [1, 4, 11, 12], ids=["first", "look", "before the last", "last"])
@pytest.mark.parametrize(("fault", "what", "tensor"), [(scale, "jump", UP), (zero, "zeroed", QKV)])
def test_a_weight_that_is_changed_is_named_at_whatever_step(
    tmp_path: Path, step: int, fault: Fault, what: str, tensor: str
) -> None:
    record, _ = run(tmp_path, {step: fault}, **E4M3)
    assert (step, what, tensor, "forward") in breaks(record)
    assert all(at >= step for at, *_ in breaks(record))
    assert f"| {step} | {what} | {tensor} | forward |" in failure_report(record)


@pytest.mark.parametrize("step", [1, 4, 11], ids=["first", "look", "before the last"])
def test_an_infinity_in_a_gradient_is_named_at_whatever_step(tmp_path: Path, step: int) -> None:
    failure = recorded(run(tmp_path, {step: lasting_infinity}, **E4M3)[0])
    assert place(failure) == (step, f"{DOWN}.grad", "backward")


def test_a_fault_that_a_wider_format_does_not_heal_is_named_at_its_first_step(tmp_path: Path) -> None:
    shift = {"stability": {"shift_to": "bf16"}}
    record, report = run(tmp_path, {PLANTED: lasting_infinity}, **E4M3, **shift)
    assert "shift" in [event["kind"] for event in record.run["events"]]
    assert place(recorded(record)) == (PLANTED, f"{DOWN}.grad", "backward"), "and not where the shift was"
    assert_report_agrees(record, report)


def test_an_infinite_activation_that_saturation_hides_is_a_warning_of_the_next_look(tmp_path: Path) -> None:
    def plant(run: loop._Run) -> None:
        def spoil(module: Any, given: tuple[torch.Tensor]) -> torch.Tensor:
            return given[0].index_fill(-1, torch.tensor([3]), math.inf)

        run.model.get_submodule(DOWN.removesuffix(".weight")).register_forward_pre_hook(spoil)

    record, _ = run(tmp_path, {PLANTED: plant}, **E4M3, scaling={"kind": "delayed"})
    hidden = DOWN.removesuffix("weight") + "activation"
    assert (8, "nonfinite", hidden, "forward") in warned(record)
    assert "hid them from the loss" in failure_report(record)
    current, _ = run(tmp_path / "current", {PLANTED: plant}, **E4M3)
    assert place(recorded(current)) == (PLANTED, hidden, "forward"), "a scale of infinity hides nothing"


def not_a_number(name: str) -> Fault:
    def plant(run: loop._Run) -> None:
        with torch.no_grad():
            run.parameters[name].view(-1)[3] = math.nan

    return plant


@FORMATS
@pytest.mark.parametrize("name", [UP, "position", "blocks.0.mlp_norm.weight"])
def test_a_weight_that_becomes_nan_between_two_steps_is_not_blamed_on_a_format(
    tmp_path: Path, given: dict, name: str
) -> None:
    record, report = run(tmp_path, {PLANTED: not_a_number(name)}, **given)
    failure = recorded(record)
    assert place(failure) == (PLANTED, name, "forward")
    assert failure.advice == ("the weights were changed between two steps: look for code that writes into them",)
    assert_report_agrees(record, report)


def test_a_row_of_the_embedding_that_few_batches_read_is_named_from_the_step_it_broke(tmp_path: Path) -> None:
    record, report = run(tmp_path, {PLANTED: not_a_number("embedding.weight")})
    bad = [event["step"] for event in record.run["events"] if event["kind"] == "nonfinite"]
    assert len(bad) > 1, "there are finite losses in between"
    assert place(recorded(record)) == (PLANTED, "embedding.weight", "forward")
    assert_report_agrees(record, report)


def test_a_planted_divergence_is_not_blamed_on_the_learning_rate(tmp_path: Path) -> None:
    def scale_the_head(run: loop._Run) -> None:
        with torch.no_grad():
            run.parameters["head.weight"].mul_(2.0**20)

    failure = recorded(run(tmp_path, {PLANTED: scale_the_head})[0])
    assert failure.kinds[0] == "divergence"
    assert place(failure) == (PLANTED, "head.weight", "forward")
    assert not any("learning_rate" in line for line in failure.advice)


@FORMATS
def test_an_infinity_that_passes_is_named_by_the_step_itself(tmp_path: Path, given: dict) -> None:
    record, report = run(tmp_path, {PLANTED: passing_infinity, ENDED: ctrl_c}, **given)
    (event,) = (event for event in record.run["events"] if event["kind"] == "nonfinite")
    assert event == {"kind": "nonfinite", "step": PLANTED, "tensor": f"{DOWN}.grad", "phase": "backward"}
    assert place(recorded(record)) == (PLANTED, f"{DOWN}.grad", "backward")
    assert recorded(record).message == "stopped by Ctrl-C"
    assert_report_agrees(record, report)
    without, _ = run(tmp_path / "unwatched", {PLANTED: passing_infinity}, **given, telemetry={"watch": False})
    (event,) = (event for event in without.run["events"] if event["kind"] == "nonfinite")
    assert (event["tensor"], event["phase"]) == ("gradient norm", "backward"), "nobody knows which"
    assert without.status == "finished"
    assert without.run["summary"]["nonfinite_backward"] == 1


@FORMATS
def test_a_learning_rate_of_100_is_a_jump_of_the_optimizers_first_step(tmp_path: Path, given: dict) -> None:
    rate = {"optimizer": {"learning_rate": 100.0}}
    model = loop.build_model(config(**given))
    batches = loop.Batches(words(), config(), torch.device("cpu"))
    model.loss(*batches.next()).backward()  # Adam's first step is the rate times the gradient's sign
    grown = {}
    for name, parameter in model.named_parameters():
        weight, gradient = parameter.detach().numpy(), parameter.grad.numpy()
        if weight.any():  # biases begin at zero
            decay = 0.1 * weight if weight.ndim > 1 else 0
            stepped = weight - 100 / 3 * (gradient / (np.abs(gradient) + 1e-8) + decay)
            grown[name] = np.linalg.norm(stepped) / np.linalg.norm(weight)
    worst = max(grown, key=grown.__getitem__)
    record, report = run(tmp_path, max_steps=40, **given, **rate)
    assert record.status == "failed"
    failure = recorded(record)
    assert place(failure) == (1, worst, "optimizer")
    assert {"divergence", "nan_loss"} & set(failure.kinds)
    assert {tensor for step, what, tensor, _ in breaks(record) if (step, what) == (1, "jump")} == set(grown)
    assert warnings_of(record)[0][1].value == pytest.approx(grown[worst], rel=0.05)
    assert any("learning_rate" in line for line in failure.advice)
    assert_report_agrees(record, report)


@pytest.mark.parametrize("end", [sigterm, ctrl_c, broken_optimizer])
def test_a_healthy_run_that_is_ended_says_how_and_blames_no_tensor(tmp_path: Path, end: Fault) -> None:
    record, report = run(tmp_path, {ENDED: end}, **E4M3)
    failure = recorded(record)
    assert failure.kinds == ("unknown",)
    assert place(failure) == (ENDED - 1, None, None)
    assert [step for step, _ in failure.losses] == list(range(1, ENDED))
    assert_report_agrees(record, report)


CHILD = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from test_failures import E4M3, ENDED, PLANTED, run, scale
run(Path(sys.argv[1]), {{PLANTED: scale, ENDED: lambda run: os.kill(os.getpid(), {sent})}}, **E4M3)
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGHUP])
def test_a_process_that_was_killed_is_explained_from_its_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sent: signal.Signals
) -> None:
    script = CHILD.format(root=str(ROOT), tests=str(ROOT / "tests"), sent=int(sent))
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "runs")], timeout=120)
    assert done.returncode == -sent
    (folder,) = (tmp_path / "runs").iterdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "failure.md" not in before
    assert main(["explain", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"# {folder.name}: crashed, jump from step {PLANTED} in {UP}, forward")
    assert "killed, out of memory" in printed
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "a reader writes nothing"
    (row,) = FailureAnalyzer(ExperimentDataLoader([tmp_path / "runs"])).failures.to_dict("records")
    assert (row["kinds"], row["step"], row["tensor"], row["phase"]) == ("unknown", PLANTED, UP, "forward")
    terminated, _ = run(tmp_path / "terminated", {PLANTED: scale, ENDED: sigterm}, **E4M3)
    explained = diagnose(read_run(folder))
    assert explained is not None
    assert dataclasses.replace(explained, message="") == dataclasses.replace(recorded(terminated), message="")


@pytest.mark.skipif(find_spec("licensedcode") is None, reason="licensedcode-data is not installed")
@pytest.mark.parametrize("name", ["fp32", "e4m3"])
def test_healthy_runs_of_the_demo_raise_no_warning(tmp_path: Path, name: str) -> None:
    chosen = load_config(ROOT / "experiments" / "configs" / f"{name}.yaml", ["max_steps=60", "layers_every=10"])
    record = read_run(train(chosen, tmp_path, progress=False).path)
    assert record.status == "finished"
    assert [event["kind"] for event in record.run["events"]] == ["clip"]
    summary = record.run["summary"]
    assert [summary[key] for key in ("warnings", "nonfinite_steps", "nonfinite_forward")] == [0, 0, 0]
    clipped = record.history["grad_norm"] > 1.0
    assert summary["norm_clipped_steps"] == clipped.sum()
    assert record.run["events"][0]["step"] == record.history.loc[clipped, "step"].min()
    assert record.run["failure"] is None
    assert not list(tmp_path.glob("*/failure.md"))


def test_warnings_are_bounded_and_those_beyond_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loop.EVENT_LIMITS, "warning", 3)
    monkeypatch.setitem(loop.EVENT_LIMITS, "nonfinite", 1)
    faults: dict[int, Fault] = {step: passing_infinity for step in (2, 4, 6, 9, 11)}
    record, _ = run(tmp_path, faults)
    kinds = [event["kind"] for event in record.run["events"]]
    assert (kinds.count("warning"), kinds.count("nonfinite")) == (3, 1)
    assert record.run["summary"]["warnings"] == record.run["summary"]["nonfinite_steps"] == 5
    assert "the first 3 of 5" in failure_report(record)


def test_a_resumed_run_has_the_warnings_of_an_unbroken_one(tmp_path: Path) -> None:
    given = {**E4M3, "checkpoint": {"every": 3, "keep": 99}}
    faults: dict[int, Fault] = {PLANTED: scale, 7: passing_infinity}
    whole, _ = run(tmp_path / "whole", faults, **given)
    for end in (ENDED, ENDED + 1):
        parts, report = run(tmp_path / "parts", {**faults, end: ctrl_c}, resume=end > ENDED, **given)
        assert report is not None
    parts, report = run(tmp_path / "parts", faults, resume=True, **given)
    assert report is None
    assert parts.run["failure"] is None
    assert [e for e in parts.run["events"] if e["kind"] != "resumed"] == whole.run["events"]
    assert warned(whole)
    assert {**parts.run["summary"], "tokens_per_second": 0} == {**whole.run["summary"], "tokens_per_second": 0}
    assert parts.layers.equals(whole.layers)


@FORMATS
def test_the_watch_changes_no_number(tmp_path: Path, given: dict) -> None:
    watched, _ = run(tmp_path / "watched", **given)
    unwatched, _ = run(tmp_path / "unwatched", **given, telemetry={"watch": False})
    assert watched.history.drop(columns="seconds").equals(unwatched.history.drop(columns="seconds"))
    assert watched.layers.equals(unwatched.layers)


@pytest.mark.parametrize("broken", ["diagnose", "failure_report"])
def test_what_goes_wrong_while_explaining_hides_no_error(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, broken, lambda *given, **more: 1 / 0)
    record, report = run(tmp_path / "ended", {ENDED: ctrl_c})
    assert (record.status, report) == ("interrupted", None)
    assert place(diagnose(record)) == (ENDED - 1, None, None)  # type: ignore[arg-type]
    failed, _ = run(tmp_path / "failed", {PLANTED: lasting_infinity})
    assert place(recorded(failed)) == (PLANTED, f"{DOWN}.grad", "backward"), "what the trainer knew by itself"


def test_a_disk_without_room_for_the_report_keeps_the_failure_in_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = run_writer.write_text

    def full(path: Path, text: str) -> None:
        if path.suffix == ".md":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(path, text)

    monkeypatch.setattr(run_writer, "write_text", full)
    record, report = run(tmp_path, {ENDED: ctrl_c})
    assert recorded(record).message == "stopped by Ctrl-C"
    assert report is None


def test_the_trainer_names_the_matrix_that_grew_most_where_none_jumped(tmp_path: Path) -> None:
    """A rate that rises slowly to 3, a dozen times the weights' size: nothing jumps, and the run diverges."""
    slowly = {"optimizer": {"learning_rate": 3.0}, "warmup_steps": 20, "max_steps": 60}
    norms = []

    def note(run: loop._Run) -> None:
        norms.append({name: float(p.detach().norm()) for name, p in run.parameters.items() if p.ndim > 1})

    record, report = run(tmp_path, dict.fromkeys(range(1, 61), note), **slowly)
    assert breaks(record) == []
    failure = recorded(record)
    assert failure.kinds[:2] == ("divergence", "early_stop")
    first, last = norms[0], norms[-1]
    assert failure.phase == "optimizer"
    assert failure.tensor is not None
    assert last[failure.tensor] / first[failure.tensor] > 0.9 * max(last[name] / first[name] for name in first)
    losses = record.history.set_index("step")["loss"]
    assert losses[failure.step - 1] <= record.config.diverged < losses[failure.step :].min()
    assert_report_agrees(record, report)


def test_a_symptom_warns_once_a_layer_and_operand(tmp_path: Path) -> None:
    static = {"scaling": {"kind": "static", "value": 2.0**-12}, "layers_every": 1}
    record, _ = run(tmp_path, **E4M3, **static)
    seen = [(what, tensor) for _, what, tensor, _ in warned(record)]
    assert ("overflow", "head.activation") in seen
    assert len(seen) == len(set(seen))
    frame = FailureAnalyzer(ExperimentDataLoader([tmp_path])).warnings
    assert list(frame.columns) == ["run_id", "arm", "format", "step", "what", "tensor", "phase", "value", "message"]
    assert len(frame) == len(seen)
    assert set(frame["format"]) == {"E4M3"}


def test_the_method_page_has_the_limits_of_all_warnings() -> None:
    (told,) = (part for part in (ROOT / "docs" / "method.md").read_text("utf-8").split("\n\n") if "**warning**" in part)
    limits = [f"{JUMP:g} times", *(f"{limit:.0%}" for limit in COLLAPSED.values())]
    limits += [f"{'below' if symptom.below else 'above'} {symptom.limit:g}" for symptom in SYMPTOMS]
    assert [limit for limit in limits if limit.replace("e-", "e−") not in told] == []


def test_the_loss_of_guessing_is_that_of_the_vocabulary() -> None:
    for given, tokens in (({}, 96), ({"tokenizer": "bytes"}, 256), ({"tokenizer": "bpe", "vocabulary": 512}, 512)):
        assert parse_config(given, source="test").uniform_loss == math.log(tokens)


class TestWatch:
    def watched(self) -> tuple[torch.nn.Module, Watch]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 3))
        watch = Watch(model)
        assert watch.before() == watch.after(1) == []
        return model, watch

    @staticmethod
    def kinds(alarms: list[Alarm]) -> list[tuple[str, str, str]]:
        return [(alarm.what, alarm.tensor, alarm.phase) for alarm in alarms]

    def test_a_change_is_the_optimizers_only_within_its_step(self) -> None:
        model, watch = self.watched()
        for factor, alarmed in ((JUMP * 1.01, True), (1 / JUMP / 1.01, True), (JUMP * 0.99, False)):
            for look, phase in ((watch.before, "forward"), (lambda: watch.after(2), "optimizer")):
                with torch.no_grad():
                    model[0].weight.mul_(factor)
                found = look()
                assert self.kinds(found) == ([("jump", "0.weight", phase)] if alarmed else [])
                assert all(alarm.value == pytest.approx(factor) for alarm in found)
                with torch.no_grad():
                    model[0].weight.div_(factor)
                look(), look()

    def test_weights_that_are_replaced_are_seen(self) -> None:
        model, watch = self.watched()
        model[2].weight.data = model[2].weight.data * 2.0**20
        assert self.kinds(watch.before()) == [("jump", "2.weight", "forward")]

    def test_what_stays_wrong_is_reported_once_and_again_after_it_was_normal(self) -> None:
        model, watch = self.watched()
        kept = model[2].weight.detach().clone()
        for _ in range(2):
            with torch.no_grad():
                model[2].weight[0, 0] = math.nan
            assert self.kinds(watch.after(2)) == [("nonfinite", "2.weight", "optimizer")]
            assert watch.before() == watch.after(3) == watch.before() == []
            assert watch.broken == {"2.weight": "optimizer"}
            with torch.no_grad():
                model[2].weight.copy_(kept)
            assert watch.after(4) == []
            assert watch.broken == {}

    def test_vectors_that_begin_at_zero_may_grow_but_not_be_infinite(self) -> None:
        model, watch = self.watched()
        with torch.no_grad():
            model[1].bias.add_(1e6)
        assert watch.before() == []
        with torch.no_grad():
            model[1].bias[3] = -math.inf
        assert self.kinds(watch.before()) == [("nonfinite", "1.bias", "forward")]

    def test_large_and_small_finite_weights_are_no_infinities_and_no_zeros(self) -> None:
        model, watch = self.watched()
        with torch.no_grad():
            model[0].weight.copy_(torch.full((8, 4), 1e30))
            model[2].weight.copy_(torch.full((3, 8), 1e-30))
        assert sorted(self.kinds(watch.before())) == [("jump", "0.weight", "forward"), ("jump", "2.weight", "forward")]

    def test_a_matrix_that_begins_at_zero_may_grow(self) -> None:
        model = torch.nn.Linear(3, 3)
        with torch.no_grad():
            model.weight.zero_()
        watch = Watch(model)
        assert watch.before() == []
        with torch.no_grad():
            model.weight.fill_(5.0)
        assert watch.after(1) == []

    def test_models_without_matrices_vectors_or_elements_are_watched(self) -> None:
        empty = torch.nn.ParameterList([torch.zeros(0, 3), torch.zeros(3, 0), torch.zeros(0)])
        for model in (torch.nn.LayerNorm(3), torch.nn.Linear(2, 2, bias=False), empty, torch.nn.ReLU()):
            watch = Watch(model)
            assert watch.before() == watch.after(1) == watch.before() == []
            assert watch.gradients({}, [], finite_loss=True) == []
            assert watch.grown is None
            assert watch.bad_gradient is None

    def test_the_state_is_json_and_the_window_bounded(self) -> None:
        model, watch = self.watched()
        for step in range(2, 2 * WINDOW):
            with torch.no_grad():
                model[2].weight.mul_(1.1)
            assert watch.after(step) == []
        state = json.loads(json.dumps(watch.state))
        assert len(state["window"]) == WINDOW
        other = Watch(model)
        other.state = state
        assert other.state == watch.state
        name, factor, since = watch.grown  # type: ignore[misc]
        assert (name, since) == ("2.weight", WINDOW)
        assert factor == pytest.approx(1.1 ** (WINDOW - 1), rel=1e-5)


@pytest.mark.parametrize(("factor", "what"), [(2.0**20, "jump"), (2.0**-20, "jump"), (0.0, "zeroed")])
def test_the_gain_of_a_norm_is_watched_and_a_bias_that_begins_at_zero_is_not(factor: float, what: str) -> None:
    model = GPT(8, layers=1, dim=8, heads=2, context=4, seed=0)
    watch, norm = Watch(model), model.blocks[0].mlp_norm
    assert watch.before() == []
    with torch.no_grad():
        norm.weight.mul_(factor)
        norm.bias.add_(1.0)
    assert [(alarm.what, alarm.tensor) for alarm in watch.before()] == [(what, "blocks.0.mlp_norm.weight")]


def test_warnings_are_sent_to_where_the_run_is_mirrored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, str, str]] = []
    monkeypatch.setattr(loop.Tracker, "alert", lambda self, *told: sent.append(told))
    given = {"optimizer": {"learning_rate": 100.0}, "warmup_steps": 0}
    record = read_run(train(config(**given), tmp_path, corpus=words(), progress=False).path)
    first = warnings_of(record)[0][1]
    assert len(sent) == len(warnings_of(record)) > 0
    assert sent[0][:2] == (first.what, first.tensor)
    assert first.message in sent[0][2]


def test_the_layers_table_of_300_steps_with_a_look_at_every_tenth_stays_under_300_kb(tmp_path: Path) -> None:
    """As many looks of the default model in 60 steps, with everything on but the shadow."""
    operands = dict.fromkeys(("weight", "activation", "grad_output"), "e4m3")
    given = parse_config({"quantize": operands, "max_steps": 60, "layers_every": 2, "eval_batches": 1}, source="test")
    path = train(given, tmp_path, corpus=words(), progress=False).path
    assert read_run(path).layers["step"].nunique() == 31
    assert (path / "layers.parquet").stat().st_size < 300_000
