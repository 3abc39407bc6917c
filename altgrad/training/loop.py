"""The training loop: one config and one seed in, one run record out.

What decides the numbers is the config, the seed and the data. Batches depend on seed and data alone, so every arm of a
comparison sees the same ones. A step is: batch, loss, gradients, clipping, update; a step whose loss or gradient norm
is not finite is recorded and not applied, and `nan_patience` of them in a row end the run as failed. Evaluation reads
the model as it would be deployed: quantized, on the same validation text for every run.
"""

from __future__ import annotations

import contextlib
import math
import platform
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from altgrad.config import ExperimentConfig, UsageError
from altgrad.formats import FP32
from altgrad.models import GPT
from altgrad.nn import Policy, quantize_model, quantized_layers
from altgrad.optim import ManifoldAdamW
from altgrad.runs import Failure, RunWriter
from altgrad.runs.tracking import Tracker
from altgrad.telemetry import OperandRecorder, Row, WeightCodes, first_nonfinite, observed
from altgrad.training.data import VOCABULARY, Corpus, load_corpus

OTHER_LEARNING_RATE = 3e-3
"""AdamW's rate, under the manifold rule, of the parameters that are not quantized, where the config names none."""

UNIFORM_LOSS = math.log(VOCABULARY)
"""Loss in nats per character of guessing at random."""

_DIVERGED = 1.5 * UNIFORM_LOSS


@dataclass(frozen=True)
class Result:
    """What `train` hands back: where the record lies and how the run ended (`summary` as in run.json)."""

    run_id: str
    path: Path
    status: str
    summary: dict[str, Any]
    failure: Failure | None = None


class Batches:
    """Training batches that depend on seed and data alone, and validation batches that depend on the data alone."""

    def __init__(self, corpus: Corpus, config: ExperimentConfig, device: torch.device) -> None:
        self._context, self._size, self._device = config.model.context, config.batch_size, device
        for split in (corpus.train, corpus.validation):
            if split.size <= self._context + 1:
                raise UsageError(f"model.context: {self._context} is longer than the data; make it smaller")
        self._train, self._validation = corpus.train, corpus.validation
        self._random = np.random.default_rng([config.seed, 1])
        last = corpus.validation.size - self._context - 1
        self._held_out = np.linspace(0, last, config.eval_batches * self._size).astype(np.int64)

    def next(self) -> tuple[Tensor, Tensor]:
        """The next training batch: characters and the characters that follow them, int64 [batch, context]."""
        starts = self._random.integers(0, self._train.size - self._context, self._size)
        return self._cut(self._train, starts)

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The validation batches, evenly spaced over the held-out text."""
        for starts in self._held_out.reshape(-1, self._size):
            yield self._cut(self._validation, starts)

    def _cut(self, text: NDArray[np.uint8], starts: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        windows = text[starts[:, None] + np.arange(self._context + 1)].astype(np.int64)
        both = torch.from_numpy(windows).to(self._device)
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()


def build_model(config: ExperimentConfig) -> GPT:
    """The config's model on the CPU, initialized by its seed, with its layers quantized as the config says."""
    size = config.model
    model = GPT(VOCABULARY, layers=size.layers, dim=size.dim, heads=size.heads, context=size.context, seed=config.seed)
    policy = Policy.of_names(
        config.quantize.weight,
        config.quantize.activation,
        config.quantize.grad_output,
        layers=tuple(config.quantize.layers),
        scaled=config.scaling.kind == "amax",
        power_of_two=config.scaling.power_of_two,
    )
    quantize_model(model, policy)
    return model


