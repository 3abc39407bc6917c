"""Norms of every weight and gradient at every step, so that what breaks is named at the step it breaks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.ranks import local, nonfinite_in, norms_of, whole
from altgrad.runs import Alarm

JUMP = 8.0
"""A tensor whose norm becomes so many times as large, or as small, in one step has not been trained but broken."""

WINDOW = 50
"""How many steps' norms are kept, to say which matrix grew while a run diverged: warm-up and patience are within."""


class Watch:
    """Watches the parameters of a model from step to step.

    Attributes:
        broken: the parameters that are not finite, with the phase in which they broke.

    It begins with the weights that it is given. In each step `before` is called ahead of the forward pass, `gradients`
    after the backward pass and before clipping, `after` when the optimizer has moved the weights. Each returns what has
    just gone wrong:

    - "nonfinite": a parameter or a gradient that has NaN or infinite elements, and had none when last looked at;
    - "jump": a tensor whose norm is more than `JUMP` times as large or as small as when last looked at;
    - "zeroed": a tensor that has become zero.

    A weight that changed between two steps broke in the phase "forward", where it is read first, and one that a step
    of the optimizer changed in the phase "optimizer". Each is reported once per tensor and kind until it is normal
    again; of several gradients that break in one step the first that the backward pass computes (the last in the order
    of definition) is named, since it spoils those after it. Vectors that are zero at first (biases) and scalars are
    looked at for NaN and infinity only: theirs are no sizes to jump from.

    `JUMP` is 8: in healthy short runs (every shipped config, the 8-bit splits under every storage, no warm-up, 120
    steps) no norm changed by more than a factor 1.2 in a step; under integer code steps in E7M0, where a step of one
    code doubles a weight, by 1.9.

    Cost: the norms of all weights twice a step, about 0.1 ms for the demo's 113,000 parameters.
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        self._sized = {
            name: p for name, p in parameters.items() if p.ndim > 1 or (p.numel() > 1 and bool(whole(p).any()))
        }
        self._others = {name: p for name, p in parameters.items() if name not in self._sized}
        self._norms = self._measured()
        """When last looked at: of each tensor that has a size, then of the others together."""
        self._active: dict[str, list[list[str]]] = {"forward": [], "backward": [], "optimizer": []}
        """By phase, [what, tensor] of what was wrong when last looked at."""
        self._window: list[tuple[int, list[float]]] = []
        self._bad_gradients: list[str] = []
        self.broken: dict[str, str] = {}

    @property
    def state(self) -> dict[str, Any]:
        """What a resumed run needs to report the same; JSON but for NaN and infinity."""
        window = [list(entry) for entry in self._window]
        return {"norms": self._norms, "active": self._active, "window": window, "broken": self.broken}

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        self._norms, self._active, self.broken = state["norms"], dict(state["active"]), dict(state["broken"])
        self._window = [(step, norms) for step, norms in state["window"]]

    def before(self) -> list[Alarm]:
        """Look at the weights before the forward pass: what changed since `after` was not the optimizer."""
        found = self._look("forward", "between two steps, not by the optimizer")
        if not self._window:
            self._window = [(0, self._norms)]
        return found

    def after(self, step: int) -> list[Alarm]:
        """Look at the weights after the optimizer's step number `step`."""
        found = self._look("optimizer", "in a step of the optimizer")
        self._window = [*self._window, (step, self._norms)][-WINDOW:]
        return found

    def gradients(self, gradients: Mapping[str, Tensor], norms: Sequence[Tensor], *, finite_loss: bool) -> list[Alarm]:
        """Look at the gradients, by parameter, whose norms are known.

        Args:
            gradients: before clipping, in the order of definition.
            norms: scalars, one a gradient.
            finite_loss: where the loss itself is not finite, gradients cannot be: nothing is reported.
        """
        figures = torch.stack(list(norms)).tolist() if norms else []
        suspects = [name for name, norm in zip(gradients, figures, strict=True) if not math.isfinite(norm)]
        # a float32 norm overflows long before its elements do
        self._bad_gradients = [name for name in suspects if nonfinite_in(gradients[name])]
        if not finite_loss:
            return []
        tensors = [f"{name}.grad" for name in reversed(self._bad_gradients)]
        fresh = self._fresh("backward", [("nonfinite", tensor) for tensor in tensors])
        if not fresh:
            return []
        (_, tensor), more = fresh[0], len(fresh) - 1
        count = nonfinite_in(gradients[tensor.removesuffix(".grad")])
        rest = f"; so have {more} more gradients" if more else ""
        return [Alarm("nonfinite", tensor, "backward", count, f"NaN or infinite elements: {count}{rest}")]

    @property
    def bad_gradient(self) -> str | None:
        """``<parameter>.grad`` of the gradient that broke in this step, the first computed; None without one."""
        return f"{self._bad_gradients[-1]}.grad" if self._bad_gradients else None

    @property
    def grown(self) -> tuple[str, float, int] | None:
        """The matrix whose norm grew by the largest factor within the last steps: (name, factor, since which step).

        None where fewer than two steps are known or no norm grew.
        """
        if len(self._window) < 2:
            return None
        (since, first), (_, last) = self._window[0], self._window[-1]
        factors = {
            name: new / old
            for name, old, new in zip(self._sized, first, last, strict=False)
            if old > 0 and new / old > 1 and self._sized[name].ndim > 1
        }
        name = max(factors, key=factors.__getitem__, default=None)
        return None if name is None else (name, factors[name], since)

    def _look(self, phase: str, how: str) -> list[Alarm]:
        before, now = self._norms, self._measured()
        self._norms = now
        found = []
        for name, old, new in zip(self._sized, before, now, strict=False):
            if new == 0 < old:
                found.append(Alarm("zeroed", name, phase, 0.0, f"the norm was {old:.4g} and became zero {how}"))
            elif old > 0 and math.isfinite(old) and math.isfinite(new) and not 1 / JUMP <= new / old <= JUMP:
                message = f"the norm went from {old:.4g} to {new:.4g} {how}: {new / old:.3g} times (limit {JUMP:g})"
                found.append(Alarm("jump", name, phase, new / old, message))
        fresh = self._fresh(phase, [(alarm.what, alarm.tensor) for alarm in found])
        found = [alarm for alarm in found if (alarm.what, alarm.tensor) in fresh]
        return self._newly_broken(now, phase, how) + sorted(found, key=_severity, reverse=True)

    def _newly_broken(self, norms: list[float], phase: str, how: str) -> list[Alarm]:
        """Alarms for parameters that have become NaN or infinite; the others leave `broken`."""
        damaged = [name for name, norm in zip(self._sized, norms, strict=False) if not math.isfinite(norm)]
        suspects = {name: self._sized[name] for name in damaged}
        if self._others and not math.isfinite(norms[-1]):
            suspects |= self._others
        counts = {name: count for name, tensor in suspects.items() if (count := nonfinite_in(tensor))}
        fresh = {name: count for name, count in counts.items() if name not in self.broken}
        self.broken = {name: self.broken.get(name, phase) for name in counts}
        return [
            Alarm("nonfinite", name, phase, count, f"NaN or infinite elements appeared {how}: {count}")
            for name, count in fresh.items()
        ]

    def _fresh(self, phase: str, wrong: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those of `wrong` that were not when the phase was last looked at; from now on they are known."""
        known, wrong = self._active[phase], list(wrong)
        self._active[phase] = [list(each) for each in wrong]
        return [each for each in wrong if list(each) not in known]

    @torch.no_grad()
    def _measured(self) -> list[float]:
        tensors = [local(tensor) for tensor in self._sized.values()]
        if self._others:
            tensors.append(torch.cat([local(vector).reshape(-1) for vector in self._others.values()]))
        owner = next(iter({**self._sized, **self._others}.values()), None)
        norms = norms_of(tensors, owner).tolist() if tensors else []
        # squares leave float32's range long before the elements do
        return [
            norm if math.isfinite(norm) and norm > 0 else float(norms_of([tensor.double()], owner))
            for norm, tensor in zip(norms, tensors, strict=True)
        ]


def _severity(alarm: Alarm) -> float:
    """How far a norm moved, up or down."""
    return abs(math.log(alarm.value)) if alarm.value > 0 else math.inf
