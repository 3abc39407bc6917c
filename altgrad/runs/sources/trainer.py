"""trainer_state.json of Hugging Face's Trainer: all that it logged, once in the run's folder and in each checkpoint.

The training arguments lie beside it as a pickle, which is not opened: the config is that of a JSON or YAML file.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

from altgrad.config import UsageError
from altgrad.runs.history import History, of_rows
from altgrad.runs.sources.found import Files, Found, cannot, config_beside, described, mark_of, version_of

TOOL = "Trainer"
_CHECKPOINT = re.compile(r"checkpoint-\d+")
_CONFIG = ("max_steps", "num_train_epochs", "train_batch_size", "logging_steps", "eval_steps", "save_steps")


def find(files: Files) -> list[Found]:
    """The runs: a folder with its checkpoints is one."""
    runs: dict[Path, list[Path]] = defaultdict(list)
    for path in files.take(lambda path: path.name == "trainer_state.json"):
        folder = path.parent
        at_root = folder == files.root and not files.given
        runs[folder.parent if _CHECKPOINT.fullmatch(folder.name) and not at_root else folder].append(path)
    found = []
    for run, paths in sorted(runs.items()):
        name = files.name(run) if run.is_relative_to(files.root) else run.name
        found.append(Found(TOOL, name, version_of(paths), partial(_read, run, name, paths)))
    return found


def _read(run: Path, name: str, paths: list[Path]) -> tuple[dict[str, Any], History]:
    states, lines = [], []
    for path in paths:
        try:
            state = json.loads(path.read_text("utf-8"))
            states.append((int(state["global_step"]), len(state["log_history"]), path, state))
        except OSError as error:
            raise cannot(path, error) from None
        except (ValueError, LookupError, TypeError):
            lines.append(f"{path.relative_to(run).as_posix()}: not readable, and left out")
    if not states:
        raise UsageError("trainer_state.json: no state of a Trainer; it is damaged or another file")
    step, _, path, state = max(states, key=lambda each: each[:2])
    history = of_rows((row for row in state["log_history"] if isinstance(row, dict)), ("step",))
    if not len(history.table):
        raise UsageError("nothing was logged yet")
    wanted = state["max_steps"] if type(state.get("max_steps")) is int else 0
    ended = step >= wanted
    if not ended:
        lines.append(f"status: step {step:,} of {wanted:,} is the last that it holds")
    config, more = config_beside(run)
    given = {key: state[key] for key in _CONFIG if state.get(key) is not None}
    moment = path.stat().st_mtime
    if not any("seed" in key for key in config):
        lines.append("config: trainer_state.json holds neither seed nor learning rate; put config.json beside it")
    return described(
        TOOL, mark_of(TOOL, run, sorted(state["log_history"][0].items())), name, run.parent.name,
        config={**given, **config}, state="finished" if ended else "interrupted", created=moment, ended=moment,
        lines=[*lines, *more], rows=len(history.table),
    ), history  # fmt: skip
