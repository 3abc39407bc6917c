"""Runs that torchrun's processes share, one after the other: what tests/test_distributed.py starts.

    torchrun --nproc-per-node=2 tests/runs_of_many.py FOLDER

FOLDER/runs.json has the runs in order: `name`, `config`, and where needed `resume`; `stop`, the step after which every
process gets Ctrl-C; `other`, what process 1 is started with instead (`config`, `code`); `machine`, how many processes
are on one; `die`, so that process 1 ends before it begins. Each process leaves FOLDER/rank-<n>.json: what became of
every run there, and of the models that processes share by other means than a run.
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
from altgrad.formats import get_format
from altgrad.nn import Operand, Policy, dequantize_model, quantize_model, recipe, report_of
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
    own = {"task": task} if run.get("task") else {"corpus": text()}
    config = parse_config({**SMALL, **run["config"]}, run["name"])
    try:
        return train(config, folder / run["name"], **own, progress=False, resume=run.get("resume", False))
    finally:
        loop._Run._step_and_its_row = original  # type: ignore[method-assign]


def task(seed: int) -> tuple[Any, ...]:
    """A model of one's own with batches of eight rows, and of four rows more with another seed."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))

    def batch(number: int) -> dict[str, torch.Tensor]:
        x = torch.randn(8 + seed, 4, generator=torch.Generator().manual_seed(number))
        return {"x": x, "y": x.sum(1, keepdim=True), "scale": torch.tensor(1.0)}

    def loss(model: torch.nn.Module, given: Any) -> torch.Tensor:
        return (given["scale"] * (model(given["x"]) - given["y"])).square().mean()

    return model, loss, batch, [batch(1000), batch(1001)]


class Words(torch.nn.Module):
    """An embedding, two layers between and a head, as tensor parallelism shares them out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens, self.lm_head = torch.nn.Embedding(16, 32), torch.nn.Linear(32, 16, bias=False)
        self.up_proj, self.down_proj = torch.nn.Linear(32, 64), torch.nn.Linear(64, 32)

    def forward(self, token: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.down_proj(self.up_proj(self.embed_tokens(token)).relu()))


TOKEN = torch.arange(16).reshape(4, 4)


def parallel(model: Words, mesh: Any) -> Words:
    """The model by torch's tensor parallelism, every matrix in shards."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    ends = {
        "embed_tokens": RowwiseParallel(input_layouts=Replicate()),
        "lm_head": ColwiseParallel(output_layouts=Replicate()),
    }
    parallelize_module(model, mesh, {**ends, "up_proj": ColwiseParallel(), "down_proj": RowwiseParallel()})
    return model


def tensor_parallel(mesh: Any) -> dict[str, list[float]]:
    """By policy and order: how far output, gradient and output after dequantizing are from those of one process."""
    stochastic = Operand(get_format("e4m3"), "stochastic")
    policies: dict[str, Any] = {
        "stochastic": Policy(stochastic, stochastic, stochastic),
        **{name: recipe(name, head=True, embedding=True) for name in ("te-delayed", "nvfp4", "torchao-rowwise")},
    }
    found = {}
    for name, policy in policies.items():
        for first in (True, False) if name != "te-delayed" else (False,):
            one, two = quantize_model(Words(), policy), Words()
            if first:
                quantize_model(two, policy)
            parallel(two, mesh)
            if not first:
                quantize_model(two, policy)
            outputs = []
            for model in (one, two):
                model(TOKEN)  # which delayed scales know of
                outputs.append(model(TOKEN))
                outputs[-1].square().sum().backward()
            gradients = [one.up_proj.weight.grad, two.up_proj.weight.grad.full_tensor()]
            shares = [report_of(each).multiply_add_share for each in (one, two)]
            after = [dequantize_model(each)(TOKEN) for each in (one, two)]
            pairs = (outputs, gradients, after)
            far = [float((a - b).detach().abs().max() / a.detach().abs().max()) for a, b in pairs]
            found[f"{name}, {'quantized' if first else 'shared'} first"] = [*far, abs(shares[0] - shares[1])]
    return found


def saved_by_torch(folder: Path, mesh: Any) -> dict[str, Any]:
    """A model with delayed scales through torch.distributed.checkpoint, from one order of the surgery to the other."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
    from torch.distributed.fsdp import fully_shard

    models = []
    for first in (True, False):
        model = Words()
        for step in (0, 1):
            if (step == 0) == first:
                quantize_model(model, "te-delayed", group=torch.distributed.group.WORLD)
            else:
                fully_shard(model, mesh=mesh)
        models.append(model)
    rows = len(TOKEN) // mesh.size()
    for size in (1, 30):
        (models[0](TOKEN[mesh.get_rank() * rows :][:rows]) * size).sum().backward()
    dcp.save(get_model_state_dict(models[0]), checkpoint_id=folder / "torch-checkpoint")
    state = get_model_state_dict(models[1])
    dcp.load(state, checkpoint_id=folder / "torch-checkpoint")
    set_model_state_dict(models[1], state)
    outputs = [model(TOKEN) for model in models]
    histories = [[v.tolist() for k, v in model.state_dict().items() if "history" in k] for model in models]
    return {
        "equal": torch.equal(*outputs),
        "histories": histories[0] == histories[1],
        "largest": max(map(max, histories[0])),
        "plain": [type(dequantize_model(model)).__name__ for model in models],
        "rounded": not torch.equal(models[1](TOKEN), outputs[1]),
    }


def own_models(folder: Path) -> dict[str, Any]:
    """What becomes of quantized models that processes share without a run of ours."""
    torch.distributed.init_process_group("gloo")
    mesh = torch.distributed.init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    found = {"parallel": tensor_parallel(mesh), "saved": saved_by_torch(folder, mesh)}
    torch.distributed.destroy_process_group()
    return found


def main() -> None:
    """Every run of the list."""
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    facts: dict[str, Any] = {"pid": os.getpid(), "models": own_models(folder)}
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
