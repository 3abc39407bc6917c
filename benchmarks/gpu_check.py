"""Whether a GPU computes as it should and what it takes, in three parts of at most nine minutes each.

    make gpu-check                    all three; what has run with this code on this GPU is not run again
    make gpu-check PART=rounding      one of rounding, training, pair
    make gpu-check ARGS=--again       all of it once more

rounding: the compiled kernel (Triton) against the processor's bits, and its time against a copy. training: native FP8
products against simulated ones, and a step's time against bf16 and against torchao's float8, in turns in one process.
pair: FP32 and E4M3 of study formats-large at one fixed rate, untuned; it is stopped in time and goes on from there.
Each part writes its figures to benchmarks/recorded/gpu.json, which the site shows, as it ends. Without a GPU no part
runs. `--device cpu --quick` tries the machinery on a processor, into another file than the site's (--record).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import quantize as rounding  # noqa: E402
import torch  # noqa: E402
import training as steps  # noqa: E402

import altgrad  # noqa: E402
from altgrad.config import UsageError  # noqa: E402
from altgrad.imports import code_fingerprint  # noqa: E402
from altgrad.nn import Policy, quantize_model  # noqa: E402
from altgrad.nn.layers import native_lack  # noqa: E402
from altgrad.reports.measured import RECORDED, read_record, write_record  # noqa: E402
from altgrad.reports.run_costs import Check, Figure, GpuRecord  # noqa: E402
from altgrad.runs import read_run, run_id  # noqa: E402
from altgrad.studies import ARMS  # noqa: E402

MINUTES = 8.5
RATE = 1e-3
"""The learning rate of the pair, chosen beforehand and tuned for neither."""
SIZES: dict[bool, dict[str, Any]] = {
    False: {"elements": 1 << 28, "inputs": 1 << 24, "width": 4096, "rows": 8192, "layers": 4, "turns": 15},
    True: {"elements": 1 << 10, "inputs": 1 << 10, "width": 64, "rows": 64, "layers": 1, "turns": 4},
}
ACCUMULATED = 2**-10
"""The most by which a native product may be off, of the sum of the magnitudes that it adds."""


def check_rounding(device: str, quick: bool, out: Path) -> list[Figure]:
    """The bits of six kernels, and the bandwidth of one."""
    found = rounding.accelerator(device, SIZES[quick]["elements"], SIZES[quick]["inputs"])
    return [
        Figure(
            name=f"Results that differ in a bit, of {found.compared:,}", value=found.differing, unit="", goal=0,
            floor_name="",
        ),
        Figure(
            name=f"Rounding {found.elements:,} numbers to E4M3", unit="ms", goal_ratio=1.25, floor_name="a copy",
            value=8e3 * found.elements / found.quantize_bandwidth, floor=8e3 * found.elements / found.copy_bandwidth,
        ),
    ]  # fmt: skip


def check_training(device: str, quick: bool, out: Path) -> list[Figure]:
    """Native products against simulated ones, and the time of steps against bf16."""
    size, suffix = SIZES[quick], "-compiled" if device == "cuda" else ""
    lack = native_lack(torch.device(device))
    figures = [] if lack else [products(device, size)]
    sizes = steps.SIZES["quick" if quick else "cuda"]
    names = ("bf16", "wag", *(() if lack else ("native",)))
    gpt = {name: steps.make_step(name + suffix, sizes, device) for name in names}
    linear, missing = {} if lack else linear_steps(device, size), ""
    if not lack and "torchao" not in linear:
        missing = "torchao is not installed, or does not fit this torch: pip install torchao"
    named = {f"gpt {name}": step for name, step in gpt.items()} | {f"linear {name}": s for name, s in linear.items()}
    times = {name: 1e3 * min(each) for name, each in steps.measure(named, size["turns"], _show, device).items()}
    layers = f"layers of {size['width']:,} on {size['rows']:,} rows"
    floor: Any = {"unit": "ms", "floor": times["gpt bf16"], "floor_name": "bf16"}
    simulated = {"name": "A GPT's step, simulated E4M3", "value": times["gpt wag"], "goal_ratio": 1 / 0.7, **floor}
    figures.append(Figure(**simulated, reason=lack))
    if lack:
        return figures
    wide: Any = {"unit": "ms", "floor": times["linear bf16"], "floor_name": "bf16"}
    figures += [
        Figure(name="A GPT's step, native FP8", value=times["gpt native"], **floor),
        Figure(name=f"Native FP8, {layers}", value=times["linear native"], goal_ratio=1.0, reason=missing, **wide),
    ]
    if not missing:
        own, theirs = times["linear native"], times["linear torchao"]
        figures.append(Figure(name=f"torchao's float8, {layers}", value=theirs, **wide))
        against: Any = {"floor": theirs, "floor_name": "torchao's float8", "goal_ratio": 1.05}
        figures.append(Figure(name=f"Native FP8 against torchao's, {layers}", value=own, unit="ms", **against))
    return figures


def products(device: str, size: dict[str, Any]) -> Figure:
    """How far the three native products of a layer are from the simulated ones, of the magnitudes that they add."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((size["rows"], size["width"]), (size["width"], size["width"]), (size["rows"], size["width"]))
    x, weight, grad = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
    ends = []
    for compute in ("simulated", "native"):
        model = torch.nn.ModuleDict({"mlp": torch.nn.Linear(size["width"], size["width"], bias=False, device=device)})
        model["mlp"].weight.data.copy_(weight)
        quantize_model(model, _policy(compute))
        inputs = x.clone().requires_grad_()
        y = model["mlp"](inputs)
        y.backward(grad)
        ends.append((y.detach(), cast(torch.Tensor, inputs.grad), model["mlp"].weight.grad))
    sums = (x.abs() @ weight.abs().t(), grad.abs() @ weight.abs(), grad.abs().t() @ x.abs())
    worst = max(float(((a - b).abs() / total).max()) for a, b, total in zip(*ends, sums, strict=True))
    return Figure(name="Native products, off by at most", value=worst, unit="of what they add", goal=ACCUMULATED)


