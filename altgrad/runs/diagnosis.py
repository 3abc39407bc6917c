"""Why one run ended badly: what its record shows, from which step, in which tensor and phase; and what to try.

The trainer explains a run that ends badly with the same function as a reader explains one that could not (`diagnose`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from pydantic import ValidationError

from altgrad.config import OPERANDS
from altgrad.runs.remedies import remedies
from altgrad.runs.schema import FAILURE_KINDS, PHASES, Alarm, CoverageEvent, Failure
from altgrad.runs.store import RunRecord

PHASE_OF_OPERAND = {
    "weight": "forward",
    "activation": "forward",
    "output": "forward",
    "grad_output": "backward",
    "gradient": "backward",
    "update": "optimizer",
}
LOSSES, LAST_LOSSES = 50, 20
"""How many losses a failure holds at most, and how many of them are the last ones, without a gap."""
DIAGNOSTICS = ("amax", "norm_l2", "nonfinite", "overflow", "underflow", "sqnr_db", "stall_ratio", "effective_rank")
"""The statistics that a failure's diagnostics hold, where they were recorded."""
DIAGNOSED = 40
"""How many operands a failure's diagnostics hold at most: those of the layer that is named, then the worst."""


@dataclass(frozen=True)
class Symptom:
    """What a look at the layers can show: no failure by itself, but a warning, and a kind of a failure that follows."""

    kind: str  # one of `FAILURE_KINDS`; others are only a warning
    statistic: str  # with `operands`, the rows of the per-layer table that show it
    operands: tuple[str, ...]
    limit: float  # it is there beyond this value; below it where `below`
    meaning: str  # one sentence of what the figure says; it is completed by the value and the limit
    below: bool = False
    figure: str = ""  # what is said after the worst value where an arm of runs shows it

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
        figure="of the nonzero elements beyond the largest value",
    ),
    Symptom(
        "underflow",
        "underflow",
        ("grad_output",),
        0.75,
        "fraction of the nonzero gradients that became zero",
        figure="of the nonzero elements became zero",
    ),
    # Most of a forward operand may be small without harm; where nearly all of it becomes zero, its scale is wrong.
    Symptom(
        "underflow",
        "underflow",
        ("weight", "activation"),
        0.95,
        "fraction of the nonzero elements that became zero, as a scale does that is too large for them",
    ),
    Symptom(
        "stall",
        "stall_ratio",
        ("update",),
        0.99,
        "fraction of the proposed changes that moved no weight on its grid",
        figure="of the proposed changes moved no weight on its grid",
    ),
    Symptom(
        "gradient_vanishing",
        "norm_l2",
        ("gradient",),
        1e-8,
        "norm of the gradient of this weight",
        below=True,
        figure="norm of the gradient",
    ),
    # NaN and infinity that reach the loss end a run by themselves; a delayed or static scale saturates an infinity.
    Symptom(
        "nonfinite",
        "nonfinite",
        ("activation", "grad_output"),
        0.0,
        "NaN or infinite elements before rounding, which hid them from the loss",
    ),
    # In a pilot FP32 ended at -1.7, and E7M0, whose logits' gradient was rounded to nearest, at 36.
    Symptom(
        "runaway_logits",
        "logits_mean",
        ("output",),
        10.0,
        "mean of the logits, which run away where the loss does not see it; see quantize.grad_output_rounding.head",
    ),
)

FAULTS = {
    ("jump", "forward"): "the weights were changed between two steps: look for code that writes into them",
    ("jump", "optimizer"): "lower optimizer.learning_rate (or optimizer.weight_decay), or lengthen warmup_steps",
    ("zeroed", "forward"): "the weights were set to zero between two steps: look for code that writes into them",
    ("zeroed", "optimizer"): "lower optimizer.learning_rate and optimizer.weight_decay",
    ("nonfinite", "forward"): "look at the overflow of this operand: a scale that follows it, or more exponent bits",
    ("nonfinite", "scaled"): "look at this operand before it is rounded: its scale follows it already",
    ("nonfinite", "backward"): "look at the scale of quantize.grad_output; skip the batch if it happens once",
    ("nonfinite", "optimizer"): "lower optimizer.learning_rate, or raise optimizer.eps",
    ("rank_collapse", "optimizer"): "lower the learning rate of this layer, or leave it in a wider format",
}
"""What to try after a fault, by alarm and phase; "scaled" is a forward operand whose scale follows it."""
UNROUNDED = "nothing is rounded in this run: look at what the layer receives, or lower optimizer.learning_rate"
"""What to try after an operand that is not finite in a run without formats."""

