"""The numbers that stochastic rounding draws, for tensors: `formats.stochastic_draw` of many elements at once.

int32 wraps as 32-bit numbers do. Version 1 masks arithmetic shifts to make them logical ones; version 2 takes them as
they are, and makes half as many words as there are elements. In a compiled graph each element makes its own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.formats import DRAW_MULTIPLIERS, draw_keys
from altgrad.scratch import Scratch


class Draws(NamedTuple):
    """Which draws: those of a seed, in one of `formats.DRAW_VERSIONS`.

    Attributes:
        seed: a number from 0 to 2**64 - 1, or its bits as int64 [], where a graph reads it when it runs.
        first: number of the first element; every `start` counts from there.
    """

    seed: int | Tensor
    version: int
    first: int = 0

    def key(self, start: int) -> tuple[Tensor | int, Tensor | int]:
        """What element `start`, the first of a word, has before mixing, and the key it is mixed with: int32 both."""
        number = (self.first + start) // self.version
        first = number * DRAW_MULTIPLIERS[0]
        if isinstance(self.seed, Tensor):
            key = _splitmix64(_splitmix64(self.seed) ^ (number >> 32))
            return (key + _signed(first)).to(torch.int32), (key >> 32).to(torch.int32)
        key1, key2 = draw_keys(self.seed, number >> 32)
        return _signed(first + key1), _signed(key2)

    def have_one_key(self, start: int, count: int) -> bool:
        """Whether `start` is the first of a word, and `count` elements from there on are mixed with one key."""
        border, start = self.version << 32, self.first + start
        return start % self.version == 0 and start // border == (start + count - 1) // border

    def numbers(
        self, start: int, shape: tuple[int, ...], device: torch.device, scratch: Scratch | None = None
    ) -> Tensor:
        """The draws of the elements from `start` on: float32 of this shape."""
        count, before = math.prod(shape), (self.first + start) % self.version
        if not self.have_one_key(start - before, count + before):
            low = (self.version << 32) - (self.first + start) % (self.version << 32)
            parts = ((start, low), (start + low, count - low))
            return torch.cat([self.numbers(first, (some,), device) for first, some in parts]).view(shape)
        first, key = self.key(start - before)
        if self.version == 1:
            lanes = _lanes(count, device) if scratch is None else scratch.take("lanes", (count,), torch.int32, _lanes)
            return _mix(torch.add(lanes, first, out=_memory(scratch, "mixed", lanes)), key, scratch).view(shape)
        words = (count + before + 1) // 2
        lanes = _lanes(words, device) if scratch is None else scratch.take("lanes", (words,), torch.int32, _lanes)
        mixed = _mix_words(torch.add(lanes, first, out=_memory(scratch, "mixed", lanes)), key, scratch)
        halves = mixed.view(torch.int16)[before : before + count].bitwise_or_(1)
        return _between(halves, scratch).view(shape)


def draws_of_each(first: Tensor, key: Tensor, version: int, count: int, device: torch.device) -> Tensor:
    """`Draws.numbers` from an element on whose `Draws.key` is given, for a compiler: float32 [count]."""
    if version == 1:
        return _mix(_lanes(count, device) + first, key)
    index = torch.arange(count, dtype=torch.int32, device=device)
    word = _mix_words((index >> 1) * _signed(DRAW_MULTIPLIERS[0]) + first, key)
    return _between((word << (16 - 16 * (index & 1))) >> 16 | 1)


def _lanes(count: int, device: torch.device) -> Tensor:
    """What the words' numbers are above that of the first: int32 [count]."""
    return torch.arange(count, dtype=torch.int32, device=device) * _signed(DRAW_MULTIPLIERS[0])


def _memory(scratch: Scratch | None, name: str, like: Tensor) -> Tensor | None:
    return None if scratch is None else scratch.take(name, like.shape, like.dtype)


def _mix(mixed: Tensor, key: Tensor | int, scratch: Scratch | None = None) -> Tensor:
    """Version 1: two rounds of multiply and shift, in `mixed`; a masked arithmetic shift is a logical one."""
    shifted = _memory(scratch, "shifted", mixed)
    mixed.bitwise_xor_(torch.bitwise_right_shift(mixed, 16, out=shifted).bitwise_and_(0xFFFF))
    mixed.mul_(_signed(DRAW_MULTIPLIERS[1])).add_(key)
    mixed.bitwise_xor_(torch.bitwise_right_shift(mixed, 15, out=shifted).bitwise_and_(0x1FFFF))
    mixed.mul_(_signed(DRAW_MULTIPLIERS[2])).bitwise_right_shift_(8).bitwise_and_(0xFFFFFF)
    return _to_float(mixed, scratch).mul_(2.0**-24)


def _mix_words(mixed: Tensor, key: Tensor | int, scratch: Scratch | None = None) -> Tensor:
    """Version 2: the same with arithmetic shifts, and a sum that brings the upper half into the lower."""
    shifted = _memory(scratch, "shifted", mixed)
    mixed.bitwise_xor_(torch.bitwise_right_shift(mixed, 16, out=shifted))
    mixed.mul_(_signed(DRAW_MULTIPLIERS[1])).add_(key)
    mixed.bitwise_xor_(torch.bitwise_right_shift(mixed, 15, out=shifted))
    mixed.mul_(_signed(DRAW_MULTIPLIERS[2]))
    return mixed.add_(torch.bitwise_right_shift(mixed, 16, out=shifted))


def _between(odd: Tensor, scratch: Scratch | None = None) -> Tensor:
    """The draws of version 2 from odd numbers of 16 bits, signed."""
    draw = _to_float(odd, scratch)
    return torch.add(draw.new_full((), 0.5), draw, alpha=2.0**-16, out=None if scratch is None else draw)


def _to_float(numbers: Tensor, scratch: Scratch | None) -> Tensor:
    if scratch is None:
        return numbers.float()
    return scratch.take("draw", numbers.shape, torch.float32).copy_(numbers)


def _splitmix64(state: Tensor) -> Tensor:
    """`formats._splitmix64` of the bits of int64."""
    state = state + _signed(0x9E3779B97F4A7C15, 64)
    for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ _shifted(state, shift)) * _signed(multiplier, 64)
    return state ^ _shifted(state, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """A logical shift to the right."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int, bits: int = 32) -> int:
    """The lower bits as the signed number with the same bits."""
    return (value + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))
