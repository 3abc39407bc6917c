"""Fits the ladder's law to the recorded runs and writes what it predicts: to be committed before larger sizes run.

python experiments/ladder_fit.py [--runs experiments/recorded] [--out experiments/ladder-fit.json]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from altgrad.analysis import ExperimentDataLoader  # noqa: E402
from altgrad.analysis.scaling import best_rates, extrapolated_rate, findings, swept  # noqa: E402
from altgrad.cli import guarded  # noqa: E402
from altgrad.config import UsageError  # noqa: E402
from altgrad.studies import LADDER, LADDER_HELD_OUT, LADDER_LARGE  # noqa: E402


def committed(loader: ExperimentDataLoader) -> dict[str, Any]:
    """The law, the rates of sizes without a sweep, and the predictions, JSON-ready.

    Raises:
        UsageError: study ladder or its sweeps are not recorded in full, or no law can be fitted.
    """
    found = loader.memo(findings)
    if not found.complete("ladder"):
        raise UsageError(f"ladder: {found.have('ladder')} of {found.recorded.expected['ladder']} runs are recorded")
    if found.law is None:
        raise UsageError(f"ladder: no law, {found.why['law']}")
    best = best_rates(loader.memo(swept))
    forms = ("FP32", "NVFP4")
    if missing := [f"{form} {size.name}" for size in LADDER for form in forms if (size.name, form) not in best]:
        raise UsageError(f"ladder-tuning: not recorded: {', '.join(missing)}")
    sweeps = {form: {size.dim: best[size.name, form] for size in LADDER} for form in forms}
    law, held = found.law, found.held
    return {
        "records": loader.fingerprint,
        "cells": len(found.fitted.cells),
        "exponents": dict(zip(law.law.exponents, law.exponents.tolist(), strict=True)),
        "coefficients": dict(zip(law.forms, law.coefficients.tolist(), strict=True)),
        "covariance": law.covariance.tolist(),
        "chi2": law.chi2,
        "degrees_of_freedom": law.dof,
        "rates": {
            size.name: [extrapolated_rate(sweeps[form], size.dim) for form in forms]
            for size in (*LADDER_HELD_OUT, *LADDER_LARGE)
        },
        "predictions": held[["form", "size", "steps", "predicted", "low", "high", "band"]].to_dict("records"),
    }


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description="Write the fit and the predictions of the ladder.")
    parser.add_argument("--runs", type=Path, default=ROOT / "experiments" / "recorded", help="folder of the records")
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "ladder-fit.json", help="where to write")
    options = parser.parse_args()

    def work() -> int:
        found = committed(ExperimentDataLoader([options.runs]))
        options.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        for size, (own, others) in found["rates"].items():
            print(f'EXTRAPOLATED_RATES: "{size}": ({own:g}, {others:g})')
        print(f"written: {options.out.name}")
        return 0

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
