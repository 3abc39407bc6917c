"""The studies: what they hold, that tuning is held out, and that a campaign resumes and packs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from altgrad.config import ExperimentConfig, UsageError
from altgrad.runs import load_runs
from altgrad.runs.canary import CANARIES
from altgrad.runs.processor import cores
from altgrad.runs.query import verify
from altgrad.runs.schema import run_id
from altgrad.studies import ARMS, CAMPAIGN, PILOT_SEEDS, STUDIES, TUNING_SEEDS, Arm, Study

ROOT = Path(__file__).resolve().parents[1]
DATA = {"sha256": "0" * 64}


@pytest.fixture(scope="module")
def campaign() -> ModuleType:
    spec = importlib.util.spec_from_file_location("campaign", ROOT / "experiments" / "campaign.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["campaign"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def known_data(campaign: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies are asked for their configs without the corpus; a run that trains has its own fingerprint."""
    monkeypatch.setattr(campaign, "data_fingerprint", lambda *_: DATA)


class BestAt(dict[str, float]):
    """Losses of runs that need not be recorded: the lowest in the middle of every sweep, or at one of its ends."""

    def __init__(self, favourite: str = "middle") -> None:
        for name, study in STUDIES.items():
            for arm in study.seeds if study.sweeps else ():
                self._sweep(name, ARMS[arm], favourite)

    def _sweep(self, study: str, arm: Arm, favourite: str) -> None:
        own = STUDIES[study].rates or arm.swept_rates
        first, last = own[0], own[-1]
        beyond = range(1, 5) if first < last else ()
        rates = [*(first / 2**k for k in reversed(beyond)), *own, *(last * 2**k for k in beyond)]
        for position, rate in enumerate(rates):
            off = {"middle": abs(position - len(rates) // 2), "low": position, "high": -position}[favourite]
            for seed in STUDIES[study].seeds[arm.name]:
                self[run_id(arm.config(seed, study, rate), DATA)] = 2.0 + 0.01 * off


@pytest.fixture(scope="module")
def tuned() -> BestAt:
    return BestAt()


@pytest.fixture(scope="module")
def planned(campaign: ModuleType, tuned: BestAt) -> dict[str, list[tuple[str, str]]]:
    """Of each study that waits for nothing: the id of every run, and the study that its config names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(campaign, "data_fingerprint", lambda *_: DATA)
        configs = {name: campaign.configs_of(name, tuned) for name, study in STUDIES.items() if not study.waits}
    return {name: [(run_id(config, DATA), config.study) for config in found] for name, found in configs.items()}


def test_studies_hold_what_they_say(planned: dict[str, list[tuple[str, str]]]) -> None:
    sizes = {name: len(found) for name, found in planned.items()}
    assert sizes["formats"] == 4 * 32 + (5 + 2) * 16 + 1 + 3 * 7 * 16
    assert sizes["layers"] == 4 * 7 * 16
    assert sizes["tuning"] == (33 + 10) * 5 * 2
    assert sizes["storage"] == 33 * 16
    assert sizes["controls"] == 10 * 16
    assert sizes["length"] == 5 * 5
    assert sizes["formats-large"] == 8 * 5
    assert sizes["pilot-tuning"] == 16 * 5 * 2
    assert sizes["pilot-formats"] == 10 * 5
    assert sizes["pilot-manifold"] == 4 * 3 * 5
    assert sizes["ladder-tuning"] == (4 * 2 * 3 + 3) * 4
    assert sizes["ladder"] == (4 * 2 * 8 + 2 * 6 + 2 * 2) * 8
    for name, found in planned.items():
        assert {study for _, study in found} == {name}
        assert len(dict(found)) == sizes[name], f"{name} has a run twice"


def test_no_two_studies_of_the_campaign_train_the_same_run(planned: dict[str, list[tuple[str, str]]]) -> None:
    identities = [identity for study in CAMPAIGN for identity, _ in planned[study]]
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize(("favourite", "end"), [("low", 0), ("high", -1)])
def test_a_sweep_goes_on_beyond_its_edge_but_not_for_ever(campaign: ModuleType, favourite: str, end: int) -> None:
    arm, losses = ARMS["E4M3 update master"], BestAt(favourite)
    rates, best = campaign.sweep("tuning", arm, losses)
    assert len(rates) == 5 + campaign.MOST_EXTENSIONS
    assert best == rates[end]
    wanted = {run_id(arm.config(s, "tuning", r), DATA) for r in arm.swept_rates for s in TUNING_SEEDS}
    rates, best = campaign.sweep("tuning", arm, {identity: losses[identity] for identity in wanted})
    assert len(rates) == 6
    assert best is None, "the rate beyond the edge is asked for before there is an answer"


def test_a_large_study_takes_its_rate_from_the_recorded_sweep(campaign: ModuleType, tuned: BestAt) -> None:
    with pytest.raises(UsageError, match="STUDY=tuning-large first"):
        campaign.configs_of("formats-large", {})
    middle = ARMS["FP32 large"].swept_rates[2]
    assert {config.optimizer.learning_rate for config in campaign.configs_of("formats-large", tuned)} == {middle}


def test_the_ladder_takes_its_rates_by_size_and_what_is_held_out_waits_for_the_fit(
    campaign: ModuleType, tuned: BestAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="STUDY=ladder-tuning first"):
        campaign.configs_of("ladder", {})
    assert {config.optimizer.other_learning_rate for config in campaign.configs_of("ladder", tuned)} == {None}
    assert {config.final_eval_characters for config in campaign.configs_of("ladder", tuned)} == {100_000}
    (alone,) = ARMS["NVFP4 ladder 128x4 1600 by width"].swept_rates
    assert campaign.sweep("ladder-tuning", ARMS["NVFP4 ladder 128x4 1600 by width"], tuned) == ([alone], alone)
    waiting = dataclasses.replace(STUDIES["ladder-large"], waits="commit the fit")
    monkeypatch.setattr(campaign, "STUDIES", {"ladder-large": waiting})
    with pytest.raises(UsageError, match="STUDY 'ladder-large' waits: commit the fit"):
        campaign.configs_of("ladder-large", tuned)


def test_the_demo_trains_runs_that_are_not_recorded(planned: dict[str, list[tuple[str, str]]]) -> None:
    recorded = {identity for name in planned if name != "demo" for identity, _ in planned[name]}
    assert not recorded & dict(planned["demo"]).keys()


def test_a_broken_study_ends_the_command_with_one_line(tmp_path: Path) -> None:
    """The file of studies with a name that is none, in a copy of the package."""
    shutil.copytree(ROOT / "altgrad", tmp_path / "altgrad", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "experiments").mkdir()
    shutil.copy(ROOT / "experiments" / "campaign.py", tmp_path / "experiments")
    studies = tmp_path / "altgrad" / "studies.py"
    studies.write_text(studies.read_text().replace('_with(SEEDS[:1], "E1M6")', '_with(SEEDS[:1], "E9M6")'))
    command = [sys.executable, str(tmp_path / "experiments" / "campaign.py"), "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""})
    assert ended.returncode != 0
    assert ended.stderr.strip() == "error: studies.py, study 'formats': there is no arm 'E9M6' in ARMS"


def test_an_unknown_study_is_named(campaign: ModuleType) -> None:
    with pytest.raises(UsageError, match="pilot-formats"):
        campaign.find("pilot")


def test_a_campaign_resumes_and_packs(
    campaign: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    if importlib.util.find_spec("licensedcode") is None:
        pytest.skip("licensedcode-data is not installed")
    model = {"layers": 1, "dim": 8, "heads": 1, "context": 8}
    small = {"max_steps": 3, "batch_size": 2, "eval_batches": 1, "model": model}
    arms = [Arm(fmt, fmt, {"weight": fmt}, rate=0.01, settings=small) for fmt in ("fp32", "e5m2", "e7m0")]
    monkeypatch.setattr(campaign, "data_fingerprint", corpus_fingerprint)
    monkeypatch.setattr(campaign, "ARMS", {arm.name: arm for arm in arms})
    monkeypatch.setattr(campaign, "STUDIES", {"tiny": Study("", {arm.name: [0] for arm in arms})})
    monkeypatch.setattr(campaign, "RECORDED", tmp_path / "recorded")
    in_this_process(monkeypatch)
    out = tmp_path / "runs"
    with pytest.raises(UsageError, match="none of its 3 runs is recorded; run the study first"):
        campaign.pack("tiny", out)
    assert campaign.run_study("tiny", out, 1, (1, 3)) == 0
    assert campaign.pack("tiny", out) == 0
    assert "1 runs packed as part-001" in (said := capsys.readouterr().out)
    assert "2 are missing" in said
    first = files_of(tmp_path / "recorded")
    assert campaign.pack("tiny", out) == 0
    assert capsys.readouterr().out == "tiny: nothing new; 2 are missing\n"
    assert campaign.run_study("tiny", out, 1) == 0
    assert "2 to do" in capsys.readouterr().out
    killed = next(out.glob("e7m0*")) / "run.json"  # as a process leaves it that had no time to write an end
    left = json.loads(killed.read_text())
    killed.write_text(json.dumps({key: left[key] for key in left if key != "ended"} | {"status": "running"}))
    assert campaign.run_study("tiny", out, 1) == 0
    assert "2 recorded, 1 to do" in capsys.readouterr().out, "a run that was killed is run again"
    assert json.loads(killed.read_text())["status"] == "finished"
    shutil.rmtree(killed.parent)
    assert campaign.pack("tiny", out) == 0
    assert "1 runs packed as part-002" in (said := capsys.readouterr().out)
    assert "1 are missing" in said
    shutil.rmtree(out)
    assert campaign.run_study("tiny", tmp_path / "clone", 1) == 0
    assert "2 recorded, 1 to do" in capsys.readouterr().out, "a fresh clone knows what the parts hold"
    assert campaign.pack("tiny", tmp_path / "clone") == 0
    assert "1 runs packed as part-003" in capsys.readouterr().out
    assert campaign.run_study("tiny", tmp_path / "another", 1) == 0
    assert "3 recorded, 0 to do" in capsys.readouterr().out, "what is packed is not run again"
    found = load_runs((tmp_path / "recorded",))
    assert (len(found.records), found.problems) == (3, ())
    assert verify([tmp_path / "recorded"]) == (3, [], [])
    assert campaign.repeat("tiny") == 0
    assert "of its layers are the same, bit by bit" in capsys.readouterr().out
    other = (history := found.records[0].history).copy()
    other.loc[1, "loss"] *= 1 + 2**-20
    assert campaign.unlike_recorded(history, other, ["step"]) == ["loss"]
    assert campaign.unlike_recorded(history, history.drop(columns="loss"), ["step"]) == ["loss"]
    assert campaign.unlike_recorded(history, other.iloc[2:], ["step"]) != []
    whole = files_of(tmp_path / "recorded")
    assert {path: whole[path] for path in first} == first, "a part is never written again"
    table = tmp_path / "recorded/tiny/part-002/history.parquet"
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"tiny: .*part-002: damaged packed study \(history.parquet"):
        campaign.pack("tiny", tmp_path / "clone")


def test_a_part_of_a_campaign_ends_when_its_time_is_over_and_what_has_checkpoints_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Threads stand in for the processes; the second run takes longer than there is time."""
    pytest.importorskip("torch", reason="torch is not installed")
    from altgrad.training import pool

    resumed = []

    def slow(config: ExperimentConfig, *, resume: bool, **_: Any) -> Any:
        resumed.append((config.seed, resume))
        time.sleep(0.6 * config.seed)
        return SimpleNamespace(status="finished", summary={"val_loss": 2.0})

    threads = SimpleNamespace(Pool=lambda workers, **_: ThreadPool(workers))
    monkeypatch.setattr(pool.multiprocessing, "get_context", lambda _: threads)
    todo = [Arm("a", "FP32").config(0), Arm("a", "FP32", settings={"checkpoint": {"every": 5}}).config(1)]
    ended = list(pool.results(todo, slow, 2, time.monotonic() + 0.3))
    assert [status for _, status in ended] == ["finished"]
    assert sorted(resumed) == [(0, False), (1, True)]
    assert len(list(pool.results(todo, slow, 2))) == 2, "without an end all of them end"


def test_a_machine_that_is_described_alike_and_computes_otherwise_is_named(
    campaign: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.setattr(campaign, "RECORDED", tmp_path / "recorded")
    for _ in range(2):
        campaign.look_around(tmp_path / "runs", "cpu")
    said = capsys.readouterr()
    first, second = said.out.splitlines()
    assert first == second, "one machine gives one digest"
    assert said.err == ""
    kept = tmp_path / "runs" / CANARIES
    assert kept.read_text().count("\n") == 1, "a repeat that says the same is not kept twice"
    assert not {"user", "host", str(tmp_path), platform.node()} & set(kept.read_text().split('"'))
    one = json.loads(kept.read_text())
    assert {"processor", "instructions", "blas", "torch", "threads"} <= {*one["environment"]}
    kept.write_text(json.dumps(one | {"digest": "0" * 64, "created": "2026-01-02T03:04:05Z"}) + "\n")
    campaign.look_around(tmp_path / "runs", "cpu")
    line = "warning: the canary gave other bits on machines that are described alike"
    told = capsys.readouterr().err
    assert told.startswith(line)
    assert "00000000 on 2026-01-02, " in told
    assert told.count("\n") == 1
    assert [line.partition(" (")[0] for line in verify([tmp_path / "runs"]).notes] == [line.removeprefix("warning: ")]
    other = one | {"environment": one["environment"] | {"instructions": "AVX2"}}
    kept.write_text("".join(json.dumps(each) + "\n" for each in (one, other | {"digest": "1" * 64})))
    assert verify([tmp_path / "runs"]).notes == [], "another machine may compute otherwise"
    kept.write_text("no canary\n")
    campaign.look_around(tmp_path / "runs", "cpu")
    assert "warning: left out runs: canaries.jsonl: damaged" in capsys.readouterr().err
    assert kept.read_text() == "no canary\n"


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_mistake_ends_a_campaign_with_one_line(
    campaign: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    if importlib.util.find_spec("licensedcode") is None:
        pytest.skip("licensedcode-data is not installed")
    in_this_process(monkeypatch)
    monkeypatch.setattr(campaign, "data_fingerprint", corpus_fingerprint)
    monkeypatch.setattr(campaign, "RECORDED", tmp_path / "recorded")  # which would be read twice
    out = tmp_path / "file"
    out.write_text("")
    monkeypatch.setattr(sys, "argv", ["campaign.py", "demo", "--out", str(out)])
    assert campaign.main() == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 1
    assert "--out" in errors[0]


def test_cores_are_counted_where_the_system_has_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cores() == os.cpu_count()


def corpus_fingerprint(*_: Any) -> dict[str, Any]:
    from altgrad.training import load_corpus

    return load_corpus().fingerprint


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The campaign's workers without processes of their own (two seconds each to start)."""
    import torch

    from altgrad.training import pool

    torch.set_num_threads(1)
    monkeypatch.setattr(pool, "results", lambda todo, train, *_: map(partial(pool.run_one, train), todo))


def test_recorded_e1m6_runs_equal_e0m7(campaign: ModuleType) -> None:
    """Finite E1M6 is E0M7 times four: under a power-of-two amax scale the two are one quantizer."""
    runs = [run for run in load_runs((campaign.RECORDED / "pilot-formats",)).records if run.status == "finished"]
    losses = {(run.config.quantize.weight, run.config.seed): run.run["summary"]["val_loss"] for run in runs}
    if not losses:
        pytest.skip("pilot-formats is not recorded here")
    for seed in PILOT_SEEDS:
        assert losses["e1m6", seed] == losses["e0m7", seed]


def test_the_extremes_of_the_demo_show_their_known_signatures(campaign: ModuleType, tmp_path: Path) -> None:
    """E7M0 has range and no precision, E0M7 precision and no range: the demo's runs, shortened to 40 steps.

    Means over layers and looks when this test was written: SQNR of the weights 14.2 dB (E7M0), 31.5 (E4M3), 37.4
    (E0M7); fraction of the gradients that became zero 22% (E0M7), 0.4% (E4M3), 0 (E7M0).
    """
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if importlib.util.find_spec("licensedcode") is None:
        pytest.skip("licensedcode-data is not installed")
    from altgrad.analysis import ExperimentDataLoader
    from altgrad.training import train

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the campaign's workers
    for config in campaign.configs_of("demo", {}):
        fmt = config.quantize.weight
        if config.seed == 0 and fmt in ("e0m7", "e4m3", "e7m0") and config.optimizer.step_rule == "adamw":
            train(config.model_copy(update={"max_steps": 40}), tmp_path, progress=False)
    torch.set_num_threads(threads)
    loader = ExperimentDataLoader([tmp_path])
    seen = {run.format: loader.layer_history([run.run_id]) for run in loader.runs.itertuples()}
    assert set(seen) == {"E0M7", "E4M3", "E7M0"}

    def mean(fmt: str, statistic: str, operand: str) -> float:
        rows = seen[fmt]
        return float(rows["value"][(rows["statistic"] == statistic) & (rows["operand"] == operand)].mean())

    lost = seen["E7M0"][seen["E7M0"]["statistic"].isin(["overflow", "underflow"])]
    assert lost["value"].max() < 0.001, "E7M0's range holds everything but a trace of the gradients"
    for operand in ("weight", "activation", "grad_output"):
        lowest = mean("E7M0", "sqnr_db", operand)
        assert 13 < lowest < 16
        assert all(lowest < mean(fmt, "sqnr_db", operand) - 10 for fmt in ("E0M7", "E4M3"))
    assert mean("E0M7", "underflow", "grad_output") > 0.15
    assert mean("E0M7", "underflow", "grad_output") > 10 * mean("E4M3", "underflow", "grad_output")
    assert mean("E0M7", "overflow", "grad_output") == mean("E4M3", "overflow", "grad_output") == 0
