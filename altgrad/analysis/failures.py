"""Why runs ended badly: what their records show, in which operand and phase; and which formats lose by what.

The trainer explains a run that ends badly with the same function as a reader explains one that could not (`diagnose`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from altgrad.analysis.comparison import Comparison, FormatComparator
from altgrad.analysis.contrasts import TEST_COLUMNS, by_seed, contrast, differs, family, missing, runs_of
from altgrad.analysis.loader import OPERAND_NAMES, ExperimentDataLoader, concatenated, format_label, scope_label
from altgrad.analysis.statistics import FAILURE_GAP, paired_difference
from altgrad.config import ExperimentConfig, QuantizeConfig, ScalingConfig
from altgrad.runs import FAILURE_KINDS, Alarm, Failure, RunRecord
from altgrad.runs.schema import PHASES, digest
from altgrad.studies import CAMPAIGN, CAMPAIGN_SEEDS, EXTREMES, STUDIES

PHASE_OF_OPERAND = {
    "weight": "forward",
    "activation": "forward",
    "grad_output": "backward",
    "gradient": "backward",
    "update": "optimizer",
}
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

UNIFORM_LOSS = math.log(96)
"""Loss of guessing one of the 96 characters at random, in nats per character."""
DIVERGED = 1.5 * UNIFORM_LOSS
"""A run whose loss stays above this has diverged."""
LOSSES, LAST_LOSSES = 50, 20
"""How many losses a failure holds at most, and how many of them are the last ones, without a gap."""
DIAGNOSTICS = (
    "amax",
    "norm_l2",
    "nonfinite",
    "overflow",
    "underflow",
    "sqnr_db",
    "stall_ratio",
    "effective_rank",
)
"""The statistics that a failure's diagnostics hold, where they were recorded."""
DIAGNOSED = 40
"""How many operands a failure's diagnostics hold at most: those of the layer that is named, then the worst."""


@dataclass(frozen=True)
class Symptom:
    """What a look at the layers can show: no failure by itself, but a warning, and a kind of the failure that follows.

    Attributes:
        kind: one of `FAILURE_KINDS`; "nonfinite" is none, and only a warning.
        statistic, operands: the rows of the per-layer table that show it.
        limit: it is there beyond this value; below it where `below`.
        meaning: one sentence of what the figure says; it is completed by the value and the limit.
        advice: what to try; empty where `FAULTS` says it.
    """

    kind: str
    statistic: str
    operands: tuple[str, ...]
    limit: float
    meaning: str
    advice: str
    below: bool = False

    def shown_by(self, operand: str, statistic: str, value: float) -> bool:
        """Whether a row of the table shows it."""
        if statistic != self.statistic or operand not in self.operands:
            return False
        return value < self.limit if self.below else value > self.limit


# The limits of underflow and stall lie between what the demo's good and bad formats show at their worst look: underflow
# 0.63 in E3M4, which loses nothing, 0.79 in E2M5 and 0.88 in E0M7, which do; stall 0.989 in E6M1 and 0.996 in E7M0.
SYMPTOMS = (
    Symptom(
        "overflow",
        "overflow",
        ("weight", "activation", "grad_output"),
        0.01,
        "fraction of the nonzero elements that lie beyond the format's largest value",
        "use a scale that follows the tensor (scaling.kind: amax) or a format with more exponent bits for this operand",
    ),
    Symptom(
        "underflow",
        "underflow",
        ("grad_output",),
        0.75,
        "fraction of the nonzero gradients that became zero",
        "use a format with more exponent bits for quantize.grad_output, or scale it by row or block",
    ),
    Symptom(
        "stall",
        "stall_ratio",
        ("update",),
        0.99,
        "fraction of the proposed changes that moved no weight on its grid",
        "raise the learning rate, keep float32 master weights, or round stochastically (optimizer.rounding)",
    ),
    Symptom(
        "gradient_vanishing",
        "norm_l2",
        ("gradient",),
        1e-8,
        "norm of the gradient of this weight",
        "look at the underflow of quantize.grad_output in the layers after this one, and lower weight decay",
        below=True,
    ),
    # NaN and infinity that reach the loss end a run by themselves; a delayed or static scale saturates an infinity.
    Symptom(
        "nonfinite",
        "nonfinite",
        ("activation", "grad_output"),
        0.0,
        "NaN or infinite elements before rounding, which hid them from the loss",
        "",
    ),
)

