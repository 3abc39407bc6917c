"""A run on several processes is that of one, but for the order of additions; what goes wrong with one is a line.

All that two processes (`make processes`: four) do is done in one start of them, whose runs are listed below; tests look
at what they left.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

import runs_of_many  # noqa: E402

from altgrad.config import UsageError, parse_config  # noqa: E402
from altgrad.runs import read_run  # noqa: E402
from altgrad.training import Checkpoints  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
COUNT = int(os.environ.get("ALTGRAD_PROCESSES", "2"))
EXACT: dict[str, Any] = {"check_exact": True} if COUNT == 2 else {"rtol": 1e-5, "atol": 1e-9}
"""Two numbers have one sum; of more, each way to add them up has its own."""
TOLERANCE = 1e-5
"""Of losses, relative. In float32 another order of additions moves one by some 1e-7, and rounding to a format may turn
such a difference into an ulp of single weights."""

FP8 = {"weight": "e4m3", "activation": "e4m3", "grad_output": "e5m2"}
DRAWN = {"quantize": {**FP8, "rounding": {"activation": "stochastic", "grad_output": "stochastic"}}}
ARMS: dict[str, dict[str, Any]] = {
    "plain": {"telemetry": {"logits": True}, "accumulate": 2},
    "grid": {**DRAWN, "optimizer": {"storage": "grid", "rounding": "stochastic", "learning_rate": 0.05}},
    "delayed": {"quantize": FP8, "scaling": {"kind": "delayed", "history": 3}, "stability": {"clip": "range_aware"}},
    "ulps": {
        **DRAWN,
        "scaling": {"granularity": "row", "axis": "contraction", "weight": {"kind": "amax"}},
        "optimizer": {"step_rule": "manifold", "precondition": "update", "learning_rate": 0.5},
    },
    "broken": {
        "quantize": FP8,
        "optimizer": {"learning_rate": 1e30},
        "nan_patience": 2,
        "warmup_steps": 0,
        "stability": {"shift_to": "bf16"},
    },
}
COMPILED = {"quantize": FP8, "accumulate": 2, "optimizer": {"learning_rate": 1e-3}}
OWN = {"quantize": FP8, "scaling": {"reduce": "none"}}
"""Scales of each process's own rows."""
NODE = {"quantize": FP8, "scaling": {"reduce": "node"}}
"""Scales of half of the rows each, where half of the processes are on a machine."""


TASK = {
    **DRAWN,
    "foreign": {"task": "runs_of_many:task"},
    "model": {},
    "checkpoint": {},
    "optimizer": {"learning_rate": 0.01},
}
"""A model of one's own, with stochastic rounding."""


def shared_by(kind: str, **arm: Any) -> dict[str, Any]:
    return {**arm, "parallel": kind}


