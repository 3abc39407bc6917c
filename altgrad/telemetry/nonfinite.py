"""Where a NaN or an infinity came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from altgrad.nn import Reading, observed
from altgrad.ranks import nonfinite_in


def first_nonfinite(model: nn.Module, losses: Sequence[Callable[[], Tensor]]) -> tuple[str, str] | None:
    """Where NaN or infinity is seen first: (tensor, phase), or None where computing again shows none.

    A parameter that already holds one was broken by the optimizer, so far as one can see afterwards. Else each of
    `losses` (scalars, of a step's batches) is computed again with every operand observed, then its gradients; an
    operand is named ``<layer>.<operand>``. Where no operand shows it, the answer is ("loss", "forward"), or the
    gradient that the backward pass computes first (the last in the order of definition) of those that are not finite.

    Parameters' gradients are overwritten.
    """
    for name, parameter in model.named_parameters():
        if nonfinite_in(parameter):
            return name, "optimizer"
    found = [_in_passes(model, loss) for loss in losses]  # all of them: other processes may find it in another
    return next(filter(None, found), None)


def _in_passes(model: nn.Module, loss: Callable[[], Tensor]) -> tuple[str, str] | None:
    first: list[tuple[str, str]] = []

    def observe(reading: Reading) -> None:
        """Remember the first operand, in order of computation, that holds a NaN or an infinity as it is read."""
        if not first and not bool(torch.isfinite(reading.rounded).all()):
            phase = "backward" if reading.operand == "grad_output" else "forward"
            first.append((f"{reading.layer}.{reading.operand}", phase))

    model.zero_grad(set_to_none=True)
    with observed(model, observe):
        value = loss()
        if not first and not bool(torch.isfinite(value)):
            first.append(("loss", "forward"))
        value.backward()  # type: ignore[no-untyped-call]
    if first:
        return first[0]
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and nonfinite_in(parameter.grad):
            return f"{name}.grad", "backward"
    return None
