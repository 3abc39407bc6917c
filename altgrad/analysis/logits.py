"""What rounding one tensor costs, the gradient of the logits: gaps of the studies of the second registration."""

from __future__ import annotations

from typing import Any

import pandas as pd

from altgrad.analysis.contrasts import missing, named_family
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.studies import HEAD_FORMATS, ROUNDED


def everything_quantized(loader: ExperimentDataLoader) -> pd.DataFrame:
    """`gaps_of` study head: each format with each rounding of the logits' gradient."""
    arms = {(fmt, how): f"{fmt} head {how}" for fmt in HEAD_FORMATS for how in ROUNDED}
    return gaps_of(loader, "FP32 fresh", arms)


def gaps_of(loader: ExperimentDataLoader, baseline: str, arms: dict[tuple[str, str], str]) -> pd.DataFrame:
    """The paired gap of each arm that is recorded in full: format, rounding, and what `named_family` has."""
    whole = {key: arm for key, arm in arms.items() if not missing(loader, [baseline, arm])}
    frame = named_family(loader, [(arm, baseline) for arm in whole.values()])
    keys = pd.DataFrame(list(whole), columns=["format", "rounding"])
    return pd.concat([keys, frame], axis="columns")


def costs_of(gaps: pd.DataFrame) -> list[dict[str, Any]]:
    """Of each format whose gaps are all there: those to nearest, stochastic and wide, the largest cost first."""
    found = []
    for fmt, rows in gaps.groupby("format", sort=False):
        by = rows.set_index("rounding")["difference"].to_dict()
        if {"nearest", "stochastic", "wide"} <= by.keys():
            costs = {"cost": by["nearest"] - by["wide"], "extra": by["stochastic"] - by["wide"]}
            found.append({"format": shown_as(str(fmt)), **by, **costs})
    return sorted(found, key=lambda row: -row["cost"])


def shown_as(fmt: str) -> str:
    """What readers call a format of `HEAD_FORMATS`."""
    return fmt.replace(" up", " (scales up)")
