"""Labels are for readers: with every one of them reworded, each number and each answer stays what it is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from altgrad import studies
from altgrad.analysis import (
    ExperimentDataLoader,
    FailureAnalyzer,
    FormatComparator,
    StepRuleComparator,
    comparison,
    costs,
    failures,
    verdicts,
)
from altgrad.analysis import loader as labels
from altgrad.config import OPERAND_NAMES

RECORDED = Path(__file__).resolve().parents[1] / "experiments" / "recorded"
KEYS = {"arm", "against", "adamw_arm", "baseline", "best", "equivalent", "worse", "undecided", "answer", "setting"}
"""Columns of text that are no labels: arms, formats, answers."""


def figures(found: pd.DataFrame) -> pd.DataFrame:
    """What a table says without its labels: numbers, truth values, arms and answers, in their order."""
    kept = [name for name in found if found[name].dtype.kind in "fiub" or name in KEYS]
    return found[kept].reset_index(drop=True)


def everything(loader: ExperimentDataLoader) -> Iterator[tuple[str, pd.DataFrame]]:
    """Every table that reports take figures from, and the answers."""
    for verdict in verdicts(loader):
        yield verdict.id, verdict.tests.assign(answer=verdict.answer, limited=verdict.limited)
    comparator = loader.memo(FormatComparator)
    first = comparator.headline
    assert first is not None
    yield "sweet spots", comparator.sweet_spots
    yield "results", comparator.results
    yield "scales", comparison.scale_policies(loader, first)
    yield "seeds", first.seeds_for_smallest_gap
    yield "rates", comparison.at_own_rates(loader, first)
    yield "tuned rates", comparison.own_rates(loader, first)
    yield "sums", costs.additivity(loader)
    for each in comparator.comparisons:
        yield f"gaps of {each.baseline}", each.table
    rules = loader.memo(StepRuleComparator)
    for name in ("arms", "sweeps", "pairings", "roundings", "controls", "stalls"):
        yield name, getattr(rules, name)
    yield "step rules", rules.table.sort_values("arm")  # shown in the order of their labels
    failing = loader.memo(FailureAnalyzer)
    yield "failing arms", failing.gaps
    yield "remedies", failing.remedies
    yield "operands", failing.operands(first)


def other_words(text: str) -> str:
    """Another label for each label, in another order."""
    return f"label {hashlib.sha256(text.encode()).hexdigest()[:12]}" if text else ""


def reworded(label: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda given: other_words(label(given))


def test_renaming_every_label_changes_no_number_and_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = ExperimentDataLoader([RECORDED])
    before = {name: figures(found) for name, found in everything(loader)}
    words = set(loader.runs["scope"]) | set(loader.runs["rule"])

    for table in (studies.RULES, studies.PLACES):
        for key, choice in table.items():
            monkeypatch.setitem(table, key, choice._replace(label=other_words(choice.label)))
    for arm in studies.ARMS.values():
        monkeypatch.setitem(arm.__dict__, "label", other_words(arm.label))
    for table in (OPERAND_NAMES, comparison.VERDICTS):
        for key, word in table.items():
            monkeypatch.setitem(table, key, other_words(word))
    for name in ("scope_label", "scale_label", "rule_label"):
        label = reworded(getattr(labels, name))
        for module in (labels, failures):
            monkeypatch.setattr(module, name, label, raising=module is labels)

    fresh = ExperimentDataLoader([RECORDED])
    fresh.__dict__["run_set"] = replace(loader.run_set)  # its records, of which nothing was found yet
    assert not words & (set(fresh.runs["scope"]) | set(fresh.runs["rule"]))
    after = {name: figures(found) for name, found in everything(fresh)}
    assert list(after) == list(before)
    for name, found in before.items():
        pd.testing.assert_frame_equal(after[name], found, check_exact=True, obj=name)