def linear_steps(device: str, size: dict[str, Any]) -> dict[str, Callable[[], None]]:
    """A forward and a backward pass through wide layers in bf16, natively, and by torchao where it is installed."""

    def make(name: str) -> Callable[[], None]:
        width = size["width"]
        model = torch.nn.Sequential(*(torch.nn.Linear(width, width, bias=False) for _ in range(size["layers"])))
        model = model.to(device, torch.bfloat16)
        if name == "native":
            quantize_model(model, _policy("native"))
        elif name == "torchao":
            from torchao.float8 import Float8LinearConfig, convert_to_float8_training

            convert_to_float8_training(model, config=Float8LinearConfig(emulate=device == "cpu"))
        run = torch.compile(model) if device == "cuda" else model
        x = torch.randn(size["rows"], width, device=device, dtype=torch.bfloat16, requires_grad=True)

        def step() -> None:
            run(x).float().square().mean().backward()
            if device == "cuda":
                torch.cuda.synchronize()

        return step

    found = {name: make(name) for name in ("bf16", "native")}
    with contextlib.suppress(ImportError):
        found["torchao"] = make("torchao")
    return found


def _policy(compute: Literal["simulated", "native"]) -> Policy:
    native = steps.policies()["native"]
    return Policy(native.weight, native.activation, native.grad_output, layers=("*",), compute=compute)


