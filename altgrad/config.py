"""One experiment's configuration: YAML or Python in, a validated frozen model out.

Every key has a default except nothing: an empty file is a valid experiment (unquantized AdamW). Unknown keys and
impossible combinations are errors that name the key, the file and the nearest key.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from altgrad.formats import FP32, FloatFormat, Rounding, get_format, no_rounding
from altgrad.recipes import with_recipe

LayerType = Literal["attention", "mlp", "embedding", "head"]
LAYER_TYPES: tuple[LayerType, ...] = ("attention", "mlp", "embedding", "head")
OPERANDS = ("weight", "activation", "grad_output")
OPERAND_NAMES = {"weight": "weights", "activation": "activations", "grad_output": "gradients"}
PRODUCTS = ("output", "grad_input", "grad_weight")
READERS = {
    "weight": ("output", "grad_input"),
    "activation": ("output", "grad_weight"),
    "grad_output": ("grad_input", "grad_weight"),
}
"""The two products that read an operand. Its cast for the first has the operand's name."""
SECOND_CASTS = {operand: f"{second}.{operand}" for operand, (_, second) in READERS.items()}
"""The name of an operand's cast for its second product, such as ``grad_weight.activation``."""


def operand_of(cast: str) -> str:
    """The operand of a cast."""
    return cast.rpartition(".")[2]


def product_of(cast: str) -> str:
    """The product of a cast; the first of them where one cast serves both."""
    return cast.rpartition(".")[0] or READERS[cast][0]


LONGEST_NOTES = 10_000
MOMENT_KINDS = ("fp32", "fp8")
"""How an optimizer keeps Adam's moments between steps."""
MOMENT_BLOCK = 256
"""Elements that share a scale of moments in fp8."""
NATIVE_FORMATS = ("e4m3", "e5m2")
"""What the hardware's FP8 instruction multiplies."""
MX_FORMATS = ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1", "e0m7b-1")
"""What the blocks of MX hold."""
_SLUG = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")


class UsageError(ValueError):
    """A user's mistake: one line that names the file, the key and the remedy. Commands print it and exit with 2."""


def digest(*parts: Any) -> str:
    """Hex sha256 of the parts' canonical JSON (sorted keys, no spaces)."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _format_name(value: object) -> str:
    return get_format(str(value)).name


FormatName = Annotated[str, BeforeValidator(_format_name)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _later(default: Any, **limits: Any) -> Any:
    """A key that was added after runs had been recorded: at its default it takes no part in a config's identity."""
    return Field(default, json_schema_extra={"later": True}, **limits)


class ModelConfig(_Section):
    """The character GPT: pre-norm, untied head.

    `rescale` makes its tensors mis-scaled without changing what it computes: each quantizable weight starts multiplied
    by 2^k, its layer's output is divided by it, and k is drawn from -rescale to rescale by the seed.
    """

    layers: int = Field(2, ge=1, le=64)
    dim: int = Field(64, ge=4)
    heads: int = Field(4, ge=1)
    context: int = Field(32, ge=2)
    rescale: int = _later(0, ge=0, le=16)

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> ModelConfig:
        if self.dim % self.heads:
            raise ValueError(f"model.heads={self.heads} must divide model.dim={self.dim}")
        return self


class RoundingConfig(_Section):
    """How activations and gradients are rounded; weights have `optimizer.rounding`."""

    activation: Rounding = "nearest_even"
    grad_output: Rounding = "nearest_even"


