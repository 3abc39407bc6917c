"""The recorded studies: which configs they are made of, and the command that runs them.

    python experiments/campaign.py STUDY [--out DIR] [--workers N]    run what is not recorded yet; may be repeated
    python experiments/campaign.py pack STUDY [--out DIR]             write experiments/recorded/STUDY/

A study is a function that returns configs. Runs are single-threaded, one process a core. A run that failed or crashed
is recorded and not repeated: what happened is the result. Learning rates are tuned on seeds that no study reports.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from altgrad.cli import guarded  # noqa: E402
from altgrad.config import ExperimentConfig, UsageError, parse_config  # noqa: E402
from altgrad.formats import SPLITS_8BIT, get_format  # noqa: E402

RUNS = ROOT / "experiments" / "runs"
RECORDED = ROOT / "experiments" / "recorded"

TUNING_SEEDS = (100, 101)
SEEDS = (0, 1, 2, 3, 4)
DEMO_SEEDS = (0, 1)
MANIFOLD_FORMATS = ("e2m5", "e3m4", "e4m3", "e5m2")
EXTREME_FORMATS = ("e0m7", "e6m1", "e7m0")
RULES = ("adamw", "gradient", "update")

FP32_RATE = 1.6e-2
"""AdamW's rate for FP32, the best of study pilot-tuning: every format of pilot-formats has it."""

OTHER_RATE = 8e-3
"""AdamW's rate for what the manifold rule leaves to AdamW (norms and positions), the same in every manifold arm."""

TUNED = {
    ("e2m5", "adamw"): 1.6e-2,
    ("e2m5", "gradient"): 1.6e-2,
    ("e2m5", "update"): 2.56,
    ("e3m4", "adamw"): 1.6e-2,
    ("e3m4", "gradient"): 1.6e-2,
    ("e3m4", "update"): 2.56,
    ("e4m3", "adamw"): 1.6e-2,
    ("e4m3", "gradient"): 1.6e-2,
    ("e4m3", "update"): 1.28,
    ("e5m2", "adamw"): 1.6e-2,
    ("e5m2", "gradient"): 1.6e-2,
    ("e5m2", "update"): 0.64,
}
"""Each arm's best rate in study pilot-tuning (mean validation loss of its two seeds); ulps for "update"."""

ADAMW_RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
"""Swept for AdamW and for the gradient precondition, whose steps are in the same unit."""

ULPS_OF_ONE = (0.04, 0.08, 0.16, 0.32, 0.64)
"""Swept for the update precondition, as a step relative to the weight: the rate in ulps is this times 2^M."""


def config(study: str, fmt: str, rule: str, rate: float, seed: int, **rest: Any) -> ExperimentConfig:
    """One run with weights, activations and gradients in `fmt`, trained by a step rule of `RULES`."""
    optimizer: dict[str, Any] = {"learning_rate": rate}
    if rule != "adamw":
        optimizer |= {"step_rule": "manifold", "precondition": rule, "other_learning_rate": OTHER_RATE}
    operands = dict.fromkeys(("weight", "activation", "grad_output"), fmt)
    given = {"study": study, "seed": seed, "quantize": operands, "optimizer": optimizer, **rest}
    return parse_config(given, source=f"campaign.py, study {study}")


def rates(fmt: str, rule: str) -> tuple[float, ...]:
    """The learning rates that are tried for a step rule: five for each, two apart by a factor of 2."""
    if rule != "update":
        return ADAMW_RATES
    return tuple(relative * 2 ** get_format(fmt).mantissa_bits for relative in ULPS_OF_ONE)


def pilot_tuning() -> list[ExperimentConfig]:
    """Five learning rates for every arm of pilot-manifold and for AdamW on the other splits, on two held-out seeds.

    The splits of `EXTREME_FORMATS` are here to show what the one rate of pilot-formats costs them.
    """
    arms = [(fmt, "adamw") for fmt in ("fp32", *EXTREME_FORMATS)]
    arms += [(fmt, rule) for fmt in MANIFOLD_FORMATS for rule in RULES]
    return [
        config("pilot-tuning", fmt, rule, rate, seed)
        for fmt, rule in arms
        for rate in rates(fmt, rule)
        for seed in TUNING_SEEDS
    ]


def pilot_formats() -> list[ExperimentConfig]:
    """FP32, BF16 and the eight splits under AdamW, all at the rate tuned for FP32: what the format alone changes."""
    formats = ["fp32", "bf16"] + [fmt.name for fmt in SPLITS_8BIT]
    return [config("pilot-formats", fmt, "adamw", FP32_RATE, seed) for seed in SEEDS for fmt in formats]


def pilot_manifold() -> list[ExperimentConfig]:
    """AdamW and both preconditions on four formats, each arm at its own tuned rate."""
    return [
        config("pilot-manifold", fmt, rule, TUNED[fmt, rule], seed)
        for seed in SEEDS
        for fmt in MANIFOLD_FORMATS
        for rule in RULES
    ]


