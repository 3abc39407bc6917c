"""Parameters that are spread over several ranks (DTensor): a step works on the shard, and measures the whole tensor.

FSDP2 and tensor parallelism give every rank its shard of a parameter and of its gradient. Steps are by elements; what
they need of the whole tensor, the largest magnitude or a mean, is reduced over the ranks that hold the shards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, without importing what a DTensor needs."""
    return hasattr(tensor, "placements") and hasattr(tensor, "to_local")


def local(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """This rank's part of a tensor, in its memory; of one that lies otherwise than `like`, moved to lie as it does."""
    if not is_sharded(tensor):
        return tensor
    given: Any = tensor
    if like is not None and given.placements != like.placements:  # type: ignore[attr-defined]
        given = given.redistribute(like.device_mesh, like.placements)  # type: ignore[attr-defined]
    found: Tensor = given.to_local()
    return found


def over_shards(value: Tensor, owner: Tensor, operation: str) -> Tensor:
    """`value` of the whole of `owner`, from those of its shards, float [].

    Args:
        operation: "max" (a NaN counts as infinity) or "sum".
    """
    if not is_sharded(owner):
        return value
    from torch.distributed import ReduceOp, all_reduce

    value = value.detach().clone()
    if operation == "max":
        value.nan_to_num_(nan=torch.inf, posinf=torch.inf)
    given: Any = owner
    for dim, placement in enumerate(given.placements):
        if placement.is_shard():
            kind = ReduceOp.MAX if operation == "max" else ReduceOp.SUM
            all_reduce(value, op=kind, group=given.device_mesh.get_group(dim))
    return value


def mean_of(x: Tensor, owner: Tensor | None) -> Tensor:
    """The mean over the whole of `owner`, of which `x` is this rank's part."""
    if owner is None or not is_sharded(owner):
        return x.mean()
    return over_shards(x.sum(), owner, "sum") / owner.numel()


def shard_number(owner: Tensor) -> int:
    """Which shard of `owner` this rank has, from 0; ranks with the same shard have the same number."""
    number, given = 0, owner
    for dim, placement in enumerate(getattr(given, "placements", ())):
        if placement.is_shard():
            mesh = given.device_mesh  # type: ignore[attr-defined]
            number = number * mesh.size(dim) + mesh.get_local_rank(dim)
    return number
