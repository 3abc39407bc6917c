"""What clamped error diffusion of the logits' gradient adds to a training step.

    .venv/bin/python benchmarks/diffusion.py                     measure and record, in two minutes
    .venv/bin/python benchmarks/diffusion.py --quick --record trial.json

Of a GPT of 2 layers of 64 with every operand quantized, batch 16 and context 32: the step with the head's grad_output
rounded to nearest, stochastically and by diffusion, and without its rounding. The arms take turns, in processor time of
one thread; a difference is the median of those within a turn, so that a noisy machine disturbs both sides alike. The
record goes to benchmarks/recorded/diffusion.json, which the page on training shows.
"""

from __future__ import annotations

import argparse
import platform
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
from altgrad.reports.diffusion_cost import NAME, Cost, DiffusionRecord  # noqa: E402
from altgrad.reports.measured import RECORDED, write_record  # noqa: E402

CLASSES = (96, 2048)
ROUNDINGS = ("nearest_even", "stochastic", "diffused", "wide")
SIZES = {"layers": 2, "dim": 64, "heads": 4, "context": 32}
BATCH = 16


def make_step(rounding: str, element: str, classes: int) -> Callable[[], None]:
    """One step: loss, gradients, clipping, AdamW."""
    import torch

    from altgrad.formats import FP32, get_format
    from altgrad.models import GPT
    from altgrad.nn import Operand, Policy, Scaling, quantize_model

    fmt = get_format(element)
    rule = Scaling("nvfp4", axis="contraction") if element == "e2m1" else Scaling()
    every = Operand(fmt, scaling=rule)
    own = Operand(FP32) if rounding == "wide" else Operand(fmt, rounding, rule)
    model = GPT(classes, **SIZES, seed=0)
    quantize_model(model, {"head": Policy(every, every, own), "*": Policy(every, every, every)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)
    text = torch.randint(0, classes, (BATCH, SIZES["context"] + 1), generator=torch.Generator().manual_seed(0))
    token, target = text[:, :-1].contiguous(), text[:, 1:].contiguous()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model.loss(token, target).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def measure(element: str, classes: int, turns: int) -> list[Cost]:
    """The cost of each rounding, in turns."""
    steps = {rounding: make_step(rounding, element, classes) for rounding in ROUNDINGS}
    seconds: dict[str, list[float]] = {rounding: [] for rounding in ROUNDINGS}
    for turn in range(turns + 3):
        order = ROUNDINGS if turn % 2 else ROUNDINGS[::-1]
        for rounding in order:
            start = time.process_time()
            steps[rounding]()
            if turn >= 3:
                seconds[rounding].append(time.process_time() - start)
    nearest = seconds["nearest_even"]
    step = statistics.median(nearest)
    return [
        Cost(
            format=element,
            classes=classes,
            rounding=rounding,
            step_ms=1e3 * statistics.median(taken),
            added=statistics.median(a - b for a, b in zip(taken, nearest, strict=True)) / step,
        )
        for rounding, taken in seconds.items()
    ]


def main() -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--record", type=Path, default=RECORDED / NAME, metavar="FILE")
    options = parser.parse_args()
    import numpy
    import torch

    torch.set_num_threads(1)
    found: list[Cost] = []
    for classes in CLASSES:
        for element in ("e4m3", "e2m1"):
            found += measure(element, classes, 3 if options.quick else 120 if classes == CLASSES[0] else 40)
    for cost in found:
        print(f"{cost.format} {cost.classes:5} {cost.rounding:13} {cost.step_ms:8.2f} ms {cost.added:+8.1%}")
    versions: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {"numpy": numpy.__version__}
    record = DiffusionRecord(date=datetime.now(UTC), altgrad=altgrad.__version__, versions=versions, costs=tuple(found))
    write_record(record, options.record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