RUNS: list[dict[str, Any]] = [
    *({"name": f"{kind}-{arm}", "config": shared_by(kind, **ARMS[arm])}
      for arm, kind in [("plain", "fsdp2"), ("grid", "ddp"), ("grid", "fsdp2"), ("delayed", "ddp"),
                        ("delayed", "fsdp2"), ("ulps", "fsdp2"), ("broken", "fsdp2")]),
    *({"name": f"compiled-{kind}", "config": shared_by(kind, **COMPILED, compile=True)} for kind in ("ddp", "fsdp2")),
    {"name": "own", "config": shared_by("ddp", **OWN)},
    {"name": "node", "config": shared_by("ddp", **NODE), "machine": COUNT // 2},
    {"name": "stopped", "config": shared_by("fsdp2", **ARMS["grid"]), "stop": 3},
    {"name": "stopped", "config": shared_by("fsdp2", **ARMS["grid"]), "resume": True},
    {"name": "to-one", "config": shared_by("fsdp2", **ARMS["delayed"]), "stop": 4},
    {"name": "to-two", "config": shared_by("fsdp2", **ARMS["grid"]), "resume": True},
    {"name": "task", "config": shared_by("ddp", **TASK), "task": True},
    {"name": "task-odd", "config": shared_by("ddp", **TASK, seed=1), "task": True},
    {"name": "unshared", "config": {}},
    {"name": "odd", "config": shared_by("ddp", batch_size=7)},
    {"name": "other-config", "config": shared_by("ddp"), "other": {"config": shared_by("ddp", eval_every=2)}},
    {"name": "other-code", "config": shared_by("ddp"), "other": {"code": "another"}},
    {"name": "recorded", "config": shared_by("ddp", **ARMS["grid"]), "stop": 1},
    {"name": "lost", "config": shared_by("ddp"), "die": True},
]  # fmt: skip
"""`to-two` goes on from where one process has stopped; `lost` is the last, since nothing comes after it."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def torchrun(*command: object) -> subprocess.Popen[str]:
    """The processes of a command, with what they print."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={COUNT}"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*start, *map(str, command)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def place(folder: Path, name: str) -> Path:
    """Where the one record of a run lies."""
    (path,) = (path for path in (folder / name).iterdir() if not path.name.endswith(".old"))
    return path


def record(folder: Path, name: str) -> Any:
    """The one record of a run."""
    return read_run(place(folder, name))


def alone(folder: Path, name: str, config: dict[str, Any], **how: Any) -> Any:
    """A run of this process alone."""
    runs_of_many.shared(folder, {"name": name, "config": config, **how})
    return record(folder, name)


def losses(run: Any) -> pd.DataFrame:
    """Every column of the history but seconds."""
    return run.history.drop(columns="seconds")


def checkpoints(path: Path) -> Checkpoints:
    """The checkpoints of a recorded run."""
    run = read_run(path)
    return Checkpoints(path, run.config, run.run["data"]["sha256"])


def tensors(folder: Path, name: str, step: int) -> dict[str, Any]:
    """The model's and the optimizer's tensors in a checkpoint, whole, as one process reads them."""
    kept = checkpoints(place(folder, name))
    state = kept.load(kept.folder / f"step-{step}")
    moments = {f"{n}.{key}": value for n, each in state["optimizer"]["state"].items() for key, value in each.items()}
    return {**state["model"], **moments}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], str]:
    """The folder of the runs, what each process says of them, and what was printed."""
    folder = tmp_path_factory.mktemp("many")
    half = next(run for run in RUNS if run["name"] == "to-two")
    with pytest.raises(KeyboardInterrupt):
        runs_of_many.shared(folder, {**half, "resume": False, "stop": 3})
    (folder / "runs.json").write_text(json.dumps(RUNS))
    _, said = torchrun(ROOT / "tests" / "runs_of_many.py", folder).communicate(timeout=150 * COUNT)
    facts = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(COUNT)]
    return folder, facts, said


def test_distinct_processes_each_take_every_step_and_one_writes(many: Any) -> None:
    folder, facts, _ = many
    assert len({os.getpid(), *(each["pid"] for each in facts)}) == COUNT + 1
    for run in RUNS[:5]:
        assert all(each[run["name"]] == {"status": "finished", "steps": 6} for each in facts), run["name"]
        assert len(list((folder / run["name"]).iterdir())) == 1
        assert record(folder, run["name"]).run["environment"]["processes"] == COUNT


def test_tensor_parallel_models_round_what_the_whole_model_rounds_in_either_order(many: Any) -> None:
    for each in many[1]:
        assert len(each["models"]["parallel"]) == 7
        for how, far in each["models"]["parallel"].items():
            assert far == pytest.approx([0, 0, 0, 0], abs=1e-6), how


def test_a_quantized_model_goes_through_torch_s_own_checkpoints_with_its_histories(many: Any) -> None:
    for each in many[1]:
        saved = each["models"]["saved"]
        assert saved == {**saved, "equal": True, "histories": True, "rounded": True, "plain": ["FSDPWords"] * 2}
        assert saved["largest"] > 0


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "broken"])
def test_losses_and_telemetry_are_those_of_one_process(many: Any, tmp_path: Path, arm: str) -> None:
    folder, *_ = many
    one = alone(tmp_path, arm, ARMS[arm])
    kinds = [kind for kind in ("ddp", "fsdp2") if (folder / f"{kind}-{arm}").exists()]
    assert kinds
    for kind in kinds:
        two = record(folder, f"{kind}-{arm}")
        pd.testing.assert_frame_equal(losses(two), losses(one), rtol=TOLERANCE, atol=0)
        assert len(two.layers) == len(one.layers) > 400
        place = ["step", "layer", "operand", "statistic"]
        both = one.layers.merge(two.layers, on=place, suffixes=("", "_two"), validate="one_to_one")
        close = (both["value"] - both["value_two"]).abs() <= 1e-3 * both["value"].abs() + 1e-6
        assert len(both) == len(one.layers)
        assert close.mean() > 0.99
        assert (both["value"] == both["value_two"]).mean() > 0.5


