"""What other people's code calls things, and what AltGrad calls them: the one table by which their runs are read.

Names are compared in lower case with ``/``, ``.``, ``-`` and spaces as ``_``: ``train/loss`` is ``train_loss``. The
first name of a row that a run has is taken for AltGrad's; every other metric and key is kept under its own name. What
is kept under its own name, or cannot be kept as a number, is reported.

Keys of a config are given their meaning when a run is recorded or brought in (`map_config`), metrics when a record is
read (`columns`): its tables keep the names under which they were logged. A site may say more of its own runs
(`altgrad.runs.site_names`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

METRICS: dict[str, tuple[str, ...]] = {
    "loss": (
        "loss", "train_loss", "training_loss", "loss_train", "loss_training", "train_loss_step", "train_loss_epoch",
        "loss_metrics_global_avg_loss", "train_epoch_loss",
    ),
    "val_loss": (
        "val_loss", "eval_loss", "valid_loss", "validation_loss", "dev_loss", "loss_val", "loss_valid",
        "loss_validation", "loss_eval", "val_loss_epoch", "validation_metrics_loss", "validation_epoch_loss",
    ),
    "test_loss": ("test_loss", "loss_test", "testing_loss", "test_loss_epoch", "test_epoch_loss"),
    "perplexity": ("perplexity", "val_perplexity", "eval_perplexity", "val_ppl", "ppl"),
    "lr": ("lr", "learning_rate", "train_learning_rate", "train_lr", "lr_adamw", "lr_adam", "lr_sgd"),
    "grad_norm": ("grad_norm", "train_grad_norm", "gradient_norm", "global_grad_norm"),
    "tokens": ("tokens", "tokens_seen", "num_tokens", "total_tokens", "train_num_input_tokens_seen"),
    "seconds": ("seconds", "elapsed_seconds", "time_elapsed", "_runtime"),
}  # fmt: skip
"""Column of a history <- names that it has elsewhere; a metric called step is kept as logged_step."""

CONFIG: dict[str, tuple[str, ...]] = {
    "seed": ("seed", "random_seed", "rng_seed", "training_seed", "global_seed", "manual_seed"),
    "data": ("data", "dataset", "dataset_name", "data_name"),
    "max_steps": (
        "max_steps", "total_steps", "num_steps", "train_steps", "training_steps", "max_train_steps", "max_iters",
        "num_iterations", "train_iters", "steps", "n_steps", "iterations",
    ),
    "batch_size": ("batch_size", "train_batch_size", "per_device_train_batch_size", "global_batch_size"),
    "accumulate": ("accumulate", "gradient_accumulation_steps", "accumulate_grad_batches", "grad_accum_steps"),
    "warmup_steps": ("warmup_steps", "warmup_iters", "num_warmup_steps", "lr_warmup_steps"),
    "schedule": ("schedule", "lr_scheduler_type", "lr_schedule", "scheduler"),
    "clip_norm": ("clip_norm", "max_grad_norm", "grad_clip", "gradient_clip_val", "clip_grad_norm"),
    "optimizer.step_rule": ("optimizer_step_rule", "optimizer", "optim", "optimizer_name", "optimizer_type"),
    "optimizer.learning_rate": (
        "optimizer_learning_rate", "learning_rate", "lr", "max_learning_rate", "max_lr", "peak_learning_rate",
        "peak_lr", "base_learning_rate", "base_lr", "initial_learning_rate", "init_lr", "optimizer_lr",
    ),
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
}  # fmt: skip
"""Key of AltGrad's config <- its names elsewhere; a value that AltGrad's key cannot have stays under its own name.

So then do the values of all other runs of a site (`altgrad.runs.site_names.own_names`): a setting is one key.
"""
KEYS = {name: key for key, names in CONFIG.items() for name in names}
"""Name of a key elsewhere, as `normal` has it -> AltGrad's."""

