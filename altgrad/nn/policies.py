"""What a config, or a recipe by its name, does to the operands of layers."""

from __future__ import annotations

from typing import Any

from altgrad.config import OPERANDS, ExperimentConfig, parse_config
from altgrad.formats import get_format
from altgrad.nn.layers import UNQUANTIZED, Operand, Policy
from altgrad.recipes import recipe_keys


def policies_of(config: ExperimentConfig) -> dict[str, Policy]:
    """What the config does to its layers, by layer type; "*" is for those without a rounding of their own."""
    wide, kinds = config.quantize.wide, config.quantize.grad_output_rounding.given
    found = dict.fromkeys(wide, UNQUANTIZED) | {kind: policy_of(config, kind) for kind in kinds}
    return found | {"*": policy_of(config)}


def policy_of(config: ExperimentConfig, layer_type: str | None = None) -> Policy:
    """What the config does to the operands of its layers, or to those of a layer type that has a rounding of its own.

    Weights under storage "master" are rounded on the forward pass as `optimizer.rounding` says; under storage "grid"
    that is how the optimizer rounds, and the forward pass reads the weights as they are.
    """
    quantize = config.quantize

    def operand(name: str) -> Operand:
        fmt, rounding, rule = config.cast(name, layer_type)
        return Operand(get_format(fmt), rounding, rule)

    operands: dict[str, Any] = {name: operand(name) for name in OPERANDS}
    casts = {name: operand(name) for name in quantize.casts.given}
    where: dict[str, Any] = {"layers": quantize.kinds, "patterns": quantize.patterns, "compute": quantize.compute}
    return Policy(**operands, **where, casts=casts, hadamard=quantize.hadamard.given)


def recipe(name: str, **settings: Any) -> dict[str, Policy]:
    """The policies of a recipe, for `quantize_model`: those of a config that has its `recipe_keys`.

    Args:
        name: one of `altgrad.recipes.RECIPES`, or a format for all operands of all layers.
        settings: the recipe's own, and `head`, `embedding` and `wide`.

    Raises:
        ValueError: no such recipe or setting, or a setting out of its range; one line.
    """
    return policies_of(parse_config(recipe_keys(name, **settings), source=f"recipe {name!r}"))