def test_a_compiled_model_that_processes_share_is_that_of_one_process_to_roundoff(many: Any, tmp_path: Path) -> None:
    one = alone(tmp_path, "compiled", COMPILED)
    for kind in ("ddp", "fsdp2"):
        two = record(many[0], f"compiled-{kind}")
        assert two.run["environment"]["processes"] == COUNT
        assert "eager" not in [event["kind"] for event in two.run["events"]], "it was compiled"
        pd.testing.assert_frame_equal(losses(two), losses(one), rtol=TOLERANCE, atol=0)
        assert not losses(two).equals(losses(one)), "a compiler adds in another order"


def test_a_model_of_ones_own_is_trained_as_by_one_process(many: Any, tmp_path: Path) -> None:
    folder, *_ = many
    one, two = alone(tmp_path, "task", TASK, task=True), record(folder, "task")
    assert two.run["environment"]["processes"] == COUNT
    pd.testing.assert_frame_equal(losses(one), losses(two), rtol=TOLERANCE, atol=1e-7)
    assert one.history["val_loss"].iloc[-1] < one.history["val_loss"].dropna().iloc[0]


def test_grids_and_scales_are_the_same_in_shards_and_whole_bit_for_bit(many: Any, tmp_path: Path) -> None:
    folder, *_ = many
    whole, shards = (tensors(folder, f"{kind}-grid", 6) for kind in ("ddp", "fsdp2"))
    assert same(whole, shards) or COUNT > 2
    assert sum(key.endswith(".scale") for key in whole) == 6
    histories = [record(folder, f"{kind}-grid").history["loss"] for kind in ("ddp", "fsdp2")]
    pd.testing.assert_series_equal(*histories, **EXACT)


def test_the_history_of_an_amax_is_that_of_all_rows(many: Any, tmp_path: Path) -> None:
    folder, *_ = many
    alone(tmp_path, "ddp-delayed", {**ARMS["delayed"], "parallel": "ddp"})
    of_one, of_two = (tensors(each, "ddp-delayed", 4) for each in (tmp_path, folder))
    histories = [key for key in of_one if key.endswith("history")]
    assert len(histories) == 16
    for key in histories:
        torch.testing.assert_close(of_two[key], of_one[key], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("name", "parts"), [("own", COUNT), ("node", 2)])
