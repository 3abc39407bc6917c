"""What the step rules share: Adam's moments, weights that live on the grid, and a state that a checkpoint can hold.

Storage "grid": outside of `step` a parameter holds values of scale * fmt and nothing else, in a float32 container; no
wider copy exists. The scale is a power of two with a factor of `HEADROOM` above what the tensor needs. It moves only
when it must, by powers of two, and each move is an event:

- up, before rounding, when a proposed weight exceeds the largest value: nothing is clipped;
- down when it has become `HYSTERESIS` times too large.

A tensor with a NaN or an infinity keeps its scale, and an infinity becomes NaN, so that the damage shows.

State of a parameter: `step` (as torch's AdamW has it), `exp_avg`, `exp_avg_sq`, and `scale` on the grid: tensors only.
The settings in `param_groups` are numbers, strings, lists and None, a rate may be a tensor; the format is there by its
name. A state_dict is therefore tensors and JSON. With `moments` "fp8" the moments are codes, uint8, and `exp_avg_scale`
and `exp_avg_sq_scale` are beside them (`altgrad.optim.moments`).

Parameters are float16, bfloat16, float32 or float64, as torch's AdamW has them. Moments have the parameter's dtype, but
float32 where a precondition steps narrower ones: the square of a gradient times a spacing is none of float16. A DTensor
steps shard by shard (`altgrad.ranks`); a scale is of the whole tensor, the same on all ranks.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from altgrad.config import MOMENT_KINDS
from altgrad.formats import FloatFormat, get_format
from altgrad.optim.moments import empty_moments, keep_moment, read_moment
from altgrad.ranks import draws_of, is_sharded, local, over_shards
from altgrad.rounding import quantize
from altgrad.scaling import power_of_two_scale

HEADROOM, HYSTERESIS = 2, 4
ADAMW_RATE = 1e-3
"""torch's default, for steps in real units."""
_IN_CACHE = 1 << 18
"""Elements that a batch holds at most on a processor (or one tensor): later passes find them in the cache, and what is
allocated for them stays small enough to be used again at once."""

Event = tuple[Tensor, float, float]
"""(parameter, old scale, new scale)"""


class Batch(NamedTuple):
    """Parameters that take their step together: their gradients, moments, places in the optimizer, and step number.

    `owners` are the parameters as the optimizer has them, `params` what is worked on: of a DTensor this rank's shard.
    """

    params: list[Tensor]
    grads: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    indices: list[int]
    step: int
    owners: Sequence[Tensor] = ()


