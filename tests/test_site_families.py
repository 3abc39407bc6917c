"""Pages are taken from the cache only while nothing that they depend on has changed."""

from __future__ import annotations

import json
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
from altgrad.analysis.comparison import FormatComparator
from altgrad.reports import document, site_key, site_page_makers
from altgrad.reports.arms import arm_page_makers
from altgrad.runs import load_runs, newest_time, pack_study, sources_fingerprint
from altgrad.site import Paragraph, build, chart
from altgrad.site.build import Part, SiteBuild
from altgrad.site.cache import Cache
from altgrad.site.document import DocumentError, render_document
from altgrad.text import escape

Families = Callable[..., list[str]]


@pytest.fixture
def families(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Families:
    """Builds the family "runs/index" of a page for each part, given with its key; gives the names of those made."""
    script, log = tmp_path / "script.py", tmp_path / "made"
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)

    def page(name: str, key: str) -> dict[str, bytes]:
        with log.open("a") as file:
            file.write(f"{name}\n")
        return {f"runs/{name}.md": key.encode(), "sources/shared.txt": b"the same"}

    def built(whole: str, refresh: bool = False, serving: bool = False, text: str = "", **keys: str) -> list[str]:
        current = SiteBuild(tmp_path, serving, cache=Cache(tmp_path / "cache", refresh))
        handed: dict[str, bytes] = {}
        monkeypatch.setattr(build, "_current", lambda: current)
        monkeypatch.setattr(build, "_hand_over", lambda _, content: handed.update(content))
        log.write_text("")
        script.write_text(text)
        parts = [Part(partial(page, name, key), key) for name, key in keys.items()]
        build._add(lambda: parts, ("runs/index",), lambda: whole, script.read_bytes())
        current.cache.tidy()
        wanted = {f"runs/{name}.md": key.encode() for name, key in keys.items()}
        assert handed == wanted | {"sources/shared.txt": b"the same"}
        (family,) = current.families
        made = log.read_text().split()
        assert (family.origin, family.made) == ("made" if made or refresh else family.origin, len(made))
        return made

    return built


def test_the_same_key_gives_the_same_files_without_making_them_again(families: Families) -> None:
    assert families("1", a="k1", b="k2") == ["a", "b"]
    assert families("1", a="k1", b="k2") == []
    assert families("1", refresh=True, a="k1", b="k2") == ["a", "b"]


def test_parts_are_made_again_only_where_their_key_or_the_script_has_changed(families: Families) -> None:
    assert families("1", a="k1", b="k2", c="k3") == ["a", "b", "c"]
    assert families("2", a="k1", b="other", c="k3", d="k4") == ["b", "d"]
    assert families("3", a="k1", c="k3") == []
    assert families("4", a="k1", b="other", c="k3") == ["b"], "the cache has nothing that the last build had not"
    assert families("4", text="# more", a="k1", b="other", c="k3") == ["a", "b", "c"]
    assert families("5", text="# more", serving=True, a="k1", b="new", c="k3") == ["b"]


def test_a_damaged_archive_is_made_again(families: Families, tmp_path: Path) -> None:
    assert families("1", a="k1", b="k2") == ["a", "b"]
    for name in sorted(path.name for path in (tmp_path / "cache").iterdir()):
        (tmp_path / "cache" / name).write_bytes(b"PK nonsense")
        assert len(families("1", a="k1", b="k2")) == ("part" in name)


def test_a_cache_that_cannot_be_written_is_off_and_one_line_says_so(
    families: Families, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file")
    with caplog.at_level("INFO"):
        assert families("1", a="k1", b="k2") == ["a", "b"]
        assert families("1", a="k1", b="k2") == ["a", "b"]
    told = [record.message for record in caplog.records]
    assert told == ["The cache is off, since .cache/site cannot be written (File exists)"] * 2


def test_what_the_cache_holds_is_what_was_used(tmp_path: Path) -> None:
    cache = Cache(tmp_path, memory={})
    files = {"a/b.md": b"text", "a/b.svg": bytes(range(256))}
    for name in ("runs", "runs.part", "home"):
        cache.put(name, "k" * 64, files)
    later = Cache(tmp_path, memory=cache.memory)
    assert later.get("runs", "k" * 64) == files
    assert later.get("runs", "j" * 64) is None
    assert later.last("home") == files
    later.tidy()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}-{'k' * 16}.zip" for name in ("home", "runs")]
    assert set(later.memory or ()) <= {path.name for path in tmp_path.iterdir()}
    assert Cache(tmp_path, refresh=True).get("runs", "k" * 64) is None


def test_cores_share_the_work_and_its_order_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    here = str(os.getpid()).encode()

    def page(number: int) -> dict[str, bytes]:
        return {f"page-{number}": str(os.getpid()).encode()}

    work = [partial(page, number) for number in range(5)]
    made = build._shared(work, build.PROCESSES)
    assert [*map(list, made)] == [[f"page-{number}"] for number in range(5)]
    assert here not in {by for files in made for by in files.values()}
    assert build._shared(work, 1) == [make() for make in work]


