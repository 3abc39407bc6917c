"""What other people's code calls things, and what AltGrad calls them: the one table by which their runs are read.

Names are compared in lower case with ``/``, ``.``, ``-`` and spaces as ``_``: ``train/loss`` is ``train_loss``. The
first name of a row that a run has is taken for AltGrad's; every other metric and key is kept under its own name. What
is kept without a meaning here, or cannot be kept as a number, is reported.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

METRICS: dict[str, tuple[str, ...]] = {
    "loss": ("loss", "train_loss", "training_loss", "loss_train", "train_loss_step"),
    "val_loss": ("val_loss", "eval_loss", "valid_loss", "validation_loss", "dev_loss", "loss_val"),
    "perplexity": ("perplexity", "val_perplexity", "eval_perplexity", "val_ppl", "ppl"),
    "lr": ("lr", "learning_rate", "train_learning_rate", "train_lr", "lr_adamw"),
    "grad_norm": ("grad_norm", "train_grad_norm", "gradient_norm", "global_grad_norm"),
    "tokens": ("tokens", "tokens_seen", "num_tokens", "total_tokens", "train_num_input_tokens_seen"),
    "seconds": ("seconds", "elapsed_seconds", "time_elapsed", "_runtime"),
}
"""Column of a record's history <- names in W&B. ``_step`` is the step; a metric called step is kept as logged_step."""

CONFIG: dict[str, tuple[str, ...]] = {
    "seed": ("seed", "random_seed", "rng_seed", "training_seed"),
    "data": ("data", "dataset", "dataset_name", "data_name"),
    "max_steps": ("max_steps", "total_steps", "num_steps", "train_steps", "max_iters", "num_iterations", "train_iters"),
    "batch_size": ("batch_size", "train_batch_size", "per_device_train_batch_size", "global_batch_size"),
    "accumulate": ("accumulate", "gradient_accumulation_steps", "accumulate_grad_batches", "grad_accum_steps"),
    "warmup_steps": ("warmup_steps", "warmup_iters", "num_warmup_steps", "lr_warmup_steps"),
    "schedule": ("schedule", "lr_scheduler_type", "lr_schedule", "scheduler"),
    "clip_norm": ("clip_norm", "max_grad_norm", "grad_clip", "gradient_clip_val", "clip_grad_norm"),
    "optimizer.step_rule": ("optimizer_step_rule", "optimizer", "optim", "optimizer_name", "optimizer_type"),
    "optimizer.learning_rate": ("optimizer_learning_rate", "learning_rate", "lr", "max_lr", "base_lr", "optimizer_lr"),
    "optimizer.weight_decay": ("optimizer_weight_decay", "weight_decay", "wd"),
    "optimizer.betas": ("optimizer_betas", "betas", "adam_betas"),
    "optimizer.eps": ("optimizer_eps", "eps", "adam_eps", "adam_epsilon"),
    "model.layers": ("model_layers", "n_layer", "n_layers", "num_layers", "num_hidden_layers"),
    "model.dim": ("model_dim", "dim", "d_model", "n_embd", "hidden_size", "embed_dim"),
    "model.heads": ("model_heads", "n_head", "n_heads", "num_heads", "num_attention_heads"),
    "model.context": ("model_context", "block_size", "context_length", "seq_len", "sequence_length", "max_seq_len"),
    "quantize.weight": ("quantize_weight", "weight_format", "weight_dtype", "w_format"),
    "quantize.activation": ("quantize_activation", "activation_format", "act_format", "activation_dtype"),
    "quantize.grad_output": ("quantize_grad_output", "gradient_format", "grad_format", "grad_dtype"),
}
"""Key of AltGrad's config <- names in W&B; a value that AltGrad's key cannot have leaves the key under its own name."""

STEP_RULES = {"adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw"}
"""Values of ``optimizer.step_rule`` that have another name."""

_INTERNAL = ("_step", "_timestamp", "_runtime", "_wandb")
_RESERVED = {"step": "logged_step", "run_id": "logged_run_id"}
_TEXT_NUMBERS = {"nan": math.nan, "inf": math.inf, "infinity": math.inf, "-inf": -math.inf, "-infinity": -math.inf}


@dataclass(frozen=True)
class Mapped:
    """Names given a meaning, and what is reported of the others."""

    used: dict[str, str]  # own name -> AltGrad's, where they differ
    kept: tuple[str, ...]  # own names without a meaning here, in order; they are in the record
    not_numbers: dict[str, int]  # metrics that are text, images or histograms -> how many values; not kept