class GridOptimizer(Optimizer):
    """Base of the step rules; a subclass says how a batch of parameters steps, in `_step_batch`."""

    observer: Callable[[Tensor, Tensor], None] | None = None
    """Called, where it is set, with every parameter that lives on the grid and the change that its step proposes before
    rounding: float32, in real units. Of the rule `code` it is the real-valued move times the spacing at the weight."""

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], fmt: FloatFormat | str, defaults: dict[str, Any]
    ) -> None:
        self._events: list[Event] = []
        super().__init__(params, {"fmt": _name(fmt), **defaults})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_events", [])
        for group in self.param_groups:
            group.setdefault("moments", "fp32")  # of a state from before there were others

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `Optimizer.add_param_group`; the settings are checked, and the values rounded where they live on the grid.

        Raises:
            ValueError: a setting out of its range, or a combination that does not exist.
        """
        given = dict(param_group)
        group = {key: value for key, value in self.defaults.items() if key not in given} | given
        group["fmt"] = _name(group["fmt"])
        if group["lr"] is None:
            group["lr"] = self._default_rate(group)
        self._check(group, given)
        params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        _check_parameters(group, params)
        if group["storage"] == "grid":
            _check_storable(get_format(group["fmt"]), params)
        super().add_param_group(group | {"params": group["params"] if isinstance(group["params"], Tensor) else params})
        if group["storage"] == "grid":
            self._put_on_grid(self.param_groups[-1])

    def scale_of(self, parameter: Tensor) -> Tensor:
        """The scale of a parameter that lives on the grid: a float32 tensor without dimensions, updated in place.

        It stays the same object for the optimizer's life.

        Raises:
            ValueError: the parameter does not live on the grid.
        """
        found = self.state[parameter].get("scale") if parameter in self.state else None
        if found is None:
            raise ValueError("only a parameter of this optimizer with storage 'grid' has a scale")
        return found  # type: ignore[no-any-return]

    def pop_events(self) -> list[Event]:
        """The moves of scales since the last call, in order: (parameter, old scale, new scale)."""
        events, self._events = self._events, []
        return events

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `Optimizer.load_state_dict`; scales keep their objects.

        The weights come with the model. Load both after the optimizer was made, since making it rounds the weights
        onto a scale of its own.

        Raises:
            ValueError: the state is one of another format or storage, or of other moments.
        """
        for ours, theirs in zip(self.param_groups, state_dict["param_groups"], strict=False):
            for key, default in (("fmt", None), ("storage", None), ("moments", "fp32")):
                if ours[key] != (given := theirs.get(key, default)):
                    other = f"the state has {key} {given!r} where this optimizer has {ours[key]!r}"
                    raise ValueError(f"{other}; make it with the settings of the run that saved it")
        scales = {parameter: state["scale"] for parameter, state in self.state.items() if "scale" in state}
        super().load_state_dict(state_dict)
        for parameter, scale in scales.items():
            self.state[parameter]["scale"] = scale.copy_(self.state[parameter]["scale"])
        for ours, theirs in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for parameter, index in zip(ours["params"], theirs["params"], strict=True):
                for name, kept in state_dict["state"].get(index, {}).items():
                    if name.startswith("exp_avg") and kept.dtype != parameter.dtype:  # torch has given it that
                        self.state[parameter][name] = kept.to(parameter.device, copy=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every group; parameters without a gradient are left alone."""
        loss = loss_of(closure)
        first = 0
        for group in self.param_groups:
            settings = {**group, "lr": float(group["lr"]), "betas": tuple(map(float, group["betas"]))}
            for batch in self._batches(group, first):
                self._step_batch(settings, batch)
                if group["moments"] == "fp8":
                    for owner, mean, square in zip(batch.owners, batch.means, batch.squares, strict=True):
                        keep_moment(self.state[owner], "exp_avg", mean)
                        keep_moment(self.state[owner], "exp_avg_sq", square)
            first += len(group["params"])
        return loss

    def _default_rate(self, group: dict[str, Any]) -> float:
        """The rate of a group that was given none."""
        raise NotImplementedError

    def _check(self, group: dict[str, Any], given: dict[str, Any]) -> None:
        """Check the settings of a group, of which `given` are its own and not the optimizer's."""
        raise NotImplementedError

    def _step_batch(self, group: dict[str, Any], batch: Batch) -> None:
        raise NotImplementedError

    def _batches(self, group: dict[str, Any], first: int) -> Iterator[Batch]:
        """The group's parameters that have a gradient, those of the same step number together."""
        ready = [(first + i, p) for i, p in enumerate(group["params"]) if p.grad is not None and p.numel()]
        if not ready:
            return
        for _, parameter in ready:
            state = self.state[parameter]
            if "exp_avg" not in state:
                state["step"] = torch.zeros(())
                if group["moments"] == "fp8":
                    state.update(empty_moments(parameter))
                    continue
                for name in ("exp_avg", "exp_avg_sq"):
                    dtype = _moment_dtype(group, parameter)
                    state[name] = torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)
        counters = [self.state[parameter]["step"] for _, parameter in ready]
        torch._foreach_add_(counters, torch.tensor(1.0), alpha=1.0)
        batch, filled = Batch([], [], [], [], [], 0, []), 0
        for (index, parameter), counter in zip(ready, counters, strict=True):
            number = int(counter)
            full = filled + parameter.numel() > _IN_CACHE and parameter.device.type == "cpu"
            like = batch.params[0] if batch.params else parameter
            apart = number != batch.step or (parameter.device, parameter.dtype) != (like.device, like.dtype)
            if batch.params and (full or apart):
                yield batch
                batch, filled = Batch([], [], [], [], [], number, []), 0
            batch = batch if batch.params else batch._replace(step=number)
            state, fp8 = self.state[parameter], group["moments"] == "fp8"
            batch.owners.append(parameter)  # type: ignore[attr-defined]
            batch.params.append(local(parameter))
            batch.grads.append(local(parameter.grad, parameter))  # type: ignore[arg-type]
            for name, moments in (("exp_avg", batch.means), ("exp_avg_sq", batch.squares)):
                wide = read_moment(state, name).to(_moment_dtype(group, parameter)) if fp8 else local(state[name])
                moments.append(wide)
            batch.indices.append(index)
            filled += parameter.numel()
        yield batch

    @torch.no_grad()
    def _put_on_grid(self, group: dict[str, Any]) -> None:
        fmt = get_format(group["fmt"])
        for owner in group["params"]:
            parameter = local(owner)
            largest = largest_magnitudes([parameter], [owner])[0] if owner.numel() else 0.0
            scale = grid_scale(largest, fmt) if group["scaled"] else 1.0
            self.state[owner]["scale"] = torch.tensor(scale, device=parameter.device)
            quantize(without_infinities(parameter, largest), fmt, scale=scale, out=parameter)

    def _moved_scale(self, group: dict[str, Any], parameter: Tensor, old: float, largest: float) -> float:
        """The scale for proposed values of at most `largest`; where it differs from the `old`, that is an event."""
        new = next_scale(old, largest, get_format(group["fmt"])) if group["scaled"] else old
        if new != old:
            self.state[parameter]["scale"].fill_(new)
            self._events.append((parameter, old, new))
        return new

    def _scales(self, owners: Sequence[Tensor]) -> list[float]:
        return torch.stack([self.state[owner]["scale"] for owner in owners]).tolist()