FAULTS = {
    ("jump", "forward"): "the weights were changed between two steps: look for code that writes into them",
    ("jump", "optimizer"): "lower optimizer.learning_rate (or optimizer.weight_decay), or lengthen warmup_steps",
    ("zeroed", "forward"): "the weights were set to zero between two steps: look for code that writes into them",
    ("zeroed", "optimizer"): "lower optimizer.learning_rate and optimizer.weight_decay",
    ("nonfinite", "forward"): "look at the overflow of this operand: a scale that follows it, or more exponent bits",
    ("nonfinite", "backward"): "look at the scale of quantize.grad_output; skip the batch if it happens once",
    ("nonfinite", "optimizer"): "lower optimizer.learning_rate, or raise optimizer.eps",
    ("rank_collapse", "optimizer"): "lower the learning rate of this layer, or leave it in a wider format",
}
"""What to try after a fault, by alarm and phase."""
UNROUNDED = "nothing is rounded in this run: look at what the layer receives, or lower optimizer.learning_rate"
"""What to try after an operand that is not finite in a run without formats."""

_BREAKS = ("nonfinite", "jump", "zeroed")
"""Alarms that by themselves can end a run; the others are slow."""


def symptoms(rows: Iterable[tuple[int, str, str, str, str, float]]) -> list[Alarm]:
    """What rows of the per-layer table show, worst first within each symptom.

    Args:
        rows: step, layer, layer_type, operand, statistic, value.

    Returns:
        An alarm a layer, operand and kind. The tensor is ``<layer>.<operand>``, for a gradient ``<layer>.weight.grad``
        and for an update ``<layer>.weight``. NaN shows nothing.
    """
    ends = {"gradient": "weight.grad", "update": "weight"}
    found = []
    for symptom in SYMPTOMS:
        shown = [row for row in rows if symptom.shown_by(row[3], row[4], row[5])]
        for _, layer, _, operand, _, value in sorted(shown, key=lambda row: row[5], reverse=not symptom.below):
            side = "below" if symptom.below else "above"
            message = f"{symptom.meaning}: {value:.4g} ({side} {symptom.limit:g})"
            tensor = f"{layer}.{ends.get(operand, operand)}"
            found.append(Alarm(symptom.kind, tensor, PHASE_OF_OPERAND[operand], value, message))
    return found


def warnings_of(record: RunRecord) -> list[tuple[int, Alarm]]:
    """(step, alarm) of every warning in the record, in order of steps; events of another shape are passed over."""
    found = []
    for event in record.run["events"]:
        if not isinstance(event, dict) or event.get("kind") != "warning" or not isinstance(event.get("step"), int):
            continue
        texts = [event.get(key) for key in ("what", "tensor", "phase", "message")]
        if all(isinstance(text, str) for text in texts) and event["phase"] in PHASES:
            value = event.get("value")
            if not isinstance(value, int | float) or abs(value) >= 2.0**1023:  # a file may hold any integer
                value = math.nan
            found.append(
                (event["step"], Alarm(event["what"], event["tensor"], event["phase"], float(value), event["message"]))
            )
    return sorted(found, key=lambda each: each[0])


def diagnose(record: RunRecord, found: Failure | None = None) -> Failure | None:
    """Why the run ended badly; None for one that finished or still goes on.

    A failure that is recorded stays as it is, and gets what its record leaves out: `diagnostics`, `losses`, `advice`.
    For a run that was stopped from outside, by a signal, an exception or a kill, it is computed from history, layers
    and events. Its first bad step is then that of the earliest warning from which the loss did not recover, else of the
    earliest fault, else where the loss went beyond the limit, else the last step: a stall or an underflow stops no run.

    Args:
        record: of any status.
        found: what the trainer knows of a run that has just failed; in place of the record's own failure.

    Returns:
        The failure. Where it is a divergence or NaN that a warning explains (the earliest one from which the loss did
        not recover), step, tensor and phase are the warning's. Another divergence is named after the matrix that grew
        most, with the first step whose loss was beyond the limit.
    """
    if found is not None:
        found = _traced(record, found)
    elif record.run["failure"] is not None:
        found = Failure(**record.run["failure"])
    elif record.status in ("finished", "running"):
        return None
    else:
        found = _stopped(record)
    return replace(
        found,
        diagnostics=found.diagnostics or _diagnostics(record, found.tensor),
        losses=found.losses or _thinned(record),
        advice=found.advice or _advice(record, found),
    )


def _stopped(record: RunRecord) -> Failure:
    """The failure of a run that did not end by itself."""
    last = int(record.history["step"].max()) if len(record.history) else 0
    said = record.run["message"]
    if record.status == "interrupted":
        message = said or "stopped from outside"
    elif said:
        message = f"ended by an exception: {said}"
    else:
        message = "the process ended without closing its record: killed, out of memory, or the machine stopped"
    bare = Failure(("unknown", *_shown(record)), last, message=message)
    breaks = _breaks(record)
    chosen = next((each for each in breaks if not _recovered(record, each[0])), breaks[0] if breaks else None)
    return _named(bare, *chosen) if chosen else _traced(record, bare)


