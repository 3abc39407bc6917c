"""All 2^32 float32 inputs through the kernel, compared bit for bit with torch's casts and ml_dtypes.

    make exhaustive                                       every case, a few minutes each
    .venv/bin/python benchmarks/exhaustive.py e5m2        one case
    .venv/bin/python benchmarks/exhaustive.py --inputs 1048576 --record trial.json    a slice, as a trial

What is done is saved in .cache/exhaustive/ as it goes: stopped with Ctrl-C, the same command goes on from there. The
result is recorded in benchmarks/recorded/exhaustive.json, which the site's page of benchmarks shows. The exit code is
1 where a result differs.

What happens beyond the largest value is decided here and not by the oracle: torch's cast to E4M3FN gave NaN there
before 2.12 and saturates since, so inputs are clipped before the cast where the kernel saturates.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn  # noqa: E402
from torch import Tensor  # noqa: E402

import altgrad  # noqa: E402
from altgrad.config import UsageError  # noqa: E402
from altgrad.formats import get_format  # noqa: E402
from altgrad.reports.benchmarks import ALL_INPUTS, ExhaustiveRecord, Sweep, kernel_fingerprint  # noqa: E402
from altgrad.reports.measured import RECORDED, read_record, write_record  # noqa: E402
from altgrad.rounding import compile_quantize, quantize  # noqa: E402
from altgrad.runs.files import write_text  # noqa: E402
from altgrad.runs.schema import digest  # noqa: E402

CHUNK = 1 << 24
"""Inputs between two saves."""
_PIECE = 1 << 20
"""Inputs that are compared at a time: what they need is used again, and never goes back to the system."""
STATE = ROOT / ".cache" / "exhaustive"
SHOWN = 8
"""Mismatches that a record tells one by one."""

KERNEL = kernel_fingerprint()
"""Taken when the kernel is loaded: an edit while a sweep goes on must not pass for what was swept."""

Kernel = Callable[[Tensor, Tensor], object]
"""Writes the rounded first tensor into the second."""


@dataclass(frozen=True)
class Case:
    """A format, what it does on overflow, and the oracle: float32 in, float32 out."""

    name: str
    format: str
    overflow: Literal["saturates", "infinity", "NaN"]
    oracle: str
    reference: Callable[[Tensor], Tensor]
    package: Literal["torch", "ml_dtypes"]


def _torch_cast(dtype: torch.dtype, limit: float = math.inf) -> Callable[[Tensor], Tensor]:
    return lambda x: x.clamp(-limit, limit).to(dtype).float()


def _ml_dtypes_cast(name: str, limit: float = math.inf) -> Callable[[Tensor], Tensor]:
    def cast(x: Tensor) -> Tensor:
        import ml_dtypes

        values = x.numpy() if limit == math.inf else x.numpy().clip(-limit, limit)
        with np.errstate(all="ignore"):
            return torch.from_numpy(values.astype(getattr(ml_dtypes, name)).astype(np.float32))

    return cast


def _finite_e3m4(x: Tensor) -> Tensor:
    """E3M4 without infinities from the IEEE-like one: its last binade is twice the one below, which the other has."""
    cast = _ml_dtypes_cast("float8_e3m4", 15.5)
    return torch.where(x.abs() < 8, cast(x), 2 * cast(x / 2))


_FN, _IEEE, _E3M4 = "torch.float8_e4m3fn", "torch.float8_e5m2", "ml_dtypes.float8_e3m4"
CASES = (
    Case("e4m3", "e4m3", "saturates", f"{_FN}, inputs clipped to 448", _torch_cast(torch.float8_e4m3fn, 448), "torch"),
    Case(
        "e5m2", "e5m2", "saturates", f"{_IEEE}, inputs clipped to 57344", _torch_cast(torch.float8_e5m2, 57344), "torch"
    ),
    Case("e5m2-infinity", "e5m2", "infinity", _IEEE, _torch_cast(torch.float8_e5m2), "torch"),
    Case("e4m3-nan", "e4m3", "NaN", "ml_dtypes.float8_e4m3fn", _ml_dtypes_cast("float8_e4m3fn"), "ml_dtypes"),
    Case(
        "e3m4-ieee",
        "e3m4_ieee",
        "saturates",
        f"{_E3M4}, inputs clipped to 15.5",
        _ml_dtypes_cast("float8_e3m4", 15.5),
        "ml_dtypes",
    ),
    Case("e3m4-ieee-infinity", "e3m4_ieee", "infinity", _E3M4, _ml_dtypes_cast("float8_e3m4"), "ml_dtypes"),
    Case("e3m4", "e3m4", "saturates", f"{_E3M4}; from 8 on twice that of half the input", _finite_e3m4, "ml_dtypes"),
)


@contextmanager
def fallbacks() -> Iterator[list[logging.LogRecord]]:
    """What the library's log says meanwhile: a line where the eager form stood in for a compiled one."""
    lines: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = lines.append  # type: ignore[method-assign, assignment]
    log = logging.getLogger("altgrad")
    log.addHandler(handler)
    try:
        yield lines
    finally:
        log.removeHandler(handler)