class ScaleRule(_Section):
    """How a tensor is scaled into its format's range, in a config and in a layer (`altgrad.nn.Scaling` makes one).

    Attributes:
        granularity: of kind "amax": one scale a "tensor", a "row", a "block" of `block` elements, or a square of
            `block` x `block` ("block_2d"). Block formats have their own blocks ("tensor"), or squares as wide.
        kind: "amax" (current), "delayed" (from the amax of the last `history` steps), "static" (`value`), "none"
            (scale 1), or a block format's rule: "mx" (blocks of 32, floor), "mx_rceil", "nvfp4" (blocks of 16).
        power_of_two: round the scale up to a power of two.
        quotient: of a scale that is no power of two, amax / max to the "nearest" float32, where the largest element
            may exceed the format's largest value by a rounding, or "up", where none does; "inverse" is what torchao and
            Transformer Engine compute: elements are multiplied by max / amax in float32, rounded, and divided by it.
        algorithm, margin: of kind "delayed": the "max" of the history or the "most_recent" amax, and a scale
            2**margin larger (Transformer Engine's `amax_compute_algo` and `margin`).
        axis: where rows and blocks lie: along the "last" dimension for both products that read the operand, or along
            the dimension that the product sums over, its "contraction": inputs for output, outputs for grad_input,
            rows (batch x time) for grad_weight. Blocks at the end of a dimension are short.
    """

    granularity: Literal["tensor", "row", "block", "block_2d"] = "tensor"
    kind: Literal["amax", "delayed", "static", "none", "mx", "mx_rceil", "nvfp4"] = "amax"
    power_of_two: bool = True
    block: int = _later(32, ge=1)
    quotient: Literal["nearest", "up", "inverse"] = _later("nearest")
    history: int = _later(16, ge=1, le=4096)
    algorithm: Literal["max", "most_recent"] = _later("max")
    margin: int = _later(0, ge=0, le=127)
    value: float | None = _later(None, ge=FP32.quantum, le=FP32.max)
    axis: Literal["last", "contraction"] = _later("last")

    @model_validator(mode="after")
    def _parts_belong_together(self) -> ScaleRule:
        if (self.kind == "static") != (self.value is not None):
            raise ValueError("scaling.value is the scale of kind 'static', and of no other kind")
        blocks = self.kind in ("mx", "mx_rceil", "nvfp4")
        if self.kind != "amax" and self.granularity != "tensor" and not (blocks and self.granularity == "block_2d"):
            raise ValueError(f"scaling.granularity {self.granularity!r} belongs to kind 'amax', not to {self.kind!r}")
        for key, default in (("algorithm", "max"), ("margin", 0), ("history", 16)):
            if self.kind != "delayed" and (given := getattr(self, key)) != default:
                raise ValueError(f"scaling.{key} {given!r} belongs to kind 'delayed', not to {self.kind!r}")
        if self.block != 32 and blocks:
            fixed = f"are {16 if self.kind == 'nvfp4' else 32} wide"
            raise ValueError(f"the blocks of kind {self.kind!r} {fixed}, not {self.block}; leave out scaling.block")
        if self.block != 32 and self.granularity not in ("block", "block_2d"):
            given = f"scaling.block {self.block} belongs to granularity 'block' or 'block_2d'"
            raise ValueError(f"{given}, not to {self.granularity!r}")
        if self.quotient != "nearest" and (self.power_of_two or self.kind not in ("amax", "delayed")):
            belongs = "belongs to a scale of kind 'amax' or 'delayed' with power_of_two false"
            raise ValueError(f"scaling.quotient {self.quotient!r} {belongs}; a power of two has nothing to round")
        if self.axis == "contraction" and (self.granularity == "block_2d" or not self.several):
            what = "square blocks lie along no axis" if self.several else "one scale per tensor lies along no axis"
            raise ValueError(f"scaling.axis 'contraction' is for rows and blocks, and {what}; leave it out")
        return self

    @property
    def several(self) -> bool:
        """Whether a tensor has several scales."""
        return self.kind in ("mx", "mx_rceil", "nvfp4") or self.granularity != "tensor"

    def check(self, operand: str, fmt: FloatFormat, compute: str = "simulated") -> None:
        """Refuse an operand that this rule does not scale or that this way of computing does not multiply.

        Raises:
            ValueError: naming `operand`.
        """
        if not fmt.signed:
            raise ValueError(f"{operand} is {fmt.name}, a scale's format without sign and zero; choose a signed one")
        elements = {"nvfp4": ("e2m1",), "mx": MX_FORMATS, "mx_rceil": MX_FORMATS}.get(self.kind)
        if elements is not None and fmt is not FP32 and fmt.name not in elements:
            *others, last = elements
            known = f"{', '.join(others)} and {last}" if others else last
            raise ValueError(f"scaling kind {self.kind!r} is a rule for {known}, and {operand} is {fmt.name}")
        if compute == "native" and fmt.name not in NATIVE_FORMATS:
            known = " and ".join(NATIVE_FORMATS)
            raise ValueError(f"compute 'native' multiplies {known}, and {operand} is {fmt.name}; use 'simulated'")
        if compute == "native" and self.several:
            raise ValueError(f"compute 'native' has one scale per tensor, and {operand} has several; use 'simulated'")


class CastConfig(_Section):
    """What the second product that reads an operand does otherwise than the first; what is null is the first's."""

    format: FormatName | None = _later(None)
    rounding: Rounding | None = _later(None)
    scaling: ScaleRule | None = _later(None)

    @model_validator(mode="after")
    def _fp32_is_not_rounded(self) -> CastConfig:
        if self.format == "fp32" and (self.rounding or self.scaling):
            raise ValueError("a cast to fp32 rounds nothing; leave out its rounding and scaling")
        return self


class GradInputCasts(_Section):
    """grad_input = grad_output @ weight. Its grad_output is `quantize.grad_output`."""

    weight: CastConfig | None = _later(None)


class GradWeightCasts(_Section):
    """grad_weight = grad_output^T @ activation."""

    activation: CastConfig | None = _later(None)
    grad_output: CastConfig | None = _later(None)


class CastsConfig(_Section):
    """The casts of operands whose second product reads them otherwise than the first.

    A linear layer has six: `quantize.weight` and `quantize.activation` are what output reads, `quantize.grad_output` is
    what grad_input reads, and these are the other three.
    """

    grad_input: GradInputCasts = _later(GradInputCasts())
    grad_weight: GradWeightCasts = _later(GradWeightCasts())

    @model_validator(mode="before")
    @classmethod
    def _first_casts_are_the_operands(cls, data: Any) -> Any:
        for operand, (first, _) in READERS.items():
            product = data.get(first) if isinstance(data, Mapping) else None
            if isinstance(product, Mapping) and operand in product:
                raise ValueError(f"{first} reads quantize.{operand} itself; set that in place of {first}.{operand}")
        return data

    @property
    def given(self) -> dict[str, CastConfig]:
        """By their names, in the order of the products."""
        found = {name: getattr(getattr(self, product_of(name)), operand) for operand, name in SECOND_CASTS.items()}
        return {name: cast for name, cast in found.items() if cast is not None}


OWN_ROUNDING = re.compile(r"own:[a-z0-9]+(-[a-z0-9]+)*")
"""A rounding that an experiment brings (`altgrad.nn.register_rounding`)."""


def _known_or_own(value: Any) -> Any:
    known = (*get_args(Rounding), "diffused", "wide")
    if value is None or value in known or (isinstance(value, str) and OWN_ROUNDING.fullmatch(value)):
        return value
    raise ValueError(f"must be one of {', '.join(known)}, or own:NAME, a registered one")


GradOutputRounding = Annotated[str, BeforeValidator(_known_or_own)]


class GradOutputRoundings(_Section):
    """How grad_output is rounded in single types of layers, where not as `quantize.rounding` says.

    It is so for both products that read it, unless `quantize.casts` gives the second a rounding of its own. "diffused"
    is clamped error diffusion along the layer's outputs (a head's classes): deterministic, and the row sum survives to
    half a spacing (`altgrad.diffusion`). "wide" leaves grad_output unquantized there. "own:NAME" is an experiment's own
    (`altgrad.nn.register_rounding`).
    """

    attention: GradOutputRounding | None = _later(None)
    mlp: GradOutputRounding | None = _later(None)
    head: GradOutputRounding | None = _later(None)

    @property
    def given(self) -> dict[str, str]:
        """Rounding by layer type."""
        return {kind: rounding for kind, rounding in self if rounding is not None}


