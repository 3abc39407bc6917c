"""Quantized layers: what they read, in which format, and by which products.

A linear layer is three matrix products, and each reads two of three operands:

    output      = activation  @ weight^T          forward
    grad_input  = grad_output @ weight            backward
    grad_weight = grad_output^T @ activation      backward

`QuantizedLinear` rounds each operand once, onto its own format with its own scale and rounding, and multiplies the
rounded values in float32: the products are exact and accumulation is float32, as tensor cores do it ("simulated").
So it is under autocast too: there the operands are rounded and multiplied in float32, because bfloat16 would move a
value that has a scale that is no power of two off its grid, and the output has the dtype that autocast asks for.
E4M3 and E5M2 can also be multiplied by the hardware's own FP8 instruction ("native"). Weights stay float32 masters
behind the straight-through estimator, or live on the grid (`altgrad.optim`). Biases, attention scores, norms and
residuals are not quantized.

So a layer has six casts, two of each operand. A cast is named like its operand for the first product above that reads
it, and `grad_input.weight`, `grad_weight.activation`, `grad_weight.grad_output` for the second. The second is the first
unless something sets it apart: an `Operand` of its own (`Policy.casts`), scales along the dimension that its product
sums over (`ScaleRule.axis`), or a rotation (`Policy.hadamard`). That dimension is the last of an operand for the first
product, and the rows for the second.

Shape suffixes: N rows (batch x time), I inputs, O outputs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from altgrad.config import (
    LAYER_TYPES,
    OPERANDS,
    OWN_ROUNDING,
    PRODUCTS,
    READERS,
    SECOND_CASTS,
    ScaleRule,
    UsageError,
    first_mistake,
    operand_of,
    product_of,
)
from altgrad.diffusion import diffuse
from altgrad.formats import FP32, ROUNDINGS, FloatFormat, get_format, no_rounding
from altgrad.ranks import is_sharded, over_group, shared_as, whole
from altgrad.rounding import StraightThrough, is_traced, quantize, quantize_counted, straight_through
from altgrad.scaling import (
    MX_BLOCK,
    NVFP4_BLOCK,
    amax,
    expand_blocks,
    expand_tiles,
    in_blocks,
    in_tiles,
    inverse_scale_of_amax,
    mx_scale_of_amax,
    nvfp4_scales_of_amax,
    scale_of_amax,
    tile_amax,
)

NATIVE_DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


class Reading(NamedTuple):
    """One operand as a matrix product reads it, and what rounding did to it, counted in the pass that rounds.

    Attributes:
        layer, layer_type, operand: the layer's dotted name, its type, and weight, activation or grad_output.
        real: the operand before rounding: weight [O, I], activation [..., I], grad_output [..., O]; rotated where its
            product rotates it.
        rounded: the values that the product reads, shape and dtype of `real`; `real` itself for an FP32 operand and
            for a weight that lives on the grid, whose counts are 0.
        format: of the grid.
        scale: the dequantization scale; None is 1. It broadcasts to `real`, or is [..., blocks] where `block` is not 0.
        overflow: elements whose rounded magnitude is beyond the format's largest value, infinities included; int64 [].
        underflow: elements that were not zero and became zero; int64 [].
        nonzero: elements of `real` that are not zero, where they were counted; None where nothing was rounded.
        block: neighbours in the last dimension that share a scale; 0 where the scale broadcasts.
        products: those that read these values, of output, grad_input and grad_weight.
    """

    layer: str
    layer_type: str
    operand: str
    real: Tensor
    rounded: Tensor
    format: FloatFormat
    scale: Tensor | None
    overflow: Tensor
    underflow: Tensor
    nonzero: Tensor | None = None
    block: int = 0
    products: tuple[str, ...] = ()

    @property
    def cast(self) -> str:
        """The name of the cast: the operand's, or ``grad_weight.activation`` where the second product has its own."""
        second = self.products == READERS[self.operand][1:]
        return SECOND_CASTS[self.operand] if second else self.operand

    @property
    def element_scale(self) -> Tensor | None:
        """The scale in a shape that broadcasts to the values; None is 1."""
        if self.scale is None or not self.block:
            return self.scale
        return expand_blocks(self.scale, self.real.shape[-1], block=self.block)


Observer = Callable[[Reading], None]
"""Called with every operand that a product reads, in order of computation."""


