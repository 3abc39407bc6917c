"""Telemetry of layers in a training loop that is somebody else's: by hand, in Hugging Face's Trainer, in Lightning."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from altgrad.config import TelemetryConfig
from altgrad.nn import Clock, clock_of, coverage_event
from altgrad.runs import Recorder
from altgrad.telemetry.look import Look


class LayerTelemetry:
    """Sets the clock of a quantized model at every step of a loop, and records a `Look` at some of them.

    After its first step the record has what of the model is quantized (`altgrad.nn.report_of`).

    A step is `begin`, forward and backward passes, `before_update`, the optimizer's step, and `end`. Where processes
    train together every one of them makes these calls: weights are those of all, activations those of rank 0.

    Args:
        run: what the rows go to (`altgrad.runs.record`).
        model: with quantized layers.
        every: steps from one look to the next, from step 0 on; 0 is never.
        telemetry: what a look measures.
    """

    def __init__(
        self, run: Recorder, model: nn.Module, *, every: int = 50, telemetry: TelemetryConfig | None = None
    ) -> None:
        self.run, self.model, self.every, self.telemetry = run, model, every, telemetry
        self.clock: Clock = clock_of(model)
        self._looks, self._covered = 0, False
        self._look: Look | None = None
        self._block = ExitStack()

    def begin(self, step: int) -> None:
        """Before each forward pass: of a new step, or, where the step is still the same, of its next batch."""
        if self.clock.step == step:
            self.clock.part = max(self.clock.part, 0) + 1
            return
        self._block.close()  # of a step without an update
        self.clock.step, self.clock.part, self._look = step, 0, None
        if self.every and step % self.every == 0:
            self._look = Look(self.model, step, self.telemetry, number=self._looks)
            self._looks += 1
            self._block.enter_context(self._look.operands())

    def before_update(self, optimizer: torch.optim.Optimizer) -> None:
        """After the last backward pass of a step, before its optimizer's."""
        if self._look is not None:
            self._block.close()
            self._look.gradients()
            self._block.enter_context(self._look.update(optimizer))

    def end(self, **metrics: Any) -> None:
        """After the optimizer's step; `metrics` of the step are recorded too."""
        self._block.close()
        if not self._covered and (covered := coverage_event(self.model)):
            self.run.event("coverage", self.clock.step or 0, **covered)
        self._covered = True
        if metrics:
            self.run.log(self.clock.step, metrics)
        if self._look is not None:
            self.run.log_layers(self._look.rows)
            self._look = None

    def evaluating(self) -> None:
        """Before an evaluation: its draws are those of no training batch."""
        self.clock.part = -1


_NAMES = {"eval_loss": "val_loss"}


def _named(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics by the names under which pages compare them."""
    return {_NAMES.get(name, name): value for name, value in metrics.items()}


def trainer_callback(run: Recorder, **settings: Any) -> Any:
    """A callback for `transformers.Trainer` that records what it logs, and the layers of its model.

    Args:
        run: an open record, which the caller finishes.
        settings: `every` and `telemetry` of `LayerTelemetry`.
    """
    from transformers import TrainerCallback

    class Recording(TrainerCallback):
        layers: LayerTelemetry

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.layers = LayerTelemetry(run, model, **settings)

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.layers.begin(state.global_step)

        def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.layers.begin(state.global_step)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any, **kwargs: Any) -> None:
            self.layers.before_update(optimizer)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.layers.end()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            run.log(state.global_step - 1, _named(logs or {}))

    return Recording()


def lightning_callback(run: Recorder, **settings: Any) -> Any:
    """A callback for Lightning's Trainer with automatic optimization, as `trainer_callback` is for Hugging Face's.

    The loss is recorded at every step, all that the module has logged after each validation.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError:
        from pytorch_lightning import Callback

    class Recording(Callback):  # type: ignore[misc]
        layers: LayerTelemetry

        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.layers = LayerTelemetry(run, module, **settings)

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, number: int) -> None:
            self.layers.begin(trainer.global_step)

        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            self.layers.before_update(optimizer)

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, number: int) -> None:
            if trainer.global_step != self.layers.clock.step:
                self.layers.end(loss=outputs["loss"])

        def on_validation_start(self, trainer: Any, module: Any) -> None:
            if not trainer.sanity_checking:
                self.layers.evaluating()

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            if not trainer.sanity_checking:
                run.log(trainer.global_step - 1, _named(trainer.callback_metrics))

    return Recording()