def kernel_of(case: Case, form: str) -> tuple[Kernel, Literal["compiled", "eager"]]:
    """The kernel of a case and the form that it has here: compiled unless `form` is "eager" or there is no compiler."""
    fmt, saturate = get_format(case.format), case.overflow == "saturates"
    if form == "auto":
        with fallbacks() as lines:
            run = compile_quantize(fmt, saturate=saturate)
            run(torch.ones(_PIECE), out=torch.empty(_PIECE))
        if not lines:
            return lambda x, out: run(x, out=out), "compiled"
    return lambda x, out: quantize(x, fmt, saturate=saturate, out=out), "eager"


def some_inputs(start: int, count: int, stride: int) -> Tensor:
    """The inputs number `start` to `start + count` of a walk through all float32 bit patterns.

    A stride above 1 takes the patterns at its multiples and their neighbours on both sides, in turns: zeros, ties of
    formats with few mantissa bits, and what lies just beside them.
    """
    first = -(1 << 31)
    if stride == 1:
        return torch.arange(first + start, first + start + count, dtype=torch.int32).view(torch.float32)
    index = torch.arange(start, start + count, dtype=torch.int64)
    bits = index * stride + torch.tensor([0, 1, stride - 1])[index % 3]
    return (bits + first).int().view(torch.float32)


def compare(x: Tensor, ours: Tensor, theirs: Tensor) -> tuple[int, list[str]]:
    """How many results differ in a bit (all NaNs being one), and a line for the first few."""
    wrong = ours.view(torch.int32) != theirs.view(torch.int32)
    if not wrong.any():
        return 0, []
    wrong &= ~(ours.isnan() & theirs.isnan())
    at = wrong.nonzero()[:SHOWN, 0].tolist()
    bits = x.view(torch.int32)
    lines = [
        f"0x{int(bits[i]) & 0xFFFFFFFF:08x} = {float(x[i]):.9g}: "
        f"kernel {float(ours[i]):.9g}, oracle {float(theirs[i]):.9g}"
        for i in at
    ]
    return int(wrong.sum()), lines


