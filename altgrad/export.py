"""Quantized weights as real tensors in a safetensors file, and the same values back, bit for bit.

The weight of a quantized layer is written as the codes of what its output product reads, and the scales they have:

    LAYER.weight           codes: float8_e4m3fn and float8_e5m2, bfloat16 and float16 as such; formats of 4 bits two a
                           byte, the first in the lower half; others one a uint8 or uint16
    LAYER.weight_scale     float32; E8M0 (float8_e8m0fnu) for MX, E4M3 (float8_e4m3fn) for NVFP4; none for scale 1
    LAYER.weight_scale_2   NVFP4's float32 of the tensor

Shapes of scales: [] a tensor, [O, 1] rows, [O, ceil(I / block)] blocks, [ceil(O / rows), ceil(I / columns)] squares; of
experts in one weight [E, O, I] [E, 1, 1] for [], and else E of them. A
real value is code * scale in float32 (scale = weight_scale * weight_scale_2 first for NVFP4), and code / weight_scale
where a rule's quotient is "inverse". Everything else in the model's state is there as it is. The file's metadata has,
under "altgrad", what `read_weights` needs to know: format, scale and shape of each weight, as JSON.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from altgrad.config import UsageError
from altgrad.formats import E8M0, FP32, FloatFormat, get_format
from altgrad.nn import QuantizedLayer, quantized_layers
from altgrad.nn.layers import tiled_shape
from altgrad.nn.reads import QuantizedWeight
from altgrad.ranks import whole
from altgrad.rounding import decode, encode
from altgrad.scaling import expand_blocks, expand_tiles, nvfp4_scales, nvfp4_scales_of_amax, tile_amax

DTYPES = {
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Formats that are dtypes of torch and of safetensors; all others are written as whole numbers."""
METADATA, VERSION = "altgrad", 1


class Exported(NamedTuple):
    """One weight in the file: its layer, format, kind of scale, and bytes with scales and as float32."""

    layer: str
    format: str
    scale: str
    bytes: int
    float32_bytes: int


def export_weights(model: nn.Module, path: str | Path) -> list[Exported]:
    """Write a quantized model's weights as codes and scales, and the rest of its state as it is.

    A weight whose layer reads it in FP32 is part of the rest. Nothing in the model changes; the histories of delayed
    scales are read for the scale they give now, and are not written.

    Args:
        model: after `altgrad.nn.quantize_model`.
        path: of the file; an earlier one is replaced.

    Returns:
        The weights that were written as codes, in the model's order.

    Raises:
        ValueError: the model has no quantized weight; a weight's format has no name that reads back, or more than 16
            bits; a layer's output product rotates it; no product has summed over one dimension of a weight of a
            module's own, along which its scales are to lie; products read parts of it that have scales of their own.
            One line with the layer's name.
        UsageError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    known: dict[str, dict[str, Any]] = {}
    found = []
    parameters = dict(model.named_parameters(remove_duplicate=False))
    own = {id(parameter): key for key, parameter in reversed(parameters.items())}
    for name, layer in quantized_layers(model).items():
        if layer.weight is None or layer.policy.operand("weight").format is FP32:
            continue
        key = f"{name}.weight".lstrip(".")
        key = key if key in parameters else own[id(layer.weight)]  # a module's own matrix, such as in_proj_weight
        parts, known[key] = _parts(name or "the layer", layer)
        written = {key + ending: tensor.contiguous() for ending, tensor in parts.items()}
        tensors |= written
        size = sum(tensor.numel() * tensor.element_size() for tensor in written.values())
        found.append(Exported(name, known[key]["format"], known[key]["kind"], size, layer.weight.numel() * 4))
    if not found:
        raise ValueError("no weight of the model is quantized; give it a policy or a recipe with quantize_model first")
    for key, value in model.state_dict().items():
        if key not in known and ".delayed." not in f".{key}":
            tensors[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    metadata = {METADATA: json.dumps({"version": VERSION, "weights": known}, sort_keys=True)}
    try:
        save_file({key: tensor.cpu() for key, tensor in tensors.items()}, path, metadata)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: cannot be written ({' '.join(str(error).split())[:120]}); choose another") from None
    return found


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state of a model from a file of `export_weights`: float32 weights with the bits that its layers read.

    Raises:
        UsageError: no such file, or none of `export_weights`.
    """
    try:
        with safe_open(path, "pt") as file:
            document = json.loads((file.metadata() or {})[METADATA])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        if document["version"] != VERSION:
            raise UsageError(f"{path}: has version {document['version']} and this altgrad reads {VERSION}")
        for key, about in document["weights"].items():
            scales = [tensors.pop(f"{key}{ending}", None) for ending in ("_scale", "_scale_2")]
            tensors[key] = _as_parameter(_value(tensors[key], scales, about), about)
    except UsageError:
        raise
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, SafetensorError, LookupError, ValueError, TypeError, RuntimeError):
        raise UsageError(f"{path}: is not a file of exported weights, or damaged") from None
    return tensors


