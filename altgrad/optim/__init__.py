"""Step rules: how an update is made from a gradient, and where the weights live."""

from altgrad.config import extra_bytes_per_weight
from altgrad.optim.base import GridOptimizer
from altgrad.optim.code import CodeOptimizer
from altgrad.optim.manifold import ManifoldAdamW
from altgrad.optim.muon import MuonBesideAdamW

__all__ = ["CodeOptimizer", "GridOptimizer", "ManifoldAdamW", "MuonBesideAdamW", "extra_bytes_per_weight"]
