"""Muon for the matrices inside a model and AdamW for everything else, as one optimizer: torch's own two, bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from altgrad.optim.base import loss_of


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
        super().__init__(groups, {"muon": False, "betas": betas, "eps": eps})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `Optimizer.add_param_group`; what torch's own optimizer of its kind refuses, it refuses."""
        muon = param_group.get("muon", False)
        adamw = {} if muon else {key: self.defaults[key] for key in ("betas", "eps")}
        (own,) = _of_torch(muon, [{**adamw, **param_group}]).param_groups
        super().add_param_group(own | {"muon": muon})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every group."""
        loss = loss_of(closure)
        for muon in (True, False):
            if groups := [group for group in self.param_groups if group["muon"] is muon]:
                own = self.__dict__.setdefault("_of_torch", {})  # which a copy has not
                if muon not in own:
                    own[muon] = _of_torch(muon, [{"params": [torch.nn.Parameter(torch.zeros(1, 1))]}])
                own[muon].state, own[muon].param_groups = self.state, groups
                own[muon].step()
        return loss


def _of_torch(muon: bool, groups: list[dict[str, Any]]) -> Optimizer:
    if muon:
        return torch.optim.Muon(groups, adjust_lr_fn="match_rms_adamw")
    return torch.optim.AdamW(groups, foreach=True)
