"""The packed form of many runs: three Parquet files and their digests, small enough to commit; a study in parts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from altgrad.config import UsageError
from altgrad.runs.canary import CANARIES, Canary, lines_of, machine_of
from altgrad.runs.files import write_bytes
from altgrad.runs.schema import Proof
from altgrad.runs.store import PART, RunRecord
from altgrad.runs.tables import write_digests, write_table
from altgrad.runs.writer import sole

OVER_TIME = ("overflow", "underflow", "sqnr_db", "flips", "updates", "effective_rank")
"""Statistics of the per-layer table that findings are averages of, and pages show, over all recorded steps."""

HISTOGRAM_NEEDS = ("scale", "amax", "norm_l2")
"""Statistics without which the histogram of a tensor cannot be turned into magnitudes, clipped parts and an SQNR."""

_CODE, _BINADE = re.compile("code_(?:[0-9a-f]{2}){1,2}"), re.compile("binade_.*", re.DOTALL)


def is_over_time(layers: pd.DataFrame) -> pd.Series:
    """Which rows of a per-layer table are of `OVER_TIME`, or norms of gradients."""
    gradient_norm = (layers["operand"] == "gradient") & (layers["statistic"] == "norm_l2")
    return layers["statistic"].isin(OVER_TIME) | gradient_norm


def is_histogram(layers: pd.DataFrame) -> pd.Series:
    """Which rows of a per-layer table are counts of a code, ``code_<two or four hex digits>``."""
    return _named(layers, _CODE)


def is_binade(layers: pd.DataFrame) -> pd.Series:
    """Which rows of a per-layer table are counts of a binade, ``binade_<exponent>`` or ``binade_zero``."""
    return _named(layers, _BINADE)


def _named(layers: pd.DataFrame, wanted: re.Pattern[str]) -> pd.Series:
    """Which rows have a statistic that is wanted, asked once a name."""
    codes, names = _coded(layers["statistic"])
    matching = [wanted.fullmatch(str(name)) is not None for name in names]
    return pd.Series(np.array([*matching, False])[codes], index=layers.index)  # -1 is a missing name


def _coded(column: pd.Series) -> tuple[NDArray[np.int64], pd.Index]:
    """A column's words by number (-1 where there is none), and the words; those of categories are there already."""
    array = column.array
    if isinstance(array, pd.Categorical):
        return array.codes.astype(np.int64), array.categories
    codes, words = pd.factorize(column)
    return codes, words


def is_last(layers: pd.DataFrame, runs: NDArray[np.int64] | None = None) -> pd.Series:
    """Which rows of a per-layer table are of the last step that has their statistic.

    The counts of all codes are one statistic, and so are those of all binades: what is missing from the last histogram
    did not occur in it.

    Args:
        layers: of one run, or of several.
        runs: the number of each row's run, from 0, where there are several.
    """
    if not len(layers):
        return pd.Series(np.zeros(0, bool), index=layers.index)
    operands, _ = _coded(layers["operand"])
    statistics, names = _coded(layers["statistic"])
    statistics = np.where(is_histogram(layers).to_numpy(), len(names), statistics)
    statistics = np.where(is_binade(layers).to_numpy(), len(names) + 1, statistics)
    operands = operands + (0 if runs is None else runs) * (operands.max() + 1)
    group = operands * (len(names) + 2) + statistics
    step = layers["step"].to_numpy()
    last = np.full(int(group.max()) + 1, np.iinfo(np.int64).min)
    np.maximum.at(last, group, step)
    return pd.Series(step == last[group], index=layers.index)


def _read_with_histograms(layers: pd.DataFrame, kept: pd.Series) -> pd.Series:
    """Which rows of one run's table are scales, largest elements and norms of tensors that have a kept histogram."""
    keys = ["step", "layer", "operand"]
    counts = is_histogram(layers) | is_binade(layers)
    places = pd.MultiIndex.from_frame(layers[keys])
    return layers["statistic"].isin(HISTOGRAM_NEEDS) & places.isin(places[(counts & kept).to_numpy()].unique())


