"""Records in, one table of runs out, with the keys that say which runs may be compared."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import union_categoricals

from altgrad.config import (
    LAYER_TYPES,
    OPERAND_NAMES,
    OPERANDS,
    ExperimentConfig,
    ScaleRule,
    UsageError,
    operand_of,
    product_of,
)
from altgrad.formats import get_format
from altgrad.runs import Problem, RunRecord, RunSet, default_sources, load_runs, sources_fingerprint
from altgrad.runs.pack import is_histogram, is_last, is_over_time
from altgrad.runs.processor import NOT_STATED as NOT_STATED
from altgrad.runs.schema import LAYER_COLUMNS, digest
from altgrad.runs.store import LAYER_TEXT, moves_in
from altgrad.runs.stores import located
from altgrad.runs.wandb_pull import Pulled, pull
from altgrad.studies import identity_of

T = TypeVar("T")
RUN_COLUMNS = (
    "run_id", "arm", "identity", "seed", "foreign", "status", "ending", "study", "role", "format", "weight",
    "activation", "grad_output", "quantized", "scope", "rule", "step_rule", "precondition", "storage", "rounding",
    "learning_rate", "max_steps", "data", "setting", "problem", "experiment", "final_val_loss", "last_step",
    "stall_ratio", "failure", "created", "ended", "wandb_url",
)  # fmt: skip
PLACES = 3
"""Projects of other tools that a page's foot names."""
STEP_RULE_KEYS = ("step_rule", "precondition", "floor", "max_stiffness", "learning_rate", "other_learning_rate")
"""Keys of the optimizer's config in which arms of one problem may differ; each is tuned or described with its rule."""


