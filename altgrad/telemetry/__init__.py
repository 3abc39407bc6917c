"""What a run measures about its layers: operands as the matrix products read them, and flips of the weights' codes."""

from altgrad.telemetry.flips import WeightCodes
from altgrad.telemetry.operands import (
    FirstNonFinite,
    OperandRecorder,
    Row,
    first_nonfinite,
    observed,
    operand_statistics,
)

__all__ = [
    "FirstNonFinite",
    "OperandRecorder",
    "Row",
    "WeightCodes",
    "first_nonfinite",
    "observed",
    "operand_statistics",
]