_BREAKS = ("nonfinite", "jump", "zeroed")
"""Alarms that by themselves can end a run; the others are slow."""


def tensor_name(layer: str, operand: str) -> str:
    """``head.activation``; of a gradient ``head.weight.grad``, of an update ``head.weight``."""
    ends = {"gradient": "weight.grad", "update": "weight"}
    return f"{layer}.{ends.get(operand, operand)}"


def symptoms(rows: Iterable[tuple[int, str, str, str, str, float]]) -> list[Alarm]:
    """What rows of the per-layer table show, worst first within each symptom.

    Args:
        rows: step, layer, layer_type, operand, statistic, value.

    Returns:
        An alarm a layer, operand and kind, with the tensor as `tensor_name` has it. NaN shows nothing.
    """
    found = []
    for symptom in SYMPTOMS:
        shown = [row for row in rows if symptom.shown_by(row[3], row[4], row[5])]
        for _, layer, _, operand, _, value in sorted(shown, key=lambda row: row[5], reverse=not symptom.below):
            side = "below" if symptom.below else "above"
            message = f"{symptom.meaning}: {value:.4g} ({side} {symptom.limit:g})"
            found.append(Alarm(symptom.kind, tensor_name(layer, operand), PHASE_OF_OPERAND[operand], value, message))
    return found


def warnings_of(record: RunRecord) -> list[tuple[int, Alarm]]:
    """(step, alarm) of every warning in the record, in order of steps; events of another shape are passed over."""
    found = []
    for event in _events(record, "warning", "what", "message"):
        value = event.get("value")
        if not isinstance(value, int | float) or abs(value) >= 2.0**1023:  # a file may hold any integer
            value = math.nan
        alarm = Alarm(event["what"], event["tensor"], event["phase"], float(value), event["message"])
        found.append((event["step"], alarm))
    return sorted(found, key=lambda each: each[0])


def coverage_of(record: RunRecord) -> CoverageEvent | None:
    """What the record says of how much of its model is quantized; None where it says nothing that can be read."""
    for event in record.run["events"]:
        if isinstance(event, dict) and event.get("kind") == "coverage":
            with contextlib.suppress(ValidationError):
                return CoverageEvent.model_validate(event)
    return None


def happened(record: RunRecord) -> list[Any]:
    """The events of a run, but for what `coverage_of` tells."""
    told = coverage_of(record) is not None
    return [
        event
        for event in record.run["events"]
        if not (told and isinstance(event, dict) and event.get("kind") == "coverage")
    ]


def _events(record: RunRecord, kind: str, *texts: str) -> Iterator[dict[str, Any]]:
    """Those of a kind that have a step, a tensor, a phase and the `texts`."""
    for event in record.run["events"]:
        if isinstance(event, dict) and event.get("kind") == kind and event.get("phase") in PHASES:
            known = all(isinstance(event.get(key), str) for key in ("tensor", *texts))
            if known and isinstance(event.get("step"), int):
                yield event


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
        factor, tensor, first, last = grown
        cause = f"its norm grew most, {factor:.3g} times from step {first} to step {last}"
        failure = replace(failure, tensor=tensor, phase="optimizer", cause=cause)
    return failure


def _broken_weight(record: RunRecord, failure: Failure) -> tuple[int, Alarm] | None:
    """The warning that the named weight is not finite; it stays so, also through batches that do not read its rows."""
    found = [
        (step, alarm)
        for step, alarm in warnings_of(record)
        if (alarm.what, alarm.tensor) == ("nonfinite", failure.tensor) and alarm.phase != "backward"
    ]
    return next((each for each in reversed(found) if each[0] <= failure.step), None)


def _named(failure: Failure, step: int, alarm: Alarm) -> Failure:
    return replace(failure, step=step, tensor=alarm.tensor, phase=alarm.phase, cause=f"{alarm.what}: {alarm.message}")


def _breaks(record: RunRecord) -> list[tuple[int, Alarm]]:
    """Warnings and bad steps that can end a run, in order; of one step the weights before the gradients they spoil."""
    found = [(step, alarm) for step, alarm in warnings_of(record) if alarm.what in _BREAKS]
    for event in _events(record, "nonfinite"):
        place = (event["tensor"], event["phase"])
        found.append((event["step"], Alarm("nonfinite", *place, math.nan, "NaN or infinity, seen here first")))
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
    limit = record.config.diverged
    return bool(after <= (limit if math.isnan(before) else 1.1 * min(before, limit)))


