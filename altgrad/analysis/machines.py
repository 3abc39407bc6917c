"""Which comparisons pair runs of different days: the records of the first campaign do not name their processor.

Equal configs give equal bits on one machine, and may differ in the last digits on another. So a pair of runs that were
recorded on different days, or in different environments, may hold a difference of machines beside that of its arms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pandas as pd

from altgrad.analysis.loader import ExperimentDataLoader

CROSSING_COLUMNS = ("contrast", "arm", "against", "n_pairs", "n_crossing", "days")
Place = tuple[str, tuple[tuple[str, str], ...]]
"""The day on which a run began, and what its record says of its environment."""


def places(loader: ExperimentDataLoader, arm: str) -> dict[int, Place]:
    """Where each seed of an arm was recorded, as far as its records say."""
    runs = loader.runs[loader.runs["arm"] == arm]
    environments = [loader.records[run_id].run.get("environment") or {} for run_id in runs["run_id"]]
    return {
        seed: (str(created)[:10], tuple(sorted((key, str(value)) for key, value in environment.items())))
        for seed, created, environment in zip(runs["seed"], runs["created"], environments, strict=True)
    }


def days(loader: ExperimentDataLoader, arm: str, against: str) -> Counter[tuple[str, str]]:
    """On which dates the pairs of two arms were recorded: (date of the arm's run, date of the other's) -> pairs."""
    one, other = places(loader, arm), places(loader, against)
    return Counter((one[seed][0], other[seed][0]) for seed in one.keys() & other.keys())


def crossing(loader: ExperimentDataLoader, comparisons: Iterable[tuple[str, str, str]]) -> pd.DataFrame:
    """Each comparison once, columns `CROSSING_COLUMNS`: how many of its pairs lie in two places, and on which days.

    Args:
        loader: the records.
        comparisons: what a comparison is called, its arm, and the arm that is subtracted.
    """
    rows = []
    known: dict[str, dict[int, Place]] = {}
    for name, arm, against in dict.fromkeys(comparisons):
        one, other = (known.setdefault(each, places(loader, each)) for each in (arm, against))
        shared = one.keys() & other.keys()
        apart = [seed for seed in shared if one[seed] != other[seed]]
        found = sorted({(one[seed][0], other[seed][0]) for seed in apart})
        said = "; ".join(f"{mine} against {theirs}" for mine, theirs in found)
        rows.append((name, arm, against, len(shared), len(apart), said))
    return pd.DataFrame(rows, columns=list(CROSSING_COLUMNS))
