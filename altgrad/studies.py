"""The campaign as data: every arm by its name, every study's arms, seeds and rates. Imported by all that asks which.

An arm is a config without its seed. Its name is a key and never shown: the `label` is for readers and may be reworded
at any time, since runs are found by what their config is (`Arm.identity`). A new arm is a line of `ARMS`; which seeds
a study has, and at which rate an arm trains, stand here once.

What each study is to answer was written down before it ran, in docs/method/preregistration.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

from altgrad.config import LAYER_TYPES, OPERAND_NAMES, OPERANDS, ExperimentConfig, UsageError, digest, parse_config
from altgrad.formats import get_format

PILOT_SEEDS = range(5)
SEEDS = range(10, 26)
CLOSE_SEEDS = range(10, 42)
"""Seeds of FP32 and of the three formats that the pilot could not separate."""

FEW_SEEDS = range(10, 18)
LONG_SEEDS = range(10, 15)
TUNING_SEEDS = range(100, 102)
"""Held out: no study reports them."""

HEAD_SEEDS = range(50, 66)
HEAD_TUNING_SEEDS = range(102, 106)
"""Of the studies on the gradient of the logits, which the first campaign has not seen; the second are held out."""

FEW_HEAD_SEEDS = HEAD_SEEDS[:8]

LADDER_SEEDS = range(70, 78)
LADDER_TUNING_SEEDS = range(106, 110)
"""Of the ladder, which no other study has; the second are held out."""

HELD_OUT_SEEDS = (*TUNING_SEEDS, *HEAD_TUNING_SEEDS, *LADDER_TUNING_SEEDS)
CAMPAIGN_SEEDS = (*CLOSE_SEEDS, *HEAD_SEEDS, *LADDER_SEEDS)
"""All seeds that the campaign's studies report."""

SPLITS = ("E0M7", "E2M5", "E3M4", "E4M3", "E5M2", "E6M1", "E7M0")
"""The splits of 8 bits. E1M6 is E0M7 with another scale: it runs once, to show it."""

CLOSE_FORMATS = ("E3M4", "E4M3", "E5M2")
RULE_FORMATS = ("E4M3", "E5M2", "E0M7")
NEW_RULES = ("decayed", "relative", "muon")
"""The formats in which step rules are compared, the first with every rule, and the rules that studies rivals and decay
tune."""

EXTREMES = ("E0M7", "E7M0")
OPERAND_PLACES = ("weights", "activations", "gradients")
"""One operand alone, in the names of arms and of places; what readers call the operands is `OPERAND_NAMES`."""

FP32_RATE = 0.016
"""AdamW's rate for FP32, the best of study pilot-tuning. Every arm has it for the parameters that are not quantized."""

ADAMW_RATES = (0.002, 0.004, 0.008, 0.016, 0.032)
"""Swept for AdamW and for the gradient precondition, whose steps are in the same unit."""

ULPS_OF_ONE = (0.04, 0.08, 0.16, 0.32, 0.64)
"""Swept for the update precondition, as a step relative to the weight: the rate in ulps is this times 2^M. E0M7 has
the same ulp for every weight, about 2^-7 of the tensor's largest: there the rates are AdamW's, in ulps."""

HEAD_RATES = (0.004, 0.008, 0.016, 0.032)
"""Swept for the kinds of arm of the studies on the gradient of the logits."""

RELATIVE_RATES = (0.02, 0.04, 0.08, 0.16, 0.32)
CODE_RATES = (0.0625, 0.125, 0.25, 0.5, 1.0)


class Choice(NamedTuple):
    """A step rule, or where weights are kept: its settings of the optimizer, and what readers call it."""

    settings: dict[str, Any]
    label: str


RULES = {
    "adamw": Choice({}, "AdamW"),
    "relative": Choice({"relative": True}, "AdamW, relative rate"),
    "gradient": Choice({"step_rule": "manifold", "precondition": "gradient"}, "ManifoldAdamW on gradients"),
    "update": Choice({"step_rule": "manifold", "precondition": "update"}, "ManifoldAdamW"),
    "code": Choice({"step_rule": "code", "weight_decay": 0}, "Steps of codes"),
    "decayed": Choice({"step_rule": "code", "weight_decay": 0.0032}, "Steps of codes with weight decay"),
    "muon": Choice({"step_rule": "muon"}, "Muon"),
    "shuffled": Choice(
        {"step_rule": "manifold", "precondition": "update", "stiffness": "shuffled"}, "ManifoldAdamW, S shuffled"
    ),
    "constant": Choice(
        {"step_rule": "manifold", "precondition": "update", "stiffness": "constant"}, "ManifoldAdamW, S constant"
    ),
}
PLACES = {
    "master": Choice({}, "master weights, nearest"),
    "drawn": Choice({"rounding": "stochastic"}, "master weights, stochastic"),
    "nearest": Choice({"storage": "grid"}, "grid, nearest"),
    "stochastic": Choice({"storage": "grid", "rounding": "stochastic"}, "grid, stochastic"),
    "feedback": Choice({"storage": "grid", "rounding": "error_feedback"}, "grid, error feedback"),
}
GRID = ("nearest", "stochastic", "feedback")

SHORT = {"eval_every": 100, "log_every": 10, "layers_every": 50}
FRESH: dict[str, Any] = {**SHORT, "layers_every": 100, "final_eval_characters": 100_000, "telemetry": {"logits": True}}
"""Of the studies from 2026-11-30 on: the final loss reads ten times as much text."""

READ = f", evaluated on {FRESH['final_eval_characters']:,} characters"
"""What tells the label of an arm of theirs from that of the same arm of an earlier study."""

LONG: dict[str, Any] = {"max_steps": 1500, "warmup_steps": 100, "eval_every": 300, "layers_every": 250}
QUICK: dict[str, Any] = {"max_steps": 60, "eval_every": 30, "layers_every": 20}
MISSCALED: dict[str, Any] = {"model": {"rescale": 6}, "clip_norm": None}
"""Tensors begin multiplied by up to 2^6, either way; nothing clips what that does to the gradients."""

LARGE: dict[str, Any] = {
    "model": {"layers": 6, "dim": 384, "heads": 6, "context": 256},
    "batch_size": 64,
    "max_steps": 5000,
    "warmup_steps": 200,
    "eval_every": 1000,
    "layers_every": 500,
}
PACKED_LOOKS = 100
"""A packed study keeps the looks at multiples of this step whole."""