class HadamardConfig(_Section):
    """The products whose operands are rotated along the dimension they sum over, each with the size of its rotation.

    Both operands are multiplied by the same random signs and Hadamard matrix, block by block, before they are rounded:
    exactly the product stays what it is. What is left beyond whole blocks is not rotated.
    """

    output: Literal[16, 32] | None = _later(None)
    grad_input: Literal[16, 32] | None = _later(None)
    grad_weight: Literal[16, 32] | None = _later(None)

    @property
    def given(self) -> dict[str, int]:
        """Size by product."""
        return {name: size for name in PRODUCTS if (size := getattr(self, name)) is not None}


class QuantizeConfig(_Section):
    """Which operands are quantized to which format, in which layers. `fp32` leaves an operand as it is.

    `layers` are layer types: with attention and mlp, layers of no type too. `patterns` (dotted layer names with * and
    ?) restrict them further where given, and layers that match one of `wide` stay as they are. `weight`, `activation`
    and `grad_output` are for both products that read them, unless `casts` gives the second its own.
    `hadamard` rotates both operands of a product. `grad_output_rounding` has layer types whose grad_output is rounded
    otherwise than `rounding` says: nearest_even, stochastic, diffused, wide.
    """

    weight: FormatName = "fp32"
    activation: FormatName = "fp32"
    grad_output: FormatName = "fp32"
    layers: tuple[LayerType, ...] = LAYER_TYPES
    patterns: tuple[str, ...] = _later(())
    wide: tuple[str, ...] = _later(())
    rounding: RoundingConfig = _later(RoundingConfig())
    compute: Literal["simulated", "native"] = _later("simulated")
    casts: CastsConfig = _later(CastsConfig())
    hadamard: HadamardConfig = _later(HadamardConfig())
    grad_output_rounding: GradOutputRoundings = _later(GradOutputRoundings())

    @field_validator("layers")
    @classmethod
    def _canonical(cls, layers: tuple[LayerType, ...]) -> tuple[LayerType, ...]:
        """One order and no repetition: the same layers are the same experiment."""
        return tuple(kind for kind in LAYER_TYPES if kind in layers)

    @model_validator(mode="after")
    def _native_exists(self) -> QuantizeConfig:
        if self.compute == "native" and {self.weight, self.activation} == {"e5m2"}:
            raise ValueError("quantize.compute 'native': no hardware multiplies e5m2 by e5m2; make one e4m3")
        given = [f"casts.{name}" for name in self.casts.given] + [f"hadamard.{name}" for name in self.hadamard.given]
        given += [f"grad_output_rounding.{kind}" for kind in self.grad_output_rounding.given]
        if self.compute == "native" and given:
            raise ValueError(f"quantize.compute 'native' reads each operand once, as it is; leave out {given[0]}")
        return self

    @property
    def kinds(self) -> tuple[str, ...]:
        """The types of the layers that are quantized: "other", of which a GPT has none, where attention and mlp are."""
        return (*self.layers, *(("other",) if {"attention", "mlp"} <= {*self.layers} else ()))

    def reaches(self, layer: str, layer_type: str) -> bool:
        """Whether the layer of this dotted name and type is quantized, if any operand is."""
        names = (layer,) if layer_type == "other" else (layer, layer_type)
        kept = any(fnmatchcase(name, pattern) for pattern in self.wide for name in names)
        found = not self.patterns or any(fnmatchcase(layer, pattern) for pattern in self.patterns)
        return layer_type in self.kinds and found and not kept

    @property
    def operands(self) -> tuple[str, ...]:
        """The operands that are quantized for a product, of weight, activation and grad_output."""
        return tuple(name for name in OPERANDS if set(self.formats(name)) != {"fp32"})

    def formats(self, operand: str) -> tuple[str, str]:
        """The formats that the two products read an operand in."""
        own: str = getattr(self, operand)
        cast = self.casts.given.get(SECOND_CASTS[operand])
        return own, own if cast is None or cast.format is None else cast.format


class ScalingConfig(ScaleRule):
    """The rule of every operand, and of single operands where they differ.

    `reduce`: of a run on several processes, over which of them the amax of activations and gradients is taken: "all",
    those of a machine ("node"), or none, so that each has scales of its own.
    """

    weight: ScaleRule | None = _later(None)
    activation: ScaleRule | None = _later(None)
    grad_output: ScaleRule | None = _later(None)
    reduce: Literal["all", "node", "none"] = _later("all")

    def rule(self, operand: str) -> ScaleRule:
        """The rule of weight, activation or grad_output."""
        every = {key: getattr(self, key) for key in ScaleRule.model_fields}
        return getattr(self, operand) or ScaleRule.model_construct(**every)


