"""What to try after what a run shows: lines that name keys of its config, and none that the config follows already."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from altgrad.config import OPERANDS, ExperimentConfig, ScaleRule

Shown = tuple[str, str | None]
"""A kind of symptom, and the operand that shows it where it is one of a product's."""


def remedies(config: ExperimentConfig, history: pd.DataFrame, shown: Iterable[Shown]) -> list[str]:
    """A line for each thing to try, those at the root first.

    Gradients that are clipped to nothing, and forward operands that became zero, still and starve what comes after
    them: then nothing is said of that.

    Args:
        history: of the run; `grad_norm` is read where it is there.
        shown: kinds of `altgrad.runs.diagnosis.SYMPTOMS`.
    """
    pairs = list(dict.fromkeys(shown))
    lines = [line for line in [_clipped(config, history)] if line]
    lines += [_overflow(config, operand) for kind, operand in pairs if kind == "overflow"]
    flushed = [operand for kind, operand in pairs if kind == "underflow"]
    lines += [_underflow(config, operand) for operand in flushed]
    if not lines or not (_clipped(config, history) or {"weight", "activation"} & {*flushed}):
        kinds = {kind for kind, _ in pairs}
        lines += [_stall(config)] if "stall" in kinds else []
        lines += [_vanishing(config)] if "gradient_vanishing" in kinds else []
    return list(dict.fromkeys(line for line in lines if line))


def _clipped(config: ExperimentConfig, history: pd.DataFrame) -> str:
    limit, eps = config.clip_norm, config.optimizer.eps
    if limit is None or limit > eps or config.foreign is not None or "grad_norm" not in history:
        return ""
    norms = history["grad_norm"].dropna()
    if not len(norms) or not (norms > limit).all():
        return ""
    return f"raise clip_norm: at {limit:g} it scales the gradient of each step below optimizer.eps, {eps:g}"


def _rule(config: ExperimentConfig, operand: str | None) -> ScaleRule | None:
    return config.scaling.rule(operand) if operand in OPERANDS and config.states("scaling") else None


def _overflow(config: ExperimentConfig, operand: str | None) -> str:
    rule, wider = _rule(config, operand), f"a format with more exponent bits for {_key(operand)}"
    if rule is None:
        return f"use a scale that follows the tensor (scaling.kind: amax) or {wider}"
    if rule.kind == "mx":
        return f"use scales that let nothing saturate (scaling.{operand}.kind: mx_rceil) or {wider}"
    if rule.kind == "delayed":
        return f"raise scaling.{operand}.margin, or use a scale of the tensor itself (kind: amax) or {wider}"
    if rule.kind in ("static", "none"):
        return f"use a scale that follows the tensor (scaling.{operand}.kind: amax) or {wider}"
    return f"use {wider}"


def _underflow(config: ExperimentConfig, operand: str | None) -> str:
    rule, wider = _rule(config, operand), f"a format with more exponent bits for {_key(operand)}"
    if rule is None:
        return f"use {wider}, or scale it by row or block"
    if rule.kind == "static":
        fixed = f"lower scaling.{operand}.value, {rule.value or math.nan:g}, at which what is small becomes zero"
        return f"{fixed}, or let the scale follow the tensor (scaling.{operand}.kind: amax)"
    if rule.kind == "none":
        return f"give it a scale that follows the tensor (scaling.{operand}.kind: amax)"
    if rule.several:
        return f"use {wider}"
    if rule.kind == "delayed" and rule.margin:
        return f"lower scaling.{operand}.margin, {rule.margin}, or use {wider}"
    by = "kind: amax, and its granularity" if rule.kind == "delayed" else "granularity"
    return f"use {wider}, or scale it by row or block (scaling.{operand}.{by})"


def _key(operand: str | None) -> str:
    return f"quantize.{operand}" if operand in OPERANDS else "this operand"


def _stall(config: ExperimentConfig) -> str:
    rule = config.optimizer
    ways = ["raise the learning rate"]
    ways += ["keep float32 master weights (optimizer.storage: master)"] if rule.storage == "grid" else []
    ways += ["round stochastically (optimizer.rounding)"] if rule.rounding != "stochastic" else []
    return ", or ".join(ways)


def _vanishing(config: ExperimentConfig) -> str:
    ways = []
    if "grad_output" in config.quantize.operands:
        ways.append("look at the underflow of quantize.grad_output in the layers after this one")
    if config.optimizer.weight_decay:
        ways.append("lower optimizer.weight_decay")
    return ", and ".join(ways)