@dataclass(frozen=True)
class Arm:
    """One config with all its seeds.

    Attributes:
        name: its key; letters, digits and spaces, never shown.
        format: the name of its format, "FP32" without quantization; of several, that of the weights.
        quantize: the section of the config.
        rule, place: keys of `RULES` and `PLACES`.
        rate: learning rate of the quantized weights, or the name of the arm whose sweep finds it.
        other: learning rate of all other parameters; None: the same.
        settings: further keys of the config.
        label: what readers call it.
        rates: those that a sweep tries it with, where not the five of its rule.
    """

    name: str
    format: str
    quantize: Mapping[str, Any] = field(default_factory=dict)
    rule: str = "adamw"
    place: str = "master"
    rate: float | str = FP32_RATE
    other: float | None = FP32_RATE
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    rates: Sequence[float] = ()

    def config(self, seed: int = 0, study: str = "local", rate: float | None = None) -> ExperimentConfig:
        """The config of one run; at another `rate` where one is given.

        Raises:
            UsageError: its keys make no config, or its rate is found by a sweep and none is given.
        """
        rate = self.rate if rate is None else rate  # type: ignore[assignment]
        if isinstance(rate, str):
            raise UsageError(f"studies.py, arm {self.name!r}: its learning rate is what the sweep of {rate!r} finds")
        optimizer = {"learning_rate": rate, **RULES[self.rule].settings, **PLACES[self.place].settings}
        optimizer |= self.settings.get("optimizer", {})
        unquantized_adamw = not self.quantize and len(optimizer) == 1
        if self.other is not None and not unquantized_adamw and optimizer != {"learning_rate": self.other}:
            optimizer["other_learning_rate"] = self.other
        given = {**self.settings, "quantize": dict(self.quantize), "optimizer": optimizer, "study": study, "seed": seed}
        return parse_config(given, source=f"studies.py, arm {self.name!r}")

    @cached_property
    def identity(self) -> str:
        """What the configs of its runs have in common, as a digest, whatever they are called: `identity_of` of each.

        "" while a sweep is still to find its rate.
        """
        return "" if isinstance(self.rate, str) else identity_of(self.config())

    @property
    def swept_rates(self) -> tuple[float, ...]:
        """The rates that it is tried with: its own, or the five of its rule, two apart by a factor of 2."""
        if self.rates:
            return tuple(self.rates)
        if self.rule == "relative":
            return RELATIVE_RATES
        if self.rule in ("code", "decayed"):
            return CODE_RATES
        if RULES[self.rule].settings.get("precondition") != "update":
            return ADAMW_RATES
        fmt = get_format(self.settings.get("optimizer", {}).get("format") or self.format)
        return tuple(rate * 2**fmt.mantissa_bits for rate in (ULPS_OF_ONE if fmt.exponent_bits else ADAMW_RATES))


def identity_of(config: ExperimentConfig, rate: bool = True) -> str:
    """16 hex of a sha256 of what decides a run's numbers, but for seed and data; without `rate`, but for rates too."""
    identity = config.arm_identity()
    if not rate:
        kept = {key: value for key, value in identity["optimizer"].items() if not key.endswith("learning_rate")}
        identity = identity | {"optimizer": kept}
    return digest(identity)[:16]


def every(fmt: str) -> dict[str, str]:
    """All three operands in one format."""
    return dict.fromkeys(OPERANDS, fmt.lower())


def _arm(
    name: str, fmt: str = "FP32", quantize: Mapping[str, Any] | None = None, *, label: str = "", **settings: Any
) -> Arm:
    """An arm of the campaign: all operands in `fmt` unless `quantize` says what else."""
    keys = {key: settings.pop(key) for key in ("rule", "place", "rate", "other", "rates") if key in settings}
    given = every(fmt) if quantize is None and fmt != "FP32" else dict(quantize or {})
    return Arm(name, fmt, given, settings={**SHORT, **settings}, label=label or name, **keys)


def _step_rule(fmt: str, rule: str, place: str, rate: float | str, suffix: str = "", **settings: Any) -> Arm:
    label = f"{fmt} {RULES[rule].label}" + ("" if place == "master" else f" ({PLACES[place].label})")
    settings["label"] = label + (", mis-scaled" if suffix == " misscaled" else "")
    return _arm(f"{fmt} {rule} {place}{suffix}", fmt, rule=rule, place=place, rate=rate, **settings)


def _pilot(name: str, fmt: str, rule: str = "adamw", rate: float = FP32_RATE, **settings: Any) -> Arm:
    """An arm of the pilot, which had another rate than FP32's for what the manifold rule leaves to AdamW."""
    quantize = every(fmt) if fmt != "FP32" else {}
    other = None if rule == "adamw" else 0.008
    return Arm(name, fmt, quantize, rule, rate=rate, other=other, settings=settings, label=name)


TUNED = (
    ("E4M3", "gradient", "master", 0.016),
    ("E4M3", "relative", "master", 0.08),
    ("E4M3", "adamw", "drawn", 0.016),
    ("E4M3", "update", "master", 1.28),
    ("E4M3", "adamw", "nearest", 0.016),
    ("E4M3", "adamw", "stochastic", 0.016),
    ("E4M3", "adamw", "feedback", 0.016),
    ("E4M3", "update", "nearest", 1.28),
    ("E4M3", "update", "stochastic", 1.28),
    ("E4M3", "update", "feedback", 1.28),
    ("E4M3", "gradient", "nearest", 0.032),
    ("E4M3", "gradient", "stochastic", 0.016),
    ("E4M3", "gradient", "feedback", 0.032),
    ("E4M3", "relative", "nearest", 0.16),
    ("E4M3", "relative", "stochastic", 0.08),
    ("E4M3", "relative", "feedback", 0.16),
    ("E4M3", "code", "stochastic", 0.5),
    ("E5M2", "update", "master", 0.64),
    ("E5M2", "adamw", "nearest", 0.032),
    ("E5M2", "adamw", "stochastic", 0.016),
    ("E5M2", "adamw", "feedback", 0.016),
    ("E5M2", "update", "nearest", 1.28),
    ("E5M2", "update", "stochastic", 0.64),
    ("E5M2", "update", "feedback", 0.64),
    ("E5M2", "code", "stochastic", 0.25),
    ("E0M7", "update", "master", 2.048),
    ("E0M7", "adamw", "nearest", 0.016),
    ("E0M7", "adamw", "stochastic", 0.016),
    ("E0M7", "adamw", "feedback", 0.016),
    ("E0M7", "update", "nearest", 2.048),
    ("E0M7", "update", "stochastic", 1.024),
    ("E0M7", "update", "feedback", 1.024),
    ("E0M7", "code", "stochastic", 0.5),
)
"""Format, rule, place and the best rate of study tuning: the arms of study storage."""

STORAGE_ARMS = tuple(_step_rule(*tuned) for tuned in TUNED)
UNQUANTIZED_ARMS = (
    _step_rule("FP32", "gradient", "master", 0.016, optimizer={"format": "e4m3"}),
    _step_rule("FP32", "update", "master", 1.28, optimizer={"format": "e4m3"}),
    _step_rule("FP32", "relative", "master", 0.08),
)
ABLATION_ARMS = tuple(_step_rule("E4M3", rule, "master", 1.28) for rule in ("shuffled", "constant"))
MISSCALED_ARMS = (
    *(
        _step_rule("E4M3", rule, "master", rate, " misscaled", **MISSCALED)
        for rule, rate in (("adamw", 0.002), ("relative", 0.08), ("gradient", 0.004), ("update", 1.28))
    ),
    _step_rule("FP32", "adamw", "master", 0.016, " misscaled", **MISSCALED),
)
CONTROL_ARMS = (*UNQUANTIZED_ARMS, *ABLATION_ARMS, *MISSCALED_ARMS)
LARGE_STORAGE_ARMS = tuple(
    _step_rule("E4M3", rule, place, f"E4M3 {rule} {place} large", " large", **LARGE)
    for rule in ("adamw", "update")
    for place in GRID[:2]
)
SCALES: dict[str, tuple[dict[str, Any], str]] = {
    "exact": ({"power_of_two": False}, "an exact scale"),
    "row": ({"granularity": "row"}, "one scale per row"),
    "block": ({"granularity": "block"}, "one scale per block of 32"),
    "delayed": ({"kind": "delayed"}, "a delayed scale"),
    "unscaled": ({"kind": "none"}, "no scale"),
}
PILOT_TUNED = {
    ("E2M5", "adamw"): 0.016,
    ("E2M5", "gradient"): 0.016,
    ("E2M5", "update"): 2.56,
    ("E3M4", "adamw"): 0.016,
    ("E3M4", "gradient"): 0.016,
    ("E3M4", "update"): 2.56,
    ("E4M3", "adamw"): 0.016,
    ("E4M3", "gradient"): 0.016,
    ("E4M3", "update"): 1.28,
    ("E5M2", "adamw"): 0.016,
    ("E5M2", "gradient"): 0.016,
    ("E5M2", "update"): 0.64,
}
"""(format, rule) -> the best rate of study pilot-tuning (mean validation loss of its two seeds)."""

