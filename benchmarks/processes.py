"""A training step on two processes against one, of the same global batch, and one process with two threads beside it.

    make bench-processes                                                    on a quiet machine of two cores or more
    .venv/bin/python benchmarks/processes.py --quick --record trial.json    a trial of the machinery

Whole runs of `experiments/run_experiment.py`, those of two processes by torchrun (`parallel: ddp`, gloo), in turns. A
step's time is that of the clock between its record's rows, the best half of the steps, without the first ones. After
some minutes (--minutes) it stops between two runs, and the same command goes on from there; --again measures anew. The
record goes to benchmarks/recorded/processes.json, which the site shows.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from notes import Notes  # noqa: E402

import altgrad  # noqa: E402
from altgrad.imports import code_fingerprint  # noqa: E402
from altgrad.reports.measured import RECORDED, write_record  # noqa: E402
from altgrad.reports.run_costs import Figure, ProcessesRecord  # noqa: E402
from altgrad.runs import load_runs  # noqa: E402

SIZES = {
    False: {"layers": 4, "dim": 256, "heads": 4, "context": 128, "batch": 32, "steps": 24, "turns": 3},
    True: {"layers": 1, "dim": 16, "heads": 2, "context": 16, "batch": 2, "steps": 6, "turns": 1},
}
WARM = 3
WAYS = {"one": (1, 1), "two": (2, 1), "threads": (1, 2)}
"""Processes, and threads of each."""
QUANTIZED = {"": "{}", ", E4M3": "{weight: e4m3, activation: e4m3, grad_output: e4m3}"}


def seconds_of_a_step(quantize: str, processes: int, threads: int, size: dict[str, int], out: Path) -> float:
    """One run's, by the clock.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    out.mkdir(parents=True)
    keys = ("layers", "dim", "heads", "context")
    model = ", ".join(f"{key}: {size[key]}" for key in keys)
    config = out / "config.yaml"
    config.write_text(
        f"quantize: {quantize}\nmodel: {{{model}}}\nbatch_size: {size['batch']}\nmax_steps: {size['steps']}\n"
        f"eval_every: {size['steps']}\neval_batches: 1\nwarmup_steps: 1\nlayers_every: 0\n"
        + ("parallel: ddp\n" if processes > 1 else "")
    )
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    run = [str(ROOT / "experiments" / "run_experiment.py"), str(config), "--out", str(out), "--threads", str(threads)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    subprocess.run([*start, *run], check=True, capture_output=True, text=True, env=environment)
    (record,) = load_runs([out]).records
    steps = record.history["seconds"].dropna().diff().dropna().iloc[WARM:-1].sort_values()
    return float(steps.iloc[: max(len(steps) // 2, 1)].mean())


def bench(size: dict[str, int], show: Callable[[str], None], notes: Notes, until: float) -> ProcessesRecord | None:
    """Measure what is not noted; None where that is not done by `until` (`time.monotonic`)."""
    figures, loads = [], list[float]()
    with tempfile.TemporaryDirectory(prefix="altgrad-bench-") as name:
        for told, quantize in QUANTIZED.items():
            found: dict[str, list[float]] = {way: [] for way in WAYS}
            for turn in range(size["turns"]):
                for way, (processes, threads) in WAYS.items():
                    run = f"{way}-{turn}{told.replace(', ', '-')}"
                    if run not in notes.known:
                        if time.monotonic() > until:
                            return None
                        show(f"turn {turn + 1} of {size['turns']}: {way}{told}")
                    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
                    measure = partial(seconds_of_a_step, quantize, processes, threads, size, Path(name) / run)
                    seconds, load = notes.of(run, lambda measure=measure, load=load: [measure(), load])
                    found[way].append(seconds)
                    loads.append(load)
            one, two, several = (1e3 * min(found[way]) for way in WAYS)
            ratios = [a / b for a, b in zip(found["two"], found["one"], strict=True)]
            spread = f"Turns: {min(ratios):.2f} to {max(ratios):.2f}, median {statistics.median(ratios):.2f}."
            floor = {"floor": one, "floor_name": "one process, one thread"}
            figures += [
                Figure(name=f"Two processes{told}", value=two, unit="ms", goal_ratio=1 / 1.5, reason=spread, **floor),
                Figure(name=f"Two threads of one process{told}", value=several, unit="ms", **floor),
            ]
    return ProcessesRecord(
        date=datetime.now(UTC).replace(microsecond=0),
        altgrad=altgrad.__version__,
        code=code_fingerprint("run"),
        cores=os.cpu_count() or 1,
        load=round(max(loads), 2),
        versions={"torch": version("torch")},
        sizes=size,
        figures=tuple(figures),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and record; 0, 2 where a run failed, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a trial of the machinery with a tiny model")
    parser.add_argument("--record", type=Path, help="where the figures go (benchmarks/recorded/processes.json)")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no further run begins (9)")
    parser.add_argument("--again", action="store_true", help="measure anew what was measured of this code before")
    options = parser.parse_args(arguments)
    if options.quick and options.record is None:
        parser.error("a quick trial is not recorded for the site: name another file with --record")
    kept = options.record.with_suffix(".notes.json") if options.record else ROOT / "build" / "bench-processes.json"
    if options.again:
        kept.unlink(missing_ok=True)
    notes = Notes(kept, f"{code_fingerprint('run')} {SIZES[options.quick]}")
    until = time.monotonic() + 60 * options.minutes
    try:
        found = bench(SIZES[options.quick], lambda text: print(f"{text} ...", file=sys.stderr), notes, until)
    except subprocess.CalledProcessError as error:
        print(f"error: a run failed: {error.stderr.strip()[-300:]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    if found is None:
        print("stopped in time; the same command goes on")
        return 0
    path = options.record or RECORDED / "processes.json"
    write_record(found, path)
    for figure in found.figures:
        result = {True: "   met", False: "   missed", None: ""}[figure.met]
        print(f"{figure.name:32} {figure.value:8.1f} ms   {figure.times_floor:.2f} x {figure.floor_name}{result}")
    print(f"record: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