class OptimizerConfig(_Section):
    """Step rule, storage of the weights and rounding onto the grid (the three axes of the comparison).

    Which combinations exist is `COMBINATIONS`. `format` is the one whose spacing the manifold rule knows, where it is
    not that of the weights: with unquantized weights it is the rule's own control. `stiffness` and `relative` are the
    ablations: S permuted within its tensor ("shuffled"), its mean in place of it ("constant"); a rate relative to the
    rms of each tensor.
    """

    step_rule: Literal["adamw", "manifold", "code", "muon"] = "adamw"
    precondition: Literal["gradient", "update"] | None = None
    storage: Literal["master", "grid"] = "master"
    rounding: Literal["nearest_even", "stochastic", "error_feedback"] = "nearest_even"
    learning_rate: float = Field(1.6e-2, gt=0)  # adamw, muon and "gradient": real units; "update": ulps; "code": codes
    other_learning_rate: float | None = Field(None, gt=0)  # AdamW's rate for parameters that are not quantized
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    format: FormatName | None = _later(None)
    floor: float | None = Field(None, ge=0)
    max_stiffness: float | None = Field(None, gt=0)
    stiffness: Literal["ulp", "shuffled", "constant"] = _later("ulp")
    relative: bool = _later(False)
    moments: Literal["fp32", "fp8"] = _later("fp32")  # Adam's, of matrices: fp8 is E4M3 and E5M2 with block scales
    rungs: int = _later(1, ge=1, le=64)  # the most codes that a step of rule "code" moves a weight by

    @model_validator(mode="after")
    def _combination_exists(self) -> OptimizerConfig:
        if (self.step_rule == "manifold") != (self.precondition is not None):
            must = "must be 'gradient' or 'update' with step_rule 'manifold', and null otherwise"
            raise ValueError(f"optimizer.precondition {must}")
        check_combination(self.step_rule, self.storage, self.rounding)
        if self.step_rule != "manifold" and (self.floor is not None or self.max_stiffness is not None):
            raise ValueError("optimizer.floor and optimizer.max_stiffness belong to step_rule 'manifold'")
        if self.format is not None and (self.step_rule != "manifold" or self.storage != "master"):
            raise ValueError("optimizer.format belongs to step_rule 'manifold' with storage 'master'")
        fmt = None if self.format is None else get_format(self.format)
        if fmt is FP32 or (fmt is not None and not (fmt.fits_float64 and fmt.signed)):
            raise ValueError(f"optimizer.format={self.format!r} must be a signed format narrower than fp32")
        if self.stiffness != "ulp" and self.precondition is None:
            raise ValueError("optimizer.stiffness is an ablation of step_rule 'manifold'")
        if self.moments == "fp8" and self.rounding == "error_feedback":
            carried = "optimizer.rounding 'error_feedback' carries the error in the momentum"
            raise ValueError(f"{carried}; leave out optimizer.moments 'fp8', which rounds it")
        if self.moments == "fp8" and self.step_rule == "muon":
            raise ValueError("optimizer.moments 'fp8' are Adam's; step_rule 'muon' has none of them")
        if self.relative and self.step_rule != "adamw":
            raise ValueError("optimizer.relative belongs to step_rule 'adamw'")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas={list(self.betas)} must lie in [0, 1)")
        return self


COMBINATIONS: dict[tuple[str, str], tuple[str, ...]] = {
    ("adamw", "master"): ("nearest_even", "stochastic"),
    ("adamw", "grid"): ("nearest_even", "stochastic", "error_feedback"),
    ("manifold", "master"): ("nearest_even", "stochastic"),
    ("manifold", "grid"): ("nearest_even", "stochastic", "error_feedback"),
    ("code", "master"): (),
    ("code", "grid"): ("stochastic",),
    ("muon", "master"): ("nearest_even", "stochastic"),
    ("muon", "grid"): (),
}
"""(step rule, storage) -> roundings that exist. Any other combination is a config error."""


def check_combination(step_rule: str, storage: str, rounding: str) -> None:
    """Refuse what is not in the table of combinations.

    Raises:
        ValueError: with what is allowed.
    """
    if (step_rule, storage) not in COMBINATIONS:
        raise ValueError(f"storage must be 'master' or 'grid', not {storage!r}")
    if rounding not in (roundings := COMBINATIONS[step_rule, storage]):
        allowed = " or ".join(roundings) or "none: choose another storage"
        missing = f"rounding {rounding!r} does not exist with step_rule {step_rule!r} and storage {storage!r}"
        raise ValueError(f"{missing}; allowed is {allowed}")


def extra_bytes_per_weight(storage: str, rounding: str) -> int:
    """Bytes that training keeps per weight between steps, besides the weight's code and Adam's two moments.

    Storage "master" keeps the float32 weight. Storage "grid" keeps nothing: stochastic rounding computes its draws, and
    error feedback puts the error where the momentum is. (The simulation holds codes in float32 containers.)

    Raises:
        ValueError: a storage or rounding that no step rule has.
    """
    known = {(place, name) for (_, place), names in COMBINATIONS.items() for name in names}
    if (storage, rounding) not in known:
        raise ValueError(f"there is no storage {storage!r} with rounding {rounding!r}; allowed is {sorted(known)}")
    return 4 if storage == "master" else 0


def moment_bytes_per_weight(moments: str) -> float:
    """Bytes that Adam's two moments take per weight between steps, of a float32 weight in a large tensor.

    8 in "fp32"; in "fp8" two codes of a byte and two float32 scales a block, 2.03125.

    Raises:
        ValueError: other moments.
    """
    if moments not in MOMENT_KINDS:
        raise ValueError(f"moments must be one of {', '.join(MOMENT_KINDS)}, not {moments!r:.80}")
    return 8.0 if moments == "fp32" else 2 * (1 + 4 / MOMENT_BLOCK)


class StabilityConfig(_Section):
    """What a run does when it goes wrong, beside ending: `nan_patience` decides when that is.

    `clip`: "plain" scales all gradients by their common norm; "range_aware" clips each quantized weight's gradient
    at the largest value that its format holds at the tensor's scale first. `patience` > 0 ends a run whose validation
    loss has not improved for that many evaluations. `shift_to`: the format that replaces every quantized operand's
    when `nan_patience` bad steps have passed, once, as a recorded event.
    """

    clip: Literal["plain", "range_aware"] = "plain"
    patience: int = Field(0, ge=0)
    shift_to: FormatName | None = None


