"""Whatever happens to a writer, every row that was acknowledged is there, or is named as lost."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from records import DATA, config, write_run

from altgrad.config import UsageError
from altgrad.runs import RunExists, RunWriter, load_runs, read_run
from altgrad.runs.query import verify

ROOT = Path(__file__).parents[1]
START = f"""
import json, os, random, signal, struct, sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
from records import DATA, config
from altgrad.config import UsageError
from altgrad.runs import RunExists, RunWriter
root = Path(sys.argv[1])
def create(folder, seed=0):
    return RunWriter.create(folder, config("e4m3", seed=seed), data_fingerprint=DATA, environment={{}})
"""


def python(script: str, *arguments: object, timeout: float = 60) -> str:
    """What a script prints that runs in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", START + textwrap.dedent(script), *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


KILLS = 50
KILLED = f"""
def run(folder, pipe):
    with create(folder) as writer:
        os.write(pipe, struct.pack("i", -1))
        for step in range(300):
            writer.log(step, loss=1.0 / (step + 1), **({{"val_loss": 1.0}} if step % 100 == 0 else {{}}))
            if step % 10 == 0:
                writer.log_layers([(step, "a", "mlp", "weight", "amax", 1.0)] * 20)
            os.write(pipe, struct.pack("i", step))
        writer.finish({{"val_loss": 1.0}})
        os.write(pipe, struct.pack("i", 300))

def trial(folder, seconds):
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        run(folder, theirs)
        os._exit(0)
    os.close(theirs)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(ours, "rb") as pipe:
        return [value for (value,) in struct.iter_unpack("i", pipe.read())]

def whole(number):
    begun, child = time.monotonic(), os.fork()
    if child == 0:
        run(root / f"whole-{{number}}", os.open(os.devnull, os.O_WRONLY))
        os._exit(0)
    os.waitpid(child, 0)
    return time.monotonic() - begun

length = min(whole(number) for number in range(3))
chance = random.Random(0)
acknowledged = [trial(root / str(number), chance.uniform(0, 1.1 * length)) for number in range({KILLS})]
print(json.dumps(acknowledged))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    """Fifty runs that were killed at random moments, and what each had acknowledged before."""
    root = tmp_path_factory.mktemp("killed")
    return root, json.loads(python(KILLED, root))


def test_a_kill_at_any_moment_loses_no_acknowledged_row(killed: tuple[Path, list[list[int]]]) -> None:
    root, acknowledged = killed
    moments = {"created": 0, "running": 0, "finished": 0}
    for number, rows in enumerate(acknowledged):
        found = load_runs([root / str(number)])
        assert found.problems == ()
        if not rows:  # killed before its record was there
            assert all(record.status == "crashed" for record in found.records)
            moments["created"] += 1
            continue
        (record,) = found.records
        steps = record.history["step"].tolist()
        assert steps == list(range(len(steps)))
        assert len(steps) > min(max(rows), 299), "an acknowledged row is lost"
        layers = record.layers["step"].tolist() if len(record.layers) else []
        assert len(layers) >= 20 * len([step for step in rows if 0 <= step < 300 and step % 10 == 0])
        assert record.status in (("finished",) if 300 in rows else ("crashed", "finished"))
        if record.status == "finished":
            assert len(steps) == 300
        moments["finished" if 300 in rows else "running"] += 1
    assert moments["running"] >= 10, moments
    assert sum(moments.values()) == KILLS


def test_verify_names_rows_that_a_kill_cut_short_and_nothing_else(killed: tuple[Path, list[list[int]]]) -> None:
    root, _ = killed
    for number in range(KILLS):
        for problem in verify([root / str(number)])[1]:
            assert "is lost" in problem.reason or "no row is lost" in problem.reason or "missing" in problem.reason


def test_a_killed_run_can_be_recorded_again_and_is_kept_aside(killed: tuple[Path, list[list[int]]]) -> None:
    root, acknowledged = killed
    number = next(index for index, rows in enumerate(acknowledged) if rows and 0 < max(rows) < 290)
    write_run(root / str(number), config("e4m3"))
    found = load_runs([root / str(number)])
    assert [record.status for record in found.records] == ["finished"]
    assert "an earlier attempt of a run that was repeated: crashed" in found.problems[0].reason


FULL = """
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size, hard = 20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
acknowledged, failed = [], 0
writer = create(root)
resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
row = {f"metric_{index}": 1 / 3 for index in range(20)}
def fill(first, last):
    global failed
    for step in range(first, last):
        try:
            writer.log(step, **row)
            acknowledged.append(step)
        except OSError:
            failed += 1
fill(0, 100)
if sys.argv[2] == "room again":
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    fill(100, 200)
    writer.log(200, val_loss=1.0)
    acknowledged.append(200)
    writer.finish({})
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with writer:
            writer.log(200, **row)
    except OSError:
        pass