class ExperimentDataLoader:
    """Reads run records and puts them into one table.

    Two runs are comparable only if everything but the compared thing is equal. The table has a key for each question:

    - ``arm``: one config with all its seeds (and one data set); ``identity``: the config alone, as
      `altgrad.studies.ARMS` has it;
    - ``setting`` and ``quantized``: for comparing formats. `setting` is everything but format, `quantized` and seed;
      `quantized` is which operands of which layer types are quantized, and how they are scaled, "" for an unquantized
      run;
    - ``problem``: for comparing step rules; everything but the step rule, what belongs to it (`STEP_RULE_KEYS`) and the
      seed;
    - ``experiment``: as `problem`, without the formats and operands: what a set of such comparisons shares.

    ``scope`` says what `quantized` is, and ``rule`` the step rule, in words for readers that are keys of nothing.

    A foreign run (`altgrad.runs.record`) has in them what it states and its loop's own keys. What it does not state is
    ``not stated``, a seed NA, by which nothing is paired; the steps are then those that it recorded.

    Runs of a study whose name ends in ``tuning`` have the role ``tuning``: their seeds are held out of comparisons.

    Args:
        sources: folders of records, or their addresses (`altgrad.runs.stores.located`); default: the recorded studies
            and the local runs (`altgrad.runs.default_sources`).
        project: of W&B; its new and changed runs are fetched into the last of the sources before they are read. Without
            it no network is used. That W&B gives nothing is no error: `pulled` says why, and local records are read.
        entity: that owns the project; default: WANDB_ENTITY, else the key's own.
        silence: seconds without anything from W&B after which the fetching ends.
        progress: as for `altgrad.runs.wandb_pull.pull`.
    """

    def __init__(
        self,
        sources: Iterable[str | Path] | None = None,
        *,
        project: str | None = None,
        entity: str | None = None,
        silence: float = 6.0,
        progress: Callable[[Pulled, int], None] | None = None,
    ) -> None:
        self._sources = None if sources is None else tuple(map(located, sources))
        self._project, self._entity, self._silence, self._progress = project, entity, silence, progress

    @cached_property
    def pulled(self) -> Pulled | None:
        """What was fetched from W&B, and why not more; None where W&B was not asked."""
        if self._project is None:
            return None
        sources = default_sources() if self._sources is None else self._sources
        if not sources:
            return Pulled(self._project, self._entity, reason="there is no folder for its runs")
        try:
            return pull(sources[-1], self._project, self._entity, silence=self._silence, progress=self._progress)
        except UsageError as error:  # the folder is read-only, or another pull is at work: what is there can be read
            return Pulled(self._project, self._entity, reason=str(error).removeprefix("--out "))

    @cached_property
    def run_set(self) -> RunSet:
        """Every readable record, and the problems of the others."""
        _ = self.pulled  # first, and whether or not anything came
        sources = default_sources() if self._sources is None else self._sources
        sources = tuple(source for source in sources if source.is_dir())
        try:
            content = sources_fingerprint(sources)
        except OSError:  # a file that cannot be read, or that a run replaces in this moment
            return load_runs(sources)
        return _read(sources, content)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Records that were left out, and why."""
        return self.run_set.problems

    @cached_property
    def records(self) -> Mapping[str, RunRecord]:
        """The records by run id."""
        return {record.id: record for record in self.run_set.records}

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row a run of any status, columns `RUN_COLUMNS`, ordered by arm and seed; empty without records."""
        return _table(self.run_set).copy()

    def memo(self, find: Callable[[ExperimentDataLoader], T]) -> T:
        """What `find` gives for these records, found once in a process: many pages need the same comparisons.

        Args:
            find: a function or class of a module; what it gives is shared and only to be read.
        """
        found, name = self.run_set.found, f"{find.__module__}.{find.__qualname__}"
        if name not in found or found[name][0] is not find:  # a module that was imported anew has functions of its own
            found[name] = find, find(self)
        return found[name][1]  # type: ignore[no-any-return]

    def of_arms(self, arms: Iterable[str]) -> ExperimentDataLoader:
        """A loader of these arms alone, whose records are not read again: what it gives depends on nothing else."""
        part = ExperimentDataLoader(())
        runs = self.runs[self.runs["arm"].isin(list(arms))].reset_index(drop=True)
        found = {"run_set": RunSet(tuple(self.records[run_id] for run_id in sorted(runs["run_id"]))), "runs": runs}
        part.__dict__ |= found | {"pulled": self.pulled, "_digests": self._digests}
        return part

    def history(self, run_id: str) -> pd.DataFrame:
        """The history of one run: step and its metrics."""
        return self.records[run_id].history

    def layers(self, run_id: str) -> pd.DataFrame:
        """The per-layer table of one run (long form)."""
        return self.records[run_id].layers

    def looks(self, run_ids: Iterable[str]) -> Looks:
        """All per-layer figures of some runs in one table."""
        frames = [self.records[run_id].coded for run_id in run_ids]
        every = concatenated(frames) if frames else pd.DataFrame(columns=list(LAYER_COLUMNS))
        return Looks(every, np.repeat(np.arange(len(frames)), [len(frame) for frame in frames]))

    def layer_history(self, run_ids: Iterable[str]) -> pd.DataFrame:
        """`Looks.history` of some runs."""
        return self.looks(run_ids).history()

    def last_look(self, run_ids: Iterable[str]) -> pd.DataFrame:
        """`Looks.last` of some runs."""
        return self.looks(run_ids).last()

    def config(self, arm: str) -> ExperimentConfig:
        """The config that the seeds of `arm` share (with the seed of its first run)."""
        return self._of_arm[arm][0].config

    def records_of(self, arm: str) -> list[RunRecord]:
        """The records of `arm`, in the order of `runs`; none of an arm that there is not."""
        return self._of_arm.get(arm, [])

    def title(self, arm: str) -> str:
        """What the first run of `arm` is called, in any script."""
        return self.titles(arm)[0]

    def titles(self, arm: str) -> list[str]:
        """What the runs of `arm` are called; of AltGrad's own and of those without a title the name, not the id.

        A run whose name is only spaces has its id.
        """
        names = (
            (record, str(record.run.get("title") or record.config.resolved_name)) for record in self.records_of(arm)
        )
        return [name if name.strip() else record.id for record, name in names]

    def data_name(self, arm: str) -> str:
        """What the training data of `arm` is called, with the first digits of its sha256."""
        data = self._of_arm[arm][0].run["data"]
        return f"{data.get('name', 'unnamed')} ({data['sha256'][:8]})"

    @cached_property
    def _of_arm(self) -> dict[str, list[RunRecord]]:
        found = defaultdict[str, list[RunRecord]](list)
        for arm, run_id in zip(self.runs["arm"], self.runs["run_id"], strict=True):
            found[arm].append(self.records[run_id])
        return dict(found)

    @cached_property
    def newest(self) -> str | None:
        """Time of the newest record (UTC, ISO 8601), or None without records."""
        times = [record.run.get("ended") or record.run["created"] for record in self.run_set.records]
        return max(times, default=None)

    @cached_property
    def built_from(self) -> str:
        """Where the records come from, in words: recorded here, or pulled from which project and when."""
        origins = [record.run["origin"] for record in self.run_set.records if "origin" in record.run]
        network = "no network was used" if self.pulled is None else "W&B was asked for new ones"
        if not origins:
            return f"local records; {network}"
        kinds = {str(origin.get("kind", "wandb")) for origin in origins}
        tools = sorted({"W&B" if kind in ("wandb", "wandb-file") else kind for kind in kinds})
        places = sorted({f"{origin['entity']}/{origin['project']}".removeprefix("/") for origin in origins})
        more = f" and {len(places) - PLACES} more" if len(places) > PLACES else ""
        last = max(str(origin["pulled"]) for origin in origins)
        pulled = f"{', '.join(places[:PLACES])}{more}, the last on {last}"
        some = "made" if len(origins) == len(self.run_set.records) else f"{len(origins)} of them"
        return f"local records, {some} from {', '.join(tools)} ({pulled}); {network}"

    @cached_property
    def fingerprint(self) -> str:
        """First 12 hex of a sha256 over the content of all records and problems, in order."""
        total = hashlib.sha256(repr(self.problems).encode())
        for canary in self.run_set.canaries:
            total.update(canary.model_dump_json().encode())
        for record in self.run_set.records:
            total.update(self._digests[record.id])
        return total.hexdigest()[:12]

    @cached_property
    def _digests(self) -> Mapping[str, bytes]:
        return _record_digests(self.run_set)