class TelemetryConfig(_Section):
    """What a run measures about its layers. `layers_every` says at which steps a look is taken (0: never).

    `operands`: counts of every operand of the products. `updates`: flips, updates and the stall ratio of the
    optimizer's real step. `gradients`: norms of each weight's gradient. `geometry`: where weights and steps lie on the
    grid. `rank_every` and `codes_every`: rank health and which codes of the format are in use, at every so many looks
    (0: never); of the operands in `histograms` how often each code occurs, and each binade before rounding.
    `shadow`: the same batch without any rounding, to compare gradients with (costs a pass more a look).
    `watch`: norms of every weight and gradient at every step, so that what breaks is named at the step it breaks.
    `logits`: their mean and spread, and what rounding their gradient does to the head's, class by class.
    """

    operands: bool = True
    updates: bool = True
    gradients: bool = True
    geometry: bool = True
    rank_every: int = Field(1, ge=0)
    codes_every: int = Field(5, ge=0)
    histograms: tuple[Literal["weight", "activation", "grad_output"], ...] = _later(("weight",))
    shadow: bool = False
    watch: bool = True
    logits: bool = _later(False)

    @field_validator("histograms")
    @classmethod
    def _canonical(cls, operands: tuple[str, ...]) -> tuple[str, ...]:
        """One order and no repetition: the same histograms are the same experiment."""
        return tuple(operand for operand in OPERANDS if operand in operands)


class CheckpointConfig(_Section):
    """Checkpoints: every so many steps (0: none), how many are kept; the best and an anomaly's are kept besides."""

    every: int = Field(0, ge=0)
    keep: int = Field(2, ge=1)


class TrackingConfig(_Section):
    """The mirror of the run in W&B; the local record is written in every mode.

    What is null is taken from WANDB_MODE (else disabled), WANDB_PROJECT (else altgrad), WANDB_ENTITY (else the key's
    own) and, for `group`, the run's arm.
    """

    mode: Literal["disabled", "offline", "online"] | None = None
    project: str | None = None
    entity: str | None = None
    group: str | None = _later(None)


Scalar = bool | int | float | str | None


