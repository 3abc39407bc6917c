"""What quantized training costs: the step of a small GPT in each arm, against the plain fp32 loop of the same run.

    make bench-training                                          measure and record, in a few minutes
    .venv/bin/python benchmarks/training.py --quick --record trial.json
    .venv/bin/python benchmarks/training.py --device cuda         on a GPU, with its own record

Arms are measured in turn, many times over, and the ratio is that of the medians, so that a noisy machine disturbs both
sides alike. Eager arms are held against the eager fp32 loop, compiled ones against the compiled fp32 loop, and
telemetry against the quantized step: a step with a look, one with a look that counts codes, the watch alone, and what
these make of a step when every tenth has a look. Llama is that of transformers, with two layers of width 256, against a
plain loop of its own; coverage is the step with what the hooks of `report_of` cost in it. Peak memory is that of one
process an arm. The record goes to benchmarks/recorded/training.json (training-cuda.json on a GPU, where the model has
50M parameters and bf16 is the baseline of native FP8), which the site turns into a page.
"""

from __future__ import annotations

import argparse
import importlib.util
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

import altgrad  # noqa: E402
from altgrad.imports import code_fingerprint  # noqa: E402
from altgrad.reports.measured import RECORDED, write_record  # noqa: E402
from altgrad.reports.training_cost import Arm, Memory, Share, TrainingRecord  # noqa: E402

