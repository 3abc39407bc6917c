"""What rounding one tensor costs, the gradient of the logits: gaps of the studies of the second registration."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from altgrad.analysis.contrasts import NAMED, TEST_COLUMNS, by_seed, family, missing, named_family, row_of, runs_of
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import paired_difference
from altgrad.studies import COSTLY, HEAD_FORMATS, ROUNDED, VOCABULARIES


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


def tokens_per_character(loader: ExperimentDataLoader, runs: pd.DataFrame) -> float:
    """Tokens that the last evaluation of an arm predicted, by the characters that they are; the same in every run."""
    read = {
        (summary["evaluated_tokens"], summary["evaluated_characters"])
        for summary in (loader.records[run].run["summary"] for run in runs.loc[runs["status"] == "finished", "run_id"])
    }
    tokens, characters = read.pop() if len(read) == 1 else (math.nan, math.nan)
    return float(tokens) / float(characters)


def cost_a_token(loader: ExperimentDataLoader, fmt: str, suffix: str = "") -> pd.Series:
    """What rounding the logits' gradient to nearest costs above not quantizing it, in nats a token, by seed."""
    nearest, wide = (runs_of(loader, f"{fmt} head {how}{suffix}") for how in ("nearest", "wide"))
    return (by_seed(nearest) - by_seed(wide)).dropna() / tokens_per_character(loader, nearest)


def growth_with_vocabulary(loader: ExperimentDataLoader) -> tuple[str, pd.DataFrame]:
    """The costs a token with the largest vocabulary minus those with characters: what is missing, and a family."""
    suffix = f" {VOCABULARIES[-1]}"
    arms = [[f"{fmt} head {how}{end}" for fmt in COSTLY for how in ("nearest", "wide")] for end in ("", suffix)]
    if lacking := " ".join(text for text in (missing(loader, each) for each in arms) if text):
        return lacking, family([])
    rows = []
    for fmt in COSTLY:
        of, to = (f"{fmt} head nearest{end}" for end in (suffix, ""))
        estimate = paired_difference(cost_a_token(loader, fmt, suffix), cost_a_token(loader, fmt))
        named = {"arm": runs_of(loader, of)["arm"].iloc[0], "against": runs_of(loader, to)["arm"].iloc[0]}
        named |= dict(zip(NAMED, (of, to), strict=True))
        rows.append(row_of(f"{shown_as(fmt)}, {VOCABULARIES[-1]:,} tokens − characters", estimate) | named)
    return "", family(rows, (*TEST_COLUMNS, *NAMED))