def normal(name: str) -> str:
    """The form in which names are compared."""
    return re.sub(r"[/.\- ]+", "_", name.strip().lower())


def map_history(rows: Iterable[Mapping[str, Any]]) -> tuple[list[dict[str, float]], Mapped]:
    """W&B's rows as rows of a history, each with an integer ``step``; rows without ``_step`` are numbered on.

    Numbers come back as W&B gives them: 1.0 as 1, NaN and infinities as text, nested metrics as mappings.
    """
    flat: list[tuple[int, dict[str, float]]] = []
    names: dict[str, None] = {}
    not_numbers: dict[str, int] = {}
    last = -1
    for row in rows:
        values: dict[str, float] = {}
        for name, value in _leaves(row):
            number = _number(value)
            if number is not None:
                values[name] = number
            elif value is not None:
                not_numbers[name] = not_numbers.get(name, 0) + 1
        step = values.pop("_step", math.nan)
        if math.isfinite(step) and abs(step) > 2**53:
            raise ValueError(f"step {step:g} is too large")
        last = int(step) if math.isfinite(step) else last + 1
        flat.append((last, values))
        names.update(dict.fromkeys(values))
    columns = _columns(names)
    mapped = [{"step": step, **{columns[n]: v for n, v in row.items() if n in columns}} for step, row in flat]
    used = {name: column for name, column in columns.items() if name != column}
    kept = tuple(name for name, column in columns.items() if column not in METRICS)
    return mapped, Mapped(used, kept, not_numbers)


def map_config(given: Mapping[str, Any]) -> tuple[dict[str, Any], Mapped]:
    """W&B's config as one with AltGrad's dotted keys where they have another name there, all others as they are."""
    leaves = {name: _flat(value) for name, value in _leaves(given) if name.partition(".")[0] not in _INTERNAL}
    by_normal: dict[str, str] = {}
    for name in leaves:
        by_normal.setdefault(normal(name), name)
    used = {}
    for key, names in CONFIG.items():
        own = next((by_normal[name] for name in names if name in by_normal and by_normal[name] not in used), None)
        if own is not None:
            used[own] = key
    mapped = {used.get(name, name): value for name, value in leaves.items() if name in used}
    mapped |= {name: value for name, value in leaves.items() if name not in used and name not in mapped}
    rule = mapped.get("optimizer.step_rule")
    if isinstance(rule, str):
        mapped["optimizer.step_rule"] = STEP_RULES.get(normal(rule), normal(rule))
    return mapped, Mapped({own: key for own, key in used.items() if own != key}, (), {})


def table() -> str:
    """Both tables as Markdown, for the guide."""
    lines = []
    for title, rows in (("History", METRICS), ("Config", CONFIG)):
        lines += [f"| {title} | Names in W&B |", "|---|---|"]
        lines += [f"| `{key}` | {', '.join(f'`{name}`' for name in names)} |" for key, names in rows.items()]
        lines.append("")
    return "\n".join(lines)


def _columns(names: Iterable[str]) -> dict[str, str]:
    """Own name -> column; W&B's own names are columns only where they have a meaning."""
    names = tuple(names)
    columns: dict[str, str] = {}
    for column, known in METRICS.items():
        own = next((name for each in known for name in names if normal(name) == each), None)
        if own is not None:
            columns[own] = column
    for name in names:
        if name not in columns and name not in _INTERNAL:
            free = _RESERVED.get(name, name)
            while free in columns.values():
                free += "_"
            columns[name] = free
    return {name: columns[name] for name in names if name in columns}


def _leaves(given: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterable[tuple[str, Any]]:
    """Dotted name and value; a mapping with ``_type`` (an image, a histogram) is a value, so is what lies too deep."""
    for key, value in given.items():
        name = (f"{prefix}.{key}" if prefix else str(key)).encode(errors="replace").decode() or "(no name)"
        if isinstance(value, Mapping) and value and "_type" not in value and depth < 10:
            yield from _leaves(value, name, depth + 1)
        else:
            yield name, value


def _flat(value: Any) -> Any:
    """A value of a config; what is neither plain nor a list of plain values as its JSON text."""
    plain = all(not isinstance(each, Mapping | list) for each in (value if isinstance(value, list) else [value]))
    return value if plain or value == {} else json.dumps(value)


def _number(value: Any) -> float | None:
    if isinstance(value, bool | int | float):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return _TEXT_NUMBERS.get(value.strip().lower()) if isinstance(value, str) else None