def test_with_scales_of_their_own_rows_processes_are_one_that_accumulates_bit_for_bit(
    many: Any, tmp_path: Path, name: str, parts: int
) -> None:
    alike = {"quantize": FP8, "batch_size": 8 // parts, "accumulate": parts, "eval_batches": 2 * parts}
    one, several = alone(tmp_path, name, alike), record(many[0], name)
    pd.testing.assert_frame_equal(losses(several), losses(one), **EXACT)


def test_a_run_that_is_resumed_has_the_bits_of_one_without_interruption(many: Any) -> None:
    folder, facts, _ = many
    assert all(each["stopped"] == {"status": "finished", "steps": 6} for each in facts)
    whole, resumed = record(folder, "fsdp2-grid"), record(folder, "stopped")
    assert [event["kind"] for event in resumed.run["events"] if event["kind"] == "resumed"] == ["resumed"]
    assert same(tensors(folder, "fsdp2-grid", 6), tensors(folder, "stopped", 6))
    pd.testing.assert_frame_equal(losses(resumed), losses(whole), check_exact=True)


def test_another_number_of_processes_goes_on_with_a_checkpoint(many: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _, said = many
    two, part = record(folder, "to-two"), record(folder, "fsdp2-grid")
    assert two.run["status"] == "finished"
    pd.testing.assert_frame_equal(losses(two), losses(part), rtol=TOLERANCE, atol=0)
    notice = "another number of processes than wrote the checkpoint, {} for {}: they add in another order"
    assert notice.format(COUNT, 1) in said
    assert same(tensors(folder, "to-one", 4), tensors(folder, "fsdp2-delayed", 4))
    arm = next(run for run in RUNS if run["name"] == "to-one")
    one = alone(folder, "to-one", arm["config"], resume=True)
    assert notice.format(1, COUNT) in capsys.readouterr().err
    pd.testing.assert_frame_equal(losses(one), losses(record(folder, "fsdp2-delayed")), rtol=TOLERANCE, atol=0)
    changed = [event["environment"].get("processes") for event in one.run["events"] if event["kind"] == "resumed"]
    assert changed == [None]


def test_a_damaged_shard_is_named(many: Any, tmp_path: Path) -> None:
    kept = checkpoints(place(many[0], "recorded"))
    shard, *_ = sorted((kept.folder / "step-1" / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UsageError, match=rf"step-1/shards/{shard.name} is missing, truncated or damaged"):
        kept.load(kept.folder / "step-1")


def test_a_run_that_breaks_is_explained_as_on_one_process(many: Any, tmp_path: Path) -> None:
    folder, facts, _ = many
    one, two = alone(tmp_path, "broken", ARMS["broken"]), record(folder, "fsdp2-broken")
    assert all(each["fsdp2-broken"] == facts[0]["fsdp2-broken"] for each in facts)
    assert two.run["status"] == one.run["status"] == "failed"
    for key in ("kinds", "step", "tensor", "phase"):
        assert two.run["failure"][key] == one.run["failure"][key]
    happened = [[(each["kind"], each["step"]) for each in run.run["events"]] for run in (one, two)]
    assert happened[0] == happened[1]
    assert "shift" in [kind for kind, _ in happened[0]]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("unshared", f"parallel is null and {COUNT} processes were started; set it to ddp or fsdp2"),
        ("task-odd", f"--model: a batch of 9 rows cannot be shared by {COUNT} processes; change one"),
        ("odd", f"batch_size: 7 rows cannot be shared by {COUNT} processes; change one"),
        ("other-config", "process 1 was started with another config (eval_every) than process 0: nothing was"),
        ("other-code", "process 1 was started with another code than process 0: nothing was recorded"),
        ("lost", f"ended before the first step, with another of the {COUNT} processes or by a signal: nothing was"),
    ],
)
def test_what_does_not_belong_together_is_one_line_and_records_nothing(many: Any, name: str, line: str) -> None:
    folder, (first, second, *_), _ = many
    assert line in first[name]["said"]
    assert "\n" not in first[name]["said"]
    assert not (folder / name).exists()
    assert name == "lost" or second[name]["status"] in ("SystemExit", "UsageError")


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"optimizer": {"step_rule": "muon"}}, "optimizer.step_rule 'muon' needs whole tensors, and parallel 'fsdp2'"),
        ({"parallel": None, "scaling": {"reduce": "none"}}, "scaling.reduce 'none' is of several processes; set par"),
        ({"quantize": FP8, "scaling": {"kind": "delayed", "reduce": "node"}}, "set scaling.reduce to 'all'"),
    ],
)
def test_what_processes_cannot_share_is_refused_before_any_starts(config: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=re.escape(line)):
        parse_config({"parallel": "fsdp2", **config}, "tiny.yaml")


def test_a_disk_that_is_full_of_shards_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(HuggingFaceStorageWriter, "write_data", full)
    with pytest.raises(UsageError, match=r"cannot be written any more \(No space left on device\); the record so far"):
        alone(tmp_path, "full", {"parallel": "ddp"})
    assert not list((place(tmp_path, "full") / "checkpoints").iterdir())
    assert record(tmp_path, "full").run["status"] == "crashed"


def test_killing_one_process_leaves_a_readable_record_that_goes_on(tmp_path: Path) -> None:
    """The user's own command, with the text as a file."""
    config, text = tmp_path / "tiny.yaml", tmp_path / "text.txt"
    tiny = {**runs_of_many.SMALL, "parallel": "ddp", "data": "file", "max_steps": 5000, "name": "tiny"}
    config.write_text(json.dumps(tiny))
    text.write_text("the quick brown fox jumps over a lazy dog " * 200)
    script, out = ROOT / "experiments" / "run_experiment.py", tmp_path / "out"
    agent = torchrun(script, config, "--data", text, "--out", out)
    deadline = time.monotonic() + 120
    while not list(out.glob("*/checkpoints/step-*")):
        assert agent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    ranks = {_rank(int(child)): int(child) for child in children}
    assert set(ranks) == set(map(str, range(COUNT)))
    os.kill(ranks["1"], signal.SIGKILL)
    _, said = agent.communicate(timeout=60 * COUNT)
    assert agent.returncode != 0
    assert 1 <= said.count("error: another process of this run has ended or cannot be reached") < COUNT
    (path,) = out.iterdir()
    run = read_run(path)
    assert run.run["status"] == "crashed"
    assert "another process of this run has ended" in run.run["message"]
    done = len(run.history)
    newest = max(int(each.name[5:]) for each in path.glob("checkpoints/step-*"))
    assert 2 <= newest <= done
    state = checkpoints(path).newest(print)
    assert (state["step"], state["processes"]) == (newest, COUNT)


def _rank(process: int) -> str:
    variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return next((each.decode()[5:] for each in variables if each.startswith(b"RANK=")), "")
