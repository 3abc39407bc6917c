"""Records on a store are read in their place, as those on the disk are, and a store that is not there is one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from records import config, write_run

from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.cli import main
from altgrad.runs import default_sources, load_runs, pack_study, read_histories, sources_fingerprint
from altgrad.runs.query import verify
from altgrad.runs.store import Kept
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
    monkeypatch.setattr(Kept.__init__, "__defaults__", (1,))  # no table is kept: each is read when it is asked for
    assert ExperimentDataLoader(["memory://campaign"]).fingerprint == fingerprint


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


def test_tables_beyond_the_bound_are_read_again() -> None:
    read: list[str] = []

    def table(name: str) -> pd.DataFrame:
        read.append(name)
        return pd.DataFrame({"step": range(10)})

    kept = Kept(most=80)
    for name in ("a", "a", "b", "b", "a"):
        assert len(kept.of(table, name)) == 10
    assert read == ["a", "b", "a"]