@lru_cache(maxsize=2)
def _read(sources: tuple[Path, ...], content: str) -> RunSet:
    """One reading for all loaders of a process, as long as `content` (`sources_fingerprint`) is what is there."""
    return load_runs(sources)


@lru_cache(maxsize=2)
def _table(run_set: RunSet) -> pd.DataFrame:
    arms = {record.arm: record for record in run_set.records}
    common = {arm: _of_arm(record) for arm, record in arms.items()}
    rows = [_row(record, common[record.arm]) for record in run_set.records]
    frame = pd.DataFrame(rows, columns=list(RUN_COLUMNS)).astype({"seed": "Int64"})
    return frame.sort_values(["arm", "seed", "run_id"], ignore_index=True)


@lru_cache(maxsize=2)
def _record_digests(run_set: RunSet) -> dict[str, bytes]:
    """A sha256 of each record's content, by run id."""
    digests: dict[str, bytes] = {}
    hashes: dict[int, tuple[pd.Index, NDArray[np.uint64]]] = {}  # of lists of categories, which many runs share
    for record in run_set.records:
        if record.proved:  # names of a site are in the arm and its pages
            digests[record.id] = digest(record.run, record.names.model_dump(mode="json")).encode()
            continue
        history, layers = record.history, record.coded
        total = hashlib.sha256()
        total.update(digest(record.run, list(history), list(layers), len(layers)).encode())
        total.update(history.to_numpy(np.float64).tobytes())
        for name in layers:
            column = layers[name].array
            if isinstance(column, pd.Categorical):
                words = column.categories
                if id(words) not in hashes:
                    if len(hashes) > 1000:
                        hashes.clear()
                    hashed = np.append(pd.util.hash_array(words.array.astype(object)), np.uint64(0))
                    hashes[id(words)] = words, hashed  # with the words, so that no other list has their id
                column = hashes[id(words)][1][column.codes]  # -1, a missing word, is the last
            total.update(np.asarray(column).tobytes())
        digests[record.id] = total.digest()
    return digests