ROUNDED = {
    "nearest": "rounded to nearest",
    "stochastic": "rounded stochastically",
    "diffused": "rounded by diffusion",
    "wide": "not quantized",
}
"""What becomes of the gradient of the logits: the key of an arm, and what readers are told."""

LOGITS = ", gradient of the logits "
TO_NEAREST = f"{LOGITS}{ROUNDED['nearest']}"
"""In labels: how most arms round it, unsaid where both arms of a contrast do."""

OWN_ROUNDED = {
    "mean-removed": "rounded to nearest and the row's mean removed",
    "residual-on-target": "rounded to nearest and what a row lacks added to its target",
}
"""The same of the controls, whose roundings are those of experiments/controls.py."""

_BLOCKS: dict[str, tuple[str, dict[str, Any]]] = {
    "MXFP6": ("E3M2", {"kind": "mx_rceil", "axis": "contraction"}),
    "MXFP4 up": ("E2M1", {"kind": "mx_rceil", "axis": "contraction"}),
    "NVFP4": ("E2M1", {"kind": "nvfp4", "axis": "contraction"}),
}
"""Formats with scales of blocks, which lie along the dimension that a product sums over: element and scale."""

HEAD_FORMATS = (*SPLITS, *_BLOCKS)
TEXT_FORMATS = ("E0M7", "E2M5", "E3M4", "E4M3", "E5M2", "NVFP4")
COSTLY = ("E0M7", "MXFP4 up", "NVFP4", "E7M0")
"""The formats in which the gradient of the logits costs most, by the pilots of the second registration."""

HEAD_TUNED = {
    (fmt, rounding): rate
    for fmt, rates in {
        "E0M7": {"nearest": 0.008, "stochastic": 0.016, "diffused": 0.016, "wide": 0.016, "body": 0.016},
        "MXFP4 up": {"nearest": 0.0005, "stochastic": 0.016, "diffused": 0.016, "wide": 0.016, "body": 0.016},
        "NVFP4": {"nearest": 0.004, "stochastic": 0.016, "diffused": 0.016, "wide": 0.016, "body": 0.008},
        "E7M0": {"nearest": 0.002, "stochastic": 0.008, "diffused": 0.016, "wide": 0.016, "body": 0.008},
    }.items()
    for rounding, rate in rates.items()
}
"""One of `COSTLY`, and the rounding of the logits' gradient, or "body" where embedding and head are not quantized ->
the best rate of study head-tuning (mean validation loss of its four seeds). All others have FP32's."""


SWEPT = (
    *(f"{fmt} head {how}" for fmt in ("E0M7", "E6M1", "E7M0", "MXFP4 up") for how in OWN_ROUNDED),
    *(f"E0M7 {scale} fresh" for scale in ("block", "tile", "square")),
    *(f"FP32 {tokens}" for tokens in (512, 2048)),
    *(f"{fmt} head nearest 2048 tuned" for fmt in ("E0M7", "NVFP4")),
    *(f"{fmt} {rule} fresh" for fmt in RULE_FORMATS for rule in NEW_RULES),
    "FP32 muon fresh",
    "FP32 256",
)
"""Arms of the third registration with learning rates of their own."""

FOLLOW_TUNED: dict[str, float] = {
    "E0M7 head mean-removed": 0.004,
    "E6M1 head mean-removed": 0.008,
    "E7M0 head mean-removed": 0.0005,
    "MXFP4 up head mean-removed": 0.00025,
    "E0M7 head residual-on-target": 0.016,
    "E6M1 head residual-on-target": 0.016,
    "E7M0 head residual-on-target": 0.016,
    "MXFP4 up head residual-on-target": 0.008,
    "E0M7 block fresh": 0.016,
    "E0M7 tile fresh": 0.016,
    "E0M7 square fresh": 0.008,
    "E4M3 decayed fresh": 1.0,
    "E5M2 decayed fresh": 0.25,
    "E0M7 decayed fresh": 0.5,
    "E4M3 relative fresh": 0.08,
    "E5M2 relative fresh": 0.08,
    "E0M7 relative fresh": 0.04,
    "E4M3 muon fresh": 0.032,
    "E5M2 muon fresh": 0.032,
    "E0M7 muon fresh": 0.032,
    "FP32 muon fresh": 0.032,
    "FP32 512": 0.016,
    "FP32 2048": 0.016,
    "NVFP4 head nearest 2048 tuned": 0.016,
    "FP32 256": 0.002,
}
"""Arm of `SWEPT` -> the best rate of the sweep that has it (mean validation loss of its four seeds). E0M7 to nearest
with 2,048 tokens has none: it diverges at every rate."""


def _fresh(name: str, fmt: str, label: str, more: Mapping[str, Any], tuned: str = "", **settings: Any) -> Arm:
    """An arm of the studies on the gradient of the logits; `fmt` may be a format with scales of blocks."""
    element, scaling = _BLOCKS.get(fmt, (fmt, {}))
    settings = {**FRESH, **settings} | ({"scaling": scaling} if scaling else {})
    rate = HEAD_TUNED.get((fmt, tuned), FP32_RATE)
    return _arm(name, element, {**every(element), **more}, label=label, rate=swept_rate(name, rate), **settings)


def swept_rate(name: str, otherwise: float) -> float | str:
    """The rate of an arm of `SWEPT`, or the sweep that is to find it; of any other arm the given one."""
    return FOLLOW_TUNED.get(name, name) if name in SWEPT else otherwise


def _head(fmt: str, rounding: str, suffix: str = "", said: str = "", **settings: Any) -> Arm:
    """All layers in `fmt`, and the gradient of the logits rounded so."""
    own = f"own:{rounding}" if rounding in OWN_ROUNDED else rounding
    more = {} if rounding == "nearest" else {"grad_output_rounding": {"head": own}}
    settings |= {"draw_version": 2} if rounding == "stochastic" else {}
    label = f"{_shown(fmt)}{LOGITS}{(ROUNDED | OWN_ROUNDED)[rounding]}{said}"
    return _fresh(f"{fmt} head {rounding}{suffix}", fmt, label, more, rounding, **settings)


def _body(fmt: str, operand: str = "") -> Arm:
    """Attention and MLP in `fmt`; with an operand, that one alone."""
    element = _BLOCKS.get(fmt, (fmt, {}))[0].lower()
    only = {name: element if not operand or name == operand else "fp32" for name in OPERANDS}
    name = f"{fmt} body{' ' + OPERAND_NAMES[operand] if operand else ''}"
    label = f"{_shown(fmt)} in {'the ' + OPERAND_NAMES[operand] + ' of ' if operand else ''}attention and mlp"
    return _fresh(name, fmt, label, {**only, "layers": ["attention", "mlp"]}, "body")


