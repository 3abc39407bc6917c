"""W&B in: pulls, imports and reports with the real client, a server on the loopback, and everything that goes wrong."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from records import config as make_config
from records import write_run
from wandb_server import KEY, WandbServer, wait_until, wandb_environment

from altgrad.analysis import ExperimentDataLoader
from altgrad.cli import main
from altgrad.config import config_keys
from altgrad.reports import arm_pages
from altgrad.runs import load_runs, read_run, tracking
from altgrad.runs.history import of_wandb
from altgrad.runs.names import CONFIG, METRICS, columns, map_config, normal, table
from altgrad.runs.query import verify
from altgrad.runs.sources import import_runs
from altgrad.runs.sources.found import described
from altgrad.runs.wandb_pull import Pulled, _take, pull
from altgrad.runs.wandb_records import make_record, sole_writer, write_record
from altgrad.site import write_folder

pytest.importorskip("wandb", reason="the package wandb is not installed")

ROOT = Path(__file__).parents[1]
SILENCE = 40.0  # a machine that is busy with other tests starts the client in seconds


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server() -> Iterator[WandbServer]:
    with WandbServer() as running:
        yield running
        assert running.tunnels == []  # nothing asked for another host


@pytest.fixture(scope="module", autouse=True)
def _surroundings(server: WandbServer, home: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY", "http_proxy", "https_proxy", "ALL_PROXY"):
            patch.delenv(name, raising=False)
        for name, value in wandb_environment(server, home).items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def pulled(server: WandbServer, home: Path) -> tuple[Pulled, Path]:
    """Runs of other code, each with a trouble of its own."""
    rows: list[dict[str, Any]] = [
        {"train/loss": 3 - i / 20, "lr-AdamW": 0.1, "img": {"_type": "image-file"}, "nested": {"a": i}, "step": 2 * i}
        for i in range(40)
    ]
    for i in range(0, 40, 10):
        rows[i] |= {"eval/loss": 1 if i == 30 else "NaN" if i == 10 else 2.5}
    settings = {
        "lr": 1, "n_layer": 3, "optim": "adamw_torch", "lr_scheduler_type": "linear", "weight_format": "float8_e4m3fn",
        "act_format": "no such format", "dataset": "enwik8", "random_seed": 7, "model": {"rope": [1, {"b": 2}]},
        "missing": None, "api_key": KEY,
    }  # fmt: skip
    more: dict[str, Any] = {"notes": "n" * 20000, "summary": {"eval/loss": 1, "x": "NaN"}, "tags": ["a"]}
    server.add("foreign", "abc1", display_name="brave <b>sky</b>/../1", config=settings, history=rows, **more)
    server.add("foreign", "abc2", display_name="same name", config={}, history=[{"loss": "Infinity"}, {"loss": 1}])
    server.add("foreign", "abc3", display_name="same name", config={"seed": "s"}, state="killed")
    server.add("foreign", "abc4", config={"seed": 2**40}, state="failed", history=[{"": 1, "run_id": 2, "\udc80": 3}])
    server.add("foreign", "abc5", state="running", history=[{"loss": 1}])
    out = home / "pulled"
    return pull(out, "foreign", "team", silence=SILENCE), out


def by_wandb_id(out: Path) -> dict[str, Any]:
    return {record.run["origin"]["id"]: record for record in load_runs([out]).records}


def test_runs_of_other_code_become_records(pulled: tuple[Pulled, Path]) -> None:
    found, out = pulled
    assert found.reason is None
    assert found.problems == []
    assert (found.listed, len(found.fetched)) == (5, 5)
    runs = by_wandb_id(out)
    statuses = {key: record.status for key, record in runs.items()}
    assert statuses == {
        "abc1": "finished",
        "abc2": "finished",
        "abc3": "interrupted",
        "abc4": "failed",
        "abc5": "running",
    }
    config = runs["abc1"].config
    assert (config.optimizer.learning_rate, config.model.layers, config.seed) == (1.0, 3, 7)
    assert (config.optimizer.step_rule, config.quantize.weight) == ("adamw", "e4m3")
    assert runs["abc1"].run["data"]["name"] == "enwik8"
    assert runs["abc1"].run["wandb_url"].endswith("/team/foreign/runs/abc1")
    assert runs["abc2"].id != runs["abc3"].id
    assert load_runs([out]).problems == ()
    assert verify([out])[1] == []


def test_every_row_and_every_number_is_there(pulled: tuple[Pulled, Path]) -> None:
    history = by_wandb_id(pulled[1])["abc1"].history
    assert list(history["step"]) == list(range(40))
    assert history["loss"].tolist() == [3 - i / 20 for i in range(40)]
    assert history["nested.a"].tolist() == list(range(40))
    assert history["logged_step"].tolist() == list(range(0, 80, 2))
    losses = history["val_loss"].dropna().to_dict()
    assert losses == {0: 2.5, 20: 2.5, 30: 1.0}
    assert by_wandb_id(pulled[1])["abc2"].history["loss"].tolist() == [math.inf, 1.0]
    assert {"(no name)", "logged_run_id", "\ufffd"} <= set(by_wandb_id(pulled[1])["abc4"].history)


def test_what_was_read_under_another_name_or_could_not_be_kept_is_said(pulled: tuple[Pulled, Path]) -> None:
    found, out = pulled
    record = by_wandb_id(out)["abc1"]
    report = record.run["origin"]["report"]
    assert report == found.reports[record.id]
    for line in (
        "notes: cut from 20,000 characters to 10,000",
        "config: lr is read as optimizer.learning_rate",
        "metric: train/loss is read as loss",
        "metric: img: 40 values are no numbers and are not kept",
    ):
        assert line in report
    (kept,) = (line for line in report if line.startswith("config: kept under their own names"))
    for key in ("act_format", "model.rope", "missing"):
        assert key in kept
        assert key in record.config.foreign
    own = "is kept under its own name in all runs: not all its values are ones of schedule"
    assert [line for line in report if "lr_scheduler_type" in line] == [f"config: lr_scheduler_type {own}"]
    assert record.config.foreign["act_format"] == "no such format"


def test_no_key_reaches_a_record(pulled: tuple[Pulled, Path]) -> None:
    files = [path for path in pulled[1].rglob("*") if path.is_file()]
    assert len(files) >= 10
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_pages_are_made_of_pulled_runs(pulled: tuple[Pulled, Path], home: Path) -> None:
    done = script("--runs", str(pulled[1]), "--output-dir", str(home / "from-pulled"), environment=dict(os.environ))
    assert done.returncode == 0, done.stderr
    write_folder(arm_pages(ExperimentDataLoader([pulled[1]])), home / "arms", site_root="../")
    pages = "".join(path.read_text() for path in (home / "arms").glob("*.md"))
    assert "train/loss is read as loss" in pages
    assert "<b>sky" not in pages
    text = (home / "from-pulled" / "format_comparison.md").read_text()
    assert "(team/foreign, the last on " in text
    assert "no network was used" in text


def test_a_second_pull_asks_for_two_things_and_fetches_what_changed(
    pulled: tuple[Pulled, Path], server: WandbServer, home: Path
) -> None:
    out = home / "second"
    shutil.copytree(pulled[1], out)
    with server.counting() as requests:
        again = pull(out, "foreign", "team", silence=SILENCE)
    assert (again.unchanged, again.fetched, again.reason) == (5, [], None)
    assert dict(requests) == {"Viewer": 1, "Runs": 1}
    run = server.runs("foreign")["abc5"]
    run.history.append(json.dumps({"_step": 1, "loss": 0.5}))
    run.state = "finished"
    again = pull(out, "foreign", "team", silence=SILENCE)
    assert again.unchanged == 4
    assert by_wandb_id(out)["abc5"].history["loss"].tolist() == [1.0, 0.5]
    assert by_wandb_id(out)["abc5"].status == "finished"
    run.history.pop()
    run.state = "running"


def test_a_thousand_unchanged_runs_take_three_requests(server: WandbServer, home: Path) -> None:
    out = home / "thousand"
    for i in range(1000):
        run = server.add("thousand", f"r{i}", config={"seed": i})
        origin = {"kind": "wandb", "entity": "team", "project": "thousand", "id": run.name, "state": run.state}
        (out / run.name).mkdir(parents=True)
        record = {"id": run.name, "origin": origin | {"heartbeat": run.heartbeat, "lines": 0}}
        (out / run.name / "run.json").write_text(json.dumps(record))
    with server.counting() as requests:
        found = pull(out, "thousand", "team", silence=SILENCE)
    assert (found.listed, found.unchanged, found.fetched, found.reason) == (1000, 1000, [], None)
    assert dict(requests) == {"Viewer": 1, "Runs": 2}
    server.runs("thousand").clear()


def test_a_history_that_was_exported_and_goes_on_is_whole(server: WandbServer, home: Path) -> None:
    frame = pd.DataFrame({"_step": range(1500), "loss": [1 / (1 + i) for i in range(1500)]})
    run = server.add("exported", "long", history=[])
    run.parquet = frame.to_parquet(index=False)
    run.history = [json.dumps({"_step": step, "loss": 0.25}) for step in range(1500, 3200)]
    found = pull(home / "exported", "exported", "team", silence=SILENCE)
    assert (found.reason, found.problems) == (None, [])
    history = load_runs([home / "exported"]).records[0].history
    assert list(history["step"]) == list(range(3200))
    assert history["loss"].iloc[999] == frame["loss"].iloc[999]
    assert history["loss"].iloc[-1] == 0.25


def test_what_altgrad_logged_comes_back_as_it_was(server: WandbServer, home: Path) -> None:
    root = home / "logged"
    for seed, ending in enumerate(("finished", "failed")):
        write_run(root, make_config("e4m3", seed=seed, tags=["t"], notes="why"), status=ending)
    mirror(root, "online")
    runs = load_runs([root]).records
    assert len(runs) == 2
    kept = pull(root, "altgrad", "team", silence=SILENCE)
    assert (kept.recorded_here, kept.fetched) == (2, [])
    found = pull(home / "back", "altgrad", "team", silence=SILENCE)
    assert found.problems == []
    assert found.reports == {}
    for record in runs:
        back = read_run(home / "back" / record.id)
        for key in ("id", "status", "created", "data", "environment", "code", "failure", "summary", "events"):
            assert back.run[key] == record.run[key], key
        assert back.arm == record.arm
        assert back.config.identity() == record.config.identity()
        assert (back.config.tags, back.config.notes) == (("t",), "why")
        columns = [column for column in record.history if column != "seconds"]
        pd.testing.assert_frame_equal(back.history[columns], record.history[columns])
    server.runs("altgrad").clear()


def mirror(root: Path, mode: str) -> None:
    """Logs every record under `root` to W&B, in a process of its own: W&B's client keeps the first server it sees."""
    command = [sys.executable, "-c", _MIRROR, str(root), mode]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr


_MIRROR = """
import sys
from pathlib import Path
from altgrad.runs import load_runs
from altgrad.runs.tracking import Tracker
for record in load_runs([Path(sys.argv[1])]).records:
    tracking = record.config.tracking.model_copy(update={"mode": sys.argv[2]})
    config = record.config.model_copy(update={"tracking": tracking})
    tracker = Tracker.start(config, record.run, Path(sys.argv[1]) / record.id, sys.exit)
    for row in record.history.to_dict("records"):
        tracker.log({key: value for key, value in row.items() if value == value or key == "loss"})
    tracker.finish(record.status, record.run["summary"])
"""


def test_an_interrupted_pull_keeps_what_came_and_goes_on(server: WandbServer, home: Path) -> None:
    for i in range(6):
        server.add("parts", f"p{i}", history=[{"loss": 1.0}])

    def stop(seen: Pulled, total: int) -> None:
        if len(seen.fetched) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(home / "parts", "parts", "team", silence=SILENCE, threads=1, progress=stop)
    assert len(load_runs([home / "parts"]).records) == 2
    again = pull(home / "parts", "parts", "team", silence=SILENCE)
    assert (again.unchanged, len(again.fetched)) == (2, 4)


def test_no_pull_replaces_another_run_s_record(server: WandbServer, home: Path) -> None:
    """A run in W&B that says it is one that was recorded here, or that lies in two projects."""
    path = write_run(home / "theirs", make_config("e4m3", seed=21))
    mirror(home / "theirs", "online")
    genuine = server.runs("altgrad").pop(path.name)
    server.runs("claims")["imposter"] = dataclasses.replace(genuine, name="imposter")
    before = {each.name: each.read_bytes() for each in path.iterdir() if each.is_file()}
    found = pull(home / "theirs", "claims", "team", silence=SILENCE)
    assert (found.reason, found.fetched) == (None, [])
    assert [(p.where, p.reason) for p in found.problems] == [
        ("imposter", f"{path.name}: a run that was recorded here has this id already, and is kept")
    ]
    assert {each.name: each.read_bytes() for each in path.iterdir() if each.is_file()} == before
    server.runs("first")[path.name] = server.runs("second")[path.name] = genuine
    assert pull(home / "twice", "first", "team", silence=SILENCE).fetched == [path.name]
    again = pull(home / "twice", "second", "team", silence=SILENCE)
    assert "the run team/first/" in again.problems[0].reason
    kept = import_runs(path, home / "twice") if list(path.rglob("*.wandb")) else None
    assert kept is None or (kept.recorded_here, kept.fetched) == (1, [])
    assert by_wandb_id(home / "twice")[path.name].run["origin"]["project"] == "first"


