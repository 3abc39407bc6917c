"""Which arms fail, and by what: the operand, phase and cause that their records show; and which remedies help.

Why a single run ended badly is `altgrad.runs.diagnosis`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from altgrad.analysis.comparison import Comparison, FormatComparator
from altgrad.analysis.contrasts import TEST_COLUMNS, by_seed, contrast, differs, family, missing, runs_of
from altgrad.analysis.loader import ExperimentDataLoader, concatenated, format_label, scope_label
from altgrad.analysis.statistics import FAILURE_GAP, paired_difference
from altgrad.config import OPERAND_NAMES, OPERANDS, ExperimentConfig, QuantizeConfig, ScalingConfig
from altgrad.runs import FAILURE_KINDS, Alarm
from altgrad.runs.diagnosis import PHASE_OF_OPERAND, diagnose, warnings_of
from altgrad.runs.schema import PHASES, digest
from altgrad.studies import CAMPAIGN, CAMPAIGN_SEEDS, EXTREMES, STUDIES

PRECISION_DB = 22.0
"""SQNR below which rounding error is a symptom; in the pilot it lies between what E5M2 shows at its worst look
(25.3 dB; +0.029 nats) and E6M1 at its best look of the weights (19.8 dB; +0.095)."""
PRECISION_LOST = 0.25
"""Where this fraction of the elements became zero, or more, a low SQNR is a loss of range and not of precision."""
CAUSES = (*FAILURE_KINDS, "precision", "step")
"""Why an arm failed: the classes of a failed run, and two that only a comparison of arms can have. "precision":
rounding error by itself, without a loss of range. "step": the step rule or how the weights are kept, since the same
formats do not fail under AdamW with master weights."""
REPORTED = tuple(name for name in CAMPAIGN if not STUDIES[name].sweeps)
"""The studies whose arms count as the campaign's (docs/method/preregistration.md); those of `EXPLORATORY` as well."""
EXPLORATORY = tuple(name for name in REPORTED if STUDIES[name].exploratory)
"""Studies that were added after another one had been looked at."""
HEALTH_STATISTICS = ("overflow", "underflow", "sqnr_db")

GAP_COLUMNS = (
    "arm", "study", "format", "scope", "rule", "learning_rate", "baseline", "campaign", "n_runs", "n_finished",
    "n_pairs", "gap", "low", "high", "failed",
)  # fmt: skip
CAUSE_COLUMNS = ("causes", "phases", "operand", "step", "tensor", "evidence")
SYMPTOM_COLUMNS = ("arm", "cause", "operand", "phase", "share", "cells", "worst", "step", "tensor", "evidence")
LIMITS = {
    "overflow": ("overflow", "above", 0.01, "of the nonzero elements beyond the largest value"),
    "underflow": ("underflow", "above", 0.75, "of the nonzero elements became zero"),
    "stall": ("stall_ratio", "above", 0.99, "of the proposed changes moved no weight on its grid"),
    "gradient_vanishing": ("norm_l2", "below", 1e-8, "norm of the gradient"),
    "precision": ("sqnr_db", "below", PRECISION_DB, "dB of SQNR"),
}
"""Cause -> statistic, side, limit, what is beyond it. The first four limits are those at which a run warns; with master
weights no update is lost, so there a stall is no cause; and all operands are asked for underflow."""

REMEDY_COLUMNS = (
    "format", "remedy", "planned", "arm", "against", "n_pairs", "n_ended_badly", "difference", "low", "high", "p_value",
    "p_holm", "gap", "gap_low", "gap_high", "gap_before", "gap_pairs", "missing",
)  # fmt: skip


class Remedy(NamedTuple):
    """A recorded attempt to mend one of the extreme formats: which, in words, the arm, whether it was preregistered."""

    format: str
    name: str
    arm: str
    planned: bool = True


