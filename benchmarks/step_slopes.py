"""How the size of a weight's step depends on the spacing of the grid at it, measured while the campaign's model trains.

    .venv/bin/python benchmarks/step_slopes.py                   measure and record, in a few minutes
    .venv/bin/python benchmarks/step_slopes.py --quick --record trial.json

For each step rule and format: the slope of log2|dw| over log2 S(w), S being the format's ulp at the weight before its
step. 1 says that a step is a number of ulps, 0 that it does not know the grid. The model trains without quantization
and without weight decay, so that nothing but the step rule acts on the weights, at the learning rates that the pilot
found. The slope is that of all weights whose step is not zero, each tensor's means taken out: once for the first step,
where Adam's direction has size one, and once for every twentieth step of the last two thirds. The record goes to
benchmarks/recorded/step-slopes.json, which the manifold comparison shows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import altgrad  # noqa: E402
from altgrad.imports import code_fingerprint  # noqa: E402
from altgrad.reports.measured import RECORDED, write_record  # noqa: E402
from altgrad.reports.step_slopes import NAME, Slope, SlopesRecord  # noqa: E402

SEEDS, STEPS, EVERY = (0, 1, 2), 300, 20
RATE = 1.6e-2
RATES = {"e4m3": 1.28, "e5m2": 0.64}
"""Of the update precondition, in ulps, by format; the other parameters have AdamW's rate."""

RULES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "relative": {"relative": True, "learning_rate": 0.08},
    "gradient": {"step_rule": "manifold", "precondition": "gradient"},
    "gradient-without-eps": {"step_rule": "manifold", "precondition": "gradient", "eps": 1e-20},
    "update": {"step_rule": "manifold", "precondition": "update"},
    "shuffled": {"step_rule": "manifold", "precondition": "update", "stiffness": "shuffled"},
    "constant": {"step_rule": "manifold", "precondition": "update", "stiffness": "constant"},
}


def settings(rule: str, fmt: str, seed: int) -> dict[str, Any]:
    """The config of one measurement: no operand quantized, the rule's S that of the format."""
    optimizer = {"learning_rate": RATE, "weight_decay": 0.0} | RULES[rule]
    if "precondition" in optimizer:
        optimizer |= {"format": fmt}
    if optimizer.get("precondition") == "update":
        optimizer |= {"learning_rate": RATES[fmt]}
    if optimizer["learning_rate"] != RATE:
        optimizer |= {"other_learning_rate": RATE}
    return {"optimizer": optimizer, "seed": seed, "max_steps": STEPS}


def steps_and_spacings(rule: str, fmt: str, seed: int, count: int) -> Iterator[tuple[int, Any, Any]]:
    """(step, log2|dw|, log2 S), flat and centred within each tensor: of the first step and of every twentieth."""
    import torch

    from altgrad.config import parse_config
    from altgrad.formats import get_format
    from altgrad.nn import quantized_layers
    from altgrad.rounding import ulp
    from altgrad.scaling import amax_scale
    from altgrad.training import load_corpus
    from altgrad.training.loop import Batches, build_model, build_optimizer, rate_factor

    config = parse_config(settings(rule, fmt, seed), source="step_slopes.py")
    model = build_model(config)
    optimizer = build_optimizer(config, model)
    rates = [group["lr"] for group in optimizer.param_groups]
    batches = Batches(load_corpus(), config, torch.device("cpu"))
    weights = [layer.weight for layer in quantized_layers(model).values()]
    grid = get_format(fmt)
    for step in range(1, count + 1):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * rate_factor(config, step)
        optimizer.zero_grad(set_to_none=True)
        model.loss(*batches.next()).backward()
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        before = [weight.detach().clone() for weight in weights]
        optimizer.step()
        if step > 1 and (step % EVERY or 3 * step < count):
            continue
        changes: list[torch.Tensor] = []
        spacings: list[torch.Tensor] = []
        for weight, old in zip(weights, before, strict=True):
            change = (weight.detach() - old).double().abs().flatten()
            spacing = ulp(old, grid, amax_scale(old, grid)).double().flatten()
            moved = change > 0
            if moved.any():
                for found, values in ((changes, change), (spacings, spacing)):
                    logs = values[moved].log2()
                    found.append(logs - logs.mean())
        yield step, torch.cat(changes).numpy(), torch.cat(spacings).numpy()


def slopes(rule: str, fmt: str, seed: int, count: int) -> tuple[float, float]:
    """The slope at the first step, and over the later ones."""
    import numpy as np

    first: list[Any] = []
    later: list[Any] = []
    for step, change, spacing in steps_and_spacings(rule, fmt, seed, count):
        (first if step == 1 else later).append((change, spacing))

    def slope(pairs: list[Any]) -> float:
        change, spacing = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
        return float(change @ spacing / (spacing @ spacing))

    return slope(first), slope(later)


def measure(seeds: tuple[int, ...], count: int) -> SlopesRecord:
    """All rules and formats."""
    import numpy
    import torch

    torch.set_num_threads(1)
    found = []
    for fmt in RATES:
        for rule in RULES:
            pairs = [slopes(rule, fmt, seed, count) for seed in seeds]
            first, later = zip(*pairs, strict=True)
            found.append(Slope(rule=rule, format=fmt, first=first, later=later))
            print(f"{fmt} {rule:20} first step {numpy.mean(first):+.3f}, later {numpy.mean(later):+.3f}")
    return SlopesRecord(
        date=datetime.now(UTC).replace(microsecond=0),
        altgrad=altgrad.__version__,
        code=code_fingerprint("run"),
        versions={"torch": torch.__version__, "numpy": numpy.__version__},
        seeds=seeds,
        steps=count,
        slopes=tuple(found),
    )


def main() -> int:
    """Measure and record; 0, 2 for a user's mistake, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a trial of the machinery: one seed, 40 steps")
    parser.add_argument("--record", type=Path, help=f"where the figures go (benchmarks/recorded/{NAME})")
    options = parser.parse_args()
    if options.quick and options.record is None:
        parser.error("a quick trial is not recorded for the site: name another file with --record")
    try:
        record = measure(SEEDS[:1] if options.quick else SEEDS, 40 if options.quick else STEPS)
    except KeyboardInterrupt:
        print("interrupted; the record is as it was", file=sys.stderr)
        return 130
    path = options.record or RECORDED / NAME
    write_record(record, path)
    print(f"record: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
