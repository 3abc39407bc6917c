"""Quantized layers, and the surgery that puts them into a model.

A linear layer is three matrix products, and each reads two of three operands:

    output      = activation  @ weight^T          forward
    grad_input  = grad_output @ weight            backward
    grad_weight = grad_output^T @ activation      backward

`QuantizedLinear` rounds each operand once, onto its own format, and multiplies the rounded values in float32: the
products are exact and accumulation is float32, as tensor cores do it. Weights stay float32 masters behind the
straight-through estimator. Biases, attention scores, norms and residuals are not quantized.

Shape suffixes: N rows (batch x time), I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from altgrad.formats import FP32, FloatFormat, get_format
from altgrad.rounding import quantize
from altgrad.scaling import amax_scale

Observer = Callable[[str, str, str, Tensor, Tensor, FloatFormat, "Tensor | None"], None]
"""Called with (layer, layer_type, operand, real values, quantized values, format, scale) of every operand."""


@dataclass(frozen=True)
class Policy:
    """Which format each operand gets, in which layer types, and how tensors are scaled.

    Attributes:
        weight, activation, grad_output: formats; FP32 leaves that operand as it is.
        layers: the layer types this applies to; every other layer keeps FP32.
        scaled: scale each tensor by its current amax; False uses scale 1, where values may overflow (they saturate).
        power_of_two: round the scale up to a power of two.
    """

    weight: FloatFormat = FP32
    activation: FloatFormat = FP32
    grad_output: FloatFormat = FP32
    layers: tuple[str, ...] = ("attention", "mlp", "embedding", "head")
    scaled: bool = True
    power_of_two: bool = True

    @classmethod
    def of_names(cls, weight: str, activation: str, grad_output: str, **rest: object) -> Policy:
        """The policy with formats given by name.

        Raises:
            ValueError: unknown format.
        """
        return cls(get_format(weight), get_format(activation), get_format(grad_output), **rest)  # type: ignore[arg-type]

    def scale(self, x: Tensor, fmt: FloatFormat) -> Tensor | None:
        """The scale of `x` under this policy; None is 1."""
        return amax_scale(x, fmt, power_of_two=self.power_of_two) if self.scaled and fmt is not FP32 else None


UNQUANTIZED = Policy()


class _Quantizer:
    """What both quantized layers share: a place in the model, a policy, and someone who may look at the operands."""

    layer: str = ""
    layer_type: str = ""
    policy: Policy = UNQUANTIZED
    observer: Observer | None = None

    def operand(self, x: Tensor, operand: str) -> Tensor:
        """`x` as the matrix product reads it: rounded onto the operand's format, or `x` itself for FP32."""
        fmt: FloatFormat = getattr(self.policy, operand)
        scale = self.policy.scale(x, fmt)
        rounded = x if fmt is FP32 else quantize(x, fmt, scale=scale, check_scale=False)
        if self.observer is not None:
            self.observer(self.layer, self.layer_type, operand, x, rounded, fmt, scale)
        return rounded


class _ThreeProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_NI, weight_OI, bias_O, quantizer):  # type: ignore[no-untyped-def]
        rounded_x_NI = quantizer.operand(x_NI, "activation")
        rounded_weight_OI = quantizer.operand(weight_OI, "weight")
        ctx.save_for_backward(rounded_x_NI, rounded_weight_OI)
        ctx.quantizer, ctx.has_bias = quantizer, bias_O is not None
        return nn.functional.linear(rounded_x_NI, rounded_weight_OI, bias_O)

    @staticmethod
    def backward(ctx, grad_NO):  # type: ignore[no-untyped-def]
        x_NI, weight_OI = ctx.saved_tensors
        rounded_grad_NO = ctx.quantizer.operand(grad_NO, "grad_output")
        grad_x_NI = rounded_grad_NO @ weight_OI if ctx.needs_input_grad[0] else None
        grad_weight_OI = rounded_grad_NO.t() @ x_NI if ctx.needs_input_grad[1] else None
        grad_bias_O = grad_NO.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return grad_x_NI, grad_weight_OI, grad_bias_O, None


class _RoundedTable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, quantizer):  # type: ignore[no-untyped-def]
        return quantizer.operand(weight, "weight").clone()

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad, None


class QuantizedLinear(_Quantizer, nn.Linear):
    """`nn.Linear` whose three matrix products read quantized operands.

    Input [..., I], output [..., O], float32. With every operand FP32 its numbers are those of `nn.Linear`, bit by bit.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., I] times the transposed weight, plus the bias: [..., O]."""
        rows = x.reshape(-1, x.shape[-1])
        y: Tensor = _ThreeProducts.apply(rows, self.weight, self.bias, self)
        return y.view(*x.shape[:-1], self.out_features)


class QuantizedEmbedding(_Quantizer, nn.Embedding):
    """`nn.Embedding` whose table is rounded onto the weight format; its gradient passes straight through."""

    def forward(self, token: Tensor) -> Tensor:
        """Rows of the rounded table: [...] to [..., D]."""
        table: Tensor = _RoundedTable.apply(self.weight, self)
        return nn.functional.embedding(token, table)


QuantizedLayer = QuantizedLinear | QuantizedEmbedding


def layer_type(name: str) -> str | None:
    """The type of the layer called `name`: the first part of the dotted name that is a layer type, or None."""
    return next((part for part in name.split(".") if part in ("attention", "mlp", "embedding", "head")), None)


def quantize_model(model: nn.Module, policy: Policy) -> nn.Module:
    """Turn every linear layer and token embedding of a known layer type into its quantized form, in place.

    A layer's type is read off its dotted name (`layer_type`). Parameters stay the same objects, so that optimizers and
    initialization are not disturbed. A layer type outside `policy.layers` gets FP32 operands and is observed as well.

    Returns:
        `model`.
    """
    for name, module in list(model.named_modules()):
        kind = layer_type(name)
        if kind is None or type(module) not in (nn.Linear, nn.Embedding):
            continue
        module.__class__ = QuantizedLinear if isinstance(module, nn.Linear) else QuantizedEmbedding
        assert isinstance(module, QuantizedLayer)
        module.layer, module.layer_type = name, kind
        module.policy = policy if kind in policy.layers else UNQUANTIZED
    return model


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The quantized layers of `model` by dotted name, in the order of definition."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}
