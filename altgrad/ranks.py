"""Tensors of which other processes have a part: rows of a batch that they share, and shards of parameters (DTensor).

FSDP2 and tensor parallelism give every rank its shard of a parameter and of its gradient. Steps are by elements; what
they need of the whole tensor, the largest magnitude or a mean, is reduced over the ranks that hold the shards. Of a
batch every rank has as many rows: what is of all rows is reduced over a process group. torch.distributed is imported
where it is in use already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def over_group(value: Tensor, group: Any, operation: str = "max") -> Tensor:
    """`value` of all ranks of a process group, element by element; `value` itself where the group is None.

    Args:
        operation: "max" (a NaN counts as infinity) or "sum".
    """
    if group is None:
        return value
    from torch.distributed import ReduceOp, all_reduce

    value = value.detach().clone()
    if operation == "max":
        value.nan_to_num_(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    all_reduce(value, op=ReduceOp.MAX if operation == "max" else ReduceOp.SUM, group=group)
    return value


def rows_of_all(value: Tensor, group: Any) -> Tensor:
    """The rows (first dimension) of all ranks of a group, in their order; every rank has as many."""
    if group is None:
        return value
    from torch.distributed import all_gather, get_world_size

    parts = [torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(get_world_size(group))]
    all_gather(parts, value.contiguous(), group=group)
    return torch.cat(parts)


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


def whole(tensor: Tensor, owner: Tensor | None = None) -> Tensor:
    """All of a tensor, on every rank; of a plain `tensor` that is this rank's part of something like `owner`, too."""
    given: Any = tensor
    if owner is not None and is_sharded(owner) and not is_sharded(tensor):
        from torch.distributed.tensor import DTensor

        mesh, placements = owner.device_mesh, owner.placements  # type: ignore[attr-defined]
        given = DTensor.from_local(tensor, mesh, placements, shape=owner.shape, stride=owner.stride())
    return given.full_tensor() if is_sharded(given) else tensor


def shared_as(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that every rank has whole, shared out as `like` is; where that is summed over ranks, whole on each."""
    from torch.distributed.tensor import Replicate, distribute_tensor

    given: Any = like
    placements = [Replicate() if each.is_partial() else each for each in given.placements]
    return distribute_tensor(tensor, given.device_mesh, placements, src_data_rank=None)


def over_shards(value: Tensor, owner: Tensor, operation: str) -> Tensor:
    """`value` of the whole of `owner`, from those of its shards; `operation` as in `over_group`."""
    given: Any = owner
    for dim, placement in enumerate(given.placements if is_sharded(owner) else ()):
        if placement.is_shard():
            value = over_group(value, given.device_mesh.get_group(dim), operation)
    return value


def mean_of(x: Tensor, owner: Tensor | None) -> Tensor:
    """The mean over the whole of `owner`, of which `x` is this rank's part."""
    if owner is None or not is_sharded(owner):
        return x.mean()
    return over_shards(x.sum(), owner, "sum") / owner.numel()


def norms_of(tensors: Sequence[Tensor], owner: Tensor | None = None) -> Tensor:
    """The 2-norm of every tensor, of all its shards: float [n]. All are sharded in one way, that of an `owner` too."""
    found = torch.stack(torch._foreach_norm([local(tensor) for tensor in tensors]))
    owner = tensors[0] if owner is None else owner
    return over_shards(found.double().square(), owner, "sum").sqrt().to(found.dtype) if is_sharded(owner) else found


def nonfinite_in(tensor: Tensor) -> int:
    """How many elements of all shards of a tensor are NaN or infinite."""
    return int(over_shards((~torch.isfinite(local(tensor))).sum(), tensor, "sum"))


def draws_of(owner: Tensor) -> tuple[int, int]:
    """What this rank's shard of `owner` draws: a number for its seed, and the index of its first element.

    Shards of rows draw what the whole tensor would; others, whose elements are not neighbours, have seeds of their own.
    Ranks with the same shard have the same.
    """
    given: Any = owner
    dims = [dim for dim, placement in enumerate(getattr(given, "placements", ())) if placement.is_shard()]
    if len(dims) == 1 and given.placements[dims[0]].dim == 0:
        rows, ranks = owner.shape[0], given.device_mesh.size(dims[0])
        first = min(-(-rows // ranks) * given.device_mesh.get_local_rank(dims[0]), rows)
        return 0, first * (owner.numel() // max(rows, 1))
    number = 0
    for dim in dims:
        number = number * given.device_mesh.size(dim) + given.device_mesh.get_local_rank(dim)
    return number, 0