REMEDIES = (
    Remedy("E0M7", "gradients rounded stochastically", "E0M7 stochastic gradients"),
    Remedy("E0M7", "activations and gradients rounded stochastically", "E0M7 stochastic both"),
    Remedy("E0M7", "gradients in E5M2", "E0M7 E5M2 gradients"),
    Remedy("E0M7", "a scale a block of 32", "E0M7 block"),
    Remedy("E0M7", "a scale a row", "E0M7 row", planned=False),
    Remedy("E0M7", "a learning rate of its own", "E0M7 own rate", planned=False),
    Remedy("E7M0", "gradients rounded stochastically", "E7M0 stochastic gradients"),
    Remedy("E7M0", "activations and gradients rounded stochastically", "E7M0 stochastic both"),
    Remedy("E7M0", "gradients in E5M2", "E7M0 E5M2 gradients"),
    Remedy("E7M0", "a scale a block of 32", "E7M0 block"),
    Remedy("E7M0", "a learning rate of its own", "E7M0 own rate", planned=False),
)
"""What was tried on the extreme formats. The rate of its own is an arm of study formats and no planned remedy."""


class FailureAnalyzer:
    """Explains runs that ended badly and arms that lose, from what their records hold; all answers are DataFrames.

    `failures` and `warnings` are about single runs; `gaps`, `symptoms` and `classified` about arms that fail by the
    preregistered definition; `operands` and `remedies` say what costs the loss, and what wins it back.
    """

    def __init__(self, loader: ExperimentDataLoader) -> None:
        self._loader = loader

    @cached_property
    def failures(self) -> pd.DataFrame:
        """One row a run that did not finish: who, its status and kinds, first bad step, tensor, phase, message.

        A run that was killed or stopped from outside has the failure that its record shows (`diagnose`). A run that is
        still being written is listed as ``running`` and is no failure.
        """
        rows = []
        for run in self._loader.runs.itertuples():
            if run.status == "finished":
                continue
            failure = diagnose(self._loader.records[run.run_id])
            rows.append(
                {
                    "run_id": run.run_id,
                    "arm": run.arm,
                    "format": run.format,
                    "rule": run.rule,
                    "seed": run.seed,
                    "status": run.status,
                    "kinds": ", ".join(failure.kinds) if failure else run.status,
                    "step": failure.step if failure else run.last_step,
                    "tensor": failure.tensor if failure else None,
                    "phase": failure.phase if failure else None,
                    "message": failure.message if failure else "",
                }
            )
        columns = ["run_id", "arm", "format", "rule", "seed", "status", "kinds", "step", "tensor", "phase", "message"]
        return pd.DataFrame(rows, columns=columns)

    @cached_property
    def warnings(self) -> pd.DataFrame:
        """One row a warning of any run: run_id, arm, format, step, and what, tensor, phase, value, message."""
        rows = [
            {"run_id": run.run_id, "arm": run.arm, "format": run.format, "step": step, **alarm._asdict()}
            for run in self._loader.runs.itertuples()
            for step, alarm in warnings_of(self._loader.records[run.run_id])
        ]
        columns = ["run_id", "arm", "format", "step", *Alarm._fields]
        return pd.DataFrame(rows, columns=columns)

    @cached_property
    def health(self) -> pd.DataFrame:
        """Mean of each statistic by arm and operand: arm, format, operand, phase, statistic, value, n (runs).

        First the mean over layers and recorded steps of each run, then over runs. Overflow and underflow are fractions
        of an operand's nonzero elements, SQNR is in dB.
        """
        keys = ["arm", "format", "operand", "statistic"]
        runs = self._loader.runs
        runs = runs[runs["role"] == "report"]
        tables = [self._loader.records[run_id].coded for run_id in runs["run_id"]]
        if not sum(map(len, tables)):
            return pd.DataFrame(columns=["arm", "format", "operand", "phase", "statistic", "value", "n"])
        every = concatenated(tables).assign(run=np.repeat(runs.index, list(map(len, tables))))
        every = every[every["statistic"].isin(HEALTH_STATISTICS) & every["operand"].isin(PHASE_OF_OPERAND)]
        means = every.groupby(["run", "operand", "statistic"], observed=True)["value"].mean().reset_index()
        means = means.astype({"operand": "str", "statistic": "str"}).join(runs[["arm", "format"]], on="run")
        frame = means.groupby(keys)["value"].agg(["mean", "count"]).reset_index()
        frame = frame.rename(columns={"mean": "value", "count": "n"})
        return frame.assign(phase=frame["operand"].map(PHASE_OF_OPERAND))

    @cached_property
    def gaps(self) -> pd.DataFrame:
        """The paired gap of every arm to its unquantized runs, columns `GAP_COLUMNS`, the largest gap first.

        The unquantized runs are those of AdamW on the same data with the same model, length and batches; where they
        are of several arms (such as several learning rates), those that share most seeds, then those with the lowest
        mean loss. Held-out seeds and other loops' runs take no part, and of an arm of the campaign no seed but those
        of the campaign. `failed` is the preregistered definition: a gap above `FAILURE_GAP`, or a run that did not
        finish. An arm of fewer than two pairs has no interval, and by its gap is not judged.
        """
        runs = self._loader.runs
        runs = runs[(runs["role"] == "report") & ~runs["foreign"].astype(bool) & (runs["status"] != "running")]
        arms = {str(arm): _of_campaign(group) for arm, group in runs.groupby("arm", sort=True)}
        bases: dict[str, list[str]] = {}
        problems = {}
        for arm, group in arms.items():
            config = self._loader.config(arm)
            problems[arm] = _problem(config, group["data"].iloc[0])
            if not config.quantize.operands and config.optimizer.step_rule == "adamw" and not config.optimizer.relative:
                bases.setdefault(problems[arm], []).append(arm)
        rows = []
        for arm, group in arms.items():
            if arm not in bases.get(problems[arm], []):
                rivals = {base: arms[base] for base in bases.get(problems[arm], [])}
                rows.append(_gap_row(arm, group, rivals))
        frame = pd.DataFrame(rows, columns=list(GAP_COLUMNS))
        return frame.sort_values(["gap", "arm"], ascending=[False, True], ignore_index=True)

    @cached_property
    def symptoms(self) -> pd.DataFrame:
        """What the looks of each failed arm show, columns `SYMPTOM_COLUMNS`: one row an arm, cause and operand.

        Figures are means over the arm's runs. A cell is one layer's operand at one look; `share` is the fraction of the
        operand's cells beyond the limit, `worst` the value farthest beyond it, `step` the first look with such a cell,
        and `tensor` the worst one there.
        """
        failed = self.gaps[self.gaps["failed"].astype(bool)]
        rows = []
        for arm in failed["arm"]:
            ids = self.run_ids(arm)
            found = arm_symptoms(self._loader.looks(ids), self._loader.config(arm))
            rows += [{"arm": arm} | row for row in found]
        return pd.DataFrame(rows, columns=list(SYMPTOM_COLUMNS))

    @cached_property
    def classified(self) -> pd.DataFrame:
        """Every failed arm with its causes: columns of `gaps`, then causes, phases, operand, step, tensor, evidence.

        Several causes may hold; the one with the largest share of cells stands first, and step, tensor and operand are
        its. Runs that did not finish add the kinds that were recorded for them, first. Where no look shows anything,
        the arm is compared with AdamW on master weights in the same formats: a gap of at most `FAILURE_GAP` there makes
        the cause "step", in the optimizer's phase. What is left is "unknown".
        """
        failed = self.gaps[self.gaps["failed"].astype(bool)]
        rows = [row | self._causes(row) for row in failed.to_dict("records")]
        return pd.DataFrame(rows, columns=[*GAP_COLUMNS, *CAUSE_COLUMNS])

    def run_ids(self, arm: str) -> list[str]:
        """The ended runs of an arm that `gaps` is about."""
        runs = self._loader.runs
        runs = _of_campaign(runs[(runs["arm"] == arm) & (runs["role"] == "report") & (runs["status"] != "running")])
        return list(runs["run_id"])

    def config(self, arm: str) -> ExperimentConfig:
        """The config of an arm (with the seed of its first run)."""
        return self._loader.config(arm)

    def alike(self, arms: Sequence[str]) -> set[str]:
        """Those of `arms` whose difference to the first of them is not shown, on the seeds that both ran.

        The p-values are adjusted by Holm over the others; without two shared seeds there is no test.
        """
        runs = self._loader.runs
        first, *others = (runs[runs["run_id"].isin(self.run_ids(arm))] for arm in arms)
        rows = family([contrast(arm, other, first) for arm, other in zip(arms[1:], others, strict=True)])
        return {row["contrast"] for row in rows.to_dict("records") if not differs(row)}

    def example(self, arm: str) -> str:
        """The run of an arm to look at: the first that did not finish, else the one with the median final loss."""
        runs = self._loader.runs
        runs = runs[runs["run_id"].isin(self.run_ids(arm))]
        broken = runs[runs["status"] != "finished"]
        if len(broken):
            return str(broken["run_id"].iloc[0])
        runs = runs.sort_values(["final_val_loss", "seed", "run_id"])
        return str(runs["run_id"].iloc[(len(runs) - 1) // 2])

    def operands(self, comparison: Comparison) -> pd.DataFrame:
        """What each operand costs alone: the gaps of a comparison's formats, all operands and one at a time.

        One row a format and scope of those that are recorded in the comparison's setting; columns format, scope, and
        those of `gaps` that say how large it is.
        """
        places = [comparison.quantized, *OPERANDS]
        runs = self._loader.runs[self._loader.runs["setting"] == comparison.setting]
        place = runs[runs["quantized"].isin(places)].drop_duplicates("arm").set_index("arm")["quantized"]
        found = self.gaps[self.gaps["arm"].isin(place.index)]
        columns = ["format", "scope", "arm", "gap", "low", "high", "n_pairs", "n_runs", "n_finished"]
        order = found["arm"].map(place).map(places.index)
        return found.assign(order=order).sort_values(["order", "arm"], ignore_index=True)[columns]

    @cached_property
    def remedies(self) -> pd.DataFrame:
        """What recorded remedies do to E0M7 and E7M0: one row a remedy, columns `REMEDY_COLUMNS`.

        `difference` is its final loss minus that of the same format without it, over shared seeds: below zero it helps.
        `gap` is what is left to FP32, `gap_before` what the format loses without it. `p_holm` is adjusted over the rows
        of a format. A row whose runs are not all recorded says so in `missing` and has no p-value; one without any has
        no figures.
        """
        rows = []
        for name in EXTREMES:
            found = [_remedy_row(self._loader, remedy) for remedy in REMEDIES if remedy.format == name]
            whole = [row for row in found if not row["missing"]]
            for row, adjusted in zip(whole, family(whole)["p_holm"] if whole else [], strict=True):
                row["p_holm"] = adjusted
            rows += found
        return pd.DataFrame(rows, columns=list(REMEDY_COLUMNS))

    def _causes(self, row: dict[Any, Any]) -> dict[str, Any]:
        found = self.symptoms[self.symptoms["arm"] == row["arm"]]
        ended = self.failures[(self.failures["arm"] == row["arm"]) & (self.failures["status"] != "running")]
        kinds = list(dict.fromkeys(kind for text in ended["kinds"] for kind in text.split(", ")))
        phases = [phase for phase in ended["phase"].dropna()]
        evidence = [f"{len(ended)} of {row['n_runs']} runs did not finish"] if len(ended) else []
        began: tuple[str | None, int | None, str | None] = (None, None, None)
        if len(ended):
            first = ended.sort_values("step").iloc[0]
            began = (None, int(first["step"]), first["tensor"])
        elif len(found):
            first = found.iloc[0]
            began = (first["operand"], int(first["step"]), first["tensor"])
        for symptom in found.itertuples():
            kinds.append(symptom.cause)
            phases.append(symptom.phase)
            evidence.append(symptom.evidence)
        if not kinds and (reason := self._step_rule(row)):
            kinds, phases, evidence = ["step"], ["optimizer"], [reason]
        known = [kind for kind in dict.fromkeys(kinds) if kind != "unknown"]
        return {
            "causes": ", ".join(known or ["unknown"]),
            "phases": ", ".join(phase for phase in PHASES if phase in phases),
            "operand": began[0],
            "step": began[1],
            "tensor": began[2],
            "evidence": "; ".join(evidence) or "no recorded figure is beyond its limit",
        }

    def _step_rule(self, row: dict[Any, Any]) -> str:
        """Why the optimizer is the cause, in words; "" where it is not, or no run tells."""
        config = self._loader.config(row["arm"])
        if config.optimizer.step_rule == "adamw" and config.optimizer.storage == "master":
            return ""
        if not config.quantize.operands:
            return "nothing is rounded in this arm: AdamW on the same problem is what it is held against"
        plain = self._plain.get((config.quantize, config.scaling, row["baseline"]))
        if plain is None:
            return ""
        return f"with AdamW and master weights the same formats have a gap of {plain:+.3f} nats"

    @cached_property
    def _plain(self) -> dict[tuple[QuantizeConfig, ScalingConfig, str], float]:
        """Gaps of the arms that did not fail under AdamW with master weights, by formats, scales and baseline."""
        found = {}
        judged = self.gaps[~self.gaps["failed"].astype(bool) & (self.gaps["n_pairs"] >= 2)]
        for row in judged.to_dict("records"):
            config = self._loader.config(row["arm"])
            optimizer = config.optimizer
            nearest = (optimizer.storage, optimizer.rounding) == ("master", "nearest_even")
            if optimizer.step_rule == "adamw" and not optimizer.relative and nearest:
                found[config.quantize, config.scaling, row["baseline"]] = float(row["gap"])
        return found


def named(config: ExperimentConfig) -> str:
    """What a run is, where its format alone would mislead: ``FP32 (mis-scaled tensors)``, ``E4M3 (no scale)``."""
    how = [part.replace("scale 1", "no scale") for part in scope_label(config).split("; ")[1:]]
    details = ["mis-scaled tensors", *how] if config.model.rescale else how
    return f"{format_label(config)} ({', '.join(details)})" if details else format_label(config)


def headline(comparator: FormatComparator) -> Comparison | None:
    """The comparison that reports lead with: the one with the most pairs."""
    return comparator.comparisons[0] if comparator.comparisons else None


def arm_symptoms(looks: pd.DataFrame, config: ExperimentConfig) -> list[dict[str, Any]]:
    """What the looks of an arm show by the limits of `LIMITS`: rows of `SYMPTOM_COLUMNS` but for the arm.

    Args:
        looks: as `ExperimentDataLoader.looks` gives them.
        config: of the arm; operands that it does not round show nothing.
    """
    rounded = set(config.quantize.operands)
    keys = ["step", "layer", "operand"]
    lost = looks[looks["statistic"] == "underflow"].set_index(keys)["value"]
    ends = {"gradient": "weight.grad", "update": "weight"}
    found = []
    for cause, (statistic, side, limit, meaning) in LIMITS.items():
        rows = looks[looks["statistic"] == statistic]
        if cause == "stall":
            rows = rows[rows["operand"].eq("update") & (config.optimizer.storage == "grid")]
        elif cause == "gradient_vanishing":
            rows = rows[rows["operand"] == "gradient"]
        else:
            rows = rows[rows["operand"].isin(rounded)]
        for operand, cells in rows.groupby("operand", observed=True, sort=False):
            beyond = cells["value"] < limit if side == "below" else cells["value"] > limit
            if cause == "precision":
                flushed = lost.reindex(pd.MultiIndex.from_frame(cells[keys])).fillna(0.0).to_numpy()
                beyond &= flushed < PRECISION_LOST
            if not beyond.any():
                continue
            shown = cells[beyond]
            at_first = shown[shown["step"] == shown["step"].min()].sort_values(
                ["value", "layer"], ascending=[side == "below", True]
            )
            worst = shown["value"].min() if side == "below" else shown["value"].max()
            figure = f"{worst:.1f}" if cause == "precision" else f"{worst:.3g}" if side == "below" else f"{worst:.1%}"
            named = OPERAND_NAMES.get(
                str(operand), {"update": "update", "gradient": "weight gradients"}.get(str(operand))
            )
            first = at_first.iloc[0]
            found.append(
                {
                    "cause": cause,
                    "operand": str(operand),
                    "phase": PHASE_OF_OPERAND[str(operand)],
                    "share": float(beyond.mean()),
                    "cells": len(cells),
                    "worst": float(worst),
                    "step": int(first["step"]),
                    "tensor": f"{first['layer']}.{ends.get(str(operand), str(operand))}",
                    "evidence": f"{named}: {figure} {meaning} at worst, beyond the limit in {beyond.mean():.0%} of the "
                    f"looks at layers",
                }
            )
    return sorted(found, key=lambda row: (-row["share"], CAUSES.index(row["cause"])))


def remedies_missing(loader: ExperimentDataLoader) -> str:
    """Which planned remedies are not recorded in full, in a sentence; "" where all are."""
    return missing(loader, ["FP32", *EXTREMES, *(remedy.arm for remedy in REMEDIES if remedy.planned)])


def _remedy_row(loader: ExperimentDataLoader, remedy: Remedy) -> dict[str, Any]:
    names = (remedy.arm, remedy.format, "FP32")
    runs, before, fp32 = (runs_of(loader, arm) for arm in names)
    row: dict[str, Any] = dict.fromkeys(REMEDY_COLUMNS, math.nan) | {
        "format": remedy.format,
        "remedy": remedy.name,
        "planned": remedy.planned,
        "arm": next(iter(runs["arm"]), ""),
        "against": next(iter(before["arm"]), ""),
        "n_pairs": 0,
        "n_ended_badly": 0,
        "gap_pairs": 0,
        "missing": missing(loader, names),
    }
    if any(each["arm"].nunique() != 1 for each in (runs, before, fp32)):
        return row
    found = contrast(remedy.name, runs, before)
    gap = paired_difference(by_seed(runs), by_seed(fp32))
    shared = by_seed(before[before["seed"].isin(runs["seed"])])
    row |= {key: value for key, value in found.items() if key in TEST_COLUMNS}
    row |= {"gap": gap.mean, "gap_low": gap.low, "gap_high": gap.high, "gap_pairs": gap.n}
    row["gap_before"] = paired_difference(shared, by_seed(fp32)).mean
    return row | ({"p_value": math.nan} if row["missing"] else {})


def _of_campaign(runs: pd.DataFrame) -> pd.DataFrame:
    """Of an arm's runs those with seeds of the campaign; all of them where it has none."""
    own = runs[runs["seed"].isin(CAMPAIGN_SEEDS)]
    return own if len(own) else runs


def _problem(config: ExperimentConfig, data: str) -> str:
    """What an arm shares with the unquantized runs that it is held against: all but formats, scales and optimizer."""
    identity = config.arm_identity()
    return digest(
        {key: value for key, value in identity.items() if key not in ("quantize", "scaling", "optimizer")}, data
    )


def _gap_row(arm: str, runs: pd.DataFrame, bases: dict[str, pd.DataFrame]) -> dict[str, Any]:
    first = runs.iloc[0]
    own = by_seed(runs)
    compared = [(name, base, paired_difference(own, by_seed(base))) for name, base in bases.items()]
    compared.sort(key=lambda each: (-each[2].n, each[1]["final_val_loss"].mean(), each[0]))
    name, _, gap = compared[0] if compared else (None, None, paired_difference(own, own.iloc[:0]))
    unfinished = runs["status"] != "finished"
    above = gap.n >= 2 and gap.mean > FAILURE_GAP
    return {
        "arm": arm,
        "study": ", ".join(sorted(runs["study"].unique())),
        "format": first["format"],
        "scope": first["scope"],
        "rule": first["rule"],
        "learning_rate": first["learning_rate"],
        "baseline": name,
        "campaign": bool(runs["seed"].isin(CAMPAIGN_SEEDS).all() and runs["study"].isin(REPORTED).all()),
        "n_runs": len(runs),
        "n_finished": int((~unfinished).sum()),
        "n_pairs": gap.n,
        "gap": gap.mean,
        "low": gap.low,
        "high": gap.high,
        "failed": bool(above or unfinished.any()),
    }
