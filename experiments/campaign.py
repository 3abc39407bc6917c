"""The recorded studies: which configs they are made of, and the command that runs them.

    python experiments/campaign.py [STUDY ...]              run what is not recorded yet; may be stopped and repeated
    python experiments/campaign.py pack [STUDY ...]         write experiments/recorded/STUDY/, small enough to commit

A study is a function that returns configs. Without a name the whole campaign runs, in the order of `CAMPAIGN`. Runs are
single-threaded, one process a core. A run that failed or crashed is recorded and not repeated: what happened is the
result. One whose process was stopped or killed is. Learning rates are tuned on seeds that no study reports, and a study
takes them from the recorded tuning runs; what each study is to answer was written down before it ran, in
docs/method/preregistration.md.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from altgrad.cli import guarded  # noqa: E402
from altgrad.config import LAYER_TYPES, OPERANDS, ExperimentConfig, UsageError, parse_config  # noqa: E402
from altgrad.formats import SPLITS_8BIT, get_format  # noqa: E402

if TYPE_CHECKING:
    from altgrad.runs import RunRecord

RUNS = ROOT / "experiments" / "runs"
RECORDED = ROOT / "experiments" / "recorded"

Losses = Mapping[str, float]
"""Run id -> final validation loss of the ended runs; infinite for one that did not finish."""

Study = Callable[[Losses], list[ExperimentConfig]]

TUNING_SEEDS = (100, 101)
SEEDS = tuple(range(10, 26))
"""Seeds of the campaign's arms; the pilot had 0 to 4."""

CLOSE_SEEDS = tuple(range(10, 42))
"""Seeds of FP32 and of the three formats that the pilot could not tell apart."""

FEW_SEEDS = tuple(range(10, 18))
LONG_SEEDS = tuple(range(10, 15))
SPLITS = ("e0m7", "e2m5", "e3m4", "e4m3", "e5m2", "e6m1", "e7m0")
"""E1M6 is E0M7 with another scale: it runs once, to show it."""

CLOSE_FORMATS = ("e3m4", "e4m3", "e5m2")
RULE_FORMATS = ("e4m3", "e5m2", "e0m7")

FP32_RATE = 1.6e-2
"""AdamW's rate for FP32, the best of study pilot-tuning. Every arm has it for the parameters that are not quantized."""

OWN_RATES = {"e0m7": 8e-3, "e7m0": 4e-3}
"""The formats that study pilot-tuning found another rate for, with all operands quantized."""

ADAMW_RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
"""Swept for AdamW and for the gradient precondition, whose steps are in the same unit."""

ULPS_OF_ONE = (0.04, 0.08, 0.16, 0.32, 0.64)
"""Swept for the update precondition, as a step relative to the weight: the rate in ulps is this times 2^M. E0M7 has
the same ulp for every weight, about 2^-7 of the tensor's largest: there the rates are AdamW's, in ulps."""

RELATIVE_RATES = (0.02, 0.04, 0.08, 0.16, 0.32)
CODE_RATES = (0.0625, 0.125, 0.25, 0.5, 1.0)
MOST_EXTENSIONS = 4
"""How often the sweep of one arm is extended by a factor of 2 while its best rate lies at an edge."""

RULES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "relative": {"relative": True},
    "gradient": {"step_rule": "manifold", "precondition": "gradient"},
    "update": {"step_rule": "manifold", "precondition": "update"},
    "code": {"step_rule": "code", "weight_decay": 0},
}
PLACES: dict[str, dict[str, Any]] = {
    "master": {},
    "master stochastic": {"rounding": "stochastic"},
    "nearest": {"storage": "grid"},
    "stochastic": {"storage": "grid", "rounding": "stochastic"},
    "feedback": {"storage": "grid", "rounding": "error_feedback"},
}
GRID = ("nearest", "stochastic", "feedback")
PACKED_LOOKS = 100
"""A packed study keeps the looks at multiples of this step whole."""

SHORT = {"eval_every": 100, "log_every": 10, "layers_every": 50}
MISSCALED: dict[str, Any] = {"model": {"rescale": 6}, "clip_norm": None}
LARGE: dict[str, Any] = {
    "model": {"layers": 6, "dim": 384, "heads": 6, "context": 256},
    "batch_size": 64,
    "max_steps": 5000,
    "warmup_steps": 200,
    "eval_every": 1000,
    "layers_every": 500,
}
Arm = dict[str, Any]


