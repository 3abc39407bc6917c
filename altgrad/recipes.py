"""Low-precision training recipes by the names people know them by, as keys of a config.

A recipe is data: what its tool does to the three operands, and for each of their two products, said in the sections
`quantize` and `scaling` of a config. Its settings have the names and defaults that the tool gives them. By name it is
the key `recipe` of a config and a policy for `quantize_model`; ``altgrad recipes`` lists them all.

Every recipe has three settings more: `head` and `embedding` (False) quantize these too, and `wide` names layers that
stay as they are, by dotted names with * and ?.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from altgrad.formats import get_format

Keys = dict[str, Any]
EVERYWHERE = (
    "products are exact and their sums float32, where hardware adds with fewer bits",
    "operands are rounded from float32, where the tool mostly reads bfloat16",
)
"""What differs from the real tools in all recipes."""
_WIDE: Keys = {"head": False, "embedding": False, "wide": ()}


@dataclass(frozen=True)
class Recipe:
    """One recipe.

    Attributes:
        name: that it is known by.
        what: it does, in one line.
        source: where it is published.
        differs: what is not as in the real tool, beside `EVERYWHERE`.
        keys: the sections of a config, from the recipe's settings.
        wide: patterns of layers that the recipe itself keeps wide.
    """

    name: str
    what: str
    source: str
    differs: tuple[str, ...]
    keys: Callable[..., Keys]
    wide: tuple[str, ...] = ()

    @property
    def settings(self) -> Keys:
        """Its settings with their defaults."""
        own = {key: each.default for key, each in inspect.signature(self.keys).parameters.items()}
        return own | _WIDE | {"wide": self.wide}


def _formats(grad_output: str, forward: str = "e4m3") -> Keys:
    return {"weight": forward, "activation": forward, "grad_output": grad_output}


def _fp8(fp8_format: str) -> Keys:
    """Transformer Engine's `fp8_format`: HYBRID has E5M2 for gradients."""
    known = {"E4M3": "e4m3", "HYBRID": "e5m2"}
    if fp8_format not in known:
        raise ValueError(f"fp8_format must be 'E4M3' or 'HYBRID', not {fp8_format!r}")
    return _formats(known[fp8_format])


def _quotient(power_of_two: bool) -> Keys:
    """A scale per tensor or block that is a power of two, or max / amax as torchao and Transformer Engine take it."""
    return {"power_of_two": power_of_two} if power_of_two else {"power_of_two": False, "quotient": "inverse"}


def _te_delayed(
    margin: int = 0, fp8_format: str = "HYBRID", amax_history_len: int = 1024, amax_compute_algo: str = "max"
) -> Keys:
    history = {"history": amax_history_len, "algorithm": amax_compute_algo, "margin": margin}
    return {"quantize": _fp8(fp8_format), "scaling": {"kind": "delayed", **history, **_quotient(False)}}


def _te_current(fp8_format: str = "HYBRID", use_power_2_scales: bool = False) -> Keys:
    return {"quantize": _fp8(fp8_format), "scaling": _quotient(use_power_2_scales)}


def _te_block(fp8_format: str = "E4M3", use_f32_scales: bool = False) -> Keys:
    return {"quantize": _fp8(fp8_format), "scaling": _tiles(128, _quotient(not use_f32_scales))}


def _tiles(size: int, scale: Keys) -> Keys:
    """Tiles of 1 x `size` along what a product sums over, weights in squares."""
    tile = {"granularity": "block", "block": size, **scale}
    return {**tile, "axis": "contraction", "weight": {**tile, "granularity": "block_2d"}}


def _mxfp8(fp8_format: str = "E4M3", scale_calculation_mode: str = "rceil") -> Keys:
    kinds = {"rceil": "mx_rceil", "floor": "mx"}
    if scale_calculation_mode not in kinds:
        raise ValueError(f"scale_calculation_mode must be 'rceil' or 'floor', not {scale_calculation_mode!r}")
    return {
        "quantize": _fp8(fp8_format),
        "scaling": {"kind": kinds[scale_calculation_mode], "axis": "contraction"},
    }