def _shown(fmt: str) -> str:
    return fmt.replace(" up", " (scales up)")


HEAD_ARMS = tuple(_head(fmt, rounding) for fmt in HEAD_FORMATS for rounding in ROUNDED)
BODY_ARMS = tuple(_body(fmt) for fmt in HEAD_FORMATS)
TEXT_ARMS = tuple(
    _head(fmt, rounding, " sympy", "; source code", data="sympy")
    for fmt in TEXT_FORMATS
    for rounding in ("nearest", "stochastic")
)
CONTROL_FORMATS = ("E0M7", "E6M1", "E7M0", "MXFP4 up")
HEAD_CONTROL_ARMS = tuple(_head(fmt, how) for fmt in CONTROL_FORMATS for how in OWN_ROUNDED)
BODY_OPERAND_ARMS = tuple(_body(fmt, operand) for fmt in ("E6M1", "E7M0", "MXFP4 up", "NVFP4") for operand in OPERANDS)
"""The four formats whose gaps were largest in study blocks-only."""

FINE_SCALES: dict[str, tuple[dict[str, Any], str]] = {
    "block": ({"granularity": "block"}, "one scale per block of 32 along the last dimension"),
    "tile": ({"granularity": "block", "axis": "contraction"}, "one scale per block of 32 along the sum"),
    "square": ({"granularity": "block_2d"}, "one scale per square of 32 x 32"),
}
FINE_FORMATS = ("E0M7", "E2M5", "E3M4", "E4M3", "E5M2")
FINE_ARMS = tuple(
    _fresh(f"{fmt} {scale} fresh", fmt, f"{fmt} with {label}", {}, scaling=rule)
    for fmt in FINE_FORMATS
    for scale, (rule, label) in FINE_SCALES.items()
)
WIDE: dict[str, Any] = {"model": {"dim": 256}}
WIDE_ARMS = tuple(
    _fresh(f"{fmt} {scale} 256", fmt, f"{fmt} with {label}; width 256", {}, scaling={"block": 128, **rule}, **WIDE)
    for fmt in FINE_FORMATS
    for scale, rule, label in (
        ("tile", FINE_SCALES["tile"][0], "one scale per block of 128 along the sum"),
        ("square", FINE_SCALES["square"][0], "one scale per square of 128 x 128"),
    )
)
VOCABULARIES = (512, 2048)
VOCABULARY_FORMATS = ("E0M7", "E2M5", "E7M0", "MXFP4 up", "NVFP4")


def _tokens(count: int) -> dict[str, Any]:
    return {"tokenizer": "bpe", "vocabulary": count}


VOCABULARY_ARMS = tuple(
    _head(fmt, how, f" {count}", f"; {count} tokens", **_tokens(count))
    for count in VOCABULARIES
    for fmt in VOCABULARY_FORMATS
    for how in ("nearest", "stochastic", "wide")
)
RIVAL_ARMS = tuple(
    _arm(
        f"{fmt} {rule} fresh",
        fmt,
        rule=rule,
        rate=rate or swept_rate(f"{fmt} {rule} fresh", FP32_RATE),
        other=HEAD_TUNED.get((fmt, "nearest"), FP32_RATE) if rule == "muon" else FP32_RATE,
        label=f"{fmt} {RULES[rule].label}{READ}",
        **FRESH,
    )
    for fmt, rule, rate in (
        ("E4M3", "update", 1.28),
        ("E5M2", "update", 0.64),
        ("E0M7", "update", 2.048),
        *((fmt, rule, None) for fmt in RULE_FORMATS for rule in ("relative", "muon")),
        ("FP32", "muon", None),
    )
)
DECAY_ARMS = tuple(
    _arm(
        f"{fmt} {rule} fresh",
        fmt,
        rule=rule,
        place="stochastic",
        rate=FP32_RATE if rule == "adamw" else swept_rate(f"{fmt} {rule} fresh", FP32_RATE),
        label=f"{fmt} {RULES[rule].label} (grid, stochastic){READ}",
        **FRESH,
    )
    for fmt in RULE_FORMATS
    for rule in ("decayed", "adamw")
)
HEAD_TUNING_ARMS = (
    "FP32 fresh",
    *(f"{fmt} head {rounding}" for fmt in COSTLY for rounding in ROUNDED),
    *(f"{fmt} body" for fmt in COSTLY),
)

_STOCHASTIC: dict[str, Any] = {"rounding": {"grad_output": "stochastic"}}


class Size(NamedTuple):
    """A model of the ladder, and how long it is trained; a head has 16 dimensions."""

    dim: int
    layers: int
    steps: tuple[int, ...]

    @property
    def name(self) -> str:
        """Width and layers, such as "96x3"."""
        return f"{self.dim}x{self.layers}"

    @property
    def parameters(self) -> int:
        """Of attention and MLP, without embedding and head: what a law of size is about."""
        return 12 * self.layers * self.dim**2


TOKENS_PER_STEP = 16 * 32
"""Batch times context, in the ladder as in the default config."""

LADDER = (
    Size(32, 2, (400, 1600, 6400)),
    Size(64, 2, (400, 1600, 6400)),
    Size(96, 3, (400, 1600)),
    Size(128, 4, (400, 1600)),
)
LADDER_HELD_OUT = (Size(192, 4, (400, 1600)),)
LADDER_LARGE = (Size(384, 6, (1600, 6400)), Size(640, 10, (1600,)))
"""The second are not looked at before the law that the first give is committed; the third are for a GPU. A line more
is a rung more (docs/guides/add-a-rung.md)."""

LADDER_STEPS = 1600
"""How long the runs are that find a size's learning rates."""

LADDER_RATES = (0.008, 0.016, 0.032)
MUP_WIDTH = 64
"""Where `FP32_RATE` was found."""

EXTRAPOLATED_RATES: Mapping[str, tuple[float, float]] = MappingProxyType({})
"""The size -> FP32's rate and that of all quantized arms, for sizes without a sweep: what the committed fit says
(`make ladder-fit`). Their studies wait for it."""

_BODY: dict[str, Any] = {"layers": ["attention", "mlp"]}
LADDER_FORMS: Mapping[str, tuple[str, dict[str, Any], str]] = MappingProxyType(
    {
        "FP32": ("FP32", {}, "FP32"),
        "E7M0": ("E7M0", _BODY, "E7M0"),
        "E6M1": ("E6M1", _BODY, "E6M1"),
        "E5M2": ("E5M2", _BODY, "E5M2"),
        "MXFP6": ("MXFP6", _BODY, "MXFP6"),
        "MXFP4": ("MXFP4 up", _BODY, "MXFP4 (scales up)"),
        "NVFP4": ("NVFP4", _BODY, "NVFP4"),
        "NVFP4 drawn": ("NVFP4", {**_BODY, **_STOCHASTIC}, "NVFP4, gradients stochastic"),
        "NVFP4 all": ("NVFP4", {}, "NVFP4 everywhere"),
        "NVFP4 all drawn": (
            "NVFP4",
            {"grad_output_rounding": {"head": "stochastic"}},
            "NVFP4 everywhere, gradient of the logits stochastic",
        ),
    }
)
"""An arm of the ladder -> its format, what else it quantizes how, and what readers call it."""