def _parts(name: str, layer: QuantizedLayer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a weight by the ending of their names, and what the metadata says of it."""
    policy = layer.policy.operand("weight")
    fmt, rule = policy.format, policy.scaling
    if fmt.bits > 16:
        raise ValueError(f"{name}: codes have at most 16 bits, and {fmt.name} has {fmt.bits}")
    try:
        named = get_format(fmt.name) == fmt
    except ValueError:
        named = False
    if not named:
        raise ValueError(f"{name}: the format {fmt.name!r} has no name that reads back")
    if layer.rotation("weight") is not None:
        raise ValueError(f"{name}: its output product rotates the weight; leave out the rotation of output")
    value, scale, block = layer.weight_and_scale()
    lies = scale is not None and (block or scale.numel() > 1)
    if lies and isinstance(layer, QuantizedWeight) and layer.operand_order is None:
        lie = "its scales lie along what products sum over, and none has yet summed over a dimension of it"
        raise ValueError(f"{name}: {lie}; run a batch first")
    several = rule.kind == "nvfp4" or isinstance(block, tuple) or (rule.kind, rule.granularity) == ("amax", "tensor")
    if layer.read_in_parts and several:
        raise ValueError(f"{name}: products read it in parts with a scale each; use scales of rows or blocks")
    shape = tuple(value.shape)
    about: dict[str, Any] = {"format": fmt.name, "kind": rule.kind, "shape": shape, "block": block}
    about |= {"inverse": rule.quotient == "inverse"}
    about |= {"rows": tiled_shape(shape, scale)} if isinstance(block, tuple) else {}
    about |= {"parameter": tuple(layer.weight.shape), "order": _order(layer)}
    every = None if scale is None else _each(scale, about)
    codes = encode(value * every, fmt) if about["inverse"] else _encode(value, fmt, every)
    parts = {"": _stored(codes, fmt, about)}
    on_grid = layer.grid_scale is not None
    if rule.kind in ("mx", "mx_rceil"):
        assert scale is not None
        parts["_scale"] = encode(scale, E8M0, check_scale=False).view(torch.float8_e8m0fnu)
    elif rule.kind == "nvfp4" and not on_grid:
        weight = layer.as_operand(whole(layer.weight.detach()))
        assert scale is not None
        stack = weight.flatten(0, -3) if scale.ndim > 2 else weight.flatten(0, -2).unsqueeze(0)
        tile = block if isinstance(block, tuple) else None
        levels = [nvfp4_scales_of_amax(tile_amax(one, tile)) if tile else nvfp4_scales(one) for one in stack]
        inner, outer = (torch.stack(each) for each in zip(*levels, strict=True))
        inner = inner.view(scale.shape)
        outer = outer.view(*scale.shape[:-2], 1, 1) if scale.ndim > 2 else outer.view(())
        parts |= {"_scale": encode(inner, get_format("e4m3")).view(torch.float8_e4m3fn), "_scale_2": outer}
    elif scale is not None:
        parts["_scale"] = scale
    return {key: tensor.clone() for key, tensor in parts.items()}, about


def _value(stored: Tensor, scales: list[Tensor | None], about: Mapping[str, Any]) -> Tensor:
    """What a layer read: float32 with the shape of the weight."""
    fmt, (scale, outer) = get_format(about["format"]), scales
    values = decode(_codes(stored, fmt, about), fmt)
    if scale is None:
        return values
    if scale.dtype == torch.float8_e8m0fnu:
        scale = decode(scale.view(torch.uint8), E8M0)
    elif scale.dtype == torch.float8_e4m3fn:
        scale = decode(scale.view(torch.uint8), get_format("e4m3"))
    every = _each(scale if outer is None else scale * outer, about)
    return values.div_(every) if about["inverse"] else values.mul_(every)


def _order(layer: QuantizedLayer) -> tuple[int, ...]:
    """The order of the parameter's dimensions in which the operand has its elements."""
    numbers = torch.arange(layer.weight.numel()).view(layer.weight.shape)
    operand = layer.as_operand(numbers)
    orders = itertools.permutations(range(numbers.ndim))
    return next(order for order in orders if torch.equal(numbers.permute(order).reshape(operand.shape), operand))


def _as_parameter(values: Tensor, about: Mapping[str, Any]) -> Tensor:
    shape, order = about["parameter"], about["order"]
    back = sorted(range(len(order)), key=lambda dim: order[dim])
    return values.reshape([shape[dim] for dim in order]).permute(back).contiguous()


def _each(scale: Tensor, about: Mapping[str, Any]) -> Tensor:
    """Scales in a shape that broadcasts to the weight's."""
    block = about["block"]
    if isinstance(block, tuple | list):
        return expand_tiles(scale, about["rows"], (block[0], block[1])).reshape(about["shape"])
    return expand_blocks(scale, about["shape"][-1], block=block) if block else scale


def _encode(value: Tensor, fmt: FloatFormat, scale: Tensor | None) -> Tensor:
    """Codes of values that lie on the grid; of a block whose scale is NaN, of zeros, for which all formats have one."""
    if scale is None:
        return encode(value, fmt)
    damaged = scale.isnan()
    if damaged.any():
        value, scale = value.masked_fill(damaged, 0), scale.masked_fill(damaged, 1)
    return encode(value, fmt, scale=scale, check_scale=False)


def _stored(codes: Tensor, fmt: FloatFormat, about: dict[str, Any]) -> Tensor:
    if (dtype := DTYPES.get(fmt.name)) is not None:
        return codes.view(dtype)
    if fmt.bits > 4 or codes.shape[-1] % 2:
        return codes
    return codes[..., 0::2] | codes[..., 1::2] << 4


def _codes(stored: Tensor, fmt: FloatFormat, about: Mapping[str, Any]) -> Tensor:
    if fmt.name in DTYPES:
        return stored.view(torch.uint8 if fmt.bits == 8 else torch.uint16)
    if tuple(stored.shape) == tuple(about["shape"]):
        return stored
    return torch.stack([stored & 15, stored >> 4], dim=-1).flatten(-2)
