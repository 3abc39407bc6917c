"""CodeOptimizer: steps of whole codes, the `code` rule.

Adam's direction u is measured in codes and rounded to a whole number stochastically, so that its mean is right:

    k = stochastic_round(-lr * (u + weight_decay * w / S)),  clipped to [-rungs, rungs]

The weight then moves k places along the format's finite values in their order, through the subnormals and zero to the
other sign; -0 and +0 are one place. The weights live on the grid (`altgrad.optim.base`) and no special value is ever
reached. Where the scale is fixed at 1, a weight stops at the largest value; else the scale rises first.

A zero gradient moves nothing, element by element, although the momentum may not be zero and decay would act: what has
no gradient (the row of a token that did not occur) has given no reason to leave its place.

Weight decay is decoupled: w / S is the weight in codes (up to 2^(M+1) of them), so its mean effect on w is
-lr * weight_decay * w, and it takes part in the rounding and in the clipping.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from altgrad.config import check_combination
from altgrad.formats import FP32, FloatFormat, get_format
from altgrad.optim.base import (
    ADAMW_RATE,
    Batch,
    GridOptimizer,
    adamw_step,
    check_adam,
    corrections,
    denominators,
    draws_at,
    largest_magnitudes,
    update_moments,
)
from altgrad.rounding import quantize, ulp

_INTEGERS = FloatFormat.split(0, 23, bias=-23)
"""Whole numbers as a format, so that the kernel's stochastic rounding does the rounding of steps."""


