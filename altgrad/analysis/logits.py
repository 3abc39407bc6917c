"""What rounding one tensor costs, the gradient of the logits: gaps of the studies of the second registration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from altgrad.analysis.comparison import FormatComparator
from altgrad.analysis.contrasts import NAMED, TEST_COLUMNS, by_seed, family, missing, named_family, row_of, runs_of
from altgrad.analysis.costs import extent
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import FAILURE_GAP, paired_difference, rank_correlation
from altgrad.studies import (
    ARMS,
    COSTLY,
    FP32_RATE,
    HEAD_FORMATS,
    ROUNDED,
    SPLITS,
    TEXT_FORMATS,
    VOCABULARIES,
    VOCABULARY_FORMATS,
    identity_of,
)

CHARACTERS = 96
"""Tokens where each is a character."""


def everything_quantized(loader: ExperimentDataLoader) -> pd.DataFrame:
    """`gaps_of` study head: each format with each rounding of the logits' gradient."""
    arms = {(fmt, how): f"{fmt} head {how}" for fmt in HEAD_FORMATS for how in ROUNDED}
    return gaps_of(loader, "FP32 fresh", arms)


def on_more_text(loader: ExperimentDataLoader) -> dict[str, Any] | None:
    """The splits of study head, to nearest, beside their gaps in the headline, which has other seeds and reads less.

    Returns:
        None where either is not recorded; else `before` and `read`, the characters that an evaluation of the headline
        and of the study reads; `rows` at FP32's rate, as `everything_quantized` has them, with `gap_before`,
        `low_before` and `high_before` of the headline; `moved`, those of them whose 95% intervals do not meet; `fails`,
        those that end above the limit of a failure here alone; `own`, those at a rate of their own; and `close`, of
        each format that is shown to be near the best one, how far it is from that here.
    """
    gaps, headline = loader.memo(everything_quantized), loader.memo(FormatComparator).headline
    if headline is None or gaps.empty:
        return None
    table, spot = headline.table.set_index("format"), FormatComparator.sweet_spot(headline)
    gaps = gaps[(gaps["rounding"] == "nearest") & gaps["format"].isin([*SPLITS]) & gaps["format"].isin(table.index)]
    if gaps.empty:
        return None
    ends = table[["gap", "low", "high"]].add_suffix("_before")
    rows = gaps.join(ends, on="format").sort_values("difference").to_dict("records")
    same = [row for row in rows if row["rate"] == FP32_RATE]
    names = [row["format"] for row in same]
    near = [name for name in spot.equivalent if {name, spot.best} <= {*names}]
    pairs = [(f"{name} head nearest", f"{spot.best} head nearest") for name in near]
    return {
        "before": extent(loader, headline.baseline).evaluated,
        "read": extent(loader, rows[0]["arm"]).evaluated,
        "rows": same,
        "moved": [row for row in same if row["low"] > row["high_before"] or row["high"] < row["low_before"]],
        "fails": [row for row in same if row["difference"] > FAILURE_GAP >= row["gap_before"]],
        "own": [row for row in rows if row["rate"] != FP32_RATE],
        "close": [
            row | {"format": name}
            for name, row in zip(near, named_family(loader, pairs).to_dict("records"), strict=True)
        ],
    }


def without_embedding_and_head(loader: ExperimentDataLoader) -> pd.DataFrame:
    """`gaps_of` study blocks-only."""
    return gaps_of(loader, "FP32 fresh", {(fmt, "body"): f"{fmt} body" for fmt in HEAD_FORMATS})


def on_another_text(loader: ExperimentDataLoader) -> pd.DataFrame:
    """`gaps_of` study text."""
    roundings = ("nearest", "stochastic")
    arms = {(fmt, how): f"{fmt} head {how} sympy" for fmt in TEXT_FORMATS for how in roundings}
    return gaps_of(loader, "FP32 sympy", arms)


