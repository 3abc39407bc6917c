"""The hypotheses, written before the runs that the repository ships were recorded (the commit history shows it).

They were written with earlier pilot figures of this project at hand, so they are expectations, not blind predictions.
Each prediction names a check that `altgrad.analysis.reports` makes from the recorded runs: held, did not hold, or
not decided.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hypothesis:
    """A statement and the predictions that follow from it, each under the key of its check."""

    written: str
    statement: str
    predictions: dict[str, str]


E7M0 = Hypothesis(
    written="2026-11-23",
    statement=(
        "E7M0 has no mantissa bits: neighbouring values differ by a factor of 2, so rounding moves a value by up to a "
        "third, while the range from 2^-62 to 2^64 leaves nothing to overflow or underflow. It fails through rounding "
        "error in every operand, not through range."
    ),
    predictions={
        "no_failed_run": "No run ends in NaN or diverges: the range protects it.",
        "no_range_error": "Overflow and underflow stay below 0.1% of the elements in every operand.",
        "lowest_sqnr": "The SQNR of its weights is the lowest of all recorded 8-bit splits.",
        "largest_gap": "Its loss gap to FP32 is the largest of all recorded 8-bit splits.",
        "no_warning": "No counter of overflow or underflow warns (added with the preregistration, 2026-11-24).",
    },
)

E0M7 = Hypothesis(
    written="2026-11-24",
    statement=(
        "Gradients need range where weights do not, and E0M7, a fixed-point grid, has none: its loss comes from its "
        "gradients (H3 and H17 of the preregistration)."
    ),
    predictions={
        "gradients": "E0M7 costs more with gradients alone than with weights alone, by more than .01 nats (H3).",
        "remedies": "Rounding its gradients stochastically lowers the gap, and so does giving them E5M2 (H17).",
    },
)

STIFFNESS = Hypothesis(
    written="2026-11-23",
    statement=(
        "Stiffness preconditioning: the spacing S of the grid at a weight (one ulp) is the natural unit of its "
        "steps. An "
        "optimizer that knows S should move more weights across a rounding boundary, stall less, and reach a lower "
        "loss "
        "than AdamW at an equally tuned learning rate."
    ),
    predictions={
        "update_loss": "ManifoldAdamW with S on the update ends below AdamW in validation loss.",
        "gradient_loss": "ManifoldAdamW with S on the gradient ends below AdamW in validation loss.",
        "update_stall": "With S on the update the stall ratio is below AdamW's.",
    },
)
