"""Which step rule ends at the lower loss: paired by seed, each at its tuned rate, with controls; hypotheses H6 to H14.

An arm has the names of docs/method/preregistration.md: format, step rule, storage of the weights, rounding onto the
grid. The studies `storage` and `controls` hold the arms; AdamW with float32 master weights, and without quantization,
is recorded in study `formats`; the learning rates come from study `tuning`, and that AdamW's from `pilot-tuning`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from altgrad.analysis.comparison import by_seed, format_order
from altgrad.analysis.loader import ExperimentDataLoader, format_label, scope_label
from altgrad.analysis.preregistered import ENDED, SEEDS, TEST_COLUMNS, Answer, Verdict, limited, row_of, select
from altgrad.analysis.statistics import ALPHA, MARGIN, holm, paired_difference
from altgrad.config import ExperimentConfig, extra_bytes_per_weight

FORMATS = ("E4M3", "E5M2", "E0M7")
SPACING = "e4m3"
"""The format whose S a rule has in its control without quantization."""

RESCALED = 6
"""Mis-scaled tensors begin multiplied by up to 2^6, either way (`model.rescale`)."""

BASE_RATE, OWN_RATES = 1.6e-2, {"E0M7": 8e-3}
"""AdamW's tuned rate with master weights; of study `formats`, which has E0M7 at both, this one is its arm here."""

RULES = {
    "adamw": "AdamW",
    "relative": "AdamW, relative rate",
    "gradient": "S on the gradient",
    "update": "S on the update",
    "code": "Steps of codes",
    "shuffled": "S on the update, shuffled",
    "constant": "S on the update, constant",
}
STORAGES = {"master": "master weights", "grid": "grid"}
ROUNDINGS = {"nearest_even": "nearest", "stochastic": "stochastic", "error_feedback": "error feedback"}
GRID = tuple(ROUNDINGS)
ALL_OPERANDS = "weights + activations + gradients"
STUDIES = ("formats", "storage", "controls")


class Arm(NamedTuple):
    """The names of an arm: format ("FP32" without quantization), a key of `RULES`, of `STORAGES` and of `ROUNDINGS`."""

    format: str
    rule: str
    storage: str = "master"
    rounding: str = "nearest_even"
    misscaled: bool = False

    @property
    def place(self) -> str:
        """Storage and rounding in words."""
        return f"{STORAGES[self.storage]}, {ROUNDINGS[self.rounding]}"

    @property
    def words(self) -> str:
        """All of its names."""
        start = ", mis-scaled" if self.misscaled else ""
        where = "" if self.format == "FP32" else f" ({self.place})"
        return f"{self.format} {RULES[self.rule]}{where}{start}"

    def but(self, **names: Any) -> Arm:
        """The arm with other names."""
        return self._replace(**names)


def _storage_arms() -> Iterable[Arm]:
    for fmt in FORMATS:
        whole = fmt == FORMATS[0]
        if whole:
            yield from (Arm(fmt, "gradient"), Arm(fmt, "relative"), Arm(fmt, "adamw", "master", "stochastic"))
        yield Arm(fmt, "update")
        for rule in ("adamw", "update", "gradient", "relative") if whole else ("adamw", "update"):
            yield from (Arm(fmt, rule, "grid", rounding) for rounding in GRID)
        yield Arm(fmt, "code", "grid", "stochastic")


BASELINES = tuple(Arm(fmt, "adamw") for fmt in ("FP32", *FORMATS))
STORAGE_ARMS = tuple(_storage_arms())
CONTROL_ARMS = (
    *(Arm("FP32", rule) for rule in ("gradient", "update", "relative")),
    *(Arm("E4M3", rule) for rule in ("shuffled", "constant")),
    *(Arm("E4M3", rule, misscaled=True) for rule in ("adamw", "relative", "gradient", "update")),
    Arm("FP32", "adamw", misscaled=True),
)
ARMS = (*BASELINES, *STORAGE_ARMS, *CONTROL_ARMS)