print(json.dumps([acknowledged, failed]))
"""


@pytest.mark.parametrize("then", ["room again", "full to the end"])
def test_a_full_disk_is_an_error_of_the_row_that_did_not_fit(tmp_path: Path, then: str) -> None:
    acknowledged, failed = json.loads(python(FULL, tmp_path, then))
    assert failed > 10
    assert len(acknowledged) > 10
    found = load_runs([tmp_path])
    assert found.problems == ()
    assert found.records[0].history["step"].tolist() == acknowledged
    assert found.records[0].status == ("finished" if then == "room again" else "crashed")
    assert verify([tmp_path]) == (1, [], [])


WRITER = """
with create(root) as writer:
    begun = time.monotonic()
    step = 0
    while time.monotonic() - begun < 1.5 or not (Path(sys.argv[2]).exists() or time.monotonic() - begun > 30):
        time.sleep(0.0002)
        writer.log(step, loss=1.0, val_loss=1.0) if step % 50 == 0 else writer.log(step, loss=1.0)
        step += 1
    writer.finish({"rows": step})
"""


def test_two_readers_of_a_run_in_progress_see_whole_rows_and_no_crash(tmp_path: Path) -> None:
    seen: list[list[tuple[str, int]]] = [[], []]
    errors: list[BaseException] = []
    done = threading.Event()
    (tmp_path / "runs").mkdir()
    enough = tmp_path / "enough"

    def read(mine: list[tuple[str, int]]) -> None:
        try:
            while True:
                last = done.is_set()
                for record in load_runs([tmp_path / "runs"]).records:
                    steps = record.history["step"].tolist()
                    assert steps == list(range(len(steps)))
                    mine.append((record.status, len(steps)))
                assert not load_runs([tmp_path / "runs"]).problems
                if all(len(each) > 4 for each in seen):
                    enough.touch()
                if last:
                    return
        except BaseException as error:
            errors.append(error)

    readers = [threading.Thread(target=read, args=(mine,)) for mine in seen]
    for reader in readers:
        reader.start()
    try:
        python(WRITER, tmp_path / "runs", enough)
    finally:
        done.set()
        for reader in readers:
            reader.join(30)
    assert errors == []
    for mine in seen:
        counts = [count for _, count in mine]
        assert counts == sorted(counts), "a row that was read once is there ever after"
        statuses = [status for status, _ in mine]
        assert set(statuses) <= {"running", "finished"}
        assert statuses[-1] == "finished"
        assert statuses.count("running") > 3


RACE = """
outcomes = []
for round in range(8):
    folder = root / str(round)
    if round % 2:  # there is a record of a killed run already
        child = os.fork()
        if child == 0:
            create(folder).log(0, loss=1.0)
            os._exit(0)
        os.waitpid(child, 0)
    ours, theirs = os.pipe()
    start = time.time() + 0.05
    children = []
    for number in range(6):
        child = os.fork()
        if child == 0:
            time.sleep(max(0, start - time.time()))
            try:
                writer = create(folder)
                for step in range(50):
                    writer.log(step, writer=number)
                os.write(theirs, b"w")
                end = time.monotonic() + 20
                while len(list(root.glob(f"{round}-refused-*"))) < 5 and time.monotonic() < end:
                    time.sleep(0.01)  # on a busy machine others begin late
                os._exit(0)
            except RunExists as error:
                os.write(theirs, b"r" if "another process" in str(error) else b"?")
                (root / f"{round}-refused-{number}").touch()
            except BaseException as error:
                os.write(theirs, b"!")
                print(type(error), error, file=sys.stderr)
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        outcomes.append(pipe.read().decode())
print(json.dumps(outcomes))
"""


def test_of_writers_that_begin_at_once_one_writes_and_the_others_are_refused(tmp_path: Path) -> None:
    outcomes = json.loads(python(RACE, tmp_path))
    assert ["".join(sorted(outcome)) for outcome in outcomes] == ["rrrrrw"] * 8
    for number in range(8):
        folder = tmp_path / str(number)
        (record,) = load_runs([folder]).records
        assert record.history["writer"].nunique() == 1, "one writer's rows only"
        assert len(record.history) == 50
        assert len(list(folder.glob("*.old"))) == number % 2


def test_a_second_writer_in_the_same_process_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    given: dict[str, Any] = {"data_fingerprint": DATA, "environment": {}}
    with RunWriter.create(tmp_path, config(), **given) as writer:
        writer.log(0, loss=1.0, val_loss=1.0)
        before = {path.name: path.read_bytes() for path in writer.path.iterdir()}
        begun = time.monotonic()
        with pytest.raises(RunExists, match="another process"):
            RunWriter.create(tmp_path, config(), **given)
        assert time.monotonic() - begun < 2
        assert {path.name: path.read_bytes() for path in writer.path.iterdir()} == before
        writer.finish({})
    assert read_run(writer.path).status == "finished"


def test_a_refused_row_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path, config(), data_fingerprint=DATA, environment={}) as writer:
        writer.log(0, loss=1.0)
        before = (writer.path / "history.jsonl").read_bytes()
        with pytest.raises(UsageError):
            writer.log(1, loss="x")
        with pytest.raises(UsageError):
            writer.log_layers([(1, "a", "b", "c", "d", 1.0), (1, "a", "b", "c", "d", "x")])
        assert (writer.path / "history.jsonl").read_bytes() == before
        assert (writer.path / "layers.jsonl").read_bytes() == b""
