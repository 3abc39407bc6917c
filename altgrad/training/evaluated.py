"""What a recorded model loses under any format or recipe, without training: the loss gap, and the probe's ranking."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.config import OPERANDS, ExperimentConfig, UsageError, one_line, parse_config
from altgrad.formats import FP32
from altgrad.nn import Operand, Policy, clock_of, policies_of, quantize_model, quantized_layers
from altgrad.recipes import recipe_keys
from altgrad.telemetry.probe import head_of, probe
from altgrad.telemetry.shadow import unquantized
from altgrad.training.probed import Checkpointed

OWN = "as trained"
"""The name of the policy that the run itself has."""


class Evaluated(NamedTuple):
    """What one policy does to a model.

    Attributes:
        loss: on the held-out text, in nats per character.
        gap: how much higher it is than without any rounding.
        error: standard error of the gap, from the differences of single batches; NaN where there is one batch.
        class_bias: what the policy does to the head's weight gradient (`telemetry.probe.class_statistics`), NaN where
            it leaves the gradient of the logits as it is.
    """

    loss: float
    gap: float
    error: float
    class_bias: float


def policies(config: ExperimentConfig, formats: Sequence[str], recipes: Sequence[str]) -> dict[str, dict[str, Policy]]:
    """Policies by name: every operand of every layer in a format, scaled as the config says, and recipes.

    Raises:
        UsageError: no such format or recipe, or a format that the config's scales do not have.
    """
    found = {}
    given = config.model_dump(mode="json")
    for name in formats:
        quantize = dict.fromkeys(OPERANDS, name)
        keys = {"quantize": quantize, "scaling": given["scaling"]}
        found[name] = policies_of(parse_config(keys, source=f"--formats {name}"))
    for name in recipes:
        try:
            keys = recipe_keys(name)
        except ValueError as error:
            raise UsageError(f"--recipes: {one_line(error)}") from None
        found[name] = policies_of(parse_config(keys, source=f"--recipes {name}"))
    return found


def evaluate(
    kept: Checkpointed, candidates: Mapping[str, Mapping[str, Policy]], batches: int = 16
) -> dict[str, Evaluated]:
    """The loss of a recorded model under each policy, its own first where the run has one.

    All read the same windows of the held-out text, those of the run's final loss, in batches of the training size.
    Delayed scales have no history then, and take the amax of the tensor itself. The model is left unquantized.

    Args:
        kept: of `altgrad.training.probed.checkpointed`.
        candidates: policies as `quantize_model` takes them, by a name.
        batches: how many training batches the probe reads; 0: it is not asked.
    """
    model, config = kept.model, kept.config
    with unquantized(model):
        without = _losses(kept)
    own = {OWN: policies_of(config)} if config.quantize.operands else {}
    read: dict[str, list[float]] = {}
    if own:
        read[OWN] = _losses(kept)
    for layer in quantized_layers(model).values():
        layer.grid_scale = None  # the candidates round weights that live on the grid as they would any others
    drawn = [kept.batches.next() for _ in range(batches)]
    losses = [partial(model.loss, *batch) for batch in drawn]
    for name, policy in candidates.items():
        quantize_model(model, policy, seed=config.seed)
        read[name] = _losses(kept)
    quantize_model(model, Policy())
    biases = _biases(kept, {**own, **candidates}, losses) if losses else {}
    tokens, characters = kept.batches.evaluated(kept.batches.final)
    per_character = tokens / characters
    return {name: _evaluated(found, without, per_character, biases.get(name, math.nan)) for name, found in read.items()}


def _losses(kept: Checkpointed) -> list[float]:
    """The loss of each held-out batch, in nats per token."""
    clock = clock_of(kept.model)
    clock.step, clock.part = kept.step, -1
    with torch.no_grad():
        return [float(kept.model.loss(*batch)) for batch in kept.batches.validation(kept.batches.final)]


def _evaluated(found: list[float], without: list[float], per_character: float, bias: float) -> Evaluated:
    gaps = [(a - b) * per_character for a, b in zip(found, without, strict=True)]
    gap = sum(gaps) / len(gaps)
    spread = sum((each - gap) ** 2 for each in gaps)
    error = math.sqrt(spread / (len(gaps) - 1) / len(gaps)) if len(gaps) > 1 else math.nan
    return Evaluated(sum(found) / len(found) * per_character, gap, error, bias)


def _biases(
    kept: Checkpointed, candidates: Mapping[str, Mapping[str, Policy]], losses: Sequence[Callable[[], Tensor]]
) -> dict[str, float]:
    """The class bias of each policy that rounds the gradient of the logits."""
    head, operands = head_of(kept.model), dict[str, Operand]()
    for name, policy in candidates.items():
        quantize_model(kept.model, policy)
        spec = quantized_layers(kept.model)[head].policy.operand("grad_output")
        if spec.format is not FP32:
            operands[name] = spec
    quantize_model(kept.model, Policy())
    if not operands:
        return {}
    try:
        return {name: found["class_bias"] for name, found in probe(kept.model, losses, operands).items()}
    except ValueError as error:
        raise UsageError(one_line(error)) from None