class ExperimentConfig(_Section):
    """One run. What decides its result is `identity()`; the rest is bookkeeping.

    `recipe` in the keys that a config is made of (a name of `altgrad.recipes`, or a mapping of `name` and settings)
    stands for the keys that the recipe has; those beside it win. A config itself has the keys alone.

    `foreign` marks the run of a training loop that is not AltGrad's: it holds the keys of that loop's own config which
    have no meaning here, dotted. What such a run does not state (`states`) is not known, whatever the defaults say.
    """

    name: str | None = None
    notes: str = Field("", max_length=LONGEST_NOTES)
    tags: tuple[str, ...] = ()
    study: str = "local"
    seed: int = Field(0, ge=0, lt=2**31)
    data: Literal["licenses", "licenses-all", "sympy", "file"] = "licenses"  # "file": one's own, given with --data
    tokenizer: Literal["characters", "bytes", "bpe"] = _later("characters")  # the 96 of folded text, or of UTF-8
    vocabulary: int | None = _later(None, ge=2, le=2**16)  # number of tokens of tokenizer "bpe"
    model: ModelConfig = ModelConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    scaling: ScalingConfig = ScalingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    max_steps: int = Field(300, ge=1)
    batch_size: int = Field(16, ge=1)
    warmup_steps: int = Field(20, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    schedule_steps: int | None = _later(None, ge=1)  # where the cosine ends, and the rate stays; null: at max_steps
    clip_norm: float | None = Field(1.0, gt=0)
    eval_every: int = Field(50, ge=1)
    eval_batches: int = Field(20, ge=1)
    final_eval_characters: int = _later(0, ge=0)  # at least so many for the final loss; 0: what eval_batches read
    log_every: int = Field(1, ge=1)
    layers_every: int = Field(20, ge=0)
    nan_patience: int = Field(10, ge=1)
    draw_version: Literal[1, 2] = _later(1)  # of stochastic rounding's draws: 2 has fewer bits and is quicker
    accumulate: int = _later(1, ge=1)  # batches whose gradients are averaged into one step
    parallel: Literal["ddp", "fsdp2"] | None = _later(None)  # how torchrun's processes share each batch
    compile: bool = _later(False)  # the model through torch.compile; steps with a look stay eager, equal to roundoff
    stability: StabilityConfig = _later(StabilityConfig())
    telemetry: TelemetryConfig = _later(TelemetryConfig())
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    foreign: dict[str, Scalar | tuple[Scalar, ...]] | None = _later(None)

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("tracking"), str):
            data = {**data, "tracking": {"mode": data["tracking"]}}
        return with_recipe(data) if isinstance(data, Mapping) and "recipe" in data else data

    @model_validator(mode="after")
    def _check(self) -> ExperimentConfig:
        for key in ("name", "study"):
            value = getattr(self, key)
            if value is not None and not _SLUG.fullmatch(value):
                raise ValueError(f"{key}={value[:80]!r} must be a lower-case slug: letters, digits, '.', '_' and '-'")
        if self.foreign is None and (self.tokenizer == "bpe") != (self.vocabulary is not None):
            raise ValueError("vocabulary is the number of tokens of tokenizer 'bpe', and of no other; set both or none")
        if self.quantize.weight == "fp32":
            needs, step_rule = "needs quantize.weight to be a format narrower than fp32", self.optimizer.step_rule
            if step_rule in ("manifold", "code") and self.optimizer.format is None:
                hint = ", or optimizer.format, whose spacing it uses" if step_rule == "manifold" else ""
                raise ValueError(f"optimizer.step_rule {step_rule!r} {needs}{hint}")
            if self.optimizer.storage == "grid":
                raise ValueError(f"optimizer.storage 'grid' {needs}")
        if self.optimizer.storage == "grid":
            rule = self.scaling.rule("weight")
            if rule.kind not in ("amax", "none") or rule.granularity != "tensor" or not rule.power_of_two:
                allowed = "{kind: amax}, {kind: none} or leave it"
                kept = "optimizer.storage 'grid' keeps one power-of-two scale per tensor"
                raise ValueError(f"{kept}; set scaling.weight to {allowed}")
        self._check_parallel()
        if (end := self.schedule_steps) is not None:
            if self.schedule != "cosine":
                raise ValueError(f"schedule_steps={end} is where schedule 'cosine' ends; leave it out")
            if not self.warmup_steps < end < self.max_steps:
                raise ValueError(f"schedule_steps={end} must lie between warmup_steps and max_steps; leave it out")
        self._check_casts()
        self._check_grad_output_rounding()
        self._check_native_sizes()
        self._check_shift()
        made = [(name, kind) for name in (*OPERANDS, *self.quantize.casts.given) for kind in self._layers_apart]
        drawn = {rounding for fmt, rounding, _ in itertools.starmap(self.cast, made) if fmt != "fp32"}
        if self.optimizer.step_rule != "code":
            drawn.add(self.optimizer.rounding)
        if self.draw_version != 1 and "stochastic" not in drawn:
            raise ValueError(f"draw_version {self.draw_version} is of stochastic rounding, and nothing is rounded so")
        if self.quantize.operands and not self.quantize.layers:
            raise ValueError("quantize.layers is empty but an operand has a format: name at least one layer type")
        if self.quantize.operands and self.quantize.layers == ("embedding",) and self.quantize.weight == "fp32":
            raise ValueError("quantize.layers is [embedding], which has a weight only, and quantize.weight is fp32")
        casts = {name: f"quantize.casts.{name}" for name in self.quantize.casts.given}
        for name, key in ({name: f"quantize.{name}" for name in OPERANDS} | casts).items():
            fmt, _, rule = self.cast(name)
            if not get_format(fmt).fits_float64:
                raise ValueError(f"{key}={fmt!r} has a range beyond float64; training has none so wide")
            rule.check(key, get_format(fmt), self.quantize.compute)
        return self

    def _check_parallel(self) -> None:
        """Refuse what the processes of a run cannot share."""
        if self.foreign is not None:
            return
        kinds = {self.scaling.rule(name).kind for name in ("activation", "grad_output")}
        if self.scaling.reduce != "all" and self.parallel is None:
            raise ValueError(f"scaling.reduce {self.scaling.reduce!r} is of several processes; set parallel")
        if self.scaling.reduce != "all" and "delayed" in kinds:
            raise ValueError("scaling.kind 'delayed' keeps one history in all processes; set scaling.reduce to 'all'")
        whole = {
            "optimizer.step_rule 'muon'": self.optimizer.step_rule == "muon",
            "optimizer.moments 'fp8'": self.optimizer.moments == "fp8",
            "optimizer.stiffness 'shuffled'": self.optimizer.stiffness == "shuffled",
            "telemetry.shadow": self.telemetry.shadow,
        }
        if self.parallel == "fsdp2" and (needs := next((key for key, asked in whole.items() if asked), None)):
            raise ValueError(f"{needs} needs whole tensors, and parallel 'fsdp2' shards them; use 'ddp'")

    def _check_casts(self) -> None:
        """Refuse casts that change nothing or contradict how the weights are stored."""
        for name in self.quantize.casts.given:
            operand = operand_of(name)
            alike = all(self.cast(name, kind) == self.cast(operand, kind) for kind in self._layers_apart)
            if alike or {self.cast(name)[0], self.cast(operand)[0]} == {"fp32"}:
                raise ValueError(f"quantize.casts.{name} is what quantize.{operand} says already; leave it out")
        if self.optimizer.storage == "grid":
            second = SECOND_CASTS["weight"]
            given = [f"casts.{second}"] if second in self.quantize.casts.given else []
            given += [f"hadamard.{name}" for name in READERS["weight"] if name in self.quantize.hadamard.given]
            if given:
                stored = "optimizer.storage 'grid' has the products read weights as they are stored"
                raise ValueError(f"{stored}; leave out quantize.{given[0]}")

    def _check_native_sizes(self) -> None:
        """Refuse products that the hardware's instruction does not multiply."""
        kinds = set(self.quantize.layers) - {"embedding"}
        if self.quantize.compute != "native" or not kinds or self.foreign is not None:
            return
        sizes = {
            "batch_size * model.context": self.batch_size * self.model.context,
            "model.dim": self.model.dim,
            **({"the number of tokens, the head's outputs,": self.tokens} if "head" in kinds else {}),
        }
        for name, size in sizes.items():
            if size % 16:
                rule = "quantize.compute 'native' multiplies sizes that are multiples of 16"
                raise ValueError(f"{rule}, and {name} is {size}; change it or use 'simulated'")

    def _check_shift(self) -> None:
        """Refuse a format to go on with that has no more bits in any respect than those it replaces."""
        if self.stability.shift_to is None or self.foreign is not None:
            return
        to, names = get_format(self.stability.shift_to), sorted({fmt for _, fmt in self._rounded()})
        replaced = [get_format(name) for name in names]
        if not to.signed or not to.fits_float64:
            raise ValueError(f"stability.shift_to={to.name!r} is no format that tensors are rounded to")
        if replaced and all(
            to.exponent_bits <= fmt.exponent_bits and to.mantissa_bits <= fmt.mantissa_bits for fmt in replaced
        ):
            narrow = f"stability.shift_to={to.name!r} is no wider than {', '.join(names)}, which it would replace"
            raise ValueError(f"{narrow}; name a format with more exponent or mantissa bits")

    def _rounded(self) -> list[tuple[str, str]]:
        """Operands and the formats that their products read them in, fp32 left out."""
        pairs = [(name, fmt) for name in OPERANDS for fmt in self.quantize.formats(name)]
        return [pair for pair in pairs if pair[1] != "fp32"]

    def _check_grad_output_rounding(self) -> None:
        """Refuse roundings of single layer types that say nothing, or something else than the rest of the config."""
        quantize, second = self.quantize, SECOND_CASTS["grad_output"]
        for kind, rounding in quantize.grad_output_rounding.given.items():
            key = f"quantize.grad_output_rounding.{kind}"
            if "grad_output" not in quantize.operands:
                raise ValueError(f"{key} is {rounding!r}, and quantize.grad_output is fp32; leave it out")
            if kind not in quantize.layers:
                raise ValueError(f"{key} is {rounding!r}, and quantize.layers has no {kind}; leave one out")
            if rounding == quantize.rounding.grad_output:
                raise ValueError(f"{key} is what quantize.rounding.grad_output says already; leave it out")
            if rounding == "wide" and second in quantize.casts.given:
                both = f"{key} 'wide' is for both products, and quantize.casts.{second} quantizes one"
                raise ValueError(f"{both}; leave one out")

    @property
    def _layers_apart(self) -> tuple[str | None, ...]:
        """Layer types whose casts may differ; None is for all others."""
        return None, *self.quantize.grad_output_rounding.given

    def cast(self, name: str, layer_type: str | None = None) -> tuple[str, str, ScaleRule]:
        """Format, rounding and scale rule of a cast: weight, activation, grad_output, or one of `SECOND_CASTS`.

        Weights on the grid are rounded by the optimizer, and to the nearest where a layer reads them. Where no
        `layer_type` is given, the cast is that of layers without a rounding of their own.
        """
        operand = operand_of(name)
        own = self.quantize.casts.given.get(name, CastConfig.model_construct())
        if operand == "weight":
            rounding: Any = self.optimizer.rounding if self.optimizer.storage == "master" else "nearest_even"
        else:
            rounding = getattr(self.quantize.rounding, operand)
        fmt = own.format or getattr(self.quantize, operand)
        if operand == "grad_output" and (special := self.quantize.grad_output_rounding.given.get(layer_type or "")):
            if special == "wide":
                return FP32.name, "nearest_even", self.scaling.rule(operand)
            rounding = special
        return fmt, own.rounding or rounding, own.scaling or self.scaling.rule(operand)

    def rounds(self, layer: str, layer_type: str, cast: str) -> bool:
        """Whether a layer's products read this cast in another format than FP32."""
        return self.quantize.reaches(layer, layer_type) and self.cast(cast, layer_type)[0] != FP32.name

    @property
    def tokens(self) -> int:
        """The number of different tokens of the text, which is the number of the model's classes."""
        return self.vocabulary or (256 if self.tokenizer == "bytes" else 96)

    @property
    def uniform_loss(self) -> float:
        """Loss of guessing one of the tokens at random, in nats per token."""
        return math.log(self.tokens)

    @property
    def diverged(self) -> float:
        """A run whose loss stays above this for `nan_patience` steps has diverged, and ends."""
        return 1.5 * self.uniform_loss

    @property
    def resolved_name(self) -> str:
        """`name`, or one derived from what the config does, for example ``e5m2-wag-adamw``."""
        if self.name is not None:
            return self.name
        if self.foreign is not None:
            stated = (getattr(self.quantize, name) for name in OPERANDS if self.states(f"quantize.{name}"))
            return "-".join(["own-loop", *dict.fromkeys(stated)])
        quantize, optimizer = self.quantize, self.optimizer
        rule = optimizer.step_rule if optimizer.precondition is None else f"manifold-{optimizer.precondition}"
        if optimizer.relative or optimizer.stiffness != "ulp":
            rule += "-relative" if optimizer.relative else f"-{optimizer.stiffness}"
        if optimizer.format is not None:
            rule += f"-{optimizer.format}"
        if optimizer.storage == "grid":
            rule += f"-grid-{optimizer.rounding.replace('_', '-')}"
        if optimizer.moments != "fp32":
            rule += f"-{optimizer.moments}-moments"
        if not quantize.operands:
            return f"fp32-{rule}"
        both = (fmt for operand in quantize.operands for fmt in quantize.formats(operand) if fmt != "fp32")
        formats = "-".join(dict.fromkeys(both))
        letters = "".join(operand[0] for operand in quantize.operands)
        layers = "" if set(quantize.layers) == set(LAYER_TYPES) else "-" + "-".join(sorted(quantize.layers))
        return f"{formats}-{letters}{layers}-{rule}"

    def identity(self) -> dict[str, Any]:
        """Everything that decides the run's numbers, JSON-ready.

        Notes, tags, study, name, checkpoints and tracking are left out, and so are keys younger than the first recorded
        runs while they have their default. A foreign run has the keys that it states.
        """
        left_out = {"name", "notes", "tags", "study", "checkpoint", "tracking"}
        found = self.model_dump(mode="json", exclude=left_out, exclude_unset=self.foreign is not None)
        found.setdefault("seed", self.seed)
        return _without_later_defaults(self, found)

    def arm_identity(self) -> dict[str, Any]:
        """`identity()` without the seed: what the seeds of one arm share."""
        return {key: value for key, value in self.identity().items() if key != "seed"}

    def states(self, key: str) -> bool:
        """Whether the run says of itself what `key` ("optimizer.learning_rate") is; AltGrad's own runs state all."""
        section: Any = self
        for part in key.split(".") if self.foreign is not None else ():
            if not isinstance(section, BaseModel) or part not in section.model_fields_set:
                return False
            section = getattr(section, part)
        return True

    @property
    def stated_seed(self) -> int | None:
        """The seed; None where another loop's run does not state one."""
        return self.seed if self.states("seed") else None