def loss_of(closure: Callable[[], float] | None) -> float | None:
    """What a step's closure gives, computed with gradients; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def update_moments(batch: Batch, grads: list[Tensor], betas: tuple[float, float]) -> None:
    """Adam's two moving averages, in the order of operations of torch.optim.AdamW(foreach=True)."""
    beta1, beta2 = betas
    torch._foreach_lerp_(batch.means, grads, 1 - beta1)
    torch._foreach_mul_(batch.squares, beta2)
    torch._foreach_addcmul_(batch.squares, grads, grads, 1 - beta2)


def corrections(group: dict[str, Any], step: int) -> tuple[float, float]:
    """(1 - beta1^t, sqrt(1 - beta2^t)): the moments' bias (Kingma & Ba 2015, arXiv 1412.6980, section 3)."""
    beta1, beta2 = group["betas"]
    return 1 - beta1**step, (1 - beta2**step) ** 0.5


def denominators(group: dict[str, Any], batch: Batch) -> list[Tensor]:
    """sqrt(v) + eps with the bias of v taken out."""
    found = list(torch._foreach_sqrt(batch.squares))
    torch._foreach_div_(found, corrections(group, batch.step)[1])
    torch._foreach_add_(found, group["eps"])
    return found


def adamw_step(group: dict[str, Any], batch: Batch, grads: list[Tensor], rates: list[float]) -> list[Tensor]:
    """The step of torch.optim.AdamW(foreach=True), bit by bit, with a rate for each tensor; the denominators."""
    if group["weight_decay"]:
        torch._foreach_mul_(batch.params, [1 - rate * group["weight_decay"] for rate in rates])
    update_moments(batch, grads, group["betas"])
    found = denominators(group, batch)
    correction = corrections(group, batch.step)[0]
    torch._foreach_addcdiv_(batch.params, batch.means, found, [(rate / correction) * -1 for rate in rates])
    return found


def largest_magnitudes(tensors: list[Tensor], owners: Sequence[Tensor] = ()) -> list[float]:
    """max |x| of every tensor; NaN where there is one. Of shards it is that of the whole of their `owners`."""
    if any(is_sharded(owner) for owner in owners):
        found = []
        for tensor, owner in zip(tensors, owners, strict=True):
            largest = tensor.abs().max() if tensor.numel() else tensor.new_zeros(())
            found.append(float(over_shards(largest, owner, "max")))
        return found
    bounds = [bound for tensor in tensors for bound in torch.aminmax(tensor)]
    found = torch.stack(bounds).tolist()
    return [max(-low, high) for low, high in zip(found[::2], found[1::2], strict=True)]


@lru_cache(maxsize=256)
def _limits(fmt: FloatFormat) -> tuple[int, int]:
    """Exponents of scales that keep the whole grid among float32's normal numbers; 0 where there are none."""
    return max(-126, min(-126 - fmt.quantum_exponent, 0)), min(127, max(127 - fmt.max_exponent, 0))


