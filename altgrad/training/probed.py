"""Models for the probe: trained for it, or taken from the checkpoint of a recorded run."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from altgrad.config import CheckpointConfig, ExperimentConfig, TelemetryConfig, TrackingConfig, UsageError
from altgrad.models import GPT
from altgrad.runs import NothingToResume, read_run
from altgrad.training.checkpoint import Checkpoints
from altgrad.training.corpus import Corpus
from altgrad.training.data import load_corpus
from altgrad.training.loop import Batches, build_model, train

Losses = list[Callable[[], Tensor]]


def trained(config: ExperimentConfig, steps: int, batches: int, corpus: Corpus, progress: bool) -> tuple[GPT, Losses]:
    """The config's model after `steps` steps, the whole schedule within them, and its losses on the `batches` after.

    Raises:
        UsageError: the config quantizes something, or the run failed; and as `train`.
    """
    if config.quantize.operands:
        given = ", ".join(f"quantize.{name}" for name in config.quantize.operands)
        raise UsageError(f"the probe is of a model without low precision, and the config sets {given}; leave it out")
    short = {
        "max_steps": steps,
        "eval_every": steps,
        "eval_batches": 1,
        "layers_every": 0,
        "telemetry": TelemetryConfig(watch=False),
        "checkpoint": CheckpointConfig(every=steps),
        "tracking": TrackingConfig(mode="disabled"),
    }
    with TemporaryDirectory() as folder:
        result = train(config.model_copy(update=short), Path(folder), corpus=corpus, progress=progress)
        if result.failure:
            raise UsageError(f"the model of the probe failed at step {result.failure.step}: {result.failure.message}")
        return recorded(result.path, batches, corpus)[1:]


def recorded(run: Path, batches: int, corpus: Corpus | None = None) -> tuple[ExperimentConfig, GPT, Losses]:
    """The config and the model of a run's newest checkpoint, and its losses on the `batches` that would come next.

    Raises:
        UsageError: the folder holds no readable record, no checkpoint that can be used, or a run that quantizes
            something or read other data.
    """
    record = read_run(run)
    config, data = record.config, record.run["data"]["sha256"]
    if config.quantize.operands:
        raise UsageError(f"{run}: the probe is of a model without low precision, and this run has it; give another run")
    corpus = corpus or load_corpus(config.data, config.tokenizer, config.vocabulary)
    if corpus.fingerprint["sha256"] != data:
        raise UsageError(f"{run}: the run was trained on other data; give its text with --data")
    try:
        state = Checkpoints(run, config, data).newest(lambda _: None)
    except NothingToResume as nothing:
        raise UsageError(f"{run}: {nothing}") from None
    model = build_model(config)
    model.load_state_dict(state["model"])
    following = Batches(corpus, config, torch.device("cpu"))
    following.state = state["batches"]
    drawn = [following.next() for _ in itertools.repeat(None, batches)]
    return config, model, [partial(model.loss, *batch) for batch in drawn]
