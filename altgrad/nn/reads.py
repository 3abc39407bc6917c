"""Weights that other code reads than a plain layer's own: found where a function of torch gets them.

A module of a kind that is not known by heart keeps its forward pass. While that runs, torch's functions go through
`Reads`: where one multiplies by a weight that a quantizer stands for, the quantizer computes the product. So it is with
subclasses of the known layers, nn.MultiheadAttention, recurrent layers, stacked weights of experts, and modules that
read the weight of a child, as in ``linear(x, self.qkv.weight)``. torch's fast paths, which read weights without a call
for each product, stay away where torch's functions are overridden.
"""

from __future__ import annotations

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

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The owner's parameter."""
        return getattr(self.owner, self.parameter)  # type: ignore[no-any-return]

    def as_operand(self, weight: Tensor) -> Tensor:
        """Transposed where the owner says so, as Hugging Face's experts do."""
        return weight.mT if getattr(self.owner, "is_transposed", False) else weight

    as_parameter = as_operand

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
        self.known: list[tuple[Tensor, Any]] = [
            (layer.weight, layer) for layer in layers if not isinstance(layer, QuantizedProduct)
        ]
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
        for weight, layer in self.known:
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
        if all(args[0] is not weight for weight, _ in self.known):
            return func(*args, **kwargs)
        layer = self.layer_of(args[0])
        if isinstance(layer, nn.Embedding):
            return func(straight_through(_Rounded, args[0], layer, "weight"), *args[1:], **kwargs)
        found = func(*args, **kwargs)
        parts = found if isinstance(found, tuple | list) else (found,)
        self.known += [(each, layer) for each in parts if isinstance(each, Tensor)]
        return found


PARTS = frozenset(
    {"__getitem__", "t", "transpose", "swapaxes", "permute", "contiguous", "to", "float", "type", "type_as", "clone"}
    | {"view", "reshape", "flatten", "squeeze", "unsqueeze", "chunk", "split", "unbind", "select", "index_select"}
    | {"narrow", "detach", "T", "mT"}
)
"""What leaves a weight's values as they are, or some of them."""


def _linear(mode: Reads, func: Any, x: Any, weight: Any, bias: Any = None) -> Any:
    layer = mode.layer_of(weight)
    return func(x, weight, bias) if layer is None else _times(layer, x, weight, bias)


def _times(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` [..., I] times the transposed `weight` [..., O, I] of `layer`, plus the bias."""
    if not isinstance(layer, LinearProducts):  # a table that is read as a head: there is no rule for its activation
        return F.linear(x, straight_through(_Rounded, weight, layer, "weight"), bias)
    if weight.ndim == 2:
        return layer.linear(x, weight, bias)
    y = layer.bilinear(lambda x, weight: x @ weight.mT, x, weight)
    return y if bias is None else y + bias


def _matmul(mode: Reads, func: Any, a: Any, b: Any, **given: Any) -> Any:
    if not given and a.ndim and b.ndim > 1 and (layer := mode.layer_of(b)) is not None:
        return _times(layer, a, b.mT)
    if not given and b.ndim and (layer := mode.layer_of(a)) is not None and a.ndim > 1:
        return _times(layer, b, a) if b.ndim == 1 else _times(layer, b.mT, a).mT
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
        return _times(layer, a, b.mT, added)
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
    found = [
        layer.linear(x[start:end], weight[expert].mT, None if bias is None else bias[expert])
        for expert, (start, end) in enumerate(zip(starts, ends, strict=True))
        if end > start
    ]
    rest_of_rows = x.new_zeros(len(x) - (ends[-1] if ends else 0), weight.shape[-1])
    return torch.cat([*found, rest_of_rows])


def _einsum(mode: Reads, func: Any, equation: Any, *operands: Any) -> Any:
    if len(operands) == 2:
        for place in (0, 1):
            layer = mode.layer_of(operands[place])
            if isinstance(layer, LinearProducts):
                other = operands[1 - place]
                order = (lambda x, w: func(equation, w, x)) if place == 0 else (lambda x, w: func(equation, x, w))
                return layer.bilinear(order, other, operands[place])
    return func(equation, *operands)


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
