"""Statistics of the operands of quantized layers, taken only while somebody observes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from altgrad.formats import FloatFormat
from altgrad.nn import Observer, quantized_layers
from altgrad.scaling import amax

Row = tuple[int, str, str, str, str, float]
"""step, layer, layer_type, operand, statistic, value: a row of the per-layer table."""


@contextmanager
def observed(model: nn.Module, observer: Observer) -> Iterator[None]:
    """Let `observer` see every operand of every quantized layer while the block runs."""
    layers = quantized_layers(model).values()
    for layer in layers:
        layer.observer = observer
    try:
        yield
    finally:
        for layer in layers:
            layer.observer = None


def operand_statistics(real: Tensor, rounded: Tensor, fmt: FloatFormat, scale: Tensor | None) -> dict[str, float]:
    """What rounding did to one tensor.

    Returns:
        amax: largest |x|. scale: the dequantization scale, the largest where there are several. norm_l2: Euclidean
        norm of x. nonfinite: number of NaN and infinite elements. overflow, underflow: fractions of the nonzero
        elements that lie beyond the largest value, and that became zero. sqnr_db: 10 log10(sum x^2 / sum (rounded -
        x)^2); left out where nothing was lost.
    """
    real, rounded = real.detach().float(), rounded.detach().float()
    factor: Tensor | float = 1.0 if scale is None else scale.detach()
    nonzero = real != 0
    count = max(int(nonzero.sum()), 1)
    signal = float(real.square().sum(dtype=torch.float64))
    noise = float((rounded - real).square().sum(dtype=torch.float64))
    found = {
        "amax": float(amax(real)),
        "scale": float(factor.max()) if isinstance(factor, Tensor) else factor,
        "norm_l2": math.sqrt(signal),
        "nonfinite": float((~torch.isfinite(real)).sum()),
        "overflow": float((real.abs() > fmt.max * factor).sum()) / count,
        "underflow": float((nonzero & (rounded == 0)).sum()) / count,
    }
    if noise > 0 and signal > 0:
        found["sqnr_db"] = 10 * math.log10(signal / noise)
    return found


class OperandRecorder:
    """An observer that turns every operand it sees into rows of the per-layer table.

    An operand read more than once in a step keeps its first reading.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self.rows: list[Row] = []
        self._seen: set[tuple[str, str]] = set()

    def __call__(
        self,
        layer: str,
        layer_type: str,
        operand: str,
        real: Tensor,
        rounded: Tensor,
        fmt: FloatFormat,
        scale: Tensor | None,
    ) -> None:
        """Record the operand, as `altgrad.nn.Observer` describes."""
        if (layer, operand) in self._seen:
            return
        self._seen.add((layer, operand))
        for statistic, value in operand_statistics(real, rounded, fmt, scale).items():
            self.rows.append((self.step, layer, layer_type, operand, statistic, value))


@dataclass
class FirstNonFinite:
    """An observer that remembers the first operand, in order of computation, that holds a NaN or an infinity."""

    tensor: str | None = None
    phase: str | None = None

    def __call__(
        self,
        layer: str,
        layer_type: str,
        operand: str,
        real: Tensor,
        rounded: Tensor,
        fmt: FloatFormat,
        scale: Tensor | None,
    ) -> None:
        """Look at the operand, as `altgrad.nn.Observer` describes."""
        if self.tensor is None and not bool(torch.isfinite(rounded).all()):
            self.tensor, self.phase = f"{layer}.{operand}", "backward" if operand == "grad_output" else "forward"


def first_nonfinite(model: nn.Module, loss: Callable[[], Tensor]) -> tuple[str, str]:
    """Where NaN or infinity is seen first: (tensor, phase).

    A parameter that already holds one was broken by the optimizer. Else `loss` (a scalar, from the same batch) is
    computed again with every operand observed, then its gradients; an operand is named ``<layer>.<operand>``. Where no
    operand shows it, the answer is ("loss", "forward") or the first parameter whose gradient does.

    Parameters' gradients are overwritten.
    """
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return name, "optimizer"
    first = FirstNonFinite()
    model.zero_grad(set_to_none=True)
    with observed(model, first):
        value = loss()
        if first.tensor is None and not bool(torch.isfinite(value)):
            return "loss", "forward"
        value.backward()  # type: ignore[no-untyped-call]
    if first.tensor is None:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                return f"{name}.grad", "backward"
        return "gradient norm", "backward"
    assert first.phase is not None
    return first.tensor, first.phase
