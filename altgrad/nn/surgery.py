"""Quantized layers put into a model, and taken out again."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from altgrad.config import LAYER_TYPES
from altgrad.formats import FP32, check_draw_version
from altgrad.nn.coverage import NO_PRODUCT, Coverage, forget_coverage, name_for, parameters_of, place_of, why_left
from altgrad.nn.kinds import (
    Kind,
    is_stack,
    kind_of,
    one_cast,
    plain_class,
    quantized_class,
    reads_child,
    reads_transposed,
)
from altgrad.nn.layers import ATTRIBUTES, UNQUANTIZED, Clock, Observer, Policy, QuantizedLayer, _key, hadamard
from altgrad.nn.names import ends_of, layer_type, plain_name, type_of
from altgrad.nn.policies import recipe
from altgrad.nn.reads import QuantizedProduct, QuantizedWeight, Reader
from altgrad.recipes import RECIPES
from altgrad.scaling import DelayedScale

_WIDE = "`wide`, or a policy that rounds nothing, names it"


@dataclass
class _Place:
    """A layer to be: a module, or one of its parameters."""

    name: str
    kind: str
    module: nn.Module
    layer: type
    parameter: str = ""
    policy: Policy = UNQUANTIZED
    why_not: str = ""
    named: bool = True
    """Whether it is the policy that leaves it as it is."""


def quantize_model(
    model: nn.Module,
    policy: Policy | Mapping[str, Policy] | str,
    *,
    seed: int = 0,
    draw_version: int = 1,
    strict: bool = False,
    group: Any = None,
) -> nn.Module:
    """Turn the layers of a model into their quantized form, in place: those that multiply matrices, and embeddings.

    A layer's type is what the model itself gives as its input and output embeddings (transformers), else read off its
    dotted name (`layer_type`), else off its class; one of none of these is "other". Parameters stay the same objects,
    so that optimizers and initialization are not disturbed. A linear layer or embedding of a known type that the policy
    does not cover gets FP32 operands and is observed as well; everything else that it does not cover is left alone.
    Calling it again changes the policy. What became of every parameter is in `report_of(model)`.

    Args:
        model: any torch model, wrapped or not (DDP, FSDP, parametrizations, activation checkpointing).
        policy: one policy, or several by dotted name or layer type with * and ?, of which the first match counts; such
            a policy covers layers of every type, unless it names its own `layers`. Or the name of a recipe, whose
            settings are those of `recipe`, or of a format, for all operands; "fp32" quantizes nothing.
        seed: of the draws, where something is rounded stochastically.
        draw_version: of `formats.stochastic_draw`; 2 is quicker.
        strict: refuse patterns that match nothing, of which a UserWarning tells otherwise, and what the policy leaves
            as it is without naming it: now by what is known of the model's classes, and at the end of the first batch
            by the products that ran.
        group: process group (torch.distributed) whose ranks each train on as many rows of a batch: per-tensor amax of
            activations and gradients is that of all their rows, the same on every rank, and a rank draws what its rows
            would draw in the whole. All of them must run the same layers. None: each process is by itself.

    Returns:
        `model` itself, never another object; what was reached is in `report_of(model)`.

    Raises:
        ValueError: the policies match no layer; two policies for one layer, or for one weight; there is no such version
            of the draws; under `strict`, something is left out.
    """
    if isinstance(policy, str):
        policy = recipe(policy)
    if not isinstance(model, nn.Module) or not isinstance(policy, Policy | Mapping):
        given = f"{type(model).__name__} and {type(policy).__name__}"
        raise TypeError(f"give a torch.nn.Module, and a Policy, a recipe's name or policies by name, not {given}")
    policies = {"*": policy} if isinstance(policy, Policy) else dict(policy)
    clock = Clock(seed, draw_version=check_draw_version(draw_version), group=group)
    if group is not None:
        clock.rank = torch.distributed.get_rank(group)
    modules = _modules(model)
    kinds = {name: kind_of(module) for name, module in modules.items()}
    places = _places(model, modules, kinds, policies)
    _check_ties(model, places, policies)
    found = [place for place in places if not place.why_not or _is_seen(place)]
    if not found:
        keys = ", ".join(policies)
        unfit = [why for kind in kinds.values() for each, why in kind.left_out.items() if not each]
        reasons = dict.fromkeys([*(place.why_not for place in places), *unfit])
        if not reasons:
            raise ValueError("the model has no matrix or embedding to quantize")
        has = f"each layer is left out ({'; '.join(reasons)})"
        raise ValueError(f"no layer matches: the policies are for {keys}, and {has}")
    if unused := _unused(model, kinds, places, policies):
        groups = {key for key in unused if any(fnmatchcase(plain_name(path, model), key) for path in modules)}
        shown = [
            f"{key!r} (a module, whose layers are {key + '.*'!r})" if key in groups else repr(key) for key in unused
        ]
        told = f"no layer and no parameter has a name that matches {', '.join(shown)}"
        if strict:
            raise ValueError(f"strict: {told}; correct the pattern, or leave it out")
        warnings.warn(f"{told}; report_of(model) has the names", UserWarning, stacklevel=2)
    coverage = Coverage(_left_out(model, modules, kinds, places, policies), strict)
    if strict:
        coverage.check_before()
    kept = {id(layer): (layer.observer, layer.grid_scale) for layer in quantized_layers(model).values()}
    dequantize_model(model)
    _install(modules, kinds, found, clock, policies)
    for layer in quantized_layers(model).values():
        layer.observer, layer.grid_scale = kept.get(id(layer), (None, None))
    coverage.watch(model)
    return model


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model by path, without those that quantized layers have added."""
    added: set[int] = set()
    for module in model.modules():
        below: dict[str, Any] = module._modules
        if isinstance(module, QuantizedLayer | Reader):
            for name in {"quantized", "delayed"} & below.keys():
                added |= {id(each) for each in below[name].modules()}
    return {path: module for path, module in model.named_modules() if id(module) not in added}


