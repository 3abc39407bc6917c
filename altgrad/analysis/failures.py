"""Which arms fail, and by what: the operand, phase and cause that their records show; and which remedies help.

Why a single run ended badly is `altgrad.runs.diagnosis`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.comparison import Comparison
from altgrad.analysis.contrasts import TEST_COLUMNS, by_seed, contrast, differs, family, missing, paired_gap, runs_of
from altgrad.analysis.loader import ExperimentDataLoader, concatenated, format_label, scope_label
from altgrad.analysis.statistics import FAILURE_GAP, paired_difference
from altgrad.config import OPERAND_NAMES, OPERANDS, ExperimentConfig, QuantizeConfig, ScalingConfig
from altgrad.runs import FAILURE_KINDS, Alarm
from altgrad.runs.diagnosis import PHASE_OF_OPERAND, SYMPTOMS, Symptom, diagnose, tensor_name, warnings_of
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
SYMPTOMS_OF_ARMS = (
    *(
        replace(symptom, operands=OPERANDS if symptom.operands[0] in OPERANDS else symptom.operands)
        for symptom in SYMPTOMS
        if symptom.figure
    ),
    Symptom("precision", "sqnr_db", OPERANDS, PRECISION_DB, "signal-to-quantization-noise ratio", True, "dB of SQNR"),
)
"""What the looks of an arm can show: what warns in a run, of every operand that is rounded, and one more. NaN shows in
no mean over runs; with master weights no update is lost, so a stall is asked for on the grid only."""
REPORTED = tuple(name for name in CAMPAIGN if not STUDIES[name].sweeps)
"""The studies whose arms count as the campaign's (docs/method/preregistration.md); those of `EXPLORATORY` as well."""
EXPLORATORY = tuple(name for name in REPORTED if STUDIES[name].exploratory)
"""Studies that were added after another one had been looked at."""
HEALTH_STATISTICS = ("overflow", "underflow", "sqnr_db")

FAILURE_COLUMNS = (
    "run_id", "arm", "format", "rule", "seed", "status", "kinds", "step", "tensor", "phase", "message",
)  # fmt: skip
GAP_COLUMNS = (
    "arm", "study", "format", "scope", "rule", "learning_rate", "baseline", "campaign", "n_runs", "n_finished",
    "n_pairs", "gap", "low", "high", "failed",
)  # fmt: skip
CAUSE_COLUMNS = ("causes", "phases", "operand", "step", "tensor", "evidence")
SYMPTOM_COLUMNS = ("arm", "cause", "operand", "phase", "share", "cells", "worst", "step", "tensor", "evidence")
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
    Remedy("E0M7", "one scale for every 32 values", "E0M7 block"),
    Remedy("E0M7", "one scale per row", "E0M7 row", planned=False),
    Remedy("E0M7", "a learning rate of its own", "E0M7 own rate", planned=False),
    Remedy("E7M0", "gradients rounded stochastically", "E7M0 stochastic gradients"),
    Remedy("E7M0", "activations and gradients rounded stochastically", "E7M0 stochastic both"),
    Remedy("E7M0", "gradients in E5M2", "E7M0 E5M2 gradients"),
    Remedy("E7M0", "one scale for every 32 values", "E7M0 block"),
    Remedy("E7M0", "a learning rate of its own", "E7M0 own rate", planned=False),
)
"""What was tried on the extreme formats. The rate of its own is an arm of study formats and no planned remedy."""


