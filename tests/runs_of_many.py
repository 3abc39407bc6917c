"""Runs that torchrun's processes share, one after the other: what tests/test_distributed.py starts.

    torchrun --nproc-per-node=2 tests/runs_of_many.py FOLDER

FOLDER/runs.json has the runs in order: `name`, `config`, and where needed `resume`; `stop`, the step after which every
process gets Ctrl-C; `other`, what process 1 is started with instead (`config`, `code`); `machine`, how many processes
are on one; `die`, so that process 1 ends before it begins. Each process leaves FOLDER/rank-<n>.json: what became of
every run there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from altgrad.config import parse_config
from altgrad.training import Corpus, loop, train

SMALL: dict[str, Any] = {
    "max_steps": 6,
    "batch_size": 8,
    "warmup_steps": 2,
    "eval_every": 3,
    "eval_batches": 2,
    "layers_every": 3,
    "checkpoint": {"every": 2},
    "model": {"layers": 1, "dim": 16, "heads": 2, "context": 8},
}


def text() -> Corpus:
    """Noise of 96 characters that only those near each other follow, so that there is something to learn."""
    noise = np.random.default_rng(0).integers(0, 4, 4000).cumsum() % 96
    return Corpus(noise.astype(np.uint8), noise[:500].astype(np.uint8), {"name": "noise", "sha256": "0" * 64})


def shared(folder: Path, run: dict[str, Any]) -> loop.Result:
    """One run, as this process has a part in it."""
    original, stop = loop._Run._step_and_its_row, run.get("stop")

    def then_stop(self: loop._Run) -> Any:
        failure = original(self)
        if self.at.step == stop:
            signal.raise_signal(signal.SIGINT)
        return failure

    loop._Run._step_and_its_row = then_stop  # type: ignore[method-assign]
    config = parse_config({**SMALL, **run["config"]}, run["name"])
    try:
        return train(config, folder / run["name"], corpus=text(), progress=False, resume=run.get("resume", False))
    finally:
        loop._Run._step_and_its_row = original  # type: ignore[method-assign]


def main() -> None:
    """Every run of the list."""
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    facts: dict[str, Any] = {"pid": os.getpid()}
    for run in json.loads((folder / "runs.json").read_text()):
        if run.get("die") and rank == 1:
            time.sleep(3)  # process 0 waits by then
            os._exit(3)
        if rank == 1:
            run |= run.get("other", {})
        fingerprint = loop.code_fingerprint
        if "code" in run:
            loop.code_fingerprint = {"run": run["code"]}.__getitem__  # type: ignore[assignment]
        os.environ["LOCAL_WORLD_SIZE"] = str(run.get("machine", os.environ["WORLD_SIZE"]))
        try:
            result = shared(folder, run)
            facts[run["name"]] = {"status": result.status, "steps": result.summary["steps"]}
        except BaseException as error:
            facts[run["name"]] = {"status": type(error).__name__, "said": str(error)}
        loop.code_fingerprint = fingerprint
        (folder / f"rank-{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
