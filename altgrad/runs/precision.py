"""Number formats as other tools' configs state them: torchao, torchtitan, Transformer Engine, Megatron, accelerate.

A record keeps such keys as they are. When it is read (`altgrad.runs.site_names`) they become its `quantize` and, where
a recipe is named, its `scaling`, so that runs in FP8 are compared with those of the same setting in BF16 or FP32. What
a config does not say is not guessed: FP8 without a recipe has formats and no scale.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from altgrad.config import OPERANDS
from altgrad.recipes import recipe_keys
from altgrad.runs.names import normal

_ROLES: dict[str, tuple[str, ...]] = {
    "torchao": ("float8_recipe_name", "float8_recipe", "torchao_recipe", "float8_config_recipe_name"),
    "mx": ("mx_recipe_name", "mx_recipe"),
    "te": ("fp8_recipe", "fp8_recipe_name", "fp8_config_recipe", "te_recipe", "fp4_recipe"),
    "fp8": ("fp8", "use_fp8", "enable_fp8", "fp4"),
    "linear": ("enable_float8_linear", "use_float8", "float8"),
    "backend": ("fp8_config_backend", "fp8_backend", "fp8_config_fp8_backend"),
    "converters": ("converters",),
    "fp8_format": ("fp8_format",),
    "amax_history_len": ("amax_history_len", "fp8_amax_history_len"),
    "amax_compute_algo": ("amax_compute_algo", "fp8_amax_compute_algo"),
    "margin": ("fp8_margin", "fp8_config_margin", "fp8_recipe_margin", "fp8_recipe_kwargs_margin"),
    "mixed_precision": ("mixed_precision",),
    "wide": ("mixed_precision_param", "precision", "amp_dtype", "autocast_dtype", "compute_dtype"),
    "bf16": ("bf16",),
    "fp16": ("fp16",),
    "dtype": ("dtype", "torch_dtype"),
    "quant_method": ("quantization_config_quant_method", "quant_method"),
}
"""What a key says <- its names, with or without the section it stands in, as `altgrad.runs.names.normal` has them."""
_ROLE = {name: role for role, names in _ROLES.items() for name in names}
_RECIPES = {
    "torchao": {
        "tensorwise": "torchao-tensorwise", "rowwise": "torchao-rowwise",
        "rowwise_with_gw_hp": "torchao-rowwise-gw-hp",
    },
    "mx": {"mxfp8": "mxfp8", "mxfp8_cublas": "mxfp8", "mxfp8_emulated": "mxfp8", "mxfp8_rceil": "mxfp8"},
    "te": {
        "delayed": "te-delayed", "tensorwise": "te-current", "blockwise": "te-block", "mxfp8": "mxfp8",
        "nvfp4": "nvfp4", "delayedscaling": "te-delayed",
        "float8currentscaling": "te-current", "float8blockscaling": "te-block",
        "mxfp8blockscaling": "mxfp8", "nvfp4blockscaling": "nvfp4",
    },
}  # fmt: skip
"""Recipe of `altgrad.recipes` by what its tool calls it."""
_WORDS = {
    **dict.fromkeys(("no", "fp32", "float32", "float", "32", "32_true"), "fp32"),
    **dict.fromkeys(("bf16", "bfloat16", "bf16_mixed", "bf16_true"), "bf16"),
    **dict.fromkeys(("fp16", "float16", "half", "16", "16_mixed", "16_true"), "fp16"),
    **dict.fromkeys(("fp8", "transformer_engine", "transformer_engine_float16"), "fp8"),
}
_OFF = (None, False, "none", "no", "false", "", "null")
_DELAYED = ("amax_history_len", "amax_compute_algo", "margin")


def precision(given: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The sections `quantize` and `scaling` that a config states in other tools' words, and the keys that do.

    Args:
        given: values by dotted name.

    Returns:
        Nested keys of AltGrad's config, and the names in `given` that they stand for; both empty where it says nothing.
    """
    keys, said = dict[str, str](), dict[str, Any]()
    for key, value in given.items():
        if key.endswith("converters") and value and not re.search("float8|mx", str(value)):  # those of something else
            continue
        *above, leaf = map(normal, key.replace("/", ".").split("."))
        role = _ROLE.get("_".join([*above[-1:], leaf])) or _ROLE.get(leaf)
        if role and role not in said:
            keys[role], said[role] = key, normal(value).removeprefix("torch_") if isinstance(value, str) else value
    words: dict[str, str | None] = {
        role: _WORDS.get(str(said[role])) for role in ("mixed_precision", "wide", "dtype") if role in said
    }
    words |= {role: role if said[role] else None for role in ("bf16", "fp16") if isinstance(said.get(role), bool)}
    wide = next((words[role] for role in ("mixed_precision", "wide", "bf16", "fp16", "dtype") if words.get(role)), None)
    if wide is None and (said.get("bf16"), said.get("fp16")) == (False, False):
        wide = "fp32"  # Hugging Face's Trainer states both
    keys = {role: key for role, key in keys.items() if role in ("bf16", "fp16") or words.get(role, role)}
    if recipe := _recipe(said):
        settings = {role: said[role] for role in ("fp8_format", *_DELAYED) if role in said}
        settings |= {"fp8_format": str(said["fp8"])} if said.get("fp8") in ("e4m3", "hybrid") else {}
        if recipe != "te-delayed":
            settings = {"fp8_format": settings.get("fp8_format")} if recipe.startswith(("te-", "mxfp8")) else {}
        settings = {name: value for name, value in settings.items() if value is not None}
        if "fp8_format" in settings:
            settings["fp8_format"] = str(settings["fp8_format"]).upper()
        try:
            found = recipe_keys(recipe, **settings)
        except ValueError:
            return {}, ()
        del found["quantize"]["layers"]  # which layers is not stated
        return found, tuple(keys.values())
    on = _is_on(said, wide)
    formats = ("e4m3", "e4m3", "e4m3" if "e4m3" in (said.get("fp8"), said.get("fp8_format")) else "e5m2")
    if said.get("quant_method") in ("fp8", "fbgemm_fp8"):  # weights that are loaded so; nothing is said of gradients
        on, formats = True, ("e4m3", "e4m3", wide if wide in ("bf16", "fp16") else "fp32")
    if not on and wide in (None, "fp8"):
        return {}, ()
    chosen = formats if on else (wide,) * 3
    return {"quantize": dict(zip(OPERANDS, chosen, strict=True))}, tuple(keys.values())


def _is_on(said: Mapping[str, Any], wide: str | None) -> bool:
    """Whether a config that names no recipe has FP8."""
    if "fp8" in said:
        return said["fp8"] not in _OFF
    return wide == "fp8" or ("fp8_format" in said and "mixed_precision" not in said)


def _recipe(said: Mapping[str, Any]) -> str | None:
    """The recipe that is named, and not turned off."""
    converters = str(said["converters"]).lower() if "converters" in said else None
    for tool, words in (("torchao", ("float8",)), ("mx", ("mx",)), ("te", ())):
        named = _RECIPES[tool].get(str(said.get(tool)).rpartition("_recipe_")[2])
        off = said.get("fp8", True) in _OFF if tool == "te" else converters and not any(map(converters.count, words))
        if named and not off:
            return named
    if said.get("linear") is True or (converters and "float8" in converters):
        return "torchao-tensorwise"  # torchao's default
    if said.get("mixed_precision") == "fp8":
        return {"ao": "torchao-tensorwise", "torchao": "torchao-tensorwise", "te": "te-delayed"}.get(
            str(said.get("backend"))
        )
    return None