def demo() -> list[ExperimentConfig]:
    """A small matrix of short runs that a newcomer trains live, in at most three minutes on two cores."""
    short = {"max_steps": 200}
    formats = ("fp32", "e4m3", "e5m2", "e0m7", "e7m0")
    return [
        run
        for seed in DEMO_SEEDS
        for run in (
            *(config("demo", fmt, "adamw", FP32_RATE, seed, **short) for fmt in formats),
            config("demo", "e4m3", "update", TUNED["e4m3", "update"], seed, **short),
        )
    ]


STUDIES: dict[str, Callable[[], list[ExperimentConfig]]] = {
    "pilot-tuning": pilot_tuning,
    "pilot-formats": pilot_formats,
    "pilot-manifold": pilot_manifold,
    "demo": demo,
}


def missing(configs: Sequence[ExperimentConfig], out: Path) -> list[ExperimentConfig]:
    """The configs without an ended run in `out` or in experiments/recorded; interrupted runs are missing."""
    from altgrad.runs import load_runs, run_id
    from altgrad.training import load_corpus

    fingerprint = load_corpus().fingerprint
    ended = {run.id for run in load_runs((RECORDED, out)).records if run.status in ("finished", "failed", "crashed")}
    return [config for config in configs if run_id(config, fingerprint) not in ended]


def run_study(study: str, out: Path, workers: int) -> int:
    """Run what is missing of a study; returns 0, or 1 where a run crashed."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    configs = find(study)()
    todo = missing(configs, out)
    print(f"{study}: {len(configs)} runs, {len(configs) - len(todo)} recorded, {len(todo)} to do")
    crashed = 0
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(todo))
        for line, status in _results(todo, out, workers):
            bar.update(task, advance=1, description=line)
            crashed += status == "crashed"
            if status != "finished":
                bar.console.print(line)
    print(f"records: {out}" + (f"; {crashed} crashed" if crashed else ""))
    return 1 if crashed else 0


def pack(study: str, out: Path) -> int:
    """Write the study's ended runs, from `out` and what is packed already, to experiments/recorded/STUDY/."""
    from altgrad.runs import load_runs, pack_study, run_id
    from altgrad.training import load_corpus

    fingerprint = load_corpus().fingerprint
    wanted = {run_id(config, fingerprint) for config in find(study)()}
    records = [run for run in load_runs((RECORDED / study, out)).records if run.id in wanted]
    if len(records) < len(wanted):
        raise UsageError(
            f"{study}: {len(wanted) - len(records)} of {len(wanted)} runs are not recorded; run the study first"
        )
    pack_study(records, RECORDED / study, history_every=10, layers_every=100)
    size = sum(file.stat().st_size for file in (RECORDED / study).iterdir())
    print(f"{study}: {len(records)} runs packed, {size / 1e3:.0f} kB")
    return 0


def find(study: str) -> Callable[[], list[ExperimentConfig]]:
    """The study called `study`.

    Raises:
        UsageError: there is none.
    """
    if study not in STUDIES:
        raise UsageError(f"STUDY {study!r}: there is no such study; studies are {', '.join(STUDIES)}")
    return STUDIES[study]


def cores() -> int:
    """The cores this process may use; all of them where the system does not tell (macOS, Windows)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _results(todo: list[ExperimentConfig], out: Path, workers: int) -> Iterator[tuple[str, str]]:
    """(line, status) of each run as it ends; a fresh process takes over after 20 runs."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=_start_worker, maxtasksperchild=20) as pool:
        yield from pool.imap_unordered(_run_one, [(config, out) for config in todo])


def _start_worker() -> None:
    """One thread; Ctrl-C is the parent's business, which ends its workers by SIGTERM: their runs are `interrupted`."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _run_one(job: tuple[ExperimentConfig, Path]) -> tuple[str, str]:
    from altgrad.runs import RunExists
    from altgrad.training import train

    config, out = job
    label = f"{config.resolved_name} seed {config.seed}"
    try:
        result = train(config, out, progress=False)
    except RunExists as error:
        return f"{label}: left out, {error}", "left out"
    except UsageError:  # the user's to mend, and the same for the runs to come
        raise
    except Exception as error:  # the record says crashed; the other runs go on
        return f"{label}: crashed, {type(error).__name__}: {error}", "crashed"
    return f"{label}: {result.status}, validation loss {result.summary['val_loss']:.3f}", result.status


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Run or pack a recorded study.", epilog=f"studies: {', '.join(STUDIES)}"
    )
    parser.add_argument("words", nargs="+", metavar="[pack] STUDY")
    parser.add_argument("--out", type=Path, default=RUNS, help="folder of the records (default: experiments/runs)")
    parser.add_argument("--workers", type=int, default=cores(), help="processes (default: cores)")
    options = parser.parse_args()
    *action, study = options.words
    if action == ["pack"]:
        return guarded(lambda: pack(study, options.out))
    if action or options.workers < 1:
        parser.error("give a study, or pack and a study, and at least one worker")
    return guarded(lambda: run_study(study, options.out, options.workers))


if __name__ == "__main__":
    sys.exit(main())
