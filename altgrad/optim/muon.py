"""Muon for the matrices inside a model and AdamW for everything else, as one optimizer: torch's own two, bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer


class MuonBesideAdamW(Optimizer):
    """torch.optim.Muon steps the groups with `muon` true, torch.optim.AdamW the others.

    Muon orthogonalizes the momentum of a matrix (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/); its
    step is scaled to the root mean square that AdamW's steps have (arXiv 2502.16982, section 2.2), so that one learning
    rate means the same in both.

    Args:
        groups: each with "params", "lr" and "weight_decay"; a group of Muon has "muon": True and matrices only.
        betas, eps: of AdamW.

    Raises:
        ValueError: a group of Muon has a tensor that is no matrix.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], betas: tuple[float, float], eps: float) -> None:
        ours = [{"muon": False, **group} for group in groups]
        self._parts: dict[bool, Optimizer] = {}
        for muon in (True, False):
            if own := [dict(group) for group in ours if group["muon"] is muon]:
                self._parts[muon] = (
                    torch.optim.Muon(own, adjust_lr_fn="match_rms_adamw")
                    if muon
                    else torch.optim.AdamW(own, betas=betas, eps=eps, foreach=True)
                )
        filled = {muon: iter(part.param_groups) for muon, part in self._parts.items()}
        super().__init__([next(filled[group["muon"]]) for group in ours], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every group."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for muon, part in self._parts.items():
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group["muon"] is muon]
            part.step()
        return loss