def build_optimizer(config: ExperimentConfig, model: GPT) -> torch.optim.Optimizer:
    """The config's step rule over three groups: quantized matrices, other matrices, and vectors (no decay).

    The manifold rule applies to the first group only; the others get AdamW at `other_learning_rate`.
    """
    rule = config.optimizer
    on_grid = [
        layer.weight for layer in quantized_layers(model).values() if layer.policy.operand("weight").format is not FP32
    ]
    known = {id(parameter) for parameter in on_grid}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    other_rate = rule.other_learning_rate or (rule.learning_rate if rule.step_rule == "adamw" else OTHER_LEARNING_RATE)
    groups: list[dict[str, Any]] = [
        {"params": on_grid, "lr": rule.learning_rate, "weight_decay": rule.weight_decay},
        {"params": [p for p in rest if p.ndim > 1], "lr": other_rate, "weight_decay": rule.weight_decay},
        {"params": [p for p in rest if p.ndim == 1], "lr": other_rate, "weight_decay": 0.0},
    ]
    if rule.step_rule == "manifold":
        groups[0]["precondition"] = rule.precondition
        groups[1]["precondition"] = groups[2]["precondition"] = None
    groups = [group for group in groups if group["params"]]
    if rule.step_rule == "adamw":
        return torch.optim.AdamW(groups, betas=rule.betas, eps=rule.eps, foreach=True)
    return ManifoldAdamW(
        groups,
        quantized_format(model),
        betas=rule.betas,
        eps=rule.eps,
        floor=rule.floor,
        max_stiffness=rule.max_stiffness,
        scaled=config.scaling.kind == "amax",
        power_of_two=config.scaling.power_of_two,
    )


def quantized_format(model: GPT):  # type: ignore[no-untyped-def]
    """The weight format of the model's quantized layers (one per model)."""
    return next(
        layer.policy.operand("weight").format
        for layer in quantized_layers(model).values()
        if layer.policy.operand("weight").format is not FP32
    )


def rate_factor(config: ExperimentConfig, step: int) -> float:
    """What every learning rate is multiplied by at `step` (from 1): linear warm-up, then cosine or constant."""
    if step < config.warmup_steps:
        return step / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    passed = (step - config.warmup_steps) / max(config.max_steps - config.warmup_steps, 1)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * passed))


def train(
    config: ExperimentConfig,
    out: Path,
    *,
    device: str = "cpu",
    corpus: Corpus | None = None,
    progress: bool = True,
) -> Result:
    """Train the config's model and write its record into `out`.

    Args:
        config: the experiment; its seed decides initialization and batches.
        out: folder of the records.
        device: "cpu" or "cuda".
        corpus: the data; by default the data set that the config names.
        progress: show a progress bar on stderr.

    Returns:
        The finished or failed run. SIGTERM and Ctrl-C leave an ``interrupted`` record and go on as SystemExit and
        KeyboardInterrupt; any other exception leaves a ``crashed`` one and goes on.

    Raises:
        UsageError: the run is already recorded, the data or the device are missing, `out` cannot be written, or the
            model or its batches do not fit the data or the memory.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this torch sees no GPU; use --device cpu")
    corpus = corpus or load_corpus(config.data)
    with _enough_memory(config):
        batches = Batches(corpus, config, torch.device(device))
        model = build_model(config).to(device)
    writer = RunWriter.create(
        out, config, data_fingerprint=corpus.fingerprint, environment=describe_environment(device)
    )
    with _enough_memory(config), _deterministic(), _sigterm_as_exit(), writer:
        tracker = Tracker.start(config, writer.run_id, writer.path)
        if tracker.url:
            writer.set_wandb_url(tracker.url)
        status, summary = "crashed", {}
        try:
            result = _Run(config, model, batches, writer, tracker, progress).run()
            status, summary = result.status, result.summary
        except (KeyboardInterrupt, SystemExit):
            status = "interrupted"
            raise
        finally:
            tracker.finish(status, summary)
    return result


def describe_environment(device: str) -> dict[str, Any]:
    """Versions, device and thread count: what another machine needs to know; no names of machines or people."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": platform.system(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }


class _Run:
    """One run under way."""

    def __init__(
        self,
        config: ExperimentConfig,
        model: GPT,
        batches: Batches,
        writer: RunWriter,
        tracker: Tracker,
        progress: bool,
    ) -> None:
        self.config, self.writer, self.tracker, self.progress = config, writer, tracker, progress
        self.model, self.batches = model, batches
        self.optimizer = build_optimizer(config, model)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.started = time.monotonic()
        self.training_seconds = 0.0
        self.step = 0
        self.first_loss = -math.inf
        self.last_loss = math.nan
        self.last_norm = math.nan
        self.recent: deque[float] = deque(maxlen=config.nan_patience)
        self.last_rows: list[Row] = []
        self.nonfinite_steps = 0
        self.first_bad: tuple[int, str, str] | None = None
        """Step, tensor and phase of the first step of the current row of bad steps."""
        self.bad_in_a_row = 0

    def run(self) -> Result:
        """Every step, then the verdict."""
        with _progress_bar(self.progress, self.writer.run_id, self.config.max_steps) as advance:
            val_loss = math.nan
            for step in range(1, self.config.max_steps + 1):
                self.step = step
                begun = time.monotonic()
                row = self._train_step()
                self.training_seconds += time.monotonic() - begun
                evaluate = self.step % self.config.eval_every == 0 or self.step == self.config.max_steps
                failure = self._failure_under_way()
                if evaluate or failure:
                    val_loss = self.evaluate()
                    row |= {"val_loss": val_loss, "perplexity": math.exp(min(val_loss, 700.0))}
                if evaluate or failure or self.step == 1 or self.step % self.config.log_every == 0:
                    row["seconds"] = round(time.monotonic() - self.started, 4)
                    self.writer.log(self.step, **row)
                    self.tracker.log({"step": self.step, **row})
                advance(row["loss"], val_loss)
                if failure:
                    return self._end(failure, val_loss)
        return self._end(self._failure_at_the_end(val_loss), val_loss)

    def evaluate(self) -> float:
        """Mean loss over the validation batches, in nats per character, with every operand quantized as in training."""
        with torch.no_grad():
            losses = [float(self.model.loss(token, target)) for token, target in self.batches.validation()]
        return sum(losses) / len(losses)

    def _train_step(self) -> dict[str, float]:
        config, model = self.config, self.model
        factor = rate_factor(config, self.step)
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * factor
        token, target = self.batches.next()
        look = config.layers_every > 0 and (self.step == 1 or self.step % config.layers_every == 0)
        recorder = OperandRecorder(self.step)
        with observed(model, recorder) if look else contextlib.nullcontext():
            loss = model.loss(token, target)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        limit = math.inf if config.clip_norm is None else config.clip_norm
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit))
        self.last_loss, self.last_norm = loss.item(), norm
        if self.step == 1:
            self.first_loss = self.last_loss
        rows = recorder.rows
        if math.isfinite(self.last_loss) and math.isfinite(norm):
            self.bad_in_a_row, self.first_bad = 0, None
            codes = WeightCodes(model) if look else None
            self.optimizer.step()
            rows += codes.rows(self.step) if codes else []
        else:
            self._note_bad_step(token, target)
        self.recent.append(self.last_loss)
        if rows:
            self.writer.log_layers(rows)
            self.last_rows = rows
        return {
            "tokens": self.step * config.batch_size * config.model.context,
            "loss": self.last_loss,
            "lr": self.base_rates[0] * factor,
            "grad_norm": norm,
        }

    def _note_bad_step(self, token: Tensor, target: Tensor) -> None:
        self.bad_in_a_row += 1
        self.nonfinite_steps += 1
        if self.first_bad is None:
            tensor, phase = first_nonfinite(self.model, lambda: self.model.loss(token, target))
            self.first_bad = (self.step, tensor, phase)
            self.writer.event("nonfinite", self.step, tensor=tensor, phase=phase)

    def _failure_under_way(self) -> Failure | None:
        patience = self.config.nan_patience
        if self.bad_in_a_row >= patience:
            return self._nan_failure(f"loss or gradient not finite for {patience} steps", early=True)
        diverged = len(self.recent) == patience and min(self.recent) > _DIVERGED
        if diverged and self.step > self.config.warmup_steps:
            message = f"loss above {_DIVERGED:.2f} (1.5 times that of guessing at random) for {patience} steps"
            first = self.step - patience + 1
            return Failure(("divergence", *self._early(), *self._symptoms()), first, None, None, message)
        return None

    def _failure_at_the_end(self, val_loss: float) -> Failure | None:
        if self.first_bad is not None:
            return self._nan_failure("the last steps' loss or gradient is not finite", early=False)
        if not math.isfinite(val_loss):
            token, target = next(self.batches.validation())
            tensor, phase = first_nonfinite(self.model, lambda: self.model.loss(token, target))
            kinds = ("nan_loss", *self._symptoms())
            return Failure(kinds, self.step, tensor, phase, "the final validation loss is not finite")
        beginning = max(UNIFORM_LOSS, self.first_loss)
        if val_loss > 1.05 * beginning:
            message = f"final validation loss {val_loss:.3f} is above the loss {beginning:.3f} that training began with"
            return Failure(("divergence", *self._symptoms()), self.step, None, None, message)
        return None

    def _nan_failure(self, message: str, early: bool) -> Failure:
        assert self.first_bad is not None
        step, tensor, phase = self.first_bad
        kinds = ("nan_loss", *(self._early() if early else ()), *self._symptoms())
        return Failure(kinds, step, tensor, phase, f"{message}; seen first in {tensor}")

    def _early(self) -> tuple[str, ...]:
        return ("early_stop",) if self.step < self.config.max_steps else ()

    def _symptoms(self) -> tuple[str, ...]:
        """Kinds that the last per-layer rows of a failed run show; they do not fail a run by themselves."""

        def worst(statistic: str, operand: str | None = None) -> float:
            found = (row[5] for row in self.last_rows if row[4] == statistic and operand in (None, row[3]))
            return max(found, default=0.0)

        symptoms = {
            "overflow": worst("overflow") > 0.01,
            "underflow": worst("underflow", "grad_output") > 0.5,
            "stall": worst("stall_ratio") > 0.99,
            "gradient_vanishing": self.last_norm < 1e-8,
        }
        return tuple(kind for kind, shown in symptoms.items() if shown)

    def _end(self, failure: Failure | None, val_loss: float) -> Result:
        tokens = self.step * self.config.batch_size * self.config.model.context
        summary = {
            "val_loss": val_loss,
            "perplexity": math.exp(min(val_loss, 700.0)),
            "loss": self.last_loss,
            "steps": self.step,
            "tokens": tokens,
            "tokens_per_second": round(tokens / max(self.training_seconds, 1e-9), 1),
            "nonfinite_steps": self.nonfinite_steps,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
        }
        if failure:
            self.writer.fail(failure, summary)
        else:
            self.writer.finish(summary)
        return Result(self.writer.run_id, self.writer.path, "failed" if failure else "finished", summary, failure)


@contextlib.contextmanager
def _progress_bar(shown: bool, title: str, steps: int) -> Iterator[Any]:
    """Yields `advance(loss, val_loss)`."""
    if not shown:
        yield lambda loss, val_loss: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=steps, losses="")

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
        size = config.model
        raise UsageError(
            f"not enough memory for model.layers={size.layers}, model.dim={size.dim}, model.context={size.context}, "
            f"batch_size={config.batch_size}, eval_batches={config.eval_batches}; make them smaller"
        ) from error


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Deterministic algorithms where torch has them, while the block runs."""
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


@contextlib.contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """SIGTERM raises SystemExit(143) while the block runs, so that the record is closed; main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
