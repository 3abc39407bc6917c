"""Weights that other code reads than a plain layer's own: found where a function of torch gets them.

A module of a kind that is not known by heart keeps its forward pass. While that runs, torch's functions go through
`Reads`: where one multiplies by a weight that a quantizer stands for, the quantizer computes the product. So it is with
subclasses of the known layers, nn.MultiheadAttention, recurrent layers, stacked weights of experts, and modules that
read the weight of a child, as in ``linear(x, self.qkv.weight)``. torch's fast paths, which read weights without a call
for each product, stay away where torch's functions are overridden.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from altgrad.config import operand_of
from altgrad.nn.layers import LinearProducts, _Rounded
from altgrad.nn.recurrent import RECURRENT
from altgrad.rounding import straight_through


class QuantizedWeight(LinearProducts, nn.Module):
    """One of the matrices that a module has itself (such as ``in_proj_weight``), as a layer.

    A submodule of its owner, so that delayed scales are in `state_dict`; the parameter stays the owner's. Where it is
    `stacked`, [..., O, I], each matrix has scales of its own, whether products read them one by one or together.
    """

    def __init__(self, owner: nn.Module, parameter: str, stacked: bool = False) -> None:
        super().__init__()
        self.__dict__["owner"] = owner  # as a submodule it would contain itself
        self.parameter = parameter
        self.stacked = stacked
        of_torch = isinstance(owner, nn.MultiheadAttention | nn.RNNBase | nn.RNNCellBase)
        if of_torch or hasattr(owner, "is_transposed"):  # as Hugging Face's experts have it
            *stack, rows, columns = range(self.weight.ndim)
            self.operand_order = (
                (*stack, columns, rows) if getattr(owner, "is_transposed", False) else (*stack, rows, columns)
            )

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The owner's parameter."""
        return getattr(self.owner, self.parameter)  # type: ignore[no-any-return]

    def _scale(self, x: Tensor, name: str) -> tuple[Any, int | tuple[int, int]]:
        if not self.stacked or x.ndim < 3 or operand_of(name) != "weight" or self._as_it_is(name) or not x.numel():
            return super()._scale(x, name)
        each = [super(QuantizedWeight, self)._scale(one, name) for one in x.flatten(0, -3)]
        if each[0][0] is None:
            return each[0]
        scale = torch.stack([one for one, _ in each])
        return scale.view(*x.shape[:-2], *(scale.shape[1:] or (1, 1))), each[0][1]


class QuantizedProduct(LinearProducts, nn.Module):
    """A product of two activations, of which the second stands where a layer's weight would."""

    weight: Any = None

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """`a` [..., N, I] times the transposed `b` [..., O, I]: [..., N, O]."""
        self._begin()
        return self.bilinear(lambda a, b: a @ b.mT, a, b)


class Reader(nn.Module):
    """What a module becomes whose forward pass reads weights by torch's functions."""

    weights_read: tuple[str, ...] = ()
    """Paths from here to the layers whose weights it may read, "" for itself."""
    no_graph: bool = False
    """Whether it reads a weight's ``T`` or ``mT``, which no graph of torch.compile shows: it stays out of the graph."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward pass, whose products the layers compute."""
        layers = [self.get_submodule(path) for path in self.weights_read]
        if layers and not any(layer.observer is not None or layer.policy.rounds for layer in layers):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        forward = super().forward  # type: ignore[misc]
        if self.no_graph and torch.compiler.is_compiling():
            return torch.compiler.disable(self._watched)(layers, forward, *args, **kwargs)
        if any(parametrize.is_parametrized(layer) for layer in layers):
            with parametrize.cached():  # a weight is the same object each time it is read
                return self._watched(layers, forward, *args, **kwargs)
        return self._watched(layers, forward, *args, **kwargs)

    def _watched(self, layers: list[Any], forward: Any, *args: Any, **kwargs: Any) -> Any:
        with Reads(layers):
            found = forward(*args, **kwargs)
        return found