OF_ONE_RUN = frozenset(
    {
        "run_name", "run_id", "run_dir", "run_group", "wandb_run_name", "wandb_run_id", "wandb_id", "wandb_name",
        "wandb_group", "wandb_project", "exp_name", "experiment_name", "job_id", "job_name", "slurm_job_id",
        "output_dir", "out_dir", "save_dir", "log_dir", "logging_dir", "logdir", "work_dir", "workdir", "ckpt_dir",
        "checkpoint_dir", "default_root_dir", "output_path", "save_path", "timestamp", "start_time", "date", "hostname",
        "host", "user", "username", "pid", "git_commit", "commit", "git_hash", "local_rank", "port", "master_port",
    }
)  # fmt: skip
"""Keys of a config that say which run it is, and of no two runs the same: they make no arm."""

STEP_RULES = {"adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw"}
"""Values of ``optimizer.step_rule`` that have another name."""

_INTERNAL = ("_step", "_timestamp", "_runtime", "_wandb")


@lru_cache(4096)
def normal(name: str) -> str:
    """The form in which names are compared."""
    return re.sub(r"[/.\- ]+", "_", name.strip().lower())


def columns(names: Iterable[str], own: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Name of a metric -> column under which it is read, for those of one run; `own` is what its site says of them."""
    names = tuple(names)
    found = {name: own[name] for name in names if name in own}
    by_normal: dict[str, str] = {}
    for name in names:
        if name not in found:
            by_normal.setdefault(normal(name), name)
    for column, known in METRICS.items():
        if column not in found.values() and (each := next((by_normal[n] for n in known if n in by_normal), None)):
            found[each] = column
    taken = set(found.values())
    for name in names:
        if name not in found:
            free = name
            while free in taken:
                free += "_"
            found[name] = free
            taken.add(free)
    return {name: found[name] for name in names}


def map_config(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A config with AltGrad's dotted keys where they have another name there, all others as they are; and which do."""
    stated = flattened(given)
    by_normal: dict[str, str] = {}
    for name in stated:
        by_normal.setdefault(normal(name), name)
    used = {}
    for key, names in CONFIG.items():
        own = next((by_normal[name] for name in names if name in by_normal and by_normal[name] not in used), None)
        if own is not None:
            used[own] = key
    mapped = {used.get(name, name): value for name, value in stated.items() if name in used}
    mapped |= {name: value for name, value in stated.items() if name not in used and name not in mapped}
    rule = mapped.get("optimizer.step_rule")
    if isinstance(rule, str):
        mapped["optimizer.step_rule"] = STEP_RULES.get(normal(rule), normal(rule))
    return mapped, {own: key for own, key in used.items() if own != key}


def flattened(given: Mapping[str, Any]) -> dict[str, Any]:
    """A config's values by dotted name; of a name that is there nested and dotted both, the second with a ``_``."""
    found: dict[str, Any] = {}
    for name, value in leaves(given):
        if name.partition(".")[0] not in _INTERNAL:
            while name in found:
                name += "_"
            found[name] = _flat(value)
    return found


def table() -> str:
    """Both tables as Markdown, for the guide."""
    lines = []
    for title, rows in (("History", METRICS), ("Config", CONFIG)):
        lines += [f"| {title} | Names elsewhere |", "|---|---|"]
        lines += [f"| `{key}` | {', '.join(f'`{name}`' for name in names)} |" for key, names in rows.items()]
        lines.append("")
    return "\n".join(lines)


def leaves(given: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterable[tuple[str, Any]]:
    """Dotted name and value; a mapping with ``_type`` (an image, a histogram) is a value, so is what lies too deep."""
    for key, value in given.items():
        name = (f"{prefix}.{key}" if prefix else str(key)).encode(errors="replace").decode() or "(no name)"
        if isinstance(value, Mapping) and value and "_type" not in value and depth < 10:
            yield from leaves(value, name, depth + 1)
        else:
            yield name, value


def _flat(value: Any) -> Any:
    """A value of a config; what is neither plain nor a list of plain values as its JSON text."""
    plain = all(not isinstance(each, Mapping | list) for each in (value if isinstance(value, list) else [value]))
    return value if plain or value == {} else json.dumps(value)
