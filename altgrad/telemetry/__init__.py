"""What a run measures about its layers: counts, geometry, rank, gradients. `Look` takes all of it at one step."""

from altgrad.nn import Reading, observed
from altgrad.telemetry.look import Look, Row
from altgrad.telemetry.operands import FirstNonFinite, first_nonfinite

__all__ = ["FirstNonFinite", "Look", "Reading", "Row", "first_nonfinite", "observed"]
