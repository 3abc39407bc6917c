"""Quantized layers, the surgery that puts them into a model, and the report on what that reached."""

from altgrad.nn.coverage import Report, coverage_event, read_otherwise, report_of
from altgrad.nn.layers import (
    NATIVE_DTYPES,
    ROTATIONS,
    UNQUANTIZED,
    Clock,
    LinearProducts,
    Observer,
    Operand,
    OwnRounding,
    Policy,
    QuantizedEmbedding,
    QuantizedLayer,
    QuantizedLinear,
    Reading,
    Scaling,
    hadamard,
    register_rounding,
    rotate,
)
from altgrad.nn.names import layer_type
from altgrad.nn.policies import policies_of, policy_of, recipe
from altgrad.nn.surgery import all_layers, clock_of, dequantize_model, observed, quantize_model, quantized_layers

__all__ = [
    "NATIVE_DTYPES",
    "ROTATIONS",
    "UNQUANTIZED",
    "Clock",
    "LinearProducts",
    "Observer",
    "Operand",
    "OwnRounding",
    "Policy",
    "QuantizedEmbedding",
    "QuantizedLayer",
    "QuantizedLinear",
    "Reading",
    "Report",
    "Scaling",
    "all_layers",
    "clock_of",
    "coverage_event",
    "dequantize_model",
    "hadamard",
    "layer_type",
    "observed",
    "policies_of",
    "policy_of",
    "quantize_model",
    "quantized_layers",
    "read_otherwise",
    "recipe",
    "register_rounding",
    "report_of",
    "rotate",
]
