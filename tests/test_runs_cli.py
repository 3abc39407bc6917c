"""`altgrad runs`: every question gets its answer or one clear line, and nothing is removed that should stay."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from records import DATA, config, without_proofs, write_matrix, write_run

from altgrad.cli import main
from altgrad.config import UsageError
from altgrad.runs import RunWriter, default_sources, load_runs, pack_study, read_histories, read_run, record
from altgrad.runs.query import verify

ROOT = Path(__file__).parents[1]
HOSTILE = "\x1b]0;owned\x07=cmd()\u202e"


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command; gives exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["runs", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def edit(path: Path, **changes: Any) -> None:
    run = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(run | changes))


def ids(out: str) -> list[str]:
    return [line.split()[0] for line in out.splitlines()[1:]]


def test_list_shows_every_run_and_names_what_was_left_out(tmp_path: Path, told: Any) -> None:
    good, bad = write_run(tmp_path, config("e4m3")), write_run(tmp_path, config("e5m2"))
    (bad / "run.json").write_text("{")
    code, out, err = told("list", "--runs", tmp_path)
    assert code == 0
    assert ids(out) == [good.name]
    assert "E4M3" in out
    assert "2.0000" in out
    assert err.count("\n") == 1
    assert bad.name in err
    _, out, _ = told("list", "--json", "--runs", tmp_path)
    (row,) = json.loads(out)
    assert (row["id"], row["quantize.weight"], row["last.val_loss"]) == (good.name, "e4m3", 2.0)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["quantize.weight=e4m3"], {"e4m3-0", "e4m3-1"}),
        (["quantize.weight=E4M3FN", "seed=1"], {"e4m3-1"}),
        (["quantize.weight!=e4m3"], {"fp32-0", "e5m2-0"}),
        (["status=finished", "seed<1"], {"e4m3-0", "fp32-0"}),
        (["last.val_loss>=2.5"], {"e4m3-1", "e5m2-0"}),
        (["last.val_loss <= 2"], {"e4m3-0"}),
        (["optimizer.learning_rate=3e-3"], {"e4m3-0", "e4m3-1", "fp32-0", "e5m2-0"}),
        (["tags=big"], {"fp32-0"}),
        (["tags!=big"], {"e4m3-0", "e4m3-1", "e5m2-0"}),
        (["failure=nan_loss"], {"e5m2-0"}),
        (["failure=null", "seed=1"], {"e4m3-1"}),
        (["created>2020"], {"e4m3-0", "e4m3-1", "fp32-0", "e5m2-0"}),
        (["optimizer.relative=true"], set()),
        (["quantize.weight=e9m9"], set()),
    ],
)
def test_where_selects_by_fields_and_config_values(
    tmp_path: Path, told: Any, conditions: list[str], expected: set[str]
) -> None:
    write_run(tmp_path, config("e4m3"), 2.0)
    write_run(tmp_path, config("e4m3", seed=1), 2.5)
    write_run(tmp_path, config("fp32", tags=["big", "x"]), 2.2)
    write_run(tmp_path, config("e5m2"), 3.0, status="failed")
    arguments = [part for condition in conditions for part in ("--where", condition)]
    code, out, _ = told("list", "--json", "--runs", tmp_path, *arguments)
    assert code == 0
    assert {f"{row['quantize.weight']}-{row['seed']}" for row in json.loads(out)} == expected


@pytest.mark.parametrize(
    ("condition", "parts"),
    [
        ("quantize.weigth=e4m3", ["quantize.weigth", "did you mean quantize.weight"]),
        ("nothing", ["write KEY=VALUE"]),
        ("optimizer.relative<1", ["which has no order"]),
        ("\x1b[31m=1", ["--where"]),
    ],
)
def test_a_condition_that_makes_no_sense_is_one_line(
    tmp_path: Path, told: Any, condition: str, parts: list[str]
) -> None:
    write_run(tmp_path, config("e4m3"))
    code, out, err = told("list", "--runs", tmp_path, "--where", condition)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "\x1b" not in err
    assert all(part in err for part in parts)


def test_show_takes_an_unambiguous_prefix_and_shows_everything(tmp_path: Path, told: Any) -> None:
    write_run(tmp_path, config("e4m3"), url="https://example.org/run")
    write_run(tmp_path, config("e4m3", seed=1), status="failed")
    code, out, _ = told("show", "e4m3-wag-adamw-s1", "--runs", tmp_path)
    assert code == 0
    for part in (
        "nan_loss",
        "blocks.0.mlp.up.weight",
        "loss is NaN",
        "quantize.weight",
        "environment.torch",
        "11 rows",
    ):
        assert part in out
    code, out, err = told("show", "e4m3", "--runs", tmp_path)
    assert (code, out) == (2, "")
    assert "beginning of 2 ids" in err
    code, _, err = told("show", "e4m3-wag-adamw-s7", "--runs", tmp_path)
    assert code == 2
    assert "did you mean e4m3-wag-adamw-s" in err
    _, out, _ = told("show", "e4m3-wag-adamw-s0", "--json", "--runs", tmp_path)
    assert json.loads(out)["wandb_url"] == "https://example.org/run"
    assert len(json.loads(out)["history"]["loss"]) == 21


def test_diff_names_what_differs_and_nothing_else(tmp_path: Path, told: Any) -> None:
    first, second = write_run(tmp_path, config("e4m3"), 2.0), write_run(tmp_path, config("e5m2"), 2.5)
    edit(second, environment={"python": "3.12", "torch": "2.13.0", "device": "cpu"}, seconds=1.0)
    edit(first, seconds=1.0)
    _, out, _ = told("diff", first.name, second.name, "--json", "--runs", tmp_path)
    found = json.loads(out)
    assert found["quantize.weight"] == ["e4m3", "e5m2"]
    assert found["environment.python"] == ["3.11", "3.12"]
    assert found["last.val_loss"] == [2.0, 2.5]
    operands = {f"quantize.{name}" for name in ("weight", "activation", "grad_output")}
    last = {"last.val_loss", "last.loss", "summary.final_val_loss"}
    assert set(found) == operands | last | {"arm", "environment.python"}
    _, out, _ = told("diff", first.name, first.name, "--runs", tmp_path)
    assert out == "nothing but id and times differs\n"


@pytest.mark.parametrize("what", ["runs", "history", "layers"])
@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_every_table_is_exported_in_every_format(tmp_path: Path, told: Any, what: str, kind: str) -> None:
    write_run(tmp_path / "runs", config("e4m3"))
    write_run(tmp_path / "runs", config("fp32", tags=["a"]))
    with record(tmp_path / "runs", name="own", config={"mixed": "text", "list": [1, 2]}) as run:
        run.log(0, loss=math.inf, other=1.0)
        run.finish()
    with record(tmp_path / "runs", name="own", config={"mixed": 1, "list": "x"}) as run:
        run.finish()
    flag = [] if what == "runs" else [f"--{what}"]
    output = tmp_path / f"out.{kind}"
    code, out, err = told("export", "--runs", tmp_path / "runs", "--format", kind, "--output", output, *flag)
    assert (code, out) == (0, ""), err
    data = output.read_bytes()
    frame = {
        "csv": lambda: pd.read_csv(io.BytesIO(data)),
        "json": lambda: pd.DataFrame(json.loads(data)),
        "parquet": lambda: pd.read_parquet(io.BytesIO(data)),
    }[kind]()
    rows = {"runs": 4, "history": 2 * 21 + 1, "layers": 14}[what]
    assert len(frame) == rows
    if what == "history":
        assert "inf" in str(frame["loss"].max() if kind != "json" else frame["loss"].iloc[-1]).lower()
        assert frame["run_id"].nunique() == 3
    assert "NaN" not in data.decode(errors="ignore") or kind == "parquet"


def test_export_of_chosen_runs_goes_to_stdout_and_a_bad_file_is_one_line(tmp_path: Path, capfdbinary: Any) -> None:
    path = write_run(tmp_path, config("e4m3"))
    write_run(tmp_path, config("fp32"))
    assert main(["runs", "export", "e4m3", "--runs", str(tmp_path), "--format", "json"]) == 0
    assert [row["id"] for row in json.loads(capfdbinary.readouterr().out)] == [path.name]
    assert main(["runs", "export", "--runs", str(tmp_path), "--output", str(path / "run.json" / "x")]) == 2
    assert b"--output" in capfdbinary.readouterr().err
    assert main(["runs", "list", "--runs", str(tmp_path / "none")]) == 2
    assert b"no such folder" in capfdbinary.readouterr().err


def test_histories_in_bulk_are_those_of_the_records(tmp_path: Path, told: Any) -> None:
    write_matrix(tmp_path / "runs", seeds=1)
    write_run(tmp_path / "runs", config("e6m1"), status="crashed")
    pack_study(load_runs([tmp_path / "runs"]).records, tmp_path / "packed" / "study", history_every=1)
    with record(tmp_path / "runs", name="own", config={}) as run:
        run.log(0, loss=1, other=2)
        run.finish()
    bad = write_run(tmp_path / "runs", config("e7m0", seed=5))
    (bad / "history.parquet").write_bytes((bad / "history.parquet").read_bytes()[:100])
    for sources in ([tmp_path / "runs"], [tmp_path / "packed"], [tmp_path / "packed", tmp_path / "runs"]):
        table, problems = read_histories(sources)
        assert [problem.where for problem in problems] == ([bad.name] if sources[-1].name == "runs" else [])
        frame = table.to_pandas()
        records = load_runs(sources).records
        assert set(frame["run_id"]) == {record.id for record in records}
        for one in records:
            own = frame[frame["run_id"] == one.id].drop(columns="run_id").dropna(axis="columns", how="all")
            own = own.reset_index(drop=True).astype({"step": "int64"})
            expected = one.history.astype({"step": "int64"})[own.columns.tolist()]
            pd.testing.assert_frame_equal(own.astype("float64"), expected.astype("float64"), rtol=1e-6)
    few, _ = read_histories([tmp_path / "packed", tmp_path / "runs"], ["other", "val_loss"])
    assert few.column_names == ["run_id", "step", "other", "val_loss"]
    assert few.num_rows == table.num_rows
    with pytest.raises(UsageError, match="no run has a metric 'accuracy'; altgrad runs show"):
        read_histories([tmp_path / "runs"], ["accuracy"])
    assert read_histories([tmp_path / "none"])[0].num_rows == 0
    shutil.rmtree(bad)
    assert read_histories([tmp_path / "runs"], ["loss"])[1] == ()
    rotten = write_run(tmp_path / "runs", config("e7m0", seed=6)) / "history.parquet"
    data = bytearray(rotten.read_bytes())
    data[4:1000] = bytes(996)  # the footer is whole, the rows are not
    rotten.write_bytes(data)
    for columns in (None, ["loss"]):
        some, problems = read_histories([tmp_path / "runs"], columns)
        assert [problem.where for problem in problems] == [rotten.parent.name]
        assert str(tmp_path) not in problems[0].reason
        assert rotten.parent.name not in some["run_id"].to_pylist()
    told("export", "--history", "--columns", "loss", "--runs", tmp_path / "packed", "--output", tmp_path / "x.csv")
    chosen = ["e4m3-wag-adamw", "--where", "seed=0", "--output", tmp_path / "y.csv"]
    told("export", "--history", "--columns", "loss", "--runs", tmp_path / "packed", *chosen)
    whole, part = pd.read_csv(tmp_path / "x.csv"), pd.read_csv(tmp_path / "y.csv")
    assert list(whole) == list(part) == ["run_id", "step", "loss"]


def test_run_id_and_step_are_in_every_table_once(tmp_path: Path) -> None:
    given: dict[str, Any] = {"data_fingerprint": DATA, "environment": {}}
    with RunWriter.create(tmp_path, config(), **given) as run:
        run.log(0, loss=1.0, run_id=7.0)
        run.finish()
    with RunWriter.create(tmp_path, config(seed=1), **given) as run:
        run.log(0, loss=1.0, run_id=7.0)
    for columns in (None, ["loss"], ["step", "loss", "run_id", "loss"]):
        table, problems = read_histories([tmp_path], columns)
        assert table.column_names == ["run_id", "step", "loss"]
        assert sorted(table["run_id"].to_pylist()) == sorted(path.name for path in tmp_path.iterdir())
        assert not problems


def test_an_integer_of_any_size_is_exported(tmp_path: Path, told: Any) -> None:
    with record(tmp_path, name="own", config={"parameters": 2**70}) as run:
        run.log(0, loss=1.0)
        run.finish()
    code, _, _ = told("export", "--format", "parquet", "--output", tmp_path / "x", "--runs", tmp_path)
    assert code == 0
    assert pd.read_parquet(tmp_path / "x")["parameters"].tolist() == [2.0**70]


def test_untrusted_text_reaches_neither_terminal_nor_spreadsheet(tmp_path: Path, told: Any) -> None:
    with record(tmp_path, name="own", config={"x": HOSTILE, "=1+1": "=cmd()"}, notes=HOSTILE) as run:
        run.log(0, **{"=sum(A1)": 1.0, HOSTILE: 2.0})
        run.log_layers([(0, "=cmd()", HOSTILE, "weight", "amax", 1.0)])
        run.finish({HOSTILE: HOSTILE})
    for command in (["list"], ["list", "--json"], ["show", "own"], ["show", "own", "--json"], ["diff", "own", "own"]):
        code, out, err = told(*command, "--runs", tmp_path)
        assert code == 0
        assert not {"\x1b", "\x07", "\u202e"} & set(out + err), command
    for flag in ([], ["--history"], ["--layers"]):
        told("export", "--runs", tmp_path, "--output", tmp_path / "x.csv", *flag)
        text = (tmp_path / "x.csv").read_text()
        assert not {"\x1b", "\x07", "\u202e"} & set(text)
        cells = pd.read_csv(io.StringIO(text), header=None, dtype=str).stack().dropna()
        assert not [cell for cell in cells if cell.startswith(("=", "@", "+"))]


def test_a_pipe_that_closes_is_no_traceback(tmp_path: Path) -> None:
    write_matrix(tmp_path, seeds=1)
    command = f"{sys.executable} -m altgrad.cli runs export --history --runs {tmp_path} | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("run_id")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("> /dev/full", 2, "error: the output cannot be written (No space left on device)\n"),
        (">&-", 0, ""),
        ("> /dev/null", 0, ""),
    ],
)
def test_an_output_that_takes_nothing_or_not_every_character_is_no_traceback(
    tmp_path: Path, ending: str, code: int, said: str
) -> None:
    with record(tmp_path, name="own", config={"größe": "ü"}, notes=HOSTILE) as run:
        run.finish()
    command = f"PYTHONIOENCODING=ascii {sys.executable} -m altgrad.cli runs show own --runs {tmp_path} {ending}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (code, said)


def test_the_commands_import_no_torch(tmp_path: Path) -> None:
    write_run(tmp_path, config("e4m3"))
    script = (
        "import sys\nfor name in ('torch', 'wandb', 'mkdocs', 'rich'): sys.modules[name] = None\n"
        "from altgrad.cli import main\n"
        f"sys.exit(main(['runs', 'list', '--runs', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_verify_finds_nothing_in_sound_and_in_the_shipped_records(tmp_path: Path, told: Any) -> None:
    write_matrix(tmp_path / "runs", seeds=1)
    write_run(tmp_path / "runs", config("e5m2", seed=4), status="crashed")
    write_run(tmp_path / "runs", config("e5m2", seed=5), status="interrupted")
    pack_study(load_runs([tmp_path / "runs"]).records, tmp_path / "packed")
    for source in (tmp_path / "runs", tmp_path / "packed"):
        assert told("verify", "--runs", source) == (0, "9 records checked, no problems\n", "")
    assert verify([ROOT / "experiments" / "recorded"])[1] == []


def swap_rows(path: Path) -> None:
    without_proofs(path)
    frame = pd.read_parquet(path / "history.parquet")
    pd.concat([frame.iloc[[1, 0]], frame.iloc[2:]]).to_parquet(path / "history.parquet")


def set_column(path: Path, table: str, column: str, value: Any) -> None:
    without_proofs(path)
    frame = pd.read_parquet(path / f"{table}.parquet")
    frame.loc[3, column] = value
    frame.to_parquet(path / f"{table}.parquet")


DAMAGE: dict[str, tuple[Any, str]] = {
    "other config": (
        lambda path: edit(path, config=config("e5m2").model_dump(mode="json")),
        "the id does not belong to config and data, which give e5m2-wag-adamw-s0-",
    ),
    "other data": (lambda path: edit(path, data=DATA | {"sha256": "cd" * 32}), "does not belong to config and data"),
    "other arm": (lambda path: edit(path, arm="mine"), "key 'arm' is 'mine'"),
    "renamed folder": (lambda path: path.rename(path.with_name("elsewhere")), "the folder is not called by"),
    "rows swapped": (swap_rows, "history: step 0 is repeated or out of order"),
    "row repeated": (lambda path: set_column(path, "history", "step", 2), "history: step 2 is repeated"),
    "seconds back": (lambda path: set_column(path, "history", "seconds", 0.0), "seconds goes back at step 3"),
    "steps negative": (lambda path: set_column(path, "layers", "step", -1), "layers: a step below zero"),
    "ended before": (lambda path: edit(path, ended="2020-01-01T00:00:00Z"), "a clock jumped"),
    "too many seconds": (lambda path: edit(path, seconds=9e9), "a clock jumped"),
    "in the future": (
        lambda path: edit(path, created="2999-01-01T00:00:00Z", ended="2999-01-01T00:00:00Z"), "lies in the future",
    ),
    "clock event": (
        lambda path: edit(path, events=[{"kind": "clock_jump", "step": 3, "seconds": -99.0}]), "jumped by -99.0 s",
    ),
    "future schema": (lambda path: edit(path, schema=99), "schema 99 is newer than"),
    "no history": (lambda path: (path / "layers.parquet").unlink(), "layers: missing"),
    "truncated": (lambda path: (path / "history.parquet").write_bytes(b"PAR1"), "history: damaged"),
    "id with a path": (lambda path: edit(path, id="../../escape"), "id: String should match pattern"),
    "id with markup": (lambda path: edit(path, id="<b>x</b>"), "id: String should match pattern"),
    "id with controls": (lambda path: edit(path, id="a\x1b[31m\nb"), r"(given 'a\x1b[31m\nb')"),
    "foreign record": (lambda path: (path / "run.json").write_text('{"mlflow": 1}'), "schema: Field required"),
    "both forms": (lambda path: (path / "history.jsonl").write_text('{"step": 0}\n'), "left beside history.parquet"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_verify_names_each_kind_of_damage_and_checks_the_rest(tmp_path: Path, told: Any, kind: str) -> None:
    good, bad = write_run(tmp_path, config("fp32")), write_run(tmp_path, config("e4m3"))
    change, expected = DAMAGE[kind]
    change(bad)
    code, out, _ = told("verify", "--runs", tmp_path)
    *lines, last = [line for line in out.splitlines() if not line.startswith("note: nothing proves")]
    assert code == 1
    assert len(lines) == 1, lines
    assert expected in lines[0]
    assert good.name not in lines[0]
    assert str(tmp_path) not in out
    assert "\x1b" not in out
    assert last == "2 records checked, 1 problem"
    assert good.name in {record.id for record in load_runs([tmp_path]).records}


def test_verify_names_a_row_that_was_cut_short_as_lost(tmp_path: Path, told: Any) -> None:
    path = write_run(tmp_path, config("e4m3"), status="crashed")
    with open(path / "history.jsonl", "ab") as file:
        file.write(b'{"step": 11, "lo')
    code, out, _ = told("verify", "--runs", tmp_path)
    assert code == 1
    assert "history.jsonl: its last row, of which 16 bytes were written, is lost" in out


def test_one_id_with_two_contents_is_named_and_a_packed_copy_is_not(tmp_path: Path, told: Any) -> None:
    first = write_run(tmp_path / "a", config("e4m3"), 2.0)
    shutil.copytree(first, tmp_path / "b" / first.name)
    pack_study([read_run(first)], tmp_path / "c" / "study")
    code, out, _ = told("verify", *(part for name in "abc" for part in ("--runs", tmp_path / name)))
    assert (code, out) == (0, "3 records checked, no problems\n")
    write_run(tmp_path / "d", config("e4m3"), 2.5)
    code, out, _ = told("verify", "--runs", tmp_path / "a", "--runs", tmp_path / "d")
    assert code == 1
    assert "another record of this id, with other content" in out
    assert len(load_runs([tmp_path / "a", tmp_path / "d"]).records) == 1


def test_damage_inside_a_packed_study_is_named_run_by_run(tmp_path: Path, told: Any) -> None:
    write_matrix(tmp_path / "runs", seeds=1)
    records = load_runs([tmp_path / "runs"]).records
    pack_study(records, tmp_path / "packed")
    without_proofs(tmp_path / "packed")
    runs = pd.read_parquet(tmp_path / "packed" / "runs.parquet")
    heads = [json.loads(text) for text in runs["run"]]
    heads[0]["schema"], heads[1]["id"] = 99, "../x"
    runs["run"] = [json.dumps(head) for head in heads[:-1]] + ["{"]
    runs.to_parquet(tmp_path / "packed" / "runs.parquet")
    code, out, _ = told("verify", "--runs", tmp_path / "packed")
    assert code == 1
    *lines, note, last = out.splitlines()
    assert len(lines) == 3
    assert note == "note: nothing proves the tables of 4 records, which an earlier version wrote"
    assert last == "7 records checked, 3 problems"
    assert len(load_runs([tmp_path / "packed"]).records) == len(records) - 3


@pytest.mark.parametrize("change", ["history", "text step", "no run_id", "text loss"])
def test_a_packed_table_of_another_kind_is_one_problem(tmp_path: Path, change: str) -> None:
    write_run(tmp_path / "runs", config("e4m3"))
    write_run(tmp_path / "local", config("fp32"))
    pack_study(load_runs([tmp_path / "runs"]).records, tmp_path / "packed")
    path = tmp_path / "packed" / "history.parquet"
    frame = pd.read_parquet(path)
    if change == "no run_id":
        frame = frame.drop(columns="run_id")
    elif change != "history":
        column = "step" if change == "text step" else "val_loss"
        frame[column] = "x"
    frame.to_parquet(path)
    if change == "history":
        path.write_bytes(path.read_bytes()[:-20])
    found = load_runs([tmp_path / "packed", tmp_path / "local"])
    assert len(found.records) == 1
    assert len(found.problems) == 1
    assert "damaged packed study" in found.problems[0].reason


def test_packed_rows_in_any_order_are_each_runs_own(tmp_path: Path) -> None:
    write_matrix(tmp_path / "runs", seeds=1)
    pack_study(load_runs([tmp_path / "runs"]).records, tmp_path / "packed", history_every=1)
    before = load_runs([tmp_path / "packed"]).records
    without_proofs(tmp_path / "packed")
    for name in ("history", "layers"):
        path = tmp_path / "packed" / f"{name}.parquet"
        pd.read_parquet(path).sample(frac=1, random_state=0).to_parquet(path, index=False)
    after = load_runs([tmp_path / "packed"]).records
    for one, two in zip(before, after, strict=True):
        pd.testing.assert_frame_equal(one.history, two.history)
        keys = ["step", "layer", "operand", "statistic"]
        tables = [table.sort_values(keys, ignore_index=True) for table in (one.layers, two.layers)]
        pd.testing.assert_frame_equal(*tables)


def test_prune_shows_first_and_removes_only_what_was_asked_for(tmp_path: Path, told: Any) -> None:
    runs = tmp_path / "runs"
    keep = [write_run(runs, config("fp32")), write_run(runs, config("e4m3"), status="failed")]
    crashed = write_run(runs, config("e5m2"), status="crashed")
    keep.append(write_run(runs, config("e3m4"), status="running"))
    pack_study([read_run(crashed)], runs / "packed")
    code, out, _ = told("prune", "--status", "crashed", "--runs", runs)
    assert code == 0
    assert f"would remove {crashed.name}" in out
    assert crashed.exists()
    code, out, _ = told("prune", "--status", "crashed", "--yes", "--runs", runs)
    assert code == 0
    assert f"removed {crashed.name}" in out
    assert not crashed.exists()
    assert all(path.exists() for path in keep)
    assert (runs / "packed" / "runs.parquet").exists()


def test_prune_never_takes_a_running_a_packed_or_a_strangers_folder(tmp_path: Path, told: Any) -> None:
    running = write_run(tmp_path, config("e4m3"), status="running")
    strange = write_run(tmp_path, config("e5m2"))
    (strange / "thesis.tex").write_text("x")
    target = write_run(tmp_path / "elsewhere", config("e3m4"))
    (tmp_path / target.name).symlink_to(target)
    pack_study([read_run(target)], tmp_path / "packed")
    code, out, _ = told(
        "prune", "--where", "seed>=0", "--yes", "--runs", tmp_path, "--status", "running", "--status", "finished"
    )
    assert code == 0
    assert f"keep    {running.name}" in out
    assert "it is running" in out
    assert "thesis.tex" in out
    assert "it is a link" in out
    assert running.exists()
    assert strange.exists()
    assert (tmp_path / target.name).is_symlink()
    assert (tmp_path / "packed" / "runs.parquet").exists()
    assert "removed; " not in out


def test_prune_keeps_what_a_later_version_wrote(tmp_path: Path, told: Any) -> None:
    newer = write_run(tmp_path, config("e4m3"))
    edit(newer, schema=99)
    code, out, _ = told("prune", "--status", "damaged", "--yes", "--runs", tmp_path)
    assert code == 0
    assert "a later version of AltGrad wrote it" in out
    assert (newer / "history.parquet").exists()


def test_prune_by_age_by_condition_and_of_what_was_set_aside(tmp_path: Path, told: Any) -> None:
    old, new = write_run(tmp_path, config("e4m3")), write_run(tmp_path, config("e5m2"))
    month_ago = (datetime.now(UTC) - timedelta(days=30)).isoformat()
    edit(old, created=month_ago, ended=month_ago)
    write_run(tmp_path, config("fp32"), status="crashed")
    write_run(tmp_path, config("fp32"))
    (aside,) = tmp_path.glob("*.old")
    _, out, _ = told("prune", "--older-than", 29, "--where", "quantize.weight=e4m3", "--yes", "--runs", tmp_path)
    assert not old.exists()
    assert out.count("removed") == 2
    _, out, _ = told("prune", "--old", "--yes", "--runs", tmp_path)
    assert not aside.exists()
    assert new.exists()
    damaged = write_run(tmp_path, config("e3m4"))
    (damaged / "run.json").write_text("{")
    told("prune", "--status", "finished", "--status", "crashed", "--runs", tmp_path)
    told("prune", "--status", "damaged", "--yes", "--runs", tmp_path)
    assert not damaged.exists()
    assert new.exists()


def test_prune_holds_conditions_against_each_attempt_of_a_run(tmp_path: Path, told: Any) -> None:
    for rate in (0.25, 0.5):
        with RunWriter.create(tmp_path, config("fp32"), data_fingerprint=DATA, environment={}) as run:
            run.log(0, loss=rate)
    write_run(tmp_path, config("fp32"))
    first, second = sorted(tmp_path.glob("*.old"))
    told("prune", "--old", "--where", "last.loss=0.25", "--yes", "--runs", tmp_path)
    assert not first.exists()
    assert second.exists()


def test_prune_takes_a_failed_run_with_its_failure_report(tmp_path: Path, told: Any) -> None:
    path = write_run(tmp_path, config("e4m3"), status="failed")
    (path / "failure.md").write_text("# What broke\n")
    told("prune", "--status", "failed", "--yes", "--runs", tmp_path)
    assert not path.exists()


def test_a_record_that_cannot_be_removed_is_one_line(tmp_path: Path, told: Any, monkeypatch: Any) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    path = write_run(tmp_path, config("e4m3"))
    monkeypatch.setattr(shutil, "rmtree", refuse)
    code, _, err = told("prune", "--where", "seed=0", "--yes", "--runs", tmp_path)
    assert code == 2
    assert err == f"error: {path.name}: cannot be removed (Permission denied)\n"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "say which records"),
        (["--status", "sad"], "--status 'sad'"),
        (["--older-than", "-1"], "give a number of days"),
    ],
)
def test_prune_without_a_clear_request_does_nothing(tmp_path: Path, told: Any, arguments: list[str], part: str) -> None:
    path = write_run(tmp_path, config("e4m3"))
    code, _, err = told("prune", "--yes", "--runs", tmp_path, *arguments)
    assert code == 2
    assert part in err
    assert path.exists()


def test_default_sources_are_those_of_load_runs(tmp_path: Path, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_run(tmp_path, config("e4m3"))
    monkeypatch.setenv("ALTGRAD_RUNS", os.pathsep.join([str(tmp_path), str(tmp_path / "none")]))
    _, out, _ = told("list")
    assert ids(out) == [path.name]


def test_runs_of_the_folder_one_stands_in_come_before_those_of_the_checkout(
    tmp_path: Path, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Import writes there too. Without records there, they are the checkout's."""
    monkeypatch.delenv("ALTGRAD_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert [folder.parents[1] for folder in default_sources()] == [Path(__file__).resolve().parents[1]] * 2
    path = write_run(tmp_path / "experiments" / "runs", config("e4m3"))
    _, out, _ = told("list")
    assert ids(out) == [path.name]


def test_a_clock_that_jumps_while_a_run_goes_is_in_its_record(
    tmp_path: Path, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import altgrad.runs.writer as module

    real = module.time.time
    with RunWriter.create(tmp_path, config("e4m3"), data_fingerprint=DATA, environment={}) as writer:
        writer.log(0, loss=1.0, val_loss=1.0)
        monkeypatch.setattr(module.time, "time", lambda: real() - 3600)
        writer.finish({})
    (event,) = read_run(writer.path).run["events"]
    assert (event["kind"], event["step"]) == ("clock_jump", 0)
    assert event["seconds"] == pytest.approx(-3600, abs=1)
    assert read_run(writer.path).run["seconds"] < 60
    code, out, _ = told("verify", "--runs", tmp_path)
    assert code == 1
    assert "the clock jumped by -3600" in out
