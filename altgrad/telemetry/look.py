"""A look: what is measured about every layer at one step, as rows of the per-layer table.

    look = Look(model, step)
    with look.operands():
        loss = model.loss(*batch)
        loss.backward()
    look.gradients()
    with look.update(optimizer):
        optimizer.step()
    look.rows

Nothing that is measured changes what is computed: losses and weights are those of a step without a look, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.config import TelemetryConfig, operand_of
from altgrad.formats import FP32, FloatFormat
from altgrad.nn import QuantizedLayer, QuantizedLinear, Reading, observed, quantized_layers, read_otherwise
from altgrad.optim import GridOptimizer
from altgrad.ranks import is_sharded, over_group, rows_of_all, whole
from altgrad.telemetry import counts, geometry
from altgrad.telemetry.gradients import gradient_statistics
from altgrad.telemetry.probe import Part, class_statistics, logit_statistics
from altgrad.telemetry.rank import rank_statistics
from altgrad.telemetry.shadow import shadow_gradients, shadow_statistics

Row = tuple[int, str, str, str, str, float]
"""step, layer, layer_type, operand, statistic, value: a row of the per-layer table."""


class Look:
    """One look at a model with quantized layers (`altgrad.nn.quantize_model`), in the order of a step.

    Args:
        model: whose layers are looked at.
        step: for the rows.
        telemetry: what is measured.
        number: how many looks were before this one; rank and codes are taken where it is a multiple of
            `telemetry.rank_every` and `telemetry.codes_every`: at the first look, which `RankWatch` holds later ones
            against, and then at every so many. Where one of these keys is 0, never.
        group: process group whose ranks each have as many rows of the batches; all of them look, and have the same
            rows, of the whole.

    In a step of several batches, which the loop tells apart by `clock_of(model).part`, activations and output gradients
    are those of all of them: counts are added, maxima taken, norms and fractions are of all the rows.

    `rows` grows with each of the three calls; one that is left out leaves its rows out. Row order has no meaning.
    """

    def __init__(
        self,
        model: nn.Module,
        step: int,
        telemetry: TelemetryConfig | None = None,
        *,
        number: int = 0,
        group: Any = None,
    ) -> None:
        self.rows: list[Row] = []
        self._model, self._step, self._group = model, step, group
        self._telemetry = telemetry or TelemetryConfig()
        self._layers = quantized_layers(model)
        self._gathered = {name for name, layer in self._layers.items() if is_sharded(layer.weight)}
        """Layers whose weight FSDP frees after the pass that has gathered it."""
        both = (self._telemetry.rank_every, self._telemetry.codes_every)
        self._ranks, self._codes = (every > 0 and number % every == 0 for every in both)
        self._seen: set[tuple[str, str, int]] = set()
        self._sums: dict[tuple[str, str], counts.OperandSums] = {}
        self._code_counts: dict[tuple[str, str], tuple[FloatFormat, Tensor]] = {}
        self._binade_counts: dict[tuple[str, str], Tensor] = {}
        self._read_by_head: dict[tuple[str, str, int], Reading] = {}
        self._logits: dict[str, list[Tensor]] = {}
        self._weights: dict[str, Reading] = {}
        self._spacings: dict[str, Tensor] = {}

    @contextmanager
    def operands(self) -> Iterator[None]:
        """Observe the forward and backward passes in the block; the first reading of each operand in each part counts.

        A weight is the same in all parts, and keeps its first reading: of fused experts, the reading of one of them.
        Statistics are taken at the end of the block.
        """
        if self._telemetry.operands:
            with observed(self._model, self._observe), self._logits_kept():
                yield
            self._reduce()
            sums = [each.numbers() for each in self._sums.values()]
            for place, numbers in zip(self._sums, torch.stack(sums).tolist() if sums else [], strict=True):
                self._add(*place, counts.operand_statistics(numbers))
            for place, (fmt, found) in self._code_counts.items():
                histogram = operand_of(place[1]) in self._telemetry.histograms
                self._add(*place, counts.code_statistics(found, fmt, histogram=histogram))
            for place, found in self._binade_counts.items():
                self._add(*place, counts.binade_statistics(found))
            self._look_at_heads()
        else:
            yield
        self._look_at_weights()

    def gradients(self, losses: Sequence[Callable[[], Tensor]] = ()) -> None:
        """Look at the gradients of the layers' weights: after the backward pass, before clipping.

        Args:
            losses: for each of the step's batches a function that computes the model's loss on it, for the shadow.
        """
        grads = {name: layer.weight.grad for name, layer in self._layers.items()}
        gradients = {name: whole(grad) for name, grad in grads.items() if grad is not None}
        shadows = shadow_gradients(self._model, losses, self._group) if self._telemetry.shadow else {}
        for name, gradient in gradients.items():
            if self._telemetry.gradients:
                self._add(name, "gradient", gradient_statistics(gradient))
            if self._telemetry.geometry and (spacing := self._spacing(name)) is not None:
                reads = self._layers[name].as_operand
                self._add(name, "gradient", geometry.stiffness_correlation(spacing, reads(gradient)))
            if name in shadows:
                self._add(name, "gradient", shadow_statistics(gradient, shadows[name]))

    @contextmanager
    def update(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Compare the weights before and after the optimizer's step, which is to be taken in the block."""
        if not (self._telemetry.updates or self._telemetry.geometry):
            yield
            return
        for name in self._layers:
            self._spacing(name)
        stored = {name: whole(layer.weight.detach()).clone() for name, layer in self._layers.items()}
        read = {name: self._on_grid(name, stored[name], now=False) for name in self._layers}
        proposals: dict[int, Tensor] = {}
        if isinstance(optimizer, GridOptimizer):
            optimizer.observer = lambda owner, change: proposals.update({id(owner): whole(change, owner)})
        try:
            yield
        finally:
            if isinstance(optimizer, GridOptimizer):
                optimizer.observer = None
        sums: dict[str, Tensor] = {}
        for name, layer in self._layers.items():
            weight, before = whole(layer.weight.detach()), read[name]
            change = weight - stored[name]
            proposed = proposals.get(id(layer.weight), change)
            after = self._on_grid(name, weight, now=True)
            flipped = None if after is None or before is None else after != before
            sums[name] = counts.update_sums(change, proposed, flipped)
            if self._telemetry.geometry and (spacing := self._spacing(name)) is not None:
                self._add(name, "update", geometry.step_statistics(layer.as_operand(proposed), spacing))
        if self._telemetry.updates and sums:
            for name, numbers in zip(sums, torch.stack(list(sums.values())).tolist(), strict=True):
                self._add(name, "update", counts.update_statistics(numbers, on_grid=read[name] is not None))

    @contextmanager
    def _logits_kept(self) -> Iterator[None]:
        """Keep what the heads return in the block, where logits are measured."""
        heads = [layer for layer in self._layers.values() if self._telemetry.logits and _is_head(layer)]

        def keep(head: QuantizedLayer, _: object, logits: Tensor) -> None:
            self._logits.setdefault(head.layer, []).append(logits.detach())

        handles = [head.register_forward_hook(keep) for head in heads]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _reduce(self) -> None:
        """Bring what was summed of this process's rows to that of all rows, in one reduction for each kind of sum.

        Weights are the same in all processes, and stay as they are.
        """
        places = [place for place in self._sums if self._group is not None and operand_of(place[1]) != "weight"]
        if not places:
            return
        sums = [self._sums[place] for place in places]
        codes = [each for key, (_, each) in self._code_counts.items() if key in places]
        binades = [each for key, each in self._binade_counts.items() if key in places]
        maxima = over_group(torch.stack([each.maxima for each in sums]), self._group)
        parts = [part for each in sums for part in (each.norms.square(), each.counts, ~each.dead)] + codes + binades
        flat = over_group(torch.cat([part.double() for part in parts]), self._group, "sum")
        found = iter(flat.split([len(part) for part in parts]))
        for place, largest in zip(places, maxima, strict=True):
            norms, numbers, alive = next(found), next(found), next(found)
            self._sums[place] = counts.OperandSums(largest, norms.sqrt(), numbers, alive == 0)
        for each in (*codes, *binades):
            each.copy_(next(found))

    def _look_at_heads(self) -> None:
        for name, logits in self._logits.items():
            self._add(name, "output", logit_statistics([rows_of_all(each, self._group) for each in logits]))
            mine = {place[1:]: reading for place, reading in self._read_by_head.items() if place[0] == name}
            gradients = {part: reading for (operand, part), reading in mine.items() if operand == "grad_output"}
            if gradients:
                read = {part: (mine["activation", part].real, g.real, g.rounded) for part, g in gradients.items()}
                of = [Part(*(rows_of_all(each, self._group) for each in three)) for three in read.values()]
                self._add(name, next(iter(gradients.values())).cast, class_statistics(of))

    def _add(self, layer: str, operand: str, statistics: dict[str, float]) -> None:
        kind = self._layers[layer].layer_type
        self.rows += [(self._step, layer, kind, operand, name, value) for name, value in statistics.items()]

    def _observe(self, reading: Reading) -> None:
        place = reading.layer, reading.cast
        part = 0 if reading.operand == "weight" else self._layers[reading.layer].clock.part
        if (*place, part) in self._seen:
            return
        self._seen.add((*place, part))
        if self._telemetry.logits and "grad_weight" in reading.products and _is_head(self._layers[reading.layer]):
            self._read_by_head[reading.layer, reading.operand, part] = reading
        sums = counts.operand_sums(reading)
        self._sums[place] = self._sums[place].with_part(sums) if place in self._sums else sums
        if reading.cast == "weight":
            if reading.layer in self._gathered:
                real = reading.real.clone()
                rounded = real if reading.rounded is reading.real else reading.rounded
                reading = reading._replace(real=real, rounded=rounded)
            self._weights[reading.layer] = reading
            return
        if self._codes and counts.has_codes(reading.format):
            found = counts.code_counts(reading.rounded, reading.format, reading.element_scale)
            found = self._code_counts[place][1] + found if place in self._code_counts else found
            self._code_counts[place] = reading.format, found
        if self._codes and reading.operand in self._telemetry.histograms:
            found = counts.binade_counts(reading.real)
            self._binade_counts[place] = self._binade_counts[place] + found if place in self._binade_counts else found

    def _look_at_weights(self) -> None:
        for name in read_otherwise(self._model) & self._layers.keys():
            del self._layers[name]
        for name in self._layers:
            reading = self._weight(name)
            fmt, found = reading.format, None
            if counts.has_codes(fmt) and (self._telemetry.geometry or self._codes):
                found = counts.code_counts(reading.rounded, fmt, reading.element_scale)
            histogram = "weight" in self._telemetry.histograms
            if self._codes and histogram:
                self._add(name, "weight", counts.binade_statistics(counts.binade_counts(reading.real)))
            if found is not None and self._codes:
                self._add(name, "weight", counts.code_statistics(found, fmt, histogram=histogram))
            if self._telemetry.geometry and (spacing := self._spacing(name)) is not None:
                self._add(name, "weight", geometry.position_statistics(reading, spacing, found))
        if self._ranks:
            matrices = {name: rounded for name in self._layers if (rounded := self._weight(name).rounded).ndim == 2}
            ranks = rank_statistics(matrices)
            for name, statistics in ranks.items():
                self._add(name, "weight", statistics)

    def _weight(self, name: str) -> Reading:
        """The layer's weight as the step's first batch read it, or as it would be read."""
        if name not in self._weights:
            self._weights[name] = self._layers[name].weight_reading()
        return self._weights[name]

    def _spacing(self, name: str) -> Tensor | None:
        """S at the layer's weight before the step; None where it is not quantized whole, or rotated. Taken once."""
        if name not in self._spacings:
            reading = self._weight(name)
            if reading.format is FP32 or self._layers[name].rotation("weight") is not None or self._in_parts(name):
                return None
            self._spacings[name] = geometry.spacing(reading)
        return self._spacings[name]

    def _in_parts(self, name: str) -> bool:
        """Whether products read the weight in another shape: expert by expert, each with its own scales, or a view."""
        layer = self._layers[name]
        operand = layer.as_operand(torch.empty(layer.weight.shape, device="meta"))
        return self._weight(name).real.shape != operand.shape

    def _on_grid(self, name: str, weight: Tensor, *, now: bool) -> Tensor | None:
        """The weight as read, where its own elements are quantized; the draws before and after a step are the same.

        Before the step, what the forward pass read serves where reading again gives the same.
        """
        layer = self._layers[name]
        spec = layer.policy.operand("weight")
        if spec.format is FP32 or layer.rotation("weight") is not None or self._in_parts(name):
            return None
        if layer.grid_scale is not None:
            return weight
        same = spec.rounding != "stochastic" and spec.scaling.kind != "delayed"
        return layer.as_parameter(self._weight(name).rounded) if same and not now else layer.weight_as_read()


def _is_head(layer: QuantizedLayer) -> bool:
    return layer.layer_type == "head" and isinstance(layer, QuantizedLinear)
