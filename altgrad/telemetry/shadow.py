"""The fp32 shadow: what the gradients would be at the same weights, on the same batches, if nothing were rounded.

It is not a second model that drifts away from the first: at each look the model itself computes its loss once more with
all operands in float32. The difference between the two gradients is then the work of rounding in this one step, and not
of all the steps before.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.nn import UNQUANTIZED, all_layers, quantized_layers
from altgrad.ranks import over_group


def shadow_gradients(model: nn.Module, losses: Sequence[Callable[[], Tensor]], group: Any = None) -> dict[str, Tensor]:
    """The gradients of the layers' weights without any rounding, averaged over the batches.

    The weights are read as they are stored: unrounded masters, or values on the grid. `.grad`, delayed scales, clocks,
    buffers and the state of random numbers stay as they are. A model with dropout draws masks of its own here, so that
    the comparison holds for models without.

    Args:
        model: with quantized layers (`altgrad.nn.quantize_model`).
        losses: for each of the step's batches a function that computes the model's loss on it, a scalar.
        group: process group whose ranks each have as many rows of the batches: the average is over all.

    Returns:
        Dense float32 gradients by layer name, without layers whose weight is frozen or takes no part in the loss.
    """
    layers = {name: layer.weight for name, layer in quantized_layers(model).items() if layer.weight.requires_grad}
    weights = list({id(weight): weight for weight in layers.values()}.values())  # tied ones once
    if not weights or not losses:
        return {}
    sums: dict[int, Tensor] = {}
    with unquantized(model), torch.enable_grad():
        for loss in losses:
            share = loss() / len(losses) if len(losses) > 1 else loss()
            for weight, grad in zip(weights, torch.autograd.grad(share, weights, allow_unused=True), strict=True):
                if grad is not None:
                    grad = grad.to_dense() if grad.is_sparse else grad
                    sums[id(weight)] = sums[id(weight)] + grad if id(weight) in sums else grad
    if group is not None:
        share = 1 / torch.distributed.get_world_size(group)
        sums = {key: over_group(grad * share, group, "sum") for key, grad in sums.items()}
    return {name: sums[id(weight)] for name, weight in layers.items() if id(weight) in sums}


def shadow_statistics(gradient: Tensor, reference: Tensor) -> dict[str, float]:
    """How the gradient g of a quantized step compares with the shadow's, h.

    Args:
        gradient, reference: of one shape, dense or sparse; computed with in float64.

    Measures (gradient):
        shadow_cosine [cosine; -1 to 1]: sum g h / (||g|| ||h||). 1 where rounding left the direction as it was. Left
            out where g or h is zero or not finite.
        shadow_snr_db [dB; any]: 10 log10(||h||^2 / ||g - h||^2). 0 dB is a gradient whose error is as large as itself.
            Left out where g equals h, and where h is zero or one of them not finite.
    """
    g, h = (each.detach().to_dense().double().flatten() for each in (gradient, reference))
    inner, g_square, h_square, error = torch.stack([g @ h, g @ g, h @ h, (g - h).square().sum()]).tolist()
    found = {}
    if math.isfinite(g_square) and math.isfinite(h_square):
        if g_square > 0 and h_square > 0:
            found["shadow_cosine"] = max(-1.0, min(1.0, inner / math.sqrt(g_square * h_square)))
        if error > 0 and h_square > 0:
            found["shadow_snr_db"] = 10 * math.log10(h_square / error)
    return found


@contextlib.contextmanager
def unquantized(model: nn.Module) -> Iterator[None]:
    """While the block runs nothing is rounded or observed; after it nothing shows that it ran."""
    layers = list(all_layers(model).values())
    before = [(layer.policy, layer.observer) for layer in layers]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gpus = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    try:
        with torch.random.fork_rng(gpus, device_type="cuda"):
            for layer in layers:
                layer.policy, layer.observer = UNQUANTIZED, None
            yield
    finally:
        for layer, (policy, observer) in zip(layers, before, strict=True):
            layer.policy, layer.observer = policy, observer
        with torch.no_grad():
            for buffer, old in buffers:
                buffer.copy_(old)