RULE_COLUMNS = (
    "format",
    "rule",
    "arm",
    "adamw_arm",
    "learning_rate",
    "adamw_learning_rate",
    "n_runs",
    "n_finished",
    "adamw_n_runs",
    "adamw_n_finished",
    "max_steps",
    "experiment",
    "n_pairs",
    "val_loss",
    "difference",
    "low",
    "high",
    "p_value",
    "p_holm",
    "stall_ratio",
    "adamw_stall_ratio",
    "stall_difference",
    "stall_low",
    "stall_high",
)
NAME_COLUMNS = ("format", "rule", "storage", "rounding", "misscaled")
ARM_COLUMNS = (
    *NAME_COLUMNS,
    "study",
    "arm",
    "learning_rate",
    "n_runs",
    "n_finished",
    "val_loss",
    "stall_ratio",
    "extra_bytes",
    "missing",
)
PAIR_COLUMNS = (*NAME_COLUMNS, *TEST_COLUMNS, "missing")
SWEEP_COLUMNS = (
    *NAME_COLUMNS,
    "study",
    "arm",
    "learning_rate",
    "n",
    "n_ended_badly",
    "val_loss",
    "best",
    "edge",
    "used",
)
STALL_DIFFERENCE = ("stall_difference", "stall_low", "stall_high")
STALL_COLUMNS = ("format", "n_arms", "spearman", "more", "less", "stall_difference", *TEST_COLUMNS, "missing")