def _nvfp4(
    disable_rht: bool = False, disable_stochastic_rounding: bool = False, disable_2d_quantization: bool = False
) -> Keys:
    quantize, scaling = _formats("e2m1", "e2m1"), Keys(kind="nvfp4", axis="contraction")
    if not disable_stochastic_rounding:
        quantize["rounding"] = {"grad_output": "stochastic"}
    if not disable_rht:
        quantize["hadamard"] = {"grad_weight": 16}
    if not disable_2d_quantization:
        scaling["weight"] = {"kind": "nvfp4", "granularity": "block_2d"}
    return {"quantize": quantize, "scaling": scaling}


def _tensorwise(round_scales_to_power_of_2: bool = False) -> Keys:
    return {"quantize": _formats("e5m2"), "scaling": _quotient(round_scales_to_power_of_2)}


def _rowwise(round_scales_to_power_of_2: bool = True) -> Keys:
    scale = _quotient(round_scales_to_power_of_2)
    return {"quantize": _formats("e4m3"), "scaling": {"granularity": "row", "axis": "contraction", **scale}}


def _rowwise_gw_hp(round_scales_to_power_of_2: bool = True) -> Keys:
    scale = _quotient(round_scales_to_power_of_2)
    wide = {"activation": {"format": "fp32"}, "grad_output": {"format": "fp32"}}
    casts = {"grad_input": {"weight": {"scaling": {"granularity": "tensor", **scale}}}, "grad_weight": wide}
    return {"quantize": {**_formats("e4m3"), "casts": casts}, "scaling": {"granularity": "row", **scale}}


def _deepseek(block_size: int = 128, ue8m0: bool = False) -> Keys:
    return {"quantize": _formats("e4m3"), "scaling": _tiles(block_size, {"power_of_two": ue8m0})}


def _hybrid(power_of_two: bool = True) -> Keys:
    return {"quantize": _formats("e5m2"), "scaling": {"power_of_two": power_of_two}}


_TE = "NVIDIA Transformer Engine, transformer_engine.common.recipe."
_TORCHAO = "torchao.float8, Float8LinearRecipeName."
_TINY = "an amax below 1e-12 counts as 1e-12 there"
_FIRST = "the first step takes the scale of its own tensor, where the tool takes 1"

RECIPES: dict[str, Recipe] = {
    each.name: each
    for each in (
        Recipe(
            "te-delayed",
            "E4M3, gradients E5M2; a scale per tensor from the amax of the steps before",
            f"{_TE}DelayedScaling; arXiv 2209.05433",
            (_FIRST, "an amax that is not finite is left out of the history", "no amax is shared between ranks"),
            _te_delayed,
        ),
        Recipe(
            "te-current",
            "E4M3, gradients E5M2; a scale per tensor from its own amax",
            f"{_TE}Float8CurrentScaling",
            ("a tensor with an infinity becomes NaN, where the tool has the scale 1",),
            _te_current,
        ),
        Recipe(
            "te-block",
            "E4M3; tiles of 1 x 128 along what a product sums over, weights in squares of 128; powers of two",
            f"{_TE}Float8BlockScaling",
            ("a block with an infinity becomes NaN, where the tool has the scale 1",),
            _te_block,
        ),
        Recipe(
            "mxfp8",
            "E4M3; blocks of 32 along what a product sums over, each with a power of two",
            f"OCP Microscaling Formats 1.0, section 6.3; arXiv 2506.08027; {_TE}MXFP8BlockScaling",
            ("a block with an infinity becomes NaN",),
            _mxfp8,
        ),
        Recipe(
            "nvfp4",
            "E2M1; blocks of 16 with E4M3 scales, weights in squares of 16; gradients rounded stochastically, both "
            "operands of grad_weight rotated",
            f"arXiv 2509.25149, sections 4.2 to 4.4; {_TE}NVFP4BlockScaling",
            (
                "quotients are divisions, where the tool multiplies by rounded inverses",
                "the rotation is float32, where the tool has bfloat16",
                "the last blocks of the network stay wide only where `wide` names them",
            ),
            _nvfp4,
        ),
        Recipe(
            "torchao-tensorwise",
            "E4M3, gradients E5M2; a scale per tensor from its own amax",
            f"{_TORCHAO}TENSORWISE",
            (_TINY, "torchao quantizes the head too: head=True"),
            _tensorwise,
        ),
        Recipe(
            "torchao-rowwise",
            "E4M3; a power of two per row, along what a product sums over",
            f"{_TORCHAO}ROWWISE",
            (_TINY, "torchao quantizes the head too: head=True"),
            _rowwise,
        ),
        Recipe(
            "torchao-rowwise-gw-hp",
            "E4M3; a power of two per row, weights of grad_input per tensor; grad_weight is not quantized",
            f"{_TORCHAO}ROWWISE_WITH_GW_HP",
            (_TINY, "torchao quantizes the head too: head=True"),
            _rowwise_gw_hp,
        ),
        Recipe(
            "deepseek-v3",
            "E4M3; tiles of 1 x 128 along what a product sums over, weights in squares of 128; float32 scales",
            "arXiv 2412.19437, section 3.3",
            (
                "tiles of grad_weight are rounded from the activation itself, where the tool rounds its tiles again",
                "all tiles have scales of one kind, where the tool has powers of two after attention",
                "sums are float32 throughout, where the tool adds to them every 128 elements",
            ),
            _deepseek,
            ("*.gate", "*.router"),
        ),
        Recipe(
            "fp8-hybrid",
            "E4M3, gradients E5M2; a power of two per tensor from its own amax",
            "Micikevicius et al., FP8 Formats for Deep Learning, arXiv 2209.05433",
            ("the paper leaves the choice of scales open: here they are powers of two",),
            _hybrid,
        ),
    )
}
"""By name."""