SIZES = {
    "cpu": {"layers": 4, "dim": 128, "heads": 4, "context": 128, "batch": 16},
    "cuda": {"layers": 16, "dim": 512, "heads": 8, "context": 512, "batch": 32},
    "quick": {"layers": 1, "dim": 32, "heads": 2, "context": 16, "batch": 2},
}
GOALS = {
    "wag": 1.4,
    "w": 1.1,
    "wag-compiled": 1.1,
    "manifold-step": 1.25,
    "telemetry": 1.05,
    "telemetry-compiled": 1.05,
    "llama-wag": 1.35,
    "llama-wag-compiled": 1.15,
    "coverage": 1.01,
}
HOOK_CALLS = 100
"""Calls of the coverage hooks that are timed together."""
LLAMA = {"num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
TELEMETRY = ("telemetry-off", "look", "look-codes")
"""Arms that take the step "wag" with telemetry as it is on by default; without it, it is the same step once more."""
MEMORY_GOAL = 1.5
VOCABULARY = 96
REASONS = {
    "w": "Every weight is rounded again at each step: seven passes over it, beside a batch of 2,048 rows only.",
    "wag": "Seven passes to round an operand and one for its amax, all of them through memory.",
    "wag-compiled": "The amax of an operand must be known before it can be rounded, so its pass is not fused.",
    "telemetry": "Two passes to count, six to measure and sixteen eigenvalue problems, every tenth step.",
    "telemetry-compiled": "The step with the look runs eagerly, and so pays for eager rounding besides the look.",
    "llama-wag": "Seven passes to round an operand and one for its amax, all of them through memory.",
    "llama-wag-compiled": "The amax of an operand must be known before it can be rounded, so its pass is not fused.",
    "manifold-step": "The ulp field costs three passes and an amax beside AdamW's twelve.",
}
"""What is known of an arm that misses its goal."""


def policies() -> dict[str, Any]:
    """The quantized arms by name."""
    from altgrad.formats import get_format
    from altgrad.nn import Operand, Policy, Scaling

    e4m3, e5m2 = get_format("e4m3"), get_format("e5m2")
    stochastic = Operand(e4m3, rounding="stochastic")
    mx = Operand(e4m3, scaling=Scaling("mx"))
    return {
        "fp32": None,
        "w": Policy(weight=e4m3),
        "wag": Policy(e4m3, e4m3, e4m3),
        "wag-stochastic-gradients": Policy(e4m3, e4m3, stochastic),
        "wag-mx": Policy(mx, mx, mx),
        "native": Policy(e4m3, e4m3, e5m2, compute="native"),
    }


def make_step(arm: str, sizes: dict[str, int], device: str) -> Callable[[], None]:
    """One training step of an arm: batch, loss, gradients, clipping, AdamW, and a look in the arms that have one."""
    import torch

    from altgrad.config import TelemetryConfig
    from altgrad.nn import quantize_model
    from altgrad.telemetry import Look, RankWatch

    name = arm.removesuffix("-compiled").removeprefix("llama-")
    make = make_llama if arm.startswith("llama-") else make_gpt
    model = make(sizes).to(device)
    policy = policies().get("wag" if name in TELEMETRY else name)
    if policy is not None:
        quantize_model(model, policy)
    if name in ("bf16", "native"):
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

    number = {"look": 1, "look-codes": TelemetryConfig().codes_every}.get(name)
    if number is None:
        return step
    ranks = RankWatch()

    def step_with_look() -> None:
        look = Look(model, 1, number=number)
        optimizer.zero_grad(set_to_none=True)
        with look.operands():
            loss_of(token, target).backward()
        look.gradients()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with look.update(optimizer):
            optimizer.step()
        ranks.update(look.rows)
        if device == "cuda":
            torch.cuda.synchronize()

    return step_with_look


def make_gpt(sizes: dict[str, int]) -> Any:
    """The model that is measured, a character GPT."""
    from altgrad.models import GPT

    return GPT(VOCABULARY, **{key: sizes[key] for key in ("layers", "dim", "heads", "context")}, seed=0)


def make_llama(sizes: dict[str, int]) -> Any:
    """Llama of transformers with random weights, and a loss as the GPT has it; 2 layers of 256 whatever the sizes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    class Llama(LlamaForCausalLM):  # type: ignore[misc]
        def loss(self, token: Any, target: Any) -> Any:
            logits = self(token, use_cache=False).logits
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())

    torch.manual_seed(0)
    return Llama(LlamaConfig(**LLAMA, vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2))


def make_hooks(sizes: dict[str, int]) -> Callable[[], None]:
    """`HOOK_CALLS` calls of a module that does nothing, with a quantized model's hooks after its first batch."""
    import torch

    from altgrad.nn import quantize_model

    model = quantize_model(make_gpt(sizes), policies()["wag"])
    model(torch.zeros(1, 2, dtype=torch.int64))
    nothing, x = torch.nn.Identity(), torch.zeros(1)
    vars(model)["_coverage"].watch(nothing)

    def step() -> None:
        for _ in range(HOOK_CALLS):
            nothing(x)

    return step


def make_watch(sizes: dict[str, int], device: str) -> Callable[[], None]:
    """What the watch does in a step, alone; the loop has the gradients' norms from clipping."""
    import torch

    from altgrad.telemetry import Watch

    model = make_gpt(sizes).to(device)
    gradients = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    norms, watch = torch._foreach_norm(list(gradients.values())), Watch(model)

    def step() -> None:
        watch.before()
        watch.gradients(gradients, norms, finite_loss=True)
        watch.after(1)

    return step


def ten_steps(times: dict[str, list[float]], step: str) -> list[float]:
    """Seconds of a step with its share of telemetry, turn by turn: the watch at each, a look at every tenth.

    Every `codes_every`-th look counts codes. Looks are taken eagerly, also of a compiled model.
    """
    from altgrad.config import TelemetryConfig

    codes = 1 / TelemetryConfig().codes_every
    turns = zip(times[step], times["watch"], times["look"], times["look-codes"], strict=True)
    return [watch + (9 * plain + (1 - codes) * look + codes * coded) / 10 for plain, watch, look, coded in turns]


def make_optimizer_step(rule: str, sizes: dict[str, int], device: str) -> Callable[[], None]:
    """The optimizer's step alone, on the model's parameters with fixed gradients."""
    import torch

    from altgrad.formats import get_format
    from altgrad.optim import ManifoldAdamW

    model = make_gpt(sizes).to(device)
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


def measure(
    steps: dict[str, Callable[[], None]], turns: int, show: Callable[[str], None], device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of every step, in turns: of the one thread's processor time, without its waiting for other programs.

    On a GPU they are those of the wall clock.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter
    for name, step in steps.items():
        show(f"warming up {name}")
        step()
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns):
        show(f"turn {turn + 1} of {turns}")
        for name, step in steps.items():
            begun = clock()
            step()
            times[name].append(clock() - begun)
    return times


def compared(times: dict[str, list[float]], baseline_of: Callable[[str], str]) -> tuple[Arm, ...]:
    """Every arm that is no baseline, against its baseline."""
    arms = []
    for name, seconds in times.items():
        baseline = baseline_of(name)
        if name == baseline:
            continue
        ratios = [a / b for a, b in zip(seconds, times[baseline], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        ratio, goal = statistics.median(seconds) / statistics.median(times[baseline]), GOALS.get(name)
        arms.append(
            Arm(
                name=name,
                baseline=baseline,
                ratio=ratio,
                low=low,
                high=high,
                milliseconds=1e3 * statistics.median(seconds),
                goal=goal,
                reason=REASONS.get(name, "") if goal is not None and ratio > goal else "",
            )
        )
    return tuple(arms)


def where_time_goes(sizes: dict[str, int], device: str) -> tuple[Share, ...]:
    """Self time of the operators of one eager step with everything quantized; the ten largest."""
    from torch.profiler import ProfilerActivity, profile

    step = make_step("wag", sizes, device)
    step()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    rows = recorded.key_averages()
    total = sum(row.self_cpu_time_total for row in rows)
    largest = sorted(rows, key=lambda row: -row.self_cpu_time_total)[:10]
    return tuple(Share(operator=row.key, percent=100 * row.self_cpu_time_total / total) for row in largest)


def peak_memory(arm: str, sizes: dict[str, int], device: str) -> float:
    """Peak memory of a process that trains an arm for three steps, in MiB beyond what it held before the first."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return float(pool.apply(_peak, (arm, sizes, device)))


def _peak(arm: str, sizes: dict[str, int], device: str) -> float:
    import torch

    torch.set_num_threads(1)
    torch.ones(8, 8).requires_grad_().square().sum().backward()  # type: ignore[no-untyped-call]
    before = _peak_resident()
    step = make_step(arm, sizes, device)
    for _ in range(3):
        step()
    if device == "cuda":
        return float(torch.cuda.max_memory_allocated() / 2**20)
    return _peak_resident() - before


def _peak_resident() -> float:
    """Peak resident memory of this process in MiB; getrusage counts that of the parent it was made from as well."""
    try:
        text = Path("/proc/self/status").read_text()
        return int(text.partition("VmHWM:")[2].split()[0]) / 2**10
    except (OSError, IndexError):
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def compiles(device: str) -> bool:
    """Whether torch.compile works here; without a C++ compiler (Triton on a GPU) it does not."""
    import torch

    try:
        torch.compile(lambda x: x + 1)(torch.ones(2, device=device))
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        return False
    return True


def bench(device: str, quick: bool, turns: int, show: Callable[[str], None]) -> TrainingRecord:
    """Measure every arm."""
    import numpy
    import torch

    torch.set_num_threads(1)
    sizes = SIZES["quick" if quick else device]
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    if device == "cpu":
        names = ["fp32", "w", "wag", *TELEMETRY, "wag-stochastic-gradients", "wag-mx"]
        names += [] if quick else ["fp32-compiled", "w-compiled", "wag-compiled"]
    else:
        names = ["fp32", "wag", *TELEMETRY, "bf16", "native"]
        names += ["fp32-compiled", "wag-compiled", "bf16-compiled", "native-compiled"]
    if importlib.util.find_spec("transformers"):
        names += [f"llama-{name}" for name in names if name.removesuffix("-compiled") in ("fp32", "wag")]
    else:
        show("no transformers: the arms of Llama are left out")
    if not quick and not compiles(device):
        show("no compiler: compiled arms are left out")
        names = [name for name in names if not name.endswith("-compiled")]
    steps = {name: make_step(name, sizes, device) for name in names}

    def baseline_of(name: str) -> str:
        suffix = "-compiled" if name.endswith("-compiled") else ""
        if name.removesuffix(suffix) in (*TELEMETRY, "watch", "telemetry", "coverage"):
            return f"wag{suffix}"
        if name.startswith("llama-"):
            return f"llama-fp32{suffix}"
        return ("bf16" if device == "cuda" else "fp32") + suffix

    others = {"watch": make_watch(sizes, device), "hooks": make_hooks(sizes)}
    times = measure(steps | others, turns, show, device)
    hooks = [seconds / HOOK_CALLS for seconds in times.pop("hooks")]
    times["coverage"] = [step + hook for step, hook in zip(times["wag"], hooks, strict=True)]
    for suffix in ("", "-compiled"):
        if f"wag{suffix}" in times:
            times[f"telemetry{suffix}"] = ten_steps(times, f"wag{suffix}")
    arms = compared(times, baseline_of)
    rules = {rule: make_optimizer_step(rule, sizes, device) for rule in ("adamw-step", "manifold-step")}
    arms += compared(measure(rules, 5 * turns, show, device), lambda name: "adamw-step")
    memory = []
    for name in ("fp32", "w", "wag"):
        show(f"memory of {name}")
        memory.append((name, max(peak_memory(name, sizes, device), 1 / 1024)))  # a tiny model may fit what was there
    return TrainingRecord(
        date=datetime.now(UTC).replace(microsecond=0),
        altgrad=altgrad.__version__,
        code=code_fingerprint("run"),
        device=torch.cuda.get_device_name() if device == "cuda" else "the processor",
        cores=os.cpu_count() or 1,
        load=load,
        versions={
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "vectors": torch.backends.cpu.get_cpu_capability(),
        },
        sizes=sizes,
        turns=turns,
        arms=arms,
        memory=tuple(
            Memory(name=name, mebibytes=peak, ratio=peak / memory[0][1], goal=MEMORY_GOAL if name == "wag" else None)
            for name, peak in memory
        ),
        shares=where_time_goes(sizes, device),
    )


def main() -> int:
    """Measure and record; 0, 2 for a user's mistake, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="a trial of the machinery with a tiny model")
    parser.add_argument("--turns", type=int, default=15, help="steps of every arm (15)")
    parser.add_argument("--record", type=Path, help="where the figures go (benchmarks/recorded/training.json)")
    options = parser.parse_args()
    name = "training.json" if options.device == "cpu" else "training-cuda.json"
    path = options.record or RECORDED / name
    if options.quick and options.record is None:
        parser.error("a quick trial is not recorded for the site: name another file with --record")
    if options.turns < 4:
        parser.error(f"--turns {options.turns}: give at least 4")
    import torch
    from rich.console import Console

    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: --device cuda: torch sees no GPU here", file=sys.stderr)
        return 2
    try:
        with Console(stderr=True).status("") as status:
            record = bench(options.device, options.quick, options.turns, status.update)
    except KeyboardInterrupt:
        print("interrupted; the record is as it was", file=sys.stderr)
        return 130
    write_record(record, path)
    for arm in record.arms:
        goal = "" if arm.goal is None else f"   goal {arm.goal:g}: {'met' if arm.ratio <= arm.goal else 'missed'}"
        print(f"{arm.name:28} {arm.ratio:5.2f} x {arm.baseline} ({arm.low:.2f} to {arm.high:.2f}){goal}")
    for row in record.memory:
        print(f"memory {row.name:21} {row.ratio:5.2f} x fp32 ({row.mebibytes:.0f} MiB)")
    print(f"record: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