def sweep(
    case: Case,
    kernel: Kernel,
    form: Literal["compiled", "eager"],
    *,
    inputs: int = ALL_INPUTS,
    chunk: int = CHUNK,
    state: Path = STATE,
    advance: Callable[[int, int], object] = lambda done, found: None,
) -> Sweep:
    """Compare the kernel with the oracle, going on from what an earlier, interrupted call saved in `state`.

    Args:
        inputs: a power of two; all of them, or a sample (`some_inputs`).
        chunk: inputs between two saves; a power of two.
        advance: told the chunks that are done, and the mismatches so far.
    """
    packages = dict.fromkeys(("torch", case.package))
    versions = {package: version(package) for package in packages}
    chunk = min(chunk, inputs)
    key = digest(case.name, case.oracle, form, inputs, chunk, versions, KERNEL)
    path = state / f"{case.name}.json"
    done: dict[str, Any] = {"key": key, "chunks": 0, "mismatches": 0, "first": [], "seconds": 0.0}
    try:
        saved = json.loads(path.read_text())
        done = saved if saved["key"] == key and set(saved) == set(done) else done
    except (OSError, ValueError, LookupError, TypeError):
        pass  # nothing was saved, or nothing that can be used
    state.mkdir(parents=True, exist_ok=True)
    piece = min(chunk, _PIECE)
    ours = torch.empty(piece)
    advance(done["chunks"], done["mismatches"])
    for number in range(done["chunks"], inputs // chunk):
        started = time.perf_counter()
        mismatches, first = done["mismatches"], done["first"]
        for start in range(number * chunk, (number + 1) * chunk, piece):
            x = some_inputs(start, piece, ALL_INPUTS // inputs)
            kernel(x, ours)
            found, lines = compare(x, ours, case.reference(x))
            mismatches, first = mismatches + found, [*first, *lines][:SHOWN]
        seconds = done["seconds"] + time.perf_counter() - started
        done = {"key": key, "chunks": number + 1, "mismatches": mismatches, "first": first, "seconds": seconds}
        write_text(path, json.dumps(done))
        advance(done["chunks"], done["mismatches"])
    return Sweep(
        case=case.name,
        format=case.format,
        overflow=case.overflow,
        rounding="nearest_even",
        form=form,
        oracle=case.oracle,
        versions=versions,
        inputs=inputs,
        mismatches=done["mismatches"],
        first_mismatches=tuple(done["first"]),
        seconds=round(done["seconds"], 1),
        date=datetime.now(UTC).replace(microsecond=0),
        altgrad=altgrad.__version__,
        kernel=KERNEL,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases; 0, 1 where results differ, 2 for a user's mistake, 130 for Ctrl-C."""
    try:
        return _run(_parse(arguments))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is done is saved: the same command goes on from there", file=sys.stderr)
        return 130


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all; {', '.join(names)}")
    parser.add_argument("--form", choices=("auto", "eager"), default="auto", help="auto: compiled where possible")
    parser.add_argument("--inputs", type=int, default=ALL_INPUTS, help="a sample of so many (a power of two)")
    parser.add_argument("--record", type=Path, default=RECORDED / "exhaustive.json", help="where the result goes")
    parser.add_argument("--state", type=Path, default=STATE, help="where what is done is saved")
    options = parser.parse_args(arguments)
    if unknown := set(options.cases) - set(names):
        parser.error(f"unknown case {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if not 0 < options.inputs <= ALL_INPUTS or options.inputs & (options.inputs - 1):
        parser.error(f"--inputs {options.inputs}: a power of two, at most {ALL_INPUTS}")
    if options.inputs < ALL_INPUTS and options.record == RECORDED / "exhaustive.json":
        parser.error("a sample is not recorded beside the sweeps of all inputs: name another file with --record")
    return options


def _run(options: argparse.Namespace) -> int:
    record = read_record(options.record, ExhaustiveRecord)
    console = Console(stderr=True)
    failed = False
    chosen = [case for case in CASES if not options.cases or case.name in options.cases]
    for case in chosen:
        result = _show(case, options, console)
        kept = [known for known in record.sweeps if known.case != case.name] if record else []
        order = [known.name for known in CASES]
        sweeps: Iterable[Sweep] = sorted(
            [*kept, result], key=lambda one: order.index(one.case) if one.case in order else len(order)
        )
        record = ExhaustiveRecord(sweeps=tuple(sweeps))
        write_record(record, options.record)
        # Finished: the next call compares all inputs again.
        (options.state / f"{case.name}.json").unlink(missing_ok=True)
        print(f"{case.name}: {result.mismatches:,} mismatches of {result.inputs:,} inputs against {case.oracle}")
        for line in result.first_mismatches:
            print(f"  {line}")
        failed |= result.mismatches > 0
    return 1 if failed else 0


def _show(case: Case, options: argparse.Namespace, console: Console) -> Sweep:
    """`sweep` with a progress bar."""
    kernel, form = kernel_of(case, options.form)
    bar = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*bar, console=console) as progress:
        task = progress.add_task(f"{case.name} ({form})", total=options.inputs // min(CHUNK, options.inputs))

        def advance(done: int, found: int) -> None:
            told = f", {found:,} mismatches" if found else ""
            progress.update(task, completed=done, description=f"{case.name} ({form}{told})")

        return sweep(case, kernel, form, inputs=options.inputs, state=options.state, advance=advance)


if __name__ == "__main__":
    sys.exit(main())