def every(fmt: str) -> dict[str, str]:
    """All three operands in one format."""
    return dict.fromkeys(OPERANDS, fmt)


def arm(quantize: Mapping[str, Any], rule: str = "adamw", place: str = "master", **settings: Any) -> Arm:
    """A config without its rate and seed: a step rule of `RULES` with the weights kept as one of `PLACES` says."""
    optimizer = RULES[rule] | PLACES[place] | settings.pop("optimizer", {})
    return {**SHORT, "quantize": dict(quantize), "optimizer": optimizer, **settings}


def run(study: str, given: Arm, rate: float, seed: int) -> ExperimentConfig:
    """One run of an arm. AdamW without quantization has one rate, for all parameters."""
    optimizer = {"learning_rate": rate} | given["optimizer"]
    if (given["quantize"] or given["optimizer"]) and optimizer != {"learning_rate": FP32_RATE}:
        optimizer.setdefault("other_learning_rate", FP32_RATE)
    settings = {**given, "optimizer": optimizer, "study": study, "seed": seed}
    return parse_config(settings, source=f"campaign.py, study {study}")


def over(study: str, seeds: Sequence[int], arms: Sequence[tuple[Arm, float]]) -> list[ExperimentConfig]:
    """Every (arm, rate) with every seed, seed by seed: a study that was stopped has about as many of each."""
    return [run(study, given, rate, seed) for seed in seeds for given, rate in arms]


def base_rates(given: Arm) -> tuple[float, ...]:
    """The five learning rates that every arm of a rule is tried with, two apart by a factor of 2."""
    optimizer = given["optimizer"]
    if optimizer.get("relative"):
        return RELATIVE_RATES
    if optimizer.get("step_rule") == "code":
        return CODE_RATES
    if optimizer.get("precondition") != "update":
        return ADAMW_RATES
    fmt = get_format(optimizer.get("format") or given["quantize"]["weight"])
    return tuple(rate * 2**fmt.mantissa_bits for rate in (ULPS_OF_ONE if fmt.exponent_bits else ADAMW_RATES))


def sweep(study: str, given: Arm, losses: Losses) -> tuple[list[float], float | None]:
    """The rates to try for an arm, and the best of them: the lowest mean loss over the held-out seeds.

    While the best lies at an edge, the sweep goes on beyond it. None for the best until all rates are recorded.
    """
    rates = list(base_rates(given))
    for extensions in range(MOST_EXTENSIONS + 1):
        means = [_mean_loss(study, given, rate, losses) for rate in rates]
        if None in means:
            return rates, None
        best = min(rates, key=lambda rate: means[rates.index(rate)])
        if rates[0] < best < rates[-1] or extensions == MOST_EXTENSIONS:
            return rates, best
        rates = [best / 2, *rates] if best == rates[0] else [*rates, best * 2]
    raise AssertionError("the last round returns")


def tuned(study: str, given: Arm, losses: Losses) -> float:
    """The best rate of an arm in a recorded tuning study.

    Raises:
        UsageError: it is not recorded yet.
    """
    best = sweep(study, given, losses)[1]
    if best is None:
        name = run(study, given, 1.0, 0).resolved_name
        raise UsageError(f"{name}: its learning rate is not tuned yet; run STUDY={study} first")
    return best


def _mean_loss(study: str, given: Arm, rate: float, losses: Losses) -> float | None:
    found = [losses.get(identity(run(study, given, rate, seed))) for seed in TUNING_SEEDS]
    return None if None in found else math.fsum(loss for loss in found if loss is not None) / len(found)


def rule_arms() -> list[Arm]:
    """The arms of the comparison of step rules, whose rates study tuning finds: rule x storage x rounding x format.

    All of them on the first of `RULE_FORMATS`; AdamW, steps in ulps and steps of codes on the others.
    """
    found = []
    for fmt in RULE_FORMATS:
        whole = fmt == RULE_FORMATS[0]
        found += [arm(every(fmt), rule) for rule in (("gradient", "update", "relative") if whole else ("update",))]
        if whole:
            found.append(arm(every(fmt), "adamw", "master stochastic"))
        rules = ("adamw", "update", "gradient", "relative") if whole else ("adamw", "update")
        found += [arm(every(fmt), rule, place) for rule in rules for place in GRID]
        found.append(arm(every(fmt), "code", "stochastic"))
    return found