def gaps_of(loader: ExperimentDataLoader, baseline: str, arms: dict[tuple[str, str], str]) -> pd.DataFrame:
    """The paired gap of each arm that is recorded in full: format, rounding, rate, and what `named_family` has."""
    whole = {key: arm for key, arm in arms.items() if not missing(loader, [baseline, arm])}
    frame = named_family(loader, [(arm, baseline) for arm in whole.values()])
    keys = pd.DataFrame(list(whole), columns=["format", "rounding"])
    return pd.concat([keys.assign(rate=[ARMS[arm].rate for arm in whole.values()]), frame], axis="columns")


def costs_of(loader: ExperimentDataLoader, gaps: pd.DataFrame) -> list[dict[str, Any]]:
    """Of each format whose `gaps` of study head are all there, what its rounding costs; the largest cost first.

    Format, the gaps by rounding, `cost` (to nearest above not quantized) with its interval low to high and n_pairs,
    `extra` (stochastically above not quantized), in nats per character, and the learning `rates` by rounding.
    """
    found = []
    for fmt, rows in gaps.groupby("format", sort=False):
        by, rates = (rows.set_index("rounding")[name].to_dict() for name in ("difference", "rate"))
        if {"nearest", "stochastic", "wide"} <= by.keys():
            cost = paired_difference(*(by_seed(runs_of(loader, f"{fmt} head {how}")) for how in ("nearest", "wide")))
            costs: dict[str, Any] = {"cost": cost.mean, "low": cost.low, "high": cost.high, "n_pairs": cost.n}
            costs |= {"extra": by["stochastic"] - by["wide"], "rates": rates}
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


def costs_by_vocabulary(loader: ExperimentDataLoader) -> pd.DataFrame:
    """What rounding the logits' gradient costs above not quantizing it, a row a format and a number of tokens.

    Columns format, tokens, n_runs (of each arm), n_pairs, difference, low, high and n_ended_badly (to nearest),
    per_token (the same in nats a token), extra, extra_low, extra_high and extra_ended_badly (stochastically), and
    wide_ended_badly (not quantized). Runs that did not finish are counted and have no pair. What is not recorded in
    full has no row.
    """
    rows = []
    for fmt in VOCABULARY_FORMATS:
        for tokens in (CHARACTERS, *VOCABULARIES):
            suffix = "" if tokens == CHARACTERS else f" {tokens}"
            arms = [f"{fmt} head {how}{suffix}" for how in ("nearest", "stochastic", "wide")]
            if missing(loader, arms):
                continue
            runs = [runs_of(loader, arm) for arm in arms]
            to_nearest, drawn, wide = (by_seed(each) for each in runs)
            badly, drawn_badly, wide_badly = (int((each["status"] != "finished").sum()) for each in runs)
            cost, extra = paired_difference(to_nearest, wide), paired_difference(drawn, wide)
            own: dict[str, Any] = {"format": shown_as(fmt), "tokens": tokens, "n_runs": len(wide)}
            own |= {"n_pairs": cost.n, "difference": cost.mean, "low": cost.low, "high": cost.high}
            own |= {"per_token": cost.mean / tokens_per_character(loader, runs[2])}
            own |= {"extra": extra.mean, "extra_low": extra.low, "extra_high": extra.high}
            own |= {"n_ended_badly": badly, "extra_ended_badly": drawn_badly, "wide_ended_badly": wide_badly}
            rows.append(own)
    return pd.DataFrame(rows)


