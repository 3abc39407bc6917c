"""Hypotheses as data: a row is all that a new one needs, and each row is what the preregistration says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from altgrad.analysis.contrasts import all_shown
from altgrad.analysis.hypotheses import HYPOTHESES, Hypothesis
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.reports.document import statements
from altgrad.reports.verdicts import evidence
from altgrad.studies import ARMS, STUDIES, studies_of

ROOT = Path(__file__).resolve().parents[1]


def test_a_new_hypothesis_is_a_row() -> None:
    families = [[("E0M7 head", "E0M7 mlp")]]
    row = Hypothesis("H99", "layers", families, all_shown(+1))
    verdict = row.verdict(ExperimentDataLoader([ROOT / "experiments" / "recorded"]))
    assert (verdict.answer, verdict.tests["n_pairs"].tolist()) == ("yes", [16])
    assert evidence(verdict.judgement).startswith("E0M7 in head − E0M7 in mlp: +0.1")


def test_the_hypotheses_are_those_of_the_preregistration_word_by_word() -> None:
    text = (ROOT / "docs" / "method" / "preregistration.md").read_text()
    rows = re.findall(r"^\| (H\d+) \| ([a-z-]+) \| (.*?) \|", text, re.M)
    assert [(each.id, each.study, statements()[each.id]) for each in HYPOTHESES] == rows


@pytest.mark.parametrize("hypothesis", [each for each in HYPOTHESES if isinstance(each, Hypothesis)])
def test_the_arms_of_a_hypothesis_are_reported_by_a_study(hypothesis: Hypothesis) -> None:
    stated = [arm for family in hypothesis.families if not callable(family) for pair in family for arm in pair]
    for arm in (*hypothesis.needs, *stated):
        assert studies_of(ARMS[arm].name), arm
    assert hypothesis.study in STUDIES
