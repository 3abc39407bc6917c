"""ManifoldAdamW: AdamW that knows the grid its weights are rounded to.

With S the spacing of the grid at a weight w (one ulp, the tensor's scale and the subnormal range included) and
c = w / S its code coordinate, dL/dc = S g. Adam in code space is therefore

    dw = -lr * S * u                                             precondition "update"

with u Adam's direction: a step is a number of ulps, and `lr` is measured in ulps. The classical "stiffness
preconditioning" multiplies the *gradient* instead, before the moments, and steps in real space:

    g <- S g,  S = 2^(floor(log2|w|) - M);   dw = -lr * u        precondition "gradient"

which is half of the chain rule, and which Adam's normalisation nearly cancels: with S constant it only turns eps into
eps / S. Close relatives are Madam (Bernstein et al. 2020, arXiv 2006.14560) and LNS-Madam (arXiv 2106.13914).

Weight decay is decoupled (Loshchilov & Hutter 2019, arXiv 1711.05101) and part of the step that is scaled: "update"
makes w <- w - lr * S * (u + weight_decay * w), so where S is constant it is AdamW with the learning rate lr * S;
"gradient" decays as AdamW does. Steps in ulps are equivariant to power-of-two rescaling when weight_decay is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from altgrad.formats import FloatFormat
from altgrad.rounding import power_of_two_below, ulp
from altgrad.scaling import amax_scale

PRECONDITIONS = (None, "gradient", "update")


class ManifoldAdamW(Optimizer):
    """AdamW preconditioned by the spacing of a number format.

    Args:
        params: parameters, or groups of them; a group may override every setting, and one with `precondition=None`
            is plain AdamW (norms, positions: what is not quantized).
        fmt: the format that the weights are rounded to: the format, never a bare mantissa count.
        lr: "update": ulps a step; "gradient" and None: real units, as in AdamW.
        betas, eps, weight_decay: as in AdamW.
        precondition: "update", "gradient" or None.
        floor: |w| counts as at least floor * rms(w of its tensor) where S is taken, so that tiny weights can move.
        max_stiffness: upper limit of S.
        scaled: the weights are quantized with a per-tensor amax scale; False is scale 1 ("update" only).
        power_of_two: that scale is a power of two.

    Under "gradient" the spacing at w = 0 is the format's `quantum` (2^(floor(log2 0) - M) does not exist).

    Raises:
        ValueError: an unknown precondition or a setting out of its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        fmt: FloatFormat,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        precondition: str | None = "update",
        floor: float | None = None,
        max_stiffness: float | None = None,
        scaled: bool = True,
        power_of_two: bool = True,
    ) -> None:
        if lr < 0 or eps < 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError("lr, eps and weight_decay must not be negative, and betas must lie in [0, 1)")
        defaults = {
            "fmt": fmt,
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "precondition": precondition,
            "floor": floor,
            "max_stiffness": max_stiffness,
            "scaled": scaled,
            "power_of_two": power_of_two,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `Optimizer.add_param_group`, with the precondition checked."""
        precondition = param_group.get("precondition", self.defaults["precondition"])
        if precondition not in PRECONDITIONS:
            raise ValueError(f"precondition must be 'gradient', 'update' or None, not {precondition!r}")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every group; parameters without a gradient are left alone."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [parameter for parameter in group["params"] if parameter.grad is not None]
            if params:
                self._step_group(group, params)
        return loss

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """The order of operations is that of torch.optim.AdamW(foreach=True), so that None gives the same bits."""
        group["step"] = group.get("step", 0) + 1
        lr, (beta1, beta2), eps, decay = group["lr"], group["betas"], group["eps"], group["weight_decay"]
        grads = [parameter.grad for parameter in params if parameter.grad is not None]
        for parameter in params:
            if not self.state[parameter]:
                self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
                self.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
        means = [self.state[parameter]["exp_avg"] for parameter in params]
        squares = [self.state[parameter]["exp_avg_sq"] for parameter in params]
        spacings = [stiffness(parameter, group) for parameter in params] if group["precondition"] else []
        if group["precondition"] == "gradient":
            grads = list(torch._foreach_mul(grads, spacings))
        if group["precondition"] != "update":
            torch._foreach_mul_(params, 1 - lr * decay)
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        mean_correction = 1 - beta1 ** group["step"]
        square_correction = (1 - beta2 ** group["step"]) ** 0.5
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_div_(denominators, square_correction)
        torch._foreach_add_(denominators, eps)
        if group["precondition"] != "update":
            torch._foreach_addcdiv_(params, means, denominators, (lr / mean_correction) * -1)
            return
        directions = torch._foreach_div(means, denominators)
        torch._foreach_mul_(directions, 1 / mean_correction)
        torch._foreach_add_(directions, params, alpha=decay)
        torch._foreach_addcmul_(params, directions, spacings, -lr)


def stiffness(w: Tensor, group: dict[str, Any]) -> Tensor:
    """The spacing S of the grid at every weight, float32 with the shape of `w`, as the group's precondition has it.

    "update": the format's ulp at w under the tensor's scale; "gradient": 2^(floor(log2|w|) - M) of the bare format.
    """
    fmt: FloatFormat = group["fmt"]
    magnitude = w.detach().float().abs()
    if group["floor"] is not None:
        magnitude = magnitude.clamp_(min=group["floor"] * float(magnitude.square().mean().sqrt()))
    if group["precondition"] == "update":
        scale = amax_scale(w, fmt, power_of_two=group["power_of_two"]) if group["scaled"] else None
        spacing = ulp(magnitude, fmt, scale)
    else:
        spacing = power_of_two_below(magnitude).mul_(2.0**-fmt.mantissa_bits)
        spacing = torch.where(magnitude == 0, fmt.quantum, spacing)
    return spacing if group["max_stiffness"] is None else spacing.clamp_(max=group["max_stiffness"])