def grid_scale(largest: float, fmt: FloatFormat) -> float:
    """The scale that a tensor on the grid starts with: a factor of `HEADROOM` above `amax_scale`; 1 if not finite."""
    low, high = _limits(fmt)
    needed = power_of_two_scale(largest, fmt) * HEADROOM if math.isfinite(largest) else 1.0
    return min(max(needed, 2.0**low), 2.0**high)


def next_scale(scale: float, largest: float, fmt: FloatFormat) -> float:
    """The scale at which values of at most `largest` are rounded, where it was `scale`; see the module's docstring."""
    if largest == 0 or not math.isfinite(largest):
        return scale
    needed = grid_scale(largest, fmt)
    too_small, too_large = largest > fmt.max * scale, needed * HYSTERESIS <= scale
    return needed if too_small or too_large else scale


def draws_at(seed: int, index: int, step: int, owner: Tensor) -> dict[str, Any]:
    """The `seed` and `first` of a parameter's draws at a step, of its shard here: a resumed run draws the same."""
    shard, first = draws_of(owner)
    return {"seed": draw_seed(seed, index, step, shard), "first": first}


def draw_seed(seed: int, index: int, step: int, shard: int = 0) -> int:
    """The 64-bit seed of a parameter's draws at a step."""
    text = f"optim/{seed}/{index}/{step}" + (f"/{shard}" if shard else "")
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def without_infinities(x: Tensor, largest: float) -> Tensor:
    """`x`, or a copy with NaN for infinities where its `largest` magnitude is not finite."""
    return x if math.isfinite(largest) else torch.where(x.isfinite(), x, math.nan)


def check_adam(group: dict[str, Any]) -> None:
    """Refuse rates below zero and betas outside [0, 1).

    Raises:
        ValueError: with the allowed range.
    """
    rate = group["lr"]
    single = isinstance(rate, Tensor) and rate.numel() == 1 and rate.is_floating_point()
    number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if not (rate is None or number or single):
        raise ValueError(f"lr must be a number or a tensor of one, not {rate!r:.80}")
    if not all(group[key] is None or group[key] >= 0 for key in ("lr", "eps", "weight_decay")):
        raise ValueError("lr, eps and weight_decay must not be negative")
    if group["moments"] not in MOMENT_KINDS:
        raise ValueError(f"moments must be one of {', '.join(MOMENT_KINDS)}, not {group['moments']!r:.80}")
    if group["moments"] == "fp8" and group.get("rounding") == "error_feedback":
        raise ValueError("error_feedback carries the error in the momentum, which moments 'fp8' would round")
    if not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"betas must lie in [0, 1), not {group['betas']!r}")


def _name(fmt: FloatFormat | str) -> str:
    """A name that `get_format` reads back."""
    if not isinstance(fmt, FloatFormat):
        return get_format(fmt).name
    with contextlib.suppress(ValueError):
        if get_format(fmt.name) == fmt:
            return fmt.name
    return FloatFormat.split(fmt.exponent_bits, fmt.mantissa_bits, bias=fmt.bias, specials=fmt.specials).name


def _moment_dtype(group: dict[str, Any], parameter: Tensor) -> torch.dtype:
    narrow = parameter.dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if narrow and group.get("precondition") is not None else parameter.dtype


def _check_parameters(group: dict[str, Any], params: list[Any]) -> None:
    for given in params:
        parameter = given[1] if isinstance(given, tuple) else given
        if not isinstance(parameter, Tensor):
            continue  # torch says what is wrong
        if parameter.is_complex():
            raise ValueError("a number format has no complex values; give real and imaginary parts as parameters")
        if is_sharded(parameter) and (group["moments"] == "fp8" or group.get("stiffness") == "shuffled"):
            what = "moments 'fp8'" if group["moments"] == "fp8" else "stiffness 'shuffled'"
            raise ValueError(f"{what} is not for sharded parameters (DTensor)")


def _check_storable(fmt: FloatFormat, params: list[Any]) -> None:
    in_float32 = fmt.quantum_exponent >= -149 and fmt.max_exponent <= 127
    if not fmt.signed or fmt.bits > 16 or not in_float32:
        raise ValueError(f"storage 'grid' needs a signed format of at most 16 bits inside float32, not {fmt.name}")
    for parameter in params:
        dtype = getattr(parameter[1] if isinstance(parameter, tuple) else parameter, "dtype", torch.float32)
        if dtype != torch.float32:
            raise ValueError(f"storage 'grid' keeps values in float32 parameters, not in {dtype}")
