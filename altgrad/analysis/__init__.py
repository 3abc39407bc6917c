"""Runs in, findings out, as DataFrames and as pages. Nothing here imports torch, wandb, mkdocs or scipy.stats.

>>> from altgrad.analysis import ExperimentDataLoader, FormatComparator
>>> comparator = FormatComparator(ExperimentDataLoader())
>>> [comparison.scope for comparison in comparator.comparisons]  # doctest: +SKIP
"""

from altgrad.analysis.comparison import Comparison, FormatComparator, SweetSpot, results_table
from altgrad.analysis.effects import outcomes
from altgrad.analysis.failures import FailureAnalyzer
from altgrad.analysis.hypotheses import verdicts
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.step_rules import StepRuleComparator

__all__ = [
    "Comparison",
    "ExperimentDataLoader",
    "FailureAnalyzer",
    "FormatComparator",
    "StepRuleComparator",
    "SweetSpot",
    "outcomes",
    "results_table",
    "verdicts",
]