def control_arms() -> list[Arm]:
    """What tells apart why a step rule does what it does; all with E4M3 or with its spacing.

    Each rule without any quantization; S in the wrong places and S the same everywhere; tensors that begin mis-scaled.
    """
    spacing = {"format": "e4m3"}
    unquantized = [arm({}, rule, optimizer=spacing) for rule in ("gradient", "update")] + [arm({}, "relative")]
    ablations = [arm(every("e4m3"), "update", optimizer={"stiffness": name}) for name in ("shuffled", "constant")]
    rules = ("adamw", "relative", "gradient", "update")
    misscaled = [arm(every("e4m3"), rule, **MISSCALED) for rule in rules] + [arm({}, "adamw", **MISSCALED)]
    return unquantized + ablations + misscaled


def tuning(losses: Losses) -> list[ExperimentConfig]:
    """Five learning rates and two held-out seeds for every arm of storage and controls; more where the best is last."""
    arms = rule_arms() + control_arms()
    found = [(given, rate) for given in arms for rate in sweep("tuning", given, losses)[0]]
    return [run("tuning", given, rate, seed) for given, rate in found for seed in TUNING_SEEDS]


def formats(losses: Losses) -> list[ExperimentConfig]:
    """The splits under AdamW at FP32's rate: all operands quantized, then one operand at a time."""
    study = "formats"
    close = [(arm(every(fmt)), FP32_RATE) for fmt in CLOSE_FORMATS]
    other = [(arm(every(fmt)), FP32_RATE) for fmt in (*SPLITS, "bf16") if fmt not in CLOSE_FORMATS]
    own = [(arm(every(fmt)), rate) for fmt, rate in OWN_RATES.items()]
    single = [(arm({operand: fmt}), FP32_RATE) for operand in OPERANDS for fmt in SPLITS]
    return [
        *over(study, CLOSE_SEEDS, [(arm({}), FP32_RATE), *close]),
        *over(study, SEEDS, other + own),
        *over(study, SEEDS[:1], [(arm(every("e1m6")), FP32_RATE)]),
        *over(study, SEEDS, single),
    ]


def layers(losses: Losses) -> list[ExperimentConfig]:
    """The splits in one layer type at a time, everything else unquantized."""
    arms = [arm({**every(fmt), "layers": [kind]}) for kind in LAYER_TYPES for fmt in SPLITS]
    return over("layers", SEEDS, [(given, FP32_RATE) for given in arms])


def storage(losses: Losses) -> list[ExperimentConfig]:
    """The step rules with master weights and with weights on the grid, each arm at its tuned rate."""
    return over("storage", SEEDS, [(given, tuned("tuning", given, losses)) for given in rule_arms()])


def controls(losses: Losses) -> list[ExperimentConfig]:
    """The controls and ablations of `control_arms`, each arm at its tuned rate."""
    return over("controls", SEEDS, [(given, tuned("tuning", given, losses)) for given in control_arms()])


def scaling(losses: Losses) -> list[ExperimentConfig]:
    """Other scales than one power of two a tensor from its current amax: exact, by row, by block, delayed, none."""
    rules = ({"power_of_two": False}, {"granularity": "row"}, {"granularity": "block"}, {"kind": "delayed"})
    arms = [arm(every(fmt), scaling=rule) for fmt in RULE_FORMATS for rule in (*rules, {"kind": "none"})]
    return over("scaling", FEW_SEEDS, [(given, FP32_RATE) for given in arms])


def literature(losses: Losses) -> list[ExperimentConfig]:
    """What others report: E4M3 forward and E5M2 for gradients, the reverse, and block-scaled formats."""
    mixed = [{"weight": a, "activation": a, "grad_output": b} for a, b in (("e4m3", "e5m2"), ("e5m2", "e4m3"))]
    arms = [arm(operands) for operands in mixed]
    arms += [arm(every(fmt), scaling={"kind": kind}) for fmt, kind in (("e4m3", "mx"), ("e2m1", "mx"))]
    arms.append(arm(every("e2m1"), scaling={"kind": "nvfp4"}))
    return over("literature", SEEDS, [(given, FP32_RATE) for given in arms])