class Counter(Protocol):
    """Who is told which values a layer's products read."""

    def read(self, layer: str, cast: str, values: Tensor, rounded: bool) -> None:
        """The products of `layer` read these `values`, which were rounded or are as they were."""

    def aside(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`function(x)`, whose products are a cast's and none of the model's."""


def Scaling(kind: str = "amax", granularity: str = "tensor", **settings: Any) -> ScaleRule:
    """The `altgrad.config.ScaleRule` of these settings: ``Scaling("delayed", history=4)``.

    Raises:
        ValueError: a setting that is unknown, out of its range or of another kind; one line that names it.
    """
    try:
        return ScaleRule.model_validate({"kind": kind, "granularity": granularity, **settings})
    except ValidationError as error:
        raise UsageError(first_mistake(error, "scaling")) from None


OwnRounding = Callable[[Tensor, Tensor], Tensor]
"""From `x` and `x` rounded to nearest, [..., n] each, to what the products read: the same shape and dtype."""

_OWN_ROUNDINGS: dict[str, OwnRounding] = {}


def register_rounding(name: str, function: OwnRounding) -> None:
    """Make ``own:NAME`` a rounding, of an `Operand` and of a config's `quantize.grad_output_rounding`.

    It is for experiments: a record has its name alone, and whoever repeats the run has to register it again.

    Raises:
        UsageError: a name that is no lower-case slug, or that stands for another function.
    """
    key = f"own:{name}"
    if not OWN_ROUNDING.fullmatch(key):
        raise UsageError(f"a rounding's name has lower-case letters, digits and hyphens, not {name!r}")
    if _OWN_ROUNDINGS.setdefault(key, function) is not function:
        raise UsageError(f"rounding {key!r} is registered already, with another function")


@dataclass(frozen=True)
class Operand:
    """What happens to one operand of the products; FP32 leaves it as it is.

    Attributes:
        format: or its name, as `get_format` takes it.
        rounding: one of `altgrad.rounding.quantize`, or "diffused": clamped error diffusion along the last dimension,
            which for a head's grad_output are the classes (`altgrad.diffusion`); or "own:NAME" (`register_rounding`).

    Raises:
        ValueError: an unknown format or rounding.
    """

    format: FloatFormat = FP32
    rounding: str = "nearest_even"
    scaling: ScaleRule = field(default_factory=ScaleRule)

    def __post_init__(self) -> None:
        if not isinstance(self.format, FloatFormat):
            object.__setattr__(self, "format", get_format(self.format))
        if self.rounding not in (known := (*ROUNDINGS, "diffused", *_OWN_ROUNDINGS)):
            if OWN_ROUNDING.fullmatch(self.rounding):
                raise UsageError(f"rounding {self.rounding!r} is not registered; see altgrad.nn.register_rounding")
            raise UsageError(no_rounding(self.rounding, known))


@dataclass(frozen=True)
class Policy:
    """Which format each operand gets, in which layers, and how tensors are scaled and rounded.

    Attributes:
        weight, activation, grad_output: an `Operand`, or a format or its name (nearest even, current per-tensor amax).
        layers: layer types this applies to; ("*",), the default, means every layer, "other" those of no type.
        patterns: dotted layer names with * and ?, one of which must match; none means all.
        head, embedding: False leaves the layers of that type as they are.
        attention: an `Operand` or a format for the four operands of attention's two products, scores and mixing; FP32,
            the default, leaves them as they are.
        compute: "simulated" or "native".
        casts: an `Operand` or a format for ``grad_input.weight``, ``grad_weight.activation`` and
            ``grad_weight.grad_output``, where these are not those of the first product.
        hadamard: size of the rotation (16 or 32) by product: both operands of output, grad_input or grad_weight are
            rotated along the dimension that it sums over.

    Raises:
        ValueError: an unknown layer type, compute, cast or product; a rotation of another size; native compute with
            casts or rotations; an operand with a format that its scale rule or native compute does not have
            (`ScaleRule.check`).
    """

    weight: Operand | FloatFormat | str = FP32
    activation: Operand | FloatFormat | str = FP32
    grad_output: Operand | FloatFormat | str = FP32
    layers: tuple[str, ...] = ("*",)
    patterns: tuple[str, ...] = ()
    compute: str = "simulated"
    casts: Mapping[str, Operand | FloatFormat | str] = field(default_factory=dict, hash=False)
    hadamard: Mapping[str, int] = field(default_factory=dict, hash=False)
    head: bool = True
    embedding: bool = True
    attention: Operand | FloatFormat | str = FP32
    apart: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """The operands whose two products read casts of their own."""

    def __post_init__(self) -> None:
        for name in (*OPERANDS, "attention"):
            if not isinstance(given := getattr(self, name), Operand):
                object.__setattr__(self, name, Operand(given))
        named = {name: it if isinstance(it, Operand) else Operand(it) for name, it in self.casts.items()}  # type: ignore[arg-type]
        object.__setattr__(self, "casts", named)
        if self.compute not in ("simulated", "native"):
            raise ValueError(f"compute must be 'simulated' or 'native', not {self.compute!r}")
        for key in ("layers", "patterns"):
            if isinstance(given := getattr(self, key), str):
                raise ValueError(f"{key} must be a tuple of texts, not {given!r}")
        known = (*LAYER_TYPES, "other", "*")
        if unknown := set(self.layers).difference(known):
            raise ValueError(f"layers must be of {', '.join(known)}, not {', '.join(sorted(unknown))}")
        seconds = tuple(SECOND_CASTS.values())
        if unknown := set(self.casts).difference(seconds):
            raise ValueError(f"casts must be of {', '.join(seconds)}, not {', '.join(sorted(unknown))}")
        if unknown := set(self.hadamard).difference(PRODUCTS):
            raise ValueError(f"hadamard must be of {', '.join(PRODUCTS)}, not {', '.join(sorted(unknown))}")
        for product, size in self.hadamard.items():
            if size not in ROTATIONS:
                raise ValueError(f"the rotation of {product} must have the size 16 or 32, not {size!r}")
        if self.compute == "native" and (self.casts or self.hadamard):
            raise ValueError("compute 'native' reads each operand once, as it is: without casts and hadamard")
        for name in (*OPERANDS, *self.casts):
            spec = self.operand(name)
            spec.scaling.check(name, spec.format, self.compute)
        object.__setattr__(self, "apart", tuple(name for name in OPERANDS if self._is_apart(name)))

    def _is_apart(self, name: str) -> bool:
        first, second = self.operand(name), self.operand(SECOND_CASTS[name])
        rotated = any(product in self.hadamard for product in READERS[name])
        across = second.format is not FP32 and second.scaling.axis == "contraction"
        return first != second or rotated or across

    def operand(self, name: str) -> Operand:
        """What happens to a cast: weight, activation or grad_output, or one of the names of `casts`."""
        found: Operand = self.casts.get(name) or getattr(self, operand_of(name))  # type: ignore[assignment]
        return found

    @property
    def casts_made(self) -> tuple[str, ...]:
        """The names of the casts that a layer makes, from three to six."""
        return (*OPERANDS, *(SECOND_CASTS[name] for name in self.apart))

    @property
    def rounds(self) -> bool:
        """Whether any operand of a layer's products is in another format than FP32."""
        return any(self.operand(name).format is not FP32 for name in self.casts_made)

    def covers(self, layer: str, kind: str) -> bool:
        """Whether the layer of this dotted name and type is quantized."""
        return not self.leaves_out(layer, kind)

    def leaves_out(self, layer: str, kind: str) -> str:
        """What in the policy leaves the layer of this dotted name and type as it is, in words; empty for nothing."""
        if kind not in self.layers and "*" not in self.layers:
            return f"its type, {kind}, is not in layers"
        if not {"head": self.head, "embedding": self.embedding}.get(kind, True):
            return f"{kind}=False"
        if self.patterns and not any(fnmatchcase(layer, pattern) for pattern in self.patterns):
            return "patterns do not match its name"
        return ""


UNQUANTIZED = Policy()


@dataclass
class Clock:
    """What the draws of stochastic rounding depend on beside layer and operand: the run's seed, and the moment.

    `draw_version` is that of the draws (`formats.stochastic_draw`). The loop sets `step` and `part` (the batch within a
    step; -1 for evaluation), so that draws do not depend on how often anything else was computed, and delayed scales
    count steps. While `step` is None nobody counts: every forward pass of a layer is a step of its own. Where processes
    share a batch, `group` is the process group over whose ranks amax is taken, and `rank` says whose rows are here.
    """

    seed: int = 0
    step: int | None = None
    part: int = 0
    draw_version: int = 1
    group: Any = field(default=None, repr=False, compare=False)
    rank: int = 0
    now: Tensor = field(init=False, repr=False, compare=False)
    """int64 [step, part]; `counted` and `training` tell whether there is a step, and whether it is no evaluation."""
    counted: bool = field(init=False, repr=False, compare=False)
    training: bool = field(init=False, repr=False, compare=False)

    def __setattr__(self, name: str, value: Any) -> None:
        """Keep the moment as a tensor too, so that a compiled graph serves all moments."""
        vars(self)[name] = value
        with torch.inference_mode(False):
            now = torch.tensor([self.step or 0, self.part], device="cpu")
        vars(self).update(now=now, counted=self.step is not None, training=self.part >= 0)

    def __deepcopy__(self, memo: object) -> Clock:
        """A copy of a model shares the process group, which has no copies."""
        return replace(self)

    def __getstate__(self) -> dict[str, Any]:
        """A model that is saved knows no process group."""
        return vars(self) | {"group": None}

    def seed_of(self, layer: str, operand: str) -> int | Tensor:
        """A 64-bit seed for one tensor at this moment; in a graph an int64 tensor with its bits."""
        if is_traced():
            return _seed_at(self.now, str(self.seed), f"{layer}/{operand}")
        return _seed(str(self.seed), self.step or 0, self.part, f"{layer}/{operand}")


def _seed(run: str, step: int, part: int, place: str) -> int:
    text = f"{run}/{step}/{part}/{place}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


@torch.library.custom_op("altgrad::seed_at", mutates_args=())
def _seed_at(now: Tensor, run: str, place: str) -> Tensor:
    """`_seed` of the moment [step, part] that `now` holds when the graph runs: int64 []."""
    step, part = now.tolist()
    return torch.tensor(_seed(run, step, part, place), dtype=torch.uint64).view(torch.int64)


@_seed_at.register_fake
def _(now: Tensor, run: str, place: str) -> Tensor:
    return now.new_empty(())


ATTRIBUTES = (
    "layer",
    "layer_type",
    "policy",
    "clock",
    "observer",
    "operand_order",
    "counter",
    "grid_scale",
    "read_in_parts",
    "delayed",
    "passes",
    "recording",
    "rotations",
)
"""What a quantized layer holds that its module did not, beside modules."""


class _Quantizer:
    """What quantized layers share: a place in the model, a policy, and those who may look at the operands."""

    layer: str = ""
    layer_type: str = ""
    policy: Policy = UNQUANTIZED
    clock: Clock = Clock()
    observer: Observer | None = None
    counter: Counter | None = None
    """Who counts the products of the first batch, while it runs."""
    grid_scale: Tensor | None = None
    """The scale of a weight that lives on the grid; the products read such a weight as it is."""
    delayed: Any
    """The `DelayedScale` of each operand that has one: an nn.ModuleDict, so that histories are in `state_dict`; else
    an empty dict, so that a layer without them has no more modules than it had."""
    passes: Tensor
    """Of a layer with delayed scales, their steps while nobody counts them: minus the forward passes so far, int64."""
    recording: bool = True
    """Whether the forward pass under way has gradients enabled, which inside an autograd.Function nobody can see."""
    rotations: dict[int, Tensor]
    """The matrices of `Policy.hadamard` by size."""
    operand_order: tuple[int, ...] | None = None
    """The weight's dimensions as the product that read it last by a function of torch has them, at the end that which
    it sums over. None, which stands for the weight's own order: there was no such product, or it summed over no such
    dimension."""
    read_in_parts: bool = False
    """Whether that product read some rows or columns of each matrix, which then have scales of their own."""
    weight: Tensor
    training: bool
    register_forward_hook: Any  # every layer is a module too

    def operand(self, x: Tensor, name: str) -> Tensor:
        """`x` as the matrix product reads it: rounded onto the cast's format, or `x` itself for FP32."""
        return self.read(x, name)[0]

    def _check(self, x: Tensor, what: str = "input") -> None:
        """That `x` is a tensor with a value of its own at every place."""
        if x.is_nested:
            why = "a nested tensor; pad it (torch.nested.to_padded_tensor)"
        elif x.layout is not torch.strided:
            why = f"{str(x.layout).removeprefix('torch.')}, and only dense tensors are rounded; use to_dense()"
        elif isinstance(x, FakeTensor) and not is_traced():
            why = "a fake tensor, and rounding needs values; use meta tensors"
        elif not x.is_floating_point():
            why = f"{str(x.dtype).removeprefix('torch.')}, and only real floating point is rounded"
        else:
            return
        raise ValueError(f"layer {self.layer}: its {what} is {why}")

    def for_both(self, x: Tensor, name: str, first: bool, second: bool) -> tuple[Tensor | None, Tensor | None]:
        """An operand as each of the two products reads it, so far as these are computed; one reading for shared casts.

        Args:
            x: [N, I], [O, I] or [N, O].
        """
        if name in self.policy.apart:
            return (
                self.operand(x, name) if first else None,
                self.operand(x, SECOND_CASTS[name]) if second else None,
            )
        return (self.operand(x, name),) * 2 if first or second else (None, None)

    def rotation(self, name: str) -> Tensor | None:
        """The matrix that a cast is rotated with, or None; an embedding's table is no factor of a product."""
        size = self.policy.hadamard.get(product_of(name)) if not isinstance(self, nn.Embedding) else None
        return None if size is None else self.rotations[size]

    def read(self, x: Tensor, name: str) -> tuple[Tensor, Tensor | None]:
        """`operand`, with the scale it was rounded with: None for 1 and for the block formats.

        What tensor parallelism shares out is rounded whole, on every rank alike.
        """
        if is_sharded(x) and (self.observer is not None or not self._as_it_is(name)):
            rounded, scale = self.read(whole(x), name)
            found = shared_as(rounded, x), scale
        elif self.observer is None:
            found = self._rounded(x, name)
        else:
            reading = self._reading(x, name)
            self.observer(reading)
            found = reading.rounded, None if reading.block else reading.scale
        if self.counter is not None:
            self.counter.read(self.layer, name, found[0], self.policy.operand(name).format is not FP32)
        return found

    def as_operand(self, weight: Tensor) -> Tensor:
        """The parameter `weight` (or its gradient, or a change of it) as the products read it: [O, I] for a matrix."""
        return weight if self.operand_order is None else weight.permute(self.operand_order)

    def as_parameter(self, weight: Tensor) -> Tensor:
        """`as_operand` undone."""
        if self.operand_order is None:
            return weight
        return weight.permute([self.operand_order.index(dim) for dim in range(len(self.operand_order))])

    def weight_as_read(self) -> Tensor:
        """The weight as the products would read it now, without a gradient and without a trace in any history."""
        with self._without_trace():
            return self.as_parameter(self._rounded(self.as_operand(whole(self.weight.detach())), "weight")[0])

    def weight_and_scale(self) -> tuple[Tensor, Tensor | None, int | tuple[int, int]]:
        """The weight as an operand, the scale it has, and the elements of a block, or its rows and columns, or 0.

        The scale is one a tensor, row or block (of each matrix of a stack: [..., 1, 1] one a matrix), None for 1, and
        its inverse where the rule's quotient is "inverse".
        """
        with self._without_trace():
            weight = self.as_operand(whole(self.weight.detach()))
            scale, block = self._scale(self._rotated(weight, "weight"), "weight")
            return self._rounded(weight, "weight")[0], scale, block

    def weight_reading(self) -> Reading:
        """`weight_as_read`, as an observer would see it."""
        with self._without_trace():
            return self._reading(self.as_operand(whole(self.weight.detach())), "weight")

    def _rounded(self, x: Tensor, name: str) -> tuple[Tensor, Tensor | None]:
        x = self._rotated(x, name)
        scale, block = self._scale(x, name)
        if self._as_it_is(name):
            return x, scale
        fmt, how = self.policy.operand(name).format, self._rounding(x, name)
        elements, factor = _elements(x, scale, block)
        inverse = self._inverse(name, factor)
        if inverse is not None:
            elements, factor, scale = elements.float() * inverse, None, 1 / scale
        if how["rounding"] not in ROUNDINGS:
            rounded = _rounded_together(how["rounding"], x, elements, fmt, factor, inverse)
        else:
            rounded = quantize(elements, fmt, scale=factor, check_scale=False, **how)
            rounded = (rounded if inverse is None else rounded.div_(inverse).to(x.dtype)).view(x.shape)
        return rounded, None if block else scale

    def _reading(self, x: Tensor, name: str) -> Reading:
        operand = operand_of(name)
        shared = not isinstance(self, nn.Embedding) and operand not in self.policy.apart
        products = READERS[operand] if shared else (product_of(name),)
        fmt, place = self.policy.operand(name).format, (self.layer, self.layer_type, operand)
        x = self._rotated(x, name)
        scale, block = self._scale(x, name)
        if self._as_it_is(name):
            none = torch.zeros((), dtype=torch.int64, device=x.device)
            return Reading(*place, x, x, fmt, scale, none, none, products=products)
        elements, factor = _elements(x, scale, block)
        inverse = self._inverse(name, factor)
        if inverse is not None:
            elements, factor, scale = elements.float() * inverse, None, 1 / scale
        if isinstance(block, tuple):
            scale, block = expand_tiles(scale, tiled_shape(x.shape, scale), block).view(x.shape), 0
        how = self._rounding(x, name)
        together = None
        if how["rounding"] not in ROUNDINGS:  # what overflows is what overflows to nearest
            together, how = how["rounding"], {"rounding": "nearest_even"}
        found = quantize_counted(elements, fmt, scale=factor, with_ulp=False, check_scale=False, **how)
        rounded, underflow = found.values, found.underflow
        rounded = (rounded if inverse is None else rounded.div_(inverse).to(x.dtype)).view(x.shape)
        if together is not None:
            rounded = _rounded_together(together, x, elements, fmt, factor, inverse)
            underflow = torch.count_nonzero((x != 0) & (rounded == 0))
        counts = found.overflow, underflow, found.nonzero
        return Reading(*place, x, rounded, fmt, scale, *counts, block, products)

    def _rotated(self, x: Tensor, name: str) -> Tensor:
        """`x` as its product rotates it, along the dimension that the product sums over."""
        if (matrix := self.rotation(name)) is None:
            return x
        turned = partial(rotate, matrix=matrix, rows=name not in OPERANDS)
        return turned(x) if self.counter is None else self.counter.aside(turned, x)

    def _as_it_is(self, name: str) -> bool:
        """Whether the products read the operand without rounding it."""
        on_grid = operand_of(name) == "weight" and self.grid_scale is not None
        return self.policy.operand(name).format is FP32 or on_grid

    def _rounding(self, x: Tensor, name: str) -> dict[str, Any]:
        rounding, clock = self.policy.operand(name).rounding, self.clock
        seed = clock.seed_of(self.layer, name) if rounding == "stochastic" else None
        first = clock.rank * x.numel() if self._is_shared(name) else 0
        return {"rounding": rounding, "seed": seed, "draw_version": clock.draw_version, "first": first}

    def _is_shared(self, name: str) -> bool:
        """Whether each of several processes has its own rows of the operand: all but weights, the same in all."""
        if operand_of(name) != "weight":
            return True
        alone = self.clock.group is None and self.clock.rank == 0  # then a weight, which may be computed, is not read
        return not alone and self.weight is None

    def _inverse(self, name: str, factor: Any) -> Tensor | None:
        """`factor` where it is what elements are multiplied by, in place of a scale to divide them by."""
        return factor if self.policy.operand(name).scaling.quotient == "inverse" else None

    def _scale(self, x: Tensor, name: str) -> tuple[Any, int | tuple[int, int]]:
        """The scale of `x` (a Tensor, or None for 1), and the elements of a block that has one of its own, or 0.

        It is the inverse of the scale where the rule's quotient is "inverse".

        Of blocks that do not lie along the last dimension it is their rows and columns.
        """
        spec = self.policy.operand(name)
        scaling, fmt = spec.scaling, spec.format
        group = self.clock.group if self._is_shared(name) else None
        if fmt is FP32:
            return None, 0
        if operand_of(name) == "weight" and self.grid_scale is not None:
            return self.grid_scale, 0
        across = scaling.axis == "contraction" and name not in OPERANDS
        if (tile := _tile(scaling, x, across=across)) is not None:
            largest = tile_amax(_matrix(x), tile)
            if scaling.granularity == "row":  # a column's, of the rows of all processes
                largest = over_group(largest, group)
            return _scale_of_amax(largest, scaling, fmt, group), tile
        if scaling.kind == "none":
            return None, 0
        if scaling.kind == "static":
            return torch.full((), scaling.value, dtype=torch.float32, device=x.device), 0
        if scaling.kind == "delayed":
            return self._delayed_scale(x, name, group), 0
        granularity = "block" if scaling.kind in _BLOCKS else scaling.granularity
        block = _BLOCKS.get(scaling.kind, scaling.block)
        largest = amax(x, granularity=granularity, block=block)
        if granularity == "tensor":
            largest = over_group(largest, group)
        return _scale_of_amax(largest, scaling, fmt, group), block if granularity == "block" else 0

    def _delayed_scale(self, x: Tensor, name: str, group: Any) -> Tensor:
        """As Transformer Engine: training with gradients enabled takes the amax of `x` into the history."""
        delayed, clock = self.delayed[_key(name)], self.clock
        if not (clock.training and self.training):
            return delayed.scale(x, group=group)  # type: ignore[no-any-return]
        moment = clock.now[0] if clock.counted else self.passes
        if operand_of(name) == "grad_output":
            return delayed.update(x, moment if clock.counted else None, group)  # type: ignore[no-any-return]
        look_up = delayed.update if self.recording else delayed.scale
        return look_up(x, moment, group)  # type: ignore[no-any-return]

    def _begin(self) -> None:
        """What delayed scales have to know of a forward pass.

        One that runs inside a backward pass is the recomputation of activation checkpointing. It belongs to the same
        step, so that it reads the scale of the first pass, and records what that one has recorded, or, after a first
        pass without gradients (reentrant checkpointing), what it has not.
        """
        if self.delayed:
            self.recording = torch.is_grad_enabled()
            if is_traced() or torch._C._current_graph_task_id() < 0:
                with torch._C._DisableFuncTorch() if _is_transformed() else nullcontext():
                    self.passes.sub_(1)

    @contextmanager
    def _without_trace(self) -> Iterator[None]:
        """Read as in an evaluation: no history remembers it, and the draws are those of no training batch."""
        part, self.clock.part = self.clock.part, -1
        try:
            yield
        finally:
            self.clock.part = part


def _elements(x: Tensor, scale: Any, block: int | tuple[int, int]) -> tuple[Tensor, Any]:
    """`x` and what `_scale` returns in shapes that broadcast."""
    if isinstance(block, tuple):
        stacked = scale.ndim > 2
        return (x, expand_tiles(scale, x.shape, block)) if stacked else in_tiles(_matrix(x), scale, block)
    return in_blocks(x, scale, block=block) if block else (x, scale)


def _rounded_together(
    rounding: str, x: Tensor, elements: Tensor, fmt: FloatFormat, scale: Any, inverse: Tensor | None
) -> Tensor:
    """`x` by a rounding that looks at more than an element; what is on the grid is found in shapes of `_elements`."""

    def on_grid(way: str) -> Tensor:
        found = quantize(elements, fmt, scale=scale, rounding=way, check_scale=False)
        return (found if inverse is None else found.div_(inverse).to(x.dtype)).view(x.shape)

    if rounding == "diffused":
        return diffuse(x, on_grid("down"), on_grid("up"))
    return _OWN_ROUNDINGS[rounding](x, on_grid("nearest_even"))


def _key(cast: str) -> str:
    """A cast's name where dots tell modules apart."""
    return cast.replace(".", "_")


def tiled_shape(shape: Sequence[int], scale: Tensor) -> tuple[int, ...]:
    """The shape in which scales of tiles lie over an operand: [N, n], or its own for scales of a stack of matrices."""
    return tuple(shape) if scale.ndim > 2 else (math.prod(shape[:-1]), shape[-1])


def _matrix(x: Tensor) -> Tensor:
    """[..., n] as [N, n]."""
    return x.flatten(0, -2) if x.ndim > 1 else x.unsqueeze(0)


_BLOCKS = {"mx": MX_BLOCK, "mx_rceil": MX_BLOCK, "nvfp4": NVFP4_BLOCK}


def _tile(scaling: ScaleRule, x: Tensor, *, across: bool) -> tuple[int, int] | None:
    """Rows and columns that share a scale where blocks do not lie along the last dimension; `across` is down the rows.

    None is for everything else: no blocks, or those of one row.
    """
    size = _BLOCKS.get(scaling.kind, scaling.block)
    if scaling.granularity == "block_2d":
        return size, size
    if across:
        return max(x.shape[0], 1) if scaling.granularity == "row" else size, 1
    return None


def _scale_of_amax(largest: Tensor, scaling: ScaleRule, fmt: FloatFormat, group: Any = None) -> Tensor:
    """The scales, float32 of any shape, by the rule of an operand whose largest absolute values are known.

    NVFP4's second level is of the whole tensor: of that of all ranks of a `group`.
    """
    if scaling.kind == "nvfp4":
        inner, outer = nvfp4_scales_of_amax(largest, group=group)
        return inner * outer
    if scaling.quotient == "inverse":
        return inverse_scale_of_amax(largest, fmt)
    if scaling.kind == "amax":
        return scale_of_amax(largest, fmt, power_of_two=scaling.power_of_two, quotient=scaling.quotient)
    return mx_scale_of_amax(largest, fmt, rule="floor" if scaling.kind == "mx" else "rceil")


ROTATIONS = (16, 32)
"""Sizes of a rotation."""


def hadamard(size: int, seed: int) -> Tensor:
    """A random rotation: rows of Sylvester's Hadamard matrix over sqrt(size), each with a sign drawn by the seed.

    Returns:
        R, float32 [size, size] on the processor, with R R^T = 1 to roundoff: (a R) (b R)^T = a b^T. One for all layers
        and steps, as in NVFP4 training (arXiv 2509.25149, section 4.2).
    """
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    signs = torch.randint(0, 2, (size, 1), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return signs * matrix / size**0.5


def rotate(x: Tensor, matrix: Tensor, *, rows: bool = False) -> Tensor:
    """`x` [..., n] with each whole block of its last dimension multiplied by `matrix` [size, size]; the rest as it is.

    Where `rows`, `x` is [N, n], and it is the first dimension. Computed in float32 where `x` is narrower; the result
    has the dtype of `x`.
    """
    dim, size = 0 if rows else -1, len(matrix)
    dtype = torch.promote_types(x.dtype, torch.float32)
    number = x.shape[dim] // size
    whole, rest = x.split([number * size, x.shape[dim] - number * size], dim)
    blocks, matrix = whole.unflatten(dim, (number, size)).to(dtype), matrix.to(x.device, dtype)
    turned = (matrix.t() @ blocks).flatten(0, 1) if rows else (blocks @ matrix).flatten(-2)
    return torch.cat([turned.to(x.dtype), rest], dim)


class _Products(torch.autograd.Function):
    """The three products, where the two that read an operand do not read the same cast of it.

    What the backward products read is rounded on the forward pass, as hardware does it, which keeps the rounded copies.
    """

    @staticmethod
    def forward(ctx, x_NI, weight_OI, quantizer, backward):  # type: ignore[no-untyped-def]
        ctx.quantizer = quantizer
        for_x, for_weight = (backward and needed for needed in ctx.needs_input_grad[:2])
        x, second_x = quantizer.for_both(x_NI, "activation", True, for_weight)
        weight, second_weight = quantizer.for_both(weight_OI, "weight", True, for_x)
        ctx.save_for_backward(second_x, second_weight)
        return nn.functional.linear(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_NO):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        for_x, for_weight = ctx.needs_input_grad[:2]
        grad, second_grad = ctx.quantizer.for_both(grad_NO, "grad_output", for_x, for_weight)
        grad_x_NI = _product(grad, weight) if for_x else None
        grad_weight_OI = _product(second_grad.t(), x) if for_weight else None
        return grad_x_NI, grad_weight_OI, None, None


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in the wider of their dtypes."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype) @ b.to(dtype)


class _Rounded(StraightThrough):
    """An operand as the products read it; its gradient passes straight through."""

    @staticmethod
    def forward(x, quantizer, name):  # type: ignore[no-untyped-def]
        rounded = quantizer.operand(x, name)
        return rounded.view_as(rounded) if rounded is x else rounded


class _RoundedGradient(StraightThrough):
    """The identity, whose gradient is rounded: grad_output as both backward products read it.

    A gradient of that gradient passes straight through the rounding, as it does through that of the other operands.
    """

    @staticmethod
    def forward(y, quantizer):  # type: ignore[no-untyped-def]
        return y.detach()  # no view in torch's eyes: what follows may work in place, as on any layer's output

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return straight_through(_Rounded, grad, *ctx.settings, "grad_output"), None


class _NativeProducts(torch.autograd.Function):
    """The three products by the hardware's FP8 instruction, from the same rounded values and per-tensor scales."""

    @staticmethod
    def forward(ctx, x_NI, weight_OI, quantizer):  # type: ignore[no-untyped-def]
        ctx.quantizer = quantizer
        x8_NI, x_scale = _native_operand(quantizer, x_NI, "activation")
        weight8_OI, weight_scale = _native_operand(quantizer, weight_OI, "weight")
        ctx.save_for_backward(x8_NI, x_scale, weight8_OI, weight_scale)
        return _native_product(x8_NI, x_scale, weight8_OI.t(), weight_scale, x_NI.dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx, grad_NO):  # type: ignore[no-untyped-def]
        x8_NI, x_scale, weight8_OI, weight_scale = ctx.saved_tensors
        grad8_NO, grad_scale = _native_operand(ctx.quantizer, grad_NO.contiguous(), "grad_output")
        grad_x_NI = grad_weight_OI = None
        if ctx.needs_input_grad[0]:  # the second factor is read by columns
            columns = weight8_OI.t().contiguous().t()
            grad_x_NI = _native_product(grad8_NO, grad_scale, columns, weight_scale, grad_NO.dtype)
        if ctx.needs_input_grad[1]:
            columns = x8_NI.t().contiguous().t()
            grad_weight_OI = _native_product(grad8_NO.t().contiguous(), grad_scale, columns, x_scale, grad_NO.dtype)
        return grad_x_NI, grad_weight_OI, None


def _native_operand(quantizer: _Quantizer, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    rounded, scale = quantizer.read(x, name)
    scale = torch.ones((), device=x.device) if scale is None else scale
    fmt = quantizer.policy.operand(name).format
    return (rounded / scale).to(NATIVE_DTYPES[fmt.name]), scale


def _native_product(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    product: Tensor = torch._scaled_mm(a, b, scale_a=a_scale, scale_b=b_scale, out_dtype=dtype)
    return product


def native_lack(device: torch.device) -> str:
    """Why a device does not multiply FP8, in words; empty where it does."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9):
        return ""
    return "native FP8 products need a GPU of compute capability 8.9 or more; use compute 'simulated'"


SEVERAL = "casts of their own for second products, rotations and native compute"
ONE_CAST = (
    "its operands can be rounded once only, and this policy rounds them again for a second product, rotates them or "
    "computes natively"
)


def _is_transformed() -> bool:
    """Whether a transform of torch.func is under way."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


class LinearProducts(_Quantizer):
    """The three products of a linear function of an activation, whoever holds the weight."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x` [..., I] times the transposed `weight` [O, I], plus the bias: [..., O]; by rounded operands."""
        return self._run(self._output, x, weight, bias)

    def _run(self, products: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`products(x, weight, bias)`, under autocast in float32."""
        self._check(x)
        device = x.device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if not autocast or not self.policy.rounds:
            return products(x, weight, bias)
        with torch.autocast(device, enabled=False):
            y = products(x.float(), weight.float(), None if bias is None else bias.float())
        return y.to(torch.get_autocast_dtype(device))

    def _output(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        policy, observed = self.policy, self.observer is not None
        y: Tensor
        if (policy.apart or policy.compute == "native") and _is_transformed():
            raise ValueError(f"layer {self.layer}: torch.func's transforms need policies without {SEVERAL}")
        if policy.compute == "native" and policy is not UNQUANTIZED:
            return self._native(x, weight, bias)
        if policy.apart:
            y_NO = _Products.apply(_matrix(x), weight, self, torch.is_grad_enabled())
            y = y_NO.view(*x.shape[:-1], len(weight))
            return y if bias is None else y + bias
        if observed or policy.activation.format is not FP32:  # type: ignore[union-attr]
            x = straight_through(_Rounded, x, self, "activation")
        if observed or policy.weight.format is not FP32:  # type: ignore[union-attr]
            weight = straight_through(_Rounded, weight, self, "weight")
        if policy.grad_output.format is FP32:  # type: ignore[union-attr]
            y = nn.functional.linear(x, weight, bias)
            return straight_through(_RoundedGradient, y, self) if observed else y  # type: ignore[no-any-return]
        y = straight_through(_RoundedGradient, nn.functional.linear(x, weight), self)
        return y if bias is None else y + bias

    def bilinear(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        weight: Tensor,
        channels: int = -1,
    ) -> Tensor:
        """`function(x, weight)`, linear in both, with rounded operands: a convolution, or many products at one time.

        Each operand is rounded once. Rows and blocks lie along the last dimension of `weight`, and along the dimension
        `channels` of `x` and of the result.

        Raises:
            ValueError: native compute, or casts of their own for second products.
        """
        if not self.one_cast:
            raise ValueError(f"layer {self.layer}: {ONE_CAST}")

        def products(x: Tensor, weight: Tensor, _: Tensor | None) -> Tensor:
            if self._reads("activation"):
                x = straight_through(_Rounded, x.movedim(channels, -1), self, "activation").movedim(-1, channels)
            if self._reads("weight"):
                weight = straight_through(_Rounded, weight, self, "weight")
            y = function(x, weight)
            if self._reads("grad_output"):
                y = straight_through(_RoundedGradient, y.movedim(channels, -1), self).movedim(-1, channels)
            return y

        return self._run(products, x, weight, None)

    @property
    def one_cast(self) -> bool:
        """Whether each operand is rounded once, for both products that read it, and no hardware multiplies."""
        return not self.policy.apart and self.policy.compute != "native"

    def _reads(self, name: str) -> bool:
        """Whether a cast is made, or looked at."""
        return self.observer is not None or self.policy.operand(name).format is not FP32

    def _native(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not torch.compiler.is_compiling() and (lack := native_lack(x.device)):  # the question breaks a graph
            raise ValueError(f"layer {self.layer}: {lack}")
        rows = x.reshape(-1, x.shape[-1])
        sizes = (rows.shape[0], *reversed(weight.shape))
        if any(size % 16 for size in sizes):
            need = f"native FP8 products need rows, inputs and outputs in multiples of 16, not {sizes}"
            raise ValueError(f"layer {self.layer}: {need}; use compute 'simulated'")
        y: Tensor = _NativeProducts.apply(rows, weight, self)
        y = y.view(*x.shape[:-1], len(weight))
        return y if bias is None else y + bias


class QuantizedLinear(LinearProducts, nn.Linear):
    """`nn.Linear` whose three matrix products read quantized operands.

    Input [..., I], output [..., O], float32. With every operand FP32 its numbers are those of `nn.Linear`, bit by bit.
    Under autocast the output has the dtype that `nn.Linear` has there; the products read operands that are rounded from
    float32 and multiply them in float32, those of a backward pass too where it is called outside of autocast, as torch
    asks. Second-order gradients take every rounding for the identity; native products have none, which is an error.

    Raises (on use):
        ValueError: native compute where a size is no multiple of 16, or a scale is not one number a tensor.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., I] times the transposed weight, plus the bias: [..., O]."""
        self._begin()
        return self.linear(x, self.weight, self.bias)


class QuantizedEmbedding(_Quantizer, nn.Embedding):
    """`nn.Embedding` whose table is rounded onto the weight format; its gradient passes straight through."""

    def forward(self, token: Tensor) -> Tensor:
        """Rows of the rounded table: [...] to [..., D]."""
        self._check(self.weight, "table")
        self._begin()
        if self.max_norm is not None:
            torch.embedding_renorm_(self.weight.detach(), token.contiguous(), self.max_norm, self.norm_type)
        table: Tensor = straight_through(_Rounded, self.weight, self, "weight")
        return nn.functional.embedding(
            token, table, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq, sparse=self.sparse
        )


QuantizedLayer = _Quantizer