class Looks(NamedTuple):
    """The per-layer figures of some runs, columns `LAYER_COLUMNS`, and the number of each row's run, from 0."""

    layers: pd.DataFrame
    runs: NDArray[np.int64]

    def history(self) -> pd.DataFrame:
        """The figures over time, as means over the runs that have them at a step.

        Columns step, layer, layer_type, operand, statistic, value, n (runs), in the order of the record, for what
        `altgrad.runs.pack.is_over_time` keeps at every look. `stall_ratio` is computed from flips and updates, which
        are at every look in a packed record too, summed over the runs. Empty without looks.
        """
        if self.layers.empty:
            return pd.DataFrame(columns=[*LAYER_COLUMNS, "n"])
        keys = ["step", "layer", "layer_type", "operand", "statistic"]
        frame = _aggregated(self.layers[is_over_time(self.layers)], keys)
        statistic, total = frame["statistic"].to_numpy(object), frame["sum"].to_numpy()
        flips, updates = (np.flatnonzero(statistic == name) for name in ("flips", "updates"))
        places = list(zip(*(frame[key].tolist() for key in keys[:-1]), strict=True))
        proposed = {places[row]: total[row] for row in updates}
        flips = np.array([row for row in flips if proposed.get(places[row], 0.0) > 0], np.int64)
        ratios = [1.0 - total[row] / proposed[places[row]] for row in flips]
        stall = frame.iloc[flips].assign(statistic="stall_ratio", mean=ratios)
        frame = pd.concat([frame[~np.isin(statistic, ["flips", "updates"])], stall], ignore_index=True)
        return frame.rename(columns={"mean": "value", "count": "n"})[[*LAYER_COLUMNS, "n"]]

    def last(self) -> pd.DataFrame:
        """The last value of each statistic in each run, as means over the runs.

        Columns step, layer, layer_type, operand, statistic, value, n (runs), with the largest step where they differ.
        The histograms of codes are sums over the runs.
        """
        if self.layers.empty:
            return pd.DataFrame(columns=[*LAYER_COLUMNS, "n"])
        last = self.layers[is_last(self.layers, self.runs)]
        frame = _aggregated(last, list(LAYER_COLUMNS[1:-1])).rename(columns={"count": "n"})
        frame["value"] = frame["mean"].mask(is_histogram(frame), frame["sum"])
        return frame[[*LAYER_COLUMNS, "n"]]


