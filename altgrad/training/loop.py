"""The training loop: one config and one seed in, one run record out.

What decides the numbers is the config, the seed and the data. Batches depend on seed and data alone, so every arm of a
comparison sees the same ones. A step is: batches, loss, gradients, clipping, update; a step whose loss or gradient norm
is not finite is recorded, explained and not applied, and `nan_patience` of them in a row end the run as failed, unless
`stability.shift_to` names a format to go on with. Evaluation reads the model as it would be deployed: quantized, on the
same validation text for every run, in batches of the training shape, since a scale is of a batch. A run that comes to
its end reads more of it once, where the config says so (`final_eval_characters`).

A run can stop between any two steps and go on from its checkpoint with the same bits: what a step leaves behind is in
the model, the optimizer, the batches, the delayed scales, the watches and `Progress`, and nowhere else.

A run that ends badly, by itself or by a signal or an exception, leaves why in its record (`altgrad.runs.diagnosis`).
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from altgrad.config import (
    OPERANDS,
    ExperimentConfig,
    TelemetryConfig,
    UsageError,
    one_line,
    operand_of,
    parse_config,
    product_of,
)
from altgrad.formats import FP32, FloatFormat, get_format
from altgrad.imports import code_fingerprint
from altgrad.models import GPT
from altgrad.nn import (
    Clock,
    QuantizedLayer,
    clock_of,
    coverage_event,
    policies_of,
    policy_of,
    quantize_model,
    quantized_layers,
)
from altgrad.nn.layers import native_lack
from altgrad.optim import CodeOptimizer, GridOptimizer, ManifoldAdamW, MuonBesideAdamW
from altgrad.ranks import local, nonfinite_in, norms_of, over_shards, whole
from altgrad.runs import Alarm, Failure, NothingToResume, RunWriter, read_run
from altgrad.runs.diagnosis import diagnose, symptoms
from altgrad.runs.failure_report import failure_report
from altgrad.runs.processor import describe_processor
from altgrad.runs.schema import PHASES
from altgrad.runs.tracking import Tracker
from altgrad.runs.writer import ending
from altgrad.scaling import amax_scale
from altgrad.telemetry import Look, RankWatch, Watch, first_nonfinite
from altgrad.training.checkpoint import REMEDY, Checkpoints
from altgrad.training.corpus import Corpus
from altgrad.training.data import load_corpus
from altgrad.training.distributed import Nobody, Processes, joined, told_of_loss
from altgrad.training.task import Task, TaskBatches, build_task, fingerprint
from altgrad.training.tokens import Tokens

OTHER_LEARNING_RATE = 3e-3
"""AdamW's rate of the parameters that the step rule leaves to AdamW, where the config names none and the rule's own
rate is in another unit (ulps, codes, or relative)."""

Loss = Callable[..., Tensor]
"""Of what a batch is: tokens and those that follow, or a task's own batch."""

EVENT_LIMITS = {"scale": 200, "nonfinite": 50, "warning": 50, "clip": 2}
"""How many events of a kind are recorded one by one; those beyond are counted."""


@dataclass(frozen=True)
class Result:
    """What `train` hands back: where the record lies and how the run ended (`summary` as in run.json)."""

    run_id: str
    path: Path
    status: str
    summary: dict[str, Any]
    failure: Failure | None = None


