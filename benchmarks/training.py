"""What quantized training costs: the step of a small GPT in each arm, against the plain fp32 loop of the same run.

    python benchmarks/training.py [--device cuda] [--quick] [--out FILE]

Arms are measured in turn, many times over, and the ratio is that of the medians, so that a noisy machine disturbs both
sides alike. Eager arms are held against the eager fp32 loop, compiled ones against the compiled fp32 loop. Peak memory
is that of one process an arm. The record goes to benchmarks/recorded/training.json (training-cuda.json on a GPU, where
the model has 50M parameters and bf16 is the baseline of native FP8), which the site turns into a page.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SIZES = {
    "cpu": {"layers": 4, "dim": 128, "heads": 4, "context": 128, "batch": 16},
    "cuda": {"layers": 16, "dim": 512, "heads": 8, "context": 512, "batch": 32},
    "quick": {"layers": 1, "dim": 32, "heads": 2, "context": 16, "batch": 2},
}
GOALS = {"wag": 1.4, "w": 1.1, "wag-compiled": 1.1, "adamw-step": 1.0, "manifold-step": 1.25}
MEMORY_GOAL = 1.5
VOCABULARY = 96
E = None


def policies(native: bool) -> dict[str, Any]:
    """The quantized arms by name."""
    from altgrad.formats import get_format
    from altgrad.nn import Operand, Policy, Scaling

    e4m3, e5m2 = get_format("e4m3"), get_format("e5m2")
    stochastic = Operand(e4m3, rounding="stochastic")
    mx = Operand(e4m3, scaling=Scaling("mx"))
    found = {
        "fp32": None,
        "w": Policy(weight=e4m3),
        "wag": Policy(e4m3, e4m3, e4m3),
        "wag-stochastic-gradients": Policy(e4m3, e4m3, stochastic),
        "wag-mx": Policy(mx, mx, mx),
    }
    if native:
        found["native"] = Policy(e4m3, e4m3, e5m2, compute="native")
    return found


def make_step(arm: str, sizes: dict[str, int], device: str) -> Callable[[], None]:
    """One training step of an arm: batch, loss, gradients, clipping, AdamW."""
    import torch

    from altgrad.models import GPT
    from altgrad.nn import quantize_model

    name, _, compiled = arm.partition("-compiled")
    model = GPT(VOCABULARY, **{key: sizes[key] for key in ("layers", "dim", "heads", "context")}, seed=0).to(device)
    policy = policies(native=True).get(name.removesuffix("-bf16"))
    if policy is not None:
        quantize_model(model, policy)
    if name.endswith("bf16"):
        model = model.to(torch.bfloat16)
    loss_of = torch.compile(model.loss) if arm.endswith("-compiled") else model.loss
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(0, VOCABULARY, (sizes["batch"], sizes["context"] + 1), generator=generator).to(device)
    token, target = text[:, :-1].contiguous(), text[:, 1:].contiguous()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(token, target).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def make_optimizer_step(rule: str, sizes: dict[str, int], device: str) -> Callable[[], None]:
    """The optimizer's step alone, on the model's parameters with fixed gradients."""
    import torch

    from altgrad.formats import get_format
    from altgrad.models import GPT
    from altgrad.optim import ManifoldAdamW

    model = GPT(VOCABULARY, **{key: sizes[key] for key in ("layers", "dim", "heads", "context")}, seed=0).to(device)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(device)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    if rule == "adamw-step":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    else:
        groups = [{"params": matrices, "precondition": "update"}, {"params": vectors, "precondition": None}]
        optimizer = ManifoldAdamW(groups, get_format("e4m3"), lr=1e-6)

    def step() -> None:
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def measure(steps: dict[str, Callable[[], None]], repeats: int, show: Callable[[str], None]) -> dict[str, list[float]]:
    """Seconds of every step, in turns."""
    for name, step in steps.items():
        show(f"warming up {name}")
        step()
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats):
        show(f"turn {turn + 1} of {repeats}")
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - begun)
    return times


def where_time_goes(sizes: dict[str, int], device: str) -> list[dict[str, Any]]:
    """Self time of the operators of one eager step with everything quantized, in percent; the ten largest."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    step = make_step("wag", sizes, device)
    step()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    del torch
    rows = recorded.key_averages()
    total = sum(row.self_cpu_time_total for row in rows)
    largest = sorted(rows, key=lambda row: -row.self_cpu_time_total)[:10]
    return [{"operator": row.key, "percent": round(100 * row.self_cpu_time_total / total, 1)} for row in largest]


def peak_memory(arm: str, sizes: dict[str, int], device: str) -> float:
    """Peak memory of a process that trains an arm for three steps, in MiB beyond what it held before the first."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return float(pool.apply(_peak, (arm, sizes, device)))


def _peak(arm: str, sizes: dict[str, int], device: str) -> float:
    import torch

    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        for step in [make_step(arm, sizes, device)] * 3:
            step()
        return torch.cuda.max_memory_allocated() / 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = make_step(arm, sizes, device)
    for _ in range(3):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
