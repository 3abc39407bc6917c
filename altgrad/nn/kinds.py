"""Kinds of layers: which class a module gets, so that its products read rounded operands; or why it gets none.

The class is made on top of the module's own, whatever wrappers have made of that (parametrizations, FSDP), and taken
out again from wherever it then is. Nothing is decided by a library's presence: Hugging Face's Conv1D is known by its
name and what it holds.
"""

from __future__ import annotations

import dis
import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.nn.layers import (
    ATTRIBUTES,
    ONE_CAST,
    LinearProducts,
    Policy,
    QuantizedEmbedding,
    QuantizedLayer,
    QuantizedLinear,
)
from altgrad.nn.reads import PARTS, QuantizedProduct, QuantizedWeight, Reader, convolve

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Convolution(LinearProducts):
    """A convolution, transposed or not: its operands are rounded as they lie, with channels last.

    A row of the weight is all that makes one output; blocks lie along its taps and channels, channels last.
    """

    transposed: bool
    kernel_size: tuple[int, ...]

    def as_operand(self, weight: Tensor) -> Tensor:
        """[O, C, taps] as [O, taps x C]; of a transposed one, [C, O, taps]."""
        first = weight.transpose(0, 1) if self.transposed else weight
        return first.movedim(1, -1).flatten(1)

    def as_parameter(self, weight: Tensor) -> Tensor:
        """`as_operand` undone."""
        weight = weight.unflatten(1, (*self.kernel_size, -1)).movedim(-1, 1)
        return weight.transpose(0, 1) if self.transposed else weight


class QuantizedConvolution(Convolution):
    """nn.Conv1d, nn.Conv2d or nn.Conv3d whose products read quantized operands."""

    _conv_forward: Any
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """As the convolution that it is of."""
        if self.observer is None and not self.policy.rounds:
            return super().forward(x)  # type: ignore[misc,no-any-return]
        self._begin()
        dimensions = len(self.kernel_size)
        return convolve(self, lambda x, w: self._conv_forward(x, w, None), x, self.weight, self.bias, dimensions)


class QuantizedConv1D(LinearProducts):
    """Hugging Face's Conv1D, a linear layer whose weight stands transposed: [I, O]."""

    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., I] times the weight, plus the bias: [..., O]."""
        if self.observer is None and not self.policy.rounds:
            return super().forward(x)  # type: ignore[misc,no-any-return]
        self._begin()
        return self.linear(x, self.weight.t(), self.bias)

    def as_operand(self, weight: Tensor) -> Tensor:
        """[I, O] as [O, I]."""
        return weight.t()

    as_parameter = as_operand


class OwnLinear(Reader, LinearProducts):
    """A subclass of nn.Linear with a forward pass of its own."""


class OwnConvolution(Reader, Convolution):
    """A convolution of a class with a forward pass of its own."""


class OwnEmbedding(Reader, QuantizedLayer):
    """A subclass of nn.Embedding with a forward pass of its own."""


@dataclass
class Kind:
    """What becomes of a module.

    Attributes:
        layer: the class of its own layer; None where it is none.
        weights: names of the parameters that become layers below it.
        children: paths below it whose weights its forward pass reads.
        attention: whether it multiplies queries, keys and values.
        blocks: whether it only keeps torch's fast path away.
        left_out: why a matrix of it is left as it is, by parameter name; "" is for those without a reason of their own.
    """

    layer: type | None = None
    weights: tuple[str, ...] = ()
    children: tuple[str, ...] = ()
    attention: bool = False
    blocks: bool = False
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def reads(self) -> bool:
        """Whether its forward pass is to be watched."""
        own = self.layer is not None and issubclass(self.layer, Reader)
        return bool(own or self.weights or self.children or self.attention or self.blocks)


def kind_of(module: nn.Module) -> Kind:
    """What can become of a module, by its class, what that class's code does and the names that it has taken."""
    kind = _kind_by_class(module)
    if taken := _taken(module, kind):
        return Kind(left_out={"": f"its attribute {taken!r} has a name that quantized layers use; rename it"})
    return kind


def _taken(module: nn.Module, kind: Kind) -> str | None:
    """A name of the module's own that its quantized form would overwrite or hide, if there is one."""
    classes: list[Any] = [cls for cls, wanted in ((kind.layer, kind.layer), (Reader, kind.reads)) if wanted]
    ours = {name for cls in classes for name in _names_added(cls)} | ({"quantized"} if kind.weights else set())
    if isinstance(module, QuantizedLayer | Reader):  # what it holds now is ours, or was seen the first time
        ours -= {"quantized", *_names_added(type(module))}  # type: ignore[arg-type]
    held = (vars(module), module._modules, module._buffers, module._parameters)
    theirs = set().union(*held, *(vars(cls) for cls in type(module).__mro__ if not cls.__module__.startswith("torch.")))
    return min(ours & theirs, default=None)


