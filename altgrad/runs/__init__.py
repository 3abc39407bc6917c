"""The record of one run: its schema, the writer, the readers of the local and the packed form, and the W&B mirror.

`record` opens one for any training loop, from any framework; `altgrad.runs.diagnosis` says why a run ended badly.

A run's folder holds

- ``run.json``: resolved config, data and code fingerprints, environment, status, failure, summary, W&B address;
- ``failure.md``: the failure of a run that ended badly as people read it (`altgrad explain` makes the same);
- ``history.jsonl`` while the run goes, ``history.parquet`` after it: one row a logged step; what proves the table, its
  rows and its sha256, is then in ``run.json``;
- ``layers.jsonl`` / ``layers.parquet``: the long table step, layer, layer_type, operand, statistic, value;
- ``checkpoints/`` where the config asks for them (`altgrad.training.checkpoint`); readers pass over it;
- ``lock``: held by the writer's process, which is how a reader tells a running run from a crashed one.
"""

from altgrad.runs.bulk import read_histories
from altgrad.runs.foreign import foreign_config, record
from altgrad.runs.pack import pack_part, pack_study
from altgrad.runs.recorder import Recorder
from altgrad.runs.schema import (
    FAILURE_KINDS,
    LAYER_COLUMNS,
    STATUSES,
    Alarm,
    Failure,
    Problem,
    RecordError,
    arm_id,
    run_id,
)
from altgrad.runs.store import RunRecord, RunSet, default_sources, load_runs, newest_time, read_run, sources_fingerprint
from altgrad.runs.writer import NothingToResume, RunExists, RunWriter

__all__ = [
    "FAILURE_KINDS",
    "LAYER_COLUMNS",
    "STATUSES",
    "Alarm",
    "Failure",
    "NothingToResume",
    "Problem",
    "RecordError",
    "Recorder",
    "RunExists",
    "RunRecord",
    "RunSet",
    "RunWriter",
    "arm_id",
    "default_sources",
    "foreign_config",
    "load_runs",
    "newest_time",
    "pack_part",
    "pack_study",
    "read_histories",
    "read_run",
    "record",
    "run_id",
    "sources_fingerprint",
]