def arm_of(config: ExperimentConfig) -> Arm | None:
    """The names of a run's arm, whatever its learning rate; None where it has a setting that no arm has."""
    optimizer, rescale = config.optimizer, config.model.rescale
    scope, fmt = scope_label(config), format_label(config)
    unusual = (
        scope not in ("nothing", ALL_OPERANDS)
        or rescale not in (0, RESCALED)
        or optimizer.floor is not None
        or optimizer.max_stiffness is not None
        or optimizer.rungs != 1
        or optimizer.format != (SPACING if fmt == "FP32" and optimizer.precondition else None)
    )
    if unusual:
        return None
    rule: str = "relative" if optimizer.relative else (optimizer.precondition or optimizer.step_rule)
    if optimizer.stiffness != "ulp":
        if rule != "update":
            return None
        rule = optimizer.stiffness
    return Arm(fmt, rule, optimizer.storage, optimizer.rounding, bool(rescale))


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

    @cached_property
    def _found(self) -> dict[Arm, pd.DataFrame]:
        """The ended runs of each arm that the campaign names, maybe of several settings."""
        runs = select(self._loader, STUDIES)
        runs = runs[runs["status"].isin(ENDED) & runs["seed"].isin(SEEDS)]
        parts: dict[Arm, list[pd.DataFrame]] = {}
        for _, group in runs.groupby("arm", sort=True):
            key = arm_of(self._loader.config(group["arm"].iloc[0]))
            if key not in ARMS:
                continue
            if key in BASELINES and not math.isclose(
                group["learning_rate"].iloc[0], OWN_RATES.get(key.format, BASE_RATE)
            ):
                continue
            parts.setdefault(key, []).append(group)
        return {key: pd.concat(groups) for key, groups in parts.items()}

    def runs_of(self, arm: Arm) -> pd.DataFrame:
        """Rows of `loader.runs`: the ended runs of an arm, on the campaign's seeds; maybe none."""
        return self._found.get(arm, self._loader.runs.iloc[:0])

    def missing(self, *arms: Arm) -> str:
        """What keeps arms from being compared, in a sentence; "" where nothing does.

        That is: seeds that are not recorded, one arm recorded with several settings (lengths, data ...), or arms that
        differ in more than their names.
        """
        faults = [fault for arm in arms if (fault := self._faults[arm])]
        if faults:
            return "; ".join(dict.fromkeys(faults))
        if len(arms) < 2:
            return ""
        first, *others = (self._settings[arm] for arm in arms)
        for arm, other in zip(arms[1:], others, strict=True):
            unlike = sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key))
            if unlike:
                return f"{arms[0].words} and {arm.words} are no pair: they differ in {', '.join(unlike)}"
        return ""

    @cached_property
    def _faults(self) -> dict[Arm, str]:
        return {arm: self._fault(arm) for arm in ARMS}

    def _fault(self, arm: Arm) -> str:
        runs = self.runs_of(arm)
        seeds = runs["seed"].nunique()
        if not seeds:
            return f"{arm.words} is not recorded"
        if runs["arm"].nunique() > 1:
            steps = sorted({int(steps) for steps in runs["max_steps"]})
            detail = f" ({', '.join(map(str, steps))} steps)" if len(steps) > 1 else ""
            return f"{arm.words} is recorded with several settings{detail}"
        return f"{arm.words} has {seeds} of {len(SEEDS)} seeds" if seeds < len(SEEDS) else ""

    @cached_property
    def _settings(self) -> dict[Arm, dict[str, Any]]:
        """What the two arms of a pair must share."""
        return {arm: self._setting(arm) for arm in self._found}

    def _setting(self, arm: Arm) -> dict[str, Any]:
        runs = self.runs_of(arm)
        config = self._loader.config(runs["arm"].iloc[0])
        shared = {key: value for key, value in config.arm_identity().items() if key not in ("optimizer", "quantize")}
        return shared | {"betas": config.optimizer.betas, "eps": config.optimizer.eps, "data": runs["data"].iloc[0]}

    def _badly(self, *arms: Arm) -> int:
        return sum(int((self.runs_of(arm)["status"] != "finished").sum()) for arm in arms)

    def weight_decay(self, arm: Arm) -> float:
        """Of an arm's config; NaN where it is not recorded."""
        runs = self.runs_of(arm)
        return self._loader.config(runs["arm"].iloc[0]).optimizer.weight_decay if len(runs) else math.nan

    def losses(self, arm: Arm) -> pd.Series:
        """Final validation loss by seed; NaN for a run that did not finish."""
        return by_seed(self.runs_of(arm), "final_val_loss")

    def contrast(self, name: str, arm: Arm, against: Arm, *then: Arm) -> dict[str, Any]:
        """A row of `PAIR_COLUMNS` but for p_holm: the paired difference of an arm's final loss to another's.

        With two more arms, the difference of that difference to theirs. Where a run did not finish, the row has the
        count and no estimate: no arm is judged by its survivors.
        """
        all_arms = (arm, against, *then)
        row: dict[str, Any] = dict(zip(NAME_COLUMNS, arm, strict=True)) | {
            "contrast": name,
            "missing": self.missing(*all_arms),
            "arm": next(iter(self.runs_of(arm)["arm"]), ""),
            "against": next(iter(self.runs_of(against)["arm"]), ""),
        }
        badly = self._badly(*all_arms)
        values, baseline = self._nothing, self._nothing
        if not row["missing"] and not badly:
            values, baseline = self.losses(arm), self.losses(against)
            if then:
                values, baseline = values - baseline, self.losses(then[0]) - self.losses(then[1])
        estimate = row_of(name, paired_difference(values, baseline))
        return estimate | row | {"n_ended_badly": badly}

    _nothing = pd.Series(dtype="float64")

    def _family(self, rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
        """The rows with Holm's adjustment over all of them; without any where some are missing.

        A row that is not judged, because a run did not finish, counts as a p of 1.
        """
        frame = pd.DataFrame(rows, columns=list(PAIR_COLUMNS))
        whole = not frame["missing"].astype(bool).any()
        adjusted = holm([1.0 if math.isnan(p) else float(p) for p in frame["p_value"]])
        frame["p_holm"] = pd.Series(adjusted, dtype="float64").where(frame["p_value"].notna() & whole)
        return frame

    @cached_property
    def arms(self) -> pd.DataFrame:
        """One row an arm of the campaign, columns `ARM_COLUMNS`.

        val_loss is the mean over the seeds, NaN where a run did not finish; extra_bytes are those that training keeps
        per weight besides its code and Adam's moments.
        """
        rows = []
        for arm in ARMS:
            runs, fault = self.runs_of(arm), self._faults[arm]
            alike = runs["arm"].nunique() == 1
            whole = alike and not self._badly(arm)
            study = "formats" if arm in BASELINES else "storage" if arm in STORAGE_ARMS else "controls"
            figures = (
                study,
                runs["arm"].iloc[0] if alike else None,
                float(runs["learning_rate"].iloc[0]) if alike else math.nan,
                len(runs),
                int((runs["status"] == "finished").sum()),
                self.losses(arm).mean() if whole else math.nan,
                by_seed(runs, "stall_ratio").mean() if whole else math.nan,
                extra_bytes_per_weight(arm.storage, arm.rounding),
                fault,
            )
            rows.append((*arm, *figures))
        return pd.DataFrame(rows, columns=list(ARM_COLUMNS))

    @cached_property
    def pairings(self) -> pd.DataFrame:
        """Every rule against AdamW with the same format, storage and rounding, columns `PAIR_COLUMNS`.

        Holm's adjustment is over the rows of a rule: of "update" that is the family of H8, of "code" that of H10. The
        columns `STALL_DIFFERENCE` are the paired difference of the stall ratios with its 95% t interval.
        """
        frames = []
        for rule in ("update", "gradient", "relative", "code"):
            own = [arm for arm in STORAGE_ARMS if arm.rule == rule]
            frame = self._family([self.contrast(arm.words, arm, arm.but(rule="adamw")) for arm in own])
            stalls = [self._stall_difference(arm, arm.but(rule="adamw")) for arm in own]
            frames.append(frame.assign(**dict(zip(STALL_DIFFERENCE, zip(*stalls, strict=True), strict=True))))
        return pd.concat(frames, ignore_index=True)

    def _stall_difference(self, arm: Arm, against: Arm) -> tuple[float, float, float]:
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
            formats = [fmt for fmt in FORMATS if Arm(fmt, rule, "grid", "stochastic") in STORAGE_ARMS]
            for name, rounding in (("nearest", "nearest_even"), ("feedback", "error_feedback"), ("grid", "stochastic")):
                rows = []
                for fmt in formats:
                    drawn = Arm(fmt, rule, "grid", "stochastic")
                    against = Arm(fmt, rule) if name == "grid" else drawn
                    rows.append(self.contrast(name, drawn.but(rounding=rounding), against))
                frames.append(self._family(rows))
        return pd.concat(frames, ignore_index=True)

    @cached_property
    def controls(self) -> pd.DataFrame:
        """The controls, columns `PAIR_COLUMNS` and `group`: no quantization, ablations of S, mis-scaled tensors.

        In group "no quantization" are, for each rule, its difference to AdamW with E4M3, the same without quantization,
        and the difference of the two (adjusted over update and gradient: H11). In group "ablation", S shuffled and S
        constant against S (H12). In group "mis-scaled", each rule against AdamW (H13), and what E4M3 costs AdamW there.
        """
        frames = []
        for rules in (("update", "gradient"), ("relative",)):
            parts: dict[str, list[dict[str, Any]]] = {"E4M3": [], "FP32": [], "difference": []}
            for rule in rules:
                ours, free = Arm("E4M3", rule), Arm("FP32", rule)
                parts["E4M3"].append(self.contrast("E4M3", ours, BASELINES[1]))
                parts["FP32"].append(self.contrast("FP32", free, BASELINES[0]))
                parts["difference"].append(self.contrast("difference", ours, BASELINES[1], free, BASELINES[0]))
            frames += [self._family(rows).assign(group="no quantization") for rows in parts.values()]
        update = Arm("E4M3", "update")
        rows = [self.contrast(name, update.but(rule=name), update) for name in ("shuffled", "constant")]
        frames.append(self._family(rows).assign(group="ablation"))
        start = Arm("E4M3", "adamw", misscaled=True)
        rows = [self.contrast(name, start.but(rule=name), start) for name in ("update", "gradient", "relative")]
        frames.append(self._family(rows).assign(group="mis-scaled"))
        cost = self.contrast("E4M3 against FP32", start, start.but(format="FP32"))
        frames.append(self._family([cost]).assign(group="mis-scaled"))
        return pd.concat(frames, ignore_index=True)

    @cached_property
    def sweeps(self) -> pd.DataFrame:
        """The tuning runs, one row an arm and learning rate, columns `SWEEP_COLUMNS`.

        val_loss is the mean over the held-out seeds, infinite where a run did not finish; `best` the lowest of an arm,
        `edge` whether that lies at an end of its rates, `used` whether the compared arm has this rate.
        """
        runs = self._loader.runs
        tuning = runs["study"].eq("tuning") | (runs["study"].eq("pilot-tuning") & runs["step_rule"].eq("adamw"))
        runs = runs[tuning & runs["status"].isin(ENDED) & ~runs["foreign"].astype(bool)]
        tried: dict[Arm, list[pd.DataFrame]] = {}
        for _, group in runs.groupby("arm", sort=True):
            key = arm_of(self._loader.config(group["arm"].iloc[0]))
            if key in ARMS and (key in BASELINES) == (group["study"].iloc[0] == "pilot-tuning"):
                tried.setdefault(key, []).append(group)
        used = {arm: set(self.runs_of(arm)["learning_rate"]) for arm in ARMS}
        rows = []
        for arm in ARMS:
            found = sorted(tried.get(arm, []), key=lambda group: float(group["learning_rate"].iloc[0]))
            rates = [float(group["learning_rate"].iloc[0]) for group in found]
            means = [float(by_seed(group, "final_val_loss").fillna(math.inf).mean()) for group in found]
            best = int(np.argmin(means)) if means and math.isfinite(min(means)) else -1
            for i, group in enumerate(found):
                badly = int((group["status"] != "finished").sum())
                edge = i == best and i in (0, len(found) - 1)
                where = (group["study"].iloc[0], group["arm"].iloc[0], rates[i])
                figures = (group["seed"].nunique(), badly, means[i], i == best, edge, rates[i] in used[arm])
                rows.append((*arm, *where, *figures))
        return pd.DataFrame(rows, columns=list(SWEEP_COLUMNS))

    @cached_property
    def stalls(self) -> pd.DataFrame:
        """Whether the stall ratio ranks the arms of a format, columns `STALL_COLUMNS`: one row a format.

        `spearman` is the rank correlation of the arms' mean stall ratio with their mean loss (an arm with a run that
        did not finish has no rank). `more` and `less` are a pair of arms told apart, Holm-adjusted over all pairs of
        the format's arms, of which `more` stalls more (the paired interval excludes zero) and has the lower loss: the
        pair with the largest difference of stall ratios. The test's columns are of the losses, `more` minus `less`.
        """
        rows = []
        for fmt in FORMATS:
            arms = [arm for arm in (*BASELINES, *STORAGE_ARMS) if arm.format == fmt]
            row: dict[str, Any] = {"format": fmt, "missing": self.missing(*arms), "spearman": math.nan}
            if not row["missing"]:
                arms = [arm for arm in arms if not self._badly(arm)]
                stalls = {arm: by_seed(self.runs_of(arm), "stall_ratio") for arm in arms}
                unknown = [arm.words for arm in arms if stalls[arm].isna().any()]
                if unknown:
                    row["missing"] = f"no stall ratio is recorded for {', '.join(unknown)}"
                elif len(arms) < 3:
                    row["missing"] = f"fewer than three arms of {fmt} finished"
                else:
                    row |= {"n_arms": len(arms), "spearman": self._spearman(arms)} | self._counterexample(arms)
            rows.append(row)
        return pd.DataFrame(rows, columns=list(STALL_COLUMNS))

    def _spearman(self, arms: Sequence[Arm]) -> float:
        from scipy.stats import spearmanr

        stalls = [by_seed(self.runs_of(arm), "stall_ratio").mean() for arm in arms]
        means = [self.losses(arm).mean() for arm in arms]
        if min(np.ptp(stalls), np.ptp(means)) == 0:  # scipy warns of it
            return math.nan
        return float(spearmanr(stalls, means).statistic)

    def _counterexample(self, arms: Sequence[Arm]) -> dict[str, Any]:
        pairs = list(itertools.combinations(arms, 2))
        losses = {arm: self.losses(arm) for arm in arms}
        stalls = {arm: by_seed(self.runs_of(arm), "stall_ratio") for arm in arms}
        estimates = [paired_difference(losses[one], losses[other]) for one, other in pairs]
        best: tuple[float, Arm, Arm, float] | None = None
        for (one, other), estimate, p in zip(pairs, estimates, holm([each.p_value for each in estimates]), strict=True):
            if not p < ALPHA:
                continue
            more, less = (one, other) if estimate.mean < 0 else (other, one)
            stall = paired_difference(stalls[more], stalls[less])
            if stall.low > 0 and (best is None or stall.mean > best[0]):
                best = (stall.mean, more, less, p)
        if best is None:
            return {}
        difference, more, less, p = best
        row = self.contrast(f"{more.words} against {less.words}", more, less)
        kept = {name: row[name] for name in TEST_COLUMNS if name != "p_holm"}
        return {**kept, "p_holm": p, "more": more.words, "less": less.words, "stall_difference": difference}

    # Whatever is recorded

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row an arm of the manifold rule, columns `RULE_COLUMNS` and `counts`.

        `difference` is its final validation loss minus AdamW's in nats a character. Where the problem has AdamW arms
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
        return frame.sort_values(["rule", "format", "arm"], key=_order, ignore_index=True)

    @property
    def experiments(self) -> tuple[pd.DataFrame, ...]:
        """The table split by experiment (data, model, length ...), the one with the most counted pairs first."""
        parts = [part.reset_index(drop=True) for _, part in self.table.groupby("experiment", sort=True)]
        return tuple(sorted(parts, key=lambda part: -int(part.loc[part["counts"], "n_pairs"].sum())))


def step_rule_verdicts(loader: ExperimentDataLoader) -> tuple[Verdict, ...]:
    """What the records say of the preregistered hypotheses on step rules, storage and controls: H6 to H14."""
    return verdicts_of(loader.once(StepRuleComparator))


def verdicts_of(comparator: StepRuleComparator) -> tuple[Verdict, ...]:
    """`step_rule_verdicts` of a comparator that is at hand."""
    return tuple(judge(comparator) for judge in HYPOTHESES.values())


Rows = list[dict[str, Any]]


def _verdict(identity: str, study: str, statement: str, tests: pd.DataFrame, answer: Any, lead: str) -> Verdict:
    """The verdict of a family; `answer` takes its rows, and is asked only when none is missing."""
    missing = "; ".join(dict.fromkeys(text for text in tests["missing"] if text))
    if missing:
        return Verdict(identity, study, statement, "pending", shortened(missing))
    rows: Rows = tests.to_dict("records")  # type: ignore[assignment]
    return Verdict(identity, study, statement, answer(rows), f"{lead}: {_said(rows)}", tests[list(TEST_COLUMNS)])


def shortened(missing: str, most: int = 3) -> str:
    """At most three of the faults, and the number of the others: one sentence."""
    faults = missing.split("; ")
    rest = f"; and {len(faults) - most} more" if len(faults) > most else ""
    return f"{'; '.join(faults[:most])}{rest}."


def _said(rows: Rows) -> str:
    """The estimates of a family in words: all of them, or of more than four their number and the two extremes."""
    parts, known = [], [row for row in rows if _judged(row)]
    if len(known) > 4:
        lower, higher = (sum(_shown(row, sign) for row in known) for sign in (-1, 1))
        badly = f", {len(rows) - len(known)} not judged because runs did not finish" if len(rows) > len(known) else ""
        parts.append(f"lower in {lower} of {len(rows)}, higher in {higher}{badly}")
    extremes = (min(known, key=_difference), max(known, key=_difference)) if len(known) > 4 else rows
    for row in extremes:
        if _judged(row):
            p = "< 0.001" if row["p_holm"] < 0.001 else f"{row['p_holm']:.3f}"
            mean, low, high = (_signed(row[name]) for name in ("difference", "low", "high"))
            figures = f"{mean} [{low}, {high}], adjusted p {p}"
        else:
            figures = f"not judged, {row['n_ended_badly']} runs did not finish"
        parts.append(f"{row['label']} {figures}")
    sizes = sorted({row["n_pairs"] for row in rows if _judged(row)})
    pairs = f" (nats a character, n = {' to '.join(map(str, sizes))} pairs each)" if sizes else ""
    return f"{'; '.join(parts)}{pairs}."


def _signed(value: float) -> str:
    """Three digits with their sign; zero has none."""
    text = f"{value:+.3f}"
    return "0.000" if text in ("+0.000", "-0.000") else text


def _difference(row: dict[str, Any]) -> float:
    return float(row["difference"])


def _judged(row: dict[str, Any]) -> bool:
    return bool(row["n_ended_badly"] == 0 and row["n_pairs"] >= 2)


def _shown(row: dict[str, Any], sign: int) -> bool:
    """Whether a difference of this sign is shown."""
    return bool(row["p_holm"] < ALPHA and sign * row["difference"] > 0)


def _refuted(row: dict[str, Any], sign: int) -> bool:
    """Whether a claimed difference of this sign is refuted: the opposite is shown, or equivalence."""
    return not _shown(row, sign) and (_shown(row, -sign) or bool(row["p_equivalent"] < ALPHA))


def _all_differ(rows: Rows, sign: int) -> Answer:
    if all(_shown(row, sign) for row in rows):
        return "yes"
    return "no" if any(_refuted(row, sign) for row in rows) else "inconclusive"


def _all_equivalent(rows: Rows) -> Answer:
    if all(row["p_equivalent"] < ALPHA for row in rows):
        return "yes"
    return "no" if any(row["low"] > MARGIN or row["high"] < -MARGIN for row in rows) else "inconclusive"


def _h6(found: StepRuleComparator) -> Verdict:
    tests = found.roundings.query("rule == 'adamw' and contrast == 'nearest'")
    statement = "On the grid under AdamW, rounding to nearest costs loss against stochastic rounding."
    lead = "Nearest minus stochastic rounding"
    return _verdict("H6", "storage", statement, _by_format(tests), lambda rows: _all_differ(rows, +1), lead)


def _h7(found: StepRuleComparator) -> Verdict:
    def answer(rows: Rows) -> Answer:
        if all(row["high"] < MARGIN for row in rows):
            return "yes"
        return "no" if any(row["low"] > MARGIN for row in rows) else "inconclusive"

    tests = found.roundings.query("rule == 'adamw' and contrast == 'feedback'")
    statement = "Error feedback is no worse than stochastic rounding on the grid under AdamW."
    return _verdict("H7", "storage", statement, _by_format(tests), answer, "Error feedback minus stochastic rounding")


def _h8(found: StepRuleComparator) -> Verdict:
    def answer(rows: Rows) -> Answer:
        if any(_shown(row, -1) for row in rows):
            return "no"
        return "yes" if all(_judged(row) for row in rows) else "inconclusive"

    tests = found.pairings.query("rule == 'update'")
    places = [f"{arm.format} {arm.place}" for arm in STORAGE_ARMS if arm.rule == "update"]
    statement = "Steps in ulps do not lower the loss against AdamW, master weights or grid, each at its tuned rate."
    return _verdict("H8", "storage", statement, tests.assign(label=places), answer, "Steps in ulps minus AdamW")


def _h9(found: StepRuleComparator) -> Verdict:
    tests = found.pairings.query("rule == 'gradient' and storage == 'master'")
    tests = tests.assign(p_holm=tests["p_value"])  # a family of its own
    statement = "The gradient precondition is nearly AdamW: with master weights the two are equivalent."
    lead = "S on the gradient minus AdamW"
    found_so = _verdict("H9", "storage", statement, _equivalence(_by_format(tests)), _all_equivalent, lead)
    if found_so.answer == "inconclusive" and (tests["p_value"] < ALPHA).all():
        more = " Equivalence within the margin is not shown, and a difference is: its size, not its presence, is open."
        return replace(found_so, evidence=found_so.evidence + more)
    return found_so


def _h10(found: StepRuleComparator) -> Verdict:
    tests = found.pairings.query("rule == 'code'")
    statement = "Whole-code steps are worse than AdamW on the grid with stochastic rounding."
    lead = "Steps of codes minus AdamW"
    found_so = _verdict("H10", "storage", statement, _by_format(tests), lambda rows: _all_differ(rows, +1), lead)
    arms = [Arm(fmt, rule, "grid", "stochastic") for fmt in tests["format"] for rule in ("code", "adamw")]
    codes, adamw = (sorted({found.weight_decay(arm) for arm in arms if arm.rule == rule}) for rule in ("code", "adamw"))
    if found_so.answer == "pending" or codes == adamw:
        return found_so
    own, others = (" and ".join(f"{decay:g}" for decay in decays) for decays in (codes, adamw))
    limit = (
        f"weight decay differs as well, {own} with steps of codes and {others} with AdamW, so the test does not "
        f"show which of the two costs the loss. Steps of codes with {others}, or AdamW on the grid with {own}, would."
    )
    return limited(found_so, limit)


def _h11(found: StepRuleComparator) -> Verdict:
    tests = found.controls.query("contrast == 'difference' and rule != 'relative'")
    statement = (
        "What ulp steps do they do without quantization too: the difference to AdamW is the same (within the "
        "margin) with FP32 weights and the spacing of E4M3."
    )
    tests = _equivalence(tests.assign(label=[RULES[rule] for rule in tests["rule"]]))
    lead = "Difference to AdamW with E4M3 minus the same without quantization"
    return _verdict("H11", "controls", statement, tests, _all_equivalent, lead)


def _h12(found: StepRuleComparator) -> Verdict:
    def answer(rows: Rows) -> Answer:
        shuffled, constant = rows
        if _shown(shuffled, +1) and _judged(constant) and not constant["p_holm"] < ALPHA:
            return "yes"
        return "no" if _refuted(shuffled, +1) or _shown(constant, +1) else "inconclusive"

    tests = found.controls.query("group == 'ablation'")
    statement = "It matters which weight has which S: S shuffled is worse than S, S constant is not."
    tests = tests.assign(label=[f"S {rule}" for rule in tests["rule"]])
    return _verdict("H12", "controls", statement, tests, answer, "Ablation minus S on the update")


def _h13(found: StepRuleComparator) -> Verdict:
    def answer(rows: Rows) -> Answer:
        decisive = [row for row in rows if row["rule"] != "gradient"]
        return _all_differ(decisive, -1)

    tests = found.controls.query("group == 'mis-scaled' and contrast != 'E4M3 against FP32'")
    statement = (
        "Where tensors begin mis-scaled (by up to 2^6, either way), ulp steps win against AdamW, and AdamW with rates "
        "relative to the tensor wins as well."
    )
    tests = tests.assign(label=[RULES[rule] for rule in tests["rule"]])
    return _verdict("H13", "controls", statement, tests, answer, "Minus AdamW, mis-scaled tensors")


def _h14(found: StepRuleComparator) -> Verdict:
    statement = (
        "The stall ratio does not rank arms: among the arms of one format its rank correlation with the loss "
        "is not above .8."
    )
    stalls = found.stalls
    missing = "; ".join(dict.fromkeys("; ".join(text for text in stalls["missing"] if text).split("; ")))
    if missing:
        return Verdict("H14", "storage", statement, "pending", shortened(missing))
    pairs = stalls[stalls["more"].notna()]
    ranks = bool((stalls["spearman"] > 0.8).any())
    answer: Answer = "inconclusive"
    if len(pairs) and not ranks:
        answer = "yes"
    elif ranks and pairs.empty:
        answer = "no"
    said = "; ".join(
        f"{row['format']} {row['spearman']:+.2f} over {row['n_arms']:.0f} arms" for row in stalls.to_dict("records")
    )
    evidence = f"Spearman's rho of stall ratio and loss: {said}."
    if len(pairs):
        row = pairs.loc[pairs["stall_difference"].idxmax()]
        evidence += (
            f" {row['more']} stalls {100 * row['stall_difference']:.0f} points more than {row['less']} and ends "
            f"{-row['difference']:.3f} nats a character lower ([{_signed(row['low'])}, {_signed(row['high'])}], "
            f"n = {row['n_pairs']:.0f} pairs); such a pair is shown in {len(pairs)} of {len(stalls)} formats."
        )
        if ranks:
            names = ", ".join(stalls.loc[stalls["spearman"] > 0.8, "format"])
            evidence += f" So the ratio is no safe ranking; but rho is above .8 in {names}, against the statement."
    else:
        evidence += " No pair of arms whose losses differ stalls in the other order than it loses."
    return Verdict("H14", "storage", statement, answer, evidence, pairs[list(TEST_COLUMNS)].reset_index(drop=True))


HYPOTHESES: dict[str, Callable[[StepRuleComparator], Verdict]] = {
    "H6": _h6,
    "H7": _h7,
    "H8": _h8,
    "H9": _h9,
    "H10": _h10,
    "H11": _h11,
    "H12": _h12,
    "H13": _h13,
    "H14": _h14,
}
"""How each is judged; the comparator computes only what its family needs."""


def _by_format(tests: pd.DataFrame) -> pd.DataFrame:
    return tests.assign(label=list(tests["format"]))


def _equivalence(tests: pd.DataFrame) -> pd.DataFrame:
    """The family with the p-value of TOST in its label: that is what decides."""
    told = [
        f"{label} (TOST p {'< 0.001' if p < 0.001 else f'{p:.3f}'})" if not math.isnan(p) else label
        for label, p in zip(tests["label"], tests["p_equivalent"].astype("float64"), strict=True)
    ]
    return tests.assign(label=told)


def _rule_row(arm: str, runs: pd.DataFrame, rivals: Sequence[tuple[str, pd.DataFrame]]) -> dict[str, object]:
    losses = by_seed(runs, "final_val_loss")
    row: dict[str, object] = {
        "format": runs["format"].iloc[0],
        "rule": runs["rule"].iloc[0],
        "arm": arm,
        "learning_rate": runs["learning_rate"].iloc[0],
        "max_steps": runs["max_steps"].iloc[0],
        "experiment": runs["experiment"].iloc[0],
        "n_runs": len(runs),
        "n_finished": int((runs["status"] == "finished").sum()),
        "n_pairs": 0,
        "val_loss": losses.mean(),
        "stall_ratio": runs["stall_ratio"].mean(),
        "p_value": math.nan,
    }
    if not rivals:
        return row
    compared = [(name, rival, paired_difference(losses, by_seed(rival, "final_val_loss"))) for name, rival in rivals]
    name, rival, estimate = min(compared, key=lambda item: (-item[2].n, item[1]["final_val_loss"].mean(), item[0]))
    stall = paired_difference(by_seed(runs, "stall_ratio"), by_seed(rival, "stall_ratio"))
    return row | {
        "adamw_arm": name,
        "adamw_learning_rate": rival["learning_rate"].iloc[0],
        "adamw_n_runs": len(rival),
        "adamw_n_finished": int((rival["status"] == "finished").sum()),
        "n_pairs": estimate.n,
        "difference": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "p_value": estimate.p_value,
        "adamw_stall_ratio": rival["stall_ratio"].mean(),
        "stall_difference": stall.mean,
        "stall_low": stall.low,
        "stall_high": stall.high,
    }


def _order(column: pd.Series) -> pd.Series:
    return column.map(format_order) if column.name == "format" else column
