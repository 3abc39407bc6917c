"""Memory of one piece of a tensor, used again for every piece, so that it stays in the processor's cache."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


class Scratch:
    """Named memory of `size` elements each, on one device."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.size, self.device = size, device
        self._tensors: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        make: Callable[[int, torch.device], Tensor] | None = None,
    ) -> Tensor:
        """The first elements of the tensor called `name`, in this shape, with whatever they held.

        Args:
            make: gives the tensor of `size` elements at first; nothing in particular is in it without.
        """
        found = self._tensors.get((name, dtype))
        if found is None:
            found = make(self.size, self.device) if make else torch.empty(self.size, dtype=dtype, device=self.device)
            self._tensors[name, dtype] = found
        count = math.prod(shape)
        found = found if count == self.size else found[:count]
        return found if len(shape) == 1 else found.view(shape)
