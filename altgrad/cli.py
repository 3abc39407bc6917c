"""The command line: ``altgrad train CONFIG``. torch is imported only when something is trained."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from altgrad import __version__
from altgrad.config import UsageError, load_config

TRAINING_PACKAGES = ("torch", "rich")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0, 1 for a run that failed, 2 for a user's mistake, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(prog="altgrad", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("--version", action="version", version=f"altgrad {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train one config and record the run")
    add_train_arguments(train, Path("experiments/runs"))
    options = parser.parse_args(arguments)
    return guarded(lambda: run_training(options))


def add_train_arguments(parser: argparse.ArgumentParser, out: Path) -> None:
    """The arguments of a training run; `out` is where records go by default."""
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the experiment")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key, e.g. quantize.weight=e4m3",
    )
    parser.add_argument("--seed", type=int, help="replaces the config's seed")
    parser.add_argument("--out", type=Path, default=out, help="folder of the records (default: experiments/runs)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
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
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on a GPU
    import torch

    from altgrad.training import train

    torch.set_num_threads(options.threads)
    result = train(config, options.out, device=options.device)
    loss = result.summary["val_loss"]
    print(f"{result.run_id}: {result.status}, validation loss {loss:.4f} nats per character")
    if result.failure:
        where = f" ({result.failure.tensor}, {result.failure.phase})" if result.failure.tensor else ""
        print(f"failure from step {result.failure.step}{where}: {result.failure.message}")
    print(f"record: {result.path}")
    return 1 if result.failure else 0


def guarded(command: Callable[[], int]) -> int:
    """`command()`'s exit code, with a user's mistake as one line on stderr and code 2, and Ctrl-C as code 130."""
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
        print("interrupted; the record so far is kept", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