def config_keys(model: type[BaseModel] = ExperimentConfig, prefix: str = "") -> tuple[str, ...]:
    """Every key of a config that holds a value rather than a section, dotted, in order."""
    found: list[str] = []
    for name in model.model_fields:
        section = _section(model, name)
        found += config_keys(section, f"{prefix}{name}.") if section else [prefix + name]
    return tuple(found)


def _section(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The section under a key: "a section", or "a section or null"; None under a key of a value."""
    annotation = model.model_fields[name].annotation
    choices = (annotation, *get_args(annotation))
    return next((each for each in choices if isinstance(each, type) and issubclass(each, BaseModel)), None)


@cache
def _later_defaults(model: type[BaseModel]) -> dict[str, Any]:
    fields = model.model_fields.items()
    return {key: field.default for key, field in fields if (field.json_schema_extra or {}) == {"later": True}}


def _without_later_defaults(section: BaseModel, dumped: dict[str, Any]) -> dict[str, Any]:
    kept, later = {}, _later_defaults(type(section))
    for key, value in dumped.items():
        given = getattr(section, key)
        if key in later and given == later[key]:
            continue
        kept[key] = _without_later_defaults(given, value) if isinstance(given, BaseModel) else value
    return kept


def load_config(path: str | Path, overrides: Sequence[str] = (), seed: int | None = None) -> ExperimentConfig:
    """Read a YAML config and apply `key.path=value` overrides, in order.

    Args:
        path: a YAML file.
        overrides: as given to ``--set``; values are parsed as YAML scalars or lists.
        seed: replaces the config's seed where given.

    Raises:
        UsageError: for a missing or unreadable file, bad YAML, an unknown key, a value that is not allowed, or a
            combination that does not exist; one line that names the file, the key and the remedy.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = sorted(str(found) for found in path.parent.glob("*.yaml"))[:8] if path.parent.is_dir() else []
        hint = f"configs there: {', '.join(near)}" if near else "give the path of a YAML file"
        raise UsageError(f"{path}: no such config; {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({one_line(error)}); give a YAML text file") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML ({one_line(error)}); correct the file") from None
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise UsageError(f"{path}: a config is a mapping of keys to values, this is a {type(data).__name__}")
    if isinstance(data.get("tracking"), str):
        data["tracking"] = {"mode": data["tracking"]}
    if isinstance(data.get("recipe"), str):
        data["recipe"] = {"name": data["recipe"]}
    for override in overrides:
        _apply(data, override)
    if seed is not None:
        data["seed"] = seed
    config = parse_config(data, source=str(path))
    if config.foreign is not None:
        refused = "'foreign' is the config of another loop's record and cannot be trained"
        raise UsageError(f"{path}: {refused}; leave it out")
    return config


def parse_config(data: Mapping[str, Any], source: str) -> ExperimentConfig:
    """Validate `data`; errors name `source` (a file, or where the data came from).

    Raises:
        UsageError: as `load_config`.
    """
    try:
        return ExperimentConfig.model_validate(data)
    except ValidationError as error:
        raise UsageError(f"{source}: {first_mistake(error)}") from None


def first_mistake(error: ValidationError, *section: str) -> str:
    """The first of pydantic's errors and how many more there are, on one line; keys are dotted, from `section` on."""
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, (*section, *first["loc"])))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return _explain(key, dict(first)) + more


