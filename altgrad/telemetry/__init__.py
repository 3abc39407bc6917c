"""What a run measures: a `Look` (counts, geometry, rank, gradients) at some steps, and a `Watch` over all of them."""

from altgrad.nn import Reading, observed
from altgrad.telemetry.look import Look, Row
from altgrad.telemetry.loops import LayerTelemetry, lightning_callback, trainer_callback
from altgrad.telemetry.nonfinite import first_nonfinite
from altgrad.telemetry.rank import RankWatch
from altgrad.telemetry.watch import Watch

__all__ = [
    "LayerTelemetry",
    "Look",
    "RankWatch",
    "Reading",
    "Row",
    "Watch",
    "first_nonfinite",
    "lightning_callback",
    "observed",
    "trainer_callback",
]