@cache
def _names_added(cls: type) -> frozenset[str]:
    """What the classes of this package give to objects of a class: names of methods and of attributes."""
    mine = {name for each in cls.__mro__ if each.__module__.startswith("altgrad.nn") for name in vars(each)}
    mine |= set(ATTRIBUTES) if issubclass(cls, QuantizedLayer) else set()
    return frozenset(name for name in mine if name != "forward" and not name.startswith("__"))


def _kind_by_class(module: nn.Module) -> Kind:
    cls = plain_class(type(module))
    held = {name: each for name, each in module._parameters.items() if each is not None and not name.endswith("bias")}
    matrices = {name for name, each in held.items() if _is_matrix(each)}
    if "forward" in vars(module) and not isinstance(module, nn.Sequential):
        return Kind(left_out={"": "its forward is replaced on the object, by code that keeps the one before"})
    if isinstance(module, nn.Linear | nn.Embedding) or _convolves(module):
        return _with_weights(_plain_kind(module, cls), module, cls, matrices - {"weight"})
    if cls.__name__ == "Conv1D" and {"nf", "nx"} <= vars(module).keys():
        return Kind(QuantizedConv1D)
    if isinstance(module, nn.MultiheadAttention):
        names = tuple(name for name in matrices if name.endswith("_weight"))
        return Kind(weights=tuple(sorted(names)), children=("out_proj",), attention=True)
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return Kind(weights=tuple(name for name in module._parameters if name in matrices))
    if isinstance(module, nn.TransformerEncoder | nn.TransformerEncoderLayer):
        return Kind(blocks=True)
    if isinstance(module, nn.Bilinear):
        return Kind(left_out={"": "nn.Bilinear is a product of three factors"})
    if isinstance(module, nn.EmbeddingBag):
        return Kind(left_out={"": "nn.EmbeddingBag sums the rows it reads, which is not supported"})
    return _with_weights(Kind(attention=_attends(module, cls)), module, cls, matrices)


def _plain_kind(module: nn.Module, cls: type) -> Kind:
    weight: Any = module._parameters.get("weight")
    if weight is not None and not weight.is_floating_point():
        return Kind(left_out={"": f"its weight is {str(weight.dtype).removeprefix('torch.')}, no floating point"})
    if weight is not None and weight.layout is not torch.strided:
        return Kind(left_out={"": f"its weight is {str(weight.layout).removeprefix('torch.')}, not dense"})
    forward = cls.forward  # type: ignore[attr-defined]
    if isinstance(module, nn.Linear):
        return Kind(QuantizedLinear if forward is nn.Linear.forward else OwnLinear)
    if isinstance(module, nn.Embedding):
        return Kind(QuantizedEmbedding if forward is nn.Embedding.forward else OwnEmbedding)
    known = forward in [each.forward for each in CONVOLUTIONS]
    return Kind(QuantizedConvolution if known else OwnConvolution)


def _convolves(module: nn.Module) -> bool:
    return isinstance(module, (*CONVOLUTIONS, *TRANSPOSED))


def _with_weights(kind: Kind, module: nn.Module, cls: type, names: set[str]) -> Kind:
    """The kind of a module that holds matrices itself: those that its code multiplies by become layers."""
    multiplied = {name for name in names if _products(cls, name)}
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        multiplied = set()
    kind.weights = tuple(name for name in module._parameters if name in multiplied)
    why = f"no product of matrices in the code of {cls.__name__} reads it"
    kind.left_out |= dict.fromkeys(names - multiplied, why)
    return kind


def _is_matrix(parameter: Tensor) -> bool:
    return isinstance(parameter, nn.parameter.UninitializedParameter) or (
        parameter.ndim > 1 and parameter.is_floating_point()
    )


def one_cast(layer: type | None, policy: Policy) -> str:
    """Why a layer of this class cannot have this policy; empty where it can."""
    several = policy.apart or policy.compute == "native"
    return ONE_CAST if layer is not None and issubclass(layer, Convolution) and several else ""


# --- classes


@cache
def quantized_class(kind: type, cls: type) -> type:
    """`kind` on top of a module's class."""
    if (kind, cls) in ((QuantizedLinear, nn.Linear), (QuantizedEmbedding, nn.Embedding)):
        return kind

    def reduce(self: Any, protocol: Any) -> Any:
        _, _, *rest = super(found, self).__reduce_ex__(protocol)  # type: ignore[misc,arg-type]
        return _blank, (kind, cls), *rest

    names: dict[str, Any] = {"_plain": cls, "__reduce_ex__": reduce, "__module__": __name__}
    if (becomes := getattr(cls, "cls_to_become", None)) is not None:  # a lazy layer
        names["cls_to_become"] = quantized_class(kind, becomes)
    found = type(f"Quantized{cls.__name__}", (kind, cls), names)
    return found


