"""Pages are taken from the cache only while nothing that they depend on has changed."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from records import config, write_run

from altgrad.analysis import ExperimentDataLoader
from altgrad.reports import document, site_key
from altgrad.reports.arms import arm_page_makers
from altgrad.runs import load_runs, newest_time, pack_study, sources_fingerprint
from altgrad.site import Paragraph, build
from altgrad.site.build import Part, SiteBuild, _cached, _kept, _started, _writing
from altgrad.site.document import render_document
from altgrad.text import escape


class Maker:
    """Counts how often the pages are made."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, bytes]:
        self.calls += 1
        return {"a/b.md": b"text", "a/b.svg": bytes(range(256))}


def test_the_same_key_gives_the_same_bytes_without_making_them_again(tmp_path: Path) -> None:
    make = Maker()
    first = _cached(_kept(tmp_path / "cache", "runs", "k" * 64), "runs", make)
    assert first == ("made", Maker()())
    assert _cached(_kept(tmp_path / "cache", "runs", "k" * 64), "runs", make) == ("cache", Maker()())
    assert make.calls == 1


def test_a_refresh_makes_them_again_although_the_key_is_the_same(tmp_path: Path) -> None:
    make = Maker()
    for refresh in (False, True, False):
        _cached(_kept(tmp_path, "runs", "k" * 64), "runs", make, refresh=refresh)
    assert make.calls == 2


def test_another_key_makes_them_again_and_removes_the_old_file_of_this_family_only(tmp_path: Path) -> None:
    make = Maker()
    _cached(_kept(tmp_path, "runs", "a" * 64), "runs", make)
    _cached(_kept(tmp_path, "home", "a" * 64), "home", make)
    _cached(_kept(tmp_path, "runs", "b" * 64), "runs", make)
    assert make.calls == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"home-{'a' * 16}.zip", f"runs-{'b' * 16}.zip"]


def test_a_damaged_cache_file_is_made_again(tmp_path: Path) -> None:
    make = Maker()
    _cached(_kept(tmp_path, "runs", "a" * 64), "runs", make)
    (tmp_path / f"runs-{'a' * 16}.zip").write_bytes(b"PK nonsense")
    assert _cached(_kept(tmp_path, "runs", "a" * 64), "runs", make) == ("made", Maker()())
    assert make.calls == 2


def test_pages_that_cannot_be_made_leave_nothing_in_the_cache(tmp_path: Path) -> None:
    def broken() -> dict[str, bytes]:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        _cached(_kept(tmp_path, "runs", "a" * 64), "runs", broken)
    assert not list(tmp_path.iterdir())


def test_what_is_made_beside_the_others_is_made_in_another_process_where_a_core_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def make() -> dict[str, bytes]:
        return {"made.by": str(os.getpid()).encode()}

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    begun = _started([Part(make)])
    (child,) = multiprocessing.active_children()
    child.join()
    made = begun()
    assert made["made.by"] != str(os.getpid()).encode()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert _started([Part(make)])() == make()


def test_processes_share_the_parts_and_their_order_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first part is begun beside the others and takes long; the rest is made here meanwhile."""
    go_on = multiprocessing.get_context("fork").Event()

    def part(number: int) -> dict[str, bytes]:
        if number == 0:
            go_on.wait(20)
        elif number == 4:
            go_on.set()
        return {f"page-{number}": str(os.getpid()).encode()}

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    begun = _started([Part(partial(part, number)) for number in range(5)])
    time.sleep(0.5)  # until the other process has begun
    made = begun()
    assert list(made) == [f"page-{number}" for number in range(5)]
    assert made["page-0"] != str(os.getpid()).encode() == made["page-1"]


def test_parts_are_made_again_only_where_their_key_or_the_script_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    current, script, made = SiteBuild(tmp_path), tmp_path / "script.py", []
    monkeypatch.setattr(build, "_current", lambda: current)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)

    def files_of(name: str, key: str) -> dict[str, bytes]:
        made.append(name)
        return {f"runs/{name}.md": key.encode(), "sources/shared.txt": b"the same"}

    def built(whole: str, refresh: bool = False, serving: bool = False, **keys: str) -> list[str]:
        current.refresh, current.serving = refresh, serving
        made.clear()
        current.files.clear()
        parts = [Part(partial(files_of, name, key), key) for name, key in keys.items()]
        build.build_files(dict, "runs/index", key=lambda: whole, script=script, parts=lambda: parts)
        current.waiting.pop()()
        assert current.files == {f"runs/{name}.md": key.encode() for name, key in keys.items()} | {
            "sources/shared.txt": b"the same"
        }
        return list(made)

    script.write_text("one")
    assert built("1", a="k1", b="k2", c="") == ["a", "b", "c"]
    assert built("1", a="k1", b="k2", c="") == []
    assert built("2", a="k1", b="k3", c="") == ["b", "c"]
    assert built("3", a="k1", d="k4", serving=True) == ["d"]
    assert built("4", a="k1", d="k4", refresh=True) == ["a", "d"]
    script.write_text("two")
    assert built("4", a="k1", d="k4") == ["a", "d"]
    (archive,) = (tmp_path / ".cache/site").glob("runs.index-*.zip")
    archive.write_bytes(b"nonsense")
    assert built("5", a="k1", d="k4") == ["a", "d"]


def test_what_fails_or_dies_beside_the_others_is_made_here_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    here = os.getpid()

    def broken() -> dict[str, bytes]:
        raise ValueError(f"in process {os.getpid()}")

    def killed() -> dict[str, bytes]:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"page": b"text"}

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    with pytest.raises(ValueError, match=f"in process {here}"):
        _started([Part(broken)])()
    assert _started([Part(killed)])() == {"page": b"text"}


def test_what_dies_while_it_is_handed_over_and_what_cannot_be_started_is_made_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = os.getpid()

    def large() -> dict[str, bytes]:
        return {"by": str(os.getpid()).encode(), "page": bytes(5_000_000)}

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    made = _started([Part(large)])
    (child,) = multiprocessing.active_children()
    time.sleep(1.0)  # until it waits for a reader, with a part of it written
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    assert made()["by"] == str(here).encode()

    def refused() -> int:
        raise BlockingIOError("as many processes as there may be")

    monkeypatch.setattr(os, "fork", refused)
    assert _started([Part(large)])()["by"] == str(here).encode()


def test_the_processes_end_with_the_one_that_began_them(tmp_path: Path) -> None:
    program = """