def remedies(losses: Losses) -> list[ExperimentConfig]:
    """What may help the two extreme splits: stochastic rounding, gradients in a wider format, a finer scale."""
    arms = []
    for fmt in ("e0m7", "e7m0"):
        both = dict.fromkeys(("activation", "grad_output"), "stochastic")
        arms.append(arm({**every(fmt), "rounding": {"grad_output": "stochastic"}}))
        arms.append(arm({**every(fmt), "rounding": both}))
        arms.append(arm({**every(fmt), "grad_output": "e5m2"}))
    arms.append(arm(every("e7m0"), scaling={"granularity": "block"}))  # E0M7's is in study scaling
    return over("remedies", SEEDS, [(given, FP32_RATE) for given in arms])


def length(losses: Losses) -> list[ExperimentConfig]:
    """Five times as many steps: does the order of the short runs hold?"""
    long = {"max_steps": 1500, "warmup_steps": 100, "eval_every": 300, "layers_every": 250}
    arms = [arm({}, **long), *(arm(every(fmt), **long) for fmt in (*CLOSE_FORMATS, "e0m7"))]
    return over("length", LONG_SEEDS, [(given, FP32_RATE) for given in arms])


def tensors(losses: Losses) -> list[ExperimentConfig]:
    """One run of FP32 and of each close format and extreme with the histograms of all operands, for the tensor view."""
    every_look = {"histograms": list(OPERANDS), "codes_every": 1}
    names = ("fp32", *CLOSE_FORMATS, "e0m7", "e7m0")
    arms = [arm({} if fmt == "fp32" else every(fmt), telemetry=every_look, layers_every=PACKED_LOOKS) for fmt in names]
    return over("tensors", SEEDS[:1], [(given, FP32_RATE) for given in arms])


def blocks(losses: Losses) -> list[ExperimentConfig]:
    """Block-scaled formats with scales rounded up, and with gradients rounded stochastically.

    Not preregistered: added when `literature` had been seen.
    """
    stochastic = {**every("e2m1"), "rounding": {"grad_output": "stochastic"}}
    arms = [arm(every(fmt), scaling={"kind": "mx_rceil"}) for fmt in ("e4m3", "e2m1")]
    arms += [arm(stochastic, scaling={"kind": kind}) for kind in ("mx", "mx_rceil", "nvfp4")]
    return over("blocks", SEEDS, [(given, FP32_RATE) for given in arms])


def quick(losses: Losses) -> list[ExperimentConfig]:
    """A taste of every study in three minutes: short runs, two seeds, rates of the pilot."""
    short = {"max_steps": 60, "eval_every": 30, "layers_every": 20}
    arms = [(arm({}, **short), FP32_RATE)]
    arms += [(arm(every(fmt), **short), FP32_RATE) for fmt in ("e4m3", "e5m2", "e0m7", "e7m0")]
    arms += [(arm({**every("e0m7"), "layers": [kind]}, **short), FP32_RATE) for kind in LAYER_TYPES]
    arms += [(arm(every("e4m3"), "adamw", place, **short), FP32_RATE) for place in GRID]
    arms += [(arm(every("e4m3"), "update", **short), 1.28), (arm(every("e4m3"), "code", "stochastic", **short), 0.5)]
    return over("quick", SEEDS[:2], arms)


def large_arms() -> list[Arm]:
    """The arms of storage-large."""
    return [arm(every("e4m3"), rule, place, **LARGE) for rule in ("adamw", "update") for place in GRID[:2]]


def tuning_large(losses: Losses) -> list[ExperimentConfig]:
    """The rates of the two large studies: 6 layers of 384, 5,000 steps; for a GPU."""
    arms = [arm({}, **LARGE), *large_arms()]
    found = [(given, rate) for given in arms for rate in sweep("tuning-large", given, losses)[0]]
    return [run("tuning-large", given, rate, seed) for given, rate in found for seed in TUNING_SEEDS]