class FailureAnalyzer:
    """Explains runs that ended badly and arms that lose, from what their records hold; all answers are DataFrames.

    `failures` and `warnings` are about single runs; `gaps`, `symptoms` and `classified` about arms that fail by the
    preregistered definition; `operands` and `remedies` say what costs the loss, and what wins it back.
    """

    def __init__(self, loader: ExperimentDataLoader) -> None:
        self.loader = loader

    @cached_property
    def failures(self) -> pd.DataFrame:
        """One row a run that did not finish: who, its status and kinds, first bad step, tensor, phase, message.

        A run that was killed or stopped from outside has the failure that its record shows (`diagnose`). A run that is
        still being written is listed as ``running`` and is no failure.
        """
        rows = []
        runs = self.loader.runs
        for run in runs[runs["status"] != "finished"].to_dict("records"):
            found = diagnose(self.loader.records[run["run_id"]])
            last = run["last_step"] if run["last_step"] >= 0 else None
            kinds, step = (", ".join(found.kinds), found.step) if found else (run["status"], last)
            about = (found.tensor, found.phase, found.message) if found else (None, None, "")
            rows.append((*(run[key] for key in FAILURE_COLUMNS[:6]), kinds, step, *about))
        return pd.DataFrame(rows, columns=list(FAILURE_COLUMNS))

    @cached_property
    def warnings(self) -> pd.DataFrame:
        """One row a warning of any run: run_id, arm, format, step, and what, tensor, phase, value, message."""
        rows = [
            (run.run_id, run.arm, run.format, step, *alarm)
            for run in self.loader.runs.itertuples()
            for step, alarm in warnings_of(self.loader.records[run.run_id])
        ]
        return pd.DataFrame(rows, columns=["run_id", "arm", "format", "step", *Alarm._fields])

    @cached_property
    def health(self) -> pd.DataFrame:
        """Mean of each statistic by arm and operand: arm, format, operand, phase, statistic, value, n (runs).

        First the mean over layers and recorded steps of each run, then over runs. Overflow and underflow are fractions
        of an operand's nonzero elements, SQNR is in dB.
        """
        keys = ["arm", "format", "operand", "statistic"]
        runs = self.loader.runs
        runs = runs[runs["role"] == "report"]
        tables = [self.loader.records[run_id].coded for run_id in runs["run_id"]]
        if not sum(map(len, tables)):
            return pd.DataFrame(columns=["arm", "format", "operand", "phase", "statistic", "value", "n"])
        every = concatenated(tables).assign(run=np.repeat(runs.index, list(map(len, tables))))
        every = every[every["statistic"].isin(HEALTH_STATISTICS) & every["operand"].isin(PHASE_OF_OPERAND)]
        means = every.groupby(["run", "operand", "statistic"], observed=True)["value"].mean().reset_index()
        means = means.astype({"operand": "str", "statistic": "str"}).join(runs[["arm", "format"]], on="run")
        frame = means.groupby(keys)["value"].agg(value="mean", n="count").reset_index()
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
        runs = self.loader.runs
        runs = runs[(runs["role"] == "report") & ~runs["foreign"].astype(bool) & (runs["status"] != "running")]
        arms = {str(arm): _of_campaign(group) for arm, group in runs.groupby("arm", sort=True)}
        problems = {arm: _problem(self.loader.config(arm), group["data"].iloc[0]) for arm, group in arms.items()}
        bases: dict[str, dict[str, pd.DataFrame]] = {problem: {} for problem in problems.values()}
        for arm, group in arms.items():
            config = self.loader.config(arm)
            if not config.quantize.operands and config.optimizer.step_rule == "adamw" and not config.optimizer.relative:
                bases[problems[arm]][arm] = group
        rows = [_gap_row(arm, arms[arm], bases[at]) for arm, at in problems.items() if arm not in bases[at]]
        frame = pd.DataFrame(rows, columns=list(GAP_COLUMNS))
        return frame.sort_values(["gap", "arm"], ascending=[False, True], ignore_index=True)

    @cached_property
    def symptoms(self) -> pd.DataFrame:
        """What the looks of each failed arm show, columns `SYMPTOM_COLUMNS`: one row an arm, cause and operand.

        Figures are means over the arm's runs. A cell is one layer's operand at one look; `share` is the fraction of the
        operand's cells beyond the limit, `worst` the value farthest beyond it, `step` the first look with such a cell,
        and `tensor` the worst one there.
        """
        rows = [
            {"arm": arm} | row
            for arm in self.gaps.loc[self.gaps["failed"].astype(bool), "arm"]
            for row in arm_symptoms(self.loader.layer_history(self.run_ids(arm)), self.loader.config(arm))
        ]
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

    def leading(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of the campaign's arms, where any arm of it can be judged; else all."""
        own = self.gaps[self.gaps["campaign"].astype(bool)]
        return frame[frame["arm"].isin(own["arm"])] if (own["n_pairs"] >= 2).any() else frame

    def of_formats(self, frame: pd.DataFrame, *formats: str) -> pd.DataFrame:
        """The rows of arms of which all that is rounded has one of these formats, by their names in a config."""
        wanted = {arm: one_format(self.loader.config(arm)) in formats for arm in frame["arm"].unique()}
        return frame[frame["arm"].map(wanted).astype(bool)]

    def run_ids(self, arm: str) -> list[str]:
        """The ended runs of an arm that `gaps` is about."""
        runs = self.loader.runs
        runs = _of_campaign(runs[(runs["arm"] == arm) & (runs["role"] == "report") & (runs["status"] != "running")])
        return list(runs["run_id"])

    def alike(self, arms: Sequence[str]) -> set[str]:
        """Those of `arms` whose difference to the first of them is not shown, on the seeds that both ran.

        The p-values are adjusted by Holm over the others; without two shared seeds there is no test.
        """
        runs = self.loader.runs
        first, *others = (runs[runs["run_id"].isin(self.run_ids(arm))] for arm in arms)
        rows = family([contrast(arm, other, first) for arm, other in zip(arms[1:], others, strict=True)])
        return {row["contrast"] for row in rows.to_dict("records") if not differs(row)}

    def example(self, arm: str) -> str:
        """The run of an arm to look at: the first that did not finish, else the one with the median final loss."""
        runs = self.loader.runs
        runs = runs[runs["run_id"].isin(self.run_ids(arm))]
        broken = runs.loc[runs["status"] != "finished", "run_id"]
        ordered = runs.sort_values(["final_val_loss", "seed", "run_id"])["run_id"]
        return str(broken.iloc[0] if len(broken) else ordered.iloc[(len(ordered) - 1) // 2])

    def operands(self, comparison: Comparison) -> pd.DataFrame:
        """What each operand costs alone: the gaps of a comparison's formats, all operands and one at a time.

        One row a format and scope of those that are recorded in the comparison's setting; columns format, scope (the
        comparison's, or the operand's name), and those of `gaps` that say how large it is.
        """
        runs = self.loader.runs
        arms = runs.loc[runs["setting"] == comparison.setting, "arm"].unique()
        alone = {arm: name for arm in arms if (name := _alone(self.loader.config(arm)))}
        scopes = dict.fromkeys(comparison.table["arm"], comparison.scope) | alone
        found = self.gaps[self.gaps["arm"].isin(scopes)]
        found = found.assign(scope=found["arm"].map(scopes))
        found["order"] = found["scope"].map([comparison.scope, *OPERAND_NAMES.values()].index)
        columns = ["format", "scope", "arm", "gap", "low", "high", "n_pairs", "n_runs", "n_finished"]
        return found.sort_values(["order", "arm"], ignore_index=True)[columns]

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
            found = [_remedy_row(self.loader, remedy) for remedy in REMEDIES if remedy.format == name]
            whole = [row for row in found if not row["missing"]]
            for row, adjusted in zip(whole, family(whole)["p_holm"] if whole else [], strict=True):
                row["p_holm"] = adjusted
            rows += found
        return pd.DataFrame(rows, columns=list(REMEDY_COLUMNS))

    def _causes(self, row: dict[Any, Any]) -> dict[str, Any]:
        found = self.symptoms[self.symptoms["arm"] == row["arm"]]
        ended = self.failures[(self.failures["arm"] == row["arm"]) & (self.failures["status"] != "running")]
        kinds = [kind for text in ended["kinds"] for kind in text.split(", ")] + list(found["cause"])
        phases = [*ended["phase"].dropna(), *found["phase"]]
        evidence = [f"{len(ended)} of {row['n_runs']} runs did not finish"] * bool(len(ended)) + list(found["evidence"])
        if not kinds and (reason := self._step_rule(row)):
            kinds, phases, evidence = ["step"], ["optimizer"], [reason]
        first: dict[Any, Any] = next(iter((ended.sort_values("step") if len(ended) else found).to_dict("records")), {})
        return {
            "causes": ", ".join(kind for kind in dict.fromkeys(kinds) if kind != "unknown") or "unknown",
            "phases": ", ".join(phase for phase in PHASES if phase in phases),
            "operand": first.get("operand"),
            "step": int(first["step"]) if first else None,
            "tensor": first.get("tensor"),
            "evidence": "; ".join(evidence) or "no recorded figure is beyond its limit",
        }

    def _step_rule(self, row: dict[Any, Any]) -> str:
        """Why the optimizer is the cause, in words; "" where it is not, or no run tells."""
        config = self.loader.config(row["arm"])
        if config.optimizer.step_rule == "adamw" and config.optimizer.storage == "master":
            return ""
        if not config.quantize.operands:
            return "nothing is rounded; held against AdamW"
        plain = self._plain.get((config.quantize, config.scaling, row["baseline"]))
        if plain is None:
            return ""
        return f"same formats under AdamW, master weights: {words.number(plain, sign=True)} nats"

    @cached_property
    def _plain(self) -> dict[tuple[QuantizeConfig, ScalingConfig, str], float]:
        """Gaps of the arms that did not fail under AdamW with master weights, by formats, scales and baseline."""
        found = {}
        judged = self.gaps[~self.gaps["failed"].astype(bool) & (self.gaps["n_pairs"] >= 2)]
        for row in judged.to_dict("records"):
            config = self.loader.config(row["arm"])
            if plain_adamw(config):
                found[config.quantize, config.scaling, row["baseline"]] = float(row["gap"])
        return found


def named(config: ExperimentConfig) -> str:
    """What a run is, where its format alone would mislead: ``FP32 (mis-scaled tensors)``, ``E4M3 (no scale)``."""
    how = scope_label(config).split("; ")[1:]
    details = ["mis-scaled tensors", *how] if config.model.rescale else how
    return f"{format_label(config)} ({', '.join(details)})" if details else format_label(config)


def one_format(config: ExperimentConfig) -> str:
    """The name of the format that all that is rounded has; "" where nothing is, or several formats are."""
    names = {fmt for operand in config.quantize.operands for fmt in config.quantize.formats(operand)} - {"fp32"}
    return names.pop() if len(names) == 1 else ""


def unscaled(config: ExperimentConfig) -> bool:
    """Whether a rounded operand has no scale."""
    return any(config.scaling.rule(operand).kind == "none" for operand in config.quantize.operands)


def plain_adamw(config: ExperimentConfig) -> bool:
    """Whether the step is AdamW's with master weights, and nothing about it is special."""
    given = config.optimizer
    chosen = (given.step_rule, given.relative, given.storage, given.rounding)
    return chosen == ("adamw", False, "master", "nearest_even")


def _alone(config: ExperimentConfig) -> str:
    """The operand that alone is rounded, in all layers, to nearest, with the default's scale; "" otherwise."""
    operands = config.quantize.operands
    if len(operands) != 1 or config.scaling != ScalingConfig():
        return ""
    bare = QuantizeConfig.model_validate({operands[0]: getattr(config.quantize, operands[0])})
    return OPERAND_NAMES[operands[0]] if config.quantize == bare else ""


def arm_symptoms(looks: pd.DataFrame, config: ExperimentConfig) -> list[dict[str, Any]]:
    """What the looks of an arm show by the limits of `SYMPTOMS_OF_ARMS`: rows of `SYMPTOM_COLUMNS` but for the arm.

    Args:
        looks: as `ExperimentDataLoader.layer_history` gives them.
        config: of the arm; operands that it does not round show nothing.
    """
    asked = {*config.quantize.operands, "gradient"} | ({"update"} if config.optimizer.storage == "grid" else set())
    keys = ["step", "layer", "operand"]
    lost = looks[looks["statistic"] == "underflow"].set_index(keys)["value"]
    names = {**OPERAND_NAMES, "update": "update", "gradient": "weight gradients"}
    found = []
    for symptom in SYMPTOMS_OF_ARMS:
        rows = looks[(looks["statistic"] == symptom.statistic) & looks["operand"].isin(asked & {*symptom.operands})]
        for operand, cells in rows.groupby("operand", observed=True, sort=False):
            beyond = cells["value"] < symptom.limit if symptom.below else cells["value"] > symptom.limit
            if symptom.kind == "precision":
                flushed = lost.reindex(pd.MultiIndex.from_frame(cells[keys])).fillna(0.0).to_numpy()
                beyond &= flushed < PRECISION_LOST
            if not beyond.any():
                continue
            shown = cells[beyond].sort_values(["value", "layer"], ascending=[symptom.below, True])
            first, worst = shown[shown["step"] == shown["step"].min()].iloc[0], float(shown["value"].iloc[0])
            form = ".1f" if symptom.kind == "precision" else ".3g" if symptom.below else ".1%"
            found.append(
                {
                    "cause": symptom.kind,
                    "operand": str(operand),
                    "phase": PHASE_OF_OPERAND[str(operand)],
                    "share": float(beyond.mean()),
                    "cells": len(cells),
                    "worst": worst,
                    "step": int(first["step"]),
                    "tensor": tensor_name(first["layer"], str(operand)),
                    "evidence": f"{names[str(operand)]}: at worst {worst:{form}} {symptom.figure}, beyond the limit in "
                    f"{beyond.mean():.0%} of looks",
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
        **dict.fromkeys(("n_pairs", "n_ended_badly", "gap_pairs"), 0),
        "missing": missing(loader, names),
    }
    if any(each["arm"].nunique() != 1 for each in (runs, before, fp32)):
        return row
    gap = paired_difference(by_seed(runs), by_seed(fp32))
    shared = by_seed(before[before["seed"].isin(runs["seed"])])
    row |= {key: value for key, value in contrast(remedy.name, runs, before).items() if key in TEST_COLUMNS}
    row |= {"gap": gap.mean, "gap_low": gap.low, "gap_high": gap.high, "gap_pairs": gap.n}
    row["gap_before"] = paired_difference(shared, by_seed(fp32)).mean
    return row | ({"p_value": math.nan} if row["missing"] else {})


def _of_campaign(runs: pd.DataFrame) -> pd.DataFrame:
    """Of an arm's runs those with seeds of the campaign; all of them where it has none."""
    own = runs[runs["seed"].isin(CAMPAIGN_SEEDS)]
    return own if len(own) else runs


def _problem(config: ExperimentConfig, data: str) -> str:
    """What an arm shares with the unquantized runs that it is held against: all but formats, scales and optimizer."""
    others = config.arm_identity().items()
    return digest({key: value for key, value in others if key not in ("quantize", "scaling", "optimizer")}, data)


def _gap_row(arm: str, runs: pd.DataFrame, bases: dict[str, pd.DataFrame]) -> dict[str, Any]:
    own = by_seed(runs)
    compared = [(paired_difference(own, by_seed(base)).n, name, base) for name, base in bases.items()]
    compared.sort(key=lambda each: (-each[0], each[2]["final_val_loss"].mean(), each[1]))
    _, name, base = compared[0] if compared else (0, None, runs.iloc[:0])
    found = paired_gap(runs, by_seed(base))
    return found | {
        "arm": arm,
        "study": ", ".join(sorted(runs["study"].unique())),
        **runs.iloc[0][["format", "scope", "rule", "learning_rate"]],
        "baseline": name,
        "campaign": bool(runs["seed"].isin(CAMPAIGN_SEEDS).all() and runs["study"].isin(REPORTED).all()),
        "failed": (found["n_pairs"] >= 2 and found["gap"] > FAILURE_GAP) or found["n_finished"] < len(runs),
    }