def _traced(record: RunRecord, failure: Failure) -> Failure:
    """`failure` with the step, tensor and phase where it began, as far as warnings and looks tell."""
    kinds = tuple(dict.fromkeys([*failure.kinds, *_symptom_kinds(record)]))
    failure = replace(failure, kinds=kinds)
    if not {"nan_loss", "divergence"} & set(kinds):
        return failure
    diverged = "nan_loss" not in kinds
    if diverged:
        failure = replace(failure, step=_first_beyond(record) or failure.step)
    if (began := _broken_weight(record, failure)) is not None:
        failure = _named(failure, *began)
    for step, alarm in _breaks(record):
        # Of one step, the operand that was found by computing again says more than the gradient it spoiled.
        earlier = step < failure.step or (step == failure.step and alarm.phase != "backward")
        if (diverged or earlier) and not _recovered(record, step):
            return _named(failure, step, alarm)
        if (step, alarm.tensor) == (failure.step, failure.tensor):
            return _named(failure, step, alarm)
    if failure.tensor is None and diverged and (grown := _grown(record)) is not None:
        tensor, factor, first, last = grown
        cause = f"its norm grew most, {factor:.3g} times from step {first} to step {last}"
        failure = replace(failure, tensor=tensor, phase="optimizer", cause=cause)
    return failure


def _broken_weight(record: RunRecord, failure: Failure) -> tuple[int, Alarm] | None:
    """The warning that the named weight is not finite; it stays so, also through batches that do not read its rows."""
    found = [
        (step, alarm)
        for step, alarm in warnings_of(record)
        if (alarm.what, alarm.tensor) == ("nonfinite", failure.tensor)
        and alarm.phase != "backward"
        and step <= failure.step
    ]
    return found[-1] if found else None


def _named(failure: Failure, step: int, alarm: Alarm) -> Failure:
    return replace(failure, step=step, tensor=alarm.tensor, phase=alarm.phase, cause=f"{alarm.what}: {alarm.message}")


def _breaks(record: RunRecord) -> list[tuple[int, Alarm]]:
    """Warnings and bad steps that can end a run, in order; of one step the weights before the gradients they spoil."""
    found = [(step, alarm) for step, alarm in warnings_of(record) if alarm.what in _BREAKS]
    for event in record.run["events"]:
        if isinstance(event, dict) and event.get("kind") == "nonfinite" and isinstance(event.get("step"), int):
            tensor, phase = event.get("tensor"), event.get("phase")
            if isinstance(tensor, str) and phase in PHASES:
                found.append(
                    (event["step"], Alarm("nonfinite", tensor, phase, math.nan, "NaN or infinity, seen here first"))
                )
    return sorted(found, key=lambda each: (each[0], each[1].phase == "backward", each[1].tensor.endswith(".grad")))


def _recovered(record: RunRecord, step: int) -> bool:
    """Whether the loss has been, after `step`, about as low as it was up to it; in steps that were applied."""
    history = record.history
    if "loss" not in history:
        return False
    figures = [history[key].abs() < math.inf for key in ("loss", "grad_norm") if key in history]
    losses = history["loss"].where(pd.concat(figures, axis=1).all(axis=1))
    before = losses[history["step"] <= step].min()
    after = losses[history["step"] > step].min()
    return bool(after <= 1.1 * min(before, DIVERGED)) if not math.isnan(before) else bool(after <= DIVERGED)


def _first_beyond(record: RunRecord) -> int | None:
    """The first step of the last stretch of losses that ends the run beyond the limit; None where the end is not."""
    history = record.history
    if "loss" not in history:
        return None
    history = history[history["loss"].notna() | (history.index == history.index[-1])]
    beginning = float(history["loss"].iloc[0])
    for limit in (DIVERGED, 1.05 * max(UNIFORM_LOSS, beginning)):
        beyond = ~(history["loss"] <= limit)
        within = beyond.index[~beyond]
        stretch = history[history.index > within[-1]] if len(within) else history
        if len(stretch):
            return int(stretch["step"].iloc[0])
    return None


def _shown(record: RunRecord) -> tuple[str, ...]:
    """Kinds that the history's end and the last look show."""
    history, patience = record.history, record.config.nan_patience
    found = []
    if len(history) and "loss" in history:
        last = history.iloc[-1]
        figures = [float(last[key]) for key in ("loss", "grad_norm") if key in history]
        if not all(math.isfinite(figure) for figure in figures):
            found.append("nan_loss")
        recent = history["loss"].tail(patience)
        if len(recent) == patience and recent.min() > DIVERGED and last["step"] > record.config.warmup_steps:
            found.append("divergence")
    return (*found, *_symptom_kinds(record))