def test_an_error_of_another_process_is_the_builds_and_one_that_is_killed_is_done_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    here = os.getpid()

    def broken() -> dict[str, bytes]:
        raise DocumentError("docs/d.md:3: 'x' is undefined")

    def killed() -> dict[str, bytes]:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"page": b"text"}

    with pytest.raises(DocumentError, match=r"^docs/d\.md:3: 'x' is undefined$"):
        build._shared([broken, dict], 2)
    assert build._shared([killed, killed], 2) == [{"page": b"text"}] * 2


def test_the_processes_end_with_the_one_that_began_them(tmp_path: Path) -> None:
    program = """
import os, signal, threading, time
os.sched_getaffinity = lambda _: {0, 1}
from altgrad.site import build
def work():
    open(f"{os.getpid()}.pid", "w").close()
    time.sleep(30)
def end():
    while len([name for name in os.listdir() if name.endswith(".pid")]) < 2:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=end).start()
build._shared([work, work, work], 2)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], cwd=tmp_path, env=environment, timeout=60)
    assert done.returncode == -signal.SIGKILL
    pids = [int(path.stem) for path in tmp_path.glob("*.pid")]
    until = time.monotonic() + 20
    while living := [pid for pid in pids if " Z " not in _status(pid)]:
        assert time.monotonic() < until, f"{living} are still there"
        time.sleep(0.05)


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return " Z "


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
    shutil.copytree(document.DOCUMENTS, tmp_path / "docs")
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


def test_an_edited_sentence_of_a_report_makes_that_page_alone_and_finds_and_draws_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(10, 14):
        for number, name in enumerate(("fp32", "e4m3", "e5m2")):
            write_run(tmp_path / "runs", config(name, seed=seed), 2.0 + 0.01 * number * seed)
    shutil.copytree(document.DOCUMENTS, tmp_path / "docs")
    monkeypatch.setattr(document, "DOCUMENTS", tmp_path / "docs")
    monkeypatch.setenv("ALTGRAD_RUNS", str(tmp_path / "runs"))
    drawn: list[str] = []
    draw = chart._drawn
    monkeypatch.setattr(chart, "_drawn", lambda each: drawn.append(each.id) or draw(each))

    def made() -> dict[str, tuple[str, dict[str, bytes]]]:
        pages = [(maker.key, maker()) for maker in site_page_makers("reports")]
        return {page.path: (key, build._site_files([page], tmp_path)) for key, page in pages}

    before = made()
    assert "loss-gap" in drawn
    drawn.clear()
    found = []
    read = FormatComparator.__init__
    monkeypatch.setattr(FormatComparator, "__init__", lambda *given, **named: found.append(1) or read(*given, **named))
    with open(tmp_path / "docs/reports/format_comparison.md", "a") as file:
        file.write("\nOne sentence more.\n")
    after = made()
    assert [path for path in after if after[path][0] != before[path][0]] == ["reports/format_comparison"]
    assert [path for path in after if after[path][1] != before[path][1]] == ["reports/format_comparison"]
    assert b"One sentence more." in after["reports/format_comparison"][1][".body/reports/format_comparison.md"]
    assert (drawn, found) == ([], [])
    write_run(tmp_path / "runs", config("e4m3", seed=14), 2.1)
    assert len({path for path, (key, _) in made().items() if key != after[path][0]}) == len(after)
    assert found


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
    assert changed(lambda: write_run(tmp_path, config("e2m5", seed=10))) == {"e2m5", "e4m3"}  # the one beside it too
    assert changed(lambda: write_run(tmp_path, config("e4m3", seed=12))) == {"e4m3"}
    assert changed(lambda: write_run(tmp_path, config("e3m4", seed=12, study="tuning"))) == {"study"}
    assert changed(lambda: write_run(tmp_path, config("fp32", seed=12))) >= {"fp32", "e4m3", "e5m2", "e2m5", "study"}
    assert "e3m4" in changed(lambda: write_run(tmp_path, config("e3m4", seed=13)))  # its links lead elsewhere now


def test_a_mistake_in_a_document_ends_a_build_with_its_line_and_another_error_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exceptions = pytest.importorskip("mkdocs.exceptions")

    def broken() -> dict[str, bytes]:
        render_document("# T\n\n{{ unknown }}\n", "docs/d.md", {})
        return {}

    monkeypatch.setattr(build, "_current", lambda: SiteBuild(tmp_path))
    with pytest.raises(exceptions.PluginError, match=r"^docs/d\.md:3: 'unknown' is undefined; correct the slot"):
        build.build_files(broken, "index")
    with pytest.raises(ZeroDivisionError):
        build.build_files(lambda: {"a": bytes(1 // 0)}, "index")