def command(config: ExperimentConfig) -> str:
    """The command that runs `config` again, from the default config and what differs from it."""
    sets = [f"--set {shlex.quote(f'{key}={scalar(value)}')}" for key, value in changes(config).items()]
    head = ".venv/bin/python experiments/run_experiment.py experiments/configs/defaults.yaml"
    return " \\\n  ".join([head, *sets, f"--seed {config.seed}"])


def changes(config: ExperimentConfig) -> dict[str, Any]:
    """What `config` sets otherwise than the defaults, by dotted key; the seed and bookkeeping left out."""
    default = flat(ExperimentConfig().arm_identity())
    own = flat(config.arm_identity())
    return {key: value for key, value in own.items() if key not in default or value != default[key]}


def flat(sections: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested sections by dotted key."""
    found: dict[str, Any] = {}
    for key, value in sections.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The sections that `flat` has flattened."""
    sections: dict[str, Any] = {}
    for key, value in leaves.items():
        *parents, last = key.split(".")
        target = sections
        for part in parents:
            target = target.setdefault(part, {})
        target[last] = value
    return sections


def scalar(value: Any) -> str:
    """A config value as YAML on one line."""
    return _scalar(value) if isinstance(value, str | int | float) else _yaml(value)


@lru_cache(maxsize=4096, typed=True)
def _scalar(value: str | int | float) -> str:
    """Many arms say the same."""
    return _yaml(value)


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()


_NO_KEY = {
    "model.tied": "the head of the built-in model is a layer of its own, with statistics and step sizes of its own; "
    "a model of yours may tie it to the embedding (altgrad.nn.quantize_model)"
}


def _explain(key: str, error: dict[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        parent, _, leaf = key.rpartition(".")
        known = _known_keys(parent)
        near = [key.removesuffix(leaf) + name for name in difflib.get_close_matches(leaf, known, n=1, cutoff=0.5)]
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {key!r}; {_NO_KEY.get(key, hint)}"
    message = one_line(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "literal_error" and "rounding" in key:
        known = re.findall("'([a-z_]+)'", message)
        return f"{key}: {no_rounding(error['input'], known)}"
    given = "" if isinstance(error.get("input"), dict | BaseModel) else f" (given {str(error.get('input'))[:80]!r})"
    return f"{key}: {message}{given}" if key else message


def _known_keys(parent: str) -> list[str]:
    model: type[BaseModel] = ExperimentConfig
    for part in filter(None, parent.split(".")):
        model = _section(model, part) or model
    return [*model.model_fields, *(["recipe"] if model is ExperimentConfig else [])]


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {override!r}: write key=value, for example --set max_steps=300")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {override!r}: the value is not valid YAML ({one_line(error)})") from None
    if isinstance(value, str):
        value = _number(value)
    *parents, leaf = key.strip().split(".")
    target = data
    for part in parents:
        inner = target.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UsageError(f"--set {override!r}: {part!r} is a value, not a section")
        target = inner
    target[leaf] = value


def _number(text: str) -> str | float:
    """YAML 1.1 reads 3e-3 as text (it wants 3.0e-3); people mean the number."""
    return float(text) if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text) else text


def one_line(error: object) -> str:
    """The text of an error on one line."""
    return " ".join(str(error).split())