def _places(
    model: nn.Module, modules: Mapping[str, nn.Module], kinds: Mapping[str, Kind], policies: Mapping[str, Policy]
) -> list[_Place]:
    """Every layer there can be, with its policy or why it gets none."""
    found, ends = [], ends_of(model)
    for path, module in modules.items():
        kind, name = kinds[path], plain_name(path, model)
        typed = ends.get(module) or type_of(name, module)
        if kind.layer is not None:
            found.append(_Place(name, typed or "other", module, kind.layer))
        for each in kind.weights:
            short = each.removesuffix("_weight")
            named = f"{name}.{short}" if name else short
            found.append(_Place(named, typed or type_of(named, module) or "other", module, QuantizedWeight, each))
    for place in found:
        _choose(place, policies)
    return found


def _choose(place: _Place, policies: Mapping[str, Policy]) -> None:
    own = _names(place)
    names = own if place.kind == "other" else (*own, place.kind)
    chosen = next((p for key, p in policies.items() if any(fnmatchcase(each, key) for each in names)), None)
    if chosen is None:
        place.why_not, place.named = "no policy is for its name", False
    elif why := min((chosen.leaves_out(each, place.kind) for each in own), key=bool):
        place.why_not, place.named = why, place.kind != "other" or bool(chosen.patterns)
    elif why := one_cast(place.layer, chosen):
        place.why_not, place.named = why, False
    else:
        place.policy = chosen


def _names(place: _Place) -> tuple[str, ...]:
    """What patterns call a layer: its name, and that of a module which reads its own parameter, as a router does."""
    owner = place.name.rpartition(".")[0] if place.parameter else ""
    return (place.name, owner) if owner else (place.name,)


def _unused(
    model: nn.Module, kinds: Mapping[str, Kind], places: list[_Place], policies: Mapping[str, Policy]
) -> list[str]:
    """The patterns of the policies that name no layer, but for layer types and what recipes keep wide.

    A parameter that no layer has may be called as its module, where there is no layer below that.
    """
    asked = dict.fromkeys([*policies, *(pattern for policy in policies.values() for pattern in policy.patterns)])
    names = {name for place in places for name in _names(place)}
    above = {name[:dot] for name in names for dot, letter in enumerate(name) if letter == "."}
    for path, _ in model.named_parameters(remove_duplicate=False):
        name = place_of(plain_name(path, model))
        names |= {name_for(name), *({name.rpartition(".")[0]} - above)}
    for path, kind in kinds.items():
        names |= {f"{path}.{product}".lstrip(".") for product in ("scores", "mixing") if kind.attention}
    known = {"*", "other", *LAYER_TYPES}
    known |= {each for recipe in RECIPES.values() if {*recipe.wide} <= policies.keys() for each in recipe.wide}
    types = (*LAYER_TYPES, *names)
    return [key for key in asked if key not in known and not any(fnmatchcase(name, key) for name in types)]