def _symptom_kinds(record: RunRecord) -> tuple[str, ...]:
    layers, history = record.layers, record.history
    rows = layers[layers["step"] == layers["step"].max()].itertuples(index=False, name=None)
    kinds = [alarm.what for alarm in symptoms(list(rows))]
    if "grad_norm" in history and len(history) and float(history["grad_norm"].iloc[-1]) < 1e-8:
        kinds.append("gradient_vanishing")
    return tuple(kind for kind in FAILURE_KINDS if kind in kinds)


def _grown(record: RunRecord) -> tuple[str, float, int, int] | None:
    """The weight whose recorded norm grew most from its first to its last look: name, factor, both steps."""
    layers = record.layers
    norms = layers[(layers["operand"] == "weight") & (layers["statistic"] == "norm_l2")]
    factors = []
    for layer, rows in norms.groupby("layer", observed=True, sort=False):
        first, last = rows.iloc[0], rows.iloc[-1]
        if first["value"] > 0 and last["value"] > first["value"]:
            factors.append((last["value"] / first["value"], f"{layer}.weight", int(first["step"]), int(last["step"])))
    if not factors:
        return None
    factor, tensor, first_step, last_step = max(factors)
    return tensor, float(factor), first_step, last_step


def _diagnostics(record: RunRecord, tensor: str | None) -> tuple[dict[str, Any], ...]:
    """The last figures of each operand, those of the named layer first, then the worst; at most `DIAGNOSED`."""
    layers = record.layers[record.layers["statistic"].isin(DIAGNOSTICS)]
    found: list[tuple[tuple[bool, bool, bool], dict[str, Any]]] = []
    for (layer, operand), rows in layers.groupby(["layer", "operand"], observed=True, sort=False):
        last = rows[rows["step"] == rows["step"].max()]
        values = dict(zip(last["statistic"], last["value"], strict=True))
        figures = {name: float(f"{values[name]:.4g}") for name in DIAGNOSTICS if name in values}
        shown = any(symptom.shown_by(operand, name, value) for symptom in SYMPTOMS for name, value in figures.items())
        order = (not (tensor or "").startswith(f"{layer}."), not figures.get("nonfinite", 0) > 0, not shown)
        found.append(
            (order, {"step": int(last["step"].iloc[0]), "layer": str(layer), "operand": str(operand), **figures})
        )
    return tuple(row for _, row in sorted(found, key=lambda each: each[0])[:DIAGNOSED])


def _thinned(record: RunRecord) -> tuple[tuple[int, float | None], ...]:
    """At most `LOSSES` pairs of step and training loss, the last `LAST_LOSSES` of them whole."""
    if "loss" not in record.history:
        return ()
    rows = record.history.dropna(subset=["step"])
    steps, losses = rows["step"].tolist(), rows["loss"].tolist()
    early = max(len(steps) - LAST_LOSSES, 0)
    kept = min(early, LOSSES - LAST_LOSSES)
    chosen = [number * early // kept for number in range(kept)] + list(range(early, len(steps)))
    return tuple((int(steps[at]), float(losses[at]) if math.isfinite(losses[at]) else None) for at in chosen)


def _advice(record: RunRecord, failure: Failure) -> tuple[str, ...]:
    lines = []
    what = failure.cause.partition(":")[0] or "nonfinite"
    rounded = bool(record.config.quantize.operands)
    in_operand = what == "nonfinite" and failure.phase != "optimizer" and _broken_weight(record, failure) is None
    if in_operand and failure.phase is not None and not rounded:
        lines.append(UNROUNDED)
    elif what == "nonfinite" and failure.phase == "forward" and not in_operand:
        lines.append(FAULTS["jump", "forward"])
    elif failure.phase is not None:
        lines.append(FAULTS.get((what, failure.phase), ""))
    if "divergence" in failure.kinds and failure.phase != "forward":
        lines.append(FAULTS["jump", "optimizer"])
    if "nan_loss" in failure.kinds and in_operand and rounded and record.config.stability.shift_to is None:
        lines.append("set stability.shift_to to a wider format, to go on from the last good weights")
    lines += [symptom.advice for symptom in SYMPTOMS if symptom.kind in failure.kinds]
    if record.status != "failed" and "unknown" in failure.kinds:
        resumable = record.config.checkpoint.every > 0
        lines.append(
            "run the same command with --resume to go on from the last checkpoint"
            if resumable
            else "set checkpoint.every to be able to go on (--resume) from where a run was stopped"
        )
    return tuple(dict.fromkeys(line for line in lines if line))


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
        scopes = [comparison.scope, *OPERAND_NAMES.values()]
        runs = self._loader.runs
        arms = runs.loc[(runs["setting"] == comparison.setting) & runs["scope"].isin(scopes), "arm"]
        found = self.gaps[self.gaps["arm"].isin(arms)]
        columns = ["format", "scope", "arm", "gap", "low", "high", "n_pairs", "n_runs", "n_finished"]
        order = found["scope"].map(scopes.index)
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
