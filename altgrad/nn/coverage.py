"""What quantization reached: every parameter, quantized or left as it is and why, and the products that really ran.

`quantize_model` lays it out by what is known of the model's classes. The first batch settles it: while the model's
forward pass runs for the first time, every product of matrices goes by torch's dispatcher past `_Products`, which
counts its multiply-adds and tells whether its operands are what a layer has rounded. After that nothing is counted; the
hooks stay, because a compiled graph would be made anew without them.

    quantize_model(model, policy)
    print(report_of(model))        # what is listed
    model(batch)
    print(report_of(model))        # what ran
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from altgrad.config import OPERANDS, operand_of
from altgrad.formats import FP32
from altgrad.nn.layers import QuantizedLayer
from altgrad.nn.names import plain_name

aten = torch.ops.aten


class Row(NamedTuple):
    """One parameter.

    Attributes:
        name, shape, size: dotted name, shape (() where it is not known yet) and number of elements.
        layer: the dotted name of the quantized layer that reads it; empty for none.
        state: "quantized": products read it by rounded operands, as they ran in the first batch; "listed": they would,
            and no batch has run yet; or "left out".
        why: in which formats, or why not.
        multiply_adds: of the products that read it in the forward pass of the first batch; None before that. One that
            reads several parameters is counted at one of them, of the layer that rounds it where there is one.
        of_them_rounded: those whose operands were rounded.
    """

    name: str
    shape: tuple[int, ...]
    size: int
    layer: str
    state: str
    why: str
    multiply_adds: int | None
    of_them_rounded: int | None

    @property
    def quantized(self) -> bool:
        """Whether its state is "quantized"."""
        return self.state == "quantized"


class Product(NamedTuple):
    """Products of one kind in the first batch: torch's operator, whose weights, which layer, and what was rounded."""

    operator: str
    parameters: tuple[str, ...]
    layer: str
    casts: tuple[str, ...]
    multiply_adds: int


@dataclass(frozen=True)
class Report:
    """What quantization reached in a model; `print(report)` shows it, names of like layers together.

    Attributes:
        rows: every parameter, tied ones once.
        products: of the first batch's forward pass; None before it has run.
        never_read: the layers that are listed, and that no product or lookup of the first batch has read.
    """

    rows: tuple[Row, ...]
    products: tuple[Product, ...] | None
    never_read: tuple[str, ...]

    @property
    def parameter_share(self) -> float:
        """Quantized parameters over all, from 0 to 1; before the first batch, those that are listed."""
        total = sum(row.size for row in self.rows)
        return _share(total - sum(row.size for row in self.skipped), total)

    @property
    def multiply_add_share(self) -> float | None:
        """Multiply-adds of rounded operands over all of the first batch's forward pass, or None before it."""
        if self.products is None:
            return None
        rounded = sum(each.multiply_adds for each in self.products if each.casts)
        return _share(rounded, sum(each.multiply_adds for each in self.products))

    @property
    def skipped(self) -> tuple[Row, ...]:
        """The parameters that are left as they are."""
        return tuple(row for row in self.rows if row.state == "left out")

    def summary(self, most: int = 20) -> dict[str, Any]:
        """What a record keeps: numbers, shares, and of what is left out the `most` largest groups of like names."""
        made = sum(each.multiply_adds for each in self.products or ())
        groups = sorted(_groups(self.skipped).items(), key=lambda each: -sum(row.size for row in each[1]))
        left = [
            {
                "name": (name if len(members) > 1 else members[0].name)[:200],
                "why": why[:200],
                "count": len(members),
                "parameters": sum(row.size for row in members),
                "multiply_adds": None if self.products is None else sum(row.multiply_adds or 0 for row in members),
            }
            for (name, why), members in groups[:most]
        ]
        left += [
            {"name": name, "why": _ACTIVATIONS, "count": 0, "parameters": 0, "multiply_adds": number}
            for (name, rounded), number in self._of_activations().items()
            if not rounded
        ]
        found = {"parameters": sum(row.size for row in self.rows), "quantized": self.parameter_share, "left_out": left}
        ran = {"multiply_adds": None if self.products is None else made, "rounded": self.multiply_add_share}
        return found | ran | {"more": max(len(groups) - most, 0)}

    def _of_activations(self) -> dict[tuple[str, bool], int]:
        """Multiply-adds of the products that read no parameter, by what they are and whether they are rounded."""
        groups: dict[tuple[str, bool], int] = {}
        for each in self.products or ():
            if not each.parameters:
                key = "attention" if "dot_product" in each.operator else each.operator, bool(each.casts)
                groups[key] = groups.get(key, 0) + each.multiply_adds
        return groups

    def __str__(self) -> str:
        total = sum(row.size for row in self.rows)
        first, share = f"{self.parameter_share:.1%} of {total:,} parameters are", self.multiply_add_share
        if self.products is None:
            lines = [f"{first} listed; the first batch that is not compiled tells which are quantized"]
        else:
            made = sum(each.multiply_adds for each in self.products)
            lines = [f"{first} quantized, and {share:.1%} of {made:,} multiply-adds of the first forward pass"]
        for state, title in (("quantized", "quantized"), ("listed", "listed, not read yet")):
            lines += _table(title, [row for row in self.rows if row.state == state], self)
        lines += _table("left as they are", self.skipped, self)
        if others := self._of_activations():
            made = sum(each.multiply_adds for each in self.products or ())
            lines += ["", "products of activations alone"]
            for (name, rounded), number in others.items():
                what = "rounded" if rounded else "left as they are"
                lines.append(f"  {_share(number, made):6.1%} of multiply-adds  {name}: {what}")
        if self.never_read:
            unread = ", ".join(_patterns(self.never_read))
            lines += ["", f"listed, but read by no product or lookup of the first batch: {unread}"]
        return "\n".join(lines)