class CodeOptimizer(GridOptimizer):
    """Adam's direction in whole codes, rounded stochastically; the weights live on the grid.

    Args:
        params: parameters, or groups of them; a group may override every setting, and one with `storage="master"` is
            plain AdamW (norms, positions: what is not quantized), bit by bit torch's, with `lr` in real units.
        fmt: the format of the codes, or its name.
        lr: codes a step, a number or a tensor of one; by default 0.1, or 2**M / 64 where that is less, and 1e-3 for
            groups of plain AdamW.
        betas, eps, weight_decay: as in AdamW.
        rungs: the most codes that a step moves a weight by.
        scaled: the weights have a per-tensor power-of-two scale; False is scale 1.
        storage: "grid"; "master" for groups of plain AdamW.
        moments: "fp32" or "fp8", as of `ManifoldAdamW`.
        seed: of the draws.

    Raises:
        ValueError: a setting out of its range, a format that the grid storage cannot hold, a complex parameter.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        fmt: FloatFormat | str,
        lr: float | Tensor | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        rungs: int = 1,
        scaled: bool = True,
        storage: str = "grid",
        moments: str = "fp32",
        seed: int = 0,
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        defaults |= {
            "rungs": rungs,
            "scaled": scaled,
            "storage": storage,
            "moments": moments,
            "rounding": "stochastic",
            "seed": seed,
        }
        self._check({**defaults}, defaults)
        super().__init__(params, fmt, defaults)

    def _default_rate(self, group: dict[str, Any]) -> float:
        codes = min(0.1, 2.0 ** (get_format(group["fmt"]).mantissa_bits - 6))
        return codes if group["storage"] == "grid" else ADAMW_RATE

    def _check(self, group: dict[str, Any], given: dict[str, Any]) -> None:
        check_adam(group)
        check_combination("adamw" if group["storage"] == "master" else "code", group["storage"], group["rounding"])
        rungs = group["rungs"]
        if isinstance(rungs, bool) or not isinstance(rungs, int) or not 1 <= rungs <= 64:
            raise ValueError(f"rungs must be a whole number from 1 to 64, not {rungs!r}")

    def _step_batch(self, group: dict[str, Any], batch: Batch) -> None:
        if group["storage"] == "master":
            adamw_step(group, batch, batch.grads, [group["lr"]] * len(batch.params))
            return
        fmt, lr, rungs = get_format(group["fmt"]), group["lr"], group["rungs"]
        scales = self._scales(batch.owners)
        update_moments(batch, batch.grads, group["betas"])
        moves = torch._foreach_div(batch.means, denominators(group, batch))
        torch._foreach_mul_(moves, -lr / corrections(group, batch.step)[0])
        for i, (parameter, move) in enumerate(zip(batch.params, moves, strict=True)):
            if group["weight_decay"]:
                move.addcdiv_(parameter, ulp(parameter, fmt, scales[i]), value=-lr * group["weight_decay"])
            if group["eps"]:  # twice as fast; without eps, 0 / 0 would stay NaN
                move.mul_(batch.grads[i].sign().abs_())
            else:
                move.masked_fill_(batch.grads[i] == 0, 0.0)
            if self.observer is not None:
                self.observer(batch.owners[i], move * ulp(parameter, fmt, scales[i]))
            draws = draws_at(group["seed"], batch.indices[i], batch.step, batch.owners[i])
            quantize(move, _INTEGERS, rounding="stochastic", **draws, out=move).clamp_(-rungs, rungs)
            parameter.copy_(moved(parameter, move, fmt, scales[i], beyond=group["scaled"]))
        found = largest_magnitudes(batch.params, batch.owners)
        for i, (parameter, largest) in enumerate(zip(batch.params, found, strict=True)):
            scale = self._moved_scale(group, batch.owners[i], scales[i], largest)
            if scale != scales[i] or largest > fmt.max * scale:
                quantize(parameter, fmt, scale=scale, out=parameter)


def moved(w: Tensor, codes: Tensor, fmt: FloatFormat, scale: float = 1.0, *, beyond: bool = False) -> Tensor:
    """Values of the grid `scale * fmt`, each moved by a whole number of codes along the ordered finite values.

    Args:
        w: float32 values of the grid.
        codes: whole numbers in float32, with the shape of `w`; NaN makes NaN, and so does a NaN in `w`.
        fmt: a signed format of at most 16 bits.
        scale: a power of two.
        beyond: go on above the largest value as if the grid continued (for a scale that rises); else stop there.
    """
    top = (1 << 31) - 1 if beyond else int(places(torch.tensor(fmt.max), fmt))
    if beyond and _linear_up_to(fmt) < math.inf:
        top = int(places(torch.tensor(FP32.max), fmt))
    place = (places(w, fmt, scale) + codes.int()).clamp_(-top, top)
    found = values_at(place, fmt, scale)
    damage = w + codes
    return found if math.isfinite(float(damage.sum())) else found.masked_fill_(damage.isnan(), math.nan)


def places(w: Tensor, fmt: FloatFormat, scale: float = 1.0) -> Tensor:
    """The place of values of the grid `scale * fmt` among its values in order, int32; zero is at 0.

    It is the magnitude's code: up to the smallest normal value it counts quanta; what is above counts in the upper
    bits of the float32 number. Without branches, which would be taken at random.
    """
    grid = w / scale
    limit = _linear_up_to(fmt)
    magnitude = grid.abs()
    found = (magnitude.clamp(max=limit) / fmt.quantum).int()
    if limit < math.inf:
        upper = magnitude.clamp_(min=limit).view(torch.int32)
        found.add_(upper.bitwise_right_shift_(23 - fmt.mantissa_bits)).sub_(_offset(fmt) + (1 << fmt.mantissa_bits))
    sign = grid.view(torch.int32) >> 31  # 0 or -1
    return found.bitwise_xor_(sign).sub_(sign)


def values_at(place: Tensor, fmt: FloatFormat, scale: float = 1.0) -> Tensor:
    """The inverse of `places`: float32."""
    magnitude, normal = place.abs(), 1 << fmt.mantissa_bits
    if _linear_up_to(fmt) < math.inf:
        upper = (magnitude.clamp(min=normal).add_(_offset(fmt)) << (23 - fmt.mantissa_bits)).view(torch.float32)
        found = magnitude.clamp_(max=normal).sub_(normal).mul(fmt.quantum).add_(upper)
    else:
        found = magnitude * fmt.quantum
    found.view(torch.int32).bitwise_or_(place & -(1 << 31))
    return found.mul_(scale)


def _linear_up_to(fmt: FloatFormat) -> float:
    """Below this the grid is `quantum` times whole numbers."""
    return math.inf if fmt.min_normal is None else fmt.min_normal


def _offset(fmt: FloatFormat) -> int:
    """What float32's exponent and the format's mantissa bits, as one number, are above the format's code."""
    return (FP32.bias - fmt.bias) << fmt.mantissa_bits
