"""The preregistered hypotheses against the recorded campaign: what was tested, what came out, from which runs.

`docs/method/preregistration.md` has the statements, families of tests and what counts as an answer; the functions that
return a `Verdict` follow it to the letter. What was not written down beforehand is not a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd

from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import Estimate, holm, name_of_test, paired_difference

CAMPAIGN_SEEDS = range(10, 42)
"""Seeds of the campaign's runs; the pilot's and the held-out tuning seeds are others and take no part."""

SEEDS = range(10, 26)
"""Seeds of an arm of formats, layers, storage, controls, literature and remedies."""

CLOSE_SEEDS = CAMPAIGN_SEEDS
"""Seeds of FP32, E3M4, E4M3 and E5M2 with all operands quantized."""

FEW_SEEDS = range(10, 18)
LONG_SEEDS = range(10, 15)
"""Seeds of study length; `FEW_SEEDS` are those of study scaling."""

ENDED = ("finished", "failed", "crashed")
"""Statuses of a run that will not go on."""

TEST_COLUMNS = (
    "contrast",
    "arm",
    "against",
    "n_pairs",
    "n_ended_badly",
    "difference",
    "low",
    "high",
    "sd",
    "effect_size",
    "test",
    "p_value",
    "p_holm",
    "p_equivalent",
)
Answer = Literal["yes", "no", "inconclusive", "pending"]


@dataclass(frozen=True)
class Verdict:
    """What the records say of one hypothesis.

    Attributes:
        id: as in the preregistration, such as "H1".
        study: whose runs decide it.
        statement: the hypothesis in one sentence.
        answer: "yes" where what counts as an answer was seen; "no" where its opposite was, or where a claim of a
            difference is refuted by equivalence; "inconclusive" where neither was; "pending" where runs are missing.
        evidence: one plain sentence with the numbers, intervals and pairs; for "pending", what is missing.
        tests: one row a test of its family, columns `TEST_COLUMNS`; empty while pending.
        limited: whether the criterion is met, or missed, and less was shown than the statement says (`limited`).
    """

    id: str
    study: str
    statement: str
    answer: Answer
    evidence: str
    tests: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(TEST_COLUMNS)), compare=False)
    limited: bool = False

    @property
    def answered(self) -> str:
        """The answer as pages show it: never a bare "yes" where less was shown than was stated."""
        return f"{self.answer}, with a limit" if self.limited else self.answer


def limited(verdict: Verdict, limit: str) -> Verdict:
    """The verdict, whose evidence says what it does not show."""
    return replace(verdict, evidence=f"{verdict.evidence} Limit: {limit}", limited=True)


def select(loader: ExperimentDataLoader, studies: str | tuple[str, ...], **conditions: Any) -> pd.DataFrame:
    """The campaign's runs of some studies that meet the conditions: rows of `loader.runs`, maybe none.

    Args:
        loader: the records.
        studies: a name, or several (a baseline may be recorded in another study).
        conditions: a column of `loader.runs`, or a key of the config with ``__`` for its dots
            (``quantize__weight="e4m3"``, ``optimizer__storage="grid"``), and the value it must have.
    """
    runs = loader.runs
    wanted = {studies} if isinstance(studies, str) else set(studies)
    runs = runs[runs["study"].isin(wanted) & runs["seed"].isin(CAMPAIGN_SEEDS) & ~runs["foreign"].astype(bool)]
    for key, value in conditions.items():
        if key in runs.columns:
            runs = runs[runs[key] == value]
        else:
            met = [_config_value(loader, run_id, key.split("__")) == value for run_id in runs["run_id"]]
            runs = runs[pd.Series(met, index=runs.index, dtype=bool)]
    return runs


def missing(arms: Mapping[str, pd.DataFrame], seeds: Iterable[int] | Mapping[str, Iterable[int]]) -> str:
    """What keeps the preregistered runs of some arms from being judged, in a sentence; "" where nothing does.

    A hypothesis is judged when every seed of its arms has ended, one way or another, so that nothing is added or left
    out after looking; and only on runs that share data and length, of one config an arm.

    Args:
        arms: the selected runs by what the arm is called in the sentence.
        seeds: that every arm has by the preregistration, or those of each arm.
    """
    wanted = {name: set(seeds[name] if isinstance(seeds, Mapping) else seeds) for name in arms}
    counts = {
        name: len(wanted[name] & set(runs.loc[runs["status"].isin(ENDED), "seed"])) for name, runs in arms.items()
    }
    lacking = [
        f"{name} ({counts[name]} of {len(wanted[name])} seeds)" for name in arms if counts[name] < len(wanted[name])
    ]
    if lacking:
        more = f" and {len(lacking) - 8} more" if len(lacking) > 8 else ""
        return f"Not recorded in full: {', '.join(lacking[:8])}{more}."
    several = [name for name, runs in arms.items() if runs["arm"].nunique() > 1]
    if several:
        return (
            f"More than one config or data set is recorded for {', '.join(several)}; which one was meant is not said."
        )
    every = pd.concat(list(arms.values()))
    differing = [word for column, word in (("data", "data"), ("max_steps", "length")) if every[column].nunique() > 1]
    return f"The recorded runs differ in {' and '.join(differing)} and cannot be compared." if differing else ""


def losses(runs: pd.DataFrame) -> pd.Series:
    """Final validation loss by seed of one arm's runs; NaN for one that did not finish.

    Raises:
        ValueError: the runs are of several arms.
    """
    arms = runs["arm"].unique()
    if len(arms) > 1:
        raise ValueError(f"runs of {len(arms)} arms are not one arm: {', '.join(arms)}")
    return runs.set_index("seed")["final_val_loss"].astype("float64").sort_index()


def contrast(name: str, runs: pd.DataFrame, against: pd.DataFrame) -> dict[str, Any]:
    """One row of `Verdict.tests` but for p_holm: the paired difference of one arm's final loss to another's.

    Where a run of either did not finish there is no p-value, of difference or equivalence: an arm is not judged by its
    survivors. The difference of those that did is there to be shown.
    """
    estimate = paired_difference(losses(runs), losses(against))
    ended_badly = int((pd.concat([runs, against])["status"] != "finished").sum())
    return (
        row_of(name, estimate)
        | {
            "arm": next(iter(runs["arm"]), ""),
            "against": next(iter(against["arm"]), ""),
            "n_ended_badly": ended_badly,
        }
        | ({"p_value": math.nan, "p_equivalent": math.nan} if ended_badly else {})
    )


def row_of(name: str, estimate: Estimate) -> dict[str, Any]:
    """An estimate as a row of `Verdict.tests`, without arms."""
    return {
        "contrast": name,
        "n_pairs": estimate.n,
        "n_ended_badly": 0,
        "difference": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "sd": estimate.sd,
        "effect_size": estimate.effect_size,
        "test": name_of_test(estimate.n),
        "p_value": estimate.p_value,
        "p_equivalent": estimate.equivalence_p(),
    }


def family(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows as a table, with Holm's adjustment over all of them; one without a p-value counts as a p of 1."""
    frame = pd.DataFrame(rows, columns=list(TEST_COLUMNS))
    adjusted = holm([1.0 if math.isnan(p) else float(p) for p in frame["p_value"]])
    frame["p_holm"] = pd.Series(adjusted, dtype="float64").where(frame["p_value"].notna())
    return frame


def in_words(row: Mapping[str, Any]) -> str:
    """The figures of a test, such as ``+0.096 nats [+0.074, +0.118], n = 16, adjusted p < 0.001``."""
    p = float(row["p_holm"])
    adjusted = "no p-value" if math.isnan(p) else "adjusted p < 0.001" if p < 0.001 else f"adjusted p = {p:.3f}"
    bad = row["n_ended_badly"]
    badly = f", {bad} run{'s' if bad > 1 else ''} did not finish" if bad else ""
    interval = "no interval" if math.isnan(row["low"]) else f"[{row['low']:+.3f}, {row['high']:+.3f}]"
    return f"{row['difference']:+.3f} nats {interval}, n = {row['n_pairs']}, {adjusted}{badly}"


def _config_value(loader: ExperimentDataLoader, run_id: str, keys: list[str]) -> Any:
    value: Any = loader.records[run_id].config
    for key in keys:
        value = getattr(value, key)
    return value