def pack_study(
    records: Sequence[RunRecord],
    folder: Path,
    *,
    history_every: int = 5,
    layers_every: int = 60,
    drop: Sequence[str] = (),
    canaries: Sequence[Canary] = (),
    last_look: Collection[str] = (),
    layers: bool = True,
) -> None:
    """Write `records` as ``runs.parquet``, ``history.parquet`` and ``layers.parquet``, with their digests, in `folder`.

    A reader sees the whole folder or none, whenever this is killed.

    Curves are thinned: history keeps every `history_every`-th step, the first and last one and every evaluation. The
    per-layer table keeps what is shown over time (`is_over_time`) at every recorded step; the others at multiples of
    `layers_every`, at each run's first step, and where each was recorded last; histograms of codes at the last alone.
    What a histogram is read with, the scale, the largest element and the norm, is kept wherever one is. So a packed run
    gives the same findings and the same pages.
    Metrics and layer statistics are stored as float32 (counts below 2^24 exactly), validation losses, whose differences
    are the findings, as float64.

    Args:
        records: ended runs; running ones are refused, since their record is not whole yet.
        folder: where the study will lie; there is no such folder yet, or an empty one.
        history_every: in steps.
        layers_every: in steps.
        drop: history columns that are not kept.
        canaries: of which those are kept whose machine one of the runs names.
        last_look: ids of runs of which only the last look at each layer is kept, without histograms of codes.
        layers: whether anything of the per-layer tables is kept.

    Raises:
        ValueError: if a run is still running, or two records have one id.
        UsageError: the folder holds something, which is never written over, or another process is packing there.
    """
    records = sorted(records, key=lambda record: record.id)
    running = [record.id for record in records if record.status == "running"]
    if running:
        raise ValueError(f"{running[0]} is still running; pack it when it has ended")
    if len({record.id for record in records}) < len(records):
        raise ValueError("two records have one id; pack each once")
    texts = [json.dumps(record.run, sort_keys=True, separators=(",", ":")) for record in records]
    runs = pd.DataFrame({"run_id": [record.id for record in records], "run": texts})
    histories, tables = [], []
    for record in records:
        frame = record.history.drop(columns=[column for column in drop if column in record.history])
        step = frame["step"]
        keep = (step % history_every == 0) | step.isin([step.min(), step.max()])
        if "val_loss" in frame:
            keep |= frame["val_loss"].notna()
        histories.append(frame[keep].assign(run_id=record.id))
        table = record.layers if layers else record.layers.iloc[:0]
        step = table["step"]
        keep = ((step % layers_every == 0) | (step == step.min())) & ~is_histogram(table)
        last = is_last(table) & ~is_histogram(table)
        keep = last if record.id in last_look else keep | is_over_time(table) | is_last(table)
        keep |= _read_with_histograms(table, keep)
        tables.append(table[keep].assign(run_id=record.id))
    history, layer_table = pd.concat(histories, ignore_index=True), pd.concat(tables, ignore_index=True)
    with _new_folder(folder) as temporary:
        proofs = {
            "runs": _write(runs, temporary / "runs.parquet"),
            "history": _write(_narrow(history, wide=("val_loss", "final_val_loss")), temporary / "history.parquet"),
            "layers": _write(_narrow(layer_table), temporary / "layers.parquet", by_bytes=("value",)),
        }
        write_digests(temporary, proofs)
        machines = {machine_of(record.run.get("environment")) for record in records}
        if own := [canary for canary in canaries if canary.machine in machines]:
            write_bytes(temporary / CANARIES, lines_of(own))


def pack_part(records: Sequence[RunRecord], study: Path, **how: Any) -> Path:
    """Write `records` as the next part of a study, ``part-001`` and so on; what the study holds already stays as it is.

    Args:
        records: ended runs that no part holds yet.
        study: the folder of the study.
        how: for `pack_study`.

    Returns:
        The part's folder.

    Raises:
        ValueError, UsageError: as `pack_study`.
    """
    names = [found for path in study.glob("part-*") if (found := PART.fullmatch(path.name))]
    folder = study / f"part-{max((int(found[1]) for found in names), default=0) + 1:03}"
    pack_study(records, folder, **how)
    return folder


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that gets its name where the block ends well; one at a time in a place."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder.name}: there is a packed study already, which is never written over")
    temporary = folder.with_name(f"{folder.name}.tmp")
    with sole(folder.parent, f"{folder.name}: another process is packing beside it; wait for it") as place:
        try:
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
            temporary.mkdir()
            yield temporary
            os.rename(temporary, folder)
            os.fsync(place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _narrow(frame: pd.DataFrame, wide: Sequence[str] = ()) -> pd.DataFrame:
    kinds = {name: "float32" for name in frame.select_dtypes("number") if name != "step" and name not in wide}
    with np.errstate(over="ignore"):  # what a float32 cannot hold is infinite
        return frame.astype({"step": "int32", **kinds})


def _write(frame: pd.DataFrame, path: Path, by_bytes: Sequence[str] = ()) -> Proof:
    """Write `frame`; the columns `by_bytes` are split by byte: exponents compress, mantissas do not."""
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    coded = [name for name in frame if name not in by_bytes]
    return write_table(
        table, path, use_dictionary=coded, compression_level=19, use_byte_stream_split=list(by_bytes) or False
    )
