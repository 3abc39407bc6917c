"""How often intervals of the ladder's law cover the truth: made-up ladders with a known law and the spreads of records.

    python benchmarks/interval_coverage.py [--ladders 1000] [--seeds 8]
    python benchmarks/interval_coverage.py --power [--ladders 100]      how often the ladder's own marks are then met

The arms, sizes and lengths are those of study ladder. A gap of g has over seeds a standard deviation of .006 + .08 g
(study head: .0059 at .007, .0131 at .053, .0199 at .149, .0330 at .813), smaller in longer runs, and two arms correlate
by .35, since they share FP32's run. Each way of intervals is asked for both exponents and all gaps of the fitted cells
(nominal 95%), and the prediction of the held-out size for the mean that comes (nominal 90%).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from altgrad.analysis import scaling
from altgrad.studies import FITTED, LADDER, LADDER_HELD_OUT, TOKENS_PER_STEP, Size, forms_at

EXPONENTS = (-0.45, 0.3)
COEFFICIENTS = {
    "E7M0": 0.12, "E6M1": 0.03, "E5M2": 0.0075, "MXFP6": 0.008, "MXFP4": 0.05, "NVFP4": 0.03, "NVFP4 drawn": 0.02,
    "NVFP4 all": 0.3, "NVFP4 all drawn": 0.05,
}  # fmt: skip
SHARED = 0.35
TIMES = (0.7, 1.0, 1.5, 2.0)
"""By what the coefficients are multiplied to ask how often the marks are met."""


def law(form: str, parameters: float, tokens: float) -> float:
    """The known law."""
    a, b = EXPONENTS
    return float(COEFFICIENTS[form] * (parameters / scaling.UNITS[0]) ** a * (tokens / scaling.UNITS[1]) ** b)


def made_up(
    draw: np.random.Generator,
    seeds: int = 8,
    sizes: tuple[Size, ...] = (*LADDER, *LADDER_HELD_OUT),
    truth: Callable[[str, float, float], float] = law,
    spread: float = 1.0,
) -> pd.DataFrame:
    """The runs of a ladder whose gaps have the means that `truth` says, as `altgrad.analysis.scaling.recorded` has."""
    rows = []
    for size in sizes:
        for steps in size.steps:
            tokens = steps * TOKENS_PER_STEP
            base = 1.2 + 0.55 * (size.parameters / 1e5) ** -0.25 + 0.45 * (tokens / 1e6) ** -0.4
            losses, shared = base + draw.normal(0, 0.012, seeds), draw.normal(0, 1, seeds)
            for form in forms_at(size, steps):
                mean = 0.0 if form == "FP32" else truth(form, size.parameters, tokens)
                sd = spread * (0.006 + 0.08 * abs(mean)) * (tokens / 8e5) ** -0.1 * (form != "FP32")
                own = mean + sd * (math.sqrt(SHARED) * shared + math.sqrt(1 - SHARED) * draw.normal(0, 1, seeds))
                study = "ladder" if size in LADDER else "ladder-held-out"
                where = (form, size.name, steps, size.parameters, tokens, study)
                gaps = own if form != "FP32" else own * math.nan
                rows += [(*where, 70 + k, losses[k] + np.nan_to_num(own[k]), gaps[k]) for k in range(seeds)]
    return pd.DataFrame(rows, columns=[*scaling.CELL, "study", "seed", "loss", "gap"])


def coverage(ladders: int, seeds: int, start: int = 0) -> pd.DataFrame:
    """Share of intervals that cover, a row a way of intervals: exponents and gaps (95%), predictions (90%)."""
    hits: dict[str, list[list[float]]] = {}
    for number in range(ladders):
        runs = made_up(np.random.default_rng(start + number), seeds)
        fitted = scaling.ladder_of(runs[(runs["study"] == "ladder") & runs["form"].isin(FITTED)])
        new = scaling.ladder_of(runs[(runs["study"] != "ladder") & runs["form"].isin(FITTED)]).cells
        variances = (fitted.cells["sd"] ** 2 / fitted.cells["n"]).to_numpy()
        ways = {
            "each variance from its own seeds": (fitted._replace(covariance=np.diag(variances)), "plain"),
            "plain": (fitted, "plain"),
            "widened": (fitted, "widened"),
        }
        points, held = scaling.Points.of(fitted.cells), scaling.Points.of(new)
        true = np.array([law(*each) for each in zip(*points, strict=True)])
        for name, (ladder, how) in ways.items():
            found = scaling.fit(scaling.LAWS["law"], ladder)
            ends = [found.exponent(each, how=how)[1:] for each in ("a", "b")]  # type: ignore[arg-type]
            exponents = np.mean([low <= value <= high for (low, high), value in zip(ends, EXPONENTS, strict=True)])
            half = found.quantile(0.95, how) * found.error(points, how)  # type: ignore[arg-type]
            gaps = np.mean(np.abs(found(points) - true) <= half)
            predicted, error = scaling.predictions(found, ladder, held, float(seeds))
            predictions = np.mean(np.abs(predicted - new["gap"]) <= found.quantile(0.9, how) * error)  # type: ignore[arg-type]
            hits.setdefault(name, []).append([float(exponents), float(gaps), float(predictions)])
    rows = [[name, *np.mean(found, axis=0)] for name, found in hits.items()]
    return pd.DataFrame(rows, columns=["way", "exponents", "gaps", "predictions"]).set_index("way")


def power(ladders: int, seeds: int) -> pd.DataFrame:
    """Share of ladders whose law is called a hit, a row a size of the gaps; and how many arms count."""
    rows = []
    for times in TIMES:
        found = []
        for number in range(ladders):
            runs = made_up(np.random.default_rng(number), seeds, truth=lambda *at, by=times: by * law(*at))  # type: ignore[misc]
            recorded = scaling.Recorded(runs, (), dict.fromkeys(scaling.SETS, 1))
            found.append(scaling.outcome(scaling.findings_of(recorded)))
        answers = pd.Series([each.answer for each in found]).value_counts(normalize=True)
        counted = float(np.mean([each.counted for each in found]))
        rows.append([times, *(float(answers.get(name, 0.0)) for name in ("yes", "no", "inconclusive")), counted])
    return pd.DataFrame(rows, columns=["times", "yes", "no", "inconclusive", "counted"])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Simulate how often intervals of the ladder's law cover the truth.")
    parser.add_argument("--ladders", type=int, default=1000, help="how many are made up (default: 1000)")
    parser.add_argument("--seeds", type=int, default=8, help="runs of a cell (default: 8)")
    parser.add_argument("--power", action="store_true", help="how often the marks are met where the law holds")
    options = parser.parse_args()
    if options.power:
        print(power(options.ladders, options.seeds).round(2).to_string(index=False))
        return
    found = coverage(options.ladders, options.seeds)
    print(f"{options.ladders} ladders, {options.seeds} seeds; nominal 95%, 95%, 90%")
    print(found.map("{:.1%}".format).to_string())


if __name__ == "__main__":
    main()
