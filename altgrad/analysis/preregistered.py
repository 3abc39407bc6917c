"""The preregistered hypotheses against the recorded campaign: what was tested, what came out, from which runs.

`docs/method/preregistration.md` has the statements, families of tests and what counts as an answer; the functions that
return a `Verdict` follow it to the letter. What was not written down beforehand is not a verdict.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import Estimate, holm, name_of_test, paired_difference

CAMPAIGN_SEEDS = range(10, 42)
"""Seeds of the campaign's runs; the pilot's and the held-out tuning seeds are others and take no part."""

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
    """

    id: str
    study: str
    statement: str
    answer: Answer
    evidence: str
    tests: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(TEST_COLUMNS)), compare=False)


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
            runs = runs[[_config_value(loader, run_id, key.split("__")) == value for run_id in runs["run_id"]]]
    return runs


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
    """One row of `Verdict.tests` but for p_holm: the paired difference of one arm's final loss to another's."""
    estimate = paired_difference(losses(runs), losses(against))
    both = pd.concat([runs, against])
    return row_of(name, estimate) | {
        "arm": next(iter(runs["arm"]), ""),
        "against": next(iter(against["arm"]), ""),
        "n_ended_badly": int((both["status"] != "finished").sum()),
    }


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
    """The rows as a table, with Holm's adjustment over all of them."""
    frame = pd.DataFrame(rows, columns=list(TEST_COLUMNS))
    frame["p_holm"] = holm([float(p) for p in frame["p_value"]])
    return frame


def _config_value(loader: ExperimentDataLoader, run_id: str, keys: list[str]) -> Any:
    value: Any = loader.records[run_id].config
    for key in keys:
        value = getattr(value, key)
    return value
