"""Step rules: how an update is made from a gradient."""

from altgrad.optim.manifold import ManifoldAdamW

__all__ = ["ManifoldAdamW"]