def check_pair(device: str, quick: bool, out: Path) -> list[Figure] | None:
    """FP32 and E4M3 of formats-large, one seed, at one rate; None where they were stopped in time."""
    from altgrad.training import train

    until = threading.Timer(60 * MINUTES, os.kill, (os.getpid(), signal.SIGTERM))
    until.daemon = True
    until.start()
    figures, losses = [], list[float]()
    try:
        for name in ("FP32 large", "E4M3 large"):
            config = ARMS[name].config(seed=0, study="gpu-check", rate=RATE)
            told = {"notes": f"A trial of the study at the fixed rate {RATE:g}: untuned.", "checkpoint": {"every": 500}}
            short = {"max_steps": 4, "warmup_steps": 1, "eval_every": 2, "layers_every": 2, "batch_size": 2}
            given = config.model_dump(exclude_unset=True) | told | (short if quick else {})
            if quick:
                given |= {"model": {"layers": 1, "dim": 16, "heads": 2, "context": 16}, "checkpoint": {"every": 2}}
            config = type(config).model_validate(given)
            folder = out / run_id(config, steps_data(config))
            done = folder.is_dir() and read_run(folder).status == "finished"
            if not done:
                train(config, out, device=device, resume=folder.is_dir(), progress=False)
            record = read_run(folder)
            losses.append(float(record.run["summary"]["val_loss"]))
            figures.append(Figure(name=f"{name}, validation loss (untuned)", value=losses[-1], unit="nats"))
            seconds = float(record.run["seconds"])
            figures.append(
                Figure(name=f"{name}, seconds a thousand steps", value=1e3 * seconds / config.max_steps, unit="s")
            )
    except SystemExit:
        return None
    finally:
        until.cancel()
    return figures


def steps_data(config: Any) -> dict[str, Any]:
    """What is recorded of a config's training data."""
    from altgrad.training.data import load_corpus

    return dict(load_corpus(config.data, config.tokenizer, config.vocabulary).fingerprint)


PARTS: dict[str, Callable[[str, bool, Path], list[Figure] | None]] = {
    "rounding": check_rounding,
    "training": check_training,
    "pair": check_pair,
}


def check(part: str, device: str, quick: bool, out: Path) -> Check | None:
    """One part; None where it was stopped in time and is to go on."""
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    if (figures := PARTS[part](device, quick, out)) is None:
        return None
    return Check(
        date=datetime.now(UTC).replace(microsecond=0),
        altgrad=altgrad.__version__,
        code=code_fingerprint("run"),
        cores=os.cpu_count() or 1,
        load=load,
        versions={"torch": torch.__version__, "CUDA": str(torch.version.cuda)},
        part=cast(Any, part),
        device=name_of(device),
        figures=tuple(figures),
    )


def name_of(device: str) -> str:
    """What the device is called; a processor is never called a GPU."""
    return torch.cuda.get_device_name() if device == "cuda" else "the processor"


def _show(text: str) -> None:
    print(f"{text} ...", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what has not run; 0, also without a GPU, 2 for a user's mistake, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="rounding, training, pair (all)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--again", action="store_true", help="also what has run")
    parser.add_argument("--record", type=Path, help="where the figures go (benchmarks/recorded/gpu.json)")
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "runs", help="of the pair's records")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - {*PARTS}:
        parser.error(f"{min(unknown)}: no part; there are {', '.join(PARTS)}")
    if options.record is None and (options.quick or options.device == "cpu"):
        parser.error("what is no GPU's, or quick, is not recorded for the site: name another file with --record")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("0 checks run: torch sees no GPU here")
        return 0
    path, ran = options.record or RECORDED / "gpu.json", 0
    try:
        record = read_record(path, GpuRecord)
        known = {str(each.part): each for each in record.checks} if record else {}
        for part in options.parts or PARTS:
            old = known.get(part)
            if (
                old
                and not options.again
                and (old.code, old.device) == (code_fingerprint("run"), name_of(options.device))
            ):
                print(f"{part}: has run with this code on {old.device}")
                continue
            found = check(part, options.device, options.quick, options.out)
            if found is None:
                print(f"{part}: stopped in time; the same command goes on")
                continue
            known[part], ran = found, ran + 1
            write_record(GpuRecord(checks=tuple(known[each] for each in PARTS if each in known)), path)
            for figure in found.figures:
                ratio = f"   {figure.times_floor:.2f} x {figure.floor_name}" if figure.floor else ""
                result = {True: "   met", False: "   missed", None: ""}[figure.met]
                print(f"{figure.name}: {figure.value:.4g} {figure.unit}{ratio}{result}")
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as error:
        print(f"error: {part}: the GPU's memory is too small or in use ({str(error).split('. ')[0]})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the parts that ended are recorded", file=sys.stderr)
        return 130
    print(f"{ran} checks run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
