"""The benchmarks find what is wrong, go on where they stopped, and their page says what the records say."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from altgrad.reports import columns as col
from altgrad.reports.benchmarks import (
    ALL_INPUTS,
    ExhaustiveRecord,
    QuantizeRecord,
    benchmarks_key,
    benchmarks_page,
    kernel_fingerprint,
)
from altgrad.reports.measured import RECORDED, read_record
from altgrad.runs.schema import RecordError
from altgrad.site import Page, write_folder

ROOT = Path(__file__).parents[1]
SLICE = 1 << 20


@pytest.fixture(scope="module")
def exhaustive() -> ModuleType:
    return _script("exhaustive")


@pytest.fixture(scope="module")
def quantize() -> ModuleType:
    return _script("quantize")


def _script(name: str) -> ModuleType:
    pytest.importorskip("torch")
    pytest.importorskip("rich")
    pytest.importorskip("ml_dtypes")
    if str(ROOT / "benchmarks") not in sys.path:
        sys.path.insert(0, str(ROOT / "benchmarks"))
    return __import__(name)


def eager(exhaustive: ModuleType, name: str) -> tuple[Any, Callable[..., object]]:
    """A case by its name, and its kernel."""
    case = next(case for case in exhaustive.CASES if case.name == name)
    return case, exhaustive.kernel_of(case, "eager")[0]


def shown(page: Page, folder: Path) -> str:
    """The page as plain markdown."""
    write_folder([page], folder, site_root="../")
    return (folder / "index.md").read_text()


def sweep_record(**changes: Any) -> dict[str, Any]:
    sweep = {
        "case": "e5m2",
        "format": "e5m2",
        "overflow": "saturates",
        "rounding": "nearest_even",
        "form": "eager",
        "oracle": "an oracle",
        "versions": {"torch": "9.9"},
        "inputs": ALL_INPUTS,
        "mismatches": 0,
        "seconds": 1.0,
        "date": "2026-11-01T00:00:00Z",
        "altgrad": "0.0",
        "kernel": kernel_fingerprint(),
    }
    return {"benchmark": "exhaustive", "sweeps": [sweep | changes]}


def speed_record(**changes: Any) -> dict[str, Any]:
    ours = {"name": "plain", "group": "ours", "format": "E4M3", "low": 1.0, "high": 9.0, "seconds": 0.01}
    record = {
        "benchmark": "quantize",
        "date": "2026-11-01T00:00:00Z",
        "altgrad": "0.0",
        "kernel": kernel_fingerprint(),
        "quick": False,
        "shape": [64, 32],
        "small_shape": [8, 4],
        "cores": 2,
        "threads": 1,
        "load": 0.0,
        "versions": {"torch": "9.9"},
        "copy_seconds": 0.004,
        "timings": [
            {**ours, "form": "compiled", "ratio": 1.25, "goal": 1.1, "met": False, "remark": "Because."},
            {**ours, "form": "eager", "ratio": 3.5, "goal": 4, "met": True},
            {**ours, "form": "eager", "ratio": 0.7, "goal": 1, "met": True, "unit": "torch cast", "small": True},
            {"name": "a tool", "group": "peer", "format": "E4M3", "ratio": 41.0, "version": "1.2", "differing": 3},
            {"name": "another", "group": "peer", "format": "E4M3", "error": "not installed here: another"},
        ],
        "scratch": [{"name": "plain", "tensor_bytes": 8192, "scratch_bytes": 4096, "goal_bytes": 2048, "met": False}],
    }
    return record | changes


def recorded(folder: Path, **records: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, record in records.items():
        (folder / f"{name}.json").write_text(json.dumps(record))
    return folder


def test_the_committed_record_has_no_mismatch_on_any_float32_input() -> None:
    record = read_record(RECORDED / "exhaustive.json", ExhaustiveRecord)
    assert record is not None
    assert {"e4m3", "e5m2", "e3m4_ieee", "e3m4"} <= {sweep.format for sweep in record.sweeps}
    for sweep in record.sweeps:
        assert (sweep.inputs, sweep.mismatches) == (ALL_INPUTS, 0), sweep.case


def test_every_case_holds_on_a_slice_of_the_inputs(exhaustive: ModuleType, tmp_path: Path) -> None:
    record = tmp_path / "trial.json"
    arguments = ["--inputs", str(SLICE), "--form", "eager", "--record", str(record), "--state", str(tmp_path)]
    assert exhaustive.main(arguments) == 0
    found = read_record(record, ExhaustiveRecord)
    assert found is not None
    assert [sweep.case for sweep in found.sweeps] == [case.name for case in exhaustive.CASES]
    assert all((sweep.inputs, sweep.mismatches) == (SLICE, 0) for sweep in found.sweeps)
    assert list(tmp_path.glob("e*.json")) == []


def test_a_slice_holds_every_exponent_and_ties_with_their_neighbours(exhaustive: ModuleType) -> None:
    stride = ALL_INPUTS // SLICE
    bits = exhaustive.some_inputs(0, SLICE, stride).view(exhaustive.torch.int32)
    assert set((bits % stride).tolist()) == {0, 1, stride - 1}
    assert len((bits >> 23).unique()) == 512
    assert len(bits.unique()) == SLICE
    whole = exhaustive.some_inputs(5, 3, 1).view(exhaustive.torch.int32)
    assert whole.tolist() == [-(2**31) + 5, -(2**31) + 6, -(2**31) + 7]


@pytest.mark.parametrize("fault", ["a value", "a sign of zero", "a NaN that is none"])
def test_a_planted_fault_is_found_and_told(exhaustive: ModuleType, tmp_path: Path, fault: str) -> None:
    case, right = eager(exhaustive, "e4m3")
    near_one = float(exhaustive.some_inputs((0x3F800000 + (1 << 31)) % ALL_INPUTS * SLICE // ALL_INPUTS, 1, 4096))

    def wrong(x: Any, out: Any) -> None:
        right(x, out)
        if fault == "a value":
            out[x == near_one] = 1.125
        elif fault == "a sign of zero":
            out[(x == 0) & x.signbit()] = 0.0
        else:
            out[x.isnan().nonzero()[0]] = 448.0

    result = exhaustive.sweep(case, wrong, "eager", inputs=SLICE, state=tmp_path)
    assert result.mismatches == 1
    (line,) = result.first_mismatches
    assert line.startswith("0x")
    assert "kernel" in line


def test_mismatches_end_with_code_1_and_stay_in_the_record(
    exhaustive: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exhaustive, "kernel_of", lambda case, form: (lambda x, out: out.copy_(x), "eager"))
    record = tmp_path / "trial.json"
    arguments = ["e5m2", "--inputs", "4096", "--record", str(record), "--state", str(tmp_path)]
    assert exhaustive.main(arguments) == 1
    found = read_record(record, ExhaustiveRecord)
    assert found is not None
    assert found.sweeps[0].mismatches > 0
    assert len(found.sweeps[0].first_mismatches) == exhaustive.SHOWN
    assert "mismatches of 4,096 inputs" in capsys.readouterr().out


def test_an_interrupted_sweep_goes_on_where_it_stopped(exhaustive: ModuleType, tmp_path: Path) -> None:
    case, kernel = eager(exhaustive, "e5m2")
    calls = 0

    def faulty_until_stopped(x: Any, out: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        kernel(x, out)
        out[0] += 1.0

    with pytest.raises(KeyboardInterrupt):
        exhaustive.sweep(case, faulty_until_stopped, "eager", inputs=1 << 16, chunk=1 << 13, state=tmp_path)
    seen: list[int] = []

    def counting(x: Any, out: Any) -> None:
        nonlocal calls
        calls += 1
        kernel(x, out)

    calls = 0
    result = exhaustive.sweep(
        case,
        counting,
        "eager",
        inputs=1 << 16,
        chunk=1 << 13,
        state=tmp_path,
        advance=lambda done, _: seen.append(done),
    )
    assert calls == 5
    assert seen == [3, 4, 5, 6, 7, 8]
    assert result.mismatches == 3


def test_what_was_saved_of_another_kernel_or_is_damaged_is_not_used(exhaustive: ModuleType, tmp_path: Path) -> None:
    case, kernel = eager(exhaustive, "e5m2")
    for saved in ('{"key": "old", "chunks": 7, "mismatches": 0, "first": [], "seconds": 0}', "{", "[]", '"x"'):
        (tmp_path / "e5m2.json").write_text(saved)
        seen: list[int] = []
        exhaustive.sweep(
            case,
            kernel,
            "eager",
            inputs=4096,
            chunk=2048,
            state=tmp_path,
            advance=lambda done, _, s=seen: s.append(done),
        )
        assert seen == [0, 1, 2]


def test_ctrl_c_is_code_130_and_says_how_to_go_on(
    exhaustive: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exhaustive, "sweep", stop)
    monkeypatch.setattr(exhaustive, "kernel_of", lambda case, form: (stop, "eager"))
    arguments = ["e5m2", "--inputs", "4096", "--record", str(tmp_path / "r.json"), "--state", str(tmp_path)]
    assert exhaustive.main(arguments) == 130
    assert "goes on from there" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["e9m9"], ["--inputs", "1000"], ["--inputs", "1024"]], ids=["case", "inputs", "no record named"]
)
def test_mistakes_are_told(exhaustive: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        exhaustive.main(arguments)
    assert "error: " in capsys.readouterr().err


def test_a_kernel_without_a_compiler_is_recorded_as_eager(
    exhaustive: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: object, **__: object) -> Callable[..., object]:
        return lambda *_, **__: logging.getLogger("altgrad").warning("no compiled quantizer here")

    monkeypatch.setattr(exhaustive, "compile_quantize", no_compiler)
    assert exhaustive.kernel_of(exhaustive.CASES[0], "auto")[1] == "eager"


def test_a_quick_trial_measures_records_and_names_what_is_missing(
    quantize: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = quantize.import_module

    def without_gfloat(name: str) -> ModuleType:
        if name.split(".")[0] in ("gfloat", "torchao"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name == "pychop":
            raise RuntimeError(f"broken in {ROOT}/somewhere/else.py")
        return real(name)

    def no_compiler(*_: object, **__: object) -> Callable[..., object]:
        def run(x: Any, **_: object) -> Any:
            logging.getLogger("altgrad").warning("no compiled quantizer here")
            return x

        return run

    threads = quantize.torch.get_num_threads()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(quantize, "import_module", without_gfloat)
    monkeypatch.setattr(quantize, "compile_quantize", no_compiler)
    path = tmp_path / "trial.json"
    try:
        assert (
            quantize.main(["--quick", "--shape", "64", "96", "--small-shape", "16", "16", "--record", str(path)]) == 0
        )
    finally:
        quantize.torch.set_num_threads(threads)
    record = read_record(path, QuantizeRecord)
    assert record is not None
    assert (record.quick, record.shape, record.threads) == (True, (64, 96), 1)
    rows = {(row.name, row.format, row.form, row.small): row for row in record.timings}
    assert len(rows) == len(record.timings)
    plain = rows["plain", "E4M3", "eager", False]
    assert plain.ratio is not None
    assert plain.low <= plain.ratio <= plain.high  # type: ignore[operator]
    assert plain.met == (plain.ratio <= 4)
    assert rows["plain", "E4M3", "compiled", False].error == "no compiler on this machine: the eager form did the work"
    assert rows["torch, cast and back", "E4M3", "", False].differing == 0
    assert rows["ml_dtypes, cast and back", "E4M3", "", False].ratio is not None
    assert rows["gfloat, round_ndarray", "E4M3", "", False].error == "not installed here: gfloat"
    assert rows["pychop, Chop", "E4M3", "", False].error == "RuntimeError: broken in else.py"
    assert all(row.differing == 0 for row in record.timings if row.differing is not None)
    assert all(one.scratch_bytes is not None for one in record.scratch)
    assert str(ROOT) not in path.read_text()


def test_a_trial_is_not_recorded_for_the_site(quantize: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        quantize.main(["--quick"])
    assert "name another file" in capsys.readouterr().err


def test_without_a_gpu_the_device_is_refused_in_one_line(
    quantize: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize.torch.cuda, "is_available", lambda: False)
    assert quantize.main(["--device", "cuda", "--record", str(tmp_path / "r.json")]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert told[0].startswith("error: --device cuda: torch sees no GPU")


def test_the_comparison_on_a_device_finds_a_difference(quantize: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(fmt: Any, rounding: str = "nearest_even") -> Callable[..., Any]:
        def run(x: Any, **rest: Any) -> Any:
            found = quantize.quantize(x, fmt, rounding=rounding, **rest)
            if wrong and rounding == "toward_zero":
                found[found == 1.0] = 2.0
            return found

        return run

    monkeypatch.setattr(quantize, "compile_quantize", kernel)
    wrong = False
    found = quantize.accelerator("cpu", 1 << 10, inputs=1 << 14)
    assert (found.compared, found.differing) == (6 << 14, 0)
    assert found.copy_bandwidth > 0
    wrong = True
    assert quantize.accelerator("cpu", 1 << 10, inputs=1 << 14).differing > 0


def test_a_gpu_is_added_to_the_record_and_shown(
    quantize: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recorded(tmp_path / "r", quantize=speed_record()) / "quantize.json"
    before = read_record(path, QuantizeRecord)
    found = {
        "device": "a GPU",
        "torch": "9.9",
        "elements": 1 << 28,
        "copy_bandwidth": 4e12,
        "quantize_bandwidth": 3.8e12,
        "compared": 6 << 24,
        "differing": 1,
        "date": "2026-11-01T00:00:00Z",
        "altgrad": "0.0",
        "kernel": "0" * 12,
    }
    monkeypatch.setattr(quantize.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(quantize, "accelerator", lambda *_: quantize.Accelerator.model_validate(found))
    assert quantize.main(["--device", "cuda", "--record", str(path)]) == 1
    assert "0.95 of a copy's bandwidth" in capsys.readouterr().out
    after = read_record(path, QuantizeRecord)
    assert after is not None
    assert before == after.model_copy(update={"accelerator": None})
    text = shown(benchmarks_page(path.parent), tmp_path)
    assert "3,800 GB a second, 95% of what a copy there moves (4,000 GB)" in text
    assert "1 differ in a bit" in text


def test_a_peers_meaning_is_told_by_what_it_does_to_telling_inputs(quantize: ModuleType) -> None:
    fmt = quantize.get_format("e4m3")
    assert quantize.meaning(lambda x: quantize.quantize(x, fmt)) == ""
    told = quantize.meaning(lambda x: quantize.quantize(x, fmt, saturate=False))
    assert told == "500 becomes nan (here 448)"
    assert "-0 becomes 0 (here -0)" in quantize.meaning(lambda x: quantize.quantize(x, fmt) + 0.0)


def test_the_page_without_records_is_pending_and_names_the_commands(tmp_path: Path) -> None:
    text = shown(benchmarks_page(tmp_path / "nothing"), tmp_path)
    assert text.startswith("# Benchmarks")
    assert "pending" in text.split("\n\n")[2]
    assert "make bench" in text
    assert "make exhaustive" in text
    assert "in copies of it" not in text


def test_the_page_says_what_the_records_say(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "r", quantize=speed_record(), exhaustive=sweep_record())
    page = benchmarks_page(folder)
    text = shown(page, tmp_path)
    answer = text.split("\n\n")[2]
    assert "in copies of it: 1.25 when compiled and 3.5 in eager form.**" in answer
    assert "41 (a tool, E4M3)" in answer
    assert "4,294,967,296" in answer
    assert "0 mismatches" in answer
    assert "2 of the 3 goals" in text
    assert "| missed | 14% above the goal; repeats from 1 to 9. Because. |" in text
    assert "not installed here: another" in text
    assert "Before you rely on this" not in text
    assert "no GPU was at hand" in text
    assert (tmp_path / "index.cost.svg").is_file()
    assert page.provenance is not None


def test_the_page_warns_of_a_busy_machine_another_kernel_and_a_trial(tmp_path: Path) -> None:
    folder = recorded(
        tmp_path / "r",
        quantize=speed_record(quick=True, load=2.5, kernel="0" * 12),
        exhaustive=sweep_record(kernel="0" * 12, mismatches=2, first_mismatches=["0x1: one", "0x2: <b>two</b>"]),
    )
    text = shown(benchmarks_page(folder), tmp_path)
    for told in ("quick trial", "load average of 2.5"):
        assert told in text
    answer = " ".join(text.split("\n\n")[1:3])
    assert f"its source has changed since and is {kernel_fingerprint()} now" in answer
    assert "The kernel of 2026-11-01, 000000000000, was compared bit for bit" in answer
    assert f"with 2 mismatches; the kernel of today, {kernel_fingerprint()}, was not" in answer
    assert "e5m2: 0x1: one" in text
    assert "`000000000000`, changed since" in text


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("quantize", "{", "Invalid JSON"),
        ("quantize", json.dumps(speed_record(cores="many")), "cores"),
        ("quantize", json.dumps(speed_record(surprise=1)), "surprise"),
        ("quantize", json.dumps(speed_record(copy_seconds=float("nan"))), "copy_seconds"),
        ("exhaustive", json.dumps(sweep_record(mismatches=-1)), "sweeps.0.mismatches"),
        ("exhaustive", "[]", "the file"),
    ],
)
def test_a_damaged_record_is_one_line_with_file_key_and_remedy(
    tmp_path: Path, name: str, content: str, told: str
) -> None:
    (tmp_path / f"{name}.json").write_text(content)
    kind: Any = {"quantize": QuantizeRecord, "exhaustive": ExhaustiveRecord}[name]
    with pytest.raises(RecordError) as caught:
        read_record(tmp_path / f"{name}.json", kind)
    message = str(caught.value)
    assert "\n" not in message
    assert f"benchmarks/recorded/{name}.json" in message
    assert told in message
    assert "make" in message
    text = shown(benchmarks_page(tmp_path), tmp_path)
    assert "record was left out" in text
    assert f"{name}.json" in text


def test_a_script_refuses_a_damaged_record_in_one_line(
    exhaustive: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "exhaustive.json"
    record.write_text("{")
    assert exhaustive.main(["--inputs", "1024", "--record", str(record), "--state", str(tmp_path)]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert told[0].startswith("error: ")


def test_hostile_text_in_a_record_is_shown_as_text(tmp_path: Path) -> None:
    payload = "<img src=x onerror=alert(1)> [x](javascript:alert(1)) | `"
    speed = speed_record()
    for row in speed["timings"]:
        row.update(name=payload, remark=payload)
    speed["timings"][-1]["error"] = payload
    speed["versions"] = {payload: payload}
    sweeps = sweep_record(oracle=payload, format=payload, versions={payload: payload}, mismatches=1)
    sweeps["sweeps"][0]["first_mismatches"] = [payload]
    text = shown(benchmarks_page(recorded(tmp_path / "r", quantize=speed, exhaustive=sweeps)), tmp_path)
    outside_code = "".join(text.split("```")[::2])
    assert "<img src=x" not in outside_code
    assert "](javascript:" not in outside_code


def test_a_column_with_a_template_is_blank_where_a_value_is_missing() -> None:
    column = col.filled("Goal", "{goal:g} {unit}", blank="")
    rows = ({"goal": 1.5, "unit": "s"}, {"goal": None, "unit": "s"}, {"goal": float("nan"), "unit": "s"})
    assert [row[0] for row in col.table(rows, (column,)).rows] == ["1.5 s", "", ""]


def test_the_page_is_made_again_when_a_record_changes(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "r", quantize=speed_record())
    first = benchmarks_key("site", folder)
    assert first == benchmarks_key("site", folder)
    assert first != benchmarks_key("another site", folder)
    recorded(folder, quantize=speed_record(cores=3))
    assert first != benchmarks_key("site", folder)


def test_the_committed_records_are_whole_and_make_a_page(tmp_path: Path) -> None:
    record = read_record(RECORDED / "quantize.json", QuantizeRecord)
    assert record is not None
    text = shown(benchmarks_page(), tmp_path)
    assert "left out" not in text
    assert "gfloat" in text
    rows = {(row.name, row.format, row.form): row.ratio for row in record.timings if not row.small}
    allocated, plain = (rows[name, "E4M3", "eager"] for name in ("plain, result allocated", "plain"))
    told = " ".join(text.split())
    assert f"with which AltGrad's eager form takes {allocated:.3g} copies, not {plain:.3g}." in told
    assert f"torch's cast takes {rows['torch, cast and back', 'E5M2', '']:.3g} copies" in told
