"""Records on a store are read in their place, as those on the disk are, and a store that is not there is one line."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from records import config, write_run

from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.cli import main
from altgrad.runs import default_sources, load_runs, pack_study, read_histories, sources_fingerprint
from altgrad.runs.query import verify
from altgrad.runs.store import FRAME, Kept
from altgrad.runs.stores import located

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Runs, one of them damaged, and a packed study."""
    root = tmp_path / "campaign"
    for seed in range(3):
        write_run(root, config("e4m3", seed=seed))
    pack_study(load_runs([root]).records, root / "study")
    (write_run(root, config("fp32")) / "history.parquet").write_bytes(b"PAR1")
    return root


@pytest.fixture
def memory(folder: Path) -> Iterator[Any]:
    """A store with the same files, and nothing of them on a disk."""
    store = fsspec.filesystem("memory")
    store.put(str(folder), "/campaign", recursive=True)
    yield store
    store.rm("/campaign", recursive=True)


def test_a_store_gives_what_its_folder_gives(
    folder: Path, memory: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = located("memory://campaign"), load_runs([folder])
    found = load_runs([there])
    assert [one.id for one in found.records] == [one.id for one in here.records]
    assert found.problems == here.problems
    assert len(found.problems) == 1
    for one, other in zip(found.records, here.records, strict=True):
        assert one.history.equals(other.history)
        assert one.layers.equals(other.layers)
    assert verify([there]) == verify([folder])
    assert read_histories([there])[0].equals(read_histories([folder])[0])
    assert load_runs([located(folder.as_uri())]).problems == here.problems
    printed = []
    for source in ("memory://campaign", folder.as_uri(), str(folder)):
        assert main(["runs", "list", "--runs", source]) == 0
        printed.append(capsys.readouterr())
    assert len(set(printed)) == 1
    monkeypatch.setenv("ALTGRAD_RUNS", f"memory://campaign{os.pathsep}{folder}")
    assert default_sources() == (there, folder)
    fingerprint = ExperimentDataLoader([folder]).fingerprint
    assert ExperimentDataLoader(["memory://campaign"]).fingerprint == fingerprint
    monkeypatch.setattr(Kept.__init__, "__defaults__", (1,))  # no table is kept: each is read when it is asked for
    for one, other in zip(load_runs([there]).records, here.records, strict=True):
        assert one.history.equals(other.history)
        assert one.layers.equals(other.layers)


def test_a_store_that_keeps_its_lists_is_asked_again(folder: Path) -> None:
    class Listed(fsspec.AbstractFileSystem):
        """A folder's files, in lists that are kept as those of s3fs and gcsfs are: asked to forget one path, by it."""

        protocol = "listed"
        files = fsspec.filesystem("file")

        def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
            path = path.rstrip("/")
            if path not in self.dircache:
                self.dircache[path] = [
                    {**each, "name": each["name"][len(str(folder.parent)) :].lstrip("/")}
                    for each in self.files.ls(f"{folder.parent}/{path}", detail=True)
                ]
            return self.dircache[path] if detail else [each["name"] for each in self.dircache[path]]

        def cat_file(self, path: str, **_: Any) -> Any:
            return self.files.cat_file(f"{folder.parent}/{path}")

        def invalidate_cache(self, path: str | None = None) -> None:
            self.dircache.clear() if path is None else self.dircache.pop(path, None)

    fsspec.register_implementation("listed", Listed, clobber=True)
    source = located("listed://campaign")
    shutil.rmtree(folder / "study")
    before = len(load_runs([source]).records)
    write_run(folder / "below", config("e4m3", seed=7))
    assert len(load_runs([source]).records) == before + 1
    write_run(folder / "below", config("e4m3", seed=8))
    assert verify([source]).records == before + 3, "the damaged one is counted"
    assert len(load_runs([source]).records) == before + 2


def test_what_changes_on_a_store_is_seen_and_no_command_changes_it(
    memory: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sources_fingerprint([located("memory://campaign")])
    assert before == sources_fingerprint([located("memory://campaign")])
    name = next(iter(memory.ls("/campaign", detail=False))) + "/run.json"
    memory.pipe(name, memory.cat_file(name) + b" ")
    assert before != sources_fingerprint([located("memory://campaign")])
    files = memory.find("/campaign")
    assert main(["runs", "prune", "--status", "finished", "--yes", "--runs", "memory://campaign"]) == 2
    assert "only read" in capsys.readouterr().err
    assert memory.find("/campaign") == files


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("memory://nothing-there", "no such folder"),
        ("memory://user:password@host/x", "memory://(left out: looks like a secret)@host/x: no such folder"),
        ("nowhere://bucket", "nowhere://bucket: cannot be read (Protocol not known: nowhere)"),
        ("nopackage://bucket", "its package is missing (Install nopackage)"),
        ("offline://bucket", "offline://bucket: cannot be read (no route)"),
    ],
)
def test_a_store_that_cannot_be_read_is_one_line(address: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    class Offline(fsspec.AbstractFileSystem):
        protocol = "offline"

        def info(self, path: str, **_: Any) -> Any:
            raise RuntimeError("no\nroute")

    fsspec.register_implementation("offline", Offline, clobber=True)
    fsspec.register_implementation("nopackage", "nopackage.Files", errtxt="Install nopackage", clobber=True)
    assert main(["runs", "list", "--runs", address]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert said in err
    assert "password" not in err


def test_tables_beyond_the_bound_are_read_again_and_those_of_layers_leave_the_histories() -> None:
    read: list[str] = []

    def table(run: str, name: str) -> pd.DataFrame:
        read.append(f"{run} {name}")
        return pd.DataFrame({"step": range(10)})

    a, b = partial(table, "a"), partial(table, "b")
    kept = Kept(most=80 + FRAME)
    for run in (a, a, b, b, a):
        assert len(kept.of(run, "history")) == 10
    assert read == ["a history", "b history", "a history"]
    kept.of(b, "layers")
    kept.of(a, "history")
    assert read[3:] == ["b layers"]


def test_layers_have_a_bound_of_their_own_within_that_of_all() -> None:
    read: list[str] = []

    def table(run: str, name: str) -> pd.DataFrame:
        read.append(f"{run} {name}")
        return pd.DataFrame({"step": range(10)})

    a, b = partial(table, "a"), partial(table, "b")
    kept = Kept(most=10 * (80 + FRAME), layers=80 + FRAME)
    for run, name in ((a, "history"), (b, "history"), (a, "layers"), (b, "layers"), (a, "history"), (b, "history")):
        kept.of(run, name)
    assert read == ["a history", "b history", "a layers", "b layers"]
    kept.of(b, "layers")
    kept.of(a, "layers")
    assert read[4:] == ["a layers"]


def test_records_share_what_is_equal_in_them_and_keep_what_only_compares_equal(tmp_path: Path) -> None:
    for seed, figures in enumerate(([0.0, 1], [-0.0, 1], [0.0, 1.0])):
        write_run(tmp_path, config(seed=seed), summary={"figures": figures})
    a, b, c = sorted(load_runs([tmp_path]).records, key=lambda record: record.config.seed)
    assert [repr(each.run["summary"]["figures"]) for each in (a, b, c)] == ["[0.0, 1]", "[-0.0, 1]", "[0.0, 1.0]"]
    assert a.config != b.config
    assert a.config.model is b.config.model
    assert a.config.model_fields_set is b.config.model_fields_set
    assert a.run["config"]["model"] is b.run["config"]["model"]
    assert a.run["environment"] is b.run["environment"]


def test_threads_that_ask_at_once_keep_the_bound_and_read_side_by_side() -> None:
    both = threading.Barrier(2, timeout=5)  # is passed only if no thread waits for another's reading
    table = pd.DataFrame({"step": range(10)})

    def read(name: str) -> pd.DataFrame:
        both.wait()
        return table

    kept = Kept(most=2 * (100 + FRAME))
    with ThreadPoolExecutor(2) as pool:
        assert all(each is table for each in pool.map(kept.of, [read, read], ["layers", "layers"]))
    seen: list[str] = []

    def again(run: str, name: str) -> pd.DataFrame:
        seen.append(run)
        return table

    b, c = partial(again, "b"), partial(again, "c")
    for run in (b, c, b):  # with room for two: what was read twice counts once and goes first
        kept.of(run, "layers")
    assert seen == ["b", "c"]
    assert kept._size.total() == 2 * (80 + FRAME)
