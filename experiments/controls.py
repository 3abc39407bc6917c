"""The controls of the studies on the gradient of the logits: roundings for no recipe, which tell why one helps.

Each gets the gradient of the logits [..., classes] and the same rounded to nearest on its grid. What they return keeps
a sum that rounding to nearest loses, and leaves the grid to do so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from altgrad.nn import register_rounding


def mean_removed(_x: Tensor, nearest: Tensor) -> Tensor:
    """Rounded to nearest, minus the mean of the row: the sum of a row is zero again, whatever it was."""
    return nearest - nearest.mean(dim=-1, keepdim=True)


def residual_on_target(x: Tensor, nearest: Tensor) -> Tensor:
    """Rounded to nearest, and what that loses of a row's sum added to the class that was right.

    Softmax minus one-hot is negative at that class alone: it is where a row is smallest.
    """
    target = x.argmin(dim=-1, keepdim=True)
    lost = (x.double().sum(dim=-1, keepdim=True) - nearest.double().sum(dim=-1, keepdim=True)).to(nearest.dtype)
    return torch.scatter_add(nearest, -1, target, lost)


register_rounding("mean-removed", mean_removed)
register_rounding("residual-on-target", residual_on_target)