class Reads(TorchFunctionMode):
    """While it is entered, products with the weights of `layers` are those of the layers."""

    def __init__(self, layers: Sequence[Any]) -> None:
        super().__init__()
        weights = [(layer.weight, layer) for layer in layers if not isinstance(layer, QuantizedProduct)]
        self.known: list[tuple[Tensor, Any, Dimensions]] = [
            (weight, layer, tuple(range(weight.ndim))) for weight, layer in weights
        ]
        """A weight or a part of it, its layer, and along which dimensions of the weight its own run."""
        self.products = [layer for layer in layers if isinstance(layer, QuantizedProduct)]
        self.begun: list[Any] = []
        self.multiplied = 0

    def product(self, a: Tensor, b: Tensor) -> Tensor | None:
        """a @ b of attention, where its products are asked for: scores and mixing take turns."""
        if len(self.products) != 2 or a.ndim < 3 or a.ndim != b.ndim:
            return None
        self.multiplied += 1
        return self.products[(self.multiplied + 1) % 2](a, b.mT)

    def layer_of(self, tensor: object) -> Any:
        """The layer whose weight, or a part of whose weight, this is; None for any other tensor."""
        for weight, layer, _ in self.known:
            if tensor is weight:
                if all(layer is not each for each in self.begun):
                    self.begun.append(layer)
                    layer._begin()
                return layer
        return None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in _HANDLERS:
            operands = (given.pop(each) for each in _OPERANDS.get(name, ())[len(args) :] if each in given)
            return _HANDLERS[name](self, func, *args, *operands, **given)
        if args and (name in PARTS or name == "__get__"):
            return self._part(func, args, given)
        return func(*args, **given)

    def _part(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A view or a copy of a weight is as known as the weight; a table is rounded whole before any of it is read."""
        dims = next((dims for weight, _, dims in self.known if args[0] is weight), None)
        if dims is None:
            return func(*args, **kwargs)
        layer = self.layer_of(args[0])
        if isinstance(layer, nn.Embedding):
            return func(straight_through(_Rounded, args[0], layer, "weight"), *args[1:], **kwargs)
        found = func(*args, **kwargs)
        parts = found if isinstance(found, tuple | list) else (found,)
        name = getattr(func, "__name__", "")
        copied = name in COPIES
        laid_out = name in ("reshape", "flatten") and not args[0].is_contiguous()  # perhaps with strides of its own
        for each in parts:
            if isinstance(each, Tensor):
                runs = (None,) * each.ndim if laid_out else dims if copied else _dimensions(each, args[0], dims)
                self.known.append((each, layer, runs))
        return found

    def times(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, transposed: bool) -> Tensor:
        """`x` [..., I] times the transposed `weight` [..., O, I], or [..., I, O] if `transposed`, plus the bias."""
        layer = self.summing(weight, -2 if transposed else -1)
        weight = weight.mT if transposed else weight
        if not isinstance(layer, LinearProducts):  # a table read as a head: there is no rule for its activation
            return F.linear(x, straight_through(_Rounded, weight, layer, "weight"), bias)
        if weight.ndim == 2:
            return layer.linear(x, weight, bias)
        stack = weight.shape[:-2]
        if layer.one_cast or x.ndim == 1 or torch.broadcast_shapes(x.shape[:-2], stack) != stack:
            y = layer.bilinear(lambda x, weight: x @ weight.mT, x, weight)
        else:  # matrix by matrix
            x = x.expand(*stack, *x.shape[-2:])
            each = [layer.linear(*pair) for pair in zip(x.flatten(0, -3), weight.flatten(0, -3), strict=True)]
            y = torch.stack(each).view(*x.shape[:-1], weight.shape[-2])
        return y if bias is None else y + bias

    def summing(self, weight: Tensor, dimension: int) -> Any:
        """The layer of a `weight`, or of a part of one, of which a product sums over this `dimension`, negative."""
        layer, dims = next((layer, dims) for known, layer, dims in self.known if weight is known)
        last, shape = dims[dimension], layer.weight.shape
        apart = [dim for dim in range(len(shape)) if dim not in dims]
        if last is None or weight.shape[dimension] != shape[last]:
            layer.operand_order = None
        else:
            layer.operand_order = (*apart, *(dim for dim in dims if dim not in (None, last)), last)
        layer.read_in_parts = weight.numel() * math.prod([shape[dim] for dim in apart]) < layer.weight.numel()
        return layer


Dimensions = tuple[int | None, ...]


def _dimensions(part: Tensor, whole: Tensor, dims: Dimensions) -> Dimensions:
    """Those of `dims`, the dimensions of `whole`, along which a view of it runs: of the same strides, best of sizes."""
    found: dict[int, int] = {}
    pairs = [(i, j) for i in range(part.ndim) for j in range(whole.ndim) if part.stride(i) == whole.stride(j)]
    for i, j in sorted(pairs, key=lambda pair: part.shape[pair[0]] != whole.shape[pair[1]]):
        if i not in found and j not in found.values():
            found[i] = j
    return tuple(dims[found[i]] if i in found else None for i in range(part.ndim))


PARTS = frozenset(
    {"__getitem__", "t", "transpose", "swapaxes", "permute", "contiguous", "to", "float", "type", "type_as", "clone"}
    | {"view", "reshape", "flatten", "squeeze", "unsqueeze", "chunk", "split", "unbind", "select", "index_select"}
    | {"narrow", "detach", "T", "mT"}
)
"""What leaves a weight's values as they are, or some of them."""
COPIES = frozenset({"contiguous", "to", "float", "type", "type_as", "clone", "index_select"})
"""Of these, what may lay out its result anew: its dimensions are those of what it was given."""


def _linear(mode: Reads, func: Any, x: Any, weight: Any, bias: Any = None) -> Any:
    if mode.layer_of(weight) is None:
        return func(x, weight, bias)
    return mode.times(x, weight, bias, transposed=False)


def _matmul(mode: Reads, func: Any, a: Any, b: Any, **given: Any) -> Any:
    if not given and a.ndim and b.ndim > 1 and mode.layer_of(b) is not None:
        return mode.times(a, b, transposed=True)
    if not given and b.ndim and a.ndim > 1 and mode.layer_of(a) is not None:
        columns = b.ndim > 1
        y = mode.times(b.mT if columns else b, a, transposed=False)
        return y.mT if columns else y
    y = None if given else mode.product(a, b)
    return func(a, b, **given) if y is None else y


def _baddbmm(mode: Reads, func: Any, added: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1, **given: Any) -> Any:
    own = mode.layer_of(a) is not None or mode.layer_of(b) is not None
    y = None if given else _matmul(mode, torch.matmul, a, b) if own else mode.product(a, b)
    return func(added, a, b, beta=beta, alpha=alpha, **given) if y is None else _added(added, y, beta, alpha)


def _added(added: Any, y: Any, beta: Any, alpha: Any) -> Any:
    """As in torch, what is added is not looked at where beta is 0."""
    return alpha * y if beta == 0 else torch.add(beta * added, y, alpha=alpha)


def _rmatmul(mode: Reads, func: Any, b: Any, a: Any) -> Any:
    return func(b, a) if mode.layer_of(a) is None and mode.layer_of(b) is None else _matmul(mode, torch.matmul, a, b)


def _addmm(mode: Reads, func: Any, added: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1, **given: Any) -> Any:
    layer = mode.layer_of(b)
    if given or (layer is None and mode.layer_of(a) is None):
        return func(added, a, b, beta=beta, alpha=alpha, **given)
    if layer is not None and added.ndim == 1 and beta == alpha == 1:
        return mode.times(a, b, added, transposed=True)
    return _added(added, _matmul(mode, torch.matmul, a, b), beta, alpha)


def _convolution(dimensions: int) -> Callable[..., Any]:
    def convolution(mode: Reads, func: Any, x: Any, weight: Any, bias: Any = None, *rest: Any, **given: Any) -> Any:
        layer = mode.layer_of(weight)
        if layer is None:
            return func(x, weight, bias, *rest, **given)
        return convolve(layer, lambda x, weight: func(x, weight, None, *rest, **given), x, weight, bias, dimensions)

    return convolution


def convolve(
    layer: LinearProducts,
    function: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dimensions: int,
) -> Tensor:
    """A convolution of `x` [..., C, places] with the weight of `layer`, plus the bias, by rounded operands."""
    y = layer.bilinear(
        lambda x, operand: function(x, layer.as_parameter(operand)), x, layer.as_operand(weight), -1 - dimensions
    )
    return y if bias is None else y + bias.view(-1, *(1,) * dimensions)


def _embedding(mode: Reads, func: Any, token: Any, weight: Any, *rest: Any, **given: Any) -> Any:
    layer = mode.layer_of(weight)
    if layer is not None:
        weight = straight_through(_Rounded, weight, layer, "weight")
    return func(token, weight, *rest, **given)


def _grouped(mode: Reads, func: Any, x: Any, weight: Any, *rest: Any, **given: Any) -> Any:
    """Groups of rows, each by the matrix of its expert [E, I, O], one after the other."""
    layer = mode.layer_of(weight)
    offsets = rest[0] if rest else given.get("offs")
    if layer is None or offsets is None or x.ndim != 2 or weight.ndim != 3:
        return func(x, weight, *rest, **given)
    ends = offsets.tolist()
    starts = [0, *ends[:-1]]
    bias = given.get("bias")
    matrices = mode._part(torch.Tensor.unbind, (weight,), {})
    found = [
        mode.times(x[start:end], matrices[expert], None if bias is None else bias[expert], transposed=True)
        for expert, (start, end) in enumerate(zip(starts, ends, strict=True))
        if end > start
    ]
    rest_of_rows = x.new_zeros(len(x) - (ends[-1] if ends else 0), weight.shape[-1])
    return torch.cat([*found, rest_of_rows])


def _einsum(mode: Reads, func: Any, equation: Any, *operands: Any) -> Any:
    """Of two operands, rows and blocks lie along the dimension that is summed over."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    own = [place for place, each in enumerate(operands) if isinstance(mode.layer_of(each), LinearProducts)]
    if len(operands) != 2 or not own:
        return func(equation, *operands)
    place = own[0]
    of_weight, of_x = _summed(equation, place)
    layer = mode.summing(operands[place], of_weight % operands[place].ndim - operands[place].ndim)

    def product(x: Tensor, weight: Tensor) -> Tensor:
        both = (x.movedim(-1, of_x), weight.movedim(-1, of_weight))
        return func(equation, *(both if place else both[::-1]))

    y: Tensor = layer.bilinear(product, operands[1 - place].movedim(of_x, -1), operands[place].movedim(of_weight, -1))
    return y


def _summed(equation: Any, place: int) -> tuple[int, int]:
    """Where the last letter that is summed over stands in the operand at `place` of an equation, and in the other."""
    if not isinstance(equation, str):
        return -1, -1
    left, _, result = "".join(equation.split()).partition("->")
    terms = [term.replace("...", ".") for term in left.split(",")]
    own, other = terms[place], terms[1 - place]
    summed = [letter for letter in own if letter in other and letter not in result + "."]
    return (_place(own, summed[-1]), _place(other, summed[-1])) if summed else (-1, -1)


def _place(term: str, letter: str) -> int:
    """The dimension of a letter, counted from the end that has no dots between."""
    index = term.index(letter)
    return index if "." in term[index:] else index - len(term)


def _recurrent(mode: Reads, func: Any, *args: Any) -> Any:
    def times(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer = mode.layer_of(weight)
        return F.linear(x, weight, bias) if layer is None else layer.linear(x, weight, bias)

    return RECURRENT[func.__name__](times, *args)


def _attention(mode: Reads, func: Any, *args: Any, **given: Any) -> Any:
    with mode:  # each product inside goes through the mode
        return _MULTI_HEAD(*args, **given)


def _rebound(function: Any, **names: Any) -> Any:
    """`function`, for which some global names mean something else."""
    found = types.FunctionType(function.__code__, {**function.__globals__, **names}, function.__name__)
    found.__defaults__, found.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    return found


def _check_mask(*given: Any) -> None:
    if not torch.compiler.is_compiling():  # its message is no graph's
        F._check_key_padding_mask(*given)  # type: ignore[attr-defined]


_MULTI_HEAD = _rebound(
    F.multi_head_attention_forward, has_torch_function=lambda _: False, _check_key_padding_mask=_check_mask
)
"""Torch's own, which does not ask again whether its functions are overridden."""


def _scaled_dot_product(
    mode: Reads,
    func: Any,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Softmax(query key^T scale + mask) value, both products by rounded operands (torch's documented equation)."""
    if not mode.products:
        given = {"scale": scale, "enable_gqa": enable_gqa}
        return func(query, key, value, attn_mask, dropout_p, is_causal, **given)
    scores_of, mixing_of = mode.products
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = scores_of(query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, float("-inf"))
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = F.dropout(scores.softmax(-1), dropout_p)
    return mixing_of(weights, value.mT)


_OPERANDS = {
    **dict.fromkeys(("linear", "embedding", "conv1d", "conv2d", "conv3d"), ("input", "weight", "bias")),
    **{f"conv_transpose{n}d": ("input", "weight", "bias") for n in (1, 2, 3)},
    "matmul": ("input", "other"),
    **dict.fromkeys(("mm", "bmm", "_grouped_mm", "grouped_mm"), ("input", "mat2")),
    "addmm": ("input", "mat1", "mat2"),
    "baddbmm": ("input", "batch1", "batch2"),
}
"""What torch calls the operands that a handler takes by their places."""
_HANDLERS: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    "matmul": _matmul,
    "__matmul__": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "__rmatmul__": _rmatmul,
    "addmm": _addmm,
    "baddbmm": _baddbmm,
    "embedding": _embedding,
    "_grouped_mm": _grouped,
    "grouped_mm": _grouped,
    "grouped_mm_fallback": _grouped,
    "einsum": _einsum,
    "multi_head_attention_forward": _attention,
    "scaled_dot_product_attention": _scaled_dot_product,
    **{f"conv{n}d": _convolution(n) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _convolution(n) for n in (1, 2, 3)},
    **dict.fromkeys(RECURRENT, _recurrent),
    "unflatten": lambda mode, func, *args, **given: torch.unflatten(*args, **given),  # the method is no graph's
}