def formats_large(losses: Losses) -> list[ExperimentConfig]:
    """FP32 and the splits with 6 layers of 384 and 5,000 steps; for a GPU."""
    rate = tuned("tuning-large", arm({}, **LARGE), losses)
    shared = {"other_learning_rate": rate}
    arms = [arm({}, **LARGE), *(arm(every(fmt), optimizer=shared, **LARGE) for fmt in SPLITS)]
    return over("formats-large", LONG_SEEDS, [(given, rate) for given in arms])


def storage_large(losses: Losses) -> list[ExperimentConfig]:
    """AdamW and steps in ulps on E4M3's grid with 6 layers of 384 and 5,000 steps; for a GPU."""
    arms = [(given, tuned("tuning-large", given, losses)) for given in large_arms()]
    return over("storage-large", LONG_SEEDS, arms)


PILOT_SEEDS = (0, 1, 2, 3, 4)
PILOT_RULES = ("adamw", "gradient", "update")
PILOT_FORMATS = ("e2m5", "e3m4", "e4m3", "e5m2")
EXTREME_FORMATS = ("e0m7", "e6m1", "e7m0")
PILOT_OTHER_RATE = 8e-3
"""AdamW's rate, in the pilot's manifold arms, for what the manifold rule leaves to AdamW (norms and positions)."""

PILOT_TUNED = {
    ("e2m5", "adamw"): 1.6e-2,
    ("e2m5", "gradient"): 1.6e-2,
    ("e2m5", "update"): 2.56,
    ("e3m4", "adamw"): 1.6e-2,
    ("e3m4", "gradient"): 1.6e-2,
    ("e3m4", "update"): 2.56,
    ("e4m3", "adamw"): 1.6e-2,
    ("e4m3", "gradient"): 1.6e-2,
    ("e4m3", "update"): 1.28,
    ("e5m2", "adamw"): 1.6e-2,
    ("e5m2", "gradient"): 1.6e-2,
    ("e5m2", "update"): 0.64,
}
"""Each arm's best rate in study pilot-tuning (mean validation loss of its two seeds); ulps for "update"."""


def pilot_run(study: str, fmt: str, rule: str, rate: float, seed: int, **rest: Any) -> ExperimentConfig:
    """One run of the pilot, with all operands in `fmt`."""
    optimizer = RULES[rule] | {"learning_rate": rate}
    if rule != "adamw":
        optimizer["other_learning_rate"] = PILOT_OTHER_RATE
    given = {"study": study, "seed": seed, "quantize": every(fmt), "optimizer": optimizer, **rest}
    return parse_config(given, source=f"campaign.py, study {study}")


def pilot_tuning(losses: Losses) -> list[ExperimentConfig]:
    """Five learning rates for every arm of pilot-manifold and for AdamW on the other splits, on two held-out seeds.

    The splits of `EXTREME_FORMATS` are here to show what the one rate of pilot-formats costs them.
    """
    pairs = [(fmt, "adamw") for fmt in ("fp32", *EXTREME_FORMATS)]
    pairs += [(fmt, rule) for fmt in PILOT_FORMATS for rule in PILOT_RULES]
    rates = {
        (fmt, rule): [r * 2 ** get_format(fmt).mantissa_bits for r in ULPS_OF_ONE] if rule == "update" else ADAMW_RATES
        for fmt, rule in pairs
    }
    return [
        pilot_run("pilot-tuning", fmt, rule, rate, seed)
        for fmt, rule in pairs
        for rate in rates[fmt, rule]
        for seed in TUNING_SEEDS
    ]


def pilot_formats(losses: Losses) -> list[ExperimentConfig]:
    """FP32, BF16 and the eight splits under AdamW, all at the rate tuned for FP32: what the format alone changes."""
    names = ["fp32", "bf16"] + [fmt.name for fmt in SPLITS_8BIT]
    return [pilot_run("pilot-formats", fmt, "adamw", FP32_RATE, seed) for seed in PILOT_SEEDS for fmt in names]


