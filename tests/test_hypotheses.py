"""Hypotheses as data: a row is all that a new one needs, and each row is what the preregistration says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from altgrad.analysis.contrasts import all_shown
from altgrad.analysis.hypotheses import HYPOTHESES, Hypothesis
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.studies import ARMS, STUDIES, studies_of

ROOT = Path(__file__).resolve().parents[1]


def test_a_new_hypothesis_is_a_row() -> None:
    families = [[("E0M7 head", "E0M7 mlp")]]
    row = Hypothesis("H99", "layers", "E0M7 costs more in the head than in the mlp.", families, all_shown(+1))
    verdict = row.verdict(ExperimentDataLoader([ROOT / "experiments" / "recorded"]))
    assert (verdict.answer, verdict.tests["n_pairs"].tolist()) == ("yes", [16])
    assert verdict.evidence.startswith("E0M7 in head − E0M7 in mlp: +0.1")