NO_PRODUCT = "no product of matrices that is known reads it"
_VECTOR, _BIAS = "a vector, no factor of a product", "a bias, no factor of a product"
_ACTIVATIONS = "a product of activations alone"
_OTHERWISE = "read, but by no product of matrices"
_VECTORS_ROW = "biases, norms and other vectors"


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _pattern(name: str) -> str:
    """A name with * in place of numbers, unless nothing else would tell it from others."""
    pattern = re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
    return pattern if name_for(pattern).strip("*.") else name


def _patterns(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(map(_pattern, names)))


def _groups(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Those of one name pattern and one reason together; vectors have one name."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((_VECTORS_ROW if row.why == _VECTOR else _pattern(row.name), row.why), []).append(row)
    return groups


def _table(title: str, rows: Sequence[Row], report: Report) -> list[str]:
    """Rows of one name pattern and one reason in one line: share of parameters, of multiply-adds, name, reason."""
    if not rows:
        return []
    size = sum(row.size for row in report.rows)
    made = sum(each.multiply_adds for each in report.products or ())
    groups = _groups(rows)
    lines = ["", f"{title} (share of parameters, of multiply-adds)"]
    width = min(max(len(name) for name, _ in groups), 60)
    for (name, why), members in groups.items():
        adds = sum(row.multiply_adds or 0 for row in members)
        share = "     -" if report.products is None else f"{_share(adds, made):6.1%}"
        times = f"{len(members)} x " if len(members) > 1 else ""
        name = name if times or name == _VECTORS_ROW else members[0].name
        lines.append(f"  {_share(sum(row.size for row in members), size):6.1%} {share}  {name:<{width}}  {times}{why}")
    return lines


def report_of(model: nn.Module) -> Report:
    """What the last `quantize_model` of this model reached, also where it is wrapped by now (DDP, torch.compile).

    Raises:
        ValueError: it is not quantized, or only a part of it is.
    """
    size = len(list(model.parameters()))
    for module in model.modules():
        if "_coverage" in vars(module) and len(list(module.parameters())) == size:
            return vars(module)["_coverage"].report(module)  # type: ignore[no-any-return]
    raise ValueError("this module has no report: quantize_model has not been called on it, or was undone")


def coverage_event(model: nn.Module) -> dict[str, Any]:
    """What a record says of a model's report: its `summary`, and which layers are looked at as they are, the first 100.

    Empty for a model without a report.
    """
    try:
        report = report_of(model)
    except ValueError:
        return {}
    wide = [name for name, layer in _layers(model).items() if not layer.policy.rounds]
    return report.summary() | {"wide": wide[:100]}


def read_otherwise(model: nn.Module) -> frozenset[str]:
    """The layers that are none, as the first batch has shown: what reads their weights is no product of matrices."""
    try:
        rows = report_of(model).skipped
    except ValueError:
        return frozenset()
    return frozenset(row.layer for row in rows if row.why == _OTHERWISE)


def forget_coverage(model: nn.Module) -> None:
    """Remove the report of a model, and its hooks."""
    coverage = vars(model).pop("_coverage", None)
    if coverage is not None:
        coverage.unhook(model)


@torch.compiler.assume_constant_result  # so that it is computed where a graph is made, and is nothing in the graph
def _refuse_graph() -> None:
    raise ValueError("strict: the products of a compiled model are not counted; run one batch before torch.compile")


@dataclass
class Coverage:
    """What is behind a model's report.

    Attributes:
        left_out: parameter, by `place_of` -> why it is of no layer that rounds, and whether the policy says so.
        strict: whether what is left out unnamed is an error.
        refusal: what `strict` has found in the first batch, and says of each further one.
    """

    left_out: Mapping[str, tuple[str, bool]]
    strict: bool
    counter: _Products | None = None
    products: tuple[Product, ...] | None = None
    was_read: frozenset[str] = field(default_factory=frozenset)
    in_others: frozenset[str] = field(default_factory=frozenset)
    refusal: str = ""

    def watch(self, model: nn.Module) -> None:
        """Count the products of the next forward pass that is no graph."""
        vars(model)["_coverage"] = self
        model.register_forward_pre_hook(self.begin)
        model.register_forward_hook(self.end, always_call=True)

    def unhook(self, model: nn.Module) -> None:
        """Take the hooks away."""
        for hooks in (model._forward_pre_hooks, model._forward_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                del hooks[key]
                model._forward_hooks_always_called.pop(key, None)

    def begin(self, model: nn.Module, args: Any) -> None:
        """Before a forward pass; the first that is no graph is counted."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # nothing more, for a graph to depend on
            if self.strict and self.products is None:
                _refuse_graph()
            return
        if self.refusal:
            raise ValueError(self.refusal)
        if (
            self.products is not None
            or self.counter is not None
            or torch._C._functorch.peek_interpreter_stack() is not None
        ):
            return
        if any(isinstance(each, torch._dynamo.OptimizedModule) or each._compiled_call_impl for each in model.modules()):
            if self.strict:
                _refuse_graph()
            return
        self.counter = _Products(_origins(model))
        for layer in _layers(model).values():
            layer.counter = self.counter
        self.counter.__enter__()

    def end(self, model: nn.Module, args: Any, output: Any) -> None:
        """After the forward pass that is counted."""
        if torch.compiler.is_compiling() or (counter := self.counter) is None:
            return
        counter.__exit__(None, None, None)
        self.counter = None
        for layer in _layers(model).values():
            vars(layer).pop("counter", None)
        if sys.exc_info()[0] is not None or not counter.found:
            return
        self.products, self.was_read, self.in_others = counter.result()
        if self.strict:
            self.check_after(model)

    def check_before(self) -> None:
        """Raise where a matrix is left out that the policy does not name, by what is known before any batch."""
        unnamed = {name: why for name, (why, named) in self.left_out.items() if not named}
        if missed := [(name, why) for name, why in unnamed.items() if why not in (_VECTOR, _BIAS)]:
            raise ValueError(_refusal("would be left as they are", missed))

    def check_after(self, model: nn.Module) -> None:
        """Raise where the first batch has read a matrix as it is, and the policy does not name it."""
        named = {name for name, (_, named) in self.left_out.items() if named}
        missed = [
            (name, f"in {each.operator}")
            for each in self.products or ()
            if not each.casts and named.isdisjoint(map(place_of, each.parameters))
            for name in each.parameters
        ]
        read = {name for name, _ in missed}
        missed += [
            (row.name, row.why)
            for row in self.report(model).skipped
            if row.name in self.in_others - read and row.layer and not _is_vector(row.shape)
        ]
        if missed:
            self.refusal = _refusal("were read as they are in the first batch", missed)
            raise ValueError(self.refusal)

    def report(self, model: nn.Module) -> Report:
        """The report as of now."""
        layers = _layers(model)
        readers: dict[int, list[str]] = {}
        for name, layer in layers.items():
            for parameter in parameters_of(layer):
                readers.setdefault(id(parameter), []).append(name)
        rows = []
        parameters = {plain_name(path, model): parameter for path, parameter in model.named_parameters()}
        of_layer = {(each, name) for name, own in parameters.items() for each in readers.get(id(own), ())}
        counted: dict[str, list[Product]] = {}
        for product in self.products or ():
            owned = (name for name in product.parameters if (product.layer, name) in of_layer)
            if (owner := next(owned, next(iter(product.parameters), None))) is not None:
                counted.setdefault(owner, []).append(product)
        for name, parameter in parameters.items():
            mine = [each for each in readers.get(id(parameter), ()) if layers[each].policy.rounds]
            ran, known = counted.get(name, ()), self.products is not None
            adds = sum(each.multiply_adds for each in ran) if known else None
            rounded = sum(each.multiply_adds for each in ran if each.casts) if known else None
            multiplied = any(name in each.parameters for each in self.products or ())
            unused = self.products is not None and mine and not any(each in self.was_read for each in mine)
            unknown = isinstance(parameter, nn.parameter.UninitializedParameter)
            shape = () if unknown else tuple(parameter.shape)
            state = "left out" if not mine or unused else "listed" if self.products is None else "quantized"
            if state != "left out":
                why = "; ".join(dict.fromkeys(_formats(layers[each]) for each in mine))
            elif mine:
                why = _OTHERWISE if name in self.in_others else "not read in the first batch"
                why = why if not multiplied else "read by code that its layer does not see"
            else:
                why, named = self.left_out.get(place_of(name)) or (why_left(name, parameter), False)
                if multiplied and not named and why.startswith(("a ", "no product")):
                    why = "a product reads it that its module's code does not show"
            size = 0 if unknown else parameter.numel()
            rows.append(Row(name, shape, size, mine[0] if mine else "", state, why, adds, rounded))
        unread = [row for row in rows if row.layer and row.state == "left out"]
        return Report(tuple(rows), self.products, tuple(row.layer for row in unread))


def place_of(name: str) -> str:
    """What a parameter stands for: the name of the one that parametrizations make of it, else its own."""
    return re.sub(r"(^|\.)parametrizations\.([^.]+)\..*", r"\1\2", name)


def name_for(place: str) -> str:
    """By which name a policy knows the layer that a parameter is of, or would be of."""
    return place.removesuffix(".weight").removesuffix("_weight")


def why_left(name: str, parameter: Tensor, why: str = NO_PRODUCT) -> str:
    """Why a parameter that no layer has is left out: as a vector or a bias, else as it was found."""
    is_bias = name.endswith("bias")
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        return _VECTOR if is_bias else why
    return _VECTOR if _is_vector(parameter.shape) else _BIAS if is_bias else why


def _is_vector(shape: Sequence[int]) -> bool:
    return sum(size > 1 for size in shape) < 2


def _refusal(what: str, missed: Iterable[tuple[str, str]]) -> str:
    """One line: which parameters, why, and how a policy names them."""
    told: dict[str, list[str]] = {}
    for name, why in dict.fromkeys((_pattern(name), why) for name, why in missed):
        told.setdefault(why, []).append(name)
    named_why = "; ".join(f"{', '.join(found)} ({why})" for why, found in told.items())
    names = dict.fromkeys(f'"{_pattern(name_for(place_of(name)))}"' for name, _ in missed)
    named = f'{{{", ".join(f"{name}: Policy()" for name in names)}, "*": policy}}'
    remedy = f"to leave them so, name them: {named}, or in a recipe wide=[{', '.join(names)}]"
    return f"strict: the policy does not name these parameters, which {what}: {named_why}; {remedy}"


_BLOCKS = {"mx": "MX", "mx_rceil": "MX", "nvfp4": "NVFP4"}
"""Kinds of scales that make a format with a name of its own."""


def _formats(layer: QuantizedLayer) -> str:
    """An operand a part: "weight E4M3, activation E4M3, grad_output MX E5M2"."""
    named = OPERANDS if not isinstance(layer, nn.Embedding) else ("weight",)
    rounded = [(name, layer.policy.operand(name)) for name in named]
    parts = [
        " ".join(filter(None, (name, _BLOCKS.get(operand.scaling.kind), operand.format.label)))
        for name, operand in rounded
        if operand.format is not FP32
    ]
    return f"{layer.layer_type}: {', '.join(parts)}"


def _layers(model: nn.Module) -> dict[str, Any]:
    """Every quantized layer by the name that it was given, attention's products among them."""
    return {each.layer: each for each in model.modules() if isinstance(each, QuantizedLayer)}


def parameters_of(layer: Any) -> list[Tensor]:
    """The parameters that make a layer's weight: itself, or what a parametrization makes it of."""
    if "owner" in vars(layer):
        found = layer.owner._parameters.get(layer.parameter)
        return [] if found is None else [found]
    own = layer._parameters
    if own.get("weight") is not None:
        return [own["weight"]]
    parts = [each for name, each in own.items() if name.startswith("weight") and each is not None]
    parametrized = getattr(layer, "parametrizations", {})
    return [*parts, *(parametrized["weight"].parameters() if "weight" in parametrized else ())]


def _origins(model: nn.Module) -> dict[str, Tensor]:
    return {plain_name(path, model): parameter for path, parameter in model.named_parameters()}


_COPIES = {
    aten.clone,
    aten._to_copy,
    aten.contiguous,
    aten.cat,
    aten.stack,
    aten.constant_pad_nd,
    aten.index,
    aten.index_select,
    aten.im2col,
    aten.t,
    aten.view,
    aten._unsafe_view,
    aten.reshape,
    aten.transpose,
    aten.permute,
    aten.expand,
    aten.detach,
    aten.alias,
    aten.unsqueeze,
    aten.squeeze,
    aten.select,
    aten.slice,
    aten.split,
    aten.unbind,
}
"""What leaves every value as it is."""
_LOOKUPS = {aten.embedding, aten._embedding_bag}
_WHOLE = {
    getattr(aten, name)
    for name in (
        "mkldnn_rnn_layer",
        "_cudnn_rnn",
        "miopen_rnn",
        "_transformer_encoder_layer_fwd",
        "_native_multi_head_attention",
    )
    if hasattr(aten, name)
}
"""Operators that multiply by several weights in one: rows of the input times elements of the matrices."""
_ATTENTION = {
    getattr(aten, f"_scaled_dot_product_{name}")
    for name in (
        "flash_attention_for_cpu",
        "flash_attention",
        "efficient_attention",
        "cudnn_attention",
        "fused_attention_overrideable",
    )
}
"""Both products of attention in one: query [..., L, E], key [..., S, E] and value [..., S, V]."""
_VECTORS = {aten.mv: 0, aten.addmv: 1}
_ADDED = {aten.addmm, aten.baddbmm, aten.addmv}


class _Products(TorchDispatchMode):
    """Counts products, and follows from which parameters and from which rounding their operands come."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.origins: dict[int, frozenset[str]] = {}
        self.rounded: dict[int, tuple[str, str]] = {}
        self.kept: list[StorageWeakRef] = []  # an address is not used again while somebody refers to it
        self.was_read: set[str] = set()
        self.in_others: set[str] = set()
        self.names: dict[str, tuple[str, ...]] = {}
        self.found: dict[tuple[str, tuple[str, ...], str, tuple[str, ...]], int] = {}
        self.counting = True
        for name, parameter in parameters.items():
            if not isinstance(parameter, nn.parameter.UninitializedParameter):
                self._keep(self.origins, parameter, self._origin(parameter) | {name})

    def read(self, layer: str, cast: str, values: Tensor, rounded: bool) -> None:
        """What a layer's products read."""
        if operand_of(cast) == "weight":
            self.was_read.add(layer)
        if rounded:
            self._keep(self.rounded, values, (layer, cast))

    def aside(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`function(x)`, none of whose products is the model's; what it gives is of the parameters that `x` is of."""
        self.counting = False
        try:
            found = function(x)
        finally:
            self.counting = True
        self._keep(self.origins, found, self._origin(x))
        return found

    def result(self) -> tuple[tuple[Product, ...], frozenset[str], frozenset[str]]:
        """The products, like ones together, the layers that were read, and the parameters that other operators read."""
        products = tuple(Product(*key, number) for key, number in self.found.items())
        return products, frozenset(self.was_read), frozenset(self.in_others)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        packet = func._overloadpacket
        counted = packet in flop_registry or packet in _ATTENTION
        if torch.is_inference_mode_enabled() and not counted:  # there, torch has not taken operators apart yet
            with self:
                if (out := func.decompose(*args, **given)) is not NotImplemented:
                    return out
        out = func(*args, **given)
        if packet in _ATTENTION:
            query, key, value = args[:3]
            pairs = query.shape[:-1].numel() * key.shape[-2]
            self._count(packet, pairs * (query.shape[-1] + value.shape[-1]), args[:3])
        elif counted:
            self._count(packet, flop_registry[packet](*args, **given, out_val=out) // 2, args)
        elif packet in _VECTORS:
            self._count(packet, args[_VECTORS[packet]].numel(), args)
        elif packet in _WHOLE:
            weights = [each for each in _tensors(args) if self._origin(each) and each.ndim > 1]
            rows = args[0].numel() // max(args[0].shape[-1], 1)
            self._count(packet, rows * sum(each.numel() for each in weights), args)
        elif packet not in _LOOKUPS:
            self._follow(packet, args, out)
        return out

    def _count(self, packet: Any, number: int, args: Any) -> None:
        if not self.counting:
            return
        operands = _tensors(args)[1 if packet in _ADDED else 0 :]
        marks = [mark for each in operands if (mark := self.rounded.get(_key(each))) is not None]
        origins: frozenset[str] = frozenset().union(
            *(self._origin(each) for each in operands if each.ndim > 1 or packet in _VECTORS)
        )
        weights = [layer for layer, cast in marks if operand_of(cast) == "weight"]
        layer = weights[0] if weights else marks[0][0] if marks else ""
        place = (packet.__name__, tuple(sorted(origins)), layer, tuple(sorted({cast for _, cast in marks})))
        self.found[place] = self.found.get(place, 0) + number

    def _follow(self, packet: Any, args: Any, out: Any) -> None:
        inputs = [each for each in _tensors(args) if each.is_floating_point() and each.ndim]
        origins = [self._origin(each) for each in inputs]
        if packet not in _COPIES and self.counting:
            self.in_others.update(*origins)
        marks = [self.rounded.get(_key(each)) for each in inputs]
        for each in _tensors((out,)) if any(origins) or any(marks) else ():
            if all(origins):
                self._keep(self.origins, each, frozenset().union(*origins))
            if marks and marks[0] is not None and packet in _COPIES and len({*marks}) == 1:
                self._keep(self.rounded, each, marks[0])

    def _origin(self, tensor: Tensor) -> frozenset[str]:
        return self.origins.get(_key(tensor), frozenset())

    def _keep(self, where: dict[int, Any], tensor: Tensor, what: Any) -> None:
        key = _key(tensor)
        if key:
            where[key] = what
            self.kept.append(StorageWeakRef(tensor.untyped_storage()))


def _key(tensor: Tensor) -> int:
    """What tensors share that are views of one memory; 0 where there is none."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return 0


def _tensors(values: Any) -> list[Tensor]:
    """The tensors among arguments, and in lists of them."""
    found = []
    for each in values:
        if isinstance(each, Tensor):
            found.append(each)
        elif isinstance(each, list | tuple):
            found += _tensors(each)
    return found