import multiprocessing, os, signal, sys, time
os.sched_getaffinity = lambda _: {0, 1, 2}
from altgrad.site.build import Part, _started
parts = [Part(lambda: {"page": bytes(5_000_000)}) for _ in range(3)]
begun = _started(parts)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    until = time.monotonic() + 20
    while living := [pid for pid in pids if Path(f"/proc/{pid}/stat").exists() and " Z " not in _status(pid)]:
        assert time.monotonic() < until, f"{living} are still there"
        time.sleep(0.05)


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return " Z "


def test_a_family_made_beside_the_others_is_kept_under_the_key_of_what_it_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record changes while the other scripts run: the next build makes the pages again."""
    current = SiteBuild(tmp_path)
    monkeypatch.setattr(build, "_current", lambda: current)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    record = tmp_path / "record"

    def built() -> tuple[str, bytes]:
        def make() -> dict[str, bytes]:
            return {"runs.md": record.read_bytes()}

        build.build_files(make, "runs/index", key=record.read_text, parts=lambda: [Part(make)])
        for child in multiprocessing.active_children():
            child.join()  # it has read the record
        record.write_text("new")
        (finish,) = current.waiting
        finish()
        current.waiting.clear()
        return current.families[-1].origin, current.files["runs.md"]

    record.write_text("old")
    assert built() == ("made", b"old")
    assert built() == ("made", b"new")
    assert built() == ("cache", b"new")


def test_the_key_follows_every_byte_and_the_lock_of_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALTGRAD_RUNS", str(tmp_path))
    keys = [site_key()]
    path = write_run(tmp_path, config("e4m3"), status="crashed")
    keys.append(site_key())
    assert site_key() == keys[-1]
    with open(path / "history.jsonl", "a") as file:
        file.write("\n")
    keys.append(site_key())
    write_run(tmp_path, config("e5m2"), status="running")
    keys.append(site_key())
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    keys.append(site_key())
    assert len(set(keys)) == len(keys)


def test_an_edit_of_a_familys_document_makes_each_of_its_pages_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "runs", config("e4m3"))
    shutil.copytree(document.DOCUMENTS / "runs", tmp_path / "docs" / "runs")
    monkeypatch.setattr(document, "DOCUMENTS", tmp_path / "docs")

    def keys() -> set[str]:
        return {maker.key for maker in arm_page_makers(ExperimentDataLoader([tmp_path / "runs"]))} - {""}

    before = keys()
    assert before == keys()
    for name in ("_arm", "_study"):
        with open(tmp_path / "docs" / "runs" / f"{name}.md", "a") as file:
            file.write("A sentence.\n")
        assert before
        assert not before & keys()
        before = keys()


def test_the_title_of_a_document_is_plain_text() -> None:
    text = "---\ndescription: Of {{ title }}.\n---\n# {{ title }}\n\n{{ title }}\n"
    hostile = "<b>a</b> & [x](y) {#z}"
    made = render_document(text, "d.md", {"title": hostile})
    assert (made.title, made.description) == (hostile, f"Of {hostile}.")
    (paragraph,) = made.blocks
    assert isinstance(paragraph, Paragraph)
    assert paragraph.text == escape(hostile)


def test_a_lock_taken_changes_the_fingerprint_without_a_byte(tmp_path: Path) -> None:
    import fcntl

    path = write_run(tmp_path, config("e4m3"), status="crashed")
    before = sources_fingerprint([tmp_path])
    with open(path / "lock", "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert sources_fingerprint([tmp_path]) != before
    assert sources_fingerprint([tmp_path]) == before


def test_the_newest_time_is_the_loaders_and_damaged_heads_are_passed_over(tmp_path: Path) -> None:
    assert newest_time([tmp_path]) is None
    write_run(tmp_path / "runs", config("fp32"))
    late = write_run(tmp_path / "runs", config("e4m3"))
    run = json.loads((late / "run.json").read_text())
    (late / "run.json").write_text(json.dumps(run | {"ended": "2031-01-02T03:04:05Z"}))
    pack_study(load_runs([tmp_path / "runs"]).records, tmp_path / "packed")
    (write_run(tmp_path / "runs", config("e5m2")) / "run.json").write_text("{")
    for source in ("runs", "packed"):
        assert newest_time([tmp_path / source]) == datetime(2031, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_files_are_written_by_a_process_beside_the_build_or_here_where_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = os.getpid()

    def write(name: str, fails: bool = False) -> None:
        if fails and os.getpid() != here:
            raise OSError("no space left")
        (tmp_path / name).write_text(str(os.getpid()))

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    written = _writing([partial(write, "beside")])
    assert written is not None
    written()
    assert (tmp_path / "beside").read_text() != str(here)
    failed = _writing([partial(write, "first"), partial(write, "second", fails=True)])
    assert failed is not None
    failed()
    assert (tmp_path / "second").read_text() == str(here)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert _writing([partial(write, "alone")]) is None


def test_equal_keys_of_arms_give_equal_pages_whatever_else_is_recorded(tmp_path: Path) -> None:
    """What a page is made from is in its key: the pages of arms with equal keys are the same bytes."""
    looks = [(20, "a", "mlp", "weight", "overflow", 0.5), (20, "a", "mlp", "weight", "sqnr_db", 20.0)]
    for seed in (10, 11):
        write_run(tmp_path, config("fp32", seed=seed))
        write_run(tmp_path, config("e4m3", seed=seed), looks=looks)
        write_run(tmp_path, config("e5m2", seed=seed), looks=looks)
        write_run(tmp_path, config("e3m4", seed=seed, study="tuning"))
    write_run(tmp_path, config("e4m3", seed=3, foreign={"note": "x"}))

    def made() -> dict[str, tuple[str, dict[str, bytes]]]:
        makers = [maker for maker in arm_page_makers(ExperimentDataLoader([tmp_path])) if maker.key]
        pages = [(maker.key, maker()) for maker in makers]
        return {key: (page.path, build._site_files([page], tmp_path)) for key, page in pages}

    def changed(change: Callable[[], object]) -> set[str]:
        """The kinds of pages with a new key; all others are as they were."""
        nonlocal before
        change()
        after = made()
        assert all(after[key] == before[key] for key in after.keys() & before.keys())
        found = {path.removeprefix("runs/").split("-")[0] for key, (path, _) in after.items() if key not in before}
        before = after
        return found

    before = made()
    assert len(before) == 5  # three arms, the foreign one, and the study
    assert changed(lambda: None) == set()
    assert changed(lambda: write_run(tmp_path, config("e2m5", seed=10))) == {"e2m5"}
    assert changed(lambda: write_run(tmp_path, config("e4m3", seed=12))) == {"e4m3"}
    assert changed(lambda: write_run(tmp_path, config("e3m4", seed=12, study="tuning"))) == {"study"}
    assert changed(lambda: write_run(tmp_path, config("fp32", seed=12))) >= {"fp32", "e4m3", "e5m2", "e2m5", "study"}
    assert "e3m4" in changed(lambda: write_run(tmp_path, config("e3m4", seed=13)))  # its links lead elsewhere now


def test_a_mistake_in_a_document_ends_a_build_with_its_line_and_another_error_is_whole(tmp_path: Path) -> None:
    exceptions = pytest.importorskip("mkdocs.exceptions")

    def broken() -> dict[str, bytes]:
        render_document("# T\n\n{{ unknown }}\n", "docs/d.md", {})
        return {}

    with pytest.raises(exceptions.PluginError, match=r"^docs/d\.md:3: 'unknown' is undefined; correct the slot"):
        build._finish(SiteBuild(tmp_path), broken, ("index",), None, None, 0.0)
    with pytest.raises(ZeroDivisionError):
        build._finish(SiteBuild(tmp_path), lambda: {"a": bytes(1 // 0)}, ("index",), None, None, 0.0)
