"""What telemetry found wrong while a run goes on: a value, on its way to the record as an event of kind "warning"."""

from altgrad.runs.schema import Alarm

__all__ = ["Alarm"]
