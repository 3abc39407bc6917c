"""The models that experiments train."""

from altgrad.models.gpt import GPT

__all__ = ["GPT"]