def concatenated(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """One table of the `RunRecord.coded` of some runs, columns `LAYER_COLUMNS`; studies have words of their own."""
    frames = [frame for frame in frames if len(frame)] or frames[:1]
    columns: dict[str, Any] = {}
    for name in LAYER_COLUMNS:
        parts = [frame[name].array for frame in frames]
        if name not in LAYER_TEXT:
            columns[name] = np.concatenate(parts)
        elif all(part.categories is parts[0].categories for part in parts):
            codes = np.concatenate([part.codes for part in parts])
            columns[name] = pd.Categorical.from_codes(codes, dtype=parts[0].dtype, validate=False)
        else:
            columns[name] = union_categoricals(parts)
    return pd.DataFrame(columns, copy=False)


def _aggregated(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """A row a group in the order of its first row: keys, mean, sum and count of `value` without NaN, the largest step.

    What `groupby` gives with `sort=False`, a fifth of the time; categories become text.
    """
    group = np.zeros(len(frame), np.int64)
    for key in keys:
        column = frame[key].array
        words = isinstance(column, pd.Categorical)
        codes, names = (column.codes, column.categories) if words else pd.factorize(frame[key])
        group = group * (len(names) + 1) + codes + 1
    group, found = pd.factorize(group)
    value = frame["value"].to_numpy(np.float64)
    known = ~np.isnan(value)
    count = np.bincount(group, known, len(found)).astype(np.int64)
    total = np.bincount(group, np.where(known, value, 0.0), len(found))
    first = np.zeros(len(found), np.int64)
    first[group[::-1]] = np.arange(len(frame))[::-1]  # the last one written is the first row
    step = np.zeros(len(found), np.int64)
    np.maximum.at(step, group, frame["step"].to_numpy(np.int64))
    mean = np.divide(total, count, out=np.full(len(found), np.nan), where=count > 0)
    kept: dict[str, Any] = {}
    for key in keys:
        column = frame[key].array[first]
        if isinstance(column, pd.Categorical):  # each word once, not each row
            column = column.categories.astype("str").array.take(column.codes, allow_fill=True)
        kept[key] = column
    return pd.DataFrame(kept).assign(step=step, mean=mean, sum=total, count=count)


def states_formats(config: ExperimentConfig) -> bool:
    """Whether a run says of any operand which format it has."""
    return any(config.states(f"quantize.{operand}") for operand in OPERANDS)


def unquantized(runs: pd.DataFrame) -> pd.Series:
    """Which of `ExperimentDataLoader.runs` say of their operands that none is quantized."""
    return runs["quantized"] == ""


def format_label(config: ExperimentConfig) -> str:
    """``E4M3`` where one format is used for every quantized operand, else ``E4M3/E4M3/E5M2``; ``FP32`` for none."""
    if not states_formats(config):
        return NOT_STATED
    both = (config.quantize.formats(operand) for operand in config.quantize.operands)
    names = [second if first == "fp32" else first for first, second in both]
    labels = [get_format(name).label for name in names]
    return "FP32" if not labels else labels[0] if len(set(labels)) == 1 else "/".join(labels)


def scope_key(config: ExperimentConfig) -> str:
    """What is quantized, where and with which scale, in the config's own terms; "" for an unquantized run.

    Such as ``weight activation grad_output; layers head``: equal where `scope_label` is, however that is worded.
    """
    return "; ".join(key for key, _ in scope_parts(config))


def scope_label(config: ExperimentConfig) -> str:
    """What is quantized, where and with which scale, in words; "nothing" for an unquantized run."""
    return "; ".join(label for _, label in scope_parts(config)) or "nothing"


def scope_parts(config: ExperimentConfig) -> list[tuple[str, str]]:
    """The parts of a scope, each as a key and in words: the operands, then what is not the default."""
    quantize, operands = config.quantize, config.quantize.operands
    if not states_formats(config):
        return [("?", NOT_STATED)]
    if not operands:
        return []
    parts = [(" ".join(operands), " + ".join(OPERAND_NAMES[operand] for operand in operands))]
    if set(quantize.layers) != set(LAYER_TYPES):
        most = {"attention", "mlp"} <= {*quantize.layers}  # with these, layers of no type
        left = ", ".join(kind for kind in LAYER_TYPES if kind not in quantize.layers)
        label = f"not in {left}" if most else f"only in {', '.join(quantize.layers)}"
        parts.append((f"layers {' '.join(quantize.layers)}", label))
    if quantize.patterns:
        parts.append((f"patterns {' '.join(quantize.patterns)}", f"only layers {', '.join(quantize.patterns)}"))
    if quantize.wide:
        parts.append((f"wide {' '.join(quantize.wide)}", f"not layers {', '.join(quantize.wide)}"))
    scales = {operand: _scale(config.scaling.rule(operand)) for operand in operands if config.states("scaling")}
    if len({*scales.values()}) <= 1:
        parts += [scale for scale in {*scales.values()} if scale[0]]
    else:
        for operand, (key, label) in scales.items():
            parts.append((f"{operand} {key or 'amax'}", f"{OPERAND_NAMES[operand]}: {label or 'amax scale'}"))
    for operand, rounding in quantize.rounding:
        if operand in operands and rounding != "nearest_even":
            parts.append((f"{rounding} {operand}", f"{OPERAND_NAMES[operand]} rounded {_words(rounding)}"))
    for kind, rounding in quantize.grad_output_rounding.given.items():
        layer = f"the {kind}" if kind == "head" else kind
        parts.append((f"{kind} grad_output {rounding}", f"gradients of {layer} {_rounded(rounding)}"))
    for name in quantize.casts.given:
        parts.append(_cast(config, name))
    for product, size in quantize.hadamard.given.items():
        parts.append((f"hadamard {product} {size}", f"{product} rotated by {size}"))
    if quantize.compute != "simulated":
        parts.append((quantize.compute, f"{quantize.compute} products"))
    return parts


def scale_label(rule: ScaleRule) -> str:
    """The scale in words; "" for the default, a power of two by the tensor's current amax."""
    return _scale(rule)[1]


def _cast(config: ExperimentConfig, name: str) -> tuple[str, str]:
    """What a second product reads, as a key and in words."""
    fmt, rounding, rule = config.cast(name)
    scale, label = _scale(rule)
    how = () if rounding == "nearest_even" else (_words(rounding),)
    key = " ".join((name, fmt, *how, scale)).strip()
    what = f"{OPERAND_NAMES[operand_of(name)]} of {product_of(name)} in {get_format(fmt).label}"
    return key, ", ".join(filter(None, (what, *how, label)))


def _scale(rule: ScaleRule) -> tuple[str, str]:
    """A scale and where its blocks lie, as a key and in words; empty for the default."""
    key, label = _kind_of_scale(rule)
    if rule.kind != "amax" and rule.granularity == "block_2d":
        key, label = f"{key} square", f"{label} of squares"
    return (f"{key} contraction", f"{label} along the contraction") if rule.axis == "contraction" else (key, label)


def _kind_of_scale(rule: ScaleRule) -> tuple[str, str]:
    """A scale as a key and in words; empty for the default."""
    exact = "" if rule.power_of_two else "exact "
    up = {"up": ", rounded up", "inverse": ", by its inverse"}.get(rule.quotient, "")
    if rule.kind == "amax":
        where = {
            "tensor": ("", ""),
            "row": (" row", " per row"),
            "block": (f" {rule.block}", f" per block of {rule.block}"),
            "block_2d": (f" {rule.block}x{rule.block}", f" per square of {rule.block} x {rule.block}"),
        }
        key, label = where[rule.granularity]
        return (f"{exact}amax{key}{up}", f"{exact}amax scale{label}{up}") if exact or key else ("", "")
    if rule.kind == "delayed":
        recent = ", most recent" if rule.algorithm == "most_recent" else ""
        margin = f", margin {rule.margin}" if rule.margin else ""
        how = f"{recent}{margin}{up}"
        return f"{exact}delayed {rule.history}{how}", f"{exact}delayed scale over {rule.history} steps{how}"
    if rule.value is not None:
        return f"static {rule.value:g}", f"fixed scale {rule.value:g}"
    names = {
        "none": ("unscaled", "no scale"),
        "mx": ("mx", "MX scales"),
        "mx_rceil": ("mx up", "MX scales rounded up"),
        "nvfp4": ("nvfp4", "NVFP4 scales"),
    }
    return names[rule.kind]


def rule_label(config: ExperimentConfig) -> str:
    """``AdamW``, ``ManifoldAdamW`` or ``Steps of codes``, with what is not the default of it.

    Such as ``ManifoldAdamW (S shuffled)`` or ``AdamW on the grid, rounded stochastically``.
    """
    optimizer = config.optimizer
    if not config.states("optimizer.step_rule"):
        return NOT_STATED
    names = {"adamw": "AdamW", "manifold": "ManifoldAdamW", "code": "Steps of codes", "muon": "Muon"}
    name = names[optimizer.step_rule]
    if optimizer.precondition == "gradient":
        name += " on gradients"
    details: tuple[str | bool | None, ...] = (
        optimizer.relative and "relative rate",
        optimizer.format is not None and f"S of {get_format(optimizer.format).label}",
        optimizer.stiffness != "ulp" and f"S {optimizer.stiffness}",
        optimizer.floor is not None and f"floor {optimizer.floor:g}",
        optimizer.max_stiffness is not None and f"S at most {optimizer.max_stiffness:g}",
        optimizer.step_rule == "code" and optimizer.rungs != 1 and f"up to {optimizer.rungs} a step",
    )
    inner = ", ".join(str(detail) for detail in details if detail)
    label = f"{name} ({inner})" if inner else name
    if optimizer.storage == "grid":
        return f"{label} on the grid, rounded {_words(optimizer.rounding)}"
    return f"{label}, weights rounded {_words(optimizer.rounding)}" if optimizer.rounding != "nearest_even" else label


def _rounded(rounding: str) -> str:
    """What a layer's own rounding does to its gradients, in words."""
    own = {"wide": "not quantized", "diffused": "rounded by error diffusion"}
    if rounding.startswith("own:"):
        return f"with {rounding.removeprefix('own:').replace('-', ' ')}"
    return own.get(rounding, f"rounded {_words(rounding)}")


def _words(rounding: str) -> str:
    known = {"nearest_even": "to nearest", "stochastic": "stochastically", "error_feedback": "with error feedback"}
    return known.get(rounding, rounding.replace("_", " "))


def final_val_loss(record: RunRecord) -> float:
    """Validation loss (nats per character) with the deployed weights at the last evaluation of a *finished* run.

    It is the last evaluation's own, where that read more text than the others (`final_eval_characters`, a key of all
    comparisons). NaN for a run that did not finish: its last value is of another length and must not be compared.
    """
    own = "final_val_loss" if record.config.final_eval_characters else "val_loss"
    if record.status != "finished" or own not in (history := record.history):
        return math.nan
    losses = history[own].dropna()
    return float(losses.iloc[-1]) if len(losses) and np.isfinite(losses.iloc[-1]) else math.nan


def stall_ratio(record: RunRecord) -> float:
    """``1 - flips / updates`` over all quantized weights and all recorded steps; NaN without any, or unrecorded.

    In [0, 1]: updates are elements whose proposed change is nonzero, flips those of them whose stored code changed.
    """
    if record.config.quantize.weight == "fp32" or not record.looked:
        return math.nan
    flips, updates = record.moves or moves_in(record.coded)
    return 1.0 - flips / updates if updates else math.nan


def _of_arm(record: RunRecord) -> dict[str, Any]:
    """What all runs of an arm have in common, by column of `RUN_COLUMNS`."""
    config, data = record.config, record.run["data"]["sha256"]
    optimizer = config.optimizer
    identity = config.arm_identity()
    stated = states_formats(config)
    quantized = ("quantize", "scaling")
    setting = {key: value for key, value in identity.items() if key not in quantized}
    if not stated:  # a run of unknown formats is in no comparison of formats
        setting["formats"] = NOT_STATED
    kept = {key: value for key, value in identity.get("optimizer", {}).items() if key not in STEP_RULE_KEYS}
    problem = identity | {"optimizer": kept}
    experiment = {key: value for key, value in problem.items() if key not in quantized}
    scope = scope_key(config)
    if how := scope.partition("; ")[2]:  # layers, scales, roundings: where they are not the default
        experiment["how"] = how
    rule = config.states("optimizer.step_rule")
    return {
        "arm": record.arm,
        "identity": identity_of(config),
        "foreign": config.foreign is not None,
        "format": format_label(config),
        **{operand: getattr(config.quantize, operand) if stated else None for operand in OPERANDS},
        "quantized": scope,
        "scope": scope_label(config),
        "rule": rule_label(config),
        "step_rule": optimizer.step_rule if rule else None,
        "precondition": optimizer.precondition,
        "storage": optimizer.storage if rule else None,
        "rounding": optimizer.rounding if rule else None,
        "learning_rate": optimizer.learning_rate if config.states("optimizer.learning_rate") else math.nan,
        "data": data,
        "setting": digest(setting, data)[:12],
        "problem": digest(problem, data)[:12],
        "experiment": digest(experiment, data)[:12],
    }


def _row(record: RunRecord, of_arm: dict[str, Any]) -> dict[str, Any]:
    config, run = record.config, record.run
    steps = record.tables("history")["step"]
    last_step = int(steps.max()) if len(steps) else -1
    return of_arm | {
        "run_id": record.id,
        "seed": config.stated_seed,
        "status": record.status,
        "ending": record.ending,
        "study": config.study,
        "role": "tuning" if config.study.endswith("tuning") else "report",
        "max_steps": config.max_steps if config.states("max_steps") else max(last_step, 0),
        "final_val_loss": final_val_loss(record),
        "last_step": last_step,
        "stall_ratio": stall_ratio(record),
        "failure": run["failure"],
        "created": run["created"],
        "ended": run.get("ended"),
        "wandb_url": run.get("wandb_url"),
    }