def pilot_manifold(losses: Losses) -> list[ExperimentConfig]:
    """AdamW and both preconditions on four formats, each arm at its own tuned rate."""
    return [
        pilot_run("pilot-manifold", fmt, rule, PILOT_TUNED[fmt, rule], seed)
        for seed in PILOT_SEEDS
        for fmt in PILOT_FORMATS
        for rule in PILOT_RULES
    ]


def demo(losses: Losses) -> list[ExperimentConfig]:
    """A small matrix of short runs that a newcomer trains live, in at most three minutes on two cores."""
    names = ("fp32", "e4m3", "e5m2", "e0m7", "e7m0")
    arms = [(fmt, "adamw", FP32_RATE) for fmt in names] + [("e4m3", "update", PILOT_TUNED["e4m3", "update"])]
    return [pilot_run("demo", *given, seed, max_steps=200) for seed in PILOT_SEEDS[:2] for given in arms]


CAMPAIGN: dict[str, Study] = {
    "formats": formats,
    "layers": layers,
    "tuning": tuning,
    "storage": storage,
    "controls": controls,
    "remedies": remedies,
    "literature": literature,
    "scaling": scaling,
    "length": length,
    "tensors": tensors,
    "blocks": blocks,
}
"""What `make campaign` runs, in this order: what others lean on, and what the reports lead with, first."""

STUDIES: dict[str, Study] = {
    **CAMPAIGN,
    "tuning-large": tuning_large,
    "formats-large": formats_large,
    "storage-large": storage_large,
    "pilot-tuning": pilot_tuning,
    "pilot-formats": pilot_formats,
    "pilot-manifold": pilot_manifold,
    "demo": demo,
    "quick": quick,
}


@cache
def data_fingerprint() -> Any:
    """What identifies the training data of all studies."""
    from altgrad.training import load_corpus

    return load_corpus().fingerprint


def identity(config: ExperimentConfig) -> str:
    """The run id of a config."""
    from altgrad.runs import run_id

    return run_id(config, data_fingerprint())


def has_ended(record: RunRecord) -> bool:
    """Whether a run came to an end of its own, good or bad.

    One that was interrupted, or whose process was killed, did not, and is run again.
    """
    return record.status in ("finished", "failed", "crashed") and bool(record.run.get("ended"))


def ended_losses(folders: Sequence[Path]) -> dict[str, float]:
    """The final loss of every run in the folders that has ended; infinite for one that did not finish."""
    from altgrad.runs import load_runs

    found = {}
    for record in load_runs(tuple(folders)).records:
        if has_ended(record):
            loss = (record.run.get("summary") or {}).get("val_loss")
            usable = record.status == "finished" and isinstance(loss, float) and math.isfinite(loss)
            found[record.id] = loss if usable else math.inf
    return found