def test_what_no_record_can_be_made_of_is_named_and_written_nowhere(server: WandbServer, home: Path) -> None:
    bad: dict[str, dict[str, Any]] = {
        "time": {"created": "0001-01-01T00:00:00+14:00"},
        "mark": {"heartbeat": "soon"},
    }
    for name, fields in bad.items():
        server.add("unfit", name, **fields)
    server.add("unfit", "good", history=[{"loss": 1.0}])
    found = pull(home / "unfit", "unfit", "team", silence=SILENCE)
    assert sorted(problem.where for problem in found.problems) == sorted(bad)
    assert (found.reason, len(found.fetched)) == (None, 1)
    loaded = load_runs([home / "unfit"])
    assert (len(loaded.records), loaded.problems) == (1, ())
    kept = of_wandb([{"_step": 3, "loss": 2.0}, {"_step": 1e300, "loss": 1.0}])
    assert kept.table.to_pydict() == {"step": [3, 4], "loss": [2.0, 1.0], "logged_step": [None, 1e300]}


@pytest.mark.parametrize("seed", range(4))
def test_whatever_a_run_in_w_and_b_says_it_is_refused_or_its_record_is_read(tmp_path: Path, seed: int) -> None:
    """Descriptions of a run of AltGrad's and of one of other code, with values replaced at random."""
    record = read_run(write_run(tmp_path / "runs", make_config("e4m3")))
    logged = record.config.identity() | {"study": "local", "altgrad": tracking._own(record.run)}
    described: dict[str, Any] = {
        "id": record.id, "entity": "team", "project": "p", "name": "n", "state": "finished", "lines": 3, "notes": "",
        "heartbeat": "2026-01-01T00:00:00", "created": "2026-01-01T00:00:00", "url": "https://x.example/a", "tags": [],
        "group": None, "summary": {"altgrad": tracking._ending(record.run, "finished", {"a": 1})},
    }  # fmt: skip
    chance, made = random.Random(seed), 0
    for number in range(60):
        config = chance.choice([logged, {"lr": 1, "seed": 3, "model": {"x": 1}}])
        told = {"run": described | {"config": config}, "rows": [{"_step": i, "val_loss": 1.0} for i in range(3)]}
        told = json.loads(json.dumps(told))
        for _ in range(chance.randint(1, 2)):
            replace_one(told, chance)
        try:
            run, history = make_record(told["run"], told["rows"])
            write_record(tmp_path / str(number), run, history)
        except (ValueError, TypeError, LookupError, OverflowError):
            continue
        found = load_runs([tmp_path / str(number)])
        assert (len(found.records), found.problems) == (1, ())
        made += 1
    assert 15 < made < 60


