"""The canary: a training of two seconds whose losses show, bit by bit, whether two machines compute alike."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import torch

from altgrad.config import parse_config
from altgrad.imports import code_fingerprint
from altgrad.runs import read_run
from altgrad.runs.canary import Canary
from altgrad.runs.writer import utc_time
from altgrad.training.corpus import Corpus
from altgrad.training.loop import train
from altgrad.training.tokens import FOLDED

CONFIG = {
    "quantize": {"weight": "e4m3", "activation": "e4m3", "grad_output": "e5m2"},
    "max_steps": 40,
    "batch_size": 8,
    "eval_every": 20,
    "eval_batches": 2,
    "layers_every": 40,
    "model": {"layers": 2, "dim": 64, "heads": 4, "context": 64},
}
"""Small, but with every product, scale and step of a run of the campaign; changed, every machine gives other bits."""
COLUMNS = ("loss", "val_loss", "grad_norm")


def run_canary(device: str = "cpu") -> Canary:
    """Train the canary with one thread, as the campaign's workers have it, and digest its losses.

    Args:
        device: "cpu" or "cuda".

    Raises:
        UsageError: there is no such device.
    """
    numbers = np.arange(20_000)
    text = ((numbers * numbers // 7 + numbers // 3) % len(FOLDED)).astype(np.uint8)  # of no data set and no generator
    corpus = Corpus(text, text[::-1].copy(), {"name": "canary", "sha256": hashlib.sha256(text.tobytes()).hexdigest()})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="altgrad-canary-") as folder:
            config = parse_config(CONFIG, source="canary")
            done = train(config, Path(folder), device=device, corpus=corpus, progress=False)
            record = read_run(done.path)
    finally:
        torch.set_num_threads(threads)
    losses = np.ascontiguousarray(record.history[list(COLUMNS)].to_numpy("<f8"))
    return Canary(
        environment=record.run["environment"],
        code=code_fingerprint("run"),
        digest=hashlib.sha256(losses.tobytes()).hexdigest(),
        created=utc_time(),
    )
