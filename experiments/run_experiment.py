"""Train one config and record the run.

    python experiments/run_experiment.py experiments/configs/e5m2.yaml [--set max_steps=300 ...] [--seed N] [--resume]

Records go to experiments/runs beside this script unless --out says otherwise; `altgrad train` is the same command.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from altgrad.cli import add_train_arguments, guarded, run_training  # noqa: E402
from altgrad.runs.recorder import writes  # noqa: E402


def main() -> int:
    """Returns the exit code of the run."""
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    add_train_arguments(parser, ROOT / "experiments" / "runs", "python experiments/run_experiment.py")
    options = parser.parse_args()
    import controls  # noqa: F401, its roundings are registered

    code = guarded(lambda: run_training(options))
    if code in (0, 1) and writes():
        print("\nTraining complete!")
        print("To update analysis reports:")
        print("  python scripts/generate_reports.py")
    return code


if __name__ == "__main__":
    sys.exit(main())
