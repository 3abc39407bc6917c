"""What a run measures: a `Look` (counts, geometry, rank, gradients) at some steps, and a `Watch` over all of them."""

from altgrad.nn import Reading, observed
from altgrad.telemetry.look import Look, Row
from altgrad.telemetry.nonfinite import first_nonfinite
from altgrad.telemetry.rank import RankWatch
from altgrad.telemetry.watch import Watch

__all__ = ["Look", "RankWatch", "Reading", "Row", "Watch", "first_nonfinite", "observed"]