class Batches:
    """Training batches that depend on seed and data alone, and validation batches that depend on the data alone.

    Attributes:
        text: that there is one, in which tokens and characters are counted.
        held_out, final: where the windows of an evaluation begin, of one during the run and of the last, [windows].

    Of each batch it gives the `rows` that are asked for.
    """

    text = True

    def __init__(
        self, corpus: Corpus, config: ExperimentConfig, device: torch.device, rows: slice = slice(None)
    ) -> None:
        self._context, self._size, self._device = config.model.context, config.batch_size, device
        self._rows = rows
        for split in (corpus.train, corpus.validation):
            if split.size <= self._context + 1:
                raise UsageError(f"model.context: {self._context} is longer than the data; make it smaller")
        if len(corpus.lengths) != config.tokens:
            other = f"{config.tokens} tokens, and the data has {len(corpus.lengths)}"
            raise UsageError(f"tokenizer: {config.tokenizer} gives {other}; load the data with the config's tokenizer")
        self._corpus, self._train, self._validation = corpus, corpus.train, corpus.validation
        self._random = np.random.default_rng([config.seed, 1])
        last = corpus.validation.size - self._context - 1
        self.held_out = np.linspace(0, last, config.eval_batches * self._size).astype(np.int64)
        self.final = self.held_out
        if config.final_eval_characters:
            self.final = self._windows_of(config.final_eval_characters)

    @property
    def state(self) -> dict[str, Any]:
        """Where the training batches are: the generator's state."""
        return dict(self._random.bit_generator.state)

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        self._random.bit_generator.state = state

    def next(self) -> tuple[Tensor, Tensor]:
        """The next training batch: characters and the characters that follow them, int64 [batch, context]."""
        starts = self._random.integers(0, self._train.size - self._context, self._size)
        return self._cut(self._train, starts)

    def validation(self, starts: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
        """The validation batches of `held_out` or `final`."""
        for batch in starts.reshape(-1, self._size):
            yield self._cut(self._validation, batch)

    def evaluated(self, starts: NDArray[np.int64]) -> tuple[int, int]:
        """How many tokens the windows of `held_out` or `final` predict, and how many characters these are."""
        return starts.size * self._context, self._characters(starts)

    def _windows_of(self, characters: int) -> NDArray[np.int64]:
        """Windows that predict at least so many characters, evenly spaced, none of which overlap in what they predict.

        In whole batches, as few as it takes; where the held-out text is shorter, as many as fit, and at least one.
        """
        size, context = self._validation.size, self._context
        last, most = size - context - 1, max((size - 1) // (context * self._size), 1)

        def spaced(batches: int) -> NDArray[np.int64]:
            windows = batches * self._size
            return np.arange(windows) * last // max(windows - 1, 1)  # whole numbers: no rounding makes two overlap

        of_one = self._characters(self.held_out) / self.held_out.size
        batches = min(max(math.ceil(characters / (of_one * self._size)), 1), most)
        while batches < most and self._characters(spaced(batches)) < characters:
            batches += 1
        return spaced(batches)

    def _characters(self, starts: NDArray[np.int64]) -> int:
        """How many characters the windows predict."""
        targets = np.arange(1, self._context + 1)
        parts = np.array_split(starts, max(starts.size * self._context >> 20, 1))
        return sum(self._corpus.characters(self._validation[part[:, None] + targets].ravel()) for part in parts)

    def _cut(self, text: Tokens, starts: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        windows = text[starts[self._rows, None] + np.arange(self._context + 1)].astype(np.int64)
        both = torch.from_numpy(windows).to(self._device)
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()


def build_model(config: ExperimentConfig, processes: Processes | None = None) -> GPT:
    """The config's model on the CPU, initialized by its seed, with its layers quantized as the config says."""
    size = config.model
    model = GPT(
        config.tokens, layers=size.layers, dim=size.dim, heads=size.heads, context=size.context, seed=config.seed
    )
    _quantize(model, config, processes or Processes())
    layers = quantized_layers(model)
    if config.quantize.operands and not any(_named(config, layer) for layer in layers.values()):
        known, quantize = ", ".join(layers), config.quantize
        if quantize.patterns:
            found = f"quantize.patterns={list(quantize.patterns)} match no layer of quantize.layers"
        else:
            found = f"quantize.wide={list(quantize.wide)} leaves no layer of quantize.layers"
        raise UsageError(f"{found}; the model has {known}")
    if size.rescale:
        _rescale(model, size.rescale, config.seed)
    return model


def _quantize(model: nn.Module, config: ExperimentConfig, processes: Processes) -> None:
    how = {"seed": config.seed, "draw_version": config.draw_version, "group": processes.scales}
    quantize_model(model, policies_of(config), **how)
    clock_of(model).rank = processes.rank


@torch.no_grad()
def _rescale(model: GPT, limit: int, seed: int) -> None:
    """Multiply each layer's weight by a power of two of the seed, and divide its output by it: the same function."""
    generator = torch.Generator().manual_seed(seed)
    layers = quantized_layers(model).values()
    for layer, power in zip(layers, torch.randint(-limit, limit + 1, (len(layers),), generator=generator), strict=True):
        factor = 2.0 ** int(power)
        layer.weight.mul_(factor)
        layer.register_forward_hook(lambda _layer, _given, output, factor=factor: output / factor)


def _named(config: ExperimentConfig, layer: QuantizedLayer) -> bool:
    """Whether the config's formats are for this layer, if it has any."""
    named = policy_of(config).covers(layer.layer, layer.layer_type)
    return named and not any(fnmatchcase(layer.layer, pattern) for pattern in config.quantize.wide)


def build_optimizer(config: ExperimentConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The config's step rule over three groups: quantized matrices, other matrices, and vectors (no decay).

    The manifold and code rules, grid storage and relative rates apply to the first group only; the others get AdamW at
    `other_learning_rate`. A relative rate, and a manifold rule whose format is given, apply to the weights of the
    layers that the config names in an unquantized run too, which is their control, and so does Muon, which steps the
    matrices of attention and mlp, as its authors do. Weights on the grid are read by their layers at the scale that the
    optimizer keeps. A task has AdamW, without decay of vectors.
    """
    rule = config.optimizer
    if config.foreign is not None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        matrices, vectors = ([p for p in trained if (p.ndim > 1) == many] for many in (True, False))
        both = ({"params": matrices, "weight_decay": rule.weight_decay}, {"params": vectors, "weight_decay": 0.0})
        given = [group for group in both if group["params"]]
        return torch.optim.AdamW(given, lr=rule.learning_rate, betas=rule.betas, eps=rule.eps, foreach=True)
    muon = rule.step_rule == "muon"
    unquantized_too = rule.relative or rule.format is not None or muon
    layers = {
        name: layer
        for name, layer in quantized_layers(model).items()
        if (weight_format(layer) is not FP32 or (unquantized_too and _named(config, layer)))
        and not (muon and layer.layer_type in ("embedding", "head"))
    }
    ruled = [layer.weight for layer in layers.values()]
    known = {id(parameter) for parameter in ruled}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    real_units = rule.step_rule in ("adamw", "muon") and not rule.relative
    other_rate = rule.other_learning_rate or (rule.learning_rate if real_units else OTHER_LEARNING_RATE)
    groups: list[dict[str, Any]] = [
        {"params": ruled, "lr": rule.learning_rate, "weight_decay": rule.weight_decay},
        {"params": [p for p in rest if p.ndim > 1], "lr": other_rate, "weight_decay": rule.weight_decay},
        {"params": [p for p in rest if p.ndim == 1], "lr": other_rate, "weight_decay": 0.0},
    ]
    filled = [group for group in groups if group["params"]]
    adam: dict[str, Any] = {"betas": rule.betas, "eps": rule.eps}
    if muon:
        groups[0]["muon"] = True
        return MuonBesideAdamW(filled, **adam)
    if real_units and rule.storage == "master" and rule.moments == "fp32":
        return torch.optim.AdamW(filled, foreach=True, **adam)
    for group in groups[:2]:
        group["moments"] = rule.moments
    fmt, scaled = get_format(rule.format or config.quantize.weight), config.scaling.rule("weight").kind != "none"
    optimizer: GridOptimizer
    if rule.step_rule == "code":
        for group in groups[1:]:
            group["storage"] = "master"
        optimizer = CodeOptimizer(filled, fmt, rungs=rule.rungs, scaled=scaled, seed=config.seed, **adam)
    else:
        for group in groups[1:]:
            group |= {"precondition": None, "storage": "master", "relative": False}
        own = ("precondition", "floor", "max_stiffness", "stiffness", "relative", "storage", "rounding")
        adam |= {key: getattr(rule, key) for key in own} | {"draw_version": config.draw_version}
        power_of_two = config.scaling.rule("weight").power_of_two
        optimizer = ManifoldAdamW(filled, fmt, scaled=scaled, power_of_two=power_of_two, seed=config.seed, **adam)
    if rule.storage == "grid":
        for layer in layers.values():
            layer.grid_scale = optimizer.scale_of(layer.weight)
    return optimizer


def weight_format(layer: QuantizedLayer) -> FloatFormat:
    """The format of the layer's weight under its policy."""
    return layer.policy.operand("weight").format


def shifted(config: ExperimentConfig) -> ExperimentConfig:
    """`config` with `stability.shift_to` in place of every quantized operand's format.

    Raises:
        UsageError: the config with that format would not be a config.
    """
    to = config.stability.shift_to
    given = config.model_dump(mode="json")
    quantize = given["quantize"]
    quantize |= {name: to for name in OPERANDS if quantize[name] != "fp32"}
    for name in config.quantize.casts.given:
        product, operand = product_of(name), operand_of(name)
        (fmt, *how), (first, *first_how) = config.cast(name), config.cast(operand)
        if "fp32" not in (fmt, first) and how == first_how:  # the format was all that set it apart
            quantize["casts"][product][operand] = None
        elif fmt != "fp32":
            quantize["casts"][product][operand]["format"] = to
    if to == "fp32":  # nothing is rounded
        quantize["grad_output_rounding"] = {}
    given["stability"]["shift_to"] = None
    return parse_config(given, source=f"stability.shift_to={to}")


@torch.no_grad()
def clip_to_range(model: nn.Module) -> int:
    """Clip the gradient of each quantized weight, element by element, to the range that the weight itself has.

    The limit is max(format) * scale, the largest weight that the tensor could hold: with a current amax scale between
    1 and 2 times (power of two) the largest weight there is. A gradient element beyond it is an outlier by the
    tensor's own measure, and would rule the second moment of its weight, and the common norm, for many steps. The
    scale is the one the optimizer keeps for a weight on the grid, the fixed value of static scaling, 1 without scaling,
    and else that of the tensor's current amax. NaN and infinity are left for the norm to show: they are errors.

    Returns:
        How many elements were clipped.
    """
    clipped = 0
    for layer in quantized_layers(model).values():
        owner, fmt = layer.weight.grad, weight_format(layer)
        if owner is None or fmt is FP32:
            continue
        grad = local(owner)
        rule = layer.policy.operand("weight").scaling
        limit = torch.tensor(fmt.max, device=grad.device)
        if layer.grid_scale is not None:
            limit = limit * layer.grid_scale
        elif rule.kind == "static":
            limit = limit * rule.value
        elif rule.kind != "none":
            quotient = "nearest" if rule.quotient == "inverse" else rule.quotient
            limit = limit * amax_scale(whole(layer.weight), fmt, power_of_two=rule.power_of_two, quotient=quotient)
        outside = (grad.abs() > limit) & torch.isfinite(grad)
        clipped += int(over_shards(outside.sum(), owner, "sum"))
        grad.copy_(torch.where(outside, grad.sign() * limit, grad))
    return clipped


def rate_factor(config: ExperimentConfig, step: int) -> float:
    """What every learning rate is multiplied by at `step` (from 1): linear warm-up, then cosine or constant.

    Beyond `schedule_steps` it is the cosine's last.
    """
    if step < config.warmup_steps:
        return step / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    end = config.schedule_steps or config.max_steps
    passed = min((step - config.warmup_steps) / max(end - config.warmup_steps, 1), 1.0)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * passed))


def train(
    config: ExperimentConfig,
    out: Path,
    *,
    device: str = "cpu",
    corpus: Corpus | None = None,
    task: Callable[[int], Task] | None = None,
    progress: bool = True,
    resume: bool = False,
    continued: Path | None = None,
) -> Result:
    """Train the config's model and write its record into `out`.

    Args:
        config: the experiment; its seed decides initialization and batches.
        out: folder of the records.
        device: "cpu" or "cuda".
        corpus: the data; by default the data set that the config names.
        task: a model and data of one's own in place of the built-in model and a text (`altgrad.training.task`); the
            config is then one of `altgrad.analysis.question.own_config`.
        progress: show a progress bar on stderr.
        resume: go on with the run's record from its newest checkpoint, bit for bit; from the beginning, with a notice,
            where there is none.
        continued: folder of a finished run, of which this one, of `continued_config`, is to have the first steps.

    Where torchrun has started several processes they share the run as `config.parallel` says; each calls this.

    Returns:
        The finished or failed run. SIGTERM and Ctrl-C leave an ``interrupted`` record and go on as SystemExit and
        KeyboardInterrupt; where the config asks for checkpoints the step is finished first, and a last checkpoint
        written. Any other exception leaves a ``crashed`` record and goes on.

    Raises:
        UsageError: the run is already recorded, the data or the device are missing, `out` cannot be written (any
            more), no checkpoint can be used, the model or its batches do not fit the data or the memory, or processes
            do not belong together (`altgrad.training.distributed`).
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this torch sees no GPU; use --device cpu")
    if config.stability.shift_to is not None:
        shifted(config)
    started = {"code": code_fingerprint("run"), "torch": torch.__version__, "continued": str(continued)}
    started |= {"--out": str(out.resolve()), "--resume": resume, "--device": device}
    if task is None:
        corpus = corpus or load_corpus(config.data, config.tokenizer, config.vocabulary)
        started["data"] = corpus.fingerprint["sha256"]
    elif config.parallel == "fsdp2":
        raise UsageError("parallel=fsdp2: of a model of one's own nothing says which parts to shard; use ddp")
    with joined(config, device, started) as processes:
        return _train(config, out, device, corpus, task, progress, resume, continued, processes)


def _train(
    config: ExperimentConfig,
    out: Path,
    device: str,
    corpus: Corpus | None,
    task: Callable[[int], Task] | None,
    progress: bool,
    resume: bool,
    continued: Path | None,
    processes: Processes,
) -> Result:
    with _enough_memory(config):
        model, loss, batches, data = prepared(config, device, corpus, task, processes)
    with _enough_memory(config), _deterministic(), _room_on_the_disk(out):

        def open_record() -> tuple[RunWriter, Any]:
            writer, checkpoint = _open_record(config, out, data, device, resume, continued, processes)
            return writer, (str(writer.path), checkpoint)

        opened, (folder, checkpoint) = processes.first(open_record)
        writer: Any = opened or Nobody(Path(folder))
        gentle = config.checkpoint.every > 0
        with _stoppable(gentle, processes) as stop_if_asked, writer:
            tracker: Any = writer if opened is None else Tracker.start(config, writer.run, writer.path)
            if tracker.url:
                writer.set_wandb_url(tracker.url)
            status, summary = "crashed", {}
            try:
                with told_of_loss():
                    checkpoints = _checkpoints(config, data, writer.path, processes)
                    kept = checkpoints if config.checkpoint.every else None
                    shown = progress and opened is not None
                    run = _Run(config, model, loss, batches, writer, tracker, shown, kept, stop_if_asked, processes)
                    if checkpoint is not None:
                        if first_part := Path(checkpoint).parents[1] == continued:
                            checkpoints = _checkpoints(read_run(continued).config, data, continued, processes)
                        state = checkpoints.load(Path(checkpoint), run.owners)
                        if first_part:
                            state["progress"]["final_val_loss"] = math.nan
                        _load(run, state)
                    result = run.run()
                status, summary = result.status, result.summary
            except BaseException as error:
                status = ending(error)[0]
                if opened is not None:
                    _explain(writer, error=error)
                raise
            finally:
                tracker.finish(status, summary)
    return result


def prepared(
    config: ExperimentConfig,
    device: str = "cpu",
    corpus: Corpus | None = None,
    task: Callable[[int], Task] | None = None,
    processes: Processes | None = None,
) -> tuple[nn.Module, Loss, Batches | TaskBatches, dict[str, Any]]:
    """The quantized model on its device, its loss on what `next` of its batches gives, and what identifies the data.

    Raises:
        UsageError: the device is missing, the model or its batches do not fit the data, or the policies the model.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this torch sees no GPU; use --device cpu")
    if config.quantize.compute == "native" and (lack := native_lack(torch.device(device))):
        raise UsageError(f"--device {device}: {lack}")
    if task is None:
        corpus = corpus or load_corpus(config.data, config.tokenizer, config.vocabulary)
        rows = processes.rows(config.batch_size) if processes else slice(None)
        batches = Batches(corpus, config, torch.device(device), rows)
        model = build_model(config, processes).to(device)
        return model, model.loss, batches, corpus.fingerprint
    own = build_task(task, config.seed)
    own.model.to(device)
    try:
        _quantize(own.model, config, processes or Processes())
    except ValueError as error:
        raise UsageError(f"--model: {one_line(error)}") from None
    data = fingerprint(own, str((config.foreign or {})["task"]))
    if processes is not None:
        processes.agree({"data": data["sha256"]})
    return own.model, partial(own.loss, own.model), TaskBatches(own, torch.device(device), processes), data


def _explain(
    writer: RunWriter, failure: Failure | None = None, summary: Any = None, error: BaseException | None = None
) -> Failure | None:
    """Leave why the run ends badly with its writer; what goes wrong with that must not hide it.

    Args:
        writer: of the record so far, which is what the explanation is made from.
        failure: what is known of a run that failed by itself.
        summary: for the record.
        error: what ended the run otherwise.
    """
    with contextlib.suppress(Exception):  # a full disk, a record damaged from outside
        record = read_run(writer.path)
        status, message = ("failed", None) if error is None else ending(error)
        seen = {"status": status, "message": message, "summary": summary or {}}
        record = replace(record, run=record.run | seen)
        failure = diagnose(record, failure)
        if failure is not None:
            writer.explain(failure, failure_report(record, failure))
    return failure


def _load(run: _Run, state: dict[str, Any]) -> None:
    try:
        run.load_state(state)
    except torch.OutOfMemoryError:
        raise
    except (LookupError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        misfit = f"the checkpoint of step {state['step']} does not fit this run ({one_line(error)[:160]})"
        raise UsageError(f"{run.writer.run_id}: {misfit}; {REMEDY}") from error


def _checkpoints(config: ExperimentConfig, data: Mapping[str, Any], folder: Path, processes: Processes) -> Checkpoints:
    return Checkpoints(folder, config, data["sha256"], config.checkpoint.keep, processes)


def continued_config(run: Path, steps: int) -> ExperimentConfig:
    """The config of a finished run that goes on until `steps`.

    It is the run's, longer. A cosine has ended with the run: its config says so (`schedule_steps`), the further steps
    have the last rate, and the whole equals a run of that config from the beginning, bit for bit. Only the evaluation
    at the former end is one more where `eval_every` does not divide its steps, and for `final_eval_characters`.

    Raises:
        UsageError: it has no readable record, did not finish, ended early, is another loop's, or has as many steps.
    """
    record = read_run(run)
    config, summary = record.config, record.run.get("summary") or {}
    if config.foreign is not None:
        raise UsageError(f"{run}: the run of another loop or model cannot be gone on with here")
    if record.status != "finished":
        remedy = "altgrad train --resume goes on with one that was interrupted"
        raise UsageError(f"{run}: the run is {record.status}, and only a finished one can become longer; {remedy}")
    if "stopped_early" in summary:
        raise UsageError(f"{run}: it ended early, by stability.patience, and would end at once; train it without")
    if steps <= config.max_steps:
        raise UsageError(f"--steps {steps}: the run has {config.max_steps} steps; give more")
    longer = config.model_dump(mode="json") | {"max_steps": steps}
    if config.schedule == "cosine":
        longer["schedule_steps"] = config.schedule_steps or config.max_steps
    return parse_config(longer, source=f"{run}/run.json")


def _open_record(
    config: ExperimentConfig,
    out: Path,
    data: Mapping[str, Any],
    device: str,
    resume: bool,
    continued: Path | None,
    processes: Processes,
) -> tuple[RunWriter, str | None]:
    """A new record, or the one that is there or a finished run's as its first part; the checkpoint to go on from."""
    chosen: str | None = None

    def find(folder: Path, config: ExperimentConfig = config) -> tuple[int, float]:
        nonlocal chosen
        checkpoints = _checkpoints(config, data, folder, processes)
        state, chosen = checkpoints.newest(_notice), str(checkpoints.chosen)
        try:
            step, seconds = state["step"], state["seconds"]
            sound = type(step) is int and step == state["progress"]["step"] > 0 and isinstance(seconds, int | float)
        except (LookupError, TypeError):
            sound = False
        if not sound:
            raise UsageError(f"{folder.name}: its newest checkpoint is not one of a run; {REMEDY}")
        if folder != continued:
            checkpoints.forget_after(step)
        if state.get("code") != code_fingerprint("run"):
            _notice("the checkpoint was written by other code: the run may differ from one without interruption")
        if (before := state.get("processes", processes.count)) != processes.count:
            other = f"another number of processes than wrote the checkpoint, {processes.count} for {before}"
            _notice(f"{other}: they add in another order, so that last bits may differ")
        return step, seconds

    environment = describe_environment(device)
    if processes.group is not None:
        environment["processes"] = processes.count
    about: dict[str, Any] = {"data_fingerprint": data, "environment": environment}
    if resume:
        try:
            return RunWriter.resume(out, config, find=find, **about), chosen
        except NothingToResume as nothing:
            _notice(f"{nothing}; starting from the {'finished run' if continued else 'beginning'}")
    if continued is None:
        return RunWriter.create(out, config, **about), None
    try:
        step, seconds = find(continued, read_run(continued).config)
    except NothingToResume as nothing:
        raise UsageError(f"{nothing}: a run goes on from its last one; train it again with checkpoint.every") from None
    writer = RunWriter.create(out, config, **about)
    writer.adopt(continued, step, seconds)
    return writer, chosen


def describe_environment(device: str) -> dict[str, Any]:
    """Versions, device, processor and threads: what another machine needs to know; no names of machines or people."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": platform.system(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        **describe_processor(),
    }


@dataclass
class Progress:
    """What the steps so far leave behind beside tensors and generators. All of it is in a checkpoint, as JSON."""

    step: int = 0
    first_loss: float = -math.inf
    last_loss: float = math.nan
    last_norm: float = math.nan
    val_loss: float = math.nan
    final_val_loss: float = math.nan
    """Of the last evaluation, where it reads more than the others."""
    best_loss: float = math.inf
    best_step: int = 0
    evaluations_since_best: int = 0
    recent: list[float] = field(default_factory=list)
    """The last `nan_patience` losses."""
    nonfinite: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))
    """How many steps were not finite, by the phase in which that was seen first."""
    bad_in_a_row: int = 0
    first_bad: tuple[int, str, str] | None = None
    """Step, tensor and phase of the first step of the current row of bad steps."""
    shifted: bool = False
    clipped: int = 0
    clipped_steps: dict[str, int] = field(default_factory=lambda: {"norm": 0, "range": 0})
    events: dict[str, int] = field(default_factory=dict)
    """How many events there were of each bounded kind, recorded or not."""
    warned: list[list[str]] = field(default_factory=list)
    """The symptoms that have been warned of: kind and tensor."""
    training_seconds: float = 0.0


class _Run:
    """One run under way."""

    def __init__(
        self,
        config: ExperimentConfig,
        model: nn.Module,
        loss: Loss,
        batches: Batches | TaskBatches,
        writer: RunWriter,
        tracker: Tracker,
        progress: bool,
        checkpoints: Checkpoints | None,
        stop_if_asked: Callable[[Callable[[], None]], None],
        processes: Processes,
    ) -> None:
        self.config, self.writer, self.tracker, self.progress = config, writer, tracker, progress
        self.model, self.batches, self.checkpoints = model, batches, checkpoints
        self.stop_if_asked, self.processes = stop_if_asked, processes
        self.eager = self.loss = loss
        processes.place(model, loss, next(model.parameters()).device.type)
        self.optimizer = build_optimizer(config, model)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.parameters = dict(model.named_parameters())
        self.names = {id(parameter): name for name, parameter in self.parameters.items()}
        self.watch = Watch(model) if config.telemetry.watch else None
        self.rank_watch = RankWatch()
        self.started = time.monotonic()
        self.at = Progress()
        self.batches_before = batches.state

    @property
    def clock(self) -> Clock:
        """The clock of the model's layers."""
        return clock_of(self.model)

    def run(self) -> Result:
        """Every step that is left, then the verdict."""
        config, at = self.config, self.at
        if config.compile:
            self._compile()
        with _progress_bar(self.progress, self.writer.run_id, config.max_steps, at.step) as advance:
            while at.step < config.max_steps and not self._patience_is_over():
                self.stop_if_asked(self._save_step)
                at.step += 1
                failure = self._step_and_its_row()
                advance(at.last_loss, at.val_loss)
                if failure:
                    return self._end(failure)
                if self.checkpoints and at.step % config.checkpoint.every == 0:
                    self._save_step()
            self.stop_if_asked(self._save_step)
        return self._end(self._failure_at_the_end())

    def evaluate(self, final: bool = False) -> float:
        """Mean loss over validation batches, in nats per character, with every operand quantized as in training."""
        self.clock.part = -1
        starts = self.batches.final if final else self.batches.held_out
        with torch.no_grad():
            losses = [self.eager(*batch) for batch in self.batches.validation(starts)]
        tokens, characters = self.batches.evaluated(starts)
        return sum(self.processes.mean(losses)) / len(losses) * (tokens / characters)

    def state(self) -> dict[str, Any]:
        """Everything that decides how the run goes on, for `load_state`; between two steps."""
        return {
            "step": self.at.step,
            "seconds": time.monotonic() - self.started,
            "code": code_fingerprint("run"),
            "progress": asdict(self.at),
            "batches": self.batches.state,
            "batches_before": self.batches_before,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "watch": self.watch.state if self.watch else None,
            "rank_watch": self.rank_watch.state,
        } | ({"processes": self.processes.count} if self.processes.kind else {})

    @property
    def owners(self) -> dict[str, Tensor]:
        """By how the names of a checkpoint's tensors begin: the parameters that they are, or are of."""
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        states = {f"optimizer.state.{number}.": each for number, each in enumerate(parameters)}
        return {f"model.{name}": each for name, each in self.parameters.items()} | states

    def load_state(self, state: dict[str, Any]) -> None:
        """Be the run that `state` was taken of."""
        self.at = Progress(**state["progress"])
        self.started = time.monotonic() - state["seconds"]
        self.batches.state, self.batches_before = state["batches"], state["batches_before"]
        if self.at.shifted:
            self._change_format()
        former = {  # checkpoints from before histories were buffers have them beside the model
            f"{name}.delayed.{operand}.history": state["delayed"][name][operand]["history"]
            for name, layer in quantized_layers(self.model).items()
            for operand in (layer.delayed if "delayed" in state else ())
        }
        self.model.load_state_dict(state["model"] | former)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.watch:
            self.watch.state = state["watch"]
        self.rank_watch.state = state["rank_watch"]

    def _step_and_its_row(self) -> Failure | None:
        """One step, its evaluation where one is due, its row of the history and the checkpoints it gives rise to."""
        config, at = self.config, self.at
        begun = time.monotonic()
        row = self._train_step()
        at.training_seconds += time.monotonic() - begun
        if at.bad_in_a_row and self.checkpoints and not self.checkpoints.has("anomaly"):
            self._save_as("anomaly")
        failure = self._failure_under_way()
        due = at.step % config.eval_every == 0 or at.step == config.max_steps
        improved = False
        if due or failure:
            at.val_loss = self.evaluate()
            row["val_loss"] = at.val_loss
            if self.batches.text:
                row["perplexity"] = self._perplexity(at.val_loss, self.batches.held_out)
            improved = at.val_loss < at.best_loss
            at.evaluations_since_best = 0 if improved else at.evaluations_since_best + 1
            if improved:
                at.best_loss, at.best_step = at.val_loss, at.step
            ends = at.step == config.max_steps or self._patience_is_over()
            if ends and not failure and config.final_eval_characters:
                row["final_val_loss"] = at.final_val_loss = self.evaluate(final=True)
        if due or failure or at.step == 1 or at.step % config.log_every == 0:
            row["seconds"] = round(time.monotonic() - self.started, 4)
            self.writer.log(at.step, **row)
            self.tracker.log({"step": at.step, **row})
        if improved and not failure and self.checkpoints:
            self._save_as("best")
        if due and self._patience_is_over() and at.step < config.max_steps:
            self.writer.event("early_stop", at.step, best_step=at.best_step)
        return failure

    def _per_token(self, loss: float, starts: Any) -> float:
        """A loss per character over such windows in nats per token."""
        tokens, characters = self.batches.evaluated(starts)
        return loss * (characters / tokens)

    def _perplexity(self, loss: float, starts: Any) -> float:
        return math.exp(min(self._per_token(loss, starts), 700.0))

    def _train_step(self) -> dict[str, float]:
        config, model, at, clock = self.config, self.model, self.at, self.clock
        factor = rate_factor(config, at.step)
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * factor
        clock.step = at.step
        look = None
        if config.layers_every > 0 and (at.step == 1 or at.step % config.layers_every == 0):
            number = 0 if at.step == 1 else at.step // config.layers_every
            look = Look(model, at.step, config.telemetry, number=number, group=self.processes.group)
        loss_of = self.processes.compute(self.eager if look else self.loss)
        self.batches_before = self.batches.state
        if self.watch:
            self._warn(self.watch.before())
        batches: list[tuple[Any, ...]] = []
        losses, parts = [], config.accumulate * self.processes.count
        with look.operands() if look else contextlib.nullcontext():
            self.optimizer.zero_grad(set_to_none=True)
            for part in range(config.accumulate):
                clock.part = part
                batches.append(self.batches.next())
                with self.processes.exchanging(last=part == config.accumulate - 1):
                    loss = loss_of(*batches[-1])
                    (loss / parts if parts > 1 else loss).backward()  # type: ignore[no-untyped-call]
                losses.append(loss.detach())
        if look:
            look.gradients([partial(self.eager, *batch) for batch in batches])
        at.last_loss = sum(self.processes.mean(losses)) / len(losses)
        if at.step == 1:
            at.first_loss = at.last_loss
            if config.foreign is not None:
                self.writer.event("coverage", at.step, **coverage_event(model))
        row: dict[str, float] = {"tokens": at.step * self._tokens_a_step()} if self.batches.text else {}
        if config.stability.clip == "range_aware":
            row["clipped"] = clip_to_range(model)
        at.last_norm = self._clip_norm()
        at.recent = [*at.recent, at.last_loss][-config.nan_patience :]
        if math.isfinite(at.last_loss) and math.isfinite(at.last_norm):
            at.bad_in_a_row, at.first_bad = 0, None
            self._note_clips(row)
            with look.update(self.optimizer) if look else contextlib.nullcontext():
                self.optimizer.step()
            if self.watch:
                self._warn(self.watch.after(at.step))
            self._note_moved_scales()
            if look:
                self._note_symptoms(look)
        else:
            self._note_bad_step(batches, seen=look is not None)
        if look:
            self.writer.log_layers(look.rows)
        return row | {"loss": at.last_loss, "lr": self.base_rates[0] * factor, "grad_norm": at.last_norm}

    def _clip_norm(self) -> float:
        """`torch.nn.utils.clip_grad_norm_`, whose norms of the single gradients are watched; the norm before."""
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        norms = norms_of(list(gradients.values()))
        total = torch.linalg.vector_norm(norms)
        if self.watch:
            self._warn(self.watch.gradients(gradients, list(norms), finite_loss=math.isfinite(self.at.last_loss)))
        factor = (self._norm_limit / (total + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([local(gradient) for gradient in gradients.values()], factor)
        return float(total)

    @property
    def _norm_limit(self) -> float:
        return math.inf if self.config.clip_norm is None else self.config.clip_norm

    def _note_clips(self, row: dict[str, float]) -> None:
        """Count a step's clips by kind; the first of each kind is an event."""
        at = self.at
        at.clipped += int(row.get("clipped", 0))
        acted = {"range": row.get("clipped", 0) > 0, "norm": at.last_norm + 1e-6 > self._norm_limit}
        for limit, did in acted.items():
            at.clipped_steps[limit] += did
            if did and at.clipped_steps[limit] == 1:
                self._event("clip", limit=limit, grad_norm=at.last_norm)

    def _event(self, kind: str, **detail: Any) -> None:
        """Record an event of a bounded kind, or count it."""
        count = self.at.events[kind] = self.at.events.get(kind, 0) + 1
        if count <= EVENT_LIMITS[kind]:
            self.writer.event(kind, self.at.step, **detail)

    def _warn(self, alarms: Iterable[Alarm]) -> None:
        """Record warnings, and send them where the run is mirrored."""
        for alarm in alarms:
            self._event("warning", **alarm._asdict())
            self.tracker.alert(alarm.what, alarm.tensor, f"step {self.at.step}, {alarm.phase}: {alarm.message}")

    def _note_symptoms(self, look: Look) -> None:
        """Warn of what a look shows: of a symptom once per layer, operand and kind."""
        alarms = [alarm for alarm in symptoms(look.rows) if [alarm.what, alarm.tensor] not in self.at.warned]
        self.at.warned += [[alarm.what, alarm.tensor] for alarm in alarms]
        self._warn([*alarms, *self.rank_watch.update(look.rows)])

    def _tokens_a_step(self) -> int:
        return self.config.batch_size * self.config.accumulate * self.config.model.context

    def _note_moved_scales(self) -> None:
        """The moves of the scales of weights on the grid, recorded one by one up to a bound, then counted."""
        for parameter, old, new in self.optimizer.pop_events() if isinstance(self.optimizer, GridOptimizer) else ():
            layer = self.names[id(parameter)].removesuffix(".weight")
            self._event("scale", layer=layer, old=old, new=new)

    def _note_bad_step(self, batches: list[tuple[Any, ...]], seen: bool) -> None:
        """Find out where a step was not finite first; the first of a row of such steps is an event.

        Its operands go into the per-layer table, unless they were `seen` there by a look at the step.
        """
        at = self.at
        at.bad_in_a_row += 1
        tensor, phase = self._first_nonfinite(batches)
        at.nonfinite[phase] += 1
        if at.first_bad is not None:
            return
        at.first_bad = (at.step, tensor, phase)
        self._event("nonfinite", tensor=tensor, phase=phase)
        if self.config.telemetry.operands and not seen:
            counted = TelemetryConfig(geometry=False, rank_every=0, codes_every=0)
            look = Look(self.model, at.step, counted, group=self.processes.group)
            with look.operands():
                for loss in self._losses_again(batches):
                    loss().backward()  # type: ignore[no-untyped-call]
            self.writer.log_layers(look.rows)

    def _first_nonfinite(self, batches: list[tuple[Any, ...]]) -> tuple[str, str]:
        """Tensor and phase, by computing the step again; of a fault that does not come back, by what was watched."""
        found = self.processes.found(first_nonfinite(self.model, self._losses_again(batches)))
        if found is not None:
            tensor, phase = found
            return tensor, (self.watch and self.watch.broken.get(tensor)) or phase
        if not math.isfinite(self.at.last_loss):
            return "loss", "forward"
        return (self.watch and self.watch.bad_gradient) or "gradient norm", "backward"

    def _losses_again(self, batches: list[tuple[Any, ...]]) -> list[Callable[[], Tensor]]:
        """The step's losses, with the draws and the delayed scales of the step, whose histories stay as they are."""

        def again(part: int, *batch: Any) -> Tensor:
            self.clock.part = part
            return self.eager(*batch)

        return [partial(again, part, *batch) for part, batch in enumerate(batches)]

    def _patience_is_over(self) -> bool:
        patience = self.config.stability.patience
        return patience > 0 and self.at.evaluations_since_best >= patience

    def _save_step(self) -> None:
        if self.checkpoints and self.at.step and not self.checkpoints.has(f"step-{self.at.step}"):
            self.writer.sync()
            self.checkpoints.save(self.at.step, self.state())

    def _save_as(self, name: str) -> None:
        assert self.checkpoints is not None
        self.writer.sync()
        self.checkpoints.save_as(name, self.state())

    def _compile(self) -> None:
        """torch.compile for the steps that nobody observes, tried on a batch; where it fails they stay eager.

        The trial leaves no trace in the histories of delayed scales.
        """
        rows = self.config.batch_size // self.processes.count
        token = torch.zeros(rows, self.config.model.context, dtype=torch.int64)
        token = token.to(next(self.model.parameters()).device)
        histories = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self.clock.step, self.clock.part = self.at.step, 0
        try:
            compiled = torch.compile(self.eager)
            compiled(token, token).backward()
            found = None
        except Exception as error:  # a missing compiler has many faces
            found = type(error).__name__, one_line(error)[:160]
        if failed := self.processes.found(found):
            kind, reason = failed
            _notice(f"compile: torch.compile does not work here ({reason or kind}); the run goes on without it")
            self.writer.event("eager", self.at.step, reason=kind)
        self.loss = self.eager if failed else compiled
        self.optimizer.zero_grad(set_to_none=True)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(histories[name])

    def _may_shift(self) -> bool:
        """Whether there is a format to shift to, not used yet, steps to use it for, and weights worth going on with."""
        config, at = self.config, self.at
        wanted = config.stability.shift_to is not None and config.quantize.operands and not at.shifted
        if at.step == config.max_steps or not wanted:
            return False
        return not any(nonfinite_in(parameter) for parameter in self.model.parameters())

    def _shift(self) -> None:
        """Go on in the wider format. Bad steps are not applied: weights and moments are those of the last good step."""
        at, quantize = self.at, self.config.quantize
        formats = dict.fromkeys(fmt for name in quantize.operands for fmt in quantize.formats(name) if fmt != "fp32")
        detail = {"from": "/".join(formats), "to": self.config.stability.shift_to}
        self._change_format()
        at.shifted, at.bad_in_a_row, at.first_bad, at.recent = True, 0, None, []
        self.writer.event("shift", at.step, **detail)

    def _change_format(self) -> None:
        config = shifted(self.config)
        _quantize(self.model, config, self.processes)
        before = self.optimizer
        if isinstance(before, GridOptimizer):  # it knows the format: another one with the same moments
            self.optimizer = build_optimizer(config, self.model)
            for parameter, state in before.state.items():
                self.optimizer.state[parameter] |= {key: state[key] for key in state if key != "scale"}
        if self.config.compile:
            self._compile()

    def _failure_under_way(self) -> Failure | None:
        patience, at = self.config.nan_patience, self.at
        if at.bad_in_a_row >= patience and self._may_shift():
            self._shift()
        if at.bad_in_a_row >= patience:
            return self._nan_failure(f"loss or gradient not finite for {patience} steps", *self._early())
        limit = self.config.diverged
        if not self.batches.text:  # a loss that began at or below 0 has no such limit
            limit = 1.5 * at.first_loss if at.first_loss > 0 else math.inf
        diverged = len(at.recent) == patience and min(at.recent) > limit
        if diverged and at.step > self.config.warmup_steps:
            what = "that of guessing at random" if self.batches.text else "the first"
            message = f"loss above {limit:.2f} (1.5 times {what}) for {patience} steps"
            return self._divergence(at.step - patience + 1, message)
        return None

    def _failure_at_the_end(self) -> Failure | None:
        val_loss = self._per_token(self.at.val_loss, self.batches.held_out)
        if self.at.first_bad is not None:
            return self._nan_failure("the last steps' loss or gradient is not finite")
        if not math.isfinite(val_loss):
            losses = [partial(self.eager, *batch) for batch in self.batches.validation(self.batches.held_out)]
            tensor, phase = self.processes.found(first_nonfinite(self.model, losses)) or ("loss", "forward")
            return Failure(("nan_loss",), self.at.step, tensor, phase, "the final validation loss is not finite")
        beginning = max(self.config.uniform_loss, self.at.first_loss) if self.batches.text else self.at.first_loss
        if val_loss > 1.05 * beginning > 0:
            message = f"final validation loss {val_loss:.3f} is above the loss {beginning:.3f} that training began with"
            return self._divergence(self.at.step, message)
        return None

    def _divergence(self, step: int, message: str) -> Failure:
        """The failure of a loss that went too high, named after the matrix that grew most of late."""
        failure = Failure(("divergence", *self._early()), step, message=message)
        if self.watch is None or self.watch.grown is None:
            return failure
        tensor, factor, since = self.watch.grown
        cause = f"its norm grew most, {factor:.3g} times from step {since} to step {self.at.step}"
        return replace(failure, tensor=tensor, phase="optimizer", cause=cause)

    def _nan_failure(self, message: str, *kinds: str) -> Failure:
        assert self.at.first_bad is not None
        step, tensor, phase = self.at.first_bad
        return Failure(("nan_loss", *kinds), step, tensor, phase, f"{message}; seen first in {tensor}")

    def _early(self) -> tuple[str, ...]:
        return ("early_stop",) if self.at.step < self.config.max_steps else ()

    def _end(self, failure: Failure | None) -> Result:
        at = self.at
        final = not math.isnan(at.final_val_loss)
        val_loss, read = (at.final_val_loss, self.batches.final) if final else (at.val_loss, self.batches.held_out)
        counted: dict[str, Any] = {}
        if self.batches.text:
            tokens = at.step * self._tokens_a_step()
            counted = {
                "perplexity": self._perplexity(val_loss, read),
                **dict(zip(("evaluated_tokens", "evaluated_characters"), self.batches.evaluated(read), strict=True)),
                "tokens": tokens,
                "tokens_per_second": round(tokens / max(at.training_seconds, 1e-9), 1),
            }
        summary = {
            "val_loss": val_loss,
            **counted,
            "loss": at.last_loss,
            "steps": at.step,
            "nonfinite_steps": sum(at.nonfinite.values()),
            **{f"nonfinite_{phase}": count for phase, count in at.nonfinite.items()},
            "warnings": at.events.get("warning", 0),
            "norm_clipped_steps": at.clipped_steps["norm"],
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
        }
        if self.config.stability.clip == "range_aware":
            summary |= {"clipped": at.clipped, "range_clipped_steps": at.clipped_steps["range"]}
        if self.config.tokenizer != "characters":
            summary["val_loss_per_token"] = self._per_token(val_loss, read)
        if moves := at.events.get("scale"):
            summary["scale_moves"] = moves
        if not failure and at.step < self.config.max_steps:
            summary |= {"stopped_early": at.step, "best_val_loss": at.best_loss, "best_step": at.best_step}
        if failure:
            failure = _explain(self.writer, failure, summary) or failure
            self.writer.fail(failure, summary)
        else:
            self._save_step()
            self.writer.finish(summary)
        return Result(self.writer.run_id, self.writer.path, "failed" if failure else "finished", summary, failure)


@contextlib.contextmanager
def _progress_bar(shown: bool, title: str, steps: int, done: int) -> Iterator[Any]:
    """Yields `advance(loss, val_loss)`."""
    if not shown:
        yield lambda loss, val_loss: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    title_column, losses_column = TextColumn("{task.description}"), TextColumn("{task.fields[losses]}")
    columns = (title_column, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), losses_column)
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=steps, completed=done, losses="")

        def advance(loss: float, val_loss: float) -> None:
            validation = "" if math.isnan(val_loss) else f"  validation {val_loss:.3f}"
            bar.update(task, advance=1, losses=f"loss {loss:.3f}{validation}")

        yield advance


@contextlib.contextmanager
def _enough_memory(config: ExperimentConfig) -> Iterator[None]:
    """An allocation that fails while the block runs is a UsageError that names the keys which decide the sizes."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch has a class of its own for memory on a GPU only
        words = ("can't allocate memory", "Storage size calculation overflowed")
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(w in str(error) for w in words):
            raise
        if config.foreign is not None:
            raise UsageError("--model: not enough memory for the model and its batches; make them smaller") from error
        sizes = [f"model.{key}={getattr(config.model, key)}" for key in ("layers", "dim", "context")]
        sizes += [f"{key}={getattr(config, key)}" for key in ("batch_size", "eval_batches")]
        raise UsageError(f"not enough memory for {', '.join(sizes)}; make them smaller") from error


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Deterministic algorithms where torch has them, while the block runs."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


_DISK = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE,
    errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO,
)  # fmt: skip
"""What a disk says, or a file system on the network, that takes no more."""


@contextlib.contextmanager
def _room_on_the_disk(out: Path) -> Iterator[None]:
    """A disk that takes no more is a UsageError that says how to go on."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        remedy = "Make room, then run again (with --resume where the run has checkpoints)"
        said = f"cannot be written any more ({os.strerror(error.errno)}); the record so far is kept"
        raise UsageError(f"--out {out}: {said}. {remedy}") from error


@contextlib.contextmanager
def _stoppable(gentle: bool, processes: Processes) -> Iterator[Callable[[Callable[[], None]], None]]:
    """SIGTERM raises SystemExit(143) while the block runs, so that the record is closed; main thread only.

    Where `gentle`, the first SIGTERM or Ctrl-C only asks, and another one raises at once. Yields what is to be called
    between steps: `stop_if_asked(save)` calls `save` and raises where a signal has asked, this process or another.
    """
    asked: list[int] = []

    def end(number: int) -> None:
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    def stop(number: int, frame: FrameType | None) -> None:
        if not gentle or asked:
            end(number)
        asked.append(number)
        os.write(2, b"stopping after this step, with a checkpoint (once more: at once)\n")

    def stop_if_asked(save: Callable[[], None]) -> None:
        if gentle and processes.any(bool(asked)):
            save()
            end(asked[0] if asked else signal.SIGTERM)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, stop)
        if gentle and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
    try:
        yield stop_if_asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _notice(line: str) -> None:
    print(f"notice: {line}", file=sys.stderr)