def _left_out(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    kinds: Mapping[str, Kind],
    places: list[_Place],
    policies: Mapping[str, Policy],
) -> dict[str, tuple[str, bool]]:
    """Every parameter that no layer rounds, by `place_of`: why, and whether the policy names it."""
    layers: dict[int, list[_Place]] = {}
    for place in places:
        own = [place.module._parameters[place.parameter]] if place.parameter else parameters_of(place.module)
        for parameter in own:
            layers.setdefault(id(parameter), []).append(place)
    reasons = {
        ".".join(filter(None, (plain_name(path, model), parameter))): why
        for path, kind in kinds.items()
        for parameter, why in kind.left_out.items()
    }
    found = {}
    for path, parameter in model.named_parameters():
        name = place_of(plain_name(path, model))
        owner, mine = name.rpartition(".")[0], layers.get(id(parameter), [])
        if any(place.policy.rounds for place in mine):
            continue
        if mine:
            why = next((place.why_not for place in mine if place.why_not), _WIDE)
        else:
            why = why_left(name, parameter, reasons.get(name) or reasons.get(owner) or NO_PRODUCT)
            mine = [
                _Place(each, layer_type(each) or "other", model, QuantizedLayer) for each in (name_for(name), owner)
            ]
            for place in mine:
                _choose(place, policies)
            mine = [*filter(_is_named, mine)] or mine[:1]
        found[name] = (why, all(map(_is_named, mine)))
    return found


def _is_named(place: _Place) -> bool:
    """Whether the policy says of this layer that it stays as it is."""
    return place.named if place.why_not else not place.policy.rounds


def _is_seen(place: _Place) -> bool:
    """Whether a layer that is not covered gets FP32 operands, to be observed."""
    return (
        place.kind != "other" and not place.parameter and plain_class(type(place.module)) in (nn.Linear, nn.Embedding)
    )


def _check_ties(model: nn.Module, places: list[_Place], policies: Mapping[str, Policy]) -> None:
    """No module and no weight may have two policies."""
    first: dict[int, str] = {}
    ends = ends_of(model)
    for path, module in model.named_modules(remove_duplicate=False):
        if first.setdefault(id(module), path) == path:
            continue
        for place in places:
            if place.module is not module or place.parameter:
                continue
            other = replace(place, name=plain_name(path, model), policy=UNQUANTIZED, why_not="", named=True)
            other.kind = ends.get(module) or type_of(other.name, module) or "other"
            _choose(other, policies)
            if other.policy != place.policy:
                raise ValueError(f"layer {place.name} is also layer {other.name}, and the two have different policies")
    readers: dict[int, _Place] = {}
    for place in places:
        weight = place.module._parameters.get(place.parameter or "weight")
        if weight is None or place.policy.weight.format is FP32:  # type: ignore[union-attr]
            continue
        other = readers.setdefault(id(weight), place)
        if other.policy.weight != place.policy.weight:
            raise ValueError(f"layers {other.name} and {place.name} share a weight, and their policies differ in it")


def _install(
    modules: Mapping[str, nn.Module],
    kinds: Mapping[str, Kind],
    places: list[_Place],
    clock: Clock,
    policies: Mapping[str, Policy],
) -> None:
    own = {id(place.module): place for place in places if not place.parameter}
    below: dict[int, list[_Place]] = {}
    for place in places:
        if place.parameter:
            below.setdefault(id(place.module), []).append(place)
    read_above = _read_above(modules, kinds, own)
    rounding = {id(place.module) for place in places if place.policy.rounds}
    for path, module in modules.items():
        mine, kind = own.get(id(module)), kinds[path]
        layers: dict[str, Any] = {}
        for each in below.get(id(module), []):
            layer = QuantizedWeight(module, each.parameter, is_stack(module, each.parameter))
            layers[each.parameter.removesuffix("_weight")] = (layer, each)
        if kind.attention:
            layers |= _attention_products(path, module, policies)
        paths = [*(f"quantized.{name}" for name in layers), *read_above.get(path, ())]
        if mine is not None and issubclass(mine.layer, Reader):
            paths.insert(0, "")
        blocks = kind.blocks and not rounding.isdisjoint(map(id, module.modules()))
        wanted = mine.layer if mine is not None else Reader if paths or blocks else None
        if wanted is None:
            continue
        module.__class__ = quantized_class(wanted, type(module))  # type: ignore[arg-type]
        if mine is not None:
            _become(module, mine, clock)
        if layers:
            module._modules["quantized"] = nn.Module()
        for name, (layer, each) in layers.items():
            module._modules["quantized"].add_module(name, layer)  # type: ignore[union-attr]
            _become(layer, each, clock)
            layer.train(module.training)
        if paths:
            vars(module)["weights_read"] = tuple(paths)
            if reads_transposed(module):
                vars(module)["no_graph"] = True


