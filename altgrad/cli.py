"""The command line: ``altgrad train CONFIG`` and ``altgrad explain RUN_FOLDER``. torch is imported only to train."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from altgrad import __version__
from altgrad.config import UsageError, load_config

EXPLAINING = """Say what broke in a recorded run, where and when, as markdown on standard output.

RUN_FOLDER is the folder of one run: OUT/<run id>, as `altgrad train` prints it. A run that failed, was stopped or was
killed is explained from its record, which stays as it is; one that finished has its warnings, or nothing to explain.

exit codes:
  0 printed   2 there is no readable record; one line says what
"""

TRAINING_PACKAGES = ("torch", "rich", "safetensors")

TRAINING = """Train one config and record the run.

The record goes to OUT/<run id>/: run.json (config, environment, status, events, summary), history.parquet (a row a
step), layers.parquet (statistics of every layer), failure.md for a run that ended badly (what broke, where and when)
and, where the config has checkpoint.every=N, checkpoints/ (step-<n>, best, anomaly: tensors as safetensors, the rest
as JSON). A finished run is never overwritten; one that did not finish
is kept beside the new one as <run id>.<n>.old, or gone on with (--resume).
"""

EXAMPLES = """examples:
  {command} experiments/configs/e4m3.yaml
  {command} experiments/configs/e4m3.yaml --seed 3 --set max_steps=1000 --set quantize.weight=e5m2
  {command} experiments/configs/fp32.yaml --data my-text.txt --set model.dim=128
  {command} experiments/configs/e4m3.yaml --set checkpoint.every=100            stop it with Ctrl-C, then
  {command} experiments/configs/e4m3.yaml --set checkpoint.every=100 --resume

exit codes:
  0 finished   1 the run failed (NaN, divergence); its record says why   130 Ctrl-C   143 SIGTERM
  2 nothing more could be done: a mistake in the arguments, missing data, a full disk; one line says what
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0, 1 for a run that failed, 2 for a user's mistake, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(prog="altgrad", description="Train in simulated low precision, and explain runs.")
    parser.add_argument("--version", action="version", version=f"altgrad {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train one config and record the run")
    add_train_arguments(train, Path("experiments/runs"), "altgrad train")
    explain = commands.add_parser(
        "explain",
        help="say what broke in a recorded run",
        description=EXPLAINING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    explain.add_argument("folder", metavar="RUN_FOLDER", type=Path, help="the folder of one run")
    options = parser.parse_args(arguments)
    return guarded(lambda: run_training(options) if options.command == "train" else run_explain(options))


def add_train_arguments(parser: argparse.ArgumentParser, out: Path, command: str) -> None:
    """The arguments of a training run; `out` is where records go by default, `command` what its examples begin with."""
    parser.description, parser.epilog = TRAINING, EXAMPLES.format(command=command)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the experiment")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key, e.g. quantize.weight=e4m3; may be repeated",
    )
    parser.add_argument("--seed", type=int, help="replaces the config's seed")
    parser.add_argument("--out", type=Path, default=out, help="folder of the records (default: experiments/runs)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with this config's interrupted or crashed run from its newest checkpoint, bit for bit; "
        "from the beginning where there is none",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="train on a UTF-8 text of your own, folded to ASCII, its last tenth held out (default: licence texts)",
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads; 1 (default) makes numbers independent of the core count"
    )


def run_training(options: argparse.Namespace) -> int:
    """Train as the options say, print how it ended, and return the exit code.

    Raises:
        UsageError: a user's mistake, or the data missing.
        ModuleNotFoundError: torch or rich are missing.
    """
    config = load_config(options.config, options.set, options.seed)
    if options.threads < 1:
        raise UsageError(f"--threads {options.threads}: give a number of at least 1")
    if options.data is not None:
        config = config.model_copy(update={"data": "file"})
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on a GPU
    import torch

    from altgrad.runs.writer import REPORT
    from altgrad.training import load_text, train

    corpus = None
    if options.data is not None:
        corpus = load_text(options.data)
        if (lost := corpus.fingerprint["left_out"]) > 0.05:
            print(
                f"notice: --data: {lost:.0%} of the characters have no ASCII likeness and are left out", file=sys.stderr
            )
    torch.set_num_threads(options.threads)
    result = train(config, options.out, device=options.device, corpus=corpus, resume=options.resume)
    loss = result.summary["val_loss"]
    early = f" at step {step} (no better since)" if (step := result.summary.get("stopped_early")) else ""
    print(f"{result.run_id}: {result.status}{early}, validation loss {loss:.4f} nats per character")
    if result.failure:
        where = f" ({result.failure.tensor}, {result.failure.phase})" if result.failure.tensor else ""
        print(f"failure from step {result.failure.step}{where}: {result.failure.message}")
        if (report := result.path / REPORT).exists():
            print(f"report: {report}")
    print(f"record: {result.path}")
    return 1 if result.failure else 0


def run_explain(options: argparse.Namespace) -> int:
    """Print why the run in the folder ended badly, and return the exit code.

    Raises:
        UsageError: the folder holds no readable record.
    """
    from altgrad.analysis.reports.failure_report import failure_report
    from altgrad.runs import read_run

    folder: Path = options.folder
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give the folder of one run, OUT/<run id>")
    sys.stdout.write(failure_report(read_run(folder)))
    return 0


def guarded(command: Callable[[], int]) -> int:
    """`command()`'s exit code; what ends it early is one line on stderr: a mistake 2, Ctrl-C 130, SIGTERM 143."""
    try:
        return command()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in TRAINING_PACKAGES:
            raise
        print(f"error: the package {error.name} is not installed; run: pip install 'altgrad[train]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {_KEPT}", file=sys.stderr)
        return 130
    except SystemExit as stop:
        if stop.code != 128 + signal.SIGTERM:
            raise
        print(f"stopped by SIGTERM; {_KEPT}", file=sys.stderr)
        return 143


_KEPT = "the record so far is kept, and --resume goes on from its last checkpoint where it has one"


if __name__ == "__main__":
    sys.exit(main())