def rates_with_vocabulary(loader: ExperimentDataLoader) -> list[dict[str, Any]]:
    """What the sweeps with the largest vocabulary say of the rates found with characters; everything to nearest.

    Of each swept format: tokens, the rate that its runs have (`used`), how many were tried (`rates`), the `best` of
    those at which every run finished (NaN where there is none), `above`, the mean loss at the rate used minus that at
    the best in nats per character (NaN where a run at the first did not finish), `gap`, the paired difference to FP32,
    each at its best, and `wide`, that of study vocabulary with the tensor not quantized.
    """
    runs, rows = loader.runs[loader.runs["study"] == "vocabulary-tuning"], []
    swept = runs["arm"].map(lambda arm: identity_of(loader.config(str(arm)), rate=False))
    tokens = VOCABULARIES[-1]

    def sweep(arm: str, rate: float) -> tuple[dict[float, pd.Series], float]:
        own = runs[swept == identity_of(replace(ARMS[arm], rate=rate).config(), rate=False)]
        losses = {float(rate): by_seed(group) for rate, group in own.groupby("learning_rate")}
        whole = {rate: loss.mean() for rate, loss in losses.items() if loss.notna().all()}
        return losses, min(whole, key=lambda rate: whole[rate]) if whole else math.nan

    base, base_best = sweep(f"FP32 {tokens}", FP32_RATE)
    for fmt in COSTLY:
        arm = f"{fmt} head nearest {tokens}"
        used = float(ARMS[arm].rate)
        losses, best = sweep(arm, used)
        if losses:
            row = {"format": shown_as(fmt), "tokens": tokens, "used": used, "rates": len(losses), "best": best}
            nothing = pd.Series(dtype="float64")
            own = losses.get(best, nothing)
            above = losses.get(used, nothing).mean(skipna=False) - own.mean()
            gap = paired_difference(own, base.get(base_best, nothing))
            not_quantized = (by_seed(runs_of(loader, each)) for each in (f"{fmt} head wide {tokens}", f"FP32 {tokens}"))
            rows.append(row | {"above": above, "gap": gap, "wide": paired_difference(*not_quantized)})
    return rows


def probe_against_gaps(
    loader: ExperimentDataLoader, cells: Sequence[Mapping[str, Any]]
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Cells of a probe beside what they cost above not quantizing that tensor; Spearman's rho of each statistic.

    Args:
        cells: each with format (of `HEAD_FORMATS`), rounding (of `ROUNDED`), class_bias and row_mass.
    """
    rows = []
    for cell in cells:
        of, to = (f"{cell['format']} head {how}" for how in (cell["rounding"], "wide"))
        if not missing(loader, [of, to]):
            cost = paired_difference(by_seed(runs_of(loader, of)), by_seed(runs_of(loader, to)))
            rows.append({**cell, "difference": cost.mean, "low": cost.low, "high": cost.high, "n_pairs": cost.n})
    found = pd.DataFrame(rows)
    names = ("class_bias", "row_mass") if rows and len(rows) == len(cells) else ()
    return found, {name: rank_correlation(found[name], found["difference"]) for name in names}


def looks_at_logits(loader: ExperimentDataLoader, arms: Mapping[str, str]) -> pd.DataFrame:
    """Mean and spread of the logits by step, over the runs of each arm whose looks are all packed: a row a step.

    Args:
        arms: name of an arm of `altgrad.studies` -> what it is called in the column `series`.
    """
    frames = []
    for arm, name in arms.items():
        for run in runs_of(loader, arm)["run_id"]:
            layers = loader.layers(run)
            own = layers[layers["statistic"].isin(("logits_mean", "logits_spread"))]
            if own["step"].nunique() > 1:
                frames.append(own[["step", "statistic", "value"]].assign(series=name, run=run))
    if not frames:
        return pd.DataFrame(columns=["series", "step", "logits_mean", "logits_spread", "runs"])
    looks = pd.concat(frames)
    looks["statistic"] = looks["statistic"].astype(str)
    table = looks.pivot_table(index=["series", "step"], columns="statistic", values="value", sort=False).reset_index()
    counts = looks.groupby(["series", "step"])["run"].nunique()
    return table.assign(runs=[int(counts[key]) for key in zip(table["series"], table["step"], strict=True)])


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
        named: dict[str, Any] = {
            "arm": runs_of(loader, of)["arm"].iloc[0],
            "against": runs_of(loader, to)["arm"].iloc[0],
        }
        named |= dict(zip(NAMED, (of, to), strict=True))
        own = [f"{fmt} head {how}{end}" for how in ("nearest", "wide") for end in ("", suffix)]
        if badly := sum(int((runs_of(loader, arm)["status"] != "finished").sum()) for arm in own):
            named |= {"n_ended_badly": badly, "p_value": math.nan, "p_equivalent": math.nan}  # as `contrast`
        rows.append(row_of(f"{shown_as(fmt)}, {VOCABULARIES[-1]:,} tokens − characters", estimate) | named)
    return "", family(rows, (*TEST_COLUMNS, *NAMED))
