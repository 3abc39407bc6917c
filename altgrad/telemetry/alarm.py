"""What telemetry found wrong while a run goes on: a value, on its way to the record as an event of kind "warning"."""

from __future__ import annotations

from typing import NamedTuple


class Alarm(NamedTuple):
    """Something that a reader of the run should know.

    Attributes:
        what: a short name: "nonfinite", "jump", "zeroed", "rank_collapse", "overflow", "underflow", "stall",
            "gradient_vanishing".
        tensor: the parameter (``blocks.0.mlp.up.weight``), its gradient (``....weight.grad``) or the operand
            (``blocks.0.mlp.up.activation``) it was seen in.
        phase: forward, backward or optimizer.
        value: the figure that raised it, in the unit of the measure; may be NaN or infinite.
        message: one line for people, with the figure and what it is held against.
    """

    what: str
    tensor: str
    phase: str
    value: float
    message: str