STRANGE: tuple[Any, ...] = (
    None, True, -1, 2**70, 1e300, math.nan, "x" * 300, "", "<b>\n|`", [], [1, ["a"]], {}, {"a": {"b": None}}, "NaN",
    "\ud800", {"_type": "x"}, "9999-12-31T23:59:59-23:00",
)  # fmt: skip


def replace_one(value: Any, chance: random.Random) -> None:
    """Puts something strange in one place of a nested value, but for its top and its rows themselves."""
    places = []

    def visit(inner: Any, depth: int) -> None:
        for key in list(inner) if isinstance(inner, dict) else range(len(inner)):
            if depth > 1 or (depth == 1 and isinstance(key, str) and key != "id"):
                places.append((inner, key))
            if isinstance(inner[key], dict | list):
                visit(inner[key], depth + 1)

    visit(value, 0)
    inner, key = chance.choice(places)
    inner[key] = chance.choice(STRANGE)


def test_a_list_without_an_end_is_not_followed(
    server: WandbServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("endless", "e", history=[{"loss": 1.0}])
    answer = server._Runs

    def again_and_again(given: Any) -> dict[str, Any]:
        found = answer({**given, "cursor": "0"})
        found["project"]["runs"]["pageInfo"] = {"endCursor": "0", "hasNextPage": True}
        return found

    monkeypatch.setattr(server, "_Runs", again_and_again)
    found = pull(home / "endless", "endless", "team", silence=SILENCE)
    assert "its list has the run 'e' twice" in str(found.reason)
    assert list(by_wandb_id(home / "endless")) == ["e"]


def test_one_bad_node_of_a_list_is_left_out_and_the_others_are_kept(
    server: WandbServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        server.add("nodes", name, history=[{"loss": 1.0, "val_loss": 1.0}])
    answer = server._Runs

    def with_bad_nodes(given: Any) -> dict[str, Any]:
        found = answer(given)
        edges = found["project"]["runs"]["edges"]
        long = {**edges[1]["node"], "name": "long", "config": '{"x": {"value": ' + "9" * 5000 + "}}"}
        strange = [{"node": None}, {"node": long}, edges[0], None, {"node": {"name": 7}}, {"node": {}}]
        found["project"]["runs"]["edges"] = [*strange, *edges, edges[2]]
        return found

    monkeypatch.setattr(server, "_Runs", with_bad_nodes)
    found = pull(home / "nodes", "nodes", "team", silence=SILENCE)
    assert found.reason is None
    assert sorted(by_wandb_id(home / "nodes")) == ["a", "b", "c"]
    assert [problem.where for problem in found.problems] == ["None", "long", "None", "7", "None"]
    assert all("its description cannot be read" in problem.reason for problem in found.problems)


def test_a_pull_has_every_row_where_w_and_b_s_own_history_is_sampled(server: WandbServer, home: Path) -> None:
    server.add("dense", "d", history=[{"loss": 1 / (1 + step)} for step in range(1200)])
    command = (
        "import wandb\nrun = wandb.Api().run('team/dense/d')\n"
        "print(len(run.history(samples=50, pandas=False)), len(run.history(keys=['loss'], samples=50, pandas=False)))"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["50", "50"]
    pull(home / "dense", "dense", "team", silence=SILENCE)
    assert len(by_wandb_id(home / "dense")["d"].history) == 1200


def test_one_run_that_cannot_be_fetched_does_not_hold_up_the_others(server: WandbServer, home: Path) -> None:
    server.add("one-bad", "good", history=[{"loss": 1.0}])
    server.add("one-bad", "bad", history=[{"loss": 1.0}], created="yesterday")
    found = pull(home / "one-bad", "one-bad", "team", silence=SILENCE)
    assert [problem.where for problem in found.problems] == ["bad"]
    assert "not a time" in found.problems[0].reason
    assert len(found.fetched) == 1


def test_a_busy_server_is_asked_again(server: WandbServer, home: Path) -> None:
    server.add("busy", "b", history=[{"loss": 1.0}])
    with (
        server.misbehaving("429", only="Runs", times=1, retry_after=1),
        server.misbehaving("500", only="HistoryPage", times=1),
        server.counting() as requests,
    ):
        found = pull(home / "busy", "busy", "team", silence=SILENCE)
    assert (found.reason, len(found.fetched)) == (None, 1)
    assert (requests["Runs"], requests["HistoryPage"]) == (2, 2)


def test_two_pulls_into_one_folder_do_not_mix(server: WandbServer, home: Path) -> None:
    server.add("slow", "s", history=[{"loss": 1.0}])
    results: list[Any] = []
    with server.misbehaving("hang"):
        first = threading.Thread(target=lambda: results.append(pull(home / "slow", "slow", "team", silence=4)))
        first.start()
        assert wait_until(lambda: (home / "slow" / ".pull" / "lock").exists())
        assert main(["runs", "pull", "slow", "--entity", "team", "--out", str(home / "slow")]) == 2
        first.join()
    assert results[0].reason.startswith("nothing came")


# Whatever W&B does, the reports are made.


def script(*arguments: str, environment: dict[str, str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate_reports.py"), *arguments], capture_output=True, text=True,
        cwd=cwd, env=environment, stdin=subprocess.PIPE,
    )  # fmt: skip


@pytest.fixture(scope="module")
def without(home: Path) -> float:
    """Seconds that the script takes without W&B."""
    (home / "empty").mkdir()
    began = time.monotonic()
    done = script("--offline", "--output-dir", str(home / "plain"), environment=surroundings(home / "empty"))
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began


def surroundings(runs: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "ALTGRAD_RUNS": str(runs), **more}


@pytest.mark.parametrize(("kind", "reason"), [("portal", "the answer is not W&B's"), ("hang", "nothing came")])
def test_a_failing_server_costs_the_reports_six_seconds_at_most(
    server: WandbServer, home: Path, without: float, kind: str, reason: str
) -> None:
    out = home / f"out-{kind}"
    began = time.monotonic()
    with server.misbehaving(kind):
        done = script("--project", "failing", "--output-dir", str(out), environment=surroundings(home / "empty"))
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert "W&B not configured or no runs found. Generating placeholder reports." in done.stdout
    assert reason in done.stdout
    assert "Pending Experiments" in (out / "format_comparison.md").read_text()
    assert "Traceback" not in done.stderr
    assert seconds < max(without, 2) * 2 + 7


@pytest.mark.parametrize(
    ("kind", "only", "silence", "reason"),
    [
        ("401", "", SILENCE, "status 401"),
        ("404", "", SILENCE, "status 404"),
        ("malformed", "Runs", SILENCE, "the answer is not W&B's"),
        ("429", "", 4, "nothing came from W&B's server for 4 s"),
        ("500", "", 4, "nothing came from W&B's server for 4 s"),
    ],
)
def test_a_failing_server_is_given_up_with_its_reason(
    server: WandbServer, home: Path, kind: str, only: str, silence: float, reason: str
) -> None:
    began = time.monotonic()
    with server.misbehaving(kind, only=only):
        found = pull(home / "failing", "failing", "team", silence=silence)
    assert reason in str(found.reason)
    assert KEY not in str(found.reason)
    assert time.monotonic() - began < min(silence, 20) + 2


def test_local_records_are_used_where_w_and_b_refuses(server: WandbServer, home: Path) -> None:
    write_run(home / "some", make_config("e4m3"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
    environment = surroundings(home / "some", WANDB_BASE_URL=closed)
    done = script("--output-dir", str(home / "refused"), environment=environment)
    assert done.returncode == 0, done.stderr
    assert "Reports are made from the 1 local records." in done.stdout
    assert "W&B's server cannot be reached (" in done.stdout


def test_a_server_that_takes_no_connection_is_given_up_after_a_moment(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        monkeypatch.setenv("WANDB_BASE_URL", "http://{}:{}".format(*full.getsockname()))
        began = time.monotonic()
        found = pull(home / "nobody", "p", "team")
        assert found.reason is not None
        assert "cannot be reached" in found.reason
        assert time.monotonic() - began < 4


def test_a_client_that_does_not_end_holds_up_nothing(server: WandbServer, home: Path, tmp_path: Path) -> None:
    server.add("stuck", "s", history=[{"loss": 1.0}])
    marker = tmp_path / "hanging"
    never = f"import os, time\nos._exit = lambda code: (open({str(marker)!r}, 'w').close(), time.sleep(300))\n"
    (tmp_path / "sitecustomize.py").write_text(never)
    environment = surroundings(home / "stuck", PYTHONPATH=os.pathsep.join((str(tmp_path), str(ROOT))))
    command = [sys.executable, "-m", "altgrad.cli", "runs", "pull", "stuck", "--out", str(home / "stuck")]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert marker.exists()
    assert time.monotonic() - began < 30
    assert len(load_runs([home / "stuck"]).records) == 1


def test_without_a_key_nothing_is_imported_and_nothing_asked(home: Path, tmp_path: Path) -> None:
    (tmp_path / "wandb.py").write_text("raise SystemExit('wandb was imported')")
    with WandbServer() as own:  # the other one may still be asked by what an earlier test left running
        given = wandb_environment(own, home) | {"PYTHONPATH": str(tmp_path)}
        environment = surroundings(home / "empty", **given)
        environment.pop("WANDB_API_KEY")
        done = script("--output-dir", str(tmp_path / "out"), environment=environment)
    assert done.returncode == 0, done.stderr
    assert "no W&B API key" in done.stdout
    assert not own.requests
    assert own.tunnels == []


PAGES = """
import sys
from pathlib import Path

def refuse(event, arguments):
    asks = event == "subprocess.Popen" and "wandb" in str(arguments)
    if asks or event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        raise SystemExit(f"{event} {arguments}")

sys.addaudithook(refuse)
from altgrad.reports import site_pages
from altgrad.site import write_folder

for family in ("home", "reports", "runs"):
    write_folder(site_pages(family), Path(sys.argv[1]) / family, site_root="../")
"""


def test_the_site_s_pages_are_made_without_a_network_where_there_is_a_key(home: Path, tmp_path: Path) -> None:
    write_run(home / "one", make_config("e4m3"))
    with WandbServer() as own:  # see the test above
        given = wandb_environment(own, home) | {"WANDB_PROJECT": "altgrad", "PYTHONPATH": str(ROOT)}
        environment = surroundings(home / "one", **given)
        command = [sys.executable, "-c", PAGES, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert not own.requests
    assert own.tunnels == []
    assert "e4m3" in "".join(path.read_text() for path in (tmp_path / "runs").glob("*.md"))


@pytest.mark.parametrize(
    ("project", "entity"), [("a/b", "team"), ("../x", None), ("", "a b\n<c>"), ("p" * 300, "\u202e")]
)
def test_a_strange_project_is_a_reason(home: Path, project: str, entity: str | None) -> None:
    found = pull(home / "strange", project, entity, silence=SILENCE)
    assert found.fetched == []
    assert found.reason
    assert "\n" not in found.reason
    assert [path.name for path in (home / "strange").iterdir()] == [".pull"]


@pytest.mark.parametrize("mode", ["offline", "disabled", "dryrun"])
def test_a_mode_without_a_network_asks_nothing(home: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    with WandbServer() as own:
        for name, value in (wandb_environment(own, home) | {"WANDB_MODE": mode}).items():
            monkeypatch.setenv(name, value)
        assert f"WANDB_MODE={mode}" in str(pull(home / "mode", "altgrad", silence=SILENCE).reason)
    assert not own.requests


def test_reports_are_made_where_a_pull_has_no_folder_to_write_to(server: WandbServer, home: Path) -> None:
    """A source that is a file's name, an empty list of sources, and a folder into which another pull writes."""
    server.add("nowhere-to", "n", history=[{"loss": 1.0}])
    (home / "a-file").write_text("x")
    with sole_writer(home / "busy-folder"):
        for runs, reason in (
            (home / "a-file", "cannot be written"),
            ("", "there is no folder for its runs"),
            (home / "busy-folder", "another pull or import is writing there"),
        ):
            environment = os.environ | {"ALTGRAD_RUNS": str(runs)}
            done = script("--project", "nowhere-to", "--output-dir", str(home / "made"), environment=environment)
            assert done.returncode == 0, done.stderr
            assert "Generating placeholder reports." in done.stdout
            assert reason in done.stdout
            assert "Traceback" not in done.stderr


def test_the_key_of_netrc_is_found(server: WandbServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    netrc = home / ".netrc"
    netrc.write_text(f"machine {server.url.removeprefix('http://')} login user password {KEY}\n")
    netrc.chmod(0o600)
    server.add("netrc", "n", history=[{"loss": 1.0}])
    found = pull(home / "netrc", "netrc", "team", silence=SILENCE)
    netrc.unlink()
    assert (found.reason, len(found.fetched)) == (None, 1)


def test_the_loader_fetches_a_project_and_an_unknown_one_is_said(server: WandbServer, home: Path) -> None:
    server.add("loaded", "n", history=[{"loss": 1.0, "val_loss": 2.0}])
    loader = ExperimentDataLoader([home / "loaded"], project="loaded", silence=SILENCE)
    assert loader.runs["wandb_url"].tolist() == [f"{server.url}/team/loaded/runs/n"]
    assert "local records, made from W&B (team/loaded" in loader.built_from
    missing = ExperimentDataLoader([home / "loaded"], project="nowhere", entity="team", silence=SILENCE)
    assert missing.pulled is not None
    assert "Could not find project nowhere" in str(missing.pulled.reason)
    assert len(missing.runs) == 1


# Offline files.


@pytest.fixture(scope="module")
def offline(home: Path) -> Path:
    """The record of an offline run with W&B's file in it."""
    path = write_run(home / "offline", make_config("e5m2", seed=8))
    mirror(home / "offline", "offline")
    return path


def test_an_offline_file_gives_the_record_again(offline: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "import", str(offline), "--out", str(home / "imported")]) == 0
    assert f"{offline.name}\n" in capsys.readouterr().out
    back, record = read_run(home / "imported" / offline.name), read_run(offline)
    assert back.config.identity() == record.config.identity()
    assert (back.status, back.run["summary"]) == ("finished", record.run["summary"])
    pd.testing.assert_frame_equal(
        back.history[["step", "loss", "val_loss"]], record.history[["step", "loss", "val_loss"]]
    )
    kept = import_runs(offline, offline.parent)
    assert (kept.recorded_here, kept.fetched) == (1, [])


def test_a_truncated_offline_file_gives_what_it_holds(
    offline: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = offline.rglob("*.wandb")
    data = file.read_bytes()
    (tmp_path / "files").mkdir()
    for name, part in (
        ("cut", data[: len(data) // 2]),
        ("head", data[:3]),
        ("noise", os.urandom(2000)),
        ("empty", b""),
    ):
        (tmp_path / "files" / f"run-{name}.wandb").write_bytes(part)
    begun, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **options: begun.append(given) or popen(*given, **options))
    found = import_runs(tmp_path / "files", tmp_path / "out")
    assert len(begun) == 1, "one process reads all"
    assert sorted(problem.where for problem in found.problems) == [
        "run-empty.wandb",
        "run-head.wandb",
        "run-noise.wandb",
    ]
    assert str(tmp_path) not in str(found.problems)
    (identity,) = found.fetched
    record = read_run(tmp_path / "out" / identity)
    assert record.status == "crashed"
    steps = record.history["step"].tolist()
    assert 1 < len(steps) < 21
    assert steps == list(range(len(steps)))
    assert main(["runs", "import", str(tmp_path / "nowhere"), "--out", str(tmp_path)]) == 2


def test_a_synced_run_is_linked(offline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def link(url: str) -> int:
        return main(["runs", "link", offline.name[:12], url, "--runs", str(offline.parent)])

    assert link("https://wandb.example/team/p/runs/x") == 0
    assert read_run(offline).run["wandb_url"] == "https://wandb.example/team/p/runs/x"
    for bad in ("javascript:alert(1)", "https://user:secret@wandb.example/x", "team/p/x"):
        assert link(bad) == 2
    assert read_run(offline).run["wandb_url"] == "https://wandb.example/team/p/runs/x"


# The table of names.


def test_the_table_is_unambiguous_and_names_real_keys() -> None:
    assert set(CONFIG) - {"data"} <= set(config_keys())
    for rows in (METRICS, CONFIG):
        names = [name for row in rows.values() for name in row]
        assert len(names) == len(set(names))
        assert names == [normal(name) for name in names]
    mapped, _ = map_config({key: 1 for key in CONFIG})
    assert set(mapped) == set(CONFIG)


def test_the_guide_has_the_table_of_the_code() -> None:
    assert table() in (ROOT / "docs" / "guides" / "wandb.md").read_text(), "put what table() gives into the guide"


def test_a_name_of_our_own_wins_over_other_names() -> None:
    found = of_wandb([{"_step": 5, "Train/Loss": 1, "loss": 2, "_runtime": 3, "_timestamp": 9}, {"loss": "-inf"}])
    assert found.table.to_pylist() == [
        {"step": 5, "Train/Loss": 1, "loss": 2, "_runtime": 3},
        {"step": 6, "Train/Loss": None, "loss": -math.inf, "_runtime": None},
    ]
    assert columns(found.names) == {"Train/Loss": "Train/Loss", "loss": "loss", "_runtime": "seconds"}


def test_a_run_whose_name_or_id_changed_is_there_once(tmp_path: Path) -> None:
    """It was renamed in W&B, and an earlier version gave its record an id with a seed that it does not state."""

    def take(name: str, identity: str = "abc", **more: Any) -> Pulled:
        event = {"event": "run", **described("wandb", identity, name, "p"), "entity": "team", **more}
        found = Pulled("p")
        _take([event], tmp_path, found, None)
        return found

    (before,) = take("before").fetched
    (other,) = take("before", "other").fetched
    shutil.copytree(tmp_path / before, tmp_path / "before-s0-12345678")
    (after,) = take("after").fetched
    assert sorted(path.parent.name for path in tmp_path.glob("*/run.json")) == sorted([other, after])
    take("befor")
    assert read_run(tmp_path / after).title == "befor", "no id says that it is called so now"
    assert take("broken", created="no time").problems
    assert (tmp_path / after).exists(), "what cannot be read again is kept as it was"
