"""Recurrent layers as the products that they are made of, with torch's equations (torch.nn.LSTM, GRU and RNN).

Each weight is read by products that a caller computes: that of the inputs once for all steps, that of the hidden state
at every step.

Shape suffixes: N rows of the inputs (steps x batch), B batch, I inputs, G gates x hidden, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""As F.linear: x [N, I], weight [G, I], bias [G] to [N, G]."""


def _lstm(x_BG: Tensor, h_BG: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    i, f, g, o = (x_BG + h_BG).chunk(4, 1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x_BG: Tensor, h_BG: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    (xr, xz, xn), (hr, hz, hn) = x_BG.chunk(3, 1), h_BG.chunk(3, 1)
    z, n = (xz + hz).sigmoid(), (xn + (xr + hr).sigmoid() * hn).tanh()
    return ((1 - z) * n + z * state[0],)


def _tanh(x_BG: Tensor, h_BG: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return ((x_BG + h_BG).tanh(),)


def _relu(x_BG: Tensor, h_BG: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return ((x_BG + h_BG).relu(),)


_CELLS = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _tanh, "rnn_relu": _relu}


def _cell(kind: str, times: Product, x: Tensor, state: Any, w: Tensor, u: Tensor, b: Any = None, c: Any = None) -> Any:
    """One step: torch.lstm_cell and its like."""
    states = tuple(state) if kind == "lstm" else (state,)
    found = _CELLS[kind](times(x, w, b), times(states[0], u, c), states)
    return found if kind == "lstm" else found[0]


def _layers(
    kind: str,
    times: Product,
    x: Tensor,
    second: Any,
    third: Any,
    fourth: Any,
    *rest: Any,
) -> tuple[Tensor, ...]:
    """All steps of all layers: torch.lstm and its like, of a padded input or of a packed one with its batch sizes."""
    packed = isinstance(second, Tensor) and not second.is_floating_point()
    if packed:
        sizes, state, weights = second.tolist(), third, fourth
        biased, layers, dropout, train, bidirectional = rest
    else:
        state, weights, biased = second, third, fourth
        layers, dropout, train, bidirectional, batch_first = rest
        x = x.transpose(0, 1) if batch_first else x
        sizes = [x.shape[1]] * x.shape[0]
        x = x.flatten(0, 1)
    states = tuple(state) if kind == "lstm" else (state,)
    directions = 2 if bidirectional else 1
    each = len(weights) // (layers * directions)
    last: list[tuple[Tensor, ...]] = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            mine = weights[place * each : (place + 1) * each]
            output, end = _direction(kind, times, x, sizes, [s[place] for s in states], mine, biased, direction == 1)
            outputs.append(output)
            last.append(end)
        x = torch.cat(outputs, -1)
        if dropout and train and layer < layers - 1:
            x = F.dropout(x, dropout)
    if not packed:
        x = x.unflatten(0, (len(sizes), -1))
        x = x.transpose(0, 1) if batch_first else x
    return x, *(torch.stack(part) for part in zip(*last, strict=True))


def _direction(
    kind: str,
    times: Product,
    x_NI: Tensor,
    sizes: Sequence[int],
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    biased: bool,
    backwards: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer in one direction: its outputs [N, H], and the state in which each sequence ends."""
    w, u = weights[:2]
    b, c = weights[2:4] if biased else (None, None)
    projection = weights[-1] if len(weights) % 2 else None
    steps_BG = times(x_NI, w, b).split(list(sizes))
    now = tuple(part[: sizes[-1] if backwards else sizes[0]] for part in state)
    ends: list[tuple[Tensor, ...]] = []
    outputs: list[Tensor] = []
    for x_BG in reversed(steps_BG) if backwards else steps_BG:
        rows, known = len(x_BG), len(now[0])
        if rows < known:  # the shortest sequences have ended
            ends.append(tuple(part[rows:] for part in now))
            now = tuple(part[:rows] for part in now)
        elif rows > known:  # backwards, longer ones begin later
            now = tuple(torch.cat([part, first[known:rows]]) for part, first in zip(now, state, strict=True))
        now = _CELLS[kind](x_BG, times(now[0], u, c), now)
        if projection is not None:
            now = (times(now[0], projection, None), *now[1:])
        outputs.append(now[0])
    ends.append(now)
    output = torch.cat(outputs[::-1] if backwards else outputs)
    return output, tuple(torch.cat(parts[::-1]) for parts in zip(*ends, strict=True))


RECURRENT: dict[str, Callable[..., Any]] = {kind: partial(_layers, kind) for kind in _CELLS} | {
    f"{kind}_cell": partial(_cell, kind) for kind in _CELLS
}
"""torch's functions of recurrent layers by name; each takes the product first, then what torch's takes."""
