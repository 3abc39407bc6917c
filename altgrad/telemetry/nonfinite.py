"""Where a NaN or an infinity came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from altgrad.nn import Reading, observed


@dataclass
class _FirstNonFinite:
    """An observer that remembers the first operand, in order of computation, that holds a NaN or an infinity."""

    tensor: str | None = None
    phase: str | None = None

    def __call__(self, reading: Reading) -> None:
        """Look at the operand as the product reads it."""
        if self.tensor is None and not bool(torch.isfinite(reading.rounded).all()):
            self.tensor = f"{reading.layer}.{reading.operand}"
            self.phase = "backward" if reading.operand == "grad_output" else "forward"


def first_nonfinite(model: nn.Module, losses: Sequence[Callable[[], Tensor]]) -> tuple[str, str] | None:
    """Where NaN or infinity is seen first: (tensor, phase), or None where computing again shows none.

    A parameter that already holds one was broken by the optimizer, so far as one can see afterwards. Else each of
    `losses` (scalars, of a step's batches) is computed again with every operand observed, then its gradients; an
    operand is named ``<layer>.<operand>``. Where no operand shows it, the answer is ("loss", "forward"), or the
    gradient that the backward pass computes first (the last in the order of definition) of those that are not finite.

    Parameters' gradients are overwritten.
    """
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return name, "optimizer"
    for loss in losses:
        found = _in_passes(model, loss)
        if found is not None:
            return found
    return None


def _in_passes(model: nn.Module, loss: Callable[[], Tensor]) -> tuple[str, str] | None:
    first = _FirstNonFinite()
    model.zero_grad(set_to_none=True)
    with observed(model, first):
        value = loss()
        if first.tensor is None and not bool(torch.isfinite(value)):
            return "loss", "forward"
        value.backward()  # type: ignore[no-untyped-call]
    if first.tensor is not None and first.phase is not None:
        return first.tensor, first.phase
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            return f"{name}.grad", "backward"
    return None
