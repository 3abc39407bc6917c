"""What the campaign says of every preregistered hypothesis (docs/method/preregistration.md)."""

from __future__ import annotations

from altgrad.analysis.failures import failure_verdicts
from altgrad.analysis.format_verdicts import format_verdicts
from altgrad.analysis.literature import literature_verdicts
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.preregistered import Verdict
from altgrad.analysis.step_rules import step_rule_verdicts


def verdicts(loader: ExperimentDataLoader) -> tuple[Verdict, ...]:
    """One verdict a hypothesis, in the order of their numbers."""
    makers = (format_verdicts, step_rule_verdicts, literature_verdicts, failure_verdicts)
    found = [verdict for make in makers for verdict in loader.once(make)]
    return tuple(sorted(found, key=lambda verdict: int(verdict.id.removeprefix("H"))))