FITTED = ("E7M0", "E6M1", "E5M2", "MXFP6", "MXFP4", "NVFP4", "NVFP4 drawn")
"""The arms that the law is fitted to: attention and MLP quantized."""
SHORTER = ("E5M2", "MXFP6")
"""Of them those that the longest runs leave out, since their gaps are small."""
EVERYWHERE = {"NVFP4 all": ("64x2", "128x4"), "NVFP4 all drawn": ("64x2", "128x4")}
"""Everything quantized: outside of the fit, at two sizes."""
MANTISSA_LADDER = {"E7M0": 0, "E6M1": 1, "E5M2": 2}
"""The arms that differ in mantissa bits alone, and how many they have."""


def rung_name(form: str, size: Size, steps: int) -> str:
    """The name of an arm of the ladder."""
    return f"{form} ladder {size.name} {steps}"


def rung(form: str, size: Size, steps: int, rate: float | str, kind: str = "", **settings: Any) -> Arm:
    """An arm of the ladder: one of `LADDER_FORMS` at a size, for so many steps; a `kind` of its own is in its name.

    It looks and evaluates seldom, since its run may be short; the final loss reads 100,000 characters.
    """
    fmt, more, label = LADDER_FORMS[form]
    element, scaling = _BLOCKS.get(fmt, (fmt, {}))
    seldom = max(steps // 4, 400)
    own: dict[str, Any] = {
        **FRESH,
        "model": {"layers": size.layers, "dim": size.dim, "heads": size.dim // 16},
        "data": "licenses-all",
        "max_steps": steps,
        "eval_every": seldom,
        "layers_every": seldom,
        "log_every": max(steps // 160, 10),
        "telemetry": {"rank_every": 0, "codes_every": 0},
        "other": None,
    }
    if size in LADDER_LARGE:  # a run may be longer than one stay on a machine
        own["checkpoint"] = {"every": 200, "keep": 1}
    if "drawn" in form:
        own["draw_version"] = 2
    own |= ({"scaling": scaling} if scaling else {}) | settings
    quantize = {**every(element), **more} if fmt != "FP32" else {}
    label = ", ".join(filter(None, (label, f"{size.parameters:,} parameters", f"{steps:,} steps", kind)))
    name = f"{rung_name(form, size, steps)} {kind}".strip()
    return _arm(name, element, quantize, label=label, rate=rate, **own)


def forms_at(size: Size, steps: int) -> tuple[str, ...]:
    """The arms that the ladder has at a size and a length."""

    def has(form: str) -> bool:
        if form in EVERYWHERE:
            return size.name in EVERYWHERE[form] and steps == LADDER_STEPS
        return form not in SHORTER or steps <= LADDER_STEPS

    return tuple(filter(has, LADDER_FORMS))


def _rungs(size: Size, rates: tuple[float | str, float | str]) -> Iterator[Arm]:
    """All arms of one size at FP32's rate and that of the others."""
    swept = LADDER_RATES if isinstance(rates[0], str) else ()
    for steps in size.steps:
        yield from (rung(form, size, steps, rates[form != "FP32"], rates=swept) for form in forms_at(size, steps))


def _swept_rates(size: Size) -> tuple[str, str]:
    """The arms whose sweeps find the rates of a size."""
    return rung_name("FP32", size, LADDER_STEPS), rung_name("NVFP4", size, LADDER_STEPS)


def _mup(size: Size) -> Arm:
    """muP's rule for Adam: hidden matrices have FP32's rate times `MUP_WIDTH` / width, all else that rate itself."""
    name = f"{rung_name('NVFP4', size, LADDER_STEPS)} by width"
    rates = (FP32_RATE * MUP_WIDTH / size.dim,)
    return rung("NVFP4", size, LADDER_STEPS, name, "by width", rates=rates, other=FP32_RATE)


LADDER_ARMS = tuple(itertools.chain.from_iterable(_rungs(size, _swept_rates(size)) for size in LADDER))
LADDER_MUP_ARMS = tuple(_mup(size) for size in LADDER if size.dim != MUP_WIDTH)
HELD_OUT_ARMS, LARGE_LADDER_ARMS = (
    tuple(arm for size in sizes if (rates := EXTRAPOLATED_RATES.get(size.name)) for arm in _rungs(size, rates))
    for sizes in (LADDER_HELD_OUT, LADDER_LARGE)
)
CHECK_ARMS = tuple(
    rung(form, size, LADDER_STEPS, rate * factor, kind)
    for size in LADDER_HELD_OUT
    for form, rate in zip(("FP32", "NVFP4"), EXTRAPOLATED_RATES.get(size.name, ()), strict=False)
    for kind, factor in (("at half the rate", 0.5), ("at twice the rate", 2.0))
)

_BOTH_STOCHASTIC = {"rounding": dict.fromkeys(("activation", "grad_output"), "stochastic")}
_OBSERVED: dict[str, Any] = {
    "telemetry": {"histograms": list(OPERANDS), "codes_every": 1},
    "layers_every": PACKED_LOOKS,
}
_ARMS: tuple[Arm, ...] = (
    _arm("FP32"),
    _arm("BF16", "BF16"),
    *(_arm(fmt, fmt) for fmt in (*SPLITS, "E1M6")),
    _arm("E0M7 own rate", "E0M7", rate=0.008, label="E0M7 with a learning rate of its own"),
    _arm("E7M0 own rate", "E7M0", rate=0.004, label="E7M0 with a learning rate of its own"),
    *(
        _arm(f"{fmt} {alone}", fmt, {operand: fmt.lower()}, label=f"{fmt} in {OPERAND_NAMES[operand]}")
        for operand, alone in zip(OPERANDS, OPERAND_PLACES, strict=True)
        for fmt in SPLITS
    ),
    *(
        _arm(f"{fmt} {kind}", fmt, {**every(fmt), "layers": [kind]}, label=f"{fmt} in {kind}")
        for kind in LAYER_TYPES
        for fmt in SPLITS
    ),
    *STORAGE_ARMS,
    *CONTROL_ARMS,
    *(
        _arm(f"{fmt} {scale}", fmt, scaling=rule, label=f"{fmt} with {label}")
        for fmt in (*RULE_FORMATS, "E7M0")
        for scale, (rule, label) in SCALES.items()
        if fmt != "E7M0" or scale == "block"
    ),
    _arm(
        "E4M3 E5M2 gradients",
        "E4M3",
        {**every("E4M3"), "grad_output": "e5m2"},
        label="E4M3 forward with E5M2 gradients",
    ),
    _arm(
        "E5M2 E4M3 gradients",
        "E5M2",
        {**every("E5M2"), "grad_output": "e4m3"},
        label="E5M2 forward with E4M3 gradients",
    ),
    _arm("MXFP8", "E4M3", scaling={"kind": "mx"}),
    _arm("MXFP4", "E2M1", scaling={"kind": "mx"}),
    _arm("NVFP4", "E2M1", scaling={"kind": "nvfp4"}),
    _arm("MXFP8 up", "E4M3", scaling={"kind": "mx_rceil"}, label="MXFP8 with scales rounded up"),
    _arm("MXFP4 up", "E2M1", scaling={"kind": "mx_rceil"}, label="MXFP4 with scales rounded up"),
    *(
        _arm(
            f"{name} stochastic gradients",
            "E2M1",
            {**every("E2M1"), **_STOCHASTIC},
            scaling={"kind": kind},
            label=f"{label} with gradients rounded stochastically",
        )
        for name, kind, label in (
            ("MXFP4", "mx", "MXFP4"),
            ("MXFP4 up", "mx_rceil", "MXFP4 with scales rounded up,"),
            ("NVFP4", "nvfp4", "NVFP4"),
        )
    ),
    *(
        _arm(f"{fmt} {name}", fmt, {**every(fmt), **more}, label=f"{fmt} with {label}")
        for fmt in EXTREMES
        for name, more, label in (
            ("stochastic gradients", _STOCHASTIC, "gradients rounded stochastically"),
            ("stochastic both", _BOTH_STOCHASTIC, "activations and gradients rounded stochastically"),
            ("E5M2 gradients", {"grad_output": "e5m2"}, "gradients in E5M2"),
        )
    ),
    *(_arm(f"{fmt} long", fmt, label=f"{fmt} after 1,500 steps", **LONG) for fmt in ("FP32", *CLOSE_FORMATS, "E0M7")),
    *(_arm(f"{fmt} observed", fmt, **_OBSERVED) for fmt in ("FP32", *CLOSE_FORMATS, *EXTREMES)),
    _arm("E2M5 block", "E2M5", scaling=SCALES["block"][0], label="E2M5 with one scale per block of 32"),
    _arm("E3M4 block", "E3M4", scaling=SCALES["block"][0], label="E3M4 with one scale per block of 32"),
    _arm("FP32 fresh", label=f"FP32{READ}", **FRESH),
    *HEAD_ARMS,
    *BODY_ARMS,
    _arm("FP32 sympy", label="FP32; source code", data="sympy", **FRESH),
    *TEXT_ARMS,
    *HEAD_CONTROL_ARMS,
    *BODY_OPERAND_ARMS,
    *FINE_ARMS,
    *(
        _arm(
            f"FP32 {count}",
            rate=swept_rate(f"FP32 {count}", FP32_RATE),
            other=None,
            label=f"FP32; {count} tokens",
            **FRESH,
            **_tokens(count),
        )
        for count in VOCABULARIES
    ),
    *VOCABULARY_ARMS,
    *(
        replace(_head(fmt, "nearest", " 2048 tuned", "; 2048 tokens", **_tokens(2048)), rate=rate)
        for fmt, rate in ((fmt, swept_rate(f"{fmt} head nearest 2048 tuned", FP32_RATE)) for fmt in ("E0M7", "NVFP4"))
    ),
    *RIVAL_ARMS,
    *DECAY_ARMS,
    _arm("FP32 256", rate=swept_rate("FP32 256", FP32_RATE), other=None, label="FP32; width 256", **FRESH, **WIDE),
    *(replace(arm, rate=swept_rate("FP32 256", FP32_RATE), other=None) for arm in WIDE_ARMS),
    _arm("FP32 large", rate="FP32 large", **LARGE),
    *(_arm(f"{fmt} large", fmt, rate="FP32 large", other=None, **LARGE) for fmt in SPLITS),
    *LARGE_STORAGE_ARMS,
    *LADDER_ARMS,
    *LADDER_MUP_ARMS,
    *HELD_OUT_ARMS,
    *LARGE_LADDER_ARMS,
    *CHECK_ARMS,
    *(_arm(f"{fmt} quick", fmt, **QUICK) for fmt in ("FP32", "E4M3", "E5M2", "E0M7", "E7M0")),
    *(_arm(f"E0M7 {kind} quick", "E0M7", {**every("E0M7"), "layers": [kind]}, **QUICK) for kind in LAYER_TYPES),
    *(_step_rule("E4M3", "adamw", place, FP32_RATE, " quick", **QUICK) for place in GRID),
    _step_rule("E4M3", "update", "master", 1.28, " quick", **QUICK),
    _step_rule("E4M3", "code", "stochastic", 0.5, " quick", **QUICK),
    *(_pilot(f"{fmt} pilot", fmt) for fmt in ("FP32", "BF16", *SPLITS, "E1M6")),
    *(_pilot(f"{fmt} {rule} pilot", fmt, rule, rate) for (fmt, rule), rate in PILOT_TUNED.items() if rule != "adamw"),
    *(_pilot(f"{fmt} demo", fmt, max_steps=200) for fmt in ("FP32", "E4M3", "E5M2", "E0M7", "E7M0")),
    _pilot("E4M3 update demo", "E4M3", "update", 1.28, max_steps=200),
)


@dataclass(frozen=True)
class Study:
    """What a study trains.

    Attributes:
        about: one line for readers.
        seeds: the seeds of each of its arms, by name.
        sweeps: each arm is trained at several learning rates, to find its own; "grows" where a sweep whose best rate
            lies at its edge goes on beyond it.
        exploratory: not preregistered, added after another study had been looked at.
        rates: those of a sweep, where not the five of each arm.
        whole: of so many seeds of each arm all recorded looks at the layers are packed, of the others the last one;
            where it is 0, none of any.
        waits: what has to be done before it can run; "" where nothing has.
    """

    about: str
    seeds: Mapping[str, Sequence[int]]
    sweeps: str = ""
    exploratory: bool = False
    rates: Sequence[float] = ()
    whole: int | None = None
    waits: str = ""


def _names(arms: Iterable[Arm]) -> list[str]:
    return [arm.name for arm in arms]


def _with(seeds: Sequence[int], *groups: str | Iterable[str]) -> dict[str, Sequence[int]]:
    names = itertools.chain.from_iterable([group] if isinstance(group, str) else group for group in groups)
    return dict.fromkeys(names, seeds)


_WAITS = "" if EXTRAPOLATED_RATES else "record ladder, then commit what make ladder-fit writes, with EXTRAPOLATED_RATES"
STUDIES: Mapping[str, Study] = {
    "formats": Study(
        "The splits under AdamW at FP32's rate: all operands quantized, then one operand at a time.",
        _with(CLOSE_SEEDS, "FP32", CLOSE_FORMATS)
        | _with(SEEDS, (fmt for fmt in SPLITS if fmt not in CLOSE_FORMATS), "BF16", "E0M7 own rate", "E7M0 own rate")
        | _with(SEEDS[:1], "E1M6")
        | _with(SEEDS, (f"{fmt} {alone}" for alone in OPERAND_PLACES for fmt in SPLITS)),
    ),
    "layers": Study(
        "The splits in one layer type at a time, everything else unquantized.",
        _with(SEEDS, (f"{fmt} {kind}" for kind in LAYER_TYPES for fmt in SPLITS)),
    ),
    "tuning": Study(
        "Five learning rates and two held-out seeds for every arm of storage and controls; more where the best is at "
        "an edge.",
        _with(TUNING_SEEDS, _names(STORAGE_ARMS), _names(CONTROL_ARMS)),
        sweeps="grows",
    ),
    "storage": Study(
        "The step rules with master weights and with weights on the grid, each arm at its tuned rate.",
        _with(SEEDS, _names(STORAGE_ARMS)),
    ),
    "controls": Study(
        "What tells apart why a step rule does what it does: without quantization, S misplaced, mis-scaled tensors.",
        _with(SEEDS, _names(CONTROL_ARMS)),
    ),
    "remedies": Study(
        "What may help the two extreme splits: stochastic rounding, gradients in a wider format, a finer scale.",
        _with(
            SEEDS,
            (
                f"{fmt} {name}"
                for fmt in EXTREMES
                for name in ("stochastic gradients", "stochastic both", "E5M2 gradients")
            ),
            "E7M0 block",
        ),
    ),
    "literature": Study(
        "What others report: E4M3 forward and E5M2 for gradients, the reverse, and block-scaled formats.",
        _with(SEEDS, "E4M3 E5M2 gradients", "E5M2 E4M3 gradients", "MXFP8", "MXFP4", "NVFP4"),
    ),
    "scaling": Study(
        "Other scales than one power of two per tensor from its current amax: exact, by row, by block, delayed, none.",
        _with(FEW_SEEDS, (f"{fmt} {scale}" for fmt in RULE_FORMATS for scale in SCALES)),
    ),
    "length": Study(
        "Five times as many steps: does the short run's order hold?",
        _with(LONG_SEEDS, (f"{fmt} long" for fmt in ("FP32", *CLOSE_FORMATS, "E0M7"))),
    ),
    "tensors": Study(
        "One run of FP32, each close format and extreme with the histograms of all operands, for the tensor view.",
        _with(SEEDS[:1], (f"{fmt} observed" for fmt in ("FP32", *CLOSE_FORMATS, *EXTREMES))),
    ),
    "blocks": Study(
        "Block-scaled formats with scales rounded up, and with gradients rounded stochastically.",
        _with(
            SEEDS, "MXFP8 up", "MXFP4 up", (f"{name} stochastic gradients" for name in ("MXFP4", "MXFP4 up", "NVFP4"))
        ),
        exploratory=True,
    ),
    "blocks-close": Study(
        "E2M5 and E3M4 with one scale per block of 32, which study scaling has for other splits.",
        _with(FEW_SEEDS, "E2M5 block", "E3M4 block"),
        exploratory=True,
    ),
    "head-tuning": Study(
        "Four learning rates and four held-out seeds for FP32 and the costly formats of studies head and blocks-only.",
        _with(HEAD_TUNING_SEEDS, HEAD_TUNING_ARMS),
        sweeps="grows",
        rates=HEAD_RATES,
        whole=0,
    ),
    "head": Study(
        "Everything quantized; the gradient of the logits to nearest, stochastically, by diffusion, or not quantized.",
        _with(HEAD_SEEDS, "FP32 fresh", _names(HEAD_ARMS)),
        whole=2,
    ),
    "blocks-only": Study(
        "Attention and MLP quantized, embedding and head not.",
        _with(HEAD_SEEDS, _names(BODY_ARMS)),
        whole=2,
    ),
    "text": Study(
        "Another text, the sources of sympy: the gradient of the logits rounded to nearest and stochastically.",
        _with(HEAD_SEEDS, "FP32 sympy", _names(TEXT_ARMS)),
        whole=2,
    ),
    "controls-tuning": Study(
        "Four learning rates and four held-out seeds for studies head-controls and granularity.",
        _with(HEAD_TUNING_SEEDS, _names(HEAD_CONTROL_ARMS), (f"E0M7 {scale} fresh" for scale in FINE_SCALES)),
        sweeps="grows",
        rates=HEAD_RATES,
        whole=0,
    ),
    "head-controls": Study(
        "What brings the sum of a row of the logits' gradient back, off the grid: two controls.",
        _with(FEW_HEAD_SEEDS, _names(HEAD_CONTROL_ARMS)),
        whole=1,
    ),
    "body-operands": Study(
        "Attention and MLP quantized in one operand at a time, in the formats that cost most there.",
        _with(HEAD_SEEDS, _names(BODY_OPERAND_ARMS)),
        whole=1,
    ),
    "granularity": Study(
        "A scale for every 32 elements: along the last dimension, along the sum of each product, in squares.",
        _with(HEAD_SEEDS, _names(FINE_ARMS)),
        whole=1,
    ),
    "rivals-tuning": Study(
        "Five learning rates and four held-out seeds for the step rules of studies rivals and decay.",
        _with(
            HEAD_TUNING_SEEDS, (f"{fmt} {rule} fresh" for fmt in RULE_FORMATS for rule in NEW_RULES), "FP32 muon fresh"
        ),
        sweeps="grows",
        whole=0,
    ),
    "rivals": Study(
        "Muon, AdamW with a relative rate and ManifoldAdamW, with master weights.",
        _with(HEAD_SEEDS, _names(RIVAL_ARMS)),
        whole=1,
    ),
    "decay": Study(
        "Steps of codes with the weight decay that all others have, and AdamW, on the grid with stochastic rounding.",
        _with(HEAD_SEEDS, _names(DECAY_ARMS)),
        whole=1,
    ),
    "vocabulary-tuning": Study(
        "Four learning rates and four held-out seeds for FP32 and two formats with larger vocabularies.",
        _with(
            HEAD_TUNING_SEEDS,
            (f"FP32 {count}" for count in VOCABULARIES),
            (f"{fmt} head nearest 2048 tuned" for fmt in ("E0M7", "NVFP4")),
        ),
        sweeps="grows",
        rates=HEAD_RATES,
        whole=0,
    ),
    "vocabulary": Study(
        "Larger vocabularies: the gradient of the logits to nearest, stochastically, or not quantized.",
        _with(FEW_HEAD_SEEDS, (f"FP32 {count}" for count in VOCABULARIES), _names(VOCABULARY_ARMS)),
        whole=1,
    ),
    "width-tuning": Study(
        "Four learning rates and four held-out seeds for FP32 with width 256.",
        _with(HEAD_TUNING_SEEDS, "FP32 256"),
        sweeps="grows",
        rates=HEAD_RATES,
        whole=0,
    ),
    "width": Study(
        "Blocks of 128 along the sum and squares of 128 x 128, with width 256.",
        _with(FEW_HEAD_SEEDS, "FP32 256", _names(WIDE_ARMS)),
        whole=1,
    ),
    "ladder-tuning": Study(
        "Three learning rates and four held-out seeds for FP32 and NVFP4 at each size of ladder, and muP's rule.",
        _with(LADDER_TUNING_SEEDS, *(_swept_rates(size) for size in LADDER), _names(LADDER_MUP_ARMS)),
        sweeps="grows",
        whole=0,
    ),
    "ladder": Study(
        "Four sizes and three lengths: how the cost of a format moves with size and data.",
        _with(LADDER_SEEDS, _names(LADDER_ARMS)),
        whole=2,
    ),
    "ladder-held-out": Study(
        "A size beyond those that the law is fitted to, predicted beforehand.",
        _with(LADDER_SEEDS, _names(HELD_OUT_ARMS)),
        whole=2,
        waits=_WAITS,
    ),
    "ladder-check": Study(
        "FP32 and NVFP4 of ladder-held-out at half and twice their learning rates.",
        _with(LADDER_SEEDS[:4], _names(CHECK_ARMS)),
        whole=0,
        waits=_WAITS,
    ),
    "ladder-large": Study(
        "About 10 and 50 million parameters, predicted beforehand; for a GPU.",
        _with(LADDER_SEEDS[:5], _names(LARGE_LADDER_ARMS)),
        whole=1,
        waits=_WAITS,
    ),
    "tuning-large": Study(
        "The rates of the two large studies: 6 layers of 384, 5,000 steps; for a GPU.",
        _with(TUNING_SEEDS, "FP32 large", _names(LARGE_STORAGE_ARMS)),
        sweeps="grows",
    ),
    "formats-large": Study(
        "FP32 and the splits with 6 layers of 384 and 5,000 steps; for a GPU.",
        _with(LONG_SEEDS, "FP32 large", (f"{fmt} large" for fmt in SPLITS)),
    ),
    "storage-large": Study(
        "AdamW and steps in ulps on E4M3's grid with 6 layers of 384 and 5,000 steps; for a GPU.",
        _with(LONG_SEEDS, _names(LARGE_STORAGE_ARMS)),
    ),
    "pilot-tuning": Study(
        "Five learning rates for every arm of pilot-manifold and for AdamW on the other splits, on held-out seeds.",
        _with(
            TUNING_SEEDS,
            (f"{fmt} pilot" for fmt in ("FP32", "E0M7", "E6M1", "E7M0")),
            (f"{fmt} {rule} pilot".replace(" adamw", "") for fmt, rule in PILOT_TUNED),
        ),
        sweeps="once",
    ),
    "pilot-formats": Study(
        "FP32, BF16 and the eight splits under AdamW, all at the rate tuned for FP32.",
        _with(PILOT_SEEDS, (f"{fmt} pilot" for fmt in ("FP32", "BF16", *SPLITS, "E1M6"))),
    ),
    "pilot-manifold": Study(
        "AdamW and both preconditions on four formats, each arm at its own tuned rate.",
        _with(PILOT_SEEDS, (f"{fmt} {rule} pilot".replace(" adamw", "") for fmt, rule in PILOT_TUNED)),
    ),
    "demo": Study(
        "A small matrix of short runs that a newcomer trains live, in at most three minutes on two cores.",
        _with(PILOT_SEEDS[:2], (f"{fmt} demo" for fmt in ("FP32", "E4M3", "E5M2", "E0M7", "E7M0")), "E4M3 update demo"),
    ),
    "quick": Study(
        "A taste of every study in three minutes: short runs, two seeds, rates of the pilot.",
        _with(SEEDS[:2], (arm.name for arm in _ARMS if arm.name.endswith(" quick"))),
    ),
}
CAMPAIGN = (
    "formats",
    "layers",
    "tuning",
    "storage",
    "controls",
    "remedies",
    "literature",
    "scaling",
    "length",
    "tensors",
    "blocks",
)
"""What `make campaign` runs, in this order: what others lean on, and what the reports lead with, first."""


def checked(arms: Iterable[Arm], studies: Mapping[str, Study]) -> Mapping[str, Arm]:
    """The arms by name, when arms and studies are sound.

    Raises:
        UsageError: a name stands twice, a study names an unknown arm, a config is impossible, a rate is swept by no
            study, or a seed is one that a study of its kind may not have. One line that names the study or the arm.
    """
    found: dict[str, Arm] = {}
    for arm in arms:
        if arm.name in found:
            raise UsageError(f"studies.py, arm {arm.name!r}: the name stands twice")
        found[arm.name] = arm
    swept = {name for study in studies.values() if study.sweeps for name in study.seeds}
    for arm in found.values():
        if isinstance(arm.rate, str) and arm.rate not in swept:
            raise UsageError(f"studies.py, arm {arm.name!r}: no study sweeps the rate of {arm.rate!r}")
        try:
            arm.config(rate=1.0)
        except ValueError as error:
            raise UsageError(f"studies.py, arm {arm.name!r}: {error}") from None
    for name, study in studies.items():
        allowed: Collection[int] = HELD_OUT_SEEDS if study.sweeps else {*PILOT_SEEDS, *CAMPAIGN_SEEDS}
        for arm_name, seeds in study.seeds.items():
            if arm_name not in found:
                raise UsageError(f"studies.py, study {name!r}: there is no arm {arm_name!r} in ARMS")
            if strange := sorted(set(seeds) - set(allowed)):
                kind = "held out for tuning" if study.sweeps else "reported"
                raise UsageError(
                    f"studies.py, study {name!r}, arm {arm_name!r}: seed {strange[0]} is none of those {kind}"
                )
    return MappingProxyType(found)


ARMS = checked(_ARMS, STUDIES)


MOST_EXTENSIONS = 4
"""How often a sweep is extended by a factor of 2 while its best rate lies at an edge."""


def sweep(
    rates: Sequence[float], mean: Callable[[float], float | None], extensions: int = MOST_EXTENSIONS
) -> tuple[list[float], float | None]:
    """The learning rates to try, and the best of them; None for the best until all are recorded.

    Args:
        rates: to begin with, the smallest first.
        mean: the mean loss at a rate over the held-out seeds, None where one of them is not recorded.
        extensions: how often a sweep of more than one rate goes on beyond its edge while the best lies there.
    """
    rates = list(rates)
    left = extensions if len(rates) > 1 else 0
    while True:
        means = [mean(rate) for rate in rates]
        if None in means:
            return rates, None
        best = min(rates, key=lambda rate: means[rates.index(rate)])  # type: ignore[arg-type,return-value]
        if rates[0] < best < rates[-1] or not left:
            return rates, best
        rates, left = [best / 2, *rates] if best == rates[0] else [*rates, best * 2], left - 1


def mean_loss(losses: Iterable[float | None]) -> float | None:
    """The mean of final losses, exactly rounded; None where one is not known."""
    found = list(losses)
    return None if None in found else math.fsum(loss for loss in found if loss is not None) / len(found)


def adamw_arm(fmt: str, place: str) -> str:
    """The arm of AdamW that a step rule's is held against: the same format and place, each at its tuned rate."""
    if place == "master":
        return "E0M7 own rate" if fmt == "E0M7" else fmt
    return f"{fmt} adamw {place}"


def called_beside(arm: Arm, other: Arm) -> str:
    """What an arm is called in a contrast with another one: without what both share, and with AdamW if the other's step
    rule is not.
    """
    label, (mine, theirs) = arm.label, (each.settings.get("final_eval_characters") for each in (arm, other))
    if mine == theirs:
        label = label.removesuffix(READ)
    if _logits_to_nearest(arm) and _logits_to_nearest(other):
        label = label.replace(TO_NEAREST, "")
    rule = RULES[arm.rule].label
    if arm.rule == "adamw" != other.rule and label.startswith(arm.format) and rule not in label:
        label = f"{arm.format} {rule}{label.removeprefix(arm.format)}"
    return label


def _logits_to_nearest(arm: Arm) -> bool:
    """Whether the gradient of the logits is rounded to nearest."""
    return "grad_output" in arm.quantize and not {"layers", "rounding", "grad_output_rounding"} & arm.quantize.keys()


def seeds_of(arm: str) -> tuple[int, ...]:
    """Every seed that a study reports of an arm, in order; none for an arm that is only tuned.

    Raises:
        KeyError: there is no such arm.
    """
    found = {seed for study in STUDIES.values() if not study.sweeps for seed in study.seeds.get(ARMS[arm].name, ())}
    return tuple(sorted(found))


def studies_of(arm: str) -> tuple[str, ...]:
    """The studies that report an arm."""
    return tuple(name for name, study in STUDIES.items() if not study.sweeps and arm in study.seeds)
