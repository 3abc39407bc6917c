"""ManifoldAdamW: AdamW that knows the grid its weights are rounded to.

With S the spacing of the grid at a weight w (one ulp, the tensor's scale and the subnormal range included) and
c = w / S its code coordinate, dL/dc = S g. Adam in code space is therefore

    dw = -lr * S * u                                             precondition "update"

with u Adam's direction: a step is a number of ulps, and `lr` is measured in ulps. The classical "stiffness
preconditioning" multiplies the *gradient* instead, before the moments, and steps in real space:

    g <- S g,  S = 2^(floor(log2|w|) - M);   dw = -lr * u        precondition "gradient"

which is half of the chain rule, and of which Adam's normalisation cancels what does not change over time: with S
constant it only turns eps into eps / S (benchmarks/step_slopes.py measures what stays). Close relatives are Madam
(Bernstein et al. 2020, arXiv 2006.14560) and LNS-Madam (arXiv 2106.13914).

Weight decay is decoupled (Loshchilov & Hutter 2019, arXiv 1711.05101) and part of the step that is scaled: "update"
makes w <- w - lr * S * (u + weight_decay * w), so where S is constant it is AdamW with the learning rate lr * S;
"gradient" decays as AdamW does. Steps in ulps are equivariant to power-of-two rescaling when weight_decay is 0.

Error feedback (ECO, arXiv 2601.22101). Write a step as w' = w - r m with the momentum m <- beta m + (1 - beta) g and
the element's own rate r = lr S / ((1 - beta^t) (sqrt(v) + eps)), without S where there is no precondition "update".
Without rounding, z = w - r beta / (1 - beta) m moves by exactly -r g a step. Rounding takes e = w' - round(w') from w
and so from z; adding a to m adds -r beta / (1 - beta) a to z. The two cancel for

    a = -(1 - beta) / (beta r) e = (1 / r) (1 - 1 / beta) e

so that z never sees the rounding: of every error, the fraction (1 - beta) beta^(k-1) is in the weight proposed k steps
later, and all of it in the end. Exact for constant r; in w the distance to the unrounded path stays below
ulp / (2 (1 - beta)). What a scale of 1 clips is not an error that is carried: it would pile up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from altgrad.config import check_combination
from altgrad.formats import FloatFormat, check_draw_version, get_format
from altgrad.optim.base import (
    ADAMW_RATE,
    Batch,
    GridOptimizer,
    adamw_step,
    check_adam,
    corrections,
    draw_seed,
    draws_at,
    largest_magnitudes,
    update_moments,
    without_infinities,
)
from altgrad.ranks import mean_of, norms_of, over_shards
from altgrad.rounding import power_of_two_below, quantize, ulp
from altgrad.scaling import amax, power_of_two_scale, scale_of_amax

PRECONDITIONS = (None, "gradient", "update")
STIFFNESSES = ("ulp", "shuffled", "constant")


class ManifoldAdamW(GridOptimizer):
    """AdamW preconditioned by the spacing of a number format, with weights stored wide or on the format's grid.

    Args:
        params: parameters, or groups of them; a group may override every setting, and one with `precondition=None`
            and `storage="master"` is plain AdamW (norms, positions: what is not quantized), bit by bit torch's.
        fmt: the format that the weights are rounded to: the format or its name, never a bare mantissa count.
        lr: a number, or a tensor of one. "update": ulps a step, by default 2**M / 64, which is between 1/128 and 1/64
            of the weight; "gradient" and None: real units, as in AdamW, by default 1e-3.
        betas, eps, weight_decay: as in AdamW.
        precondition: "update", "gradient" or None.
        floor: |w| counts as at least floor * rms(w of its tensor) where S is taken, so that tiny weights can move.
        max_stiffness: upper limit of S.
        scaled: the weights have a per-tensor scale; False is scale 1.
        power_of_two: the amax scale of master weights is a power of two; on the grid it always is.
        stiffness: "ulp"; the ablations are "shuffled" (S permuted within its tensor by a permutation that stays, and
            that is kept besides the state) and "constant" (the mean of S over the tensor).
        relative: every tensor's rate is `lr` times the rms of its weights before the step; a tensor of zeros stays.
            Belongs to precondition None.
        storage: "master" or "grid"; see `altgrad.optim.base`.
        rounding: onto the grid: "nearest_even", "stochastic" or "error_feedback". With master weights it is the
            forward pass that rounds, and the setting has no effect here.
        moments: "fp32", which is the parameter's dtype, or "fp8": codes and block scales (`altgrad.optim.moments`).
        seed: of stochastic rounding and of the permutation.
        draw_version: of stochastic rounding's draws (`formats.stochastic_draw`); 2 is quicker.

    Under "gradient" the spacing at w = 0 is the format's `quantum` (2^(floor(log2 0) - M) does not exist).

    Raises:
        ValueError: a setting out of its range, or a combination that does not exist (`config.COMBINATIONS`); a
            complex parameter.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        fmt: FloatFormat | str,
        lr: float | Tensor | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        precondition: str | None = "update",
        floor: float | None = None,
        max_stiffness: float | None = None,
        scaled: bool = True,
        power_of_two: bool = True,
        stiffness: str = "ulp",
        relative: bool = False,
        storage: str = "master",
        rounding: str = "nearest_even",
        moments: str = "fp32",
        seed: int = 0,
        draw_version: int = 1,
    ) -> None:
        self._permutations: dict[tuple[int, int], Tensor] = {}
        defaults: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        defaults |= {"precondition": precondition, "floor": floor, "max_stiffness": max_stiffness, "scaled": scaled}
        defaults |= {"power_of_two": power_of_two, "stiffness": stiffness, "relative": relative}
        defaults |= {
            "moments": moments,
            "storage": storage,
            "rounding": rounding,
            "seed": seed,
            "draw_version": draw_version,
        }
        self._check({**defaults}, defaults)
        super().__init__(params, fmt, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_permutations", {})

    def _default_rate(self, group: dict[str, Any]) -> float:
        ulps = 2.0 ** (get_format(group["fmt"]).mantissa_bits - 6)
        return ulps if group["precondition"] == "update" else ADAMW_RATE

    def _check(self, group: dict[str, Any], given: dict[str, Any]) -> None:
        # What a group inherits though it does not apply to it is put aside; what it was given must fit.
        if group["storage"] == "master" and "rounding" not in given:
            group["rounding"] = "nearest_even"
        if group["precondition"] is None and "stiffness" not in given:
            group["stiffness"] = "ulp"
        if group["precondition"] is not None and "relative" not in given:
            group["relative"] = False
        if group["rounding"] == "error_feedback" and "moments" not in given:
            group["moments"] = "fp32"
        check_adam(group)
        check_draw_version(group["draw_version"])
        if group["precondition"] not in PRECONDITIONS:
            raise ValueError(f"precondition must be 'gradient', 'update' or None, not {group['precondition']!r}")
        if group["stiffness"] not in STIFFNESSES:
            raise ValueError(f"stiffness must be one of {', '.join(STIFFNESSES)}, not {group['stiffness']!r}")
        check_combination(
            "manifold" if group["precondition"] is not None else "adamw", group["storage"], group["rounding"]
        )
        if group["stiffness"] != "ulp" and group["precondition"] is None:
            raise ValueError(f"stiffness {group['stiffness']!r} is an ablation of a precondition, and there is none")
        if group["relative"] and group["precondition"] is not None:
            raise ValueError("relative rates belong to precondition None")
        if group["floor"] is not None and not group["floor"] >= 0:
            raise ValueError(f"floor must not be negative, not {group['floor']!r}")
        if group["max_stiffness"] is not None and not group["max_stiffness"] > 0:
            raise ValueError(f"max_stiffness must be positive, not {group['max_stiffness']!r}")
        if group["storage"] == "grid" and not group["power_of_two"]:
            raise ValueError("storage 'grid' has power-of-two scales; leave power_of_two as it is")
        if group["rounding"] == "error_feedback" and group["betas"][0] == 0:
            raise ValueError("error_feedback carries the error in the momentum: betas[0] must not be 0")

    def _step_batch(self, group: dict[str, Any], batch: Batch) -> None:
        if group["precondition"] is not None and batch.params[0].dtype in (torch.float16, torch.bfloat16):
            self._step_wide(group, batch)
            return
        on_grid = group["storage"] == "grid"
        before = [p.detach().clone() for p in batch.params] if on_grid and self.observer is not None else []
        scales = self._scales(batch.owners) if on_grid else None
        mean_correction, square_correction = corrections(group, batch.step)
        if group["precondition"] == "update":
            # S = unit * field; constants are gathered in one factor, and D stands for sqrt(v) + eps sqrt(1 - beta2^t).
            fields, unit = self._spacings(group, batch, scales)
            update_moments(batch, batch.grads, group["betas"])
            roots = torch._foreach_sqrt(batch.squares)
            torch._foreach_add_(roots, group["eps"] * square_correction)
            if group["weight_decay"]:
                decay = -group["lr"] * group["weight_decay"] * unit
                torch._foreach_addcmul_(batch.params, fields, batch.params, decay)
            torch._foreach_div_(fields, roots)
            rates = [group["lr"] * unit * square_correction / mean_correction] * len(fields)
            torch._foreach_addcmul_(batch.params, fields, batch.means, -rates[0])
        else:
            rates = [group["lr"]] * len(batch.params)
            if group["relative"]:
                norms = self._norms(batch)
                sizes = [owner.numel() for owner in batch.owners]
                rates = [group["lr"] * norm / size**0.5 for norm, size in zip(norms, sizes, strict=True)]
            grads = batch.grads
            if group["precondition"] == "gradient":
                grads = list(torch._foreach_mul(grads, self._spacings(group, batch, scales)[0]))
            fields = adamw_step(group, batch, grads, rates)
            rates = [rate / mean_correction for rate in rates]
            if group["rounding"] == "error_feedback":
                torch._foreach_reciprocal_(fields)
        if scales is not None:
            for owner, parameter, old in zip(batch.owners, batch.params, before, strict=False):  # none: nobody observes
                assert self.observer is not None
                self.observer(owner, parameter - old)
            self._onto_grid(group, batch, scales, rates, fields)

    def _step_wide(self, group: dict[str, Any], batch: Batch) -> None:
        """A step of narrow parameters: computed in float32, then rounded to their dtype once."""
        params, grads = ([each.float() for each in narrow] for narrow in (batch.params, batch.grads))
        self._step_batch(group, batch._replace(params=params, grads=grads))
        torch._foreach_copy_(batch.params, params)

    def _norms(self, batch: Batch) -> list[float]:
        found: list[float] = norms_of(batch.owners or batch.params).tolist()
        return found

    def _onto_grid(
        self, group: dict[str, Any], batch: Batch, scales: list[float], rates: list[float], fields: list[Tensor]
    ) -> None:
        """Round the proposed weights; an element's own rate is its tensor's rate times its field."""
        fmt, beta1 = get_format(group["fmt"]), group["betas"][0]
        largest = largest_magnitudes(batch.params, batch.owners)
        for i, parameter in enumerate(batch.params):
            scale = self._moved_scale(group, batch.owners[i], scales[i], largest[i])
            proposed = without_infinities(parameter, largest[i])
            if group["rounding"] == "error_feedback":
                limit = fmt.max * scale
                error = proposed.clamp(-limit, limit) if largest[i] > limit else proposed.clone()
                quantize(error, fmt, scale=scale, out=parameter)
                if rates[i]:
                    batch.means[i].addcdiv_(error.sub_(parameter), fields[i], value=(1 - 1 / beta1) / rates[i])
                continue
            how: dict[str, Any] = {"rounding": group["rounding"], "draw_version": group.get("draw_version", 1)}
            if group["rounding"] == "stochastic":
                how |= draws_at(group["seed"], batch.indices[i], batch.step, batch.owners[i])
            quantize(proposed, fmt, scale=scale, out=parameter, **how)

    def _spacings(self, group: dict[str, Any], batch: Batch, scales: list[float] | None) -> tuple[list[Tensor], float]:
        """Tensors and a number whose products are S.

        The short way is taken where S is 2^(floor(log2|w|) - M) but for the limit at the bottom: no weight exceeds the
        largest value of its scale, and scales are powers of two.
        """
        fmt = get_format(group["fmt"])
        plain = group["floor"] is None and group["max_stiffness"] is None and group["stiffness"] == "ulp"
        scaled = group["scaled"] and group["power_of_two"] and fmt.exponent_bits > 0 and fmt.signed
        if group["precondition"] == "update" and plain and scaled and fmt.fits_float64:
            known = scales or [power_of_two_scale(x, fmt) for x in largest_magnitudes(batch.params, batch.owners)]
            lowest = fmt.quantum / fmt.eps
            bounds = [lowest * scale for scale in known]
            narrow = all(parameter.dtype == torch.float32 for parameter in batch.params)
            if narrow and all(2.0 ** (fmt.mantissa_bits - 126) <= bound < math.inf for bound in bounds):
                fields = [power_of_two_below(parameter) for parameter in batch.params]
                torch._foreach_clamp_min_(fields, bounds)
                return fields, fmt.eps
        found = []
        for i, parameter in enumerate(batch.params):
            owner = batch.owners[i] if batch.owners else None
            spacing = stiffness(parameter, group, None if scales is None else scales[i], owner)
            if group["stiffness"] == "shuffled":
                spacing = spacing.flatten()[self._permutation(group["seed"], batch.indices[i], parameter)]
                spacing = spacing.view(parameter.shape)
            found.append(spacing)
        return found, 1.0

    def _permutation(self, seed: int, index: int, parameter: Tensor) -> Tensor:
        """The permutation of a parameter's elements, of its seed and index alone."""
        if (seed, index) not in self._permutations:
            generator = torch.Generator().manual_seed(draw_seed(seed, index, -1) >> 1)
            order = torch.randperm(parameter.numel(), generator=generator)
            self._permutations[seed, index] = order.to(parameter.device, torch.int32)
        return self._permutations[seed, index]


def stiffness(w: Tensor, group: dict[str, Any], scale: float | None = None, owner: Tensor | None = None) -> Tensor:
    """The spacing S of the grid at every weight, as the group's precondition has it: shape of `w`, float32 or float64.

    "update": the format's ulp at w under the tensor's scale (`scale` on the grid, else that of its largest value);
    "gradient": 2^(floor(log2|w|) - M) of the bare format. With stiffness "constant" its mean, everywhere. `owner` is
    the DTensor that `w` is a shard of.
    """
    fmt = get_format(group["fmt"])
    w = w.detach() if w.dtype == torch.float64 else w.detach().float()
    known: Tensor | float | None = scale
    if group["precondition"] == "update" and group["scaled"] and scale is None:
        largest = amax(w.float()) if w.numel() else torch.zeros((), device=w.device)
        largest = largest if owner is None else over_shards(largest, owner, "max")
        known = scale_of_amax(largest, fmt, power_of_two=group["power_of_two"])
    magnitude = w.abs()
    if group["floor"] is not None:
        magnitude = magnitude.clamp_(min=group["floor"] * float(mean_of(magnitude.square(), owner).sqrt()))
    if group["precondition"] == "update":
        spacing = ulp(magnitude, fmt, known)
    else:
        spacing = power_of_two_below(magnitude).mul_(2.0**-fmt.mantissa_bits)
        spacing = torch.where(magnitude == 0, fmt.quantum, spacing)
    if group["max_stiffness"] is not None:
        spacing = spacing.clamp_(max=group["max_stiffness"])
    return spacing.fill_(mean_of(spacing.double(), owner)) if group["stiffness"] == "constant" else spacing
