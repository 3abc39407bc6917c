"""Which step rule ends at the lower loss: paired by seed, each at its tuned rate, with controls.

The campaign's arms are those of `altgrad.studies`: format, step rule, and where and how the weights are kept. AdamW
with float32 master weights, and without quantization, is recorded in study `formats`; the learning rates come from
study `tuning`, and that AdamW's from `pilot-tuning`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from altgrad.analysis.comparison import ordered
from altgrad.analysis.contrasts import ENDED, TEST_COLUMNS, by_seed, contrast, family, missing, row_of, runs_of
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import ALPHA, holm, paired_difference, rank_correlation
from altgrad.config import extra_bytes_per_weight
from altgrad.formats import get_format
from altgrad.studies import (
    ARMS,
    CONTROL_ARMS,
    PLACES,
    RIVAL_ARMS,
    RULE_FORMATS,
    RULES,
    SEEDS,
    STORAGE_ARMS,
    Arm,
    adamw_arm,
    identity_of,
    studies_of,
)

BASELINES = tuple(ARMS[adamw_arm(fmt, "master")] for fmt in ("FP32", *RULE_FORMATS))
STEP_ARMS = (*BASELINES, *STORAGE_ARMS, *CONTROL_ARMS)
COMPARED_RULES = ("update", "gradient", "relative", "code")

RULE_COLUMNS = (
    "format", "rule", "arm", "adamw_arm", "learning_rate", "adamw_learning_rate", "n_runs", "n_finished",
    "adamw_n_runs", "adamw_n_finished", "max_steps", "experiment", "n_pairs", "val_loss", "difference", "low",
    "high", "p_value", "p_holm", "stall_ratio", "adamw_stall_ratio", "stall_difference", "stall_low", "stall_high",
)  # fmt: skip
NAME_COLUMNS = ("format", "rule", "storage", "rounding", "misscaled")
ARM_COLUMNS = (
    *NAME_COLUMNS, "study", "arm", "learning_rate", "n_runs", "n_finished", "val_loss", "stall_ratio",
    "extra_bytes", "missing",
)  # fmt: skip
PAIR_COLUMNS = (*NAME_COLUMNS, *TEST_COLUMNS, "missing")
SWEEP_COLUMNS = (
    *NAME_COLUMNS, "study", "arm", "learning_rate", "n", "n_ended_badly", "val_loss", "best", "edge", "used",
)  # fmt: skip
STALL_DIFFERENCE = ("stall_difference", "stall_low", "stall_high")
STALL_COLUMNS = ("format", "n_arms", "spearman", "more", "less", "stall_difference", *TEST_COLUMNS, "missing")


def names_of(arm: Arm) -> tuple[str, str, str, str, bool]:
    """Of an arm, what `NAME_COLUMNS` hold."""
    place = PLACES[arm.place].settings
    misscaled = bool(arm.settings.get("model", {}).get("rescale"))
    return arm.format, arm.rule, place.get("storage", "master"), place.get("rounding", "nearest_even"), misscaled


def arm_of(row: Mapping[Any, Any]) -> Arm:
    """The arm of a row with `NAME_COLUMNS`."""
    return _BY_NAMES[tuple(row[name] for name in NAME_COLUMNS)]


def in_words(arm: Arm) -> str:
    """All names of an arm, AdamW with master weights too."""
    where = "" if arm.format == "FP32" else f" ({PLACES[arm.place].label})"
    return f"{arm.format} {RULES[arm.rule].label}{where}" + (", mis-scaled" if names_of(arm)[-1] else "")


_BY_NAMES: dict[tuple[Any, ...], Arm] = {names_of(arm): arm for arm in STEP_ARMS}


class StepRuleComparator:
    """Compares step rules on the same problem, paired by seed: the campaign's arms, and whatever else is recorded.

    `arms`, `sweeps`, `pairings`, `roundings`, `controls` and `stalls` are of the campaign's studies. Where the runs of
    a row are not all there, or not alike, it has no figures and says in `missing` what is wrong. `table` and
    `experiments` pair every arm of ManifoldAdamW among the records with AdamW.
    """

    def __init__(self, loader: ExperimentDataLoader) -> None:
        self._loader = loader
        runs = loader.runs
        self._runs = runs[(runs["role"] == "report") & ~runs["foreign"].astype(bool)]

    # The campaign's studies

    def runs_of(self, arm: str) -> pd.DataFrame:
        """Rows of `loader.runs`: the ended runs of an arm, on the seeds that all arms have; maybe none."""
        return self._found[arm]

    @cached_property
    def _found(self) -> dict[str, pd.DataFrame]:
        found = {arm.name: runs_of(self._loader, arm.name) for arm in STEP_ARMS}
        return {arm: runs[runs["status"].isin(ENDED) & runs["seed"].isin(SEEDS)] for arm, runs in found.items()}

    @cached_property
    def _faults(self) -> dict[str, str]:
        return {arm.name: missing(self._loader, [arm.name]) for arm in STEP_ARMS}

    def missing(self, *arms: str) -> str:
        """What keeps arms from being compared, in a sentence; "" where nothing does."""
        return missing(self._loader, arms) if any(self._faults[arm] for arm in arms) else ""

    def _badly(self, *arms: str) -> int:
        return sum(int((self.runs_of(arm)["status"] != "finished").sum()) for arm in arms)

    def losses(self, arm: str) -> pd.Series:
        """Final validation loss by seed; NaN for a run that did not finish."""
        return by_seed(self.runs_of(arm))

    def contrast(self, name: str, *arms: str) -> dict[str, Any]:
        """A row of `PAIR_COLUMNS` but for p_holm: the paired difference of an arm's final loss to another's.

        With two more arms, the difference of that difference to theirs. Where runs are missing or did not finish, the
        row has the count and no estimate: no arm is judged by its survivors.
        """
        runs, fault, badly = [self.runs_of(arm) for arm in arms], self.missing(*arms), self._badly(*arms)
        row = contrast(name, *([each.iloc[:0] for each in runs] if fault or badly else runs))
        row |= dict(zip(NAME_COLUMNS, names_of(ARMS[arms[0]]), strict=True))
        both = {key: next(iter(each["arm"]), "") for key, each in zip(("arm", "against"), runs, strict=False)}
        return row | both | {"missing": fault, "n_ended_badly": badly}

    def _family(self, rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
        """The rows with Holm's adjustment over all of them; without any where some are missing."""
        frame = family(rows, PAIR_COLUMNS)
        return frame.assign(p_holm=math.nan) if frame["missing"].astype(bool).any() else frame

    @cached_property
    def arms(self) -> pd.DataFrame:
        """One row an arm of the campaign, columns `ARM_COLUMNS`.

        val_loss is the mean over the seeds, NaN where a run did not finish; extra_bytes are those that training keeps
        per weight besides its code and Adam's moments.
        """
        rows = []
        for arm in STEP_ARMS:
            runs, names = self.runs_of(arm.name), names_of(arm)
            row = dict(zip(NAME_COLUMNS, names, strict=True)) | {
                "study": studies_of(arm.name)[0],
                "n_runs": len(runs),
                "n_finished": int((runs["status"] == "finished").sum()),
                "extra_bytes": extra_bytes_per_weight(*names[2:4]),
                "missing": self._faults[arm.name],
            }
            if runs["arm"].nunique() == 1:
                row |= {"arm": runs["arm"].iloc[0], "learning_rate": float(runs["learning_rate"].iloc[0])}
                if row["n_runs"] == row["n_finished"]:
                    means = {"val_loss": "final_val_loss", "stall_ratio": "stall_ratio"}
                    row |= {name: by_seed(runs, column).mean() for name, column in means.items()}
            rows.append(row)
        return pd.DataFrame(rows, columns=list(ARM_COLUMNS))

    @cached_property
    def pairings(self) -> pd.DataFrame:
        """Every rule against AdamW with the same format, storage and rounding, columns `PAIR_COLUMNS`.

        Holm's adjustment is over the rows of a rule: of "update" that is the family of H8, of "code" that of H10. The
        columns `STALL_DIFFERENCE` are the paired difference of the stall ratios with its 95% t interval.
        """
        frames = []
        for rule in COMPARED_RULES:
            pairs = [(arm.name, adamw_arm(arm.format, arm.place)) for arm in STORAGE_ARMS if arm.rule == rule]
            frame = self._family([self.contrast(in_words(ARMS[arm]), arm, against) for arm, against in pairs])
            stalls = [self._stall_difference(*pair) for pair in pairs]
            frames.append(frame.assign(**dict(zip(STALL_DIFFERENCE, zip(*stalls, strict=True), strict=True))))
        return pd.concat(frames, ignore_index=True)

    def _stall_difference(self, arm: str, against: str) -> tuple[float, float, float]:
        if self.missing(arm, against) or self._badly(arm, against):
            return math.nan, math.nan, math.nan
        stall = paired_difference(*(by_seed(self.runs_of(each), "stall_ratio") for each in (arm, against)))
        return stall.mean, stall.low, stall.high

    @cached_property
    def roundings(self) -> pd.DataFrame:
        """What storage and rounding change under one rule, columns `PAIR_COLUMNS`: three contrasts.

        "nearest" and "feedback" are against stochastic rounding on the grid; "grid" is stochastic rounding on the grid
        against master weights. Holm's adjustment is over the formats of one rule and contrast (AdamW's: H6 and H7).
        """
        frames = []
        for rule in ("adamw", "update", "gradient", "relative"):
            formats = [fmt for fmt in RULE_FORMATS if f"{fmt} {rule} stochastic" in ARMS]
            for name in ("nearest", "feedback"):
                rows = [(f"{fmt} {rule} {name}", f"{fmt} {rule} stochastic") for fmt in formats]
                frames.append(self._family([self.contrast(name, *pair) for pair in rows]))
            masters = [adamw_arm(fmt, "master") if rule == "adamw" else f"{fmt} {rule} master" for fmt in formats]
            rows = [(f"{fmt} {rule} stochastic", master) for fmt, master in zip(formats, masters, strict=True)]
            frames.append(self._family([self.contrast("grid", *pair) for pair in rows]))
        return pd.concat(frames, ignore_index=True)

    @cached_property
    def controls(self) -> pd.DataFrame:
        """The controls, columns `PAIR_COLUMNS` and `group`: no quantization, ablations of S, mis-scaled tensors.

        In group "no quantization" are, for each rule, its difference to AdamW with E4M3, the same without quantization,
        and the difference of the two (adjusted over update and gradient: H11). In group "ablation", S shuffled and S
        constant against S (H12). In group "mis-scaled", each rule against AdamW (H13), and what E4M3 costs AdamW there.
        """
        families: list[tuple[str, list[tuple[str, ...]]]] = []
        for rules in (("update", "gradient"), ("relative",)):
            fours = [(f"E4M3 {rule} master", "E4M3", f"FP32 {rule} master", "FP32") for rule in rules]
            for name, part in (("E4M3", slice(2)), ("FP32", slice(2, 4)), ("difference", slice(4))):
                families.append(("no quantization", [(name, *four[part]) for four in fours]))
        start, misscaled = "E4M3 adamw master misscaled", ("update", "gradient", "relative")
        families += [
            ("ablation", [(rule, f"E4M3 {rule} master", "E4M3 update master") for rule in ("shuffled", "constant")]),
            ("mis-scaled", [(rule, f"E4M3 {rule} master misscaled", start) for rule in misscaled]),
            ("mis-scaled", [("E4M3 against FP32", start, "FP32 adamw master misscaled")]),
        ]
        frames = [self._family([self.contrast(*each) for each in rows]).assign(group=name) for name, rows in families]
        return pd.concat(frames, ignore_index=True)

    @cached_property
    def sweeps(self) -> pd.DataFrame:
        """The tuning runs, one row an arm and learning rate, columns `SWEEP_COLUMNS`.

        val_loss is the mean over the held-out seeds, infinite where a run did not finish; `best` the lowest of an arm,
        `edge` whether that lies at an end of its rates, `used` whether the compared arm has this rate.
        """
        runs = self._loader.runs
        swept = (runs["role"] == "tuning") & runs["status"].isin(ENDED) & ~runs["foreign"].astype(bool)
        tried: dict[str, list[pd.DataFrame]] = {}
        for arm, group in runs[swept].groupby("arm", sort=True):
            tried.setdefault(identity_of(self._loader.config(str(arm)), rate=False), []).append(group)
        rows = []
        for arm in STEP_ARMS:
            swept_as = ARMS[f"{arm.format} pilot"] if arm in BASELINES else arm
            groups = tried.get(identity_of(swept_as.config(), rate=False), [])
            found = sorted(groups, key=lambda group: float(group["learning_rate"].iloc[0]))
            rates = [float(group["learning_rate"].iloc[0]) for group in found]
            means = [float(by_seed(group).fillna(math.inf).mean()) for group in found]
            best = int(np.argmin(means)) if means and math.isfinite(min(means)) else -1
            used = set(self.runs_of(arm.name)["learning_rate"])
            for i, group in enumerate(found):
                badly = int((group["status"] != "finished").sum())
                edge = i == best and i in (0, len(found) - 1)
                where = (group["study"].iloc[0], group["arm"].iloc[0], rates[i])
                figures = (group["seed"].nunique(), badly, means[i], i == best, edge, rates[i] in used)
                rows.append((*names_of(arm), *where, *figures))
        return pd.DataFrame(rows, columns=list(SWEEP_COLUMNS))

    @cached_property
    def stalls(self) -> pd.DataFrame:
        """Whether the stall ratio ranks the arms of a format, columns `STALL_COLUMNS`: one row a format.

        `spearman` is the rank correlation of the arms' mean stall ratio with their mean loss (an arm with a run that
        did not finish has no rank). `more` and `less` are a pair of arms with a significant difference, Holm-adjusted
        over all pairs of the format's arms, of which `more` stalls more (the paired interval excludes zero) and has the
        lower loss: the pair with the largest difference of stall ratios. The test's columns are of the losses, `more`
        minus `less`.
        """
        rows = []
        for fmt in RULE_FORMATS:
            arms = [arm.name for arm in (*BASELINES, *STORAGE_ARMS) if arm.format == fmt]
            row: dict[str, Any] = {"format": fmt, "missing": self.missing(*arms), "spearman": math.nan}
            if not row["missing"]:
                arms = [arm for arm in arms if not self._badly(arm)]
                stalls = {arm: by_seed(self.runs_of(arm), "stall_ratio") for arm in arms}
                unknown = [in_words(ARMS[arm]) for arm in arms if stalls[arm].isna().any()]
                if unknown:
                    row["missing"] = f"no stall ratio is recorded for {', '.join(unknown)}"
                elif len(arms) < 3:
                    row["missing"] = f"fewer than three arms of {fmt} finished"
                else:
                    losses = {arm: self.losses(arm) for arm in arms}
                    row |= {"n_arms": len(arms), "spearman": _spearman(stalls, losses)}
                    row |= self._counterexample(stalls, losses)
            rows.append(row)
        return pd.DataFrame(rows, columns=list(STALL_COLUMNS))

    def _counterexample(self, stalls: dict[str, pd.Series], losses: dict[str, pd.Series]) -> dict[str, Any]:
        pairs = list(itertools.combinations(stalls, 2))
        estimates = [paired_difference(losses[one], losses[other]) for one, other in pairs]
        found = []
        for (one, other), estimate, p in zip(pairs, estimates, holm([each.p_value for each in estimates]), strict=True):
            more, less = (one, other) if estimate.mean < 0 else (other, one)
            stall = paired_difference(stalls[more], stalls[less])
            if p < ALPHA and stall.low > 0:
                found.append((stall.mean, more, less, p))
        if not found:
            return {}
        difference, more, less, p = max(found, key=lambda each: each[0])
        said = {"more": in_words(ARMS[more]), "less": in_words(ARMS[less])}
        row = self.contrast(f"{said['more']} against {said['less']}", more, less)
        return {name: row.get(name) for name in TEST_COLUMNS} | said | {"p_holm": p, "stall_difference": difference}

    # Whatever is recorded

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row an arm of the manifold rule, columns `RULE_COLUMNS` and `counts`.

        `difference` is its final validation loss minus AdamW's in nats per character. Where the problem has AdamW arms
        at several learning rates, the one with the most pairs is taken, and among those the one with the lowest mean
        loss: the comparison least favourable to the manifold rule. Without an AdamW arm the row has no difference.
        A row `counts` (and takes part in Holm's adjustment, over the rows of its experiment) if it has at least two
        pairs and every run of both arms finished: an arm that lost seeds would be judged by its survivors.
        """
        rows = []
        for problem, group in self._runs.groupby("problem", sort=True):
            rivals = [(str(arm), runs) for arm, runs in group[group["step_rule"] == "adamw"].groupby("arm")]
            for arm, runs in group[group["step_rule"] == "manifold"].groupby("arm"):
                rows.append(_rule_row(str(arm), runs, rivals) | {"problem": problem})
        frame = pd.DataFrame(rows, columns=[*RULE_COLUMNS, "problem"])
        whole = (frame["n_finished"] == frame["n_runs"]) & (frame["adamw_n_finished"] == frame["adamw_n_runs"])
        frame["counts"] = whole & (frame["n_pairs"] >= 2)
        for _, group in frame[frame["counts"]].groupby("experiment"):
            frame.loc[group.index, "p_holm"] = holm(list(group["p_value"]))
        return frame.sort_values(["rule", "format", "arm"], key=ordered, ignore_index=True)

    @property
    def experiments(self) -> tuple[pd.DataFrame, ...]:
        """The table split by experiment (data, model, length ...), the one with the most counted pairs first."""
        parts = [part.reset_index(drop=True) for _, part in self.table.groupby("experiment", sort=True)]
        return tuple(sorted(parts, key=lambda part: -int(part.loc[part["counts"], "n_pairs"].sum())))

    @property
    def others(self) -> tuple[pd.DataFrame, ...]:
        """Those of the experiments that hold no arm of the campaign's."""
        rivals = (runs_of(self._loader, arm.name) for arm in RIVAL_ARMS)
        own = {key for runs in (*self._found.values(), *rivals) for key in runs["arm"]}
        return tuple(part for part in self.experiments if own.isdisjoint(part["arm"]))


def _spearman(stalls: Mapping[str, pd.Series], losses: Mapping[str, pd.Series]) -> float:
    return rank_correlation(*(pd.Series({arm: each.mean() for arm, each in of.items()}) for of in (stalls, losses)))


def _rule_row(arm: str, runs: pd.DataFrame, rivals: Sequence[tuple[str, pd.DataFrame]]) -> dict[str, object]:
    def figures(of: pd.DataFrame, prefix: str = "") -> dict[str, object]:
        return {
            f"{prefix}learning_rate": of["learning_rate"].iloc[0],
            f"{prefix}n_runs": len(of),
            f"{prefix}n_finished": int((of["status"] == "finished").sum()),
            f"{prefix}stall_ratio": of["stall_ratio"].mean(),
        }

    losses = by_seed(runs)
    row = {name: runs[name].iloc[0] for name in ("format", "rule", "max_steps", "experiment")} | figures(runs)
    row |= {"arm": arm, "n_pairs": 0, "val_loss": losses.mean(), "p_value": math.nan}
    if not rivals:
        return row
    compared = [(name, rival, paired_difference(losses, by_seed(rival))) for name, rival in rivals]
    name, rival, estimate = min(compared, key=lambda item: (-item[2].n, item[1]["final_val_loss"].mean(), item[0]))
    stall = paired_difference(by_seed(runs, "stall_ratio"), by_seed(rival, "stall_ratio"))
    kept = ("n_pairs", "difference", "low", "high", "p_value")
    row |= {key: value for key, value in row_of(name, estimate).items() if key in kept}
    stalls = dict(zip(STALL_DIFFERENCE, (stall.mean, stall.low, stall.high), strict=True))
    return row | {"adamw_arm": name} | figures(rival, "adamw_") | stalls


def evenly_spaced(names: Iterable[str]) -> list[str]:
    """The formats, where each has one spacing for all values; none where one has not."""
    formats = sorted(set(names))
    return formats if not any(get_format(name).exponent_bits for name in formats) else []