def recipe_named(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ValueError: there is none; one line with the nearest or all names.
    """
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(RECIPES)}"
    raise ValueError(f"no recipe is called {name!r:.80}; {hint}")


def recipe_keys(name: str, **settings: Any) -> Keys:
    """The sections `quantize` and `scaling` of a config that does what the recipe says.

    Args:
        name: one of `RECIPES`; or a format, for all operands of all layers, which has no settings: ``fp32`` is the
            baseline that quantizes nothing.
        settings: of its `settings`, where they are not the defaults.

    Raises:
        ValueError: no such recipe or setting, or a setting of another type; one line.
    """
    fmt = ""
    with suppress(ValueError):  # no format either: the message is that of recipes
        fmt = "" if name in RECIPES else get_format(name).name
    if fmt and settings:
        raise ValueError(f"{name!r:.80} is a format, which has no setting {next(iter(settings))!r:.80}; give a Policy")
    if fmt:
        return {"quantize": _formats(fmt, fmt)}
    recipe = recipe_named(name)
    defaults = recipe.settings
    for key, value in settings.items():
        if key not in defaults:
            raise ValueError(f"recipe {name!r} has no setting {key!r:.80}; it has {', '.join(defaults)}")
        kind = type(defaults[key])
        if kind is tuple and isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
            continue
        if type(value) is not kind or kind is tuple:
            wanted = {bool: "true or false", int: "a whole number", tuple: "a list of layer names"}.get(kind, "a text")
            raise ValueError(f"recipe {name!r}: {key} must be {wanted}, not {value!r:.80}")
    given = defaults | settings
    try:
        found = recipe.keys(**{key: value for key, value in given.items() if key not in _WIDE})
    except ValueError as error:
        raise ValueError(f"recipe {name!r}: {error}") from None
    kinds = ["attention", "mlp", *(kind for kind in ("embedding", "head") if given[kind])]
    where = {"layers": kinds} | ({"wide": list(given["wide"])} if given["wide"] else {})
    return {**found, "quantize": found["quantize"] | where}


def with_recipe(data: Mapping[str, Any]) -> Keys:
    """A config's keys with those of the recipe that it names in place of the key `recipe`; what it says itself wins.

    Args:
        data: of a config; `recipe` is a name, or a mapping of `name` and settings.

    Returns:
        The keys, with the recipe's name as `name` where there is none. `data` as it is where it names no recipe.

    Raises:
        ValueError: as `recipe_keys`; `recipe` is neither a name nor a mapping with one.
    """
    if data.get("recipe") is None:
        return {key: value for key, value in data.items() if key != "recipe"}
    given = {"name": data["recipe"]} if isinstance(data["recipe"], str) else data["recipe"]
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise ValueError("recipe must be a name, or a mapping of name and settings; `altgrad recipes` lists them")
    keys = recipe_keys(**given)
    own = {key: value for key, value in data.items() if key != "recipe"}
    return {"name": given["name"], **_merged(keys, own)}


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Keys:
    """Both, section by section; `above` wins."""
    found = dict(below)
    for key, value in above.items():
        inner = found.get(key)
        found[key] = _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return found
