"""Adam's moments in eight bits: codes of the first in E4M3, of the second in E5M2, and a float32 scale for each block.

A block is `BLOCK` neighbours of the flattened tensor; the last may be short. Its scale is amax / max as a float32, and
a moment is code * scale. Between two steps nothing else is kept: a step reads the moments back, updates them as float32
and rounds them again, to the nearest. A second moment below 2**-17 / 57344 of its block's largest becomes zero, and the
next step of such a weight is as large as eps lets it be.

Sources: Dettmers et al., 8-bit Optimizers via Block-wise Quantization (arXiv 2110.02861), for blocks; Fishman et al.,
Scaling FP8 training to trillion-token LLMs (arXiv 2409.12517), for the two formats.
"""

from __future__ import annotations

import torch
from torch import Tensor

from altgrad.config import MOMENT_BLOCK as BLOCK
from altgrad.formats import FloatFormat, get_format
from altgrad.rounding import decode, encode
from altgrad.scaling import amax_scale, in_blocks

FORMATS: dict[str, FloatFormat] = {"exp_avg": get_format("e4m3"), "exp_avg_sq": get_format("e5m2")}
"""By their names in the state of a parameter; the scales of a moment are ``<name>_scale``."""


def empty_moments(parameter: Tensor) -> dict[str, Tensor]:
    """The state of a parameter before its first step: codes of zero, uint8 like it, and scales of 1, float32."""
    blocks = -(-parameter.numel() // BLOCK)
    found = {name: torch.zeros_like(parameter, dtype=torch.uint8) for name in FORMATS}
    return found | {f"{name}_scale": torch.ones(blocks, device=parameter.device) for name in FORMATS}


def read_moment(state: dict[str, Tensor], name: str) -> Tensor:
    """The moment of this name as float32."""
    codes, scale = state[name].flatten(), state[f"{name}_scale"]
    blocks, factor = in_blocks(decode(codes, FORMATS[name]), scale, block=BLOCK)
    return blocks.mul_(factor).view(state[name].shape)


def keep_moment(state: dict[str, Tensor], name: str, moment: Tensor) -> None:
    """Round a moment into the state; what is not finite makes its block NaN."""
    flat, fmt = moment.flatten().float(), FORMATS[name]
    scale = amax_scale(flat, fmt, granularity="block", block=BLOCK, power_of_two=False)
    blocks, factor = in_blocks(flat, scale, block=BLOCK)
    state[name].copy_(encode(blocks, fmt, scale=factor, check_scale=False).view(moment.shape))
    state[f"{name}_scale"].copy_(scale)