def _become(layer: Any, place: _Place, clock: Clock) -> None:
    layer.layer, layer.layer_type, layer.clock, layer.policy = place.name, place.kind, clock, place.policy
    _delay(layer)
    layer.rotations = {size: hadamard(size, clock.seed) for size in {*place.policy.hadamard.values()}}


def _attention_products(path: str, module: nn.Module, policies: Mapping[str, Policy]) -> dict[str, Any]:
    """The two products of an attention module, where the policy of its name asks for them."""
    found = {}
    for name in ("scores", "mixing"):
        place = _Place(f"{path}.{name}".lstrip("."), "attention", module, QuantizedProduct)
        _choose(place, policies)
        asked: Any = place.policy.attention
        if asked.format is not FP32:
            place.policy = Policy(asked, asked, asked)
            found[name] = (QuantizedProduct(), place)
    return found


def _read_above(
    modules: Mapping[str, nn.Module], kinds: Mapping[str, Kind], own: Mapping[int, _Place]
) -> dict[str, list[str]]:
    """Path of a module -> the paths below it of the layers whose weights its forward pass reads."""
    found: dict[str, list[str]] = {}
    for path, module in modules.items():
        place = own.get(id(module))
        if place is None or place.policy.weight.format is FP32:  # type: ignore[union-attr]
            continue
        parts = path.split(".")
        for length in range(len(parts)):
            above, rest = ".".join(parts[:length]), ".".join(parts[length:])
            if rest and (rest in kinds[above].children or reads_child(modules[above], rest)):
                found.setdefault(above, []).append(rest)
    return found


def _delay(layer: Any) -> None:
    """Give the layer the delayed scales of its policy, without a history, where the weight is."""
    layer._modules.pop("delayed", None)
    read = ("weight",) if isinstance(layer, nn.Embedding) else layer.policy.casts_made
    rules = {name: spec for name in read if (spec := layer.policy.operand(name)).scaling.kind == "delayed"}
    scales = {
        _key(name): DelayedScale(
            spec.format,
            length=spec.scaling.history,
            margin=spec.scaling.margin,
            algorithm=spec.scaling.algorithm,
            power_of_two=spec.scaling.power_of_two,
            quotient=spec.scaling.quotient,
        )
        for name, spec in rules.items()
        if spec.format is not FP32
    }
    layer.delayed = nn.ModuleDict(scales).to(layer.weight.device) if scales else {}
    layer.passes = torch.zeros((), dtype=torch.int64, device="cpu")


def _take_out(module: nn.Module) -> None:
    """Give a module the class it had, without what only its quantized form holds."""
    if isinstance(module, QuantizedWeight | QuantizedProduct) or not isinstance(module, QuantizedLayer | Reader):
        return
    added: dict[str, nn.Module | None] = vars(module)["_modules"]
    if isinstance(module, QuantizedLayer):
        added.pop("delayed", None)
        for name in ATTRIBUTES:
            vars(module).pop(name, None)
    added.pop("quantized", None)
    for name in ("weights_read", "no_graph"):
        vars(module).pop(name, None)
    module.__class__ = plain_class(type(module))


def dequantize_model(model: nn.Module) -> nn.Module:
    """Undo `quantize_model`, in place: the old classes with the same parameters, whose values stay as they are."""
    forget_coverage(model)
    for module in list(model.modules()):
        _take_out(module)
    return model


def all_layers(model: nn.Module) -> dict[str, Any]:
    """`quantized_layers`, and attention's products, which have no weight."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}
    return {name.replace(".quantized.", ".").removeprefix("quantized."): layer for name, layer in found.items()}


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The quantized layers of `model` by dotted name, in the order of definition."""
    return {name: layer for name, layer in all_layers(model).items() if not isinstance(layer, QuantizedProduct)}


@contextmanager
def observed(model: nn.Module, observer: Observer) -> Iterator[None]:
    """Let `observer` see every operand of every quantized layer of `model` while the block runs."""
    layers = quantized_layers(model).values()
    for layer in layers:
        layer.observer = observer
    try:
        yield
    finally:
        for layer in layers:
            layer.observer = None


def clock_of(model: nn.Module) -> Clock:
    """The clock that the quantized layers of `model` share."""
    return next((layer.clock for layer in quantized_layers(model).values()), Clock())