def run_study(study: str, out: Path, workers: int, shard: tuple[int, int] = (1, 1), device: str = "cpu") -> int:
    """Run what is missing of a study (of every n-th run, with a shard); returns 0, or 1 where a run crashed.

    A sweep whose best rate lies at its edge has then grown, and goes on.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    crashed, before = 0, -1
    while True:
        losses = ended_losses((RECORDED, out))
        configs = find(study)(losses)
        todo = [config for config in configs[shard[0] - 1 :: shard[1]] if identity(config) not in losses]
        if before < 0 or todo:
            share = f", of which shard {shard[0]} of {shard[1]} has {len(todo)}" if shard[1] > 1 else ""
            missing = sum(identity(config) not in losses for config in configs)
            print(f"{study}: {len(configs)} runs, {len(configs) - missing} recorded, {missing} to do{share}")
        if not todo or len(losses) == before:  # done, or what is left is another process's
            break
        before = len(losses)
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        progress = Progress(
            *columns,
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            speed_estimate_period=600,  # runs differ in length, and several end at once
        )
        with progress as bar:
            task = bar.add_task("", total=len(todo))
            for line, status in _results(todo, out, workers, device):
                bar.update(task, advance=1, description=line)
                crashed += status == "crashed"
                if status != "finished":
                    bar.console.print(line)
    print(f"records: {out}" + (f"; {crashed} crashed" if crashed else ""))
    return 1 if crashed else 0


def pack(study: str, out: Path, partial: bool = False) -> int:
    """Write the study's ended runs, from `out` and what is packed already, to experiments/recorded/STUDY/.

    Raises:
        UsageError: runs are missing, and not `partial`, or all of them are.
    """
    from altgrad.runs import load_runs, pack_study

    wanted = {identity(config) for config in find(study)(ended_losses((RECORDED, out)))}
    records = [record for record in load_runs((RECORDED / study, out)).records if record.id in wanted]
    ended = [record for record in records if has_ended(record)]
    missing = len(wanted) - len(ended)
    if not ended or (missing and not partial):
        raise UsageError(
            f"{study}: {missing} of {len(wanted)} runs are not recorded; run the study first"
            + (", or pack what there is with --partial" if ended else "")
        )
    pack_study(ended, RECORDED / study, history_every=10, layers_every=PACKED_LOOKS)
    size = sum(file.stat().st_size for file in (RECORDED / study).iterdir())
    print(f"{study}: {len(ended)} runs packed, {size / 1e3:.0f} kB" + (f"; {missing} are missing" if missing else ""))
    return 0


def _packed(study: str, out: Path, partial: bool) -> int:
    try:
        return pack(study, out, partial)
    except UsageError as error:
        if not partial:
            raise
        print(f"left out: {error}")
        return 0


def find(study: str) -> Study:
    """The study called `study`.

    Raises:
        UsageError: there is none.
    """
    if study not in STUDIES:
        raise UsageError(f"STUDY {study!r}: there is no such study; studies are {', '.join(STUDIES)}")
    return STUDIES[study]


def cores() -> int:
    """The cores this process may use; all of them where the system does not tell (macOS, Windows)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _results(todo: list[ExperimentConfig], out: Path, workers: int, device: str) -> Iterator[tuple[str, str]]:
    """(line, status) of each run as it ends; a fresh process takes over after 20 runs."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=_start_worker, maxtasksperchild=20) as pool:
        yield from pool.imap_unordered(_run_one, [(config, out, device) for config in todo])


def _start_worker() -> None:
    """One thread; Ctrl-C is the parent's business, which ends its workers by SIGTERM: their runs are `interrupted`."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _run_one(job: tuple[ExperimentConfig, Path, str]) -> tuple[str, str]:
    from altgrad.runs import RunExists
    from altgrad.training import train

    config, out, device = job
    label = f"{config.resolved_name} seed {config.seed}"
    try:
        result = train(config, out, device=device, progress=False)
    except RunExists as error:
        return f"{label}: left out, {error}", "left out"
    except UsageError:  # the user's to mend, and the same for the runs to come
        raise
    except Exception as error:  # the record says crashed; the other runs go on
        return f"{label}: crashed, {type(error).__name__}: {error}", "crashed"
    return f"{label}: {result.status}, validation loss {result.summary['val_loss']:.3f}", result.status


def _shard(text: str) -> tuple[int, int]:
    number, _, total = text.partition("/")
    if not (number.isdigit() and total.isdigit() and 1 <= int(number) <= int(total)):
        raise argparse.ArgumentTypeError(f"{text!r}: write it as 1/4, the first of four")
    return int(number), int(total)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Run or pack recorded studies.",
        epilog=f"studies: {', '.join(STUDIES)}; without one, the campaign: {', '.join(CAMPAIGN)}",
    )
    parser.add_argument("words", nargs="*", metavar="[pack] STUDY")
    parser.add_argument("--out", type=Path, default=RUNS, help="folder of the records (default: experiments/runs)")
    parser.add_argument("--workers", type=int, default=cores(), help="processes (default: cores)")
    parser.add_argument("--shard", type=_shard, default=(1, 1), help="1/4: the first of four machines that share")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where runs train (default: cpu)")
    parser.add_argument("--partial", action="store_true", help="pack what there is of studies that are not whole yet")
    options = parser.parse_args()
    packing = options.words[:1] == ["pack"]
    studies = options.words[packing:] or list(CAMPAIGN)
    if options.workers < 1:
        parser.error("--workers: at least one")

    def work() -> int:
        for study in studies:
            find(study)
        if packing:
            return max(_packed(study, options.out, options.partial) for study in studies)
        return max(run_study(study, options.out, options.workers, options.shard, options.device) for study in studies)

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
