"""The probe: what rounding the gradient of the logits would do to the head's weight gradient, class by class.

It needs one model that was trained without low precision, and a few batches: each candidate rounds the gradients that
the model has now. What errors do over many steps depends on whether they cancel, so they are averaged over the batches
before their size is taken, and a class that is hardly ever seen moves by little, so its error is held against its own
gradient. Noise without a direction averages out; a class that is pushed the same way in every batch stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from altgrad.config import SECOND_CASTS
from altgrad.nn import Operand, Policy, QuantizedLinear, layer_type, quantize_model
from altgrad.telemetry.shadow import unquantized

ROUNDINGS = {"nearest": "nearest_even", "stochastic": "stochastic", "diffused": "diffused"}
"""The roundings that are probed, by their short names."""


class Part(NamedTuple):
    """The head in one batch of N rows: inputs x [N, I], the gradient g of its V logits [N, V], and q, g rounded."""

    x: Tensor
    g: Tensor
    q: Tensor


@torch.no_grad()
def class_statistics(parts: Sequence[Part]) -> dict[str, float]:
    """What rounding the gradient of the logits does to the classes, over the batches of a step or of a probe.

    G = g^T x is the weight's gradient in one batch without the rounding, E = (q - g)^T x what rounding adds to it; row
    v is that of class v. Computed in float64.

    Args:
        parts: one a batch; at least one.

    Measures (grad_output):
        class_bias [1; at least 0]: sqrt(sum_v ||mean E_v||^2 / ||mean G_v||^2). The means are over the batches; a class
            without a gradient is left out. Of the head only, with `telemetry.logits`, as are the next two.
        row_mass [fraction; at least 0]: mean |sum_v (q - g)| / mean sum_v |g|. The means are over the rows. Left out
            where g is zero.
        class_noise [fraction; at least 0]: sqrt(sum ||E||^2 / sum ||G||^2). The sums are over the batches. Left out
            where G is zero.
    """
    shape = parts[0].g.shape[-1], parts[0].x.shape[-1]
    gradients, errors = torch.zeros((2, *shape), dtype=torch.float64, device=parts[0].x.device)
    signal, noise, mass, whole = (gradients.new_zeros(()) for _ in range(4))
    for x, g, q in (tuple(each.flatten(0, -2).double() for each in part) for part in parts):
        gradient, error = g.t() @ x, (q - g).t() @ x
        gradients += gradient
        errors += error
        signal += gradient.square().sum()
        noise += error.square().sum()
        mass += (q - g).sum(-1).abs().sum()
        whole += g.abs().sum()
    size, lost = (torch.linalg.vector_norm(each, dim=1) for each in (gradients, errors))
    found = {"class_bias": float(torch.linalg.vector_norm((lost / size)[size != 0]))}
    if float(whole) > 0:
        found["row_mass"] = float(mass / whole)
    if float(signal) > 0:
        found["class_noise"] = math.sqrt(float(noise / signal))
    return found


@torch.no_grad()
def logit_statistics(logits: Sequence[Tensor]) -> dict[str, float]:
    """Where the logits are, over the batches of a step: softmax sees no number that is added to all of them.

    Args:
        logits: [..., V], one a batch; at least one, all with as many rows.

    Measures (output):
        logits_mean [1; any]: mean z. z is a logit; the mean is over rows and classes. Of the head only, with
            `telemetry.logits`, as is the next.
        logits_spread [1; at least 0]: sqrt(mean (z - mean_v z)^2). mean_v is over the classes of a row.
    """
    means = [float(each.mean(dtype=torch.float64)) for each in logits]
    variances = [float(each.double().var(-1, correction=0).mean()) for each in logits]
    return {"logits_mean": sum(means) / len(means), "logits_spread": math.sqrt(sum(variances) / len(variances))}


def head_of(model: nn.Module, layer: str | None = None) -> str:
    """The dotted name of the model's head, or `layer` where it is a linear layer.

    Raises:
        ValueError: there is no such layer, or several heads; one line that names what there is.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    heads = [name for name in linear if (name == layer if layer is not None else layer_type(name) == "head")]
    if len(heads) == 1:
        return heads[0]
    wanted = (
        f"no linear layer is called {layer!r}" if layer is not None else f"the model has {len(heads) or 'no'} heads"
    )
    raise ValueError(f"{wanted}; name one of its linear layers: {', '.join(linear) or 'it has none'}")


def probe(
    model: nn.Module,
    losses: Sequence[Callable[[], Tensor]],
    candidates: Mapping[str, Operand],
    *,
    layer: str | None = None,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """What each candidate would do to the head's weight gradient, as `class_statistics` has it.

    The model is read without any rounding, and stays as it is, its gradients too.

    Args:
        model: any torch model; its weights are to be those of training without low precision.
        losses: for each batch a function that computes the model's loss on it, a scalar.
        candidates: what would happen to the gradient of the logits, by a name.
        layer: dotted name of the head; by default the linear layer of type "head".
        seed: of stochastic draws.

    Returns:
        The statistics by name, in the order of the candidates.

    Raises:
        ValueError: no head or several; no batches; a head of one class, whose softmax has no gradient; a loss that does
            not use the head, or whose gradient there is zero or not finite.
    """
    name = head_of(model, layer)
    head = model.get_submodule(name)
    assert isinstance(head, nn.Linear)
    if head.out_features < 2:
        raise ValueError(f"{name} has one class, whose gradient is zero: the probe needs two at least")
    if not losses:
        raise ValueError("the probe needs a batch at least")
    seen = [_inputs_and_gradient(model, head, name, loss) for loss in losses]
    return {key: class_statistics(_parts(seen, operand, seed)) for key, operand in candidates.items()}


def _inputs_and_gradient(
    model: nn.Module, head: nn.Linear, name: str, loss: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    """x [N, I] and g [N, V] of one batch without any rounding."""
    passed: list[tuple[Tensor, Tensor]] = []
    handle = head.register_forward_hook(lambda _, given, logits: passed.append((given[0], logits)))
    try:
        with unquantized(model), torch.enable_grad():
            value = loss()
            if len(passed) != 1:
                raise ValueError(
                    f"the loss uses {name} {len(passed)} times, and the probe is of a head that is used once"
                )
            x, logits = passed[0]
            (gradient,) = torch.autograd.grad(value, logits, allow_unused=True)
    finally:
        handle.remove()
    if gradient is None or not gradient.any() or not gradient.isfinite().all():
        raise ValueError(f"the gradient of the loss for the outputs of {name} is zero or not finite: nothing to round")
    return x.detach().flatten(0, -2), gradient.flatten(0, -2)


def _parts(seen: Sequence[tuple[Tensor, Tensor]], operand: Operand, seed: int) -> list[Part]:
    """The batches, each rounded as the product that makes the weight's gradient would read it."""
    (outputs, inputs), device = (seen[0][1].shape[1], seen[0][0].shape[1]), seen[0][0].device
    twin = nn.ModuleDict({"head": nn.Linear(inputs, outputs, bias=False, device=device)})
    quantize_model(twin, Policy(grad_output=operand), seed=seed)
    layer = twin["head"]
    assert isinstance(layer, QuantizedLinear)
    cast = SECOND_CASTS["grad_output"] if "grad_output" in layer.policy.apart else "grad_output"
    parts = []
    for layer.clock.part, (x, g) in enumerate(seen):
        parts.append(Part(x, g, layer.operand(g, cast)))
    return parts