def _first_beyond(record: RunRecord) -> int | None:
    """The first step of the last stretch of losses that ends the run beyond the limit; None where the end is not."""
    history = record.history
    if "loss" not in history:
        return None
    history = history[history["loss"].notna() | (history.index == history.index[-1])]
    beginning = float(history["loss"].iloc[0])
    for limit in (record.config.diverged, 1.05 * max(record.config.uniform_loss, beginning)):
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
        if (
            len(recent) == patience
            and recent.min() > record.config.diverged
            and last["step"] > record.config.warmup_steps
        ):
            found.append("divergence")
    return (*found, *_symptom_kinds(record))


def advice_on_warnings(record: RunRecord) -> tuple[str, ...]:
    """What to try where a run ended well and left warnings, or where its gradients were clipped to nothing."""
    return tuple(remedies(record.config, record.history, _shown_by(record)))


def _shown_by(record: RunRecord) -> list[tuple[str, str | None]]:
    """What warnings and the last look show: the kind, and the operand where it is one of a product's."""
    alarms = [*(alarm for _, alarm in warnings_of(record)), *last_symptoms(record)]
    found = []
    for alarm in alarms:
        operand = alarm.tensor.rpartition(".")[2]
        own = operand in OPERANDS and alarm.phase == PHASE_OF_OPERAND[operand]
        found.append((alarm.what, operand if own else None))
    return list(dict.fromkeys(found))


def last_symptoms(record: RunRecord) -> list[Alarm]:
    """What the statistics of the last look at the layers show."""
    layers = record.layers
    return symptoms(list(layers[layers["step"] == layers["step"].max()].itertuples(index=False, name=None)))


def _symptom_kinds(record: RunRecord) -> tuple[str, ...]:
    history = record.history
    kinds = [alarm.what for alarm in last_symptoms(record)]
    if "grad_norm" in history and len(history) and float(history["grad_norm"].iloc[-1]) < 1e-8:
        kinds.append("gradient_vanishing")
    return tuple(kind for kind in FAILURE_KINDS if kind in kinds)


def _grown(record: RunRecord) -> tuple[float, str, int, int] | None:
    """The weight whose recorded norm grew most from its first to its last look: factor, name, both steps."""
    layers = record.layers
    norms = layers[(layers["operand"] == "weight") & (layers["statistic"] == "norm_l2")]
    grown = [
        (float(last["value"] / first["value"]), f"{layer}.weight", int(first["step"]), int(last["step"]))
        for layer, rows in norms.groupby("layer", observed=True, sort=False)
        for first, last in [(rows.iloc[0], rows.iloc[-1])]
        if last["value"] > first["value"] > 0
    ]
    return max(grown, default=None)


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
        place = {"step": int(last["step"].iloc[0]), "layer": str(layer), "operand": str(operand)}
        found.append((order, place | figures))
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
        operand = (failure.tensor or "").rpartition(".")[2]
        follows = operand in OPERANDS and record.config.scaling.rule(operand).kind not in ("static", "none", "delayed")
        scaled = (what, failure.phase) == ("nonfinite", "forward") and follows and record.config.states("scaling")
        lines.append(FAULTS.get((what, "scaled" if scaled else failure.phase), ""))
    if "divergence" in failure.kinds and failure.phase != "forward":
        lines.append(FAULTS["jump", "optimizer"])
    if "nan_loss" in failure.kinds and in_operand and rounded and record.config.stability.shift_to is None:
        lines.append("set stability.shift_to to a wider format, to go on from the last good weights")
    found = [pair for pair in _shown_by(record) if pair[0] in failure.kinds]
    lost = [(kind, None) for kind in failure.kinds if kind not in {each for each, _ in found}]
    lines += remedies(record.config, record.history, [*found, *lost])
    if record.status != "failed" and "unknown" in failure.kinds and record.config.foreign is None:
        if record.config.checkpoint.every > 0:
            lines.append("run the same command with --resume to go on from the last checkpoint")
        else:
            lines.append("set checkpoint.every to be able to go on (--resume) from where a run was stopped")
    return tuple(dict.fromkeys(line for line in lines if line))