def _blank(kind: type, cls: type) -> Any:
    """A module of a class that cannot be found by name, before it has its state."""
    made: Any = quantized_class(kind, cls)
    return made.__new__(made)


def plain_class(cls: type) -> type:
    """A class without what `quantized_class` has put into it, also below wrappers."""
    if not issubclass(cls, QuantizedLayer | Reader) or issubclass(cls, QuantizedWeight | QuantizedProduct):
        return cls
    if (plain := vars(cls).get("_plain")) is not None:
        return plain_class(plain)
    if cls in (QuantizedLinear, QuantizedEmbedding):
        return nn.Linear if cls is QuantizedLinear else nn.Embedding
    names = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return type(cls.__name__.replace("Quantized", "", 1), tuple(map(plain_class, cls.__bases__)), names)


# --- what the code of a class reads

_OF_ALL_DIMENSIONS = frozenset({"einsum", "tensordot", "conv1d", "conv2d", "conv3d"})
_PRODUCTS = _OF_ALL_DIMENSIONS | {
    *("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "grouped_mm", "_grouped_mm", "multi_head_attention_forward")
}


def _functions(cls: type) -> Iterator[Any]:
    """The code of the forward pass of a class: `forward`, and the methods that it calls, of classes outside torch."""
    seen, waiting = set(), ["forward"]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        function = inspect.unwrap(found) if callable(found := getattr(cls, name, None)) else None
        if not isinstance(function, types.FunctionType) or function.__module__.startswith("torch.nn.modules"):
            continue
        code = function.__code__
        waiting += [each for each in code.co_names if isinstance(vars(nn.Module).get(each), type(None))]
        yield function


@cache
def _chains(cls: type) -> frozenset[tuple[str, ...]]:
    """The attributes that are read one of another in the forward pass of a class: ("dt_proj", "weight")."""
    found: set[tuple[str, ...]] = set()
    for function in _functions(cls):
        chain: list[str] = []
        for step in _instructions(function):
            if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                chain.append(str(step.argval))
                continue
            if chain:
                found.add(tuple(chain))
            chain = []
    return frozenset(found)


def _instructions(code: Any) -> Iterator[dis.Instruction]:
    """Those of a function, and of the lambdas and comprehensions in it."""
    for step in dis.get_instructions(code):
        yield step
        if isinstance(step.argval, types.CodeType):
            yield from _instructions(step.argval)


@cache
def _products(cls: type, name: str) -> frozenset[str]:
    """The products of matrices in those functions of a class's forward pass that name this parameter."""
    found: set[str] = set()
    for function in _functions(cls):
        steps = list(_instructions(function))
        at = {"@" for step in steps if step.opname.startswith("BINARY") and step.argrepr in ("@", "@=")}
        names = {str(step.argval) for step in steps if step.opname.startswith("LOAD")}
        if name in names:
            found |= at | names & _PRODUCTS
    return frozenset(found)


def is_stack(module: nn.Module, name: str) -> bool:
    """Whether a parameter [..., O, I] is matrices to its module, and no factor of an einsum or a convolution."""
    weight: Any = module._parameters[name]
    return weight.ndim > 2 and not _products(plain_class(type(module)), name) & _OF_ALL_DIMENSIONS


def reads_child(module: nn.Module, path: str) -> bool:
    """Whether the forward pass of a module reads the weight of the module at `path` below it."""
    wanted = (*(part for part in path.split(".") if not part.isdigit()), "weight")
    chains = _chains(plain_class(type(module)))
    return any(_without_parts(chain)[-len(wanted) :] == wanted for chain in chains)


def _without_parts(chain: tuple[str, ...]) -> tuple[str, ...]:
    """``("conv", "weight", "squeeze")`` is a reading of the weight, ``("wo", "weight", "dtype")`` is none."""
    while chain and chain[-1] in PARTS:
        chain = chain[:-1]
    return chain


def reads_transposed(module: nn.Module) -> bool:
    """Whether the forward pass of a module reads ``self.weight.T`` or the like."""
    return any(len(chain) > 1 and chain[-1] in ("T", "mT") for chain in _chains(plain_class(type(module))))


def _attends(module: nn.Module, cls: type) -> bool:
    """Whether a module is one that multiplies queries by keys: called attention, with code that does."""
    if "attention" not in cls.__name__.lower():
        return False
    wanted = {"scaled_dot_product_attention", "attention_interface", "softmax", "baddbmm"}
    return any(wanted & {str(step.argval) for step in _instructions(f)} for f in _functions(cls))
