"""Models for the probe and for evaluation: trained for it, or taken from the checkpoint of a recorded run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.config import CheckpointConfig, ExperimentConfig, TelemetryConfig, TrackingConfig, UsageError
from altgrad.models import GPT
from altgrad.runs import NothingToResume, read_run
from altgrad.training.checkpoint import FOLDER, Checkpoints
from altgrad.training.corpus import Corpus
from altgrad.training.data import load_corpus, load_text
from altgrad.training.loop import Batches, build_model, build_optimizer, shifted, train


class Probed(NamedTuple):
    """A model without low precision, and its losses on the batches that come next.

    Attributes:
        config: of the experiment.
        data: sha256 of the text.
        model: trained.
        losses: one a batch.
    """

    config: ExperimentConfig
    data: str
    model: GPT
    losses: list[Callable[[], Tensor]]


def trained(config: ExperimentConfig, steps: int, batches: int, text: Path | None) -> Probed:
    """The config's model after `steps` steps, the whole schedule within them.

    Args:
        text: a text of one's own in place of the config's data.

    Raises:
        UsageError: the config quantizes something, or the run failed; and as `train`.
    """
    if config.quantize.operands:
        given = ", ".join(f"quantize.{name}" for name in config.quantize.operands)
        raise UsageError(f"the probe is of a model without low precision, and the config sets {given}; leave it out")
    config = config if text is None else config.model_copy(update={"data": "file"})
    short = {
        "max_steps": steps,
        "eval_every": steps,
        "eval_batches": 1,
        "final_eval_characters": 0,
        "layers_every": 0,
        "telemetry": TelemetryConfig(watch=False),
        "checkpoint": CheckpointConfig(every=steps),
        "tracking": TrackingConfig(mode="disabled"),
    }
    with TemporaryDirectory() as folder:
        corpus = _corpus(config, text)
        result = train(config.model_copy(update=short), Path(folder), corpus=corpus)
        if result.failure:
            raise UsageError(f"the model of the probe failed at step {result.failure.step}: {result.failure.message}")
        return recorded(result.path, batches, text)._replace(config=config)


def recorded(run: Path, batches: int, text: Path | None = None) -> Probed:
    """The model of a run's newest checkpoint.

    Args:
        text: that the run was trained on, where it was one of one's own.

    Raises:
        UsageError: the folder holds no readable record, no checkpoint that can be used, or a run that quantizes
            something or read other data.
    """
    config = read_run(run).config
    if config.quantize.operands:
        raise UsageError(f"{run}: the probe is of a model without low precision, and this run has it; give another run")
    kept = checkpointed(run, text)
    drawn = [kept.batches.next() for _ in range(batches)]
    return Probed(config, kept.data, kept.model, [partial(kept.model.loss, *batch) for batch in drawn])


class Checkpointed(NamedTuple):
    """The model of a checkpoint, quantized as its run had it, the batches that come next, and the step it is of."""

    config: ExperimentConfig
    data: str
    model: GPT
    batches: Batches
    step: int


def checkpointed(path: Path, text: Path | None = None) -> Checkpointed:
    """A recorded model: of a run's newest checkpoint, or of the checkpoint whose folder is given.

    Args:
        path: folder of a run, or RUN/checkpoints/NAME.
        text: that the run was trained on, where it was one of one's own.

    Raises:
        UsageError: the folder holds no readable record, no checkpoint that can be used, or a run that read other data.
    """
    one = path if path.parent.name == FOLDER else None
    run = path if one is None else path.parents[1]
    record = read_run(run)
    config, data = record.config, record.run["data"]["sha256"]
    if config.foreign is not None:
        own = "in Python, export_weights(model, path) of altgrad.export writes the weights of a model of your own"
        raise UsageError(f"{run}: the run is of another loop or model, and has no checkpoint that can be read; {own}")
    corpus = _corpus(config, text)
    if corpus.fingerprint["sha256"] != data:
        raise UsageError(f"{run}: the run was trained on other data; give its text with --data")
    checkpoints = Checkpoints(run, config, data)
    try:
        state = checkpoints.newest(lambda _: None) if one is None else checkpoints.load(one)
    except NothingToResume as nothing:
        raise UsageError(f"{run}: {nothing}") from None
    if state["progress"]["shifted"]:
        config = shifted(config)
    model = build_model(config)
    if config.optimizer.storage == "grid":  # which the layers read at the scale that the optimizer keeps
        build_optimizer(config, model).load_state_dict(state["optimizer"])
    model.load_state_dict(state["model"])
    following = Batches(corpus, config, torch.device("cpu"))
    following.state = state["batches"]
    return Checkpointed(config, data, model, following, state["step"])


def _corpus(config: ExperimentConfig, text: Path | None) -> Corpus:
    how = config.tokenizer, config.vocabulary
    return load_corpus(config.data, *how) if text is None else load_text(text, *how)
