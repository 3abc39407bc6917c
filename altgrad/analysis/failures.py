"""Which runs ended badly, which formats lose, and in which operand and phase the recorded statistics show it."""

from __future__ import annotations

import math
from functools import cached_property

import pandas as pd

from altgrad.analysis.comparison import Comparison, FormatComparator, format_order
from altgrad.analysis.loader import ExperimentDataLoader

PHASE_OF_OPERAND = {"weight": "forward", "activation": "forward", "grad_output": "backward"}
RANGE_THRESHOLD = 0.001
"""Overflow counts as a symptom from this fraction of an operand's nonzero elements."""
UNDERFLOW_THRESHOLD = 0.05
"""Underflow counts as a symptom from this fraction of an operand's nonzero elements flushed to zero."""
HEALTH_STATISTICS = ("overflow", "underflow", "sqnr_db")


class FailureAnalyzer:
    """Explains runs that ended badly from their failure records, and formats that lose from their telemetry."""

    def __init__(self, loader: ExperimentDataLoader) -> None:
        self._loader = loader

    @cached_property
    def failures(self) -> pd.DataFrame:
        """One row a run that did not finish: who, its status and kinds, first bad step, tensor, phase, message.

        `kinds` are the recorded failure kinds; for a run that was killed or stopped from outside it is its status. A
        run that is still being written is listed as ``running`` and is no failure.
        """
        rows = []
        for run in self._loader.runs.itertuples():
            if run.status == "finished":
                continue
            failure = run.failure if isinstance(run.failure, dict) else {}
            kinds = failure.get("kinds") or ([run.status] if run.status != "failed" else ["unknown"])
            rows.append(
                {
                    "run_id": run.run_id,
                    "arm": run.arm,
                    "format": run.format,
                    "rule": run.rule,
                    "seed": run.seed,
                    "status": run.status,
                    "kinds": ", ".join(str(kind) for kind in kinds),
                    "step": failure.get("step", run.last_step),
                    "tensor": failure.get("tensor"),
                    "phase": failure.get("phase"),
                    "message": failure.get("message") or self._loader.records[run.run_id].run["message"] or "",
                }
            )
        columns = ["run_id", "arm", "format", "rule", "seed", "status", "kinds", "step", "tensor", "phase", "message"]
        return pd.DataFrame(rows, columns=columns)

    @cached_property
    def health(self) -> pd.DataFrame:
        """Mean of each statistic by arm and operand: arm, format, operand, phase, statistic, value, n (runs).

        First the mean over layers and recorded steps of each run, then over runs. Overflow and underflow are fractions
        of an operand's nonzero elements, SQNR is in dB.
        """
        rows = []
        for run in self._loader.runs.itertuples():
            layers = self._loader.layers(run.run_id)
            chosen = layers[layers["statistic"].isin(HEALTH_STATISTICS) & layers["operand"].isin(PHASE_OF_OPERAND)]
            if run.role != "report" or chosen.empty:
                continue
            means = chosen.groupby(["operand", "statistic"], observed=True)["value"].mean().reset_index()
            rows.append(means.assign(arm=run.arm, format=run.format))
        if not rows:
            return pd.DataFrame(columns=["arm", "format", "operand", "phase", "statistic", "value", "n"])
        keys = ["arm", "format", "operand", "statistic"]
        frame = pd.concat(rows).groupby(keys)["value"].agg(["mean", "count"]).reset_index()
        frame = frame.rename(columns={"mean": "value", "count": "n"})
        return frame.assign(phase=frame["operand"].map(PHASE_OF_OPERAND))

    def modes(self, comparison: Comparison) -> pd.DataFrame:
        """One row a format of `comparison`: its failure mode, the phase where it shows, and the evidence.

        Columns: format, arm, mode, phase, operand, evidence, gap, low, high, n_pairs, n_runs, n_finished, and the
        recorded overflow, underflow and sqnr_db of the operand that is named. The rule, in this order:

        1. runs that failed: their recorded kinds and phases;
        2. a gap whose interval does not lie above zero: no failure seen;
        3. overflow of at least `RANGE_THRESHOLD` in some operand: overflow;
        4. underflow of at least `UNDERFLOW_THRESHOLD`: underflow, in the operand where it is largest;
        5. else rounding error, in the operand with the lowest SQNR.
        """
        rows = [self._mode(row._asdict()) for row in comparison.table.itertuples(index=False)]
        frame = pd.DataFrame(rows)
        return frame.sort_values("format", key=lambda column: column.map(format_order), ignore_index=True)

    def _mode(self, row: dict[str, object]) -> dict[str, object]:
        kept = {key: row[key] for key in ("format", "arm", "gap", "low", "high", "n_pairs", "n_runs", "n_finished")}
        failed = self.failures[(self.failures["arm"] == row["arm"]) & (self.failures["status"] == "failed")]
        health = self.health[self.health["arm"] == row["arm"]].pivot_table(
            index="operand", columns="statistic", values="value"
        )
        health = health.reindex(columns=list(HEALTH_STATISTICS))

        def found(mode: str, phase: str, operand: str | None, evidence: str) -> dict[str, object]:
            figures = {
                name: float(health.at[operand, name]) if operand in health.index else math.nan
                for name in HEALTH_STATISTICS
            }
            return kept | {"mode": mode, "phase": phase, "operand": operand, "evidence": evidence} | figures

        if len(failed):
            kinds = ", ".join(sorted({kind for kinds in failed["kinds"] for kind in kinds.split(", ")}))
            phases = ", ".join(sorted({str(phase) for phase in failed["phase"].dropna()})) or "not recorded"
            return found(kinds, phases, None, f"{len(failed)} of {row['n_runs']} runs failed")
        if not isinstance(row["low"], float) or math.isnan(row["low"]):
            return found("not decided", "", None, "fewer than two pairs")
        worst_sqnr = health["sqnr_db"].dropna()
        if row["low"] <= 0:
            return found("none seen", "", None, "gap not above zero")
        if worst_sqnr.empty:
            return found("not decided", "", None, "no telemetry recorded")
        for statistic, threshold in (("overflow", RANGE_THRESHOLD), ("underflow", UNDERFLOW_THRESHOLD)):
            values = health[statistic].dropna()
            if len(values) and values.max() >= threshold:
                operand = str(values.idxmax())
                return found(
                    statistic, PHASE_OF_OPERAND[operand], operand, f"{values.max():.1%} of its nonzero elements"
                )
        operand = str(worst_sqnr.idxmin())
        return found("rounding error", PHASE_OF_OPERAND[operand], operand, f"SQNR {worst_sqnr.min():.1f} dB")


def headline(comparator: FormatComparator) -> Comparison | None:
    """The comparison that reports lead with: the one with the most pairs."""
    return comparator.comparisons[0] if comparator.comparisons else None
