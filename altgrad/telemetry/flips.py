"""How many weights an optimizer step really moved on their grid."""

from __future__ import annotations

from torch import nn

from altgrad.formats import FP32
from altgrad.nn import QuantizedLayer, quantized_layers
from altgrad.telemetry.operands import Row


class WeightCodes:
    """The weights of a model before an optimizer step; `rows` compares them with the weights after it.

    stall_ratio = 1 - flips / updates, both over the same elements: updates are the weights whose step was nonzero,
    flips those of them whose value on the grid changed. A layer whose weight is not quantized has neither, and so far
    neither has one whose weight lives on the grid: there the proposed change is known to the optimizer alone.
    """

    def __init__(self, model: nn.Module) -> None:
        self._before = {
            name: (
                layer,
                layer.weight.detach().clone(),
                None if _unmeasured(layer) else layer.weight_as_read(),
            )
            for name, layer in quantized_layers(model).items()
        }

    def rows(self, step: int) -> list[Row]:
        """Rows (operand "update") of the step's norm_l2, updates, flips and stall_ratio; after the optimizer's step."""
        rows: list[Row] = []
        for name, (layer, weight, grid) in self._before.items():
            change = layer.weight.detach() - weight
            found = {"norm_l2": float(change.norm())}
            if grid is not None:
                moved = layer.weight.detach() != weight
                updates = int(moved.sum())
                flips = int((moved & (layer.weight_as_read() != grid)).sum())
                found |= {"updates": float(updates), "flips": float(flips)}
                if updates:
                    found["stall_ratio"] = 1 - flips / updates
            rows += [(step, name, layer.layer_type, "update", key, value) for key, value in found.items()]
        return rows


def _unmeasured(layer: QuantizedLayer) -> bool:
    return layer.policy.operand("weight").format is FP32 or layer.grid_scale is not None
